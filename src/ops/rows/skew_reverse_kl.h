/*
 * skew_reverse_kl - skewed reverse KL (DistiLLM, Ko et al. 2024, section 3.1): the teacher is
 * replaced by its mixture with the student, which bounds the value by -log lambda.
 *
 *     m = lambda q + (1 - lambda) p
 *     value            =  KL(q || m)
 *     d value / dx_j   =  q_j (h_j - sum_k q_k h_k),  h = log(q / m) - lambda q / m
 *
 * lambda = 0 is reverse_kl, its floor included.
 */
#ifndef KD_ROW_SKEW_REVERSE_KL_H
#define KD_ROW_SKEW_REVERSE_KL_H

#include "ops/rows/row.h"

/* a: log(q / m); b: lambda q / m. */
KD_ROW_FN kd_row_sums kd_row_skew_reverse_kl_parts(kd_row_class c, float lambda)
{
    const float m = kd_row_mix(c.q, c.p, lambda);
    const float mixed = kd_row_log_ratio(c.q, m, (1.0f - lambda) * KD_ROW_DIV(c.q - c.p, m));
    kd_row_sums s;
    s.a = lambda > KD_ROW_LAMBDA_MIN ? mixed : c.log_q - c.log_p;
    s.b = lambda > KD_ROW_LAMBDA_MIN ? lambda * KD_ROW_DIV(c.q, m) : 0.0f;
    return s;
}

/* a: the class's share of the value; b: of sum_k q_k lambda q_k / m_k. */
KD_ROW_FN kd_row_sums kd_row_skew_reverse_kl_sums(kd_row_class c, kd_row_stats row)
{
    const float lambda = row.option;
    kd_row_sums s = kd_row_skew_reverse_kl_parts(c, lambda);
    s.a *= c.q;
    s.b *= c.q;
    return s;
}

KD_ROW_FN float kd_row_skew_reverse_kl_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_skew_reverse_kl_gradient(kd_row_class c, kd_row_stats s)
{
    const kd_row_sums h = kd_row_skew_reverse_kl_parts(c, s.option);
    return c.q * ((h.a - h.b) - (s.a - s.b));
}

#endif
