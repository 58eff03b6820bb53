/*
 * qkv = x Wqkv^T (+ b);  q, k normalised per head (where the model does), turned by position;
 * out = attention(q, k, v);  y = out Wo^T (+ b).
 */
#include "layer/layer.h"

#include <math.h>

static int64_t query_columns(const kd_attention *layer) { return layer->heads * layer->head_size; }

static int64_t key_columns(const kd_attention *layer) { return layer->kv_heads * layer->head_size; }

static float score_scale(const kd_attention *layer)
{
    return 1.0f / sqrtf((float)layer->head_size);
}

/* Columns [begin, begin + count) of [N, *] as [N, count / d, d]. */
static kd_tensor heads_view(const kd_tensor *t, int64_t begin, int64_t count, int64_t head_size)
{
    const kd_tensor columns = kd_tensor_slice(t, 1, begin, count);
    return kd_tensor_split(&columns, head_size);
}

void kd_attention_views(kd_tensor *q, kd_tensor *k, kd_tensor *v, const kd_tensor *qkv,
                        const kd_attention *layer)
{
    const int64_t nq = query_columns(layer), nk = key_columns(layer), d = layer->head_size;
    *q = heads_view(qkv, 0, nq, d);
    *k = heads_view(qkv, nq, nk, d);
    *v = heads_view(qkv, nq + nk, nk, d);
}

kd_status kd_attention_save(kd_attention_saved *saved, kd_exec *exec, const kd_attention *layer,
                            kd_dtype dtype, int64_t rows)
{
    const int64_t nq = query_columns(layer), nk = key_columns(layer);
    *saved = (kd_attention_saved){ 0 };
    KD_TRY(kd_push(&saved->qkv, exec, "attention qkv", dtype, KD_SHAPE(rows, nq + 2 * nk)));
    if (layer->q_norm.weight >= 0)
        KD_TRY(kd_push(&saved->raw, exec, "attention raw q k", dtype, KD_SHAPE(rows, nq + nk)));
    KD_TRY(kd_norm_save(&saved->q_norm, exec, &layer->q_norm, rows * layer->heads));
    KD_TRY(kd_norm_save(&saved->k_norm, exec, &layer->k_norm, rows * layer->kv_heads));
    KD_TRY(kd_push(&saved->out, exec, "attention out", dtype, KD_SHAPE(rows, nq)));
    return kd_push(&saved->lse, exec, "attention lse", KD_F32, KD_SHAPE(layer->heads, rows));
}

static kd_status turn(kd_exec *exec, const kd_tensor *q, const kd_tensor *k,
                      const kd_tensor *positions, const kd_attention *layer, bool backward)
{
    if (!kd_present(&layer->frequencies)) return KD_OK;
    KD_TRY(KD_RUN(exec, rope, .x = q, .positions = positions, .frequencies = &layer->frequencies,
                  .scale = layer->rope_scale, .backward = backward));
    return KD_RUN(exec, rope, .x = k, .positions = positions, .frequencies = &layer->frequencies,
                  .scale = layer->rope_scale, .backward = backward);
}

/* saved->qkv from x: projection, QK-norm, position. */
static kd_status project(kd_exec *exec, const kd_attention_saved *saved, const kd_tensor *x,
                         const kd_tensor *positions, const kd_slab *slab, const kd_attention *layer)
{
    const kd_weight qkv = kd_linear_weight(slab, layer->qkv);
    const int64_t nq = query_columns(layer), nk = key_columns(layer), d = layer->head_size;
    kd_tensor q, k, v;
    kd_attention_views(&q, &k, &v, &saved->qkv, layer);
    KD_TRY(kd_linear_forward(exec, &saved->qkv, x, &qkv));
    if (kd_present(&saved->raw)) {
        const kd_tensor qk = kd_tensor_slice(&saved->qkv, 1, 0, nq + nk);
        const kd_tensor raw_q = heads_view(&saved->raw, 0, nq, d);
        const kd_tensor raw_k = heads_view(&saved->raw, nq, nk, d);
        KD_TRY(KD_RUN(exec, copy, .y = &saved->raw, .x = &qk));
        KD_TRY(kd_norm_forward(exec, &q, &saved->q_norm, NULL, &raw_q, NULL, slab, &layer->q_norm));
        KD_TRY(kd_norm_forward(exec, &k, &saved->k_norm, NULL, &raw_k, NULL, slab, &layer->k_norm));
    }
    return turn(exec, &q, &k, positions, layer, false);
}

kd_status kd_attention_forward(kd_exec *exec, const kd_tensor *y, const kd_attention_saved *saved,
                               const kd_tensor *x, const kd_geometry *geometry, const kd_slab *slab,
                               const kd_attention *layer)
{
    const kd_weight out = kd_linear_weight(slab, layer->out);
    const kd_tensor o = kd_tensor_split(&saved->out, layer->head_size);
    kd_tensor q, k, v;
    kd_attention_views(&q, &k, &v, &saved->qkv, layer);
    KD_TRY(project(exec, saved, x, &geometry->positions, slab, layer));
    KD_TRY(KD_RUN(exec, attention, .o = &o, .lse = &saved->lse, .q = &q, .k = &k, .v = &v,
                  .cu_q = &geometry->cu, .cu_k = &geometry->cu, .scale = score_scale(layer),
                  .causal = layer->causal, .window = layer->window, .softcap = layer->softcap));
    return kd_linear_forward(exec, y, &saved->out, &out);
}

