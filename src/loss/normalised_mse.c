/*
 * normalised_mse - squared distance of hidden states on the unit sphere: PKD (Sun et al. 2019, eq. 7), and
 * what many call an L2-normalised hint.
 *
 *     value of token n  =  |s' - t'|^2  =  2 (1 - s' t')    s' = s / |s|, t' = t / |t|
 *     d value / d s     =  2 (s' (s' t') - t') / |s|
 *
 * Reads     student [N, D] (behind a projector where the widths differ), teacher [N, D].
 * Unit      token: the term is the mean over the tokens that count.
 * Dead rows A row of length 0 stays 0: against one it has value 1, against another 0; no gradient.
 * Elsewhere PKD takes it of the first token of each sample and layer.  TextBrewer's pkd_loss has no
 *           guard: there a dead row is NaN.
 */
#include "loss/distance.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return kd_distance_run(exec, args, KD_DISTANCE_NORMALISED, 1.0);
}

const kd_feature_type kd_feature_normalised_mse = {
    .name = "normalised_mse",
    .help = "squared distance of hidden states of length 1",
    .unit = KD_UNIT_TOKEN,
    .reads = { { "student", "[N, D]", KD_READ_GRADIENT }, { "teacher", "[N, D]", 0 } },
    .run = run,
};
