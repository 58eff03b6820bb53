#include "oracle/pairs.h"

#include "oracle/ops.h"

#include <float.h>
#include <math.h>
#include <string.h>

static double weight_of(const oracle_pairs *p, int64_t i) { return p->weight ? p->weight[i] : 1; }

static double huber(double u) { return fabs(u) <= 1 ? 0.5 * u * u : fabs(u) - 0.5; }

static double slope(double u) { return fmax(-1, fmin(1, u)); }

/* ---- normalise -------------------------------------------------------------------------------- */

void oracle_normalise(double *y, double *norm, const double *x, int64_t rows, int64_t columns,
                      double eps, bool added)
{
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns) {
        norm[r] = sqrt(oracle_dot(x, x, columns));
        const double s = added ? norm[r] + eps : fmax(norm[r], eps);
        for (int64_t i = 0; i < columns; i++) y[i] = s > 0 ? x[i] / s : 0;
    }
}

void oracle_normalise_backward(double *dx, const double *dy, const double *x, int64_t rows,
                               int64_t columns, double eps, bool added)
{
    for (int64_t r = 0; r < rows; r++, x += columns, dy += columns, dx += columns) {
        const double norm = sqrt(oracle_dot(x, x, columns)), along = oracle_dot(x, dy, columns);
        const double s = added ? norm + eps : fmax(norm, eps);
        const double ds = added || norm > eps ? 1 : 0; /* d s / d norm */
        for (int64_t i = 0; s > 0 && i < columns; i++)
            dx[i] += dy[i] / s - (norm > 0 ? ds * along * x[i] / (s * s * norm) : 0);
    }
}

/* ---- distances -------------------------------------------------------------------------------- */

void oracle_pair_distances(double *y, const double *x, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < rows; j++) {
            double total = 0;
            for (int64_t d = 0; d < columns; d++) {
                const double u = x[i * columns + d] - x[j * columns + d];
                total += u * u;
            }
            y[i * rows + j] = total;
        }
}

void oracle_pair_distances_backward(double *dx, const double *dy, const double *x, int64_t rows,
                                    int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < rows; j++)
            for (int64_t d = 0; d < columns; d++) {
                const double u = 2 * dy[i * rows + j] * (x[i * columns + d] - x[j * columns + d]);
                dx[i * columns + d] += u;
                dx[j * columns + d] -= u;
            }
}

/* ---- RKD -------------------------------------------------------------------------------------- */

/* The mean distance, and over how many pairs. */
static double mean_distance(double *count, const double *s, int64_t rows, bool whole)
{
    double total = 0;
    *count = 0;
    for (int64_t i = 0; i < rows * rows; i++) {
        total += sqrt(s[i]);
        *count += whole || s[i] > 0 ? 1 : 0;
    }
    return *count > 0 ? total / *count : 0;
}

void oracle_rkd_distance(double *d, double *loss, const oracle_pairs *p, bool whole)
{
    const int64_t n = p->rows;
    double s_count, t_count, pull = 0;
    const double s_mean = mean_distance(&s_count, p->student, n, whole);
    const double t_mean = mean_distance(&t_count, p->teacher, n, whole);
    memset(loss, 0, (size_t)n * sizeof *loss);
    for (int64_t e = 0; e < n * n; e++) {
        const double psi = s_mean > 0 ? sqrt(p->student[e]) / s_mean : 0;
        const double u = psi - (t_mean > 0 ? sqrt(p->teacher[e]) / t_mean : 0);
        const double by = weight_of(p, e / n) / (double)n;
        loss[e / n] += by * huber(u);
        if (d) d[e] = p->scale * by * slope(u); /* with respect to psi */
        if (d) pull += d[e] * psi;
    }
    for (int64_t e = 0; d && e < n * n; e++)
        d[e] = p->student[e] > 0 ? (d[e] - pull / s_count) / s_mean / (2 * sqrt(p->student[e])) : 0;
}

/* The cosine at i, and what it gives to the three sides for each unit of gradient. */
static double cosine(double sides[3], double ij, double ik, double jk)
{
    memset(sides, 0, 3 * sizeof *sides);
    if (ij < FLT_MIN || ik < FLT_MIN) return 0;
    const double both = sqrt(ij * ik), psi = (ij + ik - jk) / (2 * both);
    sides[0] = 0.5 / both - psi / (2 * ij);
    sides[1] = 0.5 / both - psi / (2 * ik);
    sides[2] = -0.5 / both;
    return psi;
}

void oracle_rkd_angle(double *d, double *loss, const oracle_pairs *p)
{
    const int64_t n = p->rows;
    if (d) memset(d, 0, (size_t)(n * n) * sizeof *d);
    for (int64_t i = 0; i < n; i++) {
        const double *s = p->student, *t = p->teacher;
        const double by = weight_of(p, i) / ((double)n * (double)n);
        loss[i] = 0;
        for (int64_t j = 0; j < n; j++)
            for (int64_t k = 0; k < n; k++) {
                const int64_t ij = i * n + j, ik = i * n + k, jk = j * n + k;
                double sides[3], none[3];
                const double u =
                    cosine(sides, s[ij], s[ik], s[jk]) - cosine(none, t[ij], t[ik], t[jk]);
                const double g = p->scale * by * slope(u);
                loss[i] += by * huber(u);
                if (!d) continue;
                d[ij] += g * sides[0], d[ik] += g * sides[1], d[jk] += g * sides[2];
            }
    }
}

