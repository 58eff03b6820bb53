/*
 * What the update owes: torch's numbers over several steps with clipping, the rounded copy, nothing
 * moved after a bad verdict, a verdict for everything that is not finite.
 */
#include "golden/update.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

enum { REPEATS = 1100, N = REPEATS * GOLDEN_N }; /* past the blocks that threads share */

typedef struct state {
    kd_tensor param, m, v, weights, gradient, scalars, sum_squares, losses;
} state;

/* torch's few numbers over and over: an update knows no neighbours, so each repeat must agree. */
static void repeat(const kd_tensor *t, const float *values)
{
    for (int64_t i = 0; i < N; i++) test_set(t, i, values[i % GOLDEN_N]);
}

static state make(test_bench *b, kd_dtype dtype)
{
    state s = { .param = test_tensor(b, KD_F32, KD_SHAPE(N), 0),
                .m = test_filled(b, KD_F32, KD_SHAPE(N), 0, 0, 0),
                .v = test_filled(b, KD_F32, KD_SHAPE(N), 0, 0, 0),
                .weights = test_tensor(b, dtype, KD_SHAPE(N), 0),
                .gradient = test_tensor(b, KD_F32, KD_SHAPE(N), 0),
                .scalars = test_tensor(b, KD_U8, KD_SHAPE(sizeof(kd_step_scalars)), 0),
                .sum_squares = test_tensor(b, KD_F32, KD_SHAPE(1), 0),
                .losses = test_filled(b, KD_F32, KD_SHAPE(3), 0, 0, 1) };
    repeat(&s.param, golden_start[0]);
    *(kd_step_scalars *)s.scalars.data = (kd_step_scalars){ .term = { { .scale = 0.5f } } };
    return s;
}

/* Gradient and scalars of one step, up to the clip factor. */
static void prepare(test_bench *b, const state *s, int step, float lr, float beta1, float beta2)
{
    repeat(&s->gradient, golden_gradients[step]);
    kd_step_scalars *scalars = s->scalars.data;
    scalars->lr = lr;
    scalars->bias1 = (float)(1 - pow(beta1, step + 1));
    scalars->bias2 = (float)(1 - pow(beta2, step + 1));
    const kd_tensor once = kd_tensor_slice(&s->gradient, 0, 0, GOLDEN_N);
    test_ok(KD_RUN(&b->exec, sum_squares, .y = &s->sum_squares, .x = &once));
    test_ok(KD_RUN(&b->exec, clip, .scalars = &s->scalars, .sum_squares = &s->sum_squares,
                   .losses = &s->losses, .max_norm = golden_max_norm));
    const double norm = golden_norms[0][step];
    cr_assert(fabs(scalars->norm - norm) < 4 * 0x1p-24 * norm, "norm %.9g, torch has %.9g",
              scalars->norm, norm);
    cr_assert_eq((int)scalars->verdict, KD_VERDICT_GOOD);
}

static void check(test_bench *b, const state *s, const float *golden, int step, const char *name)
{
    const int mark = test_mark(b);
    double *want = test_zeros(b, N);
    for (int64_t i = 0; i < N; i++) want[i] = golden[i % GOLDEN_N];
    /* A few roundings a step, of parameters and of quotients around 1. */
    test_near(&s->param, want, 1, 2 * (step + 1), "%s, step %d", name, step);
    for (int64_t i = 0; i < N; i++) want[i] = test_get(&s->param, i);
    const kd_tensor copy = test_values(b, s->weights.dtype, KD_SHAPE(N), want);
    test_same_bits(&s->weights, &copy, "%s, weights after step %d", name, step);
    test_release(b, mark);
}

static kd_status adamw(kd_exec *exec, const state *s, const kd_tensor *weights)
{
    return KD_RUN(exec, adamw, .param = &s->param, .m = &s->m, .v = &s->v, .weights = weights,
                  .gradient = &s->gradient, .scalars = &s->scalars, .beta1 = 0.9f, .beta2 = 0.95f,
                  .eps = 1e-8f, .decay = 0.1f);
}

