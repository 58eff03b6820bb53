/*
 * What the ops over the pairs of a batch owe: agreement with the oracle and of the oracle with its own
 * differences, duplicate rows and batches of one, digits of rows that lie close, d absent, weights,
 * strides, the same bits from one thread and from two.
 */
#include "oracle/ops.h"
#include "oracle/pairs.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const int64_t counts[] = { 1, 2, 3, 5, 17, 33, 70 };
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
enum { WIDTH = 6, MOST = 70, STACK = 1 << 20 };
static const float eps = 1e-7f, scale_of_d = 0.75f;

/* ---- distances -------------------------------------------------------------------------------- */

static void check_distances(test_bench *b, int64_t rows, int64_t columns, kd_dtype dtype)
{
    const kd_tensor x = test_filled(b, dtype, KD_SHAPE(rows, columns), 3, -2, 2);
    const kd_tensor y = test_tensor(b, KD_F32, KD_SHAPE(rows, rows), 1);
    const kd_tensor dy = test_filled(b, KD_F32, KD_SHAPE(rows, rows), 2, -1, 1);
    const kd_tensor dx = test_filled(b, dtype, KD_SHAPE(rows, columns), 5, -1, 1);
    double *values = test_doubles(b, &x), *gradient = test_doubles(b, &dx);
    double *want = test_zeros(b, rows * rows);
    oracle_pair_distances(want, values, rows, columns);
    oracle_pair_distances_backward(gradient, test_doubles(b, &dy), values, rows, columns);
    test_ok(KD_RUN(&b->exec, pair_distances, .y = &y, .x = &x));
    test_ok(KD_RUN(&b->exec, pair_distances_backward, .dx = &dx, .dy = &dy, .x = &x));
    /* All terms are positive: the error is relative. */
    test_near(&y, want, 0, (double)columns, "%d rows of %d: y", (int)rows, (int)columns);
    test_near(&dx, gradient, 16, (double)rows, "%d rows of %d: dx", (int)rows, (int)columns);
    for (int64_t i = 0; i < rows * rows; i++)
        cr_assert(test_get(&y, i) == test_get(&y, i % rows * rows + i / rows),
                  "%d rows: not symmetric at %d", (int)rows, (int)i);
}

Test(pairs, distances_agree_with_the_oracle)
{
    static const int64_t widths[] = { 1, 7, 64, 513, 1100 };
    test_bench b;
    test_open(&b, STACK);
    for (int n = 0; n < KD_COUNT(counts); n++)
        for (int w = 0; w < KD_COUNT(widths); w++)
            for (int t = 0; t < KD_COUNT(dtypes); t++) {
                const int mark = test_mark(&b);
                check_distances(&b, counts[n], widths[w], dtypes[t]);
                test_release(&b, mark);
            }
    test_close(&b);
}

/* By the Gram identity nothing would be left of a difference of 1e-4 beside 1000. */
Test(pairs, rows_that_lie_close_keep_their_digits)
{
    test_bench b;
    test_open(&b, STACK);
    const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(4, 33), 0, 900, 1000);
    for (int64_t i = 0; i < 33; i++)
        for (int64_t r = 1; r < 3; r++)
            test_set(&x, 33 * r + i, test_get(&x, i) + (double)(r - 1) * 1e-3 * (double)(i % 3));
    const kd_tensor y = test_tensor(&b, KD_F32, KD_SHAPE(4, 4), 0);
    double want[16];
    oracle_pair_distances(want, test_doubles(&b, &x), 4, 33);
    test_ok(KD_RUN(&b.exec, pair_distances, .y = &y, .x = &x));
    test_near(&y, want, 0, 33, "y");
    cr_assert(test_get(&y, 1) == 0 && test_get(&y, 5) == 0, "equal rows are apart");
    test_close(&b);
}

/* ---- losses over [N,N] ------------------------------------------------------------------------ */

typedef enum kind { DISTANCE, WHOLE, ANGLE, PKT, KINDS } kind;

static const char *const names[] = { "rkd_distance", "rkd_distance of the whole", "rkd_angle",
                                     "pkt" };

