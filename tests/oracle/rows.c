#include "oracle/rows.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static const double log_floor = -1e4;

double oracle_log_softmax(double *log_p, const double *z, int64_t classes, double temperature)
{
    double max = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j < classes; j++) max = fmax(max, z[j]);
    for (int64_t j = 0; j < classes; j++) sum += exp((z[j] - max) / temperature);
    for (int64_t j = 0; j < classes; j++) log_p[j] = (z[j] - max) / temperature - log(sum);
    return max / temperature + log(sum);
}

/* Both sides of a row as log-probabilities. */
typedef struct sides {
    double *log_q, *log_p, lse;
    int64_t live;
} sides;

static sides open_sides(const oracle_row *row)
{
    double *memory = malloc(2 * (size_t)row->classes * sizeof *memory);
    if (!memory) abort();
    sides s = { memory, memory + row->classes, 0.0, 0 };
    s.lse = oracle_log_softmax(s.log_q, row->student, row->classes, row->temperature);
    if (row->teacher)
        oracle_log_softmax(s.log_p, row->teacher, row->classes, row->temperature);
    else
        for (int64_t j = 0; j < row->classes; j++) s.log_p[j] = -INFINITY;
    for (int64_t j = 0; j < row->classes; j++) s.live += s.log_q[j] > -INFINITY;
    return s;
}

static double floored(double log_x) { return log_x == -INFINITY ? log_floor : log_x; }

static double log_add(double a, double b)
{
    const double most = fmax(a, b), least = fmin(a, b);
    return most == -INFINITY ? -INFINITY : most + log1p(exp(least - most));
}

/* log(share x + (1 - share) y) */
static double log_mix(double log_x, double log_y, double share)
{
    return log_add(log(share) + log_x, log1p(-share) + log_y);
}

/* x (log x - log y); 0 where x is 0. */
static double product(double log_x, double log_y)
{
    return exp(log_x) > 0.0 ? exp(log_x) * (log_x - floored(log_y)) : 0.0;
}

/* The terms whose options have an end point at which they are another term. */
static kd_row_kind plain_kind(const oracle_row *row)
{
    if (row->kind == KD_ROW_jsd && row->option == 0.0) return KD_ROW_forward_kl;
    if (row->kind == KD_ROW_jsd && row->option == 1.0) return KD_ROW_reverse_kl;
    if (row->kind == KD_ROW_skew_kl && row->option == 0.0) return KD_ROW_forward_kl;
    if (row->kind == KD_ROW_skew_reverse_kl && row->option == 0.0) return KD_ROW_reverse_kl;
    return row->kind;
}

/* log of what p and q are compared with; of a term that has a mixture. */
static double log_mixture(const oracle_row *row, double log_p, double log_q)
{
    return row->kind == KD_ROW_skew_reverse_kl ? log_mix(log_q, log_p, row->option)
                                               : log_mix(log_p, log_q, row->option);
}

static double target(const oracle_row *row, const sides *s, int64_t j)
{
    const double smooth = s->log_q[j] > -INFINITY ? row->option / (double)s->live : 0.0;
    return (j == row->label ? 1.0 - row->option : 0.0) + smooth;
}

static double share_of_value(const oracle_row *row, const sides *s, int64_t j)
{
    const double log_p = s->log_p[j], log_q = s->log_q[j], option = row->option;
    const double log_m = log_mixture(row, log_p, log_q);
    switch (plain_kind(row)) {
    case KD_ROW_cross_entropy: return -target(row, s, j) * floored(log_q);
    case KD_ROW_forward_kl: return product(log_p, log_q);
    case KD_ROW_reverse_kl: return product(log_q, log_p);
    case KD_ROW_jsd: return option * product(log_p, log_m) + (1.0 - option) * product(log_q, log_m);
    case KD_ROW_skew_kl: return product(log_p, log_m);
    case KD_ROW_skew_reverse_kl: return product(log_q, log_m);
    case KD_ROW_total_variation: return 0.5 * fabs(exp(log_p) - exp(log_q));
    case KD_ROW_z_loss: return j == 0 ? s->lse * s->lse : 0.0;
    case KD_ROW_COUNT: break;
    }
    return NAN;
}

