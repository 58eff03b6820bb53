/* fields.h - reading the fields of a config.json; private to format. */
#ifndef KD_FIELDS_H
#define KD_FIELDS_H

#include "format/format.h"

#include <math.h>

/* A JSON object being read; `prefix` names it within the file: "" or "rope_scaling.". */
typedef struct reader {
    const char *source, *prefix;
    json_t *json;
} reader;

/* NULL where the key is absent or null. */
static inline json_t *get(const reader *r, const char *key)
{
    json_t *value = json_object_get(r->json, key);
    return json_is_null(value) ? NULL : value;
}

static inline kd_status refuse(const reader *r, const char *key, const char *expected)
{
    char text[80];
    return kd_fail(KD_EFORMAT, "%s: %s%s is %s, expected %s", r->source, r->prefix, key,
                   kd_json_show(text, sizeof text, get(r, key)), expected);
}

static inline kd_status not_supported(const reader *r, const char *key, const char *supported)
{
    char text[80];
    return kd_fail(KD_ENOTSUP, "%s: %s%s is %s; kd computes %s", r->source, r->prefix, key,
                   kd_json_show(text, sizeof text, get(r, key)), supported);
}

/* `fallback` < 0: required. */
static inline kd_status read_int(int64_t *out, const reader *r, const char *key, int64_t fallback,
                                 int64_t max)
{
    const json_t *value = get(r, key);
    char expected[64];
    *out = value ? (int64_t)json_integer_value(value) : fallback;
    if ((value && !json_is_integer(value)) || *out < 1 || *out > max) {
        (void)snprintf(expected, sizeof expected, "an integer from 1 to %lld", (long long)max);
        return refuse(r, key, expected);
    }
    return KD_OK;
}

/* Above `min`, up to `max`; `fallback` NAN: required. */
static inline kd_status read_double(double *out, const reader *r, const char *key, double fallback,
                                    double min, double max)
{
    const json_t *value = get(r, key);
    char expected[64];
    *out = value ? json_number_value(value) : fallback;
    if ((value && !json_is_number(value)) || !(*out > min && *out <= max)) {
        (void)snprintf(expected, sizeof expected, "a number above %g, at most %g", min, max);
        return refuse(r, key, expected);
    }
    return KD_OK;
}

static inline kd_status read_bool(bool *out, const reader *r, const char *key, bool fallback)
{
    const json_t *value = get(r, key);
    *out = value ? json_is_true(value) : fallback;
    return value && !json_is_boolean(value) ? refuse(r, key, "true or false") : KD_OK;
}

/* NULL where absent. */
static inline kd_status read_string(const char **out, const reader *r, const char *key)
{
    const json_t *value = get(r, key);
    *out = json_string_value(value);
    return value && !*out ? refuse(r, key, "a string") : KD_OK;
}

/* KD_ENOTSUP unless the flag is `wanted`, which is also what its absence means. */
static inline kd_status require_flag(const reader *r, const char *key, bool wanted)
{
    bool value;
    KD_TRY(read_bool(&value, r, key, wanted));
    return value == wanted ? KD_OK : not_supported(r, key, wanted ? "true" : "false");
}

/* The rest of config.json for a family that is no transformer (mlp_config.c). */
KD_MUST_CHECK kd_status kd_config_parse_mlp(kd_config *config, const reader *r);

#endif
