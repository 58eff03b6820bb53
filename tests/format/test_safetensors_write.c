/* Writing: the reference's bytes, whatever the order of calls; never half a file; misuse refused. */
#include "scratch.h"

#include "support/tracer.h"

#include <errno.h>
#include <sys/syscall.h>

typedef struct row {
    const char *name;
    int dtype, seed, rank;
    int64_t shape[4];
} row;

/* tests/golden/make_safetensors.py, kd_types.safetensors */
static const row rows[] = {
    { "t0", KD_F32, 0, 2, { 3, 1 } },
    { "t1", KD_BF16, 1, 2, { 3, 2 } },
    { "t2", KD_F16, 2, 2, { 3, 3 } },
    { "t3", KD_F8_E4M3, 3, 2, { 3, 4 } },
    { "t4", KD_F8_E5M2, 4, 2, { 3, 5 } },
    { "t5", KD_I64, 5, 2, { 3, 6 } },
    { "t6", KD_I32, 6, 2, { 3, 7 } },
    { "t7", KD_U32, 7, 2, { 3, 8 } },
    { "t8", KD_U16, 8, 2, { 3, 9 } },
    { "t9", KD_U8, 9, 2, { 3, 10 } },
    { "t10", KD_I8, 10, 2, { 3, 11 } },
    { "blocks.0.\xc3\xbc \"quoted\"", KD_F32, 11, 4, { 1, 2, 3, 1 } },
    { "scalar", KD_F32, 12, 0, { 0 } },
    { "empty", KD_F32, 13, 2, { 0, 4 } },
};

static size_t fill(unsigned char *data, const row *r)
{
    size_t bytes = kd_dtype_size((kd_dtype)r->dtype);
    for (int i = 0; i < r->rank; i++) bytes *= (size_t)r->shape[i];
    for (size_t j = 0; j < bytes; j++)
        data[j] = (unsigned char)((37 * j + 11 * (size_t)r->seed) % 251);
    return bytes;
}

/* The golden file's tensors, declared and written from row `start` on, `piece` bytes at a time. */
static void write_rows(const char *path, int start, size_t piece)
{
    kd_st_writer *w = NULL;
    unsigned char data[512];
    cr_assert(kd_st_writer_create(&w, path) == KD_OK, "%s", kd_last_error());
    cr_assert(kd_st_writer_metadata(w, "format", "pt") == KD_OK);
    for (int i = 0; i < KD_COUNT(rows); i++) {
        const row *r = &rows[(i + start) % KD_COUNT(rows)];
        cr_assert(kd_st_writer_declare(w, r->name, (kd_dtype)r->dtype, r->rank, r->shape) == KD_OK);
    }
    cr_assert(kd_st_writer_begin(w) == KD_OK, "%s", kd_last_error());
    for (int i = 0; i < KD_COUNT(rows); i++) {
        const row *r = &rows[(2 * start + i) % KD_COUNT(rows)];
        const size_t bytes = fill(data, r);
        for (size_t at = 0; at < bytes; at += piece) {
            const size_t n = bytes - at < piece ? bytes - at : piece;
            cr_assert(kd_st_writer_write(w, r->name, data + at, n) == KD_OK, "%s", kd_last_error());
        }
    }
    cr_assert(kd_st_writer_close(w) == KD_OK, "%s", kd_last_error());
}

Test(safetensors_write, same_bytes_as_the_reference)
{
    char *want, *got;
    size_t want_size, got_size;
    scratch_open();
    cr_assert(kd_file_read(&want, &want_size, KD_GOLDEN "/safetensors/kd_types.safetensors",
                           1 << 20) == KD_OK);
    for (int start = 0; start < KD_COUNT(rows); start++) {
        const char *path = scratch_path("x.safetensors");
        write_rows(path, start, (size_t)(1 + 13 * start));
        cr_assert(kd_file_read(&got, &got_size, path, 1 << 20) == KD_OK);
        cr_assert(got_size == want_size && memcmp(got, want, got_size) == 0, "start %d", start);
        free(got);
    }
    free(want);
    scratch_close();
}

