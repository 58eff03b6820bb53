/* Configurations: published ones field by field, defaults, refusals, and what kd writes back. */
#include "scratch.h"

#include <math.h>

typedef struct published {
    const char *name;
    int64_t parameters; /* as transformers counts them: tests/golden/make_safetensors.py */
    int64_t layers, width, heads, kv_heads, head_size, ffn, vocabulary, positions, window;
    double theta, eps;
    bool tied, qkv_bias, output_bias, qk_norm;
    int64_t bos, eos;
} published;

static const published models[] = {
    { "SmolLM2-135M", 134515008, 30, 576, 9, 3, 64, 1536, 49152, 8192, 0, 1e5, 1e-5, true, false,
      false, false, 0, 0 },
    { "Llama-3.2-1B", 1235814400, 16, 2048, 32, 8, 64, 8192, 128256, 131072, 0, 5e5, 1e-5, true,
      false, false, false, 128000, 128001 },
    { "Llama-3.2-1B.transformers5", 1235814400, 16, 2048, 32, 8, 64, 8192, 128256, 131072, 0, 5e5,
      1e-5, true, false, false, false, 128000, 128001 },
    { "Mistral-7B-v0.1", 7241732096, 32, 4096, 32, 8, 128, 14336, 32000, 32768, 4096, 1e4, 1e-5,
      false, false, false, false, 1, 2 },
    { "Qwen2.5-0.5B", 494032768, 24, 896, 14, 2, 64, 4864, 151936, 32768, 0, 1e6, 1e-6, true, true,
      false, false, 151643, 151643 },
    { "Qwen2.5-0.5B.transformers5", 494032768, 24, 896, 14, 2, 64, 4864, 151936, 32768, 0, 1e6,
      1e-6, true, true, false, false, 151643, 151643 },
    { "Qwen2.5-7B", 7615616512, 28, 3584, 28, 4, 128, 18944, 152064, 131072, 0, 1e6, 1e-6, false,
      true, false, false, 151643, 151643 },
    { "Qwen3-0.6B", 596049920, 28, 1024, 16, 8, 128, 3072, 151936, 40960, 0, 1e6, 1e-6, true, false,
      false, true, 151643, 151645 },
    { "gpt2", 124439808, 12, 768, 12, 12, 64, 3072, 50257, 1024, 0, 0, 1e-5, true, true, true,
      false, 50256, 50256 },
};

static void check_published(const kd_config *c, const published *m)
{
    const bool gpt2 = !strcmp(m->name, "gpt2");
    cr_expect_eq(kd_config_parameters(c), m->parameters, "%s: %lld", m->name,
                 (long long)kd_config_parameters(c));
    cr_expect(c->layers == m->layers && c->width == m->width && c->heads == m->heads &&
                  c->kv_heads == m->kv_heads && c->head_size == m->head_size && c->ffn == m->ffn &&
                  c->vocabulary == m->vocabulary && c->max_positions == m->positions,
              "%s: a shape differs", m->name);
    cr_expect(c->window == m->window && c->window_from == 0, "%s: window %lld from %lld", m->name,
              (long long)c->window, (long long)c->window_from);
    cr_expect(c->rope_theta == m->theta && c->norm_eps == m->eps && c->rotary_share == 1,
              "%s: theta %g eps %g", m->name, c->rope_theta, c->norm_eps);
    cr_expect(c->tied == m->tied && c->qkv_bias == m->qkv_bias &&
                  c->output_bias == m->output_bias && c->qk_norm == m->qk_norm &&
                  c->mlp_bias == gpt2 && c->causal,
              "%s: a flag differs", m->name);
    cr_expect(c->bos == m->bos && c->eos[0] == m->eos && c->eos[1] == -1 && c->pad == -1,
              "%s: a token differs", m->name);
    cr_expect(c->norm == (gpt2 ? KD_NORM_LAYER : KD_NORM_RMS) &&
                  c->position == (gpt2 ? KD_POSITION_LEARNED : KD_POSITION_ROPE) &&
                  c->mlp == (gpt2 ? KD_MLP_GELU_TANH : KD_MLP_SWIGLU),
              "%s: a kind differs", m->name);
}

