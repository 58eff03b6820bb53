/* Integers of any type that a file has, as i32 within bounds. */
#include "format/format.h"

#include <inttypes.h>

enum { PIECE = 1 << 13 }; /* bytes read at a time */

bool kd_st_integer(int dtype)
{
    static const int types[] = { KD_I64, KD_I32, KD_U32, KD_U16, KD_U8, KD_I8 };
    for (int i = 0; i < KD_COUNT(types); i++)
        if (dtype == types[i]) return true;
    return false;
}

static int64_t integer_at(const unsigned char *raw, int dtype)
{
    uint16_t u16;
    uint32_t u32;
    int32_t i32;
    int64_t i64;
    switch (dtype) {
    case KD_U8: return raw[0];
    case KD_I8: return (int8_t)raw[0];
    case KD_U16: memcpy(&u16, raw, sizeof u16); return u16;
    case KD_U32: memcpy(&u32, raw, sizeof u32); return u32;
    case KD_I32: memcpy(&i32, raw, sizeof i32); return i32;
    default: memcpy(&i64, raw, sizeof i64); return i64;
    }
}

kd_status kd_st_read_integers(int32_t *to, const kd_st_file *file, const kd_st_entry *entry,
                              int64_t least, int64_t most)
{
    const kd_dtype dtype = (kd_dtype)entry->dtype;
    const int64_t size = (int64_t)kd_dtype_size(dtype), piece = PIECE / size;
    unsigned char raw[PIECE];
    for (int64_t i = 0; i < entry->elements; i++) {
        if (i % piece == 0)
            KD_TRY(kd_st_read(raw, dtype, file, entry, i, kd_min_i64(piece, entry->elements - i)));
        const int64_t value = integer_at(raw + i % piece * size, entry->dtype);
        if (value < least || value > most)
            return kd_fail(KD_EFORMAT,
                           "%s: %s[%" PRId64 "] (byte %" PRId64 "): found %" PRId64
                           ", expected %" PRId64 " to %" PRId64,
                           file->path, entry->name, i, entry->offset + i * size, value, least,
                           most);
        to[i] = (int32_t)value;
    }
    return KD_OK;
}
