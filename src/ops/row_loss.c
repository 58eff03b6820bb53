/*
 * row_loss - cross entropy and every divergence over rows of logits; the gradient overwrites them.
 *
 * The mathematics of a term is in rows/<term>.h, what they share in rows/row.h.  For a row n and
 * terms k at temperature T_k:
 *
 *     loss[k, n]    =  weight[n] * t_squared_k * value_k                          (not times scale)
 *     d student[n]  =  sum_k weight[n] * scale_k * t_squared_k / T_k * gradient_k
 *
 *   rows      Ignored when labels are given and the label is -1, or weight is given and 0: nothing
 *             of the row is read, its losses, same_top and all V gradients are 0.
 *   columns   Softmaxes over the first `classes`; columns from there to V get gradient 0 and are
 *             not read; memory beyond V is not touched.  The teacher may be padded otherwise.
 *   classes   -inf, NaN and what is done at probability 0: rows/row.h.
 *   same_top  1 where the first largest class of student and teacher is the same.  NaN is never the
 *             largest; a row with no class above -inf has no largest class and no same top.
 *   errors    A label outside [0, classes) in a row that is not ignored, and a temperature that is
 *             not above 0, are KD_EINVAL before anything is written.
 *
 * Work of a row, blocks of BLOCK classes in the first-level cache: one sweep for both maxima (and
 * with that x = (z - max z) / T of any temperature); then per distinct temperature one sweep for
 * exp and its sums (kept in scratch), one for the sums of its terms, one for their gradients.
 * Sums are pairwise in float within a block and in double over blocks, in an order that depends on
 * the row alone, so the number of threads does not change a bit.
 */
#include "ops/row_block.h"

#include <omp.h>

/* ---- one row ---------------------------------------------------------------------------------- */

/* One side of a row at one temperature. */
typedef struct side {
    kd_row row;
    float max;
    float *exp; /* scratch [round_up(classes, BLOCK)]: exp((z - max) / T) */
    float log_sum, inv_sum;
    float floor; /* log-probability of a dead class; NaN in a row that has a NaN */
    kd_row_rest rest;
} side;

typedef struct job {
    const kd_row_loss_args *args;
    const kd_term_scalars *term; /* [args->terms->count] */
    bool teacher;                /* some term reads it */
    unsigned extras;             /* bit x: some term reads kd_row_extra x */
    int64_t columns;             /* classes rounded up to BLOCK */
} job;

static void exponentials(side *s, int64_t classes, float inv_t)
{
    alignas(64) float buffer[BLOCK];
    const float max = s->max;
    double sum = 0.0;
    for (int64_t first = 0; first < classes; first += BLOCK) {
        const float *restrict z = load_block(buffer, s->row, first, classes);
        float *restrict e = s->exp + first;
        for (int i = 0; i < BLOCK; i++) e[i] = kd_vexpf((z[i] - max) * inv_t);
        sum += sum_block(e);
    }
    s->log_sum = (float)log(sum);
    s->inv_sum = (float)(1.0 / sum);
    s->floor = isnan(s->log_sum) ? s->log_sum : KD_ROW_LOG_FLOOR;
}

/* The side without class `label`, after exponentials. */
static void find_rest(side *s, int64_t label, int64_t classes, float inv_t)
{
    alignas(64) float buffer[BLOCK], e[BLOCK];
    kd_row_rest *rest = &s->rest;
    rest->max = -INFINITY;
    for (int64_t j = 0; j < classes; j++) {
        const float z = element(s->row, j);
        if (j != label && z > rest->max) rest->max = z;
    }
    double sum = 0.0;
    for (int64_t first = 0; first < classes; first += BLOCK) {
        const float *restrict z = load_block(buffer, s->row, first, classes);
        for (int i = 0; i < BLOCK; i++)
            e[i] = first + i == label ? 0.0f : kd_vexpf((z[i] - rest->max) * inv_t);
        sum += sum_block(e);
    }
    const bool none = rest->max == -INFINITY;
    rest->log_sum = none ? 0.0f : (float)log(sum);
    rest->log_mass =
        none ? KD_ROW_LOG_FLOOR : (rest->max - s->max) * inv_t + rest->log_sum - s->log_sum;
}

static void fill_student(block *restrict b, const side *s, int64_t first, int64_t classes,
                         float inv_t)
{
    alignas(64) float buffer[BLOCK];
    const float *restrict z = load_block(buffer, s->row, first, classes);
    const float *restrict e = s->exp + first;
    const float max = s->max, log_sum = s->log_sum, inv_sum = s->inv_sum, dead = s->floor;
    for (int i = 0; i < BLOCK; i++) {
        const float x = (z[i] - max) * inv_t;
        b->log_q[i] = x == -INFINITY ? dead : x - log_sum;
        b->live[i] = x == -INFINITY ? 0.0f : 1.0f;
        b->q[i] = e[i] * inv_sum;
    }
}

