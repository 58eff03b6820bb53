/* e4m3 with a scale per row, and its products, against their definitions in double. */
#include "oracle/matmul.h"
#include "oracle/ops.h"
#include "support/quantised.h"

#include <float.h>
#include <math.h>

/* Half a unit in the last place of an e4m3 number near `x`. */
static double half_unit(double x)
{
    const double size = fmax(fabs(x), 0x1p-6);
    return ldexp(0x1p-4, ilogb(size));
}

static void check_row(const kd_tensor *y, const kd_tensor *scale, const kd_tensor *x, int64_t row,
                      const char *name)
{
    const int64_t begin = row * x->shape[1], end = begin + x->shape[1];
    double largest = 0;
    for (int64_t i = begin; i < end; i++) {
        const double size = fabs(test_get(x, i));
        if (size < INFINITY) largest = fmax(largest, size);
    }
    const double got = test_get(scale, row);
    const double want = largest / 448 >= (double)FLT_MIN ? largest / 448 : 1;
    cr_assert(fabs(got - want) <= 0x1p-24 * want, "%s: scale %.9g, expected %.9g", name, got, want);
    for (int64_t i = begin; i < end; i++) {
        const double value = test_get(x, i) / got, code = test_get(y, i);
        const bool right = isfinite(value)
                               ? fabs(code - value) <= half_unit(value) + 0x1p-22 * fabs(value)
                               : isnan(code);
        cr_assert(right, "%s: element %lld is %g, expected %g", name, (long long)i, code, value);
    }
}

static void check(const kd_tensor *y, const kd_tensor *scale, const kd_tensor *x, const char *name)
{
    for (int64_t row = 0; row < x->shape[0]; row++) check_row(y, scale, x, row, name);
}

Test(quantise, rounds_to_the_nearest)
{
    static const int64_t shapes[][3] = {
        { 1, 1, 0 },   { 1, 33, 0 },    { 7, 1, 3 },  { 5, 48, 0 },
        { 9, 513, 2 }, { 33, 1030, 0 }, { 0, 16, 0 }, { 4, 0, 0 }
    };
    test_bench bench;
    test_open(&bench, 1u << 20);
    for (int s = 0; s < KD_COUNT(shapes) * 2; s++) {
        const int64_t *shape = shapes[s / 2];
        const kd_dtype dtype = s % 2 ? KD_BF16 : KD_F32;
        const double range = s % 3 == 0 ? 1 : s % 3 == 1 ? 1e-30 : 1e30;
        const int mark = test_mark(&bench);
        const kd_shape size = KD_SHAPE(shape[0], shape[1]);
        const kd_tensor x = test_filled(&bench, dtype, size, shape[2], -range, range);
        for (int64_t i = 0; i < kd_tensor_elements(&x); i++) /* rows of other sizes, one of zeros */
            test_set(&x, i,
                     test_get(&x, i) * exp2(-2 * (double)(i / shape[1])) * (i / shape[1] != 3));
        const kd_tensor y = test_tensor(&bench, KD_F8_E4M3, size, shape[2]);
        const kd_tensor scale = test_tensor(&bench, KD_F32, KD_SHAPE(shape[0]), 0);
        test_ok(KD_RUN(&bench.exec, quantise, .y = &y, .scale = &scale, .x = &x));
        check(&y, &scale, &x, kd_dtype_name(dtype));
        test_release(&bench, mark);
    }
    test_close(&bench);
}

/* What a row may hold beside numbers around 1. */
Test(quantise, odd_values)
{
    static const double odd[][3] = { { 0, 0, 0 },           { NAN, 1, -2 },
                                     { INFINITY, 1, -448 }, { -INFINITY, 0, 0 },
                                     { 1e-45, 0, -1e-45 },  { 3e38, -3e38, 1 },
                                     { NAN, NAN, INFINITY } };
    test_bench bench;
    test_open(&bench, 1u << 20);
    const kd_tensor x = test_values(&bench, KD_F32, KD_SHAPE(KD_COUNT(odd), 3), odd[0]);
    const kd_tensor y = test_tensor(&bench, KD_F8_E4M3, kd_shape_of(&x), 0);
    const kd_tensor scale = test_tensor(&bench, KD_F32, KD_SHAPE(KD_COUNT(odd)), 0);
    test_ok(KD_RUN(&bench.exec, quantise, .y = &y, .scale = &scale, .x = &x));
    check(&y, &scale, &x, "odd"); /* a bad row does nothing to its neighbours */
    test_close(&bench);
}

Test(quantise, products)
{
    static const int64_t shapes[][3] = { { 1, 1, 1 },     { 3, 16, 16 },  { 5, 33, 300 },
                                         { 17, 64, 256 }, { 65, 130, 7 }, { 2, 0, 5 },
                                         { 0, 16, 16 },   { 4, 16, 0 } };
    test_bench bench;
    test_open(&bench, 8u << 20);
    for (int s = 0; s < KD_COUNT(shapes) * 4; s++) {
        const scaled_case c = { .m = shapes[s / 4][0],
                                .k = shapes[s / 4][1],
                                .n = shapes[s / 4][2],
                                .y_dtype = s & 1 ? KD_BF16 : KD_F32,
                                .bias = s & 2,
                                .pad = s % 3 };
        const int mark = test_mark(&bench);
        const scaled_product p = scaled_open(&bench, &c);
        double *want = test_zeros(&bench, c.m * c.n), *a = test_doubles(&bench, &p.a);
        double *b = test_doubles(&bench, &p.b);
        for (int64_t i = 0; i < c.m * c.k; i++) a[i] *= test_get(&p.a_scale, i / c.k);
        for (int64_t i = 0; i < c.k * c.n; i++) b[i] *= test_get(&p.b_scale, i % c.n);
        oracle_matmul(want, a, b, c.bias ? test_doubles(&bench, &p.bias) : NULL, c.m, c.k, c.n);
        test_ok(KD_RUN(&bench.exec, matmul_scaled, .y = &p.y, .a = &p.a, .b = &p.b,
                       .a_scale = &p.a_scale, .b_scale = &p.b_scale, .bias = &p.bias));
        test_near(&p.y, want, scaled_size(&p), (double)c.k + 2, "%s", scaled_name(&c));
        test_release(&bench, mark);
    }
    test_close(&bench);
}

