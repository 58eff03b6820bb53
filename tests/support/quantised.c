#include "support/quantised.h"

#include "support/lesson.h"
#include "support/students.h"
#include "support/text_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- products --------------------------------------------------------------------------------- */

static kd_tensor codes(test_bench *bench, int64_t rows, int64_t columns)
{
    const kd_tensor t = test_tensor(bench, KD_F8_E4M3, KD_SHAPE(rows, columns), 0);
    for (int64_t i = 0; i < rows * columns; i++) {
        const double size = exp2(14 * test_uniform(bench) - 9);
        test_set(&t, i, test_uniform(bench) < 0.5 ? size : -size);
    }
    return t;
}

scaled_product scaled_open(test_bench *bench, const scaled_case *c)
{
    const kd_tensor weight = codes(bench, c->n, c->k);
    scaled_product p = { .y = test_tensor(bench, c->y_dtype, KD_SHAPE(c->m, c->n), c->pad),
                         .a = codes(bench, c->m, c->k),
                         .b = kd_tensor_transposed(&weight),
                         .a_scale = test_filled(bench, KD_F32, KD_SHAPE(c->m), 0, 0.01, 0.02),
                         .b_scale = test_filled(bench, KD_F32, KD_SHAPE(c->n), 0, 2, 4) };
    if (c->bias) p.bias = test_filled(bench, KD_BF16, KD_SHAPE(c->n), 0, -1, 1);
    return p;
}

double scaled_size(const scaled_product *p)
{
    return 1 + 0.02 * 4 * 32 * 32 * sqrt((double)p->a.shape[1]);
}

const char *scaled_name(const scaled_case *c)
{
    static _Thread_local char name[128];
    snprintf(name, sizeof name, "m %lld k %lld n %lld to %s, bias %d, pad %lld", (long long)c->m,
             (long long)c->k, (long long)c->n, kd_dtype_name(c->y_dtype), c->bias,
             (long long)c->pad);
    return name;
}

/* ---- teachers --------------------------------------------------------------------------------- */

enum { ROWS = 40, STEPS = 4, CLASSES = 61, WIDTH = 48, FFN = 80, LAYERS = 4 };

static int64_t token_of(int64_t i) { return kd_permute(i, CLASSES, 5, 1); }

/* A model of random weights in bf16, as a directory. */
static void write_teacher(const char *dir, const char *family)
{
    const test_lesson_options options = {
        .models = { { .seed = 1, .family = family, .layers = LAYERS, .width = WIDTH, .ffn = FFN },
                    { .seed = 2, .trainable = true } },
        .count = 2,
        .rows = ROWS,
    };
    test_lesson lesson;
    test_ok(test_lesson_open(&lesson, &options));
    test_ok(kd_model_save(lesson.models[0], dir, KD_BF16));
    test_lesson_close(&lesson);
}

static kd_status forward(kd_model *model, kd_exec *exec, kd_taps *taps)
{
    int32_t tokens[ROWS], positions[ROWS], cu[2] = { 0, ROWS };
    kd_batch batch;
    for (int i = 0; i < ROWS; i++) tokens[i] = (int32_t)token_of(i), positions[i] = i;
    KD_TRY(kd_push(&batch.tokens, exec, "tokens", KD_I32, KD_SHAPE(ROWS)));
    KD_TRY(kd_push(&batch.geometry.positions, exec, "positions", KD_I32, KD_SHAPE(ROWS)));
    KD_TRY(kd_push(&batch.geometry.cu, exec, "starts", KD_I32, KD_SHAPE(2)));
    KD_TRY(kd_upload(exec, &batch.tokens, tokens));
    KD_TRY(kd_upload(exec, &batch.geometry.positions, positions));
    KD_TRY(kd_upload(exec, &batch.geometry.cu, cu));
    return kd_model_forward(model, exec, &batch, taps);
}

