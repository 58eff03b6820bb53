/*
 * What gram_distance owes: the distance both ways, the factors of its gradient in place or nothing changed,
 * weights, samples that are not read, values not below 0, the same bits from one thread and two.
 */
#include "oracle/gram.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const struct {
    int64_t samples, c, ct, s;
} shapes[] = {
    { 1, 1, 1, 1 }, { 2, 3, 5, 4 }, { 3, 5, 2, 33 }, { 2, 40, 70, 130 }, { 0, 3, 2, 4 }
};

typedef struct operands {
    kd_tensor student, teacher, loss, weight, scale;
} operands;

static operands make(test_bench *b, int shape, bool by_channel)
{
    const int64_t n = shapes[shape].samples, c = shapes[shape].c, ct = shapes[shape].ct;
    const int64_t s = shapes[shape].s, rows = by_channel ? ct : s;
    const double scale = 0.75;
    return (operands){ .student = test_filled(
                           b, KD_F32, KD_SHAPE(n, by_channel ? c : s, by_channel ? c + ct : s), 0,
                           -1, 1),
                       .teacher = test_filled(b, KD_F32, KD_SHAPE(n, rows, rows), 0, 2, 3),
                       .loss = test_tensor(b, KD_F32, KD_SHAPE(n), 0),
                       .weight = test_filled(b, KD_F32, KD_SHAPE(n), 0, 0, 2),
                       .scale = test_values(b, KD_F32, KD_SHAPE(1), &scale) };
}

static kd_status run(kd_exec *exec, const operands *o, int shape, bool by_channel,
                     const kd_tensor *weight, const kd_tensor *scale)
{
    return KD_RUN(exec, gram_distance, .student = &o->student, .loss = &o->loss,
                  .teacher = &o->teacher, .weight = weight, .scale = scale,
                  .channels = shapes[shape].c, .teacher_channels = shapes[shape].ct,
                  .by_channel = by_channel);
}

static void check(test_bench *b, int shape, bool by_channel, bool weighted, bool gradient)
{
    const int mark = test_mark(b);
    const operands o = make(b, shape, by_channel);
    const int64_t n = shapes[shape].samples, c = shapes[shape].c, ct = shapes[shape].ct;
    const int64_t s = shapes[shape].s, rows = by_channel ? ct : s;
    const int64_t each = n ? kd_tensor_elements(&o.student) / n : 0;
    if (weighted && n > 1) { /* is not read */
        test_set(&o.weight, 1, 0);
        test_set(&o.student, each, NAN);
        test_set(&o.teacher, rows * rows, INFINITY);
    }
    double *student = test_doubles(b, &o.student), *loss = test_zeros(b, n);
    const double *teacher = test_doubles(b, &o.teacher);
    for (int64_t i = 0; i < n; i++) {
        const double weight = weighted ? test_get(&o.weight, i) : 1;
        double *a = student + i * each;
        if (weight != 0)
            loss[i] = weight * oracle_gram_distance(a, teacher + i * rows * rows, s, c, ct,
                                                    0.75 * weight, by_channel);
        else
            for (int64_t e = 0; e < each; e++) a[e] = 0;
    }
    if (!gradient) student = test_doubles(b, &o.student);
    test_ok(run(&b->exec, &o, shape, by_channel, weighted ? &o.weight : NULL,
                gradient ? &o.scale : NULL));
    test_near(&o.loss, loss, 10 * (double)each, 4, "shape %d, by channel %d, weighted %d", shape,
              by_channel, weighted);
    if (gradient || !weighted)
        test_near(&o.student, student, 16, 4, "shape %d, by channel %d, gradient %d", shape,
                  by_channel, gradient);
    test_release(b, mark);
}

Test(gram_distance, agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 1 << 14);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int i = 0; i < 8; i++) check(&b, s, i & 1, i & 2, i & 4);
    test_close(&b);
}

/* Rounded products whose difference would be -0.5. */
Test(gram_distance, no_value_is_below_0)
{
    const double student[] = { 1, 2 }, teacher[] = { sqrt(2.5) };
    test_bench b;
    test_open(&b, 1 << 10);
    const kd_tensor loss = test_tensor(&b, KD_F32, KD_SHAPE(1), 0);
    const kd_tensor x = test_values(&b, KD_F32, KD_SHAPE(1, 1, 2), student);
    const kd_tensor t = test_values(&b, KD_F32, KD_SHAPE(1, 1, 1), teacher);
    for (int i = 0; i < 2; i++) {
        if (i) test_set(&x, 0, NAN); /* which is no 0 */
        test_ok(KD_RUN(&b.exec, gram_distance, .student = &x, .loss = &loss, .teacher = &t,
                       .channels = 1, .teacher_channels = 1, .by_channel = true));
        cr_expect(i ? isnan(test_get(&loss, 0)) : test_get(&loss, 0) == 0, "%g",
                  test_get(&loss, 0));
    }
    test_close(&b);
}

Test(gram_distance, bits_do_not_depend_on_threads)
{
    for (int by_channel = 0; by_channel < 2; by_channel++) {
        test_bench b[2];
        operands o[2];
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i + 1);
            test_open(&b[i], 1 << 14);
            o[i] = make(&b[i], 3, by_channel);
            test_ok(run(&b[i].exec, &o[i], 3, by_channel, NULL, &o[i].scale));
        }
        test_same_bits(&o[0].loss, &o[1].loss, "loss");
        test_same_bits(&o[0].student, &o[1].student, "student");
        for (int i = 0; i < 2; i++) test_close(&b[i]);
    }
}

Test(gram_distance, refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 1 << 10);
    operands o = make(&b, 1, false);
    test_refused(run(&b.exec, &o, 1, true, NULL, NULL), KD_EINVAL, "student");
    test_refused(run(&b.exec, &o, 1, false, &o.scale, NULL), KD_EINVAL, "weight");
    o.teacher = test_tensor(&b, KD_F32, KD_SHAPE(2, 5, 5), 0);
    test_refused(run(&b.exec, &o, 1, false, NULL, NULL), KD_EINVAL, "teacher");
    test_close(&b);
}
