/* What a run reports: lines for a person on the log, records for programs in metrics.jsonl and, with
 * the same keys, for TensorBoard. */
#include "train/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- metrics.jsonl ---------------------------------------------------------------------------- */

/* A record of training is numbered by the steps before it, one of an evaluation by the steps done. */
static bool is_before(const json_t *record, int64_t step, int64_t evaluated)
{
    const int64_t at = json_integer_value(json_object_get(record, "step"));
    return json_object_get(record, "split") ? at <= evaluated : at < step;
}

/* "valid/kl"; of one student among several "students[1]/valid/kl". */
static void add_scalar(kd_event *event, const char *model, const char *split, const char *key,
                       double value)
{
    char tag[KD_EVENT_TAG];
    const bool only = strcmp(model, "student") == 0;
    snprintf(tag, sizeof tag, "%s%s%s/%s", only ? "" : model, only ? "" : "/", split, key);
    kd_event_add(event, tag, value);
}

/* An evaluation of the very step that a run goes on with stays; what TensorBoard has of it is void. */
static kd_status show_again(kd_metrics *metrics, json_t *record, int64_t step)
{
    const char *split = json_string_value(json_object_get(record, "split")), *key;
    const char *model = json_string_value(json_object_get(record, "model"));
    const json_t *value;
    kd_event event = { .used = 0 };
    if (!split || !model || json_integer_value(json_object_get(record, "step")) != step)
        return KD_OK;
    json_object_foreach(record, key, value)
    {
        if (json_is_number(value) && strcmp(key, "step") != 0)
            add_scalar(&event, model, split, key, json_number_value(value));
    }
    return kd_events_write(&metrics->events, step, &event);
}

/* Records of steps that a resumed run will take again are dropped. */
static kd_status keep_until(kd_metrics *metrics, int64_t step, int64_t evaluated)
{
    const char *path = metrics->path;
    char *text;
    size_t bytes, kept = 0;
    kd_status status = KD_OK;
    if (!kd_file_exists(path)) return KD_OK;
    KD_TRY(kd_file_read(&text, &bytes, path, (size_t)1 << 32));
    for (size_t at = 0; at < bytes && status == KD_OK;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        const size_t next = end ? (size_t)(end - text) + 1 : bytes;
        json_t *record = NULL;
        if (end) status = kd_json_parse(&record, path, text + at, next - at);
        if (status == KD_EFORMAT) status = KD_OK; /* half a line, of a run that was killed */
        const bool keep = record && is_before(record, step, evaluated);
        if (keep) status = show_again(metrics, record, step);
        json_decref(record);
        if (keep) {
            memmove(text + kept, text + at, next - at);
            kept += next - at;
        }
        at = next;
    }
    if (status == KD_OK) status = kd_file_write_atomic(path, text, kept);
    free(text);
    return status;
}

kd_status kd_metrics_open(kd_metrics *metrics, kd_arena *arena, const char *out, int64_t step,
                          int64_t evaluated, bool tensorboard)
{
    *metrics = (kd_metrics){ .fd = -1 };
    KD_TRY(kd_path_join(&metrics->path, arena, out, "metrics.jsonl"));
    if (tensorboard) KD_TRY(kd_events_open(&metrics->events, arena, out, step));
    KD_TRY(keep_until(metrics, step, evaluated));
    /* O_NONBLOCK: a FIFO that nobody reads is refused and does not hang. */
    const int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK;
    metrics->fd = open(metrics->path, flags, 0666);
    if (metrics->fd < 0) return kd_fail(KD_EIO, "%s: %s", metrics->path, strerror(errno));
    return kd_file_fsync(out);
}

kd_status kd_metrics_sync(const kd_metrics *metrics)
{
    KD_TRY(kd_fsync(metrics->fd, metrics->path));
    return metrics->events.path ? kd_fsync(metrics->events.fd, metrics->events.path) : KD_OK;
}

void kd_metrics_close(kd_metrics *metrics)
{
    if (metrics->path && metrics->fd >= 0) close(metrics->fd);
    kd_events_close(&metrics->events);
    *metrics = (kd_metrics){ .fd = -1 };
}

/* One record in the making: fixed buffers, so that a step allocates nothing. */
typedef struct record {
    char text[2048];
    size_t used;
    int64_t step;
    const char *model, *split;
    kd_event event;
} record;

static void KD_PRINTF(2, 3) put(record *r, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(r->text + r->used, sizeof r->text - r->used, fmt, args);
    va_end(args);
    if (n > 0)
        r->used = r->used + (size_t)n < sizeof r->text ? r->used + (size_t)n : sizeof r->text - 1;
}

static record record_of(int64_t step, const char *model, const char *split)
{
    record r = { .step = step, .model = model, .split = split };
    put(&r, "{\"step\":%lld,\"model\":\"%s\"", (long long)step, model);
    return r;
}

/* JSON has no NaN. */
static void put_number(record *r, const char *key, double value)
{
    add_scalar(&r->event, r->model, r->split, key, value);
    if (isfinite(value))
        put(r, ",\"%s\":%.9g", key, value);
    else
        put(r, ",\"%s\":null", key);
}

