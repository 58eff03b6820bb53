/*
 * A loss that keeps banks (crd) in a step and in runs: its value and what it renews, found again in double
 * from the definition; gradients of all that it trains by central differences; the same on every number
 * of ranks; and a run that goes on with the banks that it had.
 */
#include "support/lesson.h"
#include "support/refusal.h"
#include "support/support.h"
#include "support/training.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { SAMPLES = 12, INPUTS = 7, CLASSES = 5, WIDTH = 3, K = 8 };

#define FILES KD_GOLDEN "/mlp/"

static const double temperature = 0.5, momentum = 0.25, eps = 1e-7;
static const float partition[2] = { 30, 50 };

static const kd_crd_classes data = { .samples = SAMPLES };

static const test_lesson_options options = {
    .models = { { .dir = FILES "teacher" }, { .dir = FILES "gelu", .trainable = true } },
    .count = 2,
    .loss = "{crd: {dimension: 3, negatives: 8, temperature: 0.5, momentum: 0.25, weight: 2}}",
    .data = &data,
    .classes = CLASSES,
    .inputs = INPUTS,
    .rows = SAMPLES,
};

static const kd_loader_options sample_data = {
    .files = { FILES "samples.safetensors" },
    .weights = { 1 },
    .sources = 1,
    .vocabulary = CLASSES,
    .inputs = INPUTS,
    .sequence = 1,
    .step_samples = SAMPLES,
    .micro_samples = SAMPLES,
    .ranks = 1,
    .seed = 5,
    .shuffle = true,
};

static void open_loader(kd_loader **loader) { test_ok(kd_loader_open(loader, &sample_data)); }

static float *numbers(const test_lesson *lesson, const char *name, bool gradient)
{
    const kd_slab *slab = &lesson->models[1]->slab;
    int i;
    test_ok(test_find_param(&i, slab, name));
    const kd_tensor t = gradient ? kd_slab_gradient(slab, i) : kd_slab_weight(slab, i);
    return t.data;
}

/* ---- gradients -------------------------------------------------------------------------------- */

static const struct {
    const char *param;
    int element;
} trained[] = {
    { "blocks.0.linear", 3 },
    { "blocks.0.linear_bias", 1 },
    { "loss.crd.0.0.weight", 4 },
    { "loss.crd.0.0.bias", 2 },
    { "loss.crd.0.teacher.0.weight", 1 },
    { "loss.crd.0.teacher.0.bias", 0 },
};

static void know_partition(const test_lesson *lesson)
{
    memcpy(numbers(lesson, "loss.crd.0.partition", false), partition, sizeof partition);
}

Test(banks, what_is_trained_has_the_gradient_of_the_value)
{
    for (int i = 0; i < KD_COUNT(trained); i++)
        test_lesson_slope(&options, &sample_data, trained[i].param, trained[i].element, 1e-4,
                          know_partition);
}

/* ---- the value, and what is renewed ----------------------------------------------------------- */

/* x / |x| of rows behind the projector called `name`; v [rows, WIDTH]. */
static void embed(double *v, const test_lesson *lesson, const kd_tap *tap, const char *name)
{
    char full[64];
    const float *x = tap->value.data;
    const int64_t width = tap->value.shape[1];
    snprintf(full, sizeof full, "%s.0.weight", name);
    const float *w = numbers(lesson, full, false);
    snprintf(full, sizeof full, "%s.0.bias", name);
    const float *b = numbers(lesson, full, false);
    for (int64_t r = 0; r < SAMPLES; r++) {
        double square = 0;
        for (int c = 0; c < WIDTH; c++) {
            double y = (double)b[c];
            for (int64_t k = 0; k < width; k++)
                y += (double)w[c * width + k] * (double)x[r * width + k];
            v[r * WIDTH + c] = y;
            square += y * y;
        }
        for (int c = 0; c < WIDTH; c++) v[r * WIDTH + c] /= sqrt(square);
    }
}

