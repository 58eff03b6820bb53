/*
 * What vid owes: the value of each sample and both gradients added to what is there, each of them or none, either
 * type on either side, maps longer than a strip, weights, samples that are not read, variances from eps to
 * large, the same bits from one thread and two.
 */
#include "oracle/vid.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const struct {
    int64_t samples, channels, places, pad;
} shapes[] = { { 1, 1, 1, 0 },   { 3, 4, 7, 3 }, { 2, 3, 1030, 0 },
               { 5, 33, 12, 1 }, { 0, 2, 3, 0 }, { 2, 2, 0, 0 } };
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
static const float eps = 1e-3f;

typedef struct operands {
    kd_tensor student, teacher, log_variance, weight, scale, loss, d, d_log_variance;
} operands;

static operands make(test_bench *b, int shape, kd_dtype s, kd_dtype t)
{
    const int64_t n = shapes[shape].samples, c = shapes[shape].channels;
    const kd_shape whole = KD_SHAPE(n, c, shapes[shape].places);
    const double scale = 0.75;
    return (operands){ .student = test_filled(b, s, whole, shapes[shape].pad, -2, 2),
                       .teacher = test_filled(b, t, whole, 2 * shapes[shape].pad, -1, 1),
                       .log_variance = test_filled(b, KD_F32, KD_SHAPE(c), 0, -4, 6),
                       .weight = test_filled(b, KD_F32, KD_SHAPE(n), 0, 0, 2),
                       .scale = test_values(b, KD_F32, KD_SHAPE(1), &scale),
                       .loss = test_tensor(b, KD_F32, KD_SHAPE(n), 0),
                       .d = test_filled(b, s, whole, shapes[shape].pad, -1, 1),
                       .d_log_variance = test_filled(b, KD_F32, KD_SHAPE(c), 0, -1, 1) };
}

/* form: 1 weights, 2 d_student, 4 d_log_variance. */
static kd_status run(kd_exec *exec, const operands *o, int form)
{
    return KD_RUN(exec, vid, .d_student = form & 2 ? &o->d : NULL,
                  .d_log_variance = form & 4 ? &o->d_log_variance : NULL, .loss = &o->loss,
                  .student = &o->student, .teacher = &o->teacher, .log_variance = &o->log_variance,
                  .weight = form & 1 ? &o->weight : NULL, .scale = form & 6 ? &o->scale : NULL,
                  .eps = eps);
}

static void check(test_bench *b, int shape, kd_dtype s, kd_dtype t, int form)
{
    const int mark = test_mark(b);
    const operands o = make(b, shape, s, t);
    const int64_t n = shapes[shape].samples, c = shapes[shape].channels;
    const int64_t each = c * shapes[shape].places;
    if (form & 1 && n > 1) { /* is not read */
        test_set(&o.weight, 1, 0);
        if (each) test_set(&o.student, each, NAN);
    }
    const oracle_vid v = { test_doubles(b, &o.student),
                           test_doubles(b, &o.teacher),
                           test_doubles(b, &o.log_variance),
                           form & 1 ? test_doubles(b, &o.weight) : NULL,
                           n,
                           c,
                           shapes[shape].places,
                           (double)eps };
    double *loss = test_zeros(b, n), *d = test_doubles(b, &o.d);
    double *slope = test_doubles(b, &o.d_log_variance);
    oracle_vid_run(loss, form & 2 ? d : NULL, form & 4 ? slope : NULL, &v, 0.75);
    test_ok(run(&b->exec, &o, form));
    const char *name = kd_dtype_name(s);
    test_near(&o.loss, loss, 100, 4, "shape %d of %s, form %d: loss", shape, name, form);
    test_near(&o.d, d, 100, 4, "shape %d of %s, form %d: d", shape, name, form);
    test_near(&o.d_log_variance, slope, 100, 4, "shape %d, form %d: d_log_variance", shape, form);
    test_release(b, mark);
}

Test(vid, agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 1 << 12);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < 4; t++)
            for (int form = 0; form < 8; form++) check(&b, s, dtypes[t & 1], dtypes[t >> 1], form);
    test_close(&b);
}

enum { SAMPLES = 2, CHANNELS = 2, PLACES = 3 };

typedef struct differences {
    double x[SAMPLES * CHANNELS * PLACES + CHANNELS]; /* the student, then log_variance */
    double teacher[SAMPLES * CHANNELS * PLACES], weight[SAMPLES];
} differences;

static oracle_vid of(const differences *d)
{
    return (oracle_vid){ d->x,      d->teacher, d->x + SAMPLES * CHANNELS * PLACES,
                         d->weight, SAMPLES,    CHANNELS,
                         PLACES,    (double)eps };
}

static double value_of(void *context)
{
    const oracle_vid v = of(context);
    double loss[SAMPLES];
    oracle_vid_run(loss, NULL, NULL, &v, 0);
    return loss[0] + loss[1];
}

Test(vid, the_oracles_gradient_is_that_of_its_value)
{
    enum { MAPS = SAMPLES * CHANNELS * PLACES };
    test_bench b;
    test_open(&b, 0);
    differences d = { .weight = { 0.5, 2 } };
    double loss[SAMPLES], gradient[MAPS + CHANNELS] = { 0 };
    for (int i = 0; i < MAPS + CHANNELS; i++) d.x[i] = 2 * test_uniform(&b) - 1;
    for (int i = 0; i < MAPS; i++) d.teacher[i] = test_uniform(&b);
    const oracle_vid v = of(&d);
    oracle_vid_run(loss, gradient, gradient + MAPS, &v, 1);
    test_gradient(value_of, &d, d.x, MAPS + CHANNELS, gradient, "vid");
    test_close(&b);
}

Test(vid, bits_do_not_depend_on_threads)
{
    test_bench b[2];
    operands o[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        test_open(&b[i], 1 << 12);
        b[i].seed = 3;
        o[i] = make(&b[i], 2, KD_BF16, KD_F32);
        test_ok(run(&b[i].exec, &o[i], 7));
    }
    test_same_bits(&o[0].loss, &o[1].loss, "loss");
    test_same_bits(&o[0].d, &o[1].d, "d_student");
    test_same_bits(&o[0].d_log_variance, &o[1].d_log_variance, "d_log_variance");
    for (int i = 0; i < 2; i++) test_close(&b[i]);
}

Test(vid, refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 1 << 12);
    operands o = make(&b, 1, KD_F32, KD_F32);
    const operands good = o;
    o.log_variance = test_tensor(&b, KD_F32, KD_SHAPE(3), 0);
    test_refused(run(&b.exec, &o, 7), KD_EINVAL, "log_variance");
    o = good;
    o.teacher = test_tensor(&b, KD_F32, KD_SHAPE(3, 4, 6), 0);
    test_refused(run(&b.exec, &o, 7), KD_EINVAL, "teacher");
    test_refused(KD_RUN(&b.exec, vid, .loss = &good.loss, .student = &good.student,
                        .teacher = &good.teacher, .log_variance = &good.log_variance),
                 KD_EINVAL, "eps is 0");
    test_close(&b);
}
