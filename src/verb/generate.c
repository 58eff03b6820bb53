/* A model continues a prompt. */
#include "model/model.h"
#include "verb/verb.h"

#include <kd/generate.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { DEFAULT_TOKENS = 128, CHUNK = 256 };

typedef struct generation {
    const kd_generate_options *options;
    kd_arena *arena;
    kd_device *device;
    kd_model *model;
    kd_tokenizer *tokenizer; /* NULL: ids in, ids out */
    kd_text_stream stream;
    kd_decoder decoder;
    const int32_t *ids; /* of the prompt */
    int64_t id_count, tokens, classes;
    int32_t *encoded; /* free() it */
    int32_t stop;     /* besides the configuration's; -1: none */
    float *logits;    /* [vocabulary] */
    int32_t *scratch; /* [vocabulary] */
} generation;

/* ---- the prompt ------------------------------------------------------------------------------- */

/* A tokenizer that kd does not read is only an obstacle to text. */
static kd_status open_tokenizer(generation *g)
{
    const kd_generate_options *o = g->options;
    const char *path;
    bool there;
    KD_TRY(kd_path_join(&path, g->arena, o->model, "tokenizer.json"));
    KD_TRY(kd_file_find(&there, path));
    g->classes = g->model->config.vocabulary;
    if (!there)
        return o->prompt ? kd_fail(KD_ENOTSUP, "%s is not there: give the prompt as ids", path)
                         : KD_OK;
    const kd_status status = kd_tokenizer_open(&g->tokenizer, o->model);
    if (status == KD_ENOTSUP && !o->prompt) {
        kd_log(KD_LOG_WARN, "%s; printing ids", kd_last_error());
        return KD_OK;
    }
    KD_TRY(status);
    g->classes = kd_min_i64(g->classes, kd_tokenizer_size(g->tokenizer));
    g->stream = (kd_text_stream){ .tokenizer = g->tokenizer, .skip_special = true };
    return KD_OK;
}

static kd_status encode_chat(generation *g)
{
    static const char format[] = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n";
    const char *text;
    g->stop = kd_tokenizer_added(g->tokenizer, "<|im_end|>");
    if (g->stop < 0 || kd_tokenizer_added(g->tokenizer, "<|im_start|>") < 0)
        return kd_fail(KD_ENOTSUP, "%s: chat needs the tokens <|im_start|> and <|im_end|>",
                       g->options->model);
    KD_TRY(kd_arena_format(&text, g->arena, format, g->options->prompt));
    return kd_tokenizer_encode(&g->encoded, &g->id_count, g->tokenizer, text, strlen(text), false);
}

static kd_status encode_prompt(generation *g)
{
    const char *text = g->options->prompt;
    const int64_t bos = g->model->config.bos;
    if (g->options->chat) {
        KD_TRY(encode_chat(g));
    } else {
        KD_TRY(
            kd_tokenizer_encode(&g->encoded, &g->id_count, g->tokenizer, text, strlen(text), true));
    }
    g->ids = g->encoded;
    if (g->id_count > 0 || bos < 0) return KD_OK;
    int32_t *first;
    KD_TRY(KD_ARENA_ARRAY(&first, g->arena, 1));
    first[0] = (int32_t)bos;
    g->ids = first;
    g->id_count = 1;
    return KD_OK;
}

static kd_status take_prompt(generation *g)
{
    const kd_generate_options *o = g->options;
    const int64_t vocabulary = g->model->config.vocabulary;
    if (o->prompt) {
        KD_TRY(encode_prompt(g));
    } else if (o->file) {
        int32_t *ids;
        KD_TRY(kd_verb_tokens(&ids, &g->id_count, g->arena, o->file, vocabulary));
        g->ids = ids;
    } else {
        g->ids = o->ids;
        g->id_count = o->id_count;
    }
    if (g->id_count < 1) return kd_fail(KD_EINVAL, "the prompt has no tokens");
    for (int64_t i = 0; i < g->id_count; i++)
        if (g->ids[i] < 0 || g->ids[i] >= vocabulary)
            return kd_fail(KD_EINVAL, "token %lld of the prompt: found id %d, expected 0 to %lld",
                           (long long)i, (int)g->ids[i], (long long)vocabulary - 1);
    return KD_OK;
}

/* ---- opening ---------------------------------------------------------------------------------- */

static kd_status check_options(const kd_generate_options *o)
{
    if ((o->prompt != NULL) + (o->ids != NULL) + (o->file != NULL) != 1)
        return kd_fail(KD_EINVAL, "generate: expected one prompt, as text, ids or a file");
    if (o->chat && !o->prompt) return kd_fail(KD_EINVAL, "generate: chat takes a prompt as text");
    if (o->tokens < 0 || o->top_k < 0 || !(o->temperature >= 0.0) || isinf(o->temperature) ||
        !(o->top_p >= 0.0) || o->top_p > 1.0)
        return kd_fail(KD_EINVAL,
                       "generate: tokens %lld, temperature %g, top_k %lld, top_p %g; expected none "
                       "below 0 and top_p at most 1",
                       (long long)o->tokens, o->temperature, (long long)o->top_k, o->top_p);
    return KD_OK;
}