static void check_rope(const kd_st_file *golden_rope, const kd_config *c, const char *name)
{
    const kd_st_entry *entry = kd_st_find(golden_rope, name);
    float want[64], got[65], scale = 0;
    cr_assert(entry && entry->elements == c->head_size / 2, "%s", name);
    cr_assert(kd_st_read(want, KD_F32, golden_rope, entry, 0, entry->elements) == KD_OK);
    got[entry->elements] = -7;
    kd_config_rope(got, &scale, c);
    cr_expect(scale == 1 && got[entry->elements] == -7, "%s", name);
    /* transformers raises to a power in f32, whose exponent of up to log2(theta) loses that many
     * roundings; ours is rounded once. */
    for (int64_t i = 0; i < entry->elements; i++) {
        const double bound = 0x1p-24 * (2 + log2(c->rope_theta)) * (double)want[i];
        cr_expect(fabs((double)got[i] - (double)want[i]) <= bound, "%s: frequency %lld: %.9g, %.9g",
                  name, (long long)i, (double)got[i], (double)want[i]);
    }
}

Test(config, published)
{
    kd_arena *arena = NULL;
    kd_st_file *rope = NULL;
    cr_assert(kd_arena_create(&arena) == KD_OK);
    cr_assert(kd_st_open(&rope, KD_GOLDEN "/safetensors/rope.safetensors") == KD_OK);
    for (int i = 0; i < KD_COUNT(models); i++) {
        json_t *json = scratch_config(models[i].name, "{}");
        kd_config c;
        cr_assert(kd_config_parse(&c, arena, models[i].name, json) == KD_OK, "%s", kd_last_error());
        check_published(&c, &models[i]);
        char name[64];
        (void)snprintf(name, sizeof name, "%s", models[i].name);
        char *version = strstr(name, ".transformers5");
        if (version) *version = '\0';
        if (c.position == KD_POSITION_ROPE) check_rope(rope, &c, name);
        json_decref(c.raw);
        json_decref(json);
    }
    kd_st_close(rope);
    kd_arena_destroy(arena);
}

/* ---- edits of a published file ---------------------------------------------------------------- */

typedef struct refusal {
    const char *name, *edit;
    kd_status status;
    const char *message;
} refusal;

#define LAYERS_24(first, last)                                                                     \
    "[\"" first "\"," F "," F "," F "," F "," F "," F "," F "," F "," F "," F "," F "," F "," F    \
    "," F "," F "," F "," F "," F "," F "," F "," F ",\"" last "\",\"" last "\"]"
#define F "\"full_attention\""

