/*
 * text.c - a text: files of tokens in any of the formats, read piece by piece.
 *
 * Everything that could later index out of bounds is checked once, when it is opened: a token id
 * beyond the vocabulary would otherwise fail inside a kernel, far from its cause.  Files may be larger
 * than memory, so only the borders of documents stay in it (and the ids of JSON lines); tokens are
 * read with pread when they are asked for, and their ids compared again, since somebody may have
 * written to the file.
 */
#include "data/formats.h"

#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

enum { CHUNK = 1 << 13, MAX_PARTS = 4096 };

struct kd_text {
    kd_arena *arena; /* owns this struct */
    const char *path;
    kd_text_part *parts;
    int count;
    int64_t vocabulary, tokens, documents, targets;
};

/* ---- formats ---------------------------------------------------------------------------------- */

/* How a file is read: the first row whose name ends like this and which has a file of another ending
 * beside it, where one is wanted.  The reader checks what the file itself says it is. */
static const struct {
    const char *ending, *beside; /* NULL: none wanted */
    kd_status (*read)(kd_text_part *part, kd_text_setup *setup);
} formats[] = {
    { ".idx", NULL, kd_part_megatron },    { ".bin", ".idx", kd_part_megatron },
    { ".bin", NULL, kd_part_llmc },        { ".jsonl", NULL, kd_part_json_lines },
    { ".json", NULL, kd_part_json_lines }, { "", NULL, kd_part_safetensors },
};

static kd_status has_beside(bool *has, kd_arena *arena, const char *path, size_t stem,
                            const char *ending)
{
    const char *beside;
    KD_TRY(kd_arena_format(&beside, arena, "%.*s%s", (int)stem, path, ending));
    *has = kd_file_exists(beside);
    return KD_OK;
}

static kd_status read_part(kd_text_part *part, kd_text_setup *setup)
{
    const size_t length = strlen(setup->path);
    for (int i = 0; i < KD_COUNT(formats); i++) {
        const size_t ending = strlen(formats[i].ending);
        bool fits =
            length >= ending && strcmp(setup->path + length - ending, formats[i].ending) == 0;
        if (fits && formats[i].beside)
            KD_TRY(has_beside(&fits, part->arena, setup->path, length - ending, formats[i].beside));
        if (fits) return formats[i].read(part, setup);
    }
    return kd_fail(KD_EINTERNAL, "%s: no format", setup->path);
}

/* ---- what readers share ----------------------------------------------------------------------- */

kd_status kd_text_tokenizer(kd_tokenizer **tokenizer, kd_text_setup *setup)
{
    if (!setup->tokenizer && !setup->options->tokenizer)
        return kd_fail(KD_EFORMAT, "%s: found text, expected tokens, or a model with a tokenizer",
                       setup->path);
    if (!setup->tokenizer) KD_TRY(kd_tokenizer_open(&setup->tokenizer, setup->options->tokenizer));
    *tokenizer = setup->tokenizer;
    return KD_OK;
}

kd_status kd_part_file(kd_text_part *part, int64_t *bytes, const char *path)
{
    KD_TRY(kd_arena_string(&part->path, part->arena, path));
    return kd_file_open(&part->fd, bytes, part->path);
}

/* ---- numbers ---------------------------------------------------------------------------------- */

static void widen(int64_t *to, const unsigned char *from, int size, bool is_signed, int64_t count)
{
    for (int64_t i = 0; size == 1 && i < count; i++) to[i] = from[i];
    for (int64_t i = 0; size == 2 && i < count; i++) {
        uint16_t value;
        memcpy(&value, from + 2 * i, sizeof value);
        to[i] = value;
    }
    for (int64_t i = 0; size == 4 && i < count; i++) {
        uint32_t value;
        memcpy(&value, from + 4 * i, sizeof value);
        to[i] = value;
    }
    if (size == 8) memcpy(to, from, (size_t)count * sizeof *to);
    const int64_t sign = INT64_C(1) << (8 * size - 1 < 62 ? 8 * size - 1 : 62);
    for (int64_t i = 0; is_signed && size < 8 && i < count; i++) to[i] = (to[i] ^ sign) - sign;
}

kd_status kd_part_read(int64_t *to, const kd_text_part *part, const kd_numbers *numbers, int64_t at,
                       int64_t count)
{
    unsigned char raw[CHUNK * sizeof *to];
    const int64_t size = numbers->size;
    for (int64_t done = 0; done < count; done += CHUNK) {
        const int64_t n = kd_min_i64(CHUNK, count - done), from = (at + done) * size;
        const unsigned char *bytes = raw;
        if (numbers->memory)
            bytes = (const unsigned char *)numbers->memory + from;
        else
            KD_TRY(
                kd_read_at(part->fd, part->path, raw, (size_t)(n * size), numbers->offset + from));
        widen(to + done, bytes, numbers->size, numbers->is_signed, n);
    }
    return KD_OK;
}

/* `when`: "" or " changed while in use".  Without a branch per token, so that it runs at the speed of
 * memory; a negative id is the largest of all. */
