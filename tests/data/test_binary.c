/*
 * llm.c's and Megatron's files, and shards: made here byte by byte, read as their writers meant them,
 * and refused with file, field, byte, found and expected where they are broken.
 */
#include "support/refusal.h"
#include "support/text_file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const kd_text_options any = { .vocabulary = 200000 };

static kd_text *opened(const char *path, const kd_text_options *options)
{
    kd_text *text;
    char copy[160];
    snprintf(copy, sizeof copy, "%s", path);
    cr_assert(kd_text_open(&text, copy, options) == KD_OK, "%s", kd_last_error());
    return text;
}

/* ---- llm.c ------------------------------------------------------------------------------------ */

enum { GPT2 = 20240520, LLAMA3 = 20240801, LLMC_ROOM = 8192 };

/* `count` tokens, and `declared` in a header of 256 int32; returns the path. */
static const char *write_llmc(const char *name, int32_t magic, int32_t version, int32_t declared,
                              const int32_t *tokens, int count, size_t extra)
{
    static unsigned char bytes[LLMC_ROOM];
    const int32_t header[3] = { magic, version, declared };
    const size_t size = magic == LLAMA3 ? 4 : 2;
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, header, sizeof header);
    for (int i = 0; i < count; i++) memcpy(bytes + 1024 + (size_t)i * size, &tokens[i], size);
    return test_bytes_write(name, bytes, 1024 + (size_t)count * size + extra);
}

Test(llmc, reads_both_kinds)
{
    /* A shard that begins within a document; two separators in a row; one at the end. */
    static const int32_t gpt2[] = { 7, 8, 50256, 1, 2, 3, 50256, 50256, 65535, 50256 };
    static const int64_t borders[] = { 0, 2, 6, 7, 9, 10 };
    kd_text *text = opened(write_llmc("a.bin", GPT2, 1, 10, gpt2, 10, 0), &any);
    test_text_holds(text, gpt2, NULL, 10);
    test_text_borders(text, borders, 6);
    cr_assert(kd_text_targets(text) == 5, "%lld targets", (long long)kd_text_targets(text));
    kd_text_close(text);

    static const int32_t llama3[] = { 128000, 5, 50256, 128000, 6, 131071 };
    static const int64_t two[] = { 0, 3, 6 };
    text = opened(write_llmc("b.bin", LLAMA3, 7, 6, llama3, 6, 0), &any);
    test_text_holds(text, llama3, NULL, 6);
    test_text_borders(text, two, 3);
    kd_text_close(text);

    /* The models' own tokenizer says which token it is: here <|endoftext|> is 0. */
    const kd_text_options gpt2_like = { .vocabulary = 200000, .tokenizer = KD_GOLDEN "/bpe/gpt2" };
    static const int32_t other[] = { 0, 5, 50256, 0, 6 };
    static const int64_t zeros[] = { 0, 3, 5 };
    text = opened(write_llmc("c.bin", GPT2, 1, 5, other, 5, 0), &gpt2_like);
    test_text_borders(text, zeros, 3);
    kd_text_close(text);

    /* A tokenizer that kd cannot read: one document, and its reader is told. */
    const kd_text_options unigram = { .vocabulary = 200000,
                                      .tokenizer = KD_GOLDEN "/tokenizer/unigram" };
    static const int64_t whole[] = { 0, 5 };
    text = opened(test_text_path("c.bin"), &unigram);
    test_text_borders(text, whole, 2);
    kd_text_close(text);
    test_text_remove();
}