double oracle_row_value(const oracle_row *row)
{
    const sides s = open_sides(row);
    double value = 0.0;
    for (int64_t j = 0; j < row->classes; j++) value += share_of_value(row, &s, j);
    free(s.log_q);
    return value;
}

/*
 * Six of the gradients are q_j (u_j - sum_k q_k u_k), the softmax's own backward, of
 * u_j = d value / d q_j; so that is how they are written.
 */
static double d_probability(const oracle_row *row, const sides *s, int64_t j)
{
    const double log_p = s->log_p[j], log_q = s->log_q[j], option = row->option;
    const double log_m = log_mixture(row, log_p, log_q);
    if (log_q == -INFINITY) return 0.0;
    switch (plain_kind(row)) {
    case KD_ROW_reverse_kl: return log_q - floored(log_p);
    case KD_ROW_jsd: return (1.0 - option) * (log_q - log_m);
    case KD_ROW_skew_kl: return -(1.0 - option) * exp(log_p - log_m);
    case KD_ROW_skew_reverse_kl: return log_q - log_m - option * exp(log_q - log_m);
    case KD_ROW_total_variation: return log_q > log_p ? 0.5 : log_q < log_p ? -0.5 : 0.0;
    case KD_ROW_cross_entropy:
    case KD_ROW_forward_kl:
    case KD_ROW_z_loss:
    case KD_ROW_COUNT: break;
    }
    return NAN;
}

/* The other three have d value / d x_j = mass q_j - target_j, or are a multiple of q_j. */
static double direct_gradient(const oracle_row *row, const sides *s, int64_t j, double live_mass)
{
    const double q = exp(s->log_q[j]);
    switch (plain_kind(row)) {
    case KD_ROW_cross_entropy: return live_mass * q - target(row, s, j);
    case KD_ROW_forward_kl: return live_mass * q - exp(s->log_p[j]);
    default: return 2.0 * s->lse * q;
    }
}

void oracle_row_gradient(double *gradient, const oracle_row *row)
{
    const sides s = open_sides(row);
    const kd_row_kind kind = plain_kind(row);
    const bool direct =
        kind == KD_ROW_cross_entropy || kind == KD_ROW_forward_kl || kind == KD_ROW_z_loss;
    double mean = 0.0, live_mass = 0.0;
    for (int64_t j = 0; j < row->classes; j++) {
        if (s.log_q[j] == -INFINITY) continue;
        if (!direct) mean += exp(s.log_q[j]) * d_probability(row, &s, j);
        live_mass += kind == KD_ROW_cross_entropy ? target(row, &s, j) : exp(s.log_p[j]);
    }
    for (int64_t j = 0; j < row->classes; j++) {
        double g = 0.0;
        if (s.log_q[j] > -INFINITY)
            g = direct ? direct_gradient(row, &s, j, live_mass)
                       : exp(s.log_q[j]) * (d_probability(row, &s, j) - mean);
        gradient[j] = g / row->temperature;
    }
    free(s.log_q);
}

/* ---- condition -------------------------------------------------------------------------------- */

/* x (1 + |log x|): by how much eps a probability is known. */
static double spread(double log_x)
{
    return exp(log_x) > 0.0 ? exp(log_x) * (1.0 + fabs(log_x)) : 0.0;
}

/* |log(x / m)| where x counts at all. */
static double ratio(double log_x, double log_m)
{
    return exp(log_x) > 0.0 ? fabs(log_x - log_m) : 0.0;
}

/* Of class j: `value`, its part in sums; `direct`, its part in its own gradient; `factor`, what its
 * q_j is multiplied with there. */