static kd_status read_ids(int64_t *ids, const kd_text_part *part, const char *when, int64_t at,
                          int64_t count, int64_t vocabulary)
{
    const kd_numbers *n = &part->tokens;
    uint64_t largest = 0;
    KD_TRY(kd_part_read(ids, part, n, at, count));
    for (int64_t i = 0; i < count; i++)
        largest = (uint64_t)ids[i] > largest ? (uint64_t)ids[i] : largest;
    if (largest < (uint64_t)vocabulary) return KD_OK;
    int64_t bad = 0;
    while ((uint64_t)ids[bad] < (uint64_t)vocabulary) bad++;
    return kd_fail(KD_EFORMAT,
                   "%s: tokens[%" PRId64 "]%s (byte %" PRId64 "): found id %" PRId64
                   ", expected 0 to %" PRId64,
                   part->path, at + bad, when, n->offset + (at + bad) * n->size, ids[bad],
                   vocabulary - 1);
}

/* Ones where the part has no mask. */
static kd_status read_mask(int64_t *mask, const kd_text_part *part, int64_t at, int64_t count)
{
    int64_t others = 0;
    for (int64_t i = 0; i < count; i++) mask[i] = 1;
    if (!part->mask.size) return KD_OK;
    KD_TRY(kd_part_read(mask, part, &part->mask, at, count));
    for (int64_t i = 0; i < count; i++) others |= mask[i] & ~INT64_C(1);
    if (!others) return KD_OK;
    int64_t bad = 0;
    while (mask[bad] == 0 || mask[bad] == 1) bad++;
    return kd_fail(KD_EFORMAT,
                   "%s: loss_mask[%" PRId64 "] (byte %" PRId64 "): found %" PRId64
                   ", expected 0 or 1",
                   part->path, at + bad, part->mask.offset + at + bad, mask[bad]);
}

/* ---- one scan of everything ------------------------------------------------------------------- */

static kd_status add_border(kd_text_part *part, int64_t *room, int64_t at)
{
    if (part->document_count == *room) {
        *room = 2 * *room + 1024;
        int64_t *more = realloc(part->documents, (size_t)(*room + 1) * sizeof *more);
        if (!more)
            return kd_fail(KD_ENOMEM, "%s: no memory for %" PRId64 " documents", part->path, *room);
        part->documents = more;
    }
    part->documents[part->document_count++] = at;
    return KD_OK;
}

/* Every id, and where the separator begins a document. */
static kd_status scan_tokens(kd_text_part *part, int64_t vocabulary)
{
    int64_t ids[CHUNK], room = 0;
    const bool find = !part->documents;
    if (find) KD_TRY(add_border(part, &room, 0));
    for (int64_t begin = 0; begin < part->tokens.count; begin += CHUNK) {
        const int64_t n = kd_min_i64(CHUNK, part->tokens.count - begin);
        KD_TRY(read_ids(ids, part, "", begin, n, vocabulary));
        for (int64_t i = 0; find && part->cut && i < n; i++)
            if (ids[i] == part->separator && begin + i > 0)
                KD_TRY(add_border(part, &room, begin + i));
    }
    if (find) part->documents[part->document_count] = part->tokens.count;
    return KD_OK;
}

/* Targets: ones of the mask but for those on a document's first token. */
static kd_status scan_mask(kd_text_part *part)
{
    int64_t mask[CHUNK], document = 0;
    part->targets = 0;
    for (int64_t begin = 0; begin < part->tokens.count; begin += CHUNK) {
        const int64_t n = kd_min_i64(CHUNK, part->tokens.count - begin), end = begin + n;
        KD_TRY(read_mask(mask, part, begin, n));
        for (int64_t i = 0; i < n; i++) part->targets += mask[i];
        for (; document < part->document_count && part->documents[document] < end; document++) {
            const int64_t first = part->documents[document];
            if (part->documents[document + 1] > first) part->targets -= mask[first - begin];
        }
    }
    return KD_OK;
}

/* ---- opening ---------------------------------------------------------------------------------- */

static kd_status check_part(kd_text *text, const kd_text_part *part, const kd_text_setup *setup)
{
    const char *wanted = setup->options->fingerprint;
    if (part->tokens.count < 1)
        return kd_fail(KD_EFORMAT, "%s: found no tokens, expected at least 1", part->path);
    if (part->tokenizer && wanted && strcmp(part->tokenizer, wanted) != 0)
        return kd_fail(KD_EFORMAT, "%s: made with the tokenizer %.60s, the models have %s",
                       part->path, part->tokenizer, wanted);
    /* "x*" finds x.bin and x.idx, which are one. */
    for (const kd_text_part *p = text->parts; p < part; p++)
        if (strcmp(p->path, part->path) == 0)
            return kd_fail(KD_EFORMAT, "%s: %s is found twice", text->path, part->path);
    return KD_OK;
}

