/*
 * Saves and rotations that are killed, or fail, at every one of their system calls.  Whatever
 * happens, what was saved before or what was being saved is found and comes back bit for bit, and
 * nothing else is ever accepted.  Kills at every call; slow_faults.c has the others there too.
 */
#include "support/scene.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- faults in a save and a rotation ---------------------------------------------------------- */

Test(faults, in_a_save_leave_the_old_or_the_new)
{
    test_scene s;
    if (!test_can_trace()) return;
    test_scene_open(&s, 1, 2);
    for (int i = 0; i < TEST_FAULTS; i++)
        test_scene_fail(&s, &test_faults[i], i < 1 ? 1 : i < 2 ? 3 : 29);
    test_scene_close(&s);

    /* In place of a good folder of the same step, the only one there is. */
    for (int no_exchange = 0; no_exchange < 2; no_exchange++) {
        test_scene_open(&s, 2, 2);
        s.no_exchange = no_exchange;
        for (int i = 0; i < TEST_FAULTS; i++) test_scene_fail(&s, &test_faults[i], i < 1 ? 1 : 29);
        test_scene_close(&s);
    }
}

#if defined(__x86_64__)
/* In place of the only checkpoint: what differs from a save beside it is in these calls alone. */
Test(faults, in_what_publishes_a_save_leave_the_old_or_the_new)
{
    static const test_fault published[] = {
        { "a rename fails", TEST_FAIL, EIO, false, SYS_rename },
        { "renames fail", TEST_FAIL, EIO, true, SYS_rename },
        { "an fsync fails", TEST_FAIL, EIO, false, SYS_fsync },
        { "no locks", TEST_FAIL, ENOLCK, true, SYS_flock },
    };
    test_scene s;
    if (!test_can_trace()) return;
    for (int no_exchange = 0; no_exchange < 2; no_exchange++) {
        test_scene_open(&s, 2, 2);
        s.no_exchange = no_exchange;
        for (int i = 0; i < KD_COUNT(published); i++) test_scene_fail(&s, &published[i], 1);
        test_scene_close(&s);
    }
}

#endif

Test(faults, of_another_who_holds_the_staging_folder)
{
    test_scene s;
    if (!test_can_trace()) return;
    test_scene_open(&s, 1, 2);
    test_scene_reset(&s);
    test_trace t = { .below = s.out, .harm = TEST_FAIL, .error = EWOULDBLOCK, .only = SYS_flock };
    const test_child *child = test_traced(&t, test_scene_save, &s);
    cr_assert(child->status == KD_EIO && strstr(child->message, "step 2 not saved: ") &&
                  strstr(child->message, "held by another process"),
              "status %d: %s", child->status, child->message);
    cr_assert(test_scene_found(&s, "held") == 0);
    test_scene_close(&s);
}

static bool rotate_with(test_scene *s, const test_fault *f, int64_t at)
{
    char name[96];
    snprintf(name, sizeof name, "rotation, %s at call %lld", f->name, (long long)at);
    test_scene_reset(s);
    s->runs[0].checkpoint.progress.step = 2;
    test_ok(kd_checkpoint_save(NULL, NULL, s->out, &s->runs[0].checkpoint));
    s->runs[0].checkpoint.progress.step = 1;
    test_ok(kd_checkpoint_save(NULL, NULL, s->out, &s->runs[1].checkpoint));
    test_trace t = { .below = s->out, .harm = f->harm, .error = f->error, .at = at };
    const test_child *child = test_traced(&t, test_scene_rotate, s);
    /* nftw takes a folder that it could not list for an empty one. */
    cr_assert(child->status != KD_EIO || strstr(child->message, strerror(f->error)) ||
                  strstr(child->message, strerror(ENOTEMPTY)),
              "%s: \"%s\"", name, child->message);
    cr_assert(!test_exists(s->out, "checkpoint-000002") ||
                  kd_checkpoint_verify(test_path(s->out, "checkpoint-000002")) == KD_OK,
              "%s: half of a checkpoint has a checkpoint's name", name);
    cr_assert(test_scene_found(s, name) == 1, "%s: the newest is gone", name);
    test_ok(kd_checkpoint_verify(test_path(s->out, "checkpoint-000001")));
    test_ok(kd_checkpoint_rotate(s->out, 1, 1));
    cr_assert(test_count(s->out, "") == 2, "%s: %d entries, expected 2", name,
              test_count(s->out, ""));
    return t.hit;
}

