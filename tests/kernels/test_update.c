/* clip, adamw and sgd on a GPU, against the CPU. */
#include "support/parity.h"

#include <math.h>

typedef struct state {
    kd_tensor param, m, v, weights, gradient, scalars;
} state;

enum { NO_COPY, F32_COPY, BF16_COPY, COPIES };

/* `shift` elements off the boundary of a vector: a slab range that starts anywhere. */
static kd_tensor make(parity *p, kd_dtype dtype, int64_t n, int64_t shift, double low, double high)
{
    const kd_tensor t = test_filled(&p->bench, dtype, KD_SHAPE(n + shift), 0, low, high);
    return kd_tensor_slice(&t, 0, shift, n);
}

static state open_state(parity *p, int64_t n, int64_t shift, int copy, kd_verdict verdict)
{
    state s = { .param = make(p, KD_F32, n, shift, -1, 1),
                .m = make(p, KD_F32, n, shift, -1, 1),
                .v = make(p, KD_F32, n, shift, 0, 1),
                .gradient = make(p, KD_F32, n, shift, -3, 3),
                .scalars = test_tensor(&p->bench, KD_U8, KD_SHAPE(sizeof(kd_step_scalars)), 0) };
    if (copy != NO_COPY) s.weights = make(p, copy == F32_COPY ? KD_F32 : KD_BF16, n, shift, -1, 1);
    *(kd_step_scalars *)s.scalars.data = (kd_step_scalars){
        .lr = 0.02f, .bias1 = 0.19f, .bias2 = 0.0975f, .clip = 0.7f, .verdict = (float)verdict
    };
    return s;
}

/* The copy is what the masters round to, whatever stood there. */
static void check_copy(parity *p, const state *s, const char *name)
{
    if (!kd_present(&s->weights)) return;
    const int mark = test_mark(&p->bench);
    const kd_tensor want = test_tensor(&p->bench, s->weights.dtype, kd_shape_of(&s->param), 0);
    for (int64_t i = 0, n = kd_tensor_elements(&want); i < n; i++)
        test_set(&want, i, test_get(&s->param, i));
    test_same_bits(&s->weights, &want, "copy after %s", name);
    test_release(&p->bench, mark);
}

static const int64_t counts[] = { 0, 1, 3, 4, 8, 11, 2051, 4096 };