static const refusal refusals[] = {
    { "gpt2", "{\"architectures\":[\"BertModel\"]}", KD_ENOTSUP,
      "architectures is [\"BertModel\"]; kd computes LlamaForCausalLM, MistralForCausalLM, "
      "Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel and MLPForClassification" },
    { "gpt2", "{\"architectures\":[7]}", KD_EFORMAT,
      "architectures is [7], expected a list of strings" },
    { "gpt2", "{\"architectures\":\"absent\",\"model_type\":\"absent\"}", KD_EFORMAT,
      "architectures is nothing, expected a list of strings" },
    { "gpt2", "{\"architectures\":\"absent\",\"model_type\":\"gemma\"}", KD_ENOTSUP,
      "model_type is \"gemma\"; kd computes LlamaForCausalLM, MistralForCausalLM, "
      "Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel and MLPForClassification" },
    { "gpt2", "{\"architectures\":\"GPT2LMHeadModel\"}", KD_EFORMAT,
      "architectures is \"GPT2LMHeadModel\", expected a list of strings" },
    { "gpt2", "{\"architectures\":{}}", KD_EFORMAT,
      "architectures is {}, expected a list of strings" },
    { "gpt2", "{\"n_embd\":9007199254740993}", KD_EFORMAT,
      "n_embd is 9007199254740993, expected an integer from 1 to 1048576" },
    { "gpt2", "{\"n_embd\":1e3}", KD_EFORMAT,
      "n_embd is 1000.0, expected an integer from 1 to 1048576" },
    { "gpt2", "{\"n_embd\":-1}", KD_EFORMAT,
      "n_embd is -1, expected an integer from 1 to 1048576" },
    { "gpt2", "{\"layer_norm_epsilon\":1.5}", KD_EFORMAT,
      "layer_norm_epsilon is 1.5, expected a number above 0, at most 1" },
    { "Qwen3-0.6B",
      "{\"num_hidden_layers\":4096,\"hidden_size\":1048576,\"intermediate_size\":4194304}",
      KD_EFORMAT, "the sizes give 54069751715987456 parameters, expected at most 2^50" },
    { "gpt2", "{\"model_type\":\"llama\"}", KD_EFORMAT,
      "model_type is \"llama\", expected \"gpt2\" for GPT2LMHeadModel" },
    { "SmolLM2-135M", "{\"hidden_size\":0}", KD_EFORMAT,
      "hidden_size is 0, expected an integer from 1 to 1048576" },
    { "SmolLM2-135M", "{\"hidden_size\":2000000}", KD_EFORMAT,
      "hidden_size is 2000000, expected an integer from 1 to 1048576" },
    { "SmolLM2-135M", "{\"hidden_size\":576.0}", KD_EFORMAT,
      "hidden_size is 576.0, expected an integer from 1 to 1048576" },
    { "SmolLM2-135M", "{\"hidden_size\":\"576\"}", KD_EFORMAT,
      "hidden_size is \"576\", expected an integer from 1 to 1048576" },
    { "SmolLM2-135M", "{\"hidden_size\":\"absent\"}", KD_EFORMAT,
      "hidden_size is nothing, expected an integer from 1 to 1048576" },
    { "SmolLM2-135M", "{\"num_hidden_layers\":5000}", KD_EFORMAT,
      "num_hidden_layers is 5000, expected an integer from 1 to 4096" },
    { "SmolLM2-135M", "{\"vocab_size\":16777217}", KD_EFORMAT,
      "vocab_size is 16777217, expected an integer from 1 to 16777216" },
    { "SmolLM2-135M", "{\"vocab_size\":-5}", KD_EFORMAT,
      "vocab_size is -5, expected an integer from 1 to 16777216" },
    { "SmolLM2-135M", "{\"intermediate_size\":4294967296}", KD_EFORMAT,
      "intermediate_size is 4294967296, expected an integer from 1 to 4194304" },
    { "SmolLM2-135M", "{\"num_attention_heads\":10}", KD_EFORMAT,
      "num_key_value_heads is 3, expected a divisor of num_attention_heads" },
    { "SmolLM2-135M", "{\"num_key_value_heads\":2}", KD_EFORMAT,
      "num_key_value_heads is 2, expected a divisor of num_attention_heads" },
    { "SmolLM2-135M", "{\"hidden_size\":577}", KD_EFORMAT, "9 heads do not divide a width of 577" },
    { "SmolLM2-135M", "{\"hidden_size\":147456}", KD_EFORMAT,
      "a head of 16384 columns, expected an even number up to 8192" },
    { "SmolLM2-135M", "{\"hidden_size\":567}", KD_EFORMAT,
      "a head of 63 columns, expected an even number" },
    { "SmolLM2-135M", "{\"rms_norm_eps\":0}", KD_EFORMAT,
      "rms_norm_eps is 0, expected a number above 0, at most 1" },
    { "SmolLM2-135M", "{\"rms_norm_eps\":-1e-5}", KD_EFORMAT,
      "rms_norm_eps is -1e-5, expected a number above 0, at most 1" },
    { "SmolLM2-135M", "{\"rms_norm_eps\":\"NaN\"}", KD_EFORMAT,
      "rms_norm_eps is \"NaN\", expected a number above 0, at most 1" },
    { "SmolLM2-135M", "{\"tie_word_embeddings\":1}", KD_EFORMAT,
      "tie_word_embeddings is 1, expected true or false" },
    { "SmolLM2-135M", "{\"hidden_act\":\"relu2\"}", KD_ENOTSUP,
      "hidden_act is \"relu2\"; kd computes \"silu\" in this family" },
    { "SmolLM2-135M", "{\"hidden_act\":3}", KD_EFORMAT, "hidden_act is 3, expected a string" },
    { "SmolLM2-135M", "{\"rope_interleaved\":true}", KD_ENOTSUP,
      "rope_interleaved is true; kd computes false" },
    { "SmolLM2-135M", "{\"rope_theta\":0}", KD_EFORMAT,
      "rope_theta is 0, expected a number above 0, at most 1e+15" },
    { "SmolLM2-135M", "{\"partial_rotary_factor\":0.5}", KD_ENOTSUP,
      "partial_rotary_factor is 0.5; kd computes 1" },
    { "SmolLM2-135M", "{\"rope_scaling\":\"yarn\"}", KD_EFORMAT,
      "rope_scaling is \"yarn\", expected an object" },
    { "SmolLM2-135M", "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", KD_ENOTSUP,
      "rope_scaling.type is \"yarn\"; kd computes \"default\", \"linear\" and \"llama3\"" },
    { "SmolLM2-135M", "{\"rope_parameters\":{\"rope_type\":\"dynamic\"}}", KD_ENOTSUP,
      "rope_parameters.rope_type is \"dynamic\"; kd computes \"default\", \"linear\" and "
      "\"llama3\"" },
    { "SmolLM2-135M", "{\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}",
      KD_ENOTSUP, "rope_parameters.full_attention: kd computes one kind of rope per model" },
    { "SmolLM2-135M", "{\"rope_scaling\":{\"type\":\"linear\"}}", KD_EFORMAT,
      "rope_scaling.factor is nothing, expected a number above 0, at most 1e+06" },
    { "Llama-3.2-1B",
      "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
      "\"low_freq_factor\":4,\"high_freq_factor\":4}}",
      KD_EFORMAT, "rope_scaling.high_freq_factor is 4, expected more than low_freq_factor" },
    { "SmolLM2-135M", "{\"quantization_config\":{\"quant_method\":\"gptq\"}}", KD_ENOTSUP,
      "quantization_config.quant_method is \"gptq\"; kd computes weights that are not quantized" },
    { "SmolLM2-135M", "{\"eos_token_id\":\"</s>\"}", KD_EFORMAT,
      "eos_token_id is \"</s>\", expected a token id" },
    { "SmolLM2-135M", "{\"eos_token_id\":[1,2,3,4,5,6,7,8]}", KD_EFORMAT,
      "eos_token_id is [1,2,3,4,5,6,7,8], expected at most 7 token ids" },
    { "Mistral-7B-v0.1", "{\"sliding_window\":0}", KD_EFORMAT,
      "sliding_window is 0, expected an integer from 1 to 268435456" },
    { "Qwen2.5-0.5B", "{\"layer_types\":[\"full_attention\"]}", KD_EFORMAT,
      "layer_types is [\"full_attention\"], expected one string per layer" },
    { "Qwen2.5-0.5B", "{\"layer_types\":" LAYERS_24("full_attention", "sliding_attention") "}",
      KD_EFORMAT,
      "layer_types is a long value, expected no sliding_attention where there is no window" },
    { "Qwen2.5-0.5B",
      "{\"use_sliding_window\":true,\"layer_types\":" LAYERS_24("sliding_attention",
                                                                "full_attention") "}",
      KD_ENOTSUP,
      "layer_types[1] is full_attention after a sliding_attention; kd computes full layers first, "
      "then windowed ones" },
    { "Qwen2.5-0.5B", "{\"layer_types\":" LAYERS_24("full_attention", "linear_attention") "}",
      KD_ENOTSUP,
      "layer_types[22] is \"linear_attention\"; kd computes \"full_attention\" and "
      "\"sliding_attention\"" },
    { "Qwen2.5-0.5B", "{\"use_sliding_window\":true,\"max_window_layers\":-1}", KD_EFORMAT,
      "max_window_layers is -1, expected an integer from 0" },
    { "gpt2", "{\"scale_attn_by_inverse_layer_idx\":true}", KD_ENOTSUP,
      "scale_attn_by_inverse_layer_idx is true; kd computes false" },
    { "gpt2", "{\"scale_attn_weights\":false}", KD_ENOTSUP,
      "scale_attn_weights is false; kd computes true" },
    { "gpt2", "{\"add_cross_attention\":true}", KD_ENOTSUP,
      "add_cross_attention is true; kd computes false" },
    { "gpt2", "{\"activation_function\":\"relu\"}", KD_ENOTSUP,
      "activation_function is \"relu\"; kd computes \"gelu_new\", \"gelu_pytorch_tanh\" and "
      "\"gelu\"" },
    { "gpt2", "{\"n_head\":7}", KD_EFORMAT, "7 heads do not divide a width of 768" },
};

