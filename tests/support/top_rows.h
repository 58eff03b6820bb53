/*
 * top_rows.h - rows of logits that are hard on a search for the largest: what the tests of top_classes on
 * the CPU and on a GPU share.
 */
#ifndef KD_TEST_SUPPORT_TOP_ROWS_H
#define KD_TEST_SUPPORT_TOP_ROWS_H

#include "support/support.h"

enum { TOP_ROWS = 16, TOP_CASES = 13 };

typedef struct top_rows {
    kd_tensor
        logits; /* [TOP_ROWS, columns], a view; columns from `classes` on hold what is larger */
    kd_tensor labels; /* of one row -1, which is all NaN */
    int64_t classes, k;
} top_rows;

/* One row of each kind, in a shape and at an alignment of the case, of which the last has the most
 * classes. */
top_rows top_rows_of(test_bench *bench, int which, kd_dtype dtype);

/* "bf16, 65 classes, row 3 (all equal), k 4, T 1"; lives until the next call. */
const char *top_rows_name(const top_rows *rows, int64_t n, int64_t k, double temperature);

#endif
