/*
 * kd/loss.h - the losses: over rows of logits (cross entropy and the divergences), and over what models
 * show besides, features and their relations.
 *
 * For a row with student logits z and teacher logits t, over the first C classes:
 *     q = softmax(z / T), p = softmax(t / T), loss = T^2 D(p, q)      (T^2 only with t_squared)
 * where D is what kd_loss_describe says, "KL(teacher || student)" and so on.  Direction, T^2, mask
 * and normaliser are what is said here; nothing is implied.
 */
#ifndef KD_LOSS_H
#define KD_LOSS_H

#include <kd/options.h>
#include <kd/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kd_loss_info {
    const char *name;   /* "forward_kl" */
    bool teacher;       /* reads the teacher's logits */
    bool label;         /* reads the label */
    const char *option; /* its one option, "beta"; NULL: none */
    double option_default, option_min, option_max;
    const char *option2; /* a second one; NULL: none */
    double option2_default, option2_min, option2_max;
    const char *help;
} kd_loss_info;

/* Losses are numbered from 0; strings are never freed.  KD_EINVAL for another number. */
int kd_loss_count(void);
KD_MUST_CHECK kd_status kd_loss_describe(kd_loss_info *info, int loss);

/* `name` as in a run file, the short "ce" and "kl" too.  KD_EINVAL names the nearest. */
KD_MUST_CHECK kd_status kd_loss_find(int *loss, const char *name);

/* What a teacher is, of whom K log-probabilities a row are known. */
typedef enum kd_loss_topk {
    KD_LOSS_TAIL,         /* those K classes and one for all others */
    KD_LOSS_RENORMALISED, /* those K, made to sum to 1 */
    KD_LOSS_SAMPLED,      /* K draws: an estimate without bias; forward_kl and soft_cross_entropy */
} kd_loss_topk;

typedef struct kd_loss_options {
    double temperature; /* above 0; of both softmaxes; 0: 1 */
    bool t_squared;     /* multiply value and gradient with temperature^2 */
    double option;      /* beta, lambda, label smoothing; unused by losses without one */
    double option2;     /* the second, where a loss has one */
    bool
        standardise; /* both sides' logits are z-scores of their row: (z - mean) / (sd + 1e-7), sd over
                           C - 1; the gradient goes through it.  No class may be at -inf. */
    kd_loss_topk topk;          /* with teacher_ids */
    double teacher_temperature; /* at which teacher_log_p was taken; 0: 1 */
    int64_t classes;            /* columns of both softmaxes; 0: the smaller of V and V' */
    const char *device;         /* as for kd_device_open; NULL: the CPU */
} kd_loss_options;

typedef struct kd_loss_tensors {
    kd_tensor student; /* [N, V] f32 or bf16, replaced by d (sum of losses) / d student */
    kd_tensor loss;    /* [N] f32, written */
    kd_tensor teacher; /* [N, V'] f32 or bf16; absent where the loss reads none */
    kd_tensor labels;  /* [N] i32; -1: the row is ignored; or absent */
    kd_tensor weight;  /* [N] f32, a factor of each row's loss; 0: ignored; or absent */
    /* In place of `teacher`, K of its log-probabilities: */
    kd_tensor teacher_ids;   /* [N, K] i32 of classes; -1: none */
    kd_tensor teacher_log_p; /* [N, K] f32 or bf16 */
    kd_tensor
        teacher_sampling;   /* [N, K] f32: with what probability each was drawn, for `sampled` */
    kd_tensor teacher_tail; /* [N] f32: the teacher's mass elsewhere; absent: what lacks to 1 */
} kd_loss_tensors;

/*
 * Applies loss number `loss` to rows in host memory; a GPU works on copies.  An ignored row is not read; its
 * loss and gradient are 0.  Columns from `classes` on get gradient 0 and are not read.
 * KD_EINVAL: shapes that do not fit, a label outside [0, classes), an option outside its bounds, a
 * tensor that the loss reads and that is absent.
 */
KD_MUST_CHECK kd_status kd_loss_apply(int loss, const kd_loss_tensors *tensors,
                                      const kd_loss_options *options);

/*
 * The same from file to file, in chunks of rows.  `in` has `student` [n, V] and, as the loss and the
 * user want, `teacher` [n, V'] (f32, bf16 or f16) or `teacher_ids` [n, K] with `teacher_logprobs`,
 * `teacher_sampling` and `teacher_tail` as above, `labels` [n] (any integer type; -1 and -100:
 * ignored) and `weight` [n].  `out` gets `loss` [n] and `d_student` [n, V], both f32, computed in f32.
 */
