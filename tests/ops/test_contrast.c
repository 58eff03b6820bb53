/*
 * What contrast, contrast_partition and renew_rows owe: value, gradient, Z and bank of the oracle, over rows
 * of many widths and types, more ids than a chunk and fewer; dead rows, rows of weight 0, equal samples; the
 * same bits from one thread and from two; refusals.
 */
#include "oracle/contrast.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const struct {
    int64_t batch, negatives, n, columns, pad;
} shapes[] = { { 1, 1, 1, 1, 0 },      { 4, 6, 50, 5, 3 },      { 3, 31, 20, 128, 0 },
               { 3, 32, 300, 130, 1 }, { 2, 70, 900, 1024, 0 }, { 0, 4, 7, 9, 0 } };

typedef struct operands {
    kd_tensor x, dx, bank, samples, negatives, partition, weight, scale, loss;
    float temperature, eps;
} operands;

static operands make(test_bench *b, int s, kd_dtype dtype)
{
    const int64_t batch = shapes[s].batch, n = shapes[s].n, pad = shapes[s].pad;
    const kd_shape shape = KD_SHAPE(batch, shapes[s].columns);
    operands o = {
        .x = test_filled(b, dtype, shape, pad, -2, 2),
        .dx = test_filled(b, dtype, shape, pad + 1, -1, 1),
        .bank = test_filled(b, KD_F32, KD_SHAPE(n, shape.dim[1]), pad, -1, 1),
        .samples = test_filled(b, KD_I32, KD_SHAPE(batch), 0, 0, (double)n),
        .negatives = test_filled(b, KD_I32, KD_SHAPE(batch, shapes[s].negatives), 0, 0, (double)n),
        .partition = test_filled(b, KD_F32, KD_SHAPE(2), 0, 20, 60),
        .weight = test_filled(b, KD_F32, KD_SHAPE(batch), 0, 0.5, 2),
        .scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 0.5, 1),
        .loss = test_filled(b, KD_F32, KD_SHAPE(batch), 0, 0, 1),
        .temperature = 0.3f,
        .eps = 1e-3f,
    };
    for (int64_t r = 0; r < n; r++) { /* rows about as long as 1 */
        const double by = sqrt(3.0 / (double)shape.dim[1]);
        for (int64_t i = 0; i < shape.dim[1]; i++)
            test_set(&o.bank, r * shape.dim[1] + i, by * test_get(&o.bank, r * shape.dim[1] + i));
    }
    return o;
}

static kd_status run(kd_exec *exec, const operands *o)
{
    return KD_RUN(exec, contrast, .dx = &o->dx, .loss = &o->loss, .x = &o->x, .bank = &o->bank,
                  .samples = &o->samples, .negatives = &o->negatives, .partition = &o->partition,
                  .weight = &o->weight, .scale = &o->scale, .temperature = o->temperature,
                  .eps = o->eps, .side = 1);
}

static kd_status find_z(kd_exec *exec, const operands *o)
{
    return KD_RUN(exec, contrast_partition, .partition = &o->partition, .x = &o->x,
                  .bank = &o->bank, .samples = &o->samples, .negatives = &o->negatives,
                  .weight = &o->weight, .temperature = o->temperature, .side = 1);
}

static kd_status renew(kd_exec *exec, const operands *o, float momentum)
{
    return KD_RUN(exec, renew_rows, .bank = &o->bank, .x = &o->x, .samples = &o->samples,
                  .weight = &o->weight, .momentum = momentum);
}

static oracle_contrast oracle_of(test_bench *b, const operands *o)
{
    return (oracle_contrast){ .bank = test_doubles(b, &o->bank),
                              .n = o->bank.shape[0],
                              .columns = o->x.shape[1],
                              .negatives = o->negatives.shape[1],
                              .temperature = (double)o->temperature,
                              .eps = (double)o->eps,
                              .z = test_get(&o->partition, 1) };
}

static void ids_of(int32_t *ids, const operands *o, int64_t b)
{
    ids[0] = ((const int32_t *)o->samples.data)[b];
    memcpy(ids + 1, (const int32_t *)o->negatives.data + b * o->negatives.shape[1],
           (size_t)o->negatives.shape[1] * sizeof *ids);
}

