/*
 * Models against transformers: logits of packed documents, greedy continuations by the decoder, and
 * directories that kd writes.  With KD_WRITE_SAVED=DIR what is written stays there, with kd's own
 * logits and continuations, for tests/golden/check_saved.py.
 */
#include "model/model.h"
#include "support/golden.h"
#include "support/students.h"

#include <math.h>
#include <stdlib.h>

static const char *const cases[] = { "gpt2",    "llama_tied", "llama_llama3",
                                     "mistral", "qwen2",      "qwen3" };

enum { DOCUMENTS = 2, GREEDY = 12, MAX_ROWS = 64 };

typedef struct golden_case {
    const char *name, *dir;
    test_golden file;
    kd_device *device;
    kd_model *model;
    int64_t rows, vocabulary;
    const int32_t *tokens, *greedy;
    const int64_t *documents; /* [DOCUMENTS + 1] */
    const float *logits;      /* [rows, vocabulary] */
} golden_case;

static void open_model(kd_model **model, kd_device *device, const char *dir, kd_dtype dtype,
                       bool trainable)
{
    const kd_model_options options = {
        .label = "golden", .dtype = dtype, .trainable = trainable, .moments = trainable ? 2 : 0
    };
    test_ok(kd_model_open(model, device, dir, &options));
}

static void open_case(golden_case *c, const char *name)
{
    static char dir[512];
    const kd_st_entry *tokens, *logits, *greedy, *documents;
    snprintf(dir, sizeof dir, KD_GOLDEN "/models/%s", name);
    *c = (golden_case){ .name = name, .dir = dir };
    test_golden_open(&c->file, test_path(dir, "golden.safetensors"));
    c->tokens = test_golden_i32(&c->file, "tokens", &tokens);
    c->documents = test_golden_i64(&c->file, "documents", &documents);
    c->logits = test_golden_f32(&c->file, "logits", &logits);
    c->greedy = test_golden_i32(&c->file, "greedy", &greedy);
    c->rows = tokens->elements;
    c->vocabulary = logits->shape[1];
    cr_assert(documents->elements == DOCUMENTS + 1 && logits->shape[0] == c->rows &&
                  greedy->elements == DOCUMENTS * GREEDY && c->rows <= MAX_ROWS,
              "%s: the golden file has other shapes than the test", name);
    test_ok(kd_device_open(&c->device, "cpu"));
    open_model(&c->model, c->device, dir, KD_F32, false);
}

static void close_case(golden_case *c)
{
    kd_model_close(c->model);
    kd_device_close(c->device);
    test_golden_close(&c->file);
}

/* ---- logits ----------------------------------------------------------------------------------- */

/* Both documents in one batch, the list of their starts ending in empty ones. */
static kd_status forward(kd_tensor *logits, kd_exec *exec, const golden_case *c, kd_model *model)
{
    int32_t positions[MAX_ROWS], cu[MAX_ROWS + 1];
    kd_batch batch;
    kd_taps taps = { .count = 0 };
    for (int64_t i = 0; i < c->rows; i++) {
        const bool second = i >= c->documents[1];
        positions[i] = (int32_t)(i - (second ? c->documents[1] : 0));
        cu[i] = (int32_t)(i < DOCUMENTS ? c->documents[i] : c->rows);
    }
    cu[c->rows] = (int32_t)c->rows;
    KD_TRY(kd_push(logits, exec, "logits", KD_F32, KD_SHAPE(c->rows, c->vocabulary)));
    KD_TRY(kd_push(&batch.tokens, exec, "tokens", KD_I32, KD_SHAPE(c->rows)));
    KD_TRY(kd_push(&batch.geometry.positions, exec, "positions", KD_I32, KD_SHAPE(c->rows)));
    KD_TRY(kd_push(&batch.geometry.cu, exec, "starts", KD_I32, KD_SHAPE(c->rows + 1)));
    KD_TRY(kd_upload(exec, &batch.tokens, c->tokens));
    KD_TRY(kd_upload(exec, &batch.geometry.positions, positions));
    KD_TRY(kd_upload(exec, &batch.geometry.cu, cu));
    KD_TRY(kd_model_forward(model, exec, &batch, &taps));
    const kd_tensor weight = kd_tensor_transposed(&taps.head.weight);
    return KD_RUN(exec, matmul, .y = logits, .a = &taps.head.hidden, .b = &weight);
}

