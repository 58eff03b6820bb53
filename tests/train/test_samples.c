/*
 * Classifiers of samples: a whole step against PyTorch (tests/golden/make_mlp.py), runs that are taken
 * again, resumed and evaluated, and the files and models that they refuse.
 */
#include "support/golden.h"
#include "support/lesson.h"
#include "support/refusal.h"
#include "support/students.h"
#include "support/training.h"

#include <kd/checkpoint.h>
#include <kd/trainer.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { SAMPLES = 12, INPUTS = 7, CLASSES = 5 };

#define FILES KD_GOLDEN "/mlp/"

/* ---- the step --------------------------------------------------------------------------------- */

static kd_loader_options dealt(bool shuffle, int rank, int ranks)
{
    return (kd_loader_options){ .files = { FILES "samples.safetensors" },
                                .weights = { 1 },
                                .sources = 1,
                                .vocabulary = CLASSES,
                                .inputs = INPUTS,
                                .sequence = 1,
                                .step_samples = SAMPLES,
                                .micro_samples = SAMPLES / ranks,
                                .rank = rank,
                                .ranks = ranks,
                                .seed = 5,
                                .shuffle = shuffle };
}

static kd_status open_dealt(kd_loader **loader, bool shuffle, int rank, int ranks)
{
    const kd_loader_options data = dealt(shuffle, rank, ranks);
    return kd_loader_open(loader, &data);
}

static void open_samples(kd_loader **loader, bool shuffle)
{
    test_ok(open_dealt(loader, shuffle, 0, 1));
}

