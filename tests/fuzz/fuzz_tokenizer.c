/* fuzz_tokenizer.c - tokenizer.json and a text: what is accepted gives ids it has, and the same text
 * from all of them at once and one by one. */
#include "fuzz/fuzz.h"

#include "format/format.h"

static const fuzz_slot slots[] = { { "text", FUZZ_BYTES }, { "tokenizer.json", FUZZ_JSON } };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    /* The text is short: three of four times the other. */
    fuzz_part parts[FUZZ_MAX_SLOTS];
    fuzz_split(parts, slots, 2, data, size);
    const size_t at = (size_t)(parts[1].data - data);
    if (seed % 4 == 0 || size == 0 || at >= most)
        return fuzz_mutate(data, size, most, seed, slots, 2);
    return at + fuzz_mutate(data + at, size - at, most - at, seed, slots + 1, 1);
}

static void check_pieces(const kd_tokenizer *t, const int32_t *ids, int64_t count,
                         const char *whole)
{
    kd_text_stream stream = { .tokenizer = t };
    const char *piece;
    size_t bytes, at = 0;
    for (int64_t i = 0; i <= count; i++) {
        fuzz_ok(kd_text_stream_push(&piece, &bytes, &stream, i < count ? ids[i] : -1));
        fuzz_require(strncmp(whole + at, piece, bytes) == 0, "piece %lld", (long long)i);
        at += bytes;
    }
    fuzz_require(whole[at] == '\0', "%zu bytes in pieces", at);
    free(stream.text);
}

static void check_ids(const kd_tokenizer *t, const int32_t *ids, int64_t count)
{
    char *text;
    size_t bytes;
    for (int64_t i = 0; i < count; i++)
        fuzz_require(ids[i] >= 0 && ids[i] < kd_tokenizer_size(t), "id %d", ids[i]);
    fuzz_ok(kd_tokenizer_decode(&text, &bytes, t, ids, count, false));
    fuzz_require(strlen(text) <= bytes, "%zu bytes", bytes);
    if (strlen(text) == bytes) check_pieces(t, ids, count, text); /* a token may have a NUL */
    free(text);
}

/* The first ids of the vocabulary, whatever they are. */
static void check_vocabulary(const kd_tokenizer *t)
{
    int32_t ids[64];
    const int count = (int)kd_min_i64(KD_COUNT(ids), kd_tokenizer_size(t));
    for (int i = 0; i < count; i++) ids[i] = i;
    check_ids(t, ids, count);
}

static void check(const kd_tokenizer *t, const fuzz_part *text)
{
    int32_t *ids = NULL;
    int64_t count = 0;
    check_vocabulary(t);
    char *copy = malloc(text->bytes + 1); /* its end is watched */
    fuzz_require(copy, "no memory");
    memcpy(copy, text->data, text->bytes);
    fuzz_begin();
    if (fuzz_accepted(kd_tokenizer_encode(&ids, &count, t, copy, text->bytes, true), KD_EFORMAT,
                      KD_ENOTSUP, NULL)) {
        check_ids(t, ids, count);
        free(ids);
    }
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part parts[FUZZ_MAX_SLOTS];
    kd_tokenizer *t;
    kd_tokenizer_info info;
    fuzz_split(parts, slots, KD_COUNT(slots), data, size);
    fuzz_write(slots[1].name, parts[1].data, parts[1].bytes);
    fuzz_begin();
    const bool known = fuzz_accepted(kd_tokenizer_inspect(&info, fuzz_folder()), KD_EFORMAT,
                                     KD_EFORMAT, slots[1].name);
    fuzz_begin();
    if (!fuzz_accepted(kd_tokenizer_open(&t, fuzz_folder()), KD_EFORMAT, KD_ENOTSUP, slots[1].name))
        return 0;
    fuzz_require(known && info.size == kd_tokenizer_size(t), "size %lld",
                 (long long)kd_tokenizer_size(t));
    check(t, &parts[0]);
    kd_tokenizer_close(t);
    return 0;
}
