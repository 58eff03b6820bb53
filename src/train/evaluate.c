/* Measuring models on held-out tokens: values per token, sums per document. */
#include "train/train.h"

#include <math.h>

int kd_step_reference(const kd_step *step)
{
    for (int m = 0; m < step->count; m++)
        if (!step->members[m].model->slab.trainable) return m;
    return -1;
}

kd_measured kd_step_values(const kd_step *step, int model)
{
    const int64_t rows = step->target_rows;
    float *values = step->host_values + 6 * model * rows;
    return (kd_measured){ .nll = values,
                          .kl = values + rows,
                          .same = values + 2 * rows,
                          .entropy = step->host_logits ? values + 3 * rows : NULL,
                          .confidence = step->host_logits ? values + 4 * rows : NULL,
                          .correct = step->host_logits ? values + 5 * rows : NULL };
}

/* ---- one micro-batch -------------------------------------------------------------------------- */

static kd_status take_rows(kd_row_results *rows, kd_step *step, int terms)
{
    KD_TRY(kd_push(&rows->losses, &step->exec, "measured losses", KD_F32,
                   KD_SHAPE(terms, step->target_rows)));
    return kd_push(&rows->same_top, &step->exec, "measured same top", KD_F32,
                   KD_SHAPE(step->target_rows));
}

static kd_status download(kd_step *step, kd_measured *out, int terms)
{
    const kd_tensor nll = kd_tensor_slice(&out->device.losses, 0, 0, 1);
    KD_TRY(kd_download(&step->exec, out->nll, &nll));
    if (terms > 1) {
        const kd_tensor kl = kd_tensor_slice(&out->device.losses, 0, 1, 1);
        KD_TRY(kd_download(&step->exec, out->kl, &kl));
        return kd_download(&step->exec, out->same, &out->device.same_top);
    }
    if (kd_planning(&step->exec)) return KD_OK;
    for (int64_t i = 0; i < step->target_rows; i++) out->kl[i] = out->same[i] = NAN;
    return KD_OK;
}

/* Who looks at a model's logits, and where to write what is seen. */
typedef struct onlooker {
    kd_step *step;
    kd_measured *out;
} onlooker;

static void see_row(kd_measured *out, int64_t row, const float *logits, int64_t classes,
                    int32_t label)
{
    double sum = 0.0, moment = 0.0;
    int64_t best = 0;
    for (int64_t j = 1; j < classes; j++)
        if (logits[j] > logits[best]) best = j;
    for (int64_t j = 0; j < classes; j++) {
        const float x = logits[j] - logits[best];
        if (x < -104.0f) continue; /* exp is 0, and so is x exp(x), also at -inf */
        const float e = expf(x);
        sum += e;
        moment += (double)x * e;
    }
    out->entropy[row] = (float)(log(sum) - moment / sum);
    out->confidence[row] = (float)(1.0 / sum);
    out->correct[row] = best == label;
}

/* On the host, some rows at a time: an evaluation that asks for this may take its time, and no op
 * gives it. */
static kd_status see(void *context, kd_exec *exec, const kd_tensor *logits, int64_t first)
{
    const onlooker *by = context;
    kd_step *step = by->step;
    const int64_t rows = logits->shape[0], stride = logits->stride[0];
    for (int64_t at = 0; at < rows; at += KD_SEEN_ROWS) {
        const int64_t n = kd_min_i64(KD_SEEN_ROWS, rows - at);
        const kd_tensor part =
            kd_tensor_of((float *)logits->data + at * stride, KD_F32, KD_SHAPE(n, stride));
        KD_TRY(kd_download(exec, step->host_logits, &part));
        KD_TRY(kd_sync(exec));
#pragma omp parallel for
        for (int64_t i = 0; i < n; i++)
            see_row(by->out, first + at + i, step->host_logits + i * stride, step->measures.classes,
                    step->host_labels[first + at + i]);
    }
    return KD_OK;
}

