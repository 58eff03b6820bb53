/*
 * failing.h - every verb of the command, in this process, with a heap that refuses: exit code 4 and a
 * message that says what was wanted, no leak, no descriptor left open, no half of anything written, and
 * the same command afterwards does what it would have done.
 */
#ifndef KD_TESTS_FAILING_H
#define KD_TESTS_FAILING_H

#include <stdbool.h>

/* How many of the calls that come from one place, told by its callers, are refused in turn. */
typedef struct test_failing_options {
    int per_site;  /* first ones; 0: all */
    bool for_good; /* also with all that follow refused */
} test_failing_options;

/* Fails the test where something of the above does not hold. */
void test_failing(test_failing_options options);

#endif