static double side_of(const double *v, const float *bank, int32_t own, const int32_t *negatives,
                      double z)
{
    const double c = (double)K / SAMPLES;
    double sum = 0;
    for (int k = -1; k < K; k++) {
        const float *row = bank + (k < 0 ? own : negatives[k]) * WIDTH;
        double dot = 0;
        for (int i = 0; i < WIDTH; i++) dot += v[i] * (double)row[i];
        const double p = exp(dot / temperature) / z;
        sum -= log((k < 0 ? p : c) / (p + c + eps));
    }
    return sum;
}

static void check_renewed(const float *got, const float *before, const double *v,
                          const int32_t *samples, const char *name)
{
    for (int r = 0; r < SAMPLES; r++) {
        double row[WIDTH], square = 0;
        for (int c = 0; c < WIDTH; c++) {
            row[c] = momentum * (double)before[samples[r] * WIDTH + c] +
                     (1 - momentum) * v[r * WIDTH + c];
            square += row[c] * row[c];
        }
        for (int c = 0; c < WIDTH; c++)
            cr_assert(fabs((double)got[samples[r] * WIDTH + c] - row[c] / sqrt(square)) < 1e-5,
                      "%s: row %d, column %d", name, samples[r], c);
    }
}

Test(banks, a_step_has_the_value_of_the_definition_and_renews_the_rows_of_its_samples)
{
    static const char *const names[2] = { "loss.crd.0.student_bank", "loss.crd.0.teacher_bank" };
    static const char *const projectors[2] = { "loss.crd.0", "loss.crd.0.teacher" };
    double v[2][SAMPLES * WIDTH], want = 0;
    float before[2][SAMPLES * WIDTH];
    int32_t negatives[SAMPLES * K];
    const kd_step_batch *batch;
    kd_loader *loader;
    test_lesson lesson;
    kd_step_result result;
    open_loader(&loader);
    test_ok(test_lesson_open(&lesson, &options));
    know_partition(&lesson);
    for (int s = 0; s < 2; s++)
        memcpy(before[s], numbers(&lesson, names[s], false), sizeof before[s]);
    test_ok(kd_loader_next(&batch, loader, NULL));
    const kd_micro_batch *micro = &batch->micro[0];

    /* The projectors move in the step: rows are embedded before it. */
    kd_step *step = &lesson.step;
    const kd_mark mark = kd_stack_mark(&step->stack);
    test_ok(kd_step_upload(step, micro));
    test_ok(kd_step_forward(step));
    for (int s = 0; s < 2; s++) {
        kd_taps *taps = &step->members[1 - s].taps;
        embed(v[s], &lesson, kd_taps_find(taps, KD_TAP_HIDDEN, s ? 1 : 3), projectors[s]);
    }
    kd_stack_release(&step->stack, mark);

    test_ok(test_lesson_step(&lesson, &result, batch, 7));
    test_ok(kd_crd_negatives(negatives, &data, micro->samples, SAMPLES, K, 0, 7));
    for (int r = 0; r < SAMPLES; r++)
        for (int s = 0; s < 2; s++)
            want += side_of(v[s] + r * WIDTH, before[1 - s], micro->samples[r], negatives + r * K,
                            (double)partition[s]) /
                    SAMPLES;
    cr_expect(fabs(result.student[1].term[0] - want) <= 1e-5 * want, "%.8g, expected %.8g",
              result.student[1].term[0], want);
    for (int s = 0; s < 2; s++)
        check_renewed(numbers(&lesson, names[s], false), before[s], v[s], micro->samples, names[s]);
    test_lesson_close(&lesson);
    kd_loader_close(loader);
}

/* ---- stopping --------------------------------------------------------------------------------- */

static const kd_comm_type *solo;

/* The ranks agree to begin a step; then somebody asks to stop. */
static kd_status agree_and_ask(kd_comm *comm, double *values, int count)
{
    KD_TRY(solo->all_reduce_host(comm, values, count));
    return raise(SIGTERM) == 0 ? KD_OK : kd_fail(KD_EINTERNAL, "no signal");
}

