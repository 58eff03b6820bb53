#include "train/session.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

static const double usable_share = 0.92;

/* ---- vocabularies ----------------------------------------------------------------------------- */

kd_status kd_check_pair(const char *label, const kd_config *x, const char *other,
                        const kd_config *y)
{
    const json_t *names = json_object_get(x->raw, "id2label");
    const json_t *others = json_object_get(y->raw, "id2label");
    if (!x->inputs && !y->inputs) return KD_OK;
    if (!x->inputs || !y->inputs)
        return kd_fail(KD_EINVAL, "%s (%s) reads %s, %s (%s) %s; they cannot be in one run", label,
                       x->architecture, x->inputs ? "samples" : "tokens", other, y->architecture,
                       y->inputs ? "samples" : "tokens");
    if (x->inputs != y->inputs || x->vocabulary != y->vocabulary)
        return kd_fail(KD_EFORMAT,
                       "%s has samples of %lld numbers and %lld classes, %s of %lld and %lld",
                       label, (long long)x->inputs, (long long)x->vocabulary, other,
                       (long long)y->inputs, (long long)y->vocabulary);
    if (json_is_object(names) && json_is_object(others) && !json_equal(names, others))
        return kd_fail(KD_EFORMAT, "%s and %s name their classes differently (id2label)", label,
                       other);
    return KD_OK;
}

kd_status kd_common_tokenizer(kd_tokenizer_info *common, int64_t *classes, kd_model *const *models,
                              int count)
{
    const char *first = NULL;
    for (int m = 1; m < count; m++)
        KD_TRY(kd_check_pair(models[0]->label, &models[0]->config, models[m]->label,
                             &models[m]->config));
    *common = (kd_tokenizer_info){ 0 };
    *classes = INT64_MAX;
    for (int m = 0; m < count; m++) {
        const kd_config *c = &models[m]->config;
        kd_tokenizer_info info;
        KD_TRY(kd_tokenizer_inspect(&info, c->dir));
        *classes = kd_min_i64(*classes, c->vocabulary);
        if (!info.present) continue;
        if (info.size > c->vocabulary)
            return kd_fail(
                KD_EFORMAT,
                "%s/tokenizer.json: found id %lld, expected ids below the vocab_size %lld "
                "of config.json",
                c->dir, (long long)info.size - 1, (long long)c->vocabulary);
        if (first && strcmp(info.fingerprint.hex, common->fingerprint.hex) != 0)
            return kd_fail(KD_EFORMAT,
                           "%s and %s have different tokenizers (fingerprints %s and %s); their "
                           "logits cannot be compared id by id",
                           first, c->dir, common->fingerprint.hex, info.fingerprint.hex);
        first = c->dir;
        *common = info;
    }
    if (first) *classes = kd_min_i64(*classes, common->size);
    return KD_OK;
}

/* ---- planning --------------------------------------------------------------------------------- */

typedef struct extension {
    const kd_run *run;
    int model;
} extension;

static kd_status extend(void *context, kd_params *params, int block)
{
    const extension *e = context;
    return kd_terms_declare(e->run->terms, e->run->term_count, params, e->model, block);
}

static kd_status initialise_terms(const kd_session *s, int m)
{
    kd_stack stack = { 0 };
    kd_exec exec = { .device = s->device, .stack = &stack };
    return kd_terms_initialise(s->run->terms, s->run->term_count, &exec, &s->models[m]->slab, m,
                               (uint64_t)s->run->run.seed);
}

static kd_status open_models(kd_session *s, bool planning)
{
    s->count = 0;
    for (int m = 0; m < s->run->model_count; m++) {
        const kd_model_section *section = &s->run->models[m];
        extension more = { s->run, m };
        const kd_model_options options = { .label = section->label,
                                           .dtype = kd_section_dtype(section),
                                           .trainable = section->trainable,
                                           .moments = kd_optim_moments(&s->run->optim),
                                           .recompute = (kd_recompute)section->recompute,
                                           .planning = planning,
                                           .extend = section->trainable ? extend : NULL,
                                           .context = &more };
        KD_TRY(kd_model_open(&s->models[m], s->device, section->model, &options));
        s->count = m + 1;
        if (!planning) KD_TRY(initialise_terms(s, m));
    }
    return KD_OK;
}

