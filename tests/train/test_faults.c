/*
 * Saves and rotations that are killed, or fail, at every one of their system calls.  Whatever
 * happens, what was saved before or what was being saved is found and comes back bit for bit, and
 * nothing else is ever accepted.
 *
 * The child that saves is traced by this process (ptrace): no timing, every place is hit once.
 */
#include "support/students.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <sys/user.h>
#endif

/* ---- a child that is stopped at its system calls ---------------------------------------------- */

enum { SYNCED_BYTES = 16384 };
enum { KILL = -1, NOT_TRACED = 125, KILLED = 126 };

/* What happens at call number `at` (of those that count): SIGKILL, or failure with `error`. */
typedef struct fault {
    int64_t at;
    int error;        /* KILL, or an errno */
    bool hit;         /* the job made that many calls */
    long call;        /* that was hit */
    char *synced;     /* [SYNCED_BYTES] or NULL: paths that were fsynced, a line each */
    int fsyncs_after; /* since the last rename */
} fault;

typedef struct job {
    kd_status (*run)(const struct job *job);
    const char *out;
    const kd_checkpoint *checkpoint;
    int64_t limit; /* bytes */
} job;

/* Where a fault counts: a kill before each call that changes what others see of the files (between
 * two such calls nothing does), a failure of any call on a file.  Elsewhere than on x86-64 a kill at
 * every call, and no failures. */
#if defined(__x86_64__)
static long call_of(pid_t child)
{
    struct user_regs_struct registers;
    cr_assert(ptrace(PTRACE_GETREGS, child, NULL, &registers) == 0);
    return (long)registers.orig_rax;
}

static bool counts(long call, int error)
{
    static const long changing[] = { SYS_pwrite64, SYS_rename, SYS_renameat2, SYS_mkdir,
                                     SYS_unlink,   SYS_rmdir,  SYS_unlinkat };
    static const long others[] = { SYS_openat, SYS_fsync, SYS_close, SYS_pread64, SYS_getdents64 };
    for (int i = 0; i < KD_COUNT(changing); i++)
        if (call == changing[i]) return true;
    for (int i = 0; i < KD_COUNT(others) && error != KILL; i++)
        if (call == others[i]) return true;
    return false;
}

/* A save that goes on after one of these failed has lied. */
static bool is_vital(long call)
{
    return call == SYS_pwrite64 || call == SYS_fsync || call == SYS_rename;
}

static void note_synced(pid_t child, char *synced)
{
    struct user_regs_struct registers;
    char link[64], path[512];
    cr_assert(ptrace(PTRACE_GETREGS, child, NULL, &registers) == 0);
    snprintf(link, sizeof link, "/proc/%ld/fd/%llu", (long)child,
             (unsigned long long)registers.rdi);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    const size_t used = strlen(synced);
    cr_assert(n > 0 && used + (size_t)n + 2 < SYNCED_BYTES);
    snprintf(synced + used, SYNCED_BYTES - used, "%.*s\n", (int)n, path);
}

static void count_fsync(pid_t child, fault *f, long call)
{
    if (call == SYS_fsync && f->synced) note_synced(child, f->synced);
    if (call == SYS_rename || call == SYS_renameat2) f->fsyncs_after = 0;
    f->fsyncs_after += call == SYS_fsync;
}

/* Entering: no call at all; leaving: its result. */
static void set_call(pid_t child, bool entering, int error)
{
    struct user_regs_struct registers;
    cr_assert(ptrace(PTRACE_GETREGS, child, NULL, &registers) == 0);
    if (entering)
        registers.orig_rax = (unsigned long long)-1;
    else
        registers.rax = (unsigned long long)-error;
    cr_assert(ptrace(PTRACE_SETREGS, child, NULL, &registers) == 0);
}
#else
static long call_of(pid_t child) { return (void)child, -1; }
static bool counts(long call, int error) { return (void)call, error == KILL; }
static bool is_vital(long call) { return (void)call, false; }
static void count_fsync(pid_t child, fault *f, long call) { (void)child, (void)f, (void)call; }
static void set_call(pid_t child, bool entering, int error)
{
    (void)child, (void)entering, (void)error;
}
#endif

static int finish(pid_t child, int state)
{
    while (!WIFEXITED(state) && !WIFSIGNALED(state))
        if (waitpid(child, &state, 0) != child) return KILLED;
    return WIFEXITED(state) ? WEXITSTATUS(state) : KILLED;
}

