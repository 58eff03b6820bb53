/* Generation end to end on a fresh model: text in and out, ids in and out, where it ends, refusals. */
#include "support/students.h"

#include <kd/generate.h>
#include <kd/model.h>
#include <stdio.h>
#include <stdlib.h>

enum { MADE = 40, VOCABULARY = 1100 /* the tokenizer has 1057 */ };

typedef struct made {
    int32_t ids[MADE];
    int64_t count;
    char text[8192];
    size_t bytes;
    int without_text, fail_at; /* 0: never */
} made;

static kd_status visit(void *context, int32_t id, const char *text, size_t bytes)
{
    made *m = context;
    if (m->fail_at && m->count == m->fail_at) return kd_fail(KD_EIO, "the reader went away");
    if (id >= 0) {
        cr_assert(m->count < MADE, "more tokens than were asked for");
        m->ids[m->count++] = id;
    }
    m->without_text += text == NULL;
    if (!text) return KD_OK;
    cr_assert(text[bytes] == 0 && m->bytes + bytes < sizeof m->text);
    memcpy(m->text + m->bytes, text, bytes + 1);
    m->bytes += bytes;
    return KD_OK;
}

static kd_status generate(made *m, kd_generate_report *report, kd_generate_options options)
{
    const int fail_at = m->fail_at;
    *m = (made){ .fail_at = fail_at };
    return kd_generate(report, &options, visit, m);
}

/* A fresh llama in folder/name that ends at `eos`, with the golden tokenizer or none. */
static const char *fresh(const char *folder, const char *name, int eos, bool tokenizer)
{
    char config[1024];
    const char *path = test_path(folder, "fresh.json"), *dir = test_path(folder, name);
    (void)snprintf(
        config, sizeof config,
        "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],"
        "\"hidden_size\":24,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":2,\"intermediate_size\":40,\"vocab_size\":%d,"
        "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-5,\"rope_theta\":10000,"
        "\"hidden_act\":\"silu\",\"initializer_range\":0.4,\"tie_word_embeddings\":false,"
        "\"bos_token_id\":0,\"eos_token_id\":%d}",
        VOCABULARY, eos);
    FILE *file = fopen(path, "w");
    cr_assert(file && fputs(config, file) >= 0 && fclose(file) == 0, "%s", path);
    test_ok(kd_student_fresh(dir, path, tokenizer ? KD_GOLDEN "/bpe/qwen2" : NULL, KD_F32, 5));
    return dir;
}

static void same_ids(const made *a, const made *b, const char *what)
{
    cr_expect(a->count == b->count && !memcmp(a->ids, b->ids, (size_t)a->count * sizeof *a->ids),
              "%s: other ids", what);
}

/* The text of the pieces is that of the ids. */
static void same_text(const char *dir, const made *m)
{
    kd_tokenizer *t;
    char *text;
    size_t bytes;
    test_ok(kd_tokenizer_open(&t, dir));
    test_ok(kd_tokenizer_decode(&text, &bytes, t, m->ids, m->count, true));
    cr_expect(bytes == m->bytes && !memcmp(text, m->text, bytes), "\"%s\" is not \"%s\"", m->text,
              text);
    for (int64_t i = 0; i < m->count; i++)
        cr_expect(m->ids[i] < kd_tokenizer_size(t), "id %d is padding", m->ids[i]);
    free(text);
    kd_tokenizer_close(t);
}

static const char *tokens_file(const char *folder, const int32_t *ids, int64_t count)
{
    const char *path = test_path(folder, "ids.safetensors");
    kd_st_writer *writer;
    test_ok(kd_st_writer_create(&writer, path));
    test_ok(kd_st_writer_declare(writer, "tokens", KD_I32, 1, &count));
    test_ok(kd_st_writer_begin(writer));
    test_ok(kd_st_writer_write(writer, "tokens", ids, (size_t)count * sizeof *ids));
    test_ok(kd_st_writer_close(writer));
    return path;
}

