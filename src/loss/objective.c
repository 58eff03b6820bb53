#include "loss/loss.h"

double kd_ramp_at(const kd_ramp *ramp, int64_t step)
{
    if (step >= ramp->steps) return ramp->to;
    return ramp->from + (ramp->to - ramp->from) * (double)step / (double)ramp->steps;
}

static int64_t clamp(int64_t x, int64_t low, int64_t high)
{
    return kd_min_i64(kd_max_i64(x, low), high);
}

int64_t kd_objective_chunk(int64_t rows, int64_t row_bytes, int64_t width,
                           const kd_device_info *device)
{
    const bool cpu = strcmp(device->type, "cpu") == 0;
    const int64_t step = cpu ? 64 : 128, memory = (int64_t)device->total;
    const int64_t budget = clamp(memory / (cpu ? 64 : 16), 64 << 20, 1 << 30);
    /* On a GPU d hidden has rows * width outputs in tiles of 128 x 256, of which 132 processors want
     * one each; and adding to an f32 d weight is bound by its memory below some 1100 rows. */
    const int64_t enough = cpu ? kd_cpu_rows(device) : kd_max_i64(132 * 128 * 256 / width, 2048);
    const int64_t fits = kd_min_i64(budget / row_bytes, enough) / step * step;
    return clamp(fits, step, kd_ceil_div(rows, step) * step);
}

/* ---- terms of one student --------------------------------------------------------------------- */

int kd_objective_terms(const kd_objective *objective, int student)
{
    int n = 0;
    for (int i = 0; i < objective->count; i++) n += objective->terms[i].student == student;
    return n;
}

int kd_objective_row_terms(const kd_objective *objective, int student)
{
    int n = 0;
    for (int i = 0; i < objective->count; i++)
        n += objective->terms[i].student == student && !objective->terms[i].tapped;
    return n;
}

void kd_objective_scalars(kd_step_scalars *scalars, const kd_objective *objective, int student,
                          int64_t step, double valid)
{
    int n = 0;
    for (int i = 0; i < objective->count; i++) {
        const kd_term *term = &objective->terms[i];
        if (term->student != student) continue;
        const double weight = kd_ramp_at(&term->weight, step);
        scalars->term[n++] = (kd_term_scalars){
            .scale = valid > 0 ? (float)(weight / valid) : 0.0f,
            .temperature = (float)term->temperature,
            .t_squared = term->t_squared ? (float)(term->temperature * term->temperature) : 1.0f,
            .option = (float)term->option,
            .option2 = (float)term->option2,
        };
    }
}

/* Terms over rows of one student: over logits, then over z-scores of them. */
typedef struct row_groups {
    kd_row_terms plain, standard;
    int teacher; /* the one that they read; -1: none */
    bool top;    /* whether one over logits reads it */
} row_groups;

static kd_status gather_terms(row_groups *groups, const kd_objective *objective, int student)
{
    *groups = (row_groups){ .teacher = -1 };
    for (int i = 0; i < objective->count; i++) {
        const kd_term *term = &objective->terms[i];
        kd_row_terms *kinds = term->standardise ? &groups->standard : &groups->plain;
        if (term->student != student || term->tapped) continue;
        if (groups->plain.count + groups->standard.count == KD_MAX_ROW_TERMS)
            return kd_fail(KD_EINVAL, "loss.%s: more than %d row terms for one student", term->name,
                           KD_MAX_ROW_TERMS);
        kinds->kind[kinds->count++] = term->kind;
        if (term->teacher < 0) continue;
        if (groups->teacher >= 0 && groups->teacher != term->teacher)
            return kd_fail(KD_ENOTSUP, "loss.%s: a second teacher for the logits of one student",
                           term->name);
        groups->teacher = term->teacher;
        groups->top |= !term->standardise;
    }
    groups->standard.first = groups->plain.count;
    return KD_OK;
}

/* ---- the chunk loop --------------------------------------------------------------------------- */

/* Buffers of one chunk of c rows; taken once, used by every chunk. */
typedef struct chunk {
    kd_tensor student_hidden, teacher_hidden; /* [c, D] */
    kd_tensor student, teacher;               /* [c, V] logits; student's become its gradient */
    kd_tensor d_logits;                       /* [c, V]: that gradient in the compute type */
    kd_tensor d_hidden;                       /* [c, D] */
    kd_tensor rows, labels;                   /* slices of the targets */
    int64_t first, count;                     /* of them: the first row, and how many are rows */
} chunk;

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
    return push_logits(logits, exec, "head logits", rows, vocabulary, dtype);
}

static kd_status head_logits(kd_exec *exec, const kd_tensor *logits, const kd_tensor *gathered,
                             const kd_head *head, const kd_tensor *rows)
{
    const kd_tensor weight = kd_tensor_transposed(&head->weight);
    KD_TRY(KD_RUN(exec, gather_rows, .y = gathered, .x = &head->hidden, .rows = rows));
    return KD_RUN(exec, matmul, .y = logits, .a = gathered, .b = &weight, .bias = &head->bias);
}

/* chunk->student holds d logits. */
static kd_status head_backward(kd_exec *exec, const chunk *c, const kd_head *head)
{
    const kd_tensor d_logits = kd_tensor_transposed(&c->d_logits);
    if (c->d_logits.dtype != c->student.dtype)
        KD_TRY(KD_RUN(exec, copy, .y = &c->d_logits, .x = &c->student));
    KD_TRY(KD_RUN(exec, matmul_add, .y = &head->d_weight, .a = &d_logits, .b = &c->student_hidden));
    if (kd_present(&head->d_bias))
        KD_TRY(KD_RUN(exec, sum_columns, .y = &head->d_bias, .x = &c->student));
    KD_TRY(KD_RUN(exec, matmul, .y = &c->d_hidden, .a = &c->d_logits, .b = &head->weight));
    return KD_RUN(exec, scatter_rows, .y = &head->d_hidden, .x = &c->d_hidden, .rows = &c->rows);
}

