/*
 * forward_kl - KL(p || q), the teacher's direction (Hinton et al. 2015, eq. 2-4).
 *
 *     value            =  sum_j p_j (log p_j - log q_j)
 *     d value / dx_j   =  (1 - D) q_j - p_j,  D = the teacher's mass on dead classes
 *
 * D is 0 unless the student excludes a class that the teacher uses; that class then adds
 * p (log p - KD_ROW_LOG_FLOOR), which no gradient lowers.
 */
#ifndef KD_ROW_FORWARD_KL_H
#define KD_ROW_FORWARD_KL_H

#include "ops/rows/row.h"

KD_ROW_FN kd_row_sums kd_row_forward_kl_sums(kd_row_class c, kd_row_stats unused)
{
    kd_row_sums s;
    (void)unused;
    s.a = c.p * (c.log_p - c.log_q);
    s.b = c.live == 0.0f ? c.p : 0.0f;
    return s;
}

KD_ROW_FN float kd_row_forward_kl_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_forward_kl_gradient(kd_row_class c, kd_row_stats s)
{
    return (1.0f - s.b) * c.q - c.p;
}

#endif