/* Features of a batch in which some rows are equal, on either side alone and on both. */
static double *features(test_bench *b, int64_t rows, bool student)
{
    double *x = test_zeros(b, rows * WIDTH);
    for (int64_t i = 0; i < rows * WIDTH; i++) x[i] = 2 * test_uniform(b) - 1;
    for (int64_t i = 0; i < WIDTH && rows > 5; i++) {
        x[2 * WIDTH + i] = x[i];
        x[(student ? 3 : 4) * WIDTH + i] = x[WIDTH + i];
    }
    return x;
}

/* What a loss reads of one side, from features. */
static void relate(double *to, const double *x, int64_t rows, kind of)
{
    double y[MOST * WIDTH], norm[MOST];
    if (of != PKT) {
        oracle_pair_distances(to, x, rows, WIDTH);
        return;
    }
    oracle_normalise(y, norm, x, rows, WIDTH, eps, true);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < rows; j++)
            to[i * rows + j] = oracle_dot(y + i * WIDTH, y + j * WIDTH, WIDTH);
}

static kd_tensor related(test_bench *b, int64_t rows, kind of, bool student, int64_t pad)
{
    double *to = test_zeros(b, rows * rows);
    relate(to, features(b, rows, student), rows, of);
    const kd_tensor t = test_tensor(b, KD_F32, KD_SHAPE(rows, rows), pad);
    for (int64_t i = 0; i < rows * rows; i++) test_set(&t, i, to[i]);
    return t;
}

static void oracle(double *d, double *loss, const oracle_pairs *p, kind of)
{
    if (of == ANGLE) oracle_rkd_angle(d, loss, p);
    if (of == PKT) oracle_pkt(d, loss, p, eps);
    if (of == DISTANCE || of == WHOLE) oracle_rkd_distance(d, loss, p, of == WHOLE);
}

static oracle_size size_of(const oracle_pairs *p, kind of)
{
    return of == ANGLE ? oracle_rkd_angle_size(p)
           : of == PKT ? oracle_pkt_size(p, eps)
                       : oracle_rkd_distance_size(p);
}

typedef struct operands {
    kd_tensor student, teacher, weight, scale, loss, d;
} operands;

static operands make(test_bench *b, int64_t rows, kind of)
{
    const double scale = scale_of_d;
    operands o = { .student = related(b, rows, of, true, 3),
                   .teacher = related(b, rows, of, false, 2),
                   .weight = test_filled(b, KD_F32, KD_SHAPE(rows), 0, 0, 2),
                   .scale = test_values(b, KD_F32, KD_SHAPE(1), &scale),
                   .loss = test_tensor(b, KD_F32, KD_SHAPE(rows), 0),
                   .d = test_tensor(b, KD_F32, KD_SHAPE(rows, rows), 1) };
    test_set(&o.weight, rows / 2, 0);
    return o;
}

static kd_status run(kd_exec *exec, const operands *o, kind of, const kd_tensor *weight,
                     const kd_tensor *d)
{
    if (of == ANGLE)
        return KD_RUN(exec, rkd_angle, .d = d, .loss = &o->loss, .student = &o->student,
                      .teacher = &o->teacher, .weight = weight, .scale = &o->scale);
    if (of == PKT)
        return KD_RUN(exec, pkt, .d = d, .loss = &o->loss, .student = &o->student,
                      .teacher = &o->teacher, .weight = weight, .scale = &o->scale, .eps = eps);
    return KD_RUN(exec, rkd_distance, .d = d, .loss = &o->loss, .student = &o->student,
                  .teacher = &o->teacher, .weight = weight, .scale = &o->scale,
                  .whole = of == WHOLE);
}

Test(pairs, losses_agree_with_the_oracle)
{
    test_bench b;
    test_open(&b, STACK);
    for (int n = 0; n < KD_COUNT(counts); n++)
        for (int c = 0; c < KINDS * 2; c++) {
            const kind of = (kind)(c / 2);
            const bool weighted = c % 2;
            const int64_t rows = counts[n];
            const int mark = test_mark(&b);
            const operands o = make(&b, rows, of);
            const oracle_pairs p = { test_doubles(&b, &o.student), test_doubles(&b, &o.teacher),
                                     weighted ? test_doubles(&b, &o.weight) : NULL, scale_of_d,
                                     rows };
            double *d = test_zeros(&b, rows * rows), *loss = test_zeros(&b, rows);
            oracle(d, loss, &p, of);
            const oracle_size size = size_of(&p, of);
            test_ok(run(&b.exec, &o, of, weighted ? &o.weight : NULL, &o.d));
            test_near(&o.loss, loss, size.loss, (double)rows, "%s of %d: loss", names[of],
                      (int)rows);
            test_near(&o.d, d, size.d, (double)rows, "%s of %d: d", names[of], (int)rows);
            test_fill_constant(&o.loss, NAN);
            test_ok(run(&b.exec, &o, of, weighted ? &o.weight : NULL, NULL));
            test_near(&o.loss, loss, size.loss, (double)rows, "%s of %d: loss alone", names[of],
                      (int)rows);
            test_release(&b, mark);
        }
    test_close(&b);
}

