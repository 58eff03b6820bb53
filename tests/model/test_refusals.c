/* Model folders whose files do not go together: refused by tensor, before memory is taken for them. */
#include "model/model.h"
#include "support/refusal.h"
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef enum change { KEEP, DROP, ADD, TURN, FLATTEN, RETYPE, POISON } change;

/* A golden folder with config.json's `edit` merged over it and one tensor changed. */
typedef struct broken {
    const char *what, *model, *edit;
    change change;
    const char *tensor;
    double value; /* of POISON, at element 7 */
    kd_status status;
    const char *parts;
} broken;

#define L0 "model.layers.0."
static const broken cases[] = {
    { "as it is", "qwen2", "{}", KEEP, "", 0, KD_OK, "" },
    /* a tensor of the files */
    { "dropped", "qwen2", "{}", DROP, L0 "mlp.up_proj.weight", 0, KD_EFORMAT,
      "no tensor \"" L0
      "mlp.up_proj.weight\", which Qwen2ForCausalLM with this config.json needs" },
    { "a bias dropped", "qwen2", "{}", DROP, L0 "self_attn.q_proj.bias", 0, KD_EFORMAT,
      "no tensor \"" L0 "self_attn.q_proj.bias\"" },
    { "turned", "qwen2", "{}", TURN, L0 "mlp.up_proj.weight", 0, KD_EFORMAT,
      "tensor \"" L0 "mlp.up_proj.weight\" (byte |): found shape [36, 52], expected [52, 36] by "
      "config.json" },
    { "Conv1D that is not turned", "gpt2", "{}", TURN, "transformer.h.0.mlp.c_fc.weight", 0,
      KD_EFORMAT, "transformer.h.0.mlp.c_fc.weight|found shape [|expected [" },
    { "flat", "qwen2", "{}", FLATTEN, "model.embed_tokens.weight", 0, KD_EFORMAT,
      "tensor \"model.embed_tokens.weight\" (byte |found shape [3636], expected [101, 36]" },
    { "integers", "qwen2", "{}", RETYPE, "model.norm.weight", 0, KD_ENOTSUP,
      "tensor \"model.norm.weight\" of dtype I32 cannot be read as f32" },
    { "NaN", "qwen2", "{}", POISON, "model.norm.weight", NAN, KD_EFORMAT,
      "model.safetensors: tensor \"model.norm.weight\": element 7 (byte |): found nan, expected a "
      "number" },
    { "infinity", "qwen2", "{}", POISON, L0 "self_attn.k_proj.bias", INFINITY, KD_EFORMAT,
      "tensor \"" L0 "self_attn.k_proj.bias\": element 7 (byte |): found inf" },
    { "-infinity, turned", "gpt2", "{}", POISON, "transformer.h.1.attn.c_attn.weight", -INFINITY,
      KD_EFORMAT, "tensor \"transformer.h.1.attn.c_attn.weight\": element 7 (byte |found -inf" },
    /* what config.json denies */
    { "fewer layers", "qwen2", "{\"num_hidden_layers\":1,\"layer_types\":null}", KEEP, "", 0,
      KD_EFORMAT, "tensor \"model.layers.1.|: found layer 1, expected 0 to 0 by config.json" },
    { "more layers", "qwen2", "{\"num_hidden_layers\":3,\"layer_types\":null}", KEEP, "", 0,
      KD_EFORMAT, "no tensor \"model.layers.2.input_layernorm.weight\"" },
    { "a bias that it denies", "llama_tied", "{}", ADD, L0 "self_attn.q_proj.bias", 0, KD_EFORMAT,
      "tensor \"" L0 "self_attn.q_proj.bias\": expected none by config.json" },
    { "a norm that it denies", "llama_tied", "{}", ADD, L0 "self_attn.q_norm.weight", 0, KD_EFORMAT,
      "tensor \"" L0 "self_attn.q_norm.weight\": expected none" },
    { "layer 10", "llama_tied", "{}", ADD, "model.layers.10.mlp.up_proj.weight", 0, KD_EFORMAT,
      "tensor \"model.layers.10.mlp.up_proj.weight\": found layer 10, expected 0 to 1" },
    { "a bare name", "gpt2", "{}", ADD, "h.7.ln_1.bias", 0, KD_EFORMAT,
      "tensor \"h.7.ln_1.bias\": found layer 7, expected 0 to 1" },
    { "another vocabulary", "qwen2", "{\"vocab_size\":100}", KEEP, "", 0, KD_EFORMAT,
      "model.embed_tokens.weight|found shape [101, 36], expected [100, 36] by config.json" },
    { "another width", "qwen2", "{\"hidden_size\":48}", KEEP, "", 0, KD_EFORMAT,
      "model.embed_tokens.weight|found shape [101, 36], expected [101, 48]" },
    { "another head", "qwen2", "{\"tie_word_embeddings\":false}", KEEP, "", 0, KD_EFORMAT,
      "no tensor \"lm_head.weight\"" },
    { "a size that no machine has", "qwen2",
      "{\"hidden_size\":1048576,\"num_attention_heads\":8192,\"num_key_value_heads\":8192,"
      "\"intermediate_size\":4194304,\"vocab_size\":16777216}",
      KEEP, "", 0, KD_EFORMAT, "found shape [101, 36], expected [16777216, 1048576]" },
    /* not of the model, but no contradiction either */
    { "buffers of old files", "llama_tied", "{}", ADD, L0 "self_attn.rotary_emb.inv_freq", 0, KD_OK,
      "" },
    { "a tied head", "llama_tied", "{}", ADD, "lm_head.weight", 0, KD_OK, "" },
    { "a number that is none", "llama_tied", "{}", ADD, "model.layers.007.mlp.up_proj.weight", 0,
      KD_OK, "" },
};

