/*
 * NST: value and gradient of the paper's formula in double whichever products are taken, in either type and
 * in chunks; what must not change it; a student like its teacher, dead channels, one channel, one place,
 * samples that do not count.
 */
#include "loss/loss.h"
#include "oracle/gram.h"
#include "support/feature.h"
#include "support/support.h"

#include <math.h>

enum { STACK = 8 << 20 };

typedef struct shape {
    int64_t b, c, ct, h, w;
} shape;

static const double eps = 1e-12;
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

static kd_feature_args make(test_bench *b, const shape *s, kd_dtype dtype, kd_dtype teacher)
{
    static const double one = 1;
    const kd_shape own = KD_SHAPE(s->b, s->c, s->h, s->w);
    return (kd_feature_args){ .student = test_filled(b, dtype, own, 0, -1, 2),
                              .d_student = test_filled(b, dtype, own, 3, 0, 0),
                              .teacher = test_filled(b, teacher, KD_SHAPE(s->b, s->ct, s->h, s->w),
                                                     0, -2, 1),
                              .loss = test_tensor(b, KD_F32, KD_SHAPE(s->b), 0),
                              .scale = test_values(b, KD_F32, KD_SHAPE(1), &one),
                              .options = &eps };
}

static void run(test_bench *b, const kd_feature_args *args)
{
    test_fill_constant(&args->loss, NAN);
    test_ok(kd_feature_run(&b->exec, &kd_feature_nst, args));
}

/* ---- the formula ------------------------------------------------------------------------------ */

typedef struct differences {
    double f[12], g[20];
} differences;

static double value_of(void *context)
{
    const differences *d = context;
    return oracle_nst(NULL, d->f, d->g, 3, 5, 4, eps);
}

Test(nst, the_oracles_gradient_is_that_of_its_value)
{
    test_bench b;
    test_open(&b, 0);
    differences d;
    double df[12] = { 0 };
    for (int i = 0; i < 12; i++) d.f[i] = test_uniform(&b) - 0.3;
    for (int i = 0; i < 20; i++) d.g[i] = test_uniform(&b) - 0.7;
    oracle_nst(df, d.f, d.g, 3, 5, 4, eps);
    test_gradient(value_of, &d, d.f, 12, df, "nst");
    test_close(&b);
}

static void check(test_bench *b, const shape *s, kd_dtype dtype, kd_dtype of_teacher)
{
    const int mark = test_mark(b);
    const kd_feature_args a = make(b, s, dtype, of_teacher);
    const int64_t places = s->h * s->w, own = s->c * places, other = s->ct * places;
    const double *f = test_doubles(b, &a.student), *g = test_doubles(b, &a.teacher);
    double *df = test_zeros(b, s->b * own), *loss = test_zeros(b, s->b);
    for (int64_t i = 0; i < s->b; i++)
        loss[i] = oracle_nst(df + i * own, f + i * own, g + i * other, s->c, s->ct, places, eps);
    run(b, &a);
    test_near(&a.loss, loss, 2, (double)places, "%d of %d and %d by %d", (int)s->b, (int)s->c,
              (int)s->ct, (int)places);
    test_near(&a.d_student, df, 4, (double)places, "%d of %d and %d by %d: gradient", (int)s->b,
              (int)s->c, (int)s->ct, (int)places);
    test_release(b, mark);
}

Test(nst, agrees_with_the_oracle)
{
    static const shape shapes[] = { { 2, 7, 5, 3, 4 },   { 3, 4, 6, 5, 7 }, { 1, 1, 1, 3, 1 },
                                    { 2, 33, 17, 5, 5 }, { 2, 2, 1, 9, 9 }, { 1, 5, 9, 1, 1 },
                                    { 0, 2, 3, 2, 2 } };
    test_bench b;
    test_open(&b, STACK);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < 4; t++) check(&b, &shapes[s], dtypes[t & 1], dtypes[t >> 1]);
    test_close(&b);
}

/* More than 64 MB hold, so two rounds: each sample is what it is alone; and the plan knows the peak. */
Test(nst, chunks_change_nothing)
{
    const shape s = { 22, 256, 256, 20, 20 };
    test_bench b;
    test_open(&b, 80 << 20);
    kd_feature_args a = make(&b, &s, KD_F32, KD_BF16);
    run(&b, &a);
    for (int64_t at = 0; at < 22; at += 21) {
        kd_feature_args alone = a;
        alone.student = kd_tensor_slice(&a.student, 0, at, 1);
        alone.teacher = kd_tensor_slice(&a.teacher, 0, at, 1);
        alone.loss = test_tensor(&b, KD_F32, KD_SHAPE(1), 0);
        alone.d_student = test_filled(&b, KD_F32, kd_shape_of(&alone.student), 0, 0, 0);
        run(&b, &alone);
        const kd_tensor loss = kd_tensor_slice(&a.loss, 0, at, 1);
        const kd_tensor d = kd_tensor_slice(&a.d_student, 0, at, 1);
        test_near(&alone.loss, test_doubles(&b, &loss), 0, 1, "loss of %d", (int)at);
        test_near(&alone.d_student, test_doubles(&b, &d), 0.01, 256, "gradient of %d", (int)at);
    }
    kd_stack planned;
    kd_exec planning = test_planning(&b, &planned);
    test_ok(kd_feature_run(&planning, &kd_feature_nst, &a));
    cr_expect(planned.peak <= 66 << 20 && planned.peak > 32 << 20, "%zu", planned.peak);
    test_close(&b);
}

/* ---- invariants ------------------------------------------------------------------------------- */

static const shape both_ways[] = { { 3, 6, 4, 2, 3 }, { 3, 3, 3, 6, 7 } };

