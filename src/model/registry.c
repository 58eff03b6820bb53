#include "model/transformer.h"

#include <stdio.h>

extern const kd_family kd_family_llama, kd_family_mistral, kd_family_qwen2, kd_family_qwen3,
    kd_family_gpt2, kd_family_mlp;

const kd_family *const kd_families[] = { &kd_family_llama,
                                         &kd_family_mistral,
                                         &kd_family_qwen2,
                                         &kd_family_qwen3,
                                         &kd_family_gpt2,
                                         &kd_family_mlp,
                                         NULL };

kd_status kd_family_find(const kd_family **family, const char *name)
{
    for (int i = 0; kd_families[i]; i++) {
        if (strcmp(kd_families[i]->name, name) != 0) continue;
        *family = kd_families[i];
        return KD_OK;
    }
    return kd_fail(KD_ENOTSUP, "model family \"%s\"", name);
}

/* ---- declaring -------------------------------------------------------------------------------- */

typedef struct declaration {
    kd_params *params;
    int block;
    unsigned matrix_flags; /* of linear layers' weights */
} declaration;

static kd_status declare(int *index, const declaration *to, const char *name, kd_shape shape,
                         unsigned flags)
{
    char full[96];
    if (to->block >= 0 && strncmp(name, "block.", 6) == 0)
        snprintf(full, sizeof full, "blocks.%d.%s", to->block, name + 6);
    else
        snprintf(full, sizeof full, "%s", name);
    return kd_params_declare(index, to->params, full, shape, flags, to->block);
}

static kd_status declare_linear(kd_linear *layer, const declaration *to, const char *name,
                                int64_t out, int64_t in, bool bias)
{
    char bias_name[64];
    snprintf(bias_name, sizeof bias_name, "%s_bias", name);
    layer->bias = -1;
    KD_TRY(declare(&layer->weight, to, name, KD_SHAPE(out, in), to->matrix_flags));
    return bias ? declare(&layer->bias, to, bias_name, KD_SHAPE(out), 0) : KD_OK;
}

static kd_status declare_norm(kd_norm *norm, const declaration *to, const char *name, int64_t width,
                              const kd_config *config)
{
    char bias_name[64];
    snprintf(bias_name, sizeof bias_name, "%s_bias", name);
    *norm = (kd_norm){ .layer_norm = config->norm == KD_NORM_LAYER,
                       .bias = -1,
                       .eps = (float)config->norm_eps };
    KD_TRY(declare(&norm->weight, to, name, KD_SHAPE(width), 0));
    return norm->layer_norm ? declare(&norm->bias, to, bias_name, KD_SHAPE(width), 0) : KD_OK;
}

static kd_status declare_attention(kd_attention *layer, const declaration *to, const kd_config *c)
{
    const int64_t d = c->head_size;
    *layer = (kd_attention){ .heads = c->heads,
                             .kv_heads = c->kv_heads,
                             .head_size = d,
                             .window = to->block >= c->window_from ? c->window : 0,
                             .softcap = (float)c->attention_softcap,
                             .causal = c->causal,
                             .q_norm = { .weight = -1, .bias = -1 },
                             .k_norm = { .weight = -1, .bias = -1 } };
    KD_TRY(declare_linear(&layer->qkv, to, "block.qkv", (c->heads + 2 * c->kv_heads) * d, c->width,
                          c->qkv_bias));
    if (c->qk_norm) {
        KD_TRY(declare_norm(&layer->q_norm, to, "block.q_norm", d, c));
        KD_TRY(declare_norm(&layer->k_norm, to, "block.k_norm", d, c));
    }
    return declare_linear(&layer->out, to, "block.out", c->width, c->heads * d, c->output_bias);
}

