/*
 * One meaning: the gradient of a global batch does not change when the same tokens are split into
 * other micro-batches, head chunks, ranks or buckets, packed another way, or when vocabularies are
 * padded; rows that do not count change nothing; students that teach each other learn what each
 * would under the other, frozen.
 */
#include "support/lesson.h"
#include "support/support.h"
#include "support/text_file.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { CLASSES = 61, SEQUENCE = 12, SAMPLES = 8, MAX_RANKS = 4, MAX_DOCUMENTS = 64 };

/* Relative, per parameter, in the Euclidean norm. */
static const double most = 1e-6;

/* ---- data ------------------------------------------------------------------------------------- */

/* Random tokens in documents of the given lengths; `scored` of them count, none from document
 * `silent` on. */
static const char *write_documents(const char *name, const int64_t *lengths, int count,
                                   int64_t vocabulary, double scored, int silent)
{
    static int64_t tokens[4096], borders[MAX_DOCUMENTS + 1];
    static uint8_t mask[4096];
    int64_t n = 0;
    for (int d = 0; d < count; d++) {
        for (int64_t i = 0; i < lengths[d]; i++, n++) {
            tokens[n] = (int64_t)(kd_random_uniform(9, 1, (uint64_t)n) * (double)vocabulary);
            mask[n] = d < silent && kd_random_uniform(9, 2, (uint64_t)n) < scored;
        }
        borders[d + 1] = n;
    }
    return test_text_write(name, &(test_text){ .dtype = "U16",
                                               .tokens = tokens,
                                               .count = n,
                                               .documents = borders,
                                               .borders = count + 1,
                                               .mask = mask,
                                               .mask_count = n });
}

/* SAMPLES packed samples of documents of all sizes. */
static const char *write_stream(const char *name)
{
    int64_t lengths[MAX_DOCUMENTS], left = SAMPLES * SEQUENCE;
    int count = 0;
    for (; left > 0; count++) {
        lengths[count] = kd_min_i64(left, 1 + (count * 7 + 3) % 19);
        left -= lengths[count];
    }
    return write_documents(name, lengths, count, CLASSES, 0.8, count);
}

static kd_loader_options data_options(const char *path)
{
    return (kd_loader_options){ .files = { path },
                                .weights = { 1 },
                                .sources = 1,
                                .vocabulary = CLASSES,
                                .sequence = SEQUENCE,
                                .step_samples = SAMPLES,
                                .micro_samples = SAMPLES,
                                .ranks = 1,
                                .seed = 3 };
}

/* ---- one step, in one of many ways ------------------------------------------------------------ */

typedef struct way {
    const char *name;
    int64_t micro; /* samples */
    int64_t chunk; /* 0: the engine's */
    int ranks;
    int64_t bucket;
} way;

typedef struct outcome {
    float *gradient; /* of the student */
    kd_step_result result;
    size_t size; /* bytes of the gradient */
} outcome;

/* The first step of `data` through `lesson`. */
static kd_status take_step(outcome *out, test_lesson *lesson, const kd_loader_options *data)
{
    const kd_step_batch *batch;
    kd_loader *loader;
    kd_status status;
    KD_TRY(kd_loader_open(&loader, data));
    KD_TRY_GOTO(kd_loader_next(&batch, loader, NULL), status, done);
    KD_TRY_GOTO(test_lesson_step(lesson, &out->result, batch, 0), status, done);
    out->gradient = test_lesson_gradient(lesson, 1);
    out->size = kd_tensor_bytes(&lesson->models[1]->slab.gradients);
done:
    kd_loader_close(loader);
    return status;
}

static test_lesson_options family_options(const char *family)
{
    return (test_lesson_options){
        .models = { { .seed = 1, .vocabulary = CLASSES, .layers = 3, .width = 30 },
                    { .seed = 2, .family = family, .tied = true, .trainable = true } },
        .count = 2,
        .classes = CLASSES,
    };
}

