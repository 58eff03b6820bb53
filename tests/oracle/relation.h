/* relation.h - relations between the rows of documents in double, with the maps that the op avoids. */
#ifndef KD_TEST_ORACLE_RELATION_H
#define KD_TEST_ORACLE_RELATION_H

#include "oracle/attention.h"

typedef struct oracle_relation {
    oracle_attention student,
        teacher; /* q: a, k: b; v is not read.  Documents and who sees whom: the
                                        * student's */
    bool mse;
    double temperature, factor; /* of scores; of the loss */
    double floor;               /* 0: none */
    int64_t pairs;              /* 0: what the row sees */
    const double *weight;       /* [N] or NULL */
} oracle_relation;

/* [R, N] of one side's scores / T among what the student's documents let see. */
void oracle_relation_lse(double *lse, const oracle_relation *r, bool teacher);

/* loss [N], and da [N,R,d], db [N,Rb,d] of the sum of losses; the gradients may be NULL. */
void oracle_relation_loss(double *loss, double *da, double *db, const oracle_relation *r);

#endif
