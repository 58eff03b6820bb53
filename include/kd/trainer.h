/*
 * kd/trainer.h - a run: from a configuration to a trained student.
 *
 *     kd_run *run;
 *     kd_run_create(&run);
 *     kd_run_file(run, "run.yaml");  kd_run_set(run, "run.steps", "20");
 *     kd_run_train(run);
 *     kd_run_destroy(run);
 */
#ifndef KD_TRAINER_H
#define KD_TRAINER_H

#include <kd/device.h>

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kd_run kd_run;

KD_MUST_CHECK kd_status kd_run_create(kd_run **run);
void kd_run_destroy(kd_run *run); /* NULL is fine */

/* Merges a YAML file over what is there. */
KD_MUST_CHECK kd_status kd_run_file(kd_run *run, const char *path);

/* Sets one option, "loss.kl.temperature"; `text` is read as YAML.  Wins over files. */
KD_MUST_CHECK kd_status kd_run_set(kd_run *run, const char *path, const char *text);

/* Every option of every section with its range, unit and default. */
void kd_run_help(FILE *out);

/* The effective configuration, defaults included, as YAML that parses back to it; numbers have 15
 * digits. */
KD_MUST_CHECK kd_status kd_run_print(kd_run *run, FILE *out);

/* Trains until the run's tokens, steps or epochs are done, or goes on with an interrupted run.
 * Progress goes to the log, metrics to out/metrics.jsonl, checkpoints to out/checkpoint-NNNNNN, the
 * finished student to out itself.
 *
 * TERM, USR1 or the first INT end it in KD_ESTOPPED, after the micro-batch in hand and a checkpoint of
 * the last whole step; what was broken off is done again by who resumes.  While the run is opened
 * there is nothing to save.  A second INT ends the process.
 *
 * Ranks: each process calls it with the same run; rank 0 alone writes.  KD_EPEER when another stopped
 * or does not answer within dist.timeout.  On the CPU once in a process, since MPI starts but once. */
KD_MUST_CHECK kd_status kd_run_train(kd_run *run);

/* Checks the configuration and opens everything it names; trains nothing, writes nothing. */
KD_MUST_CHECK kd_status kd_run_validate(kd_run *run);

/* ---- ranks ------------------------------------------------------------------------------------ */

/* What a run that is started here would find.  torchrun, mpirun and srun start a process per rank;
 * kd_run_train reads which it is from their environment. */
typedef struct kd_rank_info {
    const char *launcher; /* "torchrun", "Open MPI", "PMI", "SLURM"; NULL: one process */
    int rank, size;
    int local;                /* among those of its machine; -1: not known */
    const char *communicator; /* of run.device auto: "solo", "nccl", "mpi", "nothing" (on the CPU
                                 where the launcher starts no MPI) */
    char meeting[320];        /* where NCCL's ranks would find each other; "": nowhere */
    char mpi[128], nccl[192]; /* versions, or why there is none */
} kd_rank_info;

/* KD_EINVAL where the environment contradicts itself; the versions are filled in any case. */
KD_MUST_CHECK kd_status kd_ranks_describe(kd_rank_info *info);

/* ---- the plan --------------------------------------------------------------------------------- */

/* One line of the plan: what takes device memory, in bytes. */
typedef struct kd_plan_entry {
    char name[64];
    double bytes;
} kd_plan_entry;

/* What a run would take, from config.json alone: no weights, no data (but how many samples there are,
 * where a loss keeps banks of them), no such device. */
typedef struct kd_estimate {
    char student[96], teacher[96];
    int64_t student_parameters, teacher_parameters; /* teacher 0: none */
    int64_t micro, sequence, accumulate, updates, chunk, vocabulary;
    double student_bytes; /* weights, gradients, moments, masters, banks */
    double bank_bytes;    /* of that: of losses that keep banks */
    double teacher_bytes;
    double step_bytes;    /* planned peak of activations, logits and scratch, and batches */
    double device_bytes;  /* of the device asked for */
    double usable_bytes;  /* of those, that a run may fill: the same for kd_run_train */
    double reserve_bytes; /* allowance for libraries and context of a device that is not here */
    double peak_bytes;    /* student, teacher, step and reserve */
    char peak_phase[32];  /* "head and loss" */
    kd_plan_entry entries[16]; /* the largest of what stands at the peak */
    int entry_count;
    double flops_per_token, teacher_flops, student_flops;
    double full_logits_bytes; /* what two [B*T, V] logits would take */
    double checkpoint_bytes;
    int64_t checkpoints;
    int64_t largest_micro;    /* 0: not even one sample fits */
    kd_plan_entry instead[2]; /* keys that would take less, and by how many bytes */
    int instead_count;
    double predicted_tokens_per_s; /* 0: nothing to predict with */
    bool fits;
} kd_estimate;

