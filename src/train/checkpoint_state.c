/*
 * engine/state.json: what a resumed run needs and no array holds, and what it must agree with.
 *
 * The table of every student's parameters is written out, so that arrays of another layout are
 * refused by the name of the first parameter that differs, not by luck of their length.
 */
#include "train/checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { FORMAT = 2 };

int kd_slab_arrays(kd_slab_array arrays[KD_SLAB_ARRAYS], const kd_slab *slab)
{
    kd_slab_array all[KD_SLAB_ARRAYS] = { { "masters", slab->masters },
                                          { "moment0", slab->moment[0] },
                                          { "moment1", slab->moment[1] },
                                          { "states", slab->states },
                                          { "extra", { 0 } } };
    const int64_t extra = slab->params.extra, elements = slab->params.elements;
    int count = 0;
    if (!kd_present(&slab->masters) && extra < elements)
        all[KD_SLAB_ARRAYS - 1].tensor =
            kd_tensor_slice(&slab->weights, 0, extra, elements - extra);
    for (int i = 0; i < KD_SLAB_ARRAYS; i++)
        if (kd_present(&all[i].tensor)) arrays[count++] = all[i];
    return count;
}

/* ---- making ----------------------------------------------------------------------------------- */

/* JSON has no infinity and no NaN: those go as text. */
static json_t *number(double value)
{
    if (isfinite(value)) return json_real(value); /* 17 digits: the same bits come back */
    return json_string(isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
}

static json_t *integers(const int64_t *values, int count)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++) (void)json_array_append_new(list, json_integer(values[i]));
    return list;
}

static json_t *describe_student(const kd_model *model)
{
    const kd_slab *slab = &model->slab;
    json_t *parameters = json_array();
    for (int i = 0; i < slab->params.count; i++) {
        const kd_param *p = &slab->params.items[i];
        (void)json_array_append_new(parameters,
                                    json_pack("{s:s, s:o, s:I}", "name", p->name, "shape",
                                              integers(p->shape.dim, p->shape.rank), "offset",
                                              (json_int_t)p->offset));
    }
    return json_pack("{s:s, s:s, s:s, s:i, s:I, s:o}", "label", model->label, "architecture",
                     model->config.architecture, "dtype", kd_dtype_name(model->dtype), "moments",
                     slab->moments, "elements", (json_int_t)slab->params.elements, "parameters",
                     parameters);
}

/* Of every student its last losses, then its last norms; as many as the windows have. */
static json_t *describe_windows(const kd_guard *guard, int students)
{
    const int64_t values = kd_min_i64(guard->seen, KD_GUARD_WINDOW);
    json_t *windows = json_array();
    for (int i = 0; i < 2 * students; i++) {
        json_t *window = json_array();
        for (int64_t k = 0; k < values; k++)
            (void)json_array_append_new(window, json_real((double)guard->window[i / 2][i % 2][k]));
        (void)json_array_append_new(windows, window);
    }
    return windows;
}

static json_t *describe_guard(const kd_guard *guard, int students)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:o}", "updates", (json_int_t)guard->updates, "skips",
                     (json_int_t)guard->skips, "in_row", (json_int_t)guard->in_row, "seen",
                     (json_int_t)guard->seen, "windows", describe_windows(guard, students));
}

kd_status kd_state_make(json_t **state, const kd_checkpoint *checkpoint)
{
    const kd_progress *p = &checkpoint->progress;
    const int64_t before = kd_json_refused();
    json_t *students = json_array();
    bool complete = true; /* no label is not UTF-8 */
    for (int i = 0; i < checkpoint->student_count; i++)
        complete &= json_array_append_new(students, describe_student(checkpoint->students[i])) == 0;
    *state =
        json_pack("{s:i, s:s, s:I, s:I, s:{s:I, s:o}, s:I, s:o, s:o, s:o, s:s, s:o}", "format",
                  FORMAT, "kd", KD_VERSION, "step", (json_int_t)p->step, "tokens",
                  (json_int_t)p->tokens, "cursor", "samples", (json_int_t)p->cursor.samples,
                  "source_samples", integers(p->cursor.source_samples, KD_MAX_SOURCES), "best_step",
                  (json_int_t)p->best_step, "best", number(p->best), "seconds", number(p->seconds),
                  "guard", describe_guard(&p->guard, checkpoint->student_count), "contract",
                  checkpoint->contract ? checkpoint->contract : "", "students", students);
    if (!complete) {
        json_decref(*state);
        *state = NULL;
    }
    return kd_json_made(state, before, "checkpoint: engine/state.json");
}

/* ---- reading ---------------------------------------------------------------------------------- */

static kd_status refuse(const char *path, const char *key, const json_t *found,
                        const char *expected)
{
    char shown[80];
    return kd_fail(KD_EFORMAT, "%s: %s: found %s, expected %s", path, key,
                   kd_json_show(shown, sizeof shown, found), expected);
}