static void describe(kd_st_writer *w, const kd_st_entry *e, const broken *b)
{
    const bool here = strcmp(e->name, b->tensor) == 0;
    const int64_t turned[2] = { e->shape[1], e->shape[0] };
    if (here && b->change == DROP) return;
    const kd_dtype dtype = here && b->change == RETYPE ? KD_I32 : (kd_dtype)e->dtype;
    const int32_t rank = here && b->change == FLATTEN ? 1 : e->rank;
    const int64_t *shape = here && b->change == TURN      ? turned
                           : here && b->change == FLATTEN ? &e->elements
                                                          : e->shape;
    test_ok(kd_st_writer_declare(w, e->name, dtype, rank, shape));
}

static void copy(kd_st_writer *w, const kd_st_file *file, const kd_st_entry *e, const broken *b)
{
    const bool here = strcmp(e->name, b->tensor) == 0;
    if (here && b->change == DROP) return;
    cr_assert(e->dtype == KD_F32, "%s", e->name);
    float *values = malloc((size_t)e->bytes);
    test_ok(kd_st_read(values, KD_F32, file, e, 0, e->elements));
    if (here && b->change == POISON) values[7] = (float)b->value;
    test_ok(kd_st_writer_write(w, e->name, values, (size_t)e->bytes));
    free(values);
}

static void write_weights(const char *path, const kd_st_file *file, const broken *b)
{
    static const int64_t three = 3;
    static const float values[3];
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, path));
    for (int64_t i = 0; i < file->count; i++) describe(w, &file->entries[i], b);
    if (b->change == ADD) test_ok(kd_st_writer_declare(w, b->tensor, KD_F32, 1, &three));
    test_ok(kd_st_writer_begin(w));
    for (int64_t i = 0; i < file->count; i++) copy(w, file, &file->entries[i], b);
    if (b->change == ADD) test_ok(kd_st_writer_write(w, b->tensor, values, sizeof values));
    test_ok(kd_st_writer_close(w));
}

static void write_folder(const char *dir, const broken *b)
{
    char path[512];
    json_t *config, *edit = json_loads(b->edit, 0, NULL);
    kd_st_file *file;
    (void)snprintf(path, sizeof path, "%s/models/%s/config.json", KD_GOLDEN, b->model);
    test_ok(kd_json_read(&config, path));
    cr_assert(edit && json_object_update(config, edit) == 0, "%s", b->edit);
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    test_ok(kd_json_write(path, config));
    json_decref(edit);
    json_decref(config);
    (void)snprintf(path, sizeof path, "%s/models/%s/model.safetensors", KD_GOLDEN, b->model);
    test_ok(kd_st_open(&file, path));
    (void)snprintf(path, sizeof path, "%s/model.safetensors", dir);
    write_weights(path, file, b);
    kd_st_close(file);
}

/* Of every element type the model is opened in; e4m3 reads weights twice. */
Test(refusals, files_that_do_not_go_together)
{
    static const kd_dtype dtypes[] = { KD_F32, KD_BF16, KD_F8_E4M3 };
    char dir[] = "/tmp/kd-refusals-XXXXXX";
    kd_device *device;
    kd_log_set_level(KD_LOG_ERROR);
    cr_assert(mkdtemp(dir));
    test_ok(kd_device_open(&device, "cpu"));
    for (int i = 0; i < KD_COUNT(cases); i++) {
        write_folder(dir, &cases[i]);
        for (int k = 0; k < KD_COUNT(dtypes); k++) {
            kd_model *model;
            const kd_model_options options = { .label = "model", .dtype = dtypes[k] };
            const kd_status status = kd_model_open(&model, device, dir, &options);
            test_refusal(status, cases[i].status, cases[i].parts, cases[i].what);
            test_refusal(status, status, dir, cases[i].what);
            cr_expect((model != NULL) == (status == KD_OK), "%s: a model came back", cases[i].what);
            kd_model_close(model);
        }
    }
    kd_device_close(device);
    test_ok(kd_dir_remove(dir));
}

/* The same refusals where only layers are copied. */
Test(refusals, a_teacher_that_is_cut_into_layers)
{
    char dir[] = "/tmp/kd-refusals-XXXXXX", out[64];
    static const int64_t first = 0;
    cr_assert(mkdtemp(dir));
    (void)snprintf(out, sizeof out, "%s/out", dir);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        if (cases[i].change == POISON) continue; /* copied byte for byte, and refused when opened */
        write_folder(dir, &cases[i]);
        test_refusal(kd_init_from_layers(out, dir, &first, 1), cases[i].status, cases[i].parts,
                     cases[i].what);
        cr_expect(cases[i].status == KD_OK || !kd_dir_exists(out), "%s: left a folder",
                  cases[i].what);
        test_ok(kd_dir_remove(out));
    }
    test_ok(kd_dir_remove(dir));
}
