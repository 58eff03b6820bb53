/*
 * Finite or stopped: whatever stops being finite, in whichever model, term, row or gradient, in the
 * first micro-batch or the last, on one rank or another, stops the run before its update and before
 * any later one, and is named; or is left out as if that batch had never been.
 */
#include "support/golden.h"
#include "support/lesson.h"
#include "support/refusal.h"
#include "support/students.h"
#include "support/text_file.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    STEPS = 6,
    SEQUENCE = 10,
    STEP_SAMPLES = 8,
    MICRO_SAMPLES = 2,
    CLASSES = 61,
    WIDTH = 24,
    FFN = 37,
    ODD = 60, /* a token that only one place has */
    STEP_TOKENS = STEP_SAMPLES * SEQUENCE,
    TOKENS = STEPS * STEP_TOKENS + 1,
    LENGTH = 16, /* of a document */
    MAX_RANKS = 2
};

/* ---- data ------------------------------------------------------------------------------------- */

/* Read in this order; token ODD at `odd` alone (-1: nowhere).  Step `silent` has no row that counts. */
static const char *write_some_tokens(const char *name, int64_t odd, int64_t silent)
{
    static int64_t tokens[TOKENS], borders[TOKENS / LENGTH + 2];
    static uint8_t mask[TOKENS];
    int64_t documents = 0;
    for (int64_t i = 0; i < TOKENS; i++) {
        tokens[i] = i == odd ? ODD : (int64_t)(kd_random_uniform(4, 1, (uint64_t)i) * ODD);
        mask[i] = (i - 1) / STEP_TOKENS != silent; /* of a label, which is the next token */
        if (i % LENGTH == 0) borders[documents++] = i;
    }
    borders[documents++] = TOKENS;
    return test_text_write(name, &(test_text){ .dtype = "U16",
                                               .tokens = tokens,
                                               .count = TOKENS,
                                               .documents = borders,
                                               .borders = documents,
                                               .mask = mask,
                                               .mask_count = TOKENS });
}

static const char *write_tokens(const char *name, int64_t odd)
{
    return write_some_tokens(name, odd, -1);
}

/* ---- what is wrong ---------------------------------------------------------------------------- */

enum { TEACHER, STUDENT, MUCH = 1000 };

typedef struct poison {
    const char *name;
    test_planted planted[3];
    bool by_token;     /* in the row of token ODD, and those that see it */
    double weight;     /* of cross entropy; 0: 0.4 */
    bool z_loss;       /* a third term */
    const char *loss;  /* in place of the usual terms */
    const char *parts; /* of what is said */
} poison;

#define EMBEDDING(model, value)                                                                    \
    {                                                                                              \
        model, "embedding", ODD *WIDTH + 3, 1, 1, value                                            \
    }
/* A hidden unit that nothing reaches: its row of the gates is 0, what it would be multiplied with huge.
 * Its gradient is not 0. */
#define GATE(from)                                                                                 \
    {                                                                                              \
        STUDENT, "blocks.1.mlp_up", (from)*WIDTH, 1, WIDTH, 0.0f                                   \
    }
#define DOWN(from, value)                                                                          \
    {                                                                                              \
        STUDENT, "blocks.1.mlp_down", from, FFN, WIDTH, value                                      \
    }

static const poison poisons[] = {
    { "NaN in the teacher",
      { EMBEDDING(TEACHER, NAN) },
      .by_token = true,
      .parts = "logits of first are not finite" },
    { "infinity in the teacher",
      { EMBEDDING(TEACHER, INFINITY) },
      .by_token = true,
      .parts = "logits of first are not finite" },
    { "NaN in the student",
      { EMBEDDING(STUDENT, NAN) },
      .by_token = true,
      .parts = "logits of second are not finite" },
    { "logits that no float can square",
      { { STUDENT, "head", 5, WIDTH, CLASSES, 1e25f } },
      .z_loss = true,
      .parts = "z of second is not finite (rank 0, micro-batch 0, row 0: token 0 of a "
               "piece of document " },
    { "a gradient of the head, of a loss that is finite",
      { { STUDENT, "final_norm", 4, 1, 1, 0.0f },
        { STUDENT, "head", 4, WIDTH, CLASSES / 2, 3e38f } },
      .weight = MUCH,
      .parts = "d_second of ce is not finite (rank 0, micro-batch 0, row 0: token 0 " },
    { "a gradient within a block",
      { GATE(7), DOWN(7, 3e38f) },
      .weight = 100 * MUCH,
      .parts = "gradient of second, blocks.1.mlp_up, is not finite (rank 0, micro-batch 0)" },
    { "a norm that is no float",
      { GATE(7), DOWN(7, 1e25f) },
      .weight = 1,
      .parts = "gradient of second has no norm in f32: blocks.1.mlp_up goes up to |e+2" },
    { "a weight that is none",
      { { STUDENT, "final_norm", 4, 1, 1, 1.0f } },
      .weight = 1e38,
      .parts = "of second" },
    { "NaN in a projector",
      { { STUDENT, "loss.h.1.0.weight", 3, 1, 1, NAN } },
      .loss = "{ce: {}, kl: {}, c: {type: cosine},"
              " h: {type: hidden_mse, layers: [[0, 1], [1, 1]], projector: linear}}",
      .parts = "h of second is not finite (rank 0, micro-batch |, row |: token " },
};