/* gradient.layers.1.bias is that of blocks.1.linear_bias, gradient.classifier.weight of head. */
static void check_gradient(const test_golden *golden, const kd_st_entry *entry, const kd_slab *slab,
                           const char *student)
{
    const char *name = entry->name + strlen("gradient.");
    const char *bias = strstr(name, "bias") ? "_bias" : "";
    char engine[64] = "";
    int layer, param;
    if (sscanf(name, "layers.%d.", &layer) == 1)
        snprintf(engine, sizeof engine, "blocks.%d.linear%s", layer, bias);
    else
        snprintf(engine, sizeof engine, "head%s", bias);
    test_ok(test_find_param(&param, slab, engine));
    const kd_tensor g = kd_slab_gradient(slab, param);
    const float *want = test_golden_f32(golden, entry->name, NULL), *got = g.data;
    double difference = 0, size = 0;
    cr_assert(entry->elements == kd_tensor_elements(&g), "%s: %s has another shape", student, name);
    for (int64_t i = 0; i < entry->elements; i++) {
        difference += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    cr_assert(size > 0 && sqrt(difference) <= 1e-6 * sqrt(size),
              "%s: %s: off by %.3g of its norm %.3g", student, name, sqrt(difference / size),
              sqrt(size));
}

static void near(double got, const test_golden *golden, const char *what, const char *student)
{
    const double want = (double)*test_golden_f32(golden, what, NULL);
    cr_assert(fabs(got - want) <= 1e-6 * fabs(want), "%s: %s is %.9g, expected %.9g", student, what,
              got, want);
}

static void check_step(const char *student, int64_t chunk, bool shuffle)
{
    static const char with[] = "{ce: {weight: 0.4}, kl: {weight: 0.6, temperature: 2, t_squared: "
                               "true}, hid: {type: hidden_mse, layers: [[1, 1]], weight: 0.5}}";
    static const char without[] =
        "{ce: {weight: 0.4}, kl: {weight: 0.6, temperature: 2, t_squared: true}}";
    const bool hidden = strcmp(student, "linear") != 0;
    char dir[512], file[512];
    test_golden golden;
    test_lesson lesson;
    kd_loader *loader;
    const kd_step_batch *batch;
    kd_step_result result;
    int checked = 0;
    snprintf(dir, sizeof dir, FILES "%s", student);
    snprintf(file, sizeof file, FILES "%s.safetensors", student);
    const test_lesson_options options = { .models = { { .dir = FILES "teacher" },
                                                      { .dir = dir, .trainable = true } },
                                          .count = 2,
                                          .loss = hidden ? with : without,
                                          .classes = CLASSES,
                                          .rows = SAMPLES,
                                          .inputs = INPUTS,
                                          .chunk = chunk };
    test_golden_open(&golden, file);
    open_samples(&loader, shuffle);
    test_ok(test_lesson_open(&lesson, &options));
    test_ok(kd_loader_next(&batch, loader, NULL));
    test_ok(test_lesson_step(&lesson, &result, batch, 0));
    const kd_student_result *s = &result.student[1];
    cr_assert(result.valid == SAMPLES, "%s: %lld samples count", student, (long long)result.valid);
    near(s->term[0], &golden, "ce", student);
    near(s->term[1] / 4, &golden, "kl", student);
    if (hidden) near(s->term[2], &golden, "hid", student);
    near(s->loss, &golden, "loss", student);
    for (int64_t i = 0; i < golden.file->count; i++) {
        const kd_st_entry *entry = &golden.file->entries[i];
        if (strncmp(entry->name, "gradient.", 9) != 0) continue;
        check_gradient(&golden, entry, &lesson.models[1]->slab, student);
        checked++;
    }
    cr_assert(checked == lesson.models[1]->slab.params.count, "%s: %d gradients", student, checked);
    test_lesson_close(&lesson);
    kd_loader_close(loader);
    test_golden_close(&golden);
}

Test(samples, losses_and_gradients_are_those_of_pytorch)
{
    static const char *const students[] = { "relu", "gelu", "gelu_tanh", "linear" };
    for (int i = 0; i < KD_COUNT(students); i++) {
        check_step(students[i], 0, false);
        check_step(students[i], 5, true); /* the same samples in another order */
    }
}

/* ---- terms over taps -------------------------------------------------------------------------- */

static const struct {
    const char *loss, *param;
    int element;
} trained[] = {
    { "{vid: {projector: linear}}", "loss.vid.0.log_variance", 1 },
    { "{vid: {projector: linear}}", "loss.vid.0.0.weight", 4 },
    { "{vid: {projector: linear}}", "blocks.0.linear", 3 },
    { "{hint: {projector: mlp}}", "loss.hint.0.1.weight", 2 },
    { "{hint: {projector: {type: mlp, activation: relu}}}", "loss.hint.0.1.weight", 2 },
    { "{hint: {projector: {type: mlp, activation: relu}}}", "blocks.0.linear", 3 },
    { "{hint: {projector: {type: mlp, normalise: both}}}", "loss.hint.0.0.bias", 1 },
    { "{h: {type: hidden_mse, projector: {type: linear, normalise: after}}}", "blocks.0.linear",
      2 },
    { "{rkd_angle: {}, rkd_distance: {}}", "blocks.0.linear", 5 },
    { "{pkt: {weight: 1000}, sp: {}}", "blocks.0.linear_bias", 0 },
    { "{cc: {projector: linear}, ce: {weight: 0.1}}", "blocks.0.linear", 8 },
    { "{kl: {standardise: true, temperature: 2}}", "head", 6 },
};

Test(samples, what_terms_over_taps_train_has_the_gradient_of_their_value)
{
    const kd_loader_options data = dealt(false, 0, 1);
    for (int i = 0; i < KD_COUNT(trained); i++) {
        const test_lesson_options options = {
            .models = { { .dir = FILES "teacher" }, { .dir = FILES "gelu", .trainable = true } },
            .count = 2,
            .loss = trained[i].loss,
            .classes = CLASSES,
            .inputs = INPUTS,
            .rows = SAMPLES
        };
        test_lesson_slope(&options, &data, trained[i].param, trained[i].element, 1e-5, NULL);
    }
}

/* NaN of the teacher reaches the value of every loss, whatever it leaves out or cuts off. */
Test(samples, a_teacher_that_is_not_finite_stops_every_loss)
{
    static const char *const losses[] = { "{pkt: {}}",
                                          "{sp: {}}",
                                          "{cc: {projector: linear}}",
                                          "{rkd_distance: {}}",
                                          "{rkd_angle: {}}",
                                          "{vid: {projector: linear}}",
                                          "{hint: {projector: linear}}",
                                          "{cosine: {projector: linear}}",
                                          "{crd: {dimension: 3, negatives: 5}}",
                                          "{kl: {standardise: true}}" };
    static const kd_crd_classes data = { .samples = SAMPLES };
    for (int i = 0; i < KD_COUNT(losses); i++) {
        const test_lesson_options options = {
            .models = { { .dir = FILES "teacher" }, { .dir = FILES "gelu", .trainable = true } },
            .count = 2,
            .loss = losses[i],
            .data = &data,
            .classes = CLASSES,
            .inputs = INPUTS,
            .rows = SAMPLES
        };
        const test_planted planted = { 0, "blocks.0.linear_bias", 0, 1, 1, NAN };
        const kd_step_batch *batch;
        kd_loader *loader;
        test_lesson lesson;
        open_samples(&loader, false);
        test_ok(test_lesson_open(&lesson, &options));
        test_ok(test_lesson_plant(&lesson, &planted));
        test_ok(kd_loader_next(&batch, loader, NULL));
        cr_expect_eq(test_lesson_step(&lesson, NULL, batch, 0), KD_ENONFINITE, "%s", losses[i]);
        test_lesson_close(&lesson);
        kd_loader_close(loader);
    }
}

/* One of two ranks that relate their samples; the first has one that is infinite. */
typedef struct looker {
    kd_comm *comm;
    kd_status status;
    char message[512];
} looker;

static kd_status look_as_rank(kd_comm *comm, test_lesson *lesson, kd_loader *loader)
{
    const kd_cursor start = { 0 };
    const kd_step_batch *batch;
    const kd_step_result *result;
    for (int again = 0; again < 2; again++) {
        KD_TRY(kd_loader_seek(loader, &start));
        KD_TRY(kd_loader_next(&batch, loader, NULL));
        if (comm->rank == 0) ((float *)(uintptr_t)batch->micro[0].inputs)[3] = INFINITY;
        if (again) return kd_step_look(&lesson->step, batch, 0);
        KD_TRY(kd_step_run(&lesson->step, batch, 0));
        if (kd_step_result_of(&result, &lesson->step, 0) != KD_ENONFINITE) break;
    }
    return kd_fail(KD_EINTERNAL, "it went on");
}

static void *run_looker(void *context)
{
    looker *l = context;
    const test_lesson_options options = { .models = { { .dir = FILES "teacher" },
                                                      { .dir = FILES "gelu", .trainable = true } },
                                          .count = 2,
                                          .loss = "{ce: {}, pkt: {}, angle: {type: rkd_angle}}",
                                          .classes = CLASSES,
                                          .inputs = INPUTS,
                                          .rows = SAMPLES / 2,
                                          .comm = l->comm };
    test_lesson lesson;
    kd_loader *loader = NULL;
    l->status = test_lesson_open(&lesson, &options);
    if (l->status == KD_OK) l->status = open_dealt(&loader, false, l->comm->rank, 2);
    if (l->status == KD_OK) l->status = look_as_rank(l->comm, &lesson, loader);
    snprintf(l->message, sizeof l->message, "%s", kd_last_error());
    kd_loader_close(loader);
    test_lesson_close(&lesson);
    return NULL;
}

Test(samples, ranks_that_relate_find_together_what_is_not_finite)
{
    kd_comm *comms[2];
    pthread_t threads[2];
    looker lookers[2];
    test_ok(kd_comm_threads(comms, 2, 1 << 20));
    for (int r = 0; r < 2; r++) {
        lookers[r] = (looker){ .comm = comms[r] };
        cr_assert(pthread_create(&threads[r], NULL, run_looker, &lookers[r]) == 0);
    }
    for (int r = 0; r < 2; r++) {
        pthread_join(threads[r], NULL);
        cr_expect_eq(lookers[r].status, KD_ENONFINITE, "rank %d: %s", r, lookers[r].message);
        cr_expect(strstr(lookers[r].message, "logits of ") &&
                      strstr(lookers[r].message, "(rank 0, micro-batch 0, row 0"),
                  "rank %d: %s", r, lookers[r].message);
    }
    for (int r = 0; r < 2; r++) kd_comm_close(comms[r]);
}

/* ---- runs ------------------------------------------------------------------------------------- */

enum { MANY = 45, PIXELS = 6 }; /* of 2 x 3 */

/* Two tensors; `inputs` U8 [MANY, 2, 3] or F32, `labels` of any type, wrong where a case says. */
typedef struct sample_file {
    const char *inputs, *labels, *inputs_shape, *labels_shape; /* NULL: those of a good file */
    const char *names[2];                                      /* the same */
    int64_t label;                                             /* the last one */
    float value;                                               /* the last one of F32 */
} sample_file;

/* Its class shows. */
static int pixel(int64_t sample, int64_t j)
{
    return j == sample % CLASSES ? 255 : (int)((sample * 41 + j * 37) % 64);
}

static const char *write_samples(const char *folder, const char *name, const sample_file *f)
{
    static char path[512];
    unsigned char data[MANY * (PIXELS * 4 + 8)], *at = data;
    const bool bytes = !f->inputs || f->inputs[1] == '8';
    const int size = !f->labels || strcmp(f->labels, "I64") == 0 ? 8 : f->labels[0] == 'U' ? 1 : 4;
    char header[512];
    for (int i = 0; i < MANY * PIXELS; i++) {
        const float x = i == MANY * PIXELS - 1 && f->value != 0
                            ? f->value
                            : (float)pixel(i / PIXELS, i % PIXELS);
        if (bytes)
            *at = (unsigned char)x;
        else
            memcpy(at, &x, sizeof x);
        at += bytes ? 1 : sizeof x;
    }
    const size_t middle = (size_t)(at - data);
    for (int i = 0; i < MANY; i++) {
        const int64_t label = i == MANY - 1 && f->label ? f->label : i % CLASSES;
        memcpy(at, &label, (size_t)size);
        at += size;
    }
    int n = snprintf(header, sizeof header,
                     "{\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[0,%zu]},"
                     "\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}}",
                     f->names[0] ? f->names[0] : "inputs", f->inputs ? f->inputs : "U8",
                     f->inputs_shape ? f->inputs_shape : "[45,2,3]", middle,
                     f->names[1] ? f->names[1] : "labels", f->labels ? f->labels : "I64",
                     f->labels_shape ? f->labels_shape : "[45]", middle, (size_t)(at - data));
    snprintf(path, sizeof path, "%s", test_path(folder, name));
    FILE *file = fopen(path, "wb");
    const uint64_t length = (uint64_t)n;
    cr_assert(file && fwrite(&length, 8, 1, file) == 1 && fwrite(header, (size_t)n, 1, file) == 1 &&
              fwrite(data, (size_t)(at - data), 1, file) == 1 && fclose(file) == 0);
    return path;
}

/* A folder of a fresh model. */
static const char *write_model(const char *folder, const char *name, const char *sizes)
{
    static char dirs[4][512];
    static int next;
    char *dir = dirs[next++ % 4], text[512];
    snprintf(dir, sizeof dirs[0], "%s", test_path(folder, name));
    const int n = snprintf(text, sizeof text,
                           "{\"model_type\": \"mlp\", \"input_size\": 6, \"hidden_sizes\": %s, "
                           "\"num_labels\": 5, \"id2label\": {\"0\": \"a\", \"1\": \"b\", \"2\": "
                           "\"c\", \"3\": \"d\", \"4\": \"%s\"}}",
                           sizes, strcmp(name, "renamed") == 0 ? "z" : "e");
    const char *config = test_path(folder, "fresh.json");
    FILE *file = fopen(config, "wb");
    cr_assert(file && fwrite(text, (size_t)n, 1, file) == 1 && fclose(file) == 0);
    test_ok(kd_init_fresh(dir, config, NULL, KD_F32, 3));
    return dir;
}

static kd_status train(const char *folder, const char *out, const char *teacher,
                       const char *student, const char *data, const char *steps)
{
    const char *settings[][2] = { { "teacher.model", teacher },
                                  { "student.model", student },
                                  { "data.train", data },
                                  { "data.valid", data },
                                  { "loss.kl", "{weight: 0.01, temperature: 2}" },
                                  { "optim.lr", "0.15" },
                                  { "batch.micro", "4" },
                                  { "batch.samples", "8" },
                                  { "run.steps", steps } };
    const test_training c = { .dtype = "f32",
                              .train = data,
                              .valid = data,
                              .folder = folder,
                              .settings = settings,
                              .setting_count = KD_COUNT(settings) };
    return test_train(&c, out);
}

Test(samples, a_run_resumed_is_the_run_and_its_model_opens)
{
    const char *folder = test_folder();
    char whole[512], died[512], data[512], teacher[512];
    snprintf(data, sizeof data, "%s", write_samples(folder, "data", &(sample_file){ .label = 0 }));
    snprintf(teacher, sizeof teacher, "%s", write_model(folder, "teacher", "[9, 4]"));
    const char *student = write_model(folder, "student", "[5]");
    (void)test_log();
    test_ok(train(folder, "whole", teacher, student, data, "8"));
    test_ok(train(folder, "died", teacher, student, data, "8"));
    snprintf(whole, sizeof whole, "%s", test_path(folder, "whole"));
    snprintf(died, sizeof died, "%s", test_path(folder, "died"));
    test_died(died, 5, 8); /* the next step ends the epoch */
    test_ok(train(folder, "died", teacher, student, data, "8"));
    for (int step = 5; step <= 8; step++) test_same_checkpoint(whole, died, step);
    test_same_file(whole, died, "model.safetensors");
    char *want = test_metrics(whole, true), *got = test_metrics(died, true);
    test_same_text(got, want, "died after step 4");
    cr_assert(strstr(want, "\"accuracy\":"), "no accuracy in %s", want);
    free(want);
    free(got);

    static kd_eval_report report;
    const kd_eval_options options = { .teacher = teacher,
                                      .models = { student, whole },
                                      .model_count = 2,
                                      .data = data,
                                      .train = data,
                                      .device = "cpu" };
    test_ok(kd_evaluate(&report, &options));
    const kd_eval_row *row = &report.rows[2];
    cr_assert(report.samples && report.tokens == MANY && report.documents == MANY,
              "%lld tokens in %lld documents", (long long)report.tokens,
              (long long)report.documents);
    cr_assert(fabs(report.unigram_ppl - 5) < 0.01, "five equal classes: ppl %g",
              report.unigram_ppl);
    cr_assert(row->nll < report.rows[1].nll, "nll %g after training, %g before", row->nll,
              report.rows[1].nll);
    cr_assert(isfinite(row->kl.mean) && isfinite(row->same_top.mean), "no teacher");
    const double right = row->accuracy.mean * MANY;
    cr_assert(right > MANY / 2.0 && fabs(right - round(right)) < 1e-9, "%g samples right", right);

    char *page;
    size_t bytes;
    const char *path = test_path(folder, "report.html");
    test_ok(kd_report_write(path, whole));
    test_ok(kd_file_read(&page, &bytes, path, 1 << 24));
    cr_expect(strstr(page, "held-out accuracy") &&
              strstr(page, "held-out samples whose likeliest class is their own, %"));
    free(page);
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
}

/* The first of the most accurate. */
static int most_accurate(const char *metrics)
{
    double best = -1, value;
    int step = 0, at = 0;
    for (const char *line = metrics; line && *line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        const char *accuracy = strstr(line, "\"accuracy\":"), *end = strchr(line, '\n');
        const char *number = strstr(line, "\"step\":");
        if (!accuracy || !number || (end && accuracy > end)) continue;
        cr_assert(sscanf(accuracy, "\"accuracy\":%lf", &value) == 1);
        cr_assert(sscanf(number, "\"step\":%d", &step) == 1);
        if (value > best) best = value, at = step;
    }
    return at;
}

Test(samples, the_most_accurate_checkpoint_stays)
{
    const char *folder = test_folder();
    char data[512], out[512], teacher[512], best[64];
    snprintf(data, sizeof data, "%s", write_samples(folder, "data", &(sample_file){ .label = 0 }));
    snprintf(teacher, sizeof teacher, "%s", write_model(folder, "teacher", "[9, 4]"));
    const char *student = write_model(folder, "student", "[5]");
    const char *settings[][2] = {
        { "teacher.model", teacher },   { "student.model", student },
        { "optim.lr", "0.3" },          { "batch.micro", "8" },
        { "batch.samples", "8" },       { "eval.every", "1 steps" },
        { "run.checkpoint.keep", "1" }, { "run.checkpoint.keep_best", "valid.accuracy" },
        { "run.steps", "12" }
    };
    test_training c = { .dtype = "f32",
                        .train = data,
                        .valid = data,
                        .folder = folder,
                        .settings = settings,
                        .setting_count = KD_COUNT(settings) };
    (void)test_log();
    test_ok(test_train(&c, "out"));
    snprintf(out, sizeof out, "%s", test_path(folder, "out"));
    char *metrics = test_metrics(out, true);
    const int step = most_accurate(metrics);
    cr_assert(step > 0 && step < 12, "the best is the last of %s", metrics);
    for (int i = 1; i <= 12; i++) {
        snprintf(best, sizeof best, "checkpoint-%06d", i);
        cr_expect_eq(kd_dir_exists(test_path(out, best)), i == step || i == 12, "%s, best %d", best,
                     step);
    }
    free(metrics);
    c.valid = "";
    test_refusal(test_train(&c, "other"), KD_EINVAL,
                 "run.checkpoint.keep_best: the run has none of it without data.valid", "blind");
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
}

/* ---- refusals --------------------------------------------------------------------------------- */

Test(samples, files_that_are_wrong_are_refused_by_tensor_and_byte)
{
    static const struct {
        sample_file file;
        const char *message;
    } cases[] = {
        { { .names = { "tokens" } }, "found no tensor 'inputs', but tokens" },
        { { .names = { NULL, "label" } }, "found no tensor 'labels'" },
        { { .inputs = "I8" }, "tensor inputs (byte " },
        { { .inputs_shape = "[270]" }, "found U8 with 1 dimensions, expected F32 or U8 with 2" },
        { { .inputs_shape = "[54,5]" }, "found 5 numbers in a sample ([54, 5]), expected 6" },
        { { .labels_shape = "[9,5]" }, "found I64, 2 dimensions" },
        { { .labels = "F32" }, "found F32, 1 dimensions" },
        { { .inputs_shape = "[45,6]", .label = 5 }, "labels[44] (byte " },
        { { .label = -1 }, "found -1, expected 0 to 4" },
        { { .labels = "U8", .label = 255 }, "found 255, expected 0 to 4" },
        { { .labels = "I32", .label = -3 }, "found -3, expected 0 to 4" },
        { { .inputs = "F32", .value = NAN }, "element 269 (byte " },
        { { .inputs = "F32", .value = INFINITY }, "found inf, expected a number" },
    };
    const kd_samples_options options = { PIXELS, CLASSES };
    const char *folder = test_folder();
    kd_samples *samples;
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const char *path = write_samples(folder, "wrong", &cases[i].file);
        test_refused(kd_samples_open(&samples, path, &options), KD_EFORMAT, cases[i].message);
        cr_assert(strstr(kd_last_error(), path), "%s: names no file", cases[i].message);
    }
    test_ok(kd_dir_remove(folder));
}

