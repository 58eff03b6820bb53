/*
 * Known cost: nothing is allocated after the first step, and what is planned is what is allocated, to
 * the byte.  slow_memory.c looks at what is resident.
 *
 * Two libraries take memory within a call and give it back: dnnl_primitive_execute some list nodes
 * (see device/cpu_dnn.c), and libgomp a team when a parallel region has another number of threads than
 * the one before.  So live bytes and blocks must stay what they were, and nobody but those two may have
 * called malloc at all.
 */
#include "support/interpose.h"
#include "support/lesson.h"
#include "support/students.h"
#include "support/text_file.h"
#include "train/session.h"

#include <stdio.h>
#include <stdlib.h>

enum { STEPS = 12, SEQUENCE = 10, TOKENS = 700 };

static void require_heap(test_heap *heap)
{
    if (!test_heap_read(heap)) cr_skip_test("skipped: a sanitizer watches the heap itself");
}

/* ---- the step and the loader ------------------------------------------------------------------ */

typedef struct variant {
    const char *name, *family;
    kd_dtype dtype;
    kd_recompute recompute;
    bool mutual;
    kd_pack pack;
} variant;

static void check_steps(const variant *v, const char *path)
{
    test_lesson_options options = {
        .models = { { .seed = 1, .trainable = v->mutual },
                    { .seed = 2,
                      .family = v->family,
                      .trainable = true,
                      .recompute = v->recompute } },
        .count = 2,
        .dtype = v->dtype,
        .rows = 2 * SEQUENCE,
        .chunk = 3,
    };
    const kd_loader_options data = { .files = { path, path },
                                     .weights = { 1, 2 },
                                     .sources = 2,
                                     .vocabulary = 61,
                                     .sequence = SEQUENCE,
                                     .pack = v->pack,
                                     .step_samples = 6,
                                     .micro_samples = 2,
                                     .ranks = 1,
                                     .seed = 6,
                                     .shuffle = true };
    test_heap first, now;
    kd_loader *loader;
    test_lesson lesson;
    options.term_count = test_distil(options.terms, 1, 0);
    if (v->mutual) options.term_count += test_distil(options.terms + 2, 0, 1);
    test_ok(test_lesson_open(&lesson, &options));
    test_ok(kd_loader_open(&loader, &data));
    for (int64_t step = 0; step < STEPS; step++) {
        const kd_step_batch *batch;
        double wait;
        kd_step_result result;
        test_ok(kd_loader_next(&batch, loader, &wait));
        test_ok(test_lesson_step(&lesson, &result, batch, step));
        (void)test_heap_read(&now);
        if (step == 0) first = now;
        cr_assert(now.live_bytes == first.live_bytes && now.live_blocks == first.live_blocks,
                  "%s: after step %lld %lld more bytes in %lld blocks are live than after step 0",
                  v->name, (long long)step, (long long)(now.live_bytes - first.live_bytes),
                  (long long)(now.live_blocks - first.live_blocks));
        cr_assert(now.calls == first.calls, "%s: %lld allocations until step %lld", v->name,
                  (long long)(now.calls - first.calls), (long long)step);
    }
    cr_assert(now.library_calls > first.library_calls,
              "%s: nothing was seen in oneDNN: the watch does not work", v->name);
    kd_loader_close(loader);
    test_lesson_close(&lesson);
}

Test(memory, nothing_is_allocated_after_the_first_step)
{
    static const variant variants[] = {
        { "llama", NULL, KD_F32, KD_RECOMPUTE_NONE, false, KD_PACK_DOCUMENTS },
        { "qwen3, bf16, recomputed", "qwen3", KD_BF16, KD_RECOMPUTE_BLOCKS, false, KD_PACK_NONE },
        { "gpt2, recomputed", "gpt2", KD_F32, KD_RECOMPUTE_BLOCKS, false, KD_PACK_DOCUMENTS },
        { "two students, bf16", NULL, KD_BF16, KD_RECOMPUTE_NONE, true, KD_PACK_DOCUMENTS },
    };
    test_heap heap;
    require_heap(&heap);
    for (int i = 0; i < KD_COUNT(variants); i++)
        check_steps(&variants[i], test_text_random("steps", TOKENS, 61, true));
    test_text_remove();
}

