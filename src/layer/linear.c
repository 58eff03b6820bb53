#include "layer/layer.h"

kd_weight kd_linear_weight(const kd_slab *slab, kd_linear layer)
{
    return (kd_weight){ .tensor = kd_slab_weight(slab, layer.weight),
                        .bias = kd_slab_weight(slab, layer.bias),
                        .scale = kd_slab_scale(slab, layer.weight),
                        .gradient = kd_slab_gradient(slab, layer.weight),
                        .bias_gradient = kd_slab_gradient(slab, layer.bias) };
}

/* x gets a scale per row. */
static kd_status forward_scaled(kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                                const kd_weight *weight)
{
    const kd_tensor transposed = kd_tensor_transposed(&weight->tensor);
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor codes, scale;
    KD_TRY(kd_push(&codes, exec, "linear e4m3 input", KD_F8_E4M3, kd_shape_of(x)));
    KD_TRY(kd_push(&scale, exec, "linear input scales", KD_F32, KD_SHAPE(x->shape[0])));
    KD_TRY(KD_RUN(exec, quantise, .y = &codes, .scale = &scale, .x = x));
    KD_TRY(KD_RUN(exec, matmul_scaled, .y = y, .a = &codes, .b = &transposed, .a_scale = &scale,
                  .b_scale = &weight->scale, .bias = &weight->bias));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

kd_status kd_linear_forward(kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                            const kd_weight *weight)
{
    if (kd_present(&weight->scale)) return forward_scaled(exec, y, x, weight);
    const kd_tensor transposed = kd_tensor_transposed(&weight->tensor);
    return KD_RUN(exec, matmul, .y = y, .a = x, .b = &transposed, .bias = &weight->bias);
}

kd_status kd_linear_gelu_forward(kd_exec *exec, const kd_tensor *y, const kd_tensor *pre,
                                 const kd_tensor *x, const kd_weight *weight)
{
    if (kd_present(&weight->scale)) {
        KD_TRY(forward_scaled(exec, pre, x, weight));
        return KD_RUN(exec, gelu, .y = y, .x = pre, .tanh_form = true);
    }
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
