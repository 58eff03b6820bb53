/*
 * y[m,n] = sum_k a[m,k] b[k,n] + bias[n], and y += a b, and pre = a b + bias with y = gelu(pre).
 *
 * A layer y = x W' with W [N,K] reads W with exchanged strides; its backward pass is dx = dy W and
 * dW += dy' x.  No form copies or transposes a matrix first: the library packs panels as it goes.
 */
#include "ops/rowio.h"

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

kd_status kd_matmul_cpu(kd_exec *exec, const kd_matmul_args *args)
{
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