static kd_status measure_model(kd_step *step, int m, kd_taps *const *taps, kd_measured *out)
{
    kd_member *member = &step->members[m];
    onlooker by = { step, out };
    step->measures.watch = (kd_watch){ step->host_logits ? see : NULL, &by };
    const int terms = kd_objective_terms(&step->measures, m);
    const kd_mark mark = kd_stack_mark(&step->stack);
    const double start = kd_clock();
    kd_objective_scalars(&member->host, &step->measures, m, 0, 0.0);
    KD_TRY(kd_upload(&step->exec, &member->scalars, &member->host));
    KD_TRY(KD_RUN(&step->exec, fill, .y = &member->totals, .value = 0.0f));
    KD_TRY(take_rows(&out->device, step, terms));
    const kd_tensor totals = kd_tensor_slice(&member->totals, 0, 0, terms + 1);
    KD_TRY(kd_objective_head(&step->measures, &step->exec, m, taps, &step->targets,
                             &member->scalars, &totals, &out->device, false));
    KD_TRY(download(step, out, terms));
    KD_TRY(kd_sync(&step->exec));
    kd_stack_release(&step->stack, mark);
    out->seconds += kd_clock() - start;
    return KD_OK;
}

kd_status kd_step_measure(kd_step *step, const kd_micro_batch *micro, unsigned wanted,
                          kd_measured *out)
{
    kd_taps *taps[KD_MAX_MODELS];
    const kd_mark mark = kd_stack_mark(&step->stack);
    const int reference = kd_step_reference(step);
    step->stack.phase = "evaluation";
    KD_TRY(kd_step_upload(step, micro));
    for (int m = 0; m < step->count; m++) {
        taps[m] = &step->members[m].taps;
        if (!(wanted >> m & 1u) && m != reference) continue;
        const double start = kd_clock();
        const int asked = taps[m]->count;
        taps[m]->measured = true;
        taps[m]->count = 0; /* terms over taps are not measured */
        const kd_status status =
            kd_model_forward(step->members[m].model, &step->exec, &step->batch, taps[m]);
        taps[m]->measured = false;
        taps[m]->count = asked;
        KD_TRY(status);
        KD_TRY(kd_sync(&step->exec));
        out[m].seconds = kd_clock() - start;
    }
    for (int m = 0; m < step->count; m++)
        if (wanted >> m & 1u) KD_TRY(measure_model(step, m, taps, &out[m]));
    kd_stack_release(&step->stack, mark);
    return KD_OK;
}

/* ---- sums per document ------------------------------------------------------------------------ */

kd_status kd_scores_create(kd_scores *s, kd_arena *arena, int64_t documents, int64_t capacity)
{
    *s = (kd_scores){ .documents = documents, .capacity = capacity };
    KD_TRY(KD_ARENA_ARRAY(&s->count, arena, documents));
    KD_TRY(KD_ARENA_ARRAY(&s->nll, arena, documents));
    KD_TRY(KD_ARENA_ARRAY(&s->kl, arena, documents));
    KD_TRY(KD_ARENA_ARRAY(&s->same, arena, documents));
    KD_TRY(KD_ARENA_ARRAY(&s->correct, arena, documents));
    return capacity ? KD_ARENA_ARRAY(&s->kl_values, arena, capacity) : KD_OK;
}

void kd_scores_reset(kd_scores *s)
{
    const size_t bytes = (size_t)s->documents * sizeof(double);
    memset(s->count, 0, bytes);
    memset(s->nll, 0, bytes);
    memset(s->kl, 0, bytes);
    memset(s->same, 0, bytes);
    memset(s->correct, 0, bytes);
    s->tokens = s->kl_count = 0;
    if (s->profile) *s->profile = (kd_eval_profile){ .tokens = 0 };
}

