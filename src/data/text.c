/*
 * text.c - a mapped safetensors file of tokens.
 *
 * Everything that could later index out of bounds is checked once, here: a token id beyond the
 * vocabulary would otherwise fail inside a kernel, far from its cause.  The format does not align its
 * tensors, so every element is read with memcpy.
 */
#include "data/data.h"

#include <inttypes.h>

struct kd_text {
    kd_st_file *file;                               /* its arena owns this struct */
    const unsigned char *tokens, *documents, *mask; /* mapped; documents and mask may be NULL */
    kd_dtype dtype;                                 /* of tokens */
    int64_t count, document_count, targets;
};

static uint32_t raw_token(const kd_text *text, int64_t at)
{
    if (text->dtype == KD_U16) {
        uint16_t id;
        memcpy(&id, text->tokens + at * (int64_t)sizeof id, sizeof id);
        return id;
    }
    uint32_t id;
    memcpy(&id, text->tokens + at * (int64_t)sizeof id, sizeof id);
    return id;
}

static int64_t border(const kd_text *text, int64_t index)
{
    if (!text->documents) return index == 0 ? 0 : text->count;
    int64_t at;
    memcpy(&at, text->documents + index * (int64_t)sizeof at, sizeof at);
    return at;
}

/* The mapped tensor `name` of one dimension and one of the three dtypes; absent when the file has
 * none. */
static kd_status map_vector(const unsigned char **data, const kd_st_entry **entry, kd_st_file *file,
                            const char *name, const int dtypes[3], const char *expected)
{
    *data = NULL;
    *entry = kd_st_find(file, name);
    if (!*entry) return KD_OK;
    const kd_st_entry *e = *entry;
    const bool known = e->dtype == dtypes[0] || e->dtype == dtypes[1] || e->dtype == dtypes[2];
    if (!known || e->rank != 1)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor %s (byte %" PRId64
                       "): found %s with %d dimensions, expected %s with 1",
                       file->path, name, e->offset, e->dtype_name, (int)e->rank, expected);
    const void *mapped;
    KD_TRY(kd_st_map(&mapped, file, e));
    *data = mapped;
    return KD_OK;
}

static kd_status check_documents(const kd_text *text, const kd_st_entry *entry)
{
    if (entry->elements < 2)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor documents (byte %" PRId64 "): found %" PRId64
                       " borders, expected 2 or more",
                       text->file->path, entry->offset, entry->elements);
    int64_t low = 0;
    for (int64_t i = 0; i <= text->document_count; i++) {
        const int64_t at = border(text, i);
        const int64_t high = i == 0 ? 0 : text->count;
        if (i == text->document_count) low = text->count;
        if (at < low || at > high)
            return kd_fail(KD_EFORMAT,
                           "%s: documents[%" PRId64 "] (byte %" PRId64 "): found %" PRId64
                           ", expected %" PRId64 " to %" PRId64,
                           text->file->path, i, entry->offset + i * (int64_t)sizeof at, at, low,
                           high);
        low = at;
    }
    return KD_OK;
}

static kd_status check_mask(const kd_text *text, const kd_st_entry *entry)
{
    if (entry->elements != text->count)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor loss_mask (byte %" PRId64 "): found %" PRId64
                       " elements, expected %" PRId64 " as in tokens",
                       text->file->path, entry->offset, entry->elements, text->count);
    for (int64_t i = 0; i < text->count; i++) {
        if (text->mask[i] > 1)
            return kd_fail(KD_EFORMAT,
                           "%s: loss_mask[%" PRId64 "] (byte %" PRId64
                           "): found %d, expected 0 or 1",
                           text->file->path, i, entry->offset + i, text->mask[i]);
    }
    return KD_OK;
}

/* Without a branch per token, so that it runs at the speed of memory. */
static uint32_t largest_token(const kd_text *text, int64_t begin, int64_t end)
{
    uint32_t largest = 0;
    if (text->dtype == KD_U16) {
        for (int64_t i = begin; i < end; i++) {
            uint16_t id;
            memcpy(&id, text->tokens + i * (int64_t)sizeof id, sizeof id);
            largest = id > largest ? id : largest;
        }
        return largest;
    }
    for (int64_t i = begin; i < end; i++) {
        uint32_t id;
        memcpy(&id, text->tokens + i * (int64_t)sizeof id, sizeof id);
        largest = id > largest ? id : largest;
    }
    return largest;
}

