#include "support/rows.h"

#include <float.h>
#include <math.h>

static const char *const row_names[ROW_KINDS] = {
    "random",
    "near",
    "same",
    "flat",
    "large",
    "shifted",
    "dead teacher",
    "dead student",
    "dead both",
    "dead label",
    "lowest",
    "extreme",
    "one-hot teacher",
    "one-hot student",
    "one-hot both",
    "no label",
    "no weight",
};

/* Student and teacher of class j; the label's class lives but in ROW_DEAD_LABEL. */
static void logits_at(double *s, double *t, test_bench *b, int row, int64_t j)
{
    *s = 6.0 * test_uniform(b) - 3.0;
    *t = 6.0 * test_uniform(b) - 3.0;
    const bool odd = j % 3 == 1;
    switch (row) {
    case ROW_NEAR: *t = *s + 0.02 * test_uniform(b); break;
    case ROW_SAME: *t = *s; break;
    case ROW_FLAT: *s = 0.75, *t = -2.5; break;
    case ROW_LARGE: *s *= 30.0, *t *= 30.0; break;
    case ROW_SHIFTED: *s += 1000.0, *t -= 1000.0; break;
    case ROW_DEAD_TEACHER: *t = odd ? -INFINITY : *t; break;
    case ROW_DEAD_STUDENT: *s = odd ? -INFINITY : *s; break;
    case ROW_DEAD_BOTH: *s = odd ? -INFINITY : *s, *t = j % 2 ? -INFINITY : *t; break;
    case ROW_DEAD_LABEL: *s = j == 0 ? -INFINITY : *s; break;
    case ROW_LOWEST: *t = odd ? -1e30 : *t; break; /* a mask as others write it */
    case ROW_EXTREME: *s = j % 2 ? 1e4 : -1e4 + *s, *t = j % 3 ? 1e4 - *t : -1e4; break;
    case ROW_ONE_HOT_TEACHER: *t = j == 2 ? 1e4 : 0.0; break;
    case ROW_ONE_HOT_STUDENT: *s = j == 0 ? 1e4 : 0.0; break;
    case ROW_ONE_HOT_BOTH: *s = j == 0 ? 1e4 : *s, *t = j == 0 ? 1e4 : *t; break;
    default: break;
    }
}

void rows_copy_logits(row_fixture *f)
{
    f->s = test_zeros(f->bench, f->rows * f->classes);
    f->t = test_zeros(f->bench, f->rows * f->classes);
    for (int64_t n = 0; n < f->rows; n++)
        for (int64_t j = 0; j < f->classes; j++) {
            f->s[n * f->classes + j] = test_get(&f->student, n * f->student.shape[1] + j);
            f->t[n * f->classes + j] = test_get(&f->teacher, n * f->teacher.shape[1] + j);
        }
}

row_fixture rows_tensors(test_bench *b, int64_t rows, int64_t classes, kd_dtype dtype)
{
    row_fixture f = { .bench = b, .rows = rows, .classes = classes };
    const kd_dtype other = dtype == KD_BF16 && classes % 2 ? KD_F32 : dtype;
    f.student = test_tensor(b, dtype, KD_SHAPE(rows, classes + 5), 4);
    f.teacher = test_tensor(b, other, KD_SHAPE(rows, classes + 2), 1);
    f.labels = test_tensor(b, KD_I32, KD_SHAPE(rows), 0);
    f.weight = test_tensor(b, KD_F32, KD_SHAPE(rows), 0);
    f.same_top = test_tensor(b, KD_F32, KD_SHAPE(rows), 0);
    f.scalars = test_tensor(b, KD_U8, KD_SHAPE((int64_t)sizeof(kd_step_scalars)), 0);
    for (int64_t n = 0; n < rows; n++) {
        test_set(&f.labels, n, 0.0);
        test_set(&f.weight, n, n % 3 == 1 ? 2.0 : n % 3 == 2 ? 0.75 : 1.0);
    }
    return f;
}

