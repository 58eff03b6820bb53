/* metrics.h - reporting; private to train. */
#ifndef KD_METRICS_H
#define KD_METRICS_H

#include "train/tensorboard.h"

typedef struct kd_metrics {
    const char *path;
    int fd;
    kd_events events; /* the same for TensorBoard */
} kd_metrics;

/* Appends to out/metrics.jsonl after dropping what a resumed run will do again: records of steps >=
 * `step`, evaluations after that of step `evaluated` (-1: all).  To out/tensorboard too where
 * `tensorboard`. */
KD_MUST_CHECK kd_status kd_metrics_open(kd_metrics *metrics, kd_arena *arena, const char *out,
                                        int64_t step, int64_t evaluated, bool tensorboard);
void kd_metrics_close(kd_metrics *metrics);

/* What was written is on the disk. */
KD_MUST_CHECK kd_status kd_metrics_sync(const kd_metrics *metrics);
KD_MUST_CHECK kd_status kd_metrics_step(kd_metrics *metrics, const kd_step *step,
                                        const kd_step_result *result, int64_t tokens,
                                        double seconds, double tokens_per_s);
/* The accuracy is left out where it was not measured. */
KD_MUST_CHECK kd_status kd_metrics_evaluation(kd_metrics *metrics, const char *model, int64_t step,
                                              const kd_measure *nll, const kd_measure *kl,
                                              const kd_measure *same, const kd_measure *accuracy);

void kd_log_header(const kd_step *step);
void kd_log_step(const kd_step *step, const kd_step_result *result, double tokens_per_s,
                 double seconds_left, bool live);

#endif
