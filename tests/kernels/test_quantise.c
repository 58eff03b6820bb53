/* e4m3 on a GPU: the CPU's codes to the bit, products by cuBLASLt, and teachers of it. */
#include "support/parity.h"
#include "support/quantised.h"

#include <math.h>
#include <stdlib.h>

/* Products of e4m3 are there from sm_89 on, those with scales of rows on sm_90 alone.  The emulated
 * device is of `capability`. */
static void require_e4m3(int capability)
{
    kd_device *gpu;
    parity_capability(capability);
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
    test_ok(kd_device_cuda.open(&gpu, 0));
    const kd_exec exec = { .device = gpu };
    const int found = kd_cuda_limits_of(&exec)->capability;
    kd_device_close(gpu);
    if (found < KD_CUDA_E4M3_SINCE) cr_skip_test("sm_%d", found);
}

Test(quantise, gives_the_codes_of_the_cpu)
{
    static const struct {
        int64_t rows, columns, pad, y_pad;
    } shapes[] = { { 1, 1, 0, 0 },    { 1, 33, 0, 0 },   { 77, 1, 0, 0 },   { 5, 48, 0, 0 },
                   { 9, 24, 8, 8 },   { 9, 24, 3, 3 },   { 9, 24, 8, 1 },   { 3, 40, 4, 4 },
                   { 3, 40, 1, 8 },   { 300, 8, 0, 0 },  { 2, 1024, 0, 0 }, { 2, 1032, 0, 0 },
                   { 3, 1025, 0, 0 }, { 2, 5000, 8, 8 }, { 0, 16, 0, 0 },   { 4, 0, 0, 0 } };
    parity p;
    parity_open(&p, 0);
    for (int s = 0; s < KD_COUNT(shapes) * 2; s++) {
        const kd_dtype dtype = s % 2 ? KD_BF16 : KD_F32;
        const int mark = test_mark(&p.bench);
        const kd_shape shape = KD_SHAPE(shapes[s / 2].rows, shapes[s / 2].columns);
        const kd_tensor x = test_filled(&p.bench, dtype, shape, shapes[s / 2].pad, -3, 3);
        const kd_tensor y = test_tensor(&p.bench, KD_F8_E4M3, shape, shapes[s / 2].y_pad);
        const kd_tensor scale = test_tensor(&p.bench, KD_F32, KD_SHAPE(shapes[s / 2].rows), 0);
        const char *name = parity_name("%s, case %d", kd_dtype_name(dtype), s / 2);
        PARITY(&p, quantise, 0, 0, name, .y = &y, .scale = &scale, .x = &x);
        static const double odd[] = { NAN, -INFINITY, 100, -1e-30, 3e38 };
        for (int i = 0; i < KD_COUNT(odd) && kd_tensor_elements(&x) > 0; i++) {
            test_set(&x, kd_tensor_elements(&x) - 1 - i % kd_tensor_columns(&x), odd[i]);
            if (i) test_set(&x, kd_tensor_elements(&x) / 2, odd[i]);
            PARITY(&p, quantise, 0, 0, name, .y = &y, .scale = &scale, .x = &x);
        }
        test_fill_constant(&x, s % 4 < 2 ? 0 : 1e-42);
        PARITY(&p, quantise, 0, 0, name, .y = &y, .scale = &scale, .x = &x);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

static void compare(parity *p, const scaled_case *c)
{
    const int mark = test_mark(&p->bench);
    const scaled_product t = scaled_open(&p->bench, c);
    PARITY(p, matmul_scaled, scaled_size(&t), (double)c->k + 2, scaled_name(c), .y = &t.y,
           .a = &t.a, .b = &t.b, .a_scale = &t.a_scale, .b_scale = &t.b_scale, .bias = &t.bias);
    test_release(&p->bench, mark);
}

/* Where our kernel scales, a bf16 y was rounded before its bias, which may leave little of it. */
static void check_products(int capability)
{
    static const int64_t shapes[][3] = { { 1, 16, 16 },   { 5, 48, 80 },   { 16, 16, 32 },
                                         { 33, 640, 16 }, { 129, 32, 64 }, { 3, 0, 16 },
                                         { 0, 16, 16 },   { 4, 16, 0 } };
    require_e4m3(capability);
    parity p;
    parity_open(&p, 8u << 20);
    for (int s = 0; s < KD_COUNT(shapes) * 4; s++) {
        const scaled_case c = { .m = shapes[s / 4][0],
                                .k = shapes[s / 4][1],
                                .n = shapes[s / 4][2],
                                .y_dtype = s & 1 ? KD_BF16 : KD_F32,
                                .bias = s & 2 && (capability == 90 || !(s & 1)),
                                .pad = s % 3 ? 0 : 16 };
        compare(&p, &c);
    }
    parity_close(&p);
}

Test(quantise, products) { check_products(90); }

Test(quantise, products_without_scales) { check_products(89); }

/* An f32 product has the library's scales or ours, and whose they are the alignment decides. */
Test(quantise, scales_anywhere)
{
    require_e4m3(90);
    parity p;
    parity_open(&p, 8u << 20);
    const scaled_case c = { .m = 6, .k = 48, .n = 32, .y_dtype = KD_F32, .bias = true };
    const scaled_product t = scaled_open(&p.bench, &c);
    for (int i = 0; i < 3; i++) {
        const kd_tensor a = test_filled(&p.bench, KD_F32, KD_SHAPE(c.m + i), 0, 0.01, 0.02);
        const kd_tensor b = test_filled(&p.bench, KD_F32, KD_SHAPE(c.n + i), 0, 2, 4);
        const kd_tensor a_scale = kd_tensor_slice(&a, 0, i, c.m);
        const kd_tensor b_scale = kd_tensor_slice(&b, 0, i, c.n);
        PARITY(&p, matmul_scaled, scaled_size(&t), (double)c.k + 2, scaled_name(&c), .y = &t.y,
               .a = &t.a, .b = &t.b, .a_scale = &a_scale, .b_scale = &b_scale, .bias = &t.bias);
    }
    parity_close(&p);
}

/* What is not finite stays in its row and column. */
Test(quantise, rescales)
{
    static const int64_t shapes[][3] = { { 1, 1, 0 },    { 3, 7, 2 },   { 9, 24, 0 }, { 9, 24, 8 },
                                         { 3, 1032, 0 }, { 70, 16, 0 }, { 0, 4, 0 },  { 3, 0, 0 } };
    parity p;
    parity_open(&p, 0);
    for (int s = 0; s < KD_COUNT(shapes) * 8; s++) {
        const int64_t rows = shapes[s / 8][0], columns = shapes[s / 8][1], shift = s & 4 ? 1 : 0;
        const kd_dtype dtype = s & 1 ? KD_BF16 : KD_F32;
        const int mark = test_mark(&p.bench);
        const kd_tensor y =
            test_filled(&p.bench, dtype, KD_SHAPE(rows, columns), shapes[s / 8][2], -3, 3);
        const kd_tensor row = test_filled(&p.bench, KD_F32, KD_SHAPE(rows), 0, 0.1, 2);
        const kd_tensor columns_of =
            test_filled(&p.bench, KD_F32, KD_SHAPE(columns + shift), 0, -2, 2);
        const kd_tensor column = kd_tensor_slice(&columns_of, 0, shift, columns);
        const kd_tensor bias = test_filled(&p.bench, KD_BF16, KD_SHAPE(columns), 0, -1, 1);
        const kd_tensor none = { 0 };
        if (rows > 2) test_set(&row, 1, NAN);
        if (columns > 5) test_set(&column, 5, INFINITY);
        PARITY(&p, rescale, 13, 3, parity_name("%s, case %d", kd_dtype_name(dtype), s), .y = &y,
               .row = &row, .column = &column, .bias = s & 2 ? &bias : &none);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* A product whose algorithms are chosen by the clock, over scratch. */
Test(quantise, tuned_products)
{
    const scaled_case c = { .m = 33, .k = 640, .n = 16, .y_dtype = KD_BF16, .bias = true };
    require_e4m3(90);
    setenv("XDG_CACHE_HOME", "/dev/null/no", 1);
    parity p;
    parity_open(&p, 8u << 20);
    p.gpu->tune = true;
    compare(&p, &c);
    kd_stack stack = { .peak = 1u << 20 };
    kd_exec exec = { .device = p.gpu, .stack = &stack };
    test_ok(kd_stack_open(&stack, p.gpu));
    test_ok(kd_device_tune(&exec));
    kd_stack_close(&stack, p.gpu);
    compare(&p, &c);
    parity_close(&p);
}

static void refused(parity *p, scaled_case c, const char *text)
{
    const int mark = test_mark(&p->bench);
    const scaled_product t = scaled_open(&p->bench, &c);
    kd_stack stack = { .planning = true };
    kd_exec exec = { .device = p->gpu, .stack = &stack };
    test_refused(KD_RUN(&exec, matmul_scaled, .y = &t.y, .a = &t.a, .b = &t.b,
                        .a_scale = &t.a_scale, .b_scale = &t.b_scale),
                 KD_ENOTSUP, text);
    test_release(&p->bench, mark);
}

Test(quantise, refuses_sizes)
{
    require_e4m3(90);
    parity p;
    parity_open(&p, 0);
    refused(&p, (scaled_case){ .m = 4, .k = 24, .n = 16, .y_dtype = KD_BF16 },
            "b: found [24, 16], expected multiples of 16");
    refused(&p, (scaled_case){ .m = 4, .k = 16, .n = 8, .y_dtype = KD_BF16 },
            "b: found [16, 8], expected multiples of 16");
    refused(&p, (scaled_case){ .m = 4, .k = 16, .n = 16, .y_dtype = KD_BF16, .pad = 1 },
            "no f8_e4m3 kernel for [4, 16] by [16, 16]");
    parity_close(&p);
    test_refused(test_quantised_open("cuda", false, false), KD_ENOTSUP, "dtype bf16 needs");
}

Test(quantise, refuses_devices)
{
    parity p;
    parity_capability(80);
    parity_open(&p, 0);
    const kd_exec exec = { .device = p.gpu };
    if (kd_cuda_limits_of(&exec)->capability < KD_CUDA_E4M3_SINCE) {
        refused(&p, (scaled_case){ .m = 4, .k = 16, .n = 16, .y_dtype = KD_BF16 },
                "expected sm_89 or later");
        test_refused(test_quantised_open("cuda", true, false), KD_ENOTSUP,
                     "teacher: dtype f8_e4m3: matmul_scaled: ");
    }
    parity_close(&p);
}

Test(quantise, teachers_are_nearly_those_of_bf16)
{
    require_e4m3(90);
    test_quantised_teachers("cuda");
}

Test(quantise, teachers_without_scales_of_rows)
{
    require_e4m3(89);
    test_quantised_teachers("cuda");
}
