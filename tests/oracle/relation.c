#include "oracle/relation.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* One row's scores of one side, cap' times 1 / T with them; -inf where not seen. */
static void score_row(double *s, double *slope, const oracle_relation *r,
                      const oracle_attention *side, int64_t document, int64_t i, int64_t head)
{
    const oracle_attention *who = &r->student;
    const int64_t begin = who->cu_q[document], t = who->cu_q[document + 1] - begin;
    const double *a = side->q + ((begin + i) * side->heads + head) * side->d;
    for (int64_t j = 0; j < t; j++) {
        const double *b =
            side->k + ((begin + j) * side->groups + head / (side->heads / side->groups)) * side->d;
        double x = 0;
        for (int64_t c = 0; c < side->d; c++) x += side->scale * a[c] * b[c];
        const double capped = side->softcap > 0 ? tanh(x / side->softcap) : 0;
        if (side->softcap > 0) x = side->softcap * capped;
        slope[j] = (1 - capped * capped) / r->temperature;
        s[j] = oracle_attention_sees(who, i, t, j, t) ? x / r->temperature : -INFINITY;
    }
}

static double log_sum(const double *s, int64_t n)
{
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) top = fmax(top, s[j]);
    for (int64_t j = 0; j < n; j++) sum += exp(s[j] - top);
    return top + log(sum);
}

void oracle_relation_lse(double *lse, const oracle_relation *r, bool teacher)
{
    const oracle_attention *who = &r->student, *side = teacher ? &r->teacher : who;
    double *s = calloc((size_t)(2 * who->nq), sizeof *s);
    for (int64_t i = 0; i < who->heads * who->nq; i++) lse[i] = -INFINITY;
    for (int64_t t = 0; t < who->documents; t++)
        for (int64_t row = who->cu_q[t]; row < who->cu_q[t + 1]; row++)
            for (int64_t h = 0; h < who->heads; h++) {
                score_row(s, s + who->nq, r, side, t, row - who->cu_q[t], h);
                lse[h * who->nq + row] = log_sum(s, who->cu_q[t + 1] - who->cu_q[t]);
            }
    free(s);
}

/* The value of a row of `n` scores; s becomes its gradient with respect to them. */
static double compare(double *s, const double *t, int64_t n, const oracle_relation *r)
{
    const double lse = log_sum(s, n), teacher_lse = log_sum(t, n);
    double value = 0, seen = 0;
    for (int64_t j = 0; j < n; j++) seen += s[j] > -INFINITY;
    if (r->pairs > 0) seen = (double)r->pairs;
    for (int64_t j = 0; j < n; j++) {
        if (s[j] == -INFINITY) {
            s[j] = 0;
        } else if (r->mse) {
            const bool none = r->floor < 0 && s[j] <= r->floor;
            const double x = none ? 0 : s[j], y = r->floor < 0 && t[j] <= r->floor ? 0 : t[j];
            value += (x - y) * (x - y) / seen;
            s[j] = none ? 0 : 2 * (x - y) / seen;
        } else {
            const double q = exp(s[j] - lse), p = exp(t[j] - teacher_lse);
            value += p * (t[j] - teacher_lse - (s[j] - lse));
            s[j] = q - p;
        }
    }
    return value;
}

static void add_gradient(double *da, double *db, const oracle_relation *r, const double *ds,
                         int64_t document, int64_t i, int64_t head)
{
    const oracle_attention *side = &r->student;
    const int64_t begin = side->cu_q[document], n = side->cu_q[document + 1] - begin;
    const int64_t at_a = ((begin + i) * side->heads + head) * side->d;
    for (int64_t j = 0; j < n; j++) {
        const int64_t at_b =
            ((begin + j) * side->groups + head / (side->heads / side->groups)) * side->d;
        for (int64_t c = 0; c < side->d; c++) {
            da[at_a + c] += ds[j] * side->scale * side->k[at_b + c];
            db[at_b + c] += ds[j] * side->scale * side->q[at_a + c];
        }
    }
}

void oracle_relation_loss(double *loss, double *da, double *db, const oracle_relation *r)
{
    const oracle_attention *side = &r->student;
    const int64_t n = side->nq;
    double *s = calloc((size_t)(4 * n), sizeof *s), *slope = s + n, *t = slope + n, *unused = t + n;
    memset(loss, 0, (size_t)n * sizeof *loss);
    if (da) memset(da, 0, (size_t)(n * side->heads * side->d) * sizeof *da);
    if (db) memset(db, 0, (size_t)(n * side->groups * side->d) * sizeof *db);
    for (int64_t document = 0; document < side->documents; document++)
        for (int64_t row = side->cu_q[document]; row < side->cu_q[document + 1]; row++)
            for (int64_t h = 0; h < side->heads; h++) {
                const int64_t i = row - side->cu_q[document];
                const int64_t keys = side->cu_q[document + 1] - side->cu_q[document];
                const double share =
                    (r->weight ? r->weight[row] : 1) * r->factor / (double)side->heads;
                score_row(s, slope, r, side, document, i, h);
                score_row(t, unused, r, &r->teacher, document, i, h);
                loss[row] += share * compare(s, t, keys, r);
                for (int64_t j = 0; j < keys; j++) s[j] *= slope[j] * share;
                if (da) add_gradient(da, db, r, s, document, i, h);
            }
    free(s);
}
