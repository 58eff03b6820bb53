#include "support/golden.h"

#include "support/support.h"

void test_golden_open(test_golden *golden, const char *path)
{
    test_ok(kd_arena_create(&golden->arena));
    test_ok(kd_st_open(&golden->file, path));
}

void test_golden_close(test_golden *golden)
{
    kd_st_close(golden->file);
    kd_arena_destroy(golden->arena);
}

static void *read_whole(const test_golden *golden, const char *name, kd_dtype dtype,
                        const kd_st_entry **out)
{
    const kd_st_entry *entry = kd_st_find(golden->file, name);
    void *values;
    cr_assert(entry != NULL, "%s: no tensor %s", golden->file->path, name);
    test_ok(kd_arena_array(&values, golden->arena, entry->elements, kd_dtype_size(dtype)));
    test_ok(kd_st_read(values, dtype, golden->file, entry, 0, entry->elements));
    if (out) *out = entry;
    return values;
}

const float *test_golden_f32(const test_golden *golden, const char *name, const kd_st_entry **entry)
{
    return read_whole(golden, name, KD_F32, entry);
}

const int32_t *test_golden_i32(const test_golden *golden, const char *name,
                               const kd_st_entry **entry)
{
    return read_whole(golden, name, KD_I32, entry);
}

const int64_t *test_golden_i64(const test_golden *golden, const char *name,
                               const kd_st_entry **entry)
{
    return read_whole(golden, name, KD_I64, entry);
}
