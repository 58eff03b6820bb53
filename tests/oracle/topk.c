#include "oracle/topk.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* A row of known classes and their tail, or of all classes; where its classes come from. */
typedef struct reduced {
    oracle_row row;
    double *memory, *student, *teacher, *tail; /* tail: [classes] softmax over what is not known */
    int64_t *at;                               /* of each of the row's classes; -1: the tail */
} reduced;

static bool is_bucket(const oracle_topk *t)
{
    return t->mode == KD_TOPK_TAIL && kd_row_types[t->row.kind].teacher &&
           t->row.kind != KD_ROW_hard_distillation;
}

static void put_bucket(reduced *r, const oracle_topk *t)
{
    double *rest = r->tail, mass = 0.0, tail = t->tail;
    const double temperature = t->row.temperature;
    int64_t n = 0;
    for (int64_t j = 0; j < t->row.classes; j++) rest[j] = t->row.student[j];
    for (int64_t i = 0; i < t->k; i++) {
        const int64_t id = (int64_t)t->ids[i];
        if (id < 0) continue;
        r->at[n] = id;
        r->student[n] = t->row.student[id];
        r->teacher[n++] = temperature * t->log_p[i];
        mass += exp(t->log_p[i]);
        rest[id] = -INFINITY;
    }
    if (isnan(tail)) tail = fmax(1.0 - mass, 0.0);
    if (n == t->row.classes) tail = 0.0;
    double max = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j < t->row.classes; j++) max = fmax(max, rest[j]);
    for (int64_t j = 0; j < t->row.classes; j++) {
        rest[j] = max > -INFINITY ? exp((rest[j] - max) / temperature) : 0.0;
        sum += rest[j];
    }
    for (int64_t j = 0; j < t->row.classes; j++) rest[j] /= sum > 0.0 ? sum : 1.0;
    r->at[n] = -1;
    r->student[n] = sum > 0.0 ? max + temperature * log(sum) : -INFINITY;
    r->teacher[n++] = tail > 0.0 ? temperature * log(tail) : -INFINITY;
    r->row.classes = n;
}

static void put_dense(reduced *r, const oracle_topk *t)
{
    for (int64_t j = 0; j < t->row.classes; j++) {
        r->at[j] = j;
        r->student[j] = t->row.student[j];
        r->teacher[j] = -INFINITY;
    }
    for (int64_t i = 0; i < t->k; i++)
        if (t->ids[i] >= 0.0) r->teacher[(int64_t)t->ids[i]] = t->capture * t->log_p[i];
}

static reduced reduce(const oracle_topk *t)
{
    const size_t n = (size_t)t->row.classes + 1;
    reduced r = { .row = t->row, .memory = calloc(4 * n, sizeof(double)) };
    if (!r.memory) abort();
    r.student = r.memory, r.teacher = r.memory + n, r.tail = r.memory + 2 * n;
    r.at = (int64_t *)(void *)(r.memory + 3 * n);
    if (is_bucket(t))
        put_bucket(&r, t);
    else
        put_dense(&r, t);
    r.row.student = r.student;
    r.row.teacher = kd_row_types[t->row.kind].teacher ? r.teacher : NULL;
    return r;
}

static bool is_draws(const oracle_topk *t)
{
    return t->mode == KD_TOPK_SAMPLED && kd_row_types[t->row.kind].teacher;
}

/* ---- draws ------------------------------------------------------------------------------------ */

