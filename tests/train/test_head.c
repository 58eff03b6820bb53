/* How the head is cut into chunks, and in which type its logits are. */
#include "support/lesson.h"
#include "support/support.h"
#include "support/text_file.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

Test(head, a_chunk_fits_its_budget_and_is_no_longer_than_products_want)
{
    static const struct {
        const char *device;
        size_t memory;
        int64_t rows, vocabulary, width, chunk; /* of bf16 logits */
    } cases[] = {
        { "cuda", (size_t)80 << 30, 8192, 128256, 4096, 2048 }, /* 1 GB is 2093 rows */
        { "cuda", (size_t)80 << 30, 8192, 151936, 896, 1664 },  /* 1766 rows */
        { "cuda", (size_t)80 << 30, 16384, 50304, 768, 5248 },  /* 5336 rows of 5632 wanted */
        { "cuda", (size_t)80 << 30, 16384, 32000, 768, 5632 },  /* 132 tiles of d hidden */
        { "cuda", (size_t)80 << 30, 16384, 32000, 4096, 2048 },
        { "plan", (size_t)8 << 30, 8192, 128256, 4096, 1024 }, /* half a GB */
        { "cuda", (size_t)80 << 30, 300, 128256, 4096, 384 },
        { "cuda", (size_t)1 << 20, 8192, 10000000, 4096, 128 }, /* never less */
        { "cpu", (size_t)32 << 30, 8192, 50257, 768, 256 },     /* half a GB is 2624 rows */
        { "cpu", (size_t)32 << 30, 8192, 1000000, 768, 128 },   /* 134 rows */
        { "cpu", (size_t)32 << 30, 100, 50257, 768, 128 },
    };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        kd_device_info device = { .total = cases[i].memory };
        snprintf(device.type, sizeof device.type, "%s", cases[i].device);
        const int64_t row_bytes = 4 * cases[i].vocabulary;
        const int64_t chunk = kd_objective_chunk(cases[i].rows, row_bytes, cases[i].width, &device);
        cr_assert(chunk == cases[i].chunk, "case %d: %lld rows, expected %lld", i, (long long)chunk,
                  (long long)cases[i].chunk);
    }
}

enum { CLASSES = 61, SEQUENCE = 12, SAMPLES = 4 };

/* One document of random tokens. */
static const char *write_tokens(int classes)
{
    static int64_t tokens[SAMPLES * SEQUENCE], borders[2] = { 0, SAMPLES * SEQUENCE };
    for (int64_t i = 0; i < SAMPLES * SEQUENCE; i++)
        tokens[i] = (int64_t)(kd_random_uniform(9, 1, (uint64_t)i) * classes);
    return test_text_write("head", &(test_text){ .dtype = "U16",
                                                 .tokens = tokens,
                                                 .count = SAMPLES * SEQUENCE,
                                                 .documents = borders,
                                                 .borders = 2 });
}

static const kd_loader_options *head_data(int classes)
{
    static kd_loader_options data = { .weights = { 1 },
                                      .sources = 1,
                                      .sequence = SEQUENCE,
                                      .step_samples = SAMPLES,
                                      .micro_samples = SAMPLES,
                                      .ranks = 1,
                                      .seed = 3 };
    data.vocabulary = classes;
    data.files[0] = write_tokens(classes);
    return &data;
}

/* Mean nll of the student's rows as evaluation measures it, which is in f32. */
static double measured_nll(test_lesson *lesson, const kd_step_batch *batch)
{
    kd_measured measured[KD_MAX_MODELS] = { { .nll = NULL } };
    double sum = 0.0;
    for (int m = 0; m < lesson->count; m++) measured[m] = kd_step_values(&lesson->step, m);
    test_ok(kd_step_measure(&lesson->step, &batch->micro[0], 2u, measured));
    for (int64_t i = 0; i < batch->valid_count; i++) sum += (double)measured[1].nll[i];
    return sum / (double)batch->valid_count;
}

