/*
 * The head of one student against its teacher's, chunk by chunk of rows: logits, all terms over them, and
 * the gradient's way back through the head at once.
 *
 * Of a teacher of whom K classes are known (kd_logit_view) those are found anew in every chunk.  Where
 * the student is restricted to them too, its head is K rows of the weight for each row of hidden ones.
 */
#include "loss/loss.h"

/* Terms over rows of one student: over logits, then over z-scores of them or, where the student is
 * restricted to what is known of the teacher, over those. */
typedef struct row_groups {
    kd_row_terms plain, standard, known;
    int teacher;        /* the one that they read; -1: none */
    bool top;           /* whether one over logits reads it */
    double temperature; /* of the last that does */
} row_groups;

static kd_status gather_terms(row_groups *groups, const kd_objective *objective, int student,
                              bool restricted)
{
    *groups = (row_groups){ .teacher = -1 };
    for (int i = 0; i < objective->count; i++) {
        const kd_term *term = &objective->terms[i];
        const bool known = restricted && kd_row_types[term->kind].teacher;
        kd_row_terms *kinds = known               ? &groups->known
                              : term->standardise ? &groups->standard
                                                  : &groups->plain;
        if (term->student != student || term->tapped) continue;
        if (groups->plain.count + groups->standard.count + groups->known.count == KD_MAX_ROW_TERMS)
            return kd_fail(KD_EINVAL, "loss.%s: more than %d row terms for one student", term->name,
                           KD_MAX_ROW_TERMS);
        kinds->kind[kinds->count++] = term->kind;
        if (term->teacher < 0) continue;
        if (groups->teacher >= 0 && groups->teacher != term->teacher)
            return kd_fail(KD_ENOTSUP, "loss.%s: a second teacher for the logits of one student",
                           term->name);
        groups->teacher = term->teacher;
        groups->temperature = term->temperature;
        groups->top |= !term->standardise && !known;
    }
    groups->standard.first = groups->known.first = groups->plain.count;
    return KD_OK;
}

/* ---- buffers ---------------------------------------------------------------------------------- */

/* Buffers of one chunk of c rows; taken once, used by every chunk. */
typedef struct chunk {
    kd_tensor student_hidden, teacher_hidden; /* [c, D] */
    kd_tensor student, teacher;               /* [c, V] logits; student's become its gradient */
    kd_tensor ids, log_p;                     /* [c, K] of a teacher of whom K classes are known */
    kd_tensor picked, weight;                 /* [c, K] the student's logits of those, and [c] */
    kd_tensor d_logits;                       /* [c, V]: that gradient in the compute type */
    kd_tensor d_hidden;                       /* [c, D] */
    kd_tensor rows, labels;                   /* slices of the targets */
    int64_t first, count;                     /* of them: the first row, and how many are rows */
} chunk;

/* One student's head and what is asked of it. */
typedef struct job {
    const kd_objective *objective;
    const kd_head *student, *teacher; /* teacher NULL: no term reads one */
    const kd_targets *targets;
    const kd_tensor *scalars;
    row_groups groups;
    bool whole;      /* logits are f32, else in the models' types */
    float capture;   /* the temperature that log_p is of */
    int64_t known;   /* classes of the teacher; 0: all */
    bool restricted; /* to those, the student too, where a term reads a teacher */
    bool dense;      /* a term reads every class of the student */
    bool train;
} job;

/* Rows that begin at multiples of 16 bytes, as a GPU's products and row terms want them. */
static kd_status push_logits(kd_tensor *logits, kd_exec *exec, const char *name, int64_t rows,
                             int64_t vocabulary, kd_dtype dtype)
{
    const int64_t unit = 16 / (int64_t)kd_dtype_size(dtype);
    KD_TRY(
        kd_push(logits, exec, name, dtype, KD_SHAPE(rows, kd_ceil_div(vocabulary, unit) * unit)));
    *logits = kd_tensor_slice(logits, 1, 0, vocabulary);
    return KD_OK;
}

static kd_status open_side(kd_tensor *hidden, kd_tensor *logits, kd_exec *exec, const kd_head *head,
                           int64_t rows, kd_dtype dtype)
{
    const int64_t width = head->hidden.shape[1], vocabulary = head->weight.shape[0];
    if (head->softcap != 0.0f)
        return kd_fail(KD_ENOTSUP, "soft-capped vocabulary logits (%g)", (double)head->softcap);
    KD_TRY(kd_push(hidden, exec, "head rows", head->hidden.dtype, KD_SHAPE(rows, width)));
    return logits ? push_logits(logits, exec, "head logits", rows, vocabulary, dtype) : KD_OK;
}

