/*
 * Token files: every dtype reads the same, unaligned or not; what is wrong is refused with file,
 * tensor, place, found and expected.
 */
#include "support/refusal.h"
#include "support/text_file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COUNT = 15, BORDERS = 6, VOCABULARY = 100 };

static const int64_t tokens[COUNT] = { 10, 11, 12, 13, 14, 20, 21, 30, 31, 32, 33, 34, 35, 36, 40 };
static const int64_t documents[BORDERS] = { 0, 5, 7, 7, 14, 15 };
static const uint8_t mask[COUNT] = { 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1 };

static test_text whole(void)
{
    return (test_text){ .dtype = "U16",
                        .tokens = tokens,
                        .count = COUNT,
                        .documents = documents,
                        .borders = BORDERS,
                        .mask = mask,
                        .mask_count = COUNT };
}

static kd_status open_text(kd_text **text, const char *path, int64_t vocabulary)
{
    return kd_text_open(text, path, &(kd_text_options){ .vocabulary = vocabulary });
}

static kd_text *opened(const char *path)
{
    kd_text *text;
    cr_assert(open_text(&text, path, VOCABULARY) == KD_OK, "%s", kd_last_error());
    return text;
}

/* Every run of a document's tokens; mask NULL: all are scored. */
static void check_reads(const kd_text *text, int64_t begin, int64_t end, const uint8_t *scored)
{
    int32_t ids[COUNT], labels[COUNT];
    for (int64_t at = begin; at < end; at++) {
        for (int64_t count = 0; count <= end - at; count++) {
            memset(ids, 0x55, sizeof ids);
            memset(labels, 0x55, sizeof labels);
            cr_assert(kd_text_read(ids, labels, text, at, count, end) == KD_OK, "%s",
                      kd_last_error());
            for (int64_t i = 0; i < count; i++) {
                const int64_t next = at + i + 1;
                const bool scores = next < end && (!scored || scored[next]);
                cr_assert(ids[i] == tokens[at + i] && labels[i] == (scores ? tokens[next] : -1),
                          "token %lld of %lld from %lld", (long long)i, (long long)count,
                          (long long)at);
            }
            cr_assert(count == COUNT || (ids[count] == 0x55555555 && labels[count] == 0x55555555),
                      "written past %lld", (long long)count);
        }
    }
}

Test(text, reads_every_dtype_unaligned)
{
    static const char *const dtypes[] = { "U16", "U32", "I32" };
    for (int k = 0; k < KD_COUNT(dtypes); k++) {
        test_text w = whole();
        w.dtype = dtypes[k];
        kd_text *text = opened(test_text_write(dtypes[k], &w));
        cr_assert(kd_text_tokens(text) == COUNT && kd_text_documents(text) == BORDERS - 1, "%s",
                  dtypes[k]);
        for (int d = 0; d < BORDERS - 1; d++) {
            int64_t begin, end;
            kd_text_document(text, d, &begin, &end);
            cr_assert(begin == documents[d] && end == documents[d + 1], "document %d", d);
            check_reads(text, begin, end, mask);
        }
        /* 15 tokens, 2 masked, 4 documents with a first token of which one is masked already. */
        cr_assert(kd_text_targets(text) == 10, "%lld targets", (long long)kd_text_targets(text));
        kd_text_close(text);
    }
    kd_text_close(NULL);
    test_text_remove();
}

Test(text, documents_and_mask_may_be_absent)
{
    test_text w = whole();
    w.documents = NULL;
    w.mask = NULL;
    kd_text *text = opened(test_text_write("plain", &w));
    int64_t begin, end;
    kd_text_document(text, 0, &begin, &end);
    cr_assert(kd_text_documents(text) == 1 && begin == 0 && end == COUNT, "one document");
    cr_assert(kd_text_targets(text) == COUNT - 1, "all are scored");
    check_reads(text, 0, COUNT, NULL);
    kd_text_close(text);
    test_text_remove();
}

static void refused(const char *name, const test_text *w, const char *parts)
{
    test_text_refused(test_text_write(name, w), &(kd_text_options){ .vocabulary = VOCABULARY },
                      parts);
}