static void class_condition(double *value, double *direct, double *factor, const oracle_row *row,
                            const sides *s, int64_t j)
{
    const double log_p = s->log_p[j], log_q = s->log_q[j];
    const double log_m = log_mixture(row, log_p, log_q);
    const double logs = 1.0 + fabs(floored(log_p)) + fabs(floored(log_q));
    const double crossed = exp(log_p) > 0.0 && exp(log_q) > 0.0
                               ? exp(log_p + log_q - log_m) * (2.0 + fabs(log_p) + fabs(log_q))
                               : 0.0;
    *value = *direct = *factor = 0.0;
    switch (plain_kind(row)) {
    case KD_ROW_cross_entropy:
        *value = target(row, s, j) * (1.0 + fabs(floored(log_q)));
        *direct = target(row, s, j);
        break;
    case KD_ROW_forward_kl:
        *value = spread(log_p) * logs;
        *direct = spread(log_p);
        break;
    case KD_ROW_reverse_kl:
        *value = spread(log_q) * logs;
        *factor = logs;
        break;
    case KD_ROW_jsd:
    case KD_ROW_skew_kl:
    case KD_ROW_skew_reverse_kl:
        *value = spread(log_p) * (1.0 + ratio(log_p, log_m)) +
                 spread(log_q) * (1.0 + ratio(log_q, log_m)) + crossed;
        *direct = crossed;
        *factor = 1.0 + ratio(log_q, log_m);
        break;
    case KD_ROW_total_variation:
        *value = spread(log_p) + spread(log_q);
        *factor = 1.0;
        break;
    case KD_ROW_z_loss:
    case KD_ROW_COUNT: break;
    }
}

/* Mass of classes where rounding decides the sign of q - p, over eps. */
static double undecided(const oracle_row *row, const sides *s, int64_t j)
{
    const double gap = fabs(exp(s->log_p[j]) - exp(s->log_q[j]));
    const double known = 4.0 * FLT_EPSILON * (spread(s->log_p[j]) + spread(s->log_q[j]));
    if (row->kind != KD_ROW_total_variation || gap > known) return 0.0;
    return exp(s->log_q[j]) / (double)FLT_EPSILON;
}

void oracle_row_condition(double *value, double *gradient, const oracle_row *row)
{
    const sides s = open_sides(row);
    const kd_row_kind kind = plain_kind(row);
    double max = -INFINITY, sum = 1.0, undecided_mass = 0.0;
    for (int64_t j = 0; j < row->classes; j++) max = fmax(max, row->student[j]);
    const double of_lse = 1.0 + fabs(max) / row->temperature + log((double)row->classes);
    for (int64_t j = 0; j < row->classes; j++) {
        double of_value, direct, factor;
        class_condition(&of_value, &direct, &factor, row, &s, j);
        sum += of_value;
        undecided_mass += undecided(row, &s, j);
    }
    if (kind == KD_ROW_z_loss) sum = of_lse * of_lse;
    double in_gradient = sum; /* of the sums that the gradient reads */
    if (kind == KD_ROW_cross_entropy || kind == KD_ROW_forward_kl) in_gradient = 2.0;
    if (kind == KD_ROW_z_loss) in_gradient = 2.0 * of_lse;
    for (int64_t j = 0; j < row->classes; j++) {
        double of_value, direct, factor;
        class_condition(&of_value, &direct, &factor, row, &s, j);
        const double own = undecided(row, &s, j) > 0.0 ? 1.0 / (double)FLT_EPSILON : 0.0;
        const double q = exp(s.log_q[j]);
        /* What is below 1e-36, near the end of the float's range, may be lost whole. */
        const double known = spread(s.log_q[j]) + (q < 1e-34 ? 1e-36 / (double)FLT_EPSILON : 0.0);
        gradient[j] = (direct + known * (factor + in_gradient) + q * (undecided_mass + own)) /
                      row->temperature;
    }
    *value = sum;
    free(s.log_q);
}