static kd_status open_chunk(chunk *c, kd_exec *exec, const job *j, int64_t rows)
{
    const kd_head *student = j->student, *teacher = j->teacher;
    const kd_dtype own = student->hidden.dtype, dtype = j->whole ? KD_F32 : own;
    const kd_shape known = KD_SHAPE(rows, j->known);
    kd_tensor *logits = j->dense ? &c->student : NULL;
    KD_TRY(open_side(&c->student_hidden, logits, exec, student, rows, dtype));
    if (teacher)
        KD_TRY(open_side(&c->teacher_hidden, &c->teacher, exec, teacher, rows,
                         j->whole ? KD_F32 : teacher->hidden.dtype));
    if (j->known) {
        KD_TRY(kd_push(&c->ids, exec, "teacher's classes", KD_I32, known));
        KD_TRY(kd_push(&c->log_p, exec, "teacher's log p", KD_F32, known));
    }
    if (j->restricted) {
        KD_TRY(kd_push(&c->picked, exec, "picked logits", KD_F32, known));
        KD_TRY(kd_push(&c->weight, exec, "head weights", KD_F32, KD_SHAPE(rows)));
    }
    if (!j->train) return KD_OK;
    c->d_logits = c->student;
    if (j->dense && dtype != own)
        KD_TRY(
            push_logits(&c->d_logits, exec, "d head logits", rows, student->weight.shape[0], own));
    return kd_push(&c->d_hidden, exec, "d head rows", own, kd_shape_of(&c->student_hidden));
}

/* ---- all classes of the student ----------------------------------------------------------------- */

static kd_status head_logits(kd_exec *exec, const kd_tensor *logits, const kd_tensor *gathered,
                             const kd_head *head, const kd_tensor *rows)
{
    const kd_tensor weight = kd_tensor_transposed(&head->weight);
    KD_TRY(KD_RUN(exec, gather_rows, .y = gathered, .x = &head->hidden, .rows = rows));
    return KD_RUN(exec, matmul, .y = logits, .a = gathered, .b = &weight, .bias = &head->bias);
}

/* c->student holds d logits. */
static kd_status head_backward(kd_exec *exec, const chunk *c, const kd_head *head)
{
    const kd_tensor d_logits = kd_tensor_transposed(&c->d_logits);
    if (c->d_logits.dtype != c->student.dtype)
        KD_TRY(KD_RUN(exec, copy, .y = &c->d_logits, .x = &c->student));
    KD_TRY(KD_RUN(exec, matmul_add, .y = &head->d_weight, .a = &d_logits, .b = &c->student_hidden));
    if (kd_present(&head->d_bias))
        KD_TRY(KD_RUN(exec, sum_columns, .y = &head->d_bias, .x = &c->student));
    return KD_RUN(exec, matmul, .y = &c->d_hidden, .a = &c->d_logits, .b = &head->weight);
}

/* Terms over the logits themselves, whose gradient takes their place. */
static kd_status run_plain(kd_exec *exec, const chunk *c, const job *j,
                           const kd_row_results *results)
{
    const row_groups *groups = &j->groups;
    const bool teacher = groups->top;
    const int64_t classes = j->objective->classes;
    const kd_tensor losses = kd_tensor_slice(&results->losses, 0, 0, groups->plain.count);
    if (groups->plain.count == 0) return KD_RUN(exec, fill, .y = &c->student, .value = 0.0f);
    if (j->known && teacher)
        return KD_RUN(exec, row_loss_topk, .student = &c->student, .loss = &losses,
                      .same_top = &results->same_top, .teacher_ids = &c->ids,
                      .teacher_log_p = &c->log_p, .labels = &c->labels, .scalars = j->scalars,
                      .terms = &groups->plain, .classes = classes,
                      .mode = j->objective->logits.others == KD_OTHERS_TAIL ? KD_TOPK_TAIL
                                                                            : KD_TOPK_RENORMALISED,
                      .capture = j->capture);
    return KD_RUN(exec, row_loss, .student = &c->student, .loss = &losses,
                  .same_top = teacher ? &results->same_top : NULL,
                  .teacher = teacher ? &c->teacher : NULL, .labels = &c->labels,
                  .scalars = j->scalars, .terms = &groups->plain, .classes = classes);
}

