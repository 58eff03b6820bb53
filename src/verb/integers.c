#include "verb/verb.h"

#include <stdlib.h>

static bool is_integer(int dtype)
{
    switch (dtype) {
    case KD_I64:
    case KD_I32:
    case KD_U32:
    case KD_U16:
    case KD_U8:
    case KD_I8: return true;
    default: return false;
    }
}

static int64_t integer_at(const void *data, int dtype, int64_t i)
{
    switch (dtype) {
    case KD_I64: return ((const int64_t *)data)[i];
    case KD_I32: return ((const int32_t *)data)[i];
    case KD_U32: return ((const uint32_t *)data)[i];
    case KD_U16: return ((const uint16_t *)data)[i];
    case KD_U8: return ((const uint8_t *)data)[i];
    default: return ((const int8_t *)data)[i];
    }
}

static kd_status narrow(int32_t *values, const void *raw, const kd_st_file *file,
                        const kd_st_entry *entry)
{
    for (int64_t i = 0; i < entry->elements; i++) {
        const int64_t value = integer_at(raw, entry->dtype, i);
        if (value < INT32_MIN || value > INT32_MAX)
            return kd_fail(KD_EFORMAT, "%s: %s[%lld] is %lld; it must fit 32 bits", file->path,
                           entry->name, (long long)i, (long long)value);
        values[i] = (int32_t)value;
    }
    return KD_OK;
}

kd_status kd_verb_integers(int32_t **values, int64_t *count, kd_arena *arena,
                           const kd_st_file *file, const char *name)
{
    const kd_st_entry *entry = kd_st_find(file, name);
    if (!entry) return kd_fail(KD_EFORMAT, "%s: no tensor \"%s\"", file->path, name);
    if (entry->rank != 1 || !is_integer(entry->dtype))
        return kd_fail(KD_EFORMAT, "%s: %s is %s of rank %d; expected integers of rank 1",
                       file->path, name, entry->dtype_name, (int)entry->rank);
    KD_TRY(KD_ARENA_ARRAY(values, arena, kd_max_i64(entry->elements, 1)));
    void *raw = malloc((size_t)kd_max_i64(entry->bytes, 1));
    if (!raw)
        return kd_fail(KD_ENOMEM, "%s: %s: %lld bytes", file->path, name, (long long)entry->bytes);
    kd_status status = kd_st_read(raw, (kd_dtype)entry->dtype, file, entry, 0, entry->elements);
    if (status == KD_OK) status = narrow(*values, raw, file, entry);
    free(raw);
    *count = entry->elements;
    return status;
}
