/*
 * What row_loss_topk owes: the formulas in double for every mode and term; all classes known is the dense
 * loss; draws that are on average the dense gradient; refusals.
 */
#include "support/topk.h"

#include <float.h>
#include <math.h>

Test(row_loss_topk, agrees_with_the_formulas_in_double)
{
    static const int64_t sizes[] = { 2, 3, 17, 300 };
    static const double temperatures[] = { 1.0, 0.05, 100.0 };
    test_bench b;
    test_open(&b, 1 << 20);
    for (int i = 0; i < KD_COUNT(sizes) * 18; i++) {
        const int64_t classes = sizes[i / 18], k = i % 3 == 0   ? 1
                                                   : i % 3 == 1 ? (classes + 1) / 2
                                                                : classes;
        const double temperature = temperatures[i / 3 % 2 ? i % 3 : 0];
        const kd_topk mode = (kd_topk)(i / 6 % 3);
        const int mark = test_mark(&b);
        topk_fixture f =
            topk_hostile(&b, classes, k, mode, mode == KD_TOPK_RENORMALISED ? 2.0 : temperature,
                         i % 2 ? KD_BF16 : KD_F32, i % 5 ? KD_F32 : KD_BF16);
        if (i % 4 == 0) f.tail.data = NULL;
        for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
            if (!topk_takes(&f, kind)) continue;
            f.rows.terms.count = 0;
            rows_add_term(&f.rows, (kd_row_kind)kind, temperature,
                          kd_row_types[kind].option_default, i % 2);
            topk_run_and_check(&f);
            rows_add_term(&f.rows, KD_ROW_cross_entropy, 1.0, i % 4 ? 0.0 : 0.1, false);
            rows_add_term(&f.rows, KD_ROW_z_loss, temperature, 0.0, false);
            topk_run_and_check(&f);
        }
        test_release(&b, mark);
    }
    test_close(&b);
}

typedef struct varied {
    oracle_topk t;
    double *student;
    const double *moved;
} varied;

static double value_of(void *context)
{
    const varied *v = context;
    for (int64_t j = 0, i = 0; j < v->t.row.classes; j++)
        if (v->student[j] > -INFINITY) v->student[j] = v->moved[i++];
    return oracle_topk_value(&v->t);
}

Test(row_loss_topk, the_oracle_has_the_gradient_of_its_value)
{
    enum { CLASSES = 11 };
    test_bench b;
    test_open(&b, 1 << 16);
    for (int mode = 0; mode < KD_TOPK_COUNT; mode++) {
        topk_fixture f = topk_hostile(&b, CLASSES, 4, (kd_topk)mode, 2.0, KD_F32, KD_F32);
        for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
            if (!topk_takes(&f, kind) || kind == KD_ROW_total_variation) continue; /* corners */
            f.rows.terms.count = 0;
            rows_add_term(&f.rows, (kd_row_kind)kind, 2.0, kd_row_types[kind].option_default,
                          false);
            for (int n = 0; n <= ROW_DEAD_LABEL; n++) {
                double student[CLASSES], x[CLASSES], all[CLASSES], gradient[CLASSES], memory[12];
                /* floors of 1e4 and logits of 1000 take the differences their digits */
                if (n == ROW_SHIFTED || n == ROW_LARGE) continue;
                varied v = { topk_oracle(&f, 0, n, memory), student, x };
                memcpy(student, v.t.row.student, sizeof student);
                v.t.row.student = student;
                oracle_topk_gradient(all, &v.t);
                int64_t live = 0;
                for (int64_t j = 0; j < CLASSES; j++) {
                    if (student[j] == -INFINITY) continue;
                    gradient[live] = all[j];
                    x[live++] = student[j];
                }
                test_gradient(value_of, &v, x, live, gradient, "mode %d, %s", mode,
                              rows_describe(&f.rows, n));
            }
        }
    }
    test_close(&b);
}

/* Every class known, in either mode: the dense op's losses and gradients, to 1e-6. */
Test(row_loss_topk, knowing_all_classes_is_the_dense_loss)
{
    enum { CLASSES = 50 };
    test_bench b;
    test_open(&b, 1 << 20);
    for (int mode = 0; mode < KD_TOPK_SAMPLED; mode++) {
        topk_fixture f = topk_hostile(&b, CLASSES, CLASSES, (kd_topk)mode, 2.0, KD_F32, KD_F32);
        test_set(&f.ids, CLASSES - 1, (double)((7 * (CLASSES - 1)) % CLASSES)); /* of row 0 */
        f.tail.data = NULL;
        for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
            if (!topk_takes(&f, kind)) continue;
            f.rows.terms.count = 0;
            rows_add_term(&f.rows, (kd_row_kind)kind, 2.0, kd_row_types[kind].option_default, true);
            const kd_tensor dense = rows_copy_student(&f.rows), sparse = rows_copy_student(&f.rows);
            test_ok(rows_run(&f.rows, &dense));
            const kd_tensor loss = f.rows.loss;
            test_ok(topk_run(&f, &sparse));
            for (int64_t n = 0; n <= ROW_NEAR; n++) {
                const double a = test_get(&loss, n), g = test_get(&f.rows.loss, n);
                cr_assert(fabs(a - g) <= 4e-6 * (1.0 + fabs(a)), "%s, row %lld: %.9g, dense %.9g",
                          kd_row_types[kind].name, (long long)n, g, a);
                for (int64_t j = 0; j < CLASSES; j++)
                    cr_assert(fabs(test_get(&dense, n * dense.shape[1] + j) -
                                   test_get(&sparse, n * dense.shape[1] + j)) <= 1e-6,
                              "%s, row %lld, class %lld", kd_row_types[kind].name, (long long)n,
                              (long long)j);
            }
        }
    }
    test_close(&b);
}

