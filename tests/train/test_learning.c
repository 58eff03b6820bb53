/*
 * The step teaches: ten rows are learnt by heart, from labels and from a teacher; a student that is
 * its teacher has nothing to learn.
 */
#include "support/lesson.h"
#include "support/support.h"
#include "support/text_file.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 10, CLASSES = 61 };

/* Ten different tokens, so that no two rows contradict each other, and one more as the last label. */
static kd_loader *open_ten(const kd_step_batch **batch)
{
    static int64_t tokens[ROWS + 1];
    static const int64_t borders[] = { 0, ROWS + 1 };
    for (int64_t i = 0; i <= ROWS; i++) tokens[i] = kd_permute(i, CLASSES, 5, 1);
    const char *path = test_text_write("ten", &(test_text){ .dtype = "U16",
                                                            .tokens = tokens,
                                                            .count = ROWS + 1,
                                                            .documents = borders,
                                                            .borders = 2 });
    const kd_loader_options data = { .files = { path },
                                     .weights = { 1 },
                                     .sources = 1,
                                     .vocabulary = CLASSES,
                                     .sequence = ROWS + 1,
                                     .step_samples = 1,
                                     .micro_samples = 1,
                                     .ranks = 1 };
    kd_loader *loader;
    test_ok(kd_loader_open(&loader, &data));
    test_ok(kd_loader_next(batch, loader, NULL));
    cr_assert((*batch)->valid_count == ROWS, "%lld rows", (long long)(*batch)->valid_count);
    return loader;
}

static kd_term term_of(kd_row_kind kind, double temperature)
{
    return (kd_term){ .name = kd_row_types[kind].name,
                      .kind = kind,
                      .weight = { 1, 1, 0 },
                      .temperature = temperature,
                      .t_squared = true,
                      .option = kd_row_types[kind].option_default,
                      .student = 1,
                      .teacher = kd_row_types[kind].teacher ? 0 : -1 };
}

static void learn(kd_row_kind kind, kd_dtype dtype, const char *family, double below)
{
    const kd_step_batch *batch;
    kd_loader *loader = open_ten(&batch);
    const test_lesson_options options = {
        .models = { { .seed = 1 }, { .seed = 2, .family = family, .trainable = true } },
        .count = 2,
        .dtype = dtype,
        .terms = { term_of(kind, 1) },
        .term_count = 1,
        .rows = ROWS + 1,
        .steps = 200,
        .lr = 0.02
    };
    kd_step_result first, last;
    test_lesson lesson;
    test_ok(test_lesson_open(&lesson, &options));
    test_ok(test_lesson_step(&lesson, &first, batch, 0));
    for (int64_t step = 1; step < 200; step++)
        test_ok(test_lesson_step(&lesson, &last, batch, step));
    const double begin = first.student[1].loss, end = last.student[1].loss;
    cr_assert(begin > 0.5 && end < below, "%s, %s in %s: from %g to %g, expected below %g",
              kd_row_types[kind].name, family ? family : "llama", kd_dtype_name(dtype), begin, end,
              below);
    test_lesson_close(&lesson);
    kd_loader_close(loader);
    test_text_remove();
}

Test(learning, ten_rows_are_learnt_by_heart)
{
    static const char *const families[] = { NULL, "qwen3", "gpt2" };
    for (int f = 0; f < KD_COUNT(families); f++) {
        learn(KD_ROW_cross_entropy, KD_F32, families[f], 0.01);
        learn(KD_ROW_cross_entropy, KD_BF16, families[f], 0.02);
        learn(KD_ROW_forward_kl, KD_F32, families[f], 0.01);
        learn(KD_ROW_reverse_kl, KD_F32, families[f], 0.02);
    }
}

/* A cross entropy is at rest elsewhere, or not at 0. */
static bool is_divergence(kd_row_kind kind)
{
    return kd_row_types[kind].teacher && kind != KD_ROW_soft_cross_entropy &&
           kind != KD_ROW_hard_distillation;
}

/* Every divergence is zero where student and teacher agree, and so is its gradient, up to the
 * rounding of two softmaxes: beside the gradient of the same rows under another teacher. */
Test(learning, a_student_that_is_its_teacher_has_nothing_to_learn)
{
    static const double temperatures[] = { 0.5, 1, 2 };
    const kd_step_batch *batch;
    kd_loader *loader = open_ten(&batch);
    for (int i = 0; i < KD_ROW_COUNT * KD_COUNT(temperatures); i++) {
        const kd_row_kind kind = (kd_row_kind)(i / KD_COUNT(temperatures));
        if (!is_divergence(kind)) continue;
        double norms[2], losses[2];
        for (int same = 0; same < 2; same++) {
            const test_lesson_options options = {
                .models = { { .seed = same ? 2 : 1 }, { .seed = 2, .trainable = true } },
                .count = 2,
                .terms = { term_of(kind, temperatures[i % KD_COUNT(temperatures)]) },
                .term_count = 1,
                .rows = ROWS + 1,
                .chunk = 4
            };
            kd_step_result result;
            test_lesson lesson;
            test_ok(test_lesson_open(&lesson, &options));
            test_ok(test_lesson_step(&lesson, &result, batch, 0));
            norms[same] = result.student[1].gradient_norm;
            losses[same] = result.student[1].loss;
            cr_assert(!same || result.student[1].same_top == 1.0, "same top %g",
                      result.student[1].same_top);
            test_lesson_close(&lesson);
        }
        cr_assert(losses[0] > 1e-3 && norms[0] > 1e-3, "%s: nothing to compare with: %g, %g",
                  kd_row_types[kind].name, losses[0], norms[0]);
        cr_assert(fabs(losses[1]) <= 1e-6 * losses[0], "%s: loss %g", kd_row_types[kind].name,
                  losses[1]);
        cr_assert(norms[1] <= 1e-6 * norms[0], "%s: gradient norm %g", kd_row_types[kind].name,
                  norms[1]);
    }
    kd_loader_close(loader);
    test_text_remove();
}
