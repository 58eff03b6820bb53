/*
 * row_block.h - rows of logits in blocks of classes that stay in the first-level cache, and the row terms
 * over one block.  Internal to row_loss.c, row_loss_topk.c, row_terms.c and top_classes.c.
 */
#ifndef KD_OPS_ROW_BLOCK_H
#define KD_OPS_ROW_BLOCK_H

#include "ops/rowio.h"
#include "ops/vmath.h"

#include <stdalign.h>

#define KD_ROW_FN        static inline
#define KD_ROW_LOG(x)    kd_vlogf(x)
#define KD_ROW_EXP(x)    kd_vexpf(x)
#define KD_ROW_ABS(x)    __builtin_fabsf(x)
#define KD_ROW_DIV(x, y) ((x) / (y))
#define KD_ROW_BRANCHES  0

#include "ops/rows/row.h"

enum { BLOCK = 256 }; /* classes; a multiple of 64 */

/* The last block of a row is filled up with classes that are dead on both sides: they add 0.  z, t
 * and top are set where a term of the group reads them. */
typedef struct block {
    alignas(64) float log_q[BLOCK], q[BLOCK], log_p[BLOCK], p[BLOCK], live[BLOCK], label[BLOCK];
    alignas(64) float z[BLOCK], t[BLOCK], top[BLOCK];
} block;

typedef struct kd_row_functions {
    /* sums += those of the block's classes */
    void (*add_sums)(double sums[2], const block *b, kd_row_stats stats);
    float (*value)(kd_row_stats stats);
    /* gradient[i] += factor * the term's, for live classes */
    void (*add_gradient)(float *gradient, const block *b, kd_row_stats stats, float factor);
} kd_row_functions;

extern const kd_row_functions kd_row_functions_of[KD_ROW_COUNT];

/* Sum in a fixed order: 64 lanes, then halved. */
static inline double sum_block(const float *restrict x)
{
    alignas(64) float lane[64];
    for (int i = 0; i < 64; i++) lane[i] = x[i];
    for (int first = 64; first < BLOCK; first += 64)
        for (int i = 0; i < 64; i++) lane[i] += x[first + i];
    for (int i = 0; i < 32; i++) lane[i] += lane[i + 32];
    for (int i = 0; i < 16; i++) lane[i] += lane[i + 16];
    for (int i = 0; i < 8; i++) lane[i] += lane[i + 8];
    for (int i = 0; i < 4; i++) lane[i] += lane[i + 4];
    return ((double)lane[0] + (double)lane[2]) + ((double)lane[1] + (double)lane[3]);
}

/* ---- a row's label and weight, where they are given --------------------------------------------- */

static inline int64_t label_of(const kd_tensor *labels, int64_t n)
{
    return kd_present(labels) ? ((const int32_t *)labels->data)[n * labels->stride[0]] : -1;
}

static inline float weight_of(const kd_tensor *weight, int64_t n)
{
    return kd_present(weight) ? ((const float *)weight->data)[n * weight->stride[0]] : 1.0f;
}

static inline bool ignored(const kd_tensor *labels, const kd_tensor *weight, int64_t n)
{
    return (kd_present(labels) && label_of(labels, n) == -1) || weight_of(weight, n) == 0.0f;
}

/* ---- what a row has come to -------------------------------------------------------------------- */

static inline void set_loss(const kd_tensor *losses, int k, int64_t n, float loss)
{
    ((float *)losses->data)[k * losses->stride[0] + n * losses->stride[1]] = loss;
}

static inline void set_same_top(const kd_tensor *same_top, int64_t n, bool same)
{
    if (kd_present(same_top))
        ((float *)same_top->data)[n * same_top->stride[0]] = same ? 1.0f : 0.0f;
}

/* ---- rows of logits --------------------------------------------------------------------------- */

/* Classes [first, first + BLOCK) of a row as floats, -inf from `classes` on; in place when they
 * lie there so, else in `buffer`. */
static inline const float *load_block(float *restrict buffer, kd_row row, int64_t first,
                                      int64_t classes)
{
    const int count = (int)kd_min_i64(BLOCK, classes - first);
    if (row.dtype == KD_F32) {
        const float *from = (const float *)row.data + first;
        if (count == BLOCK) return from;
        memcpy(buffer, from, (size_t)count * sizeof *from);
    } else {
        const uint16_t *from = (const uint16_t *)row.data + first;
        for (int i = 0; i < count; i++) buffer[i] = kd_bf16_to_f32(from[i]);
    }
    for (int i = count; i < BLOCK; i++) buffer[i] = -INFINITY;
    return buffer;
}

static inline void store_block(kd_row row, int64_t first, int64_t classes,
                               const float *restrict from)
{
    const int count = (int)kd_min_i64(BLOCK, classes - first);
    if (row.dtype == KD_F32) {
        memcpy((float *)row.data + first, from, (size_t)count * sizeof *from);
    } else {
        uint16_t *restrict to = (uint16_t *)row.data + first;
        for (int i = 0; i < count; i++) to[i] = kd_f32_to_bf16(from[i]);
    }
}

static inline void zero_columns(kd_row row, int64_t first, int64_t end)
{
    const size_t size = kd_dtype_size(row.dtype);
    memset((char *)row.data + (size_t)first * size, 0, (size_t)(end - first) * size);
}

static inline float element(kd_row row, int64_t j)
{
    return row.dtype == KD_F32 ? ((const float *)row.data)[j]
                               : kd_bf16_to_f32(((const uint16_t *)row.data)[j]);
}

/* NaN is never the largest. */
static inline float row_max(kd_row row, int64_t classes)
{
    alignas(64) float buffer[BLOCK], most[BLOCK];
    for (int i = 0; i < BLOCK; i++) most[i] = -INFINITY;
    for (int64_t first = 0; first < classes; first += BLOCK) {
        const float *z = load_block(buffer, row, first, classes);
        for (int i = 0; i < BLOCK; i++) most[i] = z[i] > most[i] ? z[i] : most[i];
    }
    float max = -INFINITY;
    for (int i = 0; i < BLOCK; i++) max = most[i] > max ? most[i] : max;
    return max;
}

static inline int64_t first_equal(kd_row row, int64_t classes, float value)
{
    for (int64_t j = 0; j < classes; j++)
        if (element(row, j) == value) return j;
    return classes;
}

#endif