Test(llmc, refuses_what_is_broken)
{
    static const int32_t tokens[] = { 1, 2, 70000, 4 };
    static const struct {
        const char *name;
        int32_t magic, version, declared;
        int count;
        size_t extra;
        const char *parts;
    } cases[] = {
        { "magic.bin", 20240522, 1, 4, 4, 0, "magic (byte 0)|found 20240522|20240520 or 20240801" },
        { "version.bin", GPT2, 2, 4, 4, 0, "version (byte 4)|found 2|expected 1" },
        { "mixed.bin", LLAMA3, 1, 4, 4, 0, "version (byte 4)|found 1|expected 7" },
        { "none.bin", GPT2, 1, 0, 0, 0, "number of tokens (byte 8)|found 0|expected 1 to" },
        { "negative.bin", GPT2, 1, -4, 4, 0, "number of tokens (byte 8)|found -4" },
        { "short.bin", GPT2, 1, 5, 4, 0, "found 1032 bytes|expected 1034|5 tokens (byte 8) of 2" },
        { "long.bin", GPT2, 1, 4, 4, 1, "found 1033 bytes|expected 1032" },
        { "width.bin", LLAMA3, 7, 4, 4, 4, "found 1044 bytes|expected 1040|of 4" },
        { "huge.bin", LLAMA3, 7, INT32_MAX, 4, 0, "found 1040 bytes|expected 8589935612" },
        { "id.bin", LLAMA3, 7, 4, 4, 0, "tokens[2] (byte 1032)|found id 70000|0 to 50256" },
    };
    const kd_text_options options = { .vocabulary = 50257 };
    for (int k = 0; k < KD_COUNT(cases); k++)
        test_text_refused(write_llmc(cases[k].name, cases[k].magic, cases[k].version,
                                     cases[k].declared, tokens, cases[k].count, cases[k].extra),
                          &options, cases[k].parts);
    test_text_refused(test_bytes_write("head.bin", "abc", 3), &options,
                      "found 3 bytes|at least 1024|.idx");
    test_text_refused(test_bytes_write("empty.bin", "", 0), &options, "found 0 bytes");
    test_text_refused(test_text_path("absent.bin"), &options, "absent.bin");
    test_text_remove();
}

/* ---- Megatron --------------------------------------------------------------------------------- */

/* x.idx before it is written, field by field, and the bytes of x.bin. */
typedef struct megatron {
    const char *magic;
    uint64_t version;
    unsigned char type;
    uint64_t sequences, borders; /* as declared */
    int32_t lengths[4];
    int64_t begins[4], documents[4];
    int written, written_borders; /* of the arrays */
    size_t extra, bin_bytes;
} megatron;

/* Three sequences of 3, 0 and 2 tokens; documents {0}, {1, 2}. */
static megatron good(int type, int size)
{
    return (megatron){ .magic = "MMIDIDX\0",
                       .version = 1,
                       .type = (unsigned char)type,
                       .sequences = 3,
                       .borders = 3,
                       .lengths = { 3, 0, 2 },
                       .begins = { 0, 3 * size, 3 * size },
                       .documents = { 0, 1, 3 },
                       .written = 3,
                       .written_borders = 3,
                       .bin_bytes = (size_t)(5 * size) };
}

static const char *write_megatron(const megatron *m, const void *tokens)
{
    unsigned char bytes[256] = { 0 };
    size_t n = 0;
    const struct {
        const void *from;
        size_t bytes;
    } fields[] = { { m->magic, 9 },
                   { &m->version, 8 },
                   { &m->type, 1 },
                   { &m->sequences, 8 },
                   { &m->borders, 8 },
                   { m->lengths, (size_t)m->written * 4 },
                   { m->begins, (size_t)m->written * 8 },
                   { m->documents, (size_t)m->written_borders * 8 } };
    for (int i = 0; i < KD_COUNT(fields); i++) {
        memcpy(bytes + n, fields[i].from, fields[i].bytes);
        n += fields[i].bytes;
    }
    test_bytes_write("m.bin", tokens, m->bin_bytes);
    return test_bytes_write("m.idx", bytes, n + m->extra);
}

Test(megatron, reads_every_type_of_integer)
{
    static const int32_t ids[5] = { 3, 127, 9, 0, 100 };
    static const int64_t borders[] = { 0, 3, 5 };
    static const struct {
        int type, size;
    } types[] = { { 1, 1 }, { 2, 1 }, { 3, 2 }, { 4, 4 }, { 5, 8 }, { 8, 2 } };
    for (int k = 0; k < KD_COUNT(types); k++) {
        unsigned char tokens[40] = { 0 };
        for (int i = 0; i < 5; i++) tokens[i * types[k].size] = (unsigned char)ids[i];
        const megatron m = good(types[k].type, types[k].size);
        write_megatron(&m, tokens);
        for (int name = 0; name < 2; name++) {
            kd_text *text = opened(test_text_path(name ? "m.bin" : "m.idx"), &any);
            test_text_holds(text, ids, NULL, 5);
            test_text_borders(text, borders, 3);
            cr_assert(kd_text_targets(text) == 3, "%lld targets", (long long)kd_text_targets(text));
            kd_text_close(text);
        }
    }
    static const uint16_t large[5] = { 65535, 40000, 32768, 32767, 1 };
    static const int32_t widened[5] = { 65535, 40000, 32768, 32767, 1 };
    const megatron m = good(8, 2);
    kd_text *text = opened(write_megatron(&m, large), &any);
    test_text_holds(text, widened, NULL, 5);
    kd_text_close(text);
    test_text_remove();
}

