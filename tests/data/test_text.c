/*
 * Token files: every dtype reads the same, unaligned or not; what is wrong is refused with file,
 * tensor, place, found and expected.
 */
#include "support/text_file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

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

Test(text, reads_every_dtype_unaligned)
{
    static const char *const dtypes[] = { "U16", "U32", "I32" };
    for (int k = 0; k < KD_COUNT(dtypes); k++) {
        test_text w = whole();
        w.dtype = dtypes[k];
        const char *path = test_text_write(dtypes[k], &w);
        kd_text *text = opened(path);
        cr_assert(kd_text_tokens(text) == COUNT && kd_text_documents(text) == BORDERS - 1, "%s",
                  dtypes[k]);
        cr_assert(strcmp(kd_text_path(text), path) == 0, "%s", kd_text_path(text));
        int32_t ids[COUNT];
        uint8_t scored[COUNT];
        cr_assert(kd_text_read(ids, scored, text, 0, COUNT) == KD_OK, "%s", kd_last_error());
        for (int i = 0; i < COUNT; i++)
            cr_assert(ids[i] == tokens[i] && scored[i] == mask[i], "%s: token %d", dtypes[k], i);
        for (int d = 0; d < BORDERS - 1; d++) {
            int64_t begin, end;
            kd_text_document(text, d, &begin, &end);
            cr_assert(begin == documents[d] && end == documents[d + 1], "document %d", d);
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
    int32_t id;
    uint8_t scored = 0;
    cr_assert(kd_text_read(&id, &scored, text, 3, 1) == KD_OK && id == 13, "%s", kd_last_error());
    cr_assert(scored == 1 && kd_text_targets(text) == COUNT - 1, "all are scored");
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
    cr_assert(open_text(&text, test_text_path("absent"), 40) != KD_OK, "no such file");
    const char *path = test_text_path("exact");
    kd_text_options o = { .vocabulary = 41, .fingerprint = "abc" };
    cr_assert(kd_text_open(&text, path, &o) == KD_OK, "its own tokenizer");
    kd_text_close(text);
    o.fingerprint = "abd";
    cr_assert(kd_text_open(&text, path, &o) == KD_EFORMAT &&
                  strstr(kd_last_error(), "tokenizer abc, the models have abd"),
              "%s", kd_last_error());
    test_text_remove();
}
