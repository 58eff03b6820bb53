/*
 * contrast - rows told from others by noise-contrastive estimation, over a bank of rows.
 *
 *     v = x / |x|,  s_k = M[i_k] v / T,  a_k = s_k - log Z - log(c + eps),  c = K / n
 *     i_0 = samples[b], i_1 ... i_K = negatives[b]
 *     value     softplus(-a_0) + sum_k softplus(a_k) + K log(1 + eps / c)
 *     d / d v   (1 / T) (-sigmoid(-a_0) M[i_0] + sum_k sigmoid(a_k) M[i_k])
 *     d / d x   (dv - v (v dv)) / |x|
 *
 * which is -log(p_0 / (p_0 + c + eps)) - sum_k log(c / (p_k + c + eps)) with p = exp(s) / Z and overflows
 * nowhere.  A row of x no longer than 1e-12 is dead: v is 0 and gets no gradient.  contrast_partition:
 *     Z = n sum exp(s) / (how many), over rows of weight other than 0, where it was 0 and the sum is finite
 * renew_rows:
 *     M[samples[b]] = u / |u|,  u = m M[samples[b]] + (1 - m) v; u of length 0 stays as it is
 *
 * One pass over the gathered rows, CHUNK at a time, gives value and gradient while they are in the
 * first-level cache: a row of the bank comes from memory once.  Threads share the batch, so the bits do
 * not depend on their number.
 */
#include "ops/rowio.h"
#include "ops/vmath.h"

#include <math.h>

static const double dead = 1e-12;
enum { CHUNK = 32 };

/* ---- checks ----------------------------------------------------------------------------------- */

static kd_status check_rows(const kd_tensor *x, const kd_tensor *bank, const kd_tensor *samples,
                            const kd_tensor *weight)
{
    KD_TRY(kd_expect_rows(x, "x"));
    KD_TRY(kd_tensor_expect(x, "x", -1, KD_SHAPE(-1, -1)));
    KD_TRY(kd_expect_rows_of(bank, "bank", KD_F32, KD_SHAPE(-1, x->shape[1])));
    if (bank->shape[0] < 1 || bank->shape[0] > INT32_MAX)
        return kd_fail(KD_EINVAL, "bank: found %lld rows, expected 1 to %d",
                       (long long)bank->shape[0], INT32_MAX);
    KD_TRY(kd_expect_list(samples, "samples", KD_I32, x->shape[0]));
    return kd_present(weight) ? kd_expect_list(weight, "weight", KD_F32, x->shape[0]) : KD_OK;
}

static kd_status check_scores(const kd_tensor *x, const kd_tensor *negatives,
                              const kd_tensor *partition, float temperature, int64_t side)
{
    if (x->shape[1] < 1 || x->shape[1] > KD_MAX_CONTRAST)
        return kd_fail(KD_EINVAL, "x: found %lld columns, expected 1 to %d", (long long)x->shape[1],
                       KD_MAX_CONTRAST);
    KD_TRY(kd_tensor_expect(negatives, "negatives", (int)KD_I32, KD_SHAPE(x->shape[0], -1)));
    KD_TRY(kd_expect_list(negatives, "negatives", KD_I32, kd_tensor_elements(negatives)));
    if (negatives->shape[1] < 1)
        return kd_fail(KD_EINVAL, "negatives: found none, expected 1 or more");
    if (!kd_present(partition)) return kd_fail(KD_EINVAL, "partition: absent");
    KD_TRY(kd_expect_list(partition, "partition", KD_F32, kd_tensor_elements(partition)));
    if (side < 0 || side >= kd_tensor_elements(partition))
        return kd_fail(KD_EINVAL, "side: found %lld, expected 0 to %lld", (long long)side,
                       (long long)kd_tensor_elements(partition) - 1);
    if (temperature >= 0.02f && temperature < INFINITY) return KD_OK; /* exp(1 / T) is an f32 */
    return kd_fail(KD_EINVAL, "temperature: found %g, expected 0.02 or more", (double)temperature);
}