/* In place, with a row that is not finite. */
Test(quantise, rescales)
{
    static const int64_t shapes[][3] = {
        { 1, 1, 0 }, { 3, 7, 2 }, { 5, 1030, 1 }, { 0, 4, 0 }, { 3, 0, 0 }
    };
    test_bench bench;
    test_open(&bench, 1u << 20);
    for (int s = 0; s < KD_COUNT(shapes) * 4; s++) {
        const int64_t *shape = shapes[s / 4], rows = shape[0], columns = shape[1];
        const kd_dtype dtype = s & 1 ? KD_BF16 : KD_F32;
        const int mark = test_mark(&bench);
        const kd_tensor y = test_filled(&bench, dtype, KD_SHAPE(rows, columns), shape[2], -3, 3);
        const kd_tensor row = test_filled(&bench, KD_F32, KD_SHAPE(rows), 0, 0.1, 2);
        const kd_tensor column = test_filled(&bench, KD_F32, KD_SHAPE(columns), 0, -2, 2);
        const kd_tensor bias = test_filled(&bench, KD_BF16, KD_SHAPE(columns), 0, -1, 1),
                        none = { 0 };
        const bool biased = s & 2;
        if (rows > 1) test_set(&row, 1, NAN);
        double *want = test_doubles(&bench, &y);
        for (int64_t i = 0; i < rows * columns; i++)
            want[i] = want[i] * test_get(&row, i / columns) * test_get(&column, i % columns) +
                      (biased ? test_get(&bias, i % columns) : 0);
        test_ok(KD_RUN(&bench.exec, rescale, .y = &y, .row = &row, .column = &column,
                       .bias = biased ? &bias : &none));
        test_near(&y, want, 13, 3, "rescale, case %d", s);
        test_release(&bench, mark);
    }
    test_close(&bench);
}

Test(quantise, refuses)
{
    test_bench bench;
    test_open(&bench, 1u << 20);
    kd_exec *exec = &bench.exec;
    const scaled_case c = { .m = 4, .k = 16, .n = 32, .y_dtype = KD_BF16, .bias = true };
    const scaled_product p = scaled_open(&bench, &c);
    const kd_tensor x = test_filled(&bench, KD_F32, KD_SHAPE(4, 16), 0, -1, 1), none = { 0 };
    const kd_tensor by_rows = test_tensor(&bench, KD_F8_E4M3, KD_SHAPE(16, 32), 0);
    const kd_tensor wide = test_tensor(&bench, KD_F32, KD_SHAPE(32), 0);
    const kd_tensor two = test_tensor(&bench, KD_F32, KD_SHAPE(2), 0);
    const kd_tensor f32 = test_tensor(&bench, KD_F32, KD_SHAPE(4, 32), 0);
    test_refused(KD_RUN(exec, quantise, .y = &p.y, .scale = &p.a_scale, .x = &x), KD_EINVAL, "y: ");
    test_refused(KD_RUN(exec, quantise, .y = &p.a, .scale = &two, .x = &x), KD_EINVAL, "scale: ");
    test_refused(KD_RUN(exec, quantise, .y = &p.a, .scale = &p.a_scale, .x = &p.a), KD_EINVAL,
                 "x: found f8_e4m3");
    test_refused(KD_RUN(exec, matmul_scaled, .y = &p.y, .a = &p.a, .b = &by_rows,
                        .a_scale = &p.a_scale, .b_scale = &p.b_scale),
                 KD_EINVAL, "b: found stride 32");
    test_refused(KD_RUN(exec, matmul_scaled, .y = &p.y, .a = &x, .b = &p.b, .a_scale = &p.a_scale,
                        .b_scale = &p.b_scale),
                 KD_EINVAL, "a: ");
    test_refused(KD_RUN(exec, matmul_scaled, .y = &p.y, .a = &p.a, .b = &p.b, .a_scale = &p.a_scale,
                        .b_scale = &none),
                 KD_EINVAL, "b_scale: absent");
    test_refused(KD_RUN(exec, matmul_scaled, .y = &p.y, .a = &p.a, .b = &p.b, .a_scale = &two,
                        .b_scale = &p.b_scale),
                 KD_EINVAL, "a_scale: ");
    test_refused(KD_RUN(exec, rescale, .y = &f32, .row = &p.b_scale, .column = &p.b_scale),
                 KD_EINVAL, "row: ");
    test_refused(KD_RUN(exec, rescale, .y = &f32, .row = &p.a_scale, .column = &p.a_scale),
                 KD_EINVAL, "column: ");
    test_refused(
        KD_RUN(exec, rescale, .y = &f32, .row = &p.a_scale, .column = &p.b_scale, .bias = &wide),
        KD_EINVAL, "bias: ");
    test_refused(KD_RUN(exec, matmul_scaled, .y = &p.y, .a = &p.a, .b = &p.b, .a_scale = &p.a_scale,
                        .b_scale = &p.b_scale, .bias = &wide),
                 KD_EINVAL, "bias: ");
    test_close(&bench);
}