static kd_status declare_block(kd_block *block, const declaration *to, const kd_config *c)
{
    const bool gated = c->mlp == KD_MLP_SWIGLU;
    KD_TRY(declare_norm(&block->norm1, to, "block.norm1", c->width, c));
    KD_TRY(declare_attention(&block->attention, to, c));
    KD_TRY(declare_norm(&block->norm2, to, "block.norm2", c->width, c));
    block->mlp = (kd_mlp){ .ffn = c->ffn, .gated = gated, .gelu_tanh = c->mlp == KD_MLP_GELU_TANH };
    KD_TRY(declare_linear(&block->mlp.up, to, "block.mlp_up", gated ? 2 * c->ffn : c->ffn, c->width,
                          c->mlp_bias));
    return declare_linear(&block->mlp.down, to, "block.mlp_down", c->width, c->ffn, c->mlp_bias);
}

static unsigned matrix_flags(const kd_config *c, int block, bool e4m3)
{
    const bool inner = block > 0 && block < c->layers - 1;
    return KD_PARAM_DECAY | (e4m3 && inner ? KD_PARAM_E4M3 : 0);
}

static kd_status declare_mlp(kd_model *model, kd_params *params, bool e4m3)
{
    const kd_config *c = &model->config;
    declaration to = { params, 0, 0 };
    int64_t in = c->inputs;
    kd_linear head;
    model->embedding = model->position = -1;
    for (; to.block < c->layers; to.block++) {
        kd_mlp *layer = &model->blocks[to.block].mlp;
        *layer = (kd_mlp){ .ffn = c->hidden[to.block], .gelu_tanh = c->mlp == KD_MLP_GELU_TANH };
        to.matrix_flags = matrix_flags(c, to.block, e4m3);
        KD_TRY(declare_linear(&layer->up, &to, "block.linear", layer->ffn, in, true));
        in = layer->ffn;
    }
    to.matrix_flags = KD_PARAM_DECAY;
    KD_TRY(declare_linear(&head, &to, "head", c->vocabulary, in, true));
    model->head_weight = head.weight;
    model->head_bias = head.bias;
    return KD_OK;
}

static kd_status declare_model(kd_model *model, kd_params *params, bool e4m3)
{
    const kd_config *c = &model->config;
    declaration to = { params, -1, KD_PARAM_DECAY };
    if (c->inputs) return declare_mlp(model, params, e4m3);
    model->position = model->head_bias = -1;
    KD_TRY(declare(&model->embedding, &to, "embedding", KD_SHAPE(c->vocabulary, c->width),
                   KD_PARAM_DECAY));
    if (c->position == KD_POSITION_LEARNED)
        KD_TRY(declare(&model->position, &to, "position", KD_SHAPE(c->max_positions, c->width),
                       KD_PARAM_DECAY));
    for (to.block = 0; to.block < c->layers; to.block++) {
        to.matrix_flags = matrix_flags(c, to.block, e4m3);
        KD_TRY(declare_block(&model->blocks[to.block], &to, c));
    }
    KD_TRY(declare_norm(&model->final_norm, &to, "final_norm", c->width, c));
    model->head_weight = model->embedding;
    if (!c->tied)
        KD_TRY(declare(&model->head_weight, &to, "head", KD_SHAPE(c->vocabulary, c->width),
                       KD_PARAM_DECAY));
    return KD_OK;
}

kd_status kd_model_parse_dtype(kd_dtype *dtype, const char *name)
{
    *dtype = KD_F32;
    if (name) KD_TRY(kd_dtype_parse(dtype, name));
    if (*dtype == KD_F32 || *dtype == KD_BF16 || *dtype == KD_F8_E4M3) return KD_OK;
    return kd_fail(KD_EINVAL, "dtype \"%s\"; expected f32, bf16 or f8_e4m3", name);
}

/* ---- opening ---------------------------------------------------------------------------------- */

