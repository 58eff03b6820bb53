#include "oracle/rows.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    int64_t live, top; /* of the student; the teacher's first largest class */
    double common;     /* classes that neither side masks */
} sides;

static bool is_common(const oracle_row *row, int64_t j)
{
    return row->student[j] > -1e15 && row->teacher[j] > -1e15;
}

static sides open_sides(const oracle_row *row)
{
    double *memory = malloc(2 * (size_t)row->classes * sizeof *memory);
    if (!memory) abort();
    sides s = { memory, memory + row->classes, 0.0, 0, 0, 0.0 };
    s.lse = oracle_log_softmax(s.log_q, row->student, row->classes, row->temperature);
    if (row->teacher)
        oracle_log_softmax(s.log_p, row->teacher, row->classes, row->temperature);
    else
        for (int64_t j = 0; j < row->classes; j++) s.log_p[j] = -INFINITY;
    for (int64_t j = 0; j < row->classes; j++) s.live += s.log_q[j] > -INFINITY;
    for (int64_t j = 0; row->teacher && j < row->classes; j++) {
        if (row->teacher[j] > row->teacher[s.top]) s.top = j;
        s.common += is_common(row, j);
    }
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
    if (row->kind == KD_ROW_hard_distillation) return j == s->top ? 1.0 : 0.0;
    const double smooth = s->log_q[j] > -INFINITY ? row->option / (double)s->live : 0.0;
    return (j == row->label ? 1.0 - row->option : 0.0) + smooth;
}

/* z / T - t / T. */
static double logit_difference(const oracle_row *row, int64_t j)
{
    if (!is_common(row, j)) return 0.0;
    return (row->student[j] - row->teacher[j]) / row->temperature;
}

static double share_of_value(const oracle_row *row, const sides *s, int64_t j)
{
    const double log_p = s->log_p[j], log_q = s->log_q[j], option = row->option;
    const double log_m = log_mixture(row, log_p, log_q);
    switch (plain_kind(row)) {
    case KD_ROW_cross_entropy:
    case KD_ROW_hard_distillation: return -target(row, s, j) * floored(log_q);
    case KD_ROW_soft_cross_entropy: return -exp(log_p) * floored(log_q);
    case KD_ROW_logit_mse: return pow(logit_difference(row, j), 2.0) / s->common;
    case KD_ROW_forward_kl: return product(log_p, log_q);
    case KD_ROW_reverse_kl: return product(log_q, log_p);
    case KD_ROW_jsd: return option * product(log_p, log_m) + (1.0 - option) * product(log_q, log_m);
    case KD_ROW_skew_kl: return product(log_p, log_m);
    case KD_ROW_skew_reverse_kl: return product(log_q, log_m);
    case KD_ROW_total_variation: return 0.5 * fabs(exp(log_p) - exp(log_q));
    case KD_ROW_z_loss: return j == 0 ? s->lse * s->lse : 0.0;
    case KD_ROW_dkd:
    case KD_ROW_COUNT: break;
    }
    return NAN;
}

/* ---- decoupled distillation -------------------------------------------------------------------- */

/* One side: the logarithm of (label, rest), and log-probabilities within the rest, -inf at the label. */
typedef struct decoupled {
    double label, rest, *within;
} decoupled;

static decoupled decouple(const oracle_row *row, const double *z)
{
    double *memory = malloc(2 * (size_t)row->classes * sizeof *memory);
    if (!memory) abort();
    decoupled d = { 0.0, -INFINITY, memory };
    double *others = memory + row->classes;
    const double lse = oracle_log_softmax(d.within, z, row->classes, row->temperature);
    d.label = d.within[row->label];
    memcpy(others, z, (size_t)row->classes * sizeof *z);
    others[row->label] = -INFINITY;
    for (int64_t j = 0; j < row->classes; j++) d.rest = fmax(d.rest, others[j]);
    if (d.rest > -INFINITY)
        d.rest = oracle_log_softmax(d.within, others, row->classes, row->temperature) - lse;
    else
        memcpy(d.within, others, (size_t)row->classes * sizeof *z);
    return d;
}

static double dkd_value(const oracle_row *row)
{
    const decoupled q = decouple(row, row->student), p = decouple(row, row->teacher);
    double value = row->option * (product(p.label, q.label) + product(p.rest, q.rest));
    for (int64_t j = 0; j < row->classes; j++)
        value += row->option2 * product(p.within[j], q.within[j]);
    free(q.within), free(p.within);
    return value;
}

static void dkd_gradient(double *gradient, const oracle_row *row)
{
    const decoupled q = decouple(row, row->student), p = decouple(row, row->teacher);
    const bool moves = q.label > -INFINITY && q.rest > -INFINITY;
    const double of_label = moves ? row->option * (exp(q.label) - exp(p.label)) : 0.0;
    double mass = 0.0;
    for (int64_t j = 0; j < row->classes; j++)
        if (q.within[j] > -INFINITY) mass += exp(p.within[j]);
    for (int64_t j = 0; j < row->classes; j++) {
        const double in_q = exp(q.within[j]), in_p = exp(p.within[j]);
        gradient[j] = -of_label * in_q + row->option2 * (mass * in_q - in_p);
        if (j == row->label) gradient[j] = of_label;
        if (row->student[j] == -INFINITY) gradient[j] = 0.0;
        gradient[j] /= row->temperature;
    }
    free(q.within), free(p.within);
}