Test(config, refusals)
{
    for (int i = 0; i < KD_COUNT(refusals); i++) {
        const refusal *r = &refusals[i];
        json_t *json = scratch_config(r->name, r->edit);
        kd_config c;
        const kd_status status = kd_config_parse(&c, NULL, "some/config.json", json);
        test_refusal(status, r->status, r->message, r->edit);
        test_refusal(status, status, "some/config.json: ", r->edit);
        if (status != KD_OK) cr_expect_null(c.raw, "%s", r->edit);
        json_decref(c.raw);
        json_decref(json);
    }
}

static kd_config parsed(const char *name, const char *edit)
{
    json_t *json = scratch_config(name, edit);
    kd_config c;
    cr_assert(kd_config_parse(&c, NULL, "config.json", json) == KD_OK, "%s: %s", edit,
              kd_last_error());
    json_decref(json);
    json_decref(c.raw);
    c.raw = NULL;
    return c;
}

/* What an absent field means is transformers' choice, per family. */
Test(config, defaults_and_spellings)
{
    scratch_open();
    kd_config c =
        parsed("SmolLM2-135M", "{\"tie_word_embeddings\":\"absent\",\"rope_theta\":\"absent\","
                               "\"num_key_value_heads\":\"absent\",\"bos_token_id\":\"absent\","
                               "\"rms_norm_eps\":\"absent\",\"hidden_act\":\"absent\","
                               "\"max_position_embeddings\":\"absent\"}");
    cr_expect(!c.tied && c.rope_theta == 10000 && c.kv_heads == 9 && c.bos == 1 &&
              c.norm_eps == 1e-6 && c.max_positions == 2048);
    c = parsed("SmolLM2-135M", "{\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":32}");
    cr_expect(c.qkv_bias && c.output_bias && c.mlp_bias && c.head_size == 32);
    const int64_t biases = 30 * (9 * 32 + 2 * 3 * 32 + 576 + 2 * 1536 + 576);
    const int64_t narrower = 30 * 576 * (2 * 9 + 2 * 3) * 32;
    cr_expect_eq(kd_config_parameters(&c), 134515008 + biases - narrower);
    c = parsed("SmolLM2-135M", "{\"head_dim\":null,\"architectures\":\"absent\"}");
    cr_expect(c.head_size == 64 && !strcmp(c.architecture, "LlamaForCausalLM"));
    c = parsed("SmolLM2-135M", "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}");
    cr_expect(c.rope_scaling == KD_ROPE_LINEAR && c.rope_factor == 4 && c.rope_theta == 1e5);
    float f[32], scale;
    kd_config_rope(f, &scale, &c);
    cr_expect(f[0] == 0.25f && scale == 1);
    c = parsed("SmolLM2-135M", "{\"rope_theta\":\"absent\",\"rope_parameters\":{\"rope_type\":"
                               "\"default\",\"rope_theta\":777}}");
    cr_expect(c.rope_scaling == KD_ROPE_PLAIN && c.rope_theta == 777);
    c = parsed("Llama-3.2-1B", "{\"original_max_position_embeddings\":4096}");
    cr_expect(c.rope_scaling == KD_ROPE_LLAMA3 && c.rope_factor == 32 && c.rope_low == 1 &&
              c.rope_high == 4 && c.rope_original == 4096);
    c = parsed("Llama-3.2-1B", "{\"eos_token_id\":[128001,128008,128009],\"pad_token_id\":128004}");
    cr_expect(c.eos[0] == 128001 && c.eos[2] == 128009 && c.eos[3] == -1 && c.pad == 128004);

    c = parsed("Mistral-7B-v0.1",
               "{\"sliding_window\":\"absent\",\"num_key_value_heads\":\"absent\"}");
    cr_expect(c.window == 4096 && c.kv_heads == 8);
    c = parsed("Mistral-7B-v0.1", "{\"sliding_window\":null,\"bos_token_id\":null}");
    cr_expect(c.window == 0 && c.bos == -1 && c.eos[0] == 2);

    c = parsed("Qwen2.5-0.5B", "{\"use_sliding_window\":true,\"max_window_layers\":20}");
    cr_expect(c.window == 32768 && c.window_from == 20);
    c = parsed("Qwen2.5-0.5B",
               "{\"use_sliding_window\":true,\"sliding_window\":512,\"layer_types\":" LAYERS_24(
                   "full_attention", "sliding_attention") "}");
    cr_expect(c.window == 512 && c.window_from == 22);
    c = parsed("Qwen2.5-0.5B", "{\"use_sliding_window\":true,\"max_window_layers\":24}");
    cr_expect(c.window == 0 && c.window_from == 0, "a window that no layer has");
    c = parsed("Qwen2.5-0.5B", "{\"tie_word_embeddings\":\"absent\",\"bos_token_id\":\"absent\","
                               "\"eos_token_id\":\"absent\"}");
    cr_expect(!c.tied && c.bos == -1 && c.eos[0] == -1);
    c = parsed("Qwen3-0.6B", "{\"head_dim\":\"absent\",\"attention_bias\":true}");
    cr_expect(c.head_size == 128 && c.qkv_bias && c.output_bias && c.qk_norm);
    c = parsed("gpt2", "{\"n_inner\":1000,\"activation_function\":\"gelu\","
                       "\"tie_word_embeddings\":false,\"vocab_size\":97}");
    cr_expect(c.ffn == 1000 && c.mlp == KD_MLP_GELU && !c.tied && c.bos == -1 && c.eos[0] == -1);
    cr_expect(strstr(scratch_log, "outside the vocabulary of 97"), "%s", scratch_log);

    /* SmolLM2: 2 operations per weight of every product, head included, tied or not. */
    c = parsed("SmolLM2-135M", "{}");
    cr_expect_eq(kd_config_flops(&c), 2 * (134515008 - (2 * 30 + 1) * 576));
    scratch_close();
}

