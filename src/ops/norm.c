/*
 * norm - RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) over rows of D elements.
 *
 *     s    = x + residual, rounded to the element type; s = x without a residual
 *     mean = sum_j s_j / D                       (LayerNorm; 0 in RMSNorm)
 *     rstd = 1 / sqrt(sum_j (s_j - mean)^2 / D + eps)
 *     h_j  = (s_j - mean) * rstd
 *     y_j  = h_j * weight_j + bias_j             (bias: LayerNorm)
 *
 * Backward, with g_j = dy_j * weight_j:
 *
 *     dx_j      = rstd * (g_j - sum_k g_k / D - h_j * sum_k g_k h_k / D) + add_j
 *     dweight_j += sum over rows of dy_j h_j     dbias_j += sum over rows of dy_j
 *
 * where RMSNorm lacks the term sum_k g_k / D.  The variance is summed after the mean is known: the
 * difference of two large sums would lose the digits that an outlier channel needs.  One strip is
 * summed in f32, strips in double.  The gradients of the parameters are summed over fixed blocks of
 * rows, then over the blocks in order, so their bits do not depend on the number of threads.
 */
#include "ops/rowio.h"

#include <math.h>

/* Both norms; absent tensors tell them apart. */
typedef struct norm {
    const kd_tensor *y, *mean, *rstd, *sum;
    const kd_tensor *x, *residual, *weight, *bias;
    double eps;
} norm;

typedef struct norm_backward {
    const kd_tensor *dx, *dweight, *dbias;
    const kd_tensor *dy, *x, *mean, *rstd, *weight, *add;
    kd_tensor dweight_blocks, dbias_blocks; /* f32 [blocks, D]; absent with their tensors */
} norm_backward;

static float statistic(const kd_tensor *t, int64_t row)
{
    return kd_present(t) ? ((const float *)t->data)[row] : 0;
}

/* ---- forward ---------------------------------------------------------------------------------- */

static void add_rows(kd_row sum, kd_row x, kd_row residual, int64_t columns)
{
    float xb[KD_STRIP], rb[KD_STRIP], sb[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *a = kd_row_load(xb, x, at, n), *b = kd_row_load(rb, residual, at, n);
        float *s = kd_row_begin(sb, sum, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) s[i] = a[i] + b[i];
        kd_row_finish(sum, at, s, n);
    }
}

static float mean_of(kd_row x, int64_t columns)
{
    float buffer[KD_STRIP];
    double total = 0;
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *v = kd_row_load(buffer, x, at, n);
        float strip = 0;
#pragma omp simd reduction(+ : strip)
        for (int64_t i = 0; i < n; i++) strip += v[i];
        total += strip;
    }
    return (float)(total / (double)columns);
}

static float rstd_of(kd_row x, float mean, int64_t columns, double eps)
{
    float buffer[KD_STRIP];
    double total = 0;
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *v = kd_row_load(buffer, x, at, n);
        float strip = 0;
#pragma omp simd reduction(+ : strip)
        for (int64_t i = 0; i < n; i++) strip += (v[i] - mean) * (v[i] - mean);
        total += strip;
    }
    return (float)(1 / sqrt(total / (double)columns + eps));
}

static void normalise(const norm *a, int64_t row, kd_row x, float mean, float rstd)
{
    const int64_t columns = kd_tensor_columns(a->x);
    const kd_row y = kd_row_of(a->y, row);
    const kd_row weight = kd_row_of(a->weight, 0), bias = kd_row_of(a->bias, 0);
    float xb[KD_STRIP], wb[KD_STRIP], bb[KD_STRIP], yb[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *v = kd_row_load(xb, x, at, n), *w = kd_row_load(wb, weight, at, n);
        const float *b = kd_row_load(bb, bias, at, n);
        float *out = kd_row_begin(yb, y, at);
        if (b) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) out[i] = (v[i] - mean) * rstd * w[i] + b[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) out[i] = (v[i] - mean) * rstd * w[i];
        }
        kd_row_finish(y, at, out, n);
    }
}

