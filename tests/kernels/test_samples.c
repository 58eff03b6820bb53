/* Steps of classifiers of samples on a CUDA device: the CPU's losses and gradients. */
#include "support/lesson.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

enum { STEPS = 5, INPUTS = 7, CLASSES = 5, STEP_SAMPLES = 6 };

typedef struct variant {
    const char *student;
    kd_dtype dtype;
    double loss, gradient; /* how far from the CPU's, relative */
    const char *terms;     /* NULL: the usual */
} variant;

/* Relations of samples, banks, and what is trained beside the student. */
static const char relations[] =
    "{ce: {}, pkt: {}, distance: {type: rkd_distance}, vid: {projector: linear},"
    " crd: {dimension: 5, negatives: 9, weight: 0.1}}";

/* bf16: 2^-8 per rounding, and another rounding may let other numbers through a ReLU. */
static const variant variants[] = {
    { "relu", KD_F32, 1e-6, 2e-6, NULL },   { "gelu", KD_F32, 1e-6, 2e-6, NULL },
    { "linear", KD_F32, 1e-6, 2e-6, NULL }, { "relu", KD_BF16, 0.02, 0.06, NULL },
    { "gelu", KD_BF16, 0.02, 0.06, NULL },  { "gelu", KD_F32, 2e-6, 4e-6, relations },
};

typedef struct run {
    test_lesson lesson;
    kd_loader *loader;
    kd_step_result results[STEPS];
    float *gradient; /* of the first step */
} run;

/* Two micro-batches a step, so that a graph is recorded and played. */
static void take(run *r, const variant *v, const char *device)
{
    char dir[512];
    const kd_loader_options data = { .files = { KD_GOLDEN "/mlp/samples.safetensors" },
                                     .weights = { 1 },
                                     .sources = 1,
                                     .vocabulary = CLASSES,
                                     .inputs = INPUTS,
                                     .sequence = 1,
                                     .step_samples = STEP_SAMPLES,
                                     .micro_samples = STEP_SAMPLES / 2,
                                     .ranks = 1,
                                     .seed = 8,
                                     .shuffle = true };
    snprintf(dir, sizeof dir, KD_GOLDEN "/mlp/%s", v->student);
    static const kd_crd_classes samples = { .samples = 12 };
    const test_lesson_options options = { .models = { { .dir = KD_GOLDEN "/mlp/teacher" },
                                                      { .dir = dir, .trainable = true } },
                                          .count = 2,
                                          .dtype = v->dtype,
                                          .loss = v->terms,
                                          .data = &samples,
                                          .classes = CLASSES,
                                          .rows = STEP_SAMPLES / 2,
                                          .inputs = INPUTS,
                                          .lr = 1e-2,
                                          .device = device };
    test_ok(test_lesson_open(&r->lesson, &options));
    test_ok(kd_loader_open(&r->loader, &data));
    for (int64_t step = 0; step < STEPS; step++) {
        const kd_step_batch *batch;
        test_ok(kd_loader_next(&batch, r->loader, NULL));
        test_ok(test_lesson_step(&r->lesson, &r->results[step], batch, step));
        if (step == 0) r->gradient = test_lesson_gradient(&r->lesson, 1);
    }
    kd_loader_close(r->loader);
}

static void require_cuda(void)
{
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
}

Test(samples, give_what_the_cpu_gives)
{
    require_cuda();
    for (int i = 0; i < KD_COUNT(variants); i++) {
        const variant *v = &variants[i];
        run gpu, cpu;
        take(&gpu, v, "cuda");
        take(&cpu, v, "cpu");
        test_near_gradient(gpu.gradient, gpu.lesson.models[1], cpu.gradient, cpu.lesson.models[1],
                           v->gradient, "%s", v->student);
        for (int step = 0; step < STEPS; step++) {
            const double a = gpu.results[step].student[1].loss;
            const double b = cpu.results[step].student[1].loss;
            cr_assert(fabs(a - b) <= v->loss * fabs(b), "%s: step %d: loss %.9g, expected %.9g",
                      v->student, step, a, b);
        }
        free(gpu.gradient);
        free(cpu.gradient);
        test_lesson_close(&gpu.lesson);
        test_lesson_close(&cpu.lesson);
    }
}
