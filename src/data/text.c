/*
 * text.c - a safetensors file of tokens.
 *
 * Everything that could later index out of bounds is checked once, here: a token id beyond the
 * vocabulary would otherwise fail inside a kernel, far from its cause.  Somebody may write to the file
 * or cut it while it is used, so borders are kept in memory and ids are checked whenever they are read.
 */
#include "data/data.h"

#include <inttypes.h>

enum { CHUNK = 1 << 14 }; /* tokens that are read at a time */

struct kd_text {
    kd_st_file *file;                             /* its arena owns this struct */
    const kd_st_entry *tokens, *documents, *mask; /* documents and mask may be NULL */
    int64_t *borders;                             /* [document_count + 1] */
    int64_t count, document_count, targets;
    int64_t vocabulary;
    bool checked; /* every id was good once */
};

/* ---- reading ---------------------------------------------------------------------------------- */

static kd_status refuse_id(const kd_text *text, int64_t at, int64_t id)
{
    const int64_t size = (int64_t)kd_dtype_size((kd_dtype)text->tokens->dtype);
    return kd_fail(KD_EFORMAT,
                   "%s: tokens[%" PRId64 "]%s (byte %" PRId64 "): found id %" PRId64
                   ", expected 0 to %" PRId64,
                   text->file->path, at, text->checked ? " changed while in use" : "",
                   text->tokens->offset + at * size, id, text->vocabulary - 1);
}

/* At most CHUNK + 1 of them.  Without a branch per token, so that it runs at the speed of memory. */
static kd_status read_ids(int32_t *ids, const kd_text *text, int64_t at, int64_t count)
{
    const kd_dtype dtype = (kd_dtype)text->tokens->dtype;
    uint16_t narrow[CHUNK + 1];
    uint32_t largest = 0; /* a negative i32 is a huge u32 */
    void *to = dtype == KD_U16 ? (void *)narrow : (void *)ids;
    KD_TRY(kd_st_read(to, dtype, text->file, text->tokens, at, count));
    for (int64_t i = 0; dtype == KD_U16 && i < count; i++) ids[i] = narrow[i];
    for (int64_t i = 0; i < count; i++)
        largest = (uint32_t)ids[i] > largest ? (uint32_t)ids[i] : largest;
    if (largest < text->vocabulary) return KD_OK;
    int64_t bad = 0;
    while ((uint32_t)ids[bad] < text->vocabulary) bad++;
    return refuse_id(text, at + bad,
                     dtype == KD_U32 ? (int64_t)(uint32_t)ids[bad] : (int64_t)ids[bad]);
}

static kd_status read_mask(uint8_t *mask, const kd_text *text, int64_t at, int64_t count)
{
    uint8_t largest = 0;
    memset(mask, 1, (size_t)count);
    if (!text->mask) return KD_OK;
    KD_TRY(kd_st_read(mask, KD_U8, text->file, text->mask, at, count));
    for (int64_t i = 0; i < count; i++) largest = mask[i] > largest ? mask[i] : largest;
    if (largest <= 1) return KD_OK;
    int64_t bad = 0;
    while (mask[bad] <= 1) bad++;
    return kd_fail(KD_EFORMAT,
                   "%s: loss_mask[%" PRId64 "] (byte %" PRId64 "): found %d, expected 0 or 1",
                   text->file->path, at + bad, text->mask->offset + at + bad, mask[bad]);
}

kd_status kd_text_read(int32_t *ids, int32_t *labels, const kd_text *text, int64_t at,
                       int64_t count, int64_t end)
{
    int32_t next[CHUNK + 1];
    uint8_t mask[CHUNK + 1];
    for (int64_t done = 0; done < count; done += CHUNK) {
        const int64_t first = at + done, n = kd_min_i64(CHUNK, count - done);
        const int64_t known = n + (first + n < end); /* the last one's label too */
        KD_TRY(read_ids(next, text, first, known));
        KD_TRY(read_mask(mask, text, first, known));
        for (int64_t i = 0; i < n; i++) {
            ids[done + i] = next[i];
            labels[done + i] = i + 1 < known && mask[i + 1] ? next[i + 1] : -1;
        }
    }
    return KD_OK;
}

/* ---- opening ---------------------------------------------------------------------------------- */

