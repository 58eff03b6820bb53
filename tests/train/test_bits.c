/*
 * Same bits: a run taken twice, and a run that is stopped after any of its steps and goes on from its
 * checkpoint, have the same weights, optimizer state and losses to the last bit, whether driven step
 * by step or by kd_run_train; and a step that is not finite moves nothing.
 */
#include "support/golden.h"
#include "support/lesson.h"
#include "support/text_file.h"
#include "support/training.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { STEPS = TEST_TRAINING_STEPS, SEQUENCE = 10, STEP_SAMPLES = 4, CLASSES = 61 };

/* ---- a run, step by step ---------------------------------------------------------------------- */

typedef struct run {
    test_lesson lesson;
    kd_loader *loader;
    kd_model *students[TEST_LESSON_MODELS];
    kd_checkpoint checkpoint;
    kd_step_result results[STEPS];
} run;

typedef struct variant {
    const char *name;
    kd_dtype dtype;
    bool mutual;
    kd_recompute recompute;
} variant;

static const variant variants[] = {
    { "f32", KD_F32, false, KD_RECOMPUTE_NONE },
    { "bf16", KD_BF16, false, KD_RECOMPUTE_BLOCKS },
    { "two students", KD_BF16, true, KD_RECOMPUTE_NONE },
};

static test_lesson_options lesson_options(const variant *v)
{
    test_lesson_options o = {
        .models = { { .seed = 1, .label = "first", .trainable = v->mutual },
                    { .seed = 2,
                      .label = "second",
                      .tied = true,
                      .trainable = true,
                      .recompute = v->recompute } },
        .count = 2,
        .dtype = v->dtype,
        .rows = 2 * SEQUENCE,
        .chunk = 6,
        .steps = STEPS,
        .lr = 0.01,
    };
    o.term_count = test_distil(o.terms, 1, 0);
    if (v->mutual) o.term_count += test_distil(o.terms + 2, 0, 1);
    return o;
}

static void open_run(run *r, const variant *v, const char *path)
{
    const test_lesson_options options = lesson_options(v);
    const kd_loader_options data = { .files = { path },
                                     .weights = { 1 },
                                     .sources = 1,
                                     .vocabulary = CLASSES,
                                     .sequence = SEQUENCE,
                                     .step_samples = STEP_SAMPLES,
                                     .micro_samples = 2,
                                     .ranks = 1,
                                     .seed = 6,
                                     .shuffle = true };
    *r = (run){ .checkpoint = { .students = r->students,
                                .config = "{}",
                                .contract = "a test",
                                .progress = { .best_step = -1 } } };
    test_ok(test_lesson_open(&r->lesson, &options));
    test_ok(kd_loader_open(&r->loader, &data));
    for (int m = 0; m < r->lesson.count; m++)
        if (r->lesson.models[m]->slab.trainable)
            r->students[r->checkpoint.student_count++] = r->lesson.models[m];
}

static void close_run(run *r)
{
    kd_loader_close(r->loader);
    test_lesson_close(&r->lesson);
}

static void take_step(run *r)
{
    const kd_step_batch *batch;
    kd_progress *p = &r->checkpoint.progress;
    test_ok(kd_loader_next(&batch, r->loader, NULL));
    test_ok(test_lesson_step(&r->lesson, &r->results[p->step], batch, p->step));
    p->step++;
    p->tokens += STEP_SAMPLES * SEQUENCE;
    kd_loader_cursor(&p->cursor, r->loader);
}

static void same_results(const run *got, const run *want, int64_t step, const char *what)
{
    for (int m = 0; m < want->lesson.count; m++) {
        if (!want->lesson.models[m]->slab.trainable) continue;
        const kd_student_result *a = &got->results[step].student[m];
        const kd_student_result *b = &want->results[step].student[m];
        cr_assert(memcmp(a, b, sizeof *a) == 0,
                  "%s: step %lld, model %d has loss %.17g and norm %.17g, expected %.17g and %.17g",
                  what, (long long)step, m, a->loss, a->gradient_norm, b->loss, b->gradient_norm);
    }
}

