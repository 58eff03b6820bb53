#include "support/text_file.h"

#include "support/refusal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char folder[64];
static int64_t tokens_offset;

const char *test_text_path(const char *name)
{
    static char paths[8][160];
    static int turn;
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "/tmp/kd-text-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL, "cannot make %s", folder);
    }
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

int64_t test_text_tokens_offset(void) { return tokens_offset; }

void test_text_remove(void)
{
    if (folder[0]) cr_assert(kd_dir_remove(folder) == KD_OK, "%s", kd_last_error());
    folder[0] = '\0';
}

static int64_t token_size(const char *dtype)
{
    if (strcmp(dtype, "U16") == 0) return 2;
    return strcmp(dtype, "F64") == 0 || strcmp(dtype, "I64") == 0 ? 8 : 4;
}

/* ,"name":{...} for `bytes` at *at, which moves on. */
static int describe(char *header, int room, const char *name, const char *dtype, int64_t count,
                    int64_t bytes, bool matrix, int64_t *at)
{
    const int n = snprintf(
        header, (size_t)room,
        ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s%lld],\"data_offsets\":[%lld,%lld]}", name, dtype,
        matrix ? "1," : "", (long long)count, (long long)*at, (long long)(*at + bytes));
    *at += bytes;
    return n;
}

const char *test_text_write(const char *name, const test_text *text)
{
    char header[1024];
    const int room = (int)sizeof header;
    int n = snprintf(header, sizeof header, "{\"__metadata__\":{\"tokenizer\":\"abc\"}");
    int64_t at = 0;
    if (text->mask)
        n += describe(header + n, room - n, "loss_mask", text->mask_dtype ? text->mask_dtype : "U8",
                      text->mask_count, text->mask_count, false, &at);
    const int64_t size = text->dtype ? token_size(text->dtype) : 0, tokens_at = at;
    if (text->dtype)
        n += describe(header + n, room - n, "tokens", text->dtype, text->count, text->count * size,
                      text->matrix, &at);
    if (text->documents)
        n += describe(header + n, room - n, "documents",
                      text->documents_dtype ? text->documents_dtype : "I64", text->borders,
                      text->borders * 8, false, &at);
    n += snprintf(header + n, sizeof header - (size_t)n, "}");
    if (n % 2 == 0) header[n++] = ' ';
    cr_assert(n < room, "header of %s is too long", name);

    const char *path = test_text_path(name);
    FILE *file = fopen(path, "wb");
    cr_assert(file != NULL, "cannot write %s", path);
    const uint64_t length = (uint64_t)n;
    fwrite(&length, sizeof length, 1, file);
    fwrite(header, 1, (size_t)n, file);
    if (text->mask) fwrite(text->mask, 1, (size_t)text->mask_count, file);
    for (int64_t i = 0; text->dtype && i < text->count; i++) /* little-endian: the low bytes */
        fwrite(&text->tokens[i], (size_t)size, 1, file);
    if (text->documents) fwrite(text->documents, 8, (size_t)text->borders, file);
    cr_assert(fclose(file) == 0, "cannot write %s", path);
    tokens_offset = (int64_t)sizeof length + n + tokens_at;
    return path;
}

const char *test_text_random(const char *name, int64_t count, int64_t vocabulary, bool masked)
{
    enum { MOST = 700 };
    static int64_t tokens[MOST], borders[MOST + 1];
    static uint8_t mask[MOST];
    int64_t documents = 0;
    cr_assert(count <= MOST, "%s: more tokens than there is room for", name);
    for (int64_t i = 0; i < count; i++) {
        tokens[i] = (int64_t)(kd_random_uniform(4, 1, (uint64_t)i) * (double)vocabulary);
        mask[i] = !masked || i % 60 < 40;
        if (kd_random_uniform(4, 2, (uint64_t)i) < 0.1 && i > 0) borders[++documents] = i;
    }
    borders[++documents] = count;
    return test_text_write(name, &(test_text){ .dtype = "U16",
                                               .tokens = tokens,
                                               .count = count,
                                               .documents = borders,
                                               .borders = documents + 1,
                                               .mask = mask,
                                               .mask_count = count });
}

const char *test_bytes_write(const char *name, const void *data, size_t bytes)
{
    const char *path = test_text_path(name);
    FILE *file = fopen(path, "wb");
    cr_assert(file != NULL, "cannot write %s", path);
    cr_assert(bytes == 0 || fwrite(data, 1, bytes, file) == bytes, "cannot write %s", path);
    cr_assert(fclose(file) == 0, "cannot write %s", path);
    return path;
}

void test_text_refused(const char *path, const kd_text_options *options, const char *parts)
{
    char name[160];
    kd_text *text = (kd_text *)(uintptr_t)8;
    snprintf(name, sizeof name, "%s", path);
    const kd_status status = kd_text_open(&text, name, options);
    test_refusal(status, KD_EFORMAT, parts, name);
    test_refusal(status, KD_EFORMAT, name, name);
    cr_expect(!text, "%s: a text came back", name);
}

void test_text_holds(const kd_text *text, const int32_t *ids, const uint8_t *mask, int64_t count)
{
    int32_t *found = malloc((size_t)count * sizeof *found);
    int32_t *labels = malloc((size_t)count * sizeof *labels);
    cr_assert(kd_text_tokens(text) == count, "%lld tokens, expected %lld",
              (long long)kd_text_tokens(text), (long long)count);
    for (int64_t d = 0; d < kd_text_documents(text); d++) {
        int64_t begin, end;
        kd_text_document(text, d, &begin, &end);
        if (begin == end) continue;
        cr_assert(kd_text_read(found, labels, text, begin, end - begin, end) == KD_OK, "%s",
                  kd_last_error());
        for (int64_t i = begin; i < end; i++) {
            const bool scored = i + 1 < end && (!mask || mask[i + 1]);
            cr_assert(found[i - begin] == ids[i] && labels[i - begin] == (scored ? ids[i + 1] : -1),
                      "token %lld is %d with label %d, expected %d", (long long)i,
                      (int)found[i - begin], (int)labels[i - begin], (int)ids[i]);
        }
    }
    free(found);
    free(labels);
}

void test_text_borders(const kd_text *text, const int64_t *borders, int64_t count)
{
    cr_assert(kd_text_documents(text) == count - 1, "%lld documents, expected %lld",
              (long long)kd_text_documents(text), (long long)count - 1);
    for (int64_t d = 0; d < count - 1; d++) {
        int64_t begin, end;
        kd_text_document(text, d, &begin, &end);
        cr_assert(begin == borders[d] && end == borders[d + 1],
                  "document %lld is [%lld, %lld), expected [%lld, %lld)", (long long)d,
                  (long long)begin, (long long)end, (long long)borders[d],
                  (long long)borders[d + 1]);
    }
}
