#include "support/tracer.h"

#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef KD_COVERAGE
#include <gcov.h>
#endif

/* ---- children --------------------------------------------------------------------------------- */

static void keep_line(void *context, kd_log_level level, const char *line)
{
    test_child *child = context;
    const size_t used = strlen(child->log);
    (void)level;
    if (used + strlen(line) + 2 < sizeof child->log) sprintf(child->log + used, "%s\n", line);
}

/* Shared with the children. */
static test_child *shared_child(void)
{
    static test_child *child;
    if (!child) {
        void *memory =
            mmap(NULL, sizeof *child, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        cr_assert(memory != MAP_FAILED);
        child = memory;
    }
    child->status = TEST_KILLED;
    child->done = false;
    child->message[0] = child->log[0] = '\0';
    return child;
}

void test_exit(int status)
{
#ifdef KD_COVERAGE
    __gcov_dump();
#endif
    _exit(status);
}

static void run_job(test_child *child, test_job job, const void *context)
{
    kd_log_redirect(keep_line, child);
    const int status = job(context);
    snprintf(child->message, sizeof child->message, "%s", kd_last_error());
    child->done = true;
    test_exit(status);
}

static void finish(test_child *child, pid_t pid, int state)
{
    while (!WIFEXITED(state) && !WIFSIGNALED(state))
        if (waitpid(pid, &state, 0) != pid) return;
    child->status = WIFEXITED(state) ? WEXITSTATUS(state) : TEST_KILLED;
}

const test_child *test_in_child(test_job job, const void *context)
{
    test_child *child = shared_child();
    int state = 0;
    const pid_t pid = fork();
    cr_assert(pid >= 0);
    if (pid == 0) run_job(child, job, context);
    cr_assert(waitpid(pid, &state, 0) == pid);
    finish(child, pid, state);
    return child;
}

#if defined(__x86_64__)
#include <sys/user.h>

/* ---- calls ------------------------------------------------------------------------------------ */

void test_child_read(pid_t child, void *to, uint64_t from, size_t bytes)
{
    const struct iovec local = { to, bytes }, remote = { (void *)(uintptr_t)from, bytes };
    cr_assert(process_vm_readv(child, &local, 1, &remote, 1, 0) == (ssize_t)bytes);
}

/* Up to its NUL, without touching a page behind it. */
static void read_text(pid_t child, char text[TEST_PATH], uint64_t from)
{
    const size_t page = 4096;
    for (size_t used = 0; used < TEST_PATH;) {
        const size_t room = page - (from + used) % page, left = TEST_PATH - used;
        const size_t n = room < left ? room : left;
        test_child_read(child, text + used, from + used, n);
        if (memchr(text + used, '\0', n)) return;
        used += n;
    }
    text[TEST_PATH - 1] = '\0';
}

static void path_of_descriptor(pid_t child, char path[TEST_PATH], uint64_t fd)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/%ld/fd/%d", (long)child, (int)fd);
    const ssize_t n = readlink(link, path, TEST_PATH - 1);
    path[n > 0 ? n : 0] = '\0';
}

static void path_at(pid_t child, char path[TEST_PATH], uint64_t fd, uint64_t name)
{
    char below[TEST_PATH];
    read_text(child, path, name);
    if (path[0] == '/' || (int)fd == AT_FDCWD) return;
    memcpy(below, path, sizeof below);
    path_of_descriptor(child, path, fd);
    const size_t used = strlen(path);
    if (below[0]) snprintf(path + used, TEST_PATH - used, "/%.*s", TEST_PATH / 2, below);
}

static void find_paths(test_call *c)
{
    c->paths[0][0] = c->paths[1][0] = '\0';
    switch (c->number) {
    case SYS_write:
    case SYS_pwrite64:
    case SYS_pread64:
    case SYS_ftruncate:
    case SYS_fsync:
    case SYS_flock:
    case SYS_close:
    case SYS_getdents64: path_of_descriptor(c->child, c->paths[0], c->args[0]); break;
    case SYS_rename: read_text(c->child, c->paths[1], c->args[1]); /* fall through */
    case SYS_mkdir:
    case SYS_rmdir:
    case SYS_statfs:
    case SYS_unlink: read_text(c->child, c->paths[0], c->args[0]); break;
    case SYS_renameat2: path_at(c->child, c->paths[1], c->args[2], c->args[3]); /* fall through */
    case SYS_openat:
    case SYS_unlinkat: path_at(c->child, c->paths[0], c->args[0], c->args[1]); break;
    default: break;
    }
}

