/*
 * One optimizer step of models[n]: a frozen teacher and one student is only the commonest case.
 * Every mean is over the global number of counted rows, known before the first micro-batch, so any
 * split into micro-batches and ranks gives the same gradient.
 */
#include "train/train.h"

#include <math.h>
#include <stdio.h>

static bool trained(const kd_member *member) { return member->model->slab.trainable; }

/* ---- parts ------------------------------------------------------------------------------------ */

kd_status kd_step_upload(kd_step *step, const kd_micro_batch *micro)
{
    /* An estimate plans for far more rows than there will be: nothing is written for them. */
    for (int64_t i = 0; i < step->target_rows && !kd_planning(&step->exec); i++) {
        const int32_t row = i < micro->rows ? micro->valid[i] : -1;
        step->host_rows[i] = row;
        step->host_labels[i] = row < 0 ? -1 : micro->labels[row];
    }
    for (int64_t i = 0; i < step->rows && !kd_planning(&step->exec); i++)
        step->host_weight[i] = micro->labels[i] >= 0 ? 1.0f : 0.0f;
    step->targets.count = micro->valid_count;
    KD_TRY(kd_upload(&step->exec, &step->batch.tokens, micro->tokens));
    if (step->inputs) KD_TRY(kd_upload(&step->exec, &step->batch.inputs, micro->inputs));
    KD_TRY(kd_upload(&step->exec, &step->batch.geometry.positions, micro->positions));
    KD_TRY(kd_upload(&step->exec, &step->batch.geometry.cu, micro->cu));
    KD_TRY(kd_upload(&step->exec, &step->targets.rows, step->host_rows));
    KD_TRY(kd_upload(&step->exec, &step->targets.weight, step->host_weight));
    return kd_upload(&step->exec, &step->targets.labels, step->host_labels);
}

kd_status kd_step_draw(kd_step *step, const kd_micro_batch *micro)
{
    const int64_t n = step->rows, at = step->objective.ranks.rank * n;
    const bool in_place = step->device->type == &kd_device_cpu;
    if (!kd_present(&step->samples) || kd_planning(&step->exec)) return KD_OK;
    const kd_tensor samples = kd_tensor_slice(&step->samples, 0, at, n);
    KD_TRY(kd_upload(&step->exec, &samples, micro->samples));
    for (int i = 0; i < step->objective.count; i++) {
        const kd_tapped *t = step->objective.terms[i].tapped;
        if (!kd_present(&step->negatives[i])) continue;
        const kd_tensor own = kd_tensor_slice(&step->negatives[i], 0, at, n);
        int32_t *to = in_place ? own.data : step->host_negatives;
        KD_TRY(kd_crd_negatives(to, t->data, micro->samples, n, t->negatives, step->seed,
                                step->index));
        /* They fill the memory that uploads pass through, where the wait for room knows no timeout. */
        if (step->passing) KD_TRY(kd_comm_wait(step->comm, step->device, step->passed));
        if (!in_place) KD_TRY(kd_upload(&step->exec, &own, to));
    }
    return KD_OK;
}

kd_status kd_step_begin(kd_step *step, int64_t index, double valid)
{
    double lr;
    step->index = index;
    KD_TRY(kd_schedule_lr(&lr, &step->optim, index, step->steps));
    for (int m = 0; m < step->count; m++) {
        kd_member *member = &step->members[m];
        if (!trained(member)) continue;
        kd_objective_scalars(&member->host, &step->objective, m, index, valid);
        member->host.lr = (float)lr;
        KD_TRY(kd_upload(&step->exec, &member->scalars, &member->host));
        KD_TRY(KD_RUN(&step->exec, fill, .y = &member->totals, .value = 0.0f));
        KD_TRY(KD_RUN(&step->exec, fill, .y = &member->model->slab.gradients, .value = 0.0f));
    }
    return KD_OK;
}