/* u8 is x / 255, f32 as it is; labels of any type. */
Test(samples, are_read_as_they_are)
{
    static const char *const inputs[] = { "U8", "F32" }, *const labels[] = { "U8", "I32", "I64" };
    const kd_samples_options options = { PIXELS, CLASSES };
    const char *folder = test_folder();
    for (int k = 0; k < KD_COUNT(inputs) * KD_COUNT(labels); k++) {
        const sample_file file = { .inputs = inputs[k % 2], .labels = labels[k / 2] };
        kd_samples *samples;
        test_ok(kd_samples_open(&samples, write_samples(folder, "good", &file), &options));
        cr_assert(kd_samples_count(samples) == MANY);
        for (int64_t i = 0; i < MANY; i++) {
            float got[PIXELS];
            int32_t label;
            test_ok(kd_samples_read(got, &label, samples, i));
            cr_assert(label == i % CLASSES, "%s: label %d of %lld", file.labels, label,
                      (long long)i);
            for (int64_t j = 0; j < PIXELS; j++) {
                const float raw = (float)pixel(i, j);
                const float want = k % 2 ? raw : raw / 255.0f;
                cr_assert(got[j] == want, "%s: %g at %lld of %lld, expected %g", file.inputs,
                          (double)got[j], (long long)j, (long long)i, (double)want);
            }
        }
        kd_samples_close(samples);
    }
    test_ok(kd_dir_remove(folder));
}

