/*
 * qk_norm_rope - what a transformer with QK-norm does to the heads of its queries and keys (Henry et
 * al. 2020, in the RMSNorm form of Qwen3) before they meet: normalise, scale, turn by position.
 *
 *     y = rope(rms_norm(x))      over each head of d elements; see norm.c and rope.c
 *
 * Backward turns dy back and takes it through the norm: with g = rope^T(dy),
 *
 *     dx = rstd * (g w - h * sum_k g_k w_k h_k / d)      h = x rstd
 *     dweight += sum over rows and heads of g h          each of the two weights over its own heads
 *
 * One op, because apart they move every query and key three times and round it to the element type
 * in between: here the normalised head is turned in f32.
 */
#include "ops/rowio.h"
#include "ops/turn.h"

#include <math.h>

/* A row's turns; `half` 0: none. */
typedef struct turns {
    float sine[KD_MAX_NORMED_HEAD / 2], cosine[KD_MAX_NORMED_HEAD / 2];
    int64_t half;
} turns;

static void make_turns(turns *t, const kd_tensor *positions, const kd_tensor *frequencies,
                       int64_t row, float scale, bool backward)
{
    t->half = kd_present(frequencies) ? kd_tensor_elements(frequencies) : 0;
    if (t->half)
        kd_turn_angles(t->sine, t->cosine, ((const int32_t *)positions->data)[row],
                       frequencies->data, scale, backward, t->half);
}

static void turn(float *x, const turns *t)
{
    kd_turn_pairs(x, x + t->half, x, x + t->half, t->sine, t->cosine, t->half);
}

/* ---- checks ----------------------------------------------------------------------------------- */

/* What forward and backward share; named as the operands of both. */
typedef struct operands {
    const kd_tensor *x, *rstd, *q_weight, *k_weight, *positions, *frequencies;
    int64_t heads;
} operands;

static kd_status check(const operands *o)
{
    KD_TRY(kd_expect_rows(o->x, "x"));
    KD_TRY(kd_tensor_expect(o->x, "x", -1, KD_SHAPE(-1, -1, -1)));
    const int64_t all = o->x->shape[1], d = o->x->shape[2];
    if (d > KD_MAX_NORMED_HEAD)
        return kd_fail(KD_EINVAL, "x: found heads of %lld elements, expected at most %d",
                       (long long)d, KD_MAX_NORMED_HEAD);
    if (o->heads < 0 || o->heads > all)
        return kd_fail(KD_EINVAL, "heads: found %lld, expected 0 to %lld", (long long)o->heads,
                       (long long)all);
    KD_TRY(kd_expect_rows_of(o->q_weight, "q_weight", o->x->dtype, KD_SHAPE(d)));
    KD_TRY(kd_expect_rows_of(o->k_weight, "k_weight", o->x->dtype, KD_SHAPE(d)));
    KD_TRY(kd_expect_list(o->rstd, "rstd", KD_F32, kd_tensor_rows(o->x)));
    if (!kd_present(o->frequencies)) return KD_OK;
    const kd_rope_args rope = { .x = o->x,
                                .positions = o->positions,
                                .frequencies = o->frequencies };
    return kd_rope_check(&rope);
}

kd_status kd_qk_norm_rope_check(const kd_qk_norm_rope_args *args)
{
    const operands o = { args->x,         args->rstd,        args->q_weight, args->k_weight,
                         args->positions, args->frequencies, args->heads };
    KD_TRY(check(&o));
    return kd_expect_rows_of(args->y, "y", args->x->dtype, kd_shape_of(args->x));
}

kd_status kd_qk_norm_rope_backward_check(const kd_qk_norm_rope_backward_args *args)
{
    const operands o = { args->x,         args->rstd,        args->q_weight, args->k_weight,
                         args->positions, args->frequencies, args->heads };
    KD_TRY(check(&o));
    const kd_shape shape = kd_shape_of(args->x);
    const int64_t d = args->x->shape[2];
    KD_TRY(kd_expect_rows_of(args->dx, "dx", args->x->dtype, shape));
    KD_TRY(kd_expect_rows_of(args->dy, "dy", args->x->dtype, shape));
    if (kd_present(args->dq_weight))
        KD_TRY(kd_expect_list(args->dq_weight, "dq_weight", KD_F32, d));
    if (kd_present(args->dk_weight))
        KD_TRY(kd_expect_list(args->dk_weight, "dk_weight", KD_F32, d));
    return KD_OK;
}

/* ---- forward ---------------------------------------------------------------------------------- */

