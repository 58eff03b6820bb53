/*
 * ops.h - what a device can compute: one table of function pointers, one row per op.
 *
 * A caller writes
 *     KD_RUN(exec, rms_norm, .y = &h, .rstd = &rstd, .x = &x, .weight = &w, .eps = eps)
 * and gets the slot of the exec's device.  Operands are tensors by const pointer, told apart by
 * name; one that is not given is absent.  Values that change from step to step are read from
 * kd_step_scalars in device memory, so that a captured graph stays valid.
 */
#ifndef KD_OPS_H
#define KD_OPS_H

#include "device/device.h"

/* ---- row terms: rows/ and row_list.h ---------------------------------------------------------- */

enum { KD_MAX_ROW_TERMS = 8, KD_MAX_TERMS = 24 /* of one student, those over taps too */ };

/* One name per row of row_list.h: KD_ROW_cross_entropy, KD_ROW_forward_kl, ... */
typedef enum kd_row_kind {
#define KD_ROW(name, ...) KD_ROW_##name,
#include "ops/row_list.h"
#undef KD_ROW
    KD_ROW_COUNT
} kd_row_kind;

typedef struct kd_row_terms {
    int count;
    kd_row_kind kind[KD_MAX_ROW_TERMS];
    int first; /* the first one's index in the step's scalars */
} kd_row_terms;

/* When a term's gradient reads its two sums, so that a sweep over the row must come before. */
typedef enum kd_row_need {
    KD_SUMS_NEVER,
    KD_SUMS_DEAD,   /* in a row where a class of the student is dead */
    KD_SUMS_OPTION, /* while its option is not 0 */
    KD_SUMS_ALWAYS,
} kd_row_need;

/* What of a row a term reads that most do not. */
typedef enum kd_row_extra {
    KD_EXTRA_NONE,
    KD_EXTRA_TOP,    /* which class is the teacher's first largest */
    KD_EXTRA_LOGITS, /* the logits themselves, beside both softmaxes */
    KD_EXTRA_REST,   /* both softmaxes over the classes that are not the label, and the logits */
} kd_row_extra;

/* What the list says of a term. */
typedef struct kd_row_type {
    const char *name;
    bool teacher; /* reads the teacher's logits */
    bool label;   /* reads the label */
    kd_row_need sums;
    kd_row_extra extra;
    const char *option; /* name of its first option ("beta"); NULL: none */
    double option_default, option_min, option_max;
    const char *option2; /* and of its second */
    double option2_default, option2_min, option2_max;
    const char *help;
} kd_row_type;

extern const kd_row_type kd_row_types[KD_ROW_COUNT];

enum { KD_MAX_NORMED_HEAD = 256 }; /* elements of a head that qk_norm_rope takes */

/* What a row's teacher is, of whom K log-probabilities are known: row_loss_topk.c. */
typedef enum kd_topk {
    KD_TOPK_TAIL,         /* K classes and one that stands for all others */
    KD_TOPK_RENORMALISED, /* those K, made to sum to 1; probability 0 elsewhere */
    KD_TOPK_SAMPLED,      /* K draws: an estimate without bias */
    KD_TOPK_COUNT
} kd_topk;
/* ---- relations between the rows of a document --------------------------------------------------- */

/* s = cap(scale a b'), cap(x) = softcap tanh(x / softcap); softcap 0: none. */
typedef struct kd_scoring {
    float scale, softcap;
} kd_scoring;

typedef enum kd_relation_kind {
    KD_RELATION_KL,  /* softmax of the teacher's scores against that of the student's */
    KD_RELATION_MSE, /* squared differences of the scores */
    KD_RELATION_COUNT
} kd_relation_kind;

typedef struct kd_relation {
    kd_relation_kind kind;
    kd_scoring student, teacher;
    float temperature; /* scores are divided by it on both sides */
    bool t_squared;    /* the loss is multiplied with T^2 */
    bool causal;
    int64_t window;
    float floor;   /* MSE: a score at or below it counts as 0; 0: none does */
    int64_t pairs; /* MSE: what a row's sum is divided by; 0: the keys that the row sees */
} kd_relation;

/* What row_distance measures between x and y; x', y' are x / |x|, y / |y|. */
typedef enum kd_distance {
    KD_DISTANCE_SQUARED,         /* |x - y|^2 */
    KD_DISTANCE_COSINE,          /* 1 - x' y' */
    KD_DISTANCE_NORMALISED,      /* |x' - y'|^2 */
    KD_DISTANCE_NORMALISED_ROOT, /* |x' - y'| */
    KD_DISTANCE_COUNT
} kd_distance;

enum { KD_MAX_TOP = 1024 };      /* classes of a row that top_classes takes */
enum { KD_MAX_CONTRAST = 1024 }; /* columns of a row that contrast takes */

/* ---- what changes from step to step; lives in device memory ----------------------------------- */

typedef struct kd_term_scalars {
    float scale; /* weight / global count: what the gradient is multiplied with */
    float temperature;
    float t_squared; /* T^2 where the term asks for it, else 1 */
    float option;    /* beta, lambda, smoothing, alpha of dkd */
    float option2;   /* beta of dkd */
} kd_term_scalars;