/* Plans, runs, and hands the logits to the caller, who frees them. */
static float *logits_of(const golden_case *c, kd_model *model)
{
    kd_arena *arena;
    kd_stack stack;
    kd_tensor logits;
    kd_exec exec = { .device = c->device, .stack = &stack };
    test_ok(kd_arena_create(&arena));
    test_ok(kd_stack_plan(&stack, arena));
    test_ok(forward(&logits, &exec, c, model));
    test_ok(kd_stack_open(&stack, c->device));
    memset(stack.base, 0xff, stack.capacity); /* NaN: what is not written is not read */
    test_ok(forward(&logits, &exec, c, model));
    float *copy = malloc(kd_tensor_bytes(&logits));
    cr_assert_not_null(copy);
    memcpy(copy, logits.data, kd_tensor_bytes(&logits));
    kd_stack_close(&stack, c->device);
    kd_arena_destroy(arena);
    return copy;
}

static double largest(const float *values, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)values[i]));
    return most;
}

/* Terms that are summed in f32 on the longest way from a token to a logit. */
static double path_length(const kd_config *c)
{
    return (double)(c->layers * (3 * c->width + c->ffn + MAX_ROWS) + c->width);
}

static void near_logits(const golden_case *c, const float *got, const float *want, int64_t rows,
                        const char *what)
{
    const int64_t n = rows * c->vocabulary;
    double *wide = malloc((size_t)n * sizeof *wide);
    cr_assert_not_null(wide);
    for (int64_t i = 0; i < n; i++) {
        wide[i] = (double)want[i];
        cr_assert(fabs((double)got[i] - wide[i]) <= 1e-3, "%s, %s: logit %lld is %g, expected %g",
                  c->name, what, (long long)i, (double)got[i], wide[i]);
    }
    const kd_tensor t = kd_tensor_of((void *)(uintptr_t)got, KD_F32, KD_SHAPE(n));
    test_near(&t, wide, largest(want, n), path_length(&c->model->config), "%s, %s", c->name, what);
    free(wide);
}

Test(golden, logits_are_those_of_transformers)
{
    for (int i = 0; i < KD_COUNT(cases); i++) {
        golden_case c;
        open_case(&c, cases[i]);
        float *got = logits_of(&c, c.model);
        near_logits(&c, got, c.logits, c.rows, "packed documents");
        free(got);
        close_case(&c);
    }
}

/* ---- decoding --------------------------------------------------------------------------------- */

/* Greedy tokens after document d; the document goes in by `chunk` tokens at a time. */
static void continue_document(int32_t *out, float *last, const golden_case *c, kd_model *model,
                              int d, int64_t chunk)
{
    const int64_t begin = c->documents[d], length = c->documents[d + 1] - begin;
    const kd_sampling greedy = { .temperature = 0 };
    kd_decoder decoder;
    float *logits = malloc((size_t)c->vocabulary * sizeof *logits);
    cr_assert_not_null(logits);
    test_ok(kd_decoder_open(&decoder, model, length + GREEDY, chunk));
    test_ok(kd_decoder_extend(&decoder, logits, c->tokens + begin, length));
    memcpy(last, logits, (size_t)c->vocabulary * sizeof *logits);
    for (int i = 0; i < GREEDY; i++) {
        out[i] = kd_sample(logits, c->vocabulary, &greedy, i, NULL);
        test_ok(kd_decoder_extend(&decoder, logits, &out[i], 1));
    }
    kd_decoder_close(&decoder);
    free(logits);
}