/* The largest configuration of an accepted number of parameters counts without overflow. */
Test(config, bounds)
{
    scratch_open();
    const kd_config c =
        parsed("Qwen3-0.6B", "{\"num_hidden_layers\":3,\"hidden_size\":1048576,"
                             "\"num_attention_heads\":8192,\"num_key_value_heads\":8192,"
                             "\"head_dim\":8192,\"intermediate_size\":4194304,"
                             "\"vocab_size\":16777216,\"tie_word_embeddings\":false}");
    const double blocks = 3.0 * 1048576.0 * (4 * 8192.0 * 8192.0 + 3 * 4194304.0);
    const double table = 16777216.0 * 1048576.0;
    cr_expect(fabs((double)kd_config_parameters(&c) / (blocks + 2 * table) - 1) < 1e-4);
    cr_expect(fabs((double)kd_config_flops(&c) / (2 * (blocks + table)) - 1) < 1e-4);

    scratch_close();
}

/* ---- writing ---------------------------------------------------------------------------------- */

static void expect_same(const kd_config *a, const kd_config *b, const char *what)
{
    cr_expect(!strcmp(a->family, b->family) && !strcmp(a->architecture, b->architecture), "%s",
              what);
    cr_expect(a->layers == b->layers && a->width == b->width && a->heads == b->heads &&
                  a->kv_heads == b->kv_heads && a->head_size == b->head_size && a->ffn == b->ffn &&
                  a->vocabulary == b->vocabulary && a->max_positions == b->max_positions,
              "%s: a shape differs", what);
    cr_expect(a->norm == b->norm && a->norm_eps == b->norm_eps && a->position == b->position &&
                  a->rope_theta == b->rope_theta && a->rope_scaling == b->rope_scaling &&
                  a->rope_factor == b->rope_factor && a->rope_low == b->rope_low &&
                  a->rope_high == b->rope_high && a->rope_original == b->rope_original &&
                  a->rotary_share == b->rotary_share,
              "%s: a number differs", what);
    cr_expect(a->qkv_bias == b->qkv_bias && a->output_bias == b->output_bias &&
                  a->mlp_bias == b->mlp_bias && a->qk_norm == b->qk_norm && a->tied == b->tied &&
                  a->causal == b->causal && a->mlp == b->mlp,
              "%s: a flag differs", what);
    cr_expect(a->window == b->window && a->window_from == b->window_from, "%s: the window differs",
              what);
    cr_expect(a->bos == b->bos && a->pad == b->pad && !memcmp(a->eos, b->eos, sizeof a->eos),
              "%s: a token differs", what);
}

