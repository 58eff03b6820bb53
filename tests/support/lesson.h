/*
 * lesson.h - one distillation step over small models, for tests of whole steps: models with random
 * weights or from a directory, the step over them, and what it left in gradients and slabs.
 *
 * These return a status instead of failing the test, since ranks run them in threads of their own.
 */
#ifndef KD_TEST_LESSON_H
#define KD_TEST_LESSON_H

#include "train/train.h"

enum { TEST_LESSON_MODELS = 3, TEST_LESSON_TERMS = 4 };

/* Random weights are functions of (seed, parameter, element): a model with more vocabulary rows has
 * the same weights in the rows that both have. */
typedef struct test_pupil {
    const char *dir;    /* a Hugging Face directory; NULL: random weights */
    const char *family; /* NULL: "llama"; also "qwen3" (QK-norm) and "gpt2" (LayerNorm, biases) */
    const char *label;  /* NULL: "student" or "teacher" */
    int64_t layers, width, vocabulary; /* 0: 2, 24, 61 */
    int64_t ffn;                       /* 0: 3 width / 2 + 1 */
    bool e4m3;                         /* matrices in its blocks, in place of the lesson's dtype */
    bool tied, trainable;
    kd_recompute recompute;
    uint64_t seed;
    double junk; /* what vocabulary rows from the lesson's classes on hold; 0: random, as others */
} test_pupil;

typedef struct test_lesson_options {
    test_pupil models[TEST_LESSON_MODELS];
    int count;
    kd_dtype dtype;
    kd_term terms[TEST_LESSON_TERMS]; /* count 0: test_distil(0, 1, ...) of the models 1 and 0 */
    int term_count;
    const char *loss;           /* or `loss` of a run file: "{ce: {weight: 1}}" */
    const kd_crd_classes *data; /* of terms of `loss` that keep banks */
    int64_t classes;            /* 0: 61 */
    int64_t rows;               /* of a micro-batch */
    int64_t inputs;             /* kd_step_options.inputs */
    kd_logit_view logits;       /* of terms; of `loss` its own */
    bool certainty;             /* kd_step_options.certainty */
    int64_t chunk;              /* 0: the engine's choice */
    int64_t bucket;             /* least elements of a bucket; 0: the engine's choice */
    int64_t steps;              /* of the schedule; 0: 100 */
    double lr;                  /* 0: 1e-3 */
    bool skip;                  /* optim.on_nonfinite */
    double zscore;              /* optim.skip_zscore */
    int64_t max_skips;
    kd_comm *comm;      /* NULL: one rank */
    const char *device; /* NULL: "cpu" */
    kd_device *on;      /* an open device in its place, which stays the caller's; or NULL */
} test_lesson_options;

typedef struct test_lesson {
    kd_device *device;
    kd_comm *comm;
    bool own_comm, own_device;
    kd_model *models[TEST_LESSON_MODELS];
    int count;
    kd_arena *arena;
    kd_term *terms;
    int term_count;
    kd_logit_view logits;
    kd_step step;
} test_lesson;

/* 0.4 cross entropy + 0.6 forward KL at T = 2 with T^2, of `student` under `teacher`. */
int test_distil(kd_term *terms, int student, int teacher);

KD_MUST_CHECK kd_status test_lesson_open(test_lesson *lesson, const test_lesson_options *options);
void test_lesson_close(test_lesson *lesson);

/* Step `index` over `batch`; `result` (may be NULL) is copied. */
KD_MUST_CHECK kd_status test_lesson_step(test_lesson *lesson, kd_step_result *result,
                                         const kd_step_batch *batch, int64_t index);

/* The number of a parameter by its name: "blocks.1.mlp_up". */
KD_MUST_CHECK kd_status test_find_param(int *param, const kd_slab *slab, const char *name);

/* Elements begin, begin + stride, ... of a parameter of a model, `count` of them, become `value`:
 * in the weights and, of a trained model, in their masters. */
typedef struct test_planted {
    int model;
    const char *param;
    int64_t begin, stride, count;
    float value;
} test_planted;
KD_MUST_CHECK kd_status test_lesson_plant(const test_lesson *lesson, const test_planted *planted);

/* The gradient slab of a model, freed by free(). */
float *test_lesson_gradient(const test_lesson *lesson, int model);

/* All bits that training moves (weights, masters, moments, states) of all trained models; freed by free(). */
unsigned char *test_lesson_bits(const test_lesson *lesson, size_t *bytes);

/*
 * Fails unless element `element` of a parameter of the last model has as its gradient what the loss of a
 * step over `data` rises by, within 1 % and `slack`.  `prepare` (may be NULL) is called before each step.
 */
void test_lesson_slope(const test_lesson_options *options, const kd_loader_options *data,
                       const char *param, int element, double slack,
                       void (*prepare)(const test_lesson *lesson));

/* Fails, naming the case by `fmt` and the parameter, unless |got - want| <= most |want| for each
 * parameter in the Euclidean norm over the elements that `want` has: those of `model`, whose
 * vocabulary may be smaller than that of `got_model`, where gradients must be zero. */
void test_near_gradient(const float *got, const kd_model *got_model, const float *want,
                        const kd_model *model, double most, const char *fmt, ...) KD_PRINTF(6, 7);

#endif
