#include "oracle/matmul.h"

void oracle_matmul(double *y, const double *a, const double *b, const double *bias, int64_t m,
                   int64_t k, int64_t n)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = bias ? bias[j] : 0;
            for (int64_t l = 0; l < k; l++) sum += a[i * k + l] * b[l * n + j];
            y[i * n + j] += sum;
        }
}