static int options_refused(pid_t child, int state)
{
    kill(child, SIGKILL);
    (void)finish(child, state);
    return NOT_TRACED;
}

/* True when the child was killed; else it is to go on. */
static bool enter(pid_t child, fault *f, int64_t *seen, bool *failing)
{
    const long call = call_of(child);
    count_fsync(child, f, call);
    if (f->hit || !counts(call, f->error) || (*seen)++ != f->at) return false;
    f->hit = true;
    f->call = call;
    if (f->error == KILL) return kill(child, SIGKILL) == 0;
    set_call(child, true, 0);
    *failing = true;
    return false;
}

static int trace(pid_t child, fault *f)
{
    int state, signal_number = 0;
    int64_t seen = 0;
    bool inside = false, failing = false;
    if (waitpid(child, &state, 0) != child || !WIFSTOPPED(state)) return finish(child, state);
    if (ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) != 0)
        return options_refused(child, state);
    for (;;) {
        ptrace(PTRACE_SYSCALL, child, NULL, (void *)(intptr_t)signal_number);
        if (waitpid(child, &state, 0) != child || !WIFSTOPPED(state)) return finish(child, state);
        signal_number = WSTOPSIG(state);
        if (signal_number != (SIGTRAP | 0x80)) continue;
        signal_number = 0;
        inside = !inside;
        if (failing) set_call(child, false, f->error);
        failing = false;
        if (inside && enter(child, f, &seen, &failing)) return finish(child, state);
    }
}

/* The status of the job; KILLED; or NOT_TRACED where tracing is forbidden. */
static int run_with_fault(const job *j, fault *f)
{
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(NOT_TRACED);
        raise(SIGSTOP);
        _exit((int)j->run(j));
    }
    return trace(child, f);
}

static kd_status save_job(const job *j)
{
    return kd_checkpoint_save(NULL, NULL, j->out, j->checkpoint);
}

static kd_status no_job(const job *j) { return (void)j, KD_OK; }

static kd_status rotate_job(const job *j) { return kd_checkpoint_rotate(j->out, 1, 1); }

static bool can_trace(void)
{
    const job nothing = { .run = no_job };
    fault never = { .at = INT64_MAX, .error = KILL };
    if (run_with_fault(&nothing, &never) == KD_OK) return true;
    fprintf(stderr, "skipped: no process may be traced here\n");
    return false;
}

/* ---- two states of a run ---------------------------------------------------------------------- */

static const test_run_options options = { .dtype = KD_BF16, .moments = 2, .count = 2 };

/* runs[0] is saved whole, then runs[1] is being saved; `loaded` is what comes back. */
typedef struct scene {
    test_run runs[2], loaded;
    void *bits[2];
    char out[128];
} scene;

static void open_scene(scene *s, int64_t before, int64_t after)
{
    test_log();
    snprintf(s->out, sizeof s->out, "%s", test_folder());
    test_run_open(&s->loaded, options);
    for (int i = 0; i < 2; i++) {
        test_run_open(&s->runs[i], options);
        test_run_fill(&s->runs[i], 1 + (uint64_t)i, i ? after : before);
        s->bits[i] = test_run_copy(&s->runs[i]);
    }
}

static void close_scene(scene *s)
{
    test_ok(kd_dir_remove(s->out));
    test_run_close(&s->loaded);
    for (int i = 0; i < 2; i++) {
        free(s->bits[i]);
        test_run_close(&s->runs[i]);
    }
}

static void reset(scene *s)
{
    test_ok(kd_dir_remove(s->out));
    test_ok(kd_checkpoint_save(NULL, NULL, s->out, &s->runs[0].checkpoint));
}

/* Which of the two states is found; fails when it is neither, or not with its bits. */
static int found_state(scene *s, const char *name)
{
    kd_progress progress;
    const char *dir;
    test_ok(kd_checkpoint_latest(&dir, s->loaded.arena, s->out));
    cr_assert(dir != NULL, "%s: no good checkpoint is left", name);
    cr_assert(test_count(s->out, ".") == 0, "%s: something was left and not swept", name);
    test_run_spoil(&s->loaded);
    test_ok(kd_checkpoint_load(&progress, dir, &s->loaded.checkpoint));
    const int64_t tokens = s->runs[1].checkpoint.progress.tokens;
    const int state = progress.tokens == tokens;
    cr_assert(progress.step == s->runs[state].checkpoint.progress.step &&
                  test_run_equals(&s->loaded, s->bits[state]),
              "%s: state %d came back with other bits", name, state);
    return state;
}

