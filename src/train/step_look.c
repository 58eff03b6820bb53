/*
 * Where a step stopped being finite.  A step that stopped its run moved nothing (but banks, which are not
 * saved then), so it can be taken again, one micro-batch and one term at a time, with a look at everything on the way: logits of each
 * model, each row's loss and gradient of each term, gradients of parameters.  Ranks look at their own
 * rows, then tell each other what they found.
 */
#include "train/train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef enum place { NOTHING, LOGITS, LOSS, D_STUDENT, GRADIENT, TOO_LARGE } place;

/* Numbers that fit a double, since ranks add them up. */
typedef struct finding {
    place place;
    int member, term, param; /* term: of the objective */
    int64_t micro, row, position, document;
    double largest; /* TOO_LARGE: the gradient's largest element */
} finding;

enum { NUMBERS = 9 };

typedef struct look {
    kd_step *step;
    const kd_micro_batch *micro;
    int64_t index;
    double valid;
    float *host; /* downloaded values */
    int64_t room;
    finding found;
} look;

/* ---- values ----------------------------------------------------------------------------------- */

static kd_status reserve(look *l, int64_t elements)
{
    if (elements <= l->room) return KD_OK;
    float *host = realloc(l->host, (size_t)elements * sizeof *host);
    if (!host) return kd_fail(KD_ENOMEM, "no memory to look for what is not finite");
    l->host = host;
    l->room = elements;
    return KD_OK;
}

/* t as f32 in l->host. */
static kd_status fetch(look *l, const kd_tensor *t)
{
    const int64_t n = kd_tensor_elements(t);
    KD_TRY(reserve(l, n));
    char *end = (char *)(l->host + n) - kd_tensor_bytes(t); /* conversion goes upwards, in place */
    KD_TRY(kd_download(&l->step->exec, end, t));
    KD_TRY(kd_sync(&l->step->exec));
    if (t->dtype == KD_F32) return KD_OK;
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, end + 2 * i, sizeof half);
        l->host[i] = kd_bf16_to_f32(half);
    }
    return KD_OK;
}