row_fixture rows_hostile(test_bench *b, int64_t classes, kd_dtype dtype)
{
    row_fixture f = rows_tensors(b, ROW_KINDS, classes, dtype);
    test_set(&f.labels, ROW_NO_LABEL, -1.0);
    test_set(&f.weight, ROW_NO_WEIGHT, 0.0);
    for (int row = 0; row < ROW_KINDS; row++) {
        const bool ignored = row == ROW_NO_LABEL || row == ROW_NO_WEIGHT;
        const bool unsupported = classes < 2 && row == ROW_DEAD_LABEL; /* no class would live */
        for (int64_t j = 0; j < classes; j++) {
            double s, t;
            logits_at(&s, &t, b, unsupported ? ROW_RANDOM : row, j);
            test_set(&f.student, row * (classes + 5) + j, ignored ? NAN : s);
            test_set(&f.teacher, row * (classes + 2) + j, ignored ? NAN : t);
        }
        if (row != ROW_SAME) continue; /* also where the two sides round differently */
        for (int64_t j = 0; j < classes; j++)
            test_set(&f.teacher, row * (classes + 2) + j,
                     test_get(&f.student, row * (classes + 5) + j));
    }
    rows_copy_logits(&f);
    return f;
}

void rows_add_term(row_fixture *f, kd_row_kind kind, double temperature, double option,
                   bool squared)
{
    const int k = f->terms.count++;
    f->terms.kind[k] = kind;
    f->values.term[k] = (kd_term_scalars){
        .scale = 0.375f,
        .temperature = (float)temperature,
        .t_squared = squared ? (float)(temperature * temperature) : 1.0f,
        .option = (float)option,
        .option2 = (float)kd_row_types[kind].option2_default,
    };
}

kd_status rows_run(row_fixture *f, const kd_tensor *student)
{
    f->loss = test_tensor(f->bench, KD_F32, KD_SHAPE(f->terms.count, f->rows), 3);
    memcpy(f->scalars.data, &f->values, sizeof f->values);
    const kd_row_loss_args args = {
        .student = student,
        .loss = &f->loss,
        .same_top = &f->same_top,
        .teacher = &f->teacher,
        .labels = &f->labels,
        .weight = &f->weight,
        .scalars = &f->scalars,
        .terms = &f->terms,
        .classes = f->classes,
    };
    return f->run ? f->run(f->context, &args) : kd_op_run(&f->bench->exec, KD_OP_row_loss, &args);
}

static kd_tensor copy_rows(test_bench *b, const kd_tensor *from, int64_t pad)
{
    const kd_tensor t = test_tensor(b, from->dtype, KD_SHAPE(from->shape[0], from->shape[1]), pad);
    for (int64_t i = 0, n = kd_tensor_elements(&t); i < n; i++) test_set(&t, i, test_get(from, i));
    return t;
}

kd_tensor rows_copy_student(row_fixture *f)
{
    return copy_rows(f->bench, &f->student, f->student.stride[0] - f->student.shape[1]);
}

void rows_align(row_fixture *f)
{
    f->student = copy_rows(f->bench, &f->student, 7 - (f->student.shape[1] + 7) % 8);
    f->teacher = copy_rows(f->bench, &f->teacher, 7 - (f->teacher.shape[1] + 7) % 8);
}

/* ---- against the oracle ----------------------------------------------------------------------- */

static int64_t label_of(const row_fixture *f, int64_t n)
{
    return kd_present(&f->labels) ? (int64_t)test_get(&f->labels, n) : -1;
}

oracle_row rows_oracle(const row_fixture *f, int k, int64_t n)
{
    return (oracle_row){
        .kind = f->terms.kind[k],
        .classes = f->classes,
        .student = f->s + n * f->classes,
        .teacher = kd_row_types[f->terms.kind[k]].teacher ? f->t + n * f->classes : NULL,
        .label = label_of(f, n),
        .temperature = (double)f->values.term[k].temperature,
        .option = (double)f->values.term[k].option,
        .option2 = (double)f->values.term[k].option2,
    };
}