/* ---- faults in a save ------------------------------------------------------------------------- */

/* Returns whether the save made more than `at` calls. */
static bool save_with_fault(scene *s, int64_t at, int error)
{
    char name[64];
    snprintf(name, sizeof name, "%s at call %lld", error == KILL ? "kill" : strerror(error),
             (long long)at);
    const job j = { .run = save_job, .out = s->out, .checkpoint = &s->runs[1].checkpoint };
    fault f = { .at = at, .error = error };
    const int status = run_with_fault(&j, &f);
    const int left = test_count(s->out, ".tmp-");
    const int state = found_state(s, name);
    cr_assert(status != KD_OK || state == 1, "%s: said to be saved, and is not", name);
    cr_assert(status != KD_OK || !f.hit || !is_vital(f.call), "%s: call %ld failed unnoticed", name,
              f.call);
    cr_assert(f.hit || status == KD_OK, "%s: status %d of a save without a fault", name, status);
    if (error != KILL && status != KD_OK)
        cr_assert(left == 0, "%s: a failed save left its staging", name);
    if (state == 1) reset(s); /* else the sweep has left what reset would make */
    return f.hit;
}

static void every_fault(scene *s, int error, const char *name)
{
    int64_t at = 0;
    reset(s);
    while (save_with_fault(s, at++, error)) continue;
    /* A save that makes no calls would pass all of the above. */
    cr_assert(at > 60, "%s: only %lld calls were seen", name, (long long)at);
}

/* Every file and folder before the rename, and after it the folder that the name is in. */
static void expect_fsyncs(scene *s)
{
    static const char *const ends[] = {
        "config.json.",       "trainer_state.json.", "model.safetensors.",
        "engine/state.json.", "engine/config.json.", "engine/optimizer.safetensors.",
        "MANIFEST.json.",     "pupil/config.json.",  "pupil/model.safetensors.",
        "/engine\n",          "/students\n",         "/students/pupil\n"
    };
    char synced[SYNCED_BYTES] = "", top[256];
    const job j = { .run = save_job, .out = s->out, .checkpoint = &s->runs[1].checkpoint };
    fault never = { .at = INT64_MAX, .error = KILL, .synced = synced };
    reset(s);
    cr_assert(run_with_fault(&j, &never) == KD_OK);
    for (int i = 0; i < KD_COUNT(ends); i++)
        cr_assert(strstr(synced, ends[i]), "%s: never fsynced; only\n%s", ends[i], synced);
    cr_assert(never.fsyncs_after == 1, "%d fsyncs after the rename, expected that of the parent",
              never.fsyncs_after);
    snprintf(top, sizeof top, "\n%s\n", s->out);
    cr_assert(strstr(synced, top), "%s: never fsynced", s->out);
}

Test(faults, in_a_save_leave_the_old_or_the_new)
{
    scene s;
    if (!can_trace()) return;
    open_scene(&s, 1, 2);
    s.runs[1].checkpoint.progress.tokens = 5;
    every_fault(&s, KILL, "killed");
#if defined(__x86_64__)
    every_fault(&s, ENOSPC, "full disk");
    expect_fsyncs(&s);
#endif
    close_scene(&s);

    /* In place of a good folder of the same step, the only one there is. */
    open_scene(&s, 2, 2);
    s.runs[1].checkpoint.progress.tokens = 5;
    every_fault(&s, KILL, "replaced, killed");
#if defined(__x86_64__) /* elsewhere nothing is made to fail */
    every_fault(&s, EIO, "replaced, failed");
#endif
    close_scene(&s);
}

