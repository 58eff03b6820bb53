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

static kd_status refuse_element(const kd_st_file *file, const kd_st_entry *entry, int64_t i,
                                int64_t found, int64_t least, int64_t most)
{
    const int64_t size = (int64_t)kd_dtype_size((kd_dtype)entry->dtype);
    return kd_fail(KD_EFORMAT, "%s: %s[%lld] (byte %lld): found %lld, expected %lld to %lld",
                   file->path, entry->name, (long long)i, (long long)(entry->offset + i * size),
                   (long long)found, (long long)least, (long long)most);
}

static kd_status narrow(int32_t *values, const void *raw, const kd_st_file *file,
                        const kd_st_entry *entry)
{
    for (int64_t i = 0; i < entry->elements; i++) {
        const int64_t value = integer_at(raw, entry->dtype, i);
        if (value < INT32_MIN || value > INT32_MAX)
            return refuse_element(file, entry, i, value, INT32_MIN, INT32_MAX);
        values[i] = (int32_t)value;
    }
    return KD_OK;
}

kd_status kd_verb_integers(int32_t **values, int64_t *count, kd_arena *arena,
                           const kd_st_file *file, const char *name, int rank)
{
    const kd_st_entry *entry = kd_st_find(file, name);
    if (!entry) return kd_fail(KD_EFORMAT, "%s: no tensor \"%s\"", file->path, name);
    if (entry->rank != rank || !is_integer(entry->dtype))
        return kd_fail(KD_EFORMAT, "%s: %s is %s of rank %d; expected integers of rank %d",
                       file->path, name, entry->dtype_name, (int)entry->rank, rank);
    KD_TRY(KD_ARENA_ARRAY(values, arena, kd_max_i64(entry->elements, 1)));
    void *raw = malloc((size_t)kd_max_i64(entry->bytes, 1));
    if (!raw)
        return kd_fail(KD_ENOMEM, "%s: %s: no memory for %lld bytes", file->path, name,
                       (long long)entry->bytes);
    kd_status status = kd_st_read(raw, (kd_dtype)entry->dtype, file, entry, 0, entry->elements);
    if (status == KD_OK) status = narrow(*values, raw, file, entry);
    free(raw);
    *count = entry->elements;
    return status;
}

static kd_status check_tokens(const int32_t *ids, int64_t count, const kd_st_file *file,
                              int64_t vocabulary)
{
    const kd_st_entry *entry = kd_st_find(file, "tokens");
    if (count < 1 || count > INT32_MAX / 2)
        return kd_fail(KD_EFORMAT, "%s: tokens: found %lld, expected 1 to %d", file->path,
                       (long long)count, INT32_MAX / 2);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocabulary)
            return refuse_element(file, entry, i, ids[i], 0, vocabulary - 1);
    return KD_OK;
}

kd_status kd_verb_tokens(int32_t **ids, int64_t *count, kd_arena *arena, const char *path,
                         int64_t vocabulary)
{
    kd_st_file *file;
    KD_TRY(kd_st_open(&file, path));
    kd_status status = kd_verb_integers(ids, count, arena, file, "tokens", 1);
    if (status == KD_OK) status = check_tokens(*ids, *count, file, vocabulary);
    kd_st_close(file);
    return status;
}
