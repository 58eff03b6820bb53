/*
 * row_loss on a GPU: what test_row_loss.c of ops asks of the CPU, of every kernel that may be
 * chosen; and against the CPU where operands are absent or rows are not finite.
 */
#include "support/parity.h"
#include "support/rows.h"

#include <math.h>
#include <stdlib.h>

/* The widest options of each kind's branch: both ends, the default, one more. */
static int options_of(double options[4], int kind)
{
    const kd_row_type *type = &kd_row_types[kind];
    options[0] = type->option_min;
    options[1] = type->option_default;
    options[2] = type->option_max;
    options[3] = 0.9;
    return type->option ? 4 : 1;
}

/* What KD_ROW_BLOCKS may say: rows in global memory, then in shared memory of so many blocks. */
static const char *const row_blocks[] = { "0", "1", "2", "8" };

static void open_with(parity *p, const char *blocks)
{
    setenv("KD_ROW_BLOCKS", blocks, 1);
    parity_capability(atoi(blocks) > 1 ? 90 : 80);
    parity_open(p, 1 << 20);
}

static void close_with(parity *p)
{
    parity_close(p);
    parity_capability(80);
    unsetenv("KD_ROW_BLOCKS");
}

static kd_status run_gpu(void *context, const kd_row_loss_args *args)
{
    return parity_run_gpu(context, KD_OP_row_loss, args);
}

static row_fixture on_gpu(row_fixture f, parity *p)
{
    f.run = run_gpu;
    f.context = p;
    f.exp_error = 2.0; /* ex2.approx: 2^-22 */
    return f;
}

/* ---- against the formulas in double ----------------------------------------------------------- */

/* Every term alone, and with cross entropy at the same temperature or another, smoothed or not. */
static void check_terms(row_fixture *f, bool thorough)
{
    static const double temperatures[] = { 0.05, 2.0, 1.0, 4.0, 100.0 };
    const int few = thorough ? KD_COUNT(temperatures) : 2;
    for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
        double options[4];
        const int count = thorough ? options_of(options, kind) : 1;
        if (!thorough) options[0] = kd_row_types[kind].option_default;
        for (int i = 0; i < count * few; i++) {
            const double temperature = temperatures[i % few];
            f->terms.count = 0;
            rows_add_term(f, (kd_row_kind)kind, temperature, options[i / few], i % 2);
            if (i % 3 == 1) f->values.term[0].option2 = 0.0f;
            rows_run_and_check(f);
            if (!kd_row_types[kind].teacher) continue;
            rows_add_term(f, KD_ROW_cross_entropy, i % 3 ? 1.0 : temperature, i % 4 ? 0.0 : 0.1,
                          false);
            rows_run_and_check(f);
        }
    }
}

Test(row_loss, agrees_with_the_formulas_in_double)
{
    static const int64_t sizes[] = { 9, 300, 1, 3, 7, 8, 64 };
    for (int v = 0; v < KD_COUNT(row_blocks); v++) {
        parity p;
        open_with(&p, row_blocks[v]);
        for (int i = 0; i < (v ? 2 : KD_COUNT(sizes)); i++)
            for (int lay = 0; lay < 3; lay++) {
                const int mark = test_mark(&p.bench);
                row_fixture f = rows_hostile(&p.bench, sizes[i], lay ? KD_BF16 : KD_F32);
                f = on_gpu(f, &p);
                if (lay < 2) rows_align(&f);
                check_terms(&f, sizes[i] == 9 && lay < 2);
                test_release(&p.bench, mark);
            }
        close_with(&p);
    }
}

Test(row_loss, sums_up_to_eight_terms_of_any_temperatures)
{
    static const int64_t sizes[] = { 3, 2000 };
    for (int v = 0; v < KD_COUNT(row_blocks); v++) {
        parity p;
        open_with(&p, row_blocks[v]);
        for (int i = 0; i < 4 * KD_COUNT(sizes); i++) {
            const int mark = test_mark(&p.bench);
            row_fixture f =
                on_gpu(rows_hostile(&p.bench, sizes[i / 4], i % 2 ? KD_BF16 : KD_F32), &p);
            if (i / 2 % 2) rows_align(&f);
            /* the first eight and the last; temperatures 0.5, 1, 2, 0.5, ...: groups interleave */
            for (int first = 0; first <= KD_ROW_COUNT - KD_MAX_ROW_TERMS;
                 first += KD_ROW_COUNT - KD_MAX_ROW_TERMS) {
                f.terms.count = 0;
                for (int kind = first; kind < first + KD_MAX_ROW_TERMS; kind++)
                    rows_add_term(&f, (kd_row_kind)kind, kind % 3 ? kind % 3 : 0.5,
                                  kd_row_types[kind].option_default, kind % 2);
                rows_run_and_check(&f);
            }
            /* the same term twice; a temperature at which none reads the teacher; two-pass terms only */
            f.terms.count = 0;
            rows_add_term(&f, KD_ROW_z_loss, 1.0, 0.0, false);
            rows_add_term(&f, KD_ROW_forward_kl, 2.0, 0.0, true);
            rows_add_term(&f, KD_ROW_cross_entropy, 1.0, 0.0, false);
            rows_add_term(&f, KD_ROW_forward_kl, 4.0, 0.0, false);
            rows_run_and_check(&f);
            test_release(&p.bench, mark);
        }
        close_with(&p);
    }
}

