#include "layer/layer.h"

kd_status kd_norm_save(kd_norm_saved *saved, kd_exec *exec, const kd_norm *norm, int64_t rows)
{
    *saved = (kd_norm_saved){ 0 };
    if (norm->weight < 0) return KD_OK;
    KD_TRY(kd_push(&saved->rstd, exec, "norm rstd", KD_F32, KD_SHAPE(rows)));
    if (norm->layer_norm) KD_TRY(kd_push(&saved->mean, exec, "norm mean", KD_F32, KD_SHAPE(rows)));
    return KD_OK;
}

kd_status kd_norm_forward(kd_exec *exec, const kd_tensor *y, const kd_norm_saved *saved,
                          const kd_tensor *sum, const kd_tensor *x, const kd_tensor *residual,
                          const kd_slab *slab, const kd_norm *norm)
{
    const kd_tensor weight = kd_slab_weight(slab, norm->weight);
    const kd_tensor bias = kd_slab_weight(slab, norm->bias);
    if (norm->layer_norm)
        return KD_RUN(exec, layer_norm, .y = y, .mean = &saved->mean, .rstd = &saved->rstd,
                      .sum = sum, .x = x, .residual = residual, .weight = &weight, .bias = &bias,
                      .eps = norm->eps);
    return KD_RUN(exec, rms_norm, .y = y, .rstd = &saved->rstd, .sum = sum, .x = x,
                  .residual = residual, .weight = &weight, .eps = norm->eps);
}

kd_status kd_norm_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                           const kd_tensor *x, const kd_norm_saved *saved, const kd_tensor *add,
                           const kd_slab *slab, const kd_norm *norm)
{
    const kd_tensor weight = kd_slab_weight(slab, norm->weight);
    const kd_tensor d_weight = kd_slab_gradient(slab, norm->weight);
    const kd_tensor d_bias = kd_slab_gradient(slab, norm->bias);
    if (norm->layer_norm)
        return KD_RUN(exec, layer_norm_backward, .dx = dx, .dweight = &d_weight, .dbias = &d_bias,
                      .dy = dy, .x = x, .mean = &saved->mean, .rstd = &saved->rstd,
                      .weight = &weight, .add = add);
    return KD_RUN(exec, rms_norm_backward, .dx = dx, .dweight = &d_weight, .dy = dy, .x = x,
                  .rstd = &saved->rstd, .weight = &weight, .add = add);
}
