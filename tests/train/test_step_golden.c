/*
 * The whole step against PyTorch: losses and every gradient in float64 of packed, masked, padded
 * rows under a frozen teacher (tests/golden/make_step.py, make_students.py), also of terms over taps
 * (make_tapped.py); the same with blocks computed again in the backward pass; and two tokens worked
 * by hand, from a file to the loss.
 */
#include "model/transformer.h"
#include "support/golden.h"
#include "support/lesson.h"
#include "support/support.h"
#include "support/text_file.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 32 };

typedef struct golden_step {
    const char *student, *file; /* below tests/golden */
    int64_t classes;            /* the smaller vocabulary */
} golden_step;

static const golden_step cases[] = {
    { "step/student", "step/step.safetensors", 89 },      /* teacher has 97 columns */
    { "models/gpt2", "students/gpt2.safetensors", 97 },   /* these students 101 */
    { "models/qwen2", "students/qwen2.safetensors", 97 }, /* biases of Q, K and V */
    { "models/qwen3", "students/qwen3.safetensors", 97 }, /* QK-norm */
};

static const char *golden_path(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], KD_GOLDEN "/%s", name);
    return path;
}

/* The packed batch of make_step.py. */
typedef struct packed {
    test_golden file;
    int32_t cu[ROWS + 1], valid[ROWS];
    kd_micro_batch micro;
    kd_step_batch batch;
} packed;

static void open_packed(packed *p)
{
    const kd_st_entry *starts;
    *p = (packed){ .micro = { .rows = ROWS } };
    test_golden_open(&p->file, golden_path("step/step.safetensors"));
    const int32_t *cu = test_golden_i32(&p->file, "cu", &starts);
    p->micro.tokens = test_golden_i32(&p->file, "tokens", NULL);
    p->micro.positions = test_golden_i32(&p->file, "positions", NULL);
    p->micro.labels = test_golden_i32(&p->file, "labels", NULL);
    p->micro.documents = test_golden_i32(&p->file, "documents", NULL);
    for (int i = 0; i <= ROWS; i++) p->cu[i] = i < starts->elements ? cu[i] : ROWS;
    for (int i = 0; i < ROWS; i++) {
        p->valid[i] = -1;
        if (p->micro.labels[i] >= 0) p->valid[p->micro.valid_count++] = i;
    }
    p->micro.cu = p->cu;
    p->micro.valid = p->valid;
    p->batch = (kd_step_batch){ &p->micro, 1, p->micro.valid_count, 0 };
}

static void open_case(test_lesson *lesson, const golden_step *c, kd_recompute recompute,
                      int64_t chunk)
{
    char teacher[512], student[512];
    snprintf(teacher, sizeof teacher, KD_GOLDEN "/step/teacher");
    snprintf(student, sizeof student, KD_GOLDEN "/%s", c->student);
    const test_lesson_options options = {
        .models = { { .dir = teacher },
                    { .dir = student, .trainable = true, .recompute = recompute } },
        .count = 2,
        .classes = c->classes,
        .rows = ROWS,
        .chunk = chunk
    };
    test_ok(test_lesson_open(lesson, &options));
}

/* The rows of the slab that a tensor of a Hugging Face file is, against its gradient there. */
static void check_tensor(const test_golden *golden, const kd_model *model, const kd_name_row *row,
                         int param, int64_t block)
{
    char name[256], key[300];
    int64_t begin, count;
    const kd_st_entry *entry;
    kd_tensor_name(name, sizeof name, model->family, row, block, false);
    snprintf(key, sizeof key, "gradient.%s", name);
    const float *want = test_golden_f32(golden, key, &entry);
    const kd_tensor whole = kd_slab_gradient(&model->slab, param);
    kd_part_rows(&begin, &count, model, row, param);
    const kd_tensor g = kd_tensor_slice(&whole, 0, begin, count);
    const int64_t rows = g.shape[0], columns = g.rank == 2 ? g.shape[1] : 1;
    double difference = 0, size = 0;
    cr_assert(entry->elements == rows * columns, "%s has another shape", key);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            const double w = (double)want[row->transposed ? j * rows + i : i * columns + j];
            const double x = (double)((const float *)g.data)[i * columns + j];
            difference += (x - w) * (x - w);
            size += w * w;
        }
    /* Softmax does not feel a bias of K that all keys share: its gradient is rounding alone. */
    if (row->part == KD_PART_K && row->bias && size < 1e-12) size = 1e-12;
    cr_assert(sqrt(difference) <= 1e-5 * sqrt(size), "%s: off by %.3g of its norm %.3g", key,
              sqrt(difference / size), sqrt(size));
}

