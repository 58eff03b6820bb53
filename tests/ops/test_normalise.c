/*
 * What normalise owes: both ways to keep away from 0, rows of zeros and rows that eps outweighs, the
 * gradient added to what is there, numbers whose squares f32 does not hold, strides, either type of y.
 */
#include "oracle/ops.h"
#include "oracle/pairs.h"
#include "support/support.h"

#include <float.h>
#include <math.h>
#include <omp.h>

static const kd_shape shapes[] = { { 2, { 1, 1 } },   { 2, { 4, 7 } },     { 2, { 3, 513 } },
                                   { 2, { 37, 64 } }, { 3, { 5, 3, 17 } }, { 2, { 0, 5 } } };
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
static const struct {
    float eps;
    bool added;
} ways[] = { { 1e-12f, false }, { 1e-7f, true }, { 3, false },
             { 3, true },       { 0, false },    { 0, true } };

/* Row 1 is zeros; row 2 is small. */
static kd_tensor make(test_bench *b, kd_dtype dtype, kd_shape shape, int64_t pad)
{
    const kd_tensor x = test_filled(b, dtype, shape, pad, -2, 2);
    const int64_t columns = kd_tensor_columns(&x), rows = kd_tensor_rows(&x);
    for (int64_t i = 0; i < columns && rows > 2; i++) {
        test_set(&x, columns + i, 0);
        test_set(&x, 2 * columns + i, 1e-3 * test_get(&x, 2 * columns + i));
    }
    return x;
}

static void check(test_bench *b, kd_shape shape, kd_dtype dtype, kd_dtype y_dtype, int way)
{
    const double eps = ways[way].eps;
    const bool added = ways[way].added;
    kd_shape outer = shape;
    outer.rank--;
    const kd_tensor x = make(b, dtype, shape, 3), y = test_tensor(b, y_dtype, shape, 1);
    const kd_tensor norm = test_tensor(b, KD_F32, outer, 0);
    const kd_tensor dy = test_filled(b, y_dtype, shape, 2, -1, 1);
    const kd_tensor dx = test_filled(b, dtype, shape, 4, -1, 1);
    const int64_t rows = kd_tensor_rows(&x), columns = kd_tensor_columns(&x);
    double *values = test_doubles(b, &x), *want = test_zeros(b, rows * columns);
    double *norms = test_zeros(b, rows), *gradient = test_doubles(b, &dx);
    oracle_normalise(want, norms, values, rows, columns, eps, added);
    oracle_normalise_backward(gradient, test_doubles(b, &dy), values, rows, columns, eps, added);

    test_ok(KD_RUN(&b->exec, normalise, .y = &y, .norm = &norm, .x = &x, .eps = ways[way].eps,
                   .added = added));
    test_ok(KD_RUN(&b->exec, normalise_backward, .dx = &dx, .dy = &dy, .x = &x, .norm = &norm,
                   .eps = ways[way].eps, .added = added));
    double steep = 1;
    for (int64_t r = 0; r < rows; r++)
        if (norms[r] > 0)
            steep = fmax(steep, 1 / fmax(norms[r], eps));
        else if (eps > 0)
            steep = fmax(steep, 1 / eps);
    test_near(&norm, norms, 0, 2, "way %d: norm", way);
    test_near(&y, want, 0, 4, "way %d: y", way);
    test_near(&dx, gradient, steep, 4, "way %d: dx", way);
}

Test(normalise, agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 0);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int way = 0; way < KD_COUNT(ways); way++)
            for (int t = 0; t < 4; t++) {
                const int mark = test_mark(&b);
                check(&b, shapes[s], dtypes[t % 2], dtypes[t / 2], way);
                test_release(&b, mark);
            }
    test_close(&b);
}

/* The squares of both are outside of f32. */
Test(normalise, keeps_the_range_of_its_elements)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(2, 9), 0, 1, 2);
    const kd_tensor y = test_tensor(&b, KD_F32, KD_SHAPE(2, 9), 0);
    const kd_tensor norm = test_tensor(&b, KD_F32, KD_SHAPE(2), 0);
    for (int64_t i = 0; i < 18; i++) test_set(&x, i, test_get(&x, i) * (i < 9 ? 1e30 : 1e-30));
    double want[18], norms[2];
    oracle_normalise(want, norms, test_doubles(&b, &x), 2, 9, 0, false);
    test_ok(KD_RUN(&b.exec, normalise, .y = &y, .norm = &norm, .x = &x));
    test_near(&y, want, 0, 4, "y");
    test_near(&norm, norms, 0, 2, "norm");
    test_close(&b);
}