Test(text, refuses_wrong_tensors)
{
    test_text w = whole();
    w.dtype = NULL;
    refused("no-tokens", &w, "no tensor 'tokens'");
    w = whole();
    w.count = 0, w.documents = NULL, w.mask = NULL;
    refused("empty", &w, "no tokens|at least 1");
    static const char *const dtypes[] = { "F32", "I64", "F64" };
    for (int k = 0; k < KD_COUNT(dtypes); k++) {
        w = whole();
        w.dtype = dtypes[k];
        char parts[64];
        snprintf(parts, sizeof parts, "tokens|found %s|U16, U32 or I32", dtypes[k]);
        refused(dtypes[k], &w, parts);
    }
    w = whole();
    w.matrix = true;
    refused("matrix", &w, "tokens|2 dimensions");
    w = whole();
    w.documents_dtype = "F64";
    refused("float-documents", &w, "documents|found F64|expected I64");
    w = whole();
    w.mask_dtype = "BOOL";
    refused("bool-mask", &w, "loss_mask|found BOOL|expected U8");
    w = whole();
    w.mask_count = COUNT - 1;
    refused("short-mask", &w, "loss_mask|14|15");
    test_text_remove();
}

Test(text, refuses_wrong_values)
{
    static const struct {
        const char *name;
        int64_t borders[BORDERS];
        int count;
        const char *parts;
    } cases[] = {
        { "late-start", { 1, 5, 7, 7, 14, 15 }, 6, "documents[0]|found 1|0 to 0" },
        { "negative", { -1, 5, 7, 7, 14, 15 }, 6, "documents[0]|found -1" },
        { "down", { 0, 5, 4, 7, 14, 15 }, 6, "documents[2]|found 4|5 to 15" },
        { "beyond", { 0, 5, 7, 16, 16, 15 }, 6, "documents[3]|found 16|7 to 15" },
        { "huge", { 0, 5, INT64_MAX, 7, 14, 15 }, 6, "documents[2]|found 9223372036854775807" },
        { "early-end", { 0, 5, 7, 7, 13, 14 }, 6, "documents[5]|found 14|15 to 15" },
        { "one-border", { 0 }, 1, "documents|found 1 borders" },
        { "no-border", { 0 }, 0, "documents|found 0 borders" },
    };
    for (int k = 0; k < KD_COUNT(cases); k++) {
        test_text w = whole();
        w.documents = cases[k].borders;
        w.borders = cases[k].count;
        refused(cases[k].name, &w, cases[k].parts);
    }
    uint8_t wrong[COUNT];
    memcpy(wrong, mask, sizeof wrong);
    wrong[14] = 2;
    test_text w = whole();
    w.mask = wrong;
    refused("mask-2", &w, "loss_mask[14]|found 2|0 or 1");
    test_text_remove();
}

/* The first bad id is named with its byte, wherever it stands, at and just below the bound. */
Test(text, refuses_ids_beyond_the_vocabulary)
{
    static const struct {
        const char *dtype;
        int64_t id;
    } bad[] = { { "U16", 100 },        { "U16", 65535 }, { "U32", 100 },
                { "U32", 4294967295 }, { "I32", -1 },    { "I32", INT32_MIN } };
    enum { LONG = 70001 };
    int64_t *many = malloc(LONG * sizeof *many);
    static const int64_t places[] = { 0, 1, 65535, 65536, LONG - 1 };
    for (int k = 0; k < KD_COUNT(bad); k++) {
        for (int p = 0; p < KD_COUNT(places); p++) {
            for (int i = 0; i < LONG; i++) many[i] = VOCABULARY - 1;
            many[places[p]] = bad[k].id;
            many[LONG - 1] = bad[k].id;
            const test_text w = { .dtype = bad[k].dtype, .tokens = many, .count = LONG };
            test_text_write("ids", &w);
            const int64_t size = strcmp(bad[k].dtype, "U16") == 0 ? 2 : 4;
            char parts[128];
            snprintf(parts, sizeof parts, "tokens[%lld] (byte %lld)|found id %lld,|0 to 99",
                     (long long)places[p],
                     (long long)(test_text_tokens_offset() + places[p] * size),
                     (long long)bad[k].id);
            refused("ids", &w, parts);
        }
    }
    free(many);
    kd_text *text;
    const test_text w = whole();
    cr_assert(open_text(&text, test_text_write("exact", &w), 41) == KD_OK, "id 40 of 41");
    kd_text_close(text);
    cr_assert(open_text(&text, test_text_path("exact"), 40) == KD_EFORMAT, "id 40 of 40");
    cr_assert(open_text(&text, test_text_path("exact"), 0) == KD_EINVAL, "no vocabulary");
    cr_assert(open_text(&text, test_text_path("exact"), INT64_C(1) << 31) == KD_EINVAL, "2^31");
    kd_text_options o = { .vocabulary = 41, .fingerprint = "abc" };
    cr_assert(kd_text_open(&text, test_text_path("exact"), &o) == KD_OK, "its own tokenizer");
    kd_text_close(text);
    o.fingerprint = "abd";
    test_refusal(kd_text_open(&text, test_text_path("exact"), &o), KD_EFORMAT,
                 "exact: made with the tokenizer abc, the models have abd", "another tokenizer");
    test_text_remove();
}

