/*
 * loss.h - what is minimised: a list of terms over taps.  Knows no model.
 *
 * objective.c head.c logit_view.c zscores.c terms.c tapped*.c projector.c patches.c feature.c maps.c negatives.c; one file for each row of
 * loss_list.h, whose heads texts.cmake makes a table of
 */
#ifndef KD_LOSS_INTERNAL_H
#define KD_LOSS_INTERNAL_H

#include "ops/ops.h"

#include <kd/loss.h>

/* ---- terms ------------------------------------------------------------------------------------ */

/* A weight that moves: from `from` at step 0 to `to` at step `steps` and after, linearly. */
typedef struct kd_ramp {
    double from, to;
    int64_t steps; /* 0: always `to` */
} kd_ramp;

double kd_ramp_at(const kd_ramp *ramp, int64_t step);

typedef struct kd_tapped kd_tapped;

typedef struct kd_term {
    const char *name; /* the user's: "kl" */
    kd_ramp weight;
    int student; /* index into models */
    int teacher; /* index into models; -1: the term reads no teacher */
    /* Over rows of logits: */
    kd_row_kind kind;
    double temperature;
    bool t_squared;   /* the loss is multiplied with T^2, so that T does not scale the gradient */
    bool standardise; /* over z-scores of both sides' logits */
    double option, option2; /* beta, lambda, smoothing; unused by terms without */
    kd_tapped *tapped;      /* over taps instead, and so; or NULL */
} kd_term;

/* What of both models' logits the terms over them see in training.  Evaluation sees all classes, in f32. */
typedef enum kd_others {
    KD_OTHERS_TAIL,         /* together one class, of both */
    KD_OTHERS_RENORMALISED, /* of probability 0 under the teacher; the student's softmax has them */
    KD_OTHERS_RESTRICTED, /* not there: both softmaxes are over the K, of terms that read a teacher */
} kd_others;

typedef struct kd_logit_view {
    bool f32;         /* else in the models' type */
    int64_t top_k;    /* of the teacher's classes the largest; 0: all */
    kd_others others; /* what the other classes are then */
} kd_logit_view;

/* `loss:` of a run file: name -> {type, weight, temperature, t_squared, the type's option}.  Each
 * term is made once per student, those over logits before those over z-scores of them and these
 * before those over taps; its teacher is teachers[0], or, without a teacher, the other student (mutual learning).  `alpha: a` stands for
 * ce (1 - a) and kl a; `logits` and `top_k` are kd_logit_view. */
KD_MUST_CHECK kd_status kd_terms_parse(kd_term **terms, int *count, kd_logit_view *logits,
                                       kd_arena *arena, const kd_node *loss, const int *students,
                                       int student_count, const int *teachers, int teacher_count);

/* Of `loss` with such terms, KD_EINVAL where one cannot be computed from the K classes: logit_view.c. */
KD_MUST_CHECK kd_status kd_logit_view_parse(kd_logit_view *logits, kd_arena *arena,
                                            const kd_node *loss);
KD_MUST_CHECK kd_status kd_logit_view_check(const kd_logit_view *logits, const kd_node *loss,
                                            const kd_term *terms, int count);
/* Whether terms that read a teacher are over its K classes alone in training. */
static inline bool kd_logit_view_restricts(const kd_logit_view *logits)
{
    return logits->top_k > 0 && logits->others == KD_OTHERS_RESTRICTED;
}
/* Whether in training nobody reads every class of the student: neither a term of its own nor one that it
 * teaches. */
bool kd_logit_view_is_sparse(const kd_logit_view *logits, const kd_term *terms, int count,
                             int student);
/* Whether a key of `loss` is one of these and no term's name. */
bool kd_logit_view_has(const char *key);
KD_MUST_CHECK kd_status kd_logit_view_json(json_t *loss, const kd_logit_view *logits);
KD_MUST_CHECK kd_status kd_logit_view_print(const char **text, kd_arena *arena,
                                            const kd_logit_view *logits);
void kd_logit_view_help(void *file);

/* The kind called `type`, "forward_kl" or short "kl"; KD_EINVAL names the nearest. */
KD_MUST_CHECK kd_status kd_term_kind(kd_row_kind *kind, const char *type);

