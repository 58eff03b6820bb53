/*
 * train.h - the training run: configuration, step, evaluation, checkpoints, metrics.
 *
 * run.c (sections of a run file) session.c (opens what a run names) bind.c step*.c trainer.c evaluate.c
 * profile.c checkpoint_*.c manifest.c output.c (their own header: checkpoint.h) metrics.c
 * tensorboard.c estimate.c ranks.c
 */
#ifndef KD_TRAIN_H
#define KD_TRAIN_H

#include "data/data.h"
#include "dist/dist.h"
#include "loss/loss.h"
#include "model/model.h"
#include "optim/optim.h"

#include <kd/trainer.h>

enum {
    KD_MAX_MODELS = KD_MAX_STUDENTS,
    KD_BUCKET_ELEMENTS = 8 << 20,
    KD_MAX_RECORDINGS = 9,
    KD_SEEN_ROWS = 16
};

/* ---- vocabularies ----------------------------------------------------------------------------- */

/* The tokenizer of all folders that have one, and the columns of every softmax: the smallest of the
 * vocabularies and the tokenizer's size.  KD_EFORMAT when two tokenizers differ, naming both
 * fingerprints, or when one has an id that its model has not; and for models of samples, whose samples
 * and classes are the same.  KD_EINVAL when some are of samples and some of tokens. */
KD_MUST_CHECK kd_status kd_common_tokenizer(kd_tokenizer_info *common, int64_t *classes,
                                            kd_model *const *models, int count);

/* ---- one optimizer step ----------------------------------------------------------------------- */

/* What a step says of one trained model, read one step later. */
typedef struct kd_student_result {
    double loss;               /* weighted sum of the terms */
    double term[KD_MAX_TERMS]; /* mean over the counted rows, T^2 applied, weight not */
    double same_top;           /* share; NaN where no term has a teacher */
    double gradient_norm, lr;
    double loss_z, norm_z; /* kd_step_scalars */
    int verdict;           /* kd_verdict */
} kd_student_result;

typedef struct kd_step_result {
    int64_t step;
    int64_t valid;                            /* counted rows, all ranks */
    kd_student_result student[KD_MAX_MODELS]; /* indexed by model */
    int64_t skips, in_row; /* of kd_guard; in_row 0: the step updated its students */
    char why[192];         /* it did not */
} kd_step_result;

/* One of models[n].  A frozen teacher and a student differ in their slab alone. */
typedef struct kd_member {
    kd_model *model;
    kd_taps taps;
    kd_step_scalars host; /* the step's values, before upload */
    kd_tensor scalars;    /* device copy, as bytes: a part of the step's */
    kd_tensor totals;     /* f32 [KD_MAX_TERMS + 1] sums over the step's rows */
    kd_buckets buckets;
} kd_member;

/* What a step reads back of one model. */
typedef struct kd_pending {
    float totals[KD_MAX_TERMS + 1];
    kd_step_scalars scalars;
} kd_pending;

/* A part of the step that was recorded, or is to be when it comes again. */
typedef struct kd_recording {
    int64_t key; /* what its launches depend on */
    kd_graph *graph;
} kd_recording;

typedef struct kd_step {
    kd_device *device;
    kd_exec exec;
    kd_stack stack;
    kd_comm *comm;
    kd_member members[KD_MAX_MODELS];
    int count;
    kd_objective objective;
    kd_objective measures; /* per model: cross entropy, then forward KL to the reference */
    kd_term measure_terms[2 * KD_MAX_MODELS];
    kd_optim_options optim;
    kd_tensor scalars; /* of all members; first those of the trained, whose bytes `trained` are */
    kd_tensor trained;
    kd_tensor guard;     /* kd_guard, as bytes */
    int64_t steps;       /* of the run, for schedules */
    int64_t rows;        /* N of a micro-batch */
    int64_t inputs;      /* D of its samples; 0: tokens */
    int64_t target_rows; /* N rounded up to the chunk */
    int64_t index;       /* of the step in hand */
    uint64_t seed;       /* of what it draws */
    kd_batch batch;      /* device copies of the micro-batch in hand */
    kd_targets targets;
    kd_tensor samples, *negatives;    /* of it, as kd_tapped_batch has them: [objective.count] */
    int32_t *host_negatives;          /* [rows, most], where the device has memory of its own */
    kd_event *passed;                 /* when banks are as the last micro-batch left them */
    bool passing;                     /* there was one */
    int32_t *host_rows, *host_labels; /* [target_rows] */
    float *host_weight;               /* [rows] */
    float *host_values;               /* [count, 6, target_rows]: measured values per row */
    float *host_logits;               /* some rows of them; NULL: no certainty is measured */
    kd_arena *arena;
    kd_stack fixed;            /* scalars, totals, batch tensors: as long as the step lives */
    kd_step_result results[2]; /* of the last two steps */
    kd_pending *pending;       /* [2][KD_MAX_MODELS] of the last two steps; the device writes it */
    kd_event *done[2];         /* when it has */
    kd_recording recordings[KD_MAX_RECORDINGS];
    int recording_count;
} kd_step;

