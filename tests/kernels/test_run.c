/*
 * Whole steps and runs on a CUDA device: the CPU's losses and gradients, the same bits every time
 * (again, resumed, with and without graphs), nothing taken or waited for within a step, and what a run
 * says when the device does not do as it should.
 */
#include "support/emulated.h"
#include "support/golden.h"
#include "support/lesson.h"
#include "support/students.h"
#include "support/text_file.h"
#include "train/session.h"

#include <math.h>
#include <stdlib.h>

enum { STEPS = 5, SEQUENCE = 10, STEP_SAMPLES = 6, CLASSES = 61, TOKENS = 500 };

/* ---- steps ------------------------------------------------------------------------------------ */

typedef struct variant {
    const char *name, *family;
    kd_dtype dtype;
    kd_recompute recompute;
    bool mutual;
    double loss, gradient; /* how far from the CPU's, relative */
    const char *terms;     /* test_lesson_options.loss */
} variant;

static const char over_taps[] =
    "{kl: {}, hidden: {type: hidden_mse, layers: uniform, projector: {type: mlp, normalise: "
    "after}},"
    " cosine: {layers: [[1, 2]]}, attention_kl: {layers: uniform}, attention_mse: {weight: 0.1},"
    " minilm_relation: {relation_heads: 2}}";

/* The first, a Llama in f32, is held to everything.  bf16: 2^-8 per rounding, and logits of another
 * rounding choose other gradients of single rows. */
static const variant variants[] = {
    { "llama", NULL, KD_F32, KD_RECOMPUTE_NONE, false, 1e-4, 1e-4, NULL },
    { "bf16, recomputed", NULL, KD_BF16, KD_RECOMPUTE_BLOCKS, false, 4e-3, 4e-2, NULL },
    { "gpt2", "gpt2", KD_F32, KD_RECOMPUTE_NONE, false, 1e-4, 1e-4, NULL },
    { "two students of qwen3", "qwen3", KD_F32, KD_RECOMPUTE_BLOCKS, true, 1e-4, 1e-4, NULL },
    { "over taps", NULL, KD_F32, KD_RECOMPUTE_NONE, false, 1e-4, 1e-4, over_taps },
    { "largest classes", NULL, KD_F32, KD_RECOMPUTE_NONE, false, 1e-4, 1e-4,
      "{ce: {}, kl: {temperature: 2}, top_k: {k: 9, others: tail}}" },
    { "restricted to them", NULL, KD_F32, KD_RECOMPUTE_NONE, false, 1e-4, 1e-4,
      "{kl: {temperature: 2}, top_k: {k: 9, others: restricted}}" },
    { "restricted, and all of them beside", "gpt2", KD_F32, KD_RECOMPUTE_BLOCKS, false, 1e-4, 1e-4,
      "{ce: {weight: 0.3}, kl: {temperature: 2}, top_k: {k: 9, others: restricted}}" },
    { "each other's largest classes", "qwen3", KD_F32, KD_RECOMPUTE_NONE, true, 1e-4, 1e-4,
      "{ce: {}, kl: {temperature: 2}, top_k: {k: 9, others: restricted}}" },
    { "over taps in bf16", NULL, KD_BF16, KD_RECOMPUTE_BLOCKS, false, 4e-3, 4e-2, over_taps },
};

typedef struct run {
    test_lesson lesson;
    kd_loader *loader;
    kd_model *students[TEST_LESSON_MODELS];
    kd_checkpoint checkpoint;
    kd_step_result results[STEPS];
} run;

static void require_cuda(void)
{
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
}

