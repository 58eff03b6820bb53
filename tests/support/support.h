/*
 * support.h - what the tests of every folder share: a CPU exec with a real stack, tensors with
 * guarded surroundings, seeded filling, comparison with tolerances from the operands, and central
 * differences.
 *
 * Every tensor of a bench starts as NaN, and so does all memory around and between its rows (0xff in
 * every byte, -1 in integers): reading past a row poisons the result, writing past one is found by
 * test_close.
 */
#ifndef KD_TEST_SUPPORT_H
#define KD_TEST_SUPPORT_H

#include "ops/ops.h"

#include <criterion/criterion.h>

enum { TEST_MAX_TENSORS = 256 };

typedef struct test_block {
    unsigned char *base;
    size_t bytes;
    kd_tensor view;  /* what an op may write */
    double *doubles; /* of test_doubles; then `base` is NULL */
} test_block;

typedef struct test_bench {
    kd_exec exec;
    kd_stack stack;
    uint64_t seed; /* of the fills; set by test_open, free to change */
    int count;
    test_block blocks[TEST_MAX_TENSORS];
} test_bench;

/* Opens the CPU device and a stack of `stack_bytes`. */
void test_open(test_bench *bench, size_t stack_bytes);

/* Fails when a byte outside any tensor changed or the stack is not empty; frees everything. */
void test_close(test_bench *bench);

/* The tensors of `mark` and later are checked and freed: for loops over shapes. */
int test_mark(const test_bench *bench);
void test_release(test_bench *bench, int mark);

/* A NaN-filled tensor with `pad` guarded elements after each index of dimension 0. */
kd_tensor test_tensor(test_bench *bench, kd_dtype dtype, kd_shape shape, int64_t pad);

/* The same with uniform values of [low, high), rounded to the dtype (integers: whole numbers). */
kd_tensor test_filled(test_bench *bench, kd_dtype dtype, kd_shape shape, int64_t pad, double low,
                      double high);

/* A contiguous tensor of the given values. */
kd_tensor test_values(test_bench *bench, kd_dtype dtype, kd_shape shape, const double *values);

/* cu_seqlens [count + 1]: the first rows of documents of these lengths, of which the first is row
 * `first`, and the row after the last. */
kd_tensor test_offsets(test_bench *bench, const int32_t *lengths, int count, int32_t first);

/* Heads [first, first + heads) of `width` columns each, as a view [N, heads, width] of `fused`. */
kd_tensor test_heads(const kd_tensor *fused, int64_t first, int64_t heads, int64_t width);

void test_fill(test_bench *bench, const kd_tensor *t, double low, double high);
void test_fill_constant(const kd_tensor *t, double value);
double test_uniform(test_bench *bench); /* [0, 1), a linear congruential generator */

/* Element `index` in row-major order of the shape, whatever the strides; any dtype but f8_e5m2. */
double test_get(const kd_tensor *t, int64_t index);
void test_set(const kd_tensor *t, int64_t index, double value);

/* Contiguous double copies of a tensor, and `count` zeros; freed with the bench. */
double *test_doubles(test_bench *bench, const kd_tensor *t);
double *test_zeros(test_bench *bench, int64_t count);

/*
 * Fails, naming the case by `fmt` and the element, unless for every element
 *     |got - want| <= eps_f32 * (|got| + |want| + scale) * sqrt(length) + rounding to the dtype
 * `length` is the number of terms that were summed in f32, `scale` the size of what was summed
 * (1 for operands around 1).  NaN and infinity are equal only to themselves.
 */
void test_near(const kd_tensor *got, const double *want, double scale, double length,
               const char *fmt, ...) KD_PRINTF(5, 6);

/* The same of one element that was rounded `roundings` times to `dtype`. */
void test_near_value(double got, double want, kd_dtype dtype, int roundings, double scale,
                     double length, const char *fmt, ...) KD_PRINTF(7, 8);

/* Fails unless both tensors have the same shape and the same bits. */
void test_same_bits(const kd_tensor *a, const kd_tensor *b, const char *fmt, ...) KD_PRINTF(3, 4);

/* Fails unless `gradient` [n] is that of `value` with respect to x [n], by central differences in
 * double.  x is restored. */
void test_gradient(double (*value)(void *context), void *context, double *x, int64_t n,
                   const double *gradient, const char *fmt, ...) KD_PRINTF(6, 7);

/* Fails with the message of the failure; and unless the call failed so, naming `text`. */
#define test_ok(call)                    test_expect_status((call), KD_OK, "", #call)
#define test_refused(call, status, text) test_expect_status((call), (status), (text), #call)
void test_expect_status(kd_status found, kd_status expected, const char *text, const char *call);

/* An exec that plans: a counting stack in `stack`, no memory.  test_untouchable gives the view an
 * address that faults. */
kd_exec test_planning(const test_bench *bench, kd_stack *stack);
kd_tensor test_untouchable(const kd_tensor *t);

#endif