/* With f32 logits a bf16 model trains on the loss that evaluation finds; without, on one of logits
 * rounded to 8 bits.  The gradient is the same but for rounding. */
Test(head, f32_logits_train_on_the_loss_that_evaluation_measures)
{
    float *gradient[2];
    double loss[2], nll = 0.0;
    test_lesson lesson[2];
    const kd_step_batch *batch;
    kd_loader *loader;
    test_ok(kd_loader_open(&loader, head_data(CLASSES)));
    test_ok(kd_loader_next(&batch, loader, NULL));
    for (int whole = 0; whole < 2; whole++) {
        const test_lesson_options options = {
            .models = { { .seed = 1, .vocabulary = CLASSES },
                        { .seed = 2, .vocabulary = CLASSES, .trainable = true } },
            .count = 2,
            .dtype = KD_BF16,
            .rows = SAMPLES * SEQUENCE,
            .chunk = 7,
            .logits = { .f32 = whole },
        };
        kd_step_result result;
        test_ok(test_lesson_open(&lesson[whole], &options));
        nll = measured_nll(&lesson[whole], batch);
        test_ok(test_lesson_step(&lesson[whole], &result, batch, 0));
        loss[whole] = result.student[1].term[0];
        gradient[whole] = test_lesson_gradient(&lesson[whole], 1);
    }
    const double rounding = 4.0 * (double)FLT_EPSILON * nll * sqrt((double)batch->valid_count);
    cr_assert(fabs(loss[1] - nll) <= rounding, "%.9g in training, measured %.9g", loss[1], nll);
    cr_assert(fabs(loss[0] - nll) > rounding, "bf16 logits gave %.9g too", loss[0]);
    test_near_gradient(gradient[1], lesson[1].models[1], gradient[0], lesson[0].models[1], 0x1p-5,
                       "f32 logits");
    for (int i = 0; i < 2; i++) {
        free(gradient[i]);
        test_lesson_close(&lesson[i]);
    }
    kd_loader_close(loader);
    test_text_remove();
}

static test_lesson_options known_options(const char *loss, bool tied)
{
    return (test_lesson_options){
        .models = { { .seed = 1, .vocabulary = CLASSES },
                    { .seed = 2, .vocabulary = CLASSES + 3, .tied = tied, .trainable = true } },
        .count = 2,
        .loss = loss,
        .rows = SAMPLES * SEQUENCE,
        .chunk = 7,
    };
}

static const char *const known_losses[] = {
    "{kl: {temperature: 2}, ce: {weight: 0.3}, top_k: {k: 9, others: tail}}",
    "{kl: {temperature: 2}, ce: {weight: 0.3}, top_k: {k: 9, others: renormalised}}",
    "{kl: {temperature: 2}, top_k: {k: 9, others: restricted}}",
    "{kl: {temperature: 2}, ce: {weight: 0.3}, top_k: {k: 9, others: restricted}}",
};

/* Of the body and, tied, of the matrix that the head shares with the tokens. */
Test(head, of_known_classes_has_the_slope_of_its_value)
{
    const kd_loader_options *data = head_data(CLASSES);
    for (int i = 0; i < KD_COUNT(known_losses); i++) {
        const test_lesson_options options = known_options(known_losses[i], true);
        test_lesson_slope(&options, data, "blocks.1.mlp_up", 3, 1e-5, NULL);
        test_lesson_slope(&options, data, "embedding", 24 * 5 + 2, 1e-5, NULL);
    }
    test_text_remove();
}