static void close_models(kd_session *s)
{
    for (int m = 0; m < s->count; m++) kd_model_close(s->models[m]);
    s->count = 0;
}

static kd_status plan_step(kd_session *s, int64_t micro)
{
    kd_step_close(&s->step);
    const kd_step_options options = { .device = s->device,
                                      .comm = s->comm,
                                      .models = s->models,
                                      .count = s->count,
                                      .terms = s->run->terms,
                                      .term_count = s->run->term_count,
                                      .classes = s->classes,
                                      .rows = micro * s->run->data.sequence,
                                      .inputs = s->inputs,
                                      .logits = s->run->logits,
                                      .chunk = s->run->batch.chunk,
                                      .optim = s->run->optim,
                                      .steps = s->steps,
                                      .seed = (uint64_t)s->run->run.seed };
    s->micro = micro;
    s->accumulate = s->step_samples / micro / s->comm->size;
    return kd_step_plan(&s->step, &options);
}

size_t kd_session_bytes(const kd_session *s)
{
    size_t bytes = kd_step_bytes(&s->step);
    for (int m = 0; m < s->count; m++) bytes += kd_model_bytes(s->models[m]);
    return bytes;
}

double kd_session_usable(const kd_session *s) { return usable_share * (double)s->memory; }

static bool fits(const kd_session *s)
{
    return (double)kd_session_bytes(s) <= kd_session_usable(s);
}

/* Samples of a micro-batch beyond which memory is all that grows. */
static int64_t most_samples(const kd_session *s)
{
    kd_device_info info;
    kd_device_describe(&info, s->device);
    const int64_t all = s->step_samples / s->comm->size;
    if (strcmp(info.type, "cpu") != 0) return all;
    return kd_min_i64(all, kd_ceil_div(kd_cpu_rows(&info), s->run->data.sequence));
}

/* The largest micro-batch up to `most` that divides the step's samples and fits; none may. */
static kd_status plan_largest(kd_session *s, int64_t most)
{
    const int64_t per_rank = s->step_samples / s->comm->size;
    for (int64_t micro = most; micro >= 1; micro--) {
        if (per_rank % micro != 0) continue;
        KD_TRY(plan_step(s, micro));
        if (fits(s)) break;
    }
    return KD_OK;
}

static kd_status plan_micro(kd_session *s, int64_t micro)
{
    const char *text = s->run->batch.micro;
    if (s->step_samples % s->comm->size != 0)
        return kd_fail(KD_EINVAL, "batch: %lld samples do not divide into %d ranks",
                       (long long)s->step_samples, s->comm->size);
    if (micro == 0 && strcmp(text, "auto") == 0) return plan_largest(s, most_samples(s));
    if (micro == 0) {
        char *end;
        micro = strtoll(text, &end, 10);
        if (end == text || *end || micro < 1 || micro > s->step_samples)
            return kd_fail(KD_EINVAL, "batch.micro: \"%s\"; expected auto or 1 to %lld samples",
                           text, (long long)s->step_samples);
        if (s->step_samples % (micro * s->comm->size) != 0)
            return kd_fail(KD_EINVAL, "batch.micro: %lld x %d ranks does not divide %lld samples",
                           (long long)micro, s->comm->size, (long long)s->step_samples);
    }
    return plan_step(s, micro);
}

static kd_text_options text_options(const kd_session *s)
{
    kd_text_options options = { .vocabulary = s->classes };
    if (!s->tokenizer.present) return options;
    options.tokenizer = s->tokenizer.dir;
    options.fingerprint = s->tokenizer.fingerprint.hex;
    return options;
}

/* A sample is one row: wherever a run counts tokens, it counts as one. */
static kd_status settle_samples(kd_session *s)
{
    s->inputs = s->models[0]->config.inputs;
    if (s->inputs) s->run->data.sequence = 1;
    if (s->inputs || s->run->data.sequence > 1) return KD_OK;
    return kd_fail(KD_EINVAL, "data.sequence: 1 token has no next one; expected at least 2");
}

