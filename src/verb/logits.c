/* A model's logits of one document, into a file. */
#include "model/model.h"
#include "verb/verb.h"

#include <kd/model.h>

enum { CHUNK_BYTES = 32 << 20 }; /* of logits at a time */

typedef struct logits_job {
    kd_model *model;
    kd_arena *arena;
    kd_exec exec;
    kd_stack stack;
    kd_batch batch;
    const int32_t *tokens;
    int32_t *positions;
    int64_t rows, chunk;
    float *host;          /* [chunk, V] */
    kd_st_writer *writer; /* NULL while planning */
} logits_job;

static kd_status take_batch(logits_job *job)
{
    const int32_t cu[2] = { 0, (int32_t)job->rows };
    kd_batch *b = &job->batch;
    KD_TRY(kd_push(&b->tokens, &job->exec, "tokens", KD_I32, KD_SHAPE(job->rows)));
    KD_TRY(kd_push(&b->geometry.positions, &job->exec, "positions", KD_I32, KD_SHAPE(job->rows)));
    KD_TRY(kd_push(&b->geometry.cu, &job->exec, "document starts", KD_I32, KD_SHAPE(2)));
    KD_TRY(kd_upload(&job->exec, &b->tokens, job->tokens));
    KD_TRY(kd_upload(&job->exec, &b->geometry.positions, job->positions));
    return kd_upload(&job->exec, &b->geometry.cu, cu);
}

static kd_status head_rows(logits_job *job, const kd_head *head, const kd_tensor *logits,
                           int64_t at, int64_t count)
{
    const kd_tensor hidden = kd_tensor_slice(&head->hidden, 0, at, count);
    const kd_tensor y = kd_tensor_slice(logits, 0, 0, count);
    const kd_tensor weight = kd_tensor_transposed(&head->weight);
    KD_TRY(KD_RUN(&job->exec, matmul, .y = &y, .a = &hidden, .b = &weight, .bias = &head->bias));
    KD_TRY(kd_download(&job->exec, job->host, &y));
    KD_TRY(kd_sync(&job->exec));
    if (!job->writer) return KD_OK;
    return kd_st_writer_write(job->writer, "logits", job->host, kd_tensor_bytes(&y));
}

/* Runs once to plan and once for real. */
static kd_status run(logits_job *job)
{
    kd_taps taps = { .count = 0 };
    kd_tensor logits;
    const kd_mark mark = kd_stack_mark(&job->stack);
    KD_TRY(take_batch(job));
    KD_TRY(kd_model_forward(job->model, &job->exec, &job->batch, &taps));
    if (taps.head.softcap != 0.0f)
        return kd_fail(KD_ENOTSUP, "soft-capped vocabulary logits (%g)", (double)taps.head.softcap);
    KD_TRY(kd_push(&logits, &job->exec, "head logits", KD_F32,
                   KD_SHAPE(job->chunk, taps.head.weight.shape[0])));
    for (int64_t at = 0; at < job->rows; at += job->chunk)
        KD_TRY(head_rows(job, &taps.head, &logits, at, kd_min_i64(job->chunk, job->rows - at)));
    kd_stack_release(&job->stack, mark);
    return KD_OK;
}

static kd_status read_tokens(logits_job *job, const char *path)
{
    const kd_config *c = &job->model->config;
    int32_t *tokens;
    if (c->inputs)
        return kd_fail(KD_ENOTSUP, "%s: %s classifies samples and has no tokens", c->dir,
                       c->architecture);
    KD_TRY(kd_verb_tokens(&tokens, &job->rows, job->arena, path, c->vocabulary));
    if (c->position == KD_POSITION_LEARNED && job->rows > c->max_positions)
        return kd_fail(KD_EFORMAT, "%s: %lld tokens; the model has %lld positions", path,
                       (long long)job->rows, (long long)c->max_positions);
    KD_TRY(KD_ARENA_ARRAY(&job->positions, job->arena, job->rows));
    for (int64_t i = 0; i < job->rows; i++) job->positions[i] = (int32_t)i;
    job->tokens = tokens;
    return KD_OK;
}

static kd_status plan(logits_job *job)
{
    const int64_t v = job->model->config.vocabulary;
    kd_device_info info;
    kd_device_describe(&info, job->exec.device);
    job->chunk = kd_min_i64(kd_max_i64(CHUNK_BYTES / (4 * v), 1), job->rows);
    KD_TRY(KD_ARENA_ARRAY(&job->host, job->arena, job->chunk * v));
    KD_TRY(kd_stack_plan(&job->stack, job->arena));
    job->exec.stack = &job->stack;
    KD_TRY(run(job));
    const size_t bytes = job->stack.peak + kd_model_bytes(job->model);
    if (bytes > info.memory)
        return kd_fail(KD_ENOMEM, "%lld tokens take %.2f GB of %.2f GB; give fewer tokens",
                       (long long)job->rows, (double)bytes / 1e9, (double)info.memory / 1e9);
    return kd_stack_open(&job->stack, job->exec.device);
}

static kd_status write_logits(logits_job *job, const char *out)
{
    const int64_t shape[] = { job->rows, job->model->config.vocabulary };
    kd_status status;
    KD_TRY(kd_st_writer_create(&job->writer, out));
    KD_TRY_GOTO(kd_st_writer_declare(job->writer, "logits", KD_F32, 2, shape), status, failed);
    KD_TRY_GOTO(kd_st_writer_begin(job->writer), status, failed);
    KD_TRY_GOTO(run(job), status, failed);
    KD_TRY(kd_st_writer_close(job->writer));
    kd_log(KD_LOG_INFO, "logits    f32 [%lld, %lld] -> %s", (long long)shape[0],
           (long long)shape[1], out);
    return KD_OK;
failed:
    kd_st_writer_abort(job->writer);
    return status;
}

kd_status kd_logits_write(const kd_logits_options *options)
{
    kd_model_options how = { .label = "model" };
    logits_job job = { .model = NULL };
    kd_status status;
    KD_TRY(kd_model_parse_dtype(&how.dtype, options->dtype));
    KD_TRY(kd_arena_create(&job.arena));
    KD_TRY_GOTO(kd_device_open(&job.exec.device, options->device ? options->device : "auto"),
                status, done);
    KD_TRY_GOTO(kd_model_open(&job.model, job.exec.device, options->model, &how), status, done);
    KD_TRY_GOTO(read_tokens(&job, options->tokens), status, done);
    KD_TRY_GOTO(plan(&job), status, done);
    status = write_logits(&job, options->out);
done:
    if (job.exec.device) kd_stack_close(&job.stack, job.exec.device);
    kd_model_close(job.model);
    kd_device_close(job.exec.device);
    kd_arena_destroy(job.arena);
    return status;
}
