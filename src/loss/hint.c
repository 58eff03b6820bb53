/*
 * hint - the student's features are the teacher's (FitNets, Romero et al. 2015, eq. 3).
 *
 *     value of sample  =  (1 / (C H W)) sum (s - t)^2
 *     d value / d s    =  (2 / (C H W)) (s - t)
 *
 * Reads     student [B, C, H, W] (behind a projector where the shapes differ: conv1x1, or conv where places do),
 *           teacher [B, C, H, W].
 * Unit      sample: the term is the mean over the batch.
 * Elsewhere The paper has half the sum of squares of a sample, and trains the student up to that layer first;
 *           RepDistiller, mdistiller and torchdistill minimise the mean over all elements, as here, together
 *           with the task, RepDistiller with weight 100 behind a convolution, norm and ReLU.
 */
#include "loss/distance.h"
#include "loss/maps.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    kd_feature_args rows = *args;
    KD_TRY(kd_maps_rows(&rows.student, &args->student, "student"));
    KD_TRY(kd_maps_rows(&rows.d_student, &args->d_student, "d_student"));
    KD_TRY(kd_maps_rows(&rows.teacher, &args->teacher, "teacher"));
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