typedef struct rank {
    test_lesson_options options;
    kd_loader_options data;
    outcome out;
    kd_status status;
    char message[256];
} rank;

static kd_status run_lesson(rank *r)
{
    test_lesson lesson;
    KD_TRY(test_lesson_open(&lesson, &r->options));
    const kd_status status = take_step(&r->out, &lesson, &r->data);
    test_lesson_close(&lesson);
    return status;
}

/* Assertions belong to the main thread: a rank keeps what it saw. */
static void *run_rank(void *context)
{
    rank *r = context;
    r->status = run_lesson(r);
    if (r->status == KD_OK) return NULL;
    snprintf(r->message, sizeof r->message, "%s", kd_last_error());
    r->options.comm->type->abort(r->options.comm); /* the others wait for this rank */
    return NULL;
}

static void run_ranks(rank *ranks, const way *w)
{
    pthread_t threads[MAX_RANKS];
    kd_comm *comms[MAX_RANKS];
    test_ok(kd_comm_threads(comms, w->ranks, 1 << 24));
    for (int r = 0; r < w->ranks; r++) {
        ranks[r].options.comm = comms[r];
        ranks[r].data.rank = r;
        cr_assert(pthread_create(&threads[r], NULL, run_rank, &ranks[r]) == 0);
    }
    for (int r = 0; r < w->ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < w->ranks; r++) {
        kd_comm_close(comms[r]);
        cr_assert(ranks[r].status == KD_OK, "%s, rank %d: %s", w->name, r, ranks[r].message);
    }
}

/* Every rank ends with the same bits; rank 0's are handed out. */
static outcome step_as(const way *w, test_lesson_options options, kd_loader_options data)
{
    rank ranks[MAX_RANKS] = { { .status = KD_OK } };
    options.chunk = w->chunk;
    options.bucket = w->bucket;
    options.rows = w->micro * data.sequence;
    data.micro_samples = w->micro;
    data.ranks = w->ranks;
    for (int r = 0; r < w->ranks; r++) ranks[r] = (rank){ .options = options, .data = data };
    run_ranks(ranks, w);
    for (int r = 1; r < w->ranks; r++) {
        cr_assert(memcmp(ranks[0].out.gradient, ranks[r].out.gradient, ranks[0].out.size) == 0,
                  "%s: rank %d has another gradient than rank 0", w->name, r);
        free(ranks[r].out.gradient);
    }
    return ranks[0].out;
}

/* A model to read the layout of gradients from. */
static void open_reference(test_lesson *lesson, test_lesson_options options)
{
    options.rows = SEQUENCE;
    test_ok(test_lesson_open(lesson, &options));
}

static void compare(const outcome *got, const kd_model *got_model, const outcome *want,
                    const kd_model *model, const char *family, const char *name)
{
    const kd_student_result *a = &got->result.student[1], *b = &want->result.student[1];
    cr_assert(got->result.valid == want->result.valid, "%s, %s: %lld rows count, expected %lld",
              family, name, (long long)got->result.valid, (long long)want->result.valid);
    cr_assert(fabs(a->loss - b->loss) <= most * fabs(b->loss), "%s, %s: loss %.9g, expected %.9g",
              family, name, a->loss, b->loss);
    test_near_gradient(got->gradient, got_model, want->gradient, model, most, "%s, %s", family,
                       name);
}

static const char *const families[] = { NULL, "qwen3", "gpt2" };

/* Beside the lesson's own terms; relations are of one document, whatever else is in its batch. */
static const char over_taps[] =
    "{ce: {weight: 0.3}, kl: {weight: 0.7, temperature: 2},"
    " hidden: {type: hidden_mse, layers: uniform, projector: {type: mlp, width: 20}, weight: 0.1},"
    " cosine: {projector: {type: linear, normalise: both, bias: false}, layers: [[1, 2], [2, 3]]},"
    " relation: {type: minilm_relation, relation_heads: 2, t_squared: true, temperature: 2},"
    " map: {type: attention_kl, layers: [[1, 2]], weight: 0.5}, scores: {type: attention_mse}}";

