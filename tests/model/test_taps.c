/*
 * Taps: hidden ones are the residual stream as Hugging Face counts it, attention's are queries, keys and
 * values after QK-norm and position; gradients that losses leave in them reach every parameter.
 * L = sum over taps of <c, value>, and its derivative along a direction through all weights at once is
 * held against a central difference.
 */
#include "model/model.h"
#include "support/students.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 12 };

typedef struct tapped {
    kd_device *device;
    kd_model *model;
    kd_arena *arena;
    kd_stack stack;
    kd_exec exec;
    kd_taps taps;
    kd_batch batch;
} tapped;

static double coefficient(int tap, int64_t i)
{
    return kd_random_normal(7, (uint64_t)tap, (uint64_t)i);
}

/* <c, value>, whose gradient is added to the tap's. */
static double weigh(const kd_tap *tap, int number)
{
    double sum = 0.0;
    for (int64_t i = 0; i < kd_tensor_elements(&tap->value); i++) {
        const double c = coefficient(number, i);
        sum += c * test_get(&tap->value, i);
        if (kd_present(&tap->gradient))
            test_set(&tap->gradient, i, test_get(&tap->gradient, i) + c);
    }
    return sum;
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
    for (int i = 0; i < t->taps.count && !kd_planning(&t->exec); i++)
        *loss += weigh(&t->taps.items[i], i);
    if (train) KD_TRY(kd_model_backward(t->model, &t->exec, &t->batch, &t->taps, NULL, NULL));
    kd_stack_release(&t->stack, mark);
    return KD_OK;
}

static void request(tapped *t, bool attention)
{
    const int layers = (int)t->model->config.layers;
    for (int l = 0; l <= layers && !attention; l++)
        test_ok(kd_taps_request(&t->taps, KD_TAP_HIDDEN, l, true));
    for (int l = 0; l < layers && attention; l++)
        for (int kind = KD_TAP_QUERY; kind <= KD_TAP_VALUE; kind++)
            test_ok(kd_taps_request(&t->taps, (kd_tap_kind)kind, l, true));
}

static void open_tapped(tapped *t, const char *name, bool attention, bool trainable,
                        kd_recompute recompute)
{
    char dir[512];
    double loss;
    const kd_model_options options = { .label = "tapped",
                                       .trainable = trainable,
                                       .recompute = recompute };
    snprintf(dir, sizeof dir, KD_GOLDEN "/models/%s", name);
    *t = (tapped){ .device = NULL };
    test_ok(kd_arena_create(&t->arena));
    test_ok(kd_device_open(&t->device, "cpu"));
    test_ok(kd_model_open(&t->model, t->device, dir, &options));
    request(t, attention);
    test_ok(kd_stack_plan(&t->stack, t->arena));
    t->exec = (kd_exec){ .device = t->device, .stack = &t->stack };
    test_ok(pass(&loss, t, trainable));
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

static void check_gradients(bool attention)
{
    static const char *const names[] = { "llama_tied", "qwen3", "gpt2" };
    for (int i = 0; i < KD_COUNT(names); i++) {
        for (int recompute = 0; recompute < 2; recompute++) {
            tapped t;
            double loss;
            open_tapped(&t, names[i], attention, true, (kd_recompute)recompute);
            test_ok(pass(&loss, &t, true));
            for (uint64_t seed = 1; seed <= 3; seed++) check_direction(&t, names[i], seed);
            close_tapped(&t);
        }
    }
}

Test(taps, gradients_left_in_hidden_states_reach_every_weight) { check_gradients(false); }

Test(taps, gradients_left_in_queries_keys_and_values_reach_every_weight) { check_gradients(true); }

/* Views of what is kept and copies of what is not have the same bits: L is one number.  The queries' lse
 * is that of scores made of the taps. */
Test(taps, show_the_same_whatever_is_kept)
{
    double loss[3];
    for (int form = 0; form < 3; form++) {
        tapped t;
        open_tapped(&t, "qwen3", true, form > 0,
                    form == 2 ? KD_RECOMPUTE_BLOCKS : KD_RECOMPUTE_NONE);
        test_ok(pass(&loss[form], &t, false)); /* what it gave back to the stack still lies there */
        const kd_tap *q = kd_taps_find(&t.taps, KD_TAP_QUERY, 1);
        const kd_tap *k = kd_taps_find(&t.taps, KD_TAP_KEY, 1);
        const kd_attention *layer = &t.model->blocks[1].attention;
        const int64_t d = layer->head_size, group = layer->heads / layer->kv_heads;
        for (int64_t h = 0; h < layer->heads; h++) { /* the second document's third row: 3 keys */
            double sum = 0.0;
            for (int64_t key = 5; key < 8; key++) {
                double s = 0.0;
                for (int64_t c = 0; c < d; c++)
                    s += test_get(&q->value, (7 * layer->heads + h) * d + c) *
                         test_get(&k->value, (key * layer->kv_heads + h / group) * d + c);
                sum += exp(s / sqrt((double)d));
            }
            test_near_value(test_get(&q->lse, h * ROWS + 7), log(sum), KD_F32, 1, 1, (double)d,
                            "form %d, head %lld", form, (long long)h);
        }
        close_tapped(&t);
    }
    cr_assert(loss[0] == loss[1] && loss[1] == loss[2], "%.17g, %.17g, %.17g", loss[0], loss[1],
              loss[2]);
}

Test(taps, refuse_what_is_not_there)
{
    tapped t;
    double loss;
    open_tapped(&t, "llama_tied", true, false, KD_RECOMPUTE_NONE);
    t.taps.items[0].layer = 99;
    test_refused(pass(&loss, &t, false), KD_EINVAL, "query[99] asked for; it has query[0..");
    t.taps.items[0] = (kd_tap){ .kind = KD_TAP_POOLED };
    test_refused(pass(&loss, &t, false), KD_ENOTSUP, "offers hidden, query, key and value taps");
    close_tapped(&t);
}