/* Whether the device multiplies with every e4m3 weight, found out by planning that. */
static kd_status check_e4m3(const kd_model *model, kd_device *device, const kd_params *params)
{
    kd_stack stack = { .planning = true };
    kd_exec exec = { .device = device, .stack = &stack };
    for (int i = 0; i < params->count; i++) {
        const kd_param *p = &params->items[i];
        const int64_t out = p->shape.dim[0], in = p->shape.dim[1];
        kd_tensor x, y, weight, x_scale, scale;
        if (!(p->flags & KD_PARAM_E4M3)) continue;
        KD_TRY(kd_push(&x, &exec, "x", KD_F8_E4M3, KD_SHAPE(1, in)));
        KD_TRY(kd_push(&y, &exec, "y", model->dtype, KD_SHAPE(1, out)));
        KD_TRY(kd_push(&weight, &exec, "weight", KD_F8_E4M3, KD_SHAPE(out, in)));
        KD_TRY(kd_push(&x_scale, &exec, "x's scale", KD_F32, KD_SHAPE(1)));
        KD_TRY(kd_push(&scale, &exec, "scales", KD_F32, KD_SHAPE(out)));
        const kd_tensor b = kd_tensor_transposed(&weight);
        const kd_status status = KD_RUN(&exec, matmul_scaled, .y = &y, .a = &x, .b = &b,
                                        .a_scale = &x_scale, .b_scale = &scale);
        if (status == KD_ENOTSUP)
            return kd_fail(status, "%s: dtype f8_e4m3: %s; dtype bf16 needs none of that",
                           model->label, kd_last_error());
        KD_TRY(status);
        kd_stack_release(&stack, (kd_mark){ 0 });
    }
    return KD_OK;
}

static kd_status open_rope(kd_model *model, kd_device *device, bool planning)
{
    const kd_config *c = &model->config;
    if (c->position != KD_POSITION_ROPE) return KD_OK;
    const int64_t count = (int64_t)((double)c->head_size * c->rotary_share) / 2;
    float *host, scale;
    KD_TRY(KD_ARENA_ARRAY(&host, model->arena, count));
    kd_config_rope(host, &scale, c);
    void *memory = (void *)(uintptr_t)KD_STACK_ALIGN;
    if (!planning)
        KD_TRY(kd_device_alloc(&memory, device, (size_t)count * sizeof *host, "rope frequencies"));
    model->frequencies = kd_tensor_of(memory, KD_F32, KD_SHAPE(count));
    kd_stack stack = { .planning = planning };
    kd_exec exec = { .device = device, .stack = &stack };
    KD_TRY(kd_upload(&exec, &model->frequencies, host));
    for (int64_t l = 0; l < c->layers; l++) {
        model->blocks[l].attention.frequencies = model->frequencies;
        model->blocks[l].attention.rope_scale = scale;
    }
    return kd_sync(&exec);
}

kd_status kd_model_declare(kd_model *model, kd_params *params, const kd_model_options *options)
{
    const bool e4m3 = options && options->dtype == KD_F8_E4M3;
    *params = (kd_params){ .arena = model->arena };
    KD_TRY(kd_family_find(&model->family, model->config.family));
    KD_TRY(KD_ARENA_ARRAY(&model->blocks, model->arena, model->config.layers));
    KD_TRY(declare_model(model, params, e4m3));
    if (options && options->extend)
        KD_TRY(options->extend(options->context, params, (int)model->config.layers));
    kd_params_layout(params);
    return KD_OK;
}

kd_status kd_model_offer(kd_offer *offer, kd_arena *arena, const kd_config *config,
                         const char *label)
{
    int64_t *widths;
    KD_TRY(KD_ARENA_ARRAY(&widths, arena, config->layers + 1));
    for (int64_t l = 0; l <= config->layers; l++) widths[l] = kd_config_width(config, l);
    *offer = (kd_offer){ .label = label,
                         .layers = (int)config->layers,
                         .widths = widths,
                         .heads = config->heads,
                         .samples = config->inputs > 0 };
    return kd_arena_string(&offer->architecture, arena, config->architecture);
}

