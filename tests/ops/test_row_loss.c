/*
 * What row_loss owes, for every row of row_list.h: loss and gradient of the formula in double, at
 * any temperature, dtype and padding; hostile rows; ignored rows unread; several terms at once; the
 * same bits from any number of threads.
 */
#include "format/format.h"
#include "ops/vmath.h"
#include "support/rows.h"

#include <float.h>
#include <math.h>
#include <omp.h>

/* Options worth a run: both ends, the default, and one more. */
static int options_of(double options[4], kd_row_kind kind)
{
    const kd_row_type *type = &kd_row_types[kind];
    if (!type->option) {
        options[0] = 0.0;
        return 1;
    }
    options[0] = type->option_min;
    options[1] = type->option_default;
    options[2] = type->option_max;
    options[3] = 0.9;
    return 4;
}

Test(row_loss, agrees_with_the_formulas_in_double)
{
    static const int64_t sizes[] = { 1, 2, 3, 17, 256, 1000 };
    static const double temperatures[] = { 0.05, 1.0, 2.0, 4.0, 100.0 };
    test_bench b;
    test_open(&b, 1 << 20);
    for (int size = 0; size < KD_COUNT(sizes); size++) {
        for (int half = 0; half < 2; half++) {
            const int mark = test_mark(&b);
            row_fixture f = rows_hostile(&b, sizes[size], half ? KD_BF16 : KD_F32);
            for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
                double options[4];
                const int count = options_of(options, (kd_row_kind)kind);
                for (int i = 0; i < count * KD_COUNT(temperatures); i++) {
                    f.terms.count = 0;
                    rows_add_term(&f, (kd_row_kind)kind, temperatures[i / count],
                                  options[i % count], i % 2);
                    if (i % 3 == 1) f.values.term[0].option2 = 0.0f;
                    rows_run_and_check(&f);
                }
            }
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

Test(row_loss, sums_terms_of_any_temperatures)
{
    static const int64_t sizes[] = { 3, 300 };
    test_bench b;
    test_open(&b, 1 << 20);
    for (int i = 0; i < 2 * KD_COUNT(sizes); i++) {
        const int mark = test_mark(&b);
        row_fixture f = rows_hostile(&b, sizes[i / 2], i % 2 ? KD_BF16 : KD_F32);
        /* all rows of the list, first and last; temperatures 1, 2, 1, 2, ...: groups interleave */
        for (int first = 0; first <= KD_ROW_COUNT - KD_MAX_ROW_TERMS;
             first += KD_ROW_COUNT - KD_MAX_ROW_TERMS) {
            f.terms.count = 0;
            for (int kind = first; kind < first + KD_MAX_ROW_TERMS; kind++)
                rows_add_term(&f, (kd_row_kind)kind, 1.0 + kind % 2,
                              kd_row_types[kind].option_default, kind % 3 == 0);
            rows_run_and_check(&f);
        }
        /* the same term twice, and equal temperatures of terms with and without a teacher */
        f.terms.count = 0;
        rows_add_term(&f, KD_ROW_forward_kl, 2.0, 0.0, true);
        rows_add_term(&f, KD_ROW_cross_entropy, 1.0, 0.1, false);
        rows_add_term(&f, KD_ROW_z_loss, 1.0, 0.0, false);
        rows_add_term(&f, KD_ROW_forward_kl, 1.0, 0.0, false);
        rows_run_and_check(&f);
        test_release(&b, mark);
    }
    test_close(&b);
}

/* ---- the oracle itself ------------------------------------------------------------------------ */

typedef struct varied {
    oracle_row row;
    double *student;     /* what row.student points at */
    const double *moved; /* the live logits, in order */
} varied;

static double value_of(void *context)
{
    const varied *v = context;
    for (int64_t j = 0, i = 0; j < v->row.classes; j++)
        if (v->student[j] > -INFINITY) v->student[j] = v->moved[i++];
    return oracle_row_value(&v->row);
}

Test(row_loss, the_oracle_has_the_gradient_of_its_value)
{
    static const double temperatures[] = { 0.5, 1.0, 4.0 };
    enum { CLASSES = 11 };
    test_bench b;
    test_open(&b, 1 << 16);
    row_fixture f = rows_hostile(&b, CLASSES, KD_F32);
    for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
        double options[4];
        const int count = options_of(options, (kd_row_kind)kind);
        for (int i = 0; i < count * KD_COUNT(temperatures); i++) {
            f.terms.count = 0;
            /* a weight of 100 would take the differences their digits */
            rows_add_term(&f, (kd_row_kind)kind, temperatures[i / count],
                          fmin(options[i % count], 2.0), false);
            if (i % 3 == 1) f.values.term[0].option2 = 0.0f;
            for (int n = 0; n < ROW_NO_LABEL; n++) {
                /* total variation has a corner where both sides are equal; 1000 and 10000
                 * take the differences their digits */
                if (n == ROW_SHIFTED || n == ROW_EXTREME) continue;
                if (kind == KD_ROW_total_variation &&
                    (n == ROW_SAME || n == ROW_FLAT || n >= ROW_LOWEST))
                    continue;
                double student[CLASSES], x[CLASSES], all[CLASSES], gradient[CLASSES];
                varied v = { rows_oracle(&f, 0, n), student, x };
                memcpy(student, v.row.student, sizeof student);
                v.row.student = student;
                oracle_row_gradient(all, &v.row);
                int64_t live = 0;
                for (int64_t j = 0; j < CLASSES; j++) {
                    if (student[j] == -INFINITY) {
                        cr_assert(all[j] == 0.0, "%s: dead class %lld has gradient %g",
                                  rows_describe(&f, n), (long long)j, all[j]);
                        continue;
                    }
                    gradient[live] = all[j];
                    x[live++] = student[j];
                }
                test_gradient(value_of, &v, x, live, gradient, "%s", rows_describe(&f, n));
            }
        }
    }
    test_close(&b);
}

/* ---- stated numbers --------------------------------------------------------------------------- */

static void read_tensor(const kd_tensor *to, const kd_st_file *file, const char *name)
{
    const kd_st_entry *entry = kd_st_find(file, name);
    cr_assert(entry, "no tensor \"%s\" in the golden file", name);
    test_ok(kd_st_read(to->data, to->dtype, file, entry, 0, kd_tensor_elements(to)));
}

/* `loss` and `gradient` are PyTorch's at weight, scale and T^2 of 1. */
static void check_golden(row_fixture *f, const kd_tensor *loss, const kd_tensor *gradient)
{
    const kd_tensor result = rows_copy_student(f);
    f->values.term[0].scale = 1.0f;
    test_ok(rows_run(f, &result));
    for (int64_t n = 0; n < f->rows; n++) {
        const oracle_row row = rows_oracle(f, 0, n);
        double of_value, condition[16];
        oracle_row_condition(&of_value, condition, &row);
        const double want = test_get(loss, n), got = test_get(&f->loss, n);
        cr_assert(fabs(got - want) <= (double)FLT_EPSILON * (4.0 * of_value + fabs(want)),
                  "%s %lld: loss %.9g, PyTorch says %.9g", rows_describe(f, ROW_KINDS),
                  (long long)n, got, want);
        for (int64_t j = 0; j < f->classes; j++) {
            const double g = test_get(gradient, n * f->classes + j);
            const double found = test_get(&result, n * f->student.shape[1] + j);
            cr_assert(fabs(found - g) <=
                          (double)FLT_EPSILON * (4.0 * condition[j] + fabs(g)) + DBL_EPSILON,
                      "%s %lld: gradient[%lld] %.9g, PyTorch says %.9g",
                      rows_describe(f, ROW_KINDS), (long long)n, (long long)j, found, g);
        }
    }
}

Test(row_loss, agrees_with_pytorch)
{
    enum { N = 5, CLASSES = 9 };
    test_bench b;
    test_open(&b, 1 << 16);
    kd_st_file *file;
    test_ok(kd_st_open(&file, KD_GOLDEN "/rows.safetensors"));
    row_fixture f = rows_tensors(&b, N, CLASSES, KD_F32);
    f.student = test_tensor(&b, KD_F32, KD_SHAPE(N, 12), 0);
    f.teacher = test_tensor(&b, KD_F32, KD_SHAPE(N, 10), 0);
    const kd_tensor loss = test_tensor(&b, KD_F32, KD_SHAPE(N), 0);
    const kd_tensor gradient = test_tensor(&b, KD_F32, KD_SHAPE(N, CLASSES), 0);
    const kd_tensor setting = test_tensor(&b, KD_F32, KD_SHAPE(3), 0);
    read_tensor(&f.student, file, "student");
    read_tensor(&f.teacher, file, "teacher");
    read_tensor(&f.labels, file, "labels");
    test_fill_constant(&f.weight, 1.0);
    rows_copy_logits(&f);
    for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
        int cases = 0;
        for (;; cases++) {
            char name[64];
            const char *term = kd_row_types[kind].name;
            snprintf(name, sizeof name, "%s.%d.setting", term, cases);
            if (!kd_st_find(file, name)) break;
            read_tensor(&setting, file, name);
            snprintf(name, sizeof name, "%s.%d.loss", term, cases);
            read_tensor(&loss, file, name);
            snprintf(name, sizeof name, "%s.%d.gradient", term, cases);
            read_tensor(&gradient, file, name);
            f.terms.count = 0;
            rows_add_term(&f, (kd_row_kind)kind, test_get(&setting, 0), test_get(&setting, 1),
                          false);
            f.values.term[0].option2 = (float)test_get(&setting, 2);
            const int mark = test_mark(&b);
            check_golden(&f, &loss, &gradient);
            test_release(&b, mark);
        }
        cr_assert(cases > 0, "%s has no golden case", kd_row_types[kind].name);
    }
    kd_st_close(file);
    test_close(&b);
}