typedef struct kd_step_options {
    kd_device *device;
    kd_comm *comm;
    kd_model **models; /* [count]; trained where slab.trainable */
    int count;
    const kd_term *terms; /* bound */
    int term_count;
    int64_t classes, rows;
    int64_t inputs; /* of a row, where the models are of samples; 0 */
    kd_logit_view logits;
    bool certainty; /* measured too: entropy, confidence, correct; of samples in any case */
    bool timing;    /* nothing of that: passes and heads alone */
    int64_t chunk;  /* 0: kd_objective_chunk */
    kd_optim_options optim;
    int64_t steps;
    uint64_t seed;
} kd_step_options;

/* Plans: afterwards stack.peak, peak_phase and peak_entries tell what a step takes.  Nothing of
 * size has been allocated, and the models may be planning ones. */
KD_MUST_CHECK kd_status kd_step_plan(kd_step *step, const kd_step_options *options);

/* Allocates what the plan found. */
KD_MUST_CHECK kd_status kd_step_open(kd_step *step);
void kd_step_close(kd_step *step);
size_t kd_step_bytes(const kd_step *step); /* planned: stack and batch tensors */

/* Copies a micro-batch and its targets to the device. */
KD_MUST_CHECK kd_status kd_step_upload(kd_step *step, const kd_micro_batch *micro);

/* After that, for a micro-batch that trains: draws what losses that keep banks tell its samples from. */
KD_MUST_CHECK kd_status kd_step_draw(kd_step *step, const kd_micro_batch *micro);

/*
 * Runs `part` on the step's exec.  On a device with graphs: the first time as it is, which loads what
 * is loaded lazily; the second time it is recorded; from then on the recording runs.  Calls of one
 * `key` must enqueue the same work on the same memory.  What finds no room is never recorded.
 */
typedef kd_status (*kd_step_part)(kd_step *step, bool last);
KD_MUST_CHECK kd_status kd_step_play(kd_step *step, int64_t key, kd_step_part part, bool last);
void kd_step_forget(kd_step *step); /* all recordings */

/* Parts of it, for one that looks closer (step_look.c): what a step starts with, `valid` rows counted
 * by all ranks; the forward passes that its objective reads; and those with losses and gradients of
 * the micro-batch that was uploaded, reduced after the last. */
KD_MUST_CHECK kd_status kd_step_begin(kd_step *step, int64_t index, double valid);
KD_MUST_CHECK kd_status kd_step_forward(kd_step *step);
KD_MUST_CHECK kd_status kd_step_passes(kd_step *step, bool last);

/* The seven parts of design.md §3, in order; enqueues and does not wait.  KD_ESTOPPED, on all ranks,
 * before a micro-batch when one was asked to stop: nothing has been updated, and the step's result is
 * none. */
KD_MUST_CHECK kd_status kd_step_run(kd_step *step, const kd_step_batch *batch, int64_t index);

/* The result of step `index`, which must be one of the last two; waits for it.  KD_ENONFINITE names
 * step, model and component when that step stopped the run: neither it nor any step after it updated
 * anything. */
KD_MUST_CHECK kd_status kd_step_result_of(const kd_step_result **result, kd_step *step,
                                          int64_t index);

/* After such a failure, on all ranks, with the batch of that step: takes it again and fails with a
 * message that says where the first number is that is not finite. */
kd_status kd_step_look(kd_step *step, const kd_step_batch *batch, int64_t index);

/* "step 733: <why> (<where>); nothing was updated", and how often in a row: KD_ENONFINITE. */
kd_status kd_step_stop(const kd_step *step, int64_t index, const char *why, const char *where);

/* What decides about updates, between steps: for a checkpoint, and from one. */
KD_MUST_CHECK kd_status kd_step_save_guard(kd_guard *guard, kd_step *step);
KD_MUST_CHECK kd_status kd_step_load_guard(kd_step *step, const kd_guard *guard);

/* ---- evaluation ------------------------------------------------------------------------------- */

/*
 * Values per counted row of one micro-batch: row 0 of `losses` is the cross entropy at T = 1, row 1,
 * on every model but the reference (the first frozen one), the forward KL to it; then same_top.
 * Logits are f32.
 */
typedef struct kd_measured {
    kd_row_results device;  /* of the model in hand */
    float *nll, *kl, *same; /* host [target_rows]; kl and same NaN for the reference */
    /* With certainty, which models of samples are measured with, of the softmax at T = 1: its entropy
     * in nats, the largest probability, and 1 where the first class that has it is the label; else
     * NULL. */
    float *entropy, *confidence, *correct;
    double seconds; /* forward pass and head */
} kd_measured;

int kd_step_reference(const kd_step *step); /* index of the reference model; -1: none */

/* The step's own host arrays for `model`'s values. */
kd_measured kd_step_values(const kd_step *step, int model);

/* Forward passes of all models, then the measures of those in `wanted` (bit m: model m), nothing
 * trained.  out[m].nll, kl and same are the caller's. */
KD_MUST_CHECK kd_status kd_step_measure(kd_step *step, const kd_micro_batch *micro, unsigned wanted,
                                        kd_measured *out);

