/*
 * optim.h - from gradients to new weights: schedules, clipping, AdamW, SGD.
 *
 * schedule.c optimizer.c
 */
#ifndef KD_OPTIM_H
#define KD_OPTIM_H

#include "ops/ops.h"

typedef enum kd_optimizer_kind { KD_OPTIM_ADAMW, KD_OPTIM_SGD } kd_optimizer_kind;
typedef enum kd_schedule_kind {
    KD_SCHEDULE_CONSTANT,
    KD_SCHEDULE_LINEAR,
    KD_SCHEDULE_COSINE,
    KD_SCHEDULE_WSD, /* warm-up, stable, then down over the last `decay` share */
} kd_schedule_kind;

typedef enum kd_nonfinite { KD_NONFINITE_STOP, KD_NONFINITE_SKIP } kd_nonfinite;

typedef struct kd_optim_options {
    int type;           /* kd_optimizer_kind */
    int schedule;       /* kd_schedule_kind */
    double lr, min_lr;  /* the schedule goes down to lr * min_lr */
    const char *warmup; /* "200 steps" or "2 %" of the run */
    const char *decay;  /* of wsd */
    double weight_decay, beta1, beta2, eps, momentum, clip;
    bool nesterov;
    int on_nonfinite;   /* kd_nonfinite */
    double skip_zscore; /* 0: off */
    int64_t max_skips;
} kd_optim_options;

extern const kd_option kd_optim_rows[];

/* Learning rate of update `step` (0-based) of `steps`: linear warm-up from 0, then the schedule.
 * Update 0 of a warm-up of w steps has lr / w. */
KD_MUST_CHECK kd_status kd_schedule_lr(double *lr, const kd_optim_options *options, int64_t step,
                                       int64_t steps);

/* Arrays parallel to the weights that the optimizer keeps: 2, 1 or 0. */
int kd_optim_moments(const kd_optim_options *options);

/*
 * One update in three parts, with a device copy of kd_step_scalars for each student: of every student
 * the norm, clip factor and verdict, where `losses` is f32 [terms]; of all together, whose scalars lie
 * one after the other, whether anything is updated; then of every student one launch per run of equal
 * weight decay, with the lr that the host wrote.
 */
KD_MUST_CHECK kd_status kd_optim_measure(kd_exec *exec, const kd_slab *slab,
                                         const kd_optim_options *options, const kd_tensor *losses,
                                         const kd_tensor *scalars);
KD_MUST_CHECK kd_status kd_optim_decide(kd_exec *exec, const kd_optim_options *options,
                                        const kd_tensor *guard, const kd_tensor *scalars);
KD_MUST_CHECK kd_status kd_optim_update(kd_exec *exec, const kd_slab *slab,
                                        const kd_optim_options *options, const kd_tensor *scalars);

#endif
