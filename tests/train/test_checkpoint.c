/* Round trips, refusals, and the folder of all checkpoints; damage and faults have files of their own. */
#include "support/damage.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- round trips ------------------------------------------------------------------------------ */

static void expect_progress(const kd_progress *found, const kd_progress *wanted, const char *name)
{
    cr_assert(found->step == wanted->step && found->tokens == wanted->tokens &&
                  found->best_step == wanted->best_step,
              "%s: counters differ", name);
    cr_assert(memcmp(&found->cursor, &wanted->cursor, sizeof found->cursor) == 0,
              "%s: the cursor differs", name);
    cr_assert(memcmp(&found->guard, &wanted->guard, sizeof found->guard) == 0,
              "%s: the guard differs", name);
    cr_assert(memcmp(&found->best, &wanted->best, sizeof found->best) == 0 &&
                  memcmp(&found->seconds, &wanted->seconds, sizeof found->seconds) == 0,
              "%s: best %a and seconds %a, expected %a and %a", name, found->best, found->seconds,
              wanted->best, wanted->seconds);
}

static void round_trip(const char *out, test_run_options options, int64_t step)
{
    char name[96];
    snprintf(name, sizeof name, "%s, %d moments, %d students", kd_dtype_name(options.dtype),
             options.moments, options.count);
    test_run run, other;
    kd_progress progress;
    const char *path;
    test_run_open(&run, options);
    test_run_fill(&run, (uint64_t)step, step);
    if (step % 2) run.checkpoint.progress.best_step = -1, run.checkpoint.progress.best = INFINITY;
    void *copy = test_run_copy(&run);
    test_ok(kd_checkpoint_save(&path, run.arena, out, &run.checkpoint));
    cr_assert(test_run_equals(&run, copy), "%s: saving changed the run", name);
    test_ok(kd_checkpoint_verify(path));

    test_run_open(&other, options);
    test_run_spoil(&other);
    test_ok(kd_checkpoint_load(&progress, path, &other.checkpoint));
    cr_assert(test_run_equals(&other, copy), "%s: other bits came back", name);
    expect_progress(&progress, &run.checkpoint.progress, name);
    for (int s = 0; s < options.count && options.dtype != KD_F32; s++) {
        const kd_slab *slab = &other.students[s]->slab;
        const int64_t n = slab->params.elements;
        void *rounded = malloc((size_t)n * 2);
        test_ok(kd_convert(rounded, slab->dtype, slab->masters.data, KD_F32, n));
        cr_assert(memcmp(rounded, slab->weights.data, (size_t)n * 2) == 0,
                  "%s: weights are not the masters, rounded to nearest even", name);
        free(rounded);
    }
    free(copy);
    test_run_close(&other);
    test_run_close(&run);
}

Test(checkpoint, gives_back_every_bit)
{
    const char *out = test_folder();
    int64_t step = 1;
    test_log();
    for (int b = 0; b < 2; b++)
        for (int moments = 0; moments <= 2; moments++)
            for (int count = 1; count <= TEST_STUDENTS; count++, step++)
                round_trip(out,
                           (test_run_options){
                               .dtype = b ? KD_BF16 : KD_F32, .moments = moments, .count = count },
                           step);
    /* An array longer than the host buffer. */
    round_trip(out,
               (test_run_options){ .dtype = KD_BF16,
                                   .moments = 1,
                                   .count = 1,
                                   .vocabulary = KD_CHECKPOINT_PIECE / 8 + 12345 },
               step);
    cr_assert(test_count(out, "") == step, "%d entries, expected %lld checkpoints and nothing else",
              test_count(out, ""), (long long)step);
    test_ok(kd_dir_remove(out));
}

/* ---- what the folder holds -------------------------------------------------------------------- */

static ino_t inode(const char *path)
{
    struct stat info;
    cr_assert(stat(path, &info) == 0, "%s: missing", path);
    return info.st_ino;
}

static json_t *read_json(const char *dir, const char *name)
{
    json_t *json;
    test_ok(kd_json_read(&json, test_path(dir, name)));
    return json;
}

static void expect_trainer_state(const char *dir, const kd_progress *progress)
{
    json_t *state = read_json(dir, "trainer_state.json");
    cr_assert(json_integer_value(json_object_get(state, "global_step")) == progress->step);
    cr_assert(json_number_value(json_object_get(state, "best_metric")) == progress->best);
    cr_assert(json_integer_value(json_object_get(state, "best_global_step")) ==
              progress->best_step);
    cr_assert(json_array_size(json_object_get(state, "log_history")) == 1);
    cr_assert(json_is_number(json_object_get(state, "epoch")));
    json_decref(state);
}

