/*
 * crd: what must not change it, what renews its banks and Z and what does not, odd batches; and who the
 * negatives are.
 */
#include "loss/loss.h"
#include "support/feature.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

enum { ROWS = 6, WIDTH = 10, N = 40, K = 9, STACK = 1 << 20 };

static _Alignas(16) unsigned char defaults[KD_FEATURE_OPTION_BYTES];

static kd_feature_args make(test_bench *b, kd_dtype dtype, int64_t rows)
{
    static const double one = 1;
    kd_arena *arena;
    test_ok(kd_arena_create(&arena));
    test_ok(kd_options_parse(defaults, kd_feature_crd.options, arena, NULL, "loss", NULL));
    kd_arena_destroy(arena);
    const kd_shape shape = KD_SHAPE(rows, WIDTH), bank = KD_SHAPE(N, WIDTH);
    const kd_feature_args args = {
        .student = test_filled(b, dtype, shape, 3, -2, 2),
        .d_student = test_filled(b, dtype, shape, 1, 0, 0),
        .teacher = test_filled(b, KD_F32, shape, 0, -1, 1),
        .d_teacher = test_filled(b, KD_F32, shape, 2, 0, 0),
        .samples = test_tensor(b, KD_I32, KD_SHAPE(rows), 0),
        .negatives = test_filled(b, KD_I32, KD_SHAPE(rows, K), 0, 0, N),
        .student_bank = test_filled(b, KD_F32, bank, 0, -0.5, 0.5),
        .teacher_bank = test_filled(b, KD_F32, bank, 2, -0.5, 0.5),
        .partition = test_filled(b, KD_F32, KD_SHAPE(2), 0, 30, 80),
        .weight = test_filled(b, KD_F32, KD_SHAPE(rows), 0, 0.5, 2),
        .scale = test_values(b, KD_F32, KD_SHAPE(1), &one),
        .loss = test_tensor(b, KD_F32, KD_SHAPE(rows), 0),
        .options = defaults,
    };
    for (int64_t i = 0; i < rows; i++) test_set(&args.samples, i, (double)(7 * i % N));
    return args;
}

/* Leaves the state as it was. */
static double value(test_bench *b, const kd_feature_args *a)
{
    const kd_tensor *state[] = { &a->student_bank, &a->teacher_bank, &a->partition };
    double *kept[3];
    for (int s = 0; s < 3; s++) kept[s] = test_doubles(b, state[s]);
    test_fill_constant(&a->loss, NAN);
    test_ok(kd_feature_run(&b->exec, &kd_feature_crd, a));
    for (int s = 0; s < 3; s++)
        for (int64_t i = 0; i < kd_tensor_elements(state[s]); i++)
            test_set(state[s], i, kept[s][i]);
    return test_total(&a->loss);
}

static void scale_rows(const kd_tensor *x, double by)
{
    for (int64_t i = 0, n = kd_tensor_elements(x); i < n; i++)
        test_set(x, i, test_get(x, i) * (by + (double)(i / x->shape[1])));
}

static void turn_negatives(const kd_tensor *ids)
{
    for (int64_t r = 0; r < ids->shape[0]; r++) {
        const double first = test_get(ids, r * K);
        for (int64_t k = 0; k + 1 < K; k++) test_set(ids, r * K + k, test_get(ids, r * K + k + 1));
        test_set(ids, r * K + K - 1, first);
    }
}

Test(crd, what_does_not_change_it)
{
    test_bench b;
    test_open(&b, STACK);
    kd_feature_args a = make(&b, KD_F32, ROWS);
    const double before = value(&b, &a), near = 2e-6 * fabs(before);
    cr_assert(before > 1 && isfinite(before), "nothing to see: %g", before);
    scale_rows(&a.student, 0.5), scale_rows(&a.teacher, 3);
    cr_expect(fabs(value(&b, &a) - before) <= near, "scaled: %g, %g", value(&b, &a), before);
    test_rotate(&a.student), test_rotate(&a.teacher_bank);
    cr_expect(fabs(value(&b, &a) - before) <= near, "student's side turned");
    test_rotate(&a.teacher), test_rotate(&a.student_bank);
    cr_expect(fabs(value(&b, &a) - before) <= near, "teacher's side turned");
    turn_negatives(&a.negatives);
    cr_expect(fabs(value(&b, &a) - before) <= near, "negatives in another order");
    const kd_tensor student = a.student, bank = a.student_bank, d = a.d_student;
    const double z = test_get(&a.partition, 0);
    a.student = a.teacher, a.teacher = student, a.d_student = a.d_teacher, a.d_teacher = d;
    a.student_bank = a.teacher_bank, a.teacher_bank = bank;
    test_set(&a.partition, 0, test_get(&a.partition, 1)), test_set(&a.partition, 1, z);
    cr_expect(fabs(value(&b, &a) - before) <= near, "sides exchanged");
    test_close(&b);
}

