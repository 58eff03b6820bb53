/*
 * work.h - a signal in the midst of a run's work, at a place that is counted.  work.c stands before
 * the functions that it names in the programs that link it (--wrap).
 */
#ifndef KD_TEST_WORK_H
#define KD_TEST_WORK_H

#include <stdbool.h>
#include <stdint.h>

typedef struct work {
    int signal;
    int64_t at;      /* it is raised as piece `at` begins; -1: never */
    int64_t pieces;  /* that began: a model's pass forward or backward, an update */
    bool hit;        /* it was, or has come from elsewhere */
    int64_t batches; /* micro-batches that began after it, of training or evaluation */
} work;

extern work *test_work; /* in use; NULL: nothing is counted */

#endif