/* Only x.bin or x.idx is named, whichever is wrong. */
#define BROKEN(parts, ...)                                                                         \
    do {                                                                                           \
        megatron m = good(4, 4);                                                                   \
        __VA_ARGS__;                                                                               \
        kd_text *text;                                                                             \
        test_refusal(kd_text_open(&text, write_megatron(&m, tokens), &any), KD_EFORMAT, parts,     \
                     parts);                                                                       \
    } while (0)

Test(megatron, refuses_what_is_broken)
{
    static const int32_t tokens[8] = { 3, 127, 9, 0, 100 };
    BROKEN("m.idx: byte 0: found no magic", m.magic = "MMIDIDY\0");
    BROKEN("m.idx: version (byte 9): found 2, expected 1", m.version = 2);
    BROKEN("type of tokens (byte 17): found 0 (none)", m.type = 0);
    BROKEN("type of tokens (byte 17): found 6 (f64), expected 1 to 5 or 8", m.type = 6);
    BROKEN("type of tokens (byte 17): found 7 (f32)", m.type = 7);
    BROKEN("type of tokens (byte 17): found 255 (unknown)", m.type = 255);
    BROKEN("sequences (byte 18): found 0, expected 1 to 5 in 94 bytes", m.sequences = 0);
    BROKEN("sequences (byte 18): found 6, expected 1 to 5", m.sequences = 6);
    /* 12 * 2^62 and 12 * 1537228672809129302 wrap around to what fits. */
    BROKEN("sequences (byte 18): found 4611686018427387904", m.sequences = UINT64_C(1) << 62);
    BROKEN("sequences (byte 18): found 1537228672809129302",
           m.sequences = UINT64_C(1537228672809129302));
    BROKEN("document borders (byte 26): found 1, expected 2 to 3", m.borders = 1);
    BROKEN("document borders (byte 26): found 4, expected 2 to 3", m.borders = 4);
    BROKEN("document borders (byte 26): found 2305843009213693955",
           m.borders = (UINT64_C(1) << 61) + 3);
    BROKEN("found 94 bytes, expected 86 for 3 sequences and 2 borders", m.borders = 2);
    BROKEN("found 97 bytes, expected 94", m.extra = 3); /* modes of a multimodal set */
    BROKEN("document border 0 (byte 70): found sequence 1, expected 0 to 0", m.documents[0] = 1);
    BROKEN("document border 1 (byte 78): found sequence -1, expected 0 to 3", m.documents[1] = -1);
    BROKEN("document border 1 (byte 78): found sequence 4, expected 0 to 3", m.documents[1] = 4);
    BROKEN("document border 2 (byte 86): found sequence 2, expected 3 to 3", m.documents[2] = 2);
    BROKEN("length of sequence 1 (byte 38): found -1, expected 0 to 2", m.lengths[1] = -1);
    BROKEN("length of sequence 0 (byte 34): found 6, expected 0 to 5", m.lengths[0] = 6);
    BROKEN("length of sequence 2 (byte 42): found 2147483647", m.lengths[2] = INT32_MAX);
    BROKEN("begin of sequence 1 (byte 54): found 8, expected 12", m.begins[1] = 8);
    BROKEN("begin of sequence 0 (byte 46): found -4, expected 0", m.begins[0] = -4);
    BROKEN("begin of sequence 2 (byte 62): found 9223372036854775807", m.begins[2] = INT64_MAX);
    BROKEN("m.bin: found 24 bytes, expected 20: 5 tokens of 4 in ", m.bin_bytes = 24);
    BROKEN("m.bin: found 21 bytes, expected 20", m.bin_bytes = 21);
    BROKEN("expected 0 to 1, what is left of ", m.bin_bytes = 16);
    BROKEN("found no tokens", m.bin_bytes = 0, m.lengths[0] = m.lengths[2] = 0,
           m.begins[1] = m.begins[2] = 0);
    const megatron m = good(4, 4);
    write_megatron(&m, (const int32_t[]){ 3, 127, -9, 0, 100 });
    test_text_refused(test_text_path("m.bin"), &any, "tokens[2] (byte 8)|found id -9|0 to 199999");
    test_text_refused(test_bytes_write("m.idx", "MMIDIDX", 7), &any, "found 7 bytes|at least 34");
    cr_assert(unlink(test_text_path("m.bin")) == 0);
    kd_text *text;
    cr_assert(kd_text_open(&text, test_text_path("m.idx"), &any) == KD_EFORMAT &&
                  strstr(kd_last_error(), "m.bin: cannot open"),
              "'%s'", kd_last_error());
    test_text_remove();
}

