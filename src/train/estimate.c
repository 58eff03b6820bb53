/* What a run would take, from config.json alone (and the samples that a loss keeps banks of): the plan of
 * the real step on a device that need not be here. */
#include "train/session.h"

#include <math.h>
#include <stdio.h>

/* Libraries, context and code of a GPU process, which a device that is here has taken already;
 * measured values replace it when a card has run. */
static const double gpu_reserve = 0.6e9;

/* Dense bf16 FLOP/s that vendors state, and the share of it that a prediction assumes. */
static const struct {
    const char *name;
    double flops;
} speeds[] = { { "h100-80g", 989e12 }, { "h200-141g", 989e12 }, { "a100-80g", 312e12 },
               { "a100-40g", 312e12 }, { "l40s-48g", 362e12 },  { "rtx4090-24g", 165e12 } };
static const double predicted_share = 0.5;

static kd_status open_device(kd_device **device, const char *name)
{
    if (strncmp(name, "cpu", 3) == 0 || strncmp(name, "cuda", 4) == 0)
        return kd_device_open(device, name);
    return kd_device_open_meta(device, name);
}

static void describe_models(kd_estimate *e, const kd_session *s)
{
    const kd_logit_view *view = &s->run->logits;
    for (int m = 0; m < s->count; m++) {
        const kd_model *model = s->models[m];
        const bool student = model->slab.trainable;
        double flops = (double)kd_config_flops(&model->config);
        const char *dir = s->run->models[m].model, *slash = strrchr(dir, '/');
        char *name = student ? e->student : e->teacher;
        snprintf(name, sizeof e->student, "%s", slash && slash[1] ? slash + 1 : dir);
        *(student ? &e->student_bytes : &e->teacher_bytes) += (double)kd_model_bytes(model);
        *(student ? &e->student_parameters : &e->teacher_parameters) += model->slab.params.scalars;
        e->bank_bytes += 4.0 * (double)model->slab.params.states;
        if (student && kd_logit_view_is_sparse(view, s->run->terms, s->run->term_count, m))
            flops -= 2.0 * (double)((model->config.vocabulary - view->top_k) * model->config.width);
        /* Backward is two forward passes. */
        *(student ? &e->student_flops : &e->teacher_flops) += student ? 3.0 * flops : flops;
        e->vocabulary = kd_max_i64(e->vocabulary, model->config.vocabulary);
    }
    e->flops_per_token = e->student_flops + e->teacher_flops;
}

int kd_plan_entries(kd_plan_entry *entries, int limit, const kd_stack *stack)
{
    int count = 0;
    for (int i = 0; i < stack->peak_count; i++) {
        const kd_stack_entry *entry = &stack->peak_entries[i];
        int at = 0;
        while (at < count && strcmp(entries[at].name, entry->name) != 0) at++;
        if (at == limit) continue;
        if (at == count) {
            entries[count] = (kd_plan_entry){ .bytes = 0.0 };
            snprintf(entries[count++].name, sizeof entries[0].name, "%s", entry->name);
        }
        entries[at].bytes += (double)entry->bytes;
    }
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && entries[j].bytes > entries[j - 1].bytes; j--) {
            const kd_plan_entry swap = entries[j];
            entries[j] = entries[j - 1];
            entries[j - 1] = swap;
        }
    return count;
}

void kd_session_log_plan(const kd_session *s)
{
    char bytes[32];
    kd_plan_entry entries[16];
    const kd_stack *stack = &s->step.stack;
    for (int m = 0; m < s->count; m++)
        kd_log(KD_LOG_INFO, "plan      %9s  %s: weights%s",
               kd_format_bytes(bytes, sizeof bytes, (double)kd_model_bytes(s->models[m])),
               s->models[m]->label, s->models[m]->slab.trainable ? ", gradients and moments" : "");
    kd_log(KD_LOG_INFO, "plan      %9s  step with batch.micro %lld, most of it at %s; of that",
           kd_format_bytes(bytes, sizeof bytes, (double)kd_step_bytes(&s->step)),
           (long long)s->micro, stack->peak_phase);
    const int count = kd_plan_entries(entries, KD_COUNT(entries), stack);
    for (int i = 0; i < count && i < 5; i++)
        kd_log(KD_LOG_INFO, "plan      %9s    %s",
               kd_format_bytes(bytes, sizeof bytes, entries[i].bytes), entries[i].name);
}

static double bytes_needed(const kd_estimate *e, const kd_session *s)
{
    return (double)kd_session_bytes(s) + e->reserve_bytes;
}

/* Doubles, then halves the gap: the largest micro-batch whose plan fits. */
static kd_status find_largest(kd_estimate *e, kd_run *run, kd_device *device)
{
    int64_t low = 0, high = 1;
    for (; high <= 1 << 20; high *= 2) {
        bool fits;
        KD_TRY(kd_micro_fits(&fits, run, device, high, e->reserve_bytes));
        if (!fits) break;
        low = high;
    }
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        bool fits;
        KD_TRY(kd_micro_fits(&fits, run, device, middle, e->reserve_bytes));
        *(fits ? &low : &high) = middle;
    }
    e->largest_micro = low;
    return KD_OK;
}

