#include "support/products.h"

#include <math.h>
#include <stdio.h>

static kd_tensor matrix(test_bench *bench, kd_dtype dtype, int64_t rows, int64_t columns,
                        bool turned, const product_case *c, bool fill)
{
    const int64_t wide = (turned ? rows : columns) + c->skip;
    const kd_shape shape = KD_SHAPE(turned ? columns : rows, wide);
    const kd_tensor whole = fill ? test_filled(bench, dtype, shape, c->pad, -1, 1)
                                 : test_tensor(bench, dtype, shape, c->pad);
    const kd_tensor t = kd_tensor_slice(&whole, 1, c->skip, wide - c->skip);
    return turned ? kd_tensor_transposed(&t) : t;
}

product product_open(test_bench *bench, const product_case *c)
{
    product p = { .a = matrix(bench, c->dtype, c->m, c->k, c->ta, c, true),
                  .b = matrix(bench, c->dtype, c->k, c->n, c->tb, c, true),
                  .y = matrix(bench, c->y_dtype, c->m, c->n, c->ty, c, c->accumulate) };
    if (c->bias) {
        const kd_tensor whole =
            test_filled(bench, c->bias_dtype, KD_SHAPE(c->bias_skip + c->n), 0, -1, 1);
        p.bias = kd_tensor_slice(&whole, 0, c->bias_skip, c->n);
    }
    return p;
}

kd_status product_run(kd_exec *exec, const product_case *c, const product *p)
{
    if (c->accumulate) return KD_RUN(exec, matmul_add, .y = &p->y, .a = &p->a, .b = &p->b);
    return KD_RUN(exec, matmul, .y = &p->y, .a = &p->a, .b = &p->b, .bias = &p->bias);
}

const char *product_name(const product_case *c)
{
    static _Thread_local char name[256];
    snprintf(name, sizeof name,
             "m %lld k %lld n %lld, turned a %d b %d y %d, %s to %s, bias %s, accumulate %d, "
             "pad %lld, skip %lld",
             (long long)c->m, (long long)c->k, (long long)c->n, c->ta, c->tb, c->ty,
             kd_dtype_name(c->dtype), kd_dtype_name(c->y_dtype),
             c->bias ? kd_dtype_name(c->bias_dtype) : "none", c->accumulate, (long long)c->pad,
             (long long)c->skip);
    return name;
}

double product_scale(const product_case *c) { return 1 + sqrt((double)c->k) / 3; }

static const int64_t shapes[][3] = {
    /* m, k, n */
    { 1, 1, 1 },    { 1, 7, 1 },     { 5, 1, 3 },    { 1, 33, 17 },  { 65, 31, 1 },
    { 3, 0, 5 },    { 0, 4, 3 },     { 4, 3, 0 },    { 17, 64, 33 }, { 64, 96, 48 },
    { 7, 130, 19 }, { 129, 65, 70 }, { 1, 200, 21 },
};

void product_each(void (*visit)(void *context, const product_case *c), void *context)
{
    static const kd_dtype dtypes[][2] = { { KD_F32, KD_F32 },
                                          { KD_BF16, KD_F32 },
                                          { KD_BF16, KD_BF16 } };
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int d = 0; d < KD_COUNT(dtypes); d++)
            for (int layout = 0; layout < 8; layout++)
                for (int form = 0; form < 4; form++) {
                    const product_case c = { .m = shapes[s][0],
                                             .k = shapes[s][1],
                                             .n = shapes[s][2],
                                             .ta = layout & 1,
                                             .tb = layout & 2,
                                             .ty = layout & 4,
                                             .dtype = dtypes[d][0],
                                             .y_dtype = dtypes[d][1],
                                             .bias = form == 1 || form == 2,
                                             .bias_dtype = form == 1 ? KD_F32 : dtypes[d][0],
                                             .accumulate = form == 3,
                                             .pad = (layout + form) % 2 ? 5 : 0,
                                             .skip = (layout + form + s) % 3 };
                    visit(context, &c);
                }
}

/* ---- batches ---------------------------------------------------------------------------------- */

static kd_tensor batch(test_bench *bench, const product_batch *c, int64_t rows, int64_t columns,
                       bool turned)
{
    const kd_shape shape = KD_SHAPE(c->b, turned ? columns : rows, turned ? rows : columns);
    kd_tensor t = test_filled(bench, KD_F32, shape, c->gap, -1, 1);
    if (!turned) return t;
    t.shape[1] = rows, t.shape[2] = columns;
    t.stride[2] = t.stride[1], t.stride[1] = 1;
    return t;
}

product product_batch_open(test_bench *bench, const product_batch *c)
{
    return (product){ .a = batch(bench, c, c->m, c->k, c->ta),
                      .b = batch(bench, c, c->k, c->n, c->tb),
                      .y = batch(bench, c, c->m, c->n, false) };
}

const char *product_batch_name(const product_batch *c)
{
    static _Thread_local char name[160];
    snprintf(name, sizeof name, "%lld of m %lld k %lld n %lld, turned a %d b %d, gap %lld",
             (long long)c->b, (long long)c->m, (long long)c->k, (long long)c->n, c->ta, c->tb,
             (long long)c->gap);
    return name;
}

void product_each_batch(void (*visit)(void *context, const product_batch *c), void *context)
{
    static const int64_t batches[] = { 3, 1, 2, 0, 7 };
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int layout = 0; layout < 4; layout++) {
            const product_batch c = { .b = batches[(s + layout) % KD_COUNT(batches)],
                                      .m = shapes[s][0],
                                      .k = shapes[s][1],
                                      .n = shapes[s][2],
                                      .ta = layout & 1,
                                      .tb = layout & 2,
                                      .gap = (s + layout) % 3 * 4 };
            visit(context, &c);
        }
}
