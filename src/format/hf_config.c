/*
 * hf_config.c - config.json of the families that the one transformer computes; mlp_config.c reads
 * what the MLP has of its own.
 *
 * A field that is absent means what transformers 5 takes for it (models/<family>/configuration_*.py),
 * but the shapes themselves must be there.  Both spellings are read: rope_theta with rope_scaling, and
 * rope_parameters of transformers 5; max_window_layers, and layer_types.
 *
 * Bounds, chosen so that no count of parameters or operations can overflow 63 bits:
 *   layers <= 2^12, width <= 2^20, ffn <= 2^22, heads and head size <= 2^13, vocabulary <= 2^24,
 *   positions <= 2^28; parameters <= 2^50, so that bytes cannot either.
 * A field outside them is KD_EFORMAT; a value that transformers knows and kd does not compute is
 * KD_ENOTSUP with the field and the value.  Nothing is ever run: auto_map is ignored with a notice.
 * Dropout is not computed: models are read as they are used, not as they were trained.
 */
#include "format/fields.h"

enum {
    MAX_LAYERS = 1 << 12,
    MAX_WIDTH = 1 << 20,
    MAX_FFN = 1 << 22,
    MAX_HEADS = 1 << 13, /* and columns of one */
    MAX_VOCABULARY = 1 << 24,
    MAX_POSITIONS = 1 << 28,
};

static const int64_t max_parameters = INT64_C(1) << 50;

typedef struct family {
    const char *name, *architecture;
    /* NULL: no decoder (mlp_config.c) */
    kd_status (*parse)(kd_config *c, const reader *r, const struct family *f);
    bool tied;     /* where tie_word_embeddings is absent */
    bool qkv_bias; /* always; else attention_bias says, if it is a field */
    bool attention_bias_field, mlp_bias_field, qk_norm;
    int64_t kv_heads, head_size; /* where absent; 0: heads, and width / heads */
    int64_t positions;           /* where absent */
    int64_t bos, eos;            /* where absent; -1: none */
    enum { WINDOW_NONE, WINDOW_ALL, WINDOW_LAYERS } window;
} family;

static kd_status parse_llama_like(kd_config *c, const reader *r, const family *f);
static kd_status parse_gpt2(kd_config *c, const reader *r, const family *f);

static const family families[] = {
    { .name = "llama",
      .architecture = "LlamaForCausalLM",
      .parse = parse_llama_like,
      .attention_bias_field = true,
      .mlp_bias_field = true,
      .positions = 2048,
      .bos = 1,
      .eos = 2 },
    { .name = "mistral",
      .architecture = "MistralForCausalLM",
      .parse = parse_llama_like,
      .kv_heads = 8,
      .positions = 131072,
      .bos = 1,
      .eos = 2,
      .window = WINDOW_ALL },
    { .name = "qwen2",
      .architecture = "Qwen2ForCausalLM",
      .parse = parse_llama_like,
      .qkv_bias = true,
      .kv_heads = 32,
      .positions = 32768,
      .bos = -1,
      .eos = -1,
      .window = WINDOW_LAYERS },
    { .name = "qwen3",
      .architecture = "Qwen3ForCausalLM",
      .parse = parse_llama_like,
      .attention_bias_field = true,
      .qk_norm = true,
      .kv_heads = 32,
      .head_size = 128,
      .positions = 32768,
      .bos = -1,
      .eos = -1,
      .window = WINDOW_LAYERS },
    { .name = "gpt2",
      .architecture = "GPT2LMHeadModel",
      .parse = parse_gpt2,
      .tied = true,
      .qkv_bias = true,
      .positions = 1024,
      .bos = 50256,
      .eos = 50256 },
    { .name = "mlp", .architecture = "MLPForClassification" },
};

/* ---- rotary positions ------------------------------------------------------------------------- */

static kd_status parse_llama3(kd_config *c, const reader *rope, const reader *r)
{
    KD_TRY(read_double(&c->rope_low, rope, "low_freq_factor", NAN, 0, 1e6));
    KD_TRY(read_double(&c->rope_high, rope, "high_freq_factor", NAN, 0, 1e6));
    if (c->rope_high <= c->rope_low)
        return refuse(rope, "high_freq_factor", "more than low_freq_factor");
    /* transformers prefers a field outside the dictionary, which Phi-3 began. */
    const char *key = "original_max_position_embeddings";
    int64_t original;
    KD_TRY(read_int(&original, get(r, key) ? r : rope, key, c->max_positions, MAX_POSITIONS));
    c->rope_original = (double)original;
    return KD_OK;
}

