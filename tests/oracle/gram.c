#include "oracle/gram.h"

#include <math.h>
#include <stdlib.h>

static double by_places(double *a, const double *t, int64_t s, int64_t c, int64_t ct, double by)
{
    double sum = 0;
    for (int64_t i = 0; i < s * s; i++) {
        const double e = a[i] / (double)c - t[i] / (double)ct;
        sum += e * e;
        a[i] = by * 4 / (double)c * e;
    }
    return sum;
}

static double by_channels(double *a, const double *t, int64_t c, int64_t ct, double by)
{
    double sum = 0;
    for (int64_t i = 0; i < c * (c + ct); i++) {
        const double f = i % (c + ct) < c ? 1 / (double)c : -2 / (double)ct;
        sum += a[i] * a[i] * f / (double)c;
        a[i] *= by * 4 / (double)c * (f > 0 ? f : f / 2);
    }
    for (int64_t i = 0; i < ct * ct; i++) sum += t[i] * t[i] / (double)(ct * ct);
    return sum;
}

double oracle_gram_distance(double *student, const double *teacher, int64_t s, int64_t c,
                            int64_t ct, double by, bool by_channel)
{
    return by_channel ? by_channels(student, teacher, c, ct, by)
                      : by_places(student, teacher, s, c, ct, by);
}

/* ---- the loss --------------------------------------------------------------------------------- */

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static double *units(const double *f, int64_t rows, int64_t n, double eps)
{
    double *x = calloc((size_t)(rows * n) + 1, sizeof *x);
    for (int64_t r = 0; x && r < rows; r++) {
        const double length = fmax(sqrt(dot(f + r * n, f + r * n, n)), eps);
        for (int64_t i = 0; i < n; i++) x[r * n + i] = f[r * n + i] / length;
    }
    return x;
}

/* mean (a_i b_j)^2; da += `by` times its gradient with b held. */
static double kernel(double *da, const double *a, const double *b, int64_t na, int64_t nb,
                     int64_t n, double by)
{
    double sum = 0;
    for (int64_t i = 0; i < na; i++)
        for (int64_t j = 0; j < nb; j++) {
            const double k = dot(a + i * n, b + j * n, n);
            sum += k * k;
            for (int64_t e = 0; e < n; e++)
                da[i * n + e] += by * 2 * k * b[j * n + e] / (double)(na * nb);
        }
    return sum / (double)(na * nb);
}

double oracle_nst(double *df, const double *f, const double *g, int64_t c, int64_t ct, int64_t s,
                  double eps)
{
    double *x = units(f, c, s, eps), *y = units(g, ct, s, eps);
    double *dx = calloc((size_t)((c + ct) * s) + 1, sizeof *dx), *none = dx + c * s;
    double value = kernel(dx, x, x, c, c, s, 2); /* both arguments are x */
    value += kernel(none, y, y, ct, ct, s, 0) - 2 * kernel(dx, x, y, c, ct, s, -2);
    for (int64_t r = 0; df && r < c; r++) {
        const double length = sqrt(dot(f + r * s, f + r * s, s));
        const double turn = length > eps ? dot(x + r * s, dx + r * s, s) : 0;
        for (int64_t i = r * s; i < (r + 1) * s; i++)
            df[i] += (dx[i] - x[i] * turn) / fmax(length, eps);
    }
    free(x);
    free(y);
    free(dx);
    return value;
}
