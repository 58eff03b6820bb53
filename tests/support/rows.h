/*
 * rows.h - logits of hostile rows, one run of row_loss over them, and all its results held against
 * oracle/rows.h.
 */
#ifndef KD_TEST_SUPPORT_ROWS_H
#define KD_TEST_SUPPORT_ROWS_H

#include "oracle/rows.h"
#include "support/support.h"

/* Kinds of rows.  The label's class is always 0. */
enum {
    ROW_RANDOM,
    ROW_NEAR,
    ROW_SAME,
    ROW_FLAT,
    ROW_LARGE,
    ROW_SHIFTED,
    ROW_DEAD_TEACHER,
    ROW_DEAD_STUDENT,
    ROW_DEAD_BOTH,
    ROW_DEAD_LABEL,
    ROW_LOWEST,
    ROW_EXTREME,
    ROW_ONE_HOT_TEACHER,
    ROW_ONE_HOT_STUDENT,
    ROW_ONE_HOT_BOTH,
    ROW_NO_LABEL,
    ROW_NO_WEIGHT,
    ROW_KINDS
};

typedef struct row_fixture {
    test_bench *bench;
    int64_t rows, classes;
    kd_tensor student, teacher, labels, weight, loss, same_top, scalars;
    double *s, *t; /* [rows, classes], as rounded */
    kd_row_terms terms;
    kd_step_scalars values;
    /* Runs the op elsewhere than on the bench; NULL: there. */
    kd_status (*run)(void *context, const kd_row_loss_args *args);
    void *context;
    double exp_error; /* of its exponential, in FLT_EPSILON beyond one rounding */
} row_fixture;

/* Everything but the logits' values: student [rows, classes + 5] of `dtype`, teacher
 * [rows, classes + 2], rows padded.  All that is not set stays NaN. */
row_fixture rows_tensors(test_bench *b, int64_t rows, int64_t classes, kd_dtype dtype);

/* The same with one row of each kind. */
row_fixture rows_hostile(test_bench *b, int64_t classes, kd_dtype dtype);

/* Lays the logits anew, rows at multiples of 16 bytes. */
void rows_align(row_fixture *f);

/* Takes the doubles `s` and `t` from the logits; after they were set by hand. */
void rows_copy_logits(row_fixture *f);

/* The next term of the fixture, at scale 3/8, its second option at the default. */
void rows_add_term(row_fixture *f, kd_row_kind kind, double temperature, double option,
                   bool squared);

/* A copy of the student to run on, so that one fixture serves many runs. */
kd_tensor rows_copy_student(row_fixture *f);

/* One run with a new `loss`; the gradient goes over `student`. */
KD_MUST_CHECK kd_status rows_run(row_fixture *f, const kd_tensor *student);

/* Runs on a copy and checks losses, gradient and same_top of every row.  Tensors may be absent where
 * no term reads them. */
void rows_run_and_check(row_fixture *f);

oracle_row rows_oracle(const row_fixture *f, int term, int64_t n);

/* The case, for messages; until the next call. */
const char *rows_describe(const row_fixture *f, int64_t n);

#endif
