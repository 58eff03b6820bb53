/*
 * Same bits: a run taken twice, and a run that is stopped after any of its steps and goes on from its
 * checkpoint, have the same weights, optimizer state and losses to the last bit, whether driven step
 * by step or by kd_run_train.
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
    const char *loss; /* test_lesson_options.loss */
} variant;

/* Projectors that are trained, one that is not, and weights that move. */
static const char over_taps[] =
    "{kl: {}, hidden: {type: hidden_mse, layers: uniform, projector: {type: mlp, shared: true},"
    " weight: {from: 1, to: 0, steps: 9}},"
    " cosine: {projector: {type: linear, trainable: false}}, attention_kl: {}}";

static const variant variants[] = {
    { "f32", KD_F32, false, KD_RECOMPUTE_NONE, NULL },
    { "bf16", KD_BF16, false, KD_RECOMPUTE_BLOCKS, NULL },
    { "two students", KD_BF16, true, KD_RECOMPUTE_NONE, NULL },
    { "f32 over taps", KD_F32, false, KD_RECOMPUTE_NONE, over_taps },
    { "bf16 over taps", KD_BF16, false, KD_RECOMPUTE_BLOCKS, over_taps },
    { "two students over taps", KD_BF16, true, KD_RECOMPUTE_NONE, over_taps },
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
        .loss = v->loss,
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
    test_ok(kd_step_load_guard(&r.lesson.step, &r.checkpoint.progress.guard));
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
        const char *path = test_text_random("bits", TEST_TRAINING_TOKENS, CLASSES, true),
                   *out = test_folder();
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
            test_ok(kd_step_save_guard(&whole.checkpoint.progress.guard, &whole.lesson.step));
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

/* ---- through spikes --------------------------------------------------------------------------- */

enum { LONG = 170 };

/* A low bar, over which many steps jump once the windows are full. */
static kd_status train_long(const test_training *c, const char *out)
{
    static const char *const settings[][2] = { { "data.valid", "" },
                                               { "eval.every", "never" },
                                               { "loss.kl", "{weight: 0.6, temperature: 2}" },
                                               { "optim.skip_zscore", "1.5" },
                                               { "optim.schedule", "constant" },
                                               { "run.steps", "170" },
                                               { "run.log_every", "1" },
                                               { "run.tensorboard", "false" },
                                               { "run.checkpoint.every", "10 steps" } };
    kd_run *made = test_training_run(c, out);
    for (int i = 0; i < KD_COUNT(settings); i++)
        test_ok(kd_run_set(made, settings[i][0], settings[i][1]));
    const kd_status status = kd_run_train(made);
    kd_run_destroy(made);
    return status;
}

/* The last number called `key` in metrics.jsonl. */
static double last_of(const char *metrics, const char *key)
{
    double value = NAN;
    for (const char *at = metrics; (at = strstr(at, key));) value = strtod(at += strlen(key), NULL);
    return value;
}

/* Died before the windows were full, and between spikes: the same ones are left out again. */
Test(bits, a_run_resumed_between_spikes_is_the_run)
{
    static const int64_t died[] = { 100, 140 };
    char whole[512], out[512];
    test_training c;
    test_training_open(&c, "f32");
    const char *log = test_log();
    snprintf(whole, sizeof whole, "%s", test_path(c.folder, "whole"));
    snprintf(out, sizeof out, "%s", test_path(c.folder, "died"));
    test_ok(train_long(&c, "whole"));
    cr_assert(strstr(log, "  |grad|       z  "), "%s", log);
    char *want = test_metrics(whole, false);
    const double skipped = last_of(want, "\"skipped\":"), z = last_of(want, "\"norm_z\":");
    cr_assert(skipped >= 3 && skipped < LONG - KD_GUARD_WINDOW && fabs(z) < 12,
              "%g steps were left out, z %g", skipped, z);
    test_ok(train_long(&c, "died"));
    for (int i = 0; i < KD_COUNT(died); i++) {
        for (int64_t step = died[i] + 10; step <= LONG; step += 10) {
            char name[64];
            snprintf(name, sizeof name, "checkpoint-%06lld", (long long)step);
            test_ok(kd_dir_remove(test_path(out, name)));
        }
        cr_assert(remove(test_path(out, "config.json")) == 0);
        test_ok(train_long(&c, "died"));
        char *got = test_metrics(out, false);
        test_same_text(got, want, "metrics");
        test_same_checkpoint(whole, out, LONG);
        test_same_file(whole, out, "model.safetensors");
        free(got);
    }
    free(want);
    test_training_close(&c);
}