Test(checkpoint, is_a_model_folder_written_once)
{
    static const char tokenizer[] = "{\"model\": {}}";
    const char *root = test_folder(), *path, *again, *log = test_log();
    char out[128], from[128];
    snprintf(out, sizeof out, "%s/deep/out", root);
    snprintf(from, sizeof from, "%s/tokenizer", root);
    test_ok(kd_dir_create(from));
    test_ok(kd_file_write_atomic(test_path(from, "tokenizer.json"), tokenizer, strlen(tokenizer)));
    test_run run;
    test_run_open(&run, (test_run_options){ .dtype = KD_BF16, .moments = 2, .count = 2 });
    test_run_fill(&run, 1, 500);
    json_t *history = json_pack("[{s:f, s:i}]", "loss", 0.5, "step", 500);
    run.checkpoint.history = history;
    run.checkpoint.tokenizer_dir = from;
    test_ok(kd_checkpoint_save(&path, run.arena, out, &run.checkpoint));
    cr_assert(strcmp(path, test_path(out, "checkpoint-000500")) == 0, "%s", path);
    static const char *const files[] = { "config.json",
                                         "model.safetensors",
                                         "tokenizer.json",
                                         "trainer_state.json",
                                         "engine/state.json",
                                         "engine/config.json",
                                         "engine/optimizer.safetensors",
                                         "students/pupil/config.json",
                                         "students/pupil/model.safetensors",
                                         "students/pupil/tokenizer.json",
                                         "MANIFEST.json" };
    json_t *manifest = read_json(path, "MANIFEST.json");
    for (int i = 0; i < KD_COUNT(files); i++) {
        cr_assert(test_exists(path, files[i]), "%s: missing", files[i]);
        cr_assert(i + 1 == KD_COUNT(files) ||
                      json_object_get(json_object_get(manifest, "files"), files[i]),
                  "%s: not in the manifest", files[i]);
    }
    json_decref(manifest);
    expect_trainer_state(path, &run.checkpoint.progress);

    /* The same state again: left as it is, whatever the clock says. */
    const ino_t first = inode(path);
    run.checkpoint.progress.seconds += 1;
    test_ok(kd_checkpoint_save(&again, run.arena, out, &run.checkpoint));
    cr_assert(strcmp(again, path) == 0 && inode(path) == first, "a good folder was replaced");
    /* A good folder of another state, and a damaged one: replaced. */
    run.checkpoint.contract = "device cpu; threads 3; seed 1";
    test_ok(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint));
    const ino_t second = inode(path);
    cr_assert(second != first && strstr(log, "another state"), "another state was not replaced");
    test_ok(kd_checkpoint_verify(path));
    cr_assert(unlink(test_path(path, "students/pupil/config.json")) == 0);
    test_ok(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint));
    const ino_t third = inode(path);
    cr_assert(third != second && strstr(log, "pupil/config.json"), "%s", log);
    /* So is one of the same state with other records, or with none. */
    cr_assert(json_array_append_new(history, json_pack("{s:f}", "eval_loss", 1.5)) == 0);
    test_ok(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint));
    const ino_t fourth = inode(path);
    cr_assert(fourth != third, "a folder without the last record was kept");
    cr_assert(unlink(test_path(path, "trainer_state.json")) == 0);
    test_ok(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint));
    cr_assert(inode(path) != fourth && strstr(log, "trainer_state.json"), "%s", log);
    test_ok(kd_checkpoint_verify(path));
    cr_assert(test_count(out, "") == 1, "something was left beside the checkpoint");
    json_decref(history);
    test_run_close(&run);
    test_ok(kd_dir_remove(root));
}

/* ---- refusals --------------------------------------------------------------------------------- */

static void expect_other_refused(const char *dir, test_run_options options, const char *contract,
                                 const char *found, const char *expected)
{
    test_run other;
    kd_progress progress = { .step = -7 };
    test_run_open(&other, options);
    test_run_spoil(&other);
    if (contract) other.checkpoint.contract = contract;
    void *copy = test_run_copy(&other);
    test_refused(kd_checkpoint_load(&progress, dir, &other.checkpoint), KD_EFORMAT, found);
    cr_assert(strstr(kd_last_error(), expected) && strstr(kd_last_error(), "state.json"),
              "\"%s\" does not name \"%s\" and the file", kd_last_error(), expected);
    cr_assert(progress.step == -7 && test_run_equals(&other, copy), "%s: loaded in part", found);
    free(copy);
    test_run_close(&other);
}