kd_status kd_contrast_check(const kd_contrast_args *args)
{
    KD_TRY(check_rows(args->x, args->bank, args->samples, args->weight));
    KD_TRY(check_scores(args->x, args->negatives, args->partition, args->temperature, args->side));
    KD_TRY(kd_expect_list(args->loss, "loss", KD_F32, args->x->shape[0]));
    if (!(args->eps >= 0 && args->eps < INFINITY))
        return kd_fail(KD_EINVAL, "eps: found %g, expected a number from 0 on", (double)args->eps);
    if (!kd_present(args->dx)) return KD_OK;
    KD_TRY(kd_expect_rows_of(args->dx, "dx", args->x->dtype, kd_shape_of(args->x)));
    return kd_expect_list(args->scale, "scale", KD_F32, 1);
}

kd_status kd_contrast_partition_check(const kd_contrast_partition_args *args)
{
    KD_TRY(check_rows(args->x, args->bank, args->samples, args->weight));
    return check_scores(args->x, args->negatives, args->partition, args->temperature, args->side);
}

kd_status kd_renew_rows_check(const kd_renew_rows_args *args)
{
    KD_TRY(check_rows(args->x, args->bank, args->samples, args->weight));
    if (args->momentum >= 0 && args->momentum <= 1) return KD_OK;
    return kd_fail(KD_EINVAL, "momentum: found %g, expected 0 to 1", (double)args->momentum);
}

/* Ids of rows that count. */
static kd_status check_ids(const kd_tensor *ids, const char *what, const kd_tensor *weight,
                           int64_t n)
{
    const int64_t rows = ids->shape[0], each = ids->rank > 1 ? ids->shape[1] : 1;
    for (int64_t b = 0; b < rows; b++) {
        if (kd_list_at(weight, b, 1) == 0) continue;
        const kd_tensor row = kd_tensor_slice(ids, 0, b, 1);
        if (kd_expect_ids(&row, what, 0, n) == KD_OK) continue;
        const int32_t *id = row.data;
        int64_t k = 0;
        while (k < each && id[k] >= 0 && id[k] < n) k++;
        return kd_fail(KD_EINVAL, "%s of row %lld: %d, expected 0 to %lld", what, (long long)b,
                       (int)id[k], (long long)n - 1);
    }
    return KD_OK;
}

/* ---- one row ---------------------------------------------------------------------------------- */

/* What both scoring ops say of the bank. */
typedef struct gather {
    const kd_tensor *x, *bank, *samples, *negatives, *weight;
    float per_temperature;
} gather;

static const float *bank_row(const gather *g, int64_t b, int64_t k)
{
    const int64_t negatives = g->negatives->shape[1];
    const int32_t id = k == 0 ? ((const int32_t *)g->samples->data)[b]
                              : ((const int32_t *)g->negatives->data)[b * negatives + k - 1];
    return kd_row_of(g->bank, id).data;
}

/* v = x[b] / |x[b]|; 1 / |x[b]|, or 0 of a dead row. */
static float embed(float *v, const kd_tensor *x, int64_t b)
{
    const int64_t columns = x->shape[1];
    const kd_row row = kd_row_of(x, b);
    const double length = sqrt(kd_row_dot(row, row, columns));
    const float factor = length <= dead ? 0.0f : (float)(1 / length); /* NaN is not dead */
    float buffer[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *from = kd_row_load(buffer, row, at, n);
        for (int64_t i = 0; i < n; i++) v[at + i] = from[i] * factor;
    }
    return factor;
}

/* Rows k to k + n of the gather, and their scores s. */
static void score(const float *row[CHUNK], float s[CHUNK], const gather *g, int64_t b, int64_t k,
                  int64_t n, const float *restrict v)
{
    const int64_t columns = g->x->shape[1];
    for (int64_t j = 0; j < n; j++) row[j] = bank_row(g, b, k + j);
    for (int64_t j = 0; j < n; j++) {
        const float *restrict m = row[j];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < columns; i++) sum += m[i] * v[i];
        s[j] = sum * g->per_temperature;
    }
}

/* ---- scores and gradients --------------------------------------------------------------------- */

/* log(1 + x) within 4 ulp for x in [0, 1]: the rounding of 1 + x is taken back. */
static inline float log_of_1_and(float x)
{
    const float u = 1 + x, d = u - 1;
    return d == 0 ? x : kd_vlogf(u) * x / d;
}

