/*
 * The one transformer, driven by kd_config:
 *
 *     x = embedding[token] (+ position[p])
 *     each block:  x = x + attention(norm1(x));  x = x + mlp(norm2(x))
 *     head.hidden = norm(x)
 *
 * The backward pass is in transformer_backward.c, block by block beside what is written here.
 */
#include "model/transformer.h"

static bool keeps_activations(const kd_model *model) { return model->keeps_activations; }

kd_status kd_block_save(kd_block_saved *saved, kd_model *model, kd_exec *exec,
                        const kd_block *block, const kd_tensor *x)
{
    const int64_t rows = x->shape[0];
    KD_TRY(kd_norm_save(&saved->norm1, exec, &block->norm1, rows));
    KD_TRY(kd_norm_save(&saved->norm2, exec, &block->norm2, rows));
    KD_TRY(kd_attention_save(&saved->attention, exec, &block->attention, model->dtype, rows));
    KD_TRY(kd_mlp_save(&saved->mlp, exec, &block->mlp, model->dtype, rows));
    if (!keeps_activations(model)) {
        saved->middle = *x; /* nobody looks back: x is updated in place */
        return KD_OK;
    }
    return kd_push(&saved->middle, exec, "block middle", model->dtype, kd_shape_of(x));
}

kd_status kd_block_forward(kd_model *model, kd_exec *exec, const kd_tensor *y,
                           const kd_block_saved *saved, const kd_tensor *x,
                           const kd_geometry *geometry, const kd_block *block)
{
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor h, branch;
    KD_TRY(kd_push(&h, exec, "block normed", model->dtype, kd_shape_of(x)));
    KD_TRY(kd_push(&branch, exec, "block branch", model->dtype, kd_shape_of(x)));

    KD_TRY(kd_norm_forward(exec, &h, &saved->norm1, NULL, x, NULL, &model->slab, &block->norm1));
    KD_TRY(kd_attention_forward(exec, &branch, &saved->attention, &h, geometry, &model->slab,
                                &block->attention));
    KD_TRY(kd_norm_forward(exec, &h, &saved->norm2, &saved->middle, &branch, x, &model->slab,
                           &block->norm2));
    KD_TRY(kd_mlp_forward(exec, kd_present(y) ? &branch : NULL, &saved->mlp, &h, &model->slab,
                          &block->mlp));
    if (kd_present(y)) KD_TRY(KD_RUN(exec, add, .y = y, .a = &saved->middle, .b = &branch));

    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

kd_status kd_model_embed(kd_model *model, kd_exec *exec, const kd_tensor *x,
                         const kd_tensor *tokens, const kd_tensor *positions)
{
    const kd_tensor table = kd_slab_weight(&model->slab, model->embedding);
    KD_TRY(KD_RUN(exec, embedding, .y = x, .table = &table, .ids = tokens));
    if (model->position < 0) return KD_OK;
    const kd_tensor places = kd_slab_weight(&model->slab, model->position);
    return KD_RUN(exec, embedding, .y = x, .table = &places, .ids = positions, .add = x);
}

/* What attention has saved is gone before the losses come: taps of it are copies. */
static bool forgets_blocks(const kd_model *model)
{
    return !keeps_activations(model) || model->recompute == KD_RECOMPUTE_BLOCKS;
}

static const char *const tap_names[] = { [KD_TAP_HIDDEN] = "hidden",
                                         [KD_TAP_QUERY] = "query",
                                         [KD_TAP_KEY] = "key",
                                         [KD_TAP_VALUE] = "value" };

static kd_status check_tap(const kd_model *model, const kd_tap *tap)
{
    if ((int)tap->kind >= KD_COUNT(tap_names))
        return kd_fail(KD_ENOTSUP,
                       "%s: a decoder offers hidden, query, key and value taps, not kind %d",
                       model->label, (int)tap->kind);
    const int64_t last = model->config.layers - (tap->kind != KD_TAP_HIDDEN);
    const char *name = tap_names[tap->kind];
    if (tap->layer < 0 || tap->layer > last)
        return kd_fail(KD_EINVAL, "%s: %s[%d] asked for; it has %s[0..%lld]", model->label, name,
                       tap->layer, name, (long long)last);
    return KD_OK;
}

/* Takes memory for a tap's value where it is no view. */
static kd_status open_value(kd_tap *tap, kd_model *model, kd_exec *exec, kd_shape shape)
{
    tap->value = tap->lse = tap->gradient = (kd_tensor){ 0 };
    if (tap->kind == KD_TAP_HIDDEN)
        return tap->layer < model->config.layers
                   ? kd_push(&tap->value, exec, "hidden tap", model->dtype, shape)
                   : KD_OK;
    if (!forgets_blocks(model)) return KD_OK;
    KD_TRY(kd_push(&tap->value, exec, "attention tap", model->dtype, shape));
    if (tap->kind != KD_TAP_QUERY) return KD_OK;
    return kd_push(&tap->lse, exec, "attention tap lse", KD_F32,
                   KD_SHAPE(shape.dim[1], shape.dim[0]));
}

/* Gives every requested tap its memory, before anything that is released again. */
static kd_status open_taps(kd_model *model, kd_exec *exec, kd_taps *taps, int64_t rows)
{
    for (int i = 0; i < taps->count; i++) {
        kd_tap *tap = &taps->items[i];
        KD_TRY(check_tap(model, tap));
        kd_shape shape = KD_SHAPE(rows, model->config.width);
        if (tap->kind != KD_TAP_HIDDEN) {
            const kd_attention *layer = &model->blocks[tap->layer].attention;
            shape = KD_SHAPE(rows, tap->kind == KD_TAP_QUERY ? layer->heads : layer->kv_heads,
                             layer->head_size);
            tap->window = layer->window;
            tap->softcap = layer->softcap;
        }
        KD_TRY(open_value(tap, model, exec, shape));
        if (!tap->wants_gradient || !model->slab.trainable) continue;
        KD_TRY(kd_push(&tap->gradient, exec, "tap gradient", model->dtype, shape));
        KD_TRY(KD_RUN(exec, fill, .y = &tap->gradient, .value = 0.0f));
    }
    return KD_OK;
}

/* A view, or a copy in the tap's memory. */
static kd_status show(kd_exec *exec, kd_tensor *shown, const kd_tensor *t, bool copies)
{
    if (copies) return KD_RUN(exec, copy, .y = shown, .x = t);
    *shown = *t;
    return KD_OK;
}

/* What block `layer`'s attention has seen. */
static kd_status show_attention(kd_model *model, kd_exec *exec, kd_taps *taps, int layer)
{
    const kd_attention_saved *saved = &model->saved[layer].attention;
    const kd_attention_heads seen = kd_attention_views(saved, &model->blocks[layer].attention);
    const bool copies = forgets_blocks(model);
    kd_tap *q = kd_taps_find(taps, KD_TAP_QUERY, layer), *k = kd_taps_find(taps, KD_TAP_KEY, layer),
           *v = kd_taps_find(taps, KD_TAP_VALUE, layer);
    if (q) KD_TRY(show(exec, &q->value, &seen.q, copies));
    if (q) KD_TRY(show(exec, &q->lse, &saved->lse, copies));
    if (k) KD_TRY(show(exec, &k->value, &seen.k, copies));
    return v ? show(exec, &v->value, &seen.v, copies) : KD_OK;
}

static kd_status show_hidden(kd_exec *exec, kd_taps *taps, int layer, const kd_tensor *x)
{
    const kd_tap *tap = kd_taps_find(taps, KD_TAP_HIDDEN, layer);
    return tap ? KD_RUN(exec, copy, .y = &tap->value, .x = x) : KD_OK;
}

/* hidden[l + 1] = block l of hidden[l]; on a frozen model all of them are one tensor. */
static kd_status run_block(kd_model *model, kd_exec *exec, kd_taps *taps, int64_t l,
                           const kd_geometry *geometry)
{
    kd_tensor *x = &model->hidden[l], *y = &model->hidden[l + 1];
    if (keeps_activations(model))
        KD_TRY(kd_push(y, exec, "block output", model->dtype, kd_shape_of(x)));
    else
        *y = *x;
    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(kd_params_acquire(model, (int)l));
    KD_TRY(kd_block_save(&model->saved[l], model, exec, &model->blocks[l], x));
    KD_TRY(kd_block_forward(model, exec, y, &model->saved[l], x, geometry, &model->blocks[l]));
    kd_params_release(model, (int)l);
    KD_TRY(show_attention(model, exec, taps, (int)l));
    if (forgets_blocks(model)) kd_stack_release(exec->stack, mark);
    return KD_OK;
}

static void open_head(kd_model *model, kd_taps *taps)
{
    taps->head.weight = kd_slab_weight(&model->slab, model->head_weight);
    taps->head.d_weight = kd_slab_gradient(&model->slab, model->head_weight);
    taps->head.bias = taps->head.d_bias = (kd_tensor){ 0 };
    taps->head.softcap = (float)model->config.head_softcap;
    if (taps->head.classes == 0) taps->head.classes = model->config.vocabulary;
}

static kd_status forward(kd_model *model, kd_exec *exec, const kd_batch *batch, kd_taps *taps)
{
    const int64_t layers = model->config.layers, rows = batch->tokens.shape[0];
    const kd_shape shape = KD_SHAPE(rows, model->config.width);
    model->keeps_activations = model->slab.trainable && !taps->measured;
    open_head(model, taps);
    KD_TRY(open_taps(model, exec, taps, rows));
    KD_TRY(kd_push(&taps->head.hidden, exec, "head hidden", model->dtype, shape));
    if (keeps_activations(model))
        KD_TRY(kd_norm_save(&model->final_saved, exec, &model->final_norm, rows));

    const kd_mark mark = kd_stack_mark(exec->stack);
    if (!keeps_activations(model))
        KD_TRY(kd_norm_save(&model->final_saved, exec, &model->final_norm, rows));
    KD_TRY(kd_push(&model->hidden[0], exec, "block input", model->dtype, shape));
    KD_TRY(
        kd_model_embed(model, exec, &model->hidden[0], &batch->tokens, &batch->geometry.positions));
    for (int64_t l = 0; l < layers; l++) {
        KD_TRY(show_hidden(exec, taps, (int)l, &model->hidden[l]));
        KD_TRY(run_block(model, exec, taps, l, &batch->geometry));
    }
    KD_TRY(kd_norm_forward(exec, &taps->head.hidden, &model->final_saved, NULL,
                           &model->hidden[layers], NULL, &model->slab, &model->final_norm));
    if (!keeps_activations(model)) kd_stack_release(exec->stack, mark);

    kd_tap *last = kd_taps_find(taps, KD_TAP_HIDDEN, (int)layers);
    if (last) last->value = taps->head.hidden;
    return KD_OK;
}

const kd_network kd_network_transformer = { forward, kd_transformer_backward };
