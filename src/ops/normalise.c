/*
 * normalise - rows made ready for comparison: those that do not count taken out, all of length one.
 *
 *     keep_rows       y = x, or zeros where the row's weight is 0: such a row is not read
 *                     share = weight / how many weights are not 0
 *     normalise, and its gradient:
 *
 *     norm = |x|      s = max(norm, eps), or norm + eps when `added`      y = x / s
 *
 * Backward, where a row that eps outweighs is only scaled:
 *
 *     dx += (dy - x c) / s      c = (x . dy) / (norm s), or 0 when norm is 0 or s is eps
 *
 * A row of zeros, or one whose s is 0, gives zeros; without eps its gradient is 0 too.  Sums are in
 * double: neither the largest nor the smallest f32 squared leaves its range.
 */
#include "ops/rowio.h"

#include <math.h>

typedef struct rows_length {
    float norm, s;
} rows_length;

static rows_length length_of(double squares, float eps, bool added)
{
    const float norm = (float)sqrt(squares);
    return (rows_length){ norm, added ? norm + eps : fmaxf(norm, eps) };
}

static kd_status check_eps(float eps)
{
    if (eps >= 0 && eps < INFINITY) return KD_OK;
    return kd_fail(KD_EINVAL, "eps is %g, expected a number from 0 on", (double)eps);
}

/* ---- forward ---------------------------------------------------------------------------------- */

kd_status kd_normalise_check(const kd_normalise_args *args)
{
    KD_TRY(kd_expect_rows(args->x, "x"));
    KD_TRY(kd_expect_rows(args->y, "y"));
    KD_TRY(kd_tensor_expect(args->y, "y", -1, kd_shape_of(args->x)));
    KD_TRY(kd_expect_list(args->norm, "norm", KD_F32, kd_tensor_rows(args->x)));
    return check_eps(args->eps);
}

static void normalise_row(kd_row y, kd_row x, float s, int64_t columns)
{
    float xb[KD_STRIP], yb[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *v = kd_row_load(xb, x, at, n);
        float *out = kd_row_begin(yb, y, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = s == 0 ? 0 : v[i] / s;
        kd_row_finish(y, at, out, n);
    }
}

kd_status kd_normalise_cpu(kd_exec *exec, const kd_normalise_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->x), columns = kd_tensor_columns(args->x);
    float *norm = args->norm->data;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        const kd_row x = kd_row_of(args->x, r);
        const rows_length length = length_of(kd_row_dot(x, x, columns), args->eps, args->added);
        norm[r] = length.norm;
        normalise_row(kd_row_of(args->y, r), x, length.s, columns);
    }
    return KD_OK;
}

/* ---- backward --------------------------------------------------------------------------------- */

kd_status kd_normalise_backward_check(const kd_normalise_backward_args *args)
{
    KD_TRY(kd_expect_rows(args->x, "x"));
    KD_TRY(kd_expect_rows_of(args->dx, "dx", args->x->dtype, kd_shape_of(args->x)));
    KD_TRY(kd_expect_rows(args->dy, "dy"));
    KD_TRY(kd_tensor_expect(args->dy, "dy", -1, kd_shape_of(args->x)));
    KD_TRY(kd_expect_list(args->norm, "norm", KD_F32, kd_tensor_rows(args->x)));
    return check_eps(args->eps);
}

static void backward_row(kd_row dx, kd_row dy, kd_row x, float s, float c, int64_t columns)
{
    float xb[KD_STRIP], gb[KD_STRIP], ob[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *v = kd_row_load(xb, x, at, n), *g = kd_row_load(gb, dy, at, n);
        const float *before = kd_row_load(ob, dx, at, n);
        float *out = kd_row_begin(ob, dx, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = before[i] + (g[i] - v[i] * c) / s;
        kd_row_finish(dx, at, out, n);
    }
}

kd_status kd_normalise_backward_cpu(kd_exec *exec, const kd_normalise_backward_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->x), columns = kd_tensor_columns(args->x);
    const float *norm = args->norm->data, eps = args->eps;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        const kd_row x = kd_row_of(args->x, r), dy = kd_row_of(args->dy, r);
        const float s = args->added ? norm[r] + eps : fmaxf(norm[r], eps);
        const bool turns = norm[r] > 0 && (args->added || norm[r] > eps);
        if (s == 0) continue;
        const float c = turns ? (float)(kd_row_dot(x, dy, columns) / norm[r] / s) : 0;
        backward_row(kd_row_of(args->dx, r), dy, x, s, c, columns);
    }
    return KD_OK;
}

/* ---- rows that count -------------------------------------------------------------------------- */

kd_status kd_keep_rows_check(const kd_keep_rows_args *args)
{
    KD_TRY(kd_expect_rows(args->x, "x"));
    KD_TRY(kd_expect_rows_of(args->y, "y", KD_F32, kd_shape_of(args->x)));
    KD_TRY(kd_expect_list(args->weight, "weight", KD_F32, kd_tensor_rows(args->x)));
    return kd_expect_list(args->share, "share", KD_F32, kd_tensor_rows(args->x));
}

static void keep_row(float *to, kd_row x, int64_t columns)
{
    float buffer[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        memcpy(to + at, kd_row_load(buffer, x, at, n), (size_t)n * sizeof *to);
    }
}

kd_status kd_keep_rows_cpu(kd_exec *exec, const kd_keep_rows_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->x), columns = kd_tensor_columns(args->x);
    const float *weight = args->weight->data;
    float *share = args->share->data;
    double count = 0;
    for (int64_t r = 0; r < rows; r++) count += weight[r] != 0;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        float *y = kd_row_of(args->y, r).data;
        share[r] = weight[r] != 0 ? (float)(weight[r] / count) : 0;
        if (weight[r] != 0)
            keep_row(y, kd_row_of(args->x, r), columns);
        else
            memset(y, 0, (size_t)columns * sizeof *y);
    }
    return KD_OK;
}
