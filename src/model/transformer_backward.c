/* The transformer's backward pass: transformer.c read from its end. */
#include "model/transformer.h"

/* dx holds d block(x) and becomes dx, in place. */
static kd_status block_backward(kd_model *model, kd_exec *exec, const kd_tensor *dx,
                                const kd_block_saved *saved, const kd_attention_heads *more,
                                const kd_tensor *x, const kd_geometry *geometry,
                                const kd_block *block)
{
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_norm_saved again = saved->norm2; /* norms are computed again: cheaper than kept */
    kd_tensor h, dh;
    KD_TRY(kd_push(&h, exec, "block normed", model->dtype, kd_shape_of(x)));
    KD_TRY(kd_push(&dh, exec, "d block normed", model->dtype, kd_shape_of(x)));

    KD_TRY(
        kd_norm_forward(exec, &h, &again, NULL, &saved->middle, NULL, &model->slab, &block->norm2));
    KD_TRY(kd_mlp_backward(exec, &dh, dx, &h, &saved->mlp, &model->slab, &block->mlp));
    KD_TRY(kd_norm_backward(exec, dx, &dh, &saved->middle, &saved->norm2, dx, &model->slab,
                            &block->norm2));
    again = saved->norm1;
    KD_TRY(kd_norm_forward(exec, &h, &again, NULL, x, NULL, &model->slab, &block->norm1));
    KD_TRY(kd_attention_backward(exec, &dh, dx, &h, &saved->attention, more, geometry, &model->slab,
                                 &block->attention));
    KD_TRY(kd_norm_backward(exec, dx, &dh, x, &saved->norm1, dx, &model->slab, &block->norm1));

    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

static kd_tensor gradient_of(kd_taps *taps, kd_tap_kind kind, int layer)
{
    const kd_tap *tap = kd_taps_find(taps, kind, layer);
    return tap ? tap->gradient : (kd_tensor){ 0 };
}

static kd_status undo_block(kd_model *model, kd_exec *exec, const kd_tensor *dx, kd_taps *taps,
                            int l, const kd_geometry *geometry)
{
    const kd_attention_heads more = { .q = gradient_of(taps, KD_TAP_QUERY, l),
                                      .k = gradient_of(taps, KD_TAP_KEY, l),
                                      .v = gradient_of(taps, KD_TAP_VALUE, l) };
    const kd_block *block = &model->blocks[l];
    kd_block_saved *saved = &model->saved[l];
    const kd_tensor *x = &model->hidden[l];
    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(kd_params_acquire(model, l));
    if (model->recompute == KD_RECOMPUTE_BLOCKS) {
        KD_TRY(kd_block_save(saved, model, exec, block, x));
        KD_TRY(kd_block_forward(model, exec, NULL, saved, x, geometry, block));
    }
    KD_TRY(block_backward(model, exec, dx, saved, &more, x, geometry, block));
    kd_params_release(model, l);
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

static kd_status add_tap_gradient(kd_exec *exec, const kd_tensor *dx, kd_taps *taps, int layer)
{
    const kd_tensor gradient = gradient_of(taps, KD_TAP_HIDDEN, layer);
    return kd_present(&gradient) ? KD_RUN(exec, add, .y = dx, .a = dx, .b = &gradient) : KD_OK;
}

static kd_status embed_backward(kd_model *model, kd_exec *exec, const kd_tensor *dx,
                                const kd_batch *batch)
{
    const kd_tensor d_table = kd_slab_gradient(&model->slab, model->embedding);
    KD_TRY(KD_RUN(exec, embedding_backward, .dtable = &d_table, .dy = dx, .ids = &batch->tokens));
    if (model->position < 0) return KD_OK;
    const kd_tensor d_places = kd_slab_gradient(&model->slab, model->position);
    return KD_RUN(exec, embedding_backward, .dtable = &d_places, .dy = dx,
                  .ids = &batch->geometry.positions);
}

static kd_status tell(kd_block_done done, void *context, int block)
{
    return done ? done(context, block) : KD_OK;
}

kd_status kd_transformer_backward(kd_model *model, kd_exec *exec, const kd_batch *batch,
                                  kd_taps *taps, kd_block_done done, void *context)
{
    const int layers = (int)model->config.layers;
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor dx;
    KD_TRY(kd_push(&dx, exec, "d block output", model->dtype, kd_shape_of(&taps->head.hidden)));
    KD_TRY(add_tap_gradient(exec, &taps->head.d_hidden, taps, layers));
    KD_TRY(kd_norm_backward(exec, &dx, &taps->head.d_hidden, &model->hidden[layers],
                            &model->final_saved, NULL, &model->slab, &model->final_norm));
    KD_TRY(tell(done, context, layers));
    for (int l = layers - 1; l >= 0; l--) {
        KD_TRY(undo_block(model, exec, &dx, taps, l, &batch->geometry));
        KD_TRY(add_tap_gradient(exec, &dx, taps, l));
        KD_TRY(tell(done, context, l));
    }
    KD_TRY(embed_backward(model, exec, &dx, batch));
    kd_stack_release(exec->stack, mark);
    return tell(done, context, -1);
}
