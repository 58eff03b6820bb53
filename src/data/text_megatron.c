/*
 * text_megatron.c - Megatron's indexed data sets: tokens in x.bin, and in x.idx, little-endian
 * (megatron/core/datasets/indexed_dataset.py):
 *
 *   byte 0   "MMIDIDX\0\0"
 *        9   u64 version, 1
 *       17   u8 type of a token: u8 1, i8 2, i16 3, i32 4, i64 5, f64 6, f32 7, u16 8
 *       18   u64 sequences s
 *       26   u64 borders of documents d
 *       34   i32 [s] tokens of each sequence, i64 [s] where it begins in x.bin, in bytes,
 *            i64 [d] borders: document k is the sequences from border k to border k + 1
 *
 * A multimodal set has i8 [s] behind it and is refused by its size.
 */
#include "data/formats.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAGIC = 9, HEADER = 34 };

static const struct {
    const char *name;
    int size; /* 0: no integer */
    bool is_signed;
} types[] = { { "none", 0, false }, { "u8", 1, false }, { "i8", 1, true },
              { "i16", 2, true },   { "i32", 4, true }, { "i64", 8, true },
              { "f64", 0, true },   { "f32", 0, true }, { "u16", 2, false } };

/* x.idx while it is read: its arrays are numbers of a part of its own. */
typedef struct index_file {
    kd_text_part file;
    kd_numbers lengths, begins;
    int64_t sequences, borders, borders_at;
} index_file;

static kd_status check_head(index_file *x, kd_text_part *part, const unsigned char *head,
                            int64_t bytes)
{
    const char *path = x->file.path;
    uint64_t version, sequences, borders;
    if (memcmp(head, "MMIDIDX\0\0", MAGIC) != 0)
        return kd_fail(KD_EFORMAT, "%s: byte 0: found no magic, expected \"MMIDIDX\\0\\0\"", path);
    memcpy(&version, head + 9, sizeof version);
    if (version != 1)
        return kd_fail(KD_EFORMAT, "%s: version (byte 9): found %" PRIu64 ", expected 1", path,
                       version);
    const int type = head[17], size = type < KD_COUNT(types) ? types[type].size : 0;
    if (size == 0)
        return kd_fail(KD_EFORMAT,
                       "%s: type of tokens (byte 17): found %d (%s), expected 1 to 5 or 8 (u8, i8, "
                       "i16, i32, i64, u16)",
                       path, type, type < KD_COUNT(types) ? types[type].name : "unknown");
    memcpy(&sequences, head + 18, sizeof sequences);
    memcpy(&borders, head + 26, sizeof borders);
    const uint64_t room = (uint64_t)bytes - HEADER;
    if (sequences < 1 || sequences > room / 12)
        return kd_fail(KD_EFORMAT,
                       "%s: sequences (byte 18): found %" PRIu64 ", expected 1 to %" PRIu64
                       " in %" PRId64 " bytes",
                       path, sequences, room / 12, bytes);
    if (borders < 2 || borders > (room - 12 * sequences) / 8)
        return kd_fail(KD_EFORMAT,
                       "%s: document borders (byte 26): found %" PRIu64 ", expected 2 to %" PRIu64
                       " in %" PRId64 " bytes with %" PRIu64 " sequences",
                       path, borders, (room - 12 * sequences) / 8, bytes, sequences);
    const uint64_t expected = HEADER + 12 * sequences + 8 * borders;
    if ((uint64_t)bytes != expected)
        return kd_fail(KD_EFORMAT,
                       "%s: found %" PRId64 " bytes, expected %" PRIu64 " for %" PRIu64
                       " sequences and %" PRIu64 " borders (a multimodal set has more)",
                       path, bytes, expected, sequences, borders);
    x->sequences = (int64_t)sequences;
    x->borders = (int64_t)borders;
    x->lengths = (kd_numbers){ NULL, HEADER, x->sequences, 4, true };
    x->begins = (kd_numbers){ NULL, HEADER + 4 * x->sequences, x->sequences, 8, true };
    x->borders_at = HEADER + 12 * x->sequences;
    part->tokens = (kd_numbers){ .size = size, .is_signed = types[type].is_signed };
    return KD_OK;
}

