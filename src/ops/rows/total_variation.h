/*
 * total_variation - half the L1 distance (f-DISTILL, Wen et al. 2023; DistiLLM's tv_distance).
 *
 *     value            =  1/2 sum_j |p_j - q_j|
 *     d value / dx_j   =  q_j (g_j - sum_k q_k g_k),  g = sign(q - p) / 2
 *
 * Symmetric and bounded by 1.  Where p_j = q_j the subgradient g_j = 0 is taken.
 */
#ifndef KD_ROW_TOTAL_VARIATION_H
#define KD_ROW_TOTAL_VARIATION_H

#include "ops/rows/row.h"

KD_ROW_FN float kd_row_total_variation_half_sign(kd_row_class c)
{
    return c.q > c.p ? 0.5f : c.q < c.p ? -0.5f : 0.0f;
}

KD_ROW_FN kd_row_sums kd_row_total_variation_sums(kd_row_class c, kd_row_stats unused)
{
    kd_row_sums s;
    (void)unused;
    s.a = 0.5f * KD_ROW_ABS(c.p - c.q);
    s.b = c.q * kd_row_total_variation_half_sign(c);
    return s;
}

KD_ROW_FN float kd_row_total_variation_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_total_variation_gradient(kd_row_class c, kd_row_stats s)
{
    return c.q * (kd_row_total_variation_half_sign(c) - s.b);
}

#endif