Test(generate, text_and_ids)
{
    static made a, b;
    const char *folder = test_folder(), *dir = fresh(folder, "a", VOCABULARY - 1, true);
    kd_generate_report report;
    kd_tokenizer *t;
    int32_t *ids;
    int64_t count;
    kd_generate_options o = {
        .model = dir, .prompt = "The student's", .tokens = MADE, .temperature = 1.5, .seed = 3
    };
    test_ok(generate(&a, &report, o));
    cr_expect(a.count == MADE && report.tokens == MADE && !report.ended && !a.without_text);
    same_text(dir, &a);
    test_ok(generate(&b, &report, o));
    same_ids(&a, &b, "the same seed");
    o.seed = 4;
    test_ok(generate(&b, &report, o));
    cr_expect(memcmp(a.ids, b.ids, sizeof a.ids) != 0, "another seed gives the same ids");
    o.seed = 3;

    test_ok(kd_tokenizer_open(&t, dir));
    test_ok(kd_tokenizer_encode(&ids, &count, t, o.prompt, strlen(o.prompt), true));
    cr_expect_eq(report.prompt_tokens, count);
    o.prompt = NULL;
    o.ids = ids;
    o.id_count = count;
    test_ok(generate(&b, &report, o));
    same_ids(&a, &b, "the prompt as ids");
    o.ids = NULL;
    o.file = tokens_file(folder, ids, count);
    test_ok(generate(&b, &report, o));
    same_ids(&a, &b, "the prompt as a file");
    free(ids);

    /* A chat is ChatML; an empty text begins with bos. */
    static const char chat[] = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    test_ok(kd_tokenizer_encode(&ids, &count, t, chat, strlen(chat), false));
    o = (kd_generate_options){ .model = dir, .prompt = "Hi", .chat = true, .tokens = 8 };
    test_ok(generate(&a, &report, o));
    o = (kd_generate_options){ .model = dir, .ids = ids, .id_count = count, .tokens = a.count };
    test_ok(generate(&b, &report, o));
    same_ids(&a, &b, "a chat");
    const int32_t bos = 0;
    o = (kd_generate_options){ .model = dir, .prompt = "", .tokens = 8 };
    test_ok(generate(&a, &report, o));
    o = (kd_generate_options){ .model = dir, .ids = &bos, .id_count = 1, .tokens = 8 };
    test_ok(generate(&b, &report, o));
    same_ids(&a, &b, "an empty text");
    free(ids);
    kd_tokenizer_close(t);
    test_ok(kd_dir_remove(folder));
}

Test(generate, ends)
{
    static made all, some;
    const int32_t prompt[] = { 300, 301, 302 };
    const char *folder = test_folder();
    kd_generate_report report;
    kd_generate_options o = { .model = fresh(folder, "a", VOCABULARY - 1, false),
                              .ids = prompt,
                              .id_count = 3,
                              .tokens = MADE,
                              .temperature = 2,
                              .seed = 9 };
    test_ok(generate(&all, &report, o));
    cr_expect(all.count == MADE && all.without_text == MADE && all.bytes == 0,
              "a model without a tokenizer");
    /* The same weights, and the sixth token ends the text. */
    int64_t first = 5;
    for (int64_t i = 4; i >= 0; i--)
        if (all.ids[i] == all.ids[5]) first = i;
    o.model = fresh(folder, "b", all.ids[5], false);
    test_ok(generate(&some, &report, o));
    cr_expect(report.ended && report.tokens == first && some.count == first,
              "%lld tokens before the end, expected %lld", (long long)some.count, (long long)first);
    some.fail_at = 2;
    o.model = test_path(folder, "a");
    test_refused(generate(&some, &report, o), KD_EIO, "went away");
    cr_expect_eq(report.tokens, 2);
    test_ok(kd_dir_remove(folder));
}

Test(generate, refusals)
{
    static made m;
    static const int32_t high[] = { 1, VOCABULARY }, low[] = { -1 };
    const char *folder = test_folder(), *dir = fresh(folder, "a", 2, true);
    const char *bare = fresh(folder, "b", 2, false);
    const struct {
        kd_generate_options options;
        kd_status status;
        const char *message;
    } rows[] = {
        { { .model = dir }, KD_EINVAL, "one prompt" },
        { { .model = dir, .prompt = "a", .ids = high, .id_count = 1 }, KD_EINVAL, "one prompt" },
        { { .model = dir, .ids = high, .id_count = 1, .chat = true }, KD_EINVAL, "chat" },
        { { .model = dir, .ids = high, .id_count = 0 }, KD_EINVAL, "no tokens" },
        { { .model = dir, .ids = high, .id_count = 2 },
          KD_EINVAL,
          "token 1 of the prompt: found id 1100, expected 0 to " },
        { { .model = dir, .ids = low, .id_count = 1 },
          KD_EINVAL,
          "token 0 of the prompt: found id -1" },
        { { .model = dir, .prompt = "a", .top_p = 1.5 }, KD_EINVAL, "top_p" },
        { { .model = dir, .prompt = "a", .temperature = -1 }, KD_EINVAL, "temperature" },
        { { .model = dir, .prompt = "a", .tokens = -1 }, KD_EINVAL, "tokens" },
        { { .model = dir, .prompt = "a", .dtype = "i8" }, KD_EINVAL, "f32, bf16 or f8_e4m3" },
        { { .model = dir, .prompt = "a\xff" }, KD_EFORMAT, "offset 1" },
        { { .model = dir, .prompt = "a", .tokens = INT64_C(1) << 40 },
          KD_ENOMEM,
          "keys and values" },
        { { .model = dir, .file = test_path(folder, "none") }, KD_EFORMAT, "none" },
        { { .model = bare, .prompt = "a" }, KD_ENOTSUP, "give the prompt as ids" },
        { { .model = folder, .prompt = "a" }, KD_EFORMAT, "config.json" },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        kd_generate_report report;
        test_refused(generate(&m, &report, rows[i].options), rows[i].status, rows[i].message);
        cr_expect(m.count == 0 && report.tokens == 0, "row %d made tokens", i);
    }
    test_ok(kd_dir_remove(folder));
}
