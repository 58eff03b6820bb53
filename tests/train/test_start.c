/*
 * The start of a run in a folder where another run, or an earlier one, has been: killed, failed, cut
 * off the power, damaged since, or still there.
 */
#include "support/short_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

Test(start, after_a_fault_ends_with_the_same_bits)
{
    test_short_run r;
    if (!test_can_trace()) return;
    test_short_run_open(&r, KD_GOLDEN);
    for (int i = 0; i < TEST_FAULTS; i++)
        test_short_run_fail(&r, &test_faults[i], 5 + 11 * i, i == 0 ? 17 : 251);
    test_short_run_close(&r);
}

Test(start, after_a_power_cut_ends_with_the_same_bits)
{
    test_short_run r;
    if (!test_can_trace()) return;
    test_short_run_open(&r, KD_GOLDEN);
    test_short_run_cut(&r, 3, 71);
    test_short_run_close(&r);
}

/* ---- damage ----------------------------------------------------------------------------------- */

static const char *newest_file(const test_short_run *r, const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/checkpoint-000003/%s", r->out, name);
    return path;
}

static void expect_refused(const test_short_run *r, int code, const char *parts, const char *what)
{
    char copy[512], *rest = NULL;
    const test_child *child = test_in_child(test_short_run_job, r);
    cr_assert(child->status == code, "%s: exit %d, expected %d: %s", what, child->status, code,
              child->message);
    snprintf(copy, sizeof copy, "%s", parts);
    for (char *part = strtok_r(copy, "|", &rest); part; part = strtok_r(NULL, "|", &rest))
        cr_assert(strstr(child->message, part), "%s: no \"%s\" in \"%s\"", what, part,
                  child->message);
}

static void halve(const char *path)
{
    int64_t bytes;
    test_ok(kd_file_size(&bytes, path));
    cr_assert(truncate(path, bytes / 2) == 0);
}

Test(start, takes_the_older_checkpoint_when_the_newest_is_damaged)
{
    static const char *const files[] = { "model.safetensors", "engine/optimizer.safetensors",
                                         "trainer_state.json", "MANIFEST.json" };
    test_short_run r;
    char path[160];
    test_short_run_open(&r, KD_GOLDEN);
    for (int i = 0; i < KD_COUNT(files); i++) {
        test_short_run_unfinish(&r);
        halve(newest_file(&r, files[i]));
        const test_child *child = test_short_run_ends(&r, files[i]);
        cr_assert(strstr(child->log, "checkpoint-000003: passed over, damaged: ") &&
                      strstr(child->log, files[i]) && strstr(child->log, "goes on with step 2"),
                  "%s: %s", files[i], child->log);
    }
    /* One that is asked for by name is not passed over. */
    test_short_run_unfinish(&r);
    halve(newest_file(&r, files[1]));
    snprintf(path, sizeof path, "%s/checkpoint-000003", r.out);
    r.resume = path;
    expect_refused(&r, 3, "checkpoint-000003/engine/optimizer.safetensors: found |bytes, expected",
                   "named");
    r.resume = "never";
    expect_refused(&r, 3, "holds checkpoints of another run", "never");
    r.resume = NULL;
    /* Nor is a run begun anew over checkpoints that cannot be read. */
    snprintf(path, sizeof path, "%s/checkpoint-000002/MANIFEST.json", r.out);
    halve(path);
    expect_refused(&r, 3, "holds 2 checkpoints and none is whole: |checkpoint-000002/MANIFEST.json",
                   "both");
    test_short_run_close(&r);
}

/* ---- two runs --------------------------------------------------------------------------------- */

static void write_lock(const test_short_run *r, const char *owner)
{
    test_ok(kd_file_write_atomic(test_path(r->out, ".lock"), owner, strlen(owner)));
}

Test(start, in_a_folder_where_a_run_lives_is_refused_with_its_number)
{
    test_short_run r;
    char host[64] = "", stale[128], holder[128], *text;
    size_t bytes;
    int lock;
    test_short_run_open(&r, KD_GOLDEN);
    test_short_run_unfinish(&r);
    cr_assert(gethostname(host, sizeof host - 1) == 0);
    snprintf(holder, sizeof holder, "/out: process %ld on %s writes here", (long)getpid(), host);
    test_ok(kd_output_lock(&lock, r.out));
    expect_refused(&r, 3, holder, "a second run");
    cr_assert(test_exists(r.out, "checkpoint-000003"), "the second run removed something");

    /* The next holder has the lock and has not yet written its name over ours. */
    const pid_t dead = fork();
    if (dead == 0) _exit(0);
    cr_assert(waitpid(dead, NULL, 0) == dead);
    snprintf(stale, sizeof stale, "%ld %s\n", (long)dead, host);
    cr_assert(pwrite(lock, stale, strlen(stale), 0) > 0);
    expect_refused(&r, 3, "/out: another run writes here", "a dead holder's number");
    cr_assert(ftruncate(lock, 0) == 0);
    expect_refused(&r, 3, "/out: another run writes here", "no number");
    close(lock);

    /* Whatever a dead holder wrote holds nobody up. */
    const char *const left[] = { stale, "", "\n", "-1 x", "99999999999999999999 x y", host };
    for (int i = 0; i < KD_COUNT(left); i++) {
        write_lock(&r, left[i]);
        (void)test_short_run_ends(&r, left[i]);
        test_ok(kd_file_read(&text, &bytes, test_path(r.out, ".lock"), 1000));
        cr_assert(strtol(text, NULL, 10) > 1 && strstr(text, host) && strchr(text, '\n'), "\"%s\"",
                  text);
        free(text);
        test_short_run_unfinish(&r);
    }
    test_short_run_close(&r);
}

