#include "layer/layer.h"

kd_weight kd_linear_weight(const kd_slab *slab, kd_linear layer)
{
    return (kd_weight){ .tensor = kd_slab_weight(slab, layer.weight),
                        .bias = kd_slab_weight(slab, layer.bias),
                        .gradient = kd_slab_gradient(slab, layer.weight),
                        .bias_gradient = kd_slab_gradient(slab, layer.bias) };
}

kd_status kd_linear_forward(kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                            const kd_weight *weight)
{
    const kd_tensor transposed = kd_tensor_transposed(&weight->tensor);
    return KD_RUN(exec, matmul, .y = y, .a = x, .b = &transposed, .bias = &weight->bias);
}

kd_status kd_linear_gelu_forward(kd_exec *exec, const kd_tensor *y, const kd_tensor *pre,
                                 const kd_tensor *x, const kd_weight *weight)
{
    const kd_tensor transposed = kd_tensor_transposed(&weight->tensor);
    return KD_RUN(exec, matmul_gelu, .y = y, .pre = pre, .a = x, .b = &transposed,
                  .bias = &weight->bias);
}

kd_status kd_linear_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                             const kd_tensor *x, const kd_weight *weight)
{
    const kd_tensor dy_transposed = kd_tensor_transposed(dy);
    /* dW first: with several ranks its reduction can start while dx is computed. */
    KD_TRY(KD_RUN(exec, matmul_add, .y = &weight->gradient, .a = &dy_transposed, .b = x));
    if (kd_present(&weight->bias_gradient))
        KD_TRY(KD_RUN(exec, sum_columns, .y = &weight->bias_gradient, .x = dy));
    if (kd_present(dx)) KD_TRY(KD_RUN(exec, matmul, .y = dx, .a = dy, .b = &weight->tensor));
    return KD_OK;
}