static void check_dtype(const json_t *raw, const char *name)
{
    const char *dtype = json_string_value(json_object_get(raw, "dtype"));
    const char *torch_dtype = json_string_value(json_object_get(raw, "torch_dtype"));
    cr_expect(dtype || torch_dtype, "%s", name);
    cr_expect(!dtype || !strcmp(dtype, "float16"), "%s: dtype %s", name, dtype);
    cr_expect(!torch_dtype || !strcmp(torch_dtype, "float16"), "%s: torch_dtype %s", name,
              torch_dtype);
}

/* A changed configuration comes back as it was written, with its raw file and without. */
Test(config, writes)
{
    kd_arena *arena = NULL;
    scratch_open();
    cr_assert(kd_arena_create(&arena) == KD_OK);
    for (int i = 0; i < 2 * KD_COUNT(models); i++) {
        const char *name = models[i / 2].name;
        json_t *json =
            scratch_config(name, "{\"auto_map\":{\"AutoModel\":\"x.y\"},\"custom\":[1,2]}");
        kd_config c, back;
        cr_assert(kd_config_parse(&c, arena, name, json) == KD_OK, "%s", kd_last_error());
        json_decref(json);
        if (i % 2) {
            json_decref(c.raw);
            c.raw = NULL;
        }
        c.layers = 7;
        c.vocabulary += 128;
        c.tied = !c.tied;
        if (!strncmp(c.family, "qwen", 4)) {
            c.window = 640;
            c.window_from = 3;
        }
        cr_assert(kd_config_write(&c, scratch_path("config.json"), KD_F16) == KD_OK, "%s",
                  kd_last_error());
        cr_assert(kd_config_read(&back, arena, scratch_dir) == KD_OK, "%s: %s", name,
                  kd_last_error());
        cr_expect_str_eq(back.dir, scratch_dir);
        expect_same(&c, &back, name);
        check_dtype(back.raw, name);
        const json_t *types = json_object_get(back.raw, "layer_types");
        cr_expect(!types || json_array_size(types) == 7, "%s: %zu layer types", name,
                  json_array_size(types));
        cr_expect_null(json_object_get(back.raw, "auto_map"), "%s", name);
        cr_expect_eq(json_array_size(json_object_get(back.raw, "custom")), i % 2 ? 0 : 2, "%s",
                     name);
        json_decref(back.raw);
        json_decref(c.raw);
    }
    kd_config c = parsed("gpt2", "{}");
    cr_expect_eq(kd_config_write(&c, scratch_path("config.json"), KD_U8), KD_EINVAL);
    cr_expect(strstr(scratch_log, "auto_map is ignored"));
    kd_arena_destroy(arena);
    scratch_close();
}

