/* What verbs read of files given by the user, and how what they refuse names the file. */
#include "verb/verb.h"

static kd_status integers(int32_t **values, int64_t *count, kd_arena *arena, const kd_st_file *file,
                          const char *name, int rank, int64_t least, int64_t most)
{
    const kd_st_entry *entry = kd_st_find(file, name);
    if (!entry) return kd_fail(KD_EFORMAT, "%s: no tensor \"%s\"", file->path, name);
    if (entry->rank != rank || !kd_st_integer(entry->dtype))
        return kd_fail(KD_EFORMAT, "%s: %s is %s of rank %d; expected integers of rank %d",
                       file->path, name, entry->dtype_name, (int)entry->rank, rank);
    KD_TRY(KD_ARENA_ARRAY(values, arena, kd_max_i64(entry->elements, 1)));
    *count = entry->elements;
    return kd_st_read_integers(*values, file, entry, least, most);
}

kd_status kd_verb_of_file(const char *path, kd_status status)
{
    if (status != KD_EINVAL && status != KD_ENOTSUP) return status;
    return kd_fail(status, "%s: %s", path, kd_last_error());
}

kd_status kd_verb_integers(int32_t **values, int64_t *count, kd_arena *arena,
                           const kd_st_file *file, const char *name, int rank)
{
    return integers(values, count, arena, file, name, rank, INT32_MIN, INT32_MAX);
}

kd_status kd_verb_tokens(int32_t **ids, int64_t *count, kd_arena *arena, const char *path,
                         int64_t vocabulary)
{
    kd_st_file *file;
    KD_TRY(kd_st_open(&file, path));
    kd_status status = integers(ids, count, arena, file, "tokens", 1, 0, vocabulary - 1);
    if (status == KD_OK && (*count < 1 || *count > INT32_MAX / 2))
        status = kd_fail(KD_EFORMAT, "%s: tokens: found %lld, expected 1 to %d", path,
                         (long long)*count, INT32_MAX / 2);
    kd_st_close(file);
    return status;
}