static void open_run(run *r, const variant *v, const char *device, const char *path)
{
    test_lesson_options options = {
        .models = { { .seed = 1, .family = v->family, .label = "first", .trainable = v->mutual },
                    { .seed = 2,
                      .family = v->family,
                      .label = "second",
                      .trainable = true,
                      .recompute = v->recompute } },
        .count = 2,
        .dtype = v->dtype,
        .rows = 2 * SEQUENCE,
        .chunk = 8,
        .steps = STEPS,
        .lr = 0.01,
        .device = device,
        .loss = v->terms,
    };
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
    options.term_count = test_distil(options.terms, 1, 0);
    if (v->mutual) options.term_count += test_distil(options.terms + 2, 0, 1);
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

static void read_result(run *r, int64_t step)
{
    const kd_step_result *found;
    test_ok(kd_step_result_of(&found, &r->lesson.step, step));
    r->results[step] = *found;
}

/* As the trainer does: the result of a step is read when the next one is on its way. */
static void take_step(run *r)
{
    const kd_step_batch *batch;
    kd_progress *p = &r->checkpoint.progress;
    test_ok(kd_loader_next(&batch, r->loader, NULL));
    test_ok(kd_step_run(&r->lesson.step, batch, p->step));
    if (p->step > 0 && r->results[p->step - 1].valid == 0) read_result(r, p->step - 1);
    p->step++;
    p->tokens += STEP_SAMPLES * SEQUENCE;
    kd_loader_cursor(&p->cursor, r->loader);
}

static void near(double got, double want, double most, const char *what, int64_t step, int model,
                 const char *name)
{
    cr_assert(fabs(got - want) <= most * fabs(want),
              "%s: step %lld, model %d: %s is %.9g, expected %.9g", what, (long long)step, model,
              name, got, want);
}

static void near_cpu(const run *got, const run *want, const variant *v)
{
    for (int64_t step = 0; step < STEPS; step++)
        for (int m = 0; m < want->lesson.count; m++) {
            const kd_student_result *a = &got->results[step].student[m];
            const kd_student_result *b = &want->results[step].student[m];
            if (!want->lesson.models[m]->slab.trainable) continue;
            near(a->loss, b->loss, v->loss, v->name, step, m, "loss");
            near(a->gradient_norm, b->gradient_norm, v->gradient, v->name, step, m, "norm");
        }
}

Test(run, gives_what_the_cpu_gives)
{
    require_cuda();
    for (int i = 0; i < KD_COUNT(variants); i++) {
        const variant *v = &variants[i];
        const char *path = test_text_random("near", TOKENS, CLASSES, true);
        run gpu, cpu;
        open_run(&gpu, v, "cuda", path);
        open_run(&cpu, v, "cpu", path);
        for (int64_t step = 0; step < STEPS; step++) {
            take_step(&gpu);
            take_step(&cpu);
            read_result(&cpu,
                        step); /* at once: what the GPU's step says must not be the next one's */
            if (step > 0) continue;
            float *a = test_lesson_gradient(&gpu.lesson, 1),
                  *b = test_lesson_gradient(&cpu.lesson, 1);
            cr_assert(a && b);
            test_near_gradient(a, gpu.lesson.models[1], b, cpu.lesson.models[1], v->gradient, "%s",
                               v->name);
            free(a);
            free(b);
        }
        read_result(&gpu, STEPS - 1);
        near_cpu(&gpu, &cpu, v);
        close_run(&gpu);
        close_run(&cpu);
    }
    test_text_remove();
}

/* ---- bits ------------------------------------------------------------------------------------- */

static void same_bits(const run *got, const run *want, const char *name, const char *what)
{
    size_t bytes;
    unsigned char *a = test_lesson_bits(&got->lesson, &bytes);
    unsigned char *b = test_lesson_bits(&want->lesson, &bytes);
    cr_assert(a && b);
    cr_assert(memcmp(a, b, bytes) == 0, "%s: %s: other weights or moments", name, what);
    free(a);
    free(b);
}

static void finish(run *r)
{
    while (r->checkpoint.progress.step < STEPS) take_step(r);
    read_result(r, STEPS - 1);
}

static void check_again(const run *whole, const variant *v, const char *path, const char *what)
{
    run r;
    open_run(&r, v, "cuda", path);
    finish(&r);
    for (int64_t k = 0; k < STEPS; k++)
        cr_assert(memcmp(&r.results[k], &whole->results[k], sizeof r.results[k]) == 0,
                  "%s: %s: step %lld has loss %.17g, expected %.17g", v->name, what, (long long)k,
                  r.results[k].student[1].loss, whole->results[k].student[1].loss);
    same_bits(&r, whole, v->name, what);
    close_run(&r);
}

static void check_resumed(const run *whole, const variant *v, const char *path, const char *dir)
{
    run r;
    open_run(&r, v, "cuda", path);
    test_ok(kd_checkpoint_load(&r.checkpoint.progress, dir, &r.checkpoint));
    test_ok(kd_step_load_guard(&r.lesson.step, &r.checkpoint.progress.guard));
    test_ok(kd_loader_seek(r.loader, &r.checkpoint.progress.cursor));
    finish(&r);
    same_bits(&r, whole, v->name, "resumed");
    close_run(&r);
}

Test(run, has_the_same_bits_again_resumed_and_without_graphs)
{
    require_cuda();
    for (int i = 0; i < KD_COUNT(variants); i++) {
        const variant *v = &variants[i];
        const char *path = test_text_random("bits", TOKENS, CLASSES, true), *out = test_folder(),
                   *dir;
        kd_arena *arena;
        run whole;
        test_ok(kd_arena_create(&arena));
        unsetenv("KD_GRAPHS");
        open_run(&whole, v, "cuda", path);
        while (whole.checkpoint.progress.step < STEPS / 2) take_step(&whole);
        test_ok(kd_step_save_guard(&whole.checkpoint.progress.guard, &whole.lesson.step));
        test_ok(kd_checkpoint_save(&dir, arena, out, &whole.checkpoint));
        finish(&whole);
        if (i == 0) check_again(&whole, v, path, "again");
        check_resumed(&whole, v, path, dir);
        setenv("KD_GRAPHS", "0", 1);
        check_again(&whole, v, path, "without graphs");
        close_run(&whole);
        kd_arena_destroy(arena);
        test_ok(kd_dir_remove(out));
    }
    test_text_remove();
}

/* ---- what is not finite ----------------------------------------------------------------------- */

enum { TEACHER, STUDENT };
static const test_planted bad[] = { { TEACHER, "head", 7, 1, 1, NAN },
                                    { STUDENT, "blocks.0.out", 5, 1, 1, INFINITY } };
static const char *const places[] = {
    "logits of first are not finite (rank 0, micro-batch 0, row ",
    "logits of second are not finite (rank 0, micro-batch 0, row "
};

/* Enqueues a step; its result is not waited for. */
static void go(run *r, kd_cursor *before)
{
    const kd_step_batch *batch;
    if (before) kd_loader_cursor(before, r->loader);
    test_ok(kd_loader_next(&batch, r->loader, NULL));
    test_ok(kd_step_run(&r->lesson.step, batch, r->checkpoint.progress.step++));
}

static void expect_stop(kd_status status, int64_t step, const char *place)
{
    char name[32];
    snprintf(name, sizeof name, "step %lld: ", (long long)step);
    cr_assert(status == KD_ENONFINITE && strncmp(kd_last_error(), name, strlen(name)) == 0 &&
                  strstr(kd_last_error(), place) && strstr(kd_last_error(), "nothing was updated"),
              "%s: %s", kd_status_text(status), kd_last_error());
}

/* The step behind the bad one is on its way when that is known, and moves nothing either. */
static void check_stop(const variant *v, int which, const char *path)
{
    const kd_step_batch *batch;
    const kd_step_result *result;
    kd_cursor cursor;
    size_t bytes;
    run r;
    open_run(&r, v, "cuda", path);
    for (int k = 0; k < 3; k++) take_step(&r);
    read_result(&r, 2);
    test_ok(test_lesson_plant(&r.lesson, &bad[which]));
    unsigned char *before = test_lesson_bits(&r.lesson, &bytes);
    go(&r, &cursor);
    if (which == TEACHER) {
        const test_planted mended = { TEACHER, "head", 7, 1, 1, 0.5f };
        test_ok(test_lesson_plant(&r.lesson, &mended));
    }
    go(&r, NULL);
    expect_stop(kd_step_result_of(&result, &r.lesson.step, 3), 3, "not finite");
    unsigned char *after = test_lesson_bits(&r.lesson, &bytes);
    cr_assert(memcmp(before, after, bytes) == 0, "%s: weights or moments have moved", v->name);
    if (which == TEACHER) test_ok(test_lesson_plant(&r.lesson, &bad[which]));
    test_ok(kd_loader_seek(r.loader, &cursor));
    test_ok(kd_loader_next(&batch, r.loader, NULL));
    expect_stop(kd_step_look(&r.lesson.step, batch, 3), 3, places[which]);
    free(before);
    free(after);
    close_run(&r);
}

/* Steps 0 to 4 of which 3 is bad and left out, or not taken at all. */
static void skip_one(run *r, bool taken, const char *path)
{
    static const test_planted mended = { TEACHER, "head", 7, 1, 1, 0.5f };
    const kd_step_batch *batch;
    open_run(r, &variants[0], "cuda", path);
    r->lesson.step.optim.on_nonfinite = KD_NONFINITE_SKIP;
    r->lesson.step.optim.max_skips = 1;
    for (int k = 0; k < 3; k++) take_step(r);
    read_result(r, 2);
    test_ok(test_lesson_plant(&r->lesson, &bad[TEACHER]));
    if (taken) {
        take_step(r);
        read_result(r, 3);
        cr_assert(r->results[3].skips == 1 && r->results[3].in_row == 1);
    } else {
        test_ok(kd_loader_next(&batch, r->loader, NULL));
        r->checkpoint.progress.step++;
    }
    test_ok(test_lesson_plant(&r->lesson, &mended));
    go(r, NULL);
    read_result(r, 4);
    cr_assert(r->results[4].skips == taken && r->results[4].in_row == 0);
}

Test(run, that_is_not_finite_moves_nothing)
{
    require_cuda();
    const char *path = test_text_random("finite", TOKENS, CLASSES, true);
    for (int graphs = 0; graphs < 2; graphs++) {
        run with, without;
        setenv("KD_GRAPHS", graphs ? "1" : "0", 1);
        check_stop(&variants[graphs], TEACHER, path);
        check_stop(&variants[!graphs], STUDENT, path);
        skip_one(&with, true, path);
        skip_one(&without, false, path);
        same_bits(&with, &without, variants[0].name, "a step left out");
        close_run(&with);
        close_run(&without);
    }
    unsetenv("KD_GRAPHS");
    test_text_remove();
}

/* ---- what a step takes ------------------------------------------------------------------------ */

#if __has_include(<cudasim.h>)
/* From the third step on all is recorded that repeats.  One wait: for the result of the step before. */
static void check_counts(bool graphs)
{
    cudasim_counts c;
    run r;
    setenv("KD_GRAPHS", graphs ? "1" : "0", 1);
    open_run(&r, &variants[0], "cuda", test_text_random("counts", TOKENS, CLASSES, false));
    for (int64_t step = 0; step < STEPS; step++) {
        cudasim_reset();
        take_step(&r);
        cudasim_read(&c);
        if (step < 2) continue;
        cr_assert(c.allocations + c.frees + c.host_allocations + c.host_frees + c.captures == 0,
                  "step %lld: %d + %d of memory, %d + %d of pinned memory, %d captures",
                  (long long)step, (int)c.allocations, (int)c.frees, (int)c.host_allocations,
                  (int)c.host_frees, (int)c.captures);
        cr_assert(c.synchronisations == 1, "step %lld waits %d times", (long long)step,
                  (int)c.synchronisations);
        /* Three micro-batches and the update; outside of them totals and gradients are cleared. */
        cr_assert(c.graph_launches == (graphs ? 4 : 0), "step %lld: %d graphs", (long long)step,
                  (int)c.graph_launches);
        cr_assert(graphs ? c.launches == 2 : c.launches > 100, "step %lld: %d launches",
                  (long long)step, (int)c.launches);
    }
    read_result(&r, STEPS - 1);
    close_run(&r);
}

Test(run, takes_and_waits_for_nothing_within_a_step)
{
    require_cuda();
    check_counts(true);
    check_counts(false);
    test_text_remove();
}
#endif

/* ---- a run ------------------------------------------------------------------------------------ */

static kd_run *make_run(const char *device, const char *out)
{
    kd_run *made;
    const char *const settings[][2] = { { "teacher.model", KD_GOLDEN "/step/teacher" },
                                        { "teacher.dtype", "f32" },
                                        { "student.model", KD_GOLDEN "/step/student" },
                                        { "student.dtype", "f32" },
                                        { "data.train", test_text_random("run", TOKENS, 80, true) },
                                        { "data.valid",
                                          test_text_random("valid", TOKENS, 80, false) },
                                        { "data.sequence", "10" },
                                        { "loss.alpha", "0.6" },
                                        { "optim.lr", "1e-3" },
                                        { "batch.samples", "16" },
                                        { "batch.micro", "4" },
                                        { "run.steps", "3" },
                                        { "run.log_every", "1" },
                                        { "run.device", device },
                                        { "run.out", out },
                                        { "run.checkpoint.every", "never" },
                                        { "eval.every", "2 steps" },
                                        { "eval.tokens", "80" } };
    test_ok(kd_run_create(&made));
    for (int i = 0; i < KD_COUNT(settings); i++)
        test_ok(kd_run_set(made, settings[i][0], settings[i][1]));
    return made;
}

/* Trains, and gives the numbers of one kind in metrics.jsonl. */
static int train(double *losses, double *divergences, const char *device, const char *out)
{
    char *text;
    size_t bytes;
    int count = 0, measured = 0;
    kd_run *made = make_run(device, out);
    test_ok(kd_run_train(made));
    kd_run_destroy(made);
    cr_assert(test_exists(out, "model.safetensors"), "%s: no model", device);
    test_ok(kd_file_read(&text, &bytes, test_path(out, "metrics.jsonl"), 1 << 20));
    for (const char *at = text; (at = strstr(at, "\"loss\":")) && count < STEPS;)
        losses[count++] = strtod(at += 7, NULL);
    for (const char *at = text; (at = strstr(at, "\"kl\":")) && measured < 2 * STEPS;)
        divergences[measured++] = strtod(at += 5, NULL);
    cr_assert(count == 3 && measured == 3 + 2, "%d losses and %d divergences in %s", count,
              measured, text);
    free(text);
    return measured;
}

Test(run, trains_evaluates_and_saves_as_on_the_cpu)
{
    double losses[2][STEPS], divergences[2][2 * STEPS];
    const char *folder = test_folder();
    char out[2][512];
    require_cuda();
    (void)test_log();
    snprintf(out[0], sizeof out[0], "%s", test_path(folder, "gpu"));
    snprintf(out[1], sizeof out[1], "%s", test_path(folder, "cpu"));
    const int count = train(losses[0], divergences[0], "cuda", out[0]);
    (void)train(losses[1], divergences[1], "cpu", out[1]);
    for (int i = 0; i < 3; i++) near(losses[0][i], losses[1][i], 1e-4, "run", i, 1, "loss");
    for (int i = 0; i < count; i++)
        near(divergences[0][i], divergences[1][i], 1e-4, "run", i, 1, "kl");
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}

Test(run, names_the_step_whose_call_fails)
{
    static const char *const settings[] = { "cudaMemcpyAsync:3", "cudaEventSynchronize:1",
                                            "cudaLaunchKernelEx:2", "cudaGraphLaunch:2" };
    if (!EMULATED) cr_skip_test("skipped: only the emulator fails when it is asked to");
    require_cuda();
    for (int i = 0; i < KD_COUNT(settings); i++) {
        const kd_step_batch *batch;
        const kd_step_result *result;
        char call[32];
        run r;
        snprintf(call, sizeof call, "%.*s", (int)strcspn(settings[i], ":"), settings[i]);
        open_run(&r, &variants[0], "cuda", test_text_random("fails", TOKENS, CLASSES, false));
        for (int k = 0; k < 3; k++) take_step(&r);
        test_ok(kd_loader_next(&batch, r.loader, NULL));
        cudasim_set("KD_SIM_FAIL", settings[i]);
        kd_status status = kd_step_run(&r.lesson.step, batch, 3);
        if (status == KD_OK) status = kd_step_result_of(&result, &r.lesson.step, 3);
        cudasim_set("KD_SIM_FAIL", "");
        cr_assert(status == KD_EDEVICE && strncmp(kd_last_error(), "step 3: ", 8) == 0 &&
                      strstr(kd_last_error(), "cuda:0: "),
                  "%s: %s: %s", settings[i], kd_status_text(status), kd_last_error());
        cr_assert(strstr(kd_last_error(), "Launch") || strstr(kd_last_error(), call) || i == 2,
                  "%s: %s", settings[i], kd_last_error());
        close_run(&r);
    }
    test_text_remove();
}