/* ---- PKT -------------------------------------------------------------------------------------- */

static double similarity(double g) { return fmax(0.5 * (g + 1), 0); }

static double row_sum(const double *gram, int64_t n)
{
    double total = 0;
    for (int64_t j = 0; j < n; j++) total += similarity(gram[j]);
    return total;
}

void oracle_pkt(double *d, double *loss, const oracle_pairs *p, double eps)
{
    const int64_t n = p->rows;
    if (d) memset(d, 0, (size_t)(n * n) * sizeof *d);
    for (int64_t i = 0; i < n; i++) {
        const double *s = p->student + i * n, *t = p->teacher + i * n;
        const double by = weight_of(p, i) / (double)n, sum = row_sum(s, n), t_sum = row_sum(t, n);
        double mean = 0;
        loss[i] = 0;
        for (int64_t j = 0; j < n; j++) {
            const double a = similarity(s[j]) / sum, b = similarity(t[j]) / t_sum;
            loss[i] += by * b * log((b + eps) / (a + eps));
            mean -= b / (a + eps) * a;
        }
        for (int64_t j = 0; d && j < n; j++) {
            const double a = similarity(s[j]) / sum, b = similarity(t[j]) / t_sum;
            const double g = p->scale * by * 0.5 * (-b / (a + eps) - mean) / sum;
            d[i * n + j] += g, d[j * n + i] += g;
        }
    }
}

/* ---- correlation ------------------------------------------------------------------------------ */

void oracle_correlation(double *d, double *loss, const oracle_pairs *p, int64_t columns)
{
    const int64_t n = p->rows;
    memset(loss, 0, (size_t)n * sizeof *loss);
    for (int64_t e = 0; e < (n - 1) * columns; e++) {
        const double by = weight_of(p, e / columns) * (double)n / (double)(n - 1);
        const double a = p->student[e] - p->teacher[e];
        const double b = p->student[e + columns] - p->teacher[e + columns];
        loss[e / columns] += by * fabs(a * b);
        if (!d) continue;
        d[e] += p->scale * by * (double)((a > 0) - (a < 0)) * fabs(b);
        d[e + columns] += p->scale * by * (double)((b > 0) - (b < 0)) * fabs(a);
    }
}

/* ---- sizes ------------------------------------------------------------------------------------ */

/* The smallest positive and the largest distance; 1 where there is none. */
static void extremes(double *least, double *most, const double *s, int64_t count)
{
    *least = INFINITY, *most = 0;
    for (int64_t i = 0; i < count; i++) {
        if (s[i] < FLT_MIN) continue;
        *least = fmin(*least, sqrt(s[i]));
        *most = fmax(*most, sqrt(s[i]));
    }
    if (*most == 0) *least = *most = 1;
}

static double most_weight(const oracle_pairs *p)
{
    return p->weight ? oracle_largest(p->weight, p->rows) : 1;
}

oracle_size oracle_rkd_distance_size(const oracle_pairs *p)
{
    double least, most, count;
    extremes(&least, &most, p->student, p->rows * p->rows);
    const double mean = fmax(mean_distance(&count, p->student, p->rows, false), least);
    const double psi = most / mean + 1, w = most_weight(p);
    return (oracle_size){ w * psi, fabs(p->scale) * w * psi / ((double)p->rows * mean * least) };
}

oracle_size oracle_rkd_angle_size(const oracle_pairs *p)
{
    double least, most, t_least, t_most;
    extremes(&least, &most, p->student, p->rows * p->rows);
    extremes(&t_least, &t_most, p->teacher, p->rows * p->rows);
    const double ratio = fmax(most / least, t_most / t_least), w = most_weight(p);
    return (oracle_size){ w * ratio,
                          fabs(p->scale) * w * ratio / ((double)p->rows * least * least) };
}

oracle_size oracle_pkt_size(const oracle_pairs *p, double eps)
{
    const int64_t n = p->rows;
    double least = INFINITY, pull = 1;
    for (int64_t i = 0; i < n; i++) {
        const double *s = p->student + i * n, *t = p->teacher + i * n;
        const double sum = row_sum(s, n), t_sum = row_sum(t, n);
        least = fmin(least, sum);
        for (int64_t j = 0; j < n; j++)
            pull = fmax(pull, (similarity(t[j]) / t_sum) / (similarity(s[j]) / sum + eps));
    }
    const double w = most_weight(p);
    return (oracle_size){ w * (pull + 1) / (double)n,
                          fabs(p->scale) * w * pull * (pull + 1) / ((double)n * least) };
}
