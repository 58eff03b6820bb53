/*
 * Losses over the pairs of a batch: what must not change them, a student like its teacher, batches of one,
 * equal rows, rows of zeros, rows that do not count, narrow types, memory.
 */
#include "loss/loss.h"
#include "support/feature.h"
#include "support/support.h"

#include <math.h>

enum { ROWS = 11, WIDTH = 6, T_WIDTH = 9, STACK = 1 << 20 };

static const kd_feature_type *const losses[] = { &kd_feature_rkd_distance, &kd_feature_rkd_angle,
                                                 &kd_feature_pkt, &kd_feature_sp, &kd_feature_cc };
enum { DISTANCE, ANGLE, PKT, SP, CC };

static _Alignas(16) unsigned char defaults[KD_COUNT(losses)][KD_FEATURE_OPTION_BYTES];

static kd_feature_args make(test_bench *b, int loss, kd_dtype dtype, int64_t rows)
{
    static const double one = 1;
    const kd_option *options = losses[loss]->options;
    kd_arena *arena;
    test_ok(kd_arena_create(&arena));
    if (options) test_ok(kd_options_parse(defaults[loss], options, arena, NULL, "loss", NULL));
    kd_arena_destroy(arena);
    const int64_t wide = loss == CC ? WIDTH : T_WIDTH;
    const kd_feature_args args = { .student =
                                       test_filled(b, dtype, KD_SHAPE(rows, WIDTH), 3, -2, 2),
                                   .d_student =
                                       test_filled(b, dtype, KD_SHAPE(rows, WIDTH), 1, 0, 0),
                                   .teacher = test_filled(b, dtype, KD_SHAPE(rows, wide), 0, -1, 1),
                                   .loss = test_tensor(b, KD_F32, KD_SHAPE(rows), 0),
                                   .scale = test_values(b, KD_F32, KD_SHAPE(1), &one),
                                   .options = defaults[loss] };
    return args;
}

static double value(test_bench *b, int loss, const kd_feature_args *args)
{
    test_fill_constant(&args->loss, NAN);
    test_ok(kd_feature_run(&b->exec, losses[loss], args));
    return test_total(&args->loss);
}

static void scale(const kd_tensor *x, double by, double each)
{
    for (int64_t i = 0, n = kd_tensor_elements(x); i < n; i++)
        test_set(x, i, test_get(x, i) * (by + each * (double)(i / x->shape[1])));
}

static void shift(const kd_tensor *x)
{
    for (int64_t i = 0, n = kd_tensor_elements(x); i < n; i++)
        test_set(x, i, test_get(x, i) + (double)(i % x->shape[1]));
}

Test(pairs, what_does_not_change_them)
{
    test_bench b;
    test_open(&b, STACK);
    for (int loss = 0; loss < CC; loss++)
        for (int side = 0; side < 2; side++) {
            kd_feature_args a = make(&b, loss, KD_F32, ROWS);
            const kd_tensor *x = side ? &a.teacher : &a.student;
            const double before = value(&b, loss, &a);
            cr_assert(before > 1e-4, "%s: nothing to see", losses[loss]->name);
            test_rotate(x);
            const double rotated = value(&b, loss, &a);
            scale(x, 3, 0);
            const double scaled = value(&b, loss, &a);
            const double near = 1e-5 * before;
            cr_assert(fabs(rotated - before) <= near, "%s: %g rotated, %g", losses[loss]->name,
                      rotated, before);
            cr_assert(fabs(scaled - before) <= near, "%s: %g scaled, %g", losses[loss]->name,
                      scaled, before);
            if (loss == PKT) scale(x, 1, 0.5);
            if (loss == DISTANCE || loss == ANGLE) shift(x);
            const double moved = value(&b, loss, &a);
            cr_assert(fabs(moved - before) <= near, "%s: %g moved, %g", losses[loss]->name, moved,
                      before);
        }
    test_close(&b);
}

Test(pairs, a_student_like_its_teacher)
{
    test_bench b;
    test_open(&b, STACK);
    for (int loss = 0; loss < KD_COUNT(losses); loss++) {
        kd_feature_args a = make(&b, loss, KD_F32, ROWS);
        a.teacher = a.student;
        cr_assert(value(&b, loss, &a) == 0, "%s: loss %g", losses[loss]->name, test_total(&a.loss));
        const double most = test_largest(&a.d_student);
        cr_assert(most <= (loss == PKT ? 1e-6 : 0), "%s: gradient %g", losses[loss]->name, most);
    }
    test_close(&b);
}

/* One row, equal rows, zeros; nothing is NaN, and a batch of one teaches nothing. */
Test(pairs, odd_batches_are_finite)
{
    test_bench b;
    test_open(&b, STACK);
    for (int loss = 0; loss < KD_COUNT(losses); loss++)
        for (int dtype = 0; dtype < 2; dtype++) {
            const char *name = losses[loss]->name;
            kd_feature_args a = make(&b, loss, dtype ? KD_BF16 : KD_F32, 1);
            cr_assert(fabs(value(&b, loss, &a)) <= 1e-6 && test_largest(&a.d_student) <= 1e-6,
                      "%s of one: %g, gradient %g", name, test_total(&a.loss),
                      test_largest(&a.d_student));
            for (int odd = 0; odd < 3; odd++) {
                a = make(&b, loss, dtype ? KD_BF16 : KD_F32, ROWS);
                const kd_tensor *x = odd == 1 ? &a.teacher : &a.student;
                for (int64_t i = 0, n = kd_tensor_elements(x); i < n; i++)
                    test_set(x, i, odd == 2 && i >= 2 * WIDTH ? test_get(x, i) : 0);
                cr_assert(isfinite(value(&b, loss, &a)), "%s: odd case %d", name, odd);
                cr_assert(test_largest(&a.d_student) < 1e8, "%s: odd case %d", name, odd);
            }
            a = make(&b, loss, KD_F32, 0);
            value(&b, loss, &a);
        }
    test_close(&b);
}

