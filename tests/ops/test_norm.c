/*
 * What the norms owe: y and the statistics, all gradients, the residual's sum (in place of x or of
 * the residual too), `add` in place of dx, accumulated parameter gradients, strided views, and the
 * same bits from one thread and from two.
 */
#include "oracle/ops.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const double eps = 1e-5;

typedef struct norm_case {
    kd_shape shape;
    int64_t pad;
    double offset; /* of x, against its spread of 2: a channel with a large mean */
} norm_case;

static const norm_case cases[] = {
    { { 2, { 1, 1 } }, 0, 0 },     { { 2, { 1, 7 } }, 3, 0 },     { { 2, { 5, 1 } }, 2, 0 },
    { { 2, { 3, 33 } }, 0, 20 },   { { 2, { 2, 513 } }, 1, 0 },   { { 2, { 37, 64 } }, 5, 0 },
    { { 2, { 19, 1100 } }, 7, 3 }, { { 3, { 5, 3, 17 } }, 9, 0 }, { { 3, { 70, 2, 16 } }, 32, 0 },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

typedef struct operands {
    kd_tensor x, y, mean, rstd, weight, bias;
    kd_tensor dx, dy, dweight, dbias, add;
    int64_t rows, columns;
} operands;

static operands make(test_bench *b, const norm_case *c, kd_dtype dtype)
{
    operands o = { .x = test_filled(b, dtype, c->shape, c->pad, c->offset - 1, c->offset + 1) };
    o.rows = kd_tensor_rows(&o.x);
    o.columns = kd_tensor_columns(&o.x);
    kd_shape outer = c->shape;
    outer.rank--;
    o.y = test_tensor(b, dtype, c->shape, c->pad + 1);
    o.mean = test_tensor(b, KD_F32, outer, 0);
    o.rstd = test_tensor(b, KD_F32, outer, 0);
    o.weight = test_filled(b, dtype, KD_SHAPE(o.columns), 0, 0.5, 1.5);
    o.bias = test_filled(b, dtype, KD_SHAPE(o.columns), 0, -1, 1);
    o.dx = test_tensor(b, dtype, c->shape, c->pad);
    o.dy = test_filled(b, dtype, c->shape, c->pad + 2, -1, 1);
    o.dweight = test_filled(b, KD_F32, KD_SHAPE(o.columns), 0, -1, 1);
    o.dbias = test_filled(b, KD_F32, KD_SHAPE(o.columns), 0, -1, 1);
    o.add = test_filled(b, dtype, c->shape, c->pad + 3, -1, 1);
    return o;
}

static kd_status forward(kd_exec *exec, bool centre, const operands *o, const kd_tensor *x,
                         const kd_tensor *residual, const kd_tensor *sum)
{
    if (centre)
        return KD_RUN(exec, layer_norm, .y = &o->y, .mean = &o->mean, .rstd = &o->rstd, .sum = sum,
                      .x = x, .residual = residual, .weight = &o->weight, .bias = &o->bias,
                      .eps = (float)eps);
    return KD_RUN(exec, rms_norm, .y = &o->y, .rstd = &o->rstd, .sum = sum, .x = x,
                  .residual = residual, .weight = &o->weight, .eps = (float)eps);
}

static kd_status backward(kd_exec *exec, bool centre, const operands *o, const kd_tensor *dx,
                          const kd_tensor *add)
{
    if (centre)
        return KD_RUN(exec, layer_norm_backward, .dx = dx, .dweight = &o->dweight,
                      .dbias = &o->dbias, .dy = &o->dy, .x = &o->x, .mean = &o->mean,
                      .rstd = &o->rstd, .weight = &o->weight, .add = add);
    return KD_RUN(exec, rms_norm_backward, .dx = dx, .dweight = &o->dweight, .dy = &o->dy,
                  .x = &o->x, .rstd = &o->rstd, .weight = &o->weight, .add = add);
}

#define EACH_CASE(c, dtype, centre)                                                                \
    for (int c = 0; c < KD_COUNT(cases); c++)                                                      \
        for (int dtype = 0; dtype < KD_COUNT(dtypes); dtype++)                                     \
            for (int centre = 0; centre < 2; centre++)

static const char *name_of(int c, int dtype, int centre)
{
    static char name[96];
    char shape[64];
    kd_tensor t = kd_tensor_of(NULL, dtypes[dtype], cases[c].shape);
    snprintf(name, sizeof name, "%s of %s", centre ? "layer_norm" : "rms_norm",
             kd_tensor_print(shape, sizeof shape, &t));
    return name;
}

static void check_forward(test_bench *b, const operands *o, const kd_tensor *x, bool centre,
                          const char *name)
{
    const int64_t n = o->rows * o->columns;
    double *values = test_doubles(b, x), *y = test_zeros(b, n);
    double *mean = test_zeros(b, o->rows), *rstd = test_zeros(b, o->rows);
    oracle_norm(y, mean, rstd, values, test_doubles(b, &o->weight),
                centre ? test_doubles(b, &o->bias) : NULL, o->rows, o->columns, eps, centre);
    const double large = oracle_largest(values, n), steep = oracle_largest(rstd, o->rows);
    test_near(&o->y, y, large * steep + 1, (double)o->columns, "%s: y", name);
    /* rstd falls by rstd^3 per unit of variance, which carries an error of eps * x^2. */
    test_near(&o->rstd, rstd, fmin(steep, steep * steep * steep * large * large),
              (double)o->columns, "%s: rstd", name);
    if (centre) test_near(&o->mean, mean, large, (double)o->columns, "%s: mean", name);
}

Test(norm, forward_agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 1 << 20);
    EACH_CASE(c, dtype, centre)
    {
        const int mark = test_mark(&b);
        const operands o = make(&b, &cases[c], dtypes[dtype]);
        test_ok(forward(&b.exec, centre, &o, &o.x, NULL, NULL));
        check_forward(&b, &o, &o.x, centre, name_of(c, dtype, centre));
        test_release(&b, mark);
    }
    test_close(&b);
}