/* "0.1 ce + 0.9 forward_kl(teacher || student), T 2, T^2 on": what the log states. */
KD_MUST_CHECK kd_status kd_terms_print(const char **text, kd_arena *arena, const kd_term *terms,
                                       int count, int student);

/* `root` gets "loss", from which kd_terms_parse makes the same terms. */
KD_MUST_CHECK kd_status kd_terms_json(json_t *root, const kd_term *terms, int count,
                                      const kd_logit_view *logits);

/* Options of every term on `file`, a FILE *. */
void kd_terms_help(void *file);

/* ---- feature and relation losses: loss_list.h ------------------------------------------------- */

/*
 * A loss over taps is one function over ops.  It has a value per unit, and units are the rows of its
 * first operand: tokens of [N, ...] taps, samples of [B, ...] ones.  The term is the mean over units;
 * what else a formula divides by is in the unit's value.
 */
typedef enum kd_unit { KD_UNIT_TOKEN, KD_UNIT_SAMPLE } kd_unit;

/* Whatever a loss may read; each says which in its `reads`.  f32 or bf16 unless said. */
typedef struct kd_feature_args {
    kd_tensor student, student_q, student_k;       /* taps of the student */
    kd_tensor d_student, d_student_q, d_student_k; /* same type and shape; absent: value only */
    kd_tensor teacher, teacher_q, teacher_k;
    kd_tensor d_teacher;    /* of a loss that trains the teacher's projector; absent: not wanted */
    kd_tensor log_variance; /* f32 [C], a parameter */
    kd_tensor d_log_variance;
    kd_tensor student_lse, teacher_lse; /* f32 [H, N] of attention; absent: found again */
    kd_tensor samples;                  /* i32 [B]: which of the data set's */
    kd_tensor negatives;                /* i32 [B, K]: others of them */
    kd_tensor student_bank;             /* f32 [n, D], state */
    kd_tensor teacher_bank;             /* f32 [n, D], state */
    kd_tensor partition;                /* f32 [2], state; 0: not known yet */
    kd_tensor documents;                /* i32 [documents + 1] first rows, then their number */
    kd_tensor weight;                   /* f32 [units], a factor of each; 0: not read */
    kd_tensor scale;                    /* f32 [1] */
    kd_tensor loss;                     /* f32 [units] */
    const void *options;                /* as the type's rows parsed them */
} kd_feature_args;

enum { KD_MAX_READS = 12 };

typedef struct kd_feature_type {
    const char *name;
    const char *help; /* one line */
    kd_unit unit;
    kd_read reads[KD_MAX_READS]; /* the first has the units; each is a field of kd_feature_args */
    const kd_option *options;    /* into a struct of at most KD_FEATURE_OPTION_BYTES; NULL: none */
    bool relates; /* a unit's value depends on the other units: they are to be of the whole batch */
    bool places; /* compares places of maps: rows of features, with one each, would teach nothing */
    /*
     * loss[u] = weight[u] value[u], and where its gradient is present
     * d_x += scale[0] sum over u of weight[u] d value[u] / d x.
     * A unit of weight 0 is not read, and counts in no other unit's value nor in the state.
     * State is read, then renewed, whether gradients are present or not.
     * KD_EINVAL for shapes that do not go together; nothing is written then.
     */
    kd_status (*run)(kd_exec *exec, const kd_feature_args *args);
    float (*begin)(const void *options); /* of every element of a parameter; NULL: there is none */
} kd_feature_type;

/* One name per row of loss_list.h, and kd_feature_<name> beside the loss. */
typedef enum kd_feature_kind {
#define KD_FEATURE(name) KD_FEATURE_##name,
#include "loss/loss_list.h"
#undef KD_FEATURE
    KD_FEATURE_COUNT
} kd_feature_kind;

#define KD_FEATURE(name) extern const kd_feature_type kd_feature_##name;
#include "loss/loss_list.h"
#undef KD_FEATURE

extern const kd_feature_type *const kd_feature_types[KD_FEATURE_COUNT + 1]; /* NULL at the end */

/* The tensor that a read names; `gradient`: its "d_". */
kd_tensor *kd_feature_operand(kd_feature_args *args, const char *name, bool gradient);

/* Every number in `shape` of a read. */
int kd_read_rank(const kd_read *read);