/* The tensor `name` of one dimension and one of the three dtypes; NULL when the file has none. */
static kd_status find_vector(const kd_st_entry **entry, const kd_st_file *file, const char *name,
                             const int dtypes[3], const char *expected)
{
    *entry = kd_st_find(file, name);
    if (!*entry) return KD_OK;
    const kd_st_entry *e = *entry;
    const bool known = e->dtype == dtypes[0] || e->dtype == dtypes[1] || e->dtype == dtypes[2];
    if (known && e->rank == 1) return KD_OK;
    return kd_fail(KD_EFORMAT,
                   "%s: tensor %s (byte %" PRId64
                   "): found %s with %d dimensions, expected %s with 1",
                   file->path, name, e->offset, e->dtype_name, (int)e->rank, expected);
}

static kd_status find_tensors(kd_text *text)
{
    const kd_st_file *file = text->file;
    KD_TRY(find_vector(&text->tokens, file, "tokens", (int[]){ KD_U16, KD_U32, KD_I32 },
                       "U16, U32 or I32"));
    KD_TRY(
        find_vector(&text->documents, file, "documents", (int[]){ KD_I64, KD_I64, KD_I64 }, "I64"));
    KD_TRY(find_vector(&text->mask, file, "loss_mask", (int[]){ KD_U8, KD_U8, KD_U8 }, "U8"));
    if (!text->tokens || text->tokens->elements == 0)
        return kd_fail(KD_EFORMAT, "%s: found %s, expected a tensor 'tokens' with at least 1",
                       file->path, text->tokens ? "no tokens" : "no tensor 'tokens'");
    text->count = text->tokens->elements;
    if (text->documents && text->documents->elements < 2)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor documents (byte %" PRId64 "): found %" PRId64
                       " borders, expected 2 or more",
                       file->path, text->documents->offset, text->documents->elements);
    text->document_count = text->documents ? text->documents->elements - 1 : 1;
    if (text->mask && text->mask->elements != text->count)
        return kd_fail(KD_EFORMAT,
                       "%s: tensor loss_mask (byte %" PRId64 "): found %" PRId64
                       " elements, expected %" PRId64 " as in tokens",
                       file->path, text->mask->offset, text->mask->elements, text->count);
    return KD_OK;
}

static kd_status read_borders(kd_text *text)
{
    const kd_st_entry *e = text->documents;
    KD_TRY(KD_ARENA_ARRAY(&text->borders, text->file->arena, text->document_count + 1));
    if (!e) {
        text->borders[1] = text->count;
        return KD_OK;
    }
    KD_TRY(kd_st_read(text->borders, KD_I64, text->file, e, 0, e->elements));
    int64_t low = 0;
    for (int64_t i = 0; i <= text->document_count; i++) {
        const int64_t at = text->borders[i], high = i == 0 ? 0 : text->count;
        if (i == text->document_count) low = text->count;
        if (at < low || at > high)
            return kd_fail(KD_EFORMAT,
                           "%s: documents[%" PRId64 "] (byte %" PRId64 "): found %" PRId64
                           ", expected %" PRId64 " to %" PRId64,
                           text->file->path, i, e->offset + i * (int64_t)sizeof at, at, low, high);
        low = at;
    }
    return KD_OK;
}

/* Every id and mask once; counts the targets: scored, and not the first of their document. */
static kd_status check_tokens(kd_text *text)
{
    int32_t ids[CHUNK];
    uint8_t mask[CHUNK];
    int64_t document = 0;
    for (int64_t at = 0; at < text->count; at += CHUNK) {
        const int64_t n = kd_min_i64(CHUNK, text->count - at);
        KD_TRY(read_ids(ids, text, at, n));
        KD_TRY(read_mask(mask, text, at, n));
        int32_t scored = 0;
        for (int64_t i = 0; i < n; i++) scored += mask[i];
        text->targets += scored;
        for (; document < text->document_count && text->borders[document] < at + n; document++) {
            const bool empty = text->borders[document + 1] == text->borders[document];
            if (!empty) text->targets -= mask[text->borders[document] - at];
        }
    }
    text->checked = true;
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
    opened->vocabulary = vocabulary;
    KD_TRY_GOTO(find_tensors(opened), status, failed);
    KD_TRY_GOTO(read_borders(opened), status, failed);
    KD_TRY_GOTO(check_tokens(opened), status, failed);
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
    *begin = text->borders[document];
    *end = text->borders[document + 1];
}

const char *kd_text_metadata(const kd_text *text, const char *key)
{
    return kd_st_metadata(text->file, key);
}
