#include "oracle/matmul.h"
#include "support/support.h"

#include <malloc.h>
#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>

typedef struct product_case {
    int64_t m, k, n;
    bool ta, tb, ty; /* the matrix lies column by column */
    bool bias, accumulate;
    kd_dtype dtype, y_dtype, bias_dtype;
    int64_t pad; /* elements between rows that belong to somebody else */
} product_case;

static kd_tensor matrix(test_bench *bench, kd_dtype dtype, int64_t rows, int64_t columns,
                        bool turned, int64_t pad, bool fill)
{
    const kd_shape shape = turned ? KD_SHAPE(columns, rows) : KD_SHAPE(rows, columns);
    const kd_tensor t =
        fill ? test_filled(bench, dtype, shape, pad, -1, 1) : test_tensor(bench, dtype, shape, pad);
    return turned ? kd_tensor_transposed(&t) : t;
}

static kd_status run(kd_exec *exec, const product_case *c, const kd_tensor *y, const kd_tensor *a,
                     const kd_tensor *b, const kd_tensor *bias)
{
    if (c->accumulate) return KD_RUN(exec, matmul_add, .y = y, .a = a, .b = b);
    return KD_RUN(exec, matmul, .y = y, .a = a, .b = b, .bias = bias);
}

/* Plans, runs on exactly the planned scratch, compares. */
static void check(test_bench *bench, const product_case *c)
{
    const int mark = test_mark(bench);
    const kd_tensor a = matrix(bench, c->dtype, c->m, c->k, c->ta, c->pad, true);
    const kd_tensor b = matrix(bench, c->dtype, c->k, c->n, c->tb, c->pad, true);
    const kd_tensor y = matrix(bench, c->y_dtype, c->m, c->n, c->ty, c->pad, c->accumulate);
    kd_tensor bias = { 0 };
    if (c->bias) bias = test_filled(bench, c->bias_dtype, KD_SHAPE(c->n), 0, -1, 1);

    double *want = c->accumulate ? test_doubles(bench, &y) : test_zeros(bench, c->m * c->n);
    oracle_matmul(want, test_doubles(bench, &a), test_doubles(bench, &b),
                  c->bias ? test_doubles(bench, &bias) : NULL, c->m, c->k, c->n);

    kd_stack planned;
    kd_exec planning = test_planning(bench, &planned);
    const kd_tensor no_y = test_untouchable(&y), no_a = test_untouchable(&a),
                    no_b = test_untouchable(&b), no_bias = test_untouchable(&bias);
    test_ok(run(&planning, c, &no_y, &no_a, &no_b, c->bias ? &no_bias : &bias));

    const size_t capacity = bench->stack.capacity;
    cr_assert_leq(planned.peak, capacity, "scratch of %zu bytes", planned.peak);
    bench->stack.capacity = planned.peak;
    test_ok(run(&bench->exec, c, &y, &a, &b, &bias));
    bench->stack.capacity = capacity;
    /* A sum of k products of numbers uniform in [-1, 1) has a standard deviation of sqrt(k) / 3. */
    test_near(&y, want, 1 + sqrt((double)c->k) / 3, (double)c->k + 1,
              "m %lld k %lld n %lld, turned a %d b %d y %d, %s to %s, bias %d, accumulate %d, "
              "pad %lld",
              (long long)c->m, (long long)c->k, (long long)c->n, c->ta, c->tb, c->ty,
              kd_dtype_name(c->dtype), kd_dtype_name(c->y_dtype), c->bias, c->accumulate,
              (long long)c->pad);
    test_release(bench, mark);
}

static const int64_t shapes[][3] = {
    /* m, k, n */
    { 1, 1, 1 }, { 1, 7, 1 }, { 5, 1, 3 },    { 1, 33, 17 },  { 65, 31, 1 },  { 3, 0, 5 },
    { 0, 4, 3 }, { 4, 3, 0 }, { 17, 64, 33 }, { 64, 96, 48 }, { 7, 130, 19 }, { 129, 65, 70 },
};

/* Every layout of a, b and y, element types, bias and accumulation, for one shape. */
static void check_shape(test_bench *bench, const int64_t shape[3])
{
    static const kd_dtype dtypes[][2] = { { KD_F32, KD_F32 },
                                          { KD_BF16, KD_F32 },
                                          { KD_BF16, KD_BF16 } };
    for (int d = 0; d < KD_COUNT(dtypes); d++)
        for (int layout = 0; layout < 8; layout++)
            for (int form = 0; form < 4; form++) {
                product_case c = { .m = shape[0],
                                   .k = shape[1],
                                   .n = shape[2],
                                   .ta = layout & 1,
                                   .tb = layout & 2,
                                   .ty = layout & 4,
                                   .dtype = dtypes[d][0],
                                   .y_dtype = dtypes[d][1],
                                   .bias = form == 1 || form == 2,
                                   .bias_dtype = form == 1 ? KD_F32 : dtypes[d][0],
                                   .accumulate = form == 3,
                                   .pad = (layout + form) % 2 ? 5 : 0 };
                check(bench, &c);
            }
}

Test(matmul, agrees_with_double)
{
    test_bench bench;
    test_open(&bench, 32u << 20);
    for (int s = 0; s < KD_COUNT(shapes); s++) check_shape(&bench, shapes[s]);
    test_close(&bench);
}

/* What a processor without AVX-512 runs: bf16 by way of f32. */
Test(matmul, agrees_with_double_without_avx512)
{
    setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
    test_bench bench;
    test_open(&bench, 32u << 20);
    for (int s = 0; s < KD_COUNT(shapes); s++) check_shape(&bench, shapes[s]);
    test_close(&bench);
}

