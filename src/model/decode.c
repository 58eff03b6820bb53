/* One document, token by token, with keys and values kept. */
#include "model/transformer.h"

#include <math.h>
#include <stdlib.h>

static kd_status extend_block(kd_decoder *d, const kd_tensor *x, int64_t l,
                              const kd_tensor *positions, const kd_tensor *cu_q,
                              const kd_tensor *cu_k)
{
    kd_model *model = d->model;
    const kd_block *block = &model->blocks[l];
    kd_exec *exec = &d->exec;
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_norm_saved norm;
    kd_mlp_saved mlp;
    kd_tensor h, branch;
    KD_TRY(kd_params_acquire(model, (int)l));
    KD_TRY(kd_push(&h, exec, "block normed", model->dtype, kd_shape_of(x)));
    KD_TRY(kd_push(&branch, exec, "block branch", model->dtype, kd_shape_of(x)));
    KD_TRY(kd_norm_save(&norm, exec, &block->norm1, x->shape[0]));
    KD_TRY(kd_mlp_save(&mlp, exec, &block->mlp, model->dtype, x->shape[0]));
    KD_TRY(kd_norm_forward(exec, &h, &norm, NULL, x, NULL, &model->slab, &block->norm1));
    KD_TRY(kd_attention_extend(exec, &branch, &h, &d->caches[l], d->length, positions, cu_q, cu_k,
                               &model->slab, &block->attention));
    KD_TRY(kd_norm_forward(exec, &h, &norm, x, &branch, x, &model->slab, &block->norm2));
    KD_TRY(kd_mlp_forward(exec, &branch, &mlp, &h, &model->slab, &block->mlp));
    KD_TRY(KD_RUN(exec, add, .y = x, .a = x, .b = &branch));
    kd_params_release(model, (int)l);
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

/* f32 logits of the last row of x. */
static kd_status last_logits(kd_decoder *d, float *logits, const kd_tensor *x)
{
    kd_model *model = d->model;
    const kd_tensor row = kd_tensor_slice(x, 0, x->shape[0] - 1, 1);
    const kd_tensor weight = kd_slab_weight(&model->slab, model->head_weight);
    const kd_tensor transposed = kd_tensor_transposed(&weight);
    kd_norm_saved norm;
    kd_tensor h, y;
    KD_TRY(kd_norm_save(&norm, &d->exec, &model->final_norm, 1));
    KD_TRY(kd_push(&h, &d->exec, "head hidden", model->dtype, kd_shape_of(&row)));
    KD_TRY(kd_push(&y, &d->exec, "head logits", KD_F32, KD_SHAPE(1, model->config.vocabulary)));
    KD_TRY(
        kd_norm_forward(&d->exec, &h, &norm, NULL, &row, NULL, &model->slab, &model->final_norm));
    KD_TRY(KD_RUN(&d->exec, matmul, .y = &y, .a = &h, .b = &transposed));
    KD_TRY(kd_download(&d->exec, logits, &y));
    return kd_sync(&d->exec);
}

static kd_status upload_places(kd_decoder *d, kd_tensor *tokens, kd_tensor *positions,
                               kd_tensor *cu_q, kd_tensor *cu_k, const int32_t *ids, int64_t n)
{
    const int32_t q[2] = { 0, (int32_t)n }, k[2] = { 0, (int32_t)(d->length + n) };
    KD_TRY(kd_push(tokens, &d->exec, "tokens", KD_I32, KD_SHAPE(n)));
    KD_TRY(kd_push(positions, &d->exec, "positions", KD_I32, KD_SHAPE(n)));
    KD_TRY(kd_push(cu_q, &d->exec, "query starts", KD_I32, KD_SHAPE(2)));
    KD_TRY(kd_push(cu_k, &d->exec, "key starts", KD_I32, KD_SHAPE(2)));
    KD_TRY(kd_upload(&d->exec, tokens, ids));
    KD_TRY(kd_upload(&d->exec, cu_q, q));
    KD_TRY(kd_upload(&d->exec, cu_k, k));
    for (int64_t i = 0; i < n; i++) {
        const int32_t at = (int32_t)(d->length + i);
        const kd_tensor one = kd_tensor_slice(positions, 0, i, 1);
        KD_TRY(kd_upload(&d->exec, &one, &at));
    }
    return KD_OK;
}

static kd_status extend_chunk(kd_decoder *d, float *logits, const int32_t *ids, int64_t n)
{
    const kd_mark mark = kd_stack_mark(d->exec.stack);
    kd_tensor tokens, positions, cu_q, cu_k, x;
    KD_TRY(upload_places(d, &tokens, &positions, &cu_q, &cu_k, ids, n));
    KD_TRY(kd_push(&x, &d->exec, "decoder state", d->model->dtype,
                   KD_SHAPE(n, d->model->config.width)));
    KD_TRY(kd_model_embed(d->model, &d->exec, &x, &tokens, &positions));
    for (int64_t l = 0; l < d->model->config.layers; l++)
        KD_TRY(extend_block(d, &x, l, &positions, &cu_q, &cu_k));
    if (logits) KD_TRY(last_logits(d, logits, &x));
    kd_stack_release(d->exec.stack, mark);
    return KD_OK;
}

kd_status kd_decoder_extend(kd_decoder *d, float *logits, const int32_t *tokens, int64_t count)
{
    if (count < 1 || d->length + count > d->capacity)
        return kd_fail(KD_EINVAL, "%lld tokens after %lld; the decoder holds %lld",
                       (long long)count, (long long)d->length, (long long)d->capacity);
    for (int64_t at = 0; at < count; at += d->chunk) {
        const int64_t n = kd_min_i64(count - at, d->chunk);
        KD_TRY(extend_chunk(d, at + n == count ? logits : NULL, tokens + at, n));
        d->length += n;
    }
    return KD_OK;
}

static kd_status open_caches(kd_decoder *d)
{
    const kd_config *c = &d->model->config;
    kd_device *device = d->model->slab.device;
    const kd_shape shape = KD_SHAPE(d->capacity, c->kv_heads, c->head_size);
    const size_t bytes = kd_round_up((size_t)(d->capacity * c->kv_heads * c->head_size) *
                                         kd_dtype_size(d->model->dtype),
                                     KD_STACK_ALIGN);
    KD_TRY(KD_ARENA_ARRAY(&d->caches, d->arena, c->layers));
    KD_TRY(
        kd_device_alloc(&d->memory, device, 2 * bytes * (size_t)c->layers, "key and value caches"));
    for (int64_t l = 0; l < c->layers; l++) {
        char *at = (char *)d->memory + 2 * bytes * (size_t)l;
        d->caches[l].k = kd_tensor_of(at, d->model->dtype, shape);
        d->caches[l].v = kd_tensor_of(at + bytes, d->model->dtype, shape);
    }
    return KD_OK;
}

/* The longest extend takes the most, at any length: attention reads the caches in place. */
static kd_status plan(kd_decoder *d)
{
    int32_t *ids;
    float *logits;
    KD_TRY(KD_ARENA_ARRAY(&ids, d->arena, d->chunk));
    KD_TRY(KD_ARENA_ARRAY(&logits, d->arena, 1));
    KD_TRY(kd_stack_plan(&d->stack, d->arena));
    d->exec = (kd_exec){ .device = d->model->slab.device, .stack = &d->stack };
    d->length = d->capacity - d->chunk;
    KD_TRY(extend_chunk(d, logits, ids, d->chunk));
    d->length = 0;
    KD_TRY(extend_chunk(d, logits, ids, 1));
    return kd_stack_open(&d->stack, d->exec.device);
}

kd_status kd_decoder_open(kd_decoder *d, kd_model *model, int64_t capacity, int64_t chunk)
{
    kd_status status;
    *d = (kd_decoder){ .model = model, .capacity = capacity, .chunk = kd_min_i64(chunk, capacity) };
    if (model->config.inputs)
        return kd_fail(KD_ENOTSUP, "%s: %s classifies samples and has no tokens", model->label,
                       model->config.architecture);
    if (model->config.position == KD_POSITION_LEARNED && capacity > model->config.max_positions)
        return kd_fail(KD_EINVAL, "%lld tokens; %s has %lld positions", (long long)capacity,
                       model->label, (long long)model->config.max_positions);
    KD_TRY(kd_arena_create(&d->arena));
    KD_TRY_GOTO(open_caches(d), status, failed);
    KD_TRY_GOTO(plan(d), status, failed);
    return KD_OK;
failed:
    kd_decoder_close(d);
    return status;
}

void kd_decoder_close(kd_decoder *d)
{
    if (!d->arena) return;
    kd_stack_close(&d->stack, d->model->slab.device);
    kd_device_release(d->model->slab.device, d->memory);
    kd_arena_destroy(d->arena);
    *d = (kd_decoder){ 0 };
}

/* ---- sampling --------------------------------------------------------------------------------- */

static int32_t argmax(const float *logits, int64_t classes)
{
    int32_t best = 0;
    for (int64_t i = 1; i < classes; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    return best;
}

/* qsort has no context in C11; a decoder samples from one thread at a time. */
static _Thread_local const float *sort_logits;

static int by_logit(const void *a, const void *b)
{
    const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    const float x = sort_logits[i], y = sort_logits[j];
    if (x != y) return x > y ? -1 : 1;
    return i < j ? -1 : i > j;
}

int32_t kd_sample(const float *logits, int64_t classes, const kd_sampling *s, int64_t index,
                  int32_t *order)
{
    if (s->temperature <= 0.0) return argmax(logits, classes);
    for (int64_t i = 0; i < classes; i++) order[i] = (int32_t)i;
    sort_logits = logits;
    qsort(order, (size_t)classes, sizeof *order, by_logit);

    const int64_t most = s->top_k > 0 ? kd_min_i64(s->top_k, classes) : classes;
    const double top = logits[order[0]];
    double all = 0.0, kept = 0.0;
    int64_t n = 0;
    for (int64_t i = 0; i < most; i++) all += exp((logits[order[i]] - top) / s->temperature);
    while (n < most && (n == 0 || kept < s->top_p * all || s->top_p >= 1.0))
        kept += exp((logits[order[n++]] - top) / s->temperature);

    double left = kd_random_uniform(s->seed, 0, (uint64_t)index) * kept;
    for (int64_t i = 0; i < n; i++) {
        left -= exp((logits[order[i]] - top) / s->temperature);
        if (left < 0.0) return order[i];
    }
    return order[n - 1];
}