static kd_status parse_rope(kd_config *c, const reader *r)
{
    reader rope = { r->source, "rope_scaling.", get(r, "rope_scaling") };
    if (!rope.json) rope = (reader){ r->source, "rope_parameters.", get(r, "rope_parameters") };
    if (rope.json && !json_is_object(rope.json))
        return refuse(r, get(r, "rope_scaling") ? "rope_scaling" : "rope_parameters", "an object");
    if (get(&rope, "full_attention") || get(&rope, "sliding_attention"))
        return kd_fail(KD_ENOTSUP, "%s: %sfull_attention: kd computes one kind of rope per model",
                       r->source, rope.prefix);

    const bool theta_inside = get(&rope, "rope_theta") != NULL;
    const bool share_inside = get(&rope, "partial_rotary_factor") != NULL;
    KD_TRY(read_double(&c->rope_theta, theta_inside ? &rope : r, "rope_theta", 10000, 0, 1e15));
    KD_TRY(
        read_double(&c->rotary_share, share_inside ? &rope : r, "partial_rotary_factor", 1, 0, 1));
    if (c->rotary_share != 1)
        return not_supported(share_inside ? &rope : r, "partial_rotary_factor", "1");

    const char *key = get(&rope, "rope_type") ? "rope_type" : "type", *type;
    KD_TRY(read_string(&type, &rope, key));
    if (!type || !strcmp(type, "default")) return KD_OK;
    if (!strcmp(type, "linear"))
        c->rope_scaling = KD_ROPE_LINEAR;
    else if (!strcmp(type, "llama3"))
        c->rope_scaling = KD_ROPE_LLAMA3;
    else
        return not_supported(&rope, key, "\"default\", \"linear\" and \"llama3\"");
    KD_TRY(read_double(&c->rope_factor, &rope, "factor", NAN, 0, 1e6));
    return c->rope_scaling == KD_ROPE_LLAMA3 ? parse_llama3(c, &rope, r) : KD_OK;
}

/* ---- windows ---------------------------------------------------------------------------------- */

/* The one pattern kd has: full layers, then windowed ones. */
static kd_status parse_layer_types(kd_config *c, const reader *r, const json_t *types)
{
    if (!json_is_array(types) || (int64_t)json_array_size(types) != c->layers)
        return refuse(r, "layer_types", "one string per layer");
    c->window_from = c->layers;
    for (int64_t i = 0; i < c->layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (!type) return refuse(r, "layer_types", "one string per layer");
        const bool sliding = !strcmp(type, "sliding_attention");
        if (!sliding && strcmp(type, "full_attention") != 0)
            return kd_fail(KD_ENOTSUP,
                           "%s: layer_types[%lld] is \"%s\"; kd computes \"full_attention\" and "
                           "\"sliding_attention\"",
                           r->source, (long long)i, type);
        if (sliding && c->window_from > i) c->window_from = i;
        if (!sliding && c->window_from < i)
            return kd_fail(KD_ENOTSUP,
                           "%s: layer_types[%lld] is full_attention after a sliding_attention; kd "
                           "computes full layers first, then windowed ones",
                           r->source, (long long)i);
    }
    return KD_OK;
}

static kd_status parse_window(kd_config *c, const reader *r, const family *f)
{
    const json_t *types = get(r, "layer_types");
    /* Absent means 4096 and null means none, in both Mistral and Qwen. */
    const bool absent = json_object_get(r->json, "sliding_window") == NULL;
    bool used = f->window == WINDOW_ALL;
    if (f->window == WINDOW_LAYERS) KD_TRY(read_bool(&used, r, "use_sliding_window", false));
    if (used && absent)
        c->window = 4096;
    else if (used && get(r, "sliding_window"))
        KD_TRY(read_int(&c->window, r, "sliding_window", -1, MAX_POSITIONS));

    if (types) {
        KD_TRY(parse_layer_types(c, r, types));
        if (c->window_from < c->layers && c->window == 0)
            return refuse(r, "layer_types", "no sliding_attention where there is no window");
        if (f->window == WINDOW_ALL && c->window && c->window_from > 0)
            return not_supported(r, "layer_types", "the window in every layer of this family");
    } else if (f->window == WINDOW_LAYERS && c->window) {
        const json_t *from = get(r, "max_window_layers");
        c->window_from = from ? (int64_t)json_integer_value(from) : 28;
        if ((from && !json_is_integer(from)) || c->window_from < 0)
            return refuse(r, "max_window_layers", "an integer from 0");
    }
    if (c->window == 0 || c->window_from >= c->layers) c->window = c->window_from = 0;
    return KD_OK;
}