/* One head into `y`; returns its rstd. */
static float forward_head(kd_row y, kd_row x, kd_row weight, int64_t d, double eps, const turns *t)
{
    float xb[KD_MAX_NORMED_HEAD], wb[KD_MAX_NORMED_HEAD], yb[KD_MAX_NORMED_HEAD], squares = 0;
    const float *v = kd_row_load(xb, x, 0, d), *w = kd_row_load(wb, weight, 0, d);
    float *out = kd_row_begin(yb, y, 0);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < d; i++) squares += v[i] * v[i];
    const float rstd = (float)(1 / sqrt((double)squares / (double)d + eps));
#pragma omp simd
    for (int64_t i = 0; i < d; i++) out[i] = v[i] * rstd * w[i];
    turn(out, t);
    kd_row_finish(y, 0, out, d);
    return rstd;
}

kd_status kd_qk_norm_rope_cpu(kd_exec *exec, const kd_qk_norm_rope_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->x->shape[0], all = args->x->shape[1], d = args->x->shape[2];
    float *rstd = args->rstd->data;
#pragma omp parallel for schedule(static) if (rows * all * d > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        turns t;
        make_turns(&t, args->positions, args->frequencies, row, args->scale, false);
        for (int64_t h = 0; h < all; h++) {
            const kd_row weight = kd_row_of(h < args->heads ? args->q_weight : args->k_weight, 0);
            const int64_t at = row * all + h;
            rstd[at] = forward_head(kd_row_of(args->y, at), kd_row_of(args->x, at), weight, d,
                                    args->eps, &t);
        }
    }
    return KD_OK;
}

/* ---- backward --------------------------------------------------------------------------------- */

/* dx of one head, and its share of the block's sum (may be NULL). */
static void backward_head(kd_row dx, float *dweight, kd_row dy, kd_row x, float rstd, kd_row weight,
                          int64_t d, const turns *t)
{
    float xb[KD_MAX_NORMED_HEAD], wb[KD_MAX_NORMED_HEAD], gb[KD_MAX_NORMED_HEAD],
        ob[KD_MAX_NORMED_HEAD], g[KD_MAX_NORMED_HEAD], total = 0;
    const float *v = kd_row_load(xb, x, 0, d), *w = kd_row_load(wb, weight, 0, d);
    const float *from = kd_row_load(gb, dy, 0, d);
    float *out = kd_row_begin(ob, dx, 0);
    memcpy(g, from, (size_t)d * sizeof *g);
    turn(g, t);
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < d; i++) total += g[i] * w[i] * (v[i] * rstd);
    const float mean = (float)((double)total / (double)d);
    if (dweight) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) dweight[i] += g[i] * (v[i] * rstd);
    }
#pragma omp simd
    for (int64_t i = 0; i < d; i++) out[i] = rstd * (g[i] * w[i] - v[i] * rstd * mean);
    kd_row_finish(dx, 0, out, d);
}

static void backward_row(const kd_qk_norm_rope_backward_args *args, int64_t row, float *dq_weight,
                         float *dk_weight)
{
    const int64_t all = args->x->shape[1], d = args->x->shape[2];
    const float *rstd = args->rstd->data;
    turns t;
    make_turns(&t, args->positions, args->frequencies, row, args->scale, true);
    for (int64_t h = 0; h < all; h++) {
        const bool query = h < args->heads;
        const int64_t at = row * all + h;
        backward_head(kd_row_of(args->dx, at), query ? dq_weight : dk_weight,
                      kd_row_of(args->dy, at), kd_row_of(args->x, at), rstd[at],
                      kd_row_of(query ? args->q_weight : args->k_weight, 0), d, &t);
    }
}

kd_status kd_qk_norm_rope_backward_cpu(kd_exec *exec, const kd_qk_norm_rope_backward_args *args)
{
    const int64_t rows = args->x->shape[0], height = kd_rows_per_block(rows);
    kd_tensor dq, dk;
    KD_TRY(kd_push_blocks(&dq, exec, "qk_norm.dq_blocks", args->dq_weight, rows));
    KD_TRY(kd_push_blocks(&dk, exec, "qk_norm.dk_blocks", args->dk_weight, rows));
    if (kd_planning(exec)) return KD_OK;
#pragma omp parallel for schedule(static) if (kd_tensor_elements(args->x) > KD_PARALLEL_ABOVE)
    for (int64_t block = 0; block < kd_ceil_div(rows, height); block++) {
        float *dq_weight = kd_block_of(&dq, block), *dk_weight = kd_block_of(&dk, block);
        const int64_t end = kd_min_i64(rows, (block + 1) * height);
        for (int64_t row = block * height; row < end; row++)
            backward_row(args, row, dq_weight, dk_weight);
    }
    kd_add_blocks(args->dq_weight, &dq);
    kd_add_blocks(args->dk_weight, &dk);
    return KD_OK;
}
