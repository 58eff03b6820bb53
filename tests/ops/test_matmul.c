/* The product with its GELU; tests/device/test_matmul.c has the products themselves. */
#include "oracle/matmul.h"
#include "oracle/ops.h"
#include "support/products.h"

#include <math.h>

static void check(test_bench *bench, const product_case *c)
{
    const int mark = test_mark(bench);
    const product p = product_open(bench, c);
    const kd_tensor pre = test_tensor(bench, c->y_dtype, KD_SHAPE(c->m, c->n), c->pad);
    const int64_t count = c->m * c->n;
    double *want = test_zeros(bench, count), *y = test_zeros(bench, count);
    test_ok(KD_RUN(&bench->exec, matmul_gelu, .y = &p.y, .pre = &pre, .a = &p.a, .b = &p.b,
                   .bias = &p.bias));
    oracle_matmul(want, test_doubles(bench, &p.a), test_doubles(bench, &p.b),
                  c->bias ? test_doubles(bench, &p.bias) : NULL, c->m, c->k, c->n);
    test_near(&pre, want, product_scale(c), (double)c->k + 1, "pre of %s", product_name(c));
    oracle_gelu(y, test_doubles(bench, &pre), count, true); /* of pre as it was rounded */
    test_near(&p.y, y, 1, 8, "gelu of %s", product_name(c));
    test_release(bench, mark);
}

/* What a decoder's products are: no library's. */
static void check_row(void *context, const product_case *c)
{
    test_bench *bench = context;
    if (c->m != 1 || c->accumulate) return;
    const int mark = test_mark(bench);
    const product p = product_open(bench, c);
    double *want = test_zeros(bench, c->n);
    test_ok(KD_RUN(&bench->exec, matmul, .y = &p.y, .a = &p.a, .b = &p.b, .bias = &p.bias));
    oracle_matmul(want, test_doubles(bench, &p.a), test_doubles(bench, &p.b),
                  c->bias ? test_doubles(bench, &p.bias) : NULL, 1, c->k, c->n);
    test_near(&p.y, want, product_scale(c), (double)c->k + 1, "row of %s", product_name(c));
    test_release(bench, mark);
}

Test(matmul, one_row)
{
    test_bench bench;
    test_open(&bench, 1u << 20);
    product_each(check_row, &bench);
    test_close(&bench);
}

/* y = a a', of which half is computed: by rows and by columns, whole stripes and odd ones. */
Test(matmul, of_a_matrix_and_itself)
{
    static const int64_t sizes[][3] = {
        { 256, 3, 0 }, { 257, 40, 5 }, { 300, 19, 2 }, { 391, 65, 0 }, { 255, 7, 1 },
    };
    test_bench bench;
    test_open(&bench, 8u << 20);
    for (int i = 0; i < 2 * KD_COUNT(sizes); i++) {
        const int64_t n = sizes[i / 2][0], k = sizes[i / 2][1];
        const int mark = test_mark(&bench);
        const kd_tensor given = test_filled(&bench, KD_F32, i % 2 ? KD_SHAPE(k, n) : KD_SHAPE(n, k),
                                            sizes[i / 2][2], -1, 1);
        const kd_tensor a = i % 2 ? kd_tensor_transposed(&given) : given;
        const kd_tensor turned = kd_tensor_transposed(&a);
        const kd_tensor y = test_tensor(&bench, KD_F32, KD_SHAPE(n, n), sizes[i / 2][2]);
        double *want = test_zeros(&bench, n * n);
        test_ok(KD_RUN(&bench.exec, matmul, .y = &y, .a = &a, .b = &turned));
        oracle_matmul(want, test_doubles(&bench, &a), test_doubles(&bench, &turned), NULL, n, k, n);
        test_near(&y, want, sqrt((double)k) / 3, (double)k + 1, "%lld rows of %lld, %s",
                  (long long)n, (long long)k, i % 2 ? "by columns" : "by rows");
        test_release(&bench, mark);
    }
    test_close(&bench);
}

Test(matmul, gelu)
{
    test_bench bench;
    test_open(&bench, 8u << 20);
    for (int i = 0; i < 8; i++) {
        const kd_dtype dtype = i & 1 ? KD_BF16 : KD_F32;
        const product_case c = { .m = i & 2 ? 5 : 33,
                                 .k = i & 2 ? 19 : 64,
                                 .n = i & 2 ? 7 : 48,
                                 .tb = true,
                                 .dtype = dtype,
                                 .y_dtype = dtype,
                                 .bias = i & 4,
                                 .bias_dtype = dtype,
                                 .pad = i % 3 };
        check(&bench, &c);
    }
    test_close(&bench);
}

Test(matmul, gelu_refuses)
{
    test_bench bench;
    test_open(&bench, 1u << 20);
    const product_case c = { .m = 4, .k = 6, .n = 3, .dtype = KD_BF16, .y_dtype = KD_BF16 };
    const product p = product_open(&bench, &c);
    const kd_tensor wide = test_tensor(&bench, KD_F32, KD_SHAPE(4, 3), 0);
    const kd_tensor columns = test_tensor(&bench, KD_BF16, KD_SHAPE(3, 4), 0);
    const kd_tensor turned = kd_tensor_transposed(&columns), none = { 0 };
    kd_exec *exec = &bench.exec;
    test_refused(KD_RUN(exec, matmul_gelu, .y = &p.y, .pre = &wide, .a = &p.a, .b = &p.b),
                 KD_EINVAL, "y: found bf16");
    test_refused(KD_RUN(exec, matmul_gelu, .y = &p.y, .pre = &turned, .a = &p.a, .b = &p.b),
                 KD_EINVAL, "pre: found stride 4");
    test_refused(KD_RUN(exec, matmul_gelu, .y = &p.y, .pre = &none, .a = &p.a, .b = &p.b),
                 KD_EINVAL, "pre: absent");
    test_refused(KD_RUN(exec, matmul_gelu, .y = &p.y, .pre = &p.y, .a = &p.b, .b = &p.a), KD_EINVAL,
                 "b: found");
    test_close(&bench);
}
