/*
 * JSON lines: the ids are the tokenizer's own for each text, with the end of each document, whatever
 * the blocks and threads; a bad line is named by number and byte.
 */
#include "support/text_file.h"

#include <criterion/criterion.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *const kinds[] = { "gpt2", "digits", "llama3", "qwen2" };

/* A folder with the golden tokenizer `kind` and this tokenizer_config.json (NULL: none). */
static const char *folder_of(const char *kind, const char *config)
{
    static char folder[160];
    char golden[512], path[256];
    snprintf(folder, sizeof folder, "%s", test_text_path(kind));
    cr_assert(kd_dir_create(folder) == KD_OK, "%s", kd_last_error());
    snprintf(golden, sizeof golden, KD_GOLDEN "/bpe/%s/tokenizer.json", kind);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    cr_assert(kd_file_copy(path, golden) == KD_OK, "%s", kd_last_error());
    snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
    unlink(path);
    if (config) cr_assert(kd_file_write_atomic(path, config, strlen(config)) == KD_OK);
    return folder;
}

/* What the tokenizer makes of texts, document by document. */
typedef struct expected {
    int32_t *ids;
    int64_t *borders;
    int64_t count, documents, room;
} expected;

static void add(expected *e, const kd_tokenizer *t, const char *text, size_t bytes, int32_t end)
{
    int32_t *ids;
    int64_t count;
    if (bytes == 0) return;
    cr_assert(kd_tokenizer_encode(&ids, &count, t, text, bytes, true) == KD_OK, "%s",
              kd_last_error());
    if (e->count + count >= e->room) { /* a document has a token: as many borders will do */
        e->room = 2 * (e->count + count) + 1024;
        e->ids = realloc(e->ids, (size_t)e->room * sizeof *e->ids);
        e->borders = realloc(e->borders, (size_t)(e->room + 1) * sizeof *e->borders);
    }
    if (count) memcpy(e->ids + e->count, ids, (size_t)count * sizeof *ids);
    e->borders[0] = 0;
    e->count += count;
    if (end >= 0 && (count == 0 || ids[count - 1] != end)) e->ids[e->count++] = end;
    e->borders[++e->documents] = e->count;
    free(ids);
}

static void check(expected *e, const char *path, const kd_text_options *options)
{
    kd_text *text;
    cr_assert(kd_text_open(&text, path, options) == KD_OK, "%s", kd_last_error());
    test_text_holds(text, e->ids, NULL, e->count);
    test_text_borders(text, e->borders, e->documents + 1);
    cr_assert(kd_text_targets(text) == e->count - e->documents, "every token but the first");
    kd_text_close(text);
    free(e->ids);
    free(e->borders);
    *e = (expected){ 0 };
}

/* The golden texts of PyPI tokenizers, as lines with other keys, blank lines and CRLF among them. */
Test(json_lines, ids_are_the_tokenizers)
{
    static const char *const configs[] = { "{\"eos_token\": \"<|im_end|>\"}",
                                           "{\"eos_token\": {\"content\": \"<|im_end|>\"}}",
                                           "{\"eos_token\": null}", NULL };
    json_t *cases, *line;
    cr_assert(kd_json_read(&cases, KD_GOLDEN "/bpe/cases.json") == KD_OK);
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        const char *folder = folder_of(kinds[k], configs[k]), *path = test_text_path("a.jsonl");
        kd_tokenizer *t;
        expected e = { 0 };
        size_t i;
        cr_assert(kd_tokenizer_open(&t, folder) == KD_OK, "%s", kd_last_error());
        const int32_t end = k < 2 ? kd_tokenizer_added(t, "<|im_end|>") : -1;
        FILE *file = fopen(path, "wb");
        cr_assert(file && (k >= 2 || end >= 0));
        json_array_foreach(json_object_get(cases, "texts"), i, line)
        {
            json_t *object = json_pack("{s:I, s:O}", "id", (json_int_t)i, "text", line);
            json_dumpf(object, file, i % 2 ? JSON_COMPACT : JSON_ENSURE_ASCII);
            fputs(i % 3 ? "\n" : i % 2 ? "\r\n \t\n" : "\n\n", file);
            json_decref(object);
            add(&e, t, json_string_value(line), json_string_length(line), end);
        }
        fputs("{\"text\": \"the last line has no end<|im_end|>\"}", file);
        add(&e, t, "the last line has no end<|im_end|>", 34, end);
        cr_assert(fclose(file) == 0);
        const kd_text_options options = { .vocabulary = k % 2 ? 100000 : kd_tokenizer_size(t),
                                          .tokenizer = folder };
        check(&e, path, &options);
        kd_tokenizer_close(t);
    }
    json_decref(cases);
    test_text_remove();
}

