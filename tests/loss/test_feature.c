/*
 * What holds for every feature and relation loss: it is documented, and refuses what does not fit before
 * it writes.
 */
#include "loss/loss.h"
#include "support/support.h"

Test(feature, every_loss_is_documented_and_reads_what_it_says)
{
    for (int i = 0; i < KD_FEATURE_COUNT; i++) {
        const kd_feature_type *type = kd_feature_types[i];
        const char *const *text = kd_loss_text(type->name);
        kd_feature_args args;
        cr_assert(text && strncmp(text[0], type->name, strlen(type->name)) == 0, "%s", type->name);
        cr_expect(strlen(type->help) > 0 && type->run, "%s", type->name);
        cr_assert(type->reads[0].name, "%s reads nothing", type->name);
        for (const kd_read *r = type->reads; r->name; r++) {
            const bool wants = r->flags & KD_READ_GRADIENT;
            cr_assert(kd_feature_operand(&args, r->name, wants), "%s: %s", type->name, r->name);
            if (r->flags & KD_READ_PARAMETER)
                cr_assert(type->begin && kd_read_rank(r) == 1 && wants &&
                              strchr(type->reads[0].shape, r->shape[1]),
                          "%s: %s", type->name, r->name);
            cr_assert(kd_read_rank(r) <= KD_MAX_RANK && r->shape[0] == '[', "%s: %s", type->name,
                      r->shape);
        }
        cr_expect(strstr(text[0], " - "), "%s: \"%s\" has no sentence", type->name, text[0]);
    }
    cr_expect_null(kd_loss_text("none"));
}

static kd_feature_args make(test_bench *b, kd_dtype dtype)
{
    const kd_shape shape = KD_SHAPE(4, 6);
    return (kd_feature_args){ .student = test_filled(b, dtype, shape, 2, -1, 1),
                              .d_student = test_filled(b, dtype, shape, 1, -1, 1),
                              .teacher = test_filled(b, KD_F32, shape, 0, -1, 1),
                              .loss = test_tensor(b, KD_F32, KD_SHAPE(4), 0),
                              .scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 1, 2) };
}

Test(feature, what_does_not_fit_is_refused)
{
    const kd_feature_type *type = &kd_feature_hidden_mse;
    test_bench b;
    test_open(&b, 1 << 16);
    const kd_feature_args good = make(&b, KD_F32);
    test_ok(kd_feature_run(&b.exec, type, &good));
    kd_feature_args a = good;
    a.teacher = (kd_tensor){ 0 };
    test_refused(kd_feature_run(&b.exec, type, &a), KD_EINVAL,
                 "hidden_mse: teacher [N, D] is absent");
    a = good;
    a.student = test_filled(&b, KD_I32, KD_SHAPE(4, 6), 0, 0, 2);
    test_refused(kd_feature_run(&b.exec, type, &a), KD_EINVAL,
                 "student is i32 [4, 6]; expected f32 or bf16 [N, D]");
    a = good;
    a.student = test_filled(&b, KD_F32, KD_SHAPE(4, 6, 1), 0, 0, 2);
    test_refused(kd_feature_run(&b.exec, type, &a), KD_EINVAL, "student is f32 [4, 6, 1]");
    a = good;
    a.d_student = test_filled(&b, KD_BF16, KD_SHAPE(4, 6), 0, 0, 2);
    test_refused(kd_feature_run(&b.exec, type, &a), KD_EINVAL, "student");
    a = good;
    a.teacher = test_filled(&b, KD_F32, KD_SHAPE(4, 7), 0, 0, 2);
    test_refused(kd_feature_run(&b.exec, type, &a), KD_EINVAL, "teacher");
    a = good;
    a.weight = test_filled(&b, KD_F32, KD_SHAPE(5), 0, 0, 2);
    test_refused(kd_feature_run(&b.exec, type, &a), KD_EINVAL, "hidden_mse: weight");
    a = good;
    a.loss = test_filled(&b, KD_F32, KD_SHAPE(5), 0, 0, 2);
    test_refused(kd_feature_run(&b.exec, type, &a), KD_EINVAL, "hidden_mse: loss");
    test_close(&b);
}