/* value, gradient, and conditions; any may be NULL. */
static void draw(double *value, double *gradient, double *of_value, double *of_gradient,
                 const oracle_topk *t)
{
    const int64_t classes = t->row.classes;
    double *log_q = malloc((size_t)classes * sizeof *log_q), draws = 0.0, mass = 0.0, all = 0.0;
    if (!log_q) abort();
    oracle_log_softmax(log_q, t->row.student, classes, t->row.temperature);
    for (int64_t i = 0; i < t->k; i++) draws += t->ids[i] >= 0.0;
    if (value) *value = 0.0;
    if (of_value) *of_value = 1.0;
    for (int64_t j = 0; gradient && j < classes; j++) gradient[j] = 0.0;
    for (int64_t j = 0; of_gradient && j < classes; j++) of_gradient[j] = 0.0;
    for (int64_t i = 0; i < t->k; i++) {
        if (t->ids[i] < 0.0) continue;
        const int64_t id = (int64_t)t->ids[i];
        const double l = t->log_p[i], w = exp(l) / (draws * t->sampling[i]);
        const double log_p = w > 0.0 && t->row.kind == KD_ROW_forward_kl ? l : 0.0;
        const double to = log_q[id] == -INFINITY ? -1e4 : log_q[id];
        all += w;
        if (value) *value += w * (log_p - to);
        if (of_value) *of_value += w > 0.0 ? w * (1.0 + fabs(l)) * (1.0 + fabs(l) + fabs(to)) : 0.0;
        if (log_q[id] == -INFINITY) continue;
        mass += w;
        if (gradient) gradient[id] -= w;
        if (of_gradient) of_gradient[id] += w > 0.0 ? w * (2.0 + fabs(l)) : 0.0;
    }
    for (int64_t j = 0; j < classes; j++) {
        const double q = exp(log_q[j]);
        if (gradient) gradient[j] = (gradient[j] + mass * q) / t->row.temperature;
        if (of_gradient)
            of_gradient[j] =
                (of_gradient[j] + (q > 0.0 ? (2.0 + all) * q * (2.0 + fabs(log_q[j])) : 0.0)) /
                t->row.temperature;
    }
    free(log_q);
}

/* ---- all of them ------------------------------------------------------------------------------ */

double oracle_topk_value(const oracle_topk *t)
{
    double value;
    if (is_draws(t)) {
        draw(&value, NULL, NULL, NULL, t);
        return value;
    }
    reduced r = reduce(t);
    value = oracle_row_value(&r.row);
    free(r.memory);
    return value;
}

void oracle_topk_gradient(double *gradient, const oracle_topk *t)
{
    if (is_draws(t)) {
        draw(NULL, gradient, NULL, NULL, t);
        return;
    }
    reduced r = reduce(t);
    double *small = calloc((size_t)r.row.classes, sizeof *small);
    if (!small) abort();
    oracle_row_gradient(small, &r.row);
    for (int64_t i = 0; i < r.row.classes; i++)
        for (int64_t j = 0; r.at[i] < 0 && j < t->row.classes; j++)
            gradient[j] = small[i] * r.tail[j];
    for (int64_t i = 0; i < r.row.classes; i++)
        if (r.at[i] >= 0) gradient[r.at[i]] = small[i];
    free(small), free(r.memory);
}

/* A tail's probability has the roundings of a logarithm of a sum and of a product more. */
void oracle_topk_condition(double *value, double *gradient, const oracle_topk *t)
{
    if (is_draws(t)) {
        draw(NULL, NULL, value, gradient, t);
        return;
    }
    reduced r = reduce(t);
    double *small = calloc(2 * (size_t)r.row.classes, sizeof *small);
    if (!small) abort();
    double *own = small + r.row.classes;
    oracle_row_condition(value, small, &r.row);
    oracle_row_gradient(own, &r.row);
    const double more = is_bucket(t) ? 4.0 + log((double)t->row.classes) : 2.0;
    *value *= more;
    for (int64_t i = 0; i < r.row.classes; i++)
        for (int64_t j = 0; r.at[i] < 0 && j < t->row.classes; j++) {
            const double p = r.tail[j]; /* below 1e-36 it may be lost whole */
            const double lost = p < 1e-34 ? fabs(own[i]) * 1e-36 / (double)FLT_EPSILON : 0.0;
            gradient[j] = lost + more * small[i] * p +
                          (p > 0.0 ? fabs(own[i]) * p * (2.0 + fabs(log(p))) : 0.0);
        }
    for (int64_t i = 0; i < r.row.classes; i++)
        if (r.at[i] >= 0) gradient[r.at[i]] = more * small[i];
    free(small), free(r.memory);
}