Test(golden, greedy_continuations_are_those_of_transformers)
{
    static const int64_t chunks[] = { 1, 5, 64 };
    for (int i = 0; i < KD_COUNT(cases) * DOCUMENTS * KD_COUNT(chunks); i++) {
        const int d = i % DOCUMENTS;
        const int64_t chunk = chunks[i / DOCUMENTS % KD_COUNT(chunks)];
        int32_t got[GREEDY];
        golden_case c;
        open_case(&c, cases[i / DOCUMENTS / KD_COUNT(chunks)]);
        float *last = malloc((size_t)c.vocabulary * sizeof *last);
        cr_assert_not_null(last);
        continue_document(got, last, &c, c.model, d, chunk);
        near_logits(&c, last, c.logits + (c.documents[d + 1] - 1) * c.vocabulary, 1, "decoded");
        for (int k = 0; k < GREEDY; k++)
            cr_assert(got[k] == c.greedy[d * GREEDY + k],
                      "%s, document %d by %lld: token %d is %d, expected %d", c.name, d,
                      (long long)chunk, k, (int)got[k], (int)c.greedy[d * GREEDY + k]);
        free(last);
        close_case(&c);
    }
}

/* ---- directories that kd writes --------------------------------------------------------------- */

static void same_slab(const kd_model *a, const kd_model *b, const char *name, kd_dtype dtype)
{
    const kd_slab *x = &a->slab, *y = &b->slab;
    cr_assert(kd_tensor_bytes(&x->weights) == kd_tensor_bytes(&y->weights) &&
                  memcmp(x->weights.data, y->weights.data, kd_tensor_bytes(&x->weights)) == 0,
              "%s in %s: other weights after saving and loading", name, kd_dtype_name(dtype));
    if (!kd_present(&x->masters)) return;
    cr_assert(memcmp(x->masters.data, y->masters.data, kd_tensor_bytes(&x->masters)) == 0,
              "%s in %s: other masters after saving and loading", name, kd_dtype_name(dtype));
}

/* Every tensor that transformers wrote is in kd's file under the same name and shape, with the same
 * f32 values, and nothing else is. */
static void same_tensors(const char *theirs, const char *ours)
{
    test_golden a, b;
    test_golden_open(&a, test_path(theirs, "model.safetensors"));
    test_golden_open(&b, test_path(ours, "model.safetensors"));
    cr_assert(a.file->count == b.file->count, "%s: %lld tensors, expected %lld", ours,
              (long long)b.file->count, (long long)a.file->count);
    for (int64_t i = 0; i < a.file->count; i++) {
        const kd_st_entry *x, *y;
        const char *name = a.file->entries[i].name;
        const float *want = test_golden_f32(&a, name, &x), *got = test_golden_f32(&b, name, &y);
        cr_assert(x->rank == y->rank && memcmp(x->shape, y->shape, sizeof x->shape) == 0,
                  "%s: %s has another shape", ours, name);
        cr_assert(memcmp(want, got, (size_t)x->elements * sizeof *want) == 0,
                  "%s: %s has other values", ours, name);
    }
    test_golden_close(&a);
    test_golden_close(&b);
}

static void save_and_load(const golden_case *c, const char *folder, kd_dtype dtype, bool trainable)
{
    char dir[512];
    kd_model *first, *second;
    snprintf(dir, sizeof dir, "%s/%s-%s-%d", folder, c->name, kd_dtype_name(dtype), trainable);
    open_model(&first, c->device, c->dir, dtype, trainable);
    /* A trained bf16 model is saved from its masters: f32 keeps all their bits. */
    const kd_dtype stored = trainable ? KD_F32 : dtype;
    test_ok(kd_model_save(first, dir, stored));
    open_model(&second, c->device, dir, dtype, trainable);
    same_slab(first, second, c->name, dtype);
    if (stored == KD_F32) same_tensors(c->dir, dir);
    kd_model_close(first);
    kd_model_close(second);
}

