/*
 * soft_cross_entropy - the teacher's probabilities as targets (Hinton et al. 2015; TinyBERT's prediction
 * layer, Jiao et al. 2020, eq. 10): forward_kl and the teacher's entropy, which no gradient sees.
 *
 *     value            =  -sum_j p_j log q_j
 *     d value / dx_j   =  (1 - D) q_j - p_j,  D = the teacher's mass on dead classes
 *
 * Summed over classes.  TinyBERT's code, and torch's kl_div of reduction "mean", take the mean over the
 * elements of [N, C] instead: that is a weight of 1 / C.
 */
#ifndef KD_ROW_SOFT_CROSS_ENTROPY_H
#define KD_ROW_SOFT_CROSS_ENTROPY_H

#include "ops/rows/row.h"

KD_ROW_FN kd_row_sums kd_row_soft_cross_entropy_sums(kd_row_class c, kd_row_stats unused)
{
    kd_row_sums s;
    (void)unused;
    s.a = -c.p * c.log_q;
    s.b = c.live == 0.0f ? c.p : 0.0f;
    return s;
}

KD_ROW_FN float kd_row_soft_cross_entropy_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_soft_cross_entropy_gradient(kd_row_class c, kd_row_stats s)
{
    return (1.0f - s.b) * c.q - c.p;
}

#endif