/* Channel c of every sample becomes channel c + 1, the last the first. */
static void turn_channels(const kd_tensor *x)
{
    const int64_t c = x->shape[1], places = x->shape[2] * x->shape[3];
    for (int64_t b = 0; b < x->shape[0]; b++)
        for (int64_t p = 0; p < places; p++) {
            const int64_t first = b * c * places + p;
            const double last = test_get(x, first + (c - 1) * places);
            for (int64_t i = c - 1; i > 0; i--)
                test_set(x, first + i * places, test_get(x, first + (i - 1) * places));
            test_set(x, first, last);
        }
}

Test(nst, order_and_size_of_channels_change_nothing)
{
    test_bench b;
    test_open(&b, STACK);
    for (int s = 0; s < KD_COUNT(both_ways); s++)
        for (int side = 0; side < 2; side++) {
            const int mark = test_mark(&b);
            const kd_feature_args a = make(&b, &both_ways[s], KD_F32, KD_F32);
            const kd_tensor *x = side ? &a.teacher : &a.student;
            run(&b, &a);
            const double *before = test_doubles(&b, &a.loss);
            turn_channels(x);
            run(&b, &a);
            test_near(&a.loss, before, 2, 1, "shape %d, side %d: turned", s, side);
            const int64_t places = x->shape[2] * x->shape[3];
            for (int64_t i = 0, n = kd_tensor_elements(x); i < n; i++)
                test_set(x, i, test_get(x, i) * (1 + (double)(i / places)));
            run(&b, &a);
            test_near(&a.loss, before, 2, 4, "shape %d, side %d: stretched", s, side);
            test_release(&b, mark);
        }
    test_close(&b);
}

Test(nst, a_student_like_its_teacher)
{
    static const shape shapes[] = { { 3, 6, 6, 2, 3 }, { 3, 3, 3, 6, 7 } };
    test_bench b;
    test_open(&b, STACK);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < 2; t++) {
            kd_feature_args a = make(&b, &shapes[s], dtypes[t], dtypes[t]);
            a.teacher = a.student;
            run(&b, &a);
            cr_assert(test_largest(&a.loss) == 0, "shape %d: loss %g", s, test_largest(&a.loss));
            const double most = test_largest(&a.d_student); /* by channels one sum has both sides */
            cr_assert(most <= (s ? 1e-6 : 0), "shape %d: gradient %g", s, most);
        }
    test_close(&b);
}

Test(nst, odd_maps_are_finite)
{
    static const shape place = { 2, 5, 3, 1, 1 };
    test_bench b;
    test_open(&b, STACK);
    for (int s = 0; s < KD_COUNT(both_ways); s++)
        for (int dead = 0; dead < 4; dead++) { /* a channel, a side, both */
            kd_feature_args a = make(&b, &both_ways[s], KD_F32, KD_BF16);
            const int64_t places = a.student.shape[2] * a.student.shape[3];
            for (int64_t i = 0; dead == 0 && i < places; i++) test_set(&a.student, i, 0);
            if (dead & 1) test_fill_constant(&a.student, 0);
            if (dead & 2) test_fill_constant(&a.teacher, 0);
            run(&b, &a);
            cr_assert(test_largest(&a.d_student) < 100, "shape %d, dead %d: %g", s, dead,
                      test_largest(&a.d_student));
            cr_assert(dead == 3 ? test_largest(&a.loss) == 0 : test_largest(&a.loss) > 0, "dead %d",
                      dead);
        }
    const kd_feature_args a = make(&b, &place, KD_F32, KD_F32);
    run(&b, &a);
    cr_expect(test_largest(&a.loss) == 0 && test_largest(&a.d_student) == 0, "one place");
    test_close(&b);
}

Test(nst, what_does_not_count_is_not_read)
{
    test_bench b;
    test_open(&b, STACK);
    for (int s = 0; s < KD_COUNT(both_ways); s++)
        for (int t = 0; t < 2; t++) {
            kd_feature_args a = make(&b, &both_ways[s], dtypes[t], KD_F32);
            const double weights[] = { 2, 0, 1 };
            run(&b, &a);
            const double first = test_get(&a.loss, 0);
            a.weight = test_values(&b, KD_F32, KD_SHAPE(3), weights);
            const int64_t each = kd_tensor_elements(&a.student) / 3;
            test_fill_constant(&a.d_student, 0);
            for (int64_t i = each; i < 2 * each; i++) test_set(&a.student, i, NAN);
            run(&b, &a);
            cr_assert(fabs(test_get(&a.loss, 0) - 2 * first) <= 1e-6 && test_get(&a.loss, 1) == 0,
                      "shape %d", s);
            test_largest(&a.d_student);
            for (int64_t i = each; i < 2 * each; i++)
                cr_assert(test_get(&a.d_student, i) == 0, "shape %d: gradient %d", s, (int)i);
            test_fill_constant(&a.weight, 0);
            test_fill_constant(&a.d_student, 0);
            run(&b, &a);
            cr_assert(test_largest(&a.loss) == 0 && test_largest(&a.d_student) == 0,
                      "all weights 0");
        }
    test_close(&b);
}

Test(nst, refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, STACK);
    kd_feature_args a = make(&b, &both_ways[0], KD_F32, KD_F32);
    a.teacher = test_tensor(&b, KD_F32, KD_SHAPE(3, 4, 3, 2), 0);
    test_refused(kd_feature_run(&b.exec, &kd_feature_nst, &a), KD_EINVAL, "nst: teacher");
    a.teacher = test_tensor(&b, KD_F32, KD_SHAPE(3, 0, 2, 3), 0);
    test_refused(kd_feature_run(&b.exec, &kd_feature_nst, &a), KD_EINVAL,
                 "nst: found 6 and 0 channels");
    test_close(&b);
}
