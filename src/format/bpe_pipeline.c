/*
 * bpe_pipeline.c - what stands around the model of tokenizer.json: normaliser, pre-tokeniser, decoder
 * and post-processor.
 *
 * What shapes ids and is not known only forbids encoding; the decoder must be known.
 */
#include "format/bpe.h"

#include <stdlib.h>
#include <string.h>

static const char *type_of(const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "?";
}

static bool is(const json_t *part, const char *type) { return strcmp(type_of(part), type) == 0; }

/* The first reason stands. */
static kd_status forbid(const char **reason, const kd_tokenizer *t, const char *what,
                        const json_t *part)
{
    char *text = json_dumps(part, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) return kd_fail(KD_ENOMEM, "%s: no memory", t->path);
    const kd_status status =
        *reason ? KD_OK : kd_arena_format(reason, t->arena, "%s %.300s", what, text);
    free(text);
    return status;
}

/* ---- pre-tokeniser ---------------------------------------------------------------------------- */

/* The split a part does; KD_SPLIT_COUNT: none, -1: not known. */
static int split_of(const json_t *part)
{
    const char *pattern =
        json_string_value(json_object_get(json_object_get(part, "pattern"), "Regex"));
    const char *behaviour = json_string_value(json_object_get(part, "behavior"));
    if (is(part, "Digits") && json_is_true(json_object_get(part, "individual_digits")))
        return KD_SPLIT_DIGITS;
    if (is(part, "ByteLevel") && !json_is_true(json_object_get(part, "add_prefix_space")))
        return json_is_false(json_object_get(part, "use_regex")) ? KD_SPLIT_COUNT : KD_SPLIT_GPT2;
    if (!is(part, "Split") || !pattern || !behaviour ||
        json_is_true(json_object_get(part, "invert")))
        return -1;
    for (int i = KD_SPLIT_GPT2; i < KD_SPLIT_COUNT; i++)
        if (strcmp(behaviour, "Isolated") == 0 && strcmp(pattern, kd_split_patterns[i]) == 0)
            return i;
    return -1;
}

/* A list ends with ByteLevel: what follows it would see the byte alphabet instead of text. */
static kd_status load_pre_tokenizer(kd_tokenizer *t, const json_t *json)
{
    const json_t *list = is(json, "Sequence") ? json_object_get(json, "pretokenizers") : NULL;
    const size_t n = list ? json_array_size(list) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *part = list ? json_array_get(list, i) : json;
        const int split = split_of(part);
        if (split < 0 || is(part, "ByteLevel") != (i + 1 == n) || t->split_count == KD_MAX_SPLITS)
            return forbid(&t->no_encode, t, "pre_tokenizer", json ? json : json_null());
        if (split < KD_SPLIT_COUNT) t->splits[t->split_count++] = (kd_split)split;
    }
    return n ? KD_OK : forbid(&t->no_encode, t, "pre_tokenizer", json);
}

/* ---- post-processor --------------------------------------------------------------------------- */

/* The ids of a special token of the template, at the end of prefix or suffix. */
static kd_status add_wrap(kd_tokenizer *t, const json_t *specials, const char *name, bool before)
{
    const json_t *ids = json_object_get(name ? json_object_get(specials, name) : NULL, "ids");
    int32_t *to = before ? t->prefix : t->suffix;
    int *count = before ? &t->prefix_count : &t->suffix_count;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= t->size || *count == KD_MAX_WRAP)
            return kd_fail(KD_EFORMAT,
                           "%s: post_processor: \"%.60s\": expected at most %d ids below %lld",
                           t->path, name, KD_MAX_WRAP, (long long)t->size);
        to[(*count)++] = (int32_t)json_integer_value(id);
    }
    return json_array_size(ids) ? KD_OK
                                : kd_fail(KD_EFORMAT, "%s: post_processor: no ids for \"%.60s\"",
                                          t->path, name ? name : "?");
}

static kd_status load_template(kd_tokenizer *t, const json_t *part)
{
    const json_t *single = json_object_get(part, "single");
    int texts = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken");
        if (special)
            KD_TRY(add_wrap(t, json_object_get(part, "special_tokens"),
                            json_string_value(json_object_get(special, "id")), texts == 0));
        else
            texts++;
    }
    return texts == 1 ? KD_OK : forbid(&t->no_wrap, t, "post_processor", part);
}

static kd_status load_post_processor(kd_tokenizer *t, const json_t *json)
{
    const json_t *list = is(json, "Sequence") ? json_object_get(json, "processors") : NULL;
    const size_t n = list ? json_array_size(list) : json_is_object(json);
    int templates = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *part = list ? json_array_get(list, i) : json;
        if (is(part, "ByteLevel")) continue; /* moves offsets, not ids */
        if (!is(part, "TemplateProcessing") || templates++)
            return forbid(&t->no_wrap, t, "post_processor", part);
        KD_TRY(load_template(t, part));
    }
    return KD_OK;
}

/* ---- normaliser ------------------------------------------------------------------------------- */

/* Text is only encoded where NFC leaves it alone; a token that NFC changes would still match. */
static kd_status check_normalized(kd_tokenizer *t)
{
    uint8_t classes[KD_MAX_ADDED_BYTES];
    for (int64_t k = 0; k < t->added[1].count; k++) {
        const kd_bpe_added *added = &t->added[1].items[k];
        KD_TRY(kd_classify(classes, added->text, added->length));
        for (uint32_t i = 0; i < added->length; i++)
            if (classes[i] & KD_CHAR_UNSTABLE && !t->no_encode)
                KD_TRY(kd_arena_format(&t->no_encode, t->arena,
                                       "NFC and the added token \"%.60s\", which it may change",
                                       added->text));
    }
    return KD_OK;
}

static kd_status load_normalizer(kd_tokenizer *t, const json_t *json)
{
    t->nfc = is(json, "NFC");
    if (t->nfc) return check_normalized(t);
    return !json || json_is_null(json) ? KD_OK : forbid(&t->no_encode, t, "normalizer", json);
}

/* ---- all four --------------------------------------------------------------------------------- */

kd_status kd_bpe_load_pipeline(kd_tokenizer *t, const json_t *json)
{
    const json_t *decoder = json_object_get(json, "decoder");
    if (!is(decoder, "ByteLevel"))
        return kd_fail(KD_ENOTSUP, "%s: decoder %.60s; kd reads ByteLevel", t->path,
                       type_of(decoder));
    KD_TRY(load_normalizer(t, json_object_get(json, "normalizer")));
    KD_TRY(load_pre_tokenizer(t, json_object_get(json, "pre_tokenizer")));
    return load_post_processor(t, json_object_get(json, "post_processor"));
}
