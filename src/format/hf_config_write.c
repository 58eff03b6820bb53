/*
 * hf_config_write.c - config.json of a model that kd made or changed.
 *
 * Written from the raw file where there is one, so that fields kd does not know survive; every field
 * that kd does know is then set from `kd_config`.  The older names (rope_theta, rope_scaling,
 * torch_dtype) are written for a new file: every transformers reads them, while only 5.x reads the new.
 */
#include "format/format.h"

static bool is_gpt2(const kd_config *c) { return !strcmp(c->family, "gpt2"); }
static bool is_qwen(const kd_config *c) { return !strncmp(c->family, "qwen", 4); }

/* What could not be set is found at the end (kd_json_made). */
typedef struct writer {
    json_t *json;
} writer;

static void put(writer *w, const char *key, json_t *value)
{
    (void)json_object_set_new(w->json, key, value);
}

static void put_int(writer *w, const char *key, int64_t value)
{
    put(w, key, json_integer((json_int_t)value));
}

static bool has(const writer *w, const char *key) { return json_object_get(w->json, key) != NULL; }

static void put_token(writer *w, const char *key, int64_t id)
{
    if (!has(w, key)) put(w, key, id < 0 ? json_null() : json_integer((json_int_t)id));
}

static void put_eos(writer *w, const kd_config *c)
{
    if (has(w, "eos_token_id")) return;
    if (c->eos[0] < 0 || c->eos[1] < 0) {
        put_token(w, "eos_token_id", c->eos[0]);
        return;
    }
    json_t *list = json_array();
    for (int i = 0; c->eos[i] >= 0; i++)
        (void)json_array_append_new(list, json_integer((json_int_t)c->eos[i]));
    put(w, "eos_token_id", list);
}

static void put_rope(writer *w, const kd_config *c)
{
    if (has(w, "rope_theta") || has(w, "rope_scaling") || has(w, "rope_parameters")) return;
    put(w, "rope_theta", json_real(c->rope_theta));
    if (c->rope_scaling == KD_ROPE_LINEAR)
        put(w, "rope_scaling",
            json_pack("{s:s, s:f}", "rope_type", "linear", "factor", c->rope_factor));
    if (c->rope_scaling == KD_ROPE_LLAMA3)
        put(w, "rope_scaling",
            json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", c->rope_factor,
                      "low_freq_factor", c->rope_low, "high_freq_factor", c->rope_high,
                      "original_max_position_embeddings", (json_int_t)c->rope_original));
}

/* layer_types and its like: one entry per layer, known by name and by the old number of layers. */
static void cut_lists(writer *w, int64_t old_layers, int64_t layers)
{
    const char *key;
    json_t *list;
    json_object_foreach(w->json, key, list)
    {
        if (!strstr(key, "layer") || (int64_t)json_array_size(list) != old_layers) continue;
        while ((int64_t)json_array_size(list) > layers)
            if (json_array_remove(list, json_array_size(list) - 1) != 0) return;
    }
}

/* After cut_lists: layer_types says what the window fields say, whichever layers were kept. */
static void put_window(writer *w, const kd_config *c)
{
    const bool used = c->window > 0;
    if (!strcmp(c->family, "mistral"))
        put(w, "sliding_window", used ? json_integer((json_int_t)c->window) : json_null());
    if (is_qwen(c)) {
        put(w, "use_sliding_window", json_boolean(used));
        if (used) {
            put_int(w, "sliding_window", c->window);
            put_int(w, "max_window_layers", c->window_from);
        }
    }
    if (!has(w, "layer_types")) return;
    json_t *types = json_array();
    for (int64_t i = 0; i < c->layers; i++) {
        const bool sliding = used && i >= c->window_from;
        (void)json_array_append_new(types,
                                    json_string(sliding ? "sliding_attention" : "full_attention"));
    }
    put(w, "layer_types", types);
}

