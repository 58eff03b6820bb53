/*
 * Steps on ranks with a GPU each, here threads: 2 and 4 ranks have the gradient of one, all ranks have
 * the same bits, recorded in graphs or not; a rank that vanishes in a step ends the others'.
 */
#include "support/lesson.h"
#include "support/ranks.h"
#include "support/text_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_RANKS = TEST_MAX_RANKS };

typedef test_rank rank;

/* ---- steps ------------------------------------------------------------------------------------- */

enum { STEPS = 4, SEQUENCE = 10, SAMPLES = 8, CLASSES = 61, TOKENS = 400 };

typedef struct lesson {
    const char *path;
    int64_t micro, bucket;
    double lr;
    test_lesson at;
    kd_loader *loader;
    double loss[STEPS];
    float *gradient[STEPS];
    unsigned char *bits; /* of the student, after the last step */
    size_t bytes;
} lesson;

static kd_status open_lesson(lesson *l, const rank *r)
{
    const test_lesson_options options = {
        .models = { { .seed = 1, .layers = 3 },
                    { .seed = 2, .family = "qwen3", .tied = true, .trainable = true } },
        .count = 2,
        .rows = l->micro * SEQUENCE,
        .chunk = 7,
        .bucket = l->bucket,
        .steps = STEPS,
        .lr = l->lr,
        .comm = r->comm,
        .on = r->device,
    };
    const kd_loader_options data = { .files = { l->path },
                                     .weights = { 1 },
                                     .sources = 1,
                                     .vocabulary = CLASSES,
                                     .sequence = SEQUENCE,
                                     .step_samples = SAMPLES,
                                     .micro_samples = l->micro,
                                     .rank = r->number,
                                     .ranks = r->size,
                                     .seed = 6 };
    KD_TRY(kd_loader_open(&l->loader, &data));
    return test_lesson_open(&l->at, &options);
}

static void close_lesson(lesson *l)
{
    test_lesson_close(&l->at);
    kd_loader_close(l->loader);
    l->loader = NULL;
}

static kd_status take_step(lesson *l, int64_t step)
{
    const kd_step_batch *batch;
    kd_step_result result;
    KD_TRY(kd_loader_next(&batch, l->loader, NULL));
    KD_TRY(test_lesson_step(&l->at, &result, batch, step));
    l->loss[step] = result.student[1].loss;
    l->gradient[step] = test_lesson_gradient(&l->at, 1);
    return KD_OK;
}

static kd_status train(rank *r)
{
    lesson *l = r->context;
    kd_status status = open_lesson(l, r);
    for (int64_t step = 0; step < STEPS && status == KD_OK; step++) status = take_step(l, step);
    if (status == KD_OK) l->bits = test_lesson_bits(&l->at, &l->bytes);
    close_lesson(l);
    return status;
}

static void free_lesson(lesson *l)
{
    for (int step = 0; step < STEPS; step++) free(l->gradient[step]);
    free(l->bits);
}

static void train_ranks(lesson *lessons, int size, int64_t micro, double lr, const char *graphs)
{
    rank ranks[MAX_RANKS] = { { .size = 0 } };
    const char *path = test_text_random("nccl", TOKENS, CLASSES, true);
    setenv("KD_GRAPHS", graphs, 1);
    for (int r = 0; r < size; r++) {
        lessons[r] = (lesson){ .path = path, .micro = micro, .bucket = size, .lr = lr };
        ranks[r].context = &lessons[r];
    }
    test_ranks_run(ranks, size, train);
    test_ranks_good(ranks, size, "training");
}

/* A rate so small that no weight moves: each step's gradient is that of the same student. */
static const double still = 1e-30;

static void compare_gradients(const lesson *got, const lesson *want, const kd_model *model,
                              int size)
{
    for (int step = 0; step < STEPS; step++) {
        cr_assert(fabs(got->loss[step] - want->loss[step]) <= 1e-6 * fabs(want->loss[step]),
                  "%d ranks, step %d: loss %.9g, expected %.9g", size, step, got->loss[step],
                  want->loss[step]);
        test_near_gradient(got->gradient[step], model, want->gradient[step], model, 1e-6,
                           "%d ranks, step %d", size, step);
    }
}