/* That there is something to keep the best of. */
static kd_status check_best(const kd_session *s)
{
    const int best = s->run->checkpoint.keep_best;
    const char *missing = NULL;
    bool teacher = false;
    for (int m = 0; m < s->count; m++) teacher |= !s->models[m]->slab.trainable;
    if (best == KD_BEST_KL && !teacher) missing = "a teacher";
    if (best == KD_BEST_ACCURACY && !s->inputs) missing = "models of samples";
    if (best != KD_BEST_NONE && !*s->run->data.valid) missing = "data.valid";
    if (!missing) return KD_OK;
    return kd_fail(KD_EINVAL, "run.checkpoint.keep_best: the run has none of it without %s",
                   missing);
}

static kd_status count_samples(kd_session *s, const char *file)
{
    const kd_samples_options options = { s->inputs, s->classes };
    kd_samples *samples;
    KD_TRY(kd_samples_open(&samples, file, &options));
    s->train_tokens += kd_samples_count(samples);
    kd_samples_close(samples);
    return KD_OK;
}

/* Epochs need the number of tokens before anything can be planned. */
static kd_status count_tokens(kd_session *s)
{
    const kd_text_options options = text_options(s);
    s->train_tokens = 0;
    for (int i = 0; i < s->run->data.sources; i++) {
        kd_text *text;
        if (s->inputs) {
            KD_TRY(count_samples(s, s->run->data.train[i]));
            continue;
        }
        KD_TRY(kd_text_open(&text, s->run->data.train[i], &options));
        s->train_tokens += kd_text_tokens(text);
        kd_text_close(text);
    }
    return KD_OK;
}

kd_status kd_session_plan(kd_session *s, kd_run *run, kd_device *device, int64_t micro)
{
    kd_device_info info;
    KD_TRY(kd_run_parse(run));
    s->run = run;
    s->device = device;
    device->tf32 = run->run.tf32;
    device->tune = !run->run.deterministic;
    kd_device_describe(&info, device);
    s->memory = info.memory;
    if (!s->comm) KD_TRY(kd_comm_solo(&s->comm));
    if (!s->arena) KD_TRY(kd_arena_create(&s->arena));
    KD_TRY(kd_bind_terms(run));
    KD_TRY(open_models(s, true));
    KD_TRY(kd_common_tokenizer(&s->tokenizer, &s->classes, s->models, s->count));
    if (s->tokenizer.present) /* the model that it is of closes before the session */
        KD_TRY(kd_arena_string(&s->tokenizer.dir, s->arena, s->tokenizer.dir));
    KD_TRY(settle_samples(s));
    KD_TRY(check_best(s));
    if (s->reads_data && run->run.epochs > 0.0) KD_TRY(count_tokens(s));
    KD_TRY(kd_run_length(&s->steps, &s->step_samples, run, s->train_tokens));
    return plan_micro(s, micro);
}

/* ---- opening ---------------------------------------------------------------------------------- */

static kd_status open_data(kd_session *s)
{
    const kd_data_section *data = &s->run->data;
    const kd_text_options text = text_options(s);
    kd_loader_options options = { .sources = data->sources,
                                  .vocabulary = s->classes,
                                  .tokenizer = text.tokenizer,
                                  .fingerprint = text.fingerprint,
                                  .inputs = s->inputs,
                                  .sequence = data->sequence,
                                  .pack = (kd_pack)data->pack,
                                  .step_samples = s->step_samples,
                                  .micro_samples = s->micro,
                                  .rank = s->comm->rank,
                                  .ranks = s->comm->size,
                                  .seed = (uint64_t)s->run->run.seed,
                                  .shuffle = data->shuffle };
    for (int i = 0; i < data->sources; i++) {
        options.files[i] = data->train[i];
        options.weights[i] = data->weight[i];
    }
    KD_TRY(kd_loader_open(&s->train, &options));
    kd_loader_describe(s->train, &s->train_tokens, &s->train_documents, &s->train_scored);
    if (!*data->valid) return KD_OK;

    options.files[0] = data->valid;
    options.weights[0] = 1.0;
    options.sources = 1;
    options.shuffle = false;
    options.step_samples = s->micro * s->comm->size;
    options.max_samples = s->run->eval.tokens / data->sequence;
    double scored;
    KD_TRY(kd_loader_open(&s->valid, &options));
    kd_loader_describe(s->valid, &s->valid_tokens, &s->valid_documents, &scored);
    return KD_OK;
}

