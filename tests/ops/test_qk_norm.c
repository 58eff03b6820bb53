/*
 * What qk_norm_rope owes: the norm of every head with its own weight, turned; the transpose of both
 * backward, in place too; views of a fused row; the same bits from one thread and from two.
 */
#include "oracle/ops.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const double eps = 1e-6;

typedef struct qk_case {
    int64_t rows, heads, kv_heads, size, half, pad;
} qk_case;

static const qk_case cases[] = {
    { 1, 1, 1, 2, 1, 0 },    { 7, 3, 2, 16, 8, 0 }, { 5, 2, 1, 17, 6, 3 },
    { 70, 4, 2, 64, 32, 9 }, { 3, 1, 2, 12, 0, 0 }, { 2, 2, 0, 256, 128, 1 },
    { 4, 0, 2, 128, 64, 0 }, { 0, 2, 1, 8, 4, 0 },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

typedef struct operands {
    kd_tensor x, y, rstd, q_weight, k_weight, positions, frequencies;
    kd_tensor dy, dx, dq_weight, dk_weight;
} operands;

static operands make(test_bench *b, const qk_case *c, kd_dtype dtype)
{
    const kd_shape shape = KD_SHAPE(c->rows, c->heads + c->kv_heads, c->size);
    operands o = { .x = test_filled(b, dtype, shape, c->pad, -2, 2),
                   .y = test_tensor(b, dtype, shape, c->pad + 2),
                   .rstd = test_tensor(b, KD_F32, KD_SHAPE(shape.dim[0], shape.dim[1]), 0),
                   .q_weight = test_filled(b, dtype, KD_SHAPE(c->size), 0, 0.5, 1.5),
                   .k_weight = test_filled(b, dtype, KD_SHAPE(c->size), 0, -1.5, -0.5),
                   .positions = test_filled(b, KD_I32, KD_SHAPE(c->rows), 0, 0, 3000),
                   .dy = test_filled(b, dtype, shape, c->pad + 1, -1, 1),
                   .dx = test_tensor(b, dtype, shape, c->pad),
                   .dq_weight = test_filled(b, KD_F32, KD_SHAPE(c->size), 0, -1, 1),
                   .dk_weight = test_filled(b, KD_F32, KD_SHAPE(c->size), 0, -1, 1) };
    if (c->half) o.frequencies = test_filled(b, KD_F32, KD_SHAPE(c->half), 0, 0, 1);
    return o;
}

static const float scale = 1.25f;

static kd_status forward(kd_exec *exec, const operands *o, const qk_case *c)
{
    return KD_RUN(exec, qk_norm_rope, .y = &o->y, .rstd = &o->rstd, .x = &o->x,
                  .q_weight = &o->q_weight, .k_weight = &o->k_weight, .positions = &o->positions,
                  .frequencies = &o->frequencies, .heads = c->heads, .eps = (float)eps,
                  .scale = scale);
}

static kd_status backward(kd_exec *exec, const operands *o, const qk_case *c, const kd_tensor *dx)
{
    return KD_RUN(exec, qk_norm_rope_backward, .dx = dx, .dq_weight = &o->dq_weight,
                  .dk_weight = &o->dk_weight, .dy = &o->dy, .x = &o->x, .rstd = &o->rstd,
                  .q_weight = &o->q_weight, .k_weight = &o->k_weight, .positions = &o->positions,
                  .frequencies = &o->frequencies, .heads = c->heads, .scale = scale);
}

/* The oracles of the norm and of rope, head by head: y and rstd of x, and the gradients of dy. */
typedef struct wanted {
    double *y, *rstd, *dx, *dq_weight, *dk_weight;
} wanted;

static wanted want(test_bench *b, const operands *o, const qk_case *c)
{
    const int64_t all = c->heads + c->kv_heads, d = c->size;
    wanted w = { .y = test_zeros(b, c->rows * all * d),
                 .rstd = test_zeros(b, c->rows * all),
                 .dx = test_zeros(b, c->rows * all * d),
                 .dq_weight = test_doubles(b, &o->dq_weight),
                 .dk_weight = test_doubles(b, &o->dk_weight) };
    double *x = test_doubles(b, &o->x), *g = test_doubles(b, &o->dy), mean;
    double *weight[2] = { test_doubles(b, &o->q_weight), test_doubles(b, &o->k_weight) };
    double *at = test_doubles(b, &o->positions);
    double *f = c->half ? test_doubles(b, &o->frequencies) : NULL;
    oracle_rope(g, at, f, c->rows, all, d, c->half, scale, true);
    for (int64_t i = 0; i < c->rows * all; i++) {
        const bool key = i % all >= c->heads;
        oracle_norm(w.y + i * d, &mean, w.rstd + i, x + i * d, weight[key], NULL, 1, d, eps, false);
        oracle_norm_backward(w.dx + i * d, key ? w.dk_weight : w.dq_weight, NULL, g + i * d,
                             x + i * d, weight[key], 1, d, eps, false);
    }
    oracle_rope(w.y, at, f, c->rows, all, d, c->half, scale, false);
    return w;
}

Test(qk_norm, agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 1 << 20);
    for (int i = 0; i < KD_COUNT(cases); i++)
        for (int t = 0; t < KD_COUNT(dtypes); t++) {
            const int mark = test_mark(&b);
            const qk_case *c = &cases[i];
            const operands o = make(&b, c, dtypes[t]);
            const wanted w = want(&b, &o, c);
            const int64_t all = c->heads + c->kv_heads;
            const double steep = oracle_largest(w.rstd, c->rows * all);
            const double high = 2 * steep + 1; /* of h, with the rounding of x */
            const char *name = kd_dtype_name(dtypes[t]);
            test_ok(forward(&b.exec, &o, c));
            test_near(&o.y, w.y, 4 * high, (double)c->size, "case %d of %s: y", i, name);
            test_near(&o.rstd, w.rstd, high, (double)c->size, "case %d of %s: rstd", i, name);
            test_ok(backward(&b.exec, &o, c, &o.dx));
            test_near(&o.dx, w.dx, 4 * steep * high * high, (double)c->size, "case %d of %s: dx", i,
                      name);
            const double terms = (double)(c->rows * all + c->size);
            test_near(&o.dq_weight, w.dq_weight, 4 * high, terms, "case %d of %s: dq_weight", i,
                      name);
            test_near(&o.dk_weight, w.dk_weight, 4 * high, terms, "case %d of %s: dk_weight", i,
                      name);
            test_ok(backward(&b.exec, &o, c, &o.dy));
            test_same_bits(&o.dx, &o.dy, "case %d of %s: dx in place of dy", i, name);
            test_release(&b, mark);
        }
    test_close(&b);
}

