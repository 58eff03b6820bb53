/*
 * reduce - sums in double, in an order that the number of threads does not change.
 *
 *     sum_columns   y[j] += sum_n x[n,j]       threads share the columns
 *     sum_rows      y[r] += sum_j x[r,j]       threads share the rows
 *     sum_squares   y     = sum_i x_i^2        fixed blocks, then the blocks in order
 */
#include "ops/rowio.h"

enum {
    SHARE = 64,      /* columns that one thread takes at a time: whole cache lines */
    BLOCK = 1 << 16, /* elements of one block of sum_squares */
};

kd_status kd_sum_columns_check(const kd_sum_columns_args *args)
{
    KD_TRY(kd_expect_rows(args->x, "x"));
    return kd_expect_list(args->y, "y", KD_F32, kd_tensor_columns(args->x));
}

kd_status kd_sum_columns_cpu(kd_exec *exec, const kd_sum_columns_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->x), columns = kd_tensor_columns(args->x);
    float *y = args->y->data;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t at = 0; at < columns; at += SHARE) {
        const int64_t n = kd_min_i64(SHARE, columns - at);
        double total[SHARE] = { 0 };
        float buffer[KD_STRIP];
        for (int64_t row = 0; row < rows; row++) {
            const float *x = kd_row_load(buffer, kd_row_of(args->x, row), at, n);
#pragma omp simd
            for (int64_t i = 0; i < n; i++) total[i] += x[i];
        }
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[at + i] = (float)(y[at + i] + total[i]);
    }
    return KD_OK;
}

kd_status kd_sum_rows_check(const kd_sum_rows_args *args)
{
    KD_TRY(kd_expect_rows(args->x, "x"));
    KD_TRY(kd_expect_rows_of(args->x, "x", KD_F32, kd_shape_of(args->x)));
    return kd_expect_list(args->y, "y", KD_F32, kd_tensor_rows(args->x));
}

kd_status kd_sum_rows_cpu(kd_exec *exec, const kd_sum_rows_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->x), columns = kd_tensor_columns(args->x);
    float *y = args->y->data;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        const float *x = kd_row_of(args->x, row).data;
        double total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < columns; i++) total += x[i];
        y[row] = (float)(y[row] + total);
    }
    return KD_OK;
}

static double block_of_squares(const float *x, int64_t n)
{
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += (double)x[i] * x[i];
    return total;
}

kd_status kd_sum_squares_check(const kd_sum_squares_args *args)
{
    if (!kd_present(args->x)) return kd_fail(KD_EINVAL, "x: absent");
    KD_TRY(kd_expect_list(args->x, "x", KD_F32, kd_tensor_elements(args->x)));
    return kd_expect_list(args->y, "y", KD_F32, 1);
}

kd_status kd_sum_squares_cpu(kd_exec *exec, const kd_sum_squares_args *args)
{
    const int64_t count = kd_tensor_elements(args->x), blocks = kd_ceil_div(count, BLOCK);
    kd_tensor scratch; /* doubles, for which there is no element type */
    KD_TRY(kd_push(&scratch, exec, "sum_squares.blocks", KD_I64, KD_SHAPE(blocks)));
    if (kd_planning(exec)) return KD_OK;

    const float *x = args->x->data;
    double *sums = scratch.data, total = 0;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++)
        sums[b] = block_of_squares(x + b * BLOCK, kd_min_i64(BLOCK, count - b * BLOCK));
    for (int64_t b = 0; b < blocks; b++) total += sums[b];
    *(float *)args->y->data = (float)total;
    return KD_OK;
}