static const char largest_classes[] =
    "{ce: {weight: 0.3}, kl: {temperature: 2}, top_k: {k: 9, others: tail}}";
static const char restricted_classes[] =
    "{ce: {weight: 0.3}, kl: {temperature: 2}, top_k: {k: 9, others: restricted}}";

Test(invariance, micro_batches_chunks_ranks_and_buckets_change_no_gradient)
{
    static const way ways[] = {
        { "micro 4", 4, 0, 1, 0 },
        { "micro 2", 2, 0, 1, 0 },
        { "micro 1", 1, 0, 1, 0 },
        { "chunks of 1", 8, 1, 1, 0 },
        { "chunks of 7", 8, 7, 1, 0 },
        { "chunks of 50", 2, 50, 1, 0 },
        { "2 ranks", 4, 0, 2, 0 },
        { "2 ranks, a bucket per block", 2, 13, 2, 1 },
        { "4 ranks, small buckets", 2, 0, 4, 5000 },
        { "4 ranks of one sample at a time", 1, 5, 4, 1000000 },
    };
    const kd_loader_options data = data_options(write_stream("invariance"));
    static const struct {
        const char *family, *loss;
    } lessons[] = {
        { NULL, NULL },
        { "qwen3", NULL },
        { "gpt2", NULL },
        { NULL, over_taps },
        { "qwen3", over_taps },
        { "gpt2", over_taps },
        { NULL, largest_classes },
        { "gpt2", restricted_classes },
    };
    for (int k = 0; k < KD_COUNT(lessons); k++) {
        const char *family = lessons[k].family ? lessons[k].family : "llama";
        test_lesson_options options = family_options(lessons[k].family);
        test_lesson reference;
        options.loss = lessons[k].loss;
        open_reference(&reference, options);
        outcome want = step_as(&(way){ "whole", SAMPLES, 0, 1, 0 }, options, data);
        for (int i = 0; i < KD_COUNT(ways); i++) {
            outcome got = step_as(&ways[i], options, data);
            compare(&got, reference.models[1], &want, reference.models[1], family, ways[i].name);
            free(got.gradient);
        }
        free(want.gradient);
        test_lesson_close(&reference);
    }
    test_text_remove();
}

/* ---- samples: each is a row ------------------------------------------------------------------- */

static const kd_loader_options sample_data = { .files = { KD_GOLDEN "/mlp/samples.safetensors" },
                                               .weights = { 1 },
                                               .sources = 1,
                                               .vocabulary = 5,
                                               .inputs = 7,
                                               .sequence = 1,
                                               .step_samples = 12,
                                               .micro_samples = 12,
                                               .ranks = 1,
                                               .seed = 3,
                                               .shuffle = true };

static void check_samples(const way *ways, int count, const char *loss)
{
    static const kd_crd_classes data = { .samples = 12 };
    static const char *const students[] = { "relu", "gelu", "linear" };
    for (int i = 0; i < KD_COUNT(students); i++) {
        char dir[512];
        snprintf(dir, sizeof dir, KD_GOLDEN "/mlp/%s", students[i]);
        const test_lesson_options options = { .models = { { .dir = KD_GOLDEN "/mlp/teacher" },
                                                          { .dir = dir, .trainable = true } },
                                              .count = 2,
                                              .loss = loss,
                                              .data = &data,
                                              .classes = 5,
                                              .inputs = 7 };
        test_lesson reference;
        open_reference(&reference, options);
        outcome want = step_as(&(way){ "whole", 12, 0, 1, 0 }, options, sample_data);
        for (int k = 0; k < count; k++) {
            outcome got = step_as(&ways[k], options, sample_data);
            compare(&got, reference.models[1], &want, reference.models[1], students[i],
                    ways[k].name);
            free(got.gradient);
        }
        free(want.gradient);
        test_lesson_close(&reference);
    }
}

