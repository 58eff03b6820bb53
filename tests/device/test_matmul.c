#include "oracle/matmul.h"
#include "support/products.h"

#include <malloc.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>

/* Plans, runs on exactly the planned scratch, compares. */
static void check(test_bench *bench, const product_case *c)
{
    const int mark = test_mark(bench);
    const product p = product_open(bench, c);
    double *want = c->accumulate ? test_doubles(bench, &p.y) : test_zeros(bench, c->m * c->n);
    oracle_matmul(want, test_doubles(bench, &p.a), test_doubles(bench, &p.b),
                  c->bias ? test_doubles(bench, &p.bias) : NULL, c->m, c->k, c->n);

    kd_stack planned;
    kd_exec planning = test_planning(bench, &planned);
    const product none = { test_untouchable(&p.y), test_untouchable(&p.a), test_untouchable(&p.b),
                           c->bias ? test_untouchable(&p.bias) : p.bias };
    test_ok(product_run(&planning, c, &none));

    const size_t capacity = bench->stack.capacity;
    cr_assert_leq(planned.peak, capacity, "scratch of %zu bytes", planned.peak);
    bench->stack.capacity = planned.peak;
    test_ok(product_run(&bench->exec, c, &p));
    bench->stack.capacity = capacity;
    test_near(&p.y, want, product_scale(c), (double)c->k + 1, "%s", product_name(c));
    test_release(bench, mark);
}

static void visit(void *context, const product_case *c) { check(context, c); }

Test(matmul, agrees_with_double)
{
    test_bench bench;
    test_open(&bench, 32u << 20);
    product_each(visit, &bench);
    test_close(&bench);
}

static void visit_batch(void *context, const product_batch *c)
{
    test_bench *bench = context;
    const int mark = test_mark(bench);
    const product p = product_batch_open(bench, c);
    const int64_t m = c->m, k = c->k, n = c->n;
    const double *a = test_doubles(bench, &p.a), *b = test_doubles(bench, &p.b);
    double *want = test_zeros(bench, c->b * m * n);
    for (int64_t i = 0; i < c->b; i++)
        oracle_matmul(want + i * m * n, a + i * m * k, b + i * k * n, NULL, m, k, n);
    test_ok(KD_RUN(&bench->exec, matmul_batched, .y = &p.y, .a = &p.a, .b = &p.b));
    test_near(&p.y, want, 1 + (double)k / 3, (double)k + 1, "%s", product_batch_name(c));
    test_release(bench, mark);
}

Test(matmul, batches_agree_with_double)
{
    test_bench bench;
    test_open(&bench, 8u << 20);
    product_each_batch(visit_batch, &bench);
    const product_batch c = { .b = 3, .m = 5, .k = 4, .n = 6 };
    const product p = product_batch_open(&bench, &c);
    kd_tensor bad = p.y;
    bad.stride[0] = 29; /* matrices that overlap */
    test_refused(KD_RUN(&bench.exec, matmul_batched, .y = &bad, .a = &p.a, .b = &p.b), KD_EINVAL,
                 "y: matrices lie 29 elements apart; expected at least 30");
    bad = p.a;
    bad.shape[0] = 2;
    test_refused(KD_RUN(&bench.exec, matmul_batched, .y = &p.y, .a = &bad, .b = &p.b), KD_EINVAL,
                 "b: found");
    test_close(&bench);
}

/* What a processor without AVX-512 runs: bf16 by way of f32. */
Test(matmul, agrees_with_double_without_avx512)
{
    setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
    test_bench bench;
    test_open(&bench, 32u << 20);
    product_each(visit, &bench);
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
        const product_case c = { .m = 96, .k = 61, .n = 130, .dtype = dtype, .tb = true, .pad = 3 };
        const product first = product_open(&bench, &c);
        product again = first;
        again.y = test_tensor(&bench, KD_F32, KD_SHAPE(96, 130), 3);
        test_ok(product_run(&bench.exec, &c, &first));
        for (int i = 0; i < 50; i++) test_ok(product_run(&bench.exec, &c, &again));
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
        const size_t before = mallinfo2().uordblks;
#endif
        for (int i = 0; i < 50; i++) test_ok(product_run(&bench.exec, &c, &again));
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
        cr_assert_eq(mallinfo2().uordblks, before, "50 products left %zd bytes",
                     (ssize_t)(mallinfo2().uordblks - before));
#endif
        test_same_bits(&first.y, &again.y, "%s", kd_dtype_name(dtype));
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
