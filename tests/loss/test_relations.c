/* What the losses over relations promise besides their formulas, which tests/golden and tests/ops hold. */
#include "loss/relate.h"
#include "support/feature.h"
#include "support/support.h"

#include <math.h>

enum { ROWS = 21, HEADS = 4, WIDTH = 8, STACK = 8 << 20 };

static const kd_relate_options plain = { .temperature = 1, .causal = true };

static const kd_feature_type *const types[] = { &kd_feature_attention_kl, &kd_feature_attention_mse,
                                                &kd_feature_minilm_relation };

static kd_tensor rows(test_bench *b, kd_dtype dtype, int64_t heads)
{
    return test_filled(b, dtype, KD_SHAPE(ROWS, heads, WIDTH), 0, -2, 2);
}

/* For any of the three; gradients begin at zero, and documents are of 5, 1 and 15 rows. */
static kd_feature_args make(test_bench *b, kd_dtype dtype, const kd_relate_options *options)
{
    static const double cu[] = { 0, 5, 6, ROWS };
    kd_feature_args a = { .student = rows(b, dtype, HEADS),
                          .student_q = rows(b, dtype, HEADS),
                          .student_k = rows(b, dtype, HEADS),
                          .d_student = rows(b, dtype, HEADS),
                          .d_student_q = rows(b, dtype, HEADS),
                          .d_student_k = rows(b, dtype, HEADS),
                          .teacher = rows(b, dtype, HEADS),
                          .teacher_q = rows(b, dtype, HEADS),
                          .teacher_k = rows(b, dtype, HEADS),
                          .documents = test_values(b, KD_I32, KD_SHAPE(4), cu),
                          .scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 1, 1),
                          .loss = test_tensor(b, KD_F32, KD_SHAPE(ROWS), 0),
                          .options = options };
    const kd_tensor *gradients[] = { &a.d_student, &a.d_student_q, &a.d_student_k };
    for (int i = 0; i < KD_COUNT(gradients); i++) test_fill_constant(gradients[i], 0);
    return a;
}

static void expect_zero(const kd_tensor *t, const char *loss, const char *what)
{
    for (int64_t i = 0; i < kd_tensor_elements(t); i++)
        cr_assert_eq(test_get(t, i), 0, "%s: %s[%lld] is %g", loss, what, (long long)i,
                     test_get(t, i));
}

Test(relations, a_student_that_is_its_teacher_has_nothing_to_learn)
{
    test_bench b;
    test_open(&b, STACK);
    for (int i = 0; i < KD_COUNT(types); i++)
        for (int dtype = 0; dtype < 2; dtype++) {
            const int mark = test_mark(&b);
            kd_feature_args a = make(&b, dtype ? KD_BF16 : KD_F32, &plain);
            a.teacher = a.student, a.teacher_q = a.student_q, a.teacher_k = a.student_k;
            test_ok(kd_feature_run(&b.exec, types[i], &a));
            expect_zero(&a.loss, types[i]->name, "loss");
            expect_zero(&a.d_student, types[i]->name, "d_student");
            expect_zero(&a.d_student_q, types[i]->name, "d_student_q");
            expect_zero(&a.d_student_k, types[i]->name, "d_student_k");
            test_release(&b, mark);
        }
    test_close(&b);
}

/* One row alone relates to itself alone: nothing to compare for a softmax.  Weight 0 everywhere, and
 * rows that are all the same, are finite. */
Test(relations, odd_batches_are_defined)
{
    static const double one[] = { 0, 1 };
    test_bench b;
    test_open(&b, STACK);
    for (int i = 0; i < KD_COUNT(types); i++) {
        const int mark = test_mark(&b);
        kd_feature_args a = make(&b, KD_F32, &plain);
        a.weight = test_filled(&b, KD_F32, KD_SHAPE(ROWS), 0, 0, 0);
        test_ok(kd_feature_run(&b.exec, types[i], &a));
        expect_zero(&a.loss, types[i]->name, "loss of weight 0");
        expect_zero(&a.d_student, types[i]->name, "d_student of weight 0");

        a.weight = (kd_tensor){ 0 };
        a.documents = test_values(&b, KD_I32, KD_SHAPE(2), one);
        if (types[i] == &kd_feature_attention_mse) test_fill_constant(&a.student_q, 0);
        if (types[i] == &kd_feature_attention_mse) test_fill_constant(&a.teacher_q, 0);
        test_ok(kd_feature_run(&b.exec, types[i], &a));
        expect_zero(&a.loss, types[i]->name, "loss of one row");

        a = make(&b, KD_F32, &plain);
        test_fill_constant(&a.student, 0);
        test_fill_constant(&a.student_q, 1);
        test_fill_constant(&a.student_k, 1);
        test_ok(kd_feature_run(&b.exec, types[i], &a));
        cr_assert(isfinite(test_total(&a.loss)) && test_total(&a.loss) > 0, "%s of equal rows",
                  types[i]->name);
        test_release(&b, mark);
    }
    test_close(&b);
}