static kd_status check_forward(const norm *a)
{
    KD_TRY(kd_expect_rows(a->x, "x"));
    const kd_shape shape = kd_shape_of(a->x);
    const kd_dtype dtype = a->x->dtype;
    const int64_t columns = kd_tensor_columns(a->x);
    KD_TRY(kd_expect_rows_of(a->y, "y", dtype, shape));
    KD_TRY(kd_expect_rows_of(a->weight, "weight", dtype, KD_SHAPE(columns)));
    KD_TRY(kd_expect_list(a->rstd, "rstd", KD_F32, kd_tensor_rows(a->x)));
    if (kd_present(a->residual) != kd_present(a->sum))
        return kd_fail(KD_EINVAL, "%s is absent, expected sum and residual together or neither",
                       kd_present(a->sum) ? "residual" : "sum");
    if (!kd_present(a->sum)) return KD_OK;
    KD_TRY(kd_expect_rows_of(a->residual, "residual", dtype, shape));
    return kd_expect_rows_of(a->sum, "sum", dtype, shape);
}

static void forward(const norm *a)
{
    const int64_t rows = kd_tensor_rows(a->x), columns = kd_tensor_columns(a->x);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        kd_row x = kd_row_of(a->x, row);
        if (kd_present(a->sum)) {
            const kd_row sum = kd_row_of(a->sum, row);
            add_rows(sum, x, kd_row_of(a->residual, row), columns);
            x = sum;
        }
        const float mean = kd_present(a->mean) ? mean_of(x, columns) : 0;
        const float rstd = rstd_of(x, mean, columns, a->eps);
        if (kd_present(a->mean)) ((float *)a->mean->data)[row] = mean;
        ((float *)a->rstd->data)[row] = rstd;
        normalise(a, row, x, mean, rstd);
    }
}

static norm rms_norm_of(const kd_rms_norm_args *args)
{
    return (norm){ .y = args->y,
                   .rstd = args->rstd,
                   .sum = args->sum,
                   .x = args->x,
                   .residual = args->residual,
                   .weight = args->weight,
                   .eps = args->eps };
}

kd_status kd_rms_norm_check(const kd_rms_norm_args *args)
{
    const norm a = rms_norm_of(args);
    return check_forward(&a);
}

kd_status kd_rms_norm_cpu(kd_exec *exec, const kd_rms_norm_args *args)
{
    const norm a = rms_norm_of(args);
    if (!kd_planning(exec)) forward(&a);
    return KD_OK;
}

static norm layer_norm_of(const kd_layer_norm_args *args)
{
    return (norm){ .y = args->y,
                   .mean = args->mean,
                   .rstd = args->rstd,
                   .sum = args->sum,
                   .x = args->x,
                   .residual = args->residual,
                   .weight = args->weight,
                   .bias = args->bias,
                   .eps = args->eps };
}

kd_status kd_layer_norm_check(const kd_layer_norm_args *args)
{
    const norm a = layer_norm_of(args);
    KD_TRY(check_forward(&a));
    KD_TRY(kd_expect_list(a.mean, "mean", KD_F32, kd_tensor_rows(a.x)));
    return kd_expect_rows_of(a.bias, "bias", a.x->dtype, KD_SHAPE(kd_tensor_columns(a.x)));
}

kd_status kd_layer_norm_cpu(kd_exec *exec, const kd_layer_norm_args *args)
{
    const norm a = layer_norm_of(args);
    if (!kd_planning(exec)) forward(&a);
    return KD_OK;
}

/* ---- backward --------------------------------------------------------------------------------- */

