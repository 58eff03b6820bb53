/* The CUDA backend's table; the functions are in kernels/, but for the matrix products below. */
#include "ops/ops.h"

const kd_ops kd_ops_cuda = {
#define KD_OP(op, operands) .op = kd_##op##_cuda,
#include "ops/op_list.h"
#undef KD_OP
};

/* ---- matrix products -------------------------------------------------------------------------- */

/* y = bias for K = 0, where there is nothing to multiply. */
static kd_status fill_rows(kd_exec *exec, const kd_tensor *y, const kd_tensor *bias)
{
    if (kd_present(bias)) {
        kd_tensor rows = *bias;
        rows.rank = 2;
        rows.shape[0] = y->shape[0], rows.stride[0] = 0;
        rows.shape[1] = y->shape[1], rows.stride[1] = 1;
        return KD_RUN(exec, copy, .y = y, .x = &rows);
    }
    const kd_tensor turned = kd_tensor_transposed(y);
    return KD_RUN(exec, fill, .y = y->stride[1] == 1 ? y : &turned, .value = 0);
}

static bool is_empty(const kd_tensor *y) { return y->shape[0] == 0 || y->shape[1] == 0; }

/* cuBLASLt adds a bias of y's type along the rows of y. */
static bool takes_bias(const kd_tensor *y, const kd_tensor *bias)
{
    return !kd_present(bias) ||
           (bias->dtype == y->dtype && (y->stride[1] == 1 || y->shape[1] == 1));
}

/* With a wide bias for an f32 y, else with a wide y by rows: no layer asks for the latter. */
static kd_status widened(kd_exec *exec, const kd_matmul_args *args)
{
    kd_matmul_args wide = *args;
    kd_tensor bias, y;
    KD_TRY(kd_push(&bias, exec, "matmul.wide_bias", KD_F32, kd_shape_of(args->bias)));
    KD_TRY(KD_RUN(exec, copy, .y = &bias, .x = args->bias));
    wide.bias = &bias;
    if (takes_bias(args->y, &bias)) return kd_matmul_cuda(exec, &wide);
    KD_TRY(kd_push(&y, exec, "matmul.wide_y", KD_F32, kd_shape_of(args->y)));
    wide.y = &y;
    KD_TRY(kd_matmul_cuda(exec, &wide));
    return KD_RUN(exec, copy, .y = args->y, .x = &y);
}

kd_status kd_matmul_cuda(kd_exec *exec, const kd_matmul_args *args)
{
    if (is_empty(args->y)) return KD_OK;
    if (args->a->shape[1] == 0) return fill_rows(exec, args->y, args->bias);
    if (!takes_bias(args->y, args->bias)) return widened(exec, args);
    return kd_blas_matmul(exec, args->y, args->a, args->b, args->bias, false);
}

kd_status kd_matmul_add_cuda(kd_exec *exec, const kd_matmul_add_args *args)
{
    if (is_empty(args->y) || args->a->shape[1] == 0) return KD_OK;
    return kd_blas_matmul(exec, args->y, args->a, args->b, NULL, true);
}

kd_status kd_matmul_batched_cuda(kd_exec *exec, const kd_matmul_batched_args *args)
{
    if (kd_tensor_elements(args->y) == 0) return KD_OK;
    if (args->a->shape[2] == 0) return KD_RUN(exec, fill, .y = args->y, .value = 0);
    return kd_blas_matmul_batched(exec, args->y, args->a, args->b);
}

kd_status kd_matmul_scaled_cuda(kd_exec *exec, const kd_matmul_scaled_args *args)
{
    if (is_empty(args->y)) return KD_OK;
    if (args->a->shape[1] == 0) return fill_rows(exec, args->y, args->bias);
    bool scaled;
    KD_TRY(kd_blas_matmul_scaled(&scaled, exec, args->y, args->a, args->b, args->a_scale,
                                 args->b_scale, args->bias));
    if (scaled) return KD_OK;
    /* In place: a bf16 y is rounded twice, 2^-9 of a sum whose operands kept 2^-4. */
    return KD_RUN(exec, rescale, .y = args->y, .row = args->a_scale, .column = args->b_scale,
                  .bias = args->bias);
}

/* Fused for bf16 alone: how exact the library's tanh is, it does not say. */
kd_status kd_matmul_gelu_cuda(kd_exec *exec, const kd_matmul_gelu_args *args)
{
    bool fused = false;
    if (args->y->dtype == KD_BF16 && !is_empty(args->y) && args->a->shape[1] > 0 &&
        takes_bias(args->y, args->bias))
        KD_TRY(kd_blas_matmul_gelu(&fused, exec, args->y, args->pre, args->a, args->b, args->bias));
    if (fused) return KD_OK;
    KD_TRY(KD_RUN(exec, matmul, .y = args->pre, .a = args->a, .b = args->b, .bias = args->bias));
    return KD_RUN(exec, gelu, .y = args->y, .x = args->pre, .tanh_form = true);
}