/* d qkv in place: against position, then through QK-norm. */
static kd_status project_backward(kd_exec *exec, const kd_tensor *d_qkv,
                                  const kd_attention_saved *saved, const kd_tensor *positions,
                                  const kd_slab *slab, const kd_attention *layer)
{
    const int64_t nq = query_columns(layer), nk = key_columns(layer), d = layer->head_size;
    kd_tensor dq, dk, dv;
    kd_attention_views(&dq, &dk, &dv, d_qkv, layer);
    KD_TRY(turn(exec, &dq, &dk, positions, layer, true));
    if (!kd_present(&saved->raw)) return KD_OK;

    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor dy;
    KD_TRY(
        kd_push(&dy, exec, "d normalised q k", d_qkv->dtype, KD_SHAPE(d_qkv->shape[0], nq + nk)));
    const kd_tensor both = kd_tensor_slice(d_qkv, 1, 0, nq + nk);
    const kd_tensor dy_q = heads_view(&dy, 0, nq, d), dy_k = heads_view(&dy, nq, nk, d);
    const kd_tensor raw_q = heads_view(&saved->raw, 0, nq, d);
    const kd_tensor raw_k = heads_view(&saved->raw, nq, nk, d);
    KD_TRY(KD_RUN(exec, copy, .y = &dy, .x = &both));
    KD_TRY(kd_norm_backward(exec, &dq, &dy_q, &raw_q, &saved->q_norm, NULL, slab, &layer->q_norm));
    KD_TRY(kd_norm_backward(exec, &dk, &dy_k, &raw_k, &saved->k_norm, NULL, slab, &layer->k_norm));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

kd_status kd_attention_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                                const kd_tensor *x, const kd_attention_saved *saved,
                                const kd_geometry *geometry, const kd_slab *slab,
                                const kd_attention *layer)
{
    const kd_weight qkv = kd_linear_weight(slab, layer->qkv);
    const kd_weight out = kd_linear_weight(slab, layer->out);
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor d_out, d_qkv, q, k, v, dq, dk, dv;
    KD_TRY(kd_push(&d_qkv, exec, "d qkv", x->dtype, kd_shape_of(&saved->qkv)));
    KD_TRY(kd_push(&d_out, exec, "d attention out", x->dtype, kd_shape_of(&saved->out)));
    const kd_tensor o = kd_tensor_split(&saved->out, layer->head_size);
    const kd_tensor d_o = kd_tensor_split(&d_out, layer->head_size);
    kd_attention_views(&q, &k, &v, &saved->qkv, layer);
    kd_attention_views(&dq, &dk, &dv, &d_qkv, layer);

    KD_TRY(kd_linear_backward(exec, &d_out, dy, &saved->out, &out));
    KD_TRY(KD_RUN(exec, attention_backward, .dq = &dq, .dk = &dk, .dv = &dv, .dout = &d_o, .o = &o,
                  .lse = &saved->lse, .q = &q, .k = &k, .v = &v, .cu_q = &geometry->cu,
                  .cu_k = &geometry->cu, .scale = score_scale(layer), .causal = layer->causal,
                  .window = layer->window, .softcap = layer->softcap));
    KD_TRY(project_backward(exec, &d_qkv, saved, &geometry->positions, slab, layer));
    KD_TRY(kd_linear_backward(exec, dx, &d_qkv, x, &qkv));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

kd_status kd_attention_extend(kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                              const kd_kv_cache *cache, int64_t length, const kd_tensor *positions,
                              const kd_tensor *cu_q, const kd_tensor *cu_k, const kd_slab *slab,
                              const kd_attention *layer)
{
    const int64_t n = x->shape[0];
    const kd_weight out = kd_linear_weight(slab, layer->out);
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_attention_saved saved;
    kd_tensor q, k, v;
    KD_TRY(kd_attention_save(&saved, exec, layer, x->dtype, n));
    kd_attention_views(&q, &k, &v, &saved.qkv, layer);
    KD_TRY(project(exec, &saved, x, positions, slab, layer));

    const kd_tensor new_k = kd_tensor_slice(&cache->k, 0, length, n);
    const kd_tensor new_v = kd_tensor_slice(&cache->v, 0, length, n);
    const kd_tensor all_k = kd_tensor_slice(&cache->k, 0, 0, length + n);
    const kd_tensor all_v = kd_tensor_slice(&cache->v, 0, 0, length + n);
    const kd_tensor o = kd_tensor_split(&saved.out, layer->head_size);
    KD_TRY(KD_RUN(exec, copy, .y = &new_k, .x = &k));
    KD_TRY(KD_RUN(exec, copy, .y = &new_v, .x = &v));
    KD_TRY(KD_RUN(exec, attention, .o = &o, .lse = &saved.lse, .q = &q, .k = &all_k, .v = &all_v,
                  .cu_q = cu_q, .cu_k = cu_k, .scale = score_scale(layer), .causal = layer->causal,
                  .window = layer->window, .softcap = layer->softcap));
    KD_TRY(kd_linear_forward(exec, y, &saved.out, &out));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
