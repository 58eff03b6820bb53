/*
 * The run is traced (ptrace), so that a signal comes at a certain system call, or raises it itself at a
 * certain piece of its work (work.c): no timing, every place can be hit once.
 */
#include "stopping/stopped.h"

#include <errno.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOT_TRACED = 125, KILLED = 126 };

/* What a run in a process of its own tells. */
typedef struct told {
    work work;
    char message[1024];
} told;

/* ---- a run in a process ----------------------------------------------------------------------- */

/* Threads of OpenMP do not outlive a fork; one has none. */
static void run(const stopped *s, const char *out)
{
    omp_set_num_threads(1);
    const kd_status status = test_train(&s->training, out);
    told *t = (told *)(void *)test_work;
    if (t) snprintf(t->message, sizeof t->message, "%s", kd_last_error());
    _exit((int)status);
}

static int result_of(int state)
{
    if (WIFEXITED(state)) return WEXITSTATUS(state);
    return WTERMSIG(state) == SIGINT || WTERMSIG(state) == SIGKILL ? KILLED : -WTERMSIG(state);
}

static int train_apart(const stopped *s, const char *out)
{
    int state;
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) run(s, out);
    cr_assert(waitpid(child, &state, 0) == child);
    return result_of(state);
}

/* ---- tracing ---------------------------------------------------------------------------------- */

typedef struct trace {
    const hit *hit;
    int64_t calls;  /* so far */
    uint64_t asked; /* the last signal that a handler was for */
    bool armed;     /* the run heeds signals */
    bool done;
} trace;

static bool next_call(struct __ptrace_syscall_info *info, pid_t child, int *state)
{
    int signal_number = 0;
    for (;;) {
        ptrace(PTRACE_SYSCALL, child, NULL, (void *)(intptr_t)signal_number);
        cr_assert(waitpid(child, state, 0) == child);
        if (!WIFSTOPPED(*state)) return false;
        signal_number = WSTOPSIG(*state);
        if (signal_number != (SIGTRAP | 0x80)) continue;
        signal_number = 0;
        if (ptrace(PTRACE_GET_SYSCALL_INFO, child, (void *)sizeof *info, info) <= 0) return false;
        if (info->op == PTRACE_SYSCALL_INFO_ENTRY) return true;
    }
}

/* How often it waits depends on other threads; calls about memory do nothing that is left, and no
 * signal ends them early. */
static bool counts(uint64_t call)
{
    static const uint64_t others[] = { SYS_futex,    SYS_mmap,    SYS_munmap, SYS_brk,
                                       SYS_mprotect, SYS_madvise, SYS_mremap, SYS_sched_yield };
    for (int i = 0; i < KD_COUNT(others); i++)
        if (call == others[i]) return false;
    return true;
}

/* kd_stop_install asks for INT after USR1; nobody else does, though a runtime library may ask. */
static void arm(trace *t, uint64_t signal_number)
{
    t->armed |= signal_number == SIGINT && t->asked == SIGUSR1;
    t->asked = signal_number;
}

static void enter(trace *t, const struct __ptrace_syscall_info *info, pid_t child)
{
    if (info->entry.nr == SYS_rt_sigaction) arm(t, info->entry.args[0]);
    if (!t->armed || !counts(info->entry.nr)) return;
    const int64_t call = t->calls++ - t->hit->call;
    if (call != 0 && !(t->hit->twice && call == 1)) return;
    t->done = !t->hit->twice || call == 1;
    test_work->hit = true;
    cr_assert(syscall(SYS_tgkill, child, child, t->hit->signal) == 0);
}

static int trace_run(const stopped *s, const char *out, trace *t)
{
    int state;
    struct __ptrace_syscall_info info;
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(NOT_TRACED);
        raise(SIGSTOP);
        run(s, out);
    }
    cr_assert(waitpid(child, &state, 0) == child);
    if (!WIFSTOPPED(state)) return result_of(state);
    cr_assert(ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) ==
              0);
    while (next_call(&info, child, &state)) enter(t, &info, child);
    if (WIFSTOPPED(state)) { /* this kernel does not tell which call it is */
        kill(child, SIGKILL);
        (void)waitpid(child, &state, 0);
        return NOT_TRACED;
    }
    return result_of(state);
}