/* A frozen model that no term reads is only there to be measured against. */
static bool needed(const kd_step *step, int m)
{
    bool read = trained(&step->members[m]);
    for (int i = 0; i < step->objective.count; i++) read |= step->objective.terms[i].teacher == m;
    return read;
}

static kd_status forward(kd_step *step, bool trainable)
{
    step->stack.phase = trainable ? "student forward" : "teacher forward";
    for (int m = 0; m < step->count; m++) {
        kd_member *member = &step->members[m];
        if (trained(member) == trainable && needed(step, m))
            KD_TRY(kd_model_forward(member->model, &step->exec, &step->batch, &member->taps));
    }
    return KD_OK;
}

kd_status kd_step_forward(kd_step *step)
{
    KD_TRY(forward(step, false));
    return forward(step, true);
}

static kd_status losses(kd_step *step)
{
    kd_taps *taps[KD_MAX_MODELS];
    step->stack.phase = "head and loss";
    for (int m = 0; m < step->count; m++) taps[m] = &step->members[m].taps;
    for (int m = 0; m < step->count; m++) {
        const kd_member *member = &step->members[m];
        if (!trained(member)) continue;
        const int terms = kd_objective_terms(&step->objective, m);
        const kd_tensor totals = kd_tensor_slice(&member->totals, 0, 0, terms + 1);
        KD_TRY(kd_objective_head(&step->objective, &step->exec, m, taps, &step->targets,
                                 &member->scalars, &totals, NULL, true));
        const kd_tapped_batch batch = { taps,
                                        &step->targets,
                                        &step->batch.geometry.cu,
                                        &member->model->slab,
                                        &step->objective.ranks,
                                        &step->samples,
                                        step->negatives };
        KD_TRY(
            kd_objective_taps(&step->objective, &step->exec, m, &batch, &member->scalars, &totals));
    }
    return KD_OK;
}

typedef struct reduction {
    kd_step *step;
    kd_member *member;
} reduction;

static kd_status block_done(void *context, int block)
{
    const reduction *r = context;
    return kd_buckets_ready(&r->member->buckets, &r->step->exec, block);
}

static kd_status backward(kd_step *step, bool last)
{
    step->stack.phase = "student backward";
    for (int m = 0; m < step->count; m++) {
        kd_member *member = &step->members[m];
        reduction reduce = { step, member };
        if (trained(member))
            KD_TRY(kd_model_backward(member->model, &step->exec, &step->batch, &member->taps,
                                     last ? block_done : NULL, &reduce));
    }
    return last ? kd_comm_join(step->comm, &step->exec) : KD_OK;
}

static kd_status update(kd_step *step, bool last)
{
    (void)last;
    step->stack.phase = "update";
    for (int m = 0; m < step->count; m++) {
        kd_member *member = &step->members[m];
        if (!trained(member)) continue;
        KD_TRY(step->comm->type->all_reduce(step->comm, &step->exec, &member->totals));
        KD_TRY(kd_comm_join(step->comm, &step->exec));
        KD_TRY(kd_optim_measure(&step->exec, &member->model->slab, &step->optim, &member->totals,
                                &member->scalars));
    }
    KD_TRY(kd_optim_decide(&step->exec, &step->optim, &step->guard, &step->trained));
    for (int m = 0; m < step->count; m++) {
        const kd_member *member = &step->members[m];
        if (trained(member))
            KD_TRY(
                kd_optim_update(&step->exec, &member->model->slab, &step->optim, &member->scalars));
    }
    return KD_OK;
}

static kd_pending *pending_of(const kd_step *step, int64_t index, int m)
{
    return &step->pending[(index & 1) * KD_MAX_MODELS + m];
}