static void fill_teacher(block *restrict b, const side *s, int64_t first, int64_t classes,
                         float inv_t)
{
    alignas(64) float buffer[BLOCK];
    const float *restrict z = load_block(buffer, s->row, first, classes);
    const float *restrict e = s->exp + first;
    const float max = s->max, log_sum = s->log_sum, inv_sum = s->inv_sum, dead = s->floor;
    for (int i = 0; i < BLOCK; i++) {
        const float x = (z[i] - max) * inv_t;
        b->log_p[i] = x == -INFINITY ? dead : x - log_sum;
        b->p[i] = e[i] * inv_sum;
    }
}

/* A row at one temperature: both sides, and which terms are meant. */
typedef struct group {
    side student, teacher;
    float temperature, inv_t;
    unsigned members; /* bit k: term k */
    bool reads_teacher;
    int64_t label; /* -1: none */
    int64_t top;   /* the teacher's first largest class; -1: not asked for, or none */
    bool logits;   /* some member reads them */
} group;

/* What a term that reads no teacher is shown. */
static void no_teacher(block *b)
{
    memset(b->log_p, 0, sizeof b->log_p);
    memset(b->p, 0, sizeof b->p);
}

static void fill_block(block *b, const group *g, int64_t first, int64_t classes)
{
    fill_student(b, &g->student, first, classes, g->inv_t);
    if (g->reads_teacher) fill_teacher(b, &g->teacher, first, classes, g->inv_t);
    memset(b->label, 0, sizeof b->label);
    if (g->label >= first && g->label < first + BLOCK) b->label[g->label - first] = 1.0f;
    memset(b->top, 0, sizeof b->top);
    if (g->top >= first && g->top < first + BLOCK) b->top[g->top - first] = 1.0f;
    if (!g->logits) return;
    alignas(64) float buffer[BLOCK];
    memcpy(b->z, load_block(buffer, g->student.row, first, classes), sizeof b->z);
    memcpy(b->t, load_block(buffer, g->teacher.row, first, classes), sizeof b->t);
}

/* log-probability of class `j`. */
static float log_probability(const side *s, int64_t j, float inv_t)
{
    const float x = (element(s->row, j) - s->max) * inv_t;
    return x == -INFINITY ? s->floor : x - s->log_sum;
}

/* What is known of the row before its sums. */
static kd_row_stats common_stats(const group *g, const job *j)
{
    const side *s = &g->student, *t = &g->teacher;
    kd_row_stats stats = { .inv_t = g->inv_t, .lse = s->max * g->inv_t + s->log_sum };
    if (g->label >= 0) {
        const float x = (element(s->row, g->label) - s->max) * g->inv_t;
        stats.log_q_label = log_probability(s, g->label, g->inv_t);
        stats.label_live = x == -INFINITY ? 0.0f : 1.0f;
    }
    if (j->extras >> KD_EXTRA_REST & 1u && g->reads_teacher) {
        stats.log_p_label = log_probability(t, g->label, g->inv_t);
        stats.rest_q = s->rest;
        stats.rest_p = t->rest;
    }
    return stats;
}

static void group_stats(kd_row_stats stats[KD_MAX_ROW_TERMS], const group *g, const job *j)
{
    const kd_row_terms *terms = j->args->terms;
    const kd_row_stats common = common_stats(g, j);
    double sums[KD_MAX_ROW_TERMS][2] = { { 0.0 } };
    block b;
    no_teacher(&b);
    for (int k = 0; k < terms->count; k++) {
        if (!(g->members >> k & 1u)) continue;
        stats[k] = common;
        stats[k].option = j->term[k].option;
        stats[k].option2 = j->term[k].option2;
    }
    for (int64_t first = 0; first < j->args->classes; first += BLOCK) {
        fill_block(&b, g, first, j->args->classes);
        for (int k = 0; k < terms->count; k++)
            if (g->members >> k & 1u)
                kd_row_functions_of[terms->kind[k]].add_sums(sums[k], &b, stats[k]);
    }
    for (int k = 0; k < terms->count; k++) {
        if (!(g->members >> k & 1u)) continue;
        stats[k].a = (float)sums[k][0];
        stats[k].b = (float)sums[k][1];
    }
}

/* after = before + the group's gradients.  `before` NULL: 0; `after` NULL: over the student's
 * logits; the two may be the same. */
