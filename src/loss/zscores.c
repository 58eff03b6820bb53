/*
 * z-scores are layer_norm's: its weight sqrt((C - 1) / C) turns the deviation over C into that over
 * C - 1, and eps of the variance, (1e-7)^2, is 1e-7 beside a deviation of 0 and nothing beside one
 * that is not.
 */
#include "loss/loss.h"

#include <math.h>

static const float eps = 1e-14f;

kd_status kd_zscores_make(kd_zscores *s, kd_exec *exec, const kd_tensor *logits)
{
    const int64_t rows = logits->shape[0], classes = logits->shape[1];
    const float share = (float)sqrt((double)(classes - 1) / (double)classes);
    KD_TRY(kd_push(&s->weight, exec, "z-score weight", KD_F32, KD_SHAPE(classes)));
    KD_TRY(kd_push(&s->bias, exec, "z-score bias", KD_F32, KD_SHAPE(classes)));
    KD_TRY(kd_push(&s->y, exec, "z-scores", KD_F32, KD_SHAPE(rows, classes)));
    KD_TRY(kd_push(&s->mean, exec, "z-score means", KD_F32, KD_SHAPE(rows)));
    KD_TRY(kd_push(&s->rstd, exec, "z-score deviations", KD_F32, KD_SHAPE(rows)));
    KD_TRY(KD_RUN(exec, fill, .y = &s->weight, .value = share));
    KD_TRY(KD_RUN(exec, fill, .y = &s->bias, .value = 0.0f));
    return KD_RUN(exec, layer_norm, .y = &s->y, .mean = &s->mean, .rstd = &s->rstd, .x = logits,
                  .weight = &s->weight, .bias = &s->bias, .eps = eps);
}

kd_status kd_zscores_backward(kd_exec *exec, const kd_tensor *d, const kd_tensor *logits,
                              const kd_zscores *s)
{
    return KD_RUN(exec, layer_norm_backward, .dx = d, .dy = &s->y, .x = logits, .mean = &s->mean,
                  .rstd = &s->rstd, .weight = &s->weight);
}
