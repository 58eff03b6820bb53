/*
 * hidden_mse - mean squared difference of hidden states, as TinyBERT (Jiao et al. 2020, eq. 8) and most
 * after it match layers.
 *
 *     value of token n  =  (1 / D) sum_j (s[n,j] - t[n,j])^2
 *     d value / d s     =  (2 / D) (s - t)
 *
 * Reads     student [N, D] (behind a projector where the widths differ), teacher [N, D].
 * Unit      token: the term is the mean over the tokens that count.
 * Elsewhere TinyBERT's own code takes the mean over padding too, which scales the term with the share
 *           of padding; DistillKit and TextBrewer divide by the tokens that count, as here.
 */
#include "loss/distance.h"

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    return kd_distance_run(exec, args, KD_DISTANCE_SQUARED, 1.0 / (double)args->student.shape[1]);
}

const kd_feature_type kd_feature_hidden_mse = {
    .name = "hidden_mse",
    .help = "mean squared difference of hidden states",
    .unit = KD_UNIT_TOKEN,
    .reads = { { "student", "[N, D]", KD_READ_GRADIENT }, { "teacher", "[N, D]", 0 } },
    .run = run,
};
