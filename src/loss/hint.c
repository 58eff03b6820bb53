/*
 * hint - the student's features are the teacher's (FitNets, Romero et al. 2015, eq. 3).
 *
 *     value of sample  =  (1 / (C H W)) sum (s - t)^2
 *     d value / d s    =  (2 / (C H W)) (s - t)
 *
 * Reads     student [B, C, H, W] (behind a projector where the shapes differ), teacher [B, C, H, W].
 * Unit      sample: the term is the mean over the batch.
 * Elsewhere The paper has half the sum of squares of a sample, and trains the student up to that layer first;
 *           RepDistiller, mdistiller and torchdistill minimise the mean over all elements, as here, together
 *           with the task, RepDistiller with weight 100 behind a convolution, norm and ReLU.
 */
#include "loss/distance.h"
#include "loss/maps.h"

/* [B, C, H W] seen as [B, C H W], absent where `maps` is. */
static kd_status flatten(kd_tensor *rows, const kd_tensor *maps, const char *what)
{
    KD_TRY(kd_maps_flat(rows, maps, what));
    if (maps->rank == 0) return KD_OK;
    const int64_t places = rows->shape[2];
    rows->rank = 2;
    rows->shape[1] *= places;
    rows->stride[1] = 1;
    if (maps->shape[1] <= 1 || maps->stride[1] == places) return KD_OK;
    return kd_fail(KD_EINVAL, "%s: maps lie %lld elements apart; expected %lld", what,
                   (long long)maps->stride[1], (long long)places);
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    kd_feature_args rows = *args;
    KD_TRY(flatten(&rows.student, &args->student, "student"));
    KD_TRY(flatten(&rows.d_student, &args->d_student, "d_student"));
    KD_TRY(flatten(&rows.teacher, &args->teacher, "teacher"));
    KD_TRY(kd_tensor_expect(&args->teacher, "teacher", -1, kd_shape_of(&args->student)));
    return kd_distance_run(exec, &rows, KD_DISTANCE_SQUARED,
                           1.0 / (double)kd_max_i64(rows.student.shape[1], 1));
}

const kd_feature_type kd_feature_hint = {
    .name = "hint",
    .help = "mean squared difference of feature maps (FitNets)",
    .unit = KD_UNIT_SAMPLE,
    .reads = { { "student", "[B, C, H, W]", KD_READ_GRADIENT }, { "teacher", "[B, C, H, W]", 0 } },
    .run = run,
};
