/*
 * vid - how likely the teacher's feature maps are given the student's (Ahn et al., Variational Information
 * Distillation for Knowledge Transfer, CVPR 2019, eq. 5 to 7).
 *
 *     v_c        =  log(1 + exp(a_c)) + eps,  a = log_variance
 *     value_b    =  1 / (C S) sum_cs 1/2 ((x - t)^2 / v_c + log v_c)
 *     d / dx     =  (x - t) / (C S v_c)
 *     d / da_c   =  1 / (C S) sum_s 1/2 (1 / v_c - (x - t)^2 / v_c^2) / (1 + exp(-a_c))
 *
 * One sweep over the maps gives the sum of squares of each channel of each sample, and d / dx; the rest is of
 * B C numbers, in double.
 */
#include "ops/rowio.h"

#include <math.h>

kd_status kd_vid_check(const kd_vid_args *args)
{
    KD_TRY(kd_expect_rows(args->student, "student"));
    KD_TRY(kd_tensor_expect(args->student, "student", -1, KD_SHAPE(-1, -1, -1)));
    const kd_shape shape = kd_shape_of(args->student);
    KD_TRY(kd_expect_rows(args->teacher, "teacher"));
    KD_TRY(kd_tensor_expect(args->teacher, "teacher", -1, shape));
    KD_TRY(kd_expect_list(args->log_variance, "log_variance", KD_F32, shape.dim[1]));
    KD_TRY(kd_expect_list(args->loss, "loss", KD_F32, shape.dim[0]));
    if (kd_present(args->weight))
        KD_TRY(kd_expect_list(args->weight, "weight", KD_F32, shape.dim[0]));
    if (kd_present(args->d_student))
        KD_TRY(kd_expect_rows_of(args->d_student, "d_student", args->student->dtype, shape));
    if (kd_present(args->d_log_variance))
        KD_TRY(kd_expect_list(args->d_log_variance, "d_log_variance", KD_F32, shape.dim[1]));
    if (!(args->eps > 0 && args->eps < INFINITY))
        return kd_fail(KD_EINVAL, "eps is %g, expected a number above 0", (double)args->eps);
    return kd_present(args->d_student) || kd_present(args->d_log_variance)
               ? kd_expect_list(args->scale, "scale", KD_F32, 1)
               : KD_OK;
}

static double variance(const kd_vid_args *args, int64_t c)
{
    const double a = (double)kd_list_at(args->log_variance, c, 0);
    return fmax(a, 0) + log1p(exp(-fabs(a))) + (double)args->eps;
}

/* Sum of squared differences of one row; d += by times them. */
static double sweep(kd_row d, kd_row student, kd_row teacher, float by, int64_t n)
{
    float sb[KD_STRIP], tb[KD_STRIP], db[KD_STRIP];
    double total = 0;
    for (int64_t at = 0; at < n; at += KD_STRIP) {
        const int64_t m = kd_min_i64(KD_STRIP, n - at);
        const float *x = kd_row_load(sb, student, at, m), *t = kd_row_load(tb, teacher, at, m);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < m; i++) sum += (double)((x[i] - t[i]) * (x[i] - t[i]));
        total += sum;
        if (!d.data) continue;
        const float *before = kd_row_load(db, d, at, m);
        float *out = kd_row_begin(db, d, at);
#pragma omp simd
        for (int64_t i = 0; i < m; i++) out[i] = before[i] + by * (x[i] - t[i]);
        kd_row_finish(d, at, out, m);
    }
    return total;
}

static void sweep_all(double *sum, const kd_vid_args *args)
{
    const kd_tensor *x = args->student;
    const int64_t channels = x->shape[1], places = x->shape[2], rows = x->shape[0] * channels;
    const double share = 1 / ((double)channels * (double)places);
#pragma omp parallel for schedule(static) if (kd_tensor_elements(x) > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        const double weight = (double)kd_list_at(args->weight, r / channels, 1);
        const double scale = (double)kd_list_at(args->scale, 0, 0);
        const float by = (float)(scale * weight * share / variance(args, r % channels));
        sum[r] = weight == 0 ? 0
                             : sweep(kd_row_of(args->d_student, r), kd_row_of(x, r),
                                     kd_row_of(args->teacher, r), by, places);
    }
}

static double value_of(const double *sum, const kd_vid_args *args)
{
    const int64_t channels = args->student->shape[1];
    const double places = (double)args->student->shape[2];
    double value = 0;
    for (int64_t c = 0; c < channels; c++) {
        const double v = variance(args, c);
        value += (sum[c] / v + places * log(v)) / 2;
    }
    return value;
}

static double slope_of(const double *sum, const kd_vid_args *args, int64_t c)
{
    const int64_t samples = args->student->shape[0], channels = args->student->shape[1];
    const double places = (double)args->student->shape[2], v = variance(args, c);
    double slope = 0;
    for (int64_t b = 0; b < samples; b++) {
        const double weight = (double)kd_list_at(args->weight, b, 1);
        slope += weight * (places - sum[b * channels + c] / v) / v / 2;
    }
    return slope / (1 + exp(-(double)kd_list_at(args->log_variance, c, 0)));
}

kd_status kd_vid_cpu(kd_exec *exec, const kd_vid_args *args)
{
    const int64_t samples = args->student->shape[0], channels = args->student->shape[1];
    const double elements = (double)channels * (double)args->student->shape[2];
    const double share = elements > 0 ? 1 / elements : 0; /* an empty map has value 0 */
    kd_tensor sums;
    KD_TRY(kd_push(&sums, exec, "vid.sums", KD_I64, KD_SHAPE(samples, channels)));
    if (kd_planning(exec)) return KD_OK;
    double *sum = sums.data;
    float *loss = args->loss->data;
    sweep_all(sum, args);
    for (int64_t b = 0; b < samples; b++) {
        const double weight = (double)kd_list_at(args->weight, b, 1);
        loss[b] = weight == 0 ? 0 : (float)(weight * share * value_of(sum + b * channels, args));
    }
    if (!kd_present(args->d_log_variance)) return KD_OK;
    float *d = args->d_log_variance->data;
    const double scale = (double)kd_list_at(args->scale, 0, 0);
    for (int64_t c = 0; c < channels; c++) d[c] += (float)(scale * share * slope_of(sum, args, c));
    return KD_OK;
}