/* The two means of a row: of g and of g * h. */
static void gradient_means(float *mean_g, float *mean_gh, const norm_backward *a, int64_t row,
                           float mean, float rstd)
{
    const int64_t columns = kd_tensor_columns(a->x);
    const kd_row x = kd_row_of(a->x, row), dy = kd_row_of(a->dy, row);
    const kd_row weight = kd_row_of(a->weight, 0);
    float xb[KD_STRIP], gb[KD_STRIP], wb[KD_STRIP];
    double total_g = 0, total_gh = 0;
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *v = kd_row_load(xb, x, at, n), *w = kd_row_load(wb, weight, at, n);
        const float *d = kd_row_load(gb, dy, at, n);
        float strip_g = 0, strip_gh = 0;
#pragma omp simd reduction(+ : strip_g, strip_gh)
        for (int64_t i = 0; i < n; i++) {
            const float g = d[i] * w[i];
            strip_g += g;
            strip_gh += g * ((v[i] - mean) * rstd);
        }
        total_g += strip_g;
        total_gh += strip_gh;
    }
    *mean_g = kd_present(a->mean) ? (float)(total_g / (double)columns) : 0;
    *mean_gh = (float)(total_gh / (double)columns);
}

/* dx of one row, and its share of the block's sums (either may be NULL). */
static void backward_row(const norm_backward *a, int64_t row, float *dweight, float *dbias)
{
    const int64_t columns = kd_tensor_columns(a->x);
    const kd_row x = kd_row_of(a->x, row), dy = kd_row_of(a->dy, row), dx = kd_row_of(a->dx, row);
    const kd_row weight = kd_row_of(a->weight, 0), add = kd_row_of(a->add, row);
    const float mean = statistic(a->mean, row), rstd = statistic(a->rstd, row);
    float mean_g, mean_gh;
    gradient_means(&mean_g, &mean_gh, a, row, mean, rstd);

    float xb[KD_STRIP], gb[KD_STRIP], wb[KD_STRIP], ab[KD_STRIP], ob[KD_STRIP], h[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *v = kd_row_load(xb, x, at, n), *w = kd_row_load(wb, weight, at, n);
        const float *d = kd_row_load(gb, dy, at, n), *plus = kd_row_load(ab, add, at, n);
        float *out = kd_row_begin(ob, dx, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) h[i] = (v[i] - mean) * rstd;
        if (dweight) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) dweight[at + i] += d[i] * h[i];
        }
        if (dbias) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) dbias[at + i] += d[i];
        }
        if (plus) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++)
                out[i] = rstd * (d[i] * w[i] - mean_g - h[i] * mean_gh) + plus[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) out[i] = rstd * (d[i] * w[i] - mean_g - h[i] * mean_gh);
        }
        kd_row_finish(dx, at, out, n);
    }
}

int64_t kd_rows_per_block(int64_t rows) { return kd_max_i64(16, kd_ceil_div(rows, 64)); }

void kd_add_blocks(const kd_tensor *y, const kd_tensor *blocks)
{
    if (!kd_present(blocks)) return;
    const int64_t count = blocks->shape[0], columns = blocks->shape[1];
    const float *from = blocks->data;
    float *to = y->data;
#pragma omp parallel for schedule(static) if (count * columns > KD_PARALLEL_ABOVE)
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        double total[KD_STRIP] = { 0 };
        for (int64_t b = 0; b < count; b++)
#pragma omp simd
            for (int64_t i = 0; i < n; i++) total[i] += from[b * columns + at + i];
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[at + i] = (float)(to[at + i] + total[i]);
    }
}

kd_status kd_push_blocks(kd_tensor *blocks, kd_exec *exec, const char *name, const kd_tensor *y,
                         int64_t rows)
{
    *blocks = (kd_tensor){ 0 };
    if (!kd_present(y)) return KD_OK;
    const int64_t count = kd_ceil_div(rows, kd_rows_per_block(rows));
    return kd_push(blocks, exec, name, KD_F32, KD_SHAPE(count, kd_tensor_elements(y)));
}

float *kd_block_of(const kd_tensor *blocks, int64_t block)
{
    if (!kd_present(blocks)) return NULL;
    float *row = (float *)blocks->data + block * blocks->shape[1];
    memset(row, 0, (size_t)blocks->shape[1] * sizeof *row);
    return row;
}