/* Terms over z-scores of both logits, which the student's are needed for once more. */
static kd_status run_standard(kd_exec *exec, const chunk *c, const job *j,
                              const kd_row_results *results)
{
    const row_groups *groups = &j->groups;
    const int64_t classes = j->objective->classes;
    const kd_tensor logits = kd_tensor_slice(&c->student, 1, 0, classes);
    const kd_tensor its_logits = kd_tensor_slice(&c->teacher, 1, 0, classes);
    const kd_tensor losses =
        kd_tensor_slice(&results->losses, 0, groups->plain.count, groups->standard.count);
    kd_zscores own, its;
    kd_tensor kept, d;
    KD_TRY(kd_push(&kept, exec, "logits of z-scores", KD_F32, kd_shape_of(&logits)));
    KD_TRY(KD_RUN(exec, copy, .y = &kept, .x = &logits));
    KD_TRY(kd_zscores_make(&own, exec, &kept));
    KD_TRY(kd_zscores_make(&its, exec, &its_logits));
    KD_TRY(run_plain(exec, c, j, results));
    KD_TRY(KD_RUN(exec, row_loss, .student = &own.y, .loss = &losses,
                  .same_top = groups->top ? NULL : &results->same_top, .teacher = &its.y,
                  .labels = &c->labels, .scalars = j->scalars, .terms = &groups->standard,
                  .classes = classes));
    KD_TRY(kd_push(&d, exec, "d logits of z-scores", KD_F32, kd_shape_of(&logits)));
    KD_TRY(kd_zscores_backward(exec, &d, &kept, &own));
    return KD_RUN(exec, add, .y = &logits, .a = &logits, .b = &d);
}

static kd_status run_dense(kd_exec *exec, const chunk *c, const job *j,
                           const kd_row_results *results)
{
    const kd_watch *watch = &j->objective->watch;
    KD_TRY(head_logits(exec, &c->student, &c->student_hidden, j->student, &c->rows));
    if (watch->see && !j->train && !kd_planning(exec)) {
        const kd_tensor logits = kd_tensor_slice(&c->student, 0, 0, c->count);
        KD_TRY(watch->see(watch->context, exec, &logits, c->first));
    }
    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(j->groups.standard.count ? run_standard(exec, c, j, results)
                                    : run_plain(exec, c, j, results));
    kd_stack_release(exec->stack, mark);
    return j->train ? head_backward(exec, c, j->student) : KD_OK;
}

/* ---- the teacher's largest classes alone -------------------------------------------------------- */

/* c->picked holds the gradient; `added`: to what d_hidden is. */
static kd_status picked_backward(kd_exec *exec, const chunk *c, const kd_head *head, bool added)
{
    KD_TRY(KD_RUN(exec, embedding_backward, .dtable = &head->d_weight, .dy = &c->student_hidden,
                  .ids = &c->ids, .factor = &c->picked));
    if (kd_present(&head->d_bias)) {
        const kd_tensor column =
            kd_tensor_of(head->d_bias.data, KD_F32, KD_SHAPE(head->d_bias.shape[0], 1));
        const kd_tensor list =
            kd_tensor_of(c->picked.data, KD_F32, KD_SHAPE(kd_tensor_elements(&c->picked), 1));
        KD_TRY(KD_RUN(exec, embedding_backward, .dtable = &column, .dy = &list, .ids = &c->ids));
    }
    return KD_RUN(exec, embedding, .y = &c->d_hidden, .table = &head->weight, .ids = &c->ids,
                  .factor = &c->picked, .add = added ? &c->d_hidden : NULL);
}

/* Both softmaxes are over the teacher's largest classes: log p is as good as its logits there, and of the
 * student's no other is computed. */
static kd_status run_restricted(kd_exec *exec, const chunk *c, const job *j,
                                const kd_row_results *results)
{
    const kd_head *head = j->student;
    const kd_tensor *weights = &j->targets->weight;
    const kd_row_terms *terms = &j->groups.known;
    const kd_tensor losses = kd_tensor_slice(&results->losses, 0, terms->first, terms->count);
    const kd_tensor all = kd_tensor_of(weights->data, KD_F32, KD_SHAPE(weights->shape[0], 1));
    const kd_tensor own = kd_tensor_of(c->weight.data, KD_F32, KD_SHAPE(c->weight.shape[0], 1));
    if (!j->dense)
        KD_TRY(KD_RUN(exec, gather_rows, .y = &c->student_hidden, .x = &head->hidden,
                      .rows = &c->rows));
    KD_TRY(KD_RUN(exec, gather_rows, .y = &own, .x = &all, .rows = &c->rows));
    KD_TRY(KD_RUN(exec, embedding_products, .y = &c->picked, .x = &c->student_hidden,
                  .table = &head->weight, .ids = &c->ids, .bias = &head->bias));
    KD_TRY(KD_RUN(exec, row_loss, .student = &c->picked, .loss = &losses, .teacher = &c->log_p,
                  .weight = &c->weight, .scalars = j->scalars, .terms = terms,
                  .classes = j->known));
    return picked_backward(exec, c, head, j->dense);
}

/* ---- the chunk loop --------------------------------------------------------------------------- */

