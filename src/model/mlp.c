/*
 * mlp.c - a multilayer perceptron that classifies samples, forward and backward.
 *
 *     h[0] = inputs    h[l + 1] = act(h[l] W[l]' + b[l])    logits = h[L] C' + c
 *
 * act is ReLU or GELU; L may be 0.  Rows are samples; hidden tap l is h[l], and what a loss leaves in
 * that of the inputs goes nowhere.  There is nothing to recompute.
 *
 * A folder's weights are those of torch.nn.Linear:
 *     layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
 *     model = nn.ModuleDict({"layers": layers, "classifier": nn.Linear(sizes[-1], num_labels)})
 *     model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
 * with sizes = [input_size, *hidden_sizes].
 */
#include "model/model.h"

static const kd_name_row names[] = {
    { "layers.%d.weight", KD_PLACE_MLP_UP, KD_PART_ALL, false, false },
    { "layers.%d.bias", KD_PLACE_MLP_UP, KD_PART_ALL, true, false },
    { "classifier.weight", KD_PLACE_HEAD, KD_PART_ALL, false, false },
    { "classifier.bias", KD_PLACE_HEAD, KD_PART_ALL, true, false },
    { 0 },
};

const kd_family kd_family_mlp = { "mlp", names, NULL, &kd_network_mlp };

/* ---- taps ------------------------------------------------------------------------------------- */

static kd_status open_taps(kd_model *model, kd_exec *exec, kd_taps *taps, int64_t rows)
{
    const int64_t last = model->config.layers;
    for (int i = 0; i < taps->count; i++) {
        kd_tap *tap = &taps->items[i];
        if (tap->kind != KD_TAP_HIDDEN)
            return kd_fail(KD_ENOTSUP, "%s: an MLP offers hidden taps, not kind %d", model->label,
                           (int)tap->kind);
        if (tap->layer < 0 || tap->layer > last)
            return kd_fail(KD_EINVAL, "%s: hidden[%d] asked for; it has hidden[0..%lld]",
                           model->label, tap->layer, (long long)last);
        const kd_shape shape = KD_SHAPE(rows, kd_config_width(&model->config, tap->layer));
        tap->value = tap->lse = tap->gradient = (kd_tensor){ 0 };
        if (tap->layer < last)
            KD_TRY(kd_push(&tap->value, exec, "hidden tap", model->dtype, shape));
        if (!tap->wants_gradient || !model->slab.trainable) continue;
        KD_TRY(kd_push(&tap->gradient, exec, "tap gradient", model->dtype, shape));
        KD_TRY(KD_RUN(exec, fill, .y = &tap->gradient, .value = 0.0f));
    }
    return KD_OK;
}

static void open_head(kd_model *model, kd_taps *taps)
{
    kd_head *head = &taps->head;
    head->weight = kd_slab_weight(&model->slab, model->head_weight);
    head->d_weight = kd_slab_gradient(&model->slab, model->head_weight);
    head->bias = kd_slab_weight(&model->slab, model->head_bias);
    head->d_bias = kd_slab_gradient(&model->slab, model->head_bias);
    head->softcap = 0;
    if (head->classes == 0) head->classes = model->config.vocabulary;
}

/* ---- forward ---------------------------------------------------------------------------------- */

/* y = act(x W' + b); GELU keeps what it has seen. */
static kd_status run_layer(kd_model *model, kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                           int64_t l)
{
    const kd_mlp *layer = &model->blocks[l].mlp;
    const kd_weight weight = kd_linear_weight(&model->slab, layer->up);
    kd_tensor *before = &model->saved[l].mlp.up;
    if (model->config.mlp == KD_MLP_RELU) {
        KD_TRY(kd_linear_forward(exec, y, x, &weight));
        return KD_RUN(exec, relu, .y = y, .x = y);
    }
    KD_TRY(kd_push(before, exec, "before activation", model->dtype, kd_shape_of(y)));
    if (layer->gelu_tanh) return kd_linear_gelu_forward(exec, y, before, x, &weight);
    KD_TRY(kd_linear_forward(exec, before, x, &weight));
    return KD_RUN(exec, gelu, .y = y, .x = before);
}