/* ---- families --------------------------------------------------------------------------------- */

/* heads, kv_heads and head_size fit each other. */
static kd_status check_heads(const kd_config *c, const reader *r, bool own_head_size)
{
    if (c->heads % c->kv_heads != 0)
        return refuse(r, "num_key_value_heads", "a divisor of num_attention_heads");
    if (!own_head_size && c->width % c->heads != 0)
        return kd_fail(KD_EFORMAT, "%s: %lld heads do not divide a width of %lld", r->source,
                       (long long)c->heads, (long long)c->width);
    if (c->head_size < 1 || c->head_size > MAX_HEADS ||
        (c->position == KD_POSITION_ROPE && c->head_size % 2 != 0))
        return kd_fail(KD_EFORMAT, "%s: a head of %lld columns, expected an even number up to %d",
                       r->source, (long long)c->head_size, (int)MAX_HEADS);
    return KD_OK;
}

static kd_status parse_llama_like(kd_config *c, const reader *r, const family *f)
{
    c->norm = KD_NORM_RMS;
    c->position = KD_POSITION_ROPE;
    KD_TRY(read_int(&c->layers, r, "num_hidden_layers", -1, MAX_LAYERS));
    KD_TRY(read_int(&c->width, r, "hidden_size", -1, MAX_WIDTH));
    KD_TRY(read_int(&c->heads, r, "num_attention_heads", -1, MAX_HEADS));
    KD_TRY(read_int(&c->ffn, r, "intermediate_size", -1, MAX_FFN));
    KD_TRY(read_int(&c->max_positions, r, "max_position_embeddings", f->positions, MAX_POSITIONS));
    KD_TRY(read_int(&c->kv_heads, r, "num_key_value_heads", f->kv_heads ? f->kv_heads : c->heads,
                    MAX_HEADS));
    const bool own = get(r, "head_dim") || f->head_size;
    c->head_size = c->width / c->heads;
    if (own) KD_TRY(read_int(&c->head_size, r, "head_dim", f->head_size, MAX_HEADS));
    /* transformers refuses a Llama whose heads do not divide the width, even with a head_dim. */
    KD_TRY(check_heads(c, r, own && strcmp(f->name, "llama") != 0));
    KD_TRY(read_double(&c->norm_eps, r, "rms_norm_eps", 1e-6, 0, 1));
    KD_TRY(parse_rope(c, r));

    const char *activation;
    KD_TRY(read_string(&activation, r, "hidden_act"));
    if (activation && strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return not_supported(r, "hidden_act", "\"silu\" in this family");
    c->mlp = KD_MLP_SWIGLU;
    c->qk_norm = f->qk_norm;
    c->qkv_bias = f->qkv_bias;
    if (f->attention_bias_field) {
        KD_TRY(read_bool(&c->qkv_bias, r, "attention_bias", false));
        c->output_bias = c->qkv_bias;
    }
    if (f->mlp_bias_field) KD_TRY(read_bool(&c->mlp_bias, r, "mlp_bias", false));
    KD_TRY(require_flag(r, "rope_interleaved", false));
    return f->window == WINDOW_NONE ? KD_OK : parse_window(c, r, f);
}

static kd_status parse_gpt2(kd_config *c, const reader *r, const family *f)
{
    c->norm = KD_NORM_LAYER;
    c->position = KD_POSITION_LEARNED;
    KD_TRY(read_int(&c->layers, r, "n_layer", -1, MAX_LAYERS));
    KD_TRY(read_int(&c->width, r, "n_embd", -1, MAX_WIDTH));
    KD_TRY(read_int(&c->heads, r, "n_head", -1, MAX_HEADS));
    KD_TRY(read_int(&c->ffn, r, "n_inner", 4 * c->width, MAX_FFN));
    KD_TRY(read_int(&c->max_positions, r, "n_positions", f->positions, MAX_POSITIONS));
    KD_TRY(read_double(&c->norm_eps, r, "layer_norm_epsilon", 1e-5, 0, 1));
    c->kv_heads = c->heads;
    c->head_size = c->width / c->heads;
    KD_TRY(check_heads(c, r, false));

    const char *activation;
    KD_TRY(read_string(&activation, r, "activation_function"));
    if (!activation || !strcmp(activation, "gelu_new") || !strcmp(activation, "gelu_pytorch_tanh"))
        c->mlp = KD_MLP_GELU_TANH;
    else if (!strcmp(activation, "gelu"))
        c->mlp = KD_MLP_GELU;
    else
        return not_supported(r, "activation_function",
                             "\"gelu_new\", \"gelu_pytorch_tanh\" and \"gelu\"");
    c->qkv_bias = c->output_bias = c->mlp_bias = true;
    /* reorder_and_upcast_attn changes rounding only, so it is not asked for. */
    KD_TRY(require_flag(r, "scale_attn_weights", true));
    KD_TRY(require_flag(r, "scale_attn_by_inverse_layer_idx", false));
    return require_flag(r, "add_cross_attention", false);
}

/* ---- the whole file --------------------------------------------------------------------------- */

/* An id outside the vocabulary is what some published files say for "none". */
static kd_status token_id(int64_t *out, const kd_config *c, const reader *r, const char *key,
                          const json_t *value)
{
    if (!json_is_integer(value)) return refuse(r, key, "a token id");
    *out = (int64_t)json_integer_value(value);
    if (*out >= 0 && *out < c->vocabulary) return KD_OK;
    if (*out != -1)
        kd_log(KD_LOG_WARN, "%s: %s %lld is outside the vocabulary of %lld: taken as none",
               r->source, key, (long long)*out, (long long)c->vocabulary);
    *out = -1;
    return KD_OK;
}

static kd_status read_token(int64_t *out, const kd_config *c, const reader *r, const char *key,
                            int64_t fallback)
{
    const json_t *value = json_object_get(r->json, key);
    *out = value || fallback >= c->vocabulary ? -1 : fallback;
    return get(r, key) ? token_id(out, c, r, key, value) : KD_OK;
}

/* One id or a list of them; `fallback` where the key is absent. */
static kd_status read_eos(kd_config *c, const reader *r, int64_t fallback)
{
    const char *key = "eos_token_id";
    const json_t *value = get(r, key);
    const size_t most = sizeof c->eos / sizeof c->eos[0] - 1;
    for (size_t i = 0; i <= most; i++) c->eos[i] = -1; /* what config.json said is gone */
    if (!json_is_array(value)) return read_token(&c->eos[0], c, r, key, fallback);
    if (json_array_size(value) > most) return refuse(r, key, "at most 7 token ids");
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(value); i++) {
        int64_t id = -1;
        KD_TRY(token_id(&id, c, r, key, json_array_get(value, i)));
        if (id >= 0) c->eos[n++] = id;
    }
    return KD_OK;
}

