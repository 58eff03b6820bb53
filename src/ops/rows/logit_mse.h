/*
 * logit_mse - the logits themselves (Ba and Caruana 2014, eq. 1), not shift invariant.
 *
 *     value            =  1 / L sum_j (z_j / T - t_j / T)^2
 *     d value / dx_j   =  2 / L (z_j / T - t_j / T)
 *
 * over the L classes whose logits are above -1e15 on both sides, which no square overflows and no mask
 * is written as; NaN where there is none.  With T^2 the temperature cancels.
 * The mean over rows and classes is torch's mse_loss and AberHu's; DistilBERT sums over classes and
 * divides by rows: that is a weight of C.
 *
 * Squares would hide that an infinite logit makes its row no distribution: hence the product with 0.
 */
#ifndef KD_ROW_LOGIT_MSE_H
#define KD_ROW_LOGIT_MSE_H

#include "ops/rows/row.h"

KD_ROW_FN float kd_row_logit_mse_masked(kd_row_class c)
{
    return c.z <= -1e15f || c.t <= -1e15f ? 1.0f : 0.0f;
}

/* z / T - t / T; 0 where either side masks the class. */
KD_ROW_FN float kd_row_logit_mse_difference(kd_row_class c, kd_row_stats s)
{
    const float d = (c.z - c.t) * s.inv_t + 0.0f * (c.p + c.q);
    return kd_row_logit_mse_masked(c) == 0.0f ? d : 0.0f;
}

/* a: of the squares; b: of the classes. */
KD_ROW_FN kd_row_sums kd_row_logit_mse_sums(kd_row_class c, kd_row_stats row)
{
    const float d = kd_row_logit_mse_difference(c, row);
    kd_row_sums s;
    s.a = d * d;
    s.b = 1.0f - kd_row_logit_mse_masked(c);
    return s;
}

KD_ROW_FN float kd_row_logit_mse_value(kd_row_stats s) { return s.a / s.b; }

KD_ROW_FN float kd_row_logit_mse_gradient(kd_row_class c, kd_row_stats s)
{
    const float d = kd_row_logit_mse_difference(c, s);
    return d == 0.0f ? 0.0f : 2.0f * KD_ROW_DIV(d, s.b);
}

#endif
