/*
 * correlation - how a batch's errors run along with those of the next row (the loss that public code
 * calls CC).
 *
 *     e = |student - teacher|, N rows of D
 *     loss_i = w_i N / (N - 1) sum_d e_id e_(i+1)d; the last row's, and a lone row's, 0
 *     d_student_id += scale N / (N - 1) sign(s_id - t_id) (w_(i-1) e_(i-1)d + w_i e_(i+1)d)
 *
 * so that the mean over N rows is a mean over N - 1 neighbours.  The sign of 0 is 0.  A row of weight 0 is
 * not read: its loss is 0, N does not count it, and the row after it is the neighbour of the one before.
 */
#include "ops/rowio.h"

#include <math.h>

kd_status kd_correlation_check(const kd_correlation_args *args)
{
    KD_TRY(kd_expect_rows(args->student, "student"));
    KD_TRY(kd_tensor_expect(args->student, "student", -1, KD_SHAPE(-1, -1)));
    const kd_shape shape = kd_shape_of(args->student);
    KD_TRY(kd_expect_rows(args->teacher, "teacher"));
    KD_TRY(kd_tensor_expect(args->teacher, "teacher", -1, shape));
    KD_TRY(kd_expect_list(args->loss, "loss", KD_F32, shape.dim[0]));
    if (kd_present(args->weight))
        KD_TRY(kd_expect_list(args->weight, "weight", KD_F32, shape.dim[0]));
    if (kd_present(args->d_student))
        KD_TRY(kd_expect_rows_of(args->d_student, "d_student", args->student->dtype, shape));
    return kd_present(args->d_student) ? kd_expect_list(args->scale, "scale", KD_F32, 1) : KD_OK;
}

/* The next row from `row` on, in steps of 1 or -1, that counts; or one outside of the batch. */
static int64_t counted(const kd_correlation_args *args, int64_t row, int64_t step)
{
    while (row >= 0 && row < args->student->shape[0] && kd_list_at(args->weight, row, 1) == 0)
        row += step;
    return row;
}

/* student - teacher of a row; zeros of a row that is not there. */
static void differences(float *restrict e, const kd_correlation_args *args, int64_t row, int64_t at,
                        int64_t n)
{
    float sb[KD_STRIP], tb[KD_STRIP];
    if (row < 0 || row >= args->student->shape[0]) {
        memset(e, 0, (size_t)n * sizeof *e);
        return;
    }
    const float *s = kd_row_load(sb, kd_row_of(args->student, row), at, n);
    const float *t = kd_row_load(tb, kd_row_of(args->teacher, row), at, n);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) e[i] = s[i] - t[i];
}

/* `share` is N / (N - 1), or 0. */
static void correlate(const kd_correlation_args *args, int64_t row, double share)
{
    const int64_t columns = args->student->shape[1];
    const int64_t previous = counted(args, row - 1, -1), next = counted(args, row + 1, 1);
    const bool backward = kd_present(args->d_student);
    const float scale = backward ? (float)(share * *(const float *)args->scale->data) : 0;
    const float own = kd_list_at(args->weight, row, 1);
    const float above = previous < 0 ? 0 : kd_list_at(args->weight, previous, 1);
    const kd_row to = backward ? kd_row_of(args->d_student, row) : (kd_row){ NULL, KD_F32 };
    float before[KD_STRIP], e[KD_STRIP], after[KD_STRIP], buffer[KD_STRIP];
    double total = 0;
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        differences(e, args, row, at, n);
        differences(after, args, next, at, n);
        float strip = 0;
#pragma omp simd reduction(+ : strip)
        for (int64_t i = 0; i < n; i++) strip += fabsf(e[i] * after[i]);
        total += strip;
        if (!backward) continue;
        differences(before, args, previous, at, n);
        const float *old = kd_row_load(buffer, to, at, n);
        float *out = kd_row_begin(buffer, to, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            const float sign = e[i] > 0 ? scale : e[i] < 0 ? -scale : 0;
            out[i] = old[i] + sign * (above * fabsf(before[i]) + own * fabsf(after[i]));
        }
        kd_row_finish(to, at, out, n);
    }
    ((float *)args->loss->data)[row] = (float)(share * own * total);
}

kd_status kd_correlation_cpu(kd_exec *exec, const kd_correlation_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->student->shape[0], columns = args->student->shape[1];
    double count = 0;
    for (int64_t row = 0; row < rows; row++) count += kd_list_at(args->weight, row, 1) != 0;
    const double share = count > 1 ? count / (count - 1) : 0;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        if (kd_list_at(args->weight, row, 1) == 0)
            ((float *)args->loss->data)[row] = 0;
        else
            correlate(args, row, share);
    }
    return KD_OK;
}