static kd_status open_model(generation *g)
{
    const kd_generate_options *o = g->options;
    kd_model_options how = { .label = "model" };
    KD_TRY(kd_model_parse_dtype(&how.dtype, o->dtype));
    KD_TRY(kd_device_open(&g->device, o->device ? o->device : "auto"));
    return kd_model_open(&g->model, g->device, o->model, &how);
}

/* Rows of the caches; a cache that cannot fit is said before it is asked for. */
static kd_status check_length(generation *g)
{
    const kd_config *c = &g->model->config;
    kd_device_info info;
    g->tokens = g->options->tokens ? g->options->tokens : DEFAULT_TOKENS;
    if (c->position == KD_POSITION_LEARNED && g->id_count < c->max_positions)
        g->tokens = kd_min_i64(g->tokens, c->max_positions - g->id_count);
    const int64_t rows = g->id_count + g->tokens;
    const double bytes = 2.0 * (double)c->layers * (double)rows * (double)c->kv_heads *
                         (double)c->head_size * (double)kd_dtype_size(g->model->dtype);
    kd_device_describe(&info, g->device);
    if (bytes + (double)kd_model_bytes(g->model) > (double)info.memory)
        return kd_fail(KD_ENOMEM,
                       "keys and values of %lld tokens take %.2f GB, the device has %.2f",
                       (long long)rows, bytes / 1e9, (double)info.memory / 1e9);
    if (rows > c->max_positions)
        kd_log(KD_LOG_WARN, "%lld tokens; the model was made for %lld", (long long)rows,
               (long long)c->max_positions);
    return KD_OK;
}

static kd_status open_all(generation *g)
{
    KD_TRY(kd_arena_create(&g->arena));
    KD_TRY(open_model(g));
    KD_TRY(open_tokenizer(g));
    KD_TRY(take_prompt(g));
    KD_TRY(check_length(g));
    KD_TRY(KD_ARENA_ARRAY(&g->logits, g->arena, g->model->config.vocabulary));
    KD_TRY(KD_ARENA_ARRAY(&g->scratch, g->arena, g->model->config.vocabulary));
    return kd_decoder_open(&g->decoder, g->model, g->id_count + g->tokens,
                           kd_min_i64(g->id_count, CHUNK));
}

static void close_all(generation *g)
{
    kd_decoder_close(&g->decoder);
    free(g->stream.text);
    free(g->encoded);
    kd_tokenizer_close(g->tokenizer);
    kd_model_close(g->model);
    kd_device_close(g->device);
    kd_arena_destroy(g->arena);
}

/* ---- making tokens ---------------------------------------------------------------------------- */

static bool ends(const generation *g, int32_t id)
{
    const int64_t *eos = g->model->config.eos;
    for (int i = 0; i < KD_COUNT(g->model->config.eos) && eos[i] >= 0; i++)
        if (eos[i] == id) return true;
    return id == g->stop;
}

static kd_status next_token(int32_t *id, const generation *g, int64_t index)
{
    const kd_generate_options *o = g->options;
    const kd_sampling sampling = { .temperature = o->temperature,
                                   .top_k = o->top_k,
                                   .top_p = o->top_p > 0.0 ? o->top_p : 1.0,
                                   .seed = o->seed };
    for (int64_t i = 0; i < g->classes; i++)
        if (!isfinite(g->logits[i]))
            return kd_fail(KD_ENONFINITE, "%s: after %lld tokens the logit of id %lld is %g",
                           o->model, (long long)g->decoder.length, (long long)i,
                           (double)g->logits[i]);
    *id = kd_sample(g->logits, g->classes, &sampling, index, g->scratch);
    return KD_OK;
}

static kd_status show(generation *g, int32_t id, kd_generate_visit visit, void *context)
{
    const char *text = NULL;
    size_t bytes = 0;
    if (g->tokenizer) KD_TRY(kd_text_stream_push(&text, &bytes, &g->stream, id));
    return id >= 0 || bytes > 0 ? visit(context, id, text, bytes) : KD_OK;
}

static kd_status generate(kd_generate_report *r, generation *g, kd_generate_visit visit,
                          void *context)
{
    const double start = kd_clock();
    KD_TRY(kd_decoder_extend(&g->decoder, g->logits, g->ids, g->id_count));
    const double read = kd_clock();
    r->prompt_tokens = g->id_count;
    r->prompt_seconds = read - start;
    while (r->tokens < g->tokens) {
        int32_t id;
        KD_TRY(next_token(&id, g, r->tokens));
        r->ended = ends(g, id);
        if (r->ended) break;
        KD_TRY(show(g, id, visit, context));
        if (++r->tokens < g->tokens) KD_TRY(kd_decoder_extend(&g->decoder, g->logits, &id, 1));
        r->seconds = kd_clock() - read;
    }
    return show(g, -1, visit, context);
}

kd_status kd_generate(kd_generate_report *report, const kd_generate_options *options,
                      kd_generate_visit visit, void *context)
{
    generation g = { .options = options, .stop = -1 };
    *report = (kd_generate_report){ 0 };
    KD_TRY(check_options(options));
    kd_status status;
    KD_TRY_GOTO(open_all(&g), status, done);
    status = generate(report, &g, visit, context);
done:
    close_all(&g);
    return status;
}