static void expect_format_refused(const char *dir, test_run_options options)
{
    json_t *state = read_json(dir, "engine/state.json");
    json_object_set_new(state, "format", json_integer(3));
    test_ok(kd_json_write(test_path(dir, "engine/state.json"), state));
    json_decref(state);
    cr_assert(unlink(test_path(dir, "MANIFEST.json")) == 0);
    test_ok(kd_manifest_write(dir));
    expect_other_refused(dir, options, NULL, "format: found 3", "expected 2");
}

Test(checkpoint, of_another_run_is_refused_naming_both)
{
    const test_run_options same = { .dtype = KD_BF16, .moments = 2, .count = 1 };
    const char *out = test_folder(), *dir;
    test_run run;
    test_log();
    test_run_open(&run, same);
    test_run_fill(&run, 3, 12);
    test_ok(kd_checkpoint_save(&dir, run.arena, out, &run.checkpoint));

    expect_other_refused(dir, same, "device cpu; threads 16; seed 1", "threads 2", "threads 16");
    expect_other_refused(dir, same, "", "device cpu", "expected \"\"");
    test_run_options other = same;
    other.dtype = KD_F32;
    expect_other_refused(dir, other, NULL, "found \"bf16\"", "expected \"f32\"");
    other = same, other.moments = 1;
    expect_other_refused(dir, other, NULL, "moments: found 2", "expected 1");
    other = same, other.count = 2;
    expect_other_refused(dir, other, NULL, "students: found 1", "expected 2");
    other = same, other.label = "small";
    expect_other_refused(dir, other, NULL, "found \"student\"", "expected \"small\"");
    other = same, other.vocabulary = 41;
    expect_other_refused(dir, other, NULL, "[37,8]", "[41,8]");
    other = same, other.ffn = 20;
    expect_other_refused(dir, other, NULL, "blocks.0.mlp_up", "[40,8]");
    expect_format_refused(dir, same);

    run.checkpoint.progress.step++;
    run.students[0]->label = "a/b";
    test_refused(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint), KD_EINVAL, "a/b");
    cr_assert(test_count(out, "") == 1, "a refused save left something");
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

/* ---- the folder of all checkpoints ------------------------------------------------------------ */

static void save_step(test_run *run, const char *out, int64_t step)
{
    run->checkpoint.progress.step = step;
    test_ok(kd_checkpoint_save(NULL, NULL, out, &run->checkpoint));
}

static void expect_latest(test_run *run, const char *out, const char *name)
{
    const char *dir;
    test_ok(kd_checkpoint_latest(&dir, run->arena, out));
    if (!name) {
        cr_assert(dir == NULL, "found %s, expected none", dir);
        return;
    }
    cr_assert(dir && strcmp(dir, test_path(out, name)) == 0, "found %s, expected %s",
              dir ? dir : "none", name);
}

static void expect_names(const char *out, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        cr_assert(test_exists(out, names[i]), "%s was removed", names[i]);
    cr_assert(test_count(out, "") == count, "%d entries, expected %d", test_count(out, ""), count);
}