/* ---- a run ------------------------------------------------------------------------------------ */

/* Live bytes at each line that tells of a step. */
typedef struct watch {
    int64_t live[STEPS], lines;
} watch;

static void watch_line(void *context, kd_log_level level, const char *line)
{
    watch *w = context;
    char *end;
    test_heap heap;
    const long step = strtol(line, &end, 10);
    (void)level;
    if (end == line || strncmp(end, "  ", 2) != 0 || w->lines == STEPS) return;
    cr_assert(step == w->lines, "a line of step %ld where %lld should be", step,
              (long long)w->lines);
    (void)test_heap_read(&heap);
    w->live[w->lines++] = heap.live_bytes;
}

static kd_run *make_run(const char *folder, const char *dtype, const char *recompute)
{
    kd_run *run;
    const char *const settings[][2] = { { "teacher.model", KD_GOLDEN "/step/teacher" },
                                        { "teacher.dtype", dtype },
                                        { "student.model", KD_GOLDEN "/step/student" },
                                        { "student.dtype", dtype },
                                        { "student.recompute", recompute },
                                        { "data.train", test_text_random("run", TOKENS, 89, true) },
                                        { "data.sequence", "10" },
                                        { "loss.alpha", "0.6" },
                                        { "optim.lr", "1e-3" },
                                        { "batch.samples", "4" },
                                        { "batch.micro", "2" },
                                        { "run.steps", "12" },
                                        { "run.log_every", "1" },
                                        { "run.device", "cpu" },
                                        { "run.out", test_path(folder, "out") },
                                        { "run.checkpoint.every", "never" } };
    test_ok(kd_run_create(&run));
    for (int i = 0; i < KD_COUNT(settings); i++)
        test_ok(kd_run_set(run, settings[i][0], settings[i][1]));
    return run;
}

/* The loop around the step may open files and print, but keeps nothing. */
Test(memory, of_a_run_does_not_grow)
{
    const char *folder = test_folder();
    test_heap heap;
    watch w = { .lines = 0 };
    require_heap(&heap);
    kd_run *run = make_run(folder, "f32", "none");
    kd_log_redirect(watch_line, &w);
    test_ok(kd_run_train(run));
    kd_log_redirect(NULL, NULL);
    cr_assert(w.lines == STEPS, "%lld lines of %d steps", (long long)w.lines, STEPS);
    /* The line of step k comes after step k + 1 was started. */
    for (int64_t k = 1; k < STEPS; k++)
        cr_assert(w.live[k] == w.live[0], "%lld bytes more at the line of step %lld than at step 0",
                  (long long)(w.live[k] - w.live[0]), (long long)k);
    kd_run_destroy(run);
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}

Test(memory, of_the_plan_is_what_is_allocated)
{
    static const char *const kinds[][2] = {
        { "f32", "none" }, { "bf16", "none" }, { "f32", "blocks" }, { "bf16", "blocks" }
    };
    const char *folder = test_folder();
    test_heap before, after;
    require_heap(&before);
    for (int i = 0; i < KD_COUNT(kinds); i++) {
        kd_estimate e;
        kd_session session;
        kd_run *run = make_run(folder, kinds[i][0], kinds[i][1]);
        test_ok(kd_run_estimate(&e, run, "cpu"));
        (void)test_heap_read(&before);
        test_ok(kd_session_open(&session, run));
        (void)test_heap_read(&after);
        const double planned = (double)kd_session_bytes(&session);
        const double taken = (double)(after.aligned_bytes - before.aligned_bytes);
        cr_assert(e.peak_bytes == planned &&
                      e.student_bytes + e.teacher_bytes + e.step_bytes == planned,
                  "%s, %s: %.0f bytes estimated, %.0f planned", kinds[i][0], kinds[i][1],
                  e.peak_bytes, planned);
        cr_assert(taken == planned, "%s, %s: %.0f bytes taken, %.0f planned", kinds[i][0],
                  kinds[i][1], taken, planned);
        kd_session_close(&session);
        kd_run_destroy(run);
    }
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}
