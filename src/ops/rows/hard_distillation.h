/*
 * hard_distillation - the teacher's decision as the label (DeiT, Touvron et al. 2021, section 4): cross
 * entropy with c = argmax of the teacher's logits, the first of equal ones.
 *
 *     value            =  -log q_c
 *     d value / dx_j   =  (1 - D) q_j - [j = c],  D = 1 where the student's class c is dead, else 0
 *
 * The teacher's temperature does not matter.  DeiT weighs it and the label's cross entropy by 1/2 each,
 * on two heads.  A teacher's row that is not finite is NaN here as anywhere: hence the products with 0.
 */
#ifndef KD_ROW_HARD_DISTILLATION_H
#define KD_ROW_HARD_DISTILLATION_H

#include "ops/rows/row.h"

KD_ROW_FN kd_row_sums kd_row_hard_distillation_sums(kd_row_class c, kd_row_stats unused)
{
    kd_row_sums s;
    (void)unused;
    s.a = 0.0f * c.p - c.top * c.log_q;
    s.b = c.live == 0.0f ? c.top : 0.0f;
    return s;
}

KD_ROW_FN float kd_row_hard_distillation_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_hard_distillation_gradient(kd_row_class c, kd_row_stats s)
{
    return (1.0f - s.b) * c.q - c.top + 0.0f * c.p;
}

#endif