/* Knowing every class is the dense loss, of the student's body and of its head. */
Test(head, of_all_classes_known_is_that_of_none_left_out)
{
    static const char *const losses[] = {
        "{kl: {temperature: 2}}",
        "{kl: {temperature: 2}, top_k: {k: 61, others: tail}}",
        "{kl: {temperature: 2}, top_k: {k: 61, others: renormalised}}",
        "{kl: {temperature: 2}, top_k: {k: 61, others: restricted}}",
    };
    const kd_step_batch *batch;
    kd_step_result result[KD_COUNT(losses)];
    float *gradient[KD_COUNT(losses)];
    test_lesson lesson[KD_COUNT(losses)];
    kd_loader *loader;
    test_ok(kd_loader_open(&loader, head_data(CLASSES)));
    test_ok(kd_loader_next(&batch, loader, NULL));
    for (int i = 0; i < KD_COUNT(losses); i++) {
        const test_lesson_options options = known_options(losses[i], false);
        test_ok(test_lesson_open(&lesson[i], &options));
        test_ok(test_lesson_step(&lesson[i], &result[i], batch, 0));
        gradient[i] = test_lesson_gradient(&lesson[i], 1);
        const double a = result[i].student[1].loss, b = result[0].student[1].loss;
        cr_expect(fabs(a - b) <= 1e-5 * b, "%s: %.9g, expected %.9g", losses[i], a, b);
        const double same = result[i].student[1].same_top;
        cr_expect(i == 3 ? isnan(same) : same == result[0].student[1].same_top, "%s: %g", losses[i],
                  same);
        test_near_gradient(gradient[i], lesson[i].models[1], gradient[0], lesson[0].models[1], 1e-5,
                           "%s", losses[i]);
    }
    for (int i = 0; i < KD_COUNT(losses); i++) {
        free(gradient[i]);
        test_lesson_close(&lesson[i]);
    }
    kd_loader_close(loader);
    test_text_remove();
}

Test(head, of_more_known_classes_than_there_are_is_refused)
{
    test_lesson lesson;
    const test_lesson_options many = known_options("{kl: {}, top_k: {k: 62}}", false);
    test_refused(test_lesson_open(&lesson, &many), KD_EINVAL,
                 "loss.top_k.k: 62, expected at most 61");
}

/* Of two classes the likeliest, and whether it is the label, say all. */
static void check_certainty(const kd_measured *m, int64_t rows, int64_t chunk)
{
    for (int64_t i = 0; i < rows; i++) {
        const double p = (double)m->confidence[i], q = 1.0 - p;
        const double nll = -log(m->correct[i] == 1.0f ? p : q);
        const double entropy = -p * log(p) - q * log(q);
        cr_assert(p >= 0.5 && q > 0.0 && (m->correct[i] == 1.0f || m->correct[i] == 0.0f));
        cr_assert(fabs((double)m->nll[i] - nll) <= 1e-5 * (1.0 + nll) &&
                      fabs((double)m->entropy[i] - entropy) <= 1e-5,
                  "chunk %lld, row %lld: nll %g, expected %g; entropy %g, expected %g",
                  (long long)chunk, (long long)i, (double)m->nll[i], nll, (double)m->entropy[i],
                  entropy);
    }
}

Test(head, certainty_is_that_of_every_row)
{
    static const int64_t chunks[] = { 5, KD_SEEN_ROWS + 3, 64 };
    const kd_step_batch *batch;
    kd_loader *loader;
    test_ok(kd_loader_open(&loader, head_data(2)));
    test_ok(kd_loader_next(&batch, loader, NULL));
    for (int c = 0; c < KD_COUNT(chunks); c++) {
        const test_lesson_options options = {
            .models = { { .seed = 1, .vocabulary = 2 },
                        { .seed = 2, .vocabulary = 7, .junk = 1e4, .trainable = true } },
            .count = 2,
            .classes = 2,
            .rows = SAMPLES * SEQUENCE,
            .chunk = chunks[c],
            .certainty = true,
        };
        kd_measured measured[KD_MAX_MODELS] = { { .nll = NULL } };
        test_lesson lesson;
        test_ok(test_lesson_open(&lesson, &options));
        for (int m = 0; m < lesson.count; m++) measured[m] = kd_step_values(&lesson.step, m);
        test_ok(kd_step_measure(&lesson.step, &batch->micro[0], 3u, measured));
        for (int m = 0; m < lesson.count; m++)
            check_certainty(&measured[m], batch->valid_count, chunks[c]);
        test_lesson_close(&lesson);
    }
    kd_loader_close(loader);
    test_text_remove();
}