/* A turn of the columns of every head, the same of queries and keys, leaves their products. */
Test(relations, do_not_change_when_a_side_is_rotated)
{
    test_bench b;
    test_open(&b, STACK);
    for (int i = 0; i < KD_COUNT(types); i++) {
        const int mark = test_mark(&b);
        kd_feature_args a = make(&b, KD_F32, &plain);
        test_ok(kd_feature_run(&b.exec, types[i], &a));
        const double *before = test_doubles(&b, &a.loss);
        const kd_tensor *turned[] = { &a.student, &a.student_q, &a.student_k };
        for (int t = 0; t < KD_COUNT(turned); t++) test_rotate(turned[t]);
        test_ok(kd_feature_run(&b.exec, types[i], &a));
        test_near(&a.loss, before, 16, WIDTH + ROWS, "%s, rotated", types[i]->name);
        test_release(&b, mark);
    }
    test_close(&b);
}

/* What attention has saved serves as well as what is found again, but not at another T. */
Test(relations, a_saved_lse_is_read_where_it_holds)
{
    test_bench b;
    test_open(&b, STACK);
    kd_relate_options options = plain;
    kd_feature_args a = make(&b, KD_F32, &options);
    const kd_tensor o = rows(&b, KD_F32, HEADS);
    a.student_lse = test_tensor(&b, KD_F32, KD_SHAPE(HEADS, ROWS), 0);
    a.teacher_lse = test_tensor(&b, KD_F32, KD_SHAPE(HEADS, ROWS), 0);
    for (int teacher = 0; teacher < 2; teacher++)
        test_ok(KD_RUN(
            &b.exec, attention, .o = &o, .lse = teacher ? &a.teacher_lse : &a.student_lse,
            .q = teacher ? &a.teacher_q : &a.student_q, .k = teacher ? &a.teacher_k : &a.student_k,
            .v = &a.student, .cu_q = &a.documents, .cu_k = &a.documents,
            .scale = (float)(1 / sqrt((double)WIDTH)), .causal = true));
    for (int hot = 0; hot < 2; hot++) {
        options.temperature = hot ? 2 : 1;
        kd_feature_args found = a;
        found.student_lse = found.teacher_lse = (kd_tensor){ 0 };
        test_ok(kd_feature_run(&b.exec, &kd_feature_attention_kl, &found));
        const double *want = test_doubles(&b, &a.loss);
        test_ok(kd_feature_run(&b.exec, &kd_feature_attention_kl, &a));
        test_near(&a.loss, want, 4, WIDTH + ROWS, "T %d", hot + 1);
        test_fill_constant(hot ? &a.loss : &a.student_lse, hot ? 0 : NAN);
    }
    test_close(&b);
}

Test(relations, refuse_heads_that_do_not_go_together)
{
    test_bench b;
    test_open(&b, STACK);
    kd_relate_options options = plain;
    const kd_feature_args good = make(&b, KD_F32, &options);
    kd_feature_args a = good;
    a.teacher_q = a.teacher_k = rows(&b, KD_F32, 3);
    const kd_feature_type *kl = &kd_feature_attention_kl;
    test_refused(kd_feature_run(&b.exec, kl, &a), KD_EINVAL,
                 "attention_kl: student_q has 4 heads, teacher_q 3: set relation_heads");
    options.relation_heads = 2;
    test_ok(kd_feature_run(&b.exec, kl, &a));
    options.relation_heads = 5;
    test_refused(kd_feature_run(&b.exec, kl, &a), KD_EINVAL, "relation_heads 5 does not divide");
    options.relation_heads = 2;
    a = good;
    a.student_k = a.d_student_k = rows(&b, KD_F32, 1);
    test_refused(kd_feature_run(&b.exec, kl, &a), KD_EINVAL, "4 heads over 1 of its keys");
    a = good;
    a.documents = test_filled(&b, KD_I32, KD_SHAPE(2), 0, 99, 100);
    test_refused(kd_feature_run(&b.exec, kl, &a), KD_EINVAL, "is 99");
    test_close(&b);
}