/* s becomes what each row's share of d / d v is, before 1 / T; the sum of the values.  `positive`: the
 * first is i_0. */
static float judge(float s[CHUNK], int64_t n, float offset, bool positive)
{
    float value[CHUNK], sum = 0;
    for (int64_t j = 0; j < n; j++) s[j] -= offset;
    if (positive) s[0] = -s[0];
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const float a = s[j], e = kd_vexpf(-fabsf(a)), low = e / (1 + e);
        value[j] = (a > 0 ? a : 0) + log_of_1_and(e);
        s[j] = a > 0 ? 1 - low : low;
    }
    if (positive) s[0] = -s[0];
    for (int64_t j = 0; j < n; j++) sum += value[j];
    return sum;
}

/* d += sum of share_j row_j, four rows at a time. */
static void add_rows(float *restrict d, const float *const *row, const float *share, int64_t n,
                     int64_t columns)
{
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
        const float *restrict m0 = row[j], *restrict m1 = row[j + 1], *restrict m2 = row[j + 2],
                              *restrict m3 = row[j + 3];
        const float s0 = share[j], s1 = share[j + 1], s2 = share[j + 2], s3 = share[j + 3];
#pragma omp simd
        for (int64_t i = 0; i < columns; i++)
            d[i] += (s0 * m0[i] + s1 * m1[i]) + (s2 * m2[i] + s3 * m3[i]);
    }
    for (; j < n; j++)
        for (int64_t i = 0; i < columns; i++) d[i] += share[j] * row[j][i];
}

/* dx += by (dv - v (v dv)) */
static void add_gradient(kd_row dx, const float *v, const float *dv, float by, int64_t columns)
{
    float before[KD_STRIP], after[KD_STRIP];
    double along = 0;
    for (int64_t i = 0; i < columns; i++) along += (double)v[i] * (double)dv[i];
    const float back = (float)along;
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *from = kd_row_load(before, dx, at, n);
        float *to = kd_row_begin(after, dx, at);
        for (int64_t i = 0; i < n; i++) to[i] = from[i] + by * (dv[at + i] - v[at + i] * back);
        kd_row_finish(dx, at, to, n);
    }
}

static gather gather_of(const kd_contrast_args *args)
{
    return (gather){ args->x,         args->bank,   args->samples,
                     args->negatives, args->weight, 1 / args->temperature };
}

static void contrast_row(const kd_contrast_args *args, int64_t b, float weight, double c)
{
    const gather g = gather_of(args);
    const int64_t columns = args->x->shape[1], entries = args->negatives->shape[1] + 1;
    const float offset = (float)(log((double)kd_list_at(args->partition, args->side, 0)) +
                                 log(c + (double)args->eps));
    float v[KD_MAX_CONTRAST], dv[KD_MAX_CONTRAST] = { 0 };
    const float factor = embed(v, args->x, b);
    double value = (double)(entries - 1) * log1p((double)args->eps / c);
    for (int64_t k = 0; k < entries; k += CHUNK) {
        const float *row[CHUNK];
        float share[CHUNK];
        const int64_t n = kd_min_i64(CHUNK, entries - k);
        score(row, share, &g, b, k, n, v);
        value += (double)judge(share, n, offset, k == 0);
        if (kd_present(args->dx)) add_rows(dv, row, share, n, columns);
    }
    ((float *)args->loss->data)[b] += (float)(weight * value);
    if (kd_present(args->dx) && factor != 0)
        add_gradient(kd_row_of(args->dx, b), v, dv,
                     *(const float *)args->scale->data * weight * g.per_temperature * factor,
                     columns);
}

kd_status kd_contrast_cpu(kd_exec *exec, const kd_contrast_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->x->shape[0], n = args->bank->shape[0];
    const double c = (double)args->negatives->shape[1] / (double)n;
    KD_TRY(check_ids(args->samples, "samples", args->weight, n));
    KD_TRY(check_ids(args->negatives, "negatives", args->weight, n));
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t b = 0; b < rows; b++) {
        const float weight = kd_list_at(args->weight, b, 1);
        if (weight != 0) contrast_row(args, b, weight, c);
    }
    return KD_OK;
}

