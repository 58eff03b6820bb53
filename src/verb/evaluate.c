/*
 * Models side by side on held-out tokens: perplexity, KL to the teacher and agreement, each with its
 * standard error over documents, and the unigram floor that says when a model has learnt nothing.
 */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

enum { DEFAULT_SEQUENCE = 512, DEFAULT_MICRO = 4 };

typedef struct evaluation {
    const kd_eval_options *options;
    kd_eval_report *report;
    kd_arena *arena;
    kd_device *device;
    kd_comm *comm;
    kd_loader *loader;
    kd_model *models[KD_MAX_MODELS];
    const char *dirs[KD_MAX_MODELS];
    int count;
    kd_tokenizer_info tokenizer;
    kd_text_options text;
    int64_t classes, inputs, sequence, micro, tokens, documents;
    kd_step step, timing;
    kd_scores scores[KD_MAX_MODELS];
} evaluation;

/* ---- opening ---------------------------------------------------------------------------------- */

static const char *last_component(const char *dir)
{
    const char *slash = strrchr(dir, '/');
    return slash && slash[1] ? slash + 1 : dir;
}

static kd_status open_model(evaluation *e, const char *dir, const char *name, const char *dtype)
{
    kd_model_options options = { .label = name };
    if (e->count == KD_MAX_MODELS)
        return kd_fail(KD_EINVAL, "more than %d models in one evaluation", KD_MAX_MODELS);
    KD_TRY(kd_model_parse_dtype(&options.dtype, dtype));
    KD_TRY(kd_model_open(&e->models[e->count], e->device, dir, &options));
    e->dirs[e->count] = dir;
    e->report->rows[e->count].name = name;
    e->count++;
    return KD_OK;
}

static kd_status open_models(evaluation *e)
{
    const kd_eval_options *o = e->options;
    e->report->has_teacher = o->teacher != NULL;
    if (o->teacher)
        KD_TRY(
            open_model(e, o->teacher, "teacher", o->teacher_dtype ? o->teacher_dtype : o->dtype));
    for (int i = 0; i < o->model_count; i++)
        KD_TRY(open_model(e, o->models[i], o->names[i] ? o->names[i] : last_component(o->models[i]),
                          o->dtype));
    if (e->count == 0) return kd_fail(KD_EINVAL, "no model to evaluate");

    KD_TRY(kd_common_tokenizer(&e->tokenizer, &e->classes, e->models, e->count));
    e->text.vocabulary = e->classes;
    e->inputs = e->models[0]->config.inputs;
    e->report->samples = e->inputs > 0;
    if (e->inputs) {
        e->micro *= e->sequence;
        e->sequence = 1;
    }
    if (!e->tokenizer.present) return KD_OK;
    e->text.tokenizer = e->tokenizer.dir;
    e->text.fingerprint = e->tokenizer.fingerprint.hex;
    return KD_OK;
}

static kd_status open_loader(evaluation *e)
{
    const kd_eval_options *o = e->options;
    const kd_loader_options options = { .files = { o->data },
                                        .weights = { 1.0 },
                                        .sources = 1,
                                        .vocabulary = e->classes,
                                        .tokenizer = e->text.tokenizer,
                                        .fingerprint = e->text.fingerprint,
                                        .inputs = e->inputs,
                                        .sequence = e->sequence,
                                        .pack = KD_PACK_DOCUMENTS,
                                        .step_samples = e->micro,
                                        .micro_samples = e->micro,
                                        .ranks = 1,
                                        .max_samples = o->tokens / e->sequence };
    double scored;
    KD_TRY(kd_loader_open(&e->loader, &options));
    kd_loader_describe(e->loader, &e->tokens, &e->documents, &scored);
    return KD_OK;
}

static kd_step_options step_options(evaluation *e)
{
    return (kd_step_options){ .device = e->device,
                              .comm = e->comm,
                              .models = e->models,
                              .count = e->count,
                              .certainty = e->options->profile,
                              .classes = e->classes,
                              .inputs = e->inputs,
                              .rows = e->sequence * e->micro };
}

static kd_status open_step(evaluation *e)
{
    const kd_step_options options = step_options(e);
    KD_TRY(kd_step_plan(&e->step, &options));
    return kd_step_open(&e->step);
}

/* ---- floors and summaries --------------------------------------------------------------------- */

typedef struct unigram {
    double *counts, total; /* add-one smoothed */
    double nll, targets;
} unigram;

static void count_token(unigram *u, int32_t id, int32_t label)
{
    (void)label;
    u->counts[id] += 1.0;
    u->total += 1.0;
}

