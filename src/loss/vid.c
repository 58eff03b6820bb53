/*
 * vid - the teacher's maps are to be likely under normal distributions around the student's, whose variances are
 * learnt: a bound of the information that both share (VID; Ahn et al., Variational Information Distillation for
 * Knowledge Transfer, CVPR 2019).
 *
 *     v_c              =  softplus(log_variance_c) + eps
 *     value of sample  =  mean over c, h, w of 1/2 ((s - t)^2 / v_c + log v_c)
 *     d / d s          =  (s - t) / (C H W v_c)
 *     d / d log_variance_c  =  mean of 1/2 (1 / v_c - (s - t)^2 / v_c^2) sigmoid(log_variance_c), of c's places
 *                              over those of all
 *
 * Reads     student [B, C, H, W] (behind a regressor to the teacher's channels), teacher [B, C, H, W], and
 *           log_variance [C], a parameter of the loss: trained with the student, its gradient is written.
 * Unit      sample: the term is the mean over the batch.
 * Defaults  eps 1e-5, and log_variance begins where v is `variance`, 5.
 * Odd cases Equal maps have no gradient for the student, but their value is 1/2 mean log v, below 0 where variances
 *           are below 1: no value of 0 means anything here.
 * Elsewhere RepDistiller and torchdistill have the same, behind three 1x1 convolutions, and pool the larger maps
 *           to the smaller; the weight is 1, for each stage.  The paper's logits have a variance each.
 */
#include "loss/maps.h"

#include <math.h>

typedef struct options {
    double eps, variance;
} options;

static const kd_option rows[] = {
    { "eps", KD_FLOAT, offsetof(options, eps), "1e-5", 1e-12, 1, "", "the least variance" },
    { "variance", KD_FLOAT, offsetof(options, variance), "5", 1e-3, 1e6, "",
      "with which every channel begins" },
    { 0 },
};

/* softplus(a) + eps = variance */
static float begin(const void *given)
{
    const options *o = given;
    const double x = fmax(o->variance - o->eps, o->eps);
    return (float)(x + log(-expm1(-x)));
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    const options *o = args->options;
    kd_tensor student, teacher, d_student;
    KD_TRY(kd_tensor_expect(&args->teacher, "teacher", -1, kd_shape_of(&args->student)));
    KD_TRY(kd_tensor_expect(&args->log_variance, "log_variance", KD_F32,
                            KD_SHAPE(args->student.shape[1])));
    KD_TRY(kd_maps_flat(&student, &args->student, "student"));
    KD_TRY(kd_maps_flat(&teacher, &args->teacher, "teacher"));
    KD_TRY(kd_maps_flat(&d_student, &args->d_student, "d_student"));
    return KD_RUN(exec, vid, .d_student = &d_student, .d_log_variance = &args->d_log_variance,
                  .loss = &args->loss, .student = &student, .teacher = &teacher,
                  .log_variance = &args->log_variance, .weight = &args->weight,
                  .scale = &args->scale, .eps = (float)o->eps);
}

const kd_feature_type kd_feature_vid = {
    .name = "vid",
    .help = "likelihood of the teacher's maps, learnt variances (VID)",
    .unit = KD_UNIT_SAMPLE,
    .reads = { { "student", "[B, C, H, W]", KD_READ_GRADIENT },
               { "teacher", "[B, C, H, W]", 0 },
               { "log_variance", "[C]", KD_READ_GRADIENT | KD_READ_F32 | KD_READ_PARAMETER } },
    .options = rows,
    .run = run,
    .begin = begin,
};