static double *downloaded(kd_exec *exec, const kd_tensor *t)
{
    const int64_t n = kd_tensor_elements(t);
    kd_tensor host = kd_tensor_of(malloc(kd_tensor_bytes(t)), t->dtype, kd_shape_of(t));
    double *values = malloc((size_t)n * sizeof *values);
    cr_assert(host.data && values);
    test_ok(kd_download(exec, host.data, t));
    test_ok(kd_sync(exec));
    for (int64_t i = 0; i < n; i++) values[i] = test_get(&host, i);
    free(host.data);
    return values;
}

/* Log-probabilities [ROWS, CLASSES] of the head's rows. */
static void log_softmax(double *to, kd_exec *exec, const kd_head *head)
{
    double *hidden = downloaded(exec, &head->hidden), *weight = downloaded(exec, &head->weight);
    const int64_t width = head->hidden.shape[1];
    for (int64_t r = 0; r < ROWS; r++) {
        double *row = to + r * CLASSES, sum = 0;
        for (int64_t v = 0; v < CLASSES; v++) {
            row[v] = 0;
            for (int64_t d = 0; d < width; d++)
                row[v] += hidden[r * width + d] * weight[v * width + d];
            sum += exp(row[v]);
        }
        for (int64_t v = 0; v < CLASSES; v++) row[v] -= log(sum);
    }
    free(hidden);
    free(weight);
}

/* A scale uses the whole range: its row has a code of 448.  There are some in all blocks but two. */
static void check_scales(kd_exec *exec, const kd_slab *slab)
{
    int found = 0;
    for (int i = 0; i < slab->params.count; i++) {
        const kd_tensor weight = kd_slab_weight(slab, i), scale = kd_slab_scale(slab, i);
        cr_assert_eq(weight.dtype == KD_F8_E4M3, kd_present(&scale));
        if (!kd_present(&scale)) continue;
        const int block = slab->params.items[i].block;
        cr_assert(block > 0 && block < LAYERS - 1, "%s is e4m3", slab->params.items[i].name);
        double *values = downloaded(exec, &weight);
        for (int64_t r = 0; r < weight.shape[0]; r++) {
            double largest = 0;
            for (int64_t e = 0; e < weight.shape[1]; e++)
                largest = fmax(largest, fabs(values[r * weight.shape[1] + e]));
            cr_assert_eq(largest, 448, "%s: the largest code of row %lld is %g",
                         slab->params.items[i].name, (long long)r, largest);
        }
        free(values);
        found++;
    }
    cr_assert(found % (LAYERS - 2) == 0, "%d e4m3 matrices", found);
}

/* Of the directory's model in `dtype`; returns the bytes that the model takes. */
static size_t predict(double *to, const char *dir, kd_dtype dtype, const char *name)
{
    const kd_model_options options = { .label = "teacher", .dtype = dtype };
    kd_device *device;
    kd_model *model;
    kd_stack stack = { .planning = true };
    kd_taps taps = { .count = 0 };
    test_ok(kd_device_open(&device, name));
    test_ok(kd_model_open(&model, device, dir, &options));
    kd_exec exec = { .device = device, .stack = &stack };
    test_ok(forward(model, &exec, &taps));
    test_ok(kd_stack_open(&stack, device));
    test_ok(device->type->fill(device, NULL, stack.base, 0xff, stack.capacity));
    test_ok(forward(model, &exec, &taps));
    log_softmax(to, &exec, &taps.head);
    check_scales(&exec, &model->slab);
    const size_t bytes = kd_model_bytes(model);
    kd_stack_close(&stack, device);
    kd_model_close(model);
    kd_device_close(device);
    return bytes;
}

static double mean_kl(const double *p, const double *q)
{
    double sum = 0;
    for (int64_t i = 0; i < ROWS * CLASSES; i++) sum += exp(p[i]) * (p[i] - q[i]);
    return sum / ROWS;
}

