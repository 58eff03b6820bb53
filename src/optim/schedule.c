/* Learning rate as a function of the update's number alone, so that a resumed run has no state. */
#include "optim/optim.h"

#include <math.h>
#include <stdlib.h>

const kd_option kd_optim_rows[] = {
    { "type", KD_CHOICE, offsetof(kd_optim_options, type), "adamw", 0, 0, "adamw|sgd",
      "update rule" },
    { "lr", KD_FLOAT, offsetof(kd_optim_options, lr), NULL, 0, 1e3, "", "peak learning rate" },
    { "min_lr", KD_FLOAT, offsetof(kd_optim_options, min_lr), "0", 0, 1, "share",
      "where the schedule ends, as a share of lr" },
    { "schedule", KD_CHOICE, offsetof(kd_optim_options, schedule), "cosine", 0, 0,
      "constant|linear|cosine|wsd", "after warm-up" },
    { "warmup", KD_STRING, offsetof(kd_optim_options, warmup), "0 steps", 0, 0, "",
      "\"200 steps\" or \"2 %\" of the run, linear from 0" },
    { "decay", KD_STRING, offsetof(kd_optim_options, decay), "20 %", 0, 0, "",
      "of wsd: length of the way down" },
    { "weight_decay", KD_FLOAT, offsetof(kd_optim_options, weight_decay), "0", 0, 10, "",
      "of matrices; decoupled (adamw) or added to the gradient (sgd)" },
    { "beta1", KD_FLOAT, offsetof(kd_optim_options, beta1), "0.9", 0, 0.9999999, "", "of adamw" },
    { "beta2", KD_FLOAT, offsetof(kd_optim_options, beta2), "0.999", 0, 0.9999999, "", "of adamw" },
    { "eps", KD_FLOAT, offsetof(kd_optim_options, eps), "1e-8", 0, 1, "", "of adamw" },
    { "momentum", KD_FLOAT, offsetof(kd_optim_options, momentum), "0", 0, 0.9999999, "", "of sgd" },
    { "nesterov", KD_BOOL, offsetof(kd_optim_options, nesterov), "false", 0, 0, "", "of sgd" },
    { "clip", KD_FLOAT, offsetof(kd_optim_options, clip), "1", 0, 1e9, "",
      "largest norm of the whole gradient; 0: unbounded" },
    { "on_nonfinite", KD_CHOICE, offsetof(kd_optim_options, on_nonfinite), "stop", 0, 0,
      "stop|skip",
      "of a step whose loss or gradient is not finite: stop the run (exit 5), or leave its update "
      "out" },
    { "skip_zscore", KD_FLOAT, offsetof(kd_optim_options, skip_zscore), "0", 0, 11, "",
      "leave out an update whose loss or gradient norm is so many standard deviations above the "
      "mean of the last 128 steps; 0: none" },
    { "max_skips", KD_INT, offsetof(kd_optim_options, max_skips), "10", 0, 1e6, "updates",
      "left out in a row; one more stops the run (exit 5)" },
    { 0 },
};

/* "200 steps", "200" or "2 %" as a number of steps. */
static kd_status parse_length(int64_t *steps, const char *text, const char *key, int64_t total)
{
    char *end;
    const double value = strtod(text, &end);
    while (*end == ' ') end++;
    const bool share = *end == '%';
    if (share) end++;
    if (strncmp(end, "steps", 5) == 0 && !share) end += 5;
    if (end == text || *end || !(value >= 0.0) || value > (share ? 100.0 : 1e12))
        return kd_fail(KD_EINVAL, "optim.%s: \"%s\"; expected \"200 steps\" or \"2 %%\"", key,
                       text);
    *steps = share ? (int64_t)llround(value / 100.0 * (double)total) : (int64_t)value;
    return KD_OK;
}

/* Share of lr at `at` of `length` steps of the way down. */
static double falling(int schedule, double at, double length, double min_lr)
{
    const double done = length > 0 ? fmin(at / length, 1.0) : 1.0;
    const double left =
        schedule == KD_SCHEDULE_COSINE ? 0.5 * (1.0 + cos(acos(-1.0) * done)) : 1.0 - done;
    return min_lr + (1.0 - min_lr) * left;
}

kd_status kd_schedule_lr(double *lr, const kd_optim_options *o, int64_t step, int64_t steps)
{
    int64_t warmup, decay = 0;
    KD_TRY(parse_length(&warmup, o->warmup, "warmup", steps));
    if (o->schedule == KD_SCHEDULE_WSD) KD_TRY(parse_length(&decay, o->decay, "decay", steps));
    double share = 1.0;
    if (step < warmup) {
        share = (double)(step + 1) / (double)warmup;
    } else if (o->schedule == KD_SCHEDULE_WSD) {
        const int64_t begin = steps - decay;
        if (step >= begin)
            share = falling(KD_SCHEDULE_LINEAR, (double)(step - begin), (double)decay, o->min_lr);
    } else if (o->schedule != KD_SCHEDULE_CONSTANT) {
        share = falling(o->schedule, (double)(step - warmup), (double)(steps - warmup), o->min_lr);
    }
    *lr = o->lr * share;
    return KD_OK;
}