/* ---- the partition ---------------------------------------------------------------------------- */

static double sum_of_exponents(const gather *g, int64_t b)
{
    const int64_t entries = g->negatives->shape[1] + 1;
    float v[KD_MAX_CONTRAST];
    double sum = 0;
    (void)embed(v, g->x, b);
    for (int64_t k = 0; k < entries; k += CHUNK) {
        const float *row[CHUNK];
        float s[CHUNK], part = 0;
        const int64_t n = kd_min_i64(CHUNK, entries - k);
        score(row, s, g, b, k, n, v);
        for (int64_t j = 0; j < n; j++) part += kd_vexpf(s[j]);
        sum += (double)part;
    }
    return sum;
}

kd_status kd_contrast_partition_cpu(kd_exec *exec, const kd_contrast_partition_args *args)
{
    const int64_t rows = args->x->shape[0], n = args->bank->shape[0];
    const gather g = { args->x,         args->bank,   args->samples,
                       args->negatives, args->weight, 1 / args->temperature };
    kd_tensor sums;
    KD_TRY(kd_push(&sums, exec, "contrast.sums", KD_F32, KD_SHAPE(rows)));
    if (kd_planning(exec)) return KD_OK;
    float *z = (float *)args->partition->data + args->side, *sum = sums.data;
    if (*z != 0) return KD_OK;
    KD_TRY(check_ids(args->samples, "samples", args->weight, n));
    KD_TRY(check_ids(args->negatives, "negatives", args->weight, n));
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t b = 0; b < rows; b++)
        sum[b] = kd_list_at(args->weight, b, 1) != 0 ? (float)sum_of_exponents(&g, b) : 0;
    double total = 0, counted = 0;
    for (int64_t b = 0; b < rows; b++) {
        if (kd_list_at(args->weight, b, 1) == 0) continue;
        total += (double)sum[b];
        counted += (double)(args->negatives->shape[1] + 1);
    }
    const float found = (float)(total / counted * (double)n);
    if (found > 0 && found < INFINITY) *z = found;
    return KD_OK;
}

/* ---- the bank --------------------------------------------------------------------------------- */

/* Whether a later row that counts has the same sample. */
static bool superseded(const int32_t *sample, const kd_tensor *weight, int64_t b, int64_t rows)
{
    for (int64_t later = b + 1; later < rows; later++)
        if (sample[later] == sample[b] && kd_list_at(weight, later, 1) != 0) return true;
    return false;
}

static void renew_row(float *m, const kd_tensor *x, int64_t b, float momentum)
{
    const int64_t columns = x->shape[1];
    const kd_row row = kd_row_of(x, b);
    const double length = sqrt(kd_row_dot(row, row, columns));
    const float share = length <= dead ? 0.0f : (float)((1 - (double)momentum) / length);
    float buffer[KD_STRIP];
    double squares = 0;
    for (int pass = 0; pass < 2; pass++) { /* its length, then itself */
        const float by = pass ? (float)(1 / sqrt(squares)) : 0.0f;
        if (pass && !(squares > 0 && squares < (double)INFINITY)) return;
        for (int64_t at = 0; at < columns; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, columns - at);
            const float *from = kd_row_load(buffer, row, at, n);
            for (int64_t i = 0; i < n; i++) {
                const float u = momentum * m[at + i] + share * from[i];
                if (pass)
                    m[at + i] = u * by;
                else
                    squares += (double)u * (double)u;
            }
        }
    }
}

kd_status kd_renew_rows_cpu(kd_exec *exec, const kd_renew_rows_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->x->shape[0];
    const int32_t *sample = args->samples->data;
    KD_TRY(check_ids(args->samples, "samples", args->weight, args->bank->shape[0]));
#pragma omp parallel for schedule(static) if (kd_tensor_elements(args->x) > KD_PARALLEL_ABOVE)
    for (int64_t b = 0; b < rows; b++)
        if (kd_list_at(args->weight, b, 1) != 0 && !superseded(sample, args->weight, b, rows))
            renew_row(kd_row_of(args->bank, sample[b]).data, args->x, b, args->momentum);
    return KD_OK;
}