/* Sends what the step found to the host, which reads it a step later. */
static kd_status send_results(kd_step *step, int64_t index)
{
    for (int m = 0; m < step->count; m++) {
        const kd_member *member = &step->members[m];
        if (!trained(member)) continue;
        kd_pending *pending = pending_of(step, index, m);
        KD_TRY(kd_download(&step->exec, pending->totals, &member->totals));
        KD_TRY(kd_download(&step->exec, &pending->scalars, &member->scalars));
    }
    return kd_event_record(&step->exec, step->done[index & 1]);
}

/* ---- the step --------------------------------------------------------------------------------- */

kd_status kd_step_passes(kd_step *step, bool last)
{
    KD_TRY(kd_step_forward(step));
    KD_TRY(losses(step));
    return backward(step, last);
}

/* All that changes its launches: how many chunks the head has, and whether gradients are reduced. */
static int64_t key_of(const kd_step *step, bool last)
{
    return 2 * kd_ceil_div(step->targets.count, step->objective.chunk) + last;
}

/* Between micro-batches.  Where a collective is only enqueued the host is far ahead of the device: what
 * it would break off is on its way, and the next step asks. */
static kd_status may_go_on(kd_step *step)
{
    double nothing = 0.0;
    if (kd_present(&step->samples)) return KD_OK; /* banks that are renewed cannot be taken back */
    return step->comm->type->join ? KD_OK : kd_comm_agree(step->comm, &nothing);
}

static kd_status run(kd_step *step, const kd_step_batch *batch, int64_t index)
{
    enum { UPDATE = -1 };
    double valid = (double)batch->valid_count;
    /* A plan asks nobody: a rank that runs out of memory plans alone (kd_session_short). */
    if (!kd_planning(&step->exec)) KD_TRY(kd_comm_agree(step->comm, &valid));
    step->results[index & 1] = (kd_step_result){ .step = index, .valid = (int64_t)valid };

    KD_TRY(kd_step_begin(step, index, valid));
    for (int64_t i = 0; i < batch->micro_count; i++) {
        const bool last = i + 1 == batch->micro_count;
        const kd_mark mark = kd_stack_mark(&step->stack);
        if (i > 0 && !kd_planning(&step->exec)) KD_TRY(may_go_on(step));
        KD_TRY(kd_step_upload(step, &batch->micro[i]));
        KD_TRY(kd_step_draw(step, &batch->micro[i]));
        KD_TRY(kd_step_play(step, key_of(step, last), kd_step_passes, last));
        if (step->passed) KD_TRY(kd_event_record(&step->exec, step->passed));
        step->passing = step->passed != NULL;
        kd_stack_release(&step->stack, mark);
    }
    KD_TRY(kd_step_play(step, UPDATE, update, true));
    return kd_planning(&step->exec) ? KD_OK : send_results(step, index);
}

static kd_status name_step(kd_status status, int64_t index)
{
    return kd_fail(status, "step %lld: %s", (long long)index, kd_last_error());
}

kd_status kd_step_run(kd_step *step, const kd_step_batch *batch, int64_t index)
{
    const kd_status status = run(step, batch, index);
    return status == KD_OK || kd_planning(&step->exec) ? status : name_step(status, index);
}

/* ---- results ---------------------------------------------------------------------------------- */

static void student_result(kd_student_result *out, const kd_step *step, int m,
                           const kd_pending *pending, double valid)
{
    const kd_objective *objective = &step->objective;
    const int terms = kd_objective_terms(objective, m);
    const double per_row = valid > 0 ? 1.0 / valid : 0.0;
    /* Restricted, nobody knows which of all classes is the student's. */
    const bool known = !kd_logit_view_restricts(&objective->logits);
    bool teacher = false;
    *out = (kd_student_result){ .gradient_norm = pending->scalars.norm,
                                .lr = pending->scalars.lr,
                                .loss_z = pending->scalars.loss_z,
                                .norm_z = pending->scalars.norm_z,
                                .verdict = (int)pending->scalars.verdict };
    for (int i = 0; i < terms; i++) {
        out->term[i] = pending->totals[i] * per_row;
        out->loss += (double)pending->totals[i] * (double)pending->scalars.term[i].scale;
    }
    for (int i = 0; i < objective->count; i++)
        teacher |= objective->terms[i].student == m && objective->terms[i].teacher >= 0 &&
                   !objective->terms[i].tapped;
    out->same_top = teacher && known ? pending->totals[terms] * per_row : NAN;
}

