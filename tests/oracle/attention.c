#include "oracle/attention.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

bool oracle_attention_sees(const oracle_attention *a, int64_t i, int64_t tq, int64_t j, int64_t tk)
{
    const int64_t ahead = j - (i + tk - tq); /* 0: the query's own key */
    if (a->causal && ahead > 0) return false;
    return a->window == 0 || (ahead < a->window && -ahead < a->window);
}

static const double *query(const oracle_attention *a, const double *x, int64_t row, int64_t head)
{
    return x + (row * a->heads + head) * a->d;
}

static const double *key(const oracle_attention *a, const double *x, int64_t row, int64_t head)
{
    return x + (row * a->groups + head / (a->heads / a->groups)) * a->d;
}

static double dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* The score of rows `row` of q and `other` of k; `slope` is d score / d (scale q k). */
static double score(double *slope, const oracle_attention *a, int64_t row, int64_t other,
                    int64_t head)
{
    const double raw = a->scale * dot(query(a, a->q, row, head), key(a, a->k, other, head), a->d);
    *slope = 1;
    if (a->softcap == 0) return raw;
    const double t = tanh(raw / a->softcap);
    *slope = 1 - t * t;
    return a->softcap * t;
}

/* Log-sum-exp of what the row sees. */
static double row_lse(const oracle_attention *a, int64_t document, int64_t i, int64_t head)
{
    const int64_t tq = a->cu_q[document + 1] - a->cu_q[document];
    const int64_t tk = a->cu_k[document + 1] - a->cu_k[document];
    double top = -INFINITY, sum = 0, slope;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = 0; j < tk; j++) {
            if (!oracle_attention_sees(a, i, tq, j, tk)) continue;
            const double s = score(&slope, a, a->cu_q[document] + i, a->cu_k[document] + j, head);
            if (pass == 0)
                top = fmax(top, s);
            else
                sum += exp(s - top);
        }
    return sum > 0 ? top + log(sum) : -INFINITY;
}

static void forward_row(double *o, double *lse, const oracle_attention *a, int64_t document,
                        int64_t i, int64_t head)
{
    const int64_t tq = a->cu_q[document + 1] - a->cu_q[document];
    const int64_t tk = a->cu_k[document + 1] - a->cu_k[document];
    const int64_t row = a->cu_q[document] + i;
    double slope;
    *lse = row_lse(a, document, i, head);
    for (int64_t j = 0; j < tk; j++) {
        if (!oracle_attention_sees(a, i, tq, j, tk)) continue;
        const int64_t other = a->cu_k[document] + j;
        const double p = exp(score(&slope, a, row, other, head) - *lse);
        for (int64_t c = 0; c < a->d; c++) o[c] += p * key(a, a->v, other, head)[c];
    }
}

void oracle_attention_forward(double *o, double *lse, const oracle_attention *a)
{
    memset(o, 0, (size_t)(a->nq * a->heads * a->d) * sizeof *o);
    for (int64_t i = 0; i < a->heads * a->nq; i++) lse[i] = -INFINITY;
    for (int64_t t = 0; t < a->documents; t++)
        for (int64_t row = a->cu_q[t]; row < a->cu_q[t + 1]; row++)
            for (int64_t h = 0; h < a->heads; h++)
                forward_row(o + (row * a->heads + h) * a->d, lse + h * a->nq + row, a, t,
                            row - a->cu_q[t], h);
}

static void backward_row(double *dq, double *dk, double *dv, const double *dout, const double *o,
                         const oracle_attention *a, int64_t document, int64_t row, int64_t head)
{
    const int64_t i = row - a->cu_q[document], tq = a->cu_q[document + 1] - a->cu_q[document];
    const int64_t tk = a->cu_k[document + 1] - a->cu_k[document];
    const double lse = row_lse(a, document, i, head);
    const double *g = query(a, dout, row, head);
    const double mean = dot(g, query(a, o, row, head), a->d);
    for (int64_t j = 0; j < tk; j++) {
        if (!oracle_attention_sees(a, i, tq, j, tk)) continue;
        const int64_t other = a->cu_k[document] + j, at = key(a, a->k, other, head) - a->k;
        double slope;
        const double p = exp(score(&slope, a, row, other, head) - lse);
        const double ds = p * (dot(g, a->v + at, a->d) - mean) * slope * a->scale;
        for (int64_t c = 0; c < a->d; c++) {
            dq[(row * a->heads + head) * a->d + c] += ds * a->k[at + c];
            dk[at + c] += ds * query(a, a->q, row, head)[c];
            dv[at + c] += p * g[c];
        }
    }
}

void oracle_attention_backward(double *dq, double *dk, double *dv, const double *dout,
                               const double *o, const oracle_attention *a)
{
    memset(dq, 0, (size_t)(a->nq * a->heads * a->d) * sizeof *dq);
    memset(dk, 0, (size_t)(a->nk * a->groups * a->d) * sizeof *dk);
    memset(dv, 0, (size_t)(a->nk * a->groups * a->d) * sizeof *dv);
    for (int64_t t = 0; t < a->documents; t++)
        for (int64_t row = a->cu_q[t]; row < a->cu_q[t + 1]; row++)
            for (int64_t h = 0; h < a->heads; h++) backward_row(dq, dk, dv, dout, o, a, t, row, h);
}