Test(update, adamw_agrees_with_torch)
{
    kd_tensor last[2];
    test_bench b;
    test_open(&b, 1 << 16);
    for (int threads = 1; threads <= 2; threads++) {
        omp_set_num_threads(threads);
        const state s = make(&b, threads == 1 ? KD_F32 : KD_BF16);
        for (int step = 0; step < GOLDEN_STEPS; step++) {
            prepare(&b, &s, step, 1e-2f, 0.9f, 0.95f);
            test_ok(adamw(&b.exec, &s, &s.weights));
            check(&b, &s, golden_adamw[step], step, "adamw");
        }
        last[threads - 1] = s.param;
    }
    test_same_bits(&last[0], &last[1], "1 and 2 threads");
    test_close(&b);
}

typedef struct sgd_case {
    const char *name;
    const float (*golden)[GOLDEN_N];
    float momentum, decay;
    bool nesterov;
} sgd_case;

static const sgd_case sgd_cases[] = {
    { "plain", golden_sgd_plain, 0, 0, false },
    { "momentum", golden_sgd_momentum, 0.9f, 0.05f, false },
    { "nesterov", golden_sgd_nesterov, 0.9f, 0.05f, true },
};

static kd_status sgd(kd_exec *exec, const state *s, const sgd_case *c)
{
    return KD_RUN(exec, sgd, .param = &s->param, .m = c->momentum != 0 ? &s->m : NULL,
                  .weights = &s->weights, .gradient = &s->gradient, .scalars = &s->scalars,
                  .momentum = c->momentum, .nesterov = c->nesterov, .decay = c->decay);
}

Test(update, sgd_agrees_with_torch)
{
    test_bench b;
    test_open(&b, 1 << 16);
    for (int i = 0; i < KD_COUNT(sgd_cases); i++) {
        const int mark = test_mark(&b);
        const state s = make(&b, KD_BF16);
        for (int step = 0; step < GOLDEN_STEPS; step++) {
            prepare(&b, &s, step, 0.1f, 0.9f, 0.95f);
            test_ok(sgd(&b.exec, &s, &sgd_cases[i]));
            check(&b, &s, sgd_cases[i].golden[step], step, sgd_cases[i].name);
        }
        test_release(&b, mark);
    }
    test_close(&b);
}

typedef struct clip_case {
    double sum_squares, loss, max_norm;
    kd_verdict verdict;
    double clip;
} clip_case;

static const clip_case clip_cases[] = {
    { 4, 1, 0, KD_VERDICT_GOOD, 1 },
    { 4, 1, 3, KD_VERDICT_GOOD, 1 },
    { 0, 0, 1, KD_VERDICT_GOOD, 1 },
    { 4, 1, 1, KD_VERDICT_GOOD, 1 / (2 + 1e-6) },
    { NAN, 1, 1, KD_VERDICT_GRADIENT, NAN },
    { INFINITY, 1, 1, KD_VERDICT_GRADIENT, NAN },
    { 4, NAN, 1, KD_VERDICT_LOSS, NAN },
    { 4, -INFINITY, 0, KD_VERDICT_LOSS, NAN },
    { NAN, INFINITY, 1, KD_VERDICT_LOSS, NAN },
};