double oracle_row_value(const oracle_row *row)
{
    if (row->kind == KD_ROW_dkd) return dkd_value(row);
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
    default: return NAN;
    }
}

/* The others have d value / d x_j = mass q_j - target_j, or are a multiple of q_j or of x_j. */
static double direct_gradient(const oracle_row *row, const sides *s, int64_t j, double live_mass)
{
    const double q = exp(s->log_q[j]);
    switch (plain_kind(row)) {
    case KD_ROW_cross_entropy:
    case KD_ROW_hard_distillation: return live_mass * q - target(row, s, j);
    case KD_ROW_logit_mse: return 2.0 * logit_difference(row, j) / s->common;
    case KD_ROW_soft_cross_entropy:
    case KD_ROW_forward_kl: return live_mass * q - exp(s->log_p[j]);
    default: return 2.0 * s->lse * q;
    }
}

static bool is_direct(kd_row_kind kind)
{
    return kind == KD_ROW_cross_entropy || kind == KD_ROW_forward_kl || kind == KD_ROW_z_loss ||
           kind == KD_ROW_soft_cross_entropy || kind == KD_ROW_hard_distillation ||
           kind == KD_ROW_logit_mse;
}

static bool has_label(kd_row_kind kind)
{
    return kind == KD_ROW_cross_entropy || kind == KD_ROW_hard_distillation;
}

void oracle_row_gradient(double *gradient, const oracle_row *row)
{
    if (row->kind == KD_ROW_dkd) {
        dkd_gradient(gradient, row);
        return;
    }
    const sides s = open_sides(row);
    const kd_row_kind kind = plain_kind(row);
    const bool direct = is_direct(kind);
    double mean = 0.0, live_mass = 0.0;
    for (int64_t j = 0; j < row->classes; j++) {
        if (s.log_q[j] == -INFINITY) continue;
        if (!direct) mean += exp(s.log_q[j]) * d_probability(row, &s, j);
        live_mass += has_label(kind) ? target(row, &s, j) : exp(s.log_p[j]);
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
    case KD_ROW_hard_distillation:
        *value = target(row, s, j) * (1.0 + fabs(floored(log_q)));
        *direct = target(row, s, j);
        break;
    case KD_ROW_logit_mse:
        *value = pow(logit_difference(row, j), 2.0) / s->common;
        *direct = 2.0 * fabs(logit_difference(row, j)) / s->common;
        break;
    case KD_ROW_soft_cross_entropy:
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
    default: break;
    }
}

/* The same of what may be lost whole, below 1e-36, near the end of the float's range. */
static double known_to(double log_x)
{
    return spread(log_x) + (exp(log_x) < 1e-34 ? 1e-36 / (double)FLT_EPSILON : 0.0);
}

/* Sums of dkd have log-probabilities that a softmax's own logarithm, up to log C, was taken off. */
static void dkd_condition(double *value, double *gradient, const oracle_row *row)
{
    const decoupled q = decouple(row, row->student), p = decouple(row, row->teacher);
    const double logs = 2.0 * (1.0 + log((double)row->classes));
    const double labels = spread(q.label) + spread(p.label) + spread(q.rest) + spread(p.rest);
    *value = row->option * (spread(p.label) * (logs + fabs(floored(q.label))) +
                            spread(p.rest) * (logs + fabs(floored(q.rest))));
    for (int64_t j = 0; j < row->classes; j++) {
        const double in_q = known_to(q.within[j]), in_p = known_to(p.within[j]);
        *value +=
            row->option2 * in_p * (logs + fabs(floored(p.within[j])) + fabs(floored(q.within[j])));
        gradient[j] = row->option * labels * logs * (j == row->label ? 1.0 : in_q) +
                      row->option2 * (3.0 * in_q + in_p);
        gradient[j] /= row->temperature;
    }
    *value += 1.0 + row->option + row->option2;
    free(q.within), free(p.within);
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
    if (row->kind == KD_ROW_dkd) {
        dkd_condition(value, gradient, row);
        return;
    }
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
    if (is_direct(kind)) in_gradient = 2.0;
    if (kind == KD_ROW_logit_mse) in_gradient = 0.0;
    if (kind == KD_ROW_z_loss) in_gradient = 2.0 * of_lse;
    for (int64_t j = 0; j < row->classes; j++) {
        double of_value, direct, factor;
        class_condition(&of_value, &direct, &factor, row, &s, j);
        const double own = undecided(row, &s, j) > 0.0 ? 1.0 / (double)FLT_EPSILON : 0.0;
        const double q = exp(s.log_q[j]), known = known_to(s.log_q[j]);
        gradient[j] = (direct + known * (factor + in_gradient) + q * (undecided_mass + own)) /
                      row->temperature;
    }
    *value = sum;
    free(s.log_q);
}