/* "; banks take 1.5 GB, negatives 268 MB: loss.NAME.dimension and negatives"; "" without banks. */
static void print_banks(char *text, size_t size, const kd_session *s)
{
    char banks[32], negatives[32];
    double bytes = 0, drawn = 0;
    for (int m = 0; m < s->count; m++) bytes += 4.0 * (double)s->models[m]->slab.params.states;
    for (int i = 0; i < s->run->term_count; i++)
        drawn += (double)kd_tensor_bytes(&s->step.negatives[i]);
    *text = '\0';
    if (bytes > 0)
        snprintf(text, size, "; banks take %s and negatives %s: loss.NAME.dimension, negatives",
                 kd_format_bytes(banks, sizeof banks, bytes),
                 kd_format_bytes(negatives, sizeof negatives, drawn));
}

/* Names the largest micro-batch that would fit, after `why`.  The models are planning ones. */
static kd_status refuse_size(kd_session *s, const char *why)
{
    const double bytes = (double)kd_session_bytes(s);
    const char *phase = s->step.stack.peak_phase;
    const int64_t micro = s->micro;
    char needed[32], usable[32], memory[32], largest[64] = "not even one sample fits";
    char banks[128];
    kd_session_log_plan(s);
    print_banks(banks, sizeof banks, s);
    KD_TRY(plan_largest(s, micro - 1));
    if (s->micro < micro && fits(s))
        snprintf(largest, sizeof largest, "batch.micro: %lld fits", (long long)s->micro);
    return kd_fail(
        KD_ENOMEM,
        "%sthe run needs %s, most of it at %s, with batch.micro %lld, and may fill %s of "
        "%s; %s; student.recompute: blocks and dtype: bf16 take less%s",
        why, kd_format_bytes(needed, sizeof needed, bytes), phase, (long long)micro,
        kd_format_bytes(usable, sizeof usable, kd_session_usable(s)),
        kd_format_bytes(memory, sizeof memory, (double)s->memory), largest, banks);
}

kd_status kd_session_short(kd_session *s)
{
    const int64_t micro = s->micro;
    char available[32];
    const char *failure, *why;
    KD_TRY(kd_arena_format(&failure, s->arena, "%s", kd_last_error()));
    kd_step_close(&s->step);
    close_models(s);
    s->memory = kd_device_available(s->device);
    KD_TRY(kd_arena_format(&why, s->arena, "%s; %s are free now; ", failure,
                           kd_format_bytes(available, sizeof available, (double)s->memory)));
    KD_TRY(open_models(s, true));
    KD_TRY(plan_step(s, micro));
    return refuse_size(s, why);
}

/* Takes what was planned; where the device has no room for it after all, says what would fit. */
static kd_status take(kd_session *s)
{
    close_models(s);
    kd_status status = open_models(s, false);
    if (status == KD_OK) status = plan_step(s, s->micro);
    if (status == KD_OK) status = kd_step_open(&s->step);
    return status == KD_ENOMEM ? kd_session_short(s) : status;
}

kd_status kd_session_open(kd_session *s, kd_run *run)
{
    kd_device_info info;
    *s = (kd_session){ .run = run, .reads_data = true };
    KD_TRY(kd_run_parse(run));
    KD_TRY(kd_session_join(s));
    kd_device_describe(&info, s->device);
    KD_TRY(kd_session_plan(s, run, s->device, 0));
    if (!fits(s)) return refuse_size(s, "");
    KD_TRY(kd_arena_format(&s->contract, s->arena,
                           "kd " KD_VERSION
                           ", %s, %s, %s, %d threads, micro %lld x %d ranks, chunk %lld",
                           info.type, info.name, info.software, omp_get_max_threads(),
                           (long long)s->micro, s->comm->size, (long long)s->step.objective.chunk));
    KD_TRY(kd_session_agree(s));
    KD_TRY(open_data(s));
    return take(s);
}

void kd_session_close(kd_session *s)
{
    kd_loader_close(s->train);
    kd_loader_close(s->valid);
    kd_step_close(&s->step);
    close_models(s);
    if (s->comm) kd_comm_close(s->comm);
    kd_device_close(s->device);
    kd_arena_destroy(s->arena);
    *s = (kd_session){ 0 };
}