/* Nothing is to be learnt from oneself; PKT's eps leaves eps N of its gradient's size. */
Test(pairs, a_student_like_its_teacher_is_left_alone)
{
    test_bench b;
    test_open(&b, STACK);
    for (int of = 0; of < KINDS; of++) {
        operands o = make(&b, 33, (kind)of);
        o.teacher = o.student;
        test_ok(run(&b.exec, &o, (kind)of, NULL, &o.d));
        double most = 0;
        for (int64_t i = 0; i < 33; i++)
            cr_assert(test_get(&o.loss, i) == 0, "%s: loss %g", names[of], test_get(&o.loss, i));
        for (int64_t i = 0; i < 33 * 33; i++) most = fmax(most, fabs(test_get(&o.d, i)));
        cr_assert(most <= (of == PKT ? 33.0 * eps / 33 : 0), "%s: gradient %g", names[of], most);
    }
    test_close(&b);
}

/* ---- the oracle's own gradients --------------------------------------------------------------- */

enum { FEW = 5 };

typedef struct context {
    double x[FEW * WIDTH], s[FEW * FEW], t[FEW * FEW], w[FEW];
    oracle_pairs p;
    kind of;
} context;

static double value_of_pairs(void *data)
{
    context *c = data;
    double loss[FEW], total = 0;
    oracle(NULL, loss, &c->p, c->of);
    for (int i = 0; i < FEW; i++) total += c->p.scale * loss[i];
    return total;
}

static double value_of_features(void *data)
{
    context *c = data;
    relate(c->s, c->x, FEW, c->of);
    return value_of_pairs(data);
}

/* Through distances or normalised products to the features. */
static void features_gradient(double *dx, const double *d, context *c)
{
    double y[FEW * WIDTH], norm[FEW], dy[FEW * WIDTH] = { 0 };
    memset(dx, 0, FEW * WIDTH * sizeof *dx);
    if (c->of != PKT) {
        oracle_pair_distances_backward(dx, d, c->x, FEW, WIDTH);
        return;
    }
    oracle_normalise(y, norm, c->x, FEW, WIDTH, eps, true);
    for (int e = 0; e < FEW * FEW * WIDTH; e++) {
        const int i = e / (FEW * WIDTH), j = e / WIDTH % FEW, k = e % WIDTH;
        dy[i * WIDTH + k] += d[i * FEW + j] * y[j * WIDTH + k];
    }
    oracle_normalise_backward(dx, dy, c->x, FEW, WIDTH, eps, true);
}

Test(pairs, oracle_gradients_are_central_differences)
{
    test_bench b;
    test_open(&b, 0);
    for (int round = 0; round < 3; round++)
        for (int of = 0; of < KINDS; of++) {
            context c = { .of = (kind)of };
            double other[FEW * WIDTH], d[FEW * FEW], dx[FEW * WIDTH], loss[FEW];
            for (int i = 0; i < FEW * WIDTH; i++) {
                c.x[i] = (round + 1) * (2 * test_uniform(&b) - 1);
                other[i] = 2 * test_uniform(&b) - 1;
            }
            for (int i = 0; i < FEW; i++) c.w[i] = test_uniform(&b);
            relate(c.s, c.x, FEW, c.of);
            relate(c.t, other, FEW, c.of);
            c.p = (oracle_pairs){ c.s, c.t, round ? c.w : NULL, 1.5, FEW };
            oracle(d, loss, &c.p, c.of);
            if (of == ANGLE) /* 0 on the diagonal is no variable: there the cosine jumps */
                for (int e = 1; e < FEW * FEW - 1; e++)
                    if (e % (FEW + 1))
                        test_gradient(value_of_pairs, &c, &c.s[e], 1, &d[e], "%s: element %d",
                                      names[of], e);
            features_gradient(dx, d, &c);
            test_gradient(value_of_features, &c, c.x, FEW * WIDTH, dx, "%s", names[of]);
        }
    test_close(&b);
}