/* One row of a large vocabulary, every thread of the block with many units. */
Test(row_loss, a_row_of_128256_classes)
{
    for (int v = 0; v < KD_COUNT(row_blocks); v++) {
        parity p;
        open_with(&p, row_blocks[v]);
        for (int aligned = 0; aligned < 2; aligned++) {
            const int mark = test_mark(&p.bench);
            row_fixture f = on_gpu(rows_tensors(&p.bench, 1, 128256, KD_BF16), &p);
            test_fill(&p.bench, &f.student, -8.0, 8.0);
            test_fill(&p.bench, &f.teacher, -8.0, 8.0);
            if (aligned) rows_align(&f);
            rows_copy_logits(&f);
            rows_add_term(&f, KD_ROW_cross_entropy, 1.0, 0.0, false);
            rows_add_term(&f, KD_ROW_forward_kl, 2.0, 0.0, true);
            rows_run_and_check(&f);
            rows_add_term(&f, KD_ROW_jsd, 2.0, 0.5, true);
            rows_run_and_check(&f);
            test_release(&p.bench, mark);
        }
        close_with(&p);
    }
}

/* ---- operands --------------------------------------------------------------------------------- */

/* The rows that are ignored for a label or a weight, which may be absent here, become others. */
static row_fixture whole_rows(parity *p, kd_dtype dtype, bool aligned)
{
    row_fixture f = on_gpu(rows_hostile(&p->bench, 43, dtype), p);
    for (int row = ROW_NO_LABEL; row < ROW_KINDS; row++)
        for (int64_t j = 0; j < f.classes; j++) {
            test_set(&f.student, row * f.student.shape[1] + j, 0.1 * (double)(j % 7) + row);
            test_set(&f.teacher, row * f.teacher.shape[1] + j, 0.2 * (double)(j % 5) - row);
        }
    if (aligned) rows_align(&f);
    rows_copy_logits(&f);
    return f;
}

Test(row_loss, operands_may_be_absent)
{
    for (int v = 0; v < KD_COUNT(row_blocks); v++) {
        parity p;
        open_with(&p, row_blocks[v]);
        for (int i = 0; i < 64; i++) {
            const int mark = test_mark(&p.bench);
            row_fixture f = whole_rows(&p, i & 1 ? KD_BF16 : KD_F32, i & 2);
            if (i & 4) f.weight.data = NULL;
            if (i & 8) f.labels.data = NULL;
            if (i & 16) f.same_top.data = NULL;
            if ((i & 48) == 48) f.teacher.data = NULL;
            if (!(i & 8)) rows_add_term(&f, KD_ROW_cross_entropy, 1.0, 0.0, false);
            if (!(i & 32)) rows_add_term(&f, KD_ROW_forward_kl, 2.0, 0.0, true);
            if (f.terms.count == 0) rows_add_term(&f, KD_ROW_z_loss, 1.0, 0.0, false);
            rows_run_and_check(&f);
            test_release(&p.bench, mark);
        }
        /* no row: nothing to launch */
        row_fixture f = on_gpu(rows_tensors(&p.bench, 1, 5, KD_F32), &p);
        rows_add_term(&f, KD_ROW_forward_kl, 1.0, 0.0, false);
        f.rows = 0;
        kd_tensor *const all[] = { &f.student, &f.teacher, &f.labels, &f.weight, &f.same_top };
        for (int i = 0; i < KD_COUNT(all); i++) *all[i] = kd_tensor_slice(all[i], 0, 0, 0);
        test_ok(rows_run(&f, &f.student));
        close_with(&p);
    }
}

Test(row_loss, gives_the_same_bits_twice_and_plans_what_it_takes)
{
    parity p;
    parity_open(&p, 4 << 20);
    row_fixture f = rows_tensors(&p.bench, 3, 700, KD_BF16);
    test_fill(&p.bench, &f.student, -3.0, 3.0);
    test_fill(&p.bench, &f.teacher, -3.0, 3.0);
    for (int kind = KD_ROW_COUNT - KD_MAX_ROW_TERMS; kind < KD_ROW_COUNT; kind++)
        rows_add_term(&f, (kd_row_kind)kind, 1.0 + kind % 3, kd_row_types[kind].option_default,
                      true);
    f.loss = test_tensor(&p.bench, KD_F32, KD_SHAPE(f.terms.count, f.rows), 3);
    memcpy(f.scalars.data, &f.values, sizeof f.values);
    PARITY(&p, row_loss, 1, 64, "row_loss of every term", .student = &f.student, .loss = &f.loss,
           .same_top = &f.same_top, .teacher = &f.teacher, .labels = &f.labels, .weight = &f.weight,
           .scalars = &f.scalars, .terms = &f.terms, .classes = f.classes);
    parity_close(&p);
}

