/*
 * plain.c - main of the runner described in criterion/criterion.h.
 *
 *     test_x [-j JOBS] [--timeout SECONDS] [--here 1] [PART ...]
 *
 * runs the tests with a PART in their names, or all; JOBS of them at a time, each for SECONDS at most.
 * With --here 1 they run in this process, one after the other until one ends it: compute-sanitizer does
 * not follow a fork.
 * Exit status: 0, or 1 when one failed or none has such a name, or 77 when all were skipped.
 * This process starts no thread and runs no test, so that its children are as clean as new programs.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SKIPPED = 77, MOST_AT_ONCE = 64 };

plain_test *plain_tests;

static int failures; /* of this test's expectations */

static void say(const char *fmt, va_list args)
{
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
}

void plain_check(const char *file, int line, bool fatal, bool held, const char *fmt, ...)
{
    if (held) return;
    fprintf(stderr, "%s:%d: ", file, line);
    va_list args;
    va_start(args, fmt);
    say(fmt, args);
    va_end(args);
    failures++;
    if (fatal) _exit(1); /* what it had allocated is no finding */
}

void plain_skip(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say(fmt, args);
    va_end(args);
    _exit(SKIPPED);
}

static void run(const plain_test *test)
{
    if (test->init) test->init();
    test->run();
    if (test->fini) test->fini();
}

typedef struct tally {
    int passed, failed, skipped;
} tally;

typedef struct child {
    pid_t process; /* 0: there is none */
    const plain_test *test;
} child;

static child children[MOST_AT_ONCE];

static void count(tally *found, const plain_test *test, int status)
{
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    found->passed += code == 0;
    found->skipped += code == SKIPPED;
    if (code == 0 || code == SKIPPED) return;
    found->failed++;
    fprintf(stderr, "%s: failed with status %d%s\n", test->name, code,
            code == 128 + SIGALRM ? ", out of time" : "");
}

/* Waits for any child. */
static void collect(tally *found)
{
    int status;
    const pid_t ended = wait(&status);
    for (int i = 0; i < MOST_AT_ONCE; i++) {
        if (ended <= 0 || children[i].process != ended) continue;
        children[i].process = 0;
        count(found, children[i].test, status);
    }
}

static void start(tally *found, const plain_test *test, unsigned seconds)
{
    int at = 0;
    while (children[at].process) at++;
    fprintf(stderr, "%s\n", test->name);
    fflush(NULL);
    const pid_t process = fork();
    if (process == 0) {
        alarm(seconds);
        run(test);
        exit(failures > 0); /* the sanitizers speak at exit */
    }
    if (process > 0)
        children[at] = (child){ process, test };
    else
        found->failed++;
}

static bool wanted(const plain_test *test, char **parts)
{
    if (!*parts) return true;
    for (; *parts; parts++)
        if (strstr(test->name, *parts)) return true;
    return false;
}

/* The number after an argument, which both are taken off the list. */
static int taken(char **argv, const char *name, int otherwise)
{
    for (char **at = argv; *at; at++) {
        if (strcmp(*at, name) != 0 || !at[1]) continue;
        otherwise = atoi(at[1]);
        do at[0] = at[2];
        while (*at++);
        break;
    }
    return otherwise;
}

static int run_here(char **parts)
{
    int count = 0;
    for (const plain_test *test = plain_tests; test; test = test->next) {
        if (!wanted(test, parts)) continue;
        fprintf(stderr, "%s\n", test->name);
        run(test);
        count++;
    }
    fprintf(stderr, "%d ran, %d expectations failed\n", count, failures);
    return count > 0 && failures == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    (void)argc;
    tally found = { 0, 0, 0 };
    const int jobs = taken(argv, "-j", 1), seconds = taken(argv, "--timeout", 0);
    if (taken(argv, "--here", 0)) return run_here(argv + 1);
    const int most = jobs < 1 ? 1 : jobs > MOST_AT_ONCE ? MOST_AT_ONCE : jobs;
    int started = 0;
    for (const plain_test *test = plain_tests; test; test = test->next) {
        if (!wanted(test, argv + 1)) continue;
        if (started >= most) collect(&found);
        start(&found, test, (unsigned)seconds);
        started++;
    }
    while (found.passed + found.failed + found.skipped < started) collect(&found);
    fprintf(stderr, "%d passed, %d failed, %d skipped\n", found.passed, found.failed,
            found.skipped);
    if (found.failed > 0 || started == 0) return 1;
    return found.passed > 0 ? 0 : SKIPPED;
}
