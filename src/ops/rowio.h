/*
 * rowio.h - how the CPU ops see rows: strips of f32, whatever the element type.
 *
 * An f32 strip is the row itself; a bf16 strip is widened into a buffer of the caller that stays in
 * the first-level cache.  So an op has one inner loop, over f32, that vectorises.  Internal to
 * src/ops.
 */
#ifndef KD_OPS_ROWIO_H
#define KD_OPS_ROWIO_H

#include "ops/ops.h"

enum {
    KD_STRIP = 512,              /* elements of one strip: 2 KiB a buffer */
    KD_PARALLEL_ABOVE = 1 << 14, /* elements; below, waking threads costs more than it saves */
};

/* ---- checks (check.c); each fails with KD_EINVAL naming `what` -------------------------------- */

/* F32 or BF16 and, in the last dimension, stride 1. */
KD_MUST_CHECK kd_status kd_expect_rows(const kd_tensor *t, const char *what);

/* The same, of `shape` and `dtype`. */
KD_MUST_CHECK kd_status kd_expect_rows_of(const kd_tensor *t, const char *what, kd_dtype dtype,
                                          kd_shape shape);

/* `count` contiguous elements of `dtype`, whatever the rank. */
KD_MUST_CHECK kd_status kd_expect_list(const kd_tensor *t, const char *what, kd_dtype dtype,
                                       int64_t count);

/* Reads ids (i32): every one in [low, high).  Names the first that is not. */
KD_MUST_CHECK kd_status kd_expect_ids(const kd_tensor *ids, const char *what, int64_t low,
                                      int64_t high);

/* ---- gradients that every row adds to (norm.c) -------------------------------------------------- */

/* Rows are summed in blocks of this many, a function of their number alone (at most 64 blocks), so
 * that the bits do not depend on the number of threads. */
int64_t kd_rows_per_block(int64_t rows);

/* The sums of the blocks, f32 [blocks, elements of y]; absent with y. */
KD_MUST_CHECK kd_status kd_push_blocks(kd_tensor *blocks, kd_exec *exec, const char *name,
                                       const kd_tensor *y, int64_t rows);
float *kd_block_of(const kd_tensor *blocks, int64_t block);      /* zeroed; NULL of absent ones */
void kd_add_blocks(const kd_tensor *y, const kd_tensor *blocks); /* y += them, in order */

/* Element `index` of a list of f32; `otherwise` where there is no list. */
static inline float kd_list_at(const kd_tensor *t, int64_t index, float otherwise)
{
    return kd_present(t) ? ((const float *)t->data)[index] : otherwise;
}

/* ---- rows and strips -------------------------------------------------------------------------- */

typedef struct kd_row {
    void *data; /* NULL: absent */
    kd_dtype dtype;
} kd_row;

/* Row `index` of all dimensions but the last, in row-major order; absent of an absent tensor. */
static inline kd_row kd_row_of(const kd_tensor *t, int64_t index)
{
    if (!kd_present(t)) return (kd_row){ NULL, KD_F32 };
    int64_t offset = 0;
    for (int32_t d = t->rank - 2; d > 0; d--) {
        offset += index % t->shape[d] * t->stride[d];
        index /= t->shape[d];
    }
    if (t->rank > 1) offset += index * t->stride[0];
    return (kd_row){ (char *)t->data + offset * (int64_t)kd_dtype_size(t->dtype), t->dtype };
}

/* Elements [at, at + n) as f32; n <= KD_STRIP.  NULL of an absent row. */
static inline const float *kd_row_load(float *restrict buffer, kd_row row, int64_t at, int64_t n)
{
    if (!row.data) return NULL;
    if (row.dtype == KD_F32) return (const float *)row.data + at;
    const uint16_t *half = (const uint16_t *)row.data + at;
    for (int64_t i = 0; i < n; i++) buffer[i] = kd_bf16_to_f32(half[i]);
    return buffer;
}

/* sum of a_i b_i over one row; in double from the first product. */
static inline double kd_row_dot(kd_row a, kd_row b, int64_t columns)
{
    float ab[KD_STRIP], bb[KD_STRIP];
    double total = 0;
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *u = kd_row_load(ab, a, at, n), *v = kd_row_load(bb, b, at, n);
        double strip = 0;
#pragma omp simd reduction(+ : strip)
        for (int64_t i = 0; i < n; i++) strip += (double)u[i] * (double)v[i];
        total += strip;
    }
    return total;
}

/* Where to write elements from `at` on; kd_row_finish then puts them into the row. */
static inline float *kd_row_begin(float *buffer, kd_row row, int64_t at)
{
    return row.dtype == KD_F32 ? (float *)row.data + at : buffer;
}

static inline void kd_row_finish(kd_row row, int64_t at, const float *restrict values, int64_t n)
{
    if (row.dtype == KD_F32) return; /* values are the row */
    uint16_t *half = (uint16_t *)row.data + at;
    for (int64_t i = 0; i < n; i++) half[i] = kd_f32_to_bf16(values[i]);
}

#endif
