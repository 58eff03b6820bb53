/* What the sums owe: double precision inside, accumulation, one order whatever the threads. */
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
static const kd_shape shapes[] = {
    { 2, { 1, 1 } },   { 2, { 1, 131 } },   { 2, { 77, 1 } },
    { 2, { 33, 65 } }, { 3, { 9, 4, 17 } }, { 2, { 300, 129 } },
};

Test(reduce, columns_and_rows)
{
    test_bench b;
    test_open(&b, 0);
    for (int s = 0; s < KD_COUNT(shapes); s++) {
        for (int t = 0; t < KD_COUNT(dtypes); t++) {
            kd_tensor columns_of[2], rows_of[2];
            const int mark = test_mark(&b);
            for (int threads = 1; threads <= 2; threads++) {
                omp_set_num_threads(threads);
                b.seed = 11;
                const kd_tensor x = test_filled(&b, dtypes[t], shapes[s], 3, -100, 100);
                const int64_t rows = kd_tensor_rows(&x), columns = kd_tensor_columns(&x);
                const kd_tensor y = test_filled(&b, KD_F32, KD_SHAPE(columns), 0, -1, 1);
                const kd_tensor z = test_filled(&b, KD_F32, KD_SHAPE(rows), 0, -1, 1);
                double *values = test_doubles(&b, &x);
                double *down = test_doubles(&b, &y), *across = test_doubles(&b, &z);
                for (int64_t i = 0; i < rows * columns; i++) {
                    down[i % columns] += values[i];
                    across[i / columns] += values[i];
                }
                test_ok(KD_RUN(&b.exec, sum_columns, .y = &y, .x = &x));
                test_near(&y, down, 0, 1, "columns, shape %d, %d threads", s, threads);
                if (dtypes[t] == KD_F32) {
                    test_ok(KD_RUN(&b.exec, sum_rows, .y = &z, .x = &x));
                    test_near(&z, across, 0, 1, "rows, shape %d, %d threads", s, threads);
                }
                columns_of[threads - 1] = y;
                rows_of[threads - 1] = z;
            }
            test_same_bits(&columns_of[0], &columns_of[1], "columns, 1 and 2 threads");
            test_same_bits(&rows_of[0], &rows_of[1], "rows, 1 and 2 threads");
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

Test(reduce, squares)
{
    static const int64_t counts[] = { 1, 7, 65536, 65537, 200003 };
    test_bench b;
    test_open(&b, 4096);
    for (int c = 0; c < KD_COUNT(counts); c++) {
        kd_tensor y[2];
        const int mark = test_mark(&b);
        const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(counts[c]), 0, -3, 3);
        double want = 0;
        for (int64_t i = 0; i < counts[c]; i++) want += test_get(&x, i) * test_get(&x, i);
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i + 1);
            y[i] = test_tensor(&b, KD_F32, KD_SHAPE(1), 0);
            test_ok(KD_RUN(&b.exec, sum_squares, .y = &y[i], .x = &x));
            test_near(&y[i], &want, 0, 1, "%d elements", (int)counts[c]);
        }
        test_same_bits(&y[0], &y[1], "1 and 2 threads");
        test_set(&x, counts[c] / 2, NAN);
        test_ok(KD_RUN(&b.exec, sum_squares, .y = &y[0], .x = &x));
        cr_assert(isnan(test_get(&y[0], 0)), "a NaN among %d elements is lost", (int)counts[c]);
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(reduce, plans_without_memory_and_refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(4, 6), 0, -1, 1);
    const kd_tensor padded = test_filled(&b, KD_F32, KD_SHAPE(4, 6), 1, -1, 1);
    const kd_tensor half = test_filled(&b, KD_BF16, KD_SHAPE(4, 6), 0, -1, 1);
    const kd_tensor six = test_filled(&b, KD_F32, KD_SHAPE(6), 0, -1, 1);
    const kd_tensor four = kd_tensor_slice(&six, 0, 0, 4), one = kd_tensor_slice(&six, 0, 0, 1);
    const kd_tensor fx = test_untouchable(&x), f6 = test_untouchable(&six);
    const kd_tensor f4 = test_untouchable(&four), f1 = test_untouchable(&one);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, sum_columns, .y = &f6, .x = &fx));
    test_ok(KD_RUN(&plan, sum_rows, .y = &f4, .x = &fx));
    test_ok(KD_RUN(&plan, sum_squares, .y = &f1, .x = &fx));
    cr_assert_gt(counting.peak, 0, "sum_squares plans no scratch");

    test_refused(KD_RUN(&b.exec, sum_columns, .y = &four, .x = &x), KD_EINVAL,
                 "y: found f32 [4], expected 6 elements");
    test_refused(KD_RUN(&b.exec, sum_rows, .y = &four, .x = &half), KD_EINVAL, "x: found bf16");
    test_refused(KD_RUN(&b.exec, sum_squares, .y = &one, .x = &padded), KD_EINVAL,
                 "expected contiguous");
    test_refused(KD_RUN(&b.exec, sum_squares, .y = &six, .x = &x), KD_EINVAL, "sum_squares: y");
    test_close(&b);
}