void kd_scores_add(kd_scores *s, const kd_micro_batch *micro, const kd_measured *measured)
{
    for (int64_t i = 0; i < micro->valid_count; i++) {
        const int32_t d = micro->documents[micro->valid[i]];
        s->count[d] += 1.0;
        s->nll[d] += measured->nll[i];
        s->kl[d] += measured->kl[i];
        s->same[d] += measured->same[i];
        s->correct[d] += measured->correct ? measured->correct[i] : NAN;
        if (s->kl_count < s->capacity) s->kl_values[s->kl_count++] = measured->kl[i];
    }
    s->tokens += micro->valid_count;
}

/* A ratio of sums over documents: its error by linearisation (Cochran 1977, §6). */
kd_measure kd_scores_mean(const kd_scores *s, const double *sums)
{
    double total = 0.0, count = 0.0, spread = 0.0, n = 0.0;
    for (int64_t d = 0; d < s->documents; d++) {
        total += sums[d];
        count += s->count[d];
        n += s->count[d] > 0.0;
    }
    if (count <= 0.0) return (kd_measure){ NAN, NAN };
    const double mean = total / count;
    for (int64_t d = 0; d < s->documents; d++) {
        const double residual = sums[d] - mean * s->count[d];
        spread += residual * residual;
    }
    return (kd_measure){ mean, n > 1.0 ? sqrt(spread * n / (n - 1.0)) / count : NAN };
}

/* ---- one pass --------------------------------------------------------------------------------- */

static kd_status sum_array(kd_comm *comm, double *values, int64_t count)
{
    enum { PIECE = 1 << 20 };
    for (int64_t at = 0; at < count; at += PIECE)
        KD_TRY(comm->type->all_reduce_host(comm, values + at, (int)kd_min_i64(PIECE, count - at)));
    return KD_OK;
}

/* kl_values and the profile stay each rank's own. */
static kd_status sum_scores(kd_scores *s, kd_comm *comm)
{
    double tokens = (double)s->tokens;
    KD_TRY(comm->type->all_reduce_host(comm, &tokens, 1));
    s->tokens = (int64_t)tokens;
    KD_TRY(sum_array(comm, s->count, s->documents));
    KD_TRY(sum_array(comm, s->nll, s->documents));
    KD_TRY(sum_array(comm, s->kl, s->documents));
    KD_TRY(sum_array(comm, s->same, s->documents));
    return sum_array(comm, s->correct, s->documents);
}

static kd_status sum_all(kd_step *step, unsigned wanted, kd_scores *scores)
{
    for (int m = 0; m < step->count && step->comm->size > 1; m++)
        if (wanted >> m & 1u) KD_TRY(sum_scores(&scores[m], step->comm));
    return KD_OK;
}

kd_status kd_step_evaluate(kd_step *step, kd_loader *loader, unsigned wanted, kd_scores *scores)
{
    const kd_cursor start = { 0 };
    kd_measured measured[KD_MAX_MODELS] = { { .nll = NULL } };
    const int reference = kd_step_reference(step);
    const bool taught = reference >= 0 && wanted >> reference & 1u;
    for (int m = 0; m < step->count; m++) {
        measured[m] = kd_step_values(step, m);
        if (wanted >> m & 1u) kd_scores_reset(&scores[m]);
    }
    KD_TRY(kd_loader_seek(loader, &start));
    for (;;) {
        const kd_step_batch *batch;
        KD_TRY(kd_loader_next(&batch, loader, NULL));
        if (!batch) return sum_all(step, wanted, scores);
        for (int64_t i = 0; i < batch->micro_count; i++) {
            double nothing = 0.0;
            KD_TRY(kd_comm_agree(step->comm, &nothing));
            KD_TRY(kd_step_measure(step, &batch->micro[i], wanted, measured));
            for (int m = 0; m < step->count; m++) {
                if (!(wanted >> m & 1u)) continue;
                kd_scores_add(&scores[m], &batch->micro[i], &measured[m]);
                if (scores[m].profile)
                    kd_profile_add(scores[m].profile, &batch->micro[i], &measured[m],
                                   taught ? &measured[reference] : NULL);
            }
        }
    }
}
