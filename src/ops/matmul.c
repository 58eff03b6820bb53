/*
 * y[m,n] = sum_k a[m,k] b[k,n] + bias[n], and y += a b, and pre = a b + bias with y = gelu(pre); and a batch
 * of small y = a b at once, where one by one they would leave threads or multiprocessors without work.
 *
 * A layer y = x W' with W [N,K] reads W with exchanged strides; its backward pass is dx = dy W and
 * dW += dy' x.  No form copies or transposes a matrix first: the library packs panels as it goes.
 * For a single row that would move W three times: there y[n] is the dot product of x and W[n], in an
 * order that K alone decides.  Of y = a a' only stripes from the diagonal on are computed, and mirrored.
 */
#include "ops/rowio.h"

#include <stdalign.h>

static kd_status check_dtype(const kd_tensor *t, const char *what, kd_dtype first, kd_dtype second)
{
    if (t->dtype == first || t->dtype == second) return KD_OK;
    return kd_fail(KD_ENOTSUP, "%s: %s, expected %s%s%s", what, kd_dtype_name(t->dtype),
                   kd_dtype_name(first), first == second ? "" : " or ",
                   first == second ? "" : kd_dtype_name(second));
}

static kd_status check(const kd_tensor *y, const kd_tensor *a, const kd_tensor *b)
{
    KD_TRY(kd_tensor_expect(a, "a", -1, KD_SHAPE(-1, -1)));
    KD_TRY(kd_tensor_expect(b, "b", -1, KD_SHAPE(a->shape[1], -1)));
    KD_TRY(kd_tensor_expect(y, "y", -1, KD_SHAPE(a->shape[0], b->shape[1])));
    KD_TRY(check_dtype(a, "a", KD_F32, KD_BF16));
    KD_TRY(check_dtype(b, "b", a->dtype, a->dtype));
    return check_dtype(y, "y", KD_F32, a->dtype);
}

kd_status kd_matmul_check(const kd_matmul_args *args)
{
    KD_TRY(check(args->y, args->a, args->b));
    if (!kd_present(args->bias)) return KD_OK;
    KD_TRY(kd_tensor_expect(args->bias, "bias", -1, KD_SHAPE(args->y->shape[1])));
    KD_TRY(check_dtype(args->bias, "bias", KD_F32, args->a->dtype));
    if (args->bias->shape[0] > 1 && args->bias->stride[0] != 1)
        return kd_fail(KD_EINVAL, "bias: stride %lld, expected 1",
                       (long long)args->bias->stride[0]);
    return KD_OK;
}

/* ---- one row ---------------------------------------------------------------------------------- */

enum { LANES = 64 };

static bool is_one_row(const kd_matmul_args *args)
{
    const kd_tensor *a = args->a, *b = args->b;
    return a->shape[0] == 1 && a->shape[1] > 0 && a->stride[1] == 1 && b->stride[0] == 1;
}

static float sum_lanes(float *restrict lane)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

static float dot_f32(const float *restrict w, const float *restrict x, int64_t k)
{
    alignas(64) float lane[LANES] = { 0 };
    int64_t at = 0;
    for (; at + LANES <= k; at += LANES)
        for (int i = 0; i < LANES; i++) lane[i] += w[at + i] * x[at + i];
    for (int i = 0; at + i < k; i++) lane[i] += w[at + i] * x[at + i];
    return sum_lanes(lane);
}

static float dot_bf16(const uint16_t *restrict w, const float *restrict x, int64_t k)
{
    alignas(64) float lane[LANES] = { 0 };
    int64_t at = 0;
    for (; at + LANES <= k; at += LANES)
        for (int i = 0; i < LANES; i++) lane[i] += kd_bf16_to_f32(w[at + i]) * x[at + i];
    for (int i = 0; at + i < k; i++) lane[i] += kd_bf16_to_f32(w[at + i]) * x[at + i];
    return sum_lanes(lane);
}

static float element(const kd_tensor *t, int64_t i)
{
    return t->dtype == KD_F32 ? ((const float *)t->data)[i]
                              : kd_bf16_to_f32(((const uint16_t *)t->data)[i]);
}

static kd_status one_row(kd_exec *exec, const kd_matmul_args *args)
{
    const kd_tensor *y = args->y, *b = args->b;
    const int64_t k = args->a->shape[1], n = b->shape[1];
    const bool biased = kd_present(args->bias), f32 = b->dtype == KD_F32;
    kd_tensor x = *args->a;
    if (!f32) KD_TRY(kd_push(&x, exec, "matmul.row", KD_F32, KD_SHAPE(k)));
    if (kd_planning(exec)) return KD_OK;
    if (!f32) KD_TRY(kd_convert(x.data, KD_F32, args->a->data, KD_BF16, k));
#pragma omp parallel for schedule(static) if (n * k > KD_PARALLEL_ABOVE)
    for (int64_t j = 0; j < n; j++) {
        const void *w = (const char *)b->data + j * b->stride[1] * (f32 ? 4 : 2);
        float value = f32 ? dot_f32(w, x.data, k) : dot_bf16(w, x.data, k);
        if (biased) value += element(args->bias, j);
        if (y->dtype == KD_F32)
            ((float *)y->data)[j * y->stride[1]] = value;
        else
            ((uint16_t *)y->data)[j * y->stride[1]] = kd_f32_to_bf16(value);
    }
    return KD_OK;
}

