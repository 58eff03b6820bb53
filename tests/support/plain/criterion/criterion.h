/*
 * criterion.h - a stand-in for Criterion under a sanitizer.  ThreadSanitizer refuses the memory that
 * Criterion shares with its children, and Criterion lets a test pass that leaks.  Here a test is a
 * child process (plain.c) that ends as a program does: with LeakSanitizer's verdict.  Put this folder
 * before Criterion's in the include path and link nothing.  It offers what the tests use.
 */
#ifndef KD_TEST_PLAIN_CRITERION_H
#define KD_TEST_PLAIN_CRITERION_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct plain_test {
    const char *name;
    void (*run)(void);
    void (*init)(void), (*fini)(void); /* or NULL */
    double timeout;                    /* ctest's holds instead */
    struct plain_test *next;
} plain_test;

extern plain_test *plain_tests;

/* Says what does not hold.  The test ends there if `fatal`, else it goes on and fails at its end. */
void plain_check(const char *file, int line, bool fatal, bool held, const char *fmt, ...);

/* Ends the test as skipped. */
void plain_skip(const char *fmt, ...);

/* The last argument is there so that "..." is never empty, which C11 does not allow. */
#define Test(...) plain_test_(__VA_ARGS__, .next = NULL)
#define plain_test_(suite, test, ...)                                                              \
    static void suite##_##test##_run(void);                                                        \
    __attribute__((constructor)) static void suite##_##test##_register(void)                       \
    {                                                                                              \
        static plain_test entry = { #suite "/" #test, suite##_##test##_run, __VA_ARGS__ };         \
        entry.next = plain_tests;                                                                  \
        plain_tests = &entry;                                                                      \
    }                                                                                              \
    static void suite##_##test##_run(void)

/* The text at the end is the message of an assertion without one, and ignored otherwise. */
#define plain_true_(fatal, a, ...)                                                                 \
    plain_check(__FILE__, __LINE__, (fatal), (a) ? true : false, __VA_ARGS__)
#define plain_not_(fatal, a, ...)   plain_true_(fatal, !(a), __VA_ARGS__)
#define plain_null_(fatal, a, ...)  plain_true_(fatal, (a) == NULL, __VA_ARGS__)
#define plain_some_(fatal, a, ...)  plain_true_(fatal, (a) != NULL, __VA_ARGS__)
#define plain_eq_(fatal, a, b, ...) plain_true_(fatal, (a) == (b), __VA_ARGS__)
#define plain_ne_(fatal, a, b, ...) plain_true_(fatal, (a) != (b), __VA_ARGS__)
#define plain_lt_(fatal, a, b, ...) plain_true_(fatal, (a) < (b), __VA_ARGS__)
#define plain_le_(fatal, a, b, ...) plain_true_(fatal, (a) <= (b), __VA_ARGS__)
#define plain_gt_(fatal, a, b, ...) plain_true_(fatal, (a) > (b), __VA_ARGS__)
#define plain_ge_(fatal, a, b, ...) plain_true_(fatal, (a) >= (b), __VA_ARGS__)
#define plain_same_(fatal, a, b, ...)                                                              \
    plain_check(__FILE__, __LINE__, (fatal), strcmp((a), (b)) == 0, __VA_ARGS__)
#define plain_other_(fatal, a, b, ...)                                                             \
    plain_check(__FILE__, __LINE__, (fatal), strcmp((a), (b)) != 0, __VA_ARGS__)
#define plain_empty_(fatal, a, ...) plain_true_(fatal, (a)[0] == '\0', __VA_ARGS__)

#define cr_skip_test(...)        plain_skip(__VA_ARGS__)
#define cr_assert_fail(...)      plain_true_(true, false, __VA_ARGS__, "failed")
#define cr_assert(...)           plain_true_(true, __VA_ARGS__, "does not hold")
#define cr_expect(...)           plain_true_(false, __VA_ARGS__, "does not hold")
#define cr_assert_not(...)       plain_not_(true, __VA_ARGS__, "holds")
#define cr_expect_not(...)       plain_not_(false, __VA_ARGS__, "holds")
#define cr_assert_null(...)      plain_null_(true, __VA_ARGS__, "is not NULL")
#define cr_expect_null(...)      plain_null_(false, __VA_ARGS__, "is not NULL")
#define cr_assert_not_null(...)  plain_some_(true, __VA_ARGS__, "is NULL")
#define cr_expect_not_null(...)  plain_some_(false, __VA_ARGS__, "is NULL")
#define cr_assert_eq(...)        plain_eq_(true, __VA_ARGS__, "values differ")
#define cr_expect_eq(...)        plain_eq_(false, __VA_ARGS__, "values differ")
#define cr_assert_neq(...)       plain_ne_(true, __VA_ARGS__, "values are equal")
#define cr_expect_neq(...)       plain_ne_(false, __VA_ARGS__, "values are equal")
#define cr_assert_lt(...)        plain_lt_(true, __VA_ARGS__, "is not less")
#define cr_expect_lt(...)        plain_lt_(false, __VA_ARGS__, "is not less")
#define cr_assert_leq(...)       plain_le_(true, __VA_ARGS__, "is greater")
#define cr_expect_leq(...)       plain_le_(false, __VA_ARGS__, "is greater")
#define cr_assert_gt(...)        plain_gt_(true, __VA_ARGS__, "is not greater")
#define cr_expect_gt(...)        plain_gt_(false, __VA_ARGS__, "is not greater")
#define cr_assert_geq(...)       plain_ge_(true, __VA_ARGS__, "is less")
#define cr_expect_geq(...)       plain_ge_(false, __VA_ARGS__, "is less")
#define cr_assert_str_eq(...)    plain_same_(true, __VA_ARGS__, "texts differ")
#define cr_expect_str_eq(...)    plain_same_(false, __VA_ARGS__, "texts differ")
#define cr_assert_str_neq(...)   plain_other_(true, __VA_ARGS__, "texts are equal")
#define cr_expect_str_neq(...)   plain_other_(false, __VA_ARGS__, "texts are equal")
#define cr_assert_str_empty(...) plain_empty_(true, __VA_ARGS__, "text is not empty")
#define cr_expect_str_empty(...) plain_empty_(false, __VA_ARGS__, "text is not empty")

#endif
