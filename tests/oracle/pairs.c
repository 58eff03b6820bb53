#include "oracle/pairs.h"

#include "oracle/ops.h"

#include <float.h>
#include <math.h>
#include <string.h>

static double weight_of(const oracle_pairs *p, int64_t i) { return p->weight ? p->weight[i] : 1; }

/* A row of weight 0 counts in nobody's loss. */
static bool counts(const oracle_pairs *p, int64_t i) { return weight_of(p, i) != 0; }

static double count_of(const oracle_pairs *p)
{
    double count = 0;
    for (int64_t i = 0; i < p->rows; i++) count += counts(p, i);
    return count;
}

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
static double mean_distance(double *count, const double *s, const oracle_pairs *p, bool whole)
{
    double total = 0;
    *count = 0;
    for (int64_t e = 0; e < p->rows * p->rows; e++) {
        if (!counts(p, e / p->rows) || !counts(p, e % p->rows)) continue;
        total += sqrt(s[e]);
        *count += whole || s[e] > 0 ? 1 : 0;
    }
    return *count > 0 ? total / *count : 0;
}

void oracle_rkd_distance(double *d, double *loss, const oracle_pairs *p, bool whole)
{
    const int64_t n = p->rows;
    double s_count, t_count, pull = 0;
    const double s_mean = mean_distance(&s_count, p->student, p, whole);
    const double t_mean = mean_distance(&t_count, p->teacher, p, whole);
    memset(loss, 0, (size_t)n * sizeof *loss);
    if (d) memset(d, 0, (size_t)(n * n) * sizeof *d);
    for (int64_t e = 0; e < n * n; e++) {
        if (!counts(p, e / n) || !counts(p, e % n)) continue;
        const double psi = s_mean > 0 ? sqrt(p->student[e]) / s_mean : 0;
        const double u = psi - (t_mean > 0 ? sqrt(p->teacher[e]) / t_mean : 0);
        const double by = weight_of(p, e / n) / count_of(p);
        loss[e / n] += by * huber(u);
        if (d) d[e] = p->scale * by * slope(u); /* with respect to psi */
        if (d) pull += d[e] * psi;
    }
    for (int64_t e = 0; d && e < n * n; e++)
        if (p->student[e] > 0 && counts(p, e / n) && counts(p, e % n))
            d[e] = (d[e] - pull / s_count) / s_mean / (2 * sqrt(p->student[e]));
        else
            d[e] = 0;
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
        loss[i] = 0;
        if (!counts(p, i)) continue;
        const double by = weight_of(p, i) / (count_of(p) * count_of(p));
        for (int64_t j = 0; j < n; j++)
            for (int64_t k = 0; k < n; k++) {
                if (!counts(p, j) || !counts(p, k)) continue;
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

static double row_sum(const double *gram, const oracle_pairs *p)
{
    double total = 0;
    for (int64_t j = 0; j < p->rows; j++) total += counts(p, j) ? similarity(gram[j]) : 0;
    return total;
}

void oracle_pkt(double *d, double *loss, const oracle_pairs *p, double eps)
{
    const int64_t n = p->rows;
    if (d) memset(d, 0, (size_t)(n * n) * sizeof *d);
    for (int64_t i = 0; i < n; i++) {
        const double *s = p->student + i * n, *t = p->teacher + i * n;
        const double by = weight_of(p, i) / count_of(p), sum = row_sum(s, p), t_sum = row_sum(t, p);
        double mean = 0;
        loss[i] = 0;
        if (!counts(p, i)) continue;
        for (int64_t j = 0; j < n; j++) {
            if (!counts(p, j)) continue;
            const double a = similarity(s[j]) / sum, b = similarity(t[j]) / t_sum;
            loss[i] += by * b * log((b + eps) / (a + eps));
            mean -= b / (a + eps) * a;
        }
        for (int64_t j = 0; d && j < n; j++) {
            if (!counts(p, j)) continue;
            const double a = similarity(s[j]) / sum, b = similarity(t[j]) / t_sum;
            const double g = p->scale * by * 0.5 * (-b / (a + eps) - mean) / sum;
            d[i * n + j] += g, d[j * n + i] += g;
        }
    }
}

/* ---- correlation ------------------------------------------------------------------------------ */

void oracle_correlation(double *d, double *loss, const oracle_pairs *p, int64_t columns)
{
    const double n = count_of(p);
    memset(loss, 0, (size_t)p->rows * sizeof *loss);
    for (int64_t i = 0, next; i < p->rows; i = next) {
        for (next = i + 1; next < p->rows && !counts(p, next);) next++;
        if (!counts(p, i) || next == p->rows) continue;
        const double by = weight_of(p, i) * n / (n - 1);
        for (int64_t k = 0; k < columns; k++) {
            const int64_t e = i * columns + k, f = next * columns + k;
            const double a = p->student[e] - p->teacher[e], b = p->student[f] - p->teacher[f];
            loss[i] += by * fabs(a * b);
            if (!d) continue;
            d[e] += p->scale * by * (double)((a > 0) - (a < 0)) * fabs(b);
            d[f] += p->scale * by * (double)((b > 0) - (b < 0)) * fabs(a);
        }
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
    const double mean = fmax(mean_distance(&count, p->student, p, false), least);
    const double psi = most / mean + 1, w = most_weight(p);
    return (oracle_size){ w * psi,
                          fabs(p->scale) * w * psi / (fmax(count_of(p), 1) * mean * least) };
}

oracle_size oracle_rkd_angle_size(const oracle_pairs *p)
{
    double least, most, t_least, t_most;
    extremes(&least, &most, p->student, p->rows * p->rows);
    extremes(&t_least, &t_most, p->teacher, p->rows * p->rows);
    const double ratio = fmax(most / least, t_most / t_least), w = most_weight(p);
    return (oracle_size){ w * ratio,
                          fabs(p->scale) * w * ratio / (fmax(count_of(p), 1) * least * least) };
}

oracle_size oracle_pkt_size(const oracle_pairs *p, double eps)
{
    const int64_t n = p->rows;
    double least = INFINITY, pull = 1;
    for (int64_t i = 0; i < n; i++) {
        const double *s = p->student + i * n, *t = p->teacher + i * n;
        const double sum = row_sum(s, p), t_sum = row_sum(t, p);
        if (!counts(p, i)) continue;
        least = fmin(least, sum);
        for (int64_t j = 0; j < n; j++)
            if (counts(p, j))
                pull = fmax(pull, (similarity(t[j]) / t_sum) / (similarity(s[j]) / sum + eps));
    }
    const double w = most_weight(p), count = fmax(count_of(p), 1);
    return (oracle_size){ w * (pull + 1) / count,
                          fabs(p->scale) * w * pull * (pull + 1) / (count * fmin(least, 1)) };
}
