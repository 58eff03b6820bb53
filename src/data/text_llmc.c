/*
 * text_llmc.c - llm.c's .bin: a header of 256 int32 (magic, version, number of tokens, rest unused),
 * then the tokens.  What it calls gpt-2 has u16, llama-3 u32 (dev/data/data_common.py).
 *
 * The files do not say where documents are: each begins with the token that its tokenizer separates
 * documents by.  A shard is cut off at a number of tokens, so its first document may begin without.
 */
#include "data/formats.h"

#include <inttypes.h>

enum { HEADER = 256 * sizeof(int32_t) };

typedef struct kind {
    int32_t magic, version;
    int size;          /* of a token */
    int32_t separator; /* id in the tokenizer it is named for */
} kind;

static const kind kinds[] = { { 20240520, 1, 2, 50256 }, { 20240801, 7, 4, 128000 } };

/* Where the models' tokenizer is known, its token of either name counts: the format is used with
 * others than those it was made for. */
static kd_status find_separator(kd_text_setup *setup, const kind *k)
{
    static const char *const names[] = { "<|endoftext|>", "<|begin_of_text|>" };
    setup->separator = setup->options->tokenizer ? -1 : k->separator;
    for (int i = 0; i < KD_COUNT(names) && setup->separator < 0; i++) {
        kd_tokenizer *tokenizer;
        const kd_status status = kd_text_tokenizer(&tokenizer, setup);
        if (status == KD_ENOTSUP) break;
        KD_TRY(status);
        setup->separator = kd_tokenizer_added(tokenizer, names[i]);
    }
    setup->separator_known = true;
    if (setup->separator < 0)
        kd_log(KD_LOG_WARN,
               "%s: documents are not told apart: %s has no token %s or %s that kd knows",
               setup->path, setup->options->tokenizer, names[0], names[1]);
    return KD_OK;
}

static kd_status check_header(const kind **found, kd_text_part *part, const int32_t *header,
                              int64_t bytes)
{
    const kind *k = NULL;
    for (int i = 0; i < KD_COUNT(kinds); i++)
        if (header[0] == kinds[i].magic) k = &kinds[i];
    if (!k)
        return kd_fail(KD_EFORMAT,
                       "%s: magic (byte 0): found %" PRId32 ", expected %" PRId32 " or %" PRId32
                       " of llm.c, or an .idx file of Megatron beside it",
                       part->path, header[0], kinds[0].magic, kinds[1].magic);
    if (header[1] != k->version)
        return kd_fail(KD_EFORMAT,
                       "%s: version (byte 4): found %" PRId32 ", expected %" PRId32
                       " with magic %" PRId32,
                       part->path, header[1], k->version, k->magic);
    if (header[2] < 1)
        return kd_fail(KD_EFORMAT,
                       "%s: number of tokens (byte 8): found %" PRId32 ", expected 1 to %d",
                       part->path, header[2], INT32_MAX);
    const int64_t expected = HEADER + (int64_t)header[2] * k->size;
    if (bytes != expected)
        return kd_fail(KD_EFORMAT,
                       "%s: found %" PRId64 " bytes, expected %" PRId64
                       ": %d of header and %" PRId32 " tokens (byte 8) of %d",
                       part->path, bytes, expected, (int)HEADER, header[2], k->size);
    *found = k;
    return KD_OK;
}

kd_status kd_part_llmc(kd_text_part *part, kd_text_setup *setup)
{
    int32_t header[256];
    const kind *k;
    int64_t bytes;
    KD_TRY(kd_part_file(part, &bytes, setup->path));
    if (bytes < HEADER)
        return kd_fail(KD_EFORMAT,
                       "%s: found %" PRId64 " bytes, expected at least %d, the header of llm.c's "
                       "format, or an .idx file of Megatron beside it",
                       part->path, bytes, (int)HEADER);
    KD_TRY(kd_read_at(part->fd, part->path, header, sizeof header, 0));
    KD_TRY(check_header(&k, part, header, bytes));
    if (!setup->separator_known) KD_TRY(find_separator(setup, k));
    part->tokens = (kd_numbers){ .offset = HEADER, .count = header[2], .size = k->size };
    part->cut = setup->separator >= 0;
    part->separator = setup->separator;
    return KD_OK;
}
