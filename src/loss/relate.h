/* relate.h - what the losses over the relations of a document's rows share; private to loss. */
#ifndef KD_LOSS_RELATE_H
#define KD_LOSS_RELATE_H

#include "loss/loss.h"

typedef struct kd_relate_options {
    double temperature, softcap, teacher_softcap, floor;
    int64_t window, relation_heads, pairs;
    bool t_squared, causal;
} kd_relate_options;

/* Rows of their options. */
#define KD_RELATE_TEMPERATURE                                                                      \
    { "temperature", KD_FLOAT, offsetof(kd_relate_options, temperature), "1", 0.05,                \
      100,           "",       "scores of both sides are divided by it" },                         \
    {                                                                                              \
        "t_squared", KD_BOOL, offsetof(kd_relate_options, t_squared), "false", 0, 0, "",           \
            "multiply with temperature^2"                                                          \
    }
#define KD_RELATE_SEEN                                                                             \
    { "causal",                                                                                    \
      KD_BOOL,                                                                                     \
      offsetof(kd_relate_options, causal),                                                         \
      "true",                                                                                      \
      0,                                                                                           \
      0,                                                                                           \
      "",                                                                                          \
      "rows see those before them and themselves; false: all of the document" },                   \
    {                                                                                              \
        "window", KD_INT, offsetof(kd_relate_options, window), "0", 0, 1e12, "rows",               \
            "that a row sees at most to each side, itself among them; 0: all"                      \
    }
#define KD_RELATE_HEADS                                                                            \
    {                                                                                              \
        "relation_heads", KD_INT, offsetof(kd_relate_options, relation_heads), "0", 0, 65536,      \
            "heads", "of both sides, whose heads are put side by side and cut anew; 0: their own"  \
    }
#define KD_RELATE_SOFTCAPS                                                                         \
    { "softcap",                                                                                   \
      KD_FLOAT,                                                                                    \
      offsetof(kd_relate_options, softcap),                                                        \
      "0",                                                                                         \
      0,                                                                                           \
      1e6,                                                                                         \
      "",                                                                                          \
      "c of c tanh(score / c), as the student's attention has it; 0: none" },                      \
    {                                                                                              \
        "teacher_softcap", KD_FLOAT, offsetof(kd_relate_options, teacher_softcap), "0", 0, 1e6,    \
            "", "the same of the teacher"                                                          \
    }

/* One side: rows as queries and as keys, their gradients, the log-sum-exp that attention has saved. */
typedef struct kd_related {
    kd_tensor a, b, da, db, lse;
    const char *name; /* of a */
} kd_related;

/* The loss of every row into args->loss, gradients added to student's. */
KD_MUST_CHECK kd_status kd_relate(kd_exec *exec, const kd_feature_args *args, kd_relation_kind kind,
                                  kd_related student, kd_related teacher);

/* Both sides' queries and keys. */
kd_related kd_relate_student(const kd_feature_args *args);
kd_related kd_relate_teacher(const kd_feature_args *args);

#endif