static double student_loss(const char *dir, bool e4m3, const char *device)
{
    static int64_t tokens[ROWS];
    static const int64_t borders[] = { 0, ROWS };
    for (int64_t i = 0; i < ROWS; i++) tokens[i] = token_of(i);
    const char *path = test_text_write(
        "quantised",
        &(test_text){
            .dtype = "U16", .tokens = tokens, .count = ROWS, .documents = borders, .borders = 2 });
    const kd_loader_options data = { .files = { path },
                                     .weights = { 1 },
                                     .sources = 1,
                                     .vocabulary = CLASSES,
                                     .sequence = ROWS,
                                     .step_samples = 1,
                                     .micro_samples = 1,
                                     .ranks = 1 };
    const test_lesson_options options = {
        .models = { { .dir = dir, .e4m3 = e4m3 }, { .seed = 2, .trainable = true } },
        .count = 2,
        .dtype = KD_BF16,
        .rows = ROWS,
        .device = device,
    };
    const kd_step_batch *batch;
    kd_loader *loader;
    kd_step_result result;
    test_lesson lesson;
    test_ok(kd_loader_open(&loader, &data));
    test_ok(kd_loader_next(&batch, loader, NULL));
    test_ok(test_lesson_open(&lesson, &options));
    for (int64_t step = 0; step < STEPS; step++) /* a GPU records them as graphs on the way */
        test_ok(test_lesson_step(&lesson, &result, batch, step));
    test_lesson_close(&lesson);
    kd_loader_close(loader);
    test_text_remove();
    return result.student[1].loss;
}

/*
 * e4m3 keeps 4 bits fewer than bf16, and a divergence is quadratic in what moves the logits, so it is
 * at most 2^8 times what bf16 costs.  Random weights of this size amplify every rounding by 1.7 per
 * layer: 0.05 nats of KL for 3e-4 of bf16 in a Llama.
 */
static void check_teacher(const char *device, const char *family)
{
    static double exact[ROWS * CLASSES], wide[ROWS * CLASSES], narrow[ROWS * CLASSES];
    char dir[512];
    snprintf(dir, sizeof dir, "%s/%s", test_folder(), family ? family : "llama");
    write_teacher(dir, family);
    predict(exact, dir, KD_F32, device);
    const size_t wide_bytes = predict(wide, dir, KD_BF16, device);
    const size_t narrow_bytes = predict(narrow, dir, KD_F8_E4M3, device);
    const double kl = mean_kl(wide, narrow), rounding = mean_kl(exact, wide);
    const double loss = student_loss(dir, false, device),
                 moved = student_loss(dir, true, device) - loss;
    if (getenv("KD_TEST_FIGURES"))
        fprintf(stderr,
                "%s, %s: kl %.4g (f32 to bf16 %.3g), student's loss %.5g moves %.3g, bytes %zu to "
                "%zu\n",
                device, family ? family : "llama", kl, rounding, loss, moved, wide_bytes,
                narrow_bytes);
    cr_assert(kl > rounding && kl < 256 * rounding && kl < 0.1,
              "%s: KL(bf16 || e4m3) is %g, KL(f32 || bf16) %g", dir, kl, rounding);
    cr_assert(fabs(moved) < 0.02 * loss, "%s: the student's loss %g moves by %g", dir, loss, moved);
    cr_assert_lt(narrow_bytes, wide_bytes);
    test_ok(kd_dir_remove(dir));
}

void test_quantised_teachers(const char *device)
{
    check_teacher(device, NULL);
    check_teacher(device, "gpt2");
}

kd_status test_quantised_open(const char *device, bool fits, bool trainable)
{
    const test_lesson_options options = {
        .models = { { .e4m3 = true,
                      .trainable = trainable,
                      .layers = LAYERS,
                      .width = WIDTH,
                      .ffn = fits ? FFN : FFN + 1 } },
        .count = 1,
        .rows = ROWS,
        .device = device,
    };
    test_lesson lesson;
    const kd_status status = test_lesson_open(&lesson, &options);
    if (status == KD_OK) test_lesson_close(&lesson);
    return status;
}