Test(invariance, micro_batches_chunks_ranks_and_buckets_change_no_gradient_of_samples)
{
    static const way ways[] = {
        { "micro 4", 4, 0, 1, 0 },      { "micro 1, chunks of 1", 1, 1, 1, 0 },
        { "chunks of 5", 12, 5, 1, 0 }, { "2 ranks, a bucket per layer", 3, 0, 2, 1 },
        { "3 ranks", 4, 0, 3, 0 },
    };
    static const char rows[] = "{kl: {temperature: 3}, hint: {projector: linear, weight: 0.5},"
                               " standard: {type: kl, standardise: true}, cosine: {projector: mlp, "
                               "layers: [[0, 1]]}, vid: {projector: linear}}";
    check_samples(ways, KD_COUNT(ways), NULL);
    check_samples(ways, KD_COUNT(ways), rows);
}

/* Samples are related to those of all ranks. */
Test(invariance, ranks_change_no_relation_of_samples)
{
    static const way ways[] = {
        { "2 ranks", 6, 0, 2, 0 },
        { "3 ranks, chunks of 1", 4, 1, 3, 1 },
        { "4 ranks", 3, 0, 4, 0 },
    };
    static const char relations[] =
        "{ce: {}, distance: {type: rkd_distance}, angle: {type: rkd_angle, weight: 2}, pkt: {},"
        " sp: {weight: 3}, cc: {projector: linear, layers: [[0, 0]]},"
        " crd: {dimension: 3, negatives: 20, weight: 0.1}}";
    check_samples(ways, KD_COUNT(ways), relations);
}

/* ---- temperatures ----------------------------------------------------------------------------- */

/* Accumulated over four micro-batches: T^2 is a factor of the gradient, whatever T. */
Test(invariance, t_squared_is_a_factor)
{
    static const double temperatures[] = { 0.05, 0.5, 1, 4, 20 };
    const kd_loader_options data = data_options(write_stream("temperature"));
    for (int i = 0; i < KD_COUNT(temperatures); i++) {
        const double t = temperatures[i];
        test_lesson_options options = family_options(NULL);
        test_lesson reference;
        outcome outcomes[2];
        options.terms[0] = (kd_term){ .name = "kl",
                                      .kind = KD_ROW_forward_kl,
                                      .weight = { 0.7, 0.7, 0 },
                                      .temperature = t,
                                      .student = 1,
                                      .teacher = 0 };
        options.term_count = 1;
        open_reference(&reference, options);
        for (int k = 0; k < 2; k++) {
            options.terms[0].t_squared = k;
            outcomes[k] = step_as(&(way){ "accumulated", 2, 6, 1, 0 }, options, data);
        }
        for (size_t k = 0; k < outcomes[0].size / sizeof(float); k++)
            outcomes[0].gradient[k] *= (float)(t * t);
        test_near_gradient(outcomes[1].gradient, reference.models[1], outcomes[0].gradient,
                           reference.models[1], most, "T %g", t);
        for (int k = 0; k < 2; k++) free(outcomes[k].gradient);
        test_lesson_close(&reference);
    }
    test_text_remove();
}

/* ---- vocabularies ----------------------------------------------------------------------------- */

typedef struct padding {
    const char *name;
    int64_t teacher, student; /* columns beyond the classes */
    bool tied;
} padding;

/* A padded teacher's rows hold NaN: they are not even read.  A padded student's are huge, so that
 * they would own every softmax they stood in. */
static test_lesson_options padded_options(const padding *p, int64_t classes, int64_t width,
                                          int64_t layers)
{
    return (test_lesson_options){ .models = { { .seed = 1,
                                                .width = width,
                                                .layers = layers,
                                                .vocabulary = classes + p->teacher,
                                                .junk = NAN },
                                              { .seed = 2,
                                                .width = width,
                                                .layers = layers,
                                                .vocabulary = classes + p->student,
                                                .junk = 100,
                                                .tied = p->tied,
                                                .trainable = true } },
                                  .count = 2,
                                  .classes = classes };
}

