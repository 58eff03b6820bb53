/*
 * Damage to the files of a checkpoint: bits that flip, files that are cut, grown, missing or of another
 * kind.  slow_damage.c tries every bit and every length.
 */
#include "support/damage.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* `data` in place of the file, verified, then the file as it was. */
static void expect_content_refused(const char *dir, const char *file, const char *data,
                                   size_t bytes, const char *what)
{
    char *keep;
    size_t length;
    const char *path = test_path(dir, file);
    test_ok(kd_file_read(&keep, &length, path, (size_t)1 << 30));
    test_ok(kd_file_write_atomic(path, data ? data : keep, bytes));
    const kd_status status = kd_checkpoint_verify(dir);
    cr_assert(status == KD_EFORMAT && strstr(kd_last_error(), path), "%s %s to %zu bytes: %s", file,
              what, bytes, status == KD_OK ? "accepted" : kd_last_error());
    test_ok(kd_file_write_atomic(path, keep, length));
    free(keep);
}

static void zero_and_grow(const char *dir)
{
    for (int i = 0; i < TEST_DAMAGE_FILES; i++) {
        int64_t bytes;
        test_ok(kd_file_size(&bytes, test_path(dir, test_damage_files[i])));
        char *zeros = calloc((size_t)bytes + 1, 1);
        expect_content_refused(dir, test_damage_files[i], zeros, (size_t)bytes, "zeroed");
        expect_content_refused(dir, test_damage_files[i], zeros, (size_t)bytes + 1, "grown");
        free(zeros);
    }
}

static void remove_and_replace(const char *dir)
{
    for (int i = 0; i < TEST_DAMAGE_FILES; i++) {
        const char *path = test_path(dir, test_damage_files[i]), *away = test_path(dir, "away");
        cr_assert(rename(path, away) == 0);
        test_refused(kd_checkpoint_verify(dir), KD_EFORMAT, path);
        cr_assert(mkdir(path, 0777) == 0);
        test_refused(kd_checkpoint_verify(dir), KD_EFORMAT, path);
        cr_assert(rmdir(path) == 0 && mkfifo(path, 0666) == 0);
        test_refused(kd_checkpoint_verify(dir), KD_EFORMAT, path); /* and does not hang */
        cr_assert(unlink(path) == 0 && rename(away, path) == 0);
    }
}

/* `text` as a manifest whose own hash is right. */
static void expect_manifest_refused(const char *dir, const char *text, const char *message)
{
    char whole[1024];
    const int n = snprintf(whole, sizeof whole, "%s,\n  \"xxh3\": \"%s\"\n}\n", text,
                           kd_hash_bytes(text, strlen(text)).hex);
    test_ok(kd_file_write_atomic(test_path(dir, "MANIFEST.json"), whole, (size_t)n));
    test_refused(kd_checkpoint_verify(dir), KD_EFORMAT, message);
}

static void hostile_manifests(const char *dir)
{
#define LISTED                                                                                     \
    "\"config.json\": 1, \"model.safetensors\": 1, \"trainer_state.json\": 1, "                    \
    "\"engine/state.json\": 1, \"engine/optimizer.safetensors\": 1"
    static const char *const outside[] = { "../x", "/etc/passwd", "a/../../x", "a/..", "..",
                                           "",     "a//b",        "a/" };
    char text[512];
    expect_manifest_refused(dir, "{\"files\": {}", "config.json");
    expect_manifest_refused(dir, "{\"files\": 3", "config.json");
    expect_manifest_refused(dir, "{\"files\": {" LISTED "}", "bytes or xxh3 missing");
    expect_manifest_refused(dir, "{\"files\": {}, \"files\": {" LISTED "}", "duplicate");
    for (int i = 0; i < KD_COUNT(outside); i++) {
        snprintf(text, sizeof text,
                 "{\"files\": {\"%s\": {\"bytes\": 1, \"xxh3\": \"0\"}, " LISTED "}", outside[i]);
        expect_manifest_refused(dir, text, "not a path inside");
    }
#undef LISTED
}

Test(damage, is_found_and_named)
{
    test_damage d;
    test_log();
    test_damage_open(&d, 2);
    for (int i = 0; i < TEST_DAMAGE_FILES; i++) {
        const bool manifest = i == 0; /* nothing else vouches for it */
        test_damage_flip(&d, test_damage_files[i], i, manifest ? 9 : 131);
        test_damage_cut(&d, test_damage_files[i], 0, manifest ? 7 : 37);
    }
    zero_and_grow(d.dir);
    remove_and_replace(d.dir);
    test_ok(kd_checkpoint_verify(d.dir));
    /* Somebody's own file beside ours is no damage. */
    test_ok(kd_file_write_atomic(test_path(d.dir, "README.md"), "mine", 4));
    test_ok(kd_checkpoint_verify(d.dir));
    test_damage_close(&d);
}

Test(damage, lets_nothing_of_a_folder_be_loaded)
{
    test_damage d;
    kd_progress progress;
    test_log();
    test_damage_open(&d, 2);
    void *copy = test_run_copy(&d.run);
    test_xor_byte(test_path(d.dir, "engine/optimizer.safetensors"), 4096, 4);
    test_refused(kd_checkpoint_load(&progress, d.dir, &d.run.checkpoint), KD_EFORMAT,
                 "optimizer.safetensors");
    cr_assert(test_run_equals(&d.run, copy), "a damaged folder was loaded in part");
    hostile_manifests(d.dir);
    free(copy);
    test_damage_close(&d);
}
