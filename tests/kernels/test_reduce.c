/* The sums on a GPU, against the CPU: in double, so to one rounding of the result. */
#include "support/parity.h"

#include <math.h>

static const struct {
    kd_shape shape;
    int64_t pad; /* elements after each index of dimension 0; 1: no row is aligned but the first */
} cases[] = {
    { { 2, { 1, 1 } }, 0 },     { { 2, { 1, 131 } }, 0 },      { { 2, { 77, 1 } }, 0 },
    { { 2, { 128, 64 } }, 0 },  { { 2, { 129, 65 } }, 3 },     { { 2, { 300, 1032 } }, 8 },
    { { 3, { 9, 4, 17 } }, 0 }, { { 4, { 3, 5, 7, 8 } }, 16 }, { { 2, { 700, 3 } }, 0 },
    { { 2, { 0, 9 } }, 0 },     { { 2, { 4, 0 } }, 0 },        { { 2, { 3, 65536 } }, 0 },
    { { 2, { 2, 65539 } }, 1 }, { { 2, { 2, 140000 } }, 0 },   { { 2, { 130, 300 } }, 1 },
};

Test(reduce, columns_and_rows)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases) * 2; c++) {
        const kd_dtype dtype = c % 2 ? KD_BF16 : KD_F32;
        const int s = c / 2, mark = test_mark(&p.bench);
        const kd_tensor x = test_filled(&p.bench, dtype, cases[s].shape, cases[s].pad, -100, 100);
        const kd_shape columns = KD_SHAPE(kd_tensor_columns(&x)),
                       rows = KD_SHAPE(kd_tensor_rows(&x));
        const kd_tensor down = test_filled(&p.bench, KD_F32, columns, 0, -1, 1);
        const kd_tensor across = test_filled(&p.bench, KD_F32, rows, 0, -1, 1);
        const char *name = parity_name("%s, case %d", kd_dtype_name(dtype), s);
        PARITY(&p, sum_columns, 0, 1, name, .y = &down, .x = &x);
        if (dtype == KD_F32) PARITY(&p, sum_rows, 0, 1, name, .y = &across, .x = &x);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* Around the width of vectors and of pieces; `shift` elements off a boundary. */
Test(reduce, squares)
{
    static const int64_t counts[] = { 0, 1, 3, 4, 7, 1024, 65535, 65536, 65539, 200000 };
    parity p;
    parity_open(&p, 1 << 16);
    for (int c = 0; c < KD_COUNT(counts) * 2; c++) {
        const int64_t n = counts[c / 2], shift = c % 2;
        const int mark = test_mark(&p.bench);
        const kd_tensor all = test_filled(&p.bench, KD_F32, KD_SHAPE(n + shift), 0, -2, 2);
        const kd_tensor x = kd_tensor_slice(&all, 0, shift, n);
        const kd_tensor y = test_tensor(&p.bench, KD_F32, KD_SHAPE(1), 0);
        const char *name = parity_name("squares of %lld + %lld", (long long)shift, (long long)n);
        PARITY(&p, sum_squares, 0, 1, name, .y = &y, .x = &x);
        const double odd[] = { NAN, INFINITY, -INFINITY, 1e20, 1e-30, 3e-20 };
        for (int i = 0; n > 0 && i < KD_COUNT(odd); i++) {
            test_set(&x, n - 1, odd[i]);
            PARITY(&p, sum_squares, 0, 1, name, .y = &y, .x = &x);
        }
        test_fill_constant(&x, 1e-22); /* squares that f32 does not hold */
        PARITY(&p, sum_squares, 0, 1, name, .y = &y, .x = &x);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* A million numbers of up to 1e4 that leave little: f32 anywhere inside would show. */
Test(reduce, cancellation)
{
    enum { N = 1 << 20, COLUMNS = 64 };
    parity p;
    parity_open(&p, 0);
    const kd_tensor x = test_tensor(&p.bench, KD_F32, KD_SHAPE(1, N), 0);
    float *values = x.data;
    for (int64_t i = 0; i < N; i += 2) {
        values[i] = (float)(1e4 * test_uniform(&p.bench));
        values[i + 1] = -values[i];
    }
    for (int64_t i = 0; i < N; i++) { /* apart by a stride that is no power of two */
        const int64_t other = i * 7919 % N;
        const float keep = values[i];
        values[i] = values[other], values[other] = keep;
    }
    for (int64_t i = 0; i < N; i += 1000) values[i] += 0.25f;
    const kd_tensor columns = kd_tensor_of(x.data, KD_F32, KD_SHAPE(N / COLUMNS, COLUMNS));
    const kd_tensor across = test_filled(&p.bench, KD_F32, KD_SHAPE(1), 0, 0, 0);
    const kd_tensor down = test_filled(&p.bench, KD_F32, KD_SHAPE(COLUMNS), 0, 0, 0);
    /* Two sums in double differ by less than 2^-53 of all that was summed; a tolerance's unit is
     * 2^-23. */
    const double size = 0x1p-30 * 1e4;
    PARITY(&p, sum_rows, size * N, 1, "a row that cancels", .y = &across, .x = &x);
    PARITY(&p, sum_columns, size * N / COLUMNS, 1, "columns that cancel", .y = &down,
           .x = &columns);
    parity_close(&p);
}

/* Where it stands, a number that is none reaches its own sum alone. */
Test(reduce, keeps_what_is_not_finite)
{
    const double odd[] = { NAN, INFINITY, -INFINITY };
    parity p;
    parity_open(&p, 0);
    const kd_tensor x = test_filled(&p.bench, KD_F32, KD_SHAPE(5, 300), 0, -1, 1);
    const kd_tensor down = test_filled(&p.bench, KD_F32, KD_SHAPE(300), 0, 0, 0);
    const kd_tensor across = test_filled(&p.bench, KD_F32, KD_SHAPE(5), 0, 0, 0);
    for (int i = 0; i < KD_COUNT(odd); i++) test_set(&x, 301 * i + 7, odd[i]);
    PARITY(&p, sum_columns, 0, 1, "columns", .y = &down, .x = &x);
    PARITY(&p, sum_rows, 0, 1, "rows", .y = &across, .x = &x);
    parity_close(&p);
}