/* A checkpoint has the banks of whole steps alone. */
Test(banks, a_step_that_was_begun_is_taken_whole)
{
    kd_stop_install();
    for (int keeps = 0; keeps < 2; keeps++) {
        test_lesson_options o = options;
        kd_loader_options d = sample_data;
        const kd_step_batch *batch;
        kd_comm_type asking;
        kd_loader *loader;
        kd_comm *comm;
        test_lesson lesson;
        test_ok(kd_comm_solo(&comm));
        solo = comm->type;
        asking = *solo;
        asking.all_reduce_host = agree_and_ask;
        comm->type = &asking;
        o.comm = comm;
        o.rows = d.micro_samples = SAMPLES / 3;
        if (!keeps) o.loss = "{ce: {}}";
        test_ok(kd_loader_open(&loader, &d));
        test_ok(test_lesson_open(&lesson, &o));
        test_ok(kd_loader_next(&batch, loader, NULL));
        kd_stop_reset();
        cr_expect_eq(kd_step_run(&lesson.step, batch, 0), keeps ? KD_OK : KD_ESTOPPED);
        kd_stop_reset();
        test_lesson_close(&lesson);
        kd_loader_close(loader);
        comm->type = solo;
        kd_comm_close(comm);
    }
}

/* ---- many terms ------------------------------------------------------------------------------- */

/* More than one student may have, since there are two. */
Test(banks, of_many_terms_of_many_students)
{
    char loss[1024] = "{crd: {dimension: 3, negatives: 8}";
    for (int i = 0; i < 14; i++)
        (void)snprintf(loss + strlen(loss), sizeof loss - strlen(loss), ", t%d: {type: %s}", i,
                       i < 6 ? "kl" : "pkt");
    (void)snprintf(loss + strlen(loss), sizeof loss - strlen(loss), "}");
    test_lesson_options o = options;
    const kd_step_batch *batch;
    kd_loader *loader;
    test_lesson lesson;
    kd_step_result result;
    o.models[2] = o.models[1];
    o.count = 3;
    o.loss = loss;
    open_loader(&loader);
    test_ok(test_lesson_open(&lesson, &o));
    test_ok(kd_loader_next(&batch, loader, NULL));
    test_ok(test_lesson_step(&lesson, &result, batch, 0));
    for (int m = 1; m <= 2; m++)
        cr_expect(isfinite(result.student[m].loss) && result.student[m].term[14] > 0, "student %d",
                  m);
    test_lesson_close(&lesson);
    kd_loader_close(loader);
}

/* ---- runs ------------------------------------------------------------------------------------- */

static kd_status train_on(const char *file, const char *folder, const char *out, const char *loss,
                          const char *dtype)
{
    const char *settings[][2] = { { "teacher.model", FILES "teacher" },
                                  { "student.model", FILES "gelu" },
                                  { "loss.ce", "{weight: 0.5}" },
                                  { "loss.crd", loss },
                                  { "batch.micro", "4" },
                                  { "batch.samples", "4" },
                                  { "run.steps", "7" } };
    const test_training c = { .dtype = dtype,
                              .train = file,
                              .valid = FILES "samples.safetensors",
                              .folder = folder,
                              .settings = settings,
                              .setting_count = KD_COUNT(settings) };
    return test_train(&c, out);
}

static kd_status train(const char *folder, const char *out, const char *loss, const char *dtype)
{
    return train_on(FILES "samples.safetensors", folder, out, loss, dtype);
}

Test(banks, a_run_resumed_goes_on_with_the_banks_that_it_had)
{
    static const char loss[] = "{dimension: 3, negatives: 8, weight: 0.5}";
    static const char *const dtypes[] = { "f32", "bf16" };
    const char *folder = test_folder();
    (void)test_log();
    for (int i = 0; i < KD_COUNT(dtypes); i++) {
        char names[2][32], whole[512], died[512];
        snprintf(names[0], sizeof names[0], "whole-%s", dtypes[i]);
        snprintf(names[1], sizeof names[1], "died-%s", dtypes[i]);
        for (int k = 0; k < 2; k++) test_ok(train(folder, names[k], loss, dtypes[i]));
        snprintf(whole, sizeof whole, "%s", test_path(folder, names[0]));
        snprintf(died, sizeof died, "%s", test_path(folder, names[1]));
        test_died(died, 4, 7);
        test_ok(train(folder, names[1], loss, dtypes[i]));
        for (int step = 4; step <= 7; step++) test_same_checkpoint(whole, died, step);
    }
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
}