/* A student equal to its teacher has nothing to learn: every divergence is 0, and its gradient is
 * what rounding the sum of the probabilities leaves.  The two cross entropies are none. */
static bool is_divergence(int kind)
{
    return kd_row_types[kind].teacher && kind != KD_ROW_soft_cross_entropy &&
           kind != KD_ROW_hard_distillation;
}

static void check_equal_models(void)
{
    test_bench b;
    test_open(&b, 1 << 20);
    row_fixture f = rows_hostile(&b, 1000, KD_F32);
    for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
        double options[4];
        const int count = options_of(options, (kd_row_kind)kind);
        for (int i = 0; is_divergence(kind) && i < count; i++) {
            const int mark = test_mark(&b);
            f.terms.count = 0;
            rows_add_term(&f, (kd_row_kind)kind, 1.0, options[i], false);
            const kd_tensor result = rows_copy_student(&f);
            test_ok(rows_run(&f, &result));
            const double loss = test_get(&f.loss, ROW_SAME);
            cr_assert(loss == 0.0, "%s: loss %g", rows_describe(&f, ROW_SAME), loss);
            for (int64_t j = 0; j < f.classes; j++) {
                const double g = test_get(&result, ROW_SAME * f.student.shape[1] + j);
                const double q = exp(f.s[ROW_SAME * f.classes + j]); /* above the probability */
                const double most = kind == KD_ROW_dkd ? f.values.term[0].option2 : 1.0;
                cr_assert(fabs(g) <= 2.0 * (double)FLT_EPSILON * q * most, "%s: gradient %g",
                          rows_describe(&f, ROW_SAME), g);
            }
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

static double loss_of(row_fixture *f, kd_row_kind kind, double option, int row)
{
    const int mark = test_mark(f->bench);
    const kd_tensor result = rows_copy_student(f);
    f->terms.count = 0;
    rows_add_term(f, kind, 1.0, option, false);
    test_ok(rows_run(f, &result));
    const double loss = test_get(&f->loss, row);
    test_release(f->bench, mark);
    return loss;
}

Test(row_loss, keeps_the_identities_of_the_divergences)
{
    check_equal_models();
    test_bench b;
    test_open(&b, 1 << 20);
    row_fixture f = rows_hostile(&b, 17, KD_F32);
    const double forward = loss_of(&f, KD_ROW_forward_kl, 0.0, ROW_RANDOM);
    const double reverse = loss_of(&f, KD_ROW_reverse_kl, 0.0, ROW_RANDOM);
    cr_assert(fabs(forward - reverse) > 1e-3, "the two directions must differ here");
    /* TRL's end points are the divergences themselves, bit for bit; the limit has a factor beta. */
    cr_assert_eq(loss_of(&f, KD_ROW_jsd, 0.0, ROW_RANDOM), forward);
    cr_assert_eq(loss_of(&f, KD_ROW_jsd, 1.0, ROW_RANDOM), reverse);
    for (double beta = 1e-4; beta > 1e-8; beta *= 0.1) {
        const double quotient = loss_of(&f, KD_ROW_jsd, beta, ROW_RANDOM) / beta;
        /* d/dbeta is of the order of the chi-square divergence, below 1e3 here */
        const double allowed = 1e3 * beta + 64.0 * (double)FLT_EPSILON * (1.0 + forward);
        cr_assert(fabs(quotient - forward) <= allowed,
                  "GJSD(%g) / beta is %.9g, KL(p || q) is %.9g (allowed %g)", beta, quotient,
                  forward, allowed);
    }
    /* Two classes, q = (3/4, 1/4), p = (1/2, 1/2): values on paper. */
    row_fixture g = rows_tensors(&b, 1, 2, KD_F32);
    test_set(&g.weight, 0, 1.0);
    const double s[] = { log(3.0), 0.0 };
    for (int j = 0; j < 2; j++) test_set(&g.student, j, s[j]), test_set(&g.teacher, j, 0.0);
    const struct {
        kd_row_kind kind;
        double option, value;
    } known[] = {
        { KD_ROW_cross_entropy, 0.0, log(4.0 / 3.0) },
        { KD_ROW_cross_entropy, 0.5, 0.75 * log(4.0 / 3.0) + 0.25 * log(4.0) },
        { KD_ROW_forward_kl, 0.0, 0.5 * log(4.0 / 3.0) },
        { KD_ROW_reverse_kl, 0.0, 0.75 * log(1.5) - 0.25 * log(2.0) },
        { KD_ROW_jsd, 0.25,
          0.125 * log(8.0 / 11.0) + 0.125 * log(8.0 / 5.0) + 0.5625 * log(12.0 / 11.0) +
              0.1875 * log(4.0 / 5.0) },
        { KD_ROW_skew_kl, 0.25, 0.5 * log(8.0 / 11.0) + 0.5 * log(8.0 / 5.0) },
        { KD_ROW_skew_reverse_kl, 0.25, 0.75 * log(4.0 / 3.0) + 0.25 * log(4.0 / 7.0) },
        { KD_ROW_total_variation, 0.0, 0.25 },
        { KD_ROW_z_loss, 0.0, log(4.0) * log(4.0) },
        { KD_ROW_soft_cross_entropy, 0.0, 0.5 * log(4.0 / 3.0) + 0.5 * log(4.0) },
        { KD_ROW_hard_distillation, 0.0, log(4.0 / 3.0) },
        { KD_ROW_logit_mse, 0.0, 0.5 * log(3.0) * log(3.0) },
        { KD_ROW_dkd, 2.0,
          2.0 * (0.5 * log(2.0 / 3.0) + 0.5 * log(2.0)) }, /* one class is the rest */
    };
    for (int i = 0; i < KD_COUNT(known); i++) {
        const double got = loss_of(&g, known[i].kind, known[i].option, 0);
        cr_assert(fabs(got - known[i].value) <= 8.0 * (double)FLT_EPSILON,
                  "%s(%g): %.9g, on paper %.9g", kd_row_types[known[i].kind].name, known[i].option,
                  got, known[i].value);
    }
    test_close(&b);
}

/* ---- hostile ---------------------------------------------------------------------------------- */

/* Qwen's vocabulary with three classes alive, masked elsewhere on both sides; the student padded to
 * 152,064.  All that is left is a problem of three classes. */
Test(row_loss, three_live_classes_of_a_large_vocabulary)
{
    enum { CLASSES = 151936, COLUMNS = 152064 };
    static const int64_t alive[] = { 0, 70001, CLASSES - 1 };
    test_bench b;
    test_open(&b, 64u << 20);
    row_fixture f = rows_tensors(&b, 1, CLASSES, KD_BF16);
    f.student = test_tensor(&b, KD_BF16, KD_SHAPE(1, COLUMNS), 0);
    f.teacher = test_tensor(&b, KD_BF16, KD_SHAPE(1, CLASSES), 0);
    test_set(&f.weight, 0, 1.0);
    for (int64_t j = 0; j < CLASSES; j++) {
        test_set(&f.student, j, -INFINITY);
        test_set(&f.teacher, j, -INFINITY);
    }
    for (int i = 0; i < KD_COUNT(alive); i++) {
        test_set(&f.student, alive[i], 2.0 - i);
        test_set(&f.teacher, alive[i], 1.5 * i);
    }
    rows_copy_logits(&f);
    for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
        f.terms.count = 0;
        rows_add_term(&f, (kd_row_kind)kind, 0.5, kd_row_types[kind].option_default, true);
        rows_run_and_check(&f);
    }
    test_close(&b);
}

/* NaN, +inf or no live class on a side that a term reads: its loss is NaN, and no other row's. */
static void check_poison(row_fixture *f, int kind, double poison, bool on_student)
{
    enum { ROW = 1 };
    const int mark = test_mark(f->bench);
    const kd_tensor *side = on_student ? &f->student : &f->teacher;
    double keep[64];
    for (int64_t j = 0; j < f->classes; j++) {
        keep[j] = test_get(side, ROW * side->shape[1] + j);
        if (poison == -INFINITY || j == 5) test_set(side, ROW * side->shape[1] + j, poison);
    }
    for (int i = 0; i < 3; i++) { /* options: their two ends and the default */
        const kd_row_type *type = &kd_row_types[kind];
        const double option = i == 0   ? type->option_min
                              : i == 1 ? type->option_default
                                       : type->option_max;
        f->terms.count = 0;
        rows_add_term(f, (kd_row_kind)kind, 1.0, option, false);
        const kd_tensor result = rows_copy_student(f);
        test_ok(rows_run(f, &result));
        for (int64_t n = 0; n < ROW_NO_LABEL; n++)
            cr_assert(isnan(test_get(&f->loss, n)) == (n == ROW),
                      "%s, %g in the %s's row %d: loss of row %lld is %g", rows_describe(f, n),
                      poison, on_student ? "student" : "teacher", ROW, (long long)n,
                      test_get(&f->loss, n));
    }
    for (int64_t j = 0; j < f->classes; j++) test_set(side, ROW * side->shape[1] + j, keep[j]);
    test_release(f->bench, mark);
}

Test(row_loss, what_is_not_finite_is_never_hidden)
{
    static const double poisons[] = { NAN, INFINITY, -INFINITY };
    test_bench b;
    test_open(&b, 1 << 20);
    row_fixture f = rows_hostile(&b, 40, KD_F32);
    for (int kind = 0; kind < KD_ROW_COUNT; kind++)
        for (int i = 0; i < KD_COUNT(poisons); i++) {
            check_poison(&f, kind, poisons[i], true);
            if (kd_row_types[kind].teacher) check_poison(&f, kind, poisons[i], false);
        }
    /* all rows ignored, in both ways */
    for (int by_label = 0; by_label < 2; by_label++) {
        test_fill_constant(&f.labels, by_label ? -1.0 : 1e9);
        test_fill_constant(&f.weight, by_label ? 1.0 : 0.0);
        test_fill_constant(&f.student, NAN);
        test_fill_constant(&f.teacher, NAN);
        rows_run_and_check(&f);
    }
    test_close(&b);
}

Test(row_loss, gives_the_same_bits_on_any_number_of_threads)
{
    test_bench b;
    test_open(&b, 4 << 20);
    row_fixture f = rows_hostile(&b, 700, KD_BF16);
    for (int kind = 0; kind < KD_ROW_COUNT && kind < KD_MAX_ROW_TERMS; kind++)
        rows_add_term(&f, (kd_row_kind)kind, 1.0 + kind / 3, kd_row_types[kind].option_default,
                      true);
    const int threads = omp_get_max_threads();
    kd_tensor results[3], losses[3];
    for (int i = 0; i < 3; i++) {
        omp_set_num_threads(1 + 2 * i);
        results[i] = rows_copy_student(&f);
        test_ok(rows_run(&f, &results[i]));
        losses[i] = f.loss;
        test_same_bits(&losses[i], &losses[0], "losses, %d threads", 1 + 2 * i);
        test_same_bits(&results[i], &results[0], "gradients, %d threads", 1 + 2 * i);
    }
    omp_set_num_threads(threads);
    test_close(&b);
}

Test(row_loss, asks_for_its_scratch_while_planning_and_touches_nothing)
{
    test_bench b;
    test_open(&b, 4 << 20);
    row_fixture f = rows_hostile(&b, 300, KD_F32);
    rows_add_term(&f, KD_ROW_forward_kl, 1.0, 0.0, false);
    rows_add_term(&f, KD_ROW_cross_entropy, 2.0, 0.0, false);
    f.loss = test_tensor(&b, KD_F32, KD_SHAPE(2, f.rows), 0);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    const kd_tensor student = test_untouchable(&f.student), teacher = test_untouchable(&f.teacher);
    const kd_tensor labels = test_untouchable(&f.labels), loss = test_untouchable(&f.loss);
    const kd_tensor scalars = test_untouchable(&f.scalars);
    test_ok(KD_RUN(&plan, row_loss, .student = &student, .loss = &loss, .teacher = &teacher,
                   .labels = &labels, .scalars = &scalars, .terms = &f.terms,
                   .classes = f.classes));
    b.stack.peak = 0;
    const kd_tensor result = rows_copy_student(&f);
    test_ok(rows_run(&f, &result));
    cr_assert_eq(b.stack.peak, counting.peak, "planned %zu bytes, took %zu", counting.peak,
                 b.stack.peak);
    test_close(&b);
}

/* ---- refusals --------------------------------------------------------------------------------- */

Test(row_loss, refuses_what_it_cannot_compute)
{
    test_bench b;
    test_open(&b, 1 << 20);
    row_fixture f = rows_hostile(&b, 8, KD_F32);
    const kd_tensor student = f.student, teacher = f.teacher, labels = f.labels;
    rows_add_term(&f, KD_ROW_cross_entropy, 1.0, 0.0, false);

    test_set(&f.labels, 4, 8.0);
    test_refused(rows_run(&f, &student), KD_EINVAL,
                 "row 4: label 8, expected -1 or 0 to 7 of 8 classes");
    test_set(&f.labels, 4, -2.0);
    test_refused(rows_run(&f, &student), KD_EINVAL, "row 4: label -2");
    test_set(&f.labels, 4, 0.0);
    for (int64_t i = 0; i < ROW_KINDS * 8; i++) /* refused before anything was written */
        cr_assert(f.s[i] == test_get(&student, i / 8 * 13 + i % 8) || isnan(f.s[i]));

    f.labels.data = NULL;
    test_refused(rows_run(&f, &student), KD_EINVAL, "cross_entropy needs labels");
    f.labels = labels;
    f.teacher.data = NULL;
    test_refused(rows_run(&f, &student), KD_EINVAL, "same_top needs a teacher");
    f.terms.kind[0] = KD_ROW_jsd;
    f.same_top.data = NULL;
    test_refused(rows_run(&f, &student), KD_EINVAL, "jsd needs a teacher");
    f.teacher = teacher;
    f.classes = 11;
    test_refused(rows_run(&f, &student), KD_EINVAL, "teacher has 10 columns for 11 classes");
    f.classes = 14;
    test_refused(rows_run(&f, &student), KD_EINVAL, "student has 13 columns for 14 classes");
    f.classes = 0;
    test_refused(rows_run(&f, &student), KD_EINVAL, "0 classes");
    f.classes = 8;
    f.values.term[0].temperature = 0.0f;
    test_refused(rows_run(&f, &student), KD_EINVAL, "jsd: temperature is 0");
    f.values.term[0].temperature = NAN;
    test_refused(rows_run(&f, &student), KD_EINVAL, "jsd: temperature is nan");
    f.teacher = kd_tensor_slice(&teacher, 0, 0, 3);
    test_refused(rows_run(&f, &student), KD_EINVAL, "teacher");
    f.teacher = kd_tensor_transposed(&teacher);
    test_refused(rows_run(&f, &student), KD_EINVAL, "teacher");
    f.teacher = teacher;
    f.terms.count = 0;
    test_refused(rows_run(&f, &student), KD_EINVAL, "0 terms");
    test_close(&b);
}

/* ---- vmath ------------------------------------------------------------------------------------ */

/* |got - want| in units of the last place of a float at `want`. */
static double ulps(float got, double want)
{
    int exponent;
    frexp(want, &exponent);
    return isnan(got) ? (double)INFINITY : fabs((double)got - want) / ldexp(1.0, exponent - 24);
}

Test(row_loss, exponential_and_logarithm_are_within_1_1_and_1_ulp)
{
    double worst_exp = 0.0, worst_log = 0.0;
    for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 1021) {
        const float x = kd_bits_float((uint32_t)bits);
        if (x >= -87.3f && x <= 88.0f)
            worst_exp = fmax(worst_exp, ulps(kd_vexpf(x), exp((double)x)));
        if (x >= FLT_MIN && x <= FLT_MAX)
            worst_log = fmax(worst_log, ulps(kd_vlogf(x), log((double)x)));
        if (x < -87.3f) cr_assert(kd_vexpf(x) == 0.0f, "exp(%g)", (double)x);
        if (x > 88.0f) cr_assert(kd_vexpf(x) == INFINITY, "exp(%g)", (double)x);
        if (isnan(x)) cr_assert(isnan(kd_vexpf(x)) && isnan(kd_vlogf(x)));
    }
    cr_assert(worst_exp <= 1.1, "exp is off by %g ulp", worst_exp);
    cr_assert(worst_log <= 1.0, "log is off by %g ulp", worst_log);
    cr_assert(kd_vexpf(-INFINITY) == 0.0f && kd_vexpf(0.0f) == 1.0f && kd_vlogf(1.0f) == 0.0f);
}