Test(checkpoint, newest_good_one_is_found)
{
    const char *out = test_folder(), *log = test_log();
    test_run run;
    test_run_open(&run, (test_run_options){ .dtype = KD_F32, .moments = 1, .count = 1 });
    test_run_fill(&run, 3, 1);
    expect_latest(&run, test_path(out, "absent"), NULL);
    expect_latest(&run, out, NULL);
    save_step(&run, out, 9);
    save_step(&run, out, 10);
    save_step(&run, out, 1000000); /* seven digits: newest by number, not by name */
    static const char *const strange[] = { "checkpoint-", "checkpoint-12x", "checkpoint--1",
                                           "checkpoint-99999999999999999999", "xcheckpoint-11" };
    for (int i = 0; i < KD_COUNT(strange); i++) test_ok(kd_dir_create(test_path(out, strange[i])));
    expect_latest(&run, out, "checkpoint-1000000");
    cr_assert(!*log, "said something of good folders: %s", log);

    test_xor_byte(test_path(out, "checkpoint-1000000/model.safetensors"), 2000, 1);
    expect_latest(&run, out, "checkpoint-000010");
    cr_assert(strstr(log, "checkpoint-1000000: passed over") && strstr(log, "model.safetensors"),
              "no warning of the damaged folder: %s", log);
    test_ok(kd_dir_create(test_path(out, "checkpoint-2000000"))); /* empty: what HF would take */
    expect_latest(&run, out, "checkpoint-000010");

    /* What a dead run left goes; what a living one writes stays. */
    test_ok(kd_dir_create(test_path(out, ".tmp-checkpoint-000011.1/engine")));
    test_ok(kd_dir_create(test_path(out, ".tmp-checkpoint-000012.1")));
    test_ok(kd_dir_create(test_path(out, ".del-checkpoint-000008.1/engine")));
    test_ok(kd_dir_create(test_path(out, ".tmp-of-somebody-else")));
    const int fd = open(test_path(out, ".tmp-checkpoint-000012.1"), O_RDONLY | O_DIRECTORY);
    cr_assert(fd >= 0 && flock(fd, LOCK_EX) == 0);
    test_ok(kd_output_sweep(out));
    expect_latest(&run, out, "checkpoint-000010");
    cr_assert(!test_exists(out, ".tmp-checkpoint-000011.1") &&
                  !test_exists(out, ".del-checkpoint-000008.1"),
              "left by a dead run, and still there");
    cr_assert(test_exists(out, ".tmp-checkpoint-000012.1") &&
                  test_exists(out, ".tmp-of-somebody-else"),
              "a living run's folder was removed");
    cr_assert(strstr(log, ".tmp-checkpoint-000011.1: left by"), "not said: %s", log);
    close(fd);
    test_ok(kd_output_sweep(out));
    cr_assert(!test_exists(out, ".tmp-checkpoint-000012.1"), "its writer is gone");
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

/* Not by name; and of two names of one number the first. */
Test(checkpoint, newest_is_so_by_number)
{
    const char *out = test_folder(), *log = test_log(), *dir;
    test_run run;
    test_run_open(&run, (test_run_options){ .dtype = KD_F32, .moments = 1, .count = 1 });
    test_run_fill(&run, 3, 1);
    save_step(&run, out, 9);
    save_step(&run, out, 10);
    cr_assert(rename(test_path(out, "checkpoint-000009"), test_path(out, "checkpoint-9")) == 0 &&
              rename(test_path(out, "checkpoint-000010"), test_path(out, "checkpoint-10")) == 0);
    expect_latest(&run, out, "checkpoint-10");
    test_ok(kd_dir_create(test_path(out, "checkpoint-0010")));
    expect_latest(&run, out, "checkpoint-10");
    cr_assert(strstr(log, "checkpoint-0010: passed over"), "%s", log);

    /* A stop says nothing of the folders. */
    kd_stop_install();
    cr_assert(raise(SIGTERM) == 0);
    kd_stop_reads(true);
    test_refused(kd_checkpoint_latest(&dir, run.arena, out), KD_ESTOPPED, "asked to stop");
    kd_stop_reads(false);
    kd_stop_reset();

    test_ok(kd_dir_remove(test_path(out, "checkpoint-9")));
    test_ok(kd_dir_remove(test_path(out, "checkpoint-10")));
    test_refused(kd_checkpoint_latest(&dir, run.arena, out), KD_EFORMAT,
                 "holds 1 checkpoint and none is whole: ");
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

Test(checkpoint, rotation_keeps_the_newest_and_the_best)
{
    const char *out = test_folder();
    test_run run;
    test_log();
    test_run_open(&run, (test_run_options){ .dtype = KD_F32, .moments = 0, .count = 1 });
    test_run_fill(&run, 3, 1);
    for (int64_t step = 1; step <= 6; step++) save_step(&run, out, step);
    test_refused(kd_checkpoint_rotate(out, 0, -1), KD_EINVAL, "keep");
    test_ok(kd_checkpoint_rotate(out, 6, -1));
    cr_assert(test_count(out, "") == 6, "kept too few");
    test_ok(kd_checkpoint_rotate(out, 2, 3));
    expect_names(
        out, (const char *const[]){ "checkpoint-000003", "checkpoint-000005", "checkpoint-000006" },
        3);
    /* A damaged newest one does not push out the good ones. */
    cr_assert(truncate(test_path(out, "checkpoint-000006/model.safetensors"), 10) == 0);
    test_ok(kd_checkpoint_rotate(out, 1, -1));
    expect_names(out, (const char *const[]){ "checkpoint-000005", "checkpoint-000006" }, 2);
    expect_latest(&run, out, "checkpoint-000005");
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}
