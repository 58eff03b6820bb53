/* session.h - everything a run opens, in the order in which it must be closed; private to train. */
#ifndef KD_SESSION_H
#define KD_SESSION_H

#include "train/run.h"

typedef struct kd_session {
    kd_run *run;
    kd_arena *arena;
    kd_ranks ranks;
    kd_device *device;
    kd_comm *comm;
    kd_model *models[KD_MAX_MODELS];
    int count;
    kd_step step;
    kd_loader *train, *valid;
    bool reads_data; /* kd_session_open's; else a length in epochs is refused */
    int64_t train_tokens, train_documents;
    double train_scored; /* share of tokens that count as targets */
    int64_t valid_documents, valid_tokens;
    int64_t classes; /* columns of every softmax */
    int64_t inputs;  /* numbers of a sample; 0: the models are of tokens */
    kd_tokenizer_info tokenizer;
    int64_t steps, step_samples, micro, accumulate;
    size_t memory;        /* of the device: free when it was opened, or after running short */
    const char *contract; /* for equal bits */
    bool agreed;          /* all ranks know that they stop */
} kd_session;

/* Terms over taps meet what every config.json offers, before any model is opened; those that keep banks
 * meet the training samples, which are read for that. */
KD_MUST_CHECK kd_status kd_bind_terms(kd_run *run);

/* Whether logits of both are of the same things, as far as config.json says; KD_EINVAL where one is of
 * samples, KD_EFORMAT where sizes or names of classes differ. */
KD_MUST_CHECK kd_status kd_check_pair(const char *label, const kd_config *config, const char *other,
                                      const kd_config *others);

/* Reads every config.json, checks vocabularies, settles micro and chunk and plans memory; opens no
 * weights, and data only where `reads_data` lets it count the tokens of an epoch.  `micro` 0: as the
 * run says. */
KD_MUST_CHECK kd_status kd_session_plan(kd_session *session, kd_run *run, kd_device *device,
                                        int64_t micro);

/* Bytes of device memory: models, then the step. */
size_t kd_session_bytes(const kd_session *session);

/* Bytes of the device that a plan may fill: the rest is the system's, the libraries' and the code's. */
double kd_session_usable(const kd_session *session);

/* Whether a micro-batch of so many samples fits `device` beside `reserve` bytes. */
KD_MUST_CHECK kd_status kd_micro_fits(bool *fits, kd_run *run, kd_device *device, int64_t micro,
                                      double reserve);

/* What stood at the plan's peak: equal names become one entry, the largest come first. */
int kd_plan_entries(kd_plan_entry *entries, int limit, const kd_stack *stack);

/* The plan as a table on the log: who takes how much, and of what the step's peak is made. */
void kd_session_log_plan(const kd_session *session);

/* After a KD_ENOMEM although the plan fits, whose message is the last one: gives the memory back, logs
 * the plan, and fails with what is free now and the largest micro-batch that fits it. */
kd_status kd_session_short(kd_session *session);

/* Plans, then opens data, models and memory for real. */
KD_MUST_CHECK kd_status kd_session_open(kd_session *session, kd_run *run);
void kd_session_close(kd_session *session);

/* Says what was opened, for a run that writes to `out`. */
KD_MUST_CHECK kd_status kd_session_log(const kd_session *session, const char *out);

/* Of the parts of kd_session_open, in ranks.c: finds which rank this is, opens its device and joins
 * the others; and, when all is planned, that all ranks mean the same run. */
KD_MUST_CHECK kd_status kd_session_join(kd_session *session);
KD_MUST_CHECK kd_status kd_session_agree(kd_session *session);

/* How a run ended on this rank: after a failure of its own the others shall not wait for it, and the
 * message says whose it is. */
kd_status kd_session_leave(const kd_session *session, kd_status status);

#endif