static kd_status plant(const test_lesson *lesson, const poison *p)
{
    for (int i = 0; i < KD_COUNT(p->planted) && p->planted[i].param; i++)
        KD_TRY(test_lesson_plant(lesson, &p->planted[i]));
    return KD_OK;
}

/* ---- a run, step by step ---------------------------------------------------------------------- */

typedef struct run {
    test_lesson lesson;
    kd_loader *loader;
    kd_cursor before[2]; /* as the trainer keeps them */
    int64_t next;
} run;

typedef struct way {
    const poison *poison; /* may be NULL */
    kd_dtype dtype;
    bool mutual, skip;
    int64_t max_skips;
    kd_comm *comm; /* NULL: one rank */
    int64_t chunk;
} way;

static kd_status open_run(run *r, const way *w, const char *path)
{
    test_lesson_options options = {
        .models = { { .seed = 1, .label = "first", .trainable = w->mutual },
                    { .seed = 2, .label = "second", .trainable = true } },
        .count = 2,
        .dtype = w->dtype,
        .rows = MICRO_SAMPLES * SEQUENCE,
        .chunk = w->chunk ? w->chunk : 8,
        .lr = 0.01,
        .comm = w->comm,
        .skip = w->skip,
        .max_skips = w->max_skips,
        .loss = w->poison ? w->poison->loss : NULL,
    };
    const kd_loader_options data = { .files = { path },
                                     .weights = { 1 },
                                     .sources = 1,
                                     .vocabulary = CLASSES,
                                     .sequence = SEQUENCE,
                                     .step_samples = STEP_SAMPLES,
                                     .micro_samples = MICRO_SAMPLES,
                                     .rank = w->comm ? w->comm->rank : 0,
                                     .ranks = w->comm ? w->comm->size : 1 };
    options.term_count = test_distil(options.terms, STUDENT, TEACHER);
    if (w->poison && w->poison->weight > 0)
        options.terms[0].weight = (kd_ramp){ .to = w->poison->weight };
    if (w->poison && w->poison->z_loss)
        options.terms[options.term_count++] = (kd_term){ .name = "z",
                                                         .kind = KD_ROW_z_loss,
                                                         .weight = { .to = 1e-3 },
                                                         .temperature = 1,
                                                         .student = STUDENT,
                                                         .teacher = -1 };
    if (w->mutual) options.term_count += test_distil(options.terms + options.term_count, 0, 1);
    *r = (run){ .loader = NULL };
    KD_TRY(test_lesson_open(&r->lesson, &options));
    return kd_loader_open(&r->loader, &data);
}

static void close_run(run *r)
{
    kd_loader_close(r->loader);
    test_lesson_close(&r->lesson);
}

/* Enqueues a step; its result is not waited for. */
static kd_status go(run *r)
{
    const kd_step_batch *batch;
    kd_loader_cursor(&r->before[r->next & 1], r->loader);
    KD_TRY(kd_loader_next(&batch, r->loader, NULL));
    return kd_step_run(&r->lesson.step, batch, r->next++);
}

static kd_status finish(run *r, int64_t until)
{
    const kd_step_result *result;
    while (r->next < until) {
        KD_TRY(go(r));
        KD_TRY(kd_step_result_of(&result, &r->lesson.step, r->next - 1));
    }
    return KD_OK;
}

/* The step before the last one enqueued, looked at again. */
static kd_status look(run *r)
{
    const kd_step_batch *batch;
    const kd_step_result *result;
    const int64_t step = r->next - 2;
    char message[512];
    const kd_status status = kd_step_result_of(&result, &r->lesson.step, step);
    snprintf(message, sizeof message, "%s", kd_last_error());
    if (status != KD_ENONFINITE) return kd_fail(KD_EINTERNAL, "it went on: %s", message);
    KD_TRY(kd_loader_seek(r->loader, &r->before[step & 1]));
    KD_TRY(kd_loader_next(&batch, r->loader, NULL));
    kd_record_failure("%s", message);
    return kd_step_look(&r->lesson.step, batch, step);
}

