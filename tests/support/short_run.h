/*
 * short_run.h - a run of a few steps by its file, as a job of a child process: killed, failing, cut
 * off the power, and started again by the same command, which must end with the same bits.
 */
#ifndef KD_TEST_SHORT_RUN_H
#define KD_TEST_SHORT_RUN_H

#include "support/scene.h"

enum { TEST_SHORT_STEPS = 3 };

typedef struct test_short_run {
    char root[64], out[96]; /* nothing but `out` is in `root` */
    char teacher[256], student[256];
    const char *train;
    const char *resume;       /* run.resume; NULL: auto */
    char model[33], *metrics; /* hash and records without times, when nothing happens to it */
} test_short_run;

/* A checkpoint after every step, of which two stay. */
void test_short_run_open(test_short_run *run, const char *golden); /* KD_GOLDEN */
void test_short_run_close(test_short_run *run);

/* The job; its exit status is the command's. */
int test_short_run_job(const void *run);

/* Nothing is there. */
void test_short_run_reset(const test_short_run *run);

/* It ran to its end and the model was taken away: what is left are its checkpoints. */
void test_short_run_unfinish(const test_short_run *run);

/* Starts it again: it ends, with the same model and records, and nothing is left of before; a line
 * was said if there was something. */
const test_child *test_short_run_ends(const test_short_run *run, const char *name);

/* Faults at every `stride`th call of the whole run, the first of them at `first`. */
void test_short_run_fail(const test_short_run *run, const test_fault *fault, int first, int stride);

/* Power cuts after every `stride`th call of the whole run. */
void test_short_run_cut(const test_short_run *run, int first, int stride);

#endif
