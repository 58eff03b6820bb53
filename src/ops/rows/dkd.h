/*
 * dkd - decoupled distillation (Zhao et al. 2022, eq. 7): Hinton's KL is a KL over (label y, all the
 * rest) and, weighted with 1 - p_y, one within the rest; here either has a weight of its own.
 *
 *     b(p) = (p_y, 1 - p_y)     p'_j = p_j / (1 - p_y), j != y, and so for q
 *     value            =  alpha KL(b(p) || b(q)) + beta KL(p' || q')
 *     d value / dx_y   =  alpha (q_y - p_y)
 *     d value / dx_j   =  -alpha (q_y - p_y) q'_j + beta ((P - D) q'_j - p'_j)
 *
 * P is 1, D the teacher's p' on dead classes.  Where the teacher has no live class but y, P is 0: its
 * second term says nothing and is 0.  Where the student has none, or where y is dead, q_y is a constant
 * and the first gradient 0.
 *
 * p' and q' are softmaxes over the rest, whose own maxima they are taken from: p' stays what it is where
 * 1 - p_y underflows, and with two classes it is exactly (1), so the second term is exactly 0 (a quotient
 * of probabilities gives Inf / 0 there; megvii-research/mdistiller#60).  Their code masks the label with
 * -1000 instead, times T^2, its weight warmed up over 20 epochs: here a ramp of the term's weight.
 * Defaults: theirs, alpha 1, beta 8 (with T 4).
 */
#ifndef KD_ROW_DKD_H
#define KD_ROW_DKD_H

#include "ops/rows/row.h"

/* log of p'_j or q'_j: floor where the class is dead, 0 at the label. */
KD_ROW_FN float kd_row_dkd_log(float z, float label, kd_row_rest rest, float inv_t)
{
    const float x = (z - rest.max) * inv_t;
    const float dead = z == -INFINITY || x == -INFINITY ? 1.0f : 0.0f;
    const float log_x = dead == 0.0f ? x - rest.log_sum : KD_ROW_LOG_FLOOR;
    return label == 0.0f ? log_x : 0.0f;
}

/* p'_j or q'_j; 0 where the class is dead and at the label. */
KD_ROW_FN float kd_row_dkd_probability(float z, float label, kd_row_rest rest, float inv_t)
{
    const float x = KD_ROW_EXP((z - rest.max) * inv_t - rest.log_sum);
    return label == 0.0f && !(z == -INFINITY) ? x : 0.0f;
}

/* q_y - p_y, from the smaller of what it may be the difference of. */
KD_ROW_FN float kd_row_dkd_label(kd_row_stats s)
{
    const float p = KD_ROW_EXP(s.log_p_label), q = KD_ROW_EXP(s.log_q_label);
    const float rest_p = KD_ROW_EXP(s.rest_p.log_mass), rest_q = KD_ROW_EXP(s.rest_q.log_mass);
    const float d = p + q > 1.0f ? rest_p - rest_q : q - p;
    return s.label_live == 0.0f || s.rest_q.max == -INFINITY ? 0.0f : d;
}

/* a: the class's share of KL(p' || q'); b: of D. */
KD_ROW_FN kd_row_sums kd_row_dkd_sums(kd_row_class c, kd_row_stats row)
{
    const float p = kd_row_dkd_probability(c.t, c.label, row.rest_p, row.inv_t);
    const float log_p = kd_row_dkd_log(c.t, c.label, row.rest_p, row.inv_t);
    const float log_q = kd_row_dkd_log(c.z, c.label, row.rest_q, row.inv_t);
    kd_row_sums s;
    s.a = p * (log_p - log_q);
    s.b = c.live == 0.0f ? p : 0.0f;
    return s;
}

KD_ROW_FN float kd_row_dkd_value(kd_row_stats s)
{
    const float label = KD_ROW_EXP(s.log_p_label) * (s.log_p_label - s.log_q_label);
    const float rest = KD_ROW_EXP(s.rest_p.log_mass) * (s.rest_p.log_mass - s.rest_q.log_mass);
    return s.option * (label + rest) + s.option2 * s.a;
}

KD_ROW_FN float kd_row_dkd_gradient(kd_row_class c, kd_row_stats s)
{
    const float of_label = s.option * kd_row_dkd_label(s);
    const float mass = (s.rest_p.max == -INFINITY ? 0.0f : 1.0f) - s.b;
    const float p = kd_row_dkd_probability(c.t, c.label, s.rest_p, s.inv_t);
    const float q = kd_row_dkd_probability(c.z, c.label, s.rest_q, s.inv_t);
    return c.label * of_label - of_label * q + s.option2 * (mass * q - p);
}

#endif