/* A writer with one f32 [2] "a". */
static kd_st_writer *begun(const char *path)
{
    kd_st_writer *w = NULL;
    const int64_t two = 2;
    cr_assert(kd_st_writer_create(&w, path) == KD_OK);
    cr_assert(kd_st_writer_declare(w, "a", KD_F32, 1, &two) == KD_OK);
    cr_assert(kd_st_writer_begin(w) == KD_OK);
    return w;
}

static int files_in_scratch(void)
{
    const char *const *names;
    int count = 0;
    kd_arena *arena;
    cr_assert(kd_arena_create(&arena) == KD_OK);
    cr_assert(kd_dir_list(&names, &count, arena, scratch_dir) == KD_OK);
    kd_arena_destroy(arena);
    return count;
}

Test(safetensors_write, misuse)
{
    const int64_t two = 2, bad = -1, wide[9] = { 1, 1, 1, 1, 1, 1, 1, 1, 1 };
    const int64_t vast[2] = { INT64_MAX / 2, 4 };
    const float data[3] = { 1, 2, 3 };
    scratch_open();
    kd_st_writer *w = NULL;
    cr_expect_eq(kd_st_writer_create(&w, scratch_path("no/such/folder")), KD_EIO);
    cr_expect_null(w);

    const char *path = scratch_path("x");
    cr_assert(kd_st_writer_create(&w, path) == KD_OK);
    cr_expect_eq(kd_st_writer_declare(w, "__metadata__", KD_F32, 1, &two), KD_EINVAL);
    for (int32_t rank = -1; rank <= 9; rank += 10)
        test_refusal(kd_st_writer_declare(w, "a", KD_F32, rank, wide), KD_EINVAL,
                     rank < 0 ? "\"a\": -1 dimensions, expected at most 8" : "9 dimensions",
                     "rank");
    cr_expect(kd_st_writer_metadata(w, "k", "v") == KD_OK);
    test_refusal(kd_st_writer_metadata(w, "bytes", "\xff"), KD_EINVAL,
                 "/x: metadata \"bytes\" is not UTF-8", "metadata");
    cr_expect_eq(kd_st_writer_declare(w, "a", KD_F32, 1, &bad), KD_EINVAL);
    cr_expect_eq(kd_st_writer_declare(w, "a", KD_F32, 2, vast), KD_EINVAL);
    cr_expect_eq(kd_st_writer_declare(w, "a", KD_F32, 1, vast), KD_EINVAL);
    cr_expect_eq(kd_st_writer_write(w, "a", data, 4), KD_EINVAL);
    cr_expect(kd_st_writer_declare(w, "a", KD_F32, 1, &two) == KD_OK);
    cr_expect(kd_st_writer_declare(w, "a", KD_U8, 1, &two) == KD_OK);
    cr_expect_eq(kd_st_writer_begin(w), KD_EINVAL);
    cr_expect(strstr(kd_last_error(), "\"a\" declared twice"), "%s", kd_last_error());
    kd_st_writer_abort(w);

    cr_assert(kd_st_writer_create(&w, path) == KD_OK);
    cr_expect(kd_st_writer_declare(w, "\xff", KD_F32, 1, &two) == KD_OK);
    cr_expect_eq(kd_st_writer_begin(w), KD_EINVAL);
    kd_st_writer_abort(w);

    w = begun(path);
    cr_expect_eq(kd_st_writer_begin(w), KD_EINVAL);
    cr_expect_eq(kd_st_writer_declare(w, "b", KD_F32, 1, &two), KD_EINVAL);
    cr_expect_eq(kd_st_writer_metadata(w, "k", "v"), KD_EINVAL);
    cr_expect_eq(kd_st_writer_write(w, "b", data, 4), KD_EINVAL);
    cr_expect_eq(kd_st_writer_write(w, "a", data, 12), KD_EINVAL);
    cr_expect(kd_st_writer_write(w, "a", data, 4) == KD_OK);
    cr_expect_eq(kd_st_writer_write(w, "a", data, 8), KD_EINVAL);
    cr_expect_eq(kd_st_writer_close(w), KD_EINVAL);
    cr_expect(strstr(kd_last_error(), "tensor \"a\": 4 bytes written of 8"), "%s", kd_last_error());

    cr_assert(kd_st_writer_create(&w, path) == KD_OK);
    cr_expect_eq(kd_st_writer_close(w), KD_EINVAL);
    kd_st_writer_abort(NULL);
    cr_expect_eq(files_in_scratch(), 0, "a failed writer left something behind");
    scratch_close();
}