static void backward(const norm_backward *a)
{
    const int64_t rows = kd_tensor_rows(a->x), columns = kd_tensor_columns(a->x);
    const int64_t height = kd_rows_per_block(rows), blocks = kd_ceil_div(rows, height);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t block = 0; block < blocks; block++) {
        float *dweight = kd_block_of(&a->dweight_blocks, block);
        float *dbias = kd_block_of(&a->dbias_blocks, block);
        const int64_t end = kd_min_i64(rows, (block + 1) * height);
        for (int64_t row = block * height; row < end; row++) backward_row(a, row, dweight, dbias);
    }
    kd_add_blocks(a->dweight, &a->dweight_blocks);
    kd_add_blocks(a->dbias, &a->dbias_blocks);
}

static kd_status check_backward(const norm_backward *a)
{
    KD_TRY(kd_expect_rows(a->x, "x"));
    const kd_shape shape = kd_shape_of(a->x);
    const kd_dtype dtype = a->x->dtype;
    const int64_t columns = kd_tensor_columns(a->x);
    KD_TRY(kd_expect_rows_of(a->dx, "dx", dtype, shape));
    KD_TRY(kd_expect_rows_of(a->dy, "dy", dtype, shape));
    KD_TRY(kd_expect_rows_of(a->weight, "weight", dtype, KD_SHAPE(columns)));
    KD_TRY(kd_expect_list(a->rstd, "rstd", KD_F32, kd_tensor_rows(a->x)));
    if (kd_present(a->add)) KD_TRY(kd_expect_rows_of(a->add, "add", dtype, shape));
    if (kd_present(a->dweight)) KD_TRY(kd_expect_list(a->dweight, "dweight", KD_F32, columns));
    if (kd_present(a->dbias)) KD_TRY(kd_expect_list(a->dbias, "dbias", KD_F32, columns));
    return KD_OK;
}

static kd_status run_backward(kd_exec *exec, norm_backward *a)
{
    const int64_t rows = kd_tensor_rows(a->x);
    KD_TRY(kd_push_blocks(&a->dweight_blocks, exec, "norm.dweight_blocks", a->dweight, rows));
    KD_TRY(kd_push_blocks(&a->dbias_blocks, exec, "norm.dbias_blocks", a->dbias, rows));
    if (!kd_planning(exec)) backward(a);
    return KD_OK;
}

static norm_backward rms_norm_backward_of(const kd_rms_norm_backward_args *args)
{
    return (norm_backward){ .dx = args->dx,
                            .dweight = args->dweight,
                            .dy = args->dy,
                            .x = args->x,
                            .rstd = args->rstd,
                            .weight = args->weight,
                            .add = args->add };
}

kd_status kd_rms_norm_backward_check(const kd_rms_norm_backward_args *args)
{
    const norm_backward a = rms_norm_backward_of(args);
    return check_backward(&a);
}

kd_status kd_rms_norm_backward_cpu(kd_exec *exec, const kd_rms_norm_backward_args *args)
{
    norm_backward a = rms_norm_backward_of(args);
    return run_backward(exec, &a);
}

static norm_backward layer_norm_backward_of(const kd_layer_norm_backward_args *args)
{
    return (norm_backward){ .dx = args->dx,
                            .dweight = args->dweight,
                            .dbias = args->dbias,
                            .dy = args->dy,
                            .x = args->x,
                            .mean = args->mean,
                            .rstd = args->rstd,
                            .weight = args->weight,
                            .add = args->add };
}

kd_status kd_layer_norm_backward_check(const kd_layer_norm_backward_args *args)
{
    const norm_backward a = layer_norm_backward_of(args);
    KD_TRY(check_backward(&a));
    return kd_expect_list(a.mean, "mean", KD_F32, kd_tensor_rows(a.x));
}

kd_status kd_layer_norm_backward_cpu(kd_exec *exec, const kd_layer_norm_backward_args *args)
{
    norm_backward a = layer_norm_backward_of(args);
    return run_backward(exec, &a);
}