static const family *find_family(const char *architecture, const char *model_type)
{
    for (int i = 0; i < KD_COUNT(families); i++) {
        const family *f = &families[i];
        if (architecture ? !strcmp(architecture, f->architecture) : !strcmp(model_type, f->name))
            return f;
    }
    return NULL;
}

/* By architectures[0]; by model_type where that list is absent. */
static kd_status choose_family(const family **out, const reader *r)
{
    const char *model_type, *architecture = NULL;
    const json_t *list = get(r, "architectures");
    KD_TRY(read_string(&model_type, r, "model_type"));
    if (json_array_size(list) > 0) architecture = json_string_value(json_array_get(list, 0));
    if ((list && !json_is_array(list)) || (json_array_size(list) > 0 && !architecture) ||
        (!architecture && !model_type))
        return refuse(r, "architectures", "a list of strings");
    *out = find_family(architecture, model_type);
    if (!*out)
        return not_supported(r, architecture ? "architectures" : "model_type",
                             "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
                             "Qwen3ForCausalLM, GPT2LMHeadModel and MLPForClassification");
    if (model_type && strcmp(model_type, (*out)->name) != 0) {
        char expected[64];
        (void)snprintf(expected, sizeof expected, "\"%s\" for %s", (*out)->name,
                       (*out)->architecture);
        return refuse(r, "model_type", expected);
    }
    return KD_OK;
}

static kd_status parse_decoder(kd_config *c, const reader *r, const family *f)
{
    c->causal = true;
    c->rotary_share = 1;
    KD_TRY(read_int(&c->vocabulary, r, "vocab_size", -1, MAX_VOCABULARY));
    KD_TRY(f->parse(c, r, f));
    KD_TRY(read_bool(&c->tied, r, "tie_word_embeddings", f->tied));
    if (kd_config_parameters(c) > max_parameters)
        return kd_fail(KD_EFORMAT, "%s: the sizes give %lld parameters, expected at most 2^50",
                       r->source, (long long)kd_config_parameters(c));
    KD_TRY(read_token(&c->bos, c, r, "bos_token_id", f->bos));
    KD_TRY(read_token(&c->pad, c, r, "pad_token_id", -1));
    return read_eos(c, r, f->eos);
}

