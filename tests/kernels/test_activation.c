/* swiglu, gelu, relu and their gradients on a GPU, against the CPU. */
#include "support/parity.h"

#include <math.h>

static const struct {
    kd_shape shape;
    int64_t pad;
} cases[] = {
    { { 2, { 1, 1 } }, 0 },  { { 2, { 1, 5 } }, 0 },     { { 2, { 7, 1 } }, 2 },
    { { 2, { 9, 8 } }, 8 },  { { 2, { 3, 65 } }, 3 },    { { 2, { 5, 2080 } }, 16 },
    { { 2, { 33, 4 } }, 4 }, { { 3, { 3, 2, 40 } }, 8 }, { { 2, { 0, 8 } }, 0 },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

/* Roundings of a few products and of the exponential; nothing is summed. */
enum { STEPS = 16 };

/* Values of every size: dense around zero, sparse out to 10^30; NaN and infinity once. */
static void fill_wide(test_bench *b, const kd_tensor *t)
{
    const int64_t n = kd_tensor_elements(t);
    test_fill(b, t, -12, 12);
    for (int64_t i = 0; i < n; i += 3) {
        const double sign = test_uniform(b) < 0.5 ? -1 : 1;
        test_set(t, i, sign * pow(10, -20 + 50 * test_uniform(b)));
    }
    if (n < 3) return;
    test_set(t, n / 2, NAN);
    test_set(t, n - 1, INFINITY);
    test_set(t, 0, -0.0);
}

#define EACH_CASE(c, d)                                                                            \
    for (int c = 0; c < KD_COUNT(cases); c++)                                                      \
        for (int d = 0; d < KD_COUNT(dtypes); d++)

static const char *name_of(const char *op, const kd_tensor *t)
{
    char shape[64];
    return parity_name("%s of %s", op, kd_tensor_print(shape, sizeof shape, t));
}

Test(activation, swiglu)
{
    parity p;
    parity_open(&p, 0);
    EACH_CASE(c, d)
    {
        const int mark = test_mark(&p.bench);
        const kd_shape shape = cases[c].shape;
        const int64_t pad = cases[c].pad;
        const kd_tensor gate = test_tensor(&p.bench, dtypes[d], shape, pad);
        const kd_tensor up = test_filled(&p.bench, dtypes[d], shape, 2 * pad, -2, 2);
        const kd_tensor dy = test_filled(&p.bench, dtypes[d], shape, 0, -1, 1);
        const kd_tensor y = test_tensor(&p.bench, dtypes[d], shape, pad);
        const kd_tensor dgate = test_tensor(&p.bench, dtypes[d], shape, pad);
        const kd_tensor dup = test_tensor(&p.bench, dtypes[d], shape, 3 * pad);
        fill_wide(&p.bench, &gate);
        PARITY(&p, swiglu, 1, STEPS, name_of("swiglu", &gate), .y = &y, .gate = &gate, .up = &up);
        /* 1 + g (1 - s) crosses zero near -1.28, where its own terms give the size. */
        PARITY(&p, swiglu_backward, 2, STEPS, name_of("swiglu_backward", &gate), .dgate = &dgate,
               .dup = &dup, .dy = &dy, .gate = &gate, .up = &up);
        PARITY(&p, swiglu_backward, 2, STEPS, name_of("swiglu_backward in place", &gate),
               .dgate = &gate, .dup = &up, .dy = &dy, .gate = &gate, .up = &up);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(activation, gelu)
{
    parity p;
    parity_open(&p, 0);
    EACH_CASE(c, d)
    {
        for (int form = 0; form < 2; form++) {
            const int mark = test_mark(&p.bench);
            const kd_shape shape = cases[c].shape;
            const int64_t pad = cases[c].pad;
            const kd_tensor x = test_tensor(&p.bench, dtypes[d], shape, pad);
            const kd_tensor dy = test_filled(&p.bench, dtypes[d], shape, 0, -1, 1);
            const kd_tensor y = test_tensor(&p.bench, dtypes[d], shape, 2 * pad);
            fill_wide(&p.bench, &x);
            PARITY(&p, gelu, 1, STEPS, name_of("gelu", &x), .y = &y, .x = &x, .tanh_form = form);
            PARITY(&p, gelu_backward, 1, STEPS, name_of("gelu_backward", &x), .dx = &y, .dy = &dy,
                   .x = &x, .tanh_form = form);
            PARITY(&p, gelu_backward, 1, STEPS, name_of("gelu_backward in place", &x), .dx = &dy,
                   .dy = &dy, .x = &x, .tanh_form = form);
            test_release(&p.bench, mark);
        }
    }
    parity_close(&p);
}

/* Nothing is rounded: the same values on both. */
Test(activation, relu)
{
    parity p;
    parity_open(&p, 0);
    EACH_CASE(c, d)
    {
        const int mark = test_mark(&p.bench);
        const kd_shape shape = cases[c].shape;
        const int64_t pad = cases[c].pad;
        const kd_tensor x = test_tensor(&p.bench, dtypes[d], shape, pad);
        const kd_tensor dy = test_filled(&p.bench, dtypes[d], shape, 0, -1, 1);
        const kd_tensor y = test_tensor(&p.bench, dtypes[d], shape, 2 * pad);
        fill_wide(&p.bench, &x);
        PARITY(&p, relu, 0, 0, name_of("relu", &x), .y = &y, .x = &x);
        PARITY(&p, relu_backward, 0, 0, name_of("relu_backward", &x), .dx = &y, .dy = &dy, .x = &x);
        PARITY(&p, relu_backward, 0, 0, name_of("relu_backward in place", &x), .dx = &dy, .dy = &dy,
               .x = &x);
        PARITY(&p, relu, 0, 0, name_of("relu in place", &x), .y = &x, .x = &x);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* The tanh form keeps its relative precision in the left tail on a GPU too. */
Test(activation, tails_are_precise)
{
    enum { POINTS = 4001 };
    parity p;
    parity_open(&p, 0);
    const kd_tensor x = test_tensor(&p.bench, KD_F32, KD_SHAPE(1, POINTS), 0);
    const kd_tensor y = test_tensor(&p.bench, KD_F32, KD_SHAPE(1, POINTS), 0);
    for (int i = 0; i < POINTS; i++) test_set(&x, i, -5.0 + 10.0 * i / POINTS);
    PARITY(&p, gelu, 1, 1, "erf form", .y = &y, .x = &x, .tanh_form = false);
    /* e^-2u carries the rounding of 2u, up to 17 here. */
    PARITY(&p, gelu, 1e-30, 17 * 17, "tanh form", .y = &y, .x = &x, .tanh_form = true);
    const kd_tensor one = test_filled(&p.bench, KD_F32, KD_SHAPE(1, POINTS), 0, 1, 1);
    test_fill_constant(&one, 1);
    PARITY(&p, swiglu, 1e-30, STEPS, "silu", .y = &y, .gate = &x, .up = &one);
    parity_close(&p);
}