static void put_llama_like(writer *w, const kd_config *c)
{
    put_int(w, "hidden_size", c->width);
    put_int(w, "intermediate_size", c->ffn);
    put_int(w, "num_hidden_layers", c->layers);
    put_int(w, "num_attention_heads", c->heads);
    put_int(w, "num_key_value_heads", c->kv_heads);
    /* A null head_dim is the same as none for Llama and Mistral; Qwen3 always has one. */
    if (!strcmp(c->family, "qwen3") || c->head_size * c->heads != c->width ||
        json_is_integer(json_object_get(w->json, "head_dim")))
        put_int(w, "head_dim", c->head_size);
    put_int(w, "max_position_embeddings", c->max_positions);
    if (!has(w, "rms_norm_eps")) put(w, "rms_norm_eps", json_real(c->norm_eps));
    if (!has(w, "hidden_act")) put(w, "hidden_act", json_string("silu"));
    if (!strcmp(c->family, "llama") || !strcmp(c->family, "qwen3"))
        put(w, "attention_bias", json_boolean(c->qkv_bias));
    if (!strcmp(c->family, "llama")) put(w, "mlp_bias", json_boolean(c->mlp_bias));
    put_rope(w, c);
    put_window(w, c);
}

static void put_gpt2(writer *w, const kd_config *c)
{
    put_int(w, "n_embd", c->width);
    put_int(w, "n_layer", c->layers);
    put_int(w, "n_head", c->heads);
    put_int(w, "n_positions", c->max_positions);
    if (has(w, "n_ctx")) put_int(w, "n_ctx", c->max_positions);
    put(w, "n_inner", c->ffn == 4 * c->width ? json_null() : json_integer((json_int_t)c->ffn));
    if (!has(w, "layer_norm_epsilon")) put(w, "layer_norm_epsilon", json_real(c->norm_eps));
    if (!has(w, "activation_function"))
        put(w, "activation_function", json_string(c->mlp == KD_MLP_GELU ? "gelu" : "gelu_new"));
}

static void put_mlp(writer *w, const kd_config *c)
{
    static const char *const names[] = {
        [KD_MLP_GELU] = "gelu", [KD_MLP_GELU_TANH] = "gelu_new", [KD_MLP_RELU] = "relu"
    };
    json_t *sizes = json_array();
    for (int64_t l = 0; l < c->layers; l++)
        (void)json_array_append_new(sizes, json_integer((json_int_t)c->hidden[l]));
    put_int(w, "input_size", c->inputs);
    put(w, "hidden_sizes", sizes);
    put_int(w, "num_labels", c->vocabulary);
    if (!has(w, "hidden_act")) put(w, "hidden_act", json_string(names[c->mlp]));
}

/* What follows from being a language model. */
static void put_transformer(writer *w, const kd_config *c)
{
    const json_t *old = json_object_get(c->raw, is_gpt2(c) ? "n_layer" : "num_hidden_layers");
    put_int(w, "vocab_size", c->vocabulary);
    put(w, "tie_word_embeddings", json_boolean(c->tied));
    if (old) cut_lists(w, (int64_t)json_integer_value(old), c->layers);
    if (is_gpt2(c))
        put_gpt2(w, c);
    else
        put_llama_like(w, c);
    put_token(w, "bos_token_id", c->bos);
    put_token(w, "pad_token_id", c->pad);
    put_eos(w, c);
    if (!has(w, "use_cache")) put(w, "use_cache", json_true());
}

static void put_dtype(writer *w, const char *dtype)
{
    if (has(w, "dtype")) put(w, "dtype", json_string(dtype));
    if (has(w, "torch_dtype") || !has(w, "dtype")) put(w, "torch_dtype", json_string(dtype));
}

static const char *torch_name(kd_dtype dtype)
{
    switch (dtype) {
    case KD_F32: return "float32";
    case KD_BF16: return "bfloat16";
    case KD_F16: return "float16";
    default: return NULL;
    }
}

kd_status kd_config_write(const kd_config *config, const char *path, kd_dtype dtype)
{
    const char *type = torch_name(dtype);
    if (!type)
        return kd_fail(KD_EINVAL, "%s: weights in %s, expected f32, bf16 or f16", path,
                       kd_dtype_name(dtype));
    const int64_t before = kd_json_refused();
    writer w = { config->raw ? json_deep_copy(config->raw) : json_object() };
    /* Code of the model's repository is not copied, so nothing may point to it. */
    (void)json_object_del(w.json, "auto_map");
    put(&w, "architectures", json_pack("[s]", config->architecture));
    put(&w, "model_type", json_string(config->family));
    (config->inputs ? put_mlp : put_transformer)(&w, config);
    put_dtype(&w, type);
    KD_TRY(kd_json_made(&w.json, before, path));
    const kd_status status = kd_json_write(path, w.json);
    json_decref(w.json);
    return status;
}
