/*
 * normalise and its gradient on a GPU, against the CPU: both ways to keep away from 0, rows of zeros,
 * either type of y, rows longer and shorter than a block reads at a time, aligned and not.
 */
#include "support/parity.h"

#include <math.h>

static const struct {
    kd_shape shape;
    int64_t pad;
} cases[] = {
    { { 2, { 0, 8 } }, 0 },    { { 2, { 1, 1 } }, 0 },    { { 2, { 5, 7 } }, 3 },
    { { 2, { 9, 64 } }, 8 },   { { 2, { 3, 1032 } }, 0 }, { { 2, { 4, 2051 } }, 1 },
    { { 3, { 5, 3, 8 } }, 8 }, { { 2, { 600, 16 } }, 0 },
};
static const struct {
    float eps;
    bool added;
} ways[] = { { 1e-12f, false }, { 1e-3f, true }, { 3, false }, { 0, true } };

Test(normalise, rows_that_do_not_count)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases) * 2; c++) {
        const int mark = test_mark(&p.bench);
        const kd_shape shape = cases[c / 2].shape;
        const kd_tensor x =
            test_filled(&p.bench, c % 2 ? KD_BF16 : KD_F32, shape, cases[c / 2].pad, -2, 2);
        const int64_t rows = kd_tensor_rows(&x), columns = kd_tensor_columns(&x);
        const kd_tensor y = test_tensor(&p.bench, KD_F32, shape, cases[c / 2].pad);
        const kd_tensor weight = test_filled(&p.bench, KD_F32, KD_SHAPE(rows), 0, 0.5, 2);
        const kd_tensor share = test_tensor(&p.bench, KD_F32, KD_SHAPE(rows), 0);
        for (int64_t e = 0; e < rows * columns; e++)
            if (e / columns % 3 == 1) test_set(&x, e, NAN), test_set(&weight, e / columns, 0);
        PARITY(&p, keep_rows, 0, 1, parity_name("case %d", c), .y = &y, .share = &share, .x = &x,
               .weight = &weight);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(normalise, both_directions)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases) * 16; c++) {
        const kd_dtype x_type = c & 1 ? KD_BF16 : KD_F32, y_type = c & 2 ? KD_BF16 : KD_F32;
        const float eps = ways[c / 4 % 4].eps;
        const bool added = ways[c / 4 % 4].added;
        const kd_shape shape = cases[c / 16].shape;
        const int64_t pad = cases[c / 16].pad;
        const int mark = test_mark(&p.bench);
        const kd_tensor x = test_filled(&p.bench, x_type, shape, pad, -2, 2);
        const kd_tensor y = test_tensor(&p.bench, y_type, shape, pad);
        const kd_tensor dy = test_filled(&p.bench, y_type, shape, pad, -1, 1);
        const kd_tensor dx = test_filled(&p.bench, x_type, shape, pad, -1, 1);
        const kd_tensor norm = test_tensor(&p.bench, KD_F32, KD_SHAPE(kd_tensor_rows(&x)), 0);
        for (int64_t i = 0; i < kd_tensor_columns(&x) && kd_tensor_rows(&x) > 1; i++)
            test_set(&x, kd_tensor_columns(&x) + i, 0);
        const char *name = parity_name("case %d", c);
        PARITY(&p, normalise, 0, 4, name, .y = &y, .norm = &norm, .x = &x, .eps = eps,
               .added = added);
        /* One element alone has a gradient that cancels: dy - x (x dy) / x^2. */
        const double steep = eps > 0 ? 1 / (double)eps : 1;
        PARITY(&p, normalise_backward,
               shape.dim[1] == 1 ? 4
               : steep < 10      ? 4
                                 : 8,
               4, name, .dx = &dx, .dy = &dy, .x = &x, .norm = &norm, .eps = eps, .added = added);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}
