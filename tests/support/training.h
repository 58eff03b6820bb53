/*
 * training.h - runs of kd_run_train: golden/step's teacher and student, twelve steps of two
 * micro-batches over random tokens, a checkpoint after each; and what such a run leaves.
 */
#ifndef KD_TEST_TRAINING_H
#define KD_TEST_TRAINING_H

#include "support/students.h"

/* More tokens than a run takes. */
enum { TEST_TRAINING_STEPS = 12, TEST_TRAINING_TOKENS = 700 };

typedef struct test_training {
    const char *dtype; /* of both models */
    const char *train, *valid, *folder;
    const char *(*settings)[2]; /* [setting_count] beside the usual: a path and its text */
    int setting_count;
} test_training;

/* Makes the folder and the data; logged lines go to test_log.  Close removes all. */
void test_training_open(test_training *training, const char *dtype);
void test_training_close(test_training *training);

/* A run that writes to folder/out; freed by kd_run_destroy.  test_train is all of one. */
kd_run *test_training_run(const test_training *training, const char *out);
kd_status test_train(const test_training *training, const char *out);

/* The run that writes to `out` has died after step from - 1: of `to` steps the later checkpoints and the
 * finished model are gone. */
void test_died(const char *out, int from, int to);

/* The records of out/metrics.jsonl without their times; `evaluations`: those of data.valid too.  Freed
 * by free(). */
char *test_metrics(const char *out, bool evaluations);

/* Fail, naming the file or the first place, unless both are the same. */
void test_same_file(const char *a, const char *b, const char *name);
void test_same_checkpoint(const char *a, const char *b, int64_t step); /* weights and optimizer */
void test_same_text(const char *got, const char *want, const char *what);

#endif