/* sum is a tensor of its own, x itself, or the residual itself. */
Test(norm, residual_is_added_and_kept)
{
    test_bench b;
    test_open(&b, 1 << 20);
    EACH_CASE(c, dtype, centre)
    {
        for (int place = 0; place < 3; place++) {
            const int mark = test_mark(&b);
            const operands o = make(&b, &cases[c], dtypes[dtype]);
            const int64_t n = o.rows * o.columns;
            const kd_tensor own = test_tensor(&b, dtypes[dtype], cases[c].shape, 4);
            const kd_tensor *sum = place == 0 ? &own : place == 1 ? &o.x : &o.add;
            double *want = test_doubles(&b, &o.x), *residual = test_doubles(&b, &o.add);
            for (int64_t i = 0; i < n; i++) want[i] += residual[i];
            test_ok(forward(&b.exec, centre, &o, &o.x, &o.add, sum));
            const char *name = name_of(c, dtype, centre);
            test_near(sum, want, 1, 1, "%s: sum, place %d", name, place);
            check_forward(&b, &o, sum, centre, name);
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

/* add: absent, a tensor of its own, dx itself. */
Test(norm, backward_agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 1 << 20);
    EACH_CASE(c, dtype, centre)
    {
        for (int place = 0; place < 3; place++) {
            const int mark = test_mark(&b);
            const operands o = make(&b, &cases[c], dtypes[dtype]);
            const int64_t n = o.rows * o.columns;
            double *x = test_doubles(&b, &o.x), *w = test_doubles(&b, &o.weight);
            double *dy = test_doubles(&b, &o.dy), *dx = test_zeros(&b, n);
            double *dweight = test_doubles(&b, &o.dweight), *dbias = test_doubles(&b, &o.dbias);
            double *add = test_doubles(&b, &o.add);
            oracle_norm_backward(dx, dweight, dbias, dy, x, w, o.rows, o.columns, eps, centre);
            for (int64_t i = 0; place && i < n; i++) dx[i] += add[i];

            test_ok(forward(&b.exec, centre, &o, &o.x, NULL, NULL));
            const double steep = oracle_largest(test_doubles(&b, &o.rstd), o.rows);
            const double high = oracle_largest(x, n) * steep + 1; /* of h, with x's rounding */
            const kd_tensor *out = place == 2 ? &o.add : &o.dx;
            test_ok(backward(&b.exec, centre, &o, out, place ? &o.add : NULL));
            const char *name = name_of(c, dtype, centre);
            test_near(out, dx, steep * high * high, (double)o.columns, "%s: dx, place %d", name,
                      place);
            test_near(&o.dweight, dweight, high, (double)(o.rows + o.columns), "%s: dweight", name);
            if (centre) test_near(&o.dbias, dbias, 1, (double)o.rows, "%s: dbias", name);
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

typedef struct oracle_case {
    double *x, *weight, *bias, *dy, *y, *statistic;
    bool centre;
} oracle_case;

enum { ROWS = 3, COLUMNS = 5 };

static double oracle_value(void *context)
{
    oracle_case *o = context;
    oracle_norm(o->y, o->statistic, o->statistic + ROWS, o->x, o->weight, o->bias, ROWS, COLUMNS,
                eps, o->centre);
    return oracle_dot(o->y, o->dy, (int64_t)ROWS * COLUMNS);
}

Test(norm, oracle_gradients_agree_with_differences)
{
    test_bench b;
    test_open(&b, 0);
    for (int centre = 0; centre < 2; centre++) {
        const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, -2, 2);
        const kd_tensor dy = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, -1, 1);
        const kd_tensor w = test_filled(&b, KD_F32, KD_SHAPE(COLUMNS), 0, 0.5, 1.5);
        double *dx = test_zeros(&b, ROWS * COLUMNS), *dw = test_zeros(&b, COLUMNS);
        double *db = test_zeros(&b, COLUMNS);
        oracle_case o = { .x = test_doubles(&b, &x),
                          .weight = test_doubles(&b, &w),
                          .bias = test_doubles(&b, &w),
                          .dy = test_doubles(&b, &dy),
                          .y = test_zeros(&b, ROWS * COLUMNS),
                          .statistic = test_zeros(&b, 2 * ROWS),
                          .centre = centre };
        oracle_norm_backward(dx, dw, db, o.dy, o.x, o.weight, ROWS, COLUMNS, eps, centre);
        test_gradient(oracle_value, &o, o.x, ROWS * COLUMNS, dx, "dx, centre %d", centre);
        test_gradient(oracle_value, &o, o.weight, COLUMNS, dw, "dweight, centre %d", centre);
        test_gradient(oracle_value, &o, o.bias, COLUMNS, db, "dbias, centre %d", centre);
    }
    test_close(&b);
}

Test(norm, same_bits_for_any_number_of_threads)
{
    const norm_case big = { { 2, { 301, 131 } }, 3, 0 };
    for (int centre = 0; centre < 2; centre++) {
        test_bench b[2];
        operands o[2];
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i + 1);
            test_open(&b[i], 1 << 20);
            o[i] = make(&b[i], &big, KD_BF16);
            test_ok(forward(&b[i].exec, centre, &o[i], &o[i].x, NULL, NULL));
            test_ok(backward(&b[i].exec, centre, &o[i], &o[i].dx, &o[i].add));
        }
        test_same_bits(&o[0].y, &o[1].y, "y, centre %d", centre);
        test_same_bits(&o[0].dx, &o[1].dx, "dx, centre %d", centre);
        test_same_bits(&o[0].dweight, &o[1].dweight, "dweight, centre %d", centre);
        if (centre) test_same_bits(&o[0].dbias, &o[1].dbias, "dbias");
        for (int i = 0; i < 2; i++) test_close(&b[i]);
    }
}

/* Scratch is asked for while planning, and enough of it; no operand is touched. */
Test(norm, plans_without_memory)
{
    const norm_case c = { { 2, { 40, 24 } }, 0, 0 };
    test_bench b;
    test_open(&b, 0);
    operands o = make(&b, &c, KD_F32), fake = o;
    kd_tensor *const all[] = { &fake.x,       &fake.y,     &fake.mean, &fake.rstd,
                               &fake.weight,  &fake.bias,  &fake.dx,   &fake.dy,
                               &fake.dweight, &fake.dbias, &fake.add };
    for (int i = 0; i < KD_COUNT(all); i++) *all[i] = test_untouchable(all[i]);
    for (int centre = 0; centre < 2; centre++) {
        kd_stack counting;
        kd_exec plan = test_planning(&b, &counting);
        test_ok(forward(&plan, centre, &fake, &fake.x, &fake.add, &fake.dx));
        test_ok(backward(&plan, centre, &fake, &fake.dx, NULL));
        cr_assert_gt(counting.peak, 0);
        b.stack.peak = counting.peak;
        kd_stack_close(&b.stack, b.exec.device);
        test_ok(kd_stack_open(&b.stack, b.exec.device));
        test_ok(forward(&b.exec, centre, &o, &o.x, NULL, NULL));
        test_ok(backward(&b.exec, centre, &o, &o.dx, NULL));
    }
    test_close(&b);
}

Test(norm, refuses_what_does_not_fit)
{
    const norm_case c = { { 2, { 4, 6 } }, 0, 0 };
    test_bench b;
    test_open(&b, 1 << 16);
    const operands good = make(&b, &c, KD_F32);
    operands o = good;
    o.y = test_tensor(&b, KD_F32, KD_SHAPE(4, 5), 0);
    test_refused(forward(&b.exec, false, &o, &o.x, NULL, NULL), KD_EINVAL, "rms_norm: y");
    o = good;
    o.weight = test_tensor(&b, KD_BF16, KD_SHAPE(6), 0);
    test_refused(forward(&b.exec, true, &o, &o.x, NULL, NULL), KD_EINVAL, "layer_norm: weight");
    o = good;
    const kd_tensor columns = test_tensor(&b, KD_F32, KD_SHAPE(6, 4), 0);
    o.x = kd_tensor_transposed(&columns);
    test_refused(forward(&b.exec, false, &o, &o.x, NULL, NULL), KD_EINVAL, "x: found stride 4");
    o = good;
    test_refused(forward(&b.exec, false, &o, &o.x, &o.add, NULL), KD_EINVAL, "sum is absent");
    o.dweight = test_tensor(&b, KD_BF16, KD_SHAPE(6), 0);
    test_refused(backward(&b.exec, false, &o, &o.dx, NULL), KD_EINVAL, "dweight");
    o = good;
    o.mean = (kd_tensor){ 0 };
    test_refused(backward(&b.exec, true, &o, &o.dx, NULL), KD_EINVAL, "mean: absent");
    test_close(&b);
}
