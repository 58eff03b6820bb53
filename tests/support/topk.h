/*
 * topk.h - hostile rows and a teacher of whom K classes are known; one run of row_loss_topk, held against
 * oracle/topk.h.
 */
#ifndef KD_TEST_SUPPORT_TOPK_H
#define KD_TEST_SUPPORT_TOPK_H

#include "oracle/topk.h"
#include "support/rows.h"

typedef struct topk_fixture {
    row_fixture rows; /* its teacher's logits are what is known of */
    kd_tensor ids, log_p, sampling, tail;
    kd_topk mode;
    float capture;
    kd_status (*run)(void *context, const kd_row_loss_topk_args *args); /* NULL: on the bench */
} topk_fixture;

/* K classes of every row, spread over it, the label's not always; the last entry of row 0 is none where
 * there are others; draws repeat.  log_p of `known`, at temperature `capture`. */
topk_fixture topk_hostile(test_bench *b, int64_t classes, int64_t k, kd_topk mode, double capture,
                          kd_dtype dtype, kd_dtype known);

/* Whether the op takes a term of that kind in the fixture's mode. */
bool topk_takes(const topk_fixture *f, int kind);

oracle_topk topk_oracle(const topk_fixture *f, int term, int64_t n, double *memory); /* [3 k] */

KD_MUST_CHECK kd_status topk_run(topk_fixture *f, const kd_tensor *student);
void topk_run_and_check(topk_fixture *f);

#endif