/* ---- threads, plans, refusals ----------------------------------------------------------------- */

Test(pairs, same_bits_whatever_the_threads)
{
    test_bench b;
    test_open(&b, 4 * STACK);
    for (int of = 0; of < KINDS; of++) {
        operands o[2];
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i + 1);
            b.seed = 5;
            o[i] = make(&b, MOST, (kind)of);
            test_ok(run(&b.exec, &o[i], (kind)of, &o[i].weight, &o[i].d));
        }
        test_same_bits(&o[0].loss, &o[1].loss, "%s: loss", names[of]);
        test_same_bits(&o[0].d, &o[1].d, "%s: d", names[of]);
    }
    kd_tensor y[2], dx[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        b.seed = 5;
        const kd_tensor x = test_filled(&b, KD_BF16, KD_SHAPE(67, 600), 0, -1, 1);
        y[i] = test_tensor(&b, KD_F32, KD_SHAPE(67, 67), 0);
        dx[i] = test_filled(&b, KD_BF16, KD_SHAPE(67, 600), 0, -1, 1);
        test_ok(KD_RUN(&b.exec, pair_distances, .y = &y[i], .x = &x));
        test_ok(KD_RUN(&b.exec, pair_distances_backward, .dx = &dx[i], .dy = &y[i], .x = &x));
    }
    test_same_bits(&y[0], &y[1], "distances");
    test_same_bits(&dx[0], &dx[1], "their gradient");
    test_close(&b);
}

Test(pairs, plan_without_memory_and_refuse_what_does_not_fit)
{
    test_bench b;
    test_open(&b, STACK);
    const operands o = make(&b, 5, ANGLE);
    const operands f = { test_untouchable(&o.student), test_untouchable(&o.teacher),
                         test_untouchable(&o.weight),  test_untouchable(&o.scale),
                         test_untouchable(&o.loss),    test_untouchable(&o.d) };
    const kd_tensor x = test_filled(&b, KD_BF16, KD_SHAPE(5, 4), 0, -1, 1);
    const kd_tensor fx = test_untouchable(&x);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    for (int of = 0; of < KINDS; of++) test_ok(run(&plan, &f, (kind)of, &f.weight, &f.d));
    test_ok(KD_RUN(&plan, pair_distances, .y = &f.d, .x = &fx));
    test_ok(KD_RUN(&plan, pair_distances_backward, .dx = &fx, .dy = &f.d, .x = &fx));

    operands odd = o;
    odd.teacher = test_filled(&b, KD_F32, KD_SHAPE(4, 4), 0, 0, 1);
    test_refused(run(&b.exec, &odd, ANGLE, NULL, NULL), KD_EINVAL, "rkd_angle: teacher");
    test_refused(run(&b.exec, &odd, WHOLE, NULL, NULL), KD_EINVAL, "rkd_distance: teacher");
    test_refused(run(&b.exec, &o, PKT, &o.scale, NULL), KD_EINVAL,
                 "weight: found f32 [1], expected 5 elements");
    odd = o;
    odd.scale = (kd_tensor){ 0 };
    test_ok(run(&b.exec, &odd, ANGLE, NULL, NULL));
    test_refused(run(&b.exec, &odd, ANGLE, NULL, &o.d), KD_EINVAL, "scale: absent");
    test_refused(
        KD_RUN(&b.exec, pkt, .loss = &o.loss, .student = &o.student, .teacher = &o.teacher),
        KD_EINVAL, "eps is 0, expected a number above 0");
    test_refused(KD_RUN(&b.exec, pair_distances, .y = &o.d, .x = &o.loss), KD_EINVAL,
                 "pair_distances: x");
    test_refused(KD_RUN(&b.exec, pair_distances_backward, .dx = &o.d, .dy = &o.d, .x = &x),
                 KD_EINVAL, "pair_distances_backward: dx");
    test_close(&b);
}
