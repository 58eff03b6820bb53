/* run.h - the sections of a run file as structs; private to train. */
#ifndef KD_RUN_H
#define KD_RUN_H

#include "train/train.h"

typedef struct kd_model_section {
    const char *model; /* directory */
    const char *label; /* "teacher", "student", "students[1]" */
    int dtype;         /* 0 f32, 1 bf16, 2 f8_e4m3 */
    int master;        /* 0: f32 */
    int recompute;     /* kd_recompute */
    bool trainable;
} kd_model_section;

typedef struct kd_data_section {
    const char *train[KD_MAX_SOURCES];
    double weight[KD_MAX_SOURCES];
    int sources;
    const char *valid;
    int64_t sequence;
    int pack; /* kd_pack */
    bool shuffle;
} kd_data_section;

typedef struct kd_batch_section {
    int64_t tokens, samples; /* global, per update; one of them */
    const char *micro;       /* samples, or "auto" */
    int64_t chunk;           /* rows of the head at a time; 0: chosen */
} kd_batch_section;

typedef struct kd_run_section {
    int64_t tokens, steps;
    double epochs;
    int64_t seed;
    const char *out, *device, *resume;
    int64_t log_every;
    bool deterministic, tf32, tensorboard;
} kd_run_section;

typedef enum kd_keep_best { KD_BEST_NONE, KD_BEST_KL, KD_BEST_PPL, KD_BEST_ACCURACY } kd_keep_best;

typedef struct kd_checkpoint_section {
    const char *every; /* "500 steps", "30 min", "never" */
    int64_t keep;
    int keep_best; /* kd_keep_best */
} kd_checkpoint_section;

typedef struct kd_eval_section {
    const char *every;
    int64_t tokens;
    unsigned metrics; /* bits: 1 kl, 2 ppl, 4 same_top */
} kd_eval_section;

typedef struct kd_dist_section {
    double timeout; /* seconds */
} kd_dist_section;

struct kd_run {
    kd_arena *arena;
    kd_node *root; /* merged files and overrides */
    bool parsed;
    kd_model_section models[KD_MAX_MODELS];
    int model_count;
    kd_term *terms;
    int term_count;
    bool bound; /* the terms to the models' layers */
    kd_logit_view logits;
    kd_data_section data;
    kd_optim_options optim;
    kd_batch_section batch;
    kd_run_section run;
    kd_checkpoint_section checkpoint;
    kd_eval_section eval;
    kd_dist_section dist;
    const kd_ranks *ranks; /* what this process is; NULL: as the environment says */
};

/* Fills the sections from the tree, once. */
KD_MUST_CHECK kd_status kd_run_parse(kd_run *run);

/* Updates of the run and samples of one update.  `train_tokens` 0: unknown (epochs are refused). */
KD_MUST_CHECK kd_status kd_run_length(int64_t *steps, int64_t *step_samples, const kd_run *run,
                                      int64_t train_tokens);

/* "500 steps" or "30 min" or "never": every `steps` updates or `seconds`; both 0: never. */
KD_MUST_CHECK kd_status kd_run_interval(int64_t *steps, double *seconds, const char *text,
                                        const char *key);

/* The effective configuration as one line of JSON; `text` lives in the arena. */
KD_MUST_CHECK kd_status kd_run_json(const char **text, kd_run *run);

kd_dtype kd_section_dtype(const kd_model_section *section);

#endif