/* ---- shards ----------------------------------------------------------------------------------- */

Test(shards, are_one_text_in_the_order_of_their_names)
{
    static const int32_t first[] = { 50256, 1, 2 }, second[] = { 3, 50256, 4, 5 };
    static const int64_t third[] = { 6, 7, 8 };
    static const uint8_t mask[] = { 1, 0, 1 };
    static const int32_t all[] = { 50256, 1, 2, 3, 50256, 4, 5, 6, 7, 8 };
    static const uint8_t mixed[] = { 1, 1, 1, 1, 1, 1, 1, 1, 0, 1 };
    static const int64_t borders[] = { 0, 3, 4, 7, 10 };
    const test_text tail = {
        .dtype = "U32", .tokens = third, .count = 3, .mask = mask, .mask_count = 3
    };
    write_llmc("s_000010.bin", GPT2, 1, 4, second, 4, 0); /* after 000009, whatever the locale */
    write_llmc("s_000009.bin", GPT2, 1, 3, first, 3, 0);
    test_text_write("s_tail.safetensors", &tail);
    kd_text *text = opened(test_text_path("s_*"), &any);
    test_text_holds(text, all, mixed, 10);
    test_text_borders(text, borders, 5);
    cr_assert(kd_text_targets(text) == 2 + 0 + 2 + 1, "%lld", (long long)kd_text_targets(text));
    for (int64_t d = 0; d + 1 < KD_COUNT(borders); d++) { /* every piece of every document */
        const int64_t end = borders[d + 1];
        for (int64_t at = borders[d]; at < end; at++) {
            for (int64_t n = 1; n <= end - at; n++) {
                int32_t ids[10], labels[10];
                cr_assert(kd_text_read(ids, labels, text, at, n, end) == KD_OK, "%s",
                          kd_last_error());
                const bool scored = at + n < end && mixed[at + n];
                cr_assert(memcmp(ids, all + at, (size_t)n * sizeof *ids) == 0 &&
                              labels[n - 1] == (scored ? all[at + n] : -1),
                          "%lld tokens from %lld", (long long)n, (long long)at);
            }
        }
    }
    kd_text_close(text);

    test_text_refused(test_text_path("none_*.bin"), &any, "found no such file");
    write_llmc("s_[1].bin", GPT2, 1, 3, first, 3, 0); /* a file of just that name */
    kd_text_close(opened(test_text_path("s_[1].bin"), &any));
    write_llmc("t_1.bin", GPT2, 1, 3, first, 3, 0);
    write_llmc("t_2.bin", GPT2, 2, 3, first, 3, 0);
    kd_text *none;
    cr_assert(kd_text_open(&none, test_text_path("t_*.bin"), &any) == KD_EFORMAT &&
                  strstr(kd_last_error(), "t_2.bin: version"),
              "'%s'", kd_last_error());
    const megatron m = good(4, 4);
    write_megatron(&m, (const int32_t[]){ 3, 127, 9, 0, 100 });
    test_text_refused(test_text_path("m*"), &any, "m.bin is found twice");
    test_text_remove();
}
