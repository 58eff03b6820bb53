/*
 * What row_distance owes: value and gradient of every kind, over rows longer than a strip, weights and
 * types; dead rows; the same bits from one thread and from two.
 */
#include "oracle/distance.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const struct {
    int64_t rows, columns, pad;
} shapes[] = { { 1, 1, 0 }, { 5, 7, 3 }, { 3, 512, 0 }, { 4, 1100, 1 }, { 0, 9, 0 } };

typedef struct operands {
    kd_tensor x, y, d, weight, loss, scale;
} operands;

static operands make(test_bench *b, int64_t rows, int64_t columns, int64_t pad, kd_dtype x,
                     kd_dtype y)
{
    const kd_shape shape = KD_SHAPE(rows, columns);
    operands o = { .x = test_filled(b, x, shape, pad, -2, 2),
                   .y = test_filled(b, y, shape, 2 * pad, -1, 3),
                   .d = test_filled(b, x, shape, pad + 1, -1, 1),
                   .weight = test_filled(b, KD_F32, KD_SHAPE(rows), 0, 0.5, 2),
                   .loss = test_tensor(b, KD_F32, KD_SHAPE(rows), 0),
                   .scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 0.5, 1) };
    if (rows > 2) test_set(&o.weight, 1, 0);
    return o;
}

static kd_status run(kd_exec *exec, const operands *o, kd_distance kind)
{
    return KD_RUN(exec, row_distance, .d_student = &o->d, .loss = &o->loss, .student = &o->x,
                  .teacher = &o->y, .weight = &o->weight, .scale = &o->scale, .kind = kind,
                  .factor = 0.75f);
}

/* Against the oracle from the operands as they are now. */
static void check(test_bench *b, const operands *o, kd_distance kind, const char *name)
{
    const int64_t rows = o->x.shape[0], columns = o->x.shape[1];
    const double *x = test_doubles(b, &o->x), *y = test_doubles(b, &o->y);
    double *d = test_doubles(b, &o->d), *loss = test_zeros(b, rows), *g = test_zeros(b, columns);
    const double scale = test_get(&o->scale, 0);
    for (int64_t n = 0; n < rows; n++) {
        const double share = 0.75 * test_get(&o->weight, n);
        loss[n] = share * oracle_distance(g, x + n * columns, y + n * columns, columns, kind);
        for (int64_t i = 0; i < columns; i++) d[n * columns + i] += scale * share * g[i];
    }
    test_ok(run(&b->exec, o, kind));
    const double large = kind == KD_DISTANCE_SQUARED ? 16.0 * (double)columns : 4;
    test_near(&o->loss, loss, large, 4, "%s, kind %d: loss", name, kind);
    test_near(&o->d, d, 16, 4, "%s, kind %d: gradient", name, kind);
}

Test(row_distance, agrees_with_the_oracle)
{
    static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
    test_bench b;
    test_open(&b, 1 << 10);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < 4; t++)
            for (int kind = 0; kind < KD_DISTANCE_COUNT; kind++) {
                const int mark = test_mark(&b);
                const operands o = make(&b, shapes[s].rows, shapes[s].columns, shapes[s].pad,
                                        dtypes[t & 1], dtypes[t >> 1]);
                check(&b, &o, (kd_distance)kind, kd_dtype_name(dtypes[t & 1]));
                test_release(&b, mark);
            }
    test_close(&b);
}

typedef struct differences {
    double x[9], y[9];
    kd_distance kind;
} differences;

static double value_of(void *context)
{
    const differences *c = context;
    return oracle_distance(NULL, c->x, c->y, 9, c->kind);
}

Test(row_distance, the_oracles_gradient_is_that_of_its_value)
{
    test_bench b;
    test_open(&b, 0);
    for (int kind = 0; kind < KD_DISTANCE_COUNT; kind++) {
        differences c = { .kind = (kd_distance)kind };
        double gradient[9];
        for (int i = 0; i < 9; i++) c.x[i] = 2 * test_uniform(&b) - 1, c.y[i] = test_uniform(&b);
        oracle_distance(gradient, c.x, c.y, 9, c.kind);
        test_gradient(value_of, &c, c.x, 9, gradient, "kind %d", kind);
    }
    test_close(&b);
}