kd_status kd_micro_fits(bool *fits, kd_run *run, kd_device *device, int64_t micro, double reserve)
{
    kd_session s = { .device = NULL };
    const kd_status status = kd_session_plan(&s, run, device, micro);
    *fits = status == KD_OK && (double)kd_session_bytes(&s) + reserve <= kd_session_usable(&s);
    s.device = NULL; /* the caller's */
    kd_session_close(&s);
    return status;
}

/* Peak of the same run with every trained model recomputing blocks, or every model in bf16. */
static kd_status try_instead(kd_estimate *e, kd_run *run, kd_device *device, bool recompute,
                             const char *name)
{
    kd_model_section keep[KD_MAX_MODELS];
    kd_session s = { .device = NULL };
    memcpy(keep, run->models, sizeof keep);
    for (int m = 0; m < run->model_count; m++) {
        if (!recompute && run->models[m].dtype == 0) run->models[m].dtype = 1;
        if (recompute && run->models[m].trainable) run->models[m].recompute = KD_RECOMPUTE_BLOCKS;
    }
    const kd_status status = kd_session_plan(&s, run, device, e->micro);
    const double saved = status == KD_OK ? e->peak_bytes - bytes_needed(e, &s) : 0.0;
    memcpy(run->models, keep, sizeof keep);
    s.device = NULL; /* the caller's */
    kd_session_close(&s);
    if (saved <= 0.0) return status;
    kd_plan_entry *entry = &e->instead[e->instead_count++];
    snprintf(entry->name, sizeof entry->name, "%s", name);
    entry->bytes = saved;
    return KD_OK;
}

static kd_status count_checkpoints(kd_estimate *e, const kd_session *s)
{
    int64_t steps;
    double seconds;
    KD_TRY(kd_run_interval(&steps, &seconds, s->run->checkpoint.every, "run.checkpoint.every"));
    e->checkpoints = steps ? kd_ceil_div(s->steps, steps) : 1;
    for (int m = 0; m < s->count; m++) {
        const kd_slab *slab = &s->models[m]->slab;
        if (!slab->trainable) continue;
        const double n = (double)slab->params.elements;
        e->checkpoint_bytes += n * (double)kd_dtype_size(slab->dtype) + 4.0 * n * slab->moments +
                               (kd_present(&slab->masters) ? 4.0 * n : 0.0) +
                               4.0 * (double)slab->params.states;
    }
    return KD_OK;
}

static kd_status fill(kd_estimate *e, kd_session *s, const char *device)
{
    const double rows = (double)(s->micro * s->run->data.sequence);
    describe_models(e, s);
    e->micro = s->micro;
    e->sequence = s->run->data.sequence;
    e->accumulate = s->accumulate;
    e->updates = s->steps;
    e->chunk = s->step.objective.chunk;
    e->step_bytes = (double)kd_step_bytes(&s->step);
    e->device_bytes = (double)s->memory;
    e->usable_bytes = kd_session_usable(s);
    e->reserve_bytes = s->device->type == &kd_device_meta ? gpu_reserve : 0.0;
    e->peak_bytes = bytes_needed(e, s);
    e->fits = e->peak_bytes <= e->usable_bytes;
    snprintf(e->peak_phase, sizeof e->peak_phase, "%s", s->step.stack.peak_phase);
    e->entry_count = kd_plan_entries(e->entries, KD_COUNT(e->entries), &s->step.stack);
    for (int m = 0; m < s->count; m++)
        e->full_logits_bytes += rows * (double)s->models[m]->config.vocabulary *
                                (double)kd_dtype_size(s->models[m]->dtype);
    for (int i = 0; i < KD_COUNT(speeds); i++)
        if (strcmp(device, speeds[i].name) == 0)
            e->predicted_tokens_per_s = predicted_share * speeds[i].flops / e->flops_per_token;
    return count_checkpoints(e, s);
}

kd_status kd_run_estimate(kd_estimate *estimate, kd_run *run, const char *name)
{
    kd_session s = { .device = NULL };
    kd_device *device = NULL;
    kd_status status;
    *estimate = (kd_estimate){ .micro = 0 };
    KD_TRY(open_device(&device, name));
    KD_TRY_GOTO(kd_session_plan(&s, run, device, 0), status, done);
    KD_TRY_GOTO(fill(estimate, &s, name), status, done);
    KD_TRY_GOTO(find_largest(estimate, run, device), status, done);
    KD_TRY_GOTO(try_instead(estimate, run, device, true, "student: {recompute: blocks}"), status,
                done);
    KD_TRY_GOTO(try_instead(estimate, run, device, false, "dtype: bf16 of every model"), status,
                done);
done:
    s.device = NULL;
    kd_session_close(&s);
    kd_device_close(device);
    return status;
}
