#include "support/topk.h"

#include <float.h>
#include <math.h>

static int64_t id_at(int64_t i, int64_t n, int64_t classes, kd_topk mode)
{
    if (mode == KD_TOPK_SAMPLED && i % 3 == 2) i = 0; /* drawn again */
    return (i * 7 + n) % classes;
}

topk_fixture topk_hostile(test_bench *b, int64_t classes, int64_t k, kd_topk mode, double capture,
                          kd_dtype dtype, kd_dtype known)
{
    topk_fixture f = { .rows = rows_hostile(b, classes, dtype), .mode = mode };
    const int64_t rows = f.rows.rows;
    f.capture = (float)capture;
    f.ids = test_tensor(b, KD_I32, KD_SHAPE(rows, k), 2);
    f.log_p = test_tensor(b, known, KD_SHAPE(rows, k), 1);
    f.sampling = test_tensor(b, KD_F32, KD_SHAPE(rows, k), 0);
    f.tail = test_tensor(b, KD_F32, KD_SHAPE(rows), 0);
    for (int64_t n = 0; n < rows; n++) {
        double *log_p = test_zeros(b, classes), tail = 1.0;
        oracle_log_softmax(log_p, f.rows.t + n * classes, classes, capture);
        for (int64_t i = 0; i < k; i++) {
            const int64_t id = id_at(i, n, classes, mode);
            const bool none = n == 0 && k > 1 && i == k - 1;
            test_set(&f.ids, n * k + i, none ? -1.0 : (double)id);
            test_set(&f.log_p, n * k + i, log_p[id]);
            test_set(&f.sampling, n * k + i, 0.25 + 0.5 * (double)(id % 2));
            if (!none) tail -= exp(log_p[id]);
        }
        test_set(&f.tail, n, fmax(tail, 0.0));
    }
    if (classes % 7 == 0) cr_assert_fail("ids of %lld classes repeat", (long long)classes);
    return f;
}

bool topk_takes(const topk_fixture *f, int kind)
{
    const kd_row_type *type = &kd_row_types[kind];
    if (type->extra == KD_EXTRA_REST || type->extra == KD_EXTRA_LOGITS) return false;
    if (f->mode != KD_TOPK_SAMPLED || !type->teacher) return true;
    return kind == KD_ROW_forward_kl || kind == KD_ROW_soft_cross_entropy;
}

oracle_topk topk_oracle(const topk_fixture *f, int term, int64_t n, double *memory)
{
    const int64_t k = f->ids.shape[1];
    for (int64_t i = 0; i < k; i++) {
        memory[i] = test_get(&f->ids, n * k + i);
        memory[k + i] = test_get(&f->log_p, n * k + i);
        memory[2 * k + i] = test_get(&f->sampling, n * k + i);
    }
    return (oracle_topk){ .row = rows_oracle(&f->rows, term, n),
                          .mode = f->mode,
                          .capture = (double)f->capture,
                          .k = k,
                          .ids = memory,
                          .log_p = memory + k,
                          .sampling = memory + 2 * k,
                          .tail = kd_present(&f->tail) ? test_get(&f->tail, n) : (double)NAN };
}

kd_status topk_run(topk_fixture *f, const kd_tensor *student)
{
    row_fixture *r = &f->rows;
    r->loss = test_tensor(r->bench, KD_F32, KD_SHAPE(r->terms.count, r->rows), 3);
    memcpy(r->scalars.data, &r->values, sizeof r->values);
    const kd_row_loss_topk_args args = {
        .student = student,
        .loss = &r->loss,
        .same_top = &r->same_top,
        .teacher_ids = &f->ids,
        .teacher_log_p = &f->log_p,
        .teacher_sampling = &f->sampling,
        .teacher_tail = &f->tail,
        .labels = &r->labels,
        .weight = &r->weight,
        .scalars = &r->scalars,
        .terms = &r->terms,
        .classes = r->classes,
        .mode = f->mode,
        .capture = f->capture,
    };
    return f->run ? f->run(r->context, &args)
                  : kd_op_run(&r->bench->exec, KD_OP_row_loss_topk, &args);
}

static const char *describe(const topk_fixture *f, int64_t n)
{
    static const char *const modes[] = { "tail", "renormalised", "sampled" };
    static char text[320];
    snprintf(text, sizeof text, "%s of %lld known, %s", modes[f->mode], (long long)f->ids.shape[1],
             rows_describe(&f->rows, n));
    return text;
}

/* `memory` holds 4 * classes + 3 * k. */
static void check_row(const topk_fixture *f, const kd_tensor *result, int64_t n, double *memory)
{
    const row_fixture *r = &f->rows;
    const int64_t classes = r->classes, columns = result->shape[1];
    const double w = test_get(&r->weight, n), units = 4.0 + 2.0 * r->exp_error;
    const bool ignored = w == 0.0 || test_get(&r->labels, n) < 0.0;
    double *want = memory, *allowed = memory + classes, *one = memory + 2 * classes;
    double *condition = memory + 3 * classes;
    memset(memory, 0, 4 * (size_t)classes * sizeof *memory);
    for (int k = 0; k < r->terms.count; k++) {
        const kd_term_scalars *s = &r->values.term[k];
        const double got = test_get(&r->loss, k * r->rows + n), w2 = w * (double)s->t_squared;
        if (ignored) {
            cr_assert(got == 0.0, "%s: loss %g", describe(f, n), got);
            continue;
        }
        const oracle_topk t = topk_oracle(f, k, n, memory + 4 * classes);
        double of_value;
        oracle_topk_gradient(one, &t);
        oracle_topk_condition(&of_value, condition, &t);
        const double value = w2 * oracle_topk_value(&t);
        const double tolerance = (double)FLT_EPSILON * (units * w2 * of_value + fabs(value));
        cr_assert(fabs(got - value) <= tolerance, "%s: loss[%d] %.9g, expected %.9g +- %.2g",
                  describe(f, n), k, got, value, tolerance);
        for (int64_t j = 0; j < classes; j++) {
            const double factor = w2 * (double)s->scale;
            want[j] += factor * one[j];
            allowed[j] += (double)FLT_EPSILON * factor * (units * condition[j] + fabs(one[j]));
        }
    }
    for (int64_t j = 0; j < columns; j++) {
        const double got = test_get(result, n * columns + j),
                     expected = j < classes ? want[j] : 0.0;
        const bool exact = ignored || j >= classes || r->s[n * classes + j] == -INFINITY;
        const double rounding = result->dtype == KD_BF16 ? 0x1p-8 * fabs(expected) : 0.0;
        const double tolerance = exact ? 0.0 : allowed[j] + rounding + 0x1p-120;
        cr_assert(fabs(got - expected) <= tolerance,
                  "%s: gradient[%lld] %.9g, expected %.9g +- %.2g", describe(f, n), (long long)j,
                  got, expected, tolerance);
    }
}

void topk_run_and_check(topk_fixture *f)
{
    row_fixture *r = &f->rows;
    const int mark = test_mark(r->bench);
    const kd_tensor result = rows_copy_student(r);
    double *memory = test_zeros(r->bench, 4 * r->classes + 3 * f->ids.shape[1]);
    test_ok(topk_run(f, &result));
    for (int64_t n = 0; n < r->rows; n++) check_row(f, &result, n, memory);
    test_release(r->bench, mark);
}
