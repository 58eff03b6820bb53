/*
 * samples.c - a file of samples for classification: `inputs` f32 or u8 [n, ...], `labels` [n].
 *
 * u8 stands for pictures and becomes x / 255.  The dimensions after the first are one row of numbers.
 * Labels are integers of any type.  Everything is checked once, when the file is opened; labels
 * stay in memory, inputs are read when they are asked for.
 */
#include "data/data.h"

#include <inttypes.h>

enum { CHUNK = 1 << 13 };

struct kd_samples {
    kd_arena *arena; /* owns this struct */
    kd_st_file *file;
    const kd_st_entry *inputs;
    int32_t *labels; /* [count] */
    int64_t count, width;
};

static kd_status find_tensor(const kd_st_entry **entry, const kd_st_file *file, const char *name)
{
    *entry = kd_st_find(file, name);
    if (*entry) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: found no tensor '%s'%s", file->path, name,
                   kd_st_find(file, "tokens") ? ", but tokens: the model classifies samples" : "");
}

static kd_status check_inputs(kd_samples *s, const kd_samples_options *o)
{
    const kd_st_entry *e = s->inputs;
    char found[128];
    if ((e->dtype != KD_F32 && e->dtype != KD_U8) || e->rank < 2)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor inputs (byte %" PRId64
                       "): found %s with %d dimensions, expected F32 or U8 with 2 or more",
                       s->file->path, e->offset, e->dtype_name, (int)e->rank);
    s->count = e->shape[0];
    if (s->count < 1 || s->count > INT32_MAX)
        return kd_fail(KD_EFORMAT, "%s: tensor inputs: found %" PRId64 " samples, expected 1 to %d",
                       s->file->path, s->count, INT32_MAX);
    s->width = e->elements / s->count;
    if (s->width == o->inputs) return KD_OK;
    return kd_fail(KD_EFORMAT,
                   "%s: tensor inputs (byte %" PRId64 "): found %" PRId64
                   " numbers in a sample (%s), expected %" PRId64 " as the models have",
                   s->file->path, e->offset, s->width,
                   kd_shape_text(found, sizeof found, e->rank, e->shape), o->inputs);
}

static kd_status read_labels(kd_samples *s, const kd_st_entry *e, int64_t classes)
{
    if (!kd_st_integer(e->dtype) || e->rank != 1 || e->elements != s->count)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor labels (byte %" PRId64 "): found %s, %d dimensions, %" PRId64
                       " elements, expected integers, 1, %" PRId64 " as in inputs",
                       s->file->path, e->offset, e->dtype_name, (int)e->rank, e->elements,
                       s->count);
    KD_TRY(KD_ARENA_ARRAY(&s->labels, s->arena, s->count));
    return kd_st_read_integers(s->labels, s->file, e, 0, classes - 1);
}

/* A number that is none would be found in a step, far from its cause. */
static kd_status scan_inputs(const kd_samples *s)
{
    float values[CHUNK];
    if (s->inputs->dtype == KD_U8) return KD_OK;
    for (int64_t at = 0; at < s->inputs->elements; at += CHUNK) {
        const int64_t n = kd_min_i64(CHUNK, s->inputs->elements - at);
        KD_TRY(kd_st_read(values, KD_F32, s->file, s->inputs, at, n));
        KD_TRY(kd_st_check_finite(s->file, s->inputs, at, values, n));
    }
    return KD_OK;
}

static kd_status open_file(kd_samples *s, const char *path, const kd_samples_options *options)
{
    const kd_st_entry *labels;
    KD_TRY(kd_st_open(&s->file, path));
    KD_TRY(find_tensor(&s->inputs, s->file, "inputs"));
    KD_TRY(find_tensor(&labels, s->file, "labels"));
    KD_TRY(check_inputs(s, options));
    KD_TRY(read_labels(s, labels, options->classes));
    return scan_inputs(s);
}

kd_status kd_samples_open(kd_samples **samples, const char *path, const kd_samples_options *options)
{
    kd_arena *arena;
    kd_samples *s = NULL;
    *samples = NULL;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = KD_ARENA_ARRAY(&s, arena, 1);
    if (status != KD_OK) {
        kd_arena_destroy(arena);
        return status;
    }
    s->arena = arena;
    status = open_file(s, path, options);
    if (status == KD_OK)
        *samples = s;
    else
        kd_samples_close(s);
    return status;
}

void kd_samples_close(kd_samples *samples)
{
    if (!samples) return;
    kd_st_close(samples->file);
    kd_arena_destroy(samples->arena);
}

int64_t kd_samples_count(const kd_samples *samples) { return samples->count; }

kd_status kd_samples_read(float *inputs, int32_t *label, const kd_samples *s, int64_t sample)
{
    const int64_t n = s->width, first = sample * n;
    *label = s->labels[sample];
    if (!inputs) return KD_OK;
    if (s->inputs->dtype == KD_F32) return kd_st_read(inputs, KD_F32, s->file, s->inputs, first, n);
    /* Bytes go into the end of their floats, which are written from the front. */
    unsigned char *bytes = (unsigned char *)inputs + 3 * n;
    KD_TRY(kd_st_read(bytes, KD_U8, s->file, s->inputs, first, n));
    for (int64_t i = 0; i < n; i++) {
        const float value = (float)bytes[i] / 255.0f;
        memcpy(&inputs[i], &value, sizeof value);
    }
    return KD_OK;
}
