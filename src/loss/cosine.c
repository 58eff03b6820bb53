/*
 * cosine - one minus the cosine between hidden states, the third loss of DistilBERT (Sanh et al. 2019).
 *
 *     value of token n  =  1 - s t / (|s| |t|)
 *     d value / d s     =  (s' (s' t') - t') / |s|          s' = s / |s|, t' = t / |t|
 *
 * Reads     student [N, D] (behind a projector where the widths differ), teacher [N, D].
 * Unit      token: the term is the mean over the tokens that count.
 * Dead rows A row of length 0 on either side has value 1 and no gradient.
 * Elsewhere PyTorch's CosineEmbeddingLoss adds 1e-12 to each squared length, its cosine_similarity keeps
 *           each length above 1e-8: the same but for rows about as short.
 */
#include "loss/distance.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return kd_distance_run(exec, args, KD_DISTANCE_COSINE, 1.0);
}

const kd_feature_type kd_feature_cosine = {
    .name = "cosine",
    .help = "1 - cosine between hidden states",
    .unit = KD_UNIT_TOKEN,
    .reads = { { "student", "[N, D]", KD_READ_GRADIENT }, { "teacher", "[N, D]", 0 } },
    .run = run,
};
