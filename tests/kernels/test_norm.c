/*
 * The norms and their gradients on a GPU, against the CPU: rows of a few lanes, of a warp, of a block
 * and longer than a block holds, aligned and not, views of heads, every optional operand, every alias.
 */
#include "support/parity.h"

#include "oracle/ops.h"

#include <math.h>

static const float eps = 1e-5f;

typedef struct norm_case {
    kd_shape shape;
    int64_t pad;
    double offset; /* of x, against its spread of 2: a channel with a large mean */
} norm_case;

static const norm_case cases[] = {
    { { 2, { 1, 1 } }, 0, 0 },      { { 2, { 5, 7 } }, 3, 0 },      { { 2, { 3, 8 } }, 8, 20 },
    { { 2, { 141, 64 } }, 0, 0 },   { { 2, { 37, 136 } }, 8, 3 },   { { 3, { 5, 3, 128 } }, 40, 0 },
    { { 3, { 3, 2, 17 } }, 9, 0 },  { { 2, { 67, 264 } }, 8, 20 },  { { 2, { 9, 520 } }, 0, 0 },
    { { 2, { 2, 513 } }, 1, 0 },    { { 2, { 13, 1032 } }, 16, 0 }, { { 2, { 5, 2056 } }, 0, 3 },
    { { 2, { 9, 4096 } }, 0, 0 },   { { 2, { 5, 4104 } }, 0, 0 },   { { 2, { 2, 8200 } }, 8, 3 },
    { { 2, { 3, 16392 } }, 0, 20 }, { { 2, { 0, 64 } }, 0, 0 },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

typedef struct operands {
    kd_tensor x, y, mean, rstd, weight, bias, residual, sum;
    kd_tensor dx, dy, dweight, dbias, add;
    double length, scale; /* of sums over a row or over rows; of what is summed */
} operands;

static operands make(test_bench *b, const norm_case *c, kd_dtype dtype)
{
    operands o = { .x = test_filled(b, dtype, c->shape, c->pad, c->offset - 1, c->offset + 1) };
    const int64_t columns = kd_tensor_columns(&o.x);
    const int64_t step = c->pad % 8 ? 1 : 8; /* keeps aligned rows aligned */
    kd_shape outer = c->shape;
    outer.rank--;
    o.y = test_tensor(b, dtype, c->shape, c->pad + step);
    o.mean = test_tensor(b, KD_F32, outer, 0);
    o.rstd = test_tensor(b, KD_F32, outer, 0);
    o.weight = test_filled(b, dtype, KD_SHAPE(columns), 0, 0.5, 1.5);
    o.bias = test_filled(b, dtype, KD_SHAPE(columns), 0, -1, 1);
    o.residual = test_filled(b, dtype, c->shape, c->pad + 2 * step, -1, 1);
    o.sum = test_tensor(b, dtype, c->shape, c->pad);
    o.dx = test_tensor(b, dtype, c->shape, c->pad);
    o.dy = test_filled(b, dtype, c->shape, c->pad + step, -1, 1);
    o.dweight = test_filled(b, KD_F32, KD_SHAPE(columns), 0, -1, 1);
    o.dbias = test_filled(b, KD_F32, KD_SHAPE(columns), 0, -1, 1);
    o.add = test_filled(b, dtype, c->shape, c->pad + 3 * step, -1, 1);
    o.length = (double)(columns + kd_tensor_rows(&o.x));
    return o;
}

/* The norm itself, on the CPU, says how steep it is. */
static void measure(test_bench *b, operands *o, bool centre)
{
    if (centre)
        test_ok(KD_RUN(&b->exec, layer_norm, .y = &o->y, .mean = &o->mean, .rstd = &o->rstd,
                       .x = &o->x, .weight = &o->weight, .bias = &o->bias, .eps = eps));
    else
        test_ok(KD_RUN(&b->exec, rms_norm, .y = &o->y, .rstd = &o->rstd, .x = &o->x,
                       .weight = &o->weight, .eps = eps));
    const double steep = oracle_largest(test_doubles(b, &o->rstd), kd_tensor_elements(&o->rstd));
    const double large = oracle_largest(test_doubles(b, &o->x), kd_tensor_elements(&o->x));
    o->scale = (large + 1) * steep + 1; /* of h, with the rounding of x */
}

static const char *name_of(const norm_case *c, kd_dtype dtype, bool centre, int place)
{
    char shape[64];
    const kd_tensor t = kd_tensor_of(NULL, dtype, c->shape);
    return parity_name("%s of %s + %lld, place %d", centre ? "layer_norm" : "rms_norm",
                       kd_tensor_print(shape, sizeof shape, &t), (long long)c->pad, place);
}

static void forward(parity *p, const operands *o, bool centre, const kd_tensor *residual,
                    const kd_tensor *sum, const char *name)
{
    if (centre)
        PARITY(p, layer_norm, o->scale, o->length, name, .y = &o->y, .mean = &o->mean,
               .rstd = &o->rstd, .sum = sum, .x = &o->x, .residual = residual, .weight = &o->weight,
               .bias = &o->bias, .eps = eps);
    else
        PARITY(p, rms_norm, o->scale, o->length, name, .y = &o->y, .rstd = &o->rstd, .sum = sum,
               .x = &o->x, .residual = residual, .weight = &o->weight, .eps = eps);
}

static void backward(parity *p, const operands *o, bool centre, const kd_tensor *dx,
                     const kd_tensor *add, const kd_tensor *dweight, const char *name)
{
    const double scale = o->scale * o->scale;
    if (centre)
        PARITY(p, layer_norm_backward, scale, o->length, name, .dx = dx, .dweight = dweight,
               .dbias = &o->dbias, .dy = &o->dy, .x = &o->x, .mean = &o->mean, .rstd = &o->rstd,
               .weight = &o->weight, .add = add);
    else
        PARITY(p, rms_norm_backward, scale, o->length, name, .dx = dx, .dweight = dweight,
               .dy = &o->dy, .x = &o->x, .rstd = &o->rstd, .weight = &o->weight, .add = add);
}

#define EACH_CASE(c, d, centre)                                                                    \
    for (int c = 0; c < KD_COUNT(cases); c++)                                                      \
        for (int d = 0; d < KD_COUNT(dtypes); d++)                                                 \
            for (int centre = 0; centre < 2; centre++)

/* No residual; its sum in a tensor of its own, in x, in the residual. */
Test(norm, forward)
{
    parity p;
    parity_open(&p, 0);
    EACH_CASE(c, d, centre)
    {
        for (int place = 0; place < 4; place++) {
            const int mark = test_mark(&p.bench);
            operands o = make(&p.bench, &cases[c], dtypes[d]);
            const kd_tensor *const sums[] = { NULL, &o.sum, &o.x, &o.residual };
            measure(&p.bench, &o, centre);
            forward(&p, &o, centre, place ? &o.residual : NULL, sums[place],
                    name_of(&cases[c], dtypes[d], centre, place));
            test_release(&p.bench, mark);
        }
    }
    parity_close(&p);
}

/* add: absent (and dweight too), a tensor of its own, dx itself. */
Test(norm, backward)
{
    parity p;
    parity_open(&p, 1 << 21);
    EACH_CASE(c, d, centre)
    {
        for (int place = 0; place < 3; place++) {
            const int mark = test_mark(&p.bench);
            operands o = make(&p.bench, &cases[c], dtypes[d]);
            measure(&p.bench, &o, centre);
            backward(&p, &o, centre, place == 2 ? &o.add : &o.dx, place ? &o.add : NULL,
                     place ? &o.dweight : NULL, name_of(&cases[c], dtypes[d], centre, place));
            test_release(&p.bench, mark);
        }
    }
    parity_close(&p);
}

/* More rows than the blocks that an H100 runs at the same time take at the least height. */
Test(norm, many_rows)
{
    const norm_case many = { { 2, { 34000, 8 } }, 0, 0 };
    parity p;
    parity_open(&p, 1 << 21);
    operands o = make(&p.bench, &many, KD_BF16);
    measure(&p.bench, &o, true);
    backward(&p, &o, true, &o.dx, NULL, &o.dweight, name_of(&many, KD_BF16, true, 0));
    parity_close(&p);
}
