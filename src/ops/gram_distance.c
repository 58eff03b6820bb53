/*
 * gram_distance - how far the maps of two models are apart, place by place (NST; Huang and Wang 2017).
 *
 * Of x [C,S] and y [C',S], rows of length one, and per sample:
 *
 *     value  =  |x'x / C - y'y / C'|^2
 *            =  sum_ij (x_i x_j)^2 / C^2 - 2 sum_ij (x_i y_j)^2 / (C C') + sum_ij (y_i y_j)^2 / C'^2
 *     d / dx =  4 / C x (x'x / C - y'y / C')
 *            =  4 / C^2 (x x') x - 4 / (C C') (x y') y
 *
 * The first of either is by places, from S x S products: no term is taken from another that is larger than
 * their difference, so the value is never below 0 and small ones are exact.  The second is by channels, from
 * C x (C + C') and C' x C' products, the smaller where maps are large: sums of squares in double whose
 * difference is 0 where both sides have the same products, exact to f32's rounding of these (about 1e-7 beside
 * a value of at most 2), and taken for 0 below that.
 */
#include "ops/rowio.h"

/* ---- operands --------------------------------------------------------------------------------- */

kd_status kd_gram_distance_check(const kd_gram_distance_args *args)
{
    const int64_t c = args->channels, ct = args->teacher_channels;
    const bool wide = args->by_channel;
    KD_TRY(kd_expect_rows(args->student, "student"));
    KD_TRY(kd_tensor_expect(args->student, "student", KD_F32, KD_SHAPE(-1, -1, -1)));
    const int64_t samples = args->student->shape[0], side = args->student->shape[1];
    if (c < 1 || ct < 1)
        return kd_fail(KD_EINVAL, "channels: found %lld and %lld, expected 1 or more", (long long)c,
                       (long long)ct);
    KD_TRY(kd_expect_list(args->student, "student", KD_F32,
                          wide ? samples * c * (c + ct) : samples * side * side));
    KD_TRY(kd_tensor_expect(args->student, "student", KD_F32,
                            wide ? KD_SHAPE(samples, c, c + ct) : KD_SHAPE(samples, side, side)));
    const int64_t rows = wide ? ct : side;
    KD_TRY(kd_expect_list(args->teacher, "teacher", KD_F32, samples * rows * rows));
    KD_TRY(kd_tensor_expect(args->teacher, "teacher", KD_F32, KD_SHAPE(samples, rows, rows)));
    KD_TRY(kd_expect_list(args->loss, "loss", KD_F32, samples));
    if (kd_present(args->weight)) KD_TRY(kd_expect_list(args->weight, "weight", KD_F32, samples));
    return kd_present(args->scale) ? kd_expect_list(args->scale, "scale", KD_F32, 1) : KD_OK;
}

static float *row_of(const kd_tensor *t, int64_t row)
{
    return (float *)t->data + row * t->shape[2];
}

static double squares(const float *x, int64_t n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static void multiply(float *x, float by, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] *= by;
}

/* ---- rows ------------------------------------------------------------------------------------- */

/* What the gradient of a sample is multiplied with; `gradient` false: there is none. */
typedef struct factor {
    bool gradient;
    float weight, by;
} factor;

static factor factor_of(const kd_gram_distance_args *args, int64_t sample)
{
    const bool gradient = kd_present(args->scale);
    const float weight = kd_list_at(args->weight, sample, 1);
    return (factor){ gradient, weight, gradient ? 4 * weight * kd_list_at(args->scale, 0, 0) : 0 };
}

/* A sample of weight 0 is not read. */
static double clear(float *x, const factor *f, int64_t n)
{
    if (f->gradient) memset(x, 0, (size_t)n * sizeof *x);
    return 0;
}

static double places_row(const kd_gram_distance_args *args, int64_t row)
{
    const int64_t n = args->student->shape[2];
    const factor f = factor_of(args, row / args->student->shape[1]);
    const float fs = 1.0f / (float)args->channels, ft = 1.0f / (float)args->teacher_channels;
    float *restrict a = row_of(args->student, row);
    const float *restrict t = row_of(args->teacher, row);
    if (f.weight == 0) return clear(a, &f, n);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        const float e = a[i] * fs - t[i] * ft;
        sum += (double)e * (double)e;
        a[i] = f.gradient ? f.by * fs * e : a[i];
    }
    return sum;
}

static double channels_row(const kd_gram_distance_args *args, int64_t row)
{
    const int64_t c = args->channels, ct = args->teacher_channels;
    const factor f = factor_of(args, row / c);
    const double fs = 1 / (double)c, ft = 1 / (double)ct;
    float *a = row_of(args->student, row);
    if (f.weight == 0) return clear(a, &f, c + ct);
    const double sum = squares(a, c) * fs * fs - 2 * squares(a + c, ct) * fs * ft;
    if (!f.gradient) return sum;
    multiply(a, (float)(f.by * fs * fs), c);
    multiply(a + c, -(float)(f.by * fs * ft), ct);
    return sum;
}

static double teacher_row(const kd_gram_distance_args *args, int64_t row)
{
    const int64_t ct = args->teacher_channels;
    const double ft = 1 / (double)ct;
    if (kd_list_at(args->weight, row / ct, 1) == 0) return 0;
    return squares(row_of(args->teacher, row), ct) * ft * ft;
}

/* ---- the op ----------------------------------------------------------------------------------- */

kd_status kd_gram_distance_cpu(kd_exec *exec, const kd_gram_distance_args *args)
{
    const kd_tensor *x = args->student;
    const int64_t samples = x->shape[0], rows = x->shape[1];
    const int64_t more = args->by_channel ? args->teacher_channels : 0;
    const bool parallel = kd_tensor_elements(x) > KD_PARALLEL_ABOVE;
    kd_tensor sums;
    KD_TRY(kd_push(&sums, exec, "gram_distance.sums", KD_I64, KD_SHAPE(samples, rows + more)));
    if (kd_planning(exec)) return KD_OK;
    double *sum = sums.data;
    float *loss = args->loss->data;
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < samples * (rows + more); i++) {
        const int64_t b = i / (rows + more), row = i % (rows + more);
        sum[i] = row >= rows        ? teacher_row(args, b * more + row - rows)
                 : args->by_channel ? channels_row(args, b * rows + row)
                                    : places_row(args, b * rows + row);
    }
    for (int64_t b = 0; b < samples; b++) {
        const double *own = sum + b * (rows + more), *other = own + rows;
        double value = 0, rest = 0; /* apart, so that equal sides leave 0 */
        for (int64_t i = 0; i < rows; i++) value += own[i];
        for (int64_t i = 0; i < more; i++) rest += other[i];
        value += rest;
        loss[b] = value < 0 ? 0 : (float)(value * (double)kd_list_at(args->weight, b, 1));
    }
    return KD_OK;
}
