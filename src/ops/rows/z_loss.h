/*
 * z_loss - keeps the student's normaliser near 1 (PaLM, Chowdhery et al. 2022, section 5; Mesh
 * TensorFlow).
 *
 *     value            =  lse^2,  lse = log sum_j exp(z_j / T)
 *     d value / dx_j   =  2 lse q_j
 */
#ifndef KD_ROW_Z_LOSS_H
#define KD_ROW_Z_LOSS_H

#include "ops/rows/row.h"

KD_ROW_FN kd_row_sums kd_row_z_loss_sums(kd_row_class c, kd_row_stats unused)
{
    kd_row_sums s;
    (void)c;
    (void)unused;
    s.a = 0.0f;
    s.b = 0.0f;
    return s;
}

KD_ROW_FN float kd_row_z_loss_value(kd_row_stats s) { return s.lse * s.lse; }

KD_ROW_FN float kd_row_z_loss_gradient(kd_row_class c, kd_row_stats s)
{
    return 2.0f * s.lse * c.q;
}

#endif
