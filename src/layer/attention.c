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

/* Queries and keys side by side, [N, H + G, d]: what position and QK-norm work on. */
static kd_tensor joint_view(const kd_tensor *t, const kd_attention *layer)
{
    return heads_view(t, 0, query_columns(layer) + key_columns(layer), layer->head_size);
}

static bool normalised(const kd_attention *layer) { return layer->q_norm.weight >= 0; }

/* `qk` has the first two, `qkv` the last; they may be the same. */
static kd_attention_heads views(const kd_tensor *qk, const kd_tensor *qkv,
                                const kd_attention *layer)
{
    const int64_t nq = query_columns(layer), nk = key_columns(layer), d = layer->head_size;
    return (kd_attention_heads){ .q = heads_view(qk, 0, nq, d),
                                 .k = heads_view(qk, nq, nk, d),
                                 .v = heads_view(qkv, nq + nk, nk, d) };
}

kd_attention_heads kd_attention_views(const kd_attention_saved *saved, const kd_attention *layer)
{
    return views(normalised(layer) ? &saved->qk : &saved->qkv, &saved->qkv, layer);
}

kd_status kd_attention_save(kd_attention_saved *saved, kd_exec *exec, const kd_attention *layer,
                            kd_dtype dtype, int64_t rows)
{
    const int64_t nq = query_columns(layer), nk = key_columns(layer);
    const int64_t heads = layer->heads + layer->kv_heads;
    *saved = (kd_attention_saved){ 0 };
    KD_TRY(kd_push(&saved->qkv, exec, "attention qkv", dtype, KD_SHAPE(rows, nq + 2 * nk)));
    if (normalised(layer)) {
        KD_TRY(kd_push(&saved->qk, exec, "attention q k", dtype, KD_SHAPE(rows, nq + nk)));
        KD_TRY(kd_push(&saved->qk_rstd, exec, "attention q k rstd", KD_F32, KD_SHAPE(rows, heads)));
    }
    KD_TRY(kd_push(&saved->out, exec, "attention out", dtype, KD_SHAPE(rows, nq)));
    return kd_push(&saved->lse, exec, "attention lse", KD_F32, KD_SHAPE(layer->heads, rows));
}

/* x W^T, then QK-norm and position. */
static kd_status project(kd_exec *exec, const kd_attention_saved *saved, const kd_tensor *x,
                         const kd_tensor *positions, const kd_slab *slab, const kd_attention *layer)
{
    const kd_weight weight = kd_linear_weight(slab, layer->qkv);
    const kd_tensor raw = joint_view(&saved->qkv, layer);
    KD_TRY(kd_linear_forward(exec, &saved->qkv, x, &weight));
    if (normalised(layer)) {
        const kd_tensor y = joint_view(&saved->qk, layer);
        const kd_tensor q_weight = kd_slab_weight(slab, layer->q_norm.weight);
        const kd_tensor k_weight = kd_slab_weight(slab, layer->k_norm.weight);
        return KD_RUN(exec, qk_norm_rope, .y = &y, .rstd = &saved->qk_rstd, .x = &raw,
                      .q_weight = &q_weight, .k_weight = &k_weight, .positions = positions,
                      .frequencies = &layer->frequencies, .heads = layer->heads,
                      .eps = layer->q_norm.eps, .scale = layer->rope_scale);
    }
    if (!kd_present(&layer->frequencies)) return KD_OK;
    return KD_RUN(exec, rope, .x = &raw, .positions = positions, .frequencies = &layer->frequencies,
                  .scale = layer->rope_scale);
}

kd_status kd_attention_forward(kd_exec *exec, const kd_tensor *y, const kd_attention_saved *saved,
                               const kd_tensor *x, const kd_geometry *geometry, const kd_slab *slab,
                               const kd_attention *layer)
{
    const kd_weight out = kd_linear_weight(slab, layer->out);
    const kd_tensor o = kd_tensor_split(&saved->out, layer->head_size);
    const kd_attention_heads in = kd_attention_views(saved, layer);
    KD_TRY(project(exec, saved, x, &geometry->positions, slab, layer));
    KD_TRY(KD_RUN(exec, attention, .o = &o, .lse = &saved->lse, .q = &in.q, .k = &in.k, .v = &in.v,
                  .cu_q = &geometry->cu, .cu_k = &geometry->cu, .scale = score_scale(layer),
                  .causal = layer->causal, .window = layer->window, .softcap = layer->softcap));
    return kd_linear_forward(exec, y, &saved->out, &out);
}

