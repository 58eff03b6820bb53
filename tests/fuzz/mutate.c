/*
 * mutate.c - one change of one file of an input.
 *
 * A random byte breaks a length before the header and what hangs on it is never reached: the framing of
 * several files and of safetensors is made anew after each change, and now and then the header's
 * data_offsets too, so that shapes and types that differ still tile the file.
 */
#include "fuzz/fuzz.h"

enum { PREFIX = 8, MAX_DATA = 1024 };

uint32_t fuzz_random(fuzz_text *text, uint32_t below)
{
    text->random ^= text->random << 13; /* xorshift64 (Marsaglia, 2003) */
    text->random ^= text->random >> 7;
    text->random ^= text->random << 17;
    return below ? (uint32_t)(text->random >> 32) % below : 0;
}

void fuzz_splice(fuzz_text *text, size_t begin, size_t end, const void *with, size_t bytes)
{
    if (text->bytes - (end - begin) + bytes > text->room) return;
    memmove(text->data + begin + bytes, text->data + end, text->bytes - end);
    if (bytes) memcpy(text->data + begin, with, bytes);
    text->bytes = text->bytes - (end - begin) + bytes;
}

/* What libFuzzer's own mutations and its dictionary make of [begin, end). */
static void mutate_range(fuzz_text *text, size_t begin, size_t end)
{
    const size_t room = text->room - (text->bytes - (end - begin));
    uint8_t *copy = malloc(room + 1);
    if (!copy) return;
    memcpy(copy, text->data + begin, end - begin);
    fuzz_splice(text, begin, end, copy, LLVMFuzzerMutate(copy, end - begin, room));
    free(copy);
}

/* ---- safetensors ------------------------------------------------------------------------------ */

static uint64_t header_bytes(const fuzz_text *text)
{
    uint64_t n = 0;
    for (int i = PREFIX - 1; i >= 0; i--) n = n << 8 | text->data[i];
    return n < text->bytes - PREFIX ? n : text->bytes - PREFIX;
}

static void put_header_bytes(fuzz_text *text, uint64_t n)
{
    for (int i = 0; i < PREFIX; i++) text->data[i] = (uint8_t)(n >> 8 * i);
}

static int64_t bits_of(const char *dtype)
{
    static const struct {
        const char *name;
        int bits;
    } some[] = { { "F32", 32 }, { "BF16", 16 }, { "F16", 16 }, { "I32", 32 }, { "U16", 16 },
                 { "I64", 64 }, { "U8", 8 },    { "F4", 4 },   { "C64", 64 }, { "F6_E2M3", 6 } };
    for (int i = 0; dtype && i < KD_COUNT(some); i++)
        if (strcmp(dtype, some[i].name) == 0) return some[i].bits;
    return 8;
}

/* Bytes of a tensor's data, 0 where it says nothing sensible. */
static int64_t data_bytes(const json_t *tensor)
{
    const json_t *shape = json_object_get(tensor, "shape");
    int64_t bits = bits_of(json_string_value(json_object_get(tensor, "dtype")));
    for (size_t i = 0; i < json_array_size(shape); i++) {
        const int64_t n = json_integer_value(json_array_get(shape, i));
        if (n < 0 || !kd_mul_i64(&bits, bits, n)) return 0;
    }
    return bits > 8 * MAX_DATA ? 0 : bits / 8;
}

/* Offsets of all tensors one after the other, and as much data as they need; now and then one begins
 * too early, so that only the tiling is wrong. */
static void tile(fuzz_text *text)
{
    const size_t old = header_bytes(text);
    json_t *header = json_loadb((const char *)text->data + PREFIX, old, 0, NULL), *tensor;
    uint8_t data[MAX_DATA];
    const char *name;
    int64_t at = 0;
    json_object_foreach(header, name, tensor)
    {
        const int64_t end = at + data_bytes(tensor);
        if (strcmp(name, "__metadata__") == 0 || !json_is_object(tensor) || end > MAX_DATA)
            continue;
        const int64_t early = fuzz_random(text, 8) ? 0 : fuzz_random(text, (uint32_t)at + 1);
        (void)json_object_set_new(
            tensor, "data_offsets",
            json_pack("[I, I]", (json_int_t)(at - early), (json_int_t)(end - early)));
        at = end;
    }
    char *dump = header ? json_dumps(header, JSON_COMPACT) : NULL;
    if (dump && PREFIX + strlen(dump) + (size_t)at <= text->room) {
        for (int i = 0; i < at; i++) data[i] = (uint8_t)fuzz_random(text, 3);
        text->bytes = PREFIX;
        fuzz_splice(text, PREFIX, PREFIX, dump, strlen(dump));
        fuzz_splice(text, text->bytes, text->bytes, data, (size_t)at);
        put_header_bytes(text, strlen(dump));
    }
    free(dump);
    json_decref(header);
}