/* And after a bad verdict no array changes its bits. */
Test(update, what_is_not_finite_stops_the_update)
{
    test_bench b;
    test_open(&b, 1 << 16);
    const state s = make(&b, KD_BF16);
    prepare(&b, &s, 0, 0.1f, 0.9f, 0.95f);
    test_ok(adamw(&b.exec, &s, &s.weights));
    const kd_tensor *arrays[] = { &s.param, &s.m, &s.v, &s.weights };
    kd_tensor before[KD_COUNT(arrays)];
    for (int i = 0; i < KD_COUNT(arrays); i++)
        before[i] = test_values(&b, arrays[i]->dtype, KD_SHAPE(N), test_doubles(&b, arrays[i]));

    kd_step_scalars *scalars = s.scalars.data;
    for (int i = 0; i < KD_COUNT(clip_cases); i++) {
        const clip_case *c = &clip_cases[i];
        test_set(&s.sum_squares, 0, c->sum_squares);
        test_set(&s.losses, 1, c->loss);
        test_ok(KD_RUN(&b.exec, clip, .scalars = &s.scalars, .sum_squares = &s.sum_squares,
                       .losses = &s.losses, .max_norm = (float)c->max_norm));
        cr_assert_eq((int)scalars->verdict, (int)c->verdict, "case %d: verdict %g", i,
                     scalars->verdict);
        cr_assert_eq(scalars->lr, 0.1f, "case %d: clip wrote what is not its own", i);
        if (c->verdict == KD_VERDICT_GOOD) {
            cr_assert(fabs(scalars->clip - c->clip) <= 0x1p-23, "case %d: clip %.9g", i,
                      scalars->clip);
            continue;
        }
        test_ok(adamw(&b.exec, &s, &s.weights));
        for (int k = 0; k < KD_COUNT(sgd_cases); k++) test_ok(sgd(&b.exec, &s, &sgd_cases[k]));
        for (int k = 0; k < KD_COUNT(arrays); k++)
            test_same_bits(arrays[k], &before[k], "case %d: array %d", i, k);
    }
    test_close(&b);
}

/* ---- the guard -------------------------------------------------------------------------------- */

typedef struct decision {
    kd_guard guard;
    kd_step_scalars s[2]; /* two students */
    kd_guard_args args;
} decision;

static void decide(test_bench *b, decision *d)
{
    const kd_tensor guard = kd_tensor_of(&d->guard, KD_U8, KD_SHAPE(sizeof d->guard));
    const kd_tensor scalars = kd_tensor_of(d->s, KD_U8, KD_SHAPE(sizeof d->s));
    d->args.guard = &guard;
    d->args.scalars = &scalars;
    test_ok(kd_op_run(&b->exec, KD_OP_guard, &d->args));
}

/* A step with these values and verdicts; `verdict` of the second student. */
static void take(test_bench *b, decision *d, double loss, double norm, kd_verdict verdict)
{
    for (int i = 0; i < 2; i++)
        d->s[i] = (kd_step_scalars){ .lr = 3,
                                     .loss = (float)(loss + i),
                                     .norm = (float)(norm * (1 + i)),
                                     .verdict = (float)(i ? verdict : KD_VERDICT_GOOD) };
    decide(b, d);
    cr_assert(d->s[0].lr == 3 && d->s[1].lr == 3, "guard wrote what is not its own");
}

static void expect(const decision *d, kd_verdict first, kd_verdict second, int updates, int skips,
                   int in_row, bool stopped, const char *what)
{
    const kd_guard *g = &d->guard;
    cr_assert((int)d->s[0].verdict == (int)first && (int)d->s[1].verdict == (int)second,
              "%s: verdicts %g and %g", what, d->s[0].verdict, d->s[1].verdict);
    cr_assert(g->updates == updates && g->skips == skips && g->in_row == in_row &&
                  (g->stopped != 0) == stopped,
              "%s: %d updates, %d skips, %d in a row, stopped %d", what, (int)g->updates,
              (int)g->skips, (int)g->in_row, (int)g->stopped);
    for (int i = 0; i < 2; i++)
        cr_assert(d->s[i].skips == (float)skips && d->s[i].in_row == (float)in_row &&
                      d->s[i].stopped == (float)stopped,
                  "%s: the host is told otherwise", what);
}

/* One student's bad step is no step of the other either; after a stop none is. */
Test(update, a_bad_step_moves_no_student_and_stops_for_good)
{
    static const kd_verdict bad[] = { KD_VERDICT_LOSS, KD_VERDICT_GRADIENT };
    test_bench b;
    test_open(&b, 0);
    for (int i = 0; i < KD_COUNT(bad); i++) {
        decision d = { .args = { .beta1 = 0.5f, .beta2 = 0.75f, .max_skips = 10 } };
        take(&b, &d, 1, 1, KD_VERDICT_GOOD);
        expect(&d, KD_VERDICT_GOOD, KD_VERDICT_GOOD, 1, 0, 0, false, "good");
        take(&b, &d, NAN, 1, bad[i]);
        expect(&d, KD_VERDICT_HELD, bad[i], 1, 1, 1, true, "stop");
        take(&b, &d, 1, 1, KD_VERDICT_GOOD);
        expect(&d, KD_VERDICT_HELD, KD_VERDICT_HELD, 1, 1, 1, true, "after it");
        cr_assert(d.guard.seen == 1 && isnan(d.s[0].loss_z), "a held step was looked at");
    }
    test_close(&b);
}

