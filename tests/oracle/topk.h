/*
 * topk.h - the row terms against a teacher of whom K classes are known, in double: each mode is put back
 * to a row of oracle/rows.h, or, where draws are weighed, written down directly.
 */
#ifndef KD_TEST_ORACLE_TOPK_H
#define KD_TEST_ORACLE_TOPK_H

#include "oracle/rows.h"

typedef struct oracle_topk {
    oracle_row row; /* but its teacher */
    kd_topk mode;
    double capture;
    int64_t k;
    const double *ids, *log_p, *sampling; /* [k]; an id of -1: none */
    double tail;                          /* NaN: what lacks to 1 */
} oracle_topk;

/* As oracle_row_value, oracle_row_gradient and oracle_row_condition. */
double oracle_topk_value(const oracle_topk *t);
void oracle_topk_gradient(double *gradient, const oracle_topk *t);
void oracle_topk_condition(double *value, double *gradient, const oracle_topk *t);

#endif
