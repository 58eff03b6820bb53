/* Gated: y = (silu(x Wg^T) * x Wu^T) Wd^T; else y = gelu(x Wu^T + b) Wd^T + b. */
#include "layer/layer.h"

static kd_tensor gate_of(const kd_tensor *up, const kd_mlp *layer)
{
    return kd_tensor_slice(up, 1, 0, layer->ffn);
}

static kd_tensor linear_of(const kd_tensor *up, const kd_mlp *layer)
{
    return kd_tensor_slice(up, 1, layer->ffn, layer->ffn);
}

kd_status kd_mlp_save(kd_mlp_saved *saved, kd_exec *exec, const kd_mlp *layer, kd_dtype dtype,
                      int64_t rows)
{
    const int64_t columns = layer->gated ? 2 * layer->ffn : layer->ffn;
    return kd_push(&saved->up, exec, "mlp up", dtype, KD_SHAPE(rows, columns));
}

static kd_status activate(kd_exec *exec, const kd_tensor *a, const kd_tensor *up,
                          const kd_mlp *layer)
{
    if (!layer->gated) return KD_RUN(exec, gelu, .y = a, .x = up, .tanh_form = layer->gelu_tanh);
    const kd_tensor gate = gate_of(up, layer), linear = linear_of(up, layer);
    return KD_RUN(exec, swiglu, .y = a, .gate = &gate, .up = &linear);
}

kd_status kd_mlp_forward(kd_exec *exec, const kd_tensor *y, const kd_mlp_saved *saved,
                         const kd_tensor *x, const kd_slab *slab, const kd_mlp *layer)
{
    const kd_weight up = kd_linear_weight(slab, layer->up);
    const kd_weight down = kd_linear_weight(slab, layer->down);
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor a;
    if (!kd_present(y)) return kd_linear_forward(exec, &saved->up, x, &up);
    const bool fused = layer->gelu_tanh && !layer->gated;
    if (!fused) KD_TRY(kd_linear_forward(exec, &saved->up, x, &up));
    KD_TRY(kd_push(&a, exec, "mlp activation", x->dtype, KD_SHAPE(x->shape[0], layer->ffn)));
    KD_TRY(fused ? kd_linear_gelu_forward(exec, &a, &saved->up, x, &up)
                 : activate(exec, &a, &saved->up, layer));
    KD_TRY(kd_linear_forward(exec, y, &a, &down));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

kd_status kd_mlp_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                          const kd_tensor *x, const kd_mlp_saved *saved, const kd_slab *slab,
                          const kd_mlp *layer)
{
    const kd_weight up = kd_linear_weight(slab, layer->up);
    const kd_weight down = kd_linear_weight(slab, layer->down);
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor d_up, a, da;
    KD_TRY(kd_push(&d_up, exec, "d mlp up", x->dtype, kd_shape_of(&saved->up)));
    KD_TRY(kd_push(&a, exec, "mlp activation", x->dtype, KD_SHAPE(x->shape[0], layer->ffn)));
    KD_TRY(kd_push(&da, exec, "d mlp activation", x->dtype, kd_shape_of(&a)));
    /* The activation is computed again: cheap beside keeping N * F elements per block. */
    KD_TRY(activate(exec, &a, &saved->up, layer));
    KD_TRY(kd_linear_backward(exec, &da, dy, &a, &down));
    if (layer->gated) {
        const kd_tensor gate = gate_of(&saved->up, layer), linear = linear_of(&saved->up, layer);
        const kd_tensor d_gate = gate_of(&d_up, layer), d_linear = linear_of(&d_up, layer);
        KD_TRY(KD_RUN(exec, swiglu_backward, .dgate = &d_gate, .dup = &d_linear, .dy = &da,
                      .gate = &gate, .up = &linear));
    } else {
        KD_TRY(KD_RUN(exec, gelu_backward, .dx = &d_up, .dy = &da, .x = &saved->up,
                      .tanh_form = layer->gelu_tanh));
    }
    KD_TRY(kd_linear_backward(exec, dx, &d_up, x, &up));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