/* Left out: the next update is the second, by its bias too.  The eleventh in a row stops. */
Test(update, bad_steps_are_left_out_some_times_in_a_row)
{
    test_bench b;
    test_open(&b, 0);
    decision d = { .args = { .skip = true, .beta1 = 0.5f, .beta2 = 0.75f, .max_skips = 10 } };
    take(&b, &d, 1, 1, KD_VERDICT_GOOD);
    cr_assert(d.s[1].bias1 == 0.5f && d.s[1].bias2 == 0.25f);
    for (int i = 1; i <= 10; i++) {
        take(&b, &d, INFINITY, NAN, KD_VERDICT_LOSS);
        expect(&d, KD_VERDICT_HELD, KD_VERDICT_LOSS, 1, i, i, false, "left out");
    }
    take(&b, &d, 1, 1, KD_VERDICT_GOOD);
    expect(&d, KD_VERDICT_GOOD, KD_VERDICT_GOOD, 2, 10, 0, false, "good again");
    cr_assert(d.s[0].bias1 == 0.75f && d.s[0].bias2 == 0.4375f, "bias %g and %g", d.s[0].bias1,
              d.s[0].bias2);
    for (int i = 1; i <= 11; i++) take(&b, &d, 1, NAN, KD_VERDICT_GRADIENT);
    expect(&d, KD_VERDICT_HELD, KD_VERDICT_GRADIENT, 2, 21, 11, true, "once more");
    cr_assert(d.guard.seen == 2, "what is not finite is in a window");
    test_close(&b);
}

/* Of the last 128 values, the newest among them, in the oracle's own words. */
static double z_of(const double *values, int64_t count)
{
    double sum = 0, squares = 0;
    for (int64_t i = count - KD_GUARD_WINDOW; i < count; i++) {
        sum += values[i];
        squares += values[i] * values[i];
    }
    const double mean = sum / KD_GUARD_WINDOW;
    const double variance = squares / KD_GUARD_WINDOW - mean * mean;
    return (values[count - 1] - mean) / sqrt(variance);
}

