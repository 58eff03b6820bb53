/*
 * rows.h - every row-logit term in double, straight from its formula with log-sum-exp; the
 * gradients are the closed forms, which test_row_loss.c holds against central differences.
 * Conventions are those of src/ops/rows/row.h.
 */
#ifndef KD_TEST_ORACLE_ROWS_H
#define KD_TEST_ORACLE_ROWS_H

#include "ops/ops.h"

/* -inf logits allowed; NaN and +inf are not. */
typedef struct oracle_row {
    kd_row_kind kind;
    int64_t classes;
    const double *student, *teacher; /* [classes]; teacher NULL where the term reads none */
    int64_t label;                   /* used by cross_entropy and dkd */
    double temperature, option, option2;
} oracle_row;

/* log softmax(z / T) and log-sum-exp(z / T); -inf stays -inf. */
double oracle_log_softmax(double *log_p, const double *z, int64_t classes, double temperature);

/* Without T^2, weight or scale. */
double oracle_row_value(const oracle_row *row);

/* d value / d student, so the factor 1 / T is in it. */
void oracle_row_gradient(double *gradient, const oracle_row *row);

/*
 * What float arithmetic may add to value and gradient, in units of FLT_EPSILON: the condition of
 * the formula at these operands.  A tempered logit is known to eps times its size, hence a
 * probability to p (1 + |log p|) eps, and so on up through the sums.
 */
void oracle_row_condition(double *value, double *gradient, const oracle_row *row);

#endif