/* ---- what is not finite, and what the CPU refuses ---------------------------------------------- */

/* The one row that must be poisoned. */
enum { POISONED = 1 };

static void check_only_row_is_nan(row_fixture *f, bool whole_gradient, const char *what)
{
    const kd_tensor result = rows_copy_student(f);
    const int64_t columns = result.shape[1];
    test_ok(rows_run(f, &result));
    for (int64_t n = 0; n < ROW_NO_LABEL; n++) {
        for (int k = 0; k < f->terms.count; k++) {
            const double loss = test_get(&f->loss, k * f->rows + n);
            cr_assert(isnan(loss) == (n == POISONED), "%s, %s: loss[%d] of row %lld is %g",
                      rows_describe(f, n), what, k, (long long)n, loss);
        }
        for (int64_t j = 0; j < columns; j++) {
            const double g = test_get(&result, n * columns + j);
            const bool nan = n == POISONED && j < f->classes;
            cr_assert(nan ? isnan(g) || !whole_gradient : isfinite(g),
                      "%s, %s: gradient[%lld] of row %lld is %g", rows_describe(f, n), what,
                      (long long)j, (long long)n, g);
        }
    }
}

static void check_poison(row_fixture *f, double poison, bool on_student)
{
    const kd_tensor *side = on_student ? &f->student : &f->teacher;
    double keep[64];
    for (int64_t j = 0; j < f->classes; j++) {
        const int64_t at = POISONED * side->shape[1] + j;
        keep[j] = test_get(side, at);
        if (poison == -INFINITY || j == 5) test_set(side, at, poison);
    }
    check_only_row_is_nan(f, false, on_student ? "in the student" : "in the teacher");
    for (int64_t j = 0; j < f->classes; j++) test_set(side, POISONED * side->shape[1] + j, keep[j]);
}

Test(row_loss, what_is_not_finite_is_never_hidden)
{
    static const double poisons[] = { NAN, INFINITY, -INFINITY };
    for (int v = 0; v < KD_COUNT(row_blocks); v++) {
        parity p;
        open_with(&p, row_blocks[v]);
        row_fixture f = on_gpu(rows_hostile(&p.bench, 40, KD_BF16), &p);
        rows_align(&f);
        for (int kind = 0; kind < KD_ROW_COUNT; kind++)
            for (int i = 0; i < 3 * KD_COUNT(poisons); i++) {
                const kd_row_type *type = &kd_row_types[kind];
                const double options[] = { type->option_min, type->option_default,
                                           type->option_max };
                f.terms.count = 0;
                rows_add_term(&f, (kd_row_kind)kind, 1.0, options[i % 3], false);
                const int mark = test_mark(&p.bench);
                check_poison(&f, poisons[i / 3], true);
                if (type->teacher) check_poison(&f, poisons[i / 3], false);
                test_release(&p.bench, mark);
            }
        close_with(&p);
    }
}

Test(row_loss, an_invalid_label_or_temperature_answers_nan)
{
    static const double labels[] = { -2.0, 40.0, 41.0, 1e9, -2147483648.0 };
    static const float temperatures[] = { 0.0f, -1.0f, NAN, INFINITY };
    for (int v = 0; v < KD_COUNT(row_blocks); v++) {
        parity p;
        open_with(&p, row_blocks[v]);
        for (int i = 0; i < 2; i++) {
            row_fixture f = on_gpu(rows_hostile(&p.bench, 40, i ? KD_BF16 : KD_F32), &p);
            if (i) rows_align(&f);
            rows_add_term(&f, KD_ROW_cross_entropy, 1.0, 0.0, false);
            rows_add_term(&f, KD_ROW_forward_kl, 2.0, 0.0, false);
            for (int l = 0; l < KD_COUNT(labels); l++) {
                test_set(&f.labels, POISONED, labels[l]);
                check_only_row_is_nan(&f, true, parity_name("label %g", labels[l]));
            }
            test_set(&f.labels, POISONED, 0.0);
            for (int64_t n = 0; n < ROW_KINDS; n++)
                if (n != POISONED) test_set(&f.weight, n, 0.0);
            for (int t = 0; t < KD_COUNT(temperatures); t++)
                for (int k = 0; k < f.terms.count; k++) {
                    f.values.term[k].temperature = temperatures[t];
                    check_only_row_is_nan(&f, true,
                                          parity_name("temperature %g", (double)temperatures[t]));
                    f.values.term[k].temperature = 1.0f;
                }
        }
        close_with(&p);
    }
}