/* `device`: "cpu" or "cuda" of this machine, or a GPU that need not be here: "h100-80g", or "80GB" of
 * one like it.  KD_OK also when it does not fit. */
KD_MUST_CHECK kd_status kd_run_estimate(kd_estimate *estimate, kd_run *run, const char *device);

/* ---- evaluation ------------------------------------------------------------------------------- */

/* A mean and its standard error over documents. */
typedef struct kd_measure {
    double mean, error;
} kd_measure;

typedef struct kd_eval_row {
    const char *name;
    int64_t parameters;
    int64_t bytes;       /* of its weight files */
    double ms_per_token; /* of a forward pass over the data */
    double nll;          /* mean over tokens */
    kd_measure ppl;
    kd_measure kl;       /* to the teacher; NaN for the teacher */
    kd_measure same_top; /* share; NaN for the teacher */
    kd_measure
        accuracy;    /* share of rows whose first largest class is the label; of samples, and where
                            there is a profile; else NaN */
    double retained; /* log ppl(teacher) / log ppl(model) */
} kd_eval_row;

typedef struct kd_eval_pair {
    int a, b;      /* rows */
    kd_measure kl; /* KL of a minus KL of b, paired over documents */
    int64_t better, documents;
} kd_eval_pair;

enum { KD_MAX_EVAL_ROWS = 16 };
enum { KD_EVAL_POSITIONS = 21, KD_EVAL_ENTROPIES = 25, KD_EVAL_CONFIDENCES = 15 };

/* Means over the tokens of a bin: NaN where it has none, kl and same_top also without a teacher. */
typedef struct kd_eval_bin {
    int64_t tokens;
    double nll, kl, same_top;
} kd_eval_bin;

typedef struct kd_eval_trust {
    int64_t tokens;
    double confidence, accuracy;
} kd_eval_trust;

/* Where a model is good and how well it knows that; of its softmax at T = 1. */
typedef struct kd_eval_profile {
    int64_t tokens;
    kd_eval_bin position[KD_EVAL_POSITIONS]; /* i: 2^i to 2^(i+1) - 1 tokens of context */
    kd_eval_bin entropy[KD_EVAL_ENTROPIES]; /* i: the teacher's is i/2 to (i+1)/2 nats; the last: or
                                                more; empty without a teacher */
    kd_eval_trust trust[KD_EVAL_CONFIDENCES]; /* i: the largest probability is i/15 to (i+1)/15 */
    double mean_entropy;                      /* nats */
    double confidence, accuracy;
    double ece; /* sum over trust of tokens * |confidence - accuracy| / all (Naeini et al., 2015) */
} kd_eval_profile;

typedef struct kd_eval_report {
    kd_eval_row rows[KD_MAX_EVAL_ROWS]; /* the teacher first, where there is one */
    int count;
    bool has_teacher;
    bool samples; /* the models classify samples: each is a token and a document */
    int64_t tokens, documents;
    double unigram_ppl; /* of the training tokens, add-one; NaN without training data */
    double kl_quantile[KD_MAX_EVAL_ROWS][4]; /* 50 %, 90 %, 99 %, largest */
    kd_eval_pair pair; /* the last row against the one before it; documents 0: none */
    kd_eval_profile profile[KD_MAX_EVAL_ROWS]; /* tokens 0: not asked for */
} kd_eval_report;

typedef struct kd_eval_options {
    const char *teacher;                  /* directory or NULL */
    const char *models[KD_MAX_EVAL_ROWS]; /* directories */
    const char *names[KD_MAX_EVAL_ROWS];  /* NULL: the directory's last component */
    int model_count;
    const char *data;                /* held-out tokens */
    const char *train;               /* for the unigram floor; NULL: none */
    const char *device;              /* NULL: auto */
    const char *dtype;               /* as of kd_logits_options; NULL: f32 */
    const char *teacher_dtype;       /* NULL: dtype */
    int64_t sequence, micro, tokens; /* 0: 512, 4, all; of samples as many rows at a time */
    bool profile;                    /* fill report.profile, which takes a look at every logit */
} kd_eval_options;

/* Strings of the report are those of `options`. */
KD_MUST_CHECK kd_status kd_evaluate(kd_eval_report *report, const kd_eval_options *options);

/* The report as one JSON object on `out`, or as the file `path`; the other is NULL. */
KD_MUST_CHECK kd_status kd_evaluate_write(FILE *out, const char *path, const kd_eval_report *report,
                                          const kd_eval_options *options);

#ifdef __cplusplus
}
#endif
#endif