/* How many elements a parameter has: its one letter's dimension of the first operand. */
int64_t kd_parameter_elements(const kd_feature_type *type, const kd_read *parameter,
                              const kd_tensor *first);

/* Runs the loss after what holds for all: operands that are there, their ranks and types, as many
 * weights and values as units.  The message of a failure begins with the loss's name. */
KD_MUST_CHECK kd_status kd_feature_run(kd_exec *exec, const kd_feature_type *type,
                                       const kd_feature_args *args);

/* ---- negatives: negatives.c -------------------------------------------------------------------- */

/* Which samples of a data set may be negatives of which: those of other classes. */
typedef struct kd_crd_classes {
    int64_t samples;
    const int32_t *labels; /* below 0: not known; NULL: none is */
    const int64_t *order;  /* with labels: 2^32 label + sample, ascending */
} kd_crd_classes;

/* `labels` [samples], which stay the caller's and must live as long, or NULL. */
KD_MUST_CHECK kd_status kd_crd_classes_make(kd_crd_classes *classes, kd_arena *arena,
                                            const int32_t *labels, int64_t samples);

/* out [batch, k]: for each of samples [batch], k negatives.  The same for the same seed, step and sample,
 * wherever in a batch and on whatever rank it stands.  KD_EINVAL where a sample is none of the data
 * set's, or has no negatives. */
KD_MUST_CHECK kd_status kd_crd_negatives(int32_t *out, const kd_crd_classes *classes,
                                         const int32_t *samples, int64_t batch, int64_t k,
                                         uint64_t seed, int64_t step);

/* ---- z-scores of logits ------------------------------------------------------------------------ */

/* (z - mean) / (deviation + 1e-7) of each row, its deviation over C - 1 (Sun et al. 2024). */
typedef struct kd_zscores {
    kd_tensor y; /* f32 [n, C] */
    kd_tensor weight, bias, mean, rstd;
} kd_zscores;

/* Takes what it holds from the stack. */
KD_MUST_CHECK kd_status kd_zscores_make(kd_zscores *scores, kd_exec *exec, const kd_tensor *logits);

/* d f32 [n, C] of the same logits, from the gradient that has taken the place of scores->y. */
KD_MUST_CHECK kd_status kd_zscores_backward(kd_exec *exec, const kd_tensor *d,
                                            const kd_tensor *logits, const kd_zscores *scores);

/* ---- projectors ------------------------------------------------------------------------------- */

/*
 * kinds, their formulas and options: kd/loss.h.  The parameters lie in the student's slab behind its own;
 * checkpoints have them, a saved model has not.
 */
typedef struct kd_projector {
    const kd_projector_options *options;
    int64_t in, middle, out;
    int64_t kernel[2];      /* of CONV: height, width */
    int weight[2], bias[2]; /* parameters; the second of MLP; -1: none */
} kd_projector;

/* KD_EINVAL, after `path`, for an option that the kind has no use for. */
KD_MUST_CHECK kd_status kd_projector_check(const kd_projector_options *options, const char *path);

/* `name` is of its parameters. */
KD_MUST_CHECK kd_status kd_projector_declare(kd_projector *projector, kd_params *params,
                                             const char *name, int block);
KD_MUST_CHECK kd_status kd_projector_initialise(const kd_projector *projector, kd_exec *exec,
                                                const kd_slab *slab, uint64_t seed);

/* What it keeps from forward to backward; on the stack. */
typedef struct kd_projected {
    kd_tensor rows;           /* the input; of maps their places */
    kd_tensor x, norm_x;      /* the same of length 1 */
    kd_tensor patches;        /* what CONV multiplies: kernel times as large as x */
    kd_tensor middle, active; /* of MLP */
    kd_tensor product;        /* the last matrix's, before the output's activation */
    kd_tensor raw, norm_y;    /* the output, before it is made of length 1 */
    kd_tensor y;              /* rows [N, out], or maps [B, out, H', W'], in x's type */
} kd_projected;

/* x is rows [N, in] or maps [B, in, H, W]; of the two convolutions maps, at least as large as the kernel. */
KD_MUST_CHECK kd_status kd_projector_forward(kd_projected *saved, kd_exec *exec, const kd_tensor *x,
                                             const kd_slab *slab, const kd_projector *projector);