/* ---- a matrix and itself ---------------------------------------------------------------------- */

enum { STRIPE = 128, CORNER = 16 };

static bool is_gram(const kd_matmul_args *args)
{
    const kd_tensor *y = args->y, *a = args->a, *b = args->b;
    return a->data == b->data && a->shape[0] == b->shape[1] && a->stride[0] == b->stride[1] &&
           a->stride[1] == b->stride[0] && y->dtype == KD_F32 && y->stride[1] == 1 &&
           !kd_present(args->bias) && a->shape[0] >= 2 * STRIPE;
}

/* What is above the diagonal to below it, by blocks that the cache holds in both orders. */
static void mirror(const kd_tensor *y)
{
    const int64_t rows = y->shape[0], step = y->stride[0];
    float *data = y->data;
#pragma omp parallel for schedule(static, 1)
    for (int64_t to = 0; to < rows; to += CORNER)
        for (int64_t from = 0; from <= to; from += CORNER)
            for (int64_t i = to; i < kd_min_i64(to + CORNER, rows); i++)
                for (int64_t j = from; j < kd_min_i64(from + CORNER, i); j++)
                    data[i * step + j] = data[j * step + i];
}

static kd_status gram(kd_exec *exec, const kd_matmul_args *args)
{
    const int64_t rows = args->y->shape[0];
    for (int64_t at = 0; at < rows; at += STRIPE) {
        const int64_t n = kd_min_i64(STRIPE, rows - at);
        const kd_tensor own = kd_tensor_slice(args->y, 0, at, n);
        const kd_tensor y = kd_tensor_slice(&own, 1, at, rows - at);
        const kd_tensor a = kd_tensor_slice(args->a, 0, at, n);
        const kd_tensor b = kd_tensor_slice(args->b, 1, at, rows - at);
        KD_TRY(kd_dnn_matmul(kd_cpu_dnn(exec->device), exec, &y, &a, &b, NULL, false));
    }
    if (!kd_planning(exec)) mirror(args->y);
    return KD_OK;
}

/* ---- any -------------------------------------------------------------------------------------- */

kd_status kd_matmul_cpu(kd_exec *exec, const kd_matmul_args *args)
{
    if (is_one_row(args)) return one_row(exec, args);
    if (is_gram(args)) return gram(exec, args);
    return kd_dnn_matmul(kd_cpu_dnn(exec->device), exec, args->y, args->a, args->b, args->bias,
                         false);
}

kd_status kd_matmul_add_check(const kd_matmul_add_args *args)
{
    return check(args->y, args->a, args->b);
}

kd_status kd_matmul_add_cpu(kd_exec *exec, const kd_matmul_add_args *args)
{
    return kd_dnn_matmul(kd_cpu_dnn(exec->device), exec, args->y, args->a, args->b, NULL, true);
}

static kd_status check_batch(const kd_tensor *t, const char *what, kd_shape shape)
{
    KD_TRY(kd_tensor_expect(t, what, KD_F32, shape));
    if (t->shape[0] == 0) return KD_OK;
    int64_t stride[2];
    const kd_tensor first = kd_tensor_matrix(t, 0);
    KD_TRY(kd_matrix_strides(stride, &first, what));
    const int64_t rows = first.shape[0], columns = first.shape[1];
    const int64_t last = (rows - 1) * stride[0] + (columns - 1) * stride[1];
    if (t->shape[0] == 1 || kd_tensor_elements(t) == 0 || t->stride[0] > last) return KD_OK;
    return kd_fail(KD_EINVAL, "%s: matrices lie %lld elements apart; expected at least %lld", what,
                   (long long)t->stride[0], (long long)last + 1);
}

kd_status kd_matmul_batched_check(const kd_matmul_batched_args *args)
{
    const kd_tensor *y = args->y, *a = args->a;
    KD_TRY(check_batch(a, "a", KD_SHAPE(-1, -1, -1)));
    KD_TRY(check_batch(args->b, "b", KD_SHAPE(a->shape[0], a->shape[2], -1)));
    KD_TRY(check_batch(y, "y", KD_SHAPE(a->shape[0], a->shape[1], args->b->shape[2])));
    if (y->shape[2] <= 1 || y->stride[2] == 1) return KD_OK;
    return kd_fail(KD_EINVAL, "y: lies by columns; expected by rows");
}

kd_status kd_matmul_batched_cpu(kd_exec *exec, const kd_matmul_batched_args *args)
{
    return kd_dnn_matmul_batched(kd_cpu_dnn(exec->device), exec, args->y, args->a, args->b);
}

kd_status kd_matmul_gelu_check(const kd_matmul_gelu_args *args)
{
    const kd_matmul_args product = { args->pre, args->a, args->b, args->bias };
    KD_TRY(kd_expect_rows(args->pre, "pre"));
    KD_TRY(kd_matmul_check(&product));
    return kd_expect_rows_of(args->y, "y", args->pre->dtype, kd_shape_of(args->pre));
}

kd_status kd_matmul_gelu_cpu(kd_exec *exec, const kd_matmul_gelu_args *args)
{
    KD_TRY(KD_RUN(exec, matmul, .y = args->pre, .a = args->a, .b = args->b, .bias = args->bias));
    return KD_RUN(exec, gelu, .y = args->y, .x = args->pre, .tanh_form = true);
}