static void score_token(unigram *u, int32_t id, int32_t label)
{
    (void)id;
    if (label < 0) return;
    u->nll -= log(u->counts[label] / u->total);
    u->targets += 1.0;
}

static kd_status each_token(unigram *u, const kd_text *text,
                            void (*visit)(unigram *u, int32_t id, int32_t label))
{
    enum { PIECE = 4096 };
    int32_t ids[PIECE], labels[PIECE];
    for (int64_t d = 0; d < kd_text_documents(text); d++) {
        int64_t begin, end;
        kd_text_document(text, d, &begin, &end);
        for (int64_t at = begin; at < end; at += PIECE) {
            const int64_t n = kd_min_i64(PIECE, end - at);
            KD_TRY(kd_text_read(ids, labels, text, at, n, end));
            for (int64_t i = 0; i < n; i++) visit(u, ids[i], labels[i]);
        }
    }
    return KD_OK;
}

/* The shares of the training file's classes, on the labels of the evaluated. */
static kd_status measure_classes(evaluation *e, unigram *u)
{
    const kd_samples_options options = { e->inputs, e->classes };
    const char *const files[] = { e->options->train, e->options->data };
    for (int f = 0; f < 2; f++) {
        kd_samples *samples;
        kd_status status = KD_OK;
        KD_TRY(kd_samples_open(&samples, files[f], &options));
        for (int64_t i = 0; i < kd_samples_count(samples) && status == KD_OK; i++) {
            int32_t label = 0;
            status = kd_samples_read(NULL, &label, samples, i);
            (f ? score_token : count_token)(u, label, label);
        }
        kd_samples_close(samples);
        KD_TRY(status);
    }
    e->report->unigram_ppl = exp(u->nll / u->targets);
    return KD_OK;
}

