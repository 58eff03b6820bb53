/* relation.h - losses over the pairs of a batch.  Internal to src/loss. */
#ifndef KD_LOSS_RELATION_H
#define KD_LOSS_RELATION_H

#include "loss/loss.h"

/* x = `given` in f32, rows of weight 0 being zeros; share = weight / how many are not 0, or absent with
 * the weight. */
static inline kd_status kd_relation_rows(kd_tensor *x, kd_tensor *share, kd_exec *exec,
                                         const kd_tensor *given, const kd_tensor *weight)
{
    *x = *given;
    *share = (kd_tensor){ 0 };
    if (given->dtype == KD_F32 && !kd_present(weight)) return KD_OK;
    KD_TRY(kd_push(x, exec, "relation.rows", KD_F32, kd_shape_of(given)));
    if (!kd_present(weight)) return KD_RUN(exec, copy, .y = x, .x = given);
    KD_TRY(kd_push(share, exec, "relation.share", KD_F32, KD_SHAPE(given->shape[0])));
    return KD_RUN(exec, keep_rows, .y = x, .share = share, .x = given, .weight = weight);
}

/* dx = `d` in f32; what is added to it comes back with kd_relation_finish. */
static inline kd_status kd_relation_gradient(kd_tensor *dx, kd_exec *exec, const kd_tensor *d)
{
    *dx = *d;
    if (d->dtype == KD_F32) return KD_OK;
    KD_TRY(kd_push(dx, exec, "relation.gradient", KD_F32, kd_shape_of(d)));
    return KD_RUN(exec, copy, .y = dx, .x = d);
}

static inline kd_status kd_relation_finish(kd_exec *exec, const kd_tensor *d, const kd_tensor *dx)
{
    return d->dtype == KD_F32 ? KD_OK : KD_RUN(exec, copy, .y = d, .x = dx);
}

/* KD_EINVAL unless the teacher has a row for each of the student's. */
static inline kd_status kd_relation_check(const kd_feature_args *args)
{
    return kd_tensor_expect(&args->teacher, "teacher", -1, KD_SHAPE(args->student.shape[0], -1));
}

/* Rows of length one, and the lengths. */
static inline kd_status kd_relation_unit(kd_tensor *unit, kd_tensor *norm, kd_exec *exec,
                                         const kd_tensor *x, float eps, bool added)
{
    KD_TRY(kd_push(unit, exec, "relation.unit", KD_F32, kd_shape_of(x)));
    KD_TRY(kd_push(norm, exec, "relation.norm", KD_F32, KD_SHAPE(x->shape[0])));
    return KD_RUN(exec, normalise, .y = unit, .norm = norm, .x = x, .eps = eps, .added = added);
}

/* gram[N,N] = x x^T */
static inline kd_status kd_relation_gram(kd_tensor *gram, kd_exec *exec, const kd_tensor *x)
{
    const kd_tensor turned = kd_tensor_transposed(x);
    KD_TRY(kd_push(gram, exec, "relation.gram", KD_F32, KD_SHAPE(x->shape[0], x->shape[0])));
    return KD_RUN(exec, matmul, .y = gram, .a = x, .b = &turned);
}

#endif