typedef enum kd_verdict {
    KD_VERDICT_GOOD = 0,
    KD_VERDICT_LOSS = 1,     /* a loss is not finite */
    KD_VERDICT_GRADIENT = 2, /* the gradient's norm is not finite */
    KD_VERDICT_SPIKE = 3,    /* loss or norm are far above those of the steps before */
    KD_VERDICT_HELD = 4,     /* good, but another student's is not, or an earlier step's was not */
} kd_verdict;

/* Of one student. */
typedef struct kd_step_scalars {
    float lr;
    /* Written by op clip, the verdict then by op guard too. */
    float clip;    /* factor on the gradient */
    float norm;    /* of the gradient before clipping */
    float loss;    /* weighted sum of the terms */
    float verdict; /* kd_verdict */
    /* Written by op guard. */
    float bias1, bias2;   /* 1 - beta^n of Adam in its n-th update */
    float loss_z, norm_z; /* NaN until the windows are full, and where the step is not finite */
    float skips, in_row;  /* kd_guard's, this step included */
    float stopped;
    kd_term_scalars term[KD_MAX_TERMS]; /* those over rows of logits first */
} kd_step_scalars;

enum { KD_MAX_STUDENTS = 8, KD_GUARD_WINDOW = 128 };

/* What decides, in device memory, whether a step's update is done; a checkpoint holds it. */
typedef struct kd_guard {
    int64_t updates; /* done */
    int64_t skips;   /* steps that updated nothing */
    int64_t seen;    /* finite steps; the last of them are in the windows */
    int32_t in_row;  /* the last so many steps updated nothing */
    int32_t stopped; /* not 0: nothing is updated any more */
    /* Of losses and of norms; those of finite step i stand at i % KD_GUARD_WINDOW. */
    float window[KD_MAX_STUDENTS][2][KD_GUARD_WINDOW];
} kd_guard;

/* ---- from the list ---------------------------------------------------------------------------- */

/*
 * kd_<op>_check refuses operands whose presence, type, shape or strides do not fit: the same of
 * every device, so it reads no element.  kd_op_run calls it before the device's own function, which
 * may rely on it.  What only the elements tell, the CPU refuses (ids, labels, offsets, temperatures)
 * and a GPU answers with NaN, which stops the run before its update.  scatter_rows and
 * embedding_backward have no row to answer in: there a GPU leaves such a row out.
 */

#define OUT(x)       const kd_tensor *x;
#define INOUT(x)     const kd_tensor *x;
#define IN(x)        const kd_tensor *x;
#define ARG(type, x) type x;
#define KD_OP(name, operands)                                                                      \
    typedef struct kd_##name##_args {                                                              \
        operands                                                                                   \
    } kd_##name##_args;                                                                            \
    kd_status kd_##name##_check(const kd_##name##_args *args);                                     \
    kd_status kd_##name##_cpu(kd_exec *exec, const kd_##name##_args *args);                        \
    kd_status kd_##name##_cuda(kd_exec *exec, const kd_##name##_args *args);
#include "ops/op_list.h"
#undef KD_OP
#undef ARG
#undef IN
#undef INOUT
#undef OUT

/* What only a host that shares memory with labels, weight and scalars can see in time: labels outside
 * [0, classes) in rows that count, temperatures.  The CPU's op asks it itself. */
KD_MUST_CHECK kd_status kd_row_loss_check_values(const kd_row_loss_args *args);
KD_MUST_CHECK kd_status kd_row_loss_topk_check_values(const kd_row_loss_topk_args *args);

struct kd_ops {
#define KD_OP(name, operands) kd_status (*name)(kd_exec *, const kd_##name##_args *);
#include "ops/op_list.h"
#undef KD_OP
};

extern const kd_ops kd_ops_cpu, kd_ops_meta, kd_ops_cuda;

typedef enum kd_op_id {
#define KD_OP(name, operands) KD_OP_##name,
#include "ops/op_list.h"
#undef KD_OP
    KD_OP_COUNT
} kd_op_id;

/* ---- running ---------------------------------------------------------------------------------- */

typedef enum kd_role { KD_ROLE_OUT, KD_ROLE_INOUT, KD_ROLE_IN } kd_role;

typedef struct kd_operand {
    const char *name;
    kd_role role;
    size_t offset; /* into the op's argument struct, of a const kd_tensor * */
} kd_operand;

typedef struct kd_op_info {
    const char *name;
    size_t bytes; /* of the argument struct */
    const kd_operand *(*operands)(int *count);
    kd_status (*check)(const void *args);
    kd_status (*call)(const kd_ops *ops, kd_exec *exec, const void *args);
    bool (*present)(const kd_ops *ops);
} kd_op_info;

extern const kd_op_info kd_op_infos[KD_OP_COUNT];

/* Runs one op: checks its operands, poisons its outputs on a debug device, gives its scratch back, and puts the op's
 * name before the message of a failure. */
KD_MUST_CHECK kd_status kd_op_run(kd_exec *exec, kd_op_id op, const void *args);

/* From now on adds each op's seconds to to[op], in all of this process; NULL ends it.  For a device
 * whose calls wait for their work: elsewhere it is the time of enqueueing. */
void kd_ops_profile(double to[KD_OP_COUNT]);

#define KD_RUN(exec, op, ...) kd_op_run((exec), KD_OP_##op, &(const kd_##op##_args){ __VA_ARGS__ })

#endif
