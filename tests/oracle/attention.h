/* attention.h - attention over packed documents in double, score by score. */
#ifndef KD_ORACLE_ATTENTION_H
#define KD_ORACLE_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

typedef struct oracle_attention {
    int64_t nq, nk, heads, groups, d;
    int64_t documents;
    const int32_t *cu_q, *cu_k; /* [documents + 1] */
    const double *q, *k, *v;    /* [nq, heads, d], [nk, groups, d] twice */
    double scale, softcap;      /* softcap 0: none */
    bool causal;
    int64_t window; /* 0: unlimited */
} oracle_attention;

/* Whether query i of a document of tq rows sees key j of tk. */
bool oracle_attention_sees(const oracle_attention *a, int64_t i, int64_t tq, int64_t j, int64_t tk);

/* o [nq, heads, d]; lse [heads, nq]; a query that sees nothing has 0 and -inf. */
void oracle_attention_forward(double *o, double *lse, const oracle_attention *a);

/* All written.  `o` is what the row sums sum_d dout o are taken of. */
void oracle_attention_backward(double *dq, double *dk, double *dv, const double *dout,
                               const double *o, const oracle_attention *a);

#endif