/* With more weight nothing but weight: no gradient's direction, no state. */
Test(crd, gradients_are_along_no_row_and_follow_weight_and_scale)
{
    test_bench b;
    test_open(&b, STACK);
    kd_feature_args a = make(&b, KD_F32, ROWS);
    (void)value(&b, &a);
    const double *d = test_doubles(&b, &a.d_student), *x = test_doubles(&b, &a.student);
    for (int r = 0; r < ROWS; r++) {
        double along = 0, size = 0;
        for (int i = r * WIDTH; i < (r + 1) * WIDTH; i++)
            along += x[i] * d[i], size += fabs(x[i] * d[i]);
        cr_expect(size > 0 && fabs(along) <= 1e-5 * size, "row %d: %g of %g", r, along, size);
    }
    test_set(&a.scale, 0, 2);
    test_fill_constant(&a.d_student, 0);
    (void)value(&b, &a);
    for (int i = 0; i < ROWS * WIDTH; i++)
        cr_expect(fabs(test_get(&a.d_student, i) - 2 * d[i]) <= 1e-5 * (fabs(d[i]) + 1e-3));
    test_close(&b);
}

/* A row of weight 0 may hold anything: no score, no Z, no bank knows of it. */
Test(crd, samples_of_weight_0_are_not_there)
{
    test_bench b;
    test_open(&b, STACK);
    for (int all = 0; all < 2; all++) {
        kd_feature_args a = make(&b, KD_BF16, ROWS), few = a;
        few.student_bank = test_tensor(&b, KD_F32, KD_SHAPE(N, WIDTH), 0);
        few.teacher_bank = test_tensor(&b, KD_F32, KD_SHAPE(N, WIDTH), 0);
        few.partition = test_tensor(&b, KD_F32, KD_SHAPE(2), 0);
        few.loss = test_tensor(&b, KD_F32, KD_SHAPE(ROWS / 2), 0);
        test_fill_constant(&few.partition, 0), test_fill_constant(&a.partition, 0);
        for (int i = 0; i < N * WIDTH; i++) {
            test_set(&few.student_bank, i, test_get(&a.student_bank, i));
            test_set(&few.teacher_bank, i, test_get(&a.teacher_bank, i));
        }
        for (int r = all ? 0 : ROWS / 2; r < ROWS; r++) {
            for (int i = 0; i < WIDTH; i++)
                test_set(&a.student, r * WIDTH + i, NAN), test_set(&a.teacher, r * WIDTH + i, NAN);
            test_set(&a.weight, r, 0), test_set(&a.samples, r, r % 2 ? -1 : 0);
            test_set(&a.negatives, r * K, N);
        }
        const int64_t half = all ? 0 : ROWS / 2;
        few.student = kd_tensor_slice(&a.student, 0, 0, half);
        few.teacher = kd_tensor_slice(&a.teacher, 0, 0, half);
        few.samples = kd_tensor_slice(&a.samples, 0, 0, half);
        few.negatives = kd_tensor_slice(&a.negatives, 0, 0, half);
        few.weight = kd_tensor_slice(&a.weight, 0, 0, half);
        few.loss = kd_tensor_slice(&few.loss, 0, 0, half);
        few.d_student = few.d_teacher = (kd_tensor){ 0 };
        test_ok(kd_feature_run(&b.exec, &kd_feature_crd, &a));
        test_ok(kd_feature_run(&b.exec, &kd_feature_crd, &few));
        test_same_bits(&a.student_bank, &few.student_bank, "student's bank, all %d", all);
        for (int i = 0; i < N * WIDTH; i++)
            cr_expect_eq(test_get(&a.teacher_bank, i), test_get(&few.teacher_bank, i));
        test_same_bits(&a.partition, &few.partition, "Z, all %d", all);
        cr_expect(all == (test_get(&a.partition, 0) == 0));
        for (int r = 0; r < ROWS; r++)
            cr_expect_eq(test_get(&a.loss, r), r < half ? test_get(&few.loss, r) : 0, "row %d", r);
        for (int64_t i = half * WIDTH; i < ROWS * WIDTH; i++)
            cr_expect(test_get(&a.d_student, i) == 0 && test_get(&a.d_teacher, i) == 0);
    }
    test_close(&b);
}