static void check_scores(test_bench *b, const operands *o, const char *name)
{
    const int64_t batch = o->x.shape[0], columns = o->x.shape[1];
    const oracle_contrast of = oracle_of(b, o);
    const double *x = test_doubles(b, &o->x), scale = test_get(&o->scale, 0);
    double *d = test_doubles(b, &o->dx), *loss = test_doubles(b, &o->loss), g[KD_MAX_CONTRAST];
    int32_t ids[80];
    for (int64_t r = 0; r < batch; r++) {
        const double weight = test_get(&o->weight, r);
        if (weight == 0) continue;
        ids_of(ids, o, r);
        loss[r] += weight * oracle_contrast_row(g, x + r * columns, ids, &of);
        for (int64_t i = 0; i < columns; i++) d[r * columns + i] += scale * weight * g[i];
    }
    test_ok(run(&b->exec, o));
    test_near(&o->loss, loss, 16, (double)of.negatives + 1, "%s: loss", name);
    test_near(&o->dx, d, 8, (double)of.negatives + 1, "%s: gradient", name);
}

Test(contrast, scores_and_gradients_are_the_oracles)
{
    test_bench b;
    test_open(&b, 1 << 10);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < 4; t++) {
            const int mark = test_mark(&b);
            operands o = make(&b, s, t & 1 ? KD_BF16 : KD_F32);
            if (t & 2) o.temperature = 0.07f, o.eps = 0;
            if (o.x.shape[0] > 2) { /* a dead row, and one that is not read */
                for (int64_t i = 0; i < o.x.shape[1]; i++) {
                    test_set(&o.x, o.x.shape[1] + i, NAN);
                    test_set(&o.x, 2 * o.x.shape[1] + i, 0);
                }
                test_set(&o.weight, 1, 0);
                test_set(&o.samples, 1, -5);
            }
            check_scores(&b, &o, t & 1 ? "bf16" : "f32");
            test_release(&b, mark);
        }
    test_close(&b);
}

typedef struct differences {
    double x[6], bank[20 * 6];
    int32_t ids[8];
    oracle_contrast of;
} differences;

static double value_of(void *context)
{
    const differences *c = context;
    return oracle_contrast_row(NULL, c->x, c->ids, &c->of);
}

/* With bank and Z as they are: neither has a gradient. */
Test(contrast, the_oracles_gradient_is_that_of_its_value)
{
    test_bench b;
    test_open(&b, 0);
    for (int n = 0; n < 6; n++) {
        differences c = { .of = { NULL, 20, 6, 7, n % 2 ? 0.07 : 0.5, 1e-7, 40 } };
        double gradient[6];
        c.of.bank = c.bank;
        for (int i = 0; i < 6; i++) c.x[i] = 2 * test_uniform(&b) - 1;
        for (int i = 0; i < 120; i++) c.bank[i] = (2 * test_uniform(&b) - 1) * sqrt(0.5);
        for (int i = 0; i < 8; i++) c.ids[i] = (int32_t)(20 * test_uniform(&b));
        (void)oracle_contrast_row(gradient, c.x, c.ids, &c.of);
        test_gradient(value_of, &c, c.x, 6, gradient, "case %d", n);
    }
    test_close(&b);
}