static bool is_below(const char *path, const char *folder)
{
    const size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

static bool is_in(long number, const long *list, int count)
{
    for (int i = 0; i < count; i++)
        if (number == list[i]) return true;
    return false;
}

static bool counts(const test_trace *t, const test_call *c)
{
    static const long changing[] = { SYS_write,  SYS_pwrite64,  SYS_ftruncate,
                                     SYS_rename, SYS_renameat2, SYS_mkdir,
                                     SYS_unlink, SYS_rmdir,     SYS_unlinkat };
    static const long moving[] = { SYS_write, SYS_pwrite64, SYS_pread64 };
    if (!c->paths[0][0] || (t->below && !is_below(c->paths[0], t->below))) return false;
    if (t->only && c->number != t->only) return false;
    const bool creates = c->number == SYS_openat && (c->args[2] & O_CREAT);
    switch (t->harm) {
    case TEST_WATCH: return true;
    case TEST_KILL: return creates || is_in(c->number, changing, KD_COUNT(changing));
    case TEST_SHORT: return is_in(c->number, moving, KD_COUNT(moving)) && c->args[2] > 1;
    case TEST_FAIL:
        return t->error != EINTR || c->number == SYS_fsync ||
               is_in(c->number, moving, KD_COUNT(moving));
    }
    return false;
}

/* ---- stopping at them ------------------------------------------------------------------------- */

static struct user_regs_struct registers_of(pid_t pid)
{
    struct user_regs_struct registers;
    cr_assert(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0);
    return registers;
}

typedef struct stop {
    pid_t pid;
    test_call call;
    int64_t counted;
    bool counting;
    int error; /* of a call that was not let through; 0: it was */
} stop;

static void set_registers(pid_t pid, struct user_regs_struct *registers)
{
    cr_assert(ptrace(PTRACE_SETREGS, pid, NULL, registers) == 0);
}

static void refuse(stop *s, struct user_regs_struct *registers, int error)
{
    s->error = error;
    registers->orig_rax = (unsigned long long)-1; /* no call at all */
    set_registers(s->pid, registers);
}

/* False: the child was killed. */
static bool enter(test_trace *t, stop *s)
{
    struct user_regs_struct r = registers_of(s->pid);
    s->call = (test_call){ .child = s->pid,
                           .number = (long)r.orig_rax,
                           .args = { r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9 } };
    find_paths(&s->call);
    s->counting = counts(t, &s->call);
    if (t->no_exchange && s->call.number == SYS_renameat2) {
        s->counting = false;
        refuse(s, &r, EINVAL);
    }
    if (!s->counting) return true;
    const int64_t number = s->counted++;
    if (t->harm == TEST_WATCH || number < t->at || (number > t->at && !t->onwards)) return true;
    if (!t->hit) t->victim = s->call;
    t->hit = true;
    if (t->harm == TEST_KILL) return kill(s->pid, SIGKILL) != 0;
    if (t->harm == TEST_FAIL) {
        refuse(s, &r, t->error);
    } else {
        r.rdx /= 2;
        set_registers(s->pid, &r);
    }
    return true;
}

static void leave(const test_trace *t, stop *s)
{
    struct user_regs_struct r = registers_of(s->pid);
    if (s->error) {
        r.rax = (unsigned long long)-s->error;
        set_registers(s->pid, &r);
        s->error = 0;
    }
    s->call.result = (int64_t)r.rax;
    if (s->counting && t->seen && s->call.result >= 0) t->seen(t->context, &s->call);
}

/* Until the child ends or its job is done; the state then. */
static int follow(test_trace *t, const test_child *child, pid_t pid)
{
    stop s = { .pid = pid };
    int state = 0, signal_number = 0;
    for (bool inside = false, alive = true; alive;) {
        ptrace(PTRACE_SYSCALL, pid, NULL, (void *)(intptr_t)signal_number);
        if (waitpid(pid, &state, 0) != pid || !WIFSTOPPED(state)) break;
        signal_number = WSTOPSIG(state);
        if (signal_number != (SIGTRAP | 0x80)) continue;
        signal_number = 0;
        inside = !inside;
        if (inside && child->done) {
            (void)ptrace(PTRACE_DETACH, pid, NULL, NULL);
            break;
        }
        if (inside)
            alive = enter(t, &s);
        else
            leave(t, &s);
    }
    return state;
}

const test_child *test_traced(test_trace *t, test_job job, const void *context)
{
    test_child *child = shared_child();
    int state = 0;
    t->hit = false;
    const pid_t pid = fork();
    cr_assert(pid >= 0);
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(TEST_NOT_TRACED);
        raise(SIGSTOP);
        run_job(child, job, context);
    }
    if (waitpid(pid, &state, 0) == pid && WIFSTOPPED(state)) {
        const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
        if (ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)options) == 0) {
            state = follow(t, child, pid);
        } else {
            kill(pid, SIGKILL);
            finish(child, pid, state);
            child->status = TEST_NOT_TRACED;
            return child;
        }
    }
    finish(child, pid, state);
    return child;
}

static int nothing(const void *context) { return (void)context, 0; }

bool test_can_trace(void)
{
    test_trace watch = { .harm = TEST_WATCH };
    if (test_traced(&watch, nothing, NULL)->status == 0) return true;
    fprintf(stderr, "skipped: no process may be traced here\n");
    return false;
}

#else

bool test_can_trace(void)
{
    fprintf(stderr, "skipped: system calls are traced on x86-64 only\n");
    return false;
}

const test_child *test_traced(test_trace *t, test_job job, const void *context)
{
    (void)t, (void)job, (void)context;
    return shared_child();
}

void test_child_read(pid_t child, void *to, uint64_t from, size_t bytes)
{
    (void)child, (void)to, (void)from, (void)bytes;
}

#endif