Test(golden, saved_models_come_back_bit_for_bit)
{
    const char *folder = test_folder();
    for (int i = 0; i < KD_COUNT(cases); i++) {
        golden_case c;
        open_case(&c, cases[i]);
        for (int k = 0; k < 4; k++) save_and_load(&c, folder, k & 1 ? KD_BF16 : KD_F32, k & 2);
        close_case(&c);
    }
    test_ok(kd_dir_remove(folder));
}

/* Weights pass through the host some rows at a time; this table takes more than once. */
Test(golden, a_large_table_comes_back_bit_for_bit)
{
    static const char config[] =
        "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":400,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
        "\"intermediate_size\":16,\"vocab_size\":5303,\"max_position_embeddings\":64,"
        "\"rms_norm_eps\":1e-5,\"rope_theta\":10000,\"hidden_act\":\"silu\","
        "\"initializer_range\":0.4,\"tie_word_embeddings\":true}";
    const char *folder = test_folder();
    const char *path = test_path(folder, "large.json");
    golden_case c = { .name = "large", .dir = test_path(folder, "large") };
    FILE *file = fopen(path, "w");
    cr_assert(file && fputs(config, file) >= 0 && fclose(file) == 0, "%s", path);
    test_ok(kd_init_fresh(c.dir, path, NULL, KD_F32, 7));
    test_ok(kd_device_open(&c.device, "cpu"));
    for (int k = 0; k < 4; k++) save_and_load(&c, folder, k & 1 ? KD_BF16 : KD_F32, k & 2);
    kd_device_close(c.device);
    test_ok(kd_dir_remove(folder));
}

/* What transformers shall find: the directory, and kd's own logits and continuations from it. */
static void write_saved(const golden_case *c, const char *folder)
{
    const char *dir = test_path(folder, c->name);
    const int64_t n[] = { c->rows, c->vocabulary }, borders[] = { DOCUMENTS + 1 };
    const int64_t greedy_shape[] = { DOCUMENTS, GREEDY };
    int32_t greedy[DOCUMENTS * GREEDY];
    kd_model *model;
    kd_st_writer *writer;
    test_ok(kd_model_save(c->model, dir, KD_F32));
    open_model(&model, c->device, dir, KD_F32, false);
    float *logits = logits_of(c, model), *last = malloc((size_t)c->vocabulary * sizeof *last);
    cr_assert_not_null(last);
    for (int d = 0; d < DOCUMENTS; d++)
        continue_document(greedy + d * GREEDY, last, c, model, d, MAX_ROWS);
    test_ok(kd_st_writer_create(&writer, test_path(dir, "kd.safetensors")));
    test_ok(kd_st_writer_declare(writer, "tokens", KD_I32, 1, n));
    test_ok(kd_st_writer_declare(writer, "documents", KD_I64, 1, borders));
    test_ok(kd_st_writer_declare(writer, "logits", KD_F32, 2, n));
    test_ok(kd_st_writer_declare(writer, "greedy", KD_I32, 2, greedy_shape));
    test_ok(kd_st_writer_begin(writer));
    test_ok(kd_st_writer_write(writer, "tokens", c->tokens, (size_t)n[0] * sizeof *c->tokens));
    test_ok(kd_st_writer_write(writer, "documents", c->documents,
                               (size_t)borders[0] * sizeof *c->documents));
    test_ok(kd_st_writer_write(writer, "logits", logits, (size_t)(n[0] * n[1]) * sizeof *logits));
    test_ok(kd_st_writer_write(writer, "greedy", greedy, sizeof greedy));
    test_ok(kd_st_writer_close(writer));
    free(logits);
    free(last);
    kd_model_close(model);
}

Test(golden, saved_models_for_transformers)
{
    const char *folder = getenv("KD_WRITE_SAVED");
    if (!folder) return;
    for (int i = 0; i < KD_COUNT(cases); i++) {
        golden_case c;
        open_case(&c, cases[i]);
        write_saved(&c, folder);
        close_case(&c);
    }
}