static void check_padding(const padding *paddings, int count, int64_t classes, int64_t width,
                          int64_t layers, int64_t micro, const char *path)
{
    const way w = { "one rank", micro, 0, 1, 0 };
    kd_loader_options data = data_options(path);
    data.vocabulary = classes;
    data.step_samples = micro;
    for (int i = 0; i < count; i++) {
        const padding none = { "none", 0, 0, paddings[i].tied };
        const test_lesson_options plain = padded_options(&none, classes, width, layers);
        const test_lesson_options padded = padded_options(&paddings[i], classes, width, layers);
        test_lesson reference, layout;
        open_reference(&reference, plain);
        open_reference(&layout, padded);
        outcome want = step_as(&w, plain, data), got = step_as(&w, padded, data);
        compare(&got, layout.models[1], &want, reference.models[1], "padded", paddings[i].name);
        free(want.gradient);
        free(got.gradient);
        test_lesson_close(&reference);
        test_lesson_close(&layout);
    }
}

Test(invariance, padded_vocabularies_change_no_gradient)
{
    static const padding paddings[] = {
        { "teacher by 1, tied", 1, 0, true },       { "teacher by 3", 3, 0, false },
        { "student by 3, tied", 0, 3, true },       { "student by 20", 0, 20, false },
        { "both, other sizes, tied", 67, 3, true }, { "both", 3, 67, false },
    };
    check_padding(paddings, KD_COUNT(paddings), CLASSES, 24, 2, SAMPLES, write_stream("padding"));
    test_text_remove();
}

/* Qwen2.5's teacher and student: one tokenizer, 152,064 and 151,936 columns. */
Test(invariance, padded_vocabularies_of_real_size_change_no_gradient)
{
    static const padding paddings[] = { { "teacher by 128, tied", 128, 0, true } };
    static const int64_t lengths[] = { 5, 7, 12 };
    const char *path = write_documents("real", lengths, KD_COUNT(lengths), 151936, 1.0, INT32_MAX);
    check_padding(paddings, KD_COUNT(paddings), 151936, 16, 1, 2, path);
    test_text_remove();
}

/* ---- packing ---------------------------------------------------------------------------------- */

/* Documents that fill samples exactly: packed into five of them, or each in one of its own. */
Test(invariance, packing_changes_no_gradient)
{
    static const int64_t lengths[] = { 5, 7, 12, 1, 11, 4, 4, 4, 9, 3 };
    const int count = KD_COUNT(lengths);
    const char *path = write_documents("packing", lengths, count, CLASSES, 0.8, count);
    for (int f = 0; f < KD_COUNT(families); f++) {
        const char *family = families[f] ? families[f] : "llama";
        const test_lesson_options options = family_options(families[f]);
        test_lesson reference;
        kd_loader_options packed = data_options(path), single = packed;
        packed.step_samples = 5;
        single.step_samples = count;
        single.pack = KD_PACK_NONE;
        open_reference(&reference, options);
        outcome want = step_as(&(way){ "packed", 5, 0, 1, 0 }, options, packed);
        outcome got = step_as(&(way){ "single", 2, 0, 1, 0 }, options, single);
        compare(&got, reference.models[1], &want, reference.models[1], family, "one per sample");
        free(want.gradient);
        free(got.gradient);
        test_lesson_close(&reference);
    }
    test_text_remove();
}

/* ---- rows that do not count ------------------------------------------------------------------- */

/* The second half of the samples has no scored token: by itself, and beside others that have. */
Test(invariance, masked_samples_change_no_gradient)
{
    static const int64_t lengths[] = { 12, 3, 9, 12, 12, 5, 7 };
    static const way ways[] = { { "all in one", 6, 0, 1, 0 },
                                { "masked micro-batches", 1, 0, 1, 0 },
                                { "a masked rank", 3, 0, 2, 0 } };
    const char *path = write_documents("masked", lengths, KD_COUNT(lengths), CLASSES, 0.8, 4);
    const test_lesson_options options = family_options(NULL);
    kd_loader_options data = data_options(path), half = data;
    test_lesson reference;
    half.step_samples = 3;
    data.step_samples = 6;
    open_reference(&reference, options);
    outcome want = step_as(&(way){ "without", 3, 0, 1, 0 }, options, half);
    for (int i = 0; i < KD_COUNT(ways); i++) {
        outcome got = step_as(&ways[i], options, data);
        compare(&got, reference.models[1], &want, reference.models[1], "masked", ways[i].name);
        free(got.gradient);
    }
    free(want.gradient);
    test_lesson_close(&reference);
    test_text_remove();
}

