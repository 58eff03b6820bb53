/*
 * Hidden taps: values are the residual stream as Hugging Face counts it, and gradients that losses
 * leave in them reach every parameter.  L = sum over taps of <c, hidden>, and its derivative along a
 * direction through all weights at once is held against a central difference.
 */
#include "model/model.h"
#include "support/students.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 12, LAYERS_MOST = 8 };

typedef struct tapped {
    kd_device *device;
    kd_model *model;
    kd_arena *arena;
    kd_stack stack;
    kd_exec exec;
    kd_taps taps;
    kd_batch batch;
    int layers;
} tapped;

static double coefficient(int layer, int64_t i)
{
    return kd_random_normal(7, (uint64_t)layer, (uint64_t)i);
}

/* One pass; the sum of all taps against their coefficients, and with `train` the gradients. */
static kd_status pass(double *loss, tapped *t, bool train)
{
    static const int32_t tokens[ROWS] = { 5, 9, 1, 40, 33, 2, 17, 8, 60, 3, 21, 11 };
    static const int32_t positions[ROWS] = { 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6 };
    static const int32_t cu[3] = { 0, 5, ROWS };
    const kd_mark mark = kd_stack_mark(&t->stack);
    KD_TRY(kd_push(&t->batch.tokens, &t->exec, "tokens", KD_I32, KD_SHAPE(ROWS)));
    KD_TRY(kd_push(&t->batch.geometry.positions, &t->exec, "positions", KD_I32, KD_SHAPE(ROWS)));
    KD_TRY(kd_push(&t->batch.geometry.cu, &t->exec, "starts", KD_I32, KD_SHAPE(3)));
    KD_TRY(kd_upload(&t->exec, &t->batch.tokens, tokens));
    KD_TRY(kd_upload(&t->exec, &t->batch.geometry.positions, positions));
    KD_TRY(kd_upload(&t->exec, &t->batch.geometry.cu, cu));
    KD_TRY(kd_model_forward(t->model, &t->exec, &t->batch, &t->taps));
    KD_TRY(kd_push(&t->taps.head.d_hidden, &t->exec, "d head hidden", KD_F32,
                   kd_shape_of(&t->taps.head.hidden)));
    KD_TRY(KD_RUN(&t->exec, fill, .y = &t->taps.head.d_hidden, .value = 0.0f));
    *loss = 0.0;
    for (int l = 0; l <= t->layers && !kd_planning(&t->exec); l++) {
        const kd_tap *tap = kd_taps_find(&t->taps, KD_TAP_HIDDEN, l);
        const float *value = tap->value.data;
        float *gradient = tap->gradient.data;
        for (int64_t i = 0; i < kd_tensor_elements(&tap->value); i++) {
            *loss += coefficient(l, i) * value[i];
            gradient[i] += (float)coefficient(l, i);
        }
    }
    if (train) KD_TRY(kd_model_backward(t->model, &t->exec, &t->batch, &t->taps, NULL, NULL));
    kd_stack_release(&t->stack, mark);
    return KD_OK;
}

static void open_tapped(tapped *t, const char *name, kd_recompute recompute)
{
    char dir[512];
    double loss;
    const kd_model_options options = { .label = "tapped",
                                       .trainable = true,
                                       .recompute = recompute };
    snprintf(dir, sizeof dir, KD_GOLDEN "/models/%s", name);
    *t = (tapped){ .layers = 0 };
    test_ok(kd_arena_create(&t->arena));
    test_ok(kd_device_open(&t->device, "cpu"));
    test_ok(kd_model_open(&t->model, t->device, dir, &options));
    t->layers = (int)t->model->config.layers;
    cr_assert(t->layers <= LAYERS_MOST);
    for (int l = 0; l <= t->layers; l++) test_ok(kd_taps_request(&t->taps, KD_TAP_HIDDEN, l, true));
    test_ok(kd_stack_plan(&t->stack, t->arena));
    t->exec = (kd_exec){ .device = t->device, .stack = &t->stack };
    test_ok(pass(&loss, t, true));
    test_ok(kd_stack_open(&t->stack, t->device));
}

static void close_tapped(tapped *t)
{
    kd_stack_close(&t->stack, t->device);
    kd_model_close(t->model);
    kd_device_close(t->device);
    kd_arena_destroy(t->arena);
}

/* L with all weights moved by `by` along the direction. */
static double moved(tapped *t, const float *weights, const float *direction, double by)
{
    float *w = t->model->slab.weights.data;
    double loss;
    for (int64_t i = 0; i < t->model->slab.params.elements; i++)
        w[i] = (float)(weights[i] + by * direction[i]);
    test_ok(pass(&loss, t, false));
    return loss;
}

static void check_direction(tapped *t, const char *name, uint64_t seed)
{
    const int64_t n = t->model->slab.params.elements;
    const float *g = t->model->slab.gradients.data;
    float *weights = malloc((size_t)n * sizeof *weights), *d = malloc((size_t)n * sizeof *d);
    double analytic = 0.0, size = 0.0;
    cr_assert(weights && d);
    memcpy(weights, t->model->slab.weights.data, (size_t)n * sizeof *weights);
    for (int64_t i = 0; i < n; i++) {
        d[i] = (float)kd_random_normal(seed, 1, (uint64_t)i) * (weights[i] != 0.0f);
        analytic += (double)g[i] * d[i];
        size += fabs((double)g[i] * d[i]);
    }
    const double step = 2e-4;
    const double numeric =
        (moved(t, weights, d, step) - moved(t, weights, d, -step)) / (2.0 * step);
    memcpy(t->model->slab.weights.data, weights, (size_t)n * sizeof *weights);
    free(weights);
    free(d);
    /* f32 rounding of L over 2 step, and the third derivative times step^2, are below this; a tap
     * that is left out moves the sum by a tenth of its size and more. */
    cr_expect(fabs(numeric - analytic) <= 2e-3 * (fabs(analytic) + size / sqrt((double)n)),
              "%s, direction %d: %g by difference, %g by gradient", name, (int)seed, numeric,
              analytic);
}

Test(taps, gradients_left_in_hidden_states_reach_every_weight)
{
    static const char *const names[] = { "llama_tied", "qwen3", "gpt2" };
    for (int i = 0; i < KD_COUNT(names); i++) {
        for (int recompute = 0; recompute < 2; recompute++) {
            tapped t;
            double loss;
            open_tapped(&t, names[i], (kd_recompute)recompute);
            test_ok(pass(&loss, &t, true));
            for (uint64_t seed = 1; seed <= 3; seed++) check_direction(&t, names[i], seed);
            close_tapped(&t);
        }
    }
}
