/*
 * text_json.c - JSON lines: {"text": "..."} on each, tokenised into memory when they are opened.
 *
 * A document is the ids that PyPI transformers gives for the text, with what the tokenizer puts around
 * one (Llama 3's first token), and the tokenizer's eos_token, where it has one, unless the text ends in
 * it.  Blank lines and empty texts make none; other keys are ignored.
 *
 * The file is cut into blocks of whole lines, and threads take blocks: memory is the ids and a block
 * for each thread.  What is refused is the first that is wrong, whichever thread was fastest.
 */
#include "data/formats.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { BLOCK = 1 << 20, LINE_MOST = 1 << 26, FILE_MOST = 1 << 30 };

static const char *const tool = "tools/data/tokenize_jsonl.py";

/* Whole lines [byte, byte + bytes) of the file, then what was made of them. */
typedef struct block {
    int64_t byte, bytes, line; /* number of its first line, from 1 */
    int32_t *ids;
    int64_t count, room;
    int64_t *ends; /* of documents, in ids */
    int64_t documents, document_room;
    kd_status status;
    char message[1024]; /* of a failure */
} block;

typedef struct reader {
    kd_text_part *part;
    const kd_tokenizer *tokenizer;
    int64_t vocabulary;
    int32_t end; /* -1: documents have no end token */
    block *blocks;
    int64_t block_count;
    atomic_bool failed;
} reader;

/* A line of a block. */
typedef struct line {
    const reader *r;
    const char *text;
    size_t bytes;
    int64_t number, byte;
} line;

/* ---- the end of a document -------------------------------------------------------------------- */

static kd_status read_end(int32_t *end, const kd_tokenizer *tokenizer, const char *path)
{
    json_t *json;
    *end = -1;
    if (!kd_file_exists(path)) return KD_OK;
    KD_TRY(kd_json_read(&json, path));
    const json_t *eos = json_object_get(json, "eos_token");
    if (json_is_object(eos)) eos = json_object_get(eos, "content");
    kd_status status = KD_OK;
    if (json_is_string(eos)) {
        *end = kd_tokenizer_added(tokenizer, json_string_value(eos));
        if (*end < 0)
            status = kd_fail(KD_EFORMAT,
                             "%s: eos_token: found \"%.60s\", expected an added token of the "
                             "tokenizer",
                             path, json_string_value(eos));
    }
    json_decref(json);
    return status;
}

/* ---- one line --------------------------------------------------------------------------------- */

static kd_status refuse(const line *l, const char *found)
{
    return kd_fail(KD_EFORMAT, "%s:%" PRId64 " (byte %" PRId64 "): %s", l->r->part->path, l->number,
                   l->byte, found);
}

static kd_status find_text(const json_t **text, const line *l, const json_t *json)
{
    *text = json_object_get(json, "text");
    if (json_is_string(*text)) return KD_OK;
    if (json_object_get(json, "messages"))
        return kd_fail(KD_EFORMAT,
                       "%s:%" PRId64 " (byte %" PRId64
                       "): found messages, expected text: the chat template is applied by %s "
                       "--tokenizer DIR --out FILE.safetensors %s",
                       l->r->part->path, l->number, l->byte, tool, l->r->part->path);
    return refuse(l, *text ? "text: found another type, expected a string"
                           : "found no key \"text\", expected an object with one");
}

static kd_status grow(void **array, const char *path, int64_t *room, int64_t needed, size_t size)
{
    if (needed <= *room) return KD_OK;
    const int64_t more = 2 * needed + 1024;
    void *larger = realloc(*array, (size_t)more * size);
    if (!larger) return kd_fail(KD_ENOMEM, "%s: no memory for %" PRId64 " tokens", path, more);
    *array = larger;
    *room = more;
    return KD_OK;
}