/* ---- what a run leaves ------------------------------------------------------------------------ */

static int64_t newest_step(const char *out)
{
    int64_t step = STOPPED_STEPS;
    for (; step > 0; step--) {
        char name[64];
        snprintf(name, sizeof name, KD_CHECKPOINT_NAME, (long long)step);
        if (test_exists(out, name)) break;
    }
    return step;
}

static char *records(const char *out, bool evaluations)
{
    if (test_exists(out, "metrics.jsonl")) return test_metrics(out, evaluations);
    char *none = calloc(1, 1);
    cr_assert(none != NULL);
    return none;
}

/* Every whole step is saved, as it is in a run that saves each, and nothing is half there. */
static void check_stopped(stopped *s, const char *out, const char *name)
{
    const int64_t step = newest_step(out);
    int64_t taken = 0;
    char *text = records(out, false);
    for (const char *at = text; (at = strchr(at, '\n')); at++) taken++;
    free(text);
    cr_assert(step == taken, "%s: stopped after %lld steps with a checkpoint of step %lld", name,
              (long long)taken, (long long)step);
    s->steps |= 1u << step;
    if (step == 0) return;
    cr_assert(test_count(out, ".tmp-") == 0, "%s: something is half there", name);
    char dir[64];
    snprintf(dir, sizeof dir, KD_CHECKPOINT_NAME, (long long)step);
    test_ok(kd_checkpoint_verify(test_path(out, dir)));
    test_same_checkpoint(s->every, out, step);
}

static void check_finished(const stopped *s, const char *out, const char *name)
{
    char left[600], right[600];
    snprintf(left, sizeof left, "%s/checkpoint-%06d", s->whole, STOPPED_STEPS);
    snprintf(right, sizeof right, "%s/checkpoint-%06d", out, STOPPED_STEPS);
    test_same_file(s->whole, out, "model.safetensors");
    test_same_file(s->whole, out, "config.json");
    test_same_file(left, right, "engine/optimizer.safetensors");
    test_same_file(left, right, "trainer_state.json");
    char *want = records(s->whole, true), *got = records(out, true);
    test_same_text(got, want, name);
    free(want);
    free(got);
}

/* All that decides how a run goes on from there. */
static kd_hash state_of(const char *out)
{
    static const char *const deciding[] = { "trainer_state.json", "engine/optimizer.safetensors",
                                            "model.safetensors" };
    char all[4096] = "", dir[64];
    kd_hash hash;
    const int64_t step = newest_step(out);
    char *text = records(out, true);
    hash = kd_hash_bytes(text, strlen(text));
    free(text);
    strcat(all, hash.hex);
    snprintf(dir, sizeof dir, KD_CHECKPOINT_NAME, (long long)step);
    for (int i = 0; i < KD_COUNT(deciding) && step > 0; i++) {
        char file[128];
        snprintf(file, sizeof file, "%s/%s", dir, deciding[i]);
        test_ok(kd_hash_file(&hash, test_path(out, file)));
        strcat(all, hash.hex);
    }
    return kd_hash_bytes(all, strlen(all));
}

/* What was seen once need not be taken to its end again. */
static bool is_new(stopped *s, const char *out)
{
    const kd_hash state = state_of(out);
    for (int i = 0; i < s->seen_count; i++)
        if (strcmp(s->seen[i].hex, state.hex) == 0) return false;
    cr_assert(s->seen_count < STOPPED_SEEN);
    s->seen[s->seen_count++] = state;
    return true;
}

/* ---- one hit ---------------------------------------------------------------------------------- */

static void go_on(stopped *s, const char *out, const char *name)
{
    const int status = train_apart(s, "hit");
    cr_assert(status == KD_OK, "%s: status %d of the run that goes on", name, status);
    check_finished(s, out, name);
}