/* Many calls after the first: same bits, other buffers served, and no memory kept. */
Test(matmul, second_sight_allocates_nothing_and_repeats_bits)
{
    test_bench bench;
    test_open(&bench, 32u << 20);
    for (int d = 0; d < 2; d++) {
        const int mark = test_mark(&bench);
        const kd_dtype dtype = d ? KD_BF16 : KD_F32;
        const kd_tensor a = matrix(&bench, dtype, 96, 61, false, 3, true);
        const kd_tensor b = matrix(&bench, dtype, 61, 130, true, 0, true);
        const kd_tensor first = test_tensor(&bench, KD_F32, KD_SHAPE(96, 130), 0);
        const kd_tensor again = test_tensor(&bench, KD_F32, KD_SHAPE(96, 130), 0);
        const product_case c = { .accumulate = false };
        test_ok(run(&bench.exec, &c, &first, &a, &b, NULL));
        for (int i = 0; i < 50; i++) test_ok(run(&bench.exec, &c, &again, &a, &b, NULL));
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
        const size_t before = mallinfo2().uordblks;
#endif
        for (int i = 0; i < 50; i++) test_ok(run(&bench.exec, &c, &again, &a, &b, NULL));
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
        cr_assert_eq(mallinfo2().uordblks, before, "50 products left %zd bytes",
                     (ssize_t)(mallinfo2().uordblks - before));
#endif
        test_same_bits(&first, &again, "%s", kd_dtype_name(dtype));
        test_release(&bench, mark);
    }
    test_close(&bench);
}

/* Past the cache's bound everything is made anew; the old shapes still work. */
Test(matmul, cache_is_bounded)
{
    test_bench bench;
    test_open(&bench, 1u << 20);
    for (int64_t m = 1; m <= 1100; m++) {
        const product_case c = { .m = m, .k = 2, .n = 1, .dtype = KD_F32, .y_dtype = KD_F32 };
        check(&bench, &c);
    }
    const product_case c = { .m = 1, .k = 2, .n = 1, .dtype = KD_F32, .y_dtype = KD_F32 };
    check(&bench, &c);
    test_close(&bench);
}

static void *work(void *context)
{
    const int threads = *(const int *)context;
    omp_set_num_threads(threads);
    test_bench bench;
    test_open(&bench, 8u << 20);
    for (int64_t m = 30; m < 40; m++) {
        const product_case c = {
            .m = m, .k = 50, .n = 70, .tb = true, .dtype = KD_BF16, .y_dtype = KD_F32
        };
        check(&bench, &c);
    }
    test_close(&bench);
    return NULL;
}

Test(matmul, devices_work_side_by_side)
{
    int threads[] = { 1, 2, 3 };
    pthread_t workers[KD_COUNT(threads)];
    for (int i = 0; i < KD_COUNT(threads); i++)
        cr_assert_eq(pthread_create(&workers[i], NULL, work, &threads[i]), 0);
    for (int i = 0; i < KD_COUNT(threads); i++) pthread_join(workers[i], NULL);

    /* One device whose number of threads changes: scratch is that of the number at hand. */
    test_bench bench;
    test_open(&bench, 8u << 20);
    for (int n = 1; n <= 4; n++) {
        omp_set_num_threads(n);
        const product_case c = { .m = 200, .k = 64, .n = 90, .ta = true, .accumulate = true };
        check(&bench, &c);
    }
    test_close(&bench);
}

Test(matmul, refuses)
{
    test_bench bench;
    test_open(&bench, 1u << 20);
    kd_exec *exec = &bench.exec;
    const kd_tensor a = test_filled(&bench, KD_F32, KD_SHAPE(4, 6), 0, -1, 1);
    const kd_tensor b = test_filled(&bench, KD_F32, KD_SHAPE(6, 3), 0, -1, 1);
    const kd_tensor y = test_tensor(&bench, KD_F32, KD_SHAPE(4, 3), 0);
    const kd_tensor short_y = kd_tensor_slice(&y, 0, 0, 3), none = { 0 };
    test_refused(KD_RUN(exec, matmul, .y = &short_y, .a = &a, .b = &b), KD_EINVAL, "y: found");
    test_refused(KD_RUN(exec, matmul, .y = &y, .a = &b, .b = &a), KD_EINVAL, "b: found");
    test_refused(KD_RUN(exec, matmul_add, .y = &y, .a = &a, .b = &none), KD_EINVAL, "b: absent");
    kd_tensor bad = a;
    bad.stride[1] = 2;
    test_refused(KD_RUN(exec, matmul, .y = &y, .a = &bad, .b = &b), KD_EINVAL, "strides 6, 2");
    bad = a;
    bad.stride[0] = 5; /* rows that overlap */
    test_refused(KD_RUN(exec, matmul, .y = &y, .a = &bad, .b = &b), KD_EINVAL, "strides 5, 1");
    bad = a;
    bad.dtype = KD_F16;
    test_refused(KD_RUN(exec, matmul, .y = &y, .a = &bad, .b = &b), KD_ENOTSUP, "a: f16");
    bad = y;
    bad.dtype = KD_BF16;
    test_refused(KD_RUN(exec, matmul, .y = &bad, .a = &a, .b = &b), KD_ENOTSUP, "y: bf16");
    test_refused(KD_RUN(exec, matmul, .y = &y, .a = &a, .b = &b, .bias = &a), KD_EINVAL,
                 "bias: found");
    test_close(&bench);
}