/* `lines` lines of about 60 bytes; those of `bad` are not JSON. */
static const char *write_many(const char *name, int lines, expected *e, const kd_tokenizer *t,
                              const int *bad, int64_t *byte)
{
    const char *path = test_text_path(name);
    FILE *file = fopen(path, "wb");
    cr_assert(file != NULL);
    for (int i = 0; i < lines; i++) {
        char text[64];
        snprintf(text, sizeof text, "line %d of %d says %d times nothing", i, lines, i % 97);
        if (bad && (i == bad[0] || i == bad[1])) {
            if (i == bad[0]) *byte = ftell(file);
            fprintf(file, "{\"text\": \"%s\"\n", text);
            continue;
        }
        fprintf(file, "{\"text\": \"%s\", \"pad\": \"----------\"}\n", text);
        if (e) add(e, t, text, strlen(text), -1);
    }
    cr_assert(fclose(file) == 0);
    return path;
}

Test(json_lines, blocks_and_threads_change_nothing)
{
    enum { LINES = 36000 }; /* about 2.6 MiB: three blocks */
    kd_tokenizer *t;
    const char *folder = folder_of("gpt2", NULL);
    const kd_text_options options = { .vocabulary = 2000, .tokenizer = folder };
    cr_assert(kd_tokenizer_open(&t, folder) == KD_OK, "%s", kd_last_error());
    const int threads = omp_get_max_threads(); /* one where ThreadSanitizer watches */
    for (int turn = 0; turn < 2; turn++) {
        expected e = { 0 };
        omp_set_num_threads(turn ? threads : 1);
        const char *many = write_many("many.jsonl", LINES, &e, t, NULL, NULL);
        check(&e, many, &options);

        /* The first bad line is the one that is named. */
        static const int bad[2] = { 20000, 33000 };
        int64_t byte = 0;
        char parts[96];
        const char *path = write_many("bad.jsonl", LINES, NULL, t, bad, &byte);
        snprintf(parts, sizeof parts,
                 "bad.jsonl:20001:|(the line begins at byte %lld)|'}' expected", (long long)byte);
        test_text_refused(path, &options, parts);
    }
    kd_tokenizer_close(t);
    test_text_remove();
}

