/*
 * kd/kd.h - all of libkd: distillation of a large teacher into a small student, on the CPU and on
 * NVIDIA GPUs.
 *
 *     kd/status.h      how a function says that it failed
 *     kd/log.h         progress and notices, on stderr
 *     kd/tensor.h      typed, strided views
 *     kd/device.h      where models run
 *     kd/model.h       Hugging Face directories: what they are, logits, new students
 *     kd/generate.h    a model continues a prompt
 *     kd/loss.h        the losses over rows of logits, features and relations
 *     kd/trainer.h     a run: configuration, estimate, training, evaluation
 *     kd/checkpoint.h  what a run left on disk
 *     kd/bench.h       how fast each op is here
 *     kd/options.h     options as rows, command lines
 *     kd/print.h       numbers as a person reads them
 *
 * A failure's message is kd_last_error().  Everything may be called from any thread; one object from
 * one thread at a time.  Paths are UTF-8 as the system has them; nothing is ever downloaded.
 */
#ifndef KD_KD_H
#define KD_KD_H

#include <kd/bench.h>
#include <kd/checkpoint.h>
#include <kd/device.h>
#include <kd/generate.h>
#include <kd/log.h>
#include <kd/loss.h>
#include <kd/model.h>
#include <kd/options.h>
#include <kd/print.h>
#include <kd/status.h>
#include <kd/tensor.h>
#include <kd/trainer.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the library that is linked, "0.1.0".  Never NULL, never freed. */
const char *kd_version(void);

/*
 * What this build can do, from its registries, on `out`.  `what`: "losses", "ops", "models",
 * "optimizers", "devices", or NULL for all.  An op's line names the devices that have it; a slot that
 * a device lacks is said, not left out.  `whole`: with the documentation of each loss.  `json`: one
 * object.  KD_EINVAL for another `what`, naming the nearest.
 */
KD_MUST_CHECK kd_status kd_list(FILE *out, const char *what, bool whole, bool json);

#ifdef __cplusplus
}
#endif
#endif