static void same_bits(const run *got, const unsigned char *want, const char *what, int64_t step)
{
    size_t bytes;
    unsigned char *bits = test_lesson_bits(&got->lesson, &bytes);
    cr_assert(memcmp(bits, want, bytes) == 0, "%s: other weights or moments after step %lld", what,
              (long long)step);
    free(bits);
}

/* Goes on from the checkpoint of step k, in an engine that has seen nothing of the run. */
static void resume(const run *whole, unsigned char *const *bits, const variant *v, const char *path,
                   const char *dir, int64_t k)
{
    char what[64];
    run r;
    snprintf(what, sizeof what, "%s, resumed after step %lld", v->name, (long long)k);
    open_run(&r, v, path);
    test_ok(kd_checkpoint_load(&r.checkpoint.progress, dir, &r.checkpoint));
    test_ok(kd_loader_seek(r.loader, &r.checkpoint.progress.cursor));
    cr_assert(r.checkpoint.progress.step == k, "%s: step %lld", what,
              (long long)r.checkpoint.progress.step);
    same_bits(&r, bits[k], what, k);
    for (int64_t step = k; step < STEPS; step++) {
        take_step(&r);
        same_results(&r, whole, step, what);
        same_bits(&r, bits[step + 1], what, step + 1);
    }
    close_run(&r);
}

Test(bits, a_run_resumed_after_any_step_is_the_run)
{
    for (int i = 0; i < KD_COUNT(variants); i++) {
        const variant *v = &variants[i];
        const char *path = test_tokens_write("bits", CLASSES), *out = test_folder();
        const char *dirs[STEPS + 1];
        unsigned char *bits[STEPS + 1];
        kd_arena *arena;
        size_t bytes;
        run whole, again;
        test_ok(kd_arena_create(&arena));
        open_run(&whole, v, path);
        open_run(&again, v, path);
        for (int64_t k = 0; k <= STEPS; k++) {
            if (k > 0) take_step(&whole);
            bits[k] = test_lesson_bits(&whole.lesson, &bytes);
            test_ok(kd_checkpoint_save(&dirs[k], arena, out, &whole.checkpoint));
            cr_assert(k == 0 || memcmp(bits[k], bits[k - 1], bytes) != 0,
                      "%s: step %lld moved nothing", v->name, (long long)k);
        }
        for (int64_t k = 0; k < STEPS; k++) {
            take_step(&again);
            same_results(&again, &whole, k, "the same run again");
            same_bits(&again, bits[k + 1], "the same run again", k + 1);
        }
        for (int64_t k = 0; k < STEPS; k++) resume(&whole, bits, v, path, dirs[k], k);
        for (int64_t k = 0; k <= STEPS; k++) free(bits[k]);
        close_run(&whole);
        close_run(&again);
        kd_arena_destroy(arena);
        test_ok(kd_dir_remove(out));
    }
    test_text_remove();
}

/* ---- a run by its file ------------------------------------------------------------------------ */

/* As a run that died after step k: later checkpoints and the finished model are not there. */
static void forget_after(const char *out, int64_t k)
{
    char name[64];
    for (int64_t step = k + 1; step <= STEPS; step++) {
        snprintf(name, sizeof name, "checkpoint-%06lld", (long long)step);
        test_ok(kd_dir_remove(test_path(out, name)));
    }
    cr_assert(remove(test_path(out, "config.json")) == 0 &&
                  remove(test_path(out, "model.safetensors")) == 0,
              "%s: no finished model", out);
}