/* What the first batch finds is kept; a batch goes by the banks that the one before left. */
Test(crd, state_goes_on_from_batch_to_batch)
{
    test_bench b;
    test_open(&b, STACK);
    kd_feature_args a = make(&b, KD_F32, ROWS);
    a.weight = (kd_tensor){ 0 };
    test_fill_constant(&a.partition, 0);
    test_ok(kd_feature_run(&b.exec, &kd_feature_crd, &a));
    const double first = test_total(&a.loss), z = test_get(&a.partition, 0);
    cr_assert(z > 0 && test_get(&a.partition, 1) > 0);
    for (int step = 0; step < 20; step++) test_ok(kd_feature_run(&b.exec, &kd_feature_crd, &a));
    cr_expect_eq(test_get(&a.partition, 0), z);
    for (int r = 0; r < ROWS; r++) { /* the bank's rows have come to the embeddings */
        const int64_t id = (int64_t)test_get(&a.samples, r);
        double squares = 0, dot = 0, length = 0;
        for (int i = 0; i < WIDTH; i++) {
            const double m = test_get(&a.student_bank, id * WIDTH + i);
            const double x = test_get(&a.student, r * WIDTH + i);
            squares += m * m, dot += m * x, length += x * x;
        }
        cr_expect(fabs(squares - 1) < 1e-5 && dot > 0.99999 * sqrt(length), "row %d", r);
    }
    cr_expect(test_total(&a.loss) != first && isfinite(test_total(&a.loss)));
    test_close(&b);
}

Test(crd, odd_batches_are_finite)
{
    test_bench b;
    test_open(&b, STACK);
    for (int odd = 0; odd < 5; odd++) {
        kd_feature_args a = make(&b, odd % 2 ? KD_BF16 : KD_F32,
                                 odd == 4   ? 0
                                 : odd == 3 ? 1
                                            : ROWS);
        if (odd == 0) test_fill_constant(&a.student, 0);
        if (odd == 1) test_fill_constant(&a.teacher, 0);
        if (odd == 2) test_fill_constant(&a.student_bank, 0), test_fill_constant(&a.samples, 3);
        test_fill_constant(&a.partition, 0);
        test_ok(kd_feature_run(&b.exec, &kd_feature_crd, &a));
        const kd_tensor *all[] = { &a.loss,         &a.d_student,    &a.d_teacher,
                                   &a.student_bank, &a.teacher_bank, &a.partition };
        for (int t = 0; t < KD_COUNT(all); t++)
            cr_expect(isfinite(test_total(all[t])), "odd %d, tensor %d", odd, t);
        if (odd == 0)
            for (int i = 0; i < ROWS * WIDTH; i++) cr_expect_eq(test_get(&a.d_student, i), 0);
    }
    test_close(&b);
}

Test(crd, what_does_not_fit_is_refused)
{
    test_bench b;
    test_open(&b, STACK);
    const kd_feature_args good = make(&b, KD_F32, ROWS);
    kd_feature_args a = good;
    a.teacher = test_filled(&b, KD_F32, KD_SHAPE(ROWS, WIDTH + 1), 0, 0, 1);
    a.d_teacher = (kd_tensor){ 0 };
    test_refused(kd_feature_run(&b.exec, &kd_feature_crd, &a), KD_EINVAL, "crd: teacher");
    a = good;
    a.student_bank = test_filled(&b, KD_F32, KD_SHAPE(N + 1, WIDTH), 0, 0, 1);
    test_refused(kd_feature_run(&b.exec, &kd_feature_crd, &a), KD_EINVAL, "crd: teacher_bank");
    a = good;
    a.student_bank = test_filled(&b, KD_BF16, KD_SHAPE(N, WIDTH), 0, 0, 1);
    test_refused(kd_feature_run(&b.exec, &kd_feature_crd, &a), KD_EINVAL,
                 "student_bank is bf16 [40, 10]; expected f32 [n, D]");
    a = good;
    a.samples = test_filled(&b, KD_F32, KD_SHAPE(ROWS), 0, 0, 1);
    test_refused(kd_feature_run(&b.exec, &kd_feature_crd, &a), KD_EINVAL, "expected i32 [B]");
    a = good;
    a.partition = (kd_tensor){ 0 };
    test_refused(kd_feature_run(&b.exec, &kd_feature_crd, &a), KD_EINVAL,
                 "partition [2] is absent");
    a = good;
    test_set(&a.negatives, 2 * K + 3, N);
    test_refused(kd_feature_run(&b.exec, &kd_feature_crd, &a), KD_EINVAL,
                 "negatives of row 2: 40, expected 0 to 39");
    test_close(&b);
}