/* Sums per document, from which means and their standard errors over documents come. */
typedef struct kd_scores {
    int64_t documents, tokens;
    double *count;           /* [documents] counted tokens */
    double *nll, *kl, *same; /* [documents] sums */
    double *correct;         /* the same, of rows measured with certainty; else NaN */
    float *kl_values;        /* [capacity] of every token; NULL: not kept */
    int64_t kl_count, capacity;
    kd_eval_profile *profile; /* sums, until kd_profile_finish; NULL: none is made */
} kd_scores;

KD_MUST_CHECK kd_status kd_scores_create(kd_scores *scores, kd_arena *arena, int64_t documents,
                                         int64_t capacity);
void kd_scores_reset(kd_scores *scores);
void kd_scores_add(kd_scores *scores, const kd_micro_batch *micro, const kd_measured *measured);
kd_measure kd_scores_mean(const kd_scores *scores, const double *sums);

/* Adds a micro-batch that was measured with certainty; `teacher` may be NULL.  Then makes means of
 * the sums. */
void kd_profile_add(kd_eval_profile *profile, const kd_micro_batch *micro,
                    const kd_measured *measured, const kd_measured *teacher);
void kd_profile_finish(kd_eval_profile *profile);

/* One pass of `loader` (seeked to its start), which deals its samples to the step's ranks; all of them
 * get the sums of all.  `scores` is indexed by model.  KD_ESTOPPED, on all ranks, before a micro-batch
 * when one was asked to stop. */
KD_MUST_CHECK kd_status kd_step_evaluate(kd_step *step, kd_loader *loader, unsigned wanted,
                                         kd_scores *scores);

/* ---- checkpoints ------------------------------------------------------------------------------ */

/* All that a resumed run needs and no slab holds. */
typedef struct kd_progress {
    int64_t step;   /* steps done; with or without an update */
    int64_t tokens; /* taken by them, all ranks */
    kd_cursor cursor;
    int64_t best_step; /* of the best evaluation; -1: none yet */
    double best;
    double seconds; /* spent training */
    kd_guard guard;
} kd_progress;

typedef struct kd_checkpoint {
    kd_model *const *students; /* trained models; the first is the folder's own, others lie in its
                                  folder students/<label> */
    int student_count;
    const char *tokenizer_dir; /* copied from; NULL: none */
    const char *config;        /* effective configuration, JSON text */
    const char *contract;      /* what must be the same for equal bits: device, threads, types */
    const json_t *history;     /* array of log records for trainer_state.json; may be NULL */
    int64_t steps;             /* of the whole run, for trainer_state.json */
    double epoch;              /* passes over the data so far, for trainer_state.json */
    kd_progress progress;
} kd_checkpoint;

/* out/checkpoint-000500: staged, fsynced, renamed, parent fsynced.  A Hugging Face folder with
 * trainer_state.json, engine/ and MANIFEST.json.  `path` (may be NULL) lives in `arena`. */
KD_MUST_CHECK kd_status kd_checkpoint_save(const char **path, kd_arena *arena, const char *out,
                                           const kd_checkpoint *checkpoint);

/* Weights, masters, moments and progress; KD_EFORMAT naming file and both values when the folder is
 * damaged or belongs to another model, contract or version. */
KD_MUST_CHECK kd_status kd_checkpoint_load(kd_progress *progress, const char *dir,
                                           const kd_checkpoint *expected);

/* Of a checkpoint's folder; takes a long long. */
#define KD_CHECKPOINT_NAME "checkpoint-%06lld"
int64_t kd_checkpoint_step(const char *dir); /* -1: its name is none of a checkpoint */

/* The newest folder whose manifest verifies; NULL: there is no folder of a checkpoint's name.  Warns of
 * a damaged one that it passes over; KD_EFORMAT when all are. */
KD_MUST_CHECK kd_status kd_checkpoint_latest(const char **dir, kd_arena *arena, const char *out);

/* Sizes and hashes of every file in MANIFEST.json; KD_EFORMAT names the first that differs, and for
 * a safetensors file the tensor. */
KD_MUST_CHECK kd_status kd_checkpoint_verify(const char *dir);

/* Keeps the newest `keep` and the one of `best_step` (-1: none). */
KD_MUST_CHECK kd_status kd_checkpoint_rotate(const char *out, int keep, int64_t best_step);

/* ---- the folder that a run writes ------------------------------------------------------------- */

/* Makes `out` and takes it until `*lock` is closed or this process dies; out/.lock then says who we are.
 * KD_EFORMAT names who has it. */
KD_MUST_CHECK kd_status kd_output_lock(int *lock, const char *out);

/* KD_EIO when `out` is no longer the folder that `lock` was taken in. */
KD_MUST_CHECK kd_status kd_output_check(int lock, const char *out);

/* Removes what runs that died left half written, a line for each, and puts back a checkpoint that was
 * being replaced.  Whoever calls it holds the lock. */
KD_MUST_CHECK kd_status kd_output_sweep(const char *out);

#endif