/* `ids` and the end token, as a document of `b`. */
static kd_status add_document(block *b, const line *l, const int32_t *ids, int64_t count)
{
    const reader *r = l->r;
    const bool ended = count > 0 && ids[count - 1] == r->end;
    const int64_t needed = b->count + count + 1;
    KD_TRY(grow((void **)(void *)&b->ids, r->part->path, &b->room, needed, sizeof *b->ids));
    KD_TRY(grow((void **)(void *)&b->ends, r->part->path, &b->document_room, b->documents + 1,
                sizeof *b->ends));
    if (count) memcpy(b->ids + b->count, ids, (size_t)count * sizeof *ids);
    if (r->end >= 0 && !ended) b->ids[b->count + count++] = r->end;
    for (int64_t i = b->count; i < b->count + count; i++) {
        if (b->ids[i] < r->vocabulary) continue;
        return kd_fail(KD_EFORMAT,
                       "%s:%" PRId64 " (byte %" PRId64 "): text: token %" PRId64
                       ": found id %" PRId32 ", expected 0 to %" PRId64,
                       r->part->path, l->number, l->byte, i - b->count, b->ids[i],
                       r->vocabulary - 1);
    }
    b->count += count;
    b->ends[b->documents++] = b->count;
    return KD_OK;
}

static kd_status add_text(block *b, const line *l, const json_t *text)
{
    int32_t *ids = NULL;
    int64_t count;
    if (json_string_length(text) == 0) return KD_OK;
    kd_status status = kd_tokenizer_encode(&ids, &count, l->r->tokenizer, json_string_value(text),
                                           json_string_length(text), true);
    if (status == KD_ENOMEM) return status;
    if (status != KD_OK)
        return kd_fail(status, "%s:%" PRId64 " (byte %" PRId64 "): text: %s; %s may take it",
                       l->r->part->path, l->number, l->byte, kd_last_error(), tool);
    status = add_document(b, l, ids, count);
    free(ids);
    return status;
}

static kd_status add_line(block *b, const line *l)
{
    json_t *json;
    const json_t *text;
    size_t blank = 0;
    while (blank < l->bytes && strchr(" \t\r", l->text[blank]) && l->text[blank]) blank++;
    if (blank == l->bytes) return KD_OK;
    kd_status status = kd_json_parse(&json, "", l->text, l->bytes);
    if (status == KD_ENOMEM)
        return kd_fail(status, "%s:%" PRId64 ": no memory", l->r->part->path, l->number);
    /* ":1:COLUMN: what", in a text of one line. */
    if (status != KD_OK)
        return kd_fail(status, "%s:%" PRId64 "%s (the line begins at byte %" PRId64 ")",
                       l->r->part->path, l->number, strchr(kd_last_error() + 1, ':'), l->byte);
    status = find_text(&text, l, json);
    if (status == KD_OK) status = add_text(b, l, text);
    json_decref(json);
    return status;
}

/* ---- blocks ----------------------------------------------------------------------------------- */

static kd_status add_lines(block *b, const reader *r, const char *bytes)
{
    line l = { .r = r, .number = b->line };
    for (int64_t at = 0; at < b->bytes; at += (int64_t)l.bytes + 1, l.number++) {
        const char *end = memchr(bytes + at, '\n', (size_t)(b->bytes - at));
        l.text = bytes + at;
        l.byte = b->byte + at;
        l.bytes = end ? (size_t)(end - l.text) : (size_t)(b->bytes - at);
        KD_TRY(add_line(b, &l));
    }
    return KD_OK;
}

static void read_block(reader *r, block *b)
{
    char *bytes = malloc((size_t)b->bytes + 1);
    b->status =
        bytes ? kd_read_at(r->part->fd, r->part->path, bytes, (size_t)b->bytes, b->byte)
              : kd_fail(KD_ENOMEM, "%s: no memory for %" PRId64 " bytes", r->part->path, b->bytes);
    if (b->status == KD_OK) b->status = add_lines(b, r, bytes);
    free(bytes);
    if (b->status == KD_OK) return;
    /* The message is this thread's own. */
    snprintf(b->message, sizeof b->message, "%s", kd_last_error());
    atomic_store(&r->failed, true);
}

/* Blocks begin in order, so those before a failed one have begun, and the first failure is found. */
static kd_status read_blocks(reader *r)
{
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < r->block_count; i++)
        if (!atomic_load(&r->failed)) read_block(r, &r->blocks[i]);
    for (int64_t i = 0; i < r->block_count; i++) {
        const block *b = &r->blocks[i];
        if (b->status != KD_OK) return kd_fail(b->status, "%s", b->message);
    }
    return KD_OK;
}