Test(faults, in_a_rotation_leave_the_best_and_the_newest)
{
    scene s;
    if (!can_trace()) return;
    open_scene(&s, 1, 3);
    s.runs[1].checkpoint.progress.tokens = 5;
    const job j = { .run = rotate_job, .out = s.out };
    fault f = { .hit = true, .error = KILL };
    int64_t at = 0;
    for (; f.hit; at++) {
        char name[64];
        snprintf(name, sizeof name, "rotation killed at call %lld", (long long)at);
        reset(&s);
        s.runs[0].checkpoint.progress.step = 2;
        test_ok(kd_checkpoint_save(NULL, NULL, s.out, &s.runs[0].checkpoint));
        s.runs[0].checkpoint.progress.step = 1;
        test_ok(kd_checkpoint_save(NULL, NULL, s.out, &s.runs[1].checkpoint));
        f = (fault){ .at = at, .error = KILL };
        (void)run_with_fault(&j, &f);
        cr_assert(!test_exists(s.out, "checkpoint-000002") ||
                      kd_checkpoint_verify(test_path(s.out, "checkpoint-000002")) == KD_OK,
                  "%s: half of a checkpoint has a checkpoint's name", name);
        cr_assert(found_state(&s, name) == 1, "%s: the newest is gone", name);
        test_ok(kd_checkpoint_verify(test_path(s.out, "checkpoint-000001")));
        test_ok(kd_checkpoint_rotate(s.out, 1, 1));
        cr_assert(test_count(s.out, "") == 2, "%s: %d entries, expected 2", name,
                  test_count(s.out, ""));
    }
    cr_assert(at > 10, "only %lld calls were seen", (long long)at);
    close_scene(&s);
}

/* ---- disks that are full ---------------------------------------------------------------------- */

/* Files may not grow past a limit: every kind of file fails once. */
static kd_status limited_job(const job *j)
{
    const struct rlimit limit = { (rlim_t)j->limit, (rlim_t)j->limit };
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return KD_EINTERNAL;
    const kd_status status = save_job(j);
    return status == KD_EIO && !strstr(kd_last_error(), "not saved") ? KD_EINTERNAL : status;
}

/* A real full disk of `limit` bytes with an old checkpoint on it, in a mount of our own. */
static kd_status full_disk_job(const job *j)
{
    char size[64];
    kd_progress progress;
    snprintf(size, sizeof size, "size=%lld", (long long)j->limit);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("kd", j->out, "tmpfs", 0, size) != 0)
        _exit(NOT_TRACED);
    kd_checkpoint next = *j->checkpoint;
    if (save_job(j) != KD_OK) return KD_ENOMEM;
    next.progress.step++;
    const kd_status status = kd_checkpoint_save(NULL, NULL, j->out, &next);
    if (status != KD_EIO || !strstr(kd_last_error(), "No space left") ||
        !strstr(kd_last_error(), "needed"))
        return KD_EINTERNAL;
    KD_TRY(kd_checkpoint_load(&progress, test_path(j->out, "checkpoint-000001"), j->checkpoint));
    return test_count(j->out, "") == 1 ? KD_EIO : KD_EINTERNAL;
}

static int run_in_child(const job *j)
{
    const pid_t child = fork();
    int state = 0;
    cr_assert(child >= 0);
    if (child == 0) _exit((int)j->run(j));
    cr_assert(waitpid(child, &state, 0) == child);
    return finish(child, state);
}

Test(faults, of_a_full_disk_leave_the_old_checkpoint)
{
    scene s;
    static const int64_t limits[] = { 0, 100, 700, 1000, 3000, 6000, 12000, 20000 };
    int failed = 0;
    open_scene(&s, 1, 2);
    s.runs[1].checkpoint.progress.tokens = 5;
    for (int i = 0; i < KD_COUNT(limits); i++) {
        reset(&s);
        const job j = { limited_job, s.out, &s.runs[1].checkpoint, limits[i] };
        const int status = run_in_child(&j);
        cr_assert(status == KD_EIO || status == KD_OK, "limit %lld: status %d",
                  (long long)limits[i], status);
        cr_assert(test_count(s.out, "") == (status == KD_OK ? 2 : 1), "limit %lld: left behind",
                  (long long)limits[i]);
        cr_assert(found_state(&s, "limit") == (status == KD_OK));
        failed += status == KD_EIO;
    }
    cr_assert(failed > 5, "only %d limits were felt", failed);

    const job full = { full_disk_job, s.out, &s.runs[0].checkpoint, 200000 };
    const int status = run_in_child(&full);
    if (status == NOT_TRACED)
        fprintf(stderr, "skipped: nothing may be mounted here\n");
    else
        cr_assert(status == KD_EIO, "full disk: status %d", status);

    /* Where no folder can be made at all. */
    test_refused(kd_checkpoint_save(NULL, NULL, "/proc/kd/out", &s.runs[0].checkpoint), KD_EIO,
                 "/proc/kd");
    close_scene(&s);
}
