/*
 * tracer.h - jobs in a child process, which may be stopped at its system calls (ptrace): killed
 * there, made to fail, or written down.  No timing: every place is met once.
 *
 * Traced is the child's first thread, which is the one that writes; x86-64 only.
 */
#ifndef KD_TEST_TRACER_H
#define KD_TEST_TRACER_H

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* What a child left: its exit status, or TEST_KILLED. */
enum { TEST_NOT_TRACED = 125, TEST_KILLED = 126 };
typedef struct test_child {
    int status;
    bool done;          /* the job is: what the child does then is no part of it */
    char message[1024]; /* kd_last_error() */
    char log[16384];    /* lines that it logged */
} test_child;

/* Runs `job` in a child and waits; what it returns is the child's exit status.  The answer is static
 * and valid until the next child. */
typedef int (*test_job)(const void *context);
const test_child *test_in_child(test_job job, const void *context);

/* Ends a child at once, and keeps what it reached where a build counts that. */
_Noreturn void test_exit(int status);

enum { TEST_PATH = 512 };
typedef struct test_call {
    pid_t child;
    long number;
    uint64_t args[6];
    int64_t result;           /* when it has returned */
    char paths[2][TEST_PATH]; /* of the file that it names or has open; the second of a rename */
} test_call;

typedef enum test_harm {
    TEST_WATCH, /* none: every call counts */
    TEST_KILL, /* SIGKILL before a call that changes what others see: between two such, nothing does */
    TEST_FAIL, /* a call on a file that fails with `error`; EINTR: a read, write or fsync */
    TEST_SHORT /* a read or write of half the bytes */
} test_harm;

typedef struct test_trace {
    const char *below; /* calls on files in this folder count, and on itself; NULL: all */
    test_harm harm;
    int error;
    long only;        /* calls of this number count; 0: of any */
    int64_t at;       /* the call, of those that count */
    bool onwards;     /* and all after it */
    bool no_exchange; /* two names cannot be exchanged, as on some file systems */
    void (*seen)(void *context,
                 const test_call *call); /* after each call that succeeded; or NULL */
    void *context;
    bool hit;         /* what happened: `at` was met, by this call */
    test_call victim; /* the first */
} test_trace;

const test_child *test_traced(test_trace *trace, test_job job, const void *context);

/* False, and says so, where no process may be traced. */
bool test_can_trace(void);

/* Copies `bytes` from the address space of a stopped child. */
void test_child_read(pid_t child, void *to, uint64_t from, size_t bytes);

#endif
