#include "oracle/contrast.h"

#include <math.h>

static double length_of(const double *x, int64_t n)
{
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    return sqrt(squares);
}

/* exp(M v / T) of one id. */
static double exponent(const double *x, double length, int32_t id, const oracle_contrast *o)
{
    double dot = 0;
    for (int64_t i = 0; i < o->columns && length > 1e-12; i++)
        dot += x[i] / length * o->bank[id * o->columns + i];
    return exp(dot / o->temperature);
}

double oracle_contrast_sum(const double *x, const int32_t *ids, const oracle_contrast *o)
{
    const double length = length_of(x, o->columns);
    double sum = 0;
    for (int64_t k = 0; k <= o->negatives; k++) sum += exponent(x, length, ids[k], o);
    return sum;
}

double oracle_contrast_row(double *gradient, const double *x, const int32_t *ids,
                           const oracle_contrast *o)
{
    const double length = length_of(x, o->columns), c = (double)o->negatives / (double)o->n;
    double value = 0, along = 0;
    for (int64_t i = 0; gradient && i < o->columns; i++) gradient[i] = 0;
    for (int64_t k = 0; k <= o->negatives; k++) {
        const double p = exponent(x, length, ids[k], o) / o->z, whole = p + c + o->eps;
        value -= log((k == 0 ? p : c) / whole);
        const double share = (k == 0 ? -(c + o->eps) : p) / whole / o->temperature;
        for (int64_t i = 0; gradient && i < o->columns; i++)
            gradient[i] += share * o->bank[ids[k] * o->columns + i];
    }
    for (int64_t i = 0; gradient && i < o->columns; i++) along += gradient[i] * x[i] / length;
    for (int64_t i = 0; gradient && i < o->columns; i++)
        gradient[i] = length > 1e-12 ? (gradient[i] - x[i] / length * along) / length : 0;
    return value;
}

void oracle_renew(double *m, const double *x, int64_t columns, double momentum)
{
    const double length = length_of(x, columns);
    for (int64_t i = 0; i < columns; i++)
        m[i] = momentum * m[i] + (length > 1e-12 ? (1 - momentum) * x[i] / length : 0);
    const double now = length_of(m, columns);
    for (int64_t i = 0; i < columns && now > 0; i++) m[i] /= now;
}
