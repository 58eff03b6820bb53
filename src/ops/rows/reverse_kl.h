/*
 * reverse_kl - KL(q || p), the student's direction (MiniLLM, Gu et al. 2024, eq. 1).
 *
 *     value            =  sum_j q_j (log q_j - log p_j)
 *     d value / dx_j   =  q_j (log q_j - log p_j - value)
 *
 * The exact value is infinite where p_j = 0 < q_j.  A teacher's class at -inf counts with
 * log p = KD_ROW_LOG_FLOOR: finite, and the gradient takes the student's mass off it.  (Leaving
 * such products out, as MiniLLM's and DistiLLM's code does, makes the forbidden class free, and
 * descent then moves mass onto it.)
 */
#ifndef KD_ROW_REVERSE_KL_H
#define KD_ROW_REVERSE_KL_H

#include "ops/rows/row.h"

KD_ROW_FN kd_row_sums kd_row_reverse_kl_sums(kd_row_class c, kd_row_stats unused)
{
    kd_row_sums s;
    (void)unused;
    s.a = c.q * (c.log_q - c.log_p);
    s.b = 0.0f;
    return s;
}

KD_ROW_FN float kd_row_reverse_kl_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_reverse_kl_gradient(kd_row_class c, kd_row_stats s)
{
    return c.q * (c.log_q - c.log_p - s.a);
}

#endif
