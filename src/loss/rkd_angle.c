/*
 * rkd_angle - relational knowledge distillation by angles (RKD-A): the angles of the batch's triples are to
 * be the teacher's (Park et al., Relational Knowledge Distillation, CVPR 2019, eq. 7 and 8).
 *
 *     psi_ijk = cos of the angle at i between j and k
 *             = (S_ij + S_ik - S_jk) / (2 D_ij D_ik),  S = D^2 = |x_i - x_j|^2: the law of cosines
 *     value of sample i  =  (1 / B^2) sum_jk h(u_ijk),  u = psi^s - psi^t,  h(u) = u^2 / 2, or |u| - 1/2 for |u| > 1
 *     d / d S_ij         =  sum_k g_ijk (1 / D_ik - psi_ijk / D_ij) / D_ij - 1/2 sum_k g_kij / (D_ki D_kj)
 *                           with g = clip(u, -1, 1) / B^2
 *
 * Reads     student [B, D], teacher [B, D'] of any width: no projector is needed.
 * Unit      sample, the one at the angle: the term is the mean over B^3 triples, degenerate ones, which are 0,
 *           included.  B is the samples of weight other than 0; the others are in no triple.
 * Options   l2_normalise: rows of length one first (mmrazor).
 * Invariant under shifts, rotations and one factor for all of either side (without l2_normalise).
 * Odd cases An angle with a side of length 0 (a sample and itself, equal samples) has psi = 0 and no gradient.
 * Cost      B^2 D + about 40 B^3 operations, 5 B^2 numbers; the paper's code holds B^3 angles and B^2 D
 *           differences.  An angle is known to 1e-7 times the ratio of its sides.
 * Weight    2 with rkd_distance's 1 in the paper's code for embeddings, 50 with 25 in RepDistiller.
 * Elsewhere The same in the code of the paper, RepDistiller, mdistiller and torchdistill.
 */
#include "loss/rkd.h"

typedef struct options {
    bool l2_normalise;
} options;

static const kd_option rows[] = {
    { "l2_normalise", KD_BOOL, offsetof(options, l2_normalise), "false", 0, 0, "",
      "rows of length one first" },
    { 0 },
};

static kd_status angles(kd_exec *exec, const kd_feature_args *args, const kd_tensor *d,
                        const kd_tensor *student, const kd_tensor *teacher)
{
    return KD_RUN(exec, rkd_angle, .d = d, .loss = &args->loss, .student = student,
                  .teacher = teacher, .weight = &args->weight, .scale = &args->scale);
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return kd_rkd_run(exec, args, ((const options *)args->options)->l2_normalise, angles);
}

const kd_feature_type kd_feature_rkd_angle = {
    .name = "rkd_angle",
    .help = "RKD-A: angles of the batch's triples",
    .unit = KD_UNIT_SAMPLE,
    .relates = true,
    .reads = { { "student", "[B, D]", KD_READ_GRADIENT }, { "teacher", "[B, D']", 0 } },
    .options = rows,
    .run = run,
};
