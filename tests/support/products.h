/* products.h - matrix products of every layout, element type and form, for whatever device. */
#ifndef KD_TEST_SUPPORT_PRODUCTS_H
#define KD_TEST_SUPPORT_PRODUCTS_H

#include "support/support.h"

typedef struct product_case {
    int64_t m, k, n;
    bool ta, tb, ty; /* the matrix lies column by column */
    bool bias, accumulate;
    kd_dtype dtype, y_dtype, bias_dtype;
    int64_t pad;       /* elements between rows that belong to somebody else */
    int64_t skip;      /* elements of each row, or column, before the first */
    int64_t bias_skip; /* elements before the first of the bias */
} product_case;

typedef struct product {
    kd_tensor y, a, b, bias; /* bias absent where the case has none */
} product;

/* Tensors of the bench; a, b and bias uniform in [-1, 1), y too where it is added to. */
product product_open(test_bench *bench, const product_case *c);

kd_status product_run(kd_exec *exec, const product_case *c, const product *p);

/* "m 3 k 5 n 7, turned a 0 ..."; lives until the next call. */
const char *product_name(const product_case *c);

/* A sum of k products of numbers uniform in [-1, 1) has a standard deviation of sqrt(k) / 3. */
double product_scale(const product_case *c);

/* Visits every layout of a, b and y, element types, bias and accumulation, for hostile shapes: empty,
 * one row, one column, no k, odd, around vectors and tiles. */
void product_each(void (*visit)(void *context, const product_case *c), void *context);

/* Batches of f32 for matmul_batched: b matrices, `gap` elements of somebody else's between them. */
typedef struct product_batch {
    int64_t b, m, k, n;
    bool ta, tb;
    int64_t gap;
} product_batch;

product product_batch_open(test_bench *bench, const product_batch *c);
const char *product_batch_name(const product_batch *c);
void product_each_batch(void (*visit)(void *context, const product_batch *c), void *context);

#endif