/* Adds to the slab's gradients, and to dx where that is present. */
KD_MUST_CHECK kd_status kd_projector_backward(kd_exec *exec, const kd_tensor *dx,
                                              const kd_tensor *dy, const kd_tensor *x,
                                              const kd_projected *saved, const kd_slab *slab,
                                              const kd_projector *projector);

/* ---- terms over taps -------------------------------------------------------------------------- */

typedef enum kd_layer_rule {
    KD_LAYERS_LAST,
    KD_LAYERS_UNIFORM, /* student's m of M to the teacher's m N / M of N, rounded down (TinyBERT) */
    KD_LAYERS_LIST,
} kd_layer_rule;

enum { KD_MAX_STATES = 4 };

typedef struct kd_layer_pair {
    int student, teacher;
    kd_projector projector;    /* of it, or of all pairs */
    kd_projector to_teacher;   /* of the teacher's rows, of a loss that trains one */
    int parameter;             /* what the loss itself trains; -1: nothing */
    int states[KD_MAX_STATES]; /* what it keeps, in the order of its reads */
} kd_layer_pair;

/*
 * The term is the sum over its pairs of layers.
 *
 * A loss that keeps banks compares both sides' rows behind a projector each, `dimension` wide, and reads
 * `negatives` other samples of each; its banks have a row for every sample of the data.
 */
struct kd_tapped {
    const kd_feature_type *type;
    const void *options; /* as the type's rows parsed them */
    kd_tap_kind kind;    /* of both models; queries bring keys where the type reads both */
    kd_layer_rule rule;
    kd_projector_options projector;
    int64_t dimension, negatives; /* 0: of a loss without banks */
    const kd_crd_classes *data;   /* the same: NULL */
    kd_layer_pair *pairs;         /* of KD_LAYERS_LIST from the beginning, else bound */
    int count;
};

KD_MUST_CHECK kd_status kd_tapped_parse(kd_tapped **tapped, kd_arena *arena, const kd_node *node,
                                        const char *path, const kd_feature_type *type);
KD_MUST_CHECK kd_status kd_tapped_json(json_t *term, const kd_tapped *tapped);
KD_MUST_CHECK kd_status kd_tapped_print(const char **text, kd_arena *arena,
                                        const kd_tapped *tapped);
void kd_tapped_help(void *file);

/* Finds the layers of all terms over taps; `offers` is indexed by model.  KD_EINVAL names a term that
 * the models cannot feed, and what they do offer. */
KD_MUST_CHECK kd_status kd_terms_bind(kd_term *terms, int count, kd_arena *arena,
                                      const kd_offer *offers);

/* Whether one of them keeps banks of samples; and gives those the samples that there are. */
bool kd_terms_keep_banks(const kd_term *terms, int count);
void kd_terms_give_data(kd_term *terms, int count, const kd_crd_classes *data);

/* Of bound terms: asks for their taps, `taps` indexed by model; declares what of `student`'s terms is
 * trained, as parameters of `block`; gives them their first values, the same for the same seed. */
KD_MUST_CHECK kd_status kd_terms_request(const kd_term *terms, int count, kd_taps *const *taps);
KD_MUST_CHECK kd_status kd_terms_declare(const kd_term *terms, int count, kd_params *params,
                                         int student, int block);
KD_MUST_CHECK kd_status kd_terms_initialise(const kd_term *terms, int count, kd_exec *exec,
                                            const kd_slab *slab, int student, uint64_t seed);

/* ---- the objective ---------------------------------------------------------------------------- */

/* Shown the f32 logits [rows, V] of a chunk that is measured, before the row terms take their place;
 * `first` is the chunk's first row among the targets.  Not called while planning. */
typedef struct kd_watch {
    kd_status (*see)(void *context, kd_exec *exec, const kd_tensor *logits, int64_t first);
    void *context;
} kd_watch;

/* The ranks of a run.  `gather` fills all parts of `all` [size * n, ...], contiguous and of any type, of
 * which this rank has written its own, on the exec's queue. */
typedef struct kd_peers {
    int rank, size;
    kd_status (*gather)(void *context, kd_exec *exec, const kd_tensor *all);
    void *context;
} kd_peers;

