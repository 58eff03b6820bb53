/* contrast.h - contrast in double; src/ops/contrast.c has the formulas. */
#ifndef KD_ORACLE_CONTRAST_H
#define KD_ORACLE_CONTRAST_H

#include <stdint.h>

typedef struct oracle_contrast {
    const double *bank; /* [n, columns] */
    int64_t n, columns, negatives;
    double temperature, eps, z;
} oracle_contrast;

/* Of one row x against bank rows ids [negatives + 1], the positive first; gradient [columns] or NULL. */
double oracle_contrast_row(double *gradient, const double *x, const int32_t *ids,
                           const oracle_contrast *o);

/* sum of exp(score) over the row's ids. */
double oracle_contrast_sum(const double *x, const int32_t *ids, const oracle_contrast *o);

/* m [columns] as renew_rows leaves it. */
void oracle_renew(double *m, const double *x, int64_t columns, double momentum);

#endif