typedef struct broken_file {
    const char *name, *text, *message;
} broken_file;

static const broken_file broken_files[] = {
    { "config.json", "", "1:0: |expected near end of file" },
    { "config.json", "3", "1:1: |expected" },
    { "config.json", "[]", ": found [], expected an object" },
    { "config.json", "{\"vocab_size\":5", "1:15: '}' expected near end of file" },
    { "config.json", "{\"vocab_size\":5}x", "1:17: |end of file expected" },
    { "config.json", "{\"vocab_size\":5,\"vocab_size\":6}", "1:28: |duplicate object key" },
    { "config.json", "{\"vocab_size\":-0}", ":1:15: -0 is not a decimal integer" },
    { "config.json", "{\"vocab_size\":05}", "1:15: invalid token near '0'" },
    { "config.json", "{\"vocab_size\":9223372036854775808}", "1:33: |too big" },
    { "config.json", "{\"rms_norm_eps\":NaN}", "1:19: invalid token near 'NaN'" },
    { "config.json", "{\"rms_norm_eps\":1e999}", "1:21: |overflow" },
    { "config.json", "{\"model_type\":\"\xff\"}", "1:15: |0xff" },
    { "config.json", "{\"model_type\":\"a\\u0000\"}", "1:23: |NUL" },
    { "config.json", "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]",
      ":1:37: nested deeper than 32" },
    { "generation_config.json", "", "1:0: |expected near end of file" },
    { "generation_config.json", "{\"eos_token_id\":1.5}",
      "eos_token_id is 1.5, expected a token id" },
    { "generation_config.json", "{\"eos_token_id\":\"2\"}",
      "eos_token_id is \"2\", expected a token id" },
    { "generation_config.json", "{\"eos_token_id\":[1,null]}",
      "eos_token_id is [1,null], expected a token id" },
};