Test(safetensors_write, sizes_that_no_file_has)
{
    const int64_t most = INT64_MAX;
    enum { HEADER = 100000000 };
    kd_st_writer *w = NULL;
    scratch_open();
    const char *path = scratch_path("x");
    cr_assert(kd_st_writer_create(&w, path) == KD_OK);
    cr_assert(kd_st_writer_declare(w, "a", KD_U8, 1, &most) == KD_OK);
    cr_assert(kd_st_writer_declare(w, "b", KD_U8, 1, &most) == KD_OK);
    test_refusal(kd_st_writer_begin(w), KD_EINVAL, "/x: the tensors' bytes overflow", "bytes");
    kd_st_writer_abort(w);

    char *text = malloc(HEADER + 1);
    memset(text, 'a', HEADER);
    text[HEADER] = '\0';
    cr_assert(kd_st_writer_create(&w, path) == KD_OK);
    cr_assert(kd_st_writer_metadata(w, "k", text) == KD_OK);
    free(text);
    test_refusal(kd_st_writer_begin(w), KD_EINVAL,
                 "/x: header of 100000032 bytes, expected at most 100000000", "header");
    kd_st_writer_abort(w);
    cr_expect_eq(files_in_scratch(), 0);
    scratch_close();
}

/* Whose bytes would overflow if the 0 came last. */
Test(safetensors_write, nothing_of_a_large_shape)
{
    const int64_t shape[3] = { INT32_MAX, INT64_C(1) << 31, 0 };
    kd_st_writer *w = NULL;
    kd_st_file *file = NULL;
    scratch_open();
    const char *path = scratch_path("x");
    cr_assert(kd_st_writer_create(&w, path) == KD_OK);
    cr_assert(kd_st_writer_declare(w, "a", KD_F32, 3, shape) == KD_OK, "%s", kd_last_error());
    cr_assert(kd_st_writer_begin(w) == KD_OK && kd_st_writer_close(w) == KD_OK);
    cr_assert(kd_st_open(&file, path) == KD_OK, "%s", kd_last_error());
    cr_expect(file->count == 1 && memcmp(file->entries[0].shape, shape, sizeof shape) == 0);
    kd_st_close(file);
    scratch_close();
}

/* None, and more than a writer first has room for. */
Test(safetensors_write, any_number_of_tensors)
{
    enum { MANY = 200 };
    kd_st_writer *w = NULL;
    kd_st_file *file = NULL;
    const int64_t one = 1;
    char name[16];
    uint8_t byte = 0;
    scratch_open();
    const char *path = scratch_path("x");
    for (int count = 0; count <= MANY; count += MANY) {
        cr_assert(kd_st_writer_create(&w, path) == KD_OK);
        for (int i = 0; i < count; i++) {
            (void)snprintf(name, sizeof name, "t%d", i);
            cr_assert(kd_st_writer_declare(w, name, KD_U8, 1, &one) == KD_OK);
        }
        cr_assert(kd_st_writer_begin(w) == KD_OK, "%s", kd_last_error());
        test_refusal(kd_st_writer_write(w, "none", &byte, 1), KD_EINVAL,
                     "/x: tensor \"none\" was not declared", "a name");
        for (int i = 0; i < count; i++) {
            (void)snprintf(name, sizeof name, "t%d", i);
            byte = (uint8_t)i;
            cr_assert(kd_st_writer_write(w, name, &byte, 1) == KD_OK);
        }
        cr_assert(kd_st_writer_close(w) == KD_OK, "%s", kd_last_error());
        cr_assert(kd_st_open(&file, path) == KD_OK, "%s", kd_last_error());
        cr_assert_eq(file->count, count);
        for (int i = 0; i < count; i++) {
            (void)snprintf(name, sizeof name, "t%d", i);
            cr_assert(kd_st_read(&byte, KD_U8, file, kd_st_find(file, name), 0, 1) == KD_OK);
            cr_assert_eq(byte, i);
        }
        kd_st_close(file);
    }
    scratch_close();
}

