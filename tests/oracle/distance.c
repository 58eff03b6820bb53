#include "oracle/distance.h"

#include <math.h>

double oracle_distance(double *gradient, const double *x, const double *y, int64_t columns,
                       kd_distance kind)
{
    double xx = 0, yy = 0, squares = 0;
    for (int64_t i = 0; i < columns; i++) xx += x[i] * x[i], yy += y[i] * y[i];
    const bool unit = kind != KD_DISTANCE_SQUARED;
    const double a = !unit    ? 1
                     : xx > 0 ? 1 / sqrt(xx)
                              : 0,
                 b = !unit    ? 1
                     : yy > 0 ? 1 / sqrt(yy)
                              : 0;
    for (int64_t i = 0; i < columns; i++) squares += (x[i] * a - y[i] * b) * (x[i] * a - y[i] * b);
    const double root = sqrt(squares);
    double slope = 2;
    if (kind == KD_DISTANCE_COSINE) slope = 1;
    if (kind == KD_DISTANCE_NORMALISED_ROOT) slope = root > 0 ? 1 / root : 0;
    if (unit && (a == 0 || b == 0)) slope = 0;
    for (int64_t i = 0; i < columns && gradient; i++) {
        const double e = x[i] * a - y[i] * b;
        gradient[i] = slope * (unit ? a * (e - x[i] * a * squares / 2) : e);
    }
    if (kind == KD_DISTANCE_COSINE) return a == 0 || b == 0 ? 1 : squares / 2;
    return kind == KD_DISTANCE_NORMALISED_ROOT ? root : squares;
}
