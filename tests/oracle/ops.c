#include "oracle/ops.h"

#include <math.h>

void oracle_norm(double *y, double *mean, double *rstd, const double *x, const double *weight,
                 const double *bias, int64_t rows, int64_t columns, double eps, bool centre)
{
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns) {
        double m = 0, variance = 0;
        for (int64_t j = 0; centre && j < columns; j++) m += x[j] / (double)columns;
        for (int64_t j = 0; j < columns; j++) variance += (x[j] - m) * (x[j] - m) / (double)columns;
        mean[r] = m;
        rstd[r] = 1 / sqrt(variance + eps);
        for (int64_t j = 0; j < columns; j++)
            y[j] = (x[j] - m) * rstd[r] * weight[j] + (bias ? bias[j] : 0);
    }
}

void oracle_norm_backward(double *dx, double *dweight, double *dbias, const double *dy,
                          const double *x, const double *weight, int64_t rows, int64_t columns,
                          double eps, bool centre)
{
    for (int64_t r = 0; r < rows; r++, x += columns, dy += columns, dx += columns) {
        double m = 0, variance = 0, mean_g = 0, mean_gh = 0;
        for (int64_t j = 0; centre && j < columns; j++) m += x[j] / (double)columns;
        for (int64_t j = 0; j < columns; j++) variance += (x[j] - m) * (x[j] - m) / (double)columns;
        const double rstd = 1 / sqrt(variance + eps);
        for (int64_t j = 0; j < columns; j++) {
            const double h = (x[j] - m) * rstd;
            mean_g += centre ? dy[j] * weight[j] / (double)columns : 0;
            mean_gh += dy[j] * weight[j] * h / (double)columns;
            dweight[j] += dy[j] * h;
            if (dbias) dbias[j] += dy[j];
        }
        for (int64_t j = 0; j < columns; j++)
            dx[j] = rstd * (dy[j] * weight[j] - mean_g - (x[j] - m) * rstd * mean_gh);
    }
}

static double logistic(double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }

void oracle_swiglu(double *y, const double *gate, const double *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = gate[i] * logistic(gate[i]) * up[i];
}

void oracle_swiglu_backward(double *dgate, double *dup, const double *dy, const double *gate,
                            const double *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const double s = logistic(gate[i]);
        dgate[i] = dy[i] * up[i] * s * (1 + gate[i] * logistic(-gate[i]));
        dup[i] = dy[i] * gate[i] * s;
    }
}

static double tanh_argument(double x) { return sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }

void oracle_gelu(double *y, const double *x, int64_t n, bool tanh_form)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = tanh_form ? 0.5 * x[i] * (1 + tanh(tanh_argument(x[i])))
                         : 0.5 * x[i] * erfc(-x[i] / M_SQRT2);
}

void oracle_gelu_backward(double *dx, const double *dy, const double *x, int64_t n, bool tanh_form)
{
    for (int64_t i = 0; i < n; i++) {
        const double t = tanh(tanh_argument(x[i]));
        const double slope = sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x[i] * x[i]);
        const double density = exp(-0.5 * x[i] * x[i]) / sqrt(2 * M_PI);
        dx[i] = dy[i] * (tanh_form ? 0.5 * (1 + t) + 0.5 * x[i] * (1 - t * t) * slope
                                   : 0.5 * erfc(-x[i] / M_SQRT2) + x[i] * density);
    }
}

void oracle_relu(double *y, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = fmax(x[i], 0);
}

void oracle_relu_backward(double *dx, const double *dy, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dx[i] = x[i] > 0 ? dy[i] : 0;
}

void oracle_rope(double *x, const double *positions, const double *frequencies, int64_t rows,
                 int64_t heads, int64_t size, int64_t half, double scale, bool backward)
{
    for (int64_t r = 0; r < rows * heads; r++, x += size)
        for (int64_t i = 0; i < half; i++) {
            /* The angle is one f32 product, as in the models' own code. */
            const float angle = (float)positions[r / heads] * (float)frequencies[i];
            const double c = scale * cos(angle), s = scale * (backward ? -sin(angle) : sin(angle));
            const double a = x[i], b = x[i + half];
            x[i] = a * c - b * s;
            x[i + half] = b * c + a * s;
        }
}

void oracle_embedding(double *y, const double *table, const double *ids, const double *factor,
                      const double *add, int64_t rows, int64_t count, int64_t columns)
{
    for (int64_t i = 0; i < rows * columns; i++) {
        y[i] = add ? add[i] : 0;
        for (int64_t e = i / columns * count; e < (i / columns + 1) * count; e++)
            y[i] += (factor ? factor[e] : 1) * table[(int64_t)ids[e] * columns + i % columns];
    }
}

void oracle_embedding_backward(double *dtable, const double *dy, const double *ids,
                               const double *factor, int64_t rows, int64_t count, int64_t columns)
{
    for (int64_t e = 0; e < rows * count; e++)
        for (int64_t c = 0; c < columns; c++)
            dtable[(int64_t)ids[e] * columns + c] +=
                (factor ? factor[e] : 1) * dy[e / count * columns + c];
}

void oracle_embedding_products(double *y, const double *x, const double *table, const double *ids,
                               const double *bias, int64_t rows, int64_t count, int64_t columns)
{
    for (int64_t e = 0; e < rows * count; e++)
        y[e] = oracle_dot(x + e / count * columns, table + (int64_t)ids[e] * columns, columns) +
               (bias ? bias[(int64_t)ids[e]] : 0);
}

double oracle_largest(const double *x, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(x[i]));
    return largest;
}

double oracle_dot(const double *a, const double *b, int64_t n)
{
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += a[i] * b[i];
    return total;
}