Test(samples, models_that_do_not_go_together_are_refused)
{
    const char *folder = test_folder();
    char data[512];
    snprintf(data, sizeof data, "%s", write_samples(folder, "data", &(sample_file){ .label = 0 }));
    const char *student = write_model(folder, "student", "[5]");
    const char *renamed = write_model(folder, "renamed", "[]");
    const char *tokens = KD_GOLDEN "/step/step.safetensors";
    (void)test_log();
    test_refused(train(folder, "a", KD_GOLDEN "/step/teacher", student, data, "1"), KD_EINVAL,
                 "teacher (LlamaForCausalLM) reads tokens, student (MLPForClassification) samples");
    test_refused(train(folder, "b", FILES "teacher", student, data, "1"), KD_EFORMAT,
                 "teacher has samples of 7 numbers and 5 classes, student of 6 and 5");
    test_refused(train(folder, "c", renamed, student, data, "1"), KD_EFORMAT, "id2label");
    test_refused(train(folder, "d", student, student, tokens, "1"), KD_EFORMAT,
                 "found no tensor 'inputs', but tokens");
    test_refused(
        train(folder, "e", KD_GOLDEN "/step/teacher", KD_GOLDEN "/step/student", data, "1"),
        KD_EFORMAT, "found no tensor 'tokens'");
    test_refused(kd_init_from_layers(test_path(folder, "f"), student, (int64_t[]){ 0 }, 1),
                 KD_ENOTSUP, "MLPForClassification");
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
}
