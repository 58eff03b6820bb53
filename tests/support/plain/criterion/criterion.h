/*
 * criterion.h - a stand-in for Criterion where that cannot run: ThreadSanitizer refuses the memory
 * that Criterion shares with its children.  Tests run one after another in this process; the first
 * that fails ends it.  Put this folder before Criterion's in the include path and link nothing.
 */
#ifndef KD_TEST_PLAIN_CRITERION_H
#define KD_TEST_PLAIN_CRITERION_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct plain_test {
    const char *name;
    void (*run)(void);
    struct plain_test *next;
} plain_test;

extern plain_test *plain_tests; /* plain.c */

#define Test(suite, test)                                                                          \
    static void suite##_##test##_run(void);                                                        \
    __attribute__((constructor)) static void suite##_##test##_register(void)                       \
    {                                                                                              \
        static plain_test entry = { #suite "/" #test, suite##_##test##_run, NULL };                \
        entry.next = plain_tests;                                                                  \
        plain_tests = &entry;                                                                      \
    }                                                                                              \
    static void suite##_##test##_run(void)

static inline void plain_check(const char *file, int line, int held, const char *fmt, ...)
{
    if (held) return;
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

/* The empty text at the end is the message of an assertion without one, and ignored otherwise. */
#define cr_assert(...) plain_check_(__VA_ARGS__, "assertion failed")
#define plain_check_(condition, ...)                                                               \
    plain_check(__FILE__, __LINE__, (condition) ? 1 : 0, __VA_ARGS__)
#define cr_assert_not(...)         plain_not_(__VA_ARGS__, "assertion failed")
#define plain_not_(condition, ...) plain_check_(!(condition), __VA_ARGS__)
#define cr_assert_eq(...)          plain_eq_(__VA_ARGS__, "values differ", "")
#define plain_eq_(a, b, ...)       plain_check_((a) == (b), __VA_ARGS__)
#define cr_assert_fail(...)        plain_check_(0, __VA_ARGS__, "")

#endif