/* A negative i32 is a huge u32 and so refused here too. */
static kd_status check_tokens(const kd_text *text, const kd_st_entry *entry, int64_t vocabulary)
{
    enum { CHUNK = 1 << 16 };
    for (int64_t begin = 0; begin < text->count; begin += CHUNK) {
        const int64_t end = kd_min_i64(begin + CHUNK, text->count);
        if (largest_token(text, begin, end) < vocabulary) continue;
        int64_t at = begin;
        while (raw_token(text, at) < vocabulary) at++;
        const uint32_t raw = raw_token(text, at);
        const int64_t id = text->dtype == KD_I32 ? (int64_t)(int32_t)raw : (int64_t)raw;
        const int64_t size = (int64_t)kd_dtype_size(text->dtype);
        return kd_fail(KD_EFORMAT,
                       "%s: tokens[%" PRId64 "] (byte %" PRId64 "): found id %" PRId64
                       ", expected 0 to %" PRId64,
                       text->file->path, at, entry->offset + at * size, id, vocabulary - 1);
    }
    return KD_OK;
}

static int64_t count_targets(const kd_text *text)
{
    int64_t targets = text->count;
    if (text->mask) {
        targets = 0;
        for (int64_t i = 0; i < text->count; i++) targets += text->mask[i];
    }
    for (int64_t d = 0; d < text->document_count; d++) {
        const int64_t begin = border(text, d);
        if (border(text, d + 1) > begin && kd_text_scored(text, begin)) targets--;
    }
    return targets;
}

static kd_status open_tensors(kd_text *text, int64_t vocabulary)
{
    const kd_st_entry *tokens, *documents, *mask;
    KD_TRY(map_vector(&text->tokens, &tokens, text->file, "tokens",
                      (int[]){ KD_U16, KD_U32, KD_I32 }, "U16, U32 or I32"));
    if (!tokens || tokens->elements == 0)
        return kd_fail(KD_EFORMAT, "%s: found %s, expected a tensor 'tokens' with at least 1",
                       text->file->path, tokens ? "no tokens" : "no tensor 'tokens'");
    text->dtype = (kd_dtype)tokens->dtype;
    text->count = tokens->elements;
    KD_TRY(map_vector(&text->documents, &documents, text->file, "documents",
                      (int[]){ KD_I64, KD_I64, KD_I64 }, "I64"));
    text->document_count = documents ? documents->elements - 1 : 1;
    KD_TRY(map_vector(&text->mask, &mask, text->file, "loss_mask", (int[]){ KD_U8, KD_U8, KD_U8 },
                      "U8"));
    if (documents) KD_TRY(check_documents(text, documents));
    if (mask) KD_TRY(check_mask(text, mask));
    KD_TRY(check_tokens(text, tokens, vocabulary));
    text->targets = count_targets(text);
    return KD_OK;
}

kd_status kd_text_open(kd_text **text, const char *path, int64_t vocabulary)
{
    *text = NULL;
    if (vocabulary < 1 || vocabulary > INT32_MAX)
        return kd_fail(KD_EINVAL, "%s: vocabulary %" PRId64 ", expected 1 to %d", path, vocabulary,
                       INT32_MAX);
    kd_st_file *file;
    KD_TRY(kd_st_open(&file, path));
    kd_status status;
    kd_text *opened = NULL;
    KD_TRY_GOTO(KD_ARENA_ARRAY(&opened, file->arena, 1), status, failed);
    opened->file = file;
    KD_TRY_GOTO(open_tensors(opened, vocabulary), status, failed);
    *text = opened;
    return KD_OK;

failed:
    kd_st_close(file);
    return status;
}

void kd_text_close(kd_text *text)
{
    if (text) kd_st_close(text->file);
}

int64_t kd_text_tokens(const kd_text *text) { return text->count; }

int64_t kd_text_documents(const kd_text *text) { return text->document_count; }

int64_t kd_text_targets(const kd_text *text) { return text->targets; }

void kd_text_document(const kd_text *text, int64_t document, int64_t *begin, int64_t *end)
{
    *begin = border(text, document);
    *end = border(text, document + 1);
}

int32_t kd_text_token(const kd_text *text, int64_t at) { return (int32_t)raw_token(text, at); }

bool kd_text_scored(const kd_text *text, int64_t at) { return !text->mask || text->mask[at] != 0; }

const char *kd_text_metadata(const kd_text *text, const char *key)
{
    return kd_st_metadata(text->file, key);
}

const char *kd_text_path(const kd_text *text) { return text->file->path; }
