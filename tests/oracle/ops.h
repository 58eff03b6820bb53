/*
 * ops.h - double-precision statements of the ops, over contiguous arrays, in plain loops.  The
 * formulas stand at the heads of src/ops/<op>.c.  Gradients named "+=" there are added here too.
 */
#ifndef KD_ORACLE_OPS_H
#define KD_ORACLE_OPS_H

#include <stdbool.h>
#include <stdint.h>

/* x, y [rows, columns]; RMSNorm with `centre` false, LayerNorm else; bias may be NULL. */
void oracle_norm(double *y, double *mean, double *rstd, const double *x, const double *weight,
                 const double *bias, int64_t rows, int64_t columns, double eps, bool centre);
void oracle_norm_backward(double *dx, double *dweight, double *dbias, const double *dy,
                          const double *x, const double *weight, int64_t rows, int64_t columns,
                          double eps, bool centre);

void oracle_swiglu(double *y, const double *gate, const double *up, int64_t n);
void oracle_swiglu_backward(double *dgate, double *dup, const double *dy, const double *gate,
                            const double *up, int64_t n);
void oracle_gelu(double *y, const double *x, int64_t n, bool tanh_form);
void oracle_gelu_backward(double *dx, const double *dy, const double *x, int64_t n, bool tanh_form);
void oracle_relu(double *y, const double *x, int64_t n);
void oracle_relu_backward(double *dx, const double *dy, const double *x, int64_t n);

/* x [rows, heads, size] in place; frequencies [half]. */
void oracle_rope(double *x, const double *positions, const double *frequencies, int64_t rows,
                 int64_t heads, int64_t size, int64_t half, double scale, bool backward);

/* y [rows, columns], table [*, columns], ids and factor [rows, count]; factor, which is 1 then, and add
 * may be NULL. */
void oracle_embedding(double *y, const double *table, const double *ids, const double *factor,
                      const double *add, int64_t rows, int64_t count, int64_t columns);
void oracle_embedding_backward(double *dtable, const double *dy, const double *ids,
                               const double *factor, int64_t rows, int64_t count, int64_t columns);
/* y [rows, count], x [rows, columns]; bias may be NULL. */
void oracle_embedding_products(double *y, const double *x, const double *table, const double *ids,
                               const double *bias, int64_t rows, int64_t count, int64_t columns);

/* The largest |x|. */
double oracle_largest(const double *x, int64_t n);

/* sum_i a_i b_i: with b random, one number whose gradient checks a whole backward pass. */
double oracle_dot(const double *a, const double *b, int64_t n);

#endif