/* A step without any scored token: no loss, no gradient, no NaN. */
Test(invariance, a_step_without_a_scored_token_is_zero)
{
    static const int64_t lengths[] = { 12, 5, 7, 12, 12 };
    static const way ways[] = { { "whole", 4, 0, 1, 0 },
                                { "split", 2, 5, 1, 0 },
                                { "ranks", 1, 0, 4, 0 } };
    const char *path = write_documents("silent", lengths, KD_COUNT(lengths), CLASSES, 0.8, 0);
    const test_lesson_options options = family_options("gpt2");
    kd_loader_options data = data_options(path);
    data.step_samples = 4;
    for (int i = 0; i < KD_COUNT(ways); i++) {
        outcome got = step_as(&ways[i], options, data);
        const kd_student_result *s = &got.result.student[1];
        cr_assert(got.result.valid == 0 && s->loss == 0.0 && s->term[0] == 0.0 &&
                      s->term[1] == 0.0 && s->gradient_norm == 0.0 && s->verdict == 0,
                  "%s: %lld rows, loss %g, norm %g", ways[i].name, (long long)got.result.valid,
                  s->loss, s->gradient_norm);
        for (size_t k = 0; k < got.size / sizeof(float); k++)
            cr_assert(got.gradient[k] == 0.0f, "%s: gradient %zu is %g", ways[i].name, k,
                      (double)got.gradient[k]);
        free(got.gradient);
    }
    test_text_remove();
}

/* ---- students that teach each other ------------------------------------------------------------ */

/* Model 0 or 1 or both are trained, each under the other. */
static void open_mutual(test_lesson *lesson, unsigned trained)
{
    test_lesson_options options = {
        .models = { { .seed = 1, .label = "first", .layers = 3, .trainable = trained & 1 },
                    { .seed = 2, .label = "second", .family = "gpt2", .trainable = trained & 2 } },
        .count = 2,
        .rows = 2 * SEQUENCE,
        .chunk = 7
    };
    for (int m = 0; m < 2; m++)
        if (trained >> m & 1u)
            options.term_count += test_distil(options.terms + options.term_count, m, 1 - m);
    test_ok(test_lesson_open(lesson, &options));
}

Test(invariance, mutual_students_learn_what_each_would_under_the_other)
{
    kd_loader_options data = data_options(write_stream("mutual"));
    const kd_step_batch *batch;
    kd_loader *loader;
    test_lesson both, alone;
    kd_step_result together, single;
    data.micro_samples = 2;
    test_ok(kd_loader_open(&loader, &data));
    test_ok(kd_loader_next(&batch, loader, NULL));
    open_mutual(&both, 3);
    test_ok(test_lesson_step(&both, &together, batch, 0));
    for (int m = 0; m < 2; m++) {
        open_mutual(&alone, 1u << m);
        test_ok(test_lesson_step(&alone, &single, batch, 0));
        const kd_student_result *a = &together.student[m], *b = &single.student[m];
        cr_assert(fabs(a->loss - b->loss) <= most * b->loss, "student %d: loss %.9g, alone %.9g", m,
                  a->loss, b->loss);
        float *got = test_lesson_gradient(&both, m), *want = test_lesson_gradient(&alone, m);
        test_near_gradient(got, both.models[m], want, alone.models[m], most, "student %d", m);
        free(got);
        free(want);
        test_lesson_close(&alone);
    }
    test_lesson_close(&both);
    kd_loader_close(loader);
    test_text_remove();
}
