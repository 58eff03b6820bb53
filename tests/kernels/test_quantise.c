/* e4m3 on a GPU: the CPU's codes to the bit, products by cuBLASLt, and teachers of it. */
#include "support/parity.h"
#include "support/quantised.h"

#include <math.h>
#include <stdlib.h>

/* Products of e4m3 are there from sm_89 on; the emulated device is of sm_80 unless told. */
static void require_e4m3(void)
{
    kd_device *gpu;
    setenv("KD_SIM_CAPABILITY", "90", 1);
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
    test_ok(kd_device_cuda.open(&gpu, 0));
    const kd_exec exec = { .device = gpu };
    const int capability = kd_cuda_limits_of(&exec)->capability;
    kd_device_close(gpu);
    if (capability < KD_CUDA_E4M3_SINCE) cr_skip_test("sm_%d", capability);
}

Test(quantise, gives_the_codes_of_the_cpu)
{
    static const struct {
        int64_t rows, columns, pad, y_pad;
    } shapes[] = { { 1, 1, 0, 0 },  { 1, 33, 0, 0 },  { 77, 1, 0, 0 },   { 5, 48, 0, 0 },
                   { 9, 24, 8, 8 }, { 9, 24, 3, 3 },  { 9, 24, 8, 1 },   { 3, 40, 4, 4 },
                   { 3, 40, 1, 8 }, { 700, 8, 0, 0 }, { 2, 5000, 0, 0 }, { 0, 16, 0, 0 },
                   { 4, 0, 0, 0 } };
    parity p;
    parity_open(&p, 0);
    for (int s = 0; s < KD_COUNT(shapes) * 2; s++) {
        const kd_dtype dtype = s % 2 ? KD_BF16 : KD_F32;
        const int mark = test_mark(&p.bench);
        const kd_shape shape = KD_SHAPE(shapes[s / 2].rows, shapes[s / 2].columns);
        const kd_tensor x = test_filled(&p.bench, dtype, shape, shapes[s / 2].pad, -3, 3);
        const kd_tensor y = test_tensor(&p.bench, KD_F8_E4M3, shape, shapes[s / 2].y_pad);
        const kd_tensor scale = test_tensor(&p.bench, KD_F32, KD_SHAPE(1), 0);
        const char *name = parity_name("%s, case %d", kd_dtype_name(dtype), s / 2);
        PARITY(&p, quantise, 0, 0, name, .y = &y, .scale = &scale, .x = &x);
        static const double odd[] = { NAN, -INFINITY, 100, -1e-30, 3e38 };
        for (int i = 0; i < KD_COUNT(odd) && kd_tensor_elements(&x) > 0; i++) {
            test_set(&x, kd_tensor_elements(&x) - 1 - i % kd_tensor_columns(&x), odd[i]);
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

Test(quantise, products)
{
    static const int64_t shapes[][3] = { { 1, 16, 16 },   { 5, 48, 80 },   { 16, 16, 32 },
                                         { 33, 640, 16 }, { 129, 32, 64 }, { 3, 0, 16 },
                                         { 0, 16, 16 },   { 4, 16, 0 } };
    require_e4m3();
    parity p;
    parity_open(&p, 8u << 20);
    for (int s = 0; s < KD_COUNT(shapes) * 4; s++) {
        const scaled_case c = { .m = shapes[s / 4][0],
                                .k = shapes[s / 4][1],
                                .n = shapes[s / 4][2],
                                .y_dtype = s & 1 ? KD_BF16 : KD_F32,
                                .bias = s & 2,
                                .pad = s % 3 ? 0 : 16 };
        compare(&p, &c);
    }
    parity_close(&p);
}

/* A product whose algorithms are chosen by the clock, over scratch. */
Test(quantise, tuned_products)
{
    const scaled_case c = { .m = 33, .k = 640, .n = 16, .y_dtype = KD_BF16, .bias = true };
    require_e4m3();
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
    require_e4m3();
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

/* The emulated device's own capability is 80. */
Test(quantise, refuses_devices)
{
    parity p;
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
    require_e4m3();
    test_quantised_teachers("cuda");
}