Test(config, files_refused, .timeout = 20)
{
    kd_arena *arena = NULL;
    kd_config c;
    scratch_open();
    cr_assert(kd_arena_create(&arena) == KD_OK);
    json_t *good = scratch_config("Llama-3.2-1B", "{}");
    for (int i = 0; i < KD_COUNT(broken_files); i++) {
        const broken_file *b = &broken_files[i];
        cr_assert(kd_json_write(scratch_path("config.json"), good) == KD_OK);
        (void)scratch_text(b->name, b->text);
        const kd_status status = kd_config_read(&c, arena, scratch_dir);
        test_refusal(status, KD_EFORMAT, b->message, b->text);
        test_refusal(status, KD_EFORMAT, scratch_path(b->name), b->text);
        cr_expect_null(c.raw, "%s", b->text);
    }
    cr_assert(kd_json_write(scratch_path("config.json"), good) == KD_OK);
    cr_assert(unlink(scratch_path("generation_config.json")) == 0);
    for (int i = 0; i < 2; i++) {
        const char *path = scratch_path(i ? "config.json" : "generation_config.json");
        if (i) cr_assert(unlink(path) == 0);
        cr_assert(mkfifo(path, 0600) == 0);
        test_refusal(kd_config_read(&c, arena, scratch_dir), KD_EFORMAT, "not a regular file",
                     path);
        cr_assert(unlink(path) == 0 && mkdir(path, 0700) == 0);
        test_refusal(kd_config_read(&c, arena, scratch_dir), KD_EFORMAT, "not a regular file",
                     path);
        cr_assert(rmdir(path) == 0);
    }
    json_decref(good);
    kd_arena_destroy(arena);
    scratch_close();
}

Test(config, directories)
{
    kd_arena *arena = NULL;
    kd_config c;
    scratch_open();
    cr_assert(kd_arena_create(&arena) == KD_OK);
    cr_expect_eq(kd_config_read(&c, arena, scratch_dir), KD_EFORMAT);
    cr_expect(strstr(kd_last_error(), "config.json"), "%s", kd_last_error());
    json_t *json = scratch_config("Llama-3.2-1B", "{}");
    cr_assert(kd_json_write(scratch_path("config.json"), json) == KD_OK);
    json_decref(json);

    (void)scratch_text("generation_config.json", "{\"eos_token_id\":[128001,128008]}");
    cr_assert(kd_config_read(&c, arena, scratch_dir) == KD_OK, "%s", kd_last_error());
    cr_expect(c.eos[0] == 128001 && c.eos[1] == 128008 && c.eos[2] == -1);
    /* A model that is saved has no generation_config.json. */
    (void)mkdir(scratch_path("saved"), 0777);
    cr_assert(kd_config_write(&c, scratch_path("saved/config.json"), KD_BF16) == KD_OK);
    json_decref(c.raw);
    cr_assert(kd_config_read(&c, arena, scratch_path("saved")) == KD_OK, "%s", kd_last_error());
    cr_expect(c.eos[0] == 128001 && c.eos[1] == 128008 && c.eos[2] == -1);
    json_decref(c.raw);
    (void)scratch_text("generation_config.json", "{\"temperature\":1}");
    cr_assert(kd_config_read(&c, arena, scratch_dir) == KD_OK, "%s", kd_last_error());
    cr_expect(c.eos[0] == 128001 && c.eos[1] == -1);
    json_decref(c.raw);
    kd_arena_destroy(arena);
    scratch_close();
}
