/* rkd.h - what both losses of RKD do: distances of either side, the op over them, and the gradient back
 * through them.  Internal to src/loss. */
#ifndef KD_LOSS_RKD_H
#define KD_LOSS_RKD_H

#include "loss/relation.h"

typedef struct kd_rkd_side {
    kd_tensor x, unit, norm; /* unit and norm: of l2 alone */
    kd_tensor pairs;         /* squared distances */
} kd_rkd_side;

static inline const kd_tensor *kd_rkd_rows(const kd_rkd_side *side, bool l2)
{
    return l2 ? &side->unit : &side->x;
}

static inline kd_status kd_rkd_side_of(kd_rkd_side *side, kd_exec *exec, const kd_tensor *given,
                                       const kd_tensor *weight, bool l2)
{
    const int64_t n = given->shape[0];
    kd_tensor share;
    KD_TRY(kd_relation_rows(&side->x, &share, exec, given, weight));
    if (l2) KD_TRY(kd_relation_unit(&side->unit, &side->norm, exec, &side->x, 1e-12f, false));
    KD_TRY(kd_push(&side->pairs, exec, "rkd.pairs", KD_F32, KD_SHAPE(n, n)));
    return KD_RUN(exec, pair_distances, .y = &side->pairs, .x = kd_rkd_rows(side, l2));
}

static inline kd_status kd_rkd_back(kd_exec *exec, const kd_feature_args *args,
                                    const kd_rkd_side *side, const kd_tensor *d, bool l2)
{
    kd_tensor dx, d_unit;
    KD_TRY(kd_relation_gradient(&dx, exec, &args->d_student));
    if (l2) {
        KD_TRY(kd_push(&d_unit, exec, "rkd.d_unit", KD_F32, kd_shape_of(&dx)));
        KD_TRY(KD_RUN(exec, fill, .y = &d_unit, .value = 0));
    }
    KD_TRY(KD_RUN(exec, pair_distances_backward, .dx = l2 ? &d_unit : &dx, .dy = d,
                  .x = kd_rkd_rows(side, l2)));
    if (l2)
        KD_TRY(KD_RUN(exec, normalise_backward, .dx = &dx, .dy = &d_unit, .x = &side->x,
                      .norm = &side->norm, .eps = 1e-12f));
    return kd_relation_finish(exec, &args->d_student, &dx);
}

/* `loss` runs the op over both sides' distances; its d is absent for the value alone. */
static inline kd_status kd_rkd_run(kd_exec *exec, const kd_feature_args *args, bool l2,
                                   kd_status (*loss)(kd_exec *exec, const kd_feature_args *args,
                                                     const kd_tensor *d, const kd_tensor *student,
                                                     const kd_tensor *teacher))
{
    const int64_t n = args->student.shape[0];
    kd_rkd_side student = { 0 }, teacher = { 0 };
    kd_tensor d = { 0 };
    KD_TRY(kd_relation_check(args));
    if (n == 0) return KD_OK;
    KD_TRY(kd_rkd_side_of(&student, exec, &args->student, &args->weight, l2));
    KD_TRY(kd_rkd_side_of(&teacher, exec, &args->teacher, &args->weight, l2));
    if (kd_present(&args->d_student)) KD_TRY(kd_push(&d, exec, "rkd.d", KD_F32, KD_SHAPE(n, n)));
    KD_TRY(loss(exec, args, &d, &student.pairs, &teacher.pairs));
    return kd_present(&d) ? kd_rkd_back(exec, args, &student, &d, l2) : KD_OK;
}

#endif