static int check_gradients(const test_golden *golden, const kd_model *model)
{
    int checked = 0;
    for (const kd_name_row *row = model->family->names; row->name; row++) {
        const int64_t blocks = kd_name_per_block(row) ? model->config.layers : 1;
        for (int64_t l = 0; l < blocks; l++) {
            const int param = kd_model_param(model, row, l);
            if (param < 0) continue;
            check_tensor(golden, model, row, param, l);
            checked++;
        }
    }
    return checked;
}

static void near(double got, double want, const char *what, const char *name)
{
    cr_assert(fabs(got - want) <= 1e-6 * fabs(want), "%s: %s is %.9g, expected %.9g", name, what,
              got, want);
}

Test(step_golden, losses_and_gradients_are_those_of_pytorch)
{
    static const int64_t chunks[] = { 0, 5 };
    for (int i = 0; i < 2 * KD_COUNT(cases); i++) {
        const golden_step *c = &cases[i / 2];
        packed p;
        test_golden golden;
        test_lesson lesson;
        kd_step_result result;
        open_packed(&p);
        test_golden_open(&golden, golden_path(c->file));
        open_case(&lesson, c, KD_RECOMPUTE_NONE, chunks[i % 2]);
        test_ok(test_lesson_step(&lesson, &result, &p.batch, 0));
        const kd_student_result *s = &result.student[1];
        const double kl = (double)*test_golden_f32(&golden, "kl", NULL);
        near(s->term[0], (double)*test_golden_f32(&golden, "ce", NULL), "ce", c->student);
        near(s->term[1], 4 * kl, "kl with T^2", c->student);
        near(s->loss, (double)*test_golden_f32(&golden, "loss", NULL), "loss", c->student);
        const int checked = check_gradients(&golden, lesson.models[1]);
        int stored = 0;
        for (int64_t k = 0; k < golden.file->count; k++)
            stored += strncmp(golden.file->entries[k].name, "gradient.", 9) == 0;
        cr_assert(checked == stored, "%s: %d tensors compared of %d", c->student, checked, stored);
        test_lesson_close(&lesson);
        test_golden_close(&golden);
        test_golden_close(&p.file);
    }
}

Test(step_golden, recomputed_blocks_give_the_same_bits)
{
    for (int i = 0; i < 2 * KD_COUNT(cases); i++) {
        test_lesson lessons[2];
        packed p;
        size_t bytes[2], peak[2];
        unsigned char *bits[2];
        float *gradients[2];
        open_packed(&p);
        for (int k = 0; k < 2; k++) {
            open_case(&lessons[k], &cases[i / 2], (kd_recompute)k, i % 2 ? 7 : 0);
            for (int step = 0; step < 3; step++)
                test_ok(test_lesson_step(&lessons[k], NULL, &p.batch, step));
            bits[k] = test_lesson_bits(&lessons[k], &bytes[k]);
            gradients[k] = test_lesson_gradient(&lessons[k], 1);
            peak[k] = lessons[k].step.stack.peak;
        }
        const kd_tensor *g = &lessons[0].models[1]->slab.gradients;
        cr_assert(memcmp(gradients[0], gradients[1], kd_tensor_bytes(g)) == 0,
                  "%s: other gradients with recompute", cases[i / 2].student);
        cr_assert(bytes[0] == bytes[1] && memcmp(bits[0], bits[1], bytes[0]) == 0,
                  "%s: other weights or moments with recompute", cases[i / 2].student);
        cr_assert(peak[1] <= peak[0], "%s: recompute takes %zu bytes, without %zu",
                  cases[i / 2].student, peak[1], peak[0]);
        for (int k = 0; k < 2; k++) {
            free(bits[k]);
            free(gradients[k]);
            test_lesson_close(&lessons[k]);
        }
        test_golden_close(&p.file);
    }
}

/* ---- terms over taps -------------------------------------------------------------------------- */

static const char tapped_loss[] =
    "{hidden: {type: hidden_mse, layers: uniform, projector: linear, weight: 0.02},"
    " attention: {type: attention_kl, layers: [[0, 0], [1, 1]], weight: 0.5},"
    " value: {type: minilm_relation, relation_heads: 2, weight: 0.7},"
    " query: {type: minilm_relation, of: query, relation_heads: 2, weight: 0.2},"
    " standard: {type: kl, temperature: 2, standardise: true, weight: 0.6}, ce: {weight: 0.3}}";