/* The batch of those that count, alone; what the others hold is not read. */
Test(pairs, rows_of_weight_zero_are_not_there)
{
    test_bench b;
    test_open(&b, STACK);
    for (int loss = 0; loss < KD_COUNT(losses); loss++)
        for (int dtype = 0; dtype < 2; dtype++) {
            const char *name = losses[loss]->name;
            const int mark = test_mark(&b);
            kd_feature_args all = make(&b, loss, dtype ? KD_BF16 : KD_F32, ROWS);
            kd_feature_args few = make(&b, loss, dtype ? KD_BF16 : KD_F32, ROWS - 3);
            all.weight = test_filled(&b, KD_F32, KD_SHAPE(ROWS), 0, 1, 1);
            const int64_t wide = all.teacher.shape[1];
            int64_t row = 0;
            for (int64_t r = 0; r < ROWS; r++) {
                const bool left = r == 0 || r == 4 || r == 5;
                test_set(&all.weight, r, !left);
                for (int64_t i = 0; i < WIDTH; i++)
                    if (left)
                        test_set(&all.student, r * WIDTH + i, NAN);
                    else
                        test_set(&few.student, row * WIDTH + i,
                                 test_get(&all.student, r * WIDTH + i));
                for (int64_t i = 0; i < wide; i++)
                    if (left)
                        test_set(&all.teacher, r * wide + i, NAN);
                    else
                        test_set(&few.teacher, row * wide + i,
                                 test_get(&all.teacher, r * wide + i));
                row += !left;
            }
            const double want = value(&b, loss, &few), got = value(&b, loss, &all);
            cr_assert(fabs(got - want) <= 1e-5 * fabs(want), "%s: %g, alone %g", name, got, want);
            const double most = test_largest(&few.d_student);
            row = 0;
            for (int64_t r = 0; r < ROWS; r++) {
                const bool left = r == 0 || r == 4 || r == 5;
                for (int64_t i = 0; i < WIDTH; i++) {
                    const double g = test_get(&all.d_student, r * WIDTH + i);
                    const double w = left ? 0 : test_get(&few.d_student, row * WIDTH + i);
                    cr_assert(fabs(g - w) <= (dtype ? 1e-2 : 1e-5) * most,
                              "%s: gradient %g, alone %g", name, g, w);
                }
                row += !left;
            }
            test_fill_constant(&all.weight, 0);
            cr_assert(value(&b, loss, &all) == 0, "%s: nothing counts, and has %g", name,
                      test_total(&all.loss));
            test_release(&b, mark);
        }
    test_close(&b);
}

/* bf16 is widened, so it differs from f32 of the same numbers by the rounding of the gradient alone; and
 * a gradient is added. */
Test(pairs, types_and_what_is_there_already)
{
    test_bench b;
    test_open(&b, STACK);
    for (int loss = 0; loss < KD_COUNT(losses); loss++) {
        const kd_feature_args half = make(&b, loss, KD_BF16, ROWS);
        kd_feature_args wide = make(&b, loss, KD_F32, ROWS);
        for (int64_t i = 0; i < ROWS * WIDTH; i++) {
            test_set(&wide.student, i, test_get(&half.student, i));
            test_set(&wide.d_student, i, 0.5);
            test_set(&half.d_student, i, 0.5);
        }
        for (int64_t i = 0, n = kd_tensor_elements(&half.teacher); i < n; i++)
            test_set(&wide.teacher, i, test_get(&half.teacher, i));
        const double a = value(&b, loss, &half), c = value(&b, loss, &wide);
        cr_assert(fabs(a - c) <= 1e-6 * fabs(c), "%s: %g in bf16, %g", losses[loss]->name, a, c);
        test_near(&half.d_student, test_doubles(&b, &wide.d_student), 1, 1, "%s: gradient",
                  losses[loss]->name);
    }
    test_close(&b);
}

/* A batch of 512 rows of 512: no N^3 and no N^2 D, which alone are 512 MiB each. */
Test(pairs, memory_is_of_pairs)
{
    test_bench b;
    test_open(&b, 0);
    for (int loss = 0; loss < KD_COUNT(losses); loss++) {
        kd_feature_args a = make(&b, loss, KD_F32, 1);
        const kd_tensor rows = kd_tensor_of(a.student.data, KD_F32, KD_SHAPE(512, 512));
        a.student = a.teacher = a.d_student = rows;
        a.loss = kd_tensor_of(a.loss.data, KD_F32, KD_SHAPE(512));
        kd_stack counting;
        kd_exec plan = test_planning(&b, &counting);
        test_ok(kd_feature_run(&plan, losses[loss], &a));
        cr_assert(counting.peak <= 9 * (size_t)512 * 512 * sizeof(float), "%s takes %zu bytes",
                  losses[loss]->name, counting.peak);
    }
    test_close(&b);
}

Test(pairs, what_does_not_fit_is_refused)
{
    test_bench b;
    test_open(&b, STACK);
    for (int loss = 0; loss < KD_COUNT(losses); loss++) {
        kd_feature_args a = make(&b, loss, KD_F32, ROWS);
        a.teacher = test_filled(&b, KD_F32, KD_SHAPE(ROWS - 1, WIDTH), 0, 0, 1);
        test_refused(kd_feature_run(&b.exec, losses[loss], &a), KD_EINVAL, "teacher");
    }
    test_close(&b);
}
