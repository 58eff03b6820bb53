/*
 * What rope owes: values for short and long positions, partial rotation, head views of a fused row,
 * a backward pass that is the transpose of the forward pass.
 */
#include "oracle/ops.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

typedef struct rope_case {
    int64_t rows, heads, size, half, pad;
    double longest; /* positions are below it */
} rope_case;

static const rope_case cases[] = {
    { 1, 1, 2, 1, 0, 5 },         { 7, 3, 16, 8, 0, 100 },         { 5, 2, 17, 8, 3, 2048 },
    { 13, 1, 64, 16, 9, 131072 }, { 4, 2, 1100, 530, 0, 1 << 20 }, { 3, 2, 6, 0, 1, 10 },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

/* theta^(-i / half) as models make them. */
static kd_tensor frequencies_of(test_bench *b, int64_t half)
{
    const kd_tensor t = test_tensor(b, KD_F32, KD_SHAPE(half), 0);
    for (int64_t i = 0; i < half; i++) test_set(&t, i, pow(10000, -(double)i / (double)half));
    return t;
}

Test(rope, agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 0);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        for (int t = 0; t < KD_COUNT(dtypes); t++) {
            for (int backward = 0; backward < 2; backward++) {
                const int mark = test_mark(&b);
                const rope_case c = cases[i];
                const kd_shape shape = KD_SHAPE(c.rows, c.heads, c.size);
                const kd_tensor x = test_filled(&b, dtypes[t], shape, c.pad, -1, 1);
                const kd_tensor p = test_filled(&b, KD_I32, KD_SHAPE(c.rows), 0, 0, c.longest);
                const kd_tensor f = frequencies_of(&b, c.half);
                const float scale = backward ? 1 : 1.25f;
                double *want = test_doubles(&b, &x);
                oracle_rope(want, test_doubles(&b, &p), test_doubles(&b, &f), c.rows, c.heads,
                            c.size, c.half, scale, backward);
                test_ok(KD_RUN(&b.exec, rope, .x = &x, .positions = &p, .frequencies = &f,
                               .scale = scale, .backward = backward));
                test_near(&x, want, 2, 2, "case %d of %s, backward %d", i, kd_dtype_name(dtypes[t]),
                          backward);
                test_release(&b, mark);
            }
        }
    }
    test_close(&b);
}

/* The columns of k in a fused [N, q | k | v] row, rotated alone: its neighbours keep their bits. */
Test(rope, turns_one_part_of_a_fused_row)
{
    enum { ROWS = 150, HEADS = 4, SIZE = 32, WIDTH = 3 * HEADS * SIZE };
    test_bench b;
    test_open(&b, 0);
    kd_tensor fused[2];
    for (int threads = 1; threads <= 2; threads++) {
        omp_set_num_threads(threads);
        b.seed = 7;
        fused[threads - 1] = test_filled(&b, KD_BF16, KD_SHAPE(ROWS, WIDTH), 5, -1, 1);
        const kd_tensor *whole = &fused[threads - 1];
        const kd_tensor p = test_filled(&b, KD_I32, KD_SHAPE(ROWS), 0, 0, 500);
        const kd_tensor f = frequencies_of(&b, SIZE / 2);
        double *want = test_doubles(&b, whole);
        const kd_tensor k = test_heads(whole, HEADS, HEADS, SIZE);
        double *turned = test_doubles(&b, &k);
        oracle_rope(turned, test_doubles(&b, &p), test_doubles(&b, &f), ROWS, HEADS, SIZE, SIZE / 2,
                    1, false);
        for (int64_t i = 0; i < ROWS * HEADS * SIZE; i++)
            want[i / (HEADS * SIZE) * WIDTH + HEADS * SIZE + i % (HEADS * SIZE)] = turned[i];
        test_ok(KD_RUN(&b.exec, rope, .x = &k, .positions = &p, .frequencies = &f, .scale = 1));
        test_near(whole, want, 2, 2, "%d threads", threads);
    }
    test_same_bits(&fused[0], &fused[1], "1 and 2 threads");
    test_close(&b);
}

enum { ROWS = 3, HEADS = 2, SIZE = 7, HALF = 3, ALL = ROWS * HEADS * SIZE };

typedef struct oracle_case {
    double x[ALL], dy[ALL];
    double positions[ROWS], frequencies[HALF];
} oracle_case;

static double oracle_value(void *context)
{
    const oracle_case *o = context;
    double y[ALL];
    memcpy(y, o->x, sizeof y);
    oracle_rope(y, o->positions, o->frequencies, ROWS, HEADS, SIZE, HALF, 1.5, false);
    return oracle_dot(y, o->dy, ALL);
}

Test(rope, oracle_gradient_agrees_with_differences)
{
    test_bench b;
    test_open(&b, 0);
    oracle_case o = { .positions = { 0, 1, 77 }, .frequencies = { 1, 0.3, 0.01 } };
    double dx[ALL];
    for (int i = 0; i < ALL; i++) {
        o.x[i] = 2 * test_uniform(&b) - 1;
        o.dy[i] = dx[i] = 2 * test_uniform(&b) - 1;
    }
    oracle_rope(dx, o.positions, o.frequencies, ROWS, HEADS, SIZE, HALF, 1.5, true);
    test_gradient(oracle_value, &o, o.x, ALL, dx, "dx");
    test_close(&b);
}

Test(rope, plans_without_memory_and_refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(3, 2, 8), 0, -1, 1);
    const kd_tensor p = test_filled(&b, KD_I32, KD_SHAPE(3), 0, 0, 9);
    const kd_tensor f = frequencies_of(&b, 4), long_f = frequencies_of(&b, 5);
    const kd_tensor fx = test_untouchable(&x), fp = test_untouchable(&p), ff = test_untouchable(&f);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, rope, .x = &fx, .positions = &fp, .frequencies = &ff, .scale = 1));
    test_refused(KD_RUN(&plan, rope, .x = &fx, .positions = &ff, .frequencies = &ff), KD_EINVAL,
                 "positions: found f32");
    test_refused(KD_RUN(&b.exec, rope, .x = &x, .positions = &p, .frequencies = &long_f), KD_EINVAL,
                 "frequencies: found 5, expected at most 4");
    const kd_tensor flat = test_filled(&b, KD_F32, KD_SHAPE(3, 8), 0, -1, 1);
    test_refused(KD_RUN(&b.exec, rope, .x = &flat, .positions = &p, .frequencies = &f), KD_EINVAL,
                 "rope: x");
    test_close(&b);
}