static const char *const tapped_terms[] = { "ce",        "standard", "hidden",
                                            "attention", "value",    "query" };

static kd_tensor projector_of(const kd_slab *slab, int layer, const char *what, bool gradient)
{
    char name[64];
    int i;
    snprintf(name, sizeof name, "loss.hidden.%d.0.%s", layer, what);
    test_ok(test_find_param(&i, slab, name));
    return gradient ? kd_slab_gradient(slab, i) : kd_slab_weight(slab, i);
}

static void set_projectors(const kd_slab *slab, const test_golden *golden)
{
    for (int layer = 0; layer < 3; layer++)
        for (int bias = 0; bias < 2; bias++) {
            const kd_tensor to = projector_of(slab, layer, bias ? "bias" : "weight", false);
            const int64_t n = kd_tensor_elements(&to);
            const float *all =
                test_golden_f32(golden, bias ? "projector.bias" : "projector.weight", NULL);
            memcpy(to.data, all + layer * n, kd_tensor_bytes(&to));
        }
}

static void check_projectors(const kd_slab *slab, const test_golden *golden)
{
    for (int layer = 0; layer < 3; layer++)
        for (int bias = 0; bias < 2; bias++) {
            const char *what = bias ? "bias" : "weight";
            char key[64];
            snprintf(key, sizeof key, "gradient.projector.%s", what);
            const kd_tensor g = projector_of(slab, layer, what, true);
            const int64_t n = kd_tensor_elements(&g);
            const float *want = test_golden_f32(golden, key, NULL) + layer * n, *got = g.data;
            double difference = 0, size = 0;
            for (int64_t i = 0; i < n; i++) {
                difference +=
                    ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
                size += (double)want[i] * (double)want[i];
            }
            cr_assert(sqrt(difference) <= 1e-5 * sqrt(size), "%s of %d: off by %.3g of its norm",
                      what, layer, sqrt(difference / size));
        }
}

Test(step_golden, terms_over_taps_are_those_of_pytorch)
{
    for (int recompute = 0; recompute < 2; recompute++) {
        packed p;
        test_golden golden;
        test_lesson lesson;
        kd_step_result result;
        open_packed(&p);
        test_golden_open(&golden, golden_path("step/tapped.safetensors"));
        const test_lesson_options options = { .models = { { .dir = golden_path("step/twin") },
                                                          { .dir = golden_path("step/student"),
                                                            .trainable = true,
                                                            .recompute =
                                                                (kd_recompute)recompute } },
                                              .count = 2,
                                              .loss = tapped_loss,
                                              .classes = 89,
                                              .rows = ROWS };
        test_ok(test_lesson_open(&lesson, &options));
        set_projectors(&lesson.models[1]->slab, &golden);
        test_ok(test_lesson_step(&lesson, &result, &p.batch, 0));
        const kd_student_result *s = &result.student[1];
        for (int i = 0; i < KD_COUNT(tapped_terms); i++)
            near(s->term[i], (double)*test_golden_f32(&golden, tapped_terms[i], NULL),
                 tapped_terms[i], "tapped");
        near(s->loss, (double)*test_golden_f32(&golden, "loss", NULL), "loss", "tapped");
        cr_assert(check_gradients(&golden, lesson.models[1]) > 10);
        check_projectors(&lesson.models[1]->slab, &golden);
        test_lesson_close(&lesson);
        test_golden_close(&golden);
        test_golden_close(&p.file);
    }
}

/* ---- two tokens by hand ----------------------------------------------------------------------- */

enum { HAND_WIDTH = 2, HAND_VOCABULARY = 3 };

/* Embeddings of three tokens, and rows of the head; its last norm has gain 1.  The one block has
 * weights 0 and passes its input through. */
static const double hand_embedding[HAND_VOCABULARY][HAND_WIDTH] = { { 3, 4 }, { 1, -1 }, { 0, 2 } };
static const double hand_head[HAND_VOCABULARY][HAND_WIDTH] = { { 1, 0 },
                                                               { 0.5, -2 },
                                                               { -1, 0.25 } };

static const double hand_eps = 1e-5;

/* -log softmax(head rms_norm(embedding[token]))[label] */
static double hand_loss(int token, int label)
{
    const double *e = hand_embedding[token];
    const double size = sqrt((e[0] * e[0] + e[1] * e[1]) / 2 + hand_eps);
    double logits[HAND_VOCABULARY], sum = 0;
    for (int v = 0; v < HAND_VOCABULARY; v++) {
        logits[v] = (hand_head[v][0] * e[0] + hand_head[v][1] * e[1]) / size;
        sum += exp(logits[v]);
    }
    return log(sum) - logits[label];
}