/* ---- odd places ------------------------------------------------------------------------------- */

/* Each is in the way of `out`, or of what is written there, and ends a run without hanging it. */
static void out_is_a_file(const char *out) { test_ok(kd_file_write_atomic(out, "x", 1)); }
static void out_is_a_fifo(const char *out) { cr_assert(mkfifo(out, 0666) == 0); }
static void out_leads_nowhere(const char *out) { cr_assert(symlink("nowhere", out) == 0); }
static void lock_is_a_fifo(const char *out)
{
    cr_assert(mkdir(out, 0777) == 0 && mkfifo(test_path(out, ".lock"), 0666) == 0);
}
static void lock_is_a_link(const char *out)
{
    cr_assert(mkdir(out, 0777) == 0 && symlink("../mine", test_path(out, ".lock")) == 0);
}
static void metrics_are_a_fifo(const char *out)
{
    cr_assert(mkdir(out, 0777) == 0 && mkfifo(test_path(out, "metrics.jsonl"), 0666) == 0);
}
static void metrics_are_a_folder(const char *out)
{
    test_ok(kd_dir_create(test_path(out, "metrics.jsonl")));
}
static void checkpoint_is_a_file(const char *out)
{
    cr_assert(mkdir(out, 0777) == 0);
    test_ok(kd_file_write_atomic(test_path(out, "checkpoint-000001"), "x", 1));
}

static const struct {
    const char *what;
    void (*make)(const char *out);
    int code;
    const char *parts;
} odd[] = {
    { "a file", out_is_a_file, 4, "/out: cannot create the folder: File exists" },
    { "a FIFO", out_is_a_fifo, 4, "/out: cannot create the folder: File exists" },
    { "a link to nowhere", out_leads_nowhere, 4, "/out: cannot create the folder: File exists" },
    { "a lock that is a FIFO", lock_is_a_fifo, 3, "/out/.lock: not a regular file" },
    { "a lock that is a link", lock_is_a_link, 4, "/out/.lock: cannot open: Too many levels" },
    { "metrics that are a FIFO", metrics_are_a_fifo, 4, "metrics.jsonl: No such device" },
    { "metrics that are a folder", metrics_are_a_folder, 4, "metrics.jsonl: Is a directory" },
    { "a file for a checkpoint", checkpoint_is_a_file, 4,
      "step 1 not saved: |/out/checkpoint-000001: Not a directory" },
};

Test(start, at_odd_places_is_refused)
{
    test_short_run r;
    test_short_run_open(&r, KD_GOLDEN);
    for (int i = 0; i < KD_COUNT(odd); i++) {
        (void)remove(r.out);
        if (kd_dir_exists(r.out)) test_short_run_reset(&r);
        odd[i].make(r.out);
        expect_refused(&r, odd[i].code, odd[i].parts, odd[i].what);
    }
    cr_assert(!test_exists(r.root, "mine"), "a link out of the folder was followed");
    test_short_run_reset(&r);
    test_short_run nowhere = r; /* where even root may not write */
    snprintf(nowhere.out, sizeof nowhere.out, "/proc/kd");
    expect_refused(&nowhere, 4, "/proc/kd: cannot create the folder: No such file", "no writing");

    /* A link to a folder is one. */
    cr_assert(mkdir(test_path(r.root, "real"), 0777) == 0 && symlink("real", r.out) == 0);
    (void)test_short_run_ends(&r, "a link to a folder");
    cr_assert(unlink(r.out) == 0);
    test_short_run_close(&r);
}

/* Between the first checkpoint and the second somebody removes the folder. */
#if defined(__x86_64__)
typedef struct intruder {
    const test_short_run *run;
    bool makes_another, done;
} intruder;

static void intrude(void *context, const test_call *c)
{
    intruder *i = context;
    if (i->done || c->number != SYS_write || !strstr(c->paths[0], "/metrics.jsonl")) return;
    if (!test_exists(i->run->out, "checkpoint-000001")) return;
    i->done = true;
    test_short_run_reset(i->run);
    if (!i->makes_another) return;
    test_ok(kd_dir_create(i->run->out));
    write_lock(i->run, "1 elsewhere\n");
}

Test(start, again_after_the_folder_was_removed)
{
    test_short_run r;
    if (!test_can_trace()) return;
    test_short_run_open(&r, KD_GOLDEN);
    for (int another = 0; another < 2; another++) {
        intruder i = { .run = &r, .makes_another = another };
        test_trace t = { .below = r.out, .seen = intrude, .context = &i };
        test_short_run_reset(&r);
        const test_child *child = test_traced(&t, test_short_run_job, &r);
        const char *why = another ? "/out/.lock: another file than the one that this run has locked"
                                  : "/out/.lock: removed while the run wrote there: No such file";
        cr_assert(i.done && child->status == 4 && strstr(child->message, why), "exit %d: %s",
                  child->status, child->message);
        (void)test_short_run_ends(&r, "removed");
    }
    test_short_run_close(&r);
}
#endif