KD_MUST_CHECK kd_status kd_loss_file(int loss, const char *in, const char *out,
                                     const kd_loss_options *options);

/* ---- losses over features and relations ------------------------------------------------------- */

enum { KD_FEATURE_OPTION_BYTES = 128 };

typedef enum kd_read_flag {
    KD_READ_GRADIENT = 1, /* its gradient is written as "d_" and the name */
    KD_READ_INTEGER = 2,
    KD_READ_F32 = 4, /* the others are f32 or bf16 */
    KD_READ_OPTIONAL = 8,
    KD_READ_PARAMETER = 16, /* the loss's own, trained; kd_feature_file knows what it begins with */
    KD_READ_STATE = 32, /* f32, of the loss's own: renewed by a run and written under its name */
} kd_read_flag;

typedef struct kd_read {
    const char *name;  /* "student_q": the tensor in a file */
    const char *shape; /* "[N, H, d]" */
    unsigned flags;
} kd_read;

typedef struct kd_feature_info {
    const char *name, *help;
    const char *unit;         /* "token" or "sample": what the term is the mean over */
    const kd_option *options; /* { 0 } at the end; into KD_FEATURE_OPTION_BYTES bytes; NULL: none */
    const kd_read *reads;     /* name NULL at the end; the first has the units */
} kd_feature_info;

/* Numbered from 0; strings are never freed.  KD_EINVAL for another number; kd_feature_find gives -1
 * where there is none of that name. */
int kd_feature_count(void);
int kd_feature_find(const char *name);
KD_MUST_CHECK kd_status kd_feature_describe(kd_feature_info *info, int loss);

/*
 * What brings the student's features to the width of the teacher's; `y`, `x` are rows [N, D], or feature maps
 * [B, C, H, W], whose rows are their places [B H W, C].
 *     linear   y = x W' + b
 *     mlp      y = act(x W' + b) V' + c, `width` between
 *     conv1x1  linear, over maps alone
 *     conv     y = a valid convolution of x with W, stride 1, its kernel (H - H' + 1) x (W - W' + 1) for a teacher
 *              of H' x W' places (FitNets, Romero et al. 2015, eq. 4)
 * Weights lie as PyTorch's: [out, in], of convolutions [out, in, h, w].  W and b begin uniform within
 * 1 / sqrt(in h w), as torch.nn.Linear and Conv2d.  There is no batch norm, and `output` is none where not asked for:
 * RepDistiller's ConvReg has both, and behind its ReLU no signed target is reached.
 */
typedef enum kd_projector_kind {
    KD_PROJECTOR_NONE,
    KD_PROJECTOR_LINEAR,
    KD_PROJECTOR_MLP,
    KD_PROJECTOR_CONV1X1,
    KD_PROJECTOR_CONV,
} kd_projector_kind;

typedef struct kd_projector_options {
    int kind;       /* kd_projector_kind */
    int normalise;  /* rows made of length 1, of maps those of places; bits: 1 before, 2 after */
    int activation; /* of MLP: 0 GELU, 1 ReLU */
    int output;     /* activation of what comes out: 0 none, 1 GELU, 2 ReLU */
    int64_t width;  /* 0: twice the teacher's */
    bool bias, trainable;
    bool shared; /* one for all layers */
} kd_projector_options;

extern const kd_option kd_projector_rows[]; /* into kd_projector_options; { 0 } at the end */

/*
 * From file to file.  `in` has what the loss reads (f32, bf16 or f16; integers of any type) and, as the
 * user wants, `weight` [units], a factor of each unit, which is a row of the first tensor; one of
 * weight 0 is not read; a parameter that is not in it has its first value.  `out` gets `loss` [units],
 * the gradients of the sum of them and the state as it is then, all f32 and computed in f32.
 * `options`: as the loss's rows parsed them, or NULL where it has none.
 * `projector`, or NULL: the loss reads what it makes of `student`.  `in` has its parameters too,
 * `projector.0.weight`, `projector.0.bias` and, of mlp, `projector.1.weight`, `projector.1.bias`; `out` gets their
 * gradients, "d_" and the name, where it is trainable.
 */
KD_MUST_CHECK kd_status kd_feature_file(int loss, const char *in, const char *out,
                                        const void *options, const kd_projector_options *projector,
                                        const char *device);

/* The documentation of any loss, NULL-terminated lines; NULL: no loss of that name. */
const char *const *kd_loss_text(const char *name);

#ifdef __cplusplus
}
#endif
#endif