Test(row_distance, dead_rows_and_equal_rows_are_at_rest)
{
    static const double value[KD_DISTANCE_COUNT][3] = {
        { 0, 9, 9 }, { 1, 1, 1 }, { 0, 1, 1 }, { 0, 1, 1 }
    }; /* both dead, the student, the teacher */
    test_bench b;
    test_open(&b, 1 << 10);
    for (int kind = 0; kind < KD_DISTANCE_COUNT; kind++) {
        const int mark = test_mark(&b);
        operands o = make(&b, 4, 3, 0, KD_F32, KD_F32);
        test_fill_constant(&o.weight, 1);
        test_fill_constant(&o.d, 0);
        for (int i = 0; i < 12; i++) {
            test_set(&o.x, i, i >= 6 ? i % 3 : 0);
            test_set(&o.y, i, i < 3 || (i >= 6 && i < 9) ? 0 : i % 3);
        }
        test_set(&o.x, 8, -2), test_set(&o.x, 7, 2), test_set(&o.x, 6, 1);
        test_set(&o.y, 5, -2), test_set(&o.y, 4, 2), test_set(&o.y, 3, 1);
        test_ok(run(&b.exec, &o, (kd_distance)kind));
        for (int n = 0; n < 4; n++) {
            const double want = n < 3 ? 0.75 * value[kind][n] : 0, got = test_get(&o.loss, n);
            cr_expect(fabs(got - want) <= 1e-6, "kind %d, row %d: %g", kind, n, got);
        }
        for (int i = 0; i < 12; i++) {
            const bool still = kind != KD_DISTANCE_SQUARED || i < 3 || i >= 9;
            if (still) cr_expect(test_get(&o.d, i) == 0, "kind %d: gradient %d", kind, i);
        }
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(row_distance, bits_do_not_depend_on_threads)
{
    test_bench b[2];
    operands o[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        test_open(&b[i], 1 << 10);
        o[i] = make(&b[i], 70, 600, 1, KD_BF16, KD_F32);
        test_ok(run(&b[i].exec, &o[i], KD_DISTANCE_NORMALISED));
    }
    test_same_bits(&o[0].d, &o[1].d, "gradient");
    test_same_bits(&o[0].loss, &o[1].loss, "loss");
    for (int i = 0; i < 2; i++) test_close(&b[i]);
}

Test(row_distance, plans_without_memory_and_refuses_what_does_not_fit)
{
    test_bench b;
    kd_stack counting;
    test_open(&b, 0);
    const operands good = make(&b, 4, 6, 0, KD_F32, KD_BF16);
    operands o = good;
    o.x = test_untouchable(&good.x), o.y = test_untouchable(&good.y);
    o.d = test_untouchable(&good.d), o.loss = test_untouchable(&good.loss);
    kd_exec plan = test_planning(&b, &counting);
    test_ok(run(&plan, &o, KD_DISTANCE_COSINE));
    o = good;
    o.y = test_tensor(&b, KD_F32, KD_SHAPE(4, 7), 0);
    test_refused(run(&b.exec, &o, KD_DISTANCE_COSINE), KD_EINVAL, "row_distance: teacher");
    o = good;
    o.d = test_tensor(&b, KD_BF16, KD_SHAPE(4, 6), 0);
    test_refused(run(&b.exec, &o, KD_DISTANCE_COSINE), KD_EINVAL, "d_student");
    o = good;
    o.weight = test_tensor(&b, KD_F32, KD_SHAPE(5), 0);
    test_refused(run(&b.exec, &o, KD_DISTANCE_COSINE), KD_EINVAL, "weight");
    test_refused(run(&b.exec, &good, KD_DISTANCE_COUNT), KD_EINVAL, "kind: found 4");
    test_close(&b);
}
