/*
 * qk_norm_rope and its gradient on a GPU, against the CPU: heads of 8, 16 and 32 lanes, heads that are
 * not aligned, turned in part or not at all, more rows than blocks.
 */
#include "support/parity.h"

#include <math.h>

typedef struct qk_case {
    int64_t rows, heads, kv_heads, size, half, pad;
} qk_case;

static const qk_case cases[] = {
    { 1, 1, 1, 2, 1, 0 },     { 7, 3, 2, 16, 8, 0 },   { 5, 2, 1, 17, 6, 3 },
    { 37, 4, 2, 64, 32, 8 },  { 9, 5, 2, 128, 64, 0 }, { 3, 2, 2, 256, 128, 0 },
    { 3, 2, 1, 256, 128, 1 }, { 11, 2, 1, 96, 16, 8 }, { 3, 1, 2, 24, 0, 0 },
    { 2, 1, 1, 256, 0, 0 },   { 4, 0, 2, 128, 64, 0 }, { 4, 3, 0, 48, 24, 0 },
    { 0, 2, 1, 8, 4, 0 },     { 2200, 9, 3, 8, 4, 0 },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
static const float eps = 1e-6f, scale = 1.25f;

typedef struct operands {
    kd_tensor x, y, rstd, q_weight, k_weight, positions, frequencies;
    kd_tensor dy, dx, dq_weight, dk_weight;
    double steep, length;
} operands;

static operands make(test_bench *b, const qk_case *c, kd_dtype dtype)
{
    const int64_t all = c->heads + c->kv_heads;
    const kd_shape shape = KD_SHAPE(c->rows, all, c->size);
    /* q and k of a fused row, as attention has them. */
    const kd_tensor fused =
        test_filled(b, dtype, KD_SHAPE(c->rows, (all + 1) * c->size), c->pad, -2, 2);
    operands o = { .x = test_heads(&fused, 0, all, c->size),
                   .y = test_tensor(b, dtype, shape, 2 * c->pad),
                   .rstd = test_tensor(b, KD_F32, KD_SHAPE(c->rows, all), 0),
                   .q_weight = test_filled(b, dtype, KD_SHAPE(c->size), 0, 0.5, 1.5),
                   .k_weight = test_filled(b, dtype, KD_SHAPE(c->size), 0, -1.5, -0.5),
                   .positions = test_filled(b, KD_I32, KD_SHAPE(c->rows), 0, 0, 3000),
                   .dy = test_filled(b, dtype, shape, c->pad, -1, 1),
                   .dx = test_tensor(b, dtype, shape, 3 * c->pad),
                   .dq_weight = test_filled(b, KD_F32, KD_SHAPE(c->size), 0, -1, 1),
                   .dk_weight = test_filled(b, KD_F32, KD_SHAPE(c->size), 0, -1, 1),
                   .length = (double)(c->rows * all + c->size) };
    if (c->half) o.frequencies = test_filled(b, KD_F32, KD_SHAPE(c->half), 0, 0, 1);
    return o;
}

static void backward(parity *p, const operands *o, const qk_case *c, const kd_tensor *dx,
                     const kd_tensor *dq_weight, const char *name)
{
    const double high = 2 * o->steep + 1; /* of h, with the rounding of x */
    PARITY(p, qk_norm_rope_backward, 4 * o->steep * high * high, o->length, name, .dx = dx,
           .dq_weight = dq_weight, .dk_weight = &o->dk_weight, .dy = &o->dy, .x = &o->x,
           .rstd = &o->rstd, .q_weight = &o->q_weight, .k_weight = &o->k_weight,
           .positions = &o->positions, .frequencies = &o->frequencies, .heads = c->heads,
           .scale = scale);
}

Test(qk_norm, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, 1 << 20);
    for (int i = 0; i < KD_COUNT(cases); i++)
        for (int d = 0; d < KD_COUNT(dtypes); d++) {
            const int mark = test_mark(&p.bench);
            const qk_case *c = &cases[i];
            operands o = make(&p.bench, c, dtypes[d]);
            const char *name = parity_name("case %d of %s", i, kd_dtype_name(dtypes[d]));
            /* |h| is at most sqrt(d); weight and scale are below 2 together. */
            PARITY(&p, qk_norm_rope, 2 * sqrt((double)c->size), (double)c->size, name, .y = &o.y,
                   .rstd = &o.rstd, .x = &o.x, .q_weight = &o.q_weight, .k_weight = &o.k_weight,
                   .positions = &o.positions, .frequencies = &o.frequencies, .heads = c->heads,
                   .eps = eps, .scale = scale);
            for (int64_t n = 0; n < kd_tensor_elements(&o.rstd); n++)
                o.steep = fmax(o.steep, test_get(&o.rstd, n));
            backward(&p, &o, c, &o.dx, &o.dq_weight, name);
            backward(&p, &o, c, &o.dy, NULL, parity_name("case %d, dx in place of dy", i));
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}
