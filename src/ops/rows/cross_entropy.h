/*
 * cross_entropy - minus log-likelihood of the label, smoothed over the live classes (Szegedy et al.
 * 2016, section 7).  With smoothing s, L live classes and target
 *     g_j = (1 - s) [j = label] + s / L [j live]
 *
 *     value            =  -sum_j g_j log q_j
 *     d value / dx_j   =  G q_j - g_j,  G = sum of g over live classes
 *
 * G is 1 unless the label's own class is dead; then its part of the value is the constant
 * -(1 - s) KD_ROW_LOG_FLOOR.  With no dead class this is torch's label_smoothing.
 */
#ifndef KD_ROW_CROSS_ENTROPY_H
#define KD_ROW_CROSS_ENTROPY_H

#include "ops/rows/row.h"

KD_ROW_FN kd_row_sums kd_row_cross_entropy_sums(kd_row_class c, kd_row_stats row)
{
    const float smoothing = row.option;
    kd_row_sums s;
    s.a = smoothing == 0.0f || c.live == 0.0f ? 0.0f : c.log_q;
    s.b = c.live;
    return s;
}

KD_ROW_FN float kd_row_cross_entropy_value(kd_row_stats s)
{
    return -(1.0f - s.option) * s.log_q_label - s.option * (s.a / s.b);
}

KD_ROW_FN float kd_row_cross_entropy_gradient(kd_row_class c, kd_row_stats s)
{
    const float live_mass = (1.0f - s.option) * s.label_live + s.option;
    const float smooth = s.option == 0.0f ? 0.0f : s.option / s.b;
    return live_mass * c.q - (1.0f - s.option) * c.label - smooth;
}

#endif