Test(json_lines, refuses_what_is_broken)
{
    static const struct {
        const char *text, *parts;
    } cases[] = {
        { "", "found no tokens" },
        { "\n \n", "found no tokens" },
        { "{\"text\": \"\"}\n", "found no tokens" },
        { "{\"text\": \"a\"}\n{\"text\": 1}\n", "x.jsonl:2 (byte 14)|text: found another type" },
        { "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n", "x.jsonl:2 (byte 14)|no key \"text\"" },
        { "[\"text\", \"a\"]\n", "x.jsonl:1 (byte 0)|no key \"text\"" },
        { "{\"text\": \"a\", \"text\": \"b\"}\n", "x.jsonl:1:|byte 0)|duplicate object key" },
        { "{\"text\": \"a\"} x\n", "x.jsonl:1:15: |end of file expected" },
        { "{\"text\": \"a\n", "x.jsonl:1:|premature end of input" },
        { "\"text\"\n", "x.jsonl:1:|'[' or '{' expected" },
        { "{\"text\": \"\xff\"}\n", "x.jsonl:1:|unable to decode byte 0xff" },
        { "{\"text\": \"\xed\xa0\x80\"}\n", "x.jsonl:1:|unable to decode byte" },
        { "{\"text\": \"\\ud800\"}\n", "x.jsonl:1:|Unicode" },
        { "{\"text\": \"\\u0000\"}\n", "x.jsonl:1:|\\u0000" },
        { "\n\n{\"messages\": []}\n",
          "x.jsonl:3 (byte 2)|found messages, expected text|tools/data/tokenize_jsonl.py "
          "--tokenizer DIR --out FILE.safetensors" },
    };
    const kd_text_options options = { .vocabulary = 2000, .tokenizer = folder_of("gpt2", NULL) };
    for (int k = 0; k < KD_COUNT(cases); k++)
        test_text_refused(test_bytes_write("x.jsonl", cases[k].text, strlen(cases[k].text)),
                          &options, cases[k].parts);
    char deep[256] = "{\"text\": \"a\", \"x\": ";
    memset(deep + strlen(deep), '[', 40);
    test_text_refused(test_bytes_write("x.jsonl", deep, strlen(deep)), &options,
                      "x.jsonl:1:|nested deeper than 32");
    test_text_refused(test_bytes_write("x.jsonl", "{\"text\0\": 1}", 12), &options, "x.jsonl:1:");

    const char *path = test_bytes_write("x.jsonl", "{\"text\": \"a\"}\n{\"text\": \"abc\"}\n", 30);
    test_text_refused(path, &(kd_text_options){ .vocabulary = 65, .tokenizer = options.tokenizer },
                      "x.jsonl:1 (byte 0): text: token 0: found id 65, expected 0 to 64");
    test_text_refused(path, &(kd_text_options){ .vocabulary = 65 }, "model with a tokenizer");
    const kd_text_options wrong = { .vocabulary = 2000,
                                    .tokenizer = folder_of("gpt2", "{\"eos_token\": \"<nope>\"}") };
    kd_text *text;
    cr_assert(kd_text_open(&text, path, &wrong) == KD_EFORMAT && !text &&
                  strstr(kd_last_error(), "eos_token: found \"<nope>\""),
              "'%s'", kd_last_error());
    test_text_remove();
}

/* What kd's tokenizer will not answer for is an error that knows a way on; too much is one too. */
Test(json_lines, limits)
{
    const kd_text_options options = { .vocabulary = 2000, .tokenizer = folder_of("qwen2", NULL) };
    kd_text *text;
    const char *path = test_bytes_write("x.jsonl", "{\"text\": \"e\\u0301\"}\n", 20);
    cr_assert(kd_text_open(&text, path, &options) == KD_ENOTSUP, "'%s'", kd_last_error());
    cr_assert(strstr(kd_last_error(), "x.jsonl:1 (byte 0): text: the character at byte 1") &&
                  strstr(kd_last_error(), "; tools/data/tokenize_jsonl.py may take it"),
              "'%s'", kd_last_error());
    cr_assert(truncate(path, (INT64_C(1) << 26) + 100) == 0);
    test_text_refused(path, &options, "x.jsonl:2 (byte 20)|a line of more than 67108864 bytes");
    cr_assert(truncate(path, (INT64_C(1) << 30) + 1) == 0);
    test_text_refused(path, &options,
                      "found 1073741825 bytes|at most 1073741824|tokenize_jsonl.py");
    test_text_remove();
}

/* For tests/golden/check_jsonl.py: what kd makes of $KD_JSONL with the tokenizer of $KD_TOKENIZER. */
Test(json_lines, ids_for_transformers)
{
    const char *path = getenv("KD_JSONL"), *out = getenv("KD_IDS");
    const kd_text_options options = { .vocabulary = INT32_MAX,
                                      .tokenizer = getenv("KD_TOKENIZER") };
    kd_text *text;
    if (!path || !out) return;
    cr_assert(kd_text_open(&text, path, &options) == KD_OK, "%s", kd_last_error());
    FILE *file = fopen(out, "w");
    cr_assert(file != NULL, "%s", out);
    for (int64_t d = 0; d < kd_text_documents(text); d++) {
        int64_t begin, end;
        kd_text_document(text, d, &begin, &end);
        for (int64_t at = begin; at < end; at++) {
            int32_t id, label;
            cr_assert(kd_text_read(&id, &label, text, at, 1, end) == KD_OK, "%s", kd_last_error());
            fprintf(file, "%d ", (int)id);
        }
        fputc('\n', file);
    }
    cr_assert(fclose(file) == 0, "%s", out);
    kd_text_close(text);
}
