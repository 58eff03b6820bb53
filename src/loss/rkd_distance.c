/*
 * rkd_distance - relational knowledge distillation by distances (RKD-D): the batch's pairs are to be as far
 * apart, relative to each other, as the teacher's (Park et al., Relational Knowledge Distillation,
 * CVPR 2019, eq. 5 and 6).
 *
 *     D_ij = |x_i - x_j|,  psi_ij = D_ij / mu,  mu = mean of D over the pairs with D > 0, on either side
 *     value of sample i  =  (1 / B) sum_j h(u_ij),  u = psi^s - psi^t,  h(u) = u^2 / 2, or |u| - 1/2 for |u| > 1
 *     d / d D_ij         =  (g_ij - (1 / M) sum_kl g_kl psi_kl) / mu,  g_ij = clip(u_ij, -1, 1) / B
 *                           over the M pairs of the mean: mu is differentiated; then d D_ij / d s_i = (s_i - s_j) / D_ij
 *
 * Reads     student [B, D], teacher [B, D'] of any width: no projector is needed.
 * Unit      sample: the term is the mean over B^2 pairs, those of a sample with itself, which are 0, included.
 *           B is the samples of weight other than 0; the others are in no mean.
 * Options   l2_normalise: rows of length one first (mmrazor); whole_mean: mu over all B^2 pairs.
 * Invariant under shifts, rotations and one factor for all of either side (without l2_normalise).
 * Odd cases Equal samples have D = 0: no part in mu, no gradient.  A batch of one, or all of whose samples
 *           are equal, has psi = 0.
 * Cost      B^2 D operations, 3 B^2 numbers.
 * Weight    1 with rkd_angle's 2 in the paper's code for embeddings, 25 with 50 in RepDistiller, on pooled features.
 * Elsewhere The paper's code and RepDistiller keep D above 1e-6, so that equal samples count in mu; the
 *           paper's text has the sum over pairs where its code has the mean.
 */
#include "loss/rkd.h"

typedef struct options {
    bool l2_normalise, whole_mean;
} options;

static const kd_option rows[] = {
    { "l2_normalise", KD_BOOL, offsetof(options, l2_normalise), "false", 0, 0, "",
      "rows of length one first" },
    { "whole_mean", KD_BOOL, offsetof(options, whole_mean), "false", 0, 0, "",
      "the mean distance counts pairs that are not apart" },
    { 0 },
};

static kd_status distances(kd_exec *exec, const kd_feature_args *args, const kd_tensor *d,
                           const kd_tensor *student, const kd_tensor *teacher)
{
    const options *own = args->options;
    return KD_RUN(exec, rkd_distance, .d = d, .loss = &args->loss, .student = student,
                  .teacher = teacher, .weight = &args->weight, .scale = &args->scale,
                  .whole = own->whole_mean);
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return kd_rkd_run(exec, args, ((const options *)args->options)->l2_normalise, distances);
}

const kd_feature_type kd_feature_rkd_distance = {
    .name = "rkd_distance",
    .help = "RKD-D: relative distances of the batch's pairs",
    .unit = KD_UNIT_SAMPLE,
    .relates = true,
    .reads = { { "student", "[B, D]", KD_READ_GRADIENT }, { "teacher", "[B, D']", 0 } },
    .options = rows,
    .run = run,
};