Test(text, refuses_what_is_no_file, .timeout = 20)
{
    kd_text *text;
    const test_text w = whole();
    test_text_write("good", &w);
    cr_assert(mkdir(test_text_path("folder"), 0700) == 0);
    cr_assert(mkfifo(test_text_path("fifo"), 0600) == 0);
    cr_assert(symlink("loop", test_text_path("loop")) == 0);
    cr_assert(truncate(test_text_write("empty", &w), 0) == 0);
    const char *const cases[][2] = { { "folder", "not a regular file" },
                                     { "fifo", "not a regular file" },
                                     { "loop", "cannot open: Too many levels" },
                                     { "absent", "cannot open: No such file" },
                                     { "good/below", "cannot open: Not a directory" },
                                     { "empty", "0 bytes, expected at least 8" } };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const char *path = test_text_path(cases[i][0]);
        const kd_status status = open_text(&text, path, VOCABULARY);
        test_refusal(status, KD_EFORMAT, cases[i][1], cases[i][0]);
        test_refusal(status, KD_EFORMAT, path, cases[i][0]);
    }
    test_text_remove();
}

/* A run of tokens that is read in several pieces, masked on both sides of where they meet. */
Test(text, reads_long_runs)
{
    enum { LONG = 70001, AT = 11, PIECE = 1 << 14 };
    int64_t *many = malloc(LONG * sizeof *many);
    uint8_t *scored = malloc(LONG);
    int32_t *ids = malloc(LONG * sizeof *ids), *labels = malloc(LONG * sizeof *labels);
    int64_t targets = 0;
    for (int i = 0; i < LONG; i++) {
        many[i] = (i * 31 + i / 97) % VOCABULARY;
        scored[i] = (i - AT) % PIECE > 1 && i % 5 != 0;
        targets += i > 0 && scored[i];
    }
    const test_text w = {
        .dtype = "U16", .tokens = many, .count = LONG, .mask = scored, .mask_count = LONG
    };
    kd_text *text = opened(test_text_write("long", &w));
    cr_assert(kd_text_targets(text) == targets, "%lld targets", (long long)kd_text_targets(text));
    cr_assert(kd_text_read(ids, labels, text, AT, LONG - AT, LONG) == KD_OK, "%s", kd_last_error());
    for (int64_t i = 0; i < LONG - AT; i++) {
        const int64_t next = AT + i + 1;
        const bool scores = next < LONG && scored[next];
        cr_assert(ids[i] == many[AT + i] && labels[i] == (scores ? many[next] : -1), "token %lld",
                  (long long)i);
    }
    kd_text_close(text);
    free(labels);
    free(ids);
    free(scored);
    free(many);
    test_text_remove();
}

/* Read on demand into our own memory: a file that is cut while it is used is a message, not a signal;
 * an id that somebody has written over is found when it is read. */
Test(text, survives_a_file_that_changes)
{
    enum { LONG = 70001 };
    int32_t ids[64], labels[64];
    int64_t *many = calloc(LONG, sizeof *many);
    const test_text w = { .dtype = "U32", .tokens = many, .count = LONG };
    const char *path = test_text_write("cut", &w);
    kd_text *text = opened(path);
    const int64_t at = test_text_tokens_offset();
    cr_assert(truncate(path, at + 4 * 100) == 0);
    test_refusal(kd_text_read(ids, labels, text, 30, 64, LONG), KD_OK, "", "before the cut");
    test_refusal(kd_text_read(ids, labels, text, 60, 64, LONG), KD_EFORMAT, "cut: ends at byte",
                 "over the cut");
    test_refusal(kd_text_read(ids, labels, text, LONG - 64, 64, LONG), KD_EFORMAT,
                 "cut: ends at byte", "beyond the cut");
    FILE *file = fopen(path, "r+b");
    cr_assert(file && fseek(file, at + 4 * 33, SEEK_SET) == 0 && fputc(VOCABULARY, file) >= 0 &&
              fclose(file) == 0);
    test_refusal(kd_text_read(ids, labels, text, 30, 64, LONG), KD_EFORMAT,
                 "cut: tokens[33] changed while in use (byte|found id 100, expected 0 to 99",
                 "an id");
    kd_text_close(text);
    free(many);
    test_text_remove();
}