static void group_gradient(const group *g, const job *j, const kd_row_stats *stats, float weight,
                           const float *before, float *after)
{
    const kd_row_terms *terms = j->args->terms;
    const int64_t classes = j->args->classes;
    block b;
    alignas(64) float out[BLOCK];
    no_teacher(&b);
    for (int64_t first = 0; first < classes; first += BLOCK) {
        fill_block(&b, g, first, classes);
        if (before)
            memcpy(out, before + first, sizeof out);
        else
            memset(out, 0, sizeof out);
        for (int k = 0; k < terms->count; k++) {
            const kd_term_scalars *s = &j->term[k];
            if (!(g->members >> k & 1u)) continue;
            kd_row_functions_of[terms->kind[k]].add_gradient(
                out, &b, stats[k], weight * s->scale * s->t_squared * g->inv_t);
        }
        if (after)
            memcpy(after + first, out, sizeof out);
        else
            store_block(g->student.row, first, classes, out);
    }
}

/* The terms of term k's temperature; `k` is the first of them. */
static void open_group(group *g, const job *j, int k)
{
    const kd_row_terms *terms = j->args->terms;
    g->temperature = j->term[k].temperature;
    g->inv_t = 1.0f / g->temperature;
    g->members = 0;
    g->reads_teacher = g->logits = false;
    bool rest = false;
    for (int i = k; i < terms->count; i++) {
        if (j->term[i].temperature != g->temperature) continue;
        const kd_row_type *type = &kd_row_types[terms->kind[i]];
        g->members |= 1u << i;
        g->reads_teacher |= type->teacher;
        g->logits |= type->extra == KD_EXTRA_LOGITS || type->extra == KD_EXTRA_REST;
        rest |= type->extra == KD_EXTRA_REST;
    }
    exponentials(&g->student, j->args->classes, g->inv_t);
    if (g->reads_teacher) exponentials(&g->teacher, j->args->classes, g->inv_t);
    if (rest) find_rest(&g->student, g->label, j->args->classes, g->inv_t);
    if (rest) find_rest(&g->teacher, g->label, j->args->classes, g->inv_t);
}

/* scratch: `columns` floats for the student, for the teacher where one is read, and for a gradient
 * on its way from one temperature to the next where there are several terms. */
static void run_row(const job *j, int64_t n, int64_t label, float weight, float *scratch)
{
    const kd_row_loss_args *args = j->args;
    const int count = args->terms->count;
    const kd_row student = kd_row_of(args->student, n);
    group g = { .label = label, .top = -1 };
    g.student = (side){ student, .max = row_max(student, args->classes), .exp = scratch };
    if (kd_present(args->teacher)) {
        const kd_row teacher = kd_row_of(args->teacher, n);
        g.teacher =
            (side){ teacher, .max = row_max(teacher, args->classes), .exp = scratch + j->columns };
    }
    if (j->extras >> KD_EXTRA_TOP & 1u && g.teacher.max > -INFINITY)
        g.top = first_equal(g.teacher.row, args->classes, g.teacher.max);
    if (kd_present(args->same_top)) {
        const int64_t top = first_equal(student, args->classes, g.student.max);
        set_same_top(args->same_top, n,
                     g.student.max > -INFINITY &&
                         top == first_equal(g.teacher.row, args->classes, g.teacher.max));
    }

    float *const carried = scratch + (j->teacher ? 2 : 1) * j->columns;
    unsigned done = 0;
    for (int k = 0; k < count; k++) {
        if (done >> k & 1u) continue;
        kd_row_stats stats[KD_MAX_ROW_TERMS];
        const bool first = done == 0;
        open_group(&g, j, k);
        done |= g.members;
        group_stats(stats, &g, j);
        for (int i = 0; i < count; i++)
            if (g.members >> i & 1u)
                set_loss(args->loss, i, n,
                         weight * j->term[i].t_squared *
                             kd_row_functions_of[args->terms->kind[i]].value(stats[i]));
        group_gradient(&g, j, stats, weight, first ? NULL : carried,
                       done + 1u == 1u << count ? NULL : carried);
    }
    zero_columns(student, args->classes, args->student->shape[1]);
}

/* ---- the op ----------------------------------------------------------------------------------- */

static kd_status check_logits(const kd_tensor *t, const char *what, int64_t rows, int64_t classes)
{
    KD_TRY(kd_tensor_expect(t, what, -1, KD_SHAPE(rows, -1)));
    KD_TRY(kd_expect_rows(t, what));
    if (t->shape[1] < classes)
        return kd_fail(KD_EINVAL, "%s has %lld columns for %lld classes", what,
                       (long long)t->shape[1], (long long)classes);
    return KD_OK;
}