Test(bits, a_run_that_died_goes_on_with_the_same_records)
{
    static const int64_t died[] = { 0, 2, 6, 9, 11 };
    char whole[512];
    test_training c;
    test_training_open(&c, "f32");
    snprintf(whole, sizeof whole, "%s", test_path(c.folder, "whole"));
    test_ok(test_train(&c, "whole"));
    char *want = test_metrics(whole, true);
    for (int i = 0; i < KD_COUNT(died); i++) {
        char copy[512], name[64];
        snprintf(name, sizeof name, "died-%d", i);
        snprintf(copy, sizeof copy, "%s", test_path(c.folder, name));
        test_ok(test_train(&c, name));
        forget_after(copy, died[i]);
        test_ok(test_train(&c, name));
        for (int64_t k = died[i] + 1; k <= STEPS; k++) test_same_checkpoint(whole, copy, k);
        test_same_file(whole, copy, "model.safetensors");
        char *got = test_metrics(copy, true);
        snprintf(name, sizeof name, "died after step %lld", (long long)died[i]);
        test_same_text(got, want, name);
        free(got);
    }
    free(want);
    test_training_close(&c);
}

/* ---- a step that is not finite ---------------------------------------------------------------- */

typedef struct poison {
    const char *name;
    int model;
    float value;
    const char *component; /* named in the message */
} poison;

Test(bits, a_step_that_is_not_finite_moves_nothing)
{
    static const poison poisons[] = {
        { "NaN in the teacher", 0, NAN, "kl" },
        { "infinity in the teacher", 0, INFINITY, "kl" },
        { "NaN in the student", 1, NAN, "ce" },
    };
    const char *path = test_tokens_write("finite", CLASSES);
    for (int i = 0; i < 2 * KD_COUNT(poisons); i++) {
        const poison *p = &poisons[i / 2];
        const variant v = { p->name, i % 2 ? KD_BF16 : KD_F32, false, KD_RECOMPUTE_NONE };
        const kd_step_batch *batch;
        size_t bytes;
        run r;
        open_run(&r, &v, path);
        take_step(&r);
        const kd_model *model = r.lesson.models[p->model];
        const kd_tensor weight = kd_slab_weight(&model->slab, model->final_norm.weight);
        test_set(&weight, 3, (double)p->value);
        unsigned char *before = test_lesson_bits(&r.lesson, &bytes);
        test_ok(kd_loader_next(&batch, r.loader, NULL));
        const kd_status status = test_lesson_step(&r.lesson, NULL, batch, 1);
        const char *message = kd_last_error();
        cr_assert(status == KD_ENONFINITE && strstr(message, "step 1") &&
                      strstr(message, "rank 0") && strstr(message, "second") &&
                      strstr(message, p->component),
                  "%s: %s, \"%s\"", p->name, kd_status_text(status), message);
        same_bits(&r, before, p->name, 1);
        free(before);
        close_run(&r);
    }
    test_text_remove();
}

/* The same through kd_run_train: no checkpoint of it is ever written. */
Test(bits, a_run_that_is_not_finite_stops)
{
    char broken[512];
    test_training c;
    kd_device *device;
    kd_model *teacher;
    const kd_model_options options = { .label = "teacher", .dtype = KD_F32 };
    test_training_open(&c, "f32");
    snprintf(broken, sizeof broken, "%s", test_path(c.folder, "broken"));
    test_ok(kd_device_open(&device, "cpu"));
    test_ok(kd_model_open(&teacher, device, KD_GOLDEN "/step/teacher", &options));
    /* Finite, or it would not be read; what it multiplies is not. */
    const kd_tensor weight = kd_slab_weight(&teacher->slab, teacher->final_norm.weight);
    test_fill_constant(&weight, 3e38);
    test_ok(kd_model_save(teacher, broken, KD_F32));
    kd_model_close(teacher);
    kd_device_close(device);

    kd_run *made = test_training_run(&c, "out");
    test_ok(kd_run_set(made, "teacher.model", broken));
    test_ok(kd_run_set(made, "run.checkpoint.every", "never"));
    const kd_status status = kd_run_train(made);
    cr_assert(status == KD_ENONFINITE && strstr(kd_last_error(), "step 0"), "%s: %s",
              kd_status_text(status), kd_last_error());
    cr_assert(test_count(test_path(c.folder, "out"), "checkpoint-") == 0 &&
                  !test_exists(test_path(c.folder, "out"), "model.safetensors"),
              "something was written");
    kd_run_destroy(made);
    test_training_close(&c);
}