/* ---- negatives -------------------------------------------------------------------------------- */

enum { DATA = 60, BATCH = 5, DRAWS = 4000 };

Test(crd, negatives_are_of_other_classes_and_uniform)
{
    static const int32_t samples[BATCH] = { 3, 59, 0, 10, 3 };
    static int32_t out[BATCH * DRAWS];
    for (int known = 0; known < 2; known++) {
        kd_arena *arena;
        kd_crd_classes classes;
        int32_t labels[DATA];
        for (int i = 0; i < DATA; i++) labels[i] = i == 10 || i == 20 ? -1 : i * 7 % 3;
        test_ok(kd_arena_create(&arena));
        test_ok(kd_crd_classes_make(&classes, arena, known ? labels : NULL, DATA));
        test_ok(kd_crd_negatives(out, &classes, samples, BATCH, DRAWS, 5, 11));
        for (int b = 0; b < BATCH; b++) {
            int seen[DATA] = { 0 }, others = 0;
            for (int k = 0; k < DRAWS; k++) seen[out[b * DRAWS + k]]++;
            const int32_t s = samples[b];
            for (int i = 0; i < DATA; i++) {
                const bool same = i == s || (known && labels[s] >= 0 && labels[i] == labels[s]);
                others += !same;
                cr_expect(!same || seen[i] == 0, "known %d: %d drawn for %d", known, i, (int)s);
            }
            const double mean = (double)DRAWS / others;
            for (int i = 0; i < DATA; i++)
                cr_expect(seen[i] == 0 || fabs(seen[i] - mean) < 5 * sqrt(mean), "%d: %d of %g", i,
                          seen[i], mean);
        }
        cr_expect(memcmp(out, out + 4 * DRAWS, DRAWS * sizeof *out) == 0, "equal samples");
        kd_arena_destroy(arena);
    }
}

/* A function of seed, step and sample: not of the batch, its order or the threads. */
Test(crd, negatives_are_drawn_again_by_a_run_that_goes_on)
{
    static const int32_t samples[BATCH] = { 3, 59, 0, 10, 44 };
    static int32_t out[BATCH * 2000], again[BATCH * 2000];
    kd_arena *arena;
    kd_crd_classes classes;
    int32_t labels[DATA];
    for (int i = 0; i < DATA; i++) labels[i] = i % 4;
    test_ok(kd_arena_create(&arena));
    test_ok(kd_crd_classes_make(&classes, arena, labels, DATA));
    test_ok(kd_crd_negatives(out, &classes, samples, BATCH, 2000, 5, 11));
    omp_set_num_threads(1);
    for (int b = BATCH - 1; b >= 0; b--)
        test_ok(kd_crd_negatives(again + b * 2000, &classes, samples + b, 1, 2000, 5, 11));
    cr_expect(memcmp(out, again, sizeof out) == 0, "one by one");
    for (int other = 0; other < 2; other++) {
        int equal = 0;
        test_ok(kd_crd_negatives(again, &classes, samples, BATCH, 2000, other ? 5 : 6,
                                 other ? 12 : 11));
        for (int i = 0; i < BATCH * 2000; i++) equal += again[i] == out[i];
        cr_expect(equal < 2 * BATCH * 2000 / 45, "%d equal", equal);
    }
    const int32_t outside = DATA;
    test_refused(kd_crd_negatives(again, &classes, &outside, 1, 3, 5, 11), KD_EINVAL,
                 "samples[0] is 60, expected 0 to 59");
    for (int i = 0; i < DATA; i++) labels[i] = 2;
    test_ok(kd_crd_classes_make(&classes, arena, labels, DATA));
    test_refused(kd_crd_negatives(again, &classes, samples, 1, 3, 5, 11), KD_EINVAL,
                 "sample 3 has no negatives: all 60 are of its class");
    test_ok(kd_crd_classes_make(&classes, arena, NULL, 1));
    test_refused(kd_crd_negatives(again, &classes, samples + 2, 1, 3, 5, 11), KD_EINVAL,
                 "sample 0 has no negatives");
    test_refused(kd_crd_classes_make(&classes, arena, labels, 0), KD_EINVAL, "0 samples");
    kd_arena_destroy(arena);
}