/* Perplexity on the evaluated targets of the counts of the training tokens. */
static kd_status measure_unigram(evaluation *e)
{
    kd_text *train = NULL, *valid = NULL;
    unigram u = { .total = (double)e->classes };
    kd_status status;
    e->report->unigram_ppl = NAN;
    if (!e->options->train) return KD_OK;
    KD_TRY(KD_ARENA_ARRAY(&u.counts, e->arena, e->classes));
    for (int64_t i = 0; i < e->classes; i++) u.counts[i] = 1.0;
    if (e->inputs) return measure_classes(e, &u);
    KD_TRY_GOTO(kd_text_open(&train, e->options->train, &e->text), status, done);
    KD_TRY_GOTO(kd_text_open(&valid, e->options->data, &e->text), status, done);
    KD_TRY_GOTO(each_token(&u, train, count_token), status, done);
    KD_TRY_GOTO(each_token(&u, valid, score_token), status, done);
    e->report->unigram_ppl = u.targets > 0.0 ? exp(u.nll / u.targets) : NAN;
done:
    kd_text_close(train);
    kd_text_close(valid);
    return status;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void quantiles(double out[4], kd_scores *scores)
{
    static const double at[4] = { 0.5, 0.9, 0.99, 1.0 };
    const int64_t n = scores->kl_count;
    if (n) qsort(scores->kl_values, (size_t)n, sizeof *scores->kl_values, by_value);
    for (int i = 0; i < 4; i++)
        out[i] = n ? scores->kl_values[(int64_t)(at[i] * (double)(n - 1))] : NAN;
}

static int64_t weight_bytes(const char *dir)
{
    kd_model_files *files;
    if (kd_model_files_open(&files, dir) != KD_OK) return 0;
    const int64_t bytes = files->bytes;
    kd_model_files_close(files);
    return bytes;
}

static void fill_row(evaluation *e, int m)
{
    kd_eval_row *row = &e->report->rows[m];
    kd_scores *scores = &e->scores[m];
    const bool teacher = e->report->has_teacher && m == 0;
    const kd_measure nll = kd_scores_mean(scores, scores->nll), none = { NAN, NAN };
    row->parameters = e->models[m]->slab.params.scalars;
    row->bytes = weight_bytes(e->dirs[m]);
    row->nll = nll.mean;
    row->ppl = (kd_measure){ exp(nll.mean), exp(nll.mean) * nll.error };
    row->kl = teacher || !e->report->has_teacher ? none : kd_scores_mean(scores, scores->kl);
    row->same_top =
        teacher || !e->report->has_teacher ? none : kd_scores_mean(scores, scores->same);
    row->accuracy = kd_scores_mean(scores, scores->correct);
    row->retained = e->report->has_teacher ? e->report->rows[0].nll / nll.mean : NAN;
    quantiles(e->report->kl_quantile[m], scores);
    if (scores->profile) kd_profile_finish(scores->profile);
}

/* The last model against the one before it, document by document. */
static kd_status compare(evaluation *e)
{
    const int a = e->count - 1, b = e->count - 2;
    double *difference;
    kd_eval_pair *pair = &e->report->pair;
    *pair = (kd_eval_pair){ .a = a, .b = b };
    if (!e->report->has_teacher || b < 1) return KD_OK;
    KD_TRY(KD_ARENA_ARRAY(&difference, e->arena, e->documents));
    for (int64_t d = 0; d < e->documents; d++) {
        difference[d] = e->scores[a].kl[d] - e->scores[b].kl[d];
        pair->documents += e->scores[a].count[d] > 0.0;
        pair->better += e->scores[a].count[d] > 0.0 && difference[d] < 0.0;
    }
    pair->kl = kd_scores_mean(&e->scores[a], difference);
    return KD_OK;
}

/* Seconds per token of a forward pass with its head and nothing beside it. */
static kd_status time_model(evaluation *e, int m)
{
    enum { BATCHES = 2 }; /* the first warms up */
    kd_step *step = &e->timing;
    kd_measured measured[KD_MAX_MODELS] = { { .nll = NULL } };
    const kd_cursor start = { 0 };
    double seconds = 0.0, rows = 0.0;
    kd_step_options options = step_options(e);
    options.models = &e->models[m];
    options.count = 1;
    options.timing = true;
    KD_TRY(kd_step_plan(step, &options));
    KD_TRY(kd_step_open(step));
    KD_TRY(kd_loader_seek(e->loader, &start));
    for (int i = 0; i < BATCHES; i++) {
        const kd_step_batch *batch;
        KD_TRY(kd_loader_next(&batch, e->loader, NULL));
        if (!batch) break;
        measured[0] = kd_step_values(step, 0);
        KD_TRY(kd_step_measure(step, &batch->micro[0], 1u, measured));
        seconds = measured[0].seconds;
        rows = (double)batch->micro[0].rows;
    }
    e->report->rows[m].ms_per_token = rows > 0.0 ? 1e3 * seconds / rows : NAN;
    kd_step_close(step);
    return KD_OK;
}

/* ---- the whole -------------------------------------------------------------------------------- */

static kd_status measure(evaluation *e)
{
    for (int m = 0; m < e->count; m++) {
        KD_TRY(kd_scores_create(&e->scores[m], e->arena, e->documents,
                                e->report->has_teacher && m > 0 ? e->tokens : 0));
        if (e->options->profile) e->scores[m].profile = &e->report->profile[m];
    }
    KD_TRY(kd_step_evaluate(&e->step, e->loader, (1u << e->count) - 1u, e->scores));
    if (e->scores[0].tokens == 0)
        return kd_fail(KD_EFORMAT, "%s: no token counts as a target", e->options->data);
    for (int m = 0; m < e->count; m++) fill_row(e, m);
    for (int m = 0; m < e->count; m++) KD_TRY(time_model(e, m));
    e->report->count = e->count;
    e->report->tokens = e->scores[0].tokens;
    for (int64_t d = 0; d < e->documents; d++) e->report->documents += e->scores[0].count[d] > 0.0;
    KD_TRY(compare(e));
    return measure_unigram(e);
}

static void close_evaluation(evaluation *e)
{
    kd_loader_close(e->loader);
    kd_step_close(&e->step);
    kd_step_close(&e->timing);
    for (int m = 0; m < e->count; m++) kd_model_close(e->models[m]);
    kd_comm_close(e->comm);
    kd_device_close(e->device);
    kd_arena_destroy(e->arena);
}

kd_status kd_evaluate(kd_eval_report *report, const kd_eval_options *options)
{
    evaluation e = { .options = options,
                     .report = report,
                     .sequence = options->sequence ? options->sequence : DEFAULT_SEQUENCE,
                     .micro = options->micro ? options->micro : DEFAULT_MICRO };
    kd_status status;
    *report = (kd_eval_report){ .count = 0 };
    KD_TRY_GOTO(kd_arena_create(&e.arena), status, done);
    KD_TRY_GOTO(kd_device_open(&e.device, options->device ? options->device : "auto"), status,
                done);
    KD_TRY_GOTO(kd_comm_solo(&e.comm), status, done);
    KD_TRY_GOTO(open_models(&e), status, done);
    KD_TRY_GOTO(open_loader(&e), status, done);
    KD_TRY_GOTO(open_step(&e), status, done);
    KD_TRY_GOTO(measure(&e), status, done);
done:
    close_evaluation(&e);
    return status;
}