static kd_status put_line(kd_metrics *metrics, record *r)
{
    put(r, "}\n");
    const char *at = r->text;
    for (size_t left = r->used; left > 0;) {
        const ssize_t n = write(metrics->fd, at, left);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return kd_fail(KD_EIO, "%s: %s", metrics->path, strerror(errno));
        at += n;
        left -= (size_t)n;
    }
    return kd_events_write(&metrics->events, r->step, &r->event);
}

kd_status kd_metrics_step(kd_metrics *metrics, const kd_step *step, const kd_step_result *result,
                          int64_t tokens, double seconds, double tokens_per_s)
{
    for (int m = 0; m < step->count; m++) {
        const kd_student_result *s = &result->student[m];
        int n = 0;
        if (!step->members[m].model->slab.trainable) continue;
        record r = record_of(result->step, step->members[m].model->label, "train");
        put_number(&r, "loss", s->loss);
        for (int i = 0; i < step->objective.count; i++)
            if (step->objective.terms[i].student == m)
                put_number(&r, step->objective.terms[i].name, s->term[n++]);
        put_number(&r, "same_top", s->same_top);
        put_number(&r, "gradient_norm", s->gradient_norm);
        if (step->optim.skip_zscore > 0.0) put_number(&r, "loss_z", s->loss_z);
        if (step->optim.skip_zscore > 0.0) put_number(&r, "norm_z", s->norm_z);
        put_number(&r, "skipped", (double)result->skips);
        put_number(&r, "lr", s->lr);
        put_number(&r, "valid", (double)result->valid);
        put_number(&r, "tokens", (double)tokens);
        put_number(&r, "seconds", seconds);
        put_number(&r, "tokens_per_s", tokens_per_s);
        put_number(&r, "device_bytes", (double)step->device->held);
        put_number(&r, "device_peak_bytes", (double)step->device->most);
        put_number(&r, "host_bytes", (double)kd_resident_bytes());
        KD_TRY(put_line(metrics, &r));
    }
    return KD_OK;
}

kd_status kd_metrics_evaluation(kd_metrics *metrics, const char *model, int64_t step,
                                const kd_measure *nll, const kd_measure *kl, const kd_measure *same,
                                const kd_measure *accuracy)
{
    record r = record_of(step, model, "valid");
    put(&r, ",\"split\":\"valid\"");
    put_number(&r, "nll", nll->mean);
    put_number(&r, "nll_error", nll->error);
    put_number(&r, "kl", kl->mean);
    put_number(&r, "kl_error", kl->error);
    put_number(&r, "same_top", same->mean);
    if (isfinite(accuracy->mean)) put_number(&r, "accuracy", accuracy->mean);
    return put_line(metrics, &r);
}

/* ---- the log ---------------------------------------------------------------------------------- */

void kd_log_header(const kd_step *step)
{
    record r = { .used = 0 };
    put(&r, "  step      loss");
    for (int i = 0; i < step->objective.count; i++)
        if (step->objective.terms[i].student == step->objective.terms[0].student)
            put(&r, "  %8.8s", step->objective.terms[i].name);
    put(&r, "    same    |grad|%s         lr    tok/s   device     host      left",
        step->optim.skip_zscore > 0.0 ? "       z" : "");
    kd_log(KD_LOG_INFO, "%s", r.text);
}

void kd_log_step(const kd_step *step, const kd_step_result *result, double tokens_per_s,
                 double seconds_left, bool live)
{
    char left[32], device[32], host[32];
    kd_format_duration(left, sizeof left, seconds_left);
    kd_format_bytes(device, sizeof device, (double)step->device->held);
    kd_format_bytes(host, sizeof host, (double)kd_resident_bytes());
    for (int m = 0; m < step->count; m++) {
        const kd_student_result *s = &result->student[m];
        record r = { .used = 0 };
        if (!step->members[m].model->slab.trainable) continue;
        put(&r, "%6lld  %8.4f", (long long)result->step, s->loss);
        for (int i = 0; i < kd_objective_terms(&step->objective, m); i++)
            put(&r, "  %8.4f", s->term[i]);
        if (isnan(s->same_top))
            put(&r, "       -");
        else
            put(&r, "  %5.1f%%", 100.0 * s->same_top);
        put(&r, "  %8.3f", s->gradient_norm);
        /* The one that decides; the windows of both are full at the same step. */
        if (step->optim.skip_zscore > 0.0 && isnan(s->loss_z)) put(&r, "       -");
        if (step->optim.skip_zscore > 0.0 && !isnan(s->loss_z))
            put(&r, "  %+6.2f", fmax(s->loss_z, s->norm_z));
        put(&r, "  %9.2e  %7.0f  %7s  %7s  %8s", s->lr, tokens_per_s, device, host, left);
        if (live)
            kd_log_live("%s", r.text);
        else
            kd_log(KD_LOG_INFO, "%s", r.text);
    }
}
