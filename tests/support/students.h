/*
 * students.h - what the tests of checkpoints share: tiny students whose every bit is set, copies
 * of them, a folder to write to, and lines that were logged.
 */
#ifndef KD_TEST_STUDENTS_H
#define KD_TEST_STUDENTS_H

#include "support/support.h"
#include "train/checkpoint.h"

enum { TEST_STUDENTS = 2 };

/* Two students at most: a Llama with an odd vocabulary, and a GPT-2, whose matrices are turned. */
typedef struct test_run {
    kd_arena *arena;
    kd_device *device;
    kd_model *students[TEST_STUDENTS];
    kd_checkpoint checkpoint;
} test_run;

typedef struct test_run_options {
    kd_dtype dtype;
    int moments, count;
    int64_t vocabulary; /* 0: 37 */
    int64_t ffn;        /* 0: 12 */
    const char *label;  /* of the first student; NULL: "student" */
    bool extra;         /* with a parameter that is not the model's */
} test_run_options;

void test_run_open(test_run *run, test_run_options options);
void test_run_close(test_run *run);

/* Random masters, moments and gradients, then one update of the optimizer, so that weights are what
 * it publishes; and awkward progress at `step`. */
void test_run_fill(test_run *run, uint64_t seed, int64_t step);

/* Every array of every student set to 0xff: what a load must overwrite. */
void test_run_spoil(test_run *run);

/* A copy of all bits, freed by free(); and whether the run has these bits now. */
void *test_run_copy(const test_run *run);
bool test_run_equals(const test_run *run, const void *copy);

/* A new folder in memory where there is such a file system; static text. */
const char *test_folder(void);

/* "folder/name"; static memory, valid for 8 calls. */
const char *test_path(const char *folder, const char *name);
bool test_exists(const char *folder, const char *name);

/* Entries of `folder` whose names begin with `prefix`. */
int test_count(const char *folder, const char *prefix);

/* Logged lines from here on go to a buffer; returns it, emptied. */
const char *test_log(void);

#endif
