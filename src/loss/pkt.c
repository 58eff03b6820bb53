/*
 * pkt - probabilistic knowledge transfer: how likely the samples of the batch are to be each other's
 * neighbours (Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
 * ECCV 2018, with its cosine kernel).
 *
 *     x' = x / (|x| + eps),  K_ij = (x'_i x'_j + 1) / 2,  P_ij = K_ij / R_i,  R_i = sum_k K_ik
 *     value of sample i  =  (1 / B) sum_j P^t_ij log((P^t_ij + eps) / (P^s_ij + eps))
 *     A_ij               =  (g_ij - sum_k g_ik P^s_ik) / (2 R_i),  g_ij = -P^t_ij / (B (P^s_ij + eps))
 *     d / d s'           =  (A + A^T) s',  then through the length of each row
 *
 * Reads     student [B, D], teacher [B, D'] of any width: no projector is needed.
 * Unit      sample: the term is the mean over B^2 pairs, the diagonal included.  It falls with 1 / B^2, so a
 *           weight does not carry over to another size of batch.  B is the samples of weight other than 0; the
 *           others are in no sum.
 * Options   eps, 1e-7.
 * Invariant under rotations, and under a positive factor for each row but for eps.
 * Odd cases A row of zeros has cosine 0 with all, K = 1/2; its own gradient is that of x / eps, which is large.
 *           Without eps in P a student like its teacher would have gradient 0; it has one of the size of eps B.
 * Weight    30000 in RepDistiller, 10000 with eps 1e-6 in AberHu's collection.
 * Elsewhere The authors' code, RepDistiller, mdistiller and torchdistill are the same; the paper's conditional
 *           probability leaves out the diagonal.
 */
#include "loss/pairs.h"

typedef struct options {
    double eps;
} options;

static const kd_option rows[] = {
    { "eps", KD_FLOAT, offsetof(options, eps), "1e-7", 1e-12, 1, "",
      "added to lengths and probabilities" },
    { 0 },
};

static kd_status back(kd_exec *exec, const kd_feature_args *args, const kd_tensor *d,
                      const kd_tensor *x, const kd_tensor *unit, const kd_tensor *norm, float eps)
{
    kd_tensor dx, d_unit;
    KD_TRY(kd_push(&d_unit, exec, "pkt.d_unit", KD_F32, kd_shape_of(x)));
    KD_TRY(KD_RUN(exec, matmul, .y = &d_unit, .a = d, .b = unit));
    KD_TRY(kd_pairs_gradient(&dx, exec, &args->d_student));
    KD_TRY(KD_RUN(exec, normalise_backward, .dx = &dx, .dy = &d_unit, .x = x, .norm = norm,
                  .eps = eps, .added = true));
    return kd_pairs_finish(exec, &args->d_student, &dx);
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    const float eps = (float)((const options *)args->options)->eps;
    const int64_t n = args->student.shape[0];
    kd_tensor x, unit, norm, gram, t_x, t_unit, t_norm, t_gram, share, d = { 0 };
    KD_TRY(kd_pairs_check(args));
    if (n == 0) return KD_OK;
    KD_TRY(kd_pairs_rows(&x, &share, exec, &args->student, &args->weight));
    KD_TRY(kd_pairs_rows(&t_x, &share, exec, &args->teacher, &args->weight));
    KD_TRY(kd_pairs_unit(&unit, &norm, exec, &x, eps, true));
    KD_TRY(kd_pairs_unit(&t_unit, &t_norm, exec, &t_x, eps, true));
    KD_TRY(kd_pairs_gram(&gram, exec, &unit));
    KD_TRY(kd_pairs_gram(&t_gram, exec, &t_unit));
    if (kd_present(&args->d_student)) KD_TRY(kd_push(&d, exec, "pkt.d", KD_F32, KD_SHAPE(n, n)));
    KD_TRY(KD_RUN(exec, pkt, .d = &d, .loss = &args->loss, .student = &gram, .teacher = &t_gram,
                  .weight = &args->weight, .scale = &args->scale, .eps = eps));
    return kd_present(&d) ? back(exec, args, &d, &x, &unit, &norm, eps) : KD_OK;
}

const kd_feature_type kd_feature_pkt = {
    .name = "pkt",
    .help = "PKT: probabilities of being neighbours in the batch",
    .unit = KD_UNIT_SAMPLE,
    .relates = true,
    .reads = { { "student", "[B, D]", KD_READ_GRADIENT }, { "teacher", "[B, D']", 0 } },
    .options = rows,
    .run = run,
};
