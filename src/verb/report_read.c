/* What lies in a run's folder: curves of metrics.jsonl, evaluations, the configuration. */
#include "verb/report.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>

static const double largest =
    1e30; /* beyond that a number is no measurement, and no axis holds it */

double kd_json_number(const json_t *object, const char *key, const char *part)
{
    const json_t *value = json_object_get(object, key);
    if (part) value = json_object_get(value, part);
    const double number = json_is_number(value) ? json_number_value(value) : NAN;
    return fabs(number) < largest ? number : NAN;
}

const char *kd_json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------- */

const kd_series *kd_split_find(const kd_split *split, const char *key)
{
    for (int i = 0; i < split->count; i++)
        if (strcmp(split->series[i].key, key) == 0) return &split->series[i];
    return NULL;
}

double kd_series_last(const kd_series *series)
{
    return series && series->count ? series->y[series->count - 1] : NAN;
}

static kd_status append(kd_split *split, kd_arena *arena, const char *key, double x, double y)
{
    kd_series *s = (kd_series *)kd_split_find(split, key);
    if (!s) {
        if (split->count == KD_REPORT_SERIES) return KD_OK;
        s = &split->series[split->count++];
        KD_TRY(kd_arena_string(&s->key, arena, key));
    }
    if (s->count == s->room) {
        double *wider_x, *wider_y;
        s->room = kd_max_i64(64, 2 * s->room);
        KD_TRY(KD_ARENA_ARRAY(&wider_x, arena, s->room));
        KD_TRY(KD_ARENA_ARRAY(&wider_y, arena, s->room));
        if (s->count) {
            memcpy(wider_x, s->x, (size_t)s->count * sizeof *s->x);
            memcpy(wider_y, s->y, (size_t)s->count * sizeof *s->y);
        }
        s->x = wider_x;
        s->y = wider_y;
    }
    s->x[s->count] = x;
    s->y[s->count++] = y;
    return KD_OK;
}

static kd_status curves_of(kd_curves **out, kd_left *left, const char *label)
{
    for (int m = 0; m < left->model_count; m++) {
        *out = &left->models[m];
        if (strcmp((*out)->label, label) == 0) return KD_OK;
    }
    *out = NULL;
    if (left->model_count == KD_MAX_MODELS) return KD_OK;
    *out = &left->models[left->model_count++];
    return kd_arena_string(&(*out)->label, left->arena, label);
}

static kd_status add_record(kd_left *left, const json_t *record)
{
    const double step = kd_json_number(record, "step", NULL);
    const char *key;
    json_t *value;
    kd_curves *model;
    if (isnan(step)) {
        left->dropped++;
        return KD_OK;
    }
    KD_TRY(curves_of(&model, left, kd_json_text(record, "model")));
    if (!model) return KD_OK;
    left->records++;
    kd_split *split = json_object_get(record, "split") ? &model->valid : &model->train;
    json_object_foreach((json_t *)record, key, value)
    {
        const double y = kd_json_number(record, key, NULL);
        if (strcmp(key, "step") != 0 && !isnan(y)) KD_TRY(append(split, left->arena, key, step, y));
    }
    return KD_OK;
}

static kd_status read_metrics(kd_left *left)
{
    const char *path;
    char *text;
    size_t bytes;
    kd_status status = KD_OK;
    KD_TRY(kd_path_join(&path, left->arena, left->dir, "metrics.jsonl"));
    if (!kd_file_exists(path)) return KD_OK;
    KD_TRY(kd_file_read(&text, &bytes, path, (size_t)1 << 32));
    for (size_t at = 0; at < bytes && status == KD_OK;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        const size_t next = end ? (size_t)(end - text) + 1 : bytes;
        json_t *record = NULL;
        status = kd_json_parse(&record, path, text + at, next - at);
        if (status == KD_EFORMAT) status = KD_OK;
        if (json_is_object(record))
            status = add_record(left, record);
        else
            left->dropped++;
        json_decref(record);
        at = next;
    }
    free(text);
    return status;
}

/* ---- files beside it -------------------------------------------------------------------------- */

static kd_status read_eval(kd_left *left, const char *name)
{
    const char *path;
    json_t *eval;
    if (left->eval_count == KD_REPORT_EVALS) {
        left->more_evals++;
        return KD_OK;
    }
    KD_TRY(kd_path_join(&path, left->arena, left->dir, name));
    KD_TRY(kd_json_read(&eval, path));
    left->evals[left->eval_count] = eval;
    left->eval_names[left->eval_count++] = name;
    return json_is_array(json_object_get(eval, "models"))
               ? KD_OK
               : kd_fail(KD_EFORMAT, "%s: models: found no list, expected what kd eval --out wrote",
                         path);
}

/* That of the newest checkpoint. */
static kd_status find_config(kd_left *left, const char *name, int64_t *newest)
{
    const char *path;
    const int64_t step = strtoll(name + strlen("checkpoint-"), NULL, 10);
    KD_TRY(kd_arena_format(&path, left->arena, "%s/%s/engine/config.json", left->dir, name));
    if (step < *newest || !kd_file_exists(path)) return KD_OK;
    *newest = step;
    left->config_path = path;
    return KD_OK;
}

kd_status kd_left_open(kd_left *left, kd_arena *arena, const char *dir)
{
    const char *const *names, *model;
    int count;
    int64_t newest = -1;
    *left = (kd_left){ .arena = arena, .dir = dir };
    KD_TRY(kd_dir_list(&names, &count, arena, dir));
    KD_TRY(read_metrics(left));
    for (int i = 0; i < count; i++) {
        if (fnmatch("eval*.json", names[i], 0) == 0) KD_TRY(read_eval(left, names[i]));
        if (fnmatch("checkpoint-[0-9]*", names[i], 0) == 0)
            KD_TRY(find_config(left, names[i], &newest));
    }
    if (left->config_path) KD_TRY(kd_json_read(&left->config, left->config_path));
    KD_TRY(kd_path_join(&model, arena, dir, "config.json"));
    left->finished = kd_file_exists(model);
    if (left->records == 0 && left->eval_count == 0)
        return kd_fail(KD_EFORMAT,
                       "%s: no folder of a run: it has no metrics.jsonl and no eval*.json", dir);
    return KD_OK;
}

void kd_left_close(kd_left *left)
{
    for (int i = 0; i < left->eval_count; i++) json_decref(left->evals[i]);
    json_decref(left->config);
}
