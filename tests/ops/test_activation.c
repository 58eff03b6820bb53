/*
 * What the activations owe: value and gradient over the whole line of floats that a model meets,
 * strided views, results in place of operands, NaN in and NaN out.
 */
#include "oracle/ops.h"
#include "support/support.h"

#include <math.h>

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
static const kd_shape shapes[] = {
    { 2, { 1, 1 } }, { 2, { 1, 5 } }, { 2, { 7, 1 } }, { 2, { 33, 17 } }, { 2, { 2, 1027 } },
};

/* Values of every size: dense around zero, sparse out to 10^30. */
static void fill_wide(test_bench *b, const kd_tensor *t)
{
    test_fill(b, t, -12, 12);
    for (int64_t i = 0, n = kd_tensor_elements(t); i < n; i += 3) {
        const double sign = test_uniform(b) < 0.5 ? -1 : 1;
        test_set(t, i, sign * pow(10, -20 + 50 * test_uniform(b)));
    }
    test_set(t, 0, -0.0);
}

typedef struct operands {
    kd_tensor gate, up, dy, y, dgate, dup;
    double *g, *u, *d;
    int64_t n;
} operands;

static operands make(test_bench *b, kd_shape shape, kd_dtype dtype)
{
    operands o = { .gate = test_tensor(b, dtype, shape, 3),
                   .up = test_filled(b, dtype, shape, 0, -2, 2),
                   .dy = test_filled(b, dtype, shape, 5, -1, 1),
                   .y = test_tensor(b, dtype, shape, 1),
                   .dgate = test_tensor(b, dtype, shape, 2),
                   .dup = test_tensor(b, dtype, shape, 4) };
    fill_wide(b, &o.gate);
    o.g = test_doubles(b, &o.gate);
    o.u = test_doubles(b, &o.up);
    o.d = test_doubles(b, &o.dy);
    o.n = kd_tensor_elements(&o.gate);
    return o;
}

#define EACH_CASE(s, t)                                                                            \
    for (int s = 0; s < KD_COUNT(shapes); s++)                                                     \
        for (int t = 0; t < KD_COUNT(dtypes); t++)

static const char *name_of(int s, int t)
{
    static char name[64];
    const kd_tensor tensor = kd_tensor_of(NULL, dtypes[t], shapes[s]);
    return kd_tensor_print(name, sizeof name, &tensor);
}

/* Roundings of a few products and of the exponential; nothing is summed. */
enum { STEPS = 16 };

/* Below this a result may be flushed: e^x is never subnormal. */
static const double floor_of_f32 = 1e-30;

