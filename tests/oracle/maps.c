#include "oracle/maps.h"

#include <math.h>

/* f(index of x, index of y) in row-major order. */
#define EACH(i, j)                                                                                 \
    for (int64_t i = 0, j; i < samples * channels * places; i++)                                   \
        if (j = by_channel ? i / places : i / (channels * places) * places + i % places, true)

void oracle_map_powers(double *y, const double *x, int64_t samples, int64_t channels,
                       int64_t places, double power, bool by_channel)
{
    for (int64_t j = 0; j < samples * (by_channel ? channels : places); j++) y[j] = 0;
    EACH(i, j) y[j] += pow(fabs(x[i]), power);
}

void oracle_map_powers_backward(double *dx, const double *dy, const double *x, int64_t samples,
                                int64_t channels, int64_t places, double power, bool by_channel)
{
    EACH(i, j)
    if (x[i] != 0) dx[i] += dy[j] * power * pow(fabs(x[i]), power - 1) * (x[i] > 0 ? 1 : -1);
}