Test(update, spikes_are_left_out_by_their_z)
{
    enum { VALUES = 3 * KD_GUARD_WINDOW };
    static double losses[VALUES], norms[VALUES];
    int spikes = 0;
    test_bench b;
    test_open(&b, 0);
    decision d = { .args = { .zscore = 4, .max_skips = 3, .beta1 = 0, .beta2 = 0 } };
    for (int64_t i = 0; i < VALUES; i++) {
        const bool high = i == 100 || i == 200 || i == 300;
        losses[i] = 3 + test_uniform(&b) + (high && i != 300 ? 9 : 0);
        norms[i] = 0.5 + test_uniform(&b) + (i == 300 ? 9 : 0);
        take(&b, &d, (double)(float)losses[i], (double)(float)norms[i], KD_VERDICT_GOOD);
        const kd_step_scalars *s = &d.s[0];
        if (i < KD_GUARD_WINDOW) {
            cr_assert(isnan(s->loss_z) && isnan(s->norm_z) && s->verdict == KD_VERDICT_GOOD,
                      "step %lld: z before the window is full", (long long)i);
            continue;
        }
        const double loss_z = z_of(losses, i + 1), norm_z = z_of(norms, i + 1);
        cr_assert(fabs(s->loss_z - loss_z) < 1e-5 && fabs(s->norm_z - norm_z) < 1e-5,
                  "step %lld: z %.9g and %.9g, expected %.9g and %.9g", (long long)i, s->loss_z,
                  s->norm_z, loss_z, norm_z);
        cr_assert((s->verdict == KD_VERDICT_SPIKE) == high && (d.guard.in_row > 0) == high,
                  "step %lld: verdict %g", (long long)i, s->verdict);
        spikes += high;
    }
    cr_assert(spikes == 2 && d.guard.skips == 2 && d.guard.seen == VALUES);
    /* A low is no spike; equal values have none; off is off; one spike too many stops. */
    take(&b, &d, -99, 0, KD_VERDICT_GOOD);
    cr_assert(d.s[0].loss_z < -4 && d.s[0].verdict == KD_VERDICT_GOOD);
    for (int i = 0; i < KD_GUARD_WINDOW; i++) take(&b, &d, 1, 1, KD_VERDICT_GOOD);
    cr_assert(d.s[0].loss_z == 0 && d.s[0].norm_z == 0 && d.s[0].verdict == KD_VERDICT_GOOD);
    for (int i = 1; i <= 4; i++) {
        take(&b, &d, pow(10, i), 1, KD_VERDICT_GOOD);
        expect(&d, KD_VERDICT_SPIKE, KD_VERDICT_SPIKE, (int)d.guard.updates, 2 + i, i, i == 4,
               "higher and higher");
    }
    d.guard.stopped = 0;
    d.args.zscore = 0;
    take(&b, &d, 1e6, 1, KD_VERDICT_GOOD);
    cr_assert(d.s[0].loss_z > 4 && d.s[0].verdict == KD_VERDICT_GOOD, "off: %g", d.s[0].verdict);
    test_close(&b);
}

Test(update, plans_without_memory_and_refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const state real = make(&b, KD_BF16);
    state s = real;
    kd_tensor *const all[] = { &s.param,    &s.m,       &s.v,           &s.weights,
                               &s.gradient, &s.scalars, &s.sum_squares, &s.losses };
    for (int i = 0; i < KD_COUNT(all); i++) *all[i] = test_untouchable(all[i]);
    const kd_tensor guard = test_untouchable(&(const kd_tensor){
        .dtype = KD_U8, .rank = 1, .shape = { sizeof(kd_guard) }, .stride = { 1 } });
    const kd_tensor small = kd_tensor_slice(&guard, 0, 0, sizeof(kd_guard) - 1);
    const kd_tensor many = kd_tensor_of(guard.data, KD_U8, KD_SHAPE(9 * sizeof(kd_step_scalars)));
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, clip, .scalars = &s.scalars, .sum_squares = &s.sum_squares,
                   .losses = &s.losses));
    test_ok(KD_RUN(&plan, guard, .guard = &guard, .scalars = &s.scalars));
    test_ok(adamw(&plan, &s, NULL));
    test_ok(sgd(&plan, &s, &sgd_cases[2]));

    s = real;
    s.m = kd_tensor_slice(&real.m, 0, 0, N - 1);
    test_refused(adamw(&b.exec, &s, NULL), KD_EINVAL, "adamw: m");
    test_refused(sgd(&b.exec, &s, &sgd_cases[1]), KD_EINVAL, "sgd: m");
    s = real;
    s.scalars = kd_tensor_slice(&real.scalars, 0, 0, 8);
    test_refused(adamw(&b.exec, &s, NULL), KD_EINVAL, "scalars: found 8 bytes");
    s = real;
    s.weights.dtype = KD_F16;
    test_refused(adamw(&b.exec, &s, &s.weights), KD_EINVAL, "weights: found f16");
    const sgd_case wrong = { "wrong", NULL, 0, 0, true };
    test_refused(sgd(&b.exec, &real, &wrong), KD_EINVAL, "nesterov");
    test_refused(KD_RUN(&b.exec, guard, .scalars = &real.scalars), KD_EINVAL, "guard: absent");
    test_refused(KD_RUN(&b.exec, guard, .guard = &small, .scalars = &real.scalars), KD_EINVAL,
                 "guard: found");
    test_refused(KD_RUN(&b.exec, guard, .guard = &guard, .scalars = &many), KD_EINVAL,
                 "found 9 students, expected at most 8");
    test_close(&b);
}