static int64_t first_largest(const double *z, int64_t classes)
{
    int64_t top = 0;
    for (int64_t j = 1; j < classes; j++) top = z[j] > z[top] ? j : top;
    return top;
}

const char *rows_describe(const row_fixture *f, int64_t n)
{
    static char text[256];
    const kd_term_scalars *s = &f->values.term[0];
    snprintf(text, sizeof text, "%s%s T %g option %g %g, %s, %lld classes, row %s",
             kd_row_types[f->terms.kind[0]].name, f->terms.count > 1 ? " and others" : "",
             (double)s->temperature, (double)s->option, (double)s->option2,
             kd_dtype_name(f->student.dtype), (long long)f->classes,
             n < ROW_KINDS ? row_names[n] : "");
    return text;
}

/* One row of results: losses, gradient, same_top.  `memory` holds 4 * classes. */
static void check_row(const row_fixture *f, const kd_tensor *result, int64_t n, double *memory)
{
    const int64_t classes = f->classes, columns = result->shape[1];
    const double w = kd_present(&f->weight) ? test_get(&f->weight, n) : 1.0;
    const bool ignored = w == 0.0 || (kd_present(&f->labels) && label_of(f, n) < 0);
    const double units = 4.0 + 2.0 * f->exp_error; /* in a probability: its own and its sum's */
    double *want = memory, *allowed = memory + classes;
    double *one = memory + 2 * classes, *condition = memory + 3 * classes;
    memset(memory, 0, 4 * (size_t)classes * sizeof *memory);

    for (int k = 0; k < f->terms.count; k++) {
        const kd_term_scalars *s = &f->values.term[k];
        const double got = test_get(&f->loss, k * f->rows + n), w2 = w * (double)s->t_squared;
        if (ignored) {
            cr_assert(got == 0.0 && !signbit(got), "%s: loss %g", rows_describe(f, n), got);
            continue;
        }
        const oracle_row row = rows_oracle(f, k, n);
        double of_value;
        oracle_row_gradient(one, &row);
        oracle_row_condition(&of_value, condition, &row);
        const double value = w2 * oracle_row_value(&row);
        const double tolerance = (double)FLT_EPSILON * (units * w2 * of_value + fabs(value));
        cr_assert(fabs(got - value) <= tolerance, "%s: loss[%d] %.9g, expected %.9g +- %.2g",
                  rows_describe(f, n), k, got, value, tolerance);
        const double factor = w2 * (double)s->scale;
        for (int64_t j = 0; j < classes; j++) {
            want[j] += factor * one[j];
            allowed[j] += (double)FLT_EPSILON * factor * (units * condition[j] + fabs(one[j]));
        }
    }

    const double rounding = result->dtype == KD_BF16 ? 0x1p-8 : 0.0;
    for (int64_t j = 0; j < columns; j++) {
        const double got = test_get(result, n * columns + j);
        const double expected = j < classes ? want[j] : 0.0;
        const bool exact = ignored || j >= classes || f->s[n * classes + j] == -INFINITY;
        const double tolerance = exact ? 0.0 : allowed[j] + rounding * fabs(expected) + 0x1p-120;
        cr_assert(fabs(got - expected) <= tolerance,
                  "%s: gradient[%lld] %.9g, expected %.9g +- %.2g", rows_describe(f, n),
                  (long long)j, got, expected, tolerance);
    }
    if (!kd_present(&f->same_top)) return;
    const bool same = !ignored && first_largest(f->s + n * classes, classes) ==
                                      first_largest(f->t + n * classes, classes);
    cr_assert(test_get(&f->same_top, n) == (same ? 1.0 : 0.0), "%s: same_top", rows_describe(f, n));
}

void rows_run_and_check(row_fixture *f)
{
    const int mark = test_mark(f->bench);
    const kd_tensor result = rows_copy_student(f);
    double *memory = test_zeros(f->bench, 4 * f->classes);
    test_ok(rows_run(f, &result));
    for (int64_t n = 0; n < f->rows; n++) check_row(f, &result, n, memory);
    test_release(f->bench, mark);
}
