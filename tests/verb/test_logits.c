/* Logits of a document that is longer than one chunk of the head, against the decoder, which goes
 * another way; and what is refused. */
#include "model/model.h"
#include "support/golden.h"
#include "support/support.h"

#include <float.h>
#include <kd/model.h>
#include <math.h>
#include <stdlib.h>

/* 32 MiB of logits are 279 rows. */
enum { ROWS = 300, VOCABULARY = 30011, WIDTH = 8 };

static char dir[] = "/tmp/kd-verb-XXXXXX";

static const char *at(const char *name)
{
    static char paths[4][64];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static void write_model(void)
{
    char json[512];
    snprintf(json, sizeof json,
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
             "\"hidden_act\": \"silu\", \"hidden_size\": %d, \"intermediate_size\": 12, "
             "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"num_hidden_layers\": 2, "
             "\"vocab_size\": %d, \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-5, "
             "\"rope_theta\": 1e4, \"tie_word_embeddings\": true, \"initializer_range\": 0.7}",
             WIDTH, VOCABULARY);
    test_ok(kd_file_write_atomic(at("config.json"), json, strlen(json)));
    test_ok(kd_student_fresh(at("model"), at("config.json"), NULL, KD_F32, 3));
    test_refused(kd_student_fresh(at("model"), at("config.json"), NULL, KD_F32, 3), KD_EFORMAT,
                 "holds a model already");
}

static void write_tokens(const void *tokens, kd_dtype dtype, int64_t count)
{
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, at("tokens")));
    test_ok(kd_st_writer_declare(w, "tokens", dtype, 1, &count));
    test_ok(kd_st_writer_begin(w));
    test_ok(kd_st_writer_write(w, "tokens", tokens, (size_t)count * kd_dtype_size(dtype)));
    test_ok(kd_st_writer_close(w));
}

/* Both sum WIDTH products of a unit hidden state; the way there is two layers of the same widths. */
static void check_row(const float *got, const float *want, int row)
{
    double largest = 1.0;
    for (int v = 0; v < VOCABULARY; v++) largest = fmax(largest, fabs((double)want[v]));
    const double most = FLT_EPSILON * largest * sqrt(2.0 * (4 * WIDTH + 12) + WIDTH);
    for (int v = 0; v < VOCABULARY; v++)
        cr_assert(fabs((double)got[v] - want[v]) <= most, "row %d, class %d: %.9g, expected %.9g",
                  row, v, (double)got[v], (double)want[v]);
}

/* Rows around the border of the chunks and at the end. */
static void check_against_decoder(const float *logits, const int32_t *tokens)
{
    static const int rows[] = { 0, 277, 278, 279, 280, ROWS - 1 };
    const kd_model_options options = { .label = "model", .dtype = KD_F32 };
    kd_device *device;
    kd_model *model;
    kd_decoder decoder;
    int done = 0;
    float *want = malloc(VOCABULARY * sizeof *want);
    test_ok(kd_device_open(&device, "cpu"));
    test_ok(kd_model_open(&model, device, at("model"), &options));
    test_ok(kd_decoder_open(&decoder, model, ROWS, 64));
    for (int i = 0; i < KD_COUNT(rows); i++) {
        test_ok(kd_decoder_extend(&decoder, want, tokens + done, rows[i] + 1 - done));
        done = rows[i] + 1;
        check_row(logits + (int64_t)rows[i] * VOCABULARY, want, rows[i]);
    }
    kd_decoder_close(&decoder);
    kd_model_close(model);
    kd_device_close(device);
    free(want);
}

Test(logits, of_a_long_document_come_in_chunks, .timeout = 120)
{
    int32_t tokens[ROWS];
    uint16_t narrow[ROWS];
    test_golden file;
    const kd_st_entry *entry;
    cr_assert(mkdtemp(dir));
    write_model();
    for (int i = 0; i < ROWS; i++) tokens[i] = narrow[i] = (uint16_t)(i * 7919 % VOCABULARY);
    const kd_logits_options o = { .model = at("model"), .tokens = at("tokens"), .out = at("out") };
    write_tokens(narrow, KD_U16, ROWS);
    test_ok(kd_logits_write(&o));
    test_golden_open(&file, at("out"));
    const float *logits = test_golden_f32(&file, "logits", &entry);
    cr_assert(entry->rank == 2 && entry->shape[0] == ROWS && entry->shape[1] == VOCABULARY);
    check_against_decoder(logits, tokens);
    test_golden_close(&file);
    test_ok(kd_dir_remove(dir));
}

Test(logits, name_the_token_that_is_refused)
{
    static const int64_t wide[] = { 1, 2, VOCABULARY, 3 }, negative[] = { 1, -1 }, none[] = { 0 };
    const float reals[] = { 1, 2 };
    const struct {
        const void *tokens;
        kd_dtype dtype;
        int64_t count;
        const char *text;
    } cases[] = { { wide, KD_I64, 4, "): found 30011, expected 0 to 30010" },
                  { negative, KD_I64, 2, "tokens[1] (byte " },
                  { none, KD_I64, 0, "tokens: found 0, expected 1 to " },
                  { reals, KD_F32, 2, "tokens is F32 of rank 1; expected integers" } };
    cr_assert(mkdtemp(dir));
    write_model();
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const kd_logits_options o = { .model = at("model"),
                                      .tokens = at("tokens"),
                                      .out = at("out") };
        write_tokens(cases[i].tokens, cases[i].dtype, cases[i].count);
        test_refused(kd_logits_write(&o), KD_EFORMAT, cases[i].text);
        cr_expect(!kd_file_exists(o.out), "case %d left a file", i);
    }
    const kd_logits_options o = {
        .model = at("model"), .tokens = at("tokens"), .out = at("out"), .dtype = "f16"
    };
    test_refused(kd_logits_write(&o), KD_EINVAL, "dtype \"f16\"");
    test_ok(kd_dir_remove(dir));
}