typedef struct kd_objective {
    const kd_term *terms;
    int count;
    int64_t chunk;   /* rows of the head at a time */
    int64_t classes; /* columns of every softmax: padding is outside */
    kd_logit_view logits;
    kd_watch watch; /* of what is measured; see NULL: nobody */
    kd_peers ranks; /* size 0: there is one */
} kd_objective;

/*
 * Rows of the head in one chunk, at most `rows` rounded up.  `row_bytes` is what a row of both models'
 * logits takes, `width` that of the student's hidden rows.  On a CPU a multiple of 64, within 1/64 of
 * its memory; elsewhere a multiple of 128, within 1/16; both between 64 MB and 1 GB, and no more than
 * makes products efficient.
 */
int64_t kd_objective_chunk(int64_t rows, int64_t row_bytes, int64_t width,
                           const kd_device_info *device);

/* Rows that count, as the loader found them, in device memory.  R is a multiple of the chunk. */
typedef struct kd_targets {
    kd_tensor rows;   /* i32 [R]: indices into the micro-batch, then -1 */
    kd_tensor labels; /* i32 [R]: their labels, then -1 */
    kd_tensor weight; /* f32 [N]: 1 of rows that count, else 0 */
    int64_t count;
} kd_targets;

/* How many terms teach `student`, in the order of scalars, totals and row losses. */
int kd_objective_terms(const kd_objective *objective, int student);

/* Of those, over logits: they come first. */
int kd_objective_row_terms(const kd_objective *objective, int student);

/* Fills scalars->term for `student`: scale = weight(step) / `valid`, the global number of counted
 * rows of the step; 0 where nothing counts. */
void kd_objective_scalars(kd_step_scalars *scalars, const kd_objective *objective, int student,
                          int64_t step, double valid);

typedef struct kd_row_results {
    kd_tensor losses;   /* f32 [terms, R]: each row's loss, T^2 applied, weight not */
    kd_tensor same_top; /* f32 [R] */
} kd_row_results;

/*
 * The head of one student against its teacher's, chunk by chunk: logits by matrix product, all row
 * terms in one pass, the gradient in place of the student's logits, then at once its products into
 * head.d_weight and head.d_hidden.  No [N, V] of either model exists.  Where the student is restricted to
 * the teacher's largest classes those terms have a pass of their own, over [N, K].
 *
 * `taps` is indexed by model.  When `train`, head.d_hidden is taken from the stack and stays there.
 * totals f32 [terms + 1] += sums over rows of each row term's loss, and last of same_top.  `rows` (may
 * be NULL) receives the values per row; its tensors are the caller's.
 */
KD_MUST_CHECK kd_status kd_objective_head(const kd_objective *objective, kd_exec *exec, int student,
                                          kd_taps *const *taps, const kd_targets *targets,
                                          const kd_tensor *scalars, const kd_tensor *totals,
                                          const kd_row_results *rows, bool train);

/* What the terms over taps of one student read. */
typedef struct kd_tapped_batch {
    kd_taps *const *taps; /* indexed by model */
    const kd_targets *targets;
    const kd_tensor *documents; /* i32: first rows of documents, then the number of rows */
    const kd_slab *slab;        /* of the student */
    /* Losses that relate samples take those of all ranks, each rank the gradient of its own.  A batch
     * of several micro-batches is related one micro-batch at a time. */
    const kd_peers *ranks;
    /* Of losses that keep banks: i32 [ranks N], which of the data's samples the rows are, and i32
     * [ranks N, K] for each of the objective's terms (kd_tapped_run's: of its own).  Of these every
     * rank has written its part. */
    const kd_tensor *samples, *negatives;
} kd_tapped_batch;

/* Adds to the taps' gradients, to the slab's of projectors, and to the terms' totals. */
KD_MUST_CHECK kd_status kd_objective_taps(const kd_objective *objective, kd_exec *exec, int student,
                                          const kd_tapped_batch *batch, const kd_tensor *scalars,
                                          const kd_tensor *totals);

/* One pair of layers of one term: its value of every unit into `loss` f32 [N]. */
KD_MUST_CHECK kd_status kd_tapped_run(const kd_term *term, int pair, kd_exec *exec,
                                      const kd_tapped_batch *batch, const kd_tensor *scale,
                                      const kd_tensor *loss);

#endif