static kd_status run_chunk(kd_exec *exec, const chunk *c, const job *j,
                           const kd_row_results *results)
{
    if (j->teacher)
        KD_TRY(head_logits(exec, &c->teacher, &c->teacher_hidden, j->teacher, &c->rows));
    if (j->known)
        KD_TRY(KD_RUN(exec, top_classes, .ids = &c->ids, .log_p = &c->log_p, .logits = &c->teacher,
                      .labels = &c->labels, .classes = j->objective->classes,
                      .temperature = j->capture));
    if (j->dense) KD_TRY(run_dense(exec, c, j, results));
    if (j->restricted) KD_TRY(run_restricted(exec, c, j, results));
    if (!j->train) return KD_OK;
    return KD_RUN(exec, scatter_rows, .y = &j->student->d_hidden, .x = &c->d_hidden,
                  .rows = &c->rows);
}

/* Row results of the whole micro-batch, where the caller does not bring his own. */
static kd_status open_results(kd_row_results *out, kd_exec *exec, const kd_row_results *given,
                              int terms, int64_t rows)
{
    if (given) {
        *out = *given;
    } else {
        KD_TRY(kd_push(&out->losses, exec, "row losses", KD_F32, KD_SHAPE(terms, rows)));
        KD_TRY(kd_push(&out->same_top, exec, "row same top", KD_F32, KD_SHAPE(rows)));
    }
    KD_TRY(KD_RUN(exec, fill, .y = &out->losses, .value = 0.0f));
    return KD_RUN(exec, fill, .y = &out->same_top, .value = 0.0f);
}

static kd_status add_totals(kd_exec *exec, const kd_tensor *totals, const kd_row_results *results,
                            int terms)
{
    const kd_tensor losses = kd_tensor_slice(totals, 0, 0, terms);
    const kd_tensor same = kd_tensor_slice(totals, 0, totals->shape[0] - 1, 1);
    const kd_tensor row =
        kd_tensor_of(results->same_top.data, KD_F32, KD_SHAPE(1, results->same_top.shape[0]));
    KD_TRY(KD_RUN(exec, sum_rows, .y = &losses, .x = &results->losses));
    return KD_RUN(exec, sum_rows, .y = &same, .x = &row);
}

/* Measured values want the whole of f32 and all classes, and z-scores f32; a gradient goes back in the
 * compute type. */
static kd_status plan_job(job *j, const kd_objective *objective, int student, kd_taps *const *taps,
                          bool train)
{
    const kd_logit_view *logits = &objective->logits;
    *j = (job){ .objective = objective, .student = &taps[student]->head, .train = train };
    j->restricted = train && kd_logit_view_restricts(logits);
    KD_TRY(gather_terms(&j->groups, objective, student, j->restricted));
    j->restricted &= j->groups.known.count > 0;
    j->dense = j->groups.plain.count + j->groups.standard.count > 0;
    if (j->groups.teacher >= 0) j->teacher = &taps[j->groups.teacher]->head;
    j->whole = !train || logits->f32 || j->groups.standard.count > 0;
    if (!train || !j->teacher || !logits->top_k) return KD_OK;
    j->known = logits->top_k;
    j->capture = logits->others == KD_OTHERS_TAIL ? (float)j->groups.temperature : 1.0f;
    return KD_OK;
}

kd_status kd_objective_head(const kd_objective *objective, kd_exec *exec, int student,
                            kd_taps *const *taps, const kd_targets *targets,
                            const kd_tensor *scalars, const kd_tensor *totals,
                            const kd_row_results *given, bool train)
{
    kd_head *head = &taps[student]->head;
    const int64_t c = objective->chunk, capacity = targets->rows.shape[0];
    job j;
    kd_row_results all;
    chunk buffers = { 0 };
    KD_TRY(plan_job(&j, objective, student, taps, train));
    j.targets = targets;
    j.scalars = scalars;
    const int terms = j.groups.plain.count + j.groups.standard.count + j.groups.known.count;
    if (train) {
        KD_TRY(kd_push(&head->d_hidden, exec, "d head hidden", head->hidden.dtype,
                       kd_shape_of(&head->hidden)));
        KD_TRY(KD_RUN(exec, fill, .y = &head->d_hidden, .value = 0.0f));
    }
    if (terms == 0) return KD_OK;
    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(open_results(&all, exec, given, terms, capacity));
    KD_TRY(open_chunk(&buffers, exec, &j, c));
    for (int64_t at = 0; at < targets->count; at += c) {
        const kd_row_results part = { kd_tensor_slice(&all.losses, 1, at, c),
                                      kd_tensor_slice(&all.same_top, 0, at, c) };
        buffers.rows = kd_tensor_slice(&targets->rows, 0, at, c);
        buffers.labels = kd_tensor_slice(&targets->labels, 0, at, c);
        buffers.first = at;
        buffers.count = kd_min_i64(c, targets->count - at);
        KD_TRY(run_chunk(exec, &buffers, &j, &part));
    }
    KD_TRY(add_totals(exec, totals, &all, terms));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
