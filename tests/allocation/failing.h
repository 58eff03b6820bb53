/*
 * failing.h - verbs of the command, in this process, with a heap that refuses: exit code 4 and a message
 * that says what was wanted, no leak, no descriptor left open, no half of anything written, and the same
 * command afterwards does what it would have done.
 */
#ifndef KD_TESTS_FAILING_H
#define KD_TESTS_FAILING_H

#include <stdbool.h>

typedef enum test_failing_part {
    TEST_FAILING_VERBS,  /* all but the next two */
    TEST_FAILING_TRAIN,  /* load, evaluate, train, save */
    TEST_FAILING_RESUME, /* the same from a checkpoint */
    TEST_FAILING_PARTS
} test_failing_part;

/* Refuses one call after the other: `every` one, where the part is about load, train, save or resume;
 * else the first from each place, told by its callers, alone and then with all that follow. */
void test_failing(test_failing_part part, bool every);

#endif