static void fill_hand(const kd_model *model)
{
    const kd_tensor embedding = kd_slab_weight(&model->slab, model->embedding);
    const kd_tensor head = kd_slab_weight(&model->slab, model->head_weight);
    memset(model->slab.weights.data, 0, kd_tensor_bytes(&model->slab.weights));
    for (int i = 0; i < HAND_VOCABULARY * HAND_WIDTH; i++) {
        test_set(&embedding, i, ((const double *)hand_embedding)[i]);
        test_set(&head, i, ((const double *)hand_head)[i]);
    }
    const kd_tensor norm = kd_slab_weight(&model->slab, model->final_norm.weight);
    test_fill_constant(&norm, 1);
}

typedef struct hand_case {
    const char *name;
    int64_t tokens[4], documents[3];
    uint8_t mask[4];
    int64_t count, borders, sequence;
    int64_t pairs[4][2]; /* token and label of each counted row */
    int64_t valid;
} hand_case;

static const hand_case hand_cases[] = {
    { "two tokens", { 0, 1 }, { 0, 2 }, { 1, 1 }, 2, 2, 2, { { 0, 1 } }, 1 },
    { "the other way round", { 1, 0 }, { 0, 2 }, { 1, 1 }, 2, 2, 2, { { 1, 0 } }, 1 },
    { "a mask of the first", { 2, 1 }, { 0, 2 }, { 0, 1 }, 2, 2, 2, { { 2, 1 } }, 1 },
    { "a mask of the second", { 2, 1 }, { 0, 2 }, { 1, 0 }, 2, 2, 2, { { 0 } }, 0 },
    { "two documents",
      { 2, 0, 1, 2 },
      { 0, 2, 4 },
      { 1, 1, 1, 1 },
      4,
      3,
      4,
      { { 2, 0 }, { 1, 2 } },
      2 },
    { "beyond the sample",
      { 2, 0, 1, 2 },
      { 0, 4 },
      { 1, 1, 0, 1 },
      4,
      2,
      2,
      { { 2, 0 }, { 1, 2 } },
      2 },
};

static const char *write_hand(const hand_case *c)
{
    return test_text_write("hand", &(test_text){ .dtype = "U16",
                                                 .tokens = c->tokens,
                                                 .count = c->count,
                                                 .documents = c->documents,
                                                 .borders = c->borders,
                                                 .mask = c->mask,
                                                 .mask_count = c->count });
}

Test(step_golden, two_tokens_worked_by_hand)
{
    for (int i = 0; i < KD_COUNT(hand_cases); i++) {
        const hand_case *c = &hand_cases[i];
        const test_lesson_options options = {
            .models = { { .layers = 1, .width = 2, .vocabulary = 3, .trainable = true } },
            .count = 1,
            .terms = { { .name = "ce",
                         .kind = KD_ROW_cross_entropy,
                         .weight = { 1, 1, 0 },
                         .temperature = 1,
                         .teacher = -1 } },
            .term_count = 1,
            .classes = 3,
            .rows = c->count
        };
        const kd_loader_options data = { .files = { write_hand(c) },
                                         .weights = { 1 },
                                         .sources = 1,
                                         .vocabulary = 3,
                                         .sequence = c->sequence,
                                         .step_samples = c->count / c->sequence,
                                         .micro_samples = c->count / c->sequence,
                                         .ranks = 1 };
        const kd_step_batch *batch;
        kd_loader *loader;
        kd_step_result result;
        test_lesson lesson;
        double want = 0;
        for (int k = 0; k < c->valid; k++)
            want += hand_loss((int)c->pairs[k][0], (int)c->pairs[k][1]) / (double)c->valid;
        test_ok(test_lesson_open(&lesson, &options));
        fill_hand(lesson.models[0]);
        test_ok(kd_loader_open(&loader, &data));
        test_ok(kd_loader_next(&batch, loader, NULL));
        test_ok(test_lesson_step(&lesson, &result, batch, 0));
        cr_assert(result.valid == c->valid, "%s: %lld rows count, expected %lld", c->name,
                  (long long)result.valid, (long long)c->valid);
        cr_assert(fabs(result.student[0].loss - want) <= 1e-6 * (want + 1),
                  "%s: loss %.9g, expected %.9g", c->name, result.student[0].loss, want);
        kd_loader_close(loader);
        test_lesson_close(&lesson);
    }
    test_text_remove();
}