static kd_status get_integer(int64_t *value, const json_t *object, const char *key,
                             const char *path)
{
    const json_t *found = json_object_get(object, key);
    *value = json_integer_value(found);
    return json_is_integer(found) ? KD_OK : refuse(path, key, found, "an integer");
}

/* From `least` to 2^62: what is counted on from there cannot overflow. */
static kd_status get_count(int64_t *value, const json_t *object, const char *key, int64_t least,
                           const char *path)
{
    KD_TRY(get_integer(value, object, key, path));
    if (*value >= least && *value <= INT64_MAX / 2) return KD_OK;
    return refuse(path, key, json_object_get(object, key), least < 0 ? "-1 or a count" : "a count");
}

static kd_status get_number(double *value, const json_t *object, const char *key, const char *path)
{
    static const char *const names[] = { "nan", "inf", "-inf" };
    const double values[] = { NAN, INFINITY, -INFINITY };
    const json_t *found = json_object_get(object, key);
    const char *text = json_string_value(found);
    *value = json_number_value(found);
    if (json_is_number(found)) return KD_OK;
    for (int i = 0; text && i < KD_COUNT(names); i++) {
        *value = values[i];
        if (strcmp(text, names[i]) == 0) return KD_OK;
    }
    return refuse(path, key, found, "a number, \"nan\", \"inf\" or \"-inf\"");
}

static kd_status get_cursor(kd_cursor *cursor, const json_t *state, const char *path)
{
    const json_t *found = json_object_get(state, "cursor");
    const json_t *sources = json_object_get(found, "source_samples");
    KD_TRY(get_count(&cursor->samples, found, "samples", 0, path));
    if (json_array_size(sources) != KD_MAX_SOURCES)
        return kd_fail(KD_EFORMAT, "%s: cursor.source_samples: found %zu numbers, expected %d",
                       path, json_array_size(sources), (int)KD_MAX_SOURCES);
    for (int i = 0; i < KD_MAX_SOURCES; i++) {
        const json_t *samples = json_array_get(sources, (size_t)i);
        if (json_typeof(samples) != JSON_INTEGER)
            return refuse(path, "cursor.source_samples", samples, "an integer");
        cursor->source_samples[i] = json_integer_value(samples);
    }
    return KD_OK; /* kd_loader_seek knows which counts go together */
}

static kd_status get_window(float *values, const json_t *found, int64_t count, const char *path)
{
    if (json_typeof(found) != JSON_ARRAY || json_array_size(found) != (size_t)count)
        return kd_fail(KD_EFORMAT, "%s: guard.windows: found %zu numbers, expected %lld", path,
                       json_array_size(found), (long long)count);
    for (int64_t i = 0; i < count; i++) {
        const json_t *value = json_array_get(found, (size_t)i);
        const json_type type = json_typeof(value);
        values[i] = (float)json_number_value(value);
        if ((type != JSON_REAL && type != JSON_INTEGER) || !isfinite(values[i]))
            return refuse(path, "guard.windows", value, "a number of f32");
    }
    return KD_OK;
}

static kd_status get_guard(kd_guard *guard, const json_t *state, int64_t step, const char *path)
{
    const json_t *found = json_object_get(state, "guard");
    const json_t *windows = json_object_get(found, "windows");
    const size_t students = json_array_size(json_object_get(state, "students"));
    int64_t in_row;
    KD_TRY(get_count(&guard->updates, found, "updates", 0, path));
    KD_TRY(get_count(&guard->skips, found, "skips", 0, path));
    KD_TRY(get_count(&guard->seen, found, "seen", 0, path));
    KD_TRY(get_count(&in_row, found, "in_row", 0, path));
    if (guard->updates + guard->skips != step || guard->seen < guard->updates ||
        guard->seen > step || in_row > guard->skips || in_row > INT32_MAX)
        return kd_fail(KD_EFORMAT,
                       "%s: guard: found %lld updates, %lld skips (%lld in a row) and %lld finite "
                       "steps, expected those of %lld steps",
                       path, (long long)guard->updates, (long long)guard->skips, (long long)in_row,
                       (long long)guard->seen, (long long)step);
    guard->in_row = (int32_t)in_row;
    if (students > KD_MAX_STUDENTS || json_array_size(windows) != 2 * students)
        return kd_fail(KD_EFORMAT,
                       "%s: guard.windows: found %zu, expected 2 of each of %zu students", path,
                       json_array_size(windows), students);
    for (size_t i = 0; i < 2 * students; i++)
        KD_TRY(get_window(guard->window[i / 2][i % 2], json_array_get(windows, i),
                          kd_min_i64(guard->seen, KD_GUARD_WINDOW), path));
    return KD_OK;
}