/* The queries' and keys' part of d qkv, in place: against position and through QK-norm. */
static kd_status project_backward(kd_exec *exec, const kd_tensor *d_qkv,
                                  const kd_attention_saved *saved, const kd_tensor *positions,
                                  const kd_slab *slab, const kd_attention *layer)
{
    const kd_tensor d = joint_view(d_qkv, layer);
    if (normalised(layer)) {
        const kd_tensor raw = joint_view(&saved->qkv, layer);
        const kd_tensor q_weight = kd_slab_weight(slab, layer->q_norm.weight);
        const kd_tensor k_weight = kd_slab_weight(slab, layer->k_norm.weight);
        const kd_tensor dq_weight = kd_slab_gradient(slab, layer->q_norm.weight);
        const kd_tensor dk_weight = kd_slab_gradient(slab, layer->k_norm.weight);
        return KD_RUN(exec, qk_norm_rope_backward, .dx = &d, .dq_weight = &dq_weight,
                      .dk_weight = &dk_weight, .dy = &d, .x = &raw, .rstd = &saved->qk_rstd,
                      .q_weight = &q_weight, .k_weight = &k_weight, .positions = positions,
                      .frequencies = &layer->frequencies, .heads = layer->heads,
                      .scale = layer->rope_scale);
    }
    if (!kd_present(&layer->frequencies)) return KD_OK;
    return KD_RUN(exec, rope, .x = &d, .positions = positions, .frequencies = &layer->frequencies,
                  .scale = layer->rope_scale, .backward = true);
}

static kd_status add_gradient(kd_exec *exec, const kd_tensor *to, const kd_tensor *more)
{
    return kd_present(more) ? KD_RUN(exec, add, .y = to, .a = to, .b = more) : KD_OK;
}

kd_status kd_attention_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                                const kd_tensor *x, const kd_attention_saved *saved,
                                const kd_attention_heads *more, const kd_geometry *geometry,
                                const kd_slab *slab, const kd_attention *layer)
{
    const kd_weight qkv = kd_linear_weight(slab, layer->qkv);
    const kd_weight out = kd_linear_weight(slab, layer->out);
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor d_out, d_qkv;
    KD_TRY(kd_push(&d_qkv, exec, "d qkv", x->dtype, kd_shape_of(&saved->qkv)));
    KD_TRY(kd_push(&d_out, exec, "d attention out", x->dtype, kd_shape_of(&saved->out)));
    const kd_tensor o = kd_tensor_split(&saved->out, layer->head_size);
    const kd_tensor d_o = kd_tensor_split(&d_out, layer->head_size);
    const kd_attention_heads in = kd_attention_views(saved, layer);
    const kd_attention_heads d = views(&d_qkv, &d_qkv, layer);

    KD_TRY(kd_linear_backward(exec, &d_out, dy, &saved->out, &out));
    KD_TRY(KD_RUN(exec, attention_backward, .dq = &d.q, .dk = &d.k, .dv = &d.v, .dout = &d_o,
                  .o = &o, .lse = &saved->lse, .q = &in.q, .k = &in.k, .v = &in.v,
                  .cu_q = &geometry->cu, .cu_k = &geometry->cu, .scale = score_scale(layer),
                  .causal = layer->causal, .window = layer->window, .softcap = layer->softcap));
    KD_TRY(add_gradient(exec, &d.q, &more->q));
    KD_TRY(add_gradient(exec, &d.k, &more->k));
    KD_TRY(add_gradient(exec, &d.v, &more->v));
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
    KD_TRY(kd_attention_save(&saved, exec, layer, x->dtype, n));
    const kd_attention_heads in = kd_attention_views(&saved, layer);
    KD_TRY(project(exec, &saved, x, positions, slab, layer));

    const kd_tensor new_k = kd_tensor_slice(&cache->k, 0, length, n);
    const kd_tensor new_v = kd_tensor_slice(&cache->v, 0, length, n);
    const kd_tensor all_k = kd_tensor_slice(&cache->k, 0, 0, length + n);
    const kd_tensor all_v = kd_tensor_slice(&cache->v, 0, 0, length + n);
    const kd_tensor o = kd_tensor_split(&saved.out, layer->head_size);
    KD_TRY(KD_RUN(exec, copy, .y = &new_k, .x = &in.k));
    KD_TRY(KD_RUN(exec, copy, .y = &new_v, .x = &in.v));
    KD_TRY(KD_RUN(exec, attention, .o = &o, .lse = &saved.lse, .q = &in.q, .k = &all_k, .v = &all_v,
                  .cu_q = cu_q, .cu_k = cu_k, .scale = score_scale(layer), .causal = layer->causal,
                  .window = layer->window, .softcap = layer->softcap));
    KD_TRY(kd_linear_forward(exec, y, &saved.out, &out));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