Test(activation, swiglu_agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 0);
    EACH_CASE(s, t)
    {
        const int mark = test_mark(&b);
        const operands o = make(&b, shapes[s], dtypes[t]);
        double *want = test_zeros(&b, o.n), *dgate = test_zeros(&b, o.n);
        double *dup = test_zeros(&b, o.n);
        oracle_swiglu(want, o.g, o.u, o.n);
        oracle_swiglu_backward(dgate, dup, o.d, o.g, o.u, o.n);
        test_ok(KD_RUN(&b.exec, swiglu, .y = &o.y, .gate = &o.gate, .up = &o.up));
        test_near(&o.y, want, floor_of_f32, STEPS, "swiglu of %s", name_of(s, t));
        test_ok(KD_RUN(&b.exec, swiglu_backward, .dgate = &o.dgate, .dup = &o.dup, .dy = &o.dy,
                       .gate = &o.gate, .up = &o.up));
        /* 1 + g (1 - s) crosses zero near -1.28, where its own terms give the size. */
        test_near(&o.dgate, dgate, 2, STEPS, "dgate of %s", name_of(s, t));
        test_near(&o.dup, dup, floor_of_f32, STEPS, "dup of %s", name_of(s, t));

        test_ok(KD_RUN(&b.exec, swiglu_backward, .dgate = &o.gate, .dup = &o.up, .dy = &o.dy,
                       .gate = &o.gate, .up = &o.up));
        test_same_bits(&o.gate, &o.dgate, "dgate in place of gate, %s", name_of(s, t));
        test_same_bits(&o.up, &o.dup, "dup in place of up, %s", name_of(s, t));
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(activation, gelu_agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 0);
    EACH_CASE(s, t)
    {
        for (int form = 0; form < 2; form++) {
            const int mark = test_mark(&b);
            const operands o = make(&b, shapes[s], dtypes[t]);
            double *want = test_zeros(&b, o.n), *dx = test_zeros(&b, o.n);
            oracle_gelu(want, o.g, o.n, form);
            /* The cube of 1e30 is infinite times zero in the oracle's plain form. */
            for (int64_t i = 0; i < o.n; i++) o.g[i] = fmin(fmax(o.g[i], -100), 100);
            oracle_gelu_backward(dx, o.d, o.g, o.n, form);
            test_ok(KD_RUN(&b.exec, gelu, .y = &o.y, .x = &o.gate, .tanh_form = form));
            test_near(&o.y, want, 1, STEPS, "gelu %d of %s", form, name_of(s, t));
            test_ok(KD_RUN(&b.exec, gelu_backward, .dx = &o.dgate, .dy = &o.dy, .x = &o.gate,
                           .tanh_form = form));
            test_near(&o.dgate, dx, 1, STEPS, "dx of gelu %d of %s", form, name_of(s, t));
            test_ok(KD_RUN(&b.exec, gelu_backward, .dx = &o.dy, .dy = &o.dy, .x = &o.gate,
                           .tanh_form = form));
            test_same_bits(&o.dy, &o.dgate, "dx in place of dy, gelu %d, %s", form, name_of(s, t));
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

/* Exact: nothing is rounded that was not.  -0 becomes 0, and the result serves for x. */
Test(activation, relu_agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 0);
    EACH_CASE(s, t)
    {
        const int mark = test_mark(&b);
        const operands o = make(&b, shapes[s], dtypes[t]);
        double *want = test_zeros(&b, o.n), *dx = test_zeros(&b, o.n);
        test_set(&o.dy, 0, INFINITY); /* beside x = -0: passed nowhere */
        o.d[0] = INFINITY;
        oracle_relu(want, o.g, o.n);
        oracle_relu_backward(dx, o.d, o.g, o.n);
        test_ok(KD_RUN(&b.exec, relu, .y = &o.y, .x = &o.gate));
        cr_assert(!signbit(test_get(&o.y, 0)), "relu(-0) of %s", name_of(s, t));
        test_ok(KD_RUN(&b.exec, relu_backward, .dx = &o.dgate, .dy = &o.dy, .x = &o.gate));
        for (int64_t i = 0; i < o.n; i++) {
            cr_assert(test_get(&o.y, i) == want[i], "relu of %s at %lld", name_of(s, t),
                      (long long)i);
            cr_assert(test_get(&o.dgate, i) == dx[i], "dx of relu, %s at %lld", name_of(s, t),
                      (long long)i);
        }
        test_ok(KD_RUN(&b.exec, relu, .y = &o.gate, .x = &o.gate));
        test_same_bits(&o.gate, &o.y, "relu in place of x, %s", name_of(s, t));
        test_ok(KD_RUN(&b.exec, relu_backward, .dx = &o.dy, .dy = &o.dy, .x = &o.y));
        test_same_bits(&o.dy, &o.dgate, "dx from relu's result, in place of dy, %s", name_of(s, t));
        test_release(&b, mark);
    }
    test_close(&b);
}

/* The tanh form keeps its relative precision in the left tail: no 1 + tanh that cancels.  The erf
 * form is as good as one rounding of 1 + erf. */
Test(activation, gelu_is_precise_along_the_line)
{
    enum { POINTS = 20001 };
    test_bench b;
    test_open(&b, 0);
    const kd_tensor x = test_tensor(&b, KD_F32, KD_SHAPE(1, POINTS), 0);
    const kd_tensor y = test_tensor(&b, KD_F32, KD_SHAPE(1, POINTS), 0);
    for (int i = 0; i < POINTS; i++) test_set(&x, i, -5.0 + 10.0 * i / POINTS);
    double *want = test_zeros(&b, POINTS), *values = test_doubles(&b, &x);
    oracle_gelu(want, values, POINTS, false);
    test_ok(KD_RUN(&b.exec, gelu, .y = &y, .x = &x, .tanh_form = false));
    test_near(&y, want, 1, 1, "erf form");

    for (int i = 0; i < POINTS; i++) {
        const double v = values[i], u = sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
        want[i] = v / (1 + exp(-2 * u));
    }
    test_ok(KD_RUN(&b.exec, gelu, .y = &y, .x = &x, .tanh_form = true));
    /* e^-2u carries the rounding of 2u, up to 17 here. */
    test_near(&y, want, floor_of_f32, 17 * 17, "tanh form");
    test_close(&b);
}

Test(activation, not_a_number_is_seen)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor x = test_tensor(&b, KD_F32, KD_SHAPE(1, 1), 0); /* NaN */
    const kd_tensor one = test_filled(&b, KD_F32, KD_SHAPE(1, 1), 0, 1, 1);
    const kd_tensor y = test_filled(&b, KD_F32, KD_SHAPE(1, 1), 0, 0, 0);
    const kd_tensor z = test_filled(&b, KD_F32, KD_SHAPE(1, 1), 0, 0, 0);
    test_ok(KD_RUN(&b.exec, swiglu, .y = &y, .gate = &x, .up = &one));
    cr_assert(isnan(test_get(&y, 0)), "swiglu");
    test_ok(KD_RUN(&b.exec, swiglu_backward, .dgate = &y, .dup = &z, .dy = &one, .gate = &x,
                   .up = &one));
    cr_assert(isnan(test_get(&y, 0)) && isnan(test_get(&z, 0)), "swiglu_backward");
    for (int form = 0; form < 2; form++) {
        test_ok(KD_RUN(&b.exec, gelu, .y = &y, .x = &x, .tanh_form = form));
        test_ok(KD_RUN(&b.exec, gelu_backward, .dx = &z, .dy = &one, .x = &x, .tanh_form = form));
        cr_assert(isnan(test_get(&y, 0)) && isnan(test_get(&z, 0)), "gelu %d", form);
    }
    test_ok(KD_RUN(&b.exec, relu, .y = &y, .x = &x));
    test_ok(KD_RUN(&b.exec, relu_backward, .dx = &z, .dy = &x, .x = &one));
    cr_assert(isnan(test_get(&y, 0)) && isnan(test_get(&z, 0)), "relu");
    test_close(&b);
}

enum { N = 9 };

typedef struct oracle_case {
    double gate[N], up[N], dy[N], y[N];
    int kind; /* 0 swiglu, 1 gelu, 2 gelu tanh, 3 relu */
} oracle_case;

static double oracle_value(void *context)
{
    oracle_case *o = context;
    if (o->kind == 3)
        oracle_relu(o->y, o->gate, N);
    else if (o->kind)
        oracle_gelu(o->y, o->gate, N, o->kind == 2);
    else
        oracle_swiglu(o->y, o->gate, o->up, N);
    return oracle_dot(o->y, o->dy, N);
}

Test(activation, oracle_gradients_agree_with_differences)
{
    test_bench b;
    test_open(&b, 0);
    oracle_case o;
    double dgate[N], dup[N];
    for (int i = 0; i < N; i++) {
        o.gate[i] = i - 4 + test_uniform(&b);
        o.up[i] = 2 * test_uniform(&b) - 1;
        o.dy[i] = 2 * test_uniform(&b) - 1;
    }
    o.kind = 0;
    oracle_swiglu_backward(dgate, dup, o.dy, o.gate, o.up, N);
    test_gradient(oracle_value, &o, o.gate, N, dgate, "dgate");
    test_gradient(oracle_value, &o, o.up, N, dup, "dup");
    for (o.kind = 1; o.kind < 3; o.kind++) {
        oracle_gelu_backward(dgate, o.dy, o.gate, N, o.kind == 2);
        test_gradient(oracle_value, &o, o.gate, N, dgate, "gelu %d", o.kind - 1);
    }
    oracle_relu_backward(dgate, o.dy, o.gate, N); /* o.gate is off the corner */
    test_gradient(oracle_value, &o, o.gate, N, dgate, "relu");
    test_close(&b);
}

Test(activation, plans_without_memory_and_refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor real = test_filled(&b, KD_F32, KD_SHAPE(3, 4), 0, -1, 1);
    const kd_tensor narrow = test_filled(&b, KD_F32, KD_SHAPE(3, 3), 0, -1, 1);
    const kd_tensor half = test_filled(&b, KD_BF16, KD_SHAPE(3, 4), 0, -1, 1);
    const kd_tensor t = test_untouchable(&real);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, swiglu, .y = &t, .gate = &t, .up = &t));
    test_ok(KD_RUN(&plan, swiglu_backward, .dgate = &t, .dup = &t, .dy = &t, .gate = &t, .up = &t));
    test_ok(KD_RUN(&plan, gelu, .y = &t, .x = &t));
    test_ok(KD_RUN(&plan, gelu_backward, .dx = &t, .dy = &t, .x = &t));
    test_ok(KD_RUN(&plan, relu, .y = &t, .x = &t));
    test_ok(KD_RUN(&plan, relu_backward, .dx = &t, .dy = &t, .x = &t));

    test_refused(KD_RUN(&plan, swiglu, .y = &t, .gate = &t, .up = &narrow), KD_EINVAL,
                 "up: found f32 [3, 3], expected f32 [3, 4]");
    test_refused(KD_RUN(&b.exec, swiglu_backward, .dgate = &real, .dup = &half, .dy = &real,
                        .gate = &real, .up = &real),
                 KD_EINVAL, "dup: found bf16");
    test_refused(KD_RUN(&b.exec, gelu, .y = &half, .x = &real), KD_EINVAL, "gelu: y");
    test_refused(KD_RUN(&b.exec, gelu_backward, .dx = &real, .x = &real), KD_EINVAL, "dy: absent");
    test_refused(KD_RUN(&b.exec, relu, .y = &narrow, .x = &real), KD_EINVAL, "relu: y");
    test_refused(KD_RUN(&b.exec, relu_backward, .dx = &half, .dy = &real, .x = &real), KD_EINVAL,
                 "relu_backward: dx");
    test_close(&b);
}
