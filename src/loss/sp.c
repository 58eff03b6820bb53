/*
 * sp - similarity preserving: samples that excite the teacher alike are to excite the student alike
 * (Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019).
 *
 *     G = F F^T over flattened maps F [B, D],  G' = rows of G of length one, on either side
 *     value of sample i  =  (1 / B) |G'^s_i - G'^t_i|^2
 *     A_i                =  (e_i - G'_i (G'_i e_i)) / |G^s_i|,  e = 2 (G'^s - G'^t) / B
 *     d / d F            =  (A + A^T) F
 *
 * Reads     student [B, D], teacher [B, D'] of any width: no projector is needed.
 * Unit      sample: the term is the squared norm over B^2.  B is the samples of weight other than 0; the others
 *           are in no product.
 * Invariant under rotations and one factor for all of either side.
 * Odd cases A row of zeros has a row of zeros in G: it is compared as it is and has no gradient of its own.
 * Weight    3000 in the paper and RepDistiller.
 * Elsewhere The same in RepDistiller, mdistiller and torchdistill.
 */
#include "loss/pairs.h"

static kd_status back(kd_exec *exec, const kd_feature_args *args, const kd_tensor *d,
                      const kd_tensor *x)
{
    const kd_tensor turned = kd_tensor_transposed(d);
    kd_tensor dx, both;
    KD_TRY(kd_pairs_gradient(&dx, exec, &args->d_student));
    KD_TRY(kd_push(&both, exec, "sp.both", KD_F32, kd_shape_of(d)));
    KD_TRY(KD_RUN(exec, copy, .y = &both, .x = &turned));
    KD_TRY(KD_RUN(exec, add, .y = &both, .a = &both, .b = d));
    KD_TRY(KD_RUN(exec, matmul_add, .y = &dx, .a = &both, .b = x));
    return kd_pairs_finish(exec, &args->d_student, &dx);
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    const int64_t n = args->student.shape[0];
    kd_tensor x, gram, t_x, t_gram, share, d = { 0 };
    KD_TRY(kd_pairs_check(args));
    if (n == 0) return KD_OK;
    KD_TRY(kd_pairs_rows(&x, &share, exec, &args->student, &args->weight));
    KD_TRY(kd_pairs_rows(&t_x, &share, exec, &args->teacher, &args->weight));
    KD_TRY(kd_pairs_gram(&gram, exec, &x));
    KD_TRY(kd_pairs_gram(&t_gram, exec, &t_x));
    if (kd_present(&args->d_student)) {
        KD_TRY(kd_push(&d, exec, "sp.d", KD_F32, KD_SHAPE(n, n)));
        KD_TRY(KD_RUN(exec, fill, .y = &d, .value = 0));
    }
    /* A share has the division by how many samples count, which only the device knows, in it. */
    KD_TRY(KD_RUN(exec, row_distance, .d_student = &d, .loss = &args->loss, .student = &gram,
                  .teacher = &t_gram, .weight = &share, .scale = &args->scale,
                  .kind = KD_DISTANCE_NORMALISED,
                  .factor = kd_present(&share) ? 1 : (float)(1.0 / (double)n)));
    return kd_present(&d) ? back(exec, args, &d, &x) : KD_OK;
}

const kd_feature_type kd_feature_sp = {
    .name = "sp",
    .help = "SP: similarities of the batch's samples",
    .unit = KD_UNIT_SAMPLE,
    .relates = true,
    .reads = { { "student", "[B, D]", KD_READ_GRADIENT }, { "teacher", "[B, D']", 0 } },
    .run = run,
};