/* Every count at and off a boundary with every copy; two steps, so that what was stored is read. */
static void updates(void (*run)(parity *, const state *, int))
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(counts) * 2 * COPIES; c++) {
        const int mark = test_mark(&p.bench);
        const int64_t n = counts[c / (2 * COPIES)], shift = c / COPIES % 2;
        const state s = open_state(&p, n, shift, c % COPIES, KD_VERDICT_GOOD);
        for (int step = 0; step < 2; step++) run(&p, &s, c + step);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* Operands around 1, fewer than 8 roundings an element. */
static void run_adamw(parity *p, const state *s, int c)
{
    const char *name = parity_name("adamw, case %d", c);
    const float decay = c % 5 ? 0.1f : 0.0f, eps = c % 2 ? 1e-8f : 0.3f;
    PARITY(p, adamw, 1, 8, name, .param = &s->param, .m = &s->m, .v = &s->v, .weights = &s->weights,
           .gradient = &s->gradient, .scalars = &s->scalars, .beta1 = 0.9f, .beta2 = 0.95f,
           .eps = eps, .decay = decay);
    test_ok(PARITY_GPU(p, adamw, .param = &s->param, .m = &s->m, .v = &s->v, .weights = &s->weights,
                       .gradient = &s->gradient, .scalars = &s->scalars, .beta1 = 0.9f,
                       .beta2 = 0.95f, .eps = eps, .decay = decay));
    check_copy(p, s, name);
}

static void run_sgd(parity *p, const state *s, int c)
{
    for (int rule = 0; rule < 4;
         rule++) { /* plain, with a moment that is not used, momentum, both */
        const float momentum = rule < 2 ? 0.0f : 0.9f, decay = c % 3 ? 0.05f : 0.0f;
        const kd_tensor *m = rule ? &s->m : NULL;
        const char *name = parity_name("sgd, case %d, rule %d", c, rule);
        PARITY(p, sgd, 1, 8, name, .param = &s->param, .m = m, .weights = &s->weights,
               .gradient = &s->gradient, .scalars = &s->scalars, .momentum = momentum,
               .nesterov = rule == 3, .decay = decay);
        test_ok(PARITY_GPU(p, sgd, .param = &s->param, .m = m, .weights = &s->weights,
                           .gradient = &s->gradient, .scalars = &s->scalars, .momentum = momentum,
                           .nesterov = rule == 3, .decay = decay));
        check_copy(p, s, name);
    }
}

Test(update, adamw) { updates(run_adamw); }

Test(update, sgd) { updates(run_sgd); }

/* A parameter that was never reached: gradient and moments 0, as the padding of a slab. */
Test(update, adamw_leaves_zero)
{
    parity p;
    parity_open(&p, 0);
    const state s = open_state(&p, 64, 0, BF16_COPY, KD_VERDICT_GOOD);
    const kd_tensor *const zero[] = { &s.param, &s.m, &s.v, &s.gradient };
    for (int i = 0; i < KD_COUNT(zero); i++) test_fill_constant(zero[i], 0);
    test_ok(PARITY_GPU(&p, adamw, .param = &s.param, .m = &s.m, .v = &s.v, .weights = &s.weights,
                       .gradient = &s.gradient, .scalars = &s.scalars, .beta1 = 0.9f,
                       .beta2 = 0.95f, .eps = 1e-8f, .decay = 0.1f));
    for (int i = 0; i < KD_COUNT(zero); i++)
        test_near(zero[i], test_zeros(&p.bench, 64), 0, 0, "array %d", i);
    parity_close(&p);
}

/* ---- verdicts --------------------------------------------------------------------------------- */

static const struct {
    double sum_squares, loss, max_norm;
    kd_verdict verdict;
} clips[] = {
    { 4, 1, 0, KD_VERDICT_GOOD },         { 4, 1, 3, KD_VERDICT_GOOD },
    { 0, 0, 1, KD_VERDICT_GOOD },         { 4, 1, 1, KD_VERDICT_GOOD },
    { 1e-30, 1, 1e-20, KD_VERDICT_GOOD }, { 4, 1, -1, KD_VERDICT_GOOD },
    { NAN, 1, 1, KD_VERDICT_GRADIENT },   { INFINITY, 1, 1, KD_VERDICT_GRADIENT },
    { -1, 1, 1, KD_VERDICT_GRADIENT },    { 4, NAN, 1, KD_VERDICT_LOSS },
    { 4, -INFINITY, 0, KD_VERDICT_LOSS }, { NAN, INFINITY, 1, KD_VERDICT_LOSS },
};

/* Of few losses and of more than a block's threads any may be the bad one. */
Test(update, clip)
{
    static const int64_t losses[] = { 1, 3, 256, 700 };
    parity p;
    parity_open(&p, 0);
    const kd_tensor squares = test_tensor(&p.bench, KD_F32, KD_SHAPE(1), 0);
    for (int c = 0; c < KD_COUNT(clips) * KD_COUNT(losses); c++) {
        const int i = c / KD_COUNT(losses), mark = test_mark(&p.bench);
        const int64_t n = losses[c % KD_COUNT(losses)];
        const state s =
            open_state(&p, 1, 0, NO_COPY, 2 * (c % 2)); /* an old verdict is no verdict */
        const state twin = open_state(&p, 1, 0, NO_COPY, 2 * (c % 2));
        const kd_tensor all = test_filled(&p.bench, KD_F32, KD_SHAPE(n), 0, -1, 1);
        test_set(&squares, 0, clips[i].sum_squares);
        test_set(&all, i % 2 ? n - 1 : i % n, clips[i].loss);
        PARITY(&p, clip, 0, 0, "clip", .scalars = &s.scalars, .sum_squares = &squares,
               .losses = &all, .max_norm = (float)clips[i].max_norm);
        test_ok(PARITY_GPU(&p, clip, .scalars = &twin.scalars, .sum_squares = &squares,
                           .losses = &all, .max_norm = (float)clips[i].max_norm));
        const kd_step_scalars *want = s.scalars.data, *got = twin.scalars.data;
        cr_assert_eq((int)got->verdict, (int)clips[i].verdict, "case %d: verdict %g", c,
                     got->verdict);
        test_near_value(got->norm, want->norm, KD_F32, 0, 0, 1, "case %d: norm", c);
        test_near_value(got->clip, want->clip, KD_F32, 0, 0, 1, "case %d: clip", c);
        cr_assert(got->lr == want->lr && got->bias1 == want->bias1 && got->bias2 == want->bias2,
                  "case %d: clip wrote what is not its own", c);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(update, nothing_moves_after_a_bad_verdict)
{
    parity p;
    parity_open(&p, 0);
    for (int verdict = KD_VERDICT_LOSS; verdict <= KD_VERDICT_GRADIENT; verdict++) {
        const state s = open_state(&p, 70, 0, BF16_COPY, verdict);
        const kd_tensor *const arrays[] = { &s.param, &s.m, &s.v, &s.weights };
        kd_tensor before[KD_COUNT(arrays)];
        for (int i = 0; i < KD_COUNT(arrays); i++)
            before[i] = test_values(&p.bench, arrays[i]->dtype, KD_SHAPE(70),
                                    test_doubles(&p.bench, arrays[i]));
        test_ok(PARITY_GPU(&p, adamw, .param = &s.param, .m = &s.m, .v = &s.v,
                           .weights = &s.weights, .gradient = &s.gradient, .scalars = &s.scalars,
                           .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f));
        test_ok(PARITY_GPU(&p, sgd, .param = &s.param, .m = &s.m, .weights = &s.weights,
                           .gradient = &s.gradient, .scalars = &s.scalars, .momentum = 0.9f));
        for (int i = 0; i < KD_COUNT(arrays); i++)
            test_same_bits(arrays[i], &before[i], "verdict %d, array %d", verdict, i);
    }
    parity_close(&p);
}

/* ---- the guard -------------------------------------------------------------------------------- */

static void same_students(const kd_step_scalars *got, const kd_step_scalars *want, int students,
                          int64_t step)
{
    for (int i = 0; i < students; i++) {
        const kd_step_scalars *a = &got[i], *b = &want[i];
        cr_assert(a->verdict == b->verdict && a->skips == b->skips && a->in_row == b->in_row &&
                      a->stopped == b->stopped && a->lr == b->lr && a->loss == b->loss,
                  "step %lld, student %d: verdict %g, %g skips, %g in a row; expected %g, %g, %g",
                  (long long)step, i, a->verdict, a->skips, a->in_row, b->verdict, b->skips,
                  b->in_row);
        /* 128 additions in double, of whose order nothing is left in f32 but a rounding. */
        test_near_value(a->loss_z, b->loss_z, KD_F32, 1, 1, 1, "step %lld: z", (long long)step);
        test_near_value(a->norm_z, b->norm_z, KD_F32, 1, 1, 1, "step %lld: z", (long long)step);
        test_near_value(a->bias1, b->bias1, KD_F32, 1, 0, 1, "step %lld: bias", (long long)step);
        test_near_value(a->bias2, b->bias2, KD_F32, 1, 0, 1, "step %lld: bias", (long long)step);
    }
}

/* What comes at some of its steps; else around 1. */
static void set_step(parity *p, kd_step_scalars *s, int students, int64_t step)
{
    for (int i = 0; i < students; i++) {
        s[i] = (kd_step_scalars){ .lr = 1,
                                  .loss = (float)test_uniform(&p->bench),
                                  .norm = (float)(1 + test_uniform(&p->bench)) };
        if (step % 50 == 9 && i == students - 1) s[i].verdict = KD_VERDICT_LOSS;
        if (step % 50 == 10 && i == 0) s[i].verdict = KD_VERDICT_GRADIENT;
        if (step % 50 == 30 && i == 0) s[i].loss = 20;
        if (step % 50 == 32 && i == students - 1) s[i].norm = 20;
    }
}

/* The same decisions from the first step past full windows until a stop and beyond. */
Test(update, guard)
{
    enum { STEPS = 300 };
    static const int counts_of_students[] = { 1, 2, KD_MAX_STUDENTS };
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(counts_of_students); c++) {
        const int mark = test_mark(&p.bench), n = counts_of_students[c];
        const int64_t bytes = n * (int64_t)sizeof(kd_step_scalars);
        kd_tensor scalars[2], guard[2];
        for (int i = 0; i < 2; i++) {
            scalars[i] = test_tensor(&p.bench, KD_U8, KD_SHAPE(bytes), 0);
            guard[i] = test_tensor(&p.bench, KD_U8, KD_SHAPE(sizeof(kd_guard)), 0);
            *(kd_guard *)guard[i].data = (kd_guard){ .updates = 0 };
        }
        const kd_guard *cpu = guard[0].data, *gpu = guard[1].data;
        for (int64_t step = 0; step < STEPS; step++) {
            kd_guard_args args = { .skip = step < 250,
                                   .zscore = c == 1 ? 0 : 6,
                                   .max_skips = 2,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.999f };
            if (step > 140 && step < 250 && step % 9) continue; /* the emulator takes its time */
            set_step(&p, scalars[0].data, n, step);
            memcpy(scalars[1].data, scalars[0].data, (size_t)bytes);
            args.guard = &guard[0], args.scalars = &scalars[0];
            test_ok(kd_op_run(&p.bench.exec, KD_OP_guard, &args));
            args.guard = &guard[1], args.scalars = &scalars[1];
            test_ok(parity_run_gpu(&p, KD_OP_guard, &args));
            same_students(scalars[1].data, scalars[0].data, n, step);
            cr_assert(memcmp(gpu, cpu, sizeof *gpu) == 0, "step %lld: another guard",
                      (long long)step);
        }
        cr_assert(cpu->seen > KD_GUARD_WINDOW && cpu->skips > 4, "%d skips", (int)cpu->skips);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* The whole way: a gradient that is not finite anywhere stops its own update. */
Test(update, a_bad_gradient_is_found)
{
    static const double odd[] = { NAN, INFINITY, -INFINITY, 1e30 };
    parity p;
    parity_open(&p, 0);
    const kd_tensor squares = test_tensor(&p.bench, KD_F32, KD_SHAPE(1), 0);
    const kd_tensor losses = test_filled(&p.bench, KD_F32, KD_SHAPE(2), 0, 0, 1);
    for (int i = 0; i < KD_COUNT(odd) * 3; i++) {
        const int64_t n = 66000, at[] = { 0, 65535, n - 1 };
        const int mark = test_mark(&p.bench);
        const state s = open_state(&p, n, i % 2, NO_COPY, KD_VERDICT_GOOD);
        test_set(&s.gradient, at[i % 3], odd[i / 3]);
        test_ok(PARITY_GPU(&p, sum_squares, .y = &squares, .x = &s.gradient));
        test_ok(PARITY_GPU(&p, clip, .scalars = &s.scalars, .sum_squares = &squares,
                           .losses = &losses, .max_norm = 1));
        const kd_step_scalars *scalars = s.scalars.data;
        cr_assert_eq((int)scalars->verdict, KD_VERDICT_GRADIENT, "%g at %lld: verdict %g",
                     odd[i / 3], (long long)at[i % 3], scalars->verdict);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}