static int write_twos(const void *path)
{
    static const float data[2] = { 2, 2 };
    kd_st_writer *w;
    const int64_t two = 2;
    kd_status status;
    KD_TRY(kd_st_writer_create(&w, path));
    KD_TRY_GOTO(kd_st_writer_declare(w, "a", KD_F32, 1, &two), status, failed);
    KD_TRY_GOTO(kd_st_writer_begin(w), status, failed);
    KD_TRY_GOTO(kd_st_writer_write(w, "a", data, sizeof data), status, failed);
    return (int)kd_st_writer_close(w);
failed:
    kd_st_writer_abort(w);
    return (int)status;
}

Test(safetensors_write, on_a_full_disk_leaves_the_old_file)
{
    test_trace t = { .harm = TEST_FAIL, .error = ENOSPC, .only = SYS_pwrite64 };
    kd_hash before, after;
    if (!test_can_trace()) return;
    scratch_open();
    const char *path = scratch_text("x", "old");
    cr_assert(kd_hash_file(&before, path) == KD_OK);
    t.below = scratch_dir;
    for (;; t.at++) {
        const test_child *child = test_traced(&t, write_twos, path);
        cr_assert(child->status == (t.hit ? KD_EIO : KD_OK), "write %d: %s", (int)t.at,
                  child->message);
        cr_assert(files_in_scratch() == 1, "write %d: something was left", (int)t.at);
        if (!t.hit) break;
        cr_expect(strstr(child->message, "/x: cannot write ") &&
                      strstr(child->message, "No space left on device"),
                  "write %d: %s", (int)t.at, child->message);
        cr_assert(kd_hash_file(&after, path) == KD_OK && strcmp(before.hex, after.hex) == 0,
                  "write %d: the old file has changed", (int)t.at);
    }
    cr_expect(t.at == 4, "%d writes, expected length, header, padding and data", (int)t.at);
    scratch_close();
}

/* The old file is there, whole, until the new one is; who has it open keeps reading it. */
Test(safetensors_write, replaces)
{
    const float old[2] = { 1, 2 }, fresh[2] = { 3, 4 };
    float got[2];
    kd_st_file *file = NULL, *again = NULL;
    scratch_open();
    const char *path = scratch_path("x");
    kd_st_writer *w = begun(path);
    cr_assert(kd_st_writer_write(w, "a", old, 8) == KD_OK);
    cr_assert(kd_st_writer_close(w) == KD_OK);
    cr_assert(kd_st_open(&file, path) == KD_OK);

    w = begun(path);
    kd_st_writer_abort(w);
    cr_assert_eq(files_in_scratch(), 1);
    w = begun(path);
    cr_assert(kd_st_writer_write(w, "a", fresh, 8) == KD_OK);
    cr_assert(kd_st_open(&again, path) == KD_OK, "%s", kd_last_error());
    kd_st_close(again);
    cr_assert(kd_st_writer_close(w) == KD_OK);

    cr_assert(kd_st_read(got, KD_F32, file, kd_st_find(file, "a"), 0, 2) == KD_OK);
    cr_expect(memcmp(got, old, 8) == 0);
    kd_st_close(file);
    cr_assert(kd_st_open(&file, path) == KD_OK);
    cr_assert(kd_st_read(got, KD_F32, file, kd_st_find(file, "a"), 0, 2) == KD_OK);
    cr_expect(memcmp(got, fresh, 8) == 0);
    kd_st_close(file);
    cr_assert_eq(files_in_scratch(), 1);
    scratch_close();
}
