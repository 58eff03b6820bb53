/*
 * jsd - generalised Jensen-Shannon divergence (GKD, Agarwal et al. 2024, eq. 1; TRL's convention:
 * beta weighs the teacher in the mixture).
 *
 *     m = beta p + (1 - beta) q
 *     value            =  beta KL(p || m) + (1 - beta) KL(q || m)
 *     d value / dx_j   =  (1 - beta) q_j (log(q_j / m_j) - KL(q || m))
 *
 * It tends to beta KL(p || q) as beta -> 0 and to (1 - beta) KL(q || p) as beta -> 1, both 0 in
 * the limit; by TRL's definition beta = 0 is exactly forward_kl and beta = 1 exactly reverse_kl,
 * without the vanishing factor.
 *
 * With d = (p - q) / m: p/m = 1 + (1 - beta) d and q/m = 1 - beta d, which keeps the value's
 * relative precision when beta is tiny or p is near q.  Bounded by log 2: no floor but at the end
 * points.
 */
#ifndef KD_ROW_JSD_H
#define KD_ROW_JSD_H

#include "ops/rows/forward_kl.h"
#include "ops/rows/reverse_kl.h"

/* One of three finite numbers, as a sum: GCC 12 leaves a loop scalar that chooses by what does not
 * change in it. */
KD_ROW_FN float kd_row_jsd_choose(float beta, float at_0, float between, float at_1)
{
    if (KD_ROW_BRANCHES) return between; /* the ends have returned */
    const float is_0 = beta == 0.0f ? 1.0f : 0.0f;
    const float is_1 = beta == 1.0f ? 1.0f : 0.0f;
    return is_0 * at_0 + is_1 * at_1 + (1.0f - is_0 - is_1) * between;
}

/* a: the class's share of the value; b: of KL(q || m). */
KD_ROW_FN kd_row_sums kd_row_jsd_sums(kd_row_class c, kd_row_stats row)
{
    const float beta = row.option;
    const kd_row_sums forward = kd_row_forward_kl_sums(c, row);
    const kd_row_sums reverse = kd_row_reverse_kl_sums(c, row);
    if (KD_ROW_BRANCHES && beta == 0.0f) return forward;
    if (KD_ROW_BRANCHES && beta == 1.0f) return reverse;
    const float m = kd_row_mix(c.p, c.q, beta);
    const float d = KD_ROW_DIV(c.p - c.q, m);
    const float kl_p = c.p * kd_row_log_ratio(c.p, m, (1.0f - beta) * d);
    const float kl_q = c.q * kd_row_log_ratio(c.q, m, -beta * d);
    const float mixed = beta * kl_p + (1.0f - beta) * kl_q;
    kd_row_sums s;
    s.a = kd_row_jsd_choose(beta, forward.a, mixed, reverse.a);
    s.b = kd_row_jsd_choose(beta, forward.b, kl_q, reverse.b);
    return s;
}

KD_ROW_FN float kd_row_jsd_value(kd_row_stats s) { return s.a; }

KD_ROW_FN float kd_row_jsd_gradient(kd_row_class c, kd_row_stats s)
{
    const float beta = s.option;
    const float forward = kd_row_forward_kl_gradient(c, s);
    const float reverse = kd_row_reverse_kl_gradient(c, s);
    if (KD_ROW_BRANCHES && beta == 0.0f) return forward;
    if (KD_ROW_BRANCHES && beta == 1.0f) return reverse;
    const float m = kd_row_mix(c.p, c.q, beta);
    const float log_ratio = kd_row_log_ratio(c.q, m, -beta * KD_ROW_DIV(c.p - c.q, m));
    const float mixed = (1.0f - beta) * c.q * (log_ratio - s.b);
    return kd_row_jsd_choose(beta, forward, mixed, reverse);
}

#endif