/* Terms over the logits themselves, whose gradient takes their place. */
static kd_status run_plain(kd_exec *exec, const chunk *c, const row_groups *groups,
                           const kd_row_results *results, const kd_tensor *scalars, int64_t classes)
{
    const bool teacher = groups->top;
    const kd_tensor losses = kd_tensor_slice(&results->losses, 0, 0, groups->plain.count);
    if (groups->plain.count == 0) return KD_RUN(exec, fill, .y = &c->student, .value = 0.0f);
    return KD_RUN(exec, row_loss, .student = &c->student, .loss = &losses,
                  .same_top = teacher ? &results->same_top : NULL,
                  .teacher = teacher ? &c->teacher : NULL, .labels = &c->labels, .scalars = scalars,
                  .terms = &groups->plain, .classes = classes);
}

/* Terms over z-scores of both logits, which the student's are needed for once more. */
static kd_status run_standard(kd_exec *exec, const chunk *c, const row_groups *groups,
                              const kd_row_results *results, const kd_tensor *scalars,
                              int64_t classes)
{
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
    KD_TRY(run_plain(exec, c, groups, results, scalars, classes));
    KD_TRY(KD_RUN(exec, row_loss, .student = &own.y, .loss = &losses,
                  .same_top = groups->top ? NULL : &results->same_top, .teacher = &its.y,
                  .labels = &c->labels, .scalars = scalars, .terms = &groups->standard,
                  .classes = classes));
    KD_TRY(kd_push(&d, exec, "d logits of z-scores", KD_F32, kd_shape_of(&logits)));
    KD_TRY(kd_zscores_backward(exec, &d, &kept, &own));
    return KD_RUN(exec, add, .y = &logits, .a = &logits, .b = &d);
}

static kd_status run_chunk(kd_exec *exec, const chunk *c, const kd_head *student,
                           const kd_head *teacher, const row_groups *groups,
                           const kd_row_results *results, const kd_tensor *scalars,
                           const kd_objective *objective, bool train)
{
    const kd_watch *watch = &objective->watch;
    const int64_t classes = objective->classes;
    if (teacher) KD_TRY(head_logits(exec, &c->teacher, &c->teacher_hidden, teacher, &c->rows));
    KD_TRY(head_logits(exec, &c->student, &c->student_hidden, student, &c->rows));
    if (watch->see && !train && !kd_planning(exec)) {
        const kd_tensor logits = kd_tensor_slice(&c->student, 0, 0, c->count);
        KD_TRY(watch->see(watch->context, exec, &logits, c->first));
    }
    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(groups->standard.count ? run_standard(exec, c, groups, results, scalars, classes)
                                  : run_plain(exec, c, groups, results, scalars, classes));
    kd_stack_release(exec->stack, mark);
    return train ? head_backward(exec, c, student) : KD_OK;
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

kd_status kd_objective_head(const kd_objective *objective, kd_exec *exec, int student,
                            kd_taps *const *taps, const kd_targets *targets,
                            const kd_tensor *scalars, const kd_tensor *totals,
                            const kd_row_results *given, bool train)
{
    kd_head *head = &taps[student]->head;
    const int64_t c = objective->chunk, capacity = targets->rows.shape[0];
    row_groups groups;
    kd_row_results all;
    chunk buffers = { 0 };
    KD_TRY(gather_terms(&groups, objective, student));
    const int terms = groups.plain.count + groups.standard.count;
    const kd_head *teacher = groups.teacher < 0 ? NULL : &taps[groups.teacher]->head;
    /* Measured values want the whole of f32, and so do z-scores; a gradient goes back in the compute
     * type. */
    const bool whole = !train || objective->f32_logits || groups.standard.count > 0;
    const kd_dtype logits = whole ? KD_F32 : head->hidden.dtype;

    if (train) {
        KD_TRY(kd_push(&head->d_hidden, exec, "d head hidden", head->hidden.dtype,
                       kd_shape_of(&head->hidden)));
        KD_TRY(KD_RUN(exec, fill, .y = &head->d_hidden, .value = 0.0f));
    }
    if (terms == 0) return KD_OK;
    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(open_results(&all, exec, given, terms, capacity));
    KD_TRY(open_side(&buffers.student_hidden, &buffers.student, exec, head, c, logits));
    if (teacher)
        KD_TRY(open_side(&buffers.teacher_hidden, &buffers.teacher, exec, teacher, c,
                         whole ? KD_F32 : teacher->hidden.dtype));
    buffers.d_logits = buffers.student;
    if (train && logits != head->hidden.dtype)
        KD_TRY(push_logits(&buffers.d_logits, exec, "d head logits", c, head->weight.shape[0],
                           head->hidden.dtype));
    if (train)
        KD_TRY(kd_push(&buffers.d_hidden, exec, "d head rows", head->hidden.dtype,
                       kd_shape_of(&buffers.student_hidden)));

    for (int64_t at = 0; at < targets->count; at += c) {
        const kd_row_results part = { kd_tensor_slice(&all.losses, 1, at, c),
                                      kd_tensor_slice(&all.same_top, 0, at, c) };
        buffers.rows = kd_tensor_slice(&targets->rows, 0, at, c);
        buffers.labels = kd_tensor_slice(&targets->labels, 0, at, c);
        buffers.first = at;
        buffers.count = kd_min_i64(c, targets->count - at);
        KD_TRY(run_chunk(exec, &buffers, head, teacher, &groups, &part, scalars, objective, train));
    }
    KD_TRY(add_totals(exec, totals, &all, terms));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