/* The first term whose sum is not finite; else what the gate saw is the weighted sum. */
static const char *bad_term(const kd_step *step, int m, const kd_pending *pending)
{
    int n = 0;
    for (int i = 0; i < step->objective.count; i++)
        if (step->objective.terms[i].student == m && !isfinite(pending->totals[n++]))
            return step->objective.terms[i].name;
    return "loss";
}

/* Why the step updated nothing: of its first student that is no better. */
static void explain(kd_step_result *result, const kd_step *step, int m, const kd_pending *pending)
{
    const kd_student_result *s = &result->student[m];
    const char *label = step->members[m].model->label;
    char *why = result->why;
    const size_t size = sizeof result->why;
    if (*why) return;
    switch ((kd_verdict)s->verdict) {
    case KD_VERDICT_LOSS:
        snprintf(why, size, "%s of %s is not finite", bad_term(step, m, pending), label);
        break;
    case KD_VERDICT_GRADIENT:
        snprintf(why, size, "gradient of %s is not finite (norm %g)", label, s->gradient_norm);
        break;
    case KD_VERDICT_SPIKE:
        snprintf(why, size,
                 "%s: loss %g and gradient norm %g are %.1f and %.1f standard deviations above "
                 "those of %d steps, more than %g",
                 label, s->loss, s->gradient_norm, s->loss_z, s->norm_z, (int)KD_GUARD_WINDOW,
                 step->optim.skip_zscore);
        break;
    default: break;
    }
}

kd_status kd_step_stop(const kd_step *step, int64_t index, const char *why, const char *where)
{
    const kd_step_result *result = &step->results[index & 1];
    char row[96] = "";
    if (result->in_row > step->optim.max_skips)
        snprintf(row, sizeof row, ", as in %lld steps in a row (optim.max_skips: %lld)",
                 (long long)result->in_row, (long long)step->optim.max_skips);
    return kd_fail(KD_ENONFINITE, "step %lld: %s (%s)%s; nothing was updated", (long long)index,
                   why, where, row);
}

kd_status kd_step_result_of(const kd_step_result **out, kd_step *step, int64_t index)
{
    kd_step_result *result = &step->results[index & 1];
    bool stopped = false;
    const kd_status status = kd_comm_wait(step->comm, step->device, step->done[index & 1]);
    if (status != KD_OK) return name_step(status, index);
    result->why[0] = '\0';
    for (int m = 0; m < step->count; m++) {
        const kd_pending *pending = pending_of(step, index, m);
        if (!trained(&step->members[m])) continue;
        student_result(&result->student[m], step, m, pending, (double)result->valid);
        explain(result, step, m, pending);
        result->skips = (int64_t)pending->scalars.skips;
        result->in_row = (int64_t)pending->scalars.in_row;
        stopped |= pending->scalars.stopped != 0.0f;
    }
    *out = result;
    if (!stopped) return KD_OK;
    char where[32];
    snprintf(where, sizeof where, "rank %d", step->comm->rank);
    return kd_step_stop(step, index, *result->why ? result->why : "held back", where);
}

/* ---- the guard -------------------------------------------------------------------------------- */

kd_status kd_step_save_guard(kd_guard *guard, kd_step *step)
{
    KD_TRY(kd_download(&step->exec, guard, &step->guard));
    return kd_sync(&step->exec);
}

kd_status kd_step_load_guard(kd_step *step, const kd_guard *guard)
{
    return kd_upload(&step->exec, &step->guard, guard);
}