static kd_status create(kd_model *model, kd_device *device, const kd_model_options *options)
{
    const int64_t layers = model->config.layers;
    kd_params params;
    if (options->dtype == KD_F8_E4M3 && options->trainable)
        return kd_fail(KD_EINVAL,
                       "%s: dtype f8_e4m3 is for frozen models; found a trained one, "
                       "expected f32 or bf16",
                       model->label);
    KD_TRY(KD_ARENA_ARRAY(&model->saved, model->arena, layers));
    KD_TRY(KD_ARENA_ARRAY(&model->hidden, model->arena, layers + 1));
    KD_TRY(kd_model_declare(model, &params, options));
    KD_TRY(check_e4m3(model, device, &params));
    KD_TRY(kd_slab_open(&model->slab, device, &params, model->dtype, options->trainable,
                        options->moments, options->planning));
    return open_rope(model, device, options->planning);
}

kd_status kd_model_create(kd_model **out, kd_device *device, const kd_config *config,
                          const kd_model_options *options)
{
    kd_arena *arena = NULL;
    kd_model *model = NULL;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(KD_ARENA_ARRAY(&model, arena, 1), status, failed);
    *model = (kd_model){ .arena = arena,
                         .label = options->label ? options->label : "model",
                         .config = *config,
                         .dtype = options->dtype == KD_F8_E4M3 ? KD_BF16 : options->dtype,
                         .recompute = options->recompute };
    model->config.raw = json_incref(config->raw);
    /* The configuration's strings belong to the caller's arena. */
    if (config->dir)
        KD_TRY_GOTO(kd_arena_string(&model->config.dir, arena, config->dir), status, failed);
    KD_TRY_GOTO(kd_arena_string(&model->config.family, arena, config->family), status, failed);
    KD_TRY_GOTO(kd_arena_string(&model->config.architecture, arena, config->architecture), status,
                failed);
    KD_TRY_GOTO(create(model, device, options), status, failed);
    *out = model;
    return KD_OK;
failed:
    if (model)
        kd_model_close(model);
    else
        kd_arena_destroy(arena);
    return status;
}

void kd_model_close(kd_model *model)
{
    if (!model) return;
    if (model->slab.device) kd_device_release(model->slab.device, model->frequencies.data);
    kd_slab_close(&model->slab);
    json_decref(model->config.raw);
    kd_arena_destroy(model->arena);
}

kd_status kd_model_open(kd_model **model, kd_device *device, const char *dir,
                        const kd_model_options *options)
{
    kd_arena *arena = NULL;
    kd_model_files *files = NULL;
    kd_config config = { 0 };
    kd_status status;
    *model = NULL;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(kd_config_read(&config, arena, dir), status, done);
    if (!options->planning) {
        KD_TRY_GOTO(kd_model_files_open(&files, dir), status, done);
        KD_TRY_GOTO(kd_model_check(NULL, &config, files), status, done);
    }
    KD_TRY_GOTO(kd_model_create(model, device, &config, options), status, done);
    if (files) KD_TRY_GOTO(kd_model_load(*model, files), status, done);
done:
    if (status != KD_OK) {
        kd_model_close(*model);
        *model = NULL;
    }
    kd_model_files_close(files);
    json_decref(config.raw);
    kd_arena_destroy(arena);
    return status;
}

/* ---- passes ----------------------------------------------------------------------------------- */

kd_status kd_model_forward(kd_model *model, kd_exec *exec, const kd_batch *batch, kd_taps *taps)
{
    return model->family->network->forward(model, exec, batch, taps);
}

kd_status kd_model_backward(kd_model *model, kd_exec *exec, const kd_batch *batch, kd_taps *taps,
                            kd_block_done done, void *context)
{
    return model->family->network->backward(model, exec, batch, taps, done, context);
}

size_t kd_model_bytes(const kd_model *model)
{
    const kd_slab *slab = &model->slab;
    const size_t frequencies =
        kd_present(&model->frequencies) ? kd_tensor_bytes(&model->frequencies) : 0;
    return kd_slab_bytes(&slab->params, slab->dtype, slab->trainable, slab->moments) +
           kd_round_up(frequencies, KD_STACK_ALIGN);
}