/* What a row holds that does not count is not seen. */
Test(normalise, rows_that_do_not_count_are_zeros)
{
    test_bench b;
    test_open(&b, 0);
    for (int t = 0; t < KD_COUNT(dtypes); t++)
        for (int s = 0; s < KD_COUNT(shapes); s++) {
            const int mark = test_mark(&b);
            const kd_tensor x = test_filled(&b, dtypes[t], shapes[s], 3, -2, 2);
            const int64_t rows = kd_tensor_rows(&x), columns = kd_tensor_columns(&x);
            const kd_tensor y = test_tensor(&b, KD_F32, shapes[s], 1);
            const kd_tensor weight = test_filled(&b, KD_F32, KD_SHAPE(rows), 0, 0.5, 2);
            const kd_tensor share = test_tensor(&b, KD_F32, KD_SHAPE(rows), 0);
            double *want = test_doubles(&b, &x), *shares = test_doubles(&b, &weight), count = 0;
            for (int64_t r = 0; r < rows; r++) {
                count += r % 3 != 1;
                if (r % 3 != 1) continue;
                test_set(&weight, r, 0);
                shares[r] = 0;
                for (int64_t i = r * columns; i < (r + 1) * columns; i++)
                    want[i] = 0, test_set(&x, i, NAN);
            }
            for (int64_t r = 0; r < rows; r++) shares[r] /= count;
            test_ok(
                KD_RUN(&b.exec, keep_rows, .y = &y, .share = &share, .x = &x, .weight = &weight));
            test_near(&y, want, 0, 0, "shape %d: y", s);
            test_near(&share, shares, 0, 1, "shape %d: share", s);
            test_release(&b, mark);
        }
    test_close(&b);
}

typedef struct context {
    double *x, *dy;
    double eps;
    bool added;
} context;

enum { ROWS = 3, COLUMNS = 4 };

static double value(void *data)
{
    const context *c = data;
    double y[ROWS * COLUMNS], norm[ROWS];
    oracle_normalise(y, norm, c->x, ROWS, COLUMNS, c->eps, c->added);
    return oracle_dot(y, c->dy, ROWS * COLUMNS);
}

Test(normalise, gradient_is_that_of_the_oracle)
{
    test_bench b;
    test_open(&b, 0);
    for (int way = 0; way < KD_COUNT(ways); way++) {
        const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, -3, 3);
        const kd_tensor dy = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, -1, 1);
        context c = { test_doubles(&b, &x), test_doubles(&b, &dy), ways[way].eps, ways[way].added };
        double *dx = test_zeros(&b, ROWS * COLUMNS);
        oracle_normalise_backward(dx, c.dy, c.x, ROWS, COLUMNS, c.eps, c.added);
        test_gradient(value, &c, c.x, ROWS * COLUMNS, dx, "way %d", way);
    }
    test_close(&b);
}

Test(normalise, same_bits_whatever_the_threads)
{
    test_bench b;
    test_open(&b, 0);
    kd_tensor y[2], dx[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        b.seed = 7;
        const kd_shape shape = KD_SHAPE(67, 600);
        const kd_tensor x = test_filled(&b, KD_F32, shape, 0, -1, 1);
        const kd_tensor norm = test_tensor(&b, KD_F32, KD_SHAPE(67), 0);
        y[i] = test_tensor(&b, KD_F32, shape, 0);
        dx[i] = test_filled(&b, KD_F32, shape, 0, -1, 1);
        test_ok(KD_RUN(&b.exec, normalise, .y = &y[i], .norm = &norm, .x = &x, .eps = 1e-7f));
        test_ok(KD_RUN(&b.exec, normalise_backward, .dx = &dx[i], .dy = &y[i], .x = &x,
                       .norm = &norm, .eps = 1e-7f));
    }
    test_same_bits(&y[0], &y[1], "y");
    test_same_bits(&dx[0], &dx[1], "dx");
    test_close(&b);
}

Test(normalise, plans_and_refuses)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(4, 6), 0, -1, 1);
    const kd_tensor half = test_filled(&b, KD_BF16, KD_SHAPE(4, 6), 0, -1, 1);
    const kd_tensor six = test_filled(&b, KD_F32, KD_SHAPE(6), 0, -1, 1);
    const kd_tensor four = kd_tensor_slice(&six, 0, 0, 4);
    const kd_tensor fx = test_untouchable(&x), f4 = test_untouchable(&four);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, normalise, .y = &fx, .norm = &f4, .x = &fx));
    test_ok(KD_RUN(&plan, keep_rows, .y = &fx, .share = &f4, .x = &fx, .weight = &f4));
    test_ok(KD_RUN(&plan, normalise_backward, .dx = &fx, .dy = &fx, .norm = &f4, .x = &fx));
    test_refused(KD_RUN(&b.exec, normalise, .y = &x, .norm = &six, .x = &x), KD_EINVAL,
                 "norm: found f32 [6], expected 4 elements");
    test_refused(KD_RUN(&b.exec, normalise, .y = &x, .norm = &four, .x = &x, .eps = -1), KD_EINVAL,
                 "eps is -1, expected a number from 0 on");
    test_refused(KD_RUN(&b.exec, normalise, .y = &six, .norm = &four, .x = &x), KD_EINVAL,
                 "normalise: y");
    test_refused(KD_RUN(&b.exec, keep_rows, .y = &half, .share = &four, .x = &x, .weight = &four),
                 KD_EINVAL, "keep_rows: y");
    test_refused(KD_RUN(&b.exec, keep_rows, .y = &x, .share = &four, .x = &half, .weight = &six),
                 KD_EINVAL, "weight: found");
    test_refused(KD_RUN(&b.exec, normalise_backward, .dx = &half, .dy = &x, .norm = &four, .x = &x),
                 KD_EINVAL, "normalise_backward: dx");
    test_close(&b);
}