kd_status kd_state_progress(kd_progress *progress, const json_t *state, const char *path)
{
    kd_progress p = { 0 };
    KD_TRY(get_count(&p.step, state, "step", 0, path));
    KD_TRY(get_count(&p.tokens, state, "tokens", 0, path));
    KD_TRY(get_cursor(&p.cursor, state, path));
    KD_TRY(get_count(&p.best_step, state, "best_step", -1, path));
    KD_TRY(get_number(&p.best, state, "best", path));
    KD_TRY(get_number(&p.seconds, state, "seconds", path));
    KD_TRY(get_guard(&p.guard, state, p.step, path));
    *progress = p;
    return KD_OK;
}

/* ---- agreement -------------------------------------------------------------------------------- */

static kd_status check_text(const char *path, const char *student, const char *key,
                            const json_t *found, const char *expected)
{
    const char *text = json_string_value(found);
    char shown[80];
    if (text && strcmp(text, expected) == 0) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: student %s: %s: found %s, expected \"%s\"", path, student, key,
                   kd_json_show(shown, sizeof shown, found), expected);
}

static kd_status check_integer(const char *path, const char *student, const char *key,
                               const json_t *object, int64_t expected)
{
    int64_t found = 0;
    KD_TRY(get_integer(&found, object, key, path));
    if (found == expected) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: student %s: %s: found %lld, expected %lld", path, student, key,
                   (long long)found, (long long)expected);
}

/* {"name": "head", "offset": 512, "shape": [7, 64]} */
static char *print_parameter(const json_t *parameter)
{
    return json_dumps(parameter, JSON_COMPACT | JSON_SORT_KEYS);
}

static kd_status check_parameters(const char *path, const char *label, const json_t *found,
                                  const json_t *expected)
{
    const size_t count = json_array_size(found), wanted = json_array_size(expected);
    for (size_t i = 0; i < count || i < wanted; i++) {
        const json_t *have = json_array_get(found, i), *want = json_array_get(expected, i);
        if (have && want && json_equal(have, want)) continue;
        char *a = print_parameter(have), *b = print_parameter(want);
        const kd_status status =
            kd_fail(KD_EFORMAT, "%s: student %s: parameter %zu: found %.300s, expected %.300s",
                    path, label, i, a ? a : "none", b ? b : "none");
        free(a);
        free(b);
        return status;
    }
    return KD_OK;
}

static kd_status check_student(const char *path, const json_t *found, const kd_model *model)
{
    const char *label = model->label;
    KD_TRY(check_text(path, label, "label", json_object_get(found, "label"), label));
    KD_TRY(check_text(path, label, "architecture", json_object_get(found, "architecture"),
                      model->config.architecture));
    KD_TRY(check_text(path, label, "dtype", json_object_get(found, "dtype"),
                      kd_dtype_name(model->dtype)));
    KD_TRY(check_integer(path, label, "moments", found, model->slab.moments));
    const int64_t before = kd_json_refused();
    json_t *wanted = describe_student(model);
    KD_TRY(kd_json_made(&wanted, before, path));
    const kd_status status = check_parameters(path, label, json_object_get(found, "parameters"),
                                              json_object_get(wanted, "parameters"));
    json_decref(wanted);
    KD_TRY(status);
    return check_integer(path, label, "elements", found, model->slab.params.elements);
}

/* Shown from the start of the first item that differs; items end with one of these. */
static size_t first_difference(const char *a, const char *b)
{
    size_t start = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (strchr(",;\n", a[i])) start = i + 1;
    return start;
}

static kd_status check_contract(const char *path, const char *found, const char *expected)
{
    if (!found) return kd_fail(KD_EFORMAT, "%s: contract: missing", path);
    if (strcmp(found, expected) == 0) return KD_OK;
    const size_t at = first_difference(found, expected);
    return kd_fail(KD_EFORMAT,
                   "%s: contract: found \"%.200s\", expected \"%.200s\" (from character %zu)", path,
                   found + at, expected + at, at);
}

kd_status kd_state_check(const json_t *state, const char *path, const kd_checkpoint *expected)
{
    int64_t format = 0;
    KD_TRY(get_integer(&format, state, "format", path));
    if (format != FORMAT)
        return kd_fail(KD_EFORMAT, "%s: format: found %lld, expected %d", path, (long long)format,
                       (int)FORMAT);
    KD_TRY(check_contract(path, json_string_value(json_object_get(state, "contract")),
                          expected->contract ? expected->contract : ""));
    const json_t *students = json_object_get(state, "students");
    const size_t count = json_array_size(students);
    if (count != (size_t)expected->student_count)
        return kd_fail(KD_EFORMAT, "%s: students: found %zu, expected %d", path, count,
                       expected->student_count);
    for (int i = 0; i < expected->student_count; i++)
        KD_TRY(check_student(path, json_array_get(students, (size_t)i), expected->students[i]));
    return KD_OK;
}