/* The mean over every possible draw of two, by its probability, is the dense loss and gradient. */
Test(row_loss_topk, draws_are_without_bias)
{
    enum { CLASSES = 4, K = 2, ROWS = CLASSES * CLASSES };
    test_bench b;
    test_open(&b, 1 << 16);
    row_fixture r = rows_tensors(&b, ROWS, CLASSES, KD_F32);
    topk_fixture f = { .rows = r, .mode = KD_TOPK_SAMPLED, .capture = 1.0f };
    const double r_of[CLASSES] = { 0.1, 0.2, 0.3, 0.4 };
    double log_p[CLASSES];
    const double z[CLASSES] = { 0.5, -1.0, 2.0, 0.25 }, t[CLASSES] = { 1.5, 0.0, -0.5, 1.0 };
    oracle_log_softmax(log_p, t, CLASSES, 1.0);
    f.ids = test_tensor(&b, KD_I32, KD_SHAPE(ROWS, K), 0);
    f.log_p = test_tensor(&b, KD_F32, KD_SHAPE(ROWS, K), 0);
    f.sampling = test_tensor(&b, KD_F32, KD_SHAPE(ROWS, K), 0);
    for (int n = 0; n < ROWS; n++) {
        const int drawn[K] = { n / CLASSES, n % CLASSES };
        for (int i = 0; i < K; i++) {
            test_set(&f.ids, n * K + i, drawn[i]);
            test_set(&f.log_p, n * K + i, log_p[drawn[i]]);
            test_set(&f.sampling, n * K + i, r_of[drawn[i]]);
        }
        test_set(&f.rows.weight, n, r_of[drawn[0]] * r_of[drawn[1]]);
        for (int j = 0; j < CLASSES; j++) {
            test_set(&f.rows.student, n * f.rows.student.shape[1] + j, z[j]);
            test_set(&f.rows.teacher, n * f.rows.teacher.shape[1] + j, t[j]);
        }
    }
    rows_copy_logits(&f.rows);
    rows_add_term(&f.rows, KD_ROW_forward_kl, 1.0, 0.0, false);
    f.rows.values.term[0].scale = 1.0f;
    const kd_tensor result = rows_copy_student(&f.rows);
    test_ok(topk_run(&f, &result));
    const oracle_row dense = rows_oracle(&f.rows, 0, 0);
    double gradient[CLASSES], loss = 0.0, mean[CLASSES] = { 0.0 };
    oracle_row_gradient(gradient, &dense);
    for (int n = 0; n < ROWS; n++) {
        loss += test_get(&f.rows.loss, n);
        for (int j = 0; j < CLASSES; j++)
            mean[j] += test_get(&result, n * f.rows.student.shape[1] + j);
    }
    cr_assert(fabs(loss - oracle_row_value(&dense)) <= 16.0 * (double)FLT_EPSILON, "loss %.9g",
              loss);
    for (int j = 0; j < CLASSES; j++)
        cr_assert(fabs(mean[j] - gradient[j]) <= 16.0 * (double)FLT_EPSILON, "class %d: %.9g", j,
                  mean[j]);
    test_close(&b);
}

Test(row_loss_topk, refuses_what_it_cannot_compute)
{
    test_bench b;
    test_open(&b, 1 << 20);
    topk_fixture f = topk_hostile(&b, 8, 3, KD_TOPK_TAIL, 1.0, KD_F32, KD_F32);
    const kd_tensor student = f.rows.student;
    rows_add_term(&f.rows, KD_ROW_forward_kl, 1.0, 0.0, false);
    test_set(&f.ids, 4, 8.0);
    test_refused(topk_run(&f, &student), KD_EINVAL, "row 1: id 8, expected -1 or 0 to 7");
    test_set(&f.ids, 4, test_get(&f.ids, 3));
    test_refused(topk_run(&f, &student), KD_EINVAL, "is there twice");
    f.mode = KD_TOPK_SAMPLED;
    test_set(&f.sampling, 4, 0.0);
    test_refused(topk_run(&f, &student), KD_EINVAL, "drawn with probability 0");
    f.rows.terms.kind[0] = KD_ROW_jsd;
    test_refused(topk_run(&f, &student), KD_EINVAL, "jsd of sampled classes would be biased");
    f.mode = KD_TOPK_TAIL;
    f.rows.terms.kind[0] = KD_ROW_dkd;
    test_refused(topk_run(&f, &student), KD_EINVAL, "dkd needs the teacher's logits");
    f.rows.terms.kind[0] = KD_ROW_forward_kl;
    f.rows.values.term[0].temperature = 2.0f;
    test_refused(topk_run(&f, &student), KD_EINVAL, "masses are of 1");
    f.rows.values.term[0].temperature = 1.0f;
    f.rows.classes = 2;
    test_refused(topk_run(&f, &student), KD_EINVAL, "teacher_ids has 3 columns for 2 classes");
    f.rows.classes = 8;
    f.capture = 0.0f;
    test_refused(topk_run(&f, &student), KD_EINVAL, "the teacher's temperature is 0");
    test_close(&b);
}