Test(nccl_steps, steps_on_ranks_have_the_gradient_of_one_rank)
{
    static const int sizes[] = { 2, 4 };
    const int devices = test_require_ranks(2);
    lesson alone, layout = { .path = test_text_random("nccl", TOKENS, CLASSES, true),
                             .micro = 1,
                             .lr = still };
    train_ranks(&alone, 1, SAMPLES, still, "1");
    test_ok(open_lesson(&layout, &(rank){ .size = 1 }));
    for (int k = 0; k < KD_COUNT(sizes) && sizes[k] <= devices; k++) {
        const int size = sizes[k];
        lesson lessons[MAX_RANKS];
        train_ranks(lessons, size, SAMPLES / size / 2, still, "1");
        for (int r = 0; r < size; r++)
            compare_gradients(&lessons[r], &alone, layout.at.models[1], size);
        for (int r = 0; r < size; r++) free_lesson(&lessons[r]);
    }
    close_lesson(&layout);
    free_lesson(&alone);
    test_text_remove();
}

Test(nccl_steps, ranks_have_the_same_bits_with_and_without_graphs)
{
    static const int sizes[] = { 2, 4 };
    const int devices = test_require_ranks(2);
    for (int k = 0; k < KD_COUNT(sizes) && sizes[k] <= devices; k++) {
        lesson with[MAX_RANKS], without[MAX_RANKS];
        const int size = sizes[k];
        train_ranks(with, size, 1, 0.01, "1");
        train_ranks(without, size, 1, 0.01, "0");
        for (int r = 0; r < size; r++) {
            cr_assert(memcmp(with[r].bits, with[0].bits, with[0].bytes) == 0,
                      "%d ranks: rank %d has other bits than rank 0", size, r);
            cr_assert(memcmp(with[r].bits, without[r].bits, with[r].bytes) == 0,
                      "%d ranks: rank %d has other bits without graphs", size, r);
        }
        for (int r = 0; r < size; r++) free_lesson(&with[r]), free_lesson(&without[r]);
    }
    test_text_remove();
}

/* ---- a rank that vanishes ---------------------------------------------------------------------- */

/* The last rank is there when the step begins, and is no longer when gradients are summed. */
static kd_status train_or_vanish(rank *r)
{
    lesson *l = r->context;
    double valid = 1.0;
    kd_status status = open_lesson(l, r);
    for (int64_t step = 0; step < STEPS && status == KD_OK; step++)
        if (step < STEPS - 1 || r->number < r->size - 1)
            status = take_step(l, step);
        else
            status = kd_comm_agree(r->comm, &valid);
    close_lesson(l);
    return status;
}

/* Late streams: the step is enqueued whole, and found broken where its result is waited for. */
Test(nccl_steps, a_rank_that_vanishes_in_a_step_ends_the_others)
{
    enum { SIZE = 2 };
    if (!EMULATED)
        cr_skip_test("skipped: on a GPU the ranks would wait for %d s", TEST_RANK_SECONDS);
    test_require_ranks(SIZE);
    cudasim_set("KD_SIM_TIMEOUT", "1");
    cudasim_set("KD_SIM_ASYNC", "lazy");
    rank ranks[MAX_RANKS] = { { .size = 0 } };
    lesson lessons[SIZE];
    const char *path = test_text_random("nccl", TOKENS, CLASSES, true);
    for (int r = 0; r < SIZE; r++) {
        lessons[r] = (lesson){ .path = path, .micro = 2, .bucket = 1 };
        ranks[r].context = &lessons[r];
    }
    test_ranks_run(ranks, SIZE, train_or_vanish);
    cr_assert(ranks[0].status == KD_EPEER && strncmp(ranks[0].message, "step 3: ", 8) == 0 &&
                  strstr(ranks[0].message, "cuda:0, rank 0 of 2: "),
              "rank 0: %s: %s", kd_status_text(ranks[0].status), ranks[0].message);
    cr_assert(ranks[1].status == KD_OK, "rank 1: %s", ranks[1].message);
    for (int r = 0; r < SIZE; r++) free_lesson(&lessons[r]);
    test_text_remove();
}