/* Where blocks begin, in one pass over the file. */
static kd_status find_blocks(reader *r, int64_t size)
{
    enum { CHUNK = 1 << 16 };
    char chunk[CHUNK];
    int64_t lines = 0, line_begin = 0;
    block *b = &r->blocks[0];
    *b = (block){ .line = 1 };
    r->block_count = 1;
    for (int64_t begin = 0; begin < size; begin += CHUNK) {
        const int64_t n = kd_min_i64(CHUNK, size - begin);
        KD_TRY(kd_read_at(r->part->fd, r->part->path, chunk, (size_t)n, begin));
        for (char *at = chunk; (at = memchr(at, '\n', (size_t)(chunk + n - at))); at++) {
            lines++;
            line_begin = begin + (at - chunk) + 1;
            if (line_begin - b->byte < BLOCK) continue;
            b->bytes = line_begin - b->byte;
            *++b = (block){ .byte = line_begin, .line = lines + 1 };
            r->block_count++;
        }
        if (begin + n - line_begin > LINE_MOST)
            return kd_fail(KD_EFORMAT,
                           "%s:%" PRId64 " (byte %" PRId64 "): found a line of more than %d bytes",
                           r->part->path, lines + 1, line_begin, LINE_MOST);
    }
    b->bytes = size - b->byte;
    return KD_OK;
}

/* ---- the text --------------------------------------------------------------------------------- */

static void put_ids(char *to, int size, const int32_t *ids, int64_t count)
{
    for (int64_t i = 0; i < count; i++) memcpy(to + i * size, &ids[i], (size_t)size);
}

/* Blocks put together in the part's memory and freed on the way; ids take two bytes where they fit. */
static kd_status join(reader *r)
{
    kd_text_part *part = r->part;
    const int size = r->vocabulary <= UINT16_MAX + 1 ? 2 : 4;
    int64_t count = 0, documents = 0;
    for (int64_t i = 0; i < r->block_count; i++) {
        count += r->blocks[i].count;
        documents += r->blocks[i].documents;
    }
    char *memory = part->memory = malloc((size_t)(count * size + 1));
    part->documents = malloc((size_t)(documents + 1) * sizeof *part->documents);
    if (!memory || !part->documents)
        return kd_fail(KD_ENOMEM, "%s: no memory for %" PRId64 " tokens", part->path, count);
    int64_t at = 0, document = 0;
    part->documents[0] = 0;
    for (int64_t i = 0; i < r->block_count; i++) {
        block *b = &r->blocks[i];
        put_ids(memory + at * size, size, b->ids, b->count);
        for (int64_t k = 0; k < b->documents; k++) part->documents[++document] = at + b->ends[k];
        at += b->count;
        free(b->ids);
        b->ids = NULL;
    }
    part->document_count = documents;
    part->tokens = (kd_numbers){ .memory = memory, .count = count, .size = size };
    return KD_OK;
}

static kd_status read_all(reader *r, int64_t bytes)
{
    KD_TRY(find_blocks(r, bytes));
    KD_TRY(read_blocks(r));
    return join(r);
}

kd_status kd_part_json_lines(kd_text_part *part, kd_text_setup *setup)
{
    const char *config;
    int64_t bytes;
    kd_tokenizer *tokenizer;
    reader r = { .part = part, .vocabulary = setup->options->vocabulary };
    KD_TRY(kd_part_file(part, &bytes, setup->path));
    if (bytes > FILE_MOST)
        return kd_fail(KD_EFORMAT,
                       "%s: found %" PRId64 " bytes, expected at most %d of text that is tokenised "
                       "into memory; %s makes a token file of more",
                       part->path, bytes, FILE_MOST, tool);
    KD_TRY(kd_text_tokenizer(&tokenizer, setup));
    r.tokenizer = tokenizer;
    KD_TRY(kd_path_join(&config, part->arena, setup->options->tokenizer, "tokenizer_config.json"));
    KD_TRY(read_end(&r.end, tokenizer, config));
    r.blocks = calloc((size_t)(bytes / BLOCK + 1), sizeof *r.blocks);
    if (!r.blocks) return kd_fail(KD_ENOMEM, "%s: no memory", part->path);
    const kd_status status = read_all(&r, bytes);
    for (int64_t i = 0; i < r.block_count; i++) {
        free(r.blocks[i].ids);
        free(r.blocks[i].ends);
    }
    free(r.blocks);
    return status;
}
