/*
 * plain.c - main of the runner described in criterion/criterion.h.
 *
 *     test_x [PART ...]      only the tests with a PART in their names
 *
 * This process starts no thread and runs no test, so that its children are as clean as new programs.
 */
#include <criterion/criterion.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SKIPPED = 77 };

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

/* exit(), because the sanitizers speak at exit. */
static void run(const plain_test *test)
{
    if (test->init) test->init();
    test->run();
    if (test->fini) test->fini();
    exit(failures > 0);
}

static int status_of_child(const plain_test *test)
{
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) run(test);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static bool wanted(const plain_test *test, char **parts)
{
    if (!*parts) return true;
    for (; *parts; parts++)
        if (strstr(test->name, *parts)) return true;
    return false;
}

int main(int argc, char **argv)
{
    (void)argc;
    int passed = 0, failed = 0, skipped = 0;
    for (const plain_test *test = plain_tests; test; test = test->next) {
        if (!wanted(test, argv + 1)) continue;
        fprintf(stderr, "%s\n", test->name);
        const int status = status_of_child(test);
        passed += status == 0;
        skipped += status == SKIPPED;
        if (status == 0 || status == SKIPPED) continue;
        failed++;
        fprintf(stderr, "%s: failed with status %d\n", test->name, status);
    }
    fprintf(stderr, "%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return passed > 0 && failed == 0 ? 0 : 1;
}