/* h[0]: the batch's own tensor, or that in the model's type. */
static kd_status take_inputs(kd_model *model, kd_exec *exec, const kd_tensor *inputs)
{
    kd_tensor *x = &model->hidden[0];
    *x = *inputs;
    if (model->dtype == inputs->dtype) return KD_OK;
    KD_TRY(kd_push(x, exec, "inputs", model->dtype, kd_shape_of(inputs)));
    return KD_RUN(exec, copy, .y = x, .x = inputs);
}

static kd_status forward(kd_model *model, kd_exec *exec, const kd_batch *batch, kd_taps *taps)
{
    const int64_t layers = model->config.layers, rows = batch->inputs.shape[0];
    kd_tensor *out = &taps->head.hidden;
    model->keeps_activations = model->slab.trainable && !taps->measured;
    open_head(model, taps);
    KD_TRY(open_taps(model, exec, taps, rows));
    KD_TRY(kd_push(out, exec, "head hidden", model->dtype, KD_SHAPE(rows, model->config.width)));

    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(take_inputs(model, exec, &batch->inputs));
    for (int64_t l = 0; l < layers; l++) {
        const kd_tensor *x = &model->hidden[l];
        kd_tensor *y = &model->hidden[l + 1];
        const kd_tap *tap = kd_taps_find(taps, KD_TAP_HIDDEN, (int)l);
        if (tap) KD_TRY(KD_RUN(exec, copy, .y = &tap->value, .x = x));
        *y = *out;
        if (l + 1 < layers)
            KD_TRY(kd_push(y, exec, "layer output", model->dtype,
                           KD_SHAPE(rows, model->config.hidden[l])));
        KD_TRY(run_layer(model, exec, y, x, l));
    }
    if (layers == 0) KD_TRY(KD_RUN(exec, copy, .y = out, .x = &model->hidden[0]));
    if (!model->keeps_activations) kd_stack_release(exec->stack, mark);

    kd_tap *last = kd_taps_find(taps, KD_TAP_HIDDEN, (int)layers);
    if (last) last->value = *out;
    return KD_OK;
}

/* ---- backward --------------------------------------------------------------------------------- */

static kd_status add_tap_gradient(kd_exec *exec, const kd_tensor *dy, kd_taps *taps, int64_t layer)
{
    const kd_tap *tap = kd_taps_find(taps, KD_TAP_HIDDEN, (int)layer);
    if (!tap || !kd_present(&tap->gradient)) return KD_OK;
    return KD_RUN(exec, add, .y = dy, .a = dy, .b = &tap->gradient);
}

/* dy holds d h[l + 1] and becomes that before the activation; dx, where it is present, d h[l]. */
static kd_status undo_layer(kd_model *model, kd_exec *exec, const kd_tensor *dx,
                            const kd_tensor *dy, int64_t l)
{
    const kd_mlp *layer = &model->blocks[l].mlp;
    const kd_weight weight = kd_linear_weight(&model->slab, layer->up);
    if (model->config.mlp == KD_MLP_RELU)
        KD_TRY(KD_RUN(exec, relu_backward, .dx = dy, .dy = dy, .x = &model->hidden[l + 1]));
    else
        KD_TRY(KD_RUN(exec, gelu_backward, .dx = dy, .dy = dy, .x = &model->saved[l].mlp.up,
                      .tanh_form = layer->gelu_tanh));
    return kd_linear_backward(exec, dx, dy, &model->hidden[l], &weight);
}

static kd_status tell(kd_block_done done, void *context, int64_t block)
{
    return done ? done(context, (int)block) : KD_OK;
}

static kd_status backward(kd_model *model, kd_exec *exec, const kd_batch *batch, kd_taps *taps,
                          kd_block_done done, void *context)
{
    const int64_t layers = model->config.layers;
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor dy = taps->head.d_hidden;
    (void)batch;
    KD_TRY(add_tap_gradient(exec, &dy, taps, layers));
    KD_TRY(tell(done, context, layers));
    for (int64_t l = layers - 1; l >= 0; l--) {
        kd_tensor dx = { 0 };
        if (l > 0)
            KD_TRY(
                kd_push(&dx, exec, "d layer output", model->dtype, kd_shape_of(&model->hidden[l])));
        KD_TRY(undo_layer(model, exec, &dx, &dy, l));
        if (l > 0) KD_TRY(add_tap_gradient(exec, &dx, taps, l));
        KD_TRY(tell(done, context, l));
        dy = dx;
    }
    kd_stack_release(exec->stack, mark);
    return tell(done, context, -1);
}

const kd_network kd_network_mlp = { forward, backward };
