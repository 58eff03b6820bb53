/* quantised.h - operands of e4m3, and a teacher of it beside the same in bf16, on whatever device. */
#ifndef KD_TEST_SUPPORT_QUANTISED_H
#define KD_TEST_SUPPORT_QUANTISED_H

#include "support/support.h"

/* A product of op matmul_scaled: a and W [N,K] of normal numbers in every scale of e4m3, each row with
 * a scale of its own. */
typedef struct scaled_case {
    int64_t m, k, n;
    kd_dtype y_dtype;
    bool bias;
    int64_t pad; /* elements between rows of y that belong to somebody else */
} scaled_case;

typedef struct scaled_product {
    kd_tensor y, a, b, a_scale, b_scale, bias; /* bias absent where the case has none */
} scaled_product;

scaled_product scaled_open(test_bench *bench, const scaled_case *c);

/* The size of what a sum of a product holds, for tolerances. */
double scaled_size(const scaled_product *p);

/* "m 3 k 5 n 7 ..."; lives until the next call. */
const char *scaled_name(const scaled_case *c);

/*
 * Fails unless, of teachers with the same weights in bf16 and with e4m3 matrices, a Llama and a GPT-2,
 * the latter takes a byte per weight of its matrices, and gives nearly the same distributions and
 * nearly the same loss to a student.
 */
void test_quantised_teachers(const char *device);

/* Opens an e4m3 model on `device`; of sizes that no GPU takes unless `fits`. */
KD_MUST_CHECK kd_status test_quantised_open(const char *device, bool fits, bool trainable);

#endif