static void check(stopped *s, const hit *h, const char *out, int status, const char *name)
{
    const told *t = (const told *)(const void *)test_work;
    /* The last file that a run publishes; then there is nothing to go on with. */
    if (status == KD_OK || (status == KILLED && test_exists(out, "config.json"))) {
        check_finished(s, out, name);
        return;
    }
    if (status == KILLED && (h->twice || h->signal == SIGKILL)) {
        go_on(s, out, name);
        return;
    }
    cr_assert(status == KD_ESTOPPED && strstr(t->message, "(exit 75)"), "%s: status %d, \"%s\"",
              name, status, t->message);
    cr_assert(t->work.batches <= (h->call >= 0), "%s: %lld micro-batches were begun after it", name,
              (long long)t->work.batches);
    s->reads += strstr(t->message, ": asked to stop") && !strstr(t->message, "(step ");
    check_stopped(s, out, name);
    if (is_new(s, out)) go_on(s, out, name);
}

/* Returns its status; `done`: it was hit. */
static int run_hit(const stopped *s, const hit *h, bool *done)
{
    told *t = (told *)(void *)test_work;
    trace tr = { .hit = h };
    *t = (told){ .work = { .signal = h->signal, .at = h->piece } };
    const int status = h->call < 0 ? train_apart(s, "hit") : trace_run(s, "hit", &tr);
    *done = h->call < 0 ? t->work.hit : tr.done;
    t->work.at = -1;
    return status;
}

bool stopped_once(stopped *s, const hit *before, hit h)
{
    char name[96], out[512];
    bool done;
    snprintf(name, sizeof name, "%ssignal %d%s at %s %lld", before ? "after another, " : "",
             h.signal, h.twice ? " twice" : "", h.call < 0 ? "piece" : "call",
             (long long)(h.call < 0 ? h.piece : h.call));
    snprintf(out, sizeof out, "%s", test_path(s->training.folder, "hit"));
    test_ok(kd_dir_remove(out));
    if (before) (void)run_hit(s, before, &done);
    const int status = run_hit(s, &h, &done);
    const told *t = (const told *)(const void *)test_work;
    cr_assert(done || status == KD_OK, "%s: status %d without it: \"%s\"", name, status,
              t->message);
    check(s, &h, out, status, name);
    return done;
}

/* ---- opening ---------------------------------------------------------------------------------- */

static void reference(stopped *s, char path[512], const char *out)
{
    snprintf(path, 512, "%s", test_path(s->training.folder, out));
    const int status = train_apart(s, out);
    cr_assert(status == KD_OK, "%s: status %d", out, status);
}

bool stopped_open(stopped *s, const char *dtype, const char *keep_best)
{
    static const char *settings[][2] = { { "run.checkpoint.keep_best", NULL },
                                         { "run.steps", "4" },
                                         { "run.log_every", "1" },
                                         { "eval.every", "2 steps" },
                                         { "eval.tokens", "60" },
                                         { "run.checkpoint.every", "3 steps" } };
    const hit never = { .call = INT64_MAX };
    trace t = { .hit = &never };
    *s = (stopped){ .seen = calloc(STOPPED_SEEN, sizeof *s->seen) };
    settings[0][1] = keep_best;
    test_training_open(&s->training, dtype);
    test_work = mmap(NULL, sizeof(told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(s->seen && test_work != MAP_FAILED);
    test_work->at = -1;
    s->training.settings = settings;
    s->training.setting_count = KD_COUNT(settings) - 1; /* after every step, as usual */
    reference(s, s->every, "every");
    s->training.setting_count++;
    reference(s, s->whole, "whole");
    const int status = trace_run(s, "traced", &t);
    if (status != NOT_TRACED) return true;
    fprintf(stderr, "skipped: no process may be traced here\n");
    stopped_close(s);
    return false;
}

void stopped_close(stopped *s)
{
    munmap(test_work, sizeof(told));
    test_work = NULL;
    free(s->seen);
    test_training_close(&s->training);
}