/* Scores from -50 to 50 at the lowest temperature, at the smallest and the largest Z. */
Test(contrast, no_score_overflows)
{
    test_bench b;
    test_open(&b, 1 << 10);
    for (int n = 0; n < 4; n++) {
        const int mark = test_mark(&b);
        operands o = make(&b, 1, KD_F32);
        o.temperature = 0.02f;
        test_set(&o.partition, 1, n < 2 ? 1e-22 : 1e31);
        for (int64_t i = 0; i < kd_tensor_elements(&o.bank); i++)
            test_set(&o.bank, i, i % 5 == 0 ? i / 5 % 2 ? 1 : -1 : 0);
        for (int64_t i = 0; i < kd_tensor_elements(&o.x); i++)
            test_set(&o.x, i, i % 5 == 0 ? n % 2 ? 3 : -3 : 0);
        check_scores(&b, &o, "far");
        for (int64_t i = 0; i < o.loss.shape[0]; i++) cr_assert(isfinite(test_get(&o.loss, i)));
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(contrast, the_first_batch_sets_the_partition)
{
    test_bench b;
    test_open(&b, 1 << 10);
    for (int s = 0; s < KD_COUNT(shapes); s++) {
        const int mark = test_mark(&b);
        operands o = make(&b, s, KD_BF16);
        const oracle_contrast of = oracle_of(&b, &o);
        const double *x = test_doubles(&b, &o.x), kept = test_get(&o.partition, 1);
        const double other = test_get(&o.partition, 0);
        double sum = 0, rows = 0;
        if (shapes[s].batch > 2)
            test_set(&o.weight, 1, 0), test_set(&o.negatives, of.negatives, -1);
        for (int64_t r = 0; r < shapes[s].batch; r++) {
            int32_t ids[80];
            if (test_get(&o.weight, r) == 0) continue;
            ids_of(ids, &o, r);
            sum += oracle_contrast_sum(x + r * of.columns, ids, &of), rows++;
        }
        test_ok(find_z(&b.exec, &o));
        cr_assert_eq(test_get(&o.partition, 1), kept, "shape %d: a Z that is known moved", s);
        test_set(&o.partition, 1, 0);
        test_ok(find_z(&b.exec, &o));
        const double want = rows > 0 ? sum / (rows * (double)(of.negatives + 1)) * (double)of.n : 0;
        const double got = test_get(&o.partition, 1);
        cr_assert(fabs(got - want) <= 1e-5 * want, "shape %d: %g, expected %g", s, got, want);
        cr_assert_eq(test_get(&o.partition, 0), other, "shape %d: the other side's moved", s);
        if (shapes[s].batch > 0) { /* what is not finite sets nothing */
            test_set(&o.partition, 1, 0);
            test_set(&o.x, 0, INFINITY);
            test_ok(find_z(&b.exec, &o));
            cr_assert_eq(test_get(&o.partition, 1), 0);
        }
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(contrast, banks_are_renewed_by_the_last_of_equal_samples)
{
    static const double sample[] = {
        7, 3, 7, 0, 7, 5, 4, 2
    }; /* row 4 has weight 0, row 5 is NaN */
    enum { ROWS = KD_COUNT(sample), N = 9, WIDTH = 600 };
    test_bench b;
    test_open(&b, 1 << 10);
    for (int t = 0; t < 6; t++) {
        const int mark = test_mark(&b);
        const double momentum = (double[]){ 0.5, 1, 0 }[t / 2];
        operands o = { .x = test_filled(&b, t & 1 ? KD_BF16 : KD_F32, KD_SHAPE(ROWS, WIDTH), 1, -2,
                                        2),
                       .bank = test_filled(&b, KD_F32, KD_SHAPE(N, WIDTH), 3, -0.1, 0.1),
                       .samples = test_values(&b, KD_I32, KD_SHAPE(ROWS), sample),
                       .weight = test_filled(&b, KD_F32, KD_SHAPE(ROWS), 0, 0.5, 1) };
        test_set(&o.weight, 4, 0);
        test_set(&o.x, 5 * WIDTH + 77, NAN);
        for (int i = 0; i < WIDTH; i++) { /* a dead row on a row of zeros; a dead row */
            test_set(&o.x, 6 * WIDTH + i, 0), test_set(&o.bank, 4 * WIDTH + i, 0);
            test_set(&o.x, 7 * WIDTH + i, 0);
        }
        const double *x = test_doubles(&b, &o.x);
        double *want = test_doubles(&b, &o.bank);
        for (int r = 0; r < ROWS; r++)
            if (r == 1 || r == 2 || r == 3 || r >= 6)
                oracle_renew(want + (int)sample[r] * WIDTH, x + r * WIDTH, WIDTH, momentum);
        if (momentum == 0) /* nothing is left of it but its length of 0: it stays */
            for (int i = 0; i < WIDTH; i++) want[2 * WIDTH + i] = test_get(&o.bank, 2 * WIDTH + i);
        test_ok(renew(&b.exec, &o, (float)momentum));
        test_near(&o.bank, want, 0.1, 8, "momentum %g", momentum);
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(contrast, bits_do_not_depend_on_threads)
{
    test_bench b[2];
    operands o[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        test_open(&b[i], 1 << 10);
        o[i] = make(&b[i], 3, KD_BF16);
        test_set(&o[i].partition, 1, 0);
        test_set(&o[i].samples, 2, test_get(&o[i].samples, 0));
        test_ok(find_z(&b[i].exec, &o[i]));
        test_ok(run(&b[i].exec, &o[i]));
        test_ok(renew(&b[i].exec, &o[i], 0.5f));
    }
    test_same_bits(&o[0].partition, &o[1].partition, "Z");
    test_same_bits(&o[0].dx, &o[1].dx, "gradient");
    test_same_bits(&o[0].loss, &o[1].loss, "loss");
    test_same_bits(&o[0].bank, &o[1].bank, "bank");
    for (int i = 0; i < 2; i++) test_close(&b[i]);
}

Test(contrast, plans_without_memory_and_refuses_what_does_not_fit)
{
    test_bench b;
    kd_stack counting;
    test_open(&b, 1 << 10);
    const operands good = make(&b, 1, KD_F32);
    operands o = good;
    o.x = test_untouchable(&good.x), o.dx = test_untouchable(&good.dx);
    o.bank = test_untouchable(&good.bank), o.samples = test_untouchable(&good.samples);
    o.partition = test_untouchable(&good.partition);
    kd_exec plan = test_planning(&b, &counting);
    test_ok(find_z(&plan, &o));
    test_ok(run(&plan, &o));
    test_ok(renew(&plan, &o, 0.5f));
    o = good;
    o.bank = test_tensor(&b, KD_F32, KD_SHAPE(50, 6), 0);
    test_refused(run(&b.exec, &o), KD_EINVAL, "contrast: bank");
    o = good;
    o.bank = test_tensor(&b, KD_F32, KD_SHAPE(0, 5), 0);
    test_refused(renew(&b.exec, &o, 0.5f), KD_EINVAL, "bank: found 0 rows");
    o = good;
    o.bank = test_tensor(&b, KD_BF16, KD_SHAPE(50, 5), 0);
    test_refused(run(&b.exec, &o), KD_EINVAL, "bank");
    o = good;
    o.negatives = test_tensor(&b, KD_I32, KD_SHAPE(4, 0), 0);
    test_refused(run(&b.exec, &o), KD_EINVAL, "negatives: found none");
    o = good;
    o.partition = test_filled(&b, KD_F32, KD_SHAPE(1), 0, 1, 2);
    test_refused(find_z(&b.exec, &o), KD_EINVAL, "side: found 1, expected 0 to 0");
    o = good;
    o.temperature = 0.01f;
    test_refused(run(&b.exec, &o), KD_EINVAL, "temperature: found 0.01");
    o = good;
    o.eps = NAN;
    test_refused(run(&b.exec, &o), KD_EINVAL, "eps");
    o = good;
    o.dx = test_tensor(&b, KD_BF16, KD_SHAPE(4, 5), 0);
    test_refused(run(&b.exec, &o), KD_EINVAL, "dx");
    o = good;
    o.x = test_tensor(&b, KD_F32, KD_SHAPE(4, KD_MAX_CONTRAST + 1), 0);
    o.bank = test_tensor(&b, KD_F32, KD_SHAPE(50, KD_MAX_CONTRAST + 1), 0);
    test_refused(run(&b.exec, &o), KD_EINVAL, "x: found 1025 columns, expected 1 to 1024");
    test_refused(renew(&b.exec, &good, 1.5f), KD_EINVAL, "momentum: found 1.5");
    test_set(&good.negatives, 9, 50);
    test_refused(run(&b.exec, &good), KD_EINVAL, "negatives of row 1: 50, expected 0 to 49");
    test_refused(find_z(&b.exec, &o), KD_EINVAL, "");
    test_set(&good.samples, 2, -1);
    test_refused(renew(&b.exec, &good, 0.5f), KD_EINVAL, "samples of row 2: -1");
    test_close(&b);
}