static kd_status read_borders(kd_text_part *part, const index_file *x)
{
    const size_t bytes = (size_t)x->borders * sizeof *part->documents;
    int64_t low = 0;
    part->documents = malloc(bytes);
    if (!part->documents)
        return kd_fail(KD_ENOMEM, "%s: no memory for %" PRId64 " documents", x->file.path,
                       x->borders - 1);
    part->document_count = x->borders - 1;
    KD_TRY(kd_read_at(x->file.fd, x->file.path, part->documents, bytes, x->borders_at));
    for (int64_t i = 0; i < x->borders; i++) {
        const int64_t at = part->documents[i], high = i == 0 ? 0 : x->sequences;
        if (i + 1 == x->borders) low = high;
        if (at < low || at > high)
            return kd_fail(KD_EFORMAT,
                           "%s: document border %" PRId64 " (byte %" PRId64
                           "): found sequence %" PRId64 ", expected %" PRId64 " to %" PRId64,
                           x->file.path, i, x->borders_at + 8 * i, at, low, high);
        low = at;
    }
    return KD_OK;
}

/* Sequences lie side by side; documents[] turns from sequences into tokens on the way.  The sum
 * cannot overflow: it stays within the bytes of x.bin. */
static kd_status walk_sequences(kd_text_part *part, const index_file *x, int64_t bin_bytes)
{
    enum { CHUNK = 1024 };
    int64_t lengths[CHUNK], begins[CHUNK], tokens = 0, border = 0;
    const int64_t room = bin_bytes / part->tokens.size;
    for (int64_t i = 0; i < x->sequences; i++) {
        if (i % CHUNK == 0) {
            const int64_t n = kd_min_i64(CHUNK, x->sequences - i);
            KD_TRY(kd_part_read(lengths, &x->file, &x->lengths, i, n));
            KD_TRY(kd_part_read(begins, &x->file, &x->begins, i, n));
        }
        const int64_t length = lengths[i % CHUNK], begin = begins[i % CHUNK];
        if (length < 0 || length > room - tokens)
            return kd_fail(KD_EFORMAT,
                           "%s: length of sequence %" PRId64 " (byte %" PRId64 "): found %" PRId64
                           ", expected 0 to %" PRId64 ", what is left of %s",
                           x->file.path, i, x->lengths.offset + 4 * i, length, room - tokens,
                           part->path);
        if (begin != tokens * part->tokens.size)
            return kd_fail(KD_EFORMAT,
                           "%s: begin of sequence %" PRId64 " (byte %" PRId64 "): found %" PRId64
                           ", expected %" PRId64 ", where the one before ends",
                           x->file.path, i, x->begins.offset + 8 * i, begin,
                           tokens * part->tokens.size);
        for (; part->documents[border] == i; border++) part->documents[border] = tokens;
        tokens += length;
    }
    for (; border < x->borders; border++) part->documents[border] = tokens;
    if (tokens * part->tokens.size != bin_bytes)
        return kd_fail(KD_EFORMAT,
                       "%s: found %" PRId64 " bytes, expected %" PRId64 ": %" PRId64
                       " tokens of %d in %s",
                       part->path, bin_bytes, tokens * part->tokens.size, tokens, part->tokens.size,
                       x->file.path);
    part->tokens.count = tokens;
    return KD_OK;
}

static kd_status read_index(kd_text_part *part, index_file *x, int64_t bin_bytes, const char *path)
{
    unsigned char head[HEADER];
    int64_t bytes;
    KD_TRY(kd_part_file(&x->file, &bytes, path));
    if (bytes < HEADER)
        return kd_fail(KD_EFORMAT, "%s: found %" PRId64 " bytes, expected at least %d", path, bytes,
                       (int)HEADER);
    KD_TRY(kd_read_at(x->file.fd, path, head, sizeof head, 0));
    KD_TRY(check_head(x, part, head, bytes));
    KD_TRY(read_borders(part, x));
    return walk_sequences(part, x, bin_bytes);
}

kd_status kd_part_megatron(kd_text_part *part, kd_text_setup *setup)
{
    const int stem = (int)strlen(setup->path) - 4; /* both names end in four characters */
    const char *bin, *idx;
    int64_t bytes;
    KD_TRY(kd_arena_format(&bin, part->arena, "%.*s.bin", stem, setup->path));
    KD_TRY(kd_arena_format(&idx, part->arena, "%.*s.idx", stem, setup->path));
    KD_TRY(kd_part_file(part, &bytes, bin));
    index_file x = { .file = { .arena = part->arena, .fd = -1 } };
    const kd_status status = read_index(part, &x, bytes, idx);
    if (x.file.fd >= 0) close(x.file.fd);
    return status;
}