static void mutate_header(fuzz_text *text)
{
    const size_t n = header_bytes(text), behind = text->bytes - PREFIX - n;
    fuzz_text header = { text->data + PREFIX, n, text->room - PREFIX - behind, text->random };
    uint8_t *data = malloc(behind + 1);
    if (!data) return;
    memcpy(data, header.data + n, behind);
    fuzz_mutate_json(&header);
    memcpy(header.data + header.bytes, data, behind);
    free(data);
    text->random = header.random;
    text->bytes = PREFIX + header.bytes + behind;
    put_header_bytes(text, header.bytes);
    if (fuzz_random(text, 2)) tile(text);
}

static void mutate_safetensors(fuzz_text *text)
{
    static const uint64_t lengths[] = { 0, 1, 100000000, 100000001, INT64_MAX, UINT64_MAX };
    const uint32_t choice = fuzz_random(text, 12);
    if (text->bytes < PREFIX || text->room < PREFIX + 2 || choice == 0) {
        mutate_range(text, 0, text->bytes);
    } else if (choice == 1) {
        const uint32_t i = fuzz_random(text, 2 * KD_COUNT(lengths));
        put_header_bytes(text, i < KD_COUNT(lengths) ? lengths[i] : header_bytes(text) + i - 8);
    } else if (choice == 2) {
        mutate_range(text, PREFIX + header_bytes(text), text->bytes);
    } else if (choice == 3) {
        tile(text);
    } else {
        mutate_header(text);
    }
}

/* ---- inputs of several files ------------------------------------------------------------------ */

static size_t get_length(const uint8_t *data)
{
    return data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16 | (size_t)data[3] << 24;
}

void fuzz_split(fuzz_part parts[FUZZ_MAX_SLOTS], const fuzz_slot *slots, int count,
                const uint8_t *data, size_t size)
{
    (void)slots;
    for (int i = 0; i < count; i++) {
        size_t bytes = size;
        if (i + 1 < count && size < 4) {
            bytes = 0;
        } else if (i + 1 < count) {
            bytes = get_length(data);
            data += 4;
            size -= 4;
        }
        parts[i] = (fuzz_part){ data, bytes < size ? bytes : size };
        data += parts[i].bytes;
        size -= parts[i].bytes;
    }
}

static void mutate_part(fuzz_text *text, fuzz_kind kind)
{
    if (kind == FUZZ_BYTES || (kind != FUZZ_SAFETENSORS && fuzz_random(text, 4) == 0))
        mutate_range(text, 0, text->bytes);
    else if (kind == FUZZ_SAFETENSORS)
        mutate_safetensors(text);
    else if (kind == FUZZ_JSON)
        fuzz_mutate_json(text);
    else
        fuzz_mutate_yaml(text);
}

size_t fuzz_mutate(uint8_t *data, size_t size, size_t most, unsigned seed, const fuzz_slot *slots,
                   int count)
{
    fuzz_part parts[FUZZ_MAX_SLOTS];
    fuzz_text one = { .random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1 };
    const size_t frame = 4 * (size_t)(count - 1);
    size_t others = frame, used = 0;
    fuzz_split(parts, slots, count, data, size);
    const int chosen = (int)fuzz_random(&one, (uint32_t)count);
    for (int i = 0; i < count; i++) others += i == chosen ? 0 : parts[i].bytes;
    if (others + parts[chosen].bytes > most) return LLVMFuzzerMutate(data, size, most);
    uint8_t *whole = malloc(most + 1);
    one.data = malloc(most - others + 1);
    if (whole && one.data) {
        one.room = most - others;
        one.bytes = parts[chosen].bytes;
        memcpy(one.data, parts[chosen].data, one.bytes);
        for (uint32_t n = 1 + fuzz_random(&one, 3); n > 0; n--)
            mutate_part(&one, slots[chosen].kind);
        parts[chosen] = (fuzz_part){ one.data, one.bytes };
        for (int i = 0; i < count; i++) {
            for (int k = 0; i + 1 < count && k < 4; k++)
                whole[used++] = (uint8_t)(parts[i].bytes >> 8 * k);
            memcpy(whole + used, parts[i].data, parts[i].bytes);
            used += parts[i].bytes;
        }
        memcpy(data, whole, used);
    }
    free(whole);
    free(one.data);
    return used;
}