Test(faults, in_a_rotation_leave_the_best_and_the_newest)
{
    test_scene s;
    if (!test_can_trace()) return;
    test_scene_open(&s, 1, 3);
    for (int i = 0; i < TEST_FAULTS; i++) {
        int64_t at = 0;
        if (test_faults[i].onwards) continue;
        while (rotate_with(&s, &test_faults[i], at)) at += i < 1 ? 1 : 5;
        cr_assert(at > 5 || test_faults[i].error == EINTR || test_faults[i].harm == TEST_SHORT,
                  "only %lld calls were seen", (long long)at);
    }
    test_scene_close(&s);
}

/* ---- disks that are full ---------------------------------------------------------------------- */

typedef struct limited {
    const test_scene *scene;
    int64_t bytes;
} limited;

/* Files may not grow past a limit: every kind of file fails once. */
static int limited_job(const void *context)
{
    const limited *l = context;
    struct rlimit before;
    signal(SIGXFSZ, SIG_IGN);
    if (getrlimit(RLIMIT_FSIZE, &before) != 0) return KD_EINTERNAL;
    const struct rlimit limit = { (rlim_t)l->bytes, before.rlim_max };
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return KD_EINTERNAL;
    const int status = test_scene_save(l->scene);
    if (setrlimit(RLIMIT_FSIZE, &before) != 0) return KD_EINTERNAL;
    return status == KD_EIO && !strstr(kd_last_error(), "not saved") ? KD_EINTERNAL : status;
}

/* A real full disk of some bytes with an old checkpoint on it, in a mount of our own. */
static int full_disk_job(const void *context)
{
    const limited *l = context;
    const char *out = l->scene->out;
    char size[64];
    kd_progress progress;
    snprintf(size, sizeof size, "size=%lld", (long long)l->bytes);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("kd", out, "tmpfs", 0, size) != 0)
        _exit(TEST_NOT_TRACED);
    kd_checkpoint next = l->scene->runs[0].checkpoint;
    if (kd_checkpoint_save(NULL, NULL, out, &next) != KD_OK) return KD_ENOMEM;
    next.progress.step++;
    const kd_status status = kd_checkpoint_save(NULL, NULL, out, &next);
    if (status != KD_EIO || !strstr(kd_last_error(), "No space left") ||
        !strstr(kd_last_error(), "needed"))
        return KD_EINTERNAL;
    KD_TRY(kd_checkpoint_load(&progress, test_path(out, "checkpoint-000001"),
                              &l->scene->runs[0].checkpoint));
    return test_count(out, "") == 1 ? KD_EIO : KD_EINTERNAL;
}

Test(faults, of_a_full_disk_leave_the_old_checkpoint)
{
    test_scene s;
    static const int64_t limits[] = { 0, 100, 700, 1000, 3000, 6000, 12000, 20000 };
    int failed = 0;
    test_scene_open(&s, 1, 2);
    for (int i = 0; i < KD_COUNT(limits); i++) {
        test_scene_reset(&s);
        const limited l = { &s, limits[i] };
        const int status = test_in_child(limited_job, &l)->status;
        cr_assert(status == KD_EIO || status == KD_OK, "limit %lld: status %d",
                  (long long)limits[i], status);
        cr_assert(test_count(s.out, "") == (status == KD_OK ? 2 : 1), "limit %lld: left behind",
                  (long long)limits[i]);
        cr_assert(test_scene_found(&s, "limit") == (status == KD_OK));
        failed += status == KD_EIO;
    }
    cr_assert(failed > 5, "only %d limits were felt", failed);

    const limited full = { &s, 200000 };
    const int status = test_in_child(full_disk_job, &full)->status;
    if (status == TEST_NOT_TRACED)
        fprintf(stderr, "skipped: nothing may be mounted here\n");
    else
        cr_assert(status == KD_EIO, "full disk: status %d", status);

    /* Where no folder can be made at all. */
    test_refused(kd_checkpoint_save(NULL, NULL, "/proc/kd/out", &s.runs[0].checkpoint), KD_EIO,
                 "/proc/kd");
    test_scene_close(&s);
}
