/* matmul.h - matrix products in double. */
#ifndef KD_ORACLE_MATMUL_H
#define KD_ORACLE_MATMUL_H

#include <stdint.h>

/* y[m,n] += sum_k a[m,k] b[k,n] + bias[n]; dense rows; bias may be NULL. */
void oracle_matmul(double *y, const double *a, const double *b, const double *bias, int64_t m,
                   int64_t k, int64_t n);

#endif
