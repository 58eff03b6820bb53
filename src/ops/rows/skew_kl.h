/*
 * skew_kl - skewed forward KL (DistiLLM, Ko et al. 2024, eq. 4): the student is replaced by its
 * mixture with the teacher, which bounds the value by -log lambda.
 *
 *     m = lambda p + (1 - lambda) q
 *     value            =  KL(p || m)
 *     d value / dx_j   =  -(1 - lambda) (q_j w_j - q_j sum_k q_k w_k),  w = p / m
 *
 * lambda = 0 is forward_kl, its floor included: there q_j w_j = p_j even where q_j underflows.
 */
#ifndef KD_ROW_SKEW_KL_H
#define KD_ROW_SKEW_KL_H

#include "ops/rows/row.h"

/* q_j w_j; 0 where the student's class is dead. */
KD_ROW_FN float kd_row_skew_kl_weight(kd_row_class c, float lambda)
{
    const float mixed = c.p * KD_ROW_DIV(c.q, kd_row_mix(c.p, c.q, lambda));
    return lambda > KD_ROW_LAMBDA_MIN ? mixed : c.p * c.live;
}

/* a: the class's share of the value; b: of sum_k q_k w_k. */
KD_ROW_FN kd_row_sums kd_row_skew_kl_sums(kd_row_class c, kd_row_stats row)
{
    const float lambda = row.option;
    const float m = kd_row_mix(c.p, c.q, lambda);
    const float mixed = kd_row_log_ratio(c.p, m, (1.0f - lambda) * KD_ROW_DIV(c.p - c.q, m));
    kd_row_sums s;
    s.a = c.p * (lambda > KD_ROW_LAMBDA_MIN ? mixed : c.log_p - c.log_q);
    s.b = kd_row_skew_kl_weight(c, lambda);
    return s;
}

KD_ROW_FN float kd_row_skew_kl_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_skew_kl_gradient(kd_row_class c, kd_row_stats s)
{
    return (1.0f - s.option) * (c.q * s.b - kd_row_skew_kl_weight(c, s.option));
}

#endif