/* ---- what the log states at the start --------------------------------------------------------- */

static void log_model(const kd_session *s, int m)
{
    const kd_model *model = s->models[m];
    char parameters[32], bytes[32];
    kd_log(KD_LOG_INFO, "%-9s %s  %s  %s parameters  %s  V %lld%s", model->label,
           s->run->models[m].model, kd_dtype_name(model->dtype),
           kd_format_count(parameters, sizeof parameters, model->slab.params.scalars),
           kd_format_bytes(bytes, sizeof bytes, (double)kd_model_bytes(model)),
           (long long)model->config.vocabulary, model->slab.trainable ? "  trained" : "");
}

/* Their value depends on how an update is split. */
static void warn_of_relations(const kd_session *s)
{
    for (int i = 0; i < s->run->term_count && s->accumulate > 1; i++) {
        const kd_term *term = &s->run->terms[i];
        if (term->tapped && term->tapped->dimension)
            kd_log(
                KD_LOG_WARN,
                "loss.%s renews its banks after each of the %lld micro-batches of an update, and "
                "makes Z of the first; batch.micro says how many samples one has",
                term->name, (long long)s->accumulate);
        else if (term->tapped && term->tapped->type->relates)
            kd_log(KD_LOG_WARN,
                   "loss.%s relates the %lld samples of a micro-batch, not the %lld of an update; "
                   "batch.micro says how many",
                   term->name, (long long)(s->micro * s->comm->size), (long long)s->step_samples);
    }
}

kd_status kd_session_log(const kd_session *s, const char *out)
{
    kd_device_info info;
    char a[32], b[32];
    kd_device_describe(&info, s->device);
    kd_log(KD_LOG_INFO, "kd " KD_VERSION "  %s: %s  seed %lld  -> %s", info.type, info.name,
           (long long)s->run->run.seed, out);
    if (s->comm->size > 1)
        kd_log(KD_LOG_INFO, "ranks     %d of %s, joined by %s", s->comm->size, s->ranks.launcher,
               s->comm->type->name);
    for (int m = 0; m < s->count; m++) log_model(s, m);
    if (s->tokenizer.present)
        kd_log(KD_LOG_INFO, "tokenizer %s: %lld ids; losses over %lld classes",
               s->tokenizer.fingerprint.hex, (long long)s->tokenizer.size, (long long)s->classes);
    else if (!s->inputs)
        kd_log(KD_LOG_INFO,
               "tokenizer none in these folders: ids are taken as equal; losses over "
               "%lld classes",
               (long long)s->classes);
    if (s->inputs)
        kd_log(KD_LOG_INFO, "data      %s samples of %s numbers, %lld classes",
               kd_format_count(a, sizeof a, s->train_tokens),
               kd_format_count(b, sizeof b, s->inputs), (long long)s->classes);
    else
        kd_log(KD_LOG_INFO, "data      %s tokens, %s documents, %.1f %% count as targets",
               kd_format_count(a, sizeof a, s->train_tokens),
               kd_format_count(b, sizeof b, s->train_documents), 100.0 * s->train_scored);
    for (int m = 0; m < s->count; m++) {
        const char *terms, *seen;
        if (!s->models[m]->slab.trainable) continue;
        KD_TRY(kd_terms_print(&terms, s->arena, s->run->terms, s->run->term_count, m));
        KD_TRY(kd_logit_view_print(&seen, s->arena, &s->run->logits));
        kd_log(KD_LOG_INFO, "loss      %s%s; mean over the global count of %s", terms, seen,
               s->inputs ? "samples" : "scored tokens");
    }
    warn_of_relations(s);
    kd_log(KD_LOG_INFO,
           "plan      %s of %s, peak at %s; micro %lld x %lld x accumulate %lld = %lld "
           "%s per update; %lld updates",
           kd_format_bytes(a, sizeof a, (double)kd_session_bytes(s)),
           kd_format_bytes(b, sizeof b, (double)s->memory), s->step.stack.peak_phase,
           (long long)s->micro, (long long)s->run->data.sequence, (long long)s->accumulate,
           (long long)(s->step_samples * s->run->data.sequence), s->inputs ? "samples" : "tokens",
           (long long)s->steps);
    return KD_OK;
}