static kd_status parse_fields(kd_config *c, const reader *r)
{
    const family *f = NULL;
    KD_TRY(choose_family(&f, r));
    c->family = f->name;
    c->architecture = f->architecture;
    KD_TRY(f->parse ? parse_decoder(c, r, f) : kd_config_parse_mlp(c, r));
    json_t *quantization = get(r, "quantization_config");
    if (quantization) {
        const reader q = { r->source, "quantization_config.", quantization };
        return not_supported(&q, "quant_method", "weights that are not quantized");
    }
    if (get(r, "auto_map"))
        kd_log(KD_LOG_WARN, "%s: auto_map is ignored: kd runs no code of a model", r->source);
    return KD_OK;
}

/* At level debug, one line: the keys that kd does not read. */
static void log_ignored(const reader *r)
{
    static const char *const known[] = {
        "activation_function",
        "add_cross_attention",
        "architectures",
        "attention_bias",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "hidden_sizes",
        "id2label",
        "initializer_range",
        "input_size",
        "intermediate_size",
        "layer_norm_epsilon",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "n_embd",
        "n_head",
        "n_inner",
        "n_layer",
        "n_positions",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_labels",
        "original_max_position_embeddings",
        "pad_token_id",
        "partial_rotary_factor",
        "quantization_config",
        "rms_norm_eps",
        "rope_interleaved",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "use_sliding_window",
        "vocab_size",
    };
    char line[512] = "";
    size_t length = 0;
    const char *key;
    json_t *value;
    json_object_foreach(r->json, key, value)
    {
        int i = 0;
        while (i < KD_COUNT(known) && strcmp(known[i], key) != 0) i++;
        if (i < KD_COUNT(known) || length + strlen(key) + 3 > sizeof line) continue;
        length += (size_t)snprintf(line + length, sizeof line - length, " %s", key);
    }
    if (length) kd_log(KD_LOG_DEBUG, "%s: ignored:%s", r->source, line);
}

kd_status kd_config_parse(kd_config *config, kd_arena *arena, const char *source,
                          const json_t *json)
{
    (void)arena; /* every string is static today */
    *config = (kd_config){ 0 };
    char text[80];
    if (!json_is_object(json))
        return kd_fail(KD_EFORMAT, "%s: found %s, expected an object", source,
                       kd_json_show(text, sizeof text, json));
    const int64_t before = kd_json_refused();
    config->raw = json_deep_copy(json);
    KD_TRY(kd_json_made(&config->raw, before, source));
    const reader r = { source, "", config->raw };
    const kd_status status = parse_fields(config, &r);
    if (status == KD_OK) {
        log_ignored(&r);
    } else {
        json_decref(config->raw);
        config->raw = NULL;
    }
    return status;
}

/* Where generation_config.json has eos_token_id, that is what generation stops at, also of a model that
 * is written with this configuration. */
static kd_status read_generation(kd_config *config, kd_arena *arena, const char *dir)
{
    const char *path = NULL;
    bool there;
    if (config->inputs) return KD_OK; /* a classifier generates nothing */
    KD_TRY(kd_path_join(&path, arena, dir, "generation_config.json"));
    KD_TRY(kd_file_find(&there, path));
    if (!there) return KD_OK;
    json_t *json = NULL;
    KD_TRY(kd_json_read(&json, path));
    const reader r = { path, "", json };
    json_t *eos = get(&r, "eos_token_id");
    kd_status status = eos ? read_eos(config, &r, -1) : KD_OK;
    if (eos && status == KD_OK && json_object_set(config->raw, "eos_token_id", eos) != 0)
        status = kd_fail(KD_ENOMEM, "%s: no memory", path);
    json_decref(json);
    return status;
}

kd_status kd_config_read(kd_config *config, kd_arena *arena, const char *dir)
{
    const char *path = NULL;
    json_t *json = NULL;
    *config = (kd_config){ 0 };
    KD_TRY(kd_path_join(&path, arena, dir, "config.json"));
    KD_TRY(kd_json_read(&json, path));
    kd_status status;
    KD_TRY_GOTO(kd_config_parse(config, arena, path, json), status, failed);
    KD_TRY_GOTO(kd_arena_string(&config->dir, arena, dir), status, failed);
    KD_TRY_GOTO(read_generation(config, arena, dir), status, failed);
    json_decref(json);
    return KD_OK;
failed:
    json_decref(json);
    json_decref(config->raw);
    config->raw = NULL;
    return status;
}
