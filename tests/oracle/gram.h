/* gram.h - op gram_distance and the loss over it in double, dense rows; src/ops/gram_distance.c. */
#ifndef KD_ORACLE_GRAM_H
#define KD_ORACLE_GRAM_H

#include <stdbool.h>
#include <stdint.h>

/* Of one sample: returns |x'x / c - y'y / ct|^2; `student` [s,s] or [c, c + ct] becomes `by` times what the
 * gradient is multiplied from, the teacher's is [s,s] or [ct,ct]. */
double oracle_gram_distance(double *student, const double *teacher, int64_t s, int64_t c,
                            int64_t ct, double by, bool by_channel);

/* Of one sample of maps f [c,s] and g [ct,s]: means of squared products of rows of length one, as the paper
 * has them; df [c,s] += its gradient, or NULL. */
double oracle_nst(double *df, const double *f, const double *g, int64_t c, int64_t ct, int64_t s,
                  double eps);

#endif