/* ---- it stops --------------------------------------------------------------------------------- */

typedef struct rank {
    way way;
    const char *path;
    bool same; /* bits, before the bad step and after the one behind it */
    kd_status status;
    char message[512];
} rank;

static kd_status stop(rank *r, run *at)
{
    size_t bytes;
    KD_TRY(open_run(at, &r->way, r->path));
    const bool by_token = r->way.poison->by_token;
    if (by_token) KD_TRY(finish(at, 2));
    KD_TRY(plant(&at->lesson, r->way.poison));
    unsigned char *before = test_lesson_bits(&at->lesson, &bytes);
    KD_TRY(go(at));
    KD_TRY(go(at)); /* which may be good */
    const kd_status status = look(at);
    unsigned char *after = test_lesson_bits(&at->lesson, &bytes);
    r->same = memcmp(before, after, bytes) == 0;
    free(before);
    free(after);
    return status;
}

/* Assertions belong to the main thread: a rank keeps what it saw. */
static void *run_rank(void *context)
{
    rank *r = context;
    run at;
    r->status = stop(r, &at);
    snprintf(r->message, sizeof r->message, "%s", kd_last_error());
    close_run(&at);
    return NULL;
}

/* `owner`: the rank that has the row. */
static void check_stop(const way *w, const char *path, int ranks, int64_t micro, const char *name)
{
    rank all[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    kd_comm *comms[MAX_RANKS];
    char where[64] = "";
    const bool by_token = w->poison->by_token;
    const int64_t per_rank = STEP_SAMPLES / MICRO_SAMPLES / ranks;
    if (by_token)
        snprintf(where, sizeof where, "rank %d, micro-batch %d, row ", (int)(micro / per_rank),
                 (int)(micro % per_rank));
    test_ok(kd_comm_threads(comms, ranks, 1 << 20));
    for (int r = 0; r < ranks; r++) {
        all[r] = (rank){ .way = *w, .path = path };
        all[r].way.comm = comms[r];
        cr_assert(pthread_create(&threads[r], NULL, run_rank, &all[r]) == 0);
    }
    for (int r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++) {
        kd_comm_close(comms[r]);
        const kd_status status = kd_fail(all[r].status, "%s", all[r].message);
        test_refusal(status, KD_ENONFINITE, w->poison->parts, name);
        test_refusal(status, KD_ENONFINITE,
                     by_token ? "step 2: |; nothing was updated" : "step 0: ", name);
        test_refusal(status, KD_ENONFINITE, where, name);
        cr_assert(all[r].same, "%s, rank %d: weights or moments have moved", name, r);
    }
}

/* Tokens of step 2's first and last micro-batch, and of one between. */
Test(nonfinite, stops_before_the_update_and_is_named)
{
    static const int64_t micros[] = { 0, 2, STEP_SAMPLES / MICRO_SAMPLES - 1 };
    for (int i = 0; i < KD_COUNT(poisons); i++)
        for (int k = 0; k < KD_COUNT(micros); k++)
            for (int variant = 0; variant < 4; variant++) {
                const poison *p = &poisons[i];
                const bool half = variant & 1, two = variant & 2;
                if (k > 0 && (!p->by_token || half)) continue;
                const int64_t odd = 2 * STEP_TOKENS + micros[k] * MICRO_SAMPLES * SEQUENCE + 3;
                const way w = { .poison = p,
                                .dtype = half ? KD_BF16 : KD_F32,
                                .mutual = i % 2 && !p->z_loss };
                char name[128];
                snprintf(name, sizeof name, "%s, %s, %d ranks, micro-batch %d", p->name,
                         half ? "bf16" : "f32", 1 + two, (int)micros[k]);
                check_stop(&w, write_tokens("stop", odd), 1 + two, micros[k], name);
            }
    test_text_remove();
}

/* ---- or it is left out ------------------------------------------------------------------------ */

static void same_bits(const run *got, const run *want, const char *name)
{
    size_t bytes;
    unsigned char *a = test_lesson_bits(&got->lesson, &bytes);
    unsigned char *b = test_lesson_bits(&want->lesson, &bytes);
    cr_assert(a && b && memcmp(a, b, bytes) == 0, "%s: other weights or moments", name);
    free(a);
    free(b);
}

/* As if step 2 had never been: neither its update, nor in what the next ones do with their moments. */
static void check_skip(const way *w, const char *path, const char *name)
{
    const kd_step_batch *batch;
    const kd_step_result *result;
    run with, without;
    test_ok(open_run(&with, w, path));
    test_ok(open_run(&without, w, path));
    test_ok(plant(&with.lesson, w->poison));
    test_ok(plant(&without.lesson, w->poison));
    test_ok(finish(&with, 3));
    test_ok(kd_step_result_of(&result, &with.lesson.step, 2));
    cr_assert(result->in_row == 1 && result->skips == 1 && strstr(result->why, "is not finite"),
              "%s: %lld in a row of %lld: \"%s\"", name, (long long)result->in_row,
              (long long)result->skips, result->why);
    test_ok(finish(&with, STEPS));
    test_ok(kd_step_result_of(&result, &with.lesson.step, STEPS - 1));
    cr_assert(result->in_row == 0 && result->skips == 1 && !*result->why, "%s: \"%s\"", name,
              result->why);
    test_ok(finish(&without, 2));
    test_ok(kd_loader_next(&batch, without.loader, NULL));
    without.next++;
    test_ok(finish(&without, STEPS));
    same_bits(&with, &without, name);
    close_run(&with);
    close_run(&without);
}

Test(nonfinite, is_left_out_as_if_it_had_never_been)
{
    const char *path = write_tokens("skip", 2 * STEP_TOKENS + 77);
    for (int i = 0; i < KD_COUNT(poisons); i++)
        for (int half = 0; half < 2 && poisons[i].by_token; half++) {
            const way w = { .poison = &poisons[i],
                            .dtype = half ? KD_BF16 : KD_F32,
                            .mutual = i == 0,
                            .skip = true,
                            .max_skips = 1 };
            check_skip(&w, path, poisons[i].name);
        }
    test_text_remove();
}

/* The third in a row stops, though the one behind it would be good. */
Test(nonfinite, is_left_out_some_times_only)
{
    static const poison persistent = { "NaN in the teacher's head",
                                       { { TEACHER, "head", 7, 1, 1, NAN } },
                                       .weight = 0.4 };
    static const test_planted mended = { TEACHER, "head", 7, 1, 1, 0.5f };
    const way w = { .poison = &persistent, .skip = true, .max_skips = 2 };
    const kd_step_result *result;
    size_t bytes;
    run r;
    test_ok(open_run(&r, &w, write_tokens("bounded", -1)));
    test_ok(finish(&r, 1));
    test_ok(plant(&r.lesson, &persistent));
    unsigned char *before = test_lesson_bits(&r.lesson, &bytes);
    test_ok(finish(&r, 3));
    test_ok(go(&r));
    test_ok(test_lesson_plant(&r.lesson, &mended));
    test_ok(go(&r));
    test_refusal(kd_step_result_of(&result, &r.lesson.step, 3), KD_ENONFINITE,
                 "step 3: kl of second is not finite (rank 0), as in 3 steps in a row "
                 "(optim.max_skips: 2); nothing was updated",
                 "bounded");
    test_refusal(look(&r), KD_ENONFINITE,
                 "step 3: |taken again it is finite: the machine may be at", "mended");
    unsigned char *after = test_lesson_bits(&r.lesson, &bytes);
    cr_assert(memcmp(before, after, bytes) == 0, "weights or moments have moved");
    free(before);
    free(after);
    close_run(&r);
    test_text_remove();
}

/* No row that counts is no 0 / 0: the loss is 0, the gradient too, and the run goes on. */
Test(nonfinite, is_not_what_an_empty_step_is)
{
    const char *path = write_some_tokens("silent", -1, 2);
    for (int half = 0; half < 2; half++) {
        const way w = { .dtype = half ? KD_BF16 : KD_F32, .mutual = true };
        const kd_step_result *result;
        run r;
        test_ok(open_run(&r, &w, path));
        test_ok(finish(&r, 3));
        test_ok(kd_step_result_of(&result, &r.lesson.step, 2));
        for (int m = 0; m < 2; m++) {
            const kd_student_result *s = &result->student[m];
            cr_assert(result->valid == 0 && s->verdict == KD_VERDICT_GOOD && s->loss == 0 &&
                          s->gradient_norm == 0 && s->term[0] == 0 && s->term[1] == 0,
                      "%d rows count, verdict %d, loss %g, norm %g", (int)result->valid, s->verdict,
                      s->loss, s->gradient_norm);
        }
        test_ok(finish(&r, STEPS));
        close_run(&r);
    }
    test_text_remove();
}

/* ---- a run by its file ------------------------------------------------------------------------ */

typedef struct setting {
    const char *key, *value;
} setting;

static kd_status train(const char *folder, const char *out, const setting *more, int count)
{
    const setting common[] = {
        { "teacher.model", KD_GOLDEN "/step/teacher" },
        { "student.model", KD_GOLDEN "/step/student" },
        { "data.train", test_text_path("run") },
        { "data.sequence", "10" },
        { "loss.ce.weight", "0.4" },
        { "optim.lr", "1e-2" },
        { "batch.samples", "4" },
        { "batch.micro", "2" },
        { "run.steps", "20" },
        { "run.device", "cpu" },
        { "run.out", test_path(folder, out) },
        { "run.checkpoint.every", "1 steps" },
        { "run.checkpoint.keep", "30" },
    };
    kd_run *made;
    test_ok(kd_run_create(&made));
    for (int i = 0; i < KD_COUNT(common); i++)
        test_ok(kd_run_set(made, common[i].key, common[i].value));
    for (int i = 0; i < count; i++) test_ok(kd_run_set(made, more[i].key, more[i].value));
    const kd_status status = kd_run_train(made);
    kd_run_destroy(made);
    return status;
}

static bool same_file(const char *a, const char *b)
{
    kd_hash x, y;
    test_ok(kd_hash_file(&x, a));
    test_ok(kd_hash_file(&y, b));
    return strcmp(x.hex, y.hex) == 0;
}

/* A weight that grows beyond all floats: step 0 is good, those after it are not.  The result of a step
 * is read when the next one is on its way, whether it is logged or not. */
#define RAMP                                                                                       \
    {                                                                                              \
        "loss.kl", "{weight: {from: 0.6, to: 3e38, steps: 3}}"                                     \
    }

Test(nonfinite, a_run_stops_with_exit_5_and_names_the_state_before_it)
{
    static const char *const every[] = { "1", "1000" };
    const char *folder = test_folder();
    (void)write_tokens("run", -1);
    (void)test_log();
    for (int i = 0; i < KD_COUNT(every) * 2; i++) {
        const char *dtype = i / 2 ? "bf16" : "f32";
        const setting more[] = { RAMP,
                                 { "run.log_every", every[i % 2] },
                                 { "student.dtype", dtype },
                                 { "teacher.dtype", dtype } };
        char out[32];
        snprintf(out, sizeof out, "out-%d", i);
        const kd_status status = train(folder, out, more, KD_COUNT(more));
        test_refusal(status, KD_ENONFINITE,
                     "step 1: |student|(rank 0|; nothing was updated; state before it: "
                     "checkpoint-000001",
                     out);
        cr_assert(kd_status_exit_code(status) == 5);
        const char *left = test_path(folder, out);
        cr_assert(test_count(left, "checkpoint-") == 1 && !test_exists(left, "model.safetensors"),
                  "%s: something was written after it", out);
    }
    const setting early[] = { { "loss.kl.weight", "3e38" } };
    test_refusal(train(folder, "early", early, 1), KD_ENONFINITE,
                 "step 0: |; state before it: none was saved", "early");
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}

/* Ten are left out, the eleventh stops: what is saved between has the weights of step 1. */
Test(nonfinite, a_run_leaves_out_ten_in_a_row)
{
    static const setting more[] = { RAMP, { "optim.on_nonfinite", "skip" } };
    const char *folder = test_folder(), *log = test_log();
    char *text, out[512], first[512];
    size_t bytes;
    (void)write_tokens("run", -1);
    test_refusal(train(folder, "out", more, KD_COUNT(more)), KD_ENONFINITE,
                 "step 11: |as in 11 steps in a row (optim.max_skips: 10)|; state before it: "
                 "checkpoint-000011",
                 "out");
    cr_assert(strstr(log, "nothing was updated (1 of at most 10 in a row)") &&
                  strstr(log, "nothing was updated (10 of at most 10 in a row)"),
              "%s", log);
    snprintf(out, sizeof out, "%s", test_path(folder, "out"));
    snprintf(first, sizeof first, "%s", test_path(out, "checkpoint-000001"));
    for (int k = 2; k <= 11; k++) {
        char name[64];
        snprintf(name, sizeof name, "checkpoint-%06d", k);
        char later[512];
        snprintf(later, sizeof later, "%s", test_path(out, name));
        cr_assert(same_file(test_path(first, "model.safetensors"),
                            test_path(later, "model.safetensors")) &&
                      same_file(test_path(first, "engine/optimizer.safetensors"),
                                test_path(later, "engine/optimizer.safetensors")),
                  "%s has other weights or moments", name);
    }
    test_ok(kd_file_read(&text, &bytes, test_path(out, "metrics.jsonl"), 1 << 20));
    cr_assert(strstr(text, "\"skipped\":10,") && !strstr(text, "\"skipped\":11,"), "%s", text);
    free(text);
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}