static bool all_finite(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

static void note_row(look *l, place at, int member, int term, int64_t row)
{
    l->found.place = at;
    l->found.member = member;
    l->found.term = term;
    l->found.row = row;
    l->found.position = l->micro->positions[row];
    l->found.document = l->micro->documents[row];
}

/* ---- logits and terms ------------------------------------------------------------------------- */

/* The cross entropy of logits among which one is NaN or +inf is NaN; where the label's own is -inf it
 * is infinite, which logits may be. */
static kd_status look_at_logits(look *l)
{
    kd_measured measured[KD_MAX_MODELS] = { { .nll = NULL } };
    kd_step *step = l->step;
    for (int m = 0; m < step->count; m++) measured[m] = kd_step_values(step, m);
    KD_TRY(kd_step_measure(step, l->micro, ~0u, measured));
    for (int m = 0; m < step->count && !l->found.place; m++)
        for (int64_t i = 0; i < l->micro->valid_count && !l->found.place; i++)
            if (isnan(measured[m].nll[i])) note_row(l, LOGITS, m, 0, l->micro->valid[i]);
    return KD_OK;
}

/* The head with one term alone: its losses by row, and what its gradient is at the hidden rows. */
static kd_status look_at_term(look *l, kd_taps *const *taps, int term)
{
    kd_step *step = l->step;
    kd_objective one = step->objective;
    const kd_mark mark = kd_stack_mark(&step->stack);
    kd_row_results rows;
    one.terms += term;
    one.count = 1;
    const int m = one.terms->student;
    kd_member *member = &step->members[m];
    kd_objective_scalars(&member->host, &one, m, l->index, l->valid);
    KD_TRY(kd_upload(&step->exec, &member->scalars, &member->host));
    KD_TRY(kd_push(&rows.losses, &step->exec, "losses of a term", KD_F32,
                   KD_SHAPE(1, step->target_rows)));
    KD_TRY(kd_push(&rows.same_top, &step->exec, "same top", KD_F32, KD_SHAPE(step->target_rows)));
    KD_TRY(kd_objective_head(&one, &step->exec, m, taps, &step->targets, &member->scalars,
                             &member->totals, &rows, true));
    KD_TRY(fetch(l, &rows.losses));
    for (int64_t i = 0; i < l->micro->valid_count && !l->found.place; i++)
        if (!isfinite(l->host[i])) note_row(l, LOSS, m, term, l->micro->valid[i]);
    const kd_tensor *d_hidden = &taps[m]->head.d_hidden;
    const int64_t width = d_hidden->shape[1];
    if (!l->found.place) KD_TRY(fetch(l, d_hidden));
    for (int64_t i = 0; i < l->micro->valid_count && !l->found.place; i++) {
        const int64_t row = l->micro->valid[i];
        if (!all_finite(l->host + row * width, width)) note_row(l, D_STUDENT, m, term, row);
    }
    kd_stack_release(&step->stack, mark);
    return KD_OK;
}

/* The first row of `t` [N, ...], counted or not, with an element that is not finite. */
static kd_status look_at_rows(look *l, const kd_tensor *t, place at, int m, int term)
{
    if (l->found.place || !kd_present(t)) return KD_OK;
    const int64_t width = kd_tensor_elements(t) / t->shape[0];
    KD_TRY(fetch(l, t));
    for (int64_t row = 0; row < t->shape[0] && !l->found.place; row++)
        if (!all_finite(l->host + row * width, width)) note_row(l, at, m, term, row);
    return KD_OK;
}

/* A term over taps, a pair of layers at a time: what the taps have as gradients was finite before. */
static kd_status look_at_tapped(look *l, kd_taps *const *taps, int number)
{
    kd_step *step = l->step;
    const kd_term *term = &step->objective.terms[number];
    kd_member *member = &step->members[term->student];
    const kd_mark mark = kd_stack_mark(&step->stack);
    const float weight = (float)(kd_ramp_at(&term->weight, l->index) / l->valid);
    const kd_tapped_batch batch = { taps,
                                    &step->targets,
                                    &step->batch.geometry.cu,
                                    &member->model->slab,
                                    &step->objective.ranks,
                                    &step->samples,
                                    &step->negatives[number] };
    kd_tensor loss, scale;
    KD_TRY(kd_push(&loss, &step->exec, "losses of a term", KD_F32, KD_SHAPE(step->rows)));
    KD_TRY(kd_push(&scale, &step->exec, "scale of a term", KD_F32, KD_SHAPE(1)));
    KD_TRY(kd_upload(&step->exec, &scale, &weight));
    for (int k = 0; k < term->tapped->count && !l->found.place; k++) {
        kd_taps *own = taps[term->student];
        KD_TRY(kd_tapped_run(term, k, &step->exec, &batch, &scale, &loss));
        KD_TRY(look_at_rows(l, &loss, LOSS, term->student, number));
        for (int i = 0; i < own->count; i++)
            KD_TRY(look_at_rows(l, &own->items[i].gradient, D_STUDENT, term->student, number));
    }
    kd_stack_release(&step->stack, mark);
    return KD_OK;
}

static kd_status look_at_terms(look *l)
{
    kd_taps *taps[KD_MAX_MODELS];
    kd_step *step = l->step;
    const kd_mark mark = kd_stack_mark(&step->stack);
    KD_TRY(kd_step_draw(step, l->micro));
    KD_TRY(kd_step_forward(step));
    for (int m = 0; m < step->count; m++) taps[m] = &step->members[m].taps;
    for (int i = 0; i < step->objective.count && !l->found.place; i++)
        KD_TRY(step->objective.terms[i].tapped ? look_at_tapped(l, taps, i)
                                               : look_at_term(l, taps, i));
    kd_stack_release(&step->stack, mark);
    return KD_OK;
}

/* ---- gradients -------------------------------------------------------------------------------- */

/* What l->host says of the gradient of parameter `param`. */
static void judge(look *l, int64_t n, int m, int param)
{
    double largest = l->found.largest;
    const bool finite = all_finite(l->host, n);
    for (int64_t k = 0; k < n; k++) largest = fmax(largest, fabs((double)l->host[k]));
    if (finite && !(largest > l->found.largest)) return;
    l->found.place = finite ? NOTHING : GRADIENT;
    l->found.member = m;
    l->found.param = param;
    l->found.largest = largest;
}

/* From the last parameter on, as the backward pass comes to them: what is bad there spreads to those
 * before. */
static kd_status look_at_slab(look *l, int m)
{
    enum { PIECE = 4 << 20 };
    const kd_slab *slab = &l->step->members[m].model->slab;
    for (int i = slab->params.trained - 1; i >= 0; i--) {
        const kd_tensor weight = kd_slab_weight(slab, i);
        const int64_t n = kd_tensor_elements(&weight);
        for (int64_t at = 0; at < n && !l->found.place; at += PIECE) {
            const int64_t some = kd_min_i64(PIECE, n - at);
            const kd_tensor piece =
                kd_tensor_slice(&slab->gradients, 0, slab->params.items[i].offset + at, some);
            KD_TRY(fetch(l, &piece));
            judge(l, some, m, i);
        }
    }
    return KD_OK;
}

static kd_status look_at_gradients(look *l)
{
    kd_step *step = l->step;
    const kd_mark mark = kd_stack_mark(&step->stack);
    l->found.largest = 0.0;
    if (l->found.micro == 0) KD_TRY(kd_step_begin(step, l->index, l->valid));
    KD_TRY(kd_step_passes(step, false));
    kd_stack_release(&step->stack, mark);
    for (int m = 0; m < step->count && !l->found.place; m++)
        if (step->members[m].model->slab.trainable) KD_TRY(look_at_slab(l, m));
    return KD_OK;
}

/* ---- this rank, and all ----------------------------------------------------------------------- */

/* First what depends on one micro-batch alone, since gradients add up over them. */
static kd_status search(look *l, const kd_step_batch *batch)
{
    for (int gradients = 0; gradients < 2; gradients++)
        for (int64_t i = 0; i < batch->micro_count && !l->found.place; i++) {
            l->micro = &batch->micro[i];
            l->found.micro = i;
            if (gradients) {
                KD_TRY(kd_step_upload(l->step, l->micro));
                KD_TRY(kd_step_draw(l->step, l->micro));
                KD_TRY(look_at_gradients(l));
                continue;
            }
            KD_TRY(look_at_logits(l));
            if (!l->found.place) KD_TRY(look_at_terms(l));
        }
    /* The squares of 2^40 such elements are no number of f32. */
    if (!l->found.place && l->found.largest > 0x1p44) l->found.place = TOO_LARGE;
    return KD_OK;
}

/* What the first rank that found something found; `*rank` is its number. */
static kd_status share(finding *found, int *rank, kd_comm *comm)
{
    *rank = comm->rank;
    if (comm->size == 1) return KD_OK;
    double *all = calloc((size_t)comm->size * NUMBERS, sizeof *all);
    if (!all) return kd_fail(KD_ENOMEM, "no memory for what %d ranks found", comm->size);
    const double mine[NUMBERS] = { found->place,
                                   found->member,
                                   found->term,
                                   found->param,
                                   (double)found->micro,
                                   (double)found->row,
                                   (double)found->position,
                                   (double)found->document,
                                   found->largest };
    memcpy(all + comm->rank * NUMBERS, mine, sizeof mine);
    const kd_status status = comm->type->all_reduce_host(comm, all, comm->size * NUMBERS);
    int r = 0;
    while (r < comm->size && all[r * NUMBERS] == 0.0) r++;
    if (status == KD_OK && r < comm->size) {
        const double *x = all + r * NUMBERS;
        *rank = r;
        *found = (finding){ .place = (place)x[0],
                            .member = (int)x[1],
                            .term = (int)x[2],
                            .param = (int)x[3],
                            .micro = (int64_t)x[4],
                            .row = (int64_t)x[5],
                            .position = (int64_t)x[6],
                            .document = (int64_t)x[7],
                            .largest = x[8] };
    }
    free(all);
    return status;
}

/* "rank 3, micro-batch 2, row 1204: ..." as far as it is known. */
static void say_where(char *text, size_t size, const finding *f, int rank)
{
    int n = snprintf(text, size, "rank %d", rank);
    if (f->place && f->place != TOO_LARGE)
        n += snprintf(text + n, size - (size_t)n, ", micro-batch %lld", (long long)f->micro);
    if (f->place && f->place <= D_STUDENT)
        snprintf(text + n, size - (size_t)n, ", row %lld: token %lld of a piece of document %lld",
                 (long long)f->row, (long long)f->position, (long long)f->document);
}

static kd_status say(const kd_step *step, const finding *f, int rank, int64_t index)
{
    const kd_model *model = step->members[f->member].model;
    const char *label = model->label, *term = step->objective.terms[f->term].name;
    const char *param = model->slab.params.items[f->param].name;
    const char *why = step->results[index & 1].why;
    char where[160], what[320];
    const size_t size = sizeof what;
    say_where(where, sizeof where, f, rank);
    switch (f->place) {
    case LOGITS: snprintf(what, size, "logits of %s are not finite", label); break;
    case LOSS: snprintf(what, size, "%s of %s is not finite", term, label); break;
    case D_STUDENT: snprintf(what, size, "d_%s of %s is not finite", label, term); break;
    case GRADIENT: snprintf(what, size, "gradient of %s, %s, is not finite", label, param); break;
    case TOO_LARGE:
        snprintf(what, size, "gradient of %s has no norm in f32: %s goes up to %.3g", label, param,
                 f->largest);
        break;
    default:
        snprintf(what, size, "%s; taken again it is finite: the machine may be at fault", why);
        break;
    }
    return kd_step_stop(step, index, what, where);
}

kd_status kd_step_look(kd_step *step, const kd_step_batch *batch, int64_t index)
{
    const kd_step_result *result = &step->results[index & 1];
    char before[512];
    bool bad = false;
    int rank;
    snprintf(before, sizeof before, "%s", kd_last_error());
    for (int m = 0; m < step->count; m++)
        bad |= result->student[m].verdict == KD_VERDICT_LOSS ||
               result->student[m].verdict == KD_VERDICT_GRADIENT;
    if (!bad) return kd_fail(KD_ENONFINITE, "%s", before); /* a spike too many */
    look l = { .step = step, .index = index, .valid = (double)result->valid };
    /* Ranks find what they find at different places: none waits for another on the way. */
    const kd_peers ranks = step->objective.ranks;
    step->objective.ranks = (kd_peers){ 0 };
    step->index = index; /* the step after it may have begun */
    kd_status status = search(&l, batch);
    step->objective.ranks = ranks;
    free(l.host);
    if (status != KD_OK) {
        snprintf(before + strlen(before), sizeof before - strlen(before), " (%.200s)",
                 kd_last_error());
        l.found.place = NOTHING;
    }
    /* The others wait for what this rank found. */
    const kd_status shared = share(&l.found, &rank, step->comm);
    if (status == KD_OK) status = shared;
    if (status != KD_OK && !l.found.place) return kd_fail(KD_ENONFINITE, "%s", before);
    return say(step, &l.found, rank, index);
}