Test(banks, a_teacher_may_have_another_type)
{
    static const char loss[] = "{dimension: 3, negatives: 8, weight: 0.5}";
    static const char *const types[][2] = { { "f32", "bf16" }, { "bf16", "f32" } };
    const char *folder = test_folder();
    (void)test_log();
    for (int i = 0; i < KD_COUNT(types); i++) {
        const char *settings[][2] = { { "teacher.model", FILES "teacher" },
                                      { "teacher.dtype", types[i][0] },
                                      { "student.model", FILES "gelu" },
                                      { "loss.crd", loss },
                                      { "batch.samples", "4" },
                                      { "run.steps", "2" } };
        const test_training c = { .dtype = types[i][1],
                                  .train = FILES "samples.safetensors",
                                  .valid = FILES "samples.safetensors",
                                  .folder = folder,
                                  .settings = settings,
                                  .setting_count = KD_COUNT(settings) };
        test_ok(test_train(&c, types[i][0]));
    }
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
}

Test(banks, sizes_that_do_not_go_together_are_refused)
{
    const char *folder = test_folder();
    (void)test_log();
    test_refusal(train(folder, "x", "{projector: none, dimension: 3}", "f32"), KD_EINVAL,
                 "hidden[3] of student is 9 wide, hidden[1] of teacher 6, and dimension is 3: "
                 "`projector: linear` (or mlp) brings both to it",
                 "no projector");
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
}

/* Zeros, which take no place on the disk; the last sample alone is of another class. */
static const char *write_many(const char *folder, int64_t n)
{
    char header[256];
    const char *path = test_path(folder, "many.safetensors");
    const int length =
        snprintf(header + 8, sizeof header - 8,
                 "{\"inputs\":{\"dtype\":\"U8\",\"shape\":[%lld,%d],\"data_offsets\":[0,%lld]},"
                 "\"labels\":{\"dtype\":\"U8\",\"shape\":[%lld],\"data_offsets\":[%lld,%lld]}}",
                 (long long)n, INPUTS, (long long)n * INPUTS, (long long)n, (long long)n * INPUTS,
                 (long long)n * (INPUTS + 1));
    for (int i = 0; i < 8; i++) header[i] = (char)(i < 2 ? length >> 8 * i & 255 : 0);
    FILE *file = fopen(path, "w");
    cr_assert(file && fwrite(header, 1, (size_t)(8 + length), file) == (size_t)(8 + length));
    cr_assert(fseek(file, 8 + length + n * (INPUTS + 1) - 1, SEEK_SET) == 0);
    cr_assert(fputc(1, file) == 1 && fclose(file) == 0);
    return path;
}

Test(banks, larger_than_the_memory_are_refused_before_anything_is_allocated)
{
    static const char loss[] = "{dimension: 1024, negatives: 1, layers: [[0, 0], [1, 0], [2, 0], "
                               "[3, 0], [0, 1], [1, 1], [2, 1], [3, 1]]}";
    const char *folder = test_folder();
    kd_device *device;
    kd_device_info info;
    char file[512];
    test_ok(kd_device_open(&device, "cpu"));
    kd_device_describe(&info, device);
    kd_device_close(device);
    const int64_t sample = 8 * 2 * 1024 * (int64_t)sizeof(float);
    snprintf(file, sizeof file, "%s", write_many(folder, (int64_t)info.memory / sample + 1));
    (void)test_log();
    test_refusal(
        train_on(file, folder, "x", loss, "f32"), KD_ENOMEM,
        "not even one sample fits|; banks take | and negatives |: loss.NAME.dimension, negatives",
        loss);
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
}
