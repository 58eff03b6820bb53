#include "support/damage.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *const test_damage_files[TEST_DAMAGE_FILES] = {
    "MANIFEST.json",
    "config.json",
    "model.safetensors",
    "trainer_state.json",
    "engine/state.json",
    "engine/config.json",
    "engine/optimizer.safetensors",
    "students/pupil/config.json",
    "students/pupil/model.safetensors",
};

void test_damage_open(test_damage *d, int students)
{
    const test_run_options options = {
        .dtype = KD_BF16, .count = students, .vocabulary = 3, .ffn = 1
    };
    snprintf(d->out, sizeof d->out, "%s", test_folder());
    snprintf(d->dir, sizeof d->dir, "%s/checkpoint-000002", d->out);
    test_run_open(&d->run, options);
    for (int64_t step = 1; step <= 2; step++) {
        test_run_fill(&d->run, 3, step);
        test_ok(kd_checkpoint_save(NULL, NULL, d->out, &d->run.checkpoint));
    }
}

void test_damage_close(test_damage *d)
{
    test_run_close(&d->run);
    test_ok(kd_dir_remove(d->out));
}

void test_xor_byte(const char *path, int64_t at, unsigned mask)
{
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    unsigned char byte = 0;
    cr_assert(fd >= 0 && pread(fd, &byte, 1, at) == 1, "%s: byte %lld", path, (long long)at);
    byte = (unsigned char)(byte ^ mask);
    cr_assert(pwrite(fd, &byte, 1, at) == 1);
    close(fd);
}

/* The tensor that byte `at` belongs to, else the header. */
static void owner_of(char *text, size_t size, const kd_st_file *file, int64_t at)
{
    int64_t first = file->size;
    for (int64_t i = 0; i < file->count; i++) {
        const kd_st_entry *e = &file->entries[i];
        first = kd_min_i64(first, e->offset);
        if (at < e->offset || at >= e->offset + e->bytes) continue;
        snprintf(text, size, "tensor \"%s\": bytes %lld to %lld", e->name, (long long)e->offset,
                 (long long)(e->offset + e->bytes));
        return;
    }
    snprintf(text, size, "header: bytes 0 to %lld", (long long)first);
}

static void expect_named(const test_damage *d, const char *path, const char *owner,
                         const char *what)
{
    const kd_status status = kd_checkpoint_verify(d->dir);
    const char *message = status == KD_OK ? "accepted" : kd_last_error();
    cr_assert(status == KD_EFORMAT && strncmp(message, path, strlen(path)) == 0 &&
                  strstr(message, owner),
              "%s, of %s: %s", what, owner, message);
}

int64_t test_damage_flip(const test_damage *d, const char *name, int64_t first, int64_t stride)
{
    char path[192], owner[256] = "", what[256];
    const bool tensors = strstr(name, ".safetensors"),
               manifest = strcmp(name, "MANIFEST.json") == 0;
    kd_st_file *file = NULL;
    int64_t bytes, tried = 0;
    snprintf(path, sizeof path, "%s/%s", d->dir, name);
    test_ok(kd_file_size(&bytes, path));
    if (tensors) test_ok(kd_st_open(&file, path));
    if (!tensors && !manifest) snprintf(owner, sizeof owner, "bytes 0 to %lld", (long long)bytes);
    for (int64_t bit = first; bit < 8 * bytes; bit += stride, tried++) {
        if (tensors) owner_of(owner, sizeof owner, file, bit / 8);
        snprintf(what, sizeof what, "bit %lld of byte %lld of %s", (long long)(bit % 8),
                 (long long)(bit / 8), name);
        test_xor_byte(path, bit / 8, 1u << (bit % 8));
        expect_named(d, path, owner, what);
        test_xor_byte(path, bit / 8, 1u << (bit % 8));
    }
    kd_st_close(file);
    return tried;
}

int64_t test_damage_cut(const test_damage *d, const char *name, int64_t first, int64_t stride)
{
    char path[192], what[256], *whole;
    const char *older;
    size_t bytes;
    int64_t tried = 0;
    snprintf(path, sizeof path, "%s/%s", d->dir, name);
    test_ok(kd_file_read(&whole, &bytes, path, (size_t)1 << 30));
    for (int64_t length = first; length < (int64_t)bytes; length += stride, tried++) {
        snprintf(what, sizeof what, "%s cut to %lld bytes", name, (long long)length);
        cr_assert(truncate(path, length) == 0);
        expect_named(d, path, "", what);
        test_ok(kd_checkpoint_latest(&older, d->run.arena, d->out));
        cr_assert(kd_checkpoint_step(older) == 1, "%s: found %s", what, older);
        const int fd = open(path, O_WRONLY | O_CLOEXEC);
        const size_t left = bytes - (size_t)length;
        cr_assert(fd >= 0 && pwrite(fd, whole + length, left, length) == (ssize_t)left);
        close(fd);
    }
    free(whole);
    return tried;
}