static kd_status open_part(kd_text *text, kd_text_setup *setup)
{
    kd_text_part *part = &text->parts[text->count];
    *part = (kd_text_part){ .arena = text->arena, .fd = -1 };
    text->count++;
    KD_TRY(read_part(part, setup));
    KD_TRY(check_part(text, part, setup));
    KD_TRY(scan_tokens(part, text->vocabulary));
    KD_TRY(scan_mask(part));
    part->first_token = text->tokens;
    part->first_document = text->documents;
    text->tokens += part->tokens.count;
    text->documents += part->document_count;
    text->targets += part->targets;
    return KD_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static kd_status open_parts(kd_text *text, kd_text_setup *setup, char **paths, size_t count)
{
    if (count > MAX_PARTS)
        return kd_fail(KD_EINVAL, "%s: found %zu files, expected at most %d", text->path, count,
                       MAX_PARTS);
    KD_TRY(KD_ARENA_ARRAY(&text->parts, text->arena, (int64_t)count));
    qsort(paths, count, sizeof *paths, by_name); /* glob's order depends on the locale */
    for (size_t i = 0; i < count; i++) {
        setup->path = paths[i];
        KD_TRY(open_part(text, setup));
    }
    return KD_OK;
}

/* A path, or a pattern where no file has that name. */
static kd_status open_files(kd_text *text, kd_text_setup *setup)
{
    glob_t found;
    char *path = (char *)(uintptr_t)text->path;
    if (kd_file_exists(path) || !strpbrk(path, "*?[")) return open_parts(text, setup, &path, 1);
    const int error = glob(path, GLOB_NOSORT, NULL, &found);
    if (error == GLOB_NOMATCH)
        return kd_fail(KD_EFORMAT, "%s: found no such file, expected at least one", path);
    if (error)
        return kd_fail(error == GLOB_NOSPACE ? KD_ENOMEM : KD_EIO, "%s: cannot list its files",
                       path);
    const kd_status status = open_parts(text, setup, found.gl_pathv, found.gl_pathc);
    globfree(&found);
    return status;
}

static kd_status create(kd_text **text, const char *path, int64_t vocabulary)
{
    kd_arena *arena;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = KD_ARENA_ARRAY(text, arena, 1);
    if (status == KD_OK) {
        (*text)->arena = arena;
        (*text)->vocabulary = vocabulary;
        status = kd_arena_string(&(*text)->path, arena, path);
    }
    if (status != KD_OK) kd_arena_destroy(arena);
    return status;
}

kd_status kd_text_open(kd_text **text, const char *path, const kd_text_options *options)
{
    kd_text *opened = NULL;
    *text = NULL;
    if (options->vocabulary < 1 || options->vocabulary > INT32_MAX)
        return kd_fail(KD_EINVAL, "%s: vocabulary %" PRId64 ", expected 1 to %d", path,
                       options->vocabulary, INT32_MAX);
    KD_TRY(create(&opened, path, options->vocabulary));
    kd_text_setup setup = { .options = options };
    const kd_status status = open_files(opened, &setup);
    kd_tokenizer_close(setup.tokenizer);
    if (status == KD_OK)
        *text = opened;
    else
        kd_text_close(opened);
    return status;
}

void kd_text_close(kd_text *text)
{
    if (!text) return;
    for (int i = 0; i < text->count; i++) {
        kd_text_part *part = &text->parts[i];
        if (part->fd >= 0) (void)close(part->fd);
        free(part->documents);
        free(part->memory);
    }
    kd_arena_destroy(text->arena);
}

/* ---- reading ---------------------------------------------------------------------------------- */

int64_t kd_text_tokens(const kd_text *text) { return text->tokens; }

int64_t kd_text_documents(const kd_text *text) { return text->documents; }

int64_t kd_text_targets(const kd_text *text) { return text->targets; }

void kd_text_document(const kd_text *text, int64_t document, int64_t *begin, int64_t *end)
{
    int low = 0, high = text->count;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (text->parts[middle].first_document <= document)
            low = middle;
        else
            high = middle;
    }
    const kd_text_part *part = &text->parts[low];
    *begin = part->first_token + part->documents[document - part->first_document];
    *end = part->first_token + part->documents[document - part->first_document + 1];
}

/* The part that has token `at`: none is empty. */
static const kd_text_part *find_part(const kd_text *text, int64_t at)
{
    int low = 0, high = text->count;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (text->parts[middle].first_token <= at)
            low = middle;
        else
            high = middle;
    }
    return &text->parts[low];
}

kd_status kd_text_read(int32_t *ids, int32_t *labels, const kd_text *text, int64_t at,
                       int64_t count, int64_t end)
{
    int64_t next[CHUNK + 1], mask[CHUNK + 1];
    const kd_text_part *part = find_part(text, at);
    at -= part->first_token;
    end -= part->first_token;
    for (int64_t done = 0; done < count; done += CHUNK) {
        const int64_t first = at + done, n = kd_min_i64(CHUNK, count - done);
        const int64_t known = n + (first + n < end); /* the last one's label too */
        KD_TRY(read_ids(next, part, " changed while in use", first, known, text->vocabulary));
        KD_TRY(read_mask(mask, part, first, known));
        for (int64_t i = 0; i < n; i++) {
            ids[done + i] = (int32_t)next[i];
            labels[done + i] = i + 1 < known && mask[i + 1] ? (int32_t)next[i + 1] : -1;
        }
    }
    return KD_OK;
}