/* The heads of q and k in fused [N, q | k | v] rows, and one thread against two. */
Test(qk_norm, views_and_threads)
{
    const qk_case c = { 150, 4, 2, 32, 16, 0 };
    test_bench b[2];
    operands o[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        test_open(&b[i], 1 << 20);
        o[i] = make(&b[i], &c, KD_BF16);
        const kd_tensor fused = test_filled(&b[i], KD_BF16, KD_SHAPE(150, 8 * 32), 3, -2, 2);
        o[i].x = test_heads(&fused, 0, 6, 32);
        const wanted w = want(&b[i], &o[i], &c);
        test_ok(forward(&b[i].exec, &o[i], &c));
        test_near(&o[i].y, w.y, 8, 32, "%d threads", i + 1);
        test_ok(backward(&b[i].exec, &o[i], &c, &o[i].dx));
    }
    test_same_bits(&o[0].y, &o[1].y, "y");
    test_same_bits(&o[0].dx, &o[1].dx, "dx");
    test_same_bits(&o[0].dq_weight, &o[1].dq_weight, "dq_weight");
    test_same_bits(&o[0].dk_weight, &o[1].dk_weight, "dk_weight");
    for (int i = 0; i < 2; i++) test_close(&b[i]);
}

Test(qk_norm, plans_without_memory_and_refuses_what_does_not_fit)
{
    const qk_case c = { 40, 3, 2, 24, 12, 0 };
    test_bench b;
    test_open(&b, 0);
    const operands good = make(&b, &c, KD_F32);
    operands fake = good;
    kd_tensor *const all[] = { &fake.x,        &fake.y,         &fake.rstd,        &fake.q_weight,
                               &fake.k_weight, &fake.positions, &fake.frequencies, &fake.dy,
                               &fake.dx,       &fake.dq_weight, &fake.dk_weight };
    for (int i = 0; i < KD_COUNT(all); i++) *all[i] = test_untouchable(all[i]);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(forward(&plan, &fake, &c));
    test_ok(backward(&plan, &fake, &c, &fake.dy));
    cr_assert_gt(counting.peak, 0);

    operands o = good;
    o.frequencies = test_tensor(&b, KD_F32, KD_SHAPE(13), 0);
    test_refused(forward(&b.exec, &o, &c), KD_EINVAL, "frequencies: found 13");
    o = good;
    o.k_weight = test_tensor(&b, KD_BF16, KD_SHAPE(24), 0);
    test_refused(forward(&b.exec, &o, &c), KD_EINVAL, "qk_norm_rope: k_weight");
    o = good;
    o.rstd = test_tensor(&b, KD_F32, KD_SHAPE(40, 3), 0);
    test_refused(forward(&b.exec, &o, &c), KD_EINVAL, "rstd: found");
    o = good;
    o.dk_weight = test_tensor(&b, KD_F32, KD_SHAPE(23), 0);
    test_refused(backward(&b.exec, &o, &c, &o.dx), KD_EINVAL, "dk_weight: found");
    qk_case other = c;
    other.heads = 6;
    test_refused(forward(&b.exec, &good, &other), KD_EINVAL, "heads: found 6, expected 0 to 5");
    other = (qk_case){ 1, 1, 1, 258, 0, 0 };
    o = make(&b, &other, KD_F32);
    test_refused(forward(&b.exec, &o, &other), KD_EINVAL, "heads of 258 elements");
    test_close(&b);
}