kd_status kd_row_loss_check(const kd_row_loss_args *args)
{
    const kd_row_terms *terms = args->terms;
    if (!terms || terms->count < 1 || terms->count > KD_MAX_ROW_TERMS)
        return kd_fail(KD_EINVAL, "%d terms, expected 1 to %d", terms ? terms->count : 0,
                       KD_MAX_ROW_TERMS);
    if (terms->first < 0 || terms->first + terms->count > KD_MAX_TERMS)
        return kd_fail(KD_EINVAL, "terms from %d on, of %d", terms->first, KD_MAX_TERMS);
    if (args->classes < 1)
        return kd_fail(KD_EINVAL, "%lld classes, expected at least 1", (long long)args->classes);
    KD_TRY(check_logits(args->student, "student", -1, args->classes));
    const int64_t rows = args->student->shape[0];
    if (kd_present(args->teacher))
        KD_TRY(check_logits(args->teacher, "teacher", rows, args->classes));
    KD_TRY(kd_tensor_expect(args->loss, "loss", KD_F32, KD_SHAPE(terms->count, rows)));
    if (kd_present(args->labels))
        KD_TRY(kd_tensor_expect(args->labels, "labels", KD_I32, KD_SHAPE(rows)));
    if (kd_present(args->weight))
        KD_TRY(kd_tensor_expect(args->weight, "weight", KD_F32, KD_SHAPE(rows)));
    if (kd_present(args->same_top)) {
        KD_TRY(kd_tensor_expect(args->same_top, "same_top", KD_F32, KD_SHAPE(rows)));
        if (!kd_present(args->teacher)) return kd_fail(KD_EINVAL, "same_top needs a teacher");
    }
    for (int k = 0; k < terms->count; k++) {
        if ((unsigned)terms->kind[k] >= KD_ROW_COUNT)
            return kd_fail(KD_EINVAL, "term %d is of unknown kind %d", k, (int)terms->kind[k]);
        const kd_row_type *type = &kd_row_types[terms->kind[k]];
        if (type->teacher && !kd_present(args->teacher))
            return kd_fail(KD_EINVAL, "%s needs a teacher", type->name);
        if (type->label && !kd_present(args->labels))
            return kd_fail(KD_EINVAL, "%s needs labels", type->name);
    }
    if (!kd_present(args->scalars) || kd_tensor_bytes(args->scalars) < sizeof(kd_step_scalars))
        return kd_fail(KD_EINVAL, "scalars: expected %zu bytes", sizeof(kd_step_scalars));
    return KD_OK;
}

kd_status kd_row_loss_check_values(const kd_row_loss_args *args)
{
    const kd_term_scalars *term =
        ((const kd_step_scalars *)args->scalars->data)->term + args->terms->first;
    for (int k = 0; k < args->terms->count; k++)
        if (!(term[k].temperature > 0.0f) || term[k].temperature == INFINITY)
            return kd_fail(KD_EINVAL, "%s: temperature is %g, expected above 0",
                           kd_row_types[args->terms->kind[k]].name, (double)term[k].temperature);
    if (!kd_present(args->labels)) return KD_OK;
    for (int64_t n = 0; n < args->student->shape[0]; n++) {
        const int64_t label = label_of(args->labels, n);
        if (!ignored(args->labels, args->weight, n) && (label < 0 || label >= args->classes))
            return kd_fail(KD_EINVAL,
                           "row %lld: label %lld, expected -1 or 0 to %lld of %lld classes",
                           (long long)n, (long long)label, (long long)args->classes - 1,
                           (long long)args->classes);
    }
    return KD_OK;
}

kd_status kd_row_loss_cpu(kd_exec *exec, const kd_row_loss_args *args)
{
    const kd_row_terms *terms = args->terms;
    job j = { .args = args, .columns = kd_ceil_div(args->classes, BLOCK) * BLOCK };
    for (int k = 0; k < terms->count; k++) {
        j.teacher |= kd_row_types[terms->kind[k]].teacher;
        j.extras |= 1u << kd_row_types[terms->kind[k]].extra;
    }

    const int threads = omp_get_max_threads();
    const int64_t width = (1 + j.teacher + (terms->count > 1)) * j.columns;
    kd_tensor scratch;
    KD_TRY(kd_push(&scratch, exec, "row_loss.scratch", KD_F32, KD_SHAPE(threads, width)));
    if (kd_planning(exec)) return KD_OK;

    j.term = ((const kd_step_scalars *)args->scalars->data)->term + args->terms->first;
    KD_TRY(kd_row_loss_check_values(args));
    const int64_t rows = args->student->shape[0];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        float *own = (float *)scratch.data + omp_get_thread_num() * width;
        if (ignored(args->labels, args->weight, n)) {
            for (int k = 0; k < terms->count; k++) set_loss(args->loss, k, n, 0.0f);
            set_same_top(args->same_top, n, false);
            zero_columns(kd_row_of(args->student, n), 0, args->student->shape[1]);
        } else {
            run_row(&j, n, label_of(args->labels, n), weight_of(args->weight, n), own);
        }
    }
    return KD_OK;
}
