/*
 * cc - correlation of a batch's errors with those of its neighbours, as public code has what it calls
 * correlation congruence.
 *
 *     e_i = |s_i - t_i|, element by element
 *     value of sample i  =  B / (B - 1) sum_d e_id e_(i+1)d,  the last one's 0
 *     d value / d s_id   =  B / (B - 1) sign(s_id - t_id) (e_(i-1)d + e_(i+1)d)
 *
 * Reads     student [B, D] (behind a projector where the widths differ), teacher [B, D].
 * Unit      sample: the term is the mean over B - 1 neighbours.  A sample of weight 0 is left out, and those
 *           beside it become neighbours.
 * Odd cases A batch of one has value 0.  Where s = t the sign is 0.
 * Weight    0.02 in RepDistiller, behind linear embeddings of 128.
 * Elsewhere This is RepDistiller's, which torchdistill and others took over; it depends on the order of the
 *           batch.  The paper (Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019)
 *           compares the B x B Gaussian kernels of both sides, by Taylor's polynomial of degree 2: no public
 *           benchmark has that.
 */
#include "loss/loss.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return KD_RUN(exec, correlation, .d_student = &args->d_student, .loss = &args->loss,
                  .student = &args->student, .teacher = &args->teacher, .weight = &args->weight,
                  .scale = &args->scale);
}

const kd_feature_type kd_feature_cc = {
    .name = "cc",
    .help = "CC: errors correlated with the next sample's",
    .unit = KD_UNIT_SAMPLE,
    .relates = true,
    .reads = { { "student", "[B, D]", KD_READ_GRADIENT }, { "teacher", "[B, D]", 0 } },
    .run = run,
};
