/*
 * row_loss_topk - the row terms against a teacher of whom K classes a row are known: ids c_1 .. c_K and
 * log-probabilities l_1 .. l_K, which were taken at temperature `capture`.  The student's row is dense.
 *
 *   tail          p_i = e^(l_i) / M, i <= K, and p_0 = tail / M for all other classes together, where
 *                 M = sum e^(l_i) + tail and tail, unless it is given, is what the sum lacks to 1 (0
 *                 where it is above 1 by rounding, or all classes are known).  A teacher's term compares
 *                 K + 1 categories: the student's are q_(c_i) and q_0 = sum of all other q.  Nothing is
 *                 lost by it but how the tail is distributed: it bounds the dense divergence from below.
 *   renormalised  p_i = e^(l_i capture / T) / sum; every other class has probability 0, as a logit of
 *                 -inf gives (rows/row.h).  The student's softmax is over all classes.  (Where it is to be
 *                 over the K as well, as Megatron's and ms-swift's is, no dense row is wanted: row_loss
 *                 over [n, K] logits of the student, teacher_log_p as the teacher's logits.)
 *   sampled       K draws with probabilities r_i, with replacement: forward_kl and soft_cross_entropy
 *                 with targets w_i = e^(l_i) / (K r_i) of the id's class, whose expectation over draws is
 *                 the dense value and gradient (Anshumann et al. 2025).  Ids may repeat.
 *
 * Terms that read no teacher (cross_entropy, z_loss) are those of row_loss; a label may be anywhere.
 * dkd and logit_mse need all logits and are refused.  The masses of tail and draws are of one temperature:
 * terms of another are refused; l is divided by T only in `renormalised`.  An id of -1 is no entry and no
 * draw.  A row without entries is, but for tail, no distribution: NaN.
 *
 * With tail, a category of probability q_0 = sum_j q_j has d value / dx_j = g_0 q_j / q_0, where g_0 is
 * what a term's own gradient is for that category; q_j / q_0 is a softmax over the tail alone, taken from
 * its own maximum, so that it stays what it is where q_0 underflows.
 *
 *   same_top   compares the student's first largest class with the first largest of those known.
 *   errors     As row_loss; and an id outside [-1, classes), one that is there twice (but of draws), a
 *              sampling probability that is not above 0: KD_EINVAL before anything is written.
 *
 * A row's K logits are taken out of it and -inf put in their place: what remains is the tail, which the
 * same sweeps as row_loss's go over, and the K are a short row beside it.  Traffic is that of cross
 * entropy, whatever the terms: the row is read and its gradient written.
 */
#include "ops/row_block.h"

#include <omp.h>

/* ---- one row ---------------------------------------------------------------------------------- */

/* A short row: the known classes, each once, then the tail. */
typedef struct support {
    int64_t count;
    float *z, *log_p, *mass; /* [width]; mass: of draws */
    float *gradient;         /* [width] */
    int32_t *id;             /* [width] */
    block *b;                /* [width / BLOCK] */
} support;

typedef struct job {
    const kd_row_loss_topk_args *args;
    const kd_term_scalars *term;
    int64_t columns, width; /* of a dense and of a short row, rounded up to BLOCK */
} job;

typedef struct side {
    float max, log_sum, floor;
} side;

/* A row at one temperature. */
typedef struct group {
    unsigned dense, tail; /* bit k: term k is over all classes; over the known ones and the tail */
    float inv_t;
    side student;           /* of the whole row */
    float tail_max, of_exp; /* of the tail: its maximum, what exp is to be multiplied with for q */
    float tail_log_q, tail_inv_sum;
    float *exp;         /* [columns] exp((z - tail_max) / T) */
    float p, log_p;     /* the teacher's of a class that is not known */
    float tail_p, lack; /* the tail's; 1 - sum of the draws' targets */
    int64_t label, top; /* -1: none */
    kd_row_stats stats[KD_MAX_ROW_TERMS];
} group;

static void set_element(kd_row row, int64_t j, float value)
{
    if (row.dtype == KD_F32)
        ((float *)row.data)[j] = value;
    else
        ((uint16_t *)row.data)[j] = kd_f32_to_bf16(value);
}

static const int32_t *ids_of(const kd_row_loss_topk_args *args, int64_t n)
{
    return (const int32_t *)args->teacher_ids->data + n * args->teacher_ids->stride[0];
}

static bool teaches(const kd_row_loss_topk_args *args, int k)
{
    return kd_row_types[args->terms->kind[k]].teacher;
}

/* Where `id` is among the first `count`; -1: nowhere. */
static int64_t find_id(const int32_t *ids, int64_t count, int64_t id)
{
    for (int64_t i = 0; i < count; i++)
        if (ids[i] == id) return i;
    return -1;
}

/* Takes the known classes out of the row. */
static void gather(support *s, const job *j, kd_row row, int64_t n)
{
    const kd_row_loss_topk_args *args = j->args;
    const bool sampled = args->mode == KD_TOPK_SAMPLED;
    const int64_t k = args->teacher_ids->shape[1];
    const int32_t *ids = ids_of(args, n);
    const kd_row log_p = kd_row_of(args->teacher_log_p, n);
    int64_t draws = 0;
    s->count = 0;
    for (int64_t i = 0; i < k; i++) draws += ids[i] >= 0;
    for (int64_t i = 0; i < k; i++) {
        if (ids[i] < 0) continue;
        const float l = element(log_p, i);
        int64_t at = sampled ? find_id(s->id, s->count, ids[i]) : -1;
        if (at < 0) {
            at = s->count++;
            s->id[at] = ids[i];
            s->z[at] = element(row, ids[i]);
            s->log_p[at] = l;
            s->mass[at] = 0.0f;
        }
        if (sampled)
            s->mass[at] +=
                kd_vexpf(l) / ((float)draws * element(kd_row_of(args->teacher_sampling, n), i));
    }
    for (int64_t i = 0; i < s->count; i++) set_element(row, s->id[i], -INFINITY);
    memset(s->gradient, 0, (size_t)j->width * sizeof(float));
}

/* The first largest of the known classes by `x`. */
static int64_t first_largest(const support *s, const float *x)
{
    int64_t top = -1;
    float max = -INFINITY;
    for (int64_t i = 0; i < s->count; i++) {
        if (!(x[i] > max) && !(x[i] == max && top >= 0 && s->id[i] < top)) continue;
        max = x[i];
        top = s->id[i];
    }
    return top;
}

static float largest(const float *x, int64_t count)
{
    float max = -INFINITY;
    for (int64_t i = 0; i < count; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static side side_of(float max, double sum)
{
    const float log_sum = max == -INFINITY ? NAN : (float)log(sum);
    return (side){ max, log_sum, isnan(log_sum) ? log_sum : KD_ROW_LOG_FLOOR };
}

/* The student's softmaxes: of the whole row and of its tail. */
static void find_student(group *g, const support *s, kd_row row, int64_t classes)
{
    alignas(64) float buffer[BLOCK];
    double sum = 0.0, known = 0.0;
    const bool none = g->tail_max == -INFINITY;
    for (int64_t first = 0; first < classes; first += BLOCK) {
        const float *restrict z = load_block(buffer, row, first, classes);
        float *restrict e = g->exp + first;
        for (int i = 0; i < BLOCK; i++) e[i] = kd_vexpf((z[i] - g->tail_max) * g->inv_t);
        for (int i = 0; none && i < BLOCK; i++) e[i] = isnan(z[i]) ? NAN : 0.0f;
        sum += sum_block(e);
    }
    const float known_max = largest(s->z, s->count);
    const float max = known_max > g->tail_max ? known_max : g->tail_max;
    for (int64_t i = 0; i < s->count; i++) known += (double)kd_vexpf((s->z[i] - max) * g->inv_t);
    const float share = none ? 0.0f : kd_vexpf((g->tail_max - max) * g->inv_t);
    const double total = known + (none ? sum : sum * (double)share);
    g->student = side_of(max, total);
    g->of_exp = (float)((double)share / total);
    g->tail_inv_sum = none ? 0.0f : (float)(1.0 / sum);
    g->tail_log_q = none ? g->student.floor
                         : (g->tail_max - max) * g->inv_t + (float)log(sum) - g->student.log_sum;
}

/* ---- the teacher ------------------------------------------------------------------------------ */

static void set_teacher(support *s, int64_t i, float log_p, float p)
{
    block *b = &s->b[i / BLOCK];
    b->log_p[i % BLOCK] = log_p == -INFINITY ? KD_ROW_LOG_FLOOR : log_p;
    b->p[i % BLOCK] = p;
}

static void teach_renormalised(group *g, support *s, float power)
{
    const float max = largest(s->log_p, s->count);
    double sum = 0.0;
    for (int64_t i = 0; i < s->count; i++) sum += (double)kd_vexpf((s->log_p[i] - max) * power);
    const side t = side_of(max, sum);
    for (int64_t i = 0; i < s->count; i++) {
        const float x = (s->log_p[i] - max) * power;
        set_teacher(s, i, x - t.log_sum, (float)((double)kd_vexpf(x) / sum));
    }
    g->log_p = t.floor;
    g->p = 0.0f * t.floor;
}

static void teach_tail(group *g, support *s, const job *j, int64_t n)
{
    const kd_tensor *given = j->args->teacher_tail;
    double sum = 0.0;
    for (int64_t i = 0; i < s->count; i++) sum += exp((double)s->log_p[i]);
    double tail = sum > 1.0 ? 0.0 : 1.0 - sum;
    if (kd_present(given)) tail = (double)((const float *)given->data)[n * given->stride[0]];
    if (s->count == j->args->classes) tail *= 0.0; /* a NaN stays one */
    const double mass = sum + tail;
    for (int64_t i = 0; i < s->count; i++)
        set_teacher(s, i, s->log_p[i] - (float)log(mass), (float)(exp((double)s->log_p[i]) / mass));
    g->tail_p = (float)(tail / mass);
    set_teacher(s, s->count, g->tail_p == 0.0f ? KD_ROW_LOG_FLOOR : (float)log(tail / mass),
                g->tail_p);
}

static void teach_sampled(group *g, support *s)
{
    double sum = 0.0;
    for (int64_t i = 0; i < s->count; i++) {
        set_teacher(s, i, s->log_p[i], s->mass[i]);
        sum += (double)s->mass[i];
    }
    const bool none = s->count == 0;
    g->lack = none ? NAN : (float)(1.0 - sum);
    g->log_p = isnan(g->lack) ? NAN : KD_ROW_LOG_FLOOR;
    g->p = 0.0f * g->lack;
}

/* ---- blocks ----------------------------------------------------------------------------------- */

static void fill_tail(block *restrict b, const group *g, kd_row row, int64_t first, int64_t classes)
{
    alignas(64) float buffer[BLOCK];
    const float *restrict z = load_block(buffer, row, first, classes);
    const float *restrict e = g->exp + first;
    const float max = g->student.max, log_sum = g->student.log_sum, dead = g->student.floor;
    const float inv_t = g->inv_t, of_exp = g->of_exp, p = g->p, log_p = g->log_p;
    for (int i = 0; i < BLOCK; i++) {
        const float x = (z[i] - max) * inv_t;
        b->log_q[i] = x == -INFINITY ? dead : x - log_sum;
        b->live[i] = x == -INFINITY ? 0.0f : 1.0f;
        b->q[i] = e[i] * of_exp;
        b->p[i] = p;
        b->log_p[i] = log_p;
        b->label[i] = 0.0f;
        b->top[i] = 0.0f;
    }
    if (g->label >= first && g->label < first + BLOCK) b->label[g->label - first] = 1.0f;
}

/* The student's part of the short row. */
static void fill_support(support *s, const group *g, const job *j)
{
    const side *q = &g->student;
    for (int64_t i = 0; i < j->width; i++) {
        block *b = &s->b[i / BLOCK];
        const int at = (int)(i % BLOCK);
        const bool known = i < s->count, tail = i == s->count && g->tail;
        const float x = known ? (s->z[i] - q->max) * g->inv_t : -INFINITY;
        const bool live = known ? x != -INFINITY : tail && g->tail_max > -INFINITY;
        b->log_q[at] = tail ? g->tail_log_q : x == -INFINITY ? q->floor : x - q->log_sum;
        b->q[at] = !live && !isnan(q->floor) ? 0.0f : kd_vexpf(b->log_q[at]);
        b->live[at] = live ? 1.0f : 0.0f;
        b->label[at] = known && s->id[i] == g->label ? 1.0f : 0.0f;
        b->top[at] = known && s->id[i] == g->top ? 1.0f : 0.0f;
        if (!known && !tail) b->p[at] = 0.0f, b->log_p[at] = KD_ROW_LOG_FLOOR;
    }
}

/* The short row as the terms over all classes see it: without the tail. */
static void hide_tail(block *to, const support *s, int64_t first)
{
    *to = s->b[first / BLOCK];
    if (s->count < first || s->count >= first + BLOCK) return;
    const int64_t at = s->count - first;
    to->log_q[at] = to->log_p[at] = KD_ROW_LOG_FLOOR;
    to->q[at] = to->p[at] = to->live[at] = 0.0f;
}

static void add_sums(double sums[][2], const block *b, const group *g, const job *j,
                     unsigned members)
{
    const kd_row_terms *terms = j->args->terms;
    for (int k = 0; k < terms->count; k++)
        if (members >> k & 1u)
            kd_row_functions_of[terms->kind[k]].add_sums(sums[k], b, g->stats[k]);
}

static void add_gradient(float *out, const block *b, const group *g, const job *j, unsigned members,
                         float weight)
{
    const kd_row_terms *terms = j->args->terms;
    for (int k = 0; k < terms->count; k++) {
        const kd_term_scalars *t = &j->term[k];
        if (members >> k & 1u)
            kd_row_functions_of[terms->kind[k]].add_gradient(
                out, b, g->stats[k], weight * t->scale * t->t_squared * g->inv_t);
    }
}

/* ---- a temperature ---------------------------------------------------------------------------- */

static void find_stats(group *g, const support *s, const job *j, kd_row row, float label_logit)
{
    const kd_row_terms *terms = j->args->terms;
    const int64_t classes = j->args->classes;
    double sums[KD_MAX_ROW_TERMS][2] = { { 0.0 } };
    const side *q = &g->student;
    const float x = (label_logit - q->max) * g->inv_t;
    block b = { .label = { 0.0f } };
    for (int k = 0; k < terms->count; k++) {
        g->stats[k] = (kd_row_stats){ .option = j->term[k].option,
                                      .option2 = j->term[k].option2,
                                      .inv_t = g->inv_t,
                                      .lse = q->max * g->inv_t + q->log_sum };
        if (g->label < 0) continue;
        g->stats[k].log_q_label = x == -INFINITY ? q->floor : x - q->log_sum;
        g->stats[k].label_live = x == -INFINITY ? 0.0f : 1.0f;
    }
    for (int64_t first = 0; g->dense && first < classes; first += BLOCK) {
        fill_tail(&b, g, row, first, classes);
        add_sums(sums, &b, g, j, g->dense);
    }
    for (int64_t first = 0; first < j->width; first += BLOCK) {
        add_sums(sums, &s->b[first / BLOCK], g, j, g->tail);
        hide_tail(&b, s, first);
        add_sums(sums, &b, g, j, g->dense);
    }
    for (int k = 0; k < terms->count; k++) {
        g->stats[k].a = (float)sums[k][0];
        g->stats[k].b = (float)sums[k][1];
        if (j->args->mode == KD_TOPK_SAMPLED && teaches(j->args, k)) g->stats[k].b += g->lack;
    }
}

/* As group_gradient of row_loss.c, for the tail; adds those of the known classes to s->gradient. */
static void find_gradient(const group *g, support *s, const job *j, kd_row row, float weight,
                          const float *before, float *after)
{
    const int64_t classes = j->args->classes;
    block b = { .label = { 0.0f } };
    alignas(64) float out[BLOCK];
    for (int64_t first = 0; first < j->width; first += BLOCK) {
        add_gradient(s->gradient + first, &s->b[first / BLOCK], g, j, g->tail, weight);
        hide_tail(&b, s, first);
        add_gradient(s->gradient + first, &b, g, j, g->dense, weight);
    }
    /* The slot after the known classes has the tail's, which is this group's alone. */
    const float of_tail = s->gradient[s->count] * g->tail_inv_sum;
    s->gradient[s->count] = 0.0f;
    for (int64_t first = 0; first < classes; first += BLOCK) {
        fill_tail(&b, g, row, first, classes);
        if (before)
            memcpy(out, before + first, sizeof out);
        else
            memset(out, 0, sizeof out);
        add_gradient(out, &b, g, j, g->dense, weight);
        for (int i = 0; g->tail && i < BLOCK; i++)
            out[i] += b.live[i] == 0.0f ? 0.0f : of_tail * g->exp[first + i];
        if (after)
            memcpy(after + first, out, sizeof out);
        else
            store_block(row, first, classes, out);
    }
}

static void open_group(group *g, support *s, const job *j, int64_t n, int k)
{
    const kd_row_terms *terms = j->args->terms;
    const float temperature = j->term[k].temperature;
    const bool bucket = j->args->mode == KD_TOPK_TAIL;
    bool teacher = false;
    g->inv_t = 1.0f / temperature;
    g->dense = g->tail = 0;
    for (int i = k; i < terms->count; i++) {
        if (j->term[i].temperature != temperature) continue;
        unsigned *members = bucket && teaches(j->args, i) ? &g->tail : &g->dense;
        *members |= 1u << i;
        teacher |= teaches(j->args, i);
    }
    g->p = 0.0f;
    g->log_p = KD_ROW_LOG_FLOOR;
    if (!teacher) {
        for (int64_t i = 0; i < s->count; i++) set_teacher(s, i, KD_ROW_LOG_FLOOR, 0.0f);
        return;
    }
    switch (j->args->mode) {
    case KD_TOPK_TAIL: teach_tail(g, s, j, n); break;
    case KD_TOPK_RENORMALISED: teach_renormalised(g, s, j->args->capture * g->inv_t); break;
    default: teach_sampled(g, s);
    }
}

/* ---- a row ------------------------------------------------------------------------------------ */

/* The student's first largest class. */
static int64_t student_top(const support *s, kd_row row, int64_t classes, float tail_max)
{
    const float known = largest(s->z, s->count);
    const int64_t top = known >= tail_max ? first_largest(s, s->z) : -1;
    if (known > tail_max || tail_max == -INFINITY) return top;
    const int64_t first = first_equal(row, classes, tail_max);
    return top >= 0 && top < first ? top : first;
}

static void run_row(const job *j, int64_t n, int64_t label, float weight, support *s,
                    float *scratch)
{
    const kd_row_loss_topk_args *args = j->args;
    const int count = args->terms->count;
    const kd_row row = kd_row_of(args->student, n);
    const float label_logit = label >= 0 ? element(row, label) : 0.0f;
    group g = { .label = label, .exp = scratch };
    gather(s, j, row, n);
    g.tail_max = row_max(row, args->classes);
    g.top = first_largest(s, s->log_p);
    set_same_top(args->same_top, n,
                 g.top >= 0 && g.top == student_top(s, row, args->classes, g.tail_max));

    float *const carried = scratch + j->columns;
    unsigned done = 0;
    for (int k = 0; k < count; k++) {
        if (done >> k & 1u) continue;
        const bool first = done == 0;
        open_group(&g, s, j, n, k);
        done |= g.dense | g.tail;
        find_student(&g, s, row, args->classes);
        fill_support(s, &g, j);
        find_stats(&g, s, j, row, label_logit);
        for (int i = 0; i < count; i++)
            if ((g.dense | g.tail) >> i & 1u)
                set_loss(args->loss, i, n,
                         weight * j->term[i].t_squared *
                             kd_row_functions_of[args->terms->kind[i]].value(g.stats[i]));
        find_gradient(&g, s, j, row, weight, first ? NULL : carried,
                      done + 1u == 1u << count ? NULL : carried);
    }
    zero_columns(row, args->classes, args->student->shape[1]);
    for (int64_t i = 0; i < s->count; i++) set_element(row, s->id[i], s->gradient[i]);
}

/* ---- the op ----------------------------------------------------------------------------------- */

/* What row_loss would be given: the student stands for a teacher that is there. */
static kd_row_loss_args dense_args(const kd_row_loss_topk_args *args)
{
    return (kd_row_loss_args){ .student = args->student,
                               .loss = args->loss,
                               .same_top = args->same_top,
                               .teacher = args->student,
                               .labels = args->labels,
                               .weight = args->weight,
                               .scalars = args->scalars,
                               .terms = args->terms,
                               .classes = args->classes };
}

kd_status kd_row_loss_topk_check(const kd_row_loss_topk_args *args)
{
    const kd_row_loss_args dense = dense_args(args);
    const bool sampled = args->mode == KD_TOPK_SAMPLED;
    KD_TRY(kd_row_loss_check(&dense));
    const int64_t rows = args->student->shape[0];
    KD_TRY(kd_tensor_expect(args->teacher_ids, "teacher_ids", KD_I32, KD_SHAPE(rows, -1)));
    const int64_t k = args->teacher_ids->shape[1];
    if (args->teacher_ids->stride[1] != 1 && k > 1)
        return kd_fail(KD_EINVAL, "teacher_ids: rows have a stride of %lld, expected 1",
                       (long long)args->teacher_ids->stride[1]);
    if (k < 1 || (k > args->classes && !sampled))
        return kd_fail(KD_EINVAL,
                       "teacher_ids has %lld columns for %lld classes, expected 1 to %lld",
                       (long long)k, (long long)args->classes, (long long)args->classes);
    KD_TRY(kd_tensor_expect(args->teacher_log_p, "teacher_log_p", -1, KD_SHAPE(rows, k)));
    KD_TRY(kd_expect_rows(args->teacher_log_p, "teacher_log_p"));
    if ((unsigned)args->mode >= KD_TOPK_COUNT)
        return kd_fail(KD_EINVAL, "unknown mode %d of a top-k teacher", (int)args->mode);
    if (!(args->capture > 0.0f) || args->capture == INFINITY)
        return kd_fail(KD_EINVAL, "the teacher's temperature is %g, expected above 0",
                       (double)args->capture);
    if (sampled)
        KD_TRY(kd_expect_rows_of(args->teacher_sampling, "teacher_sampling", KD_F32,
                                 KD_SHAPE(rows, k)));
    if (kd_present(args->teacher_tail))
        KD_TRY(kd_tensor_expect(args->teacher_tail, "teacher_tail", KD_F32, KD_SHAPE(rows)));
    for (int i = 0; i < args->terms->count; i++) {
        const kd_row_kind kind = args->terms->kind[i];
        const kd_row_type *type = &kd_row_types[kind];
        if (type->extra == KD_EXTRA_REST || type->extra == KD_EXTRA_LOGITS)
            return kd_fail(KD_EINVAL, "%s needs the teacher's logits of all classes", type->name);
        if (sampled && type->teacher && kind != KD_ROW_forward_kl &&
            kind != KD_ROW_soft_cross_entropy)
            return kd_fail(KD_EINVAL,
                           "%s of sampled classes would be biased; forward_kl and "
                           "soft_cross_entropy are not",
                           type->name);
    }
    return KD_OK;
}

static kd_status check_row(const kd_row_loss_topk_args *args, int64_t n)
{
    const bool sampled = args->mode == KD_TOPK_SAMPLED;
    const int32_t *ids = ids_of(args, n);
    uint64_t seen[64] = { 0 }; /* bit: an id of that remainder, so that few are looked for */
    for (int64_t i = 0; i < args->teacher_ids->shape[1]; i++) {
        if (ids[i] < -1 || ids[i] >= args->classes)
            return kd_fail(KD_EINVAL, "row %lld: id %lld, expected -1 or 0 to %lld of %lld classes",
                           (long long)n, (long long)ids[i], (long long)args->classes - 1,
                           (long long)args->classes);
        if (ids[i] < 0) continue;
        uint64_t *word = &seen[ids[i] / 64 % 64];
        const uint64_t bit = UINT64_C(1) << ids[i] % 64;
        const bool perhaps = *word & bit;
        *word |= bit;
        if (!sampled && perhaps && find_id(ids, i, ids[i]) >= 0)
            return kd_fail(KD_EINVAL, "row %lld: id %lld is there twice", (long long)n,
                           (long long)ids[i]);
        if (!sampled) continue;
        const float r = element(kd_row_of(args->teacher_sampling, n), i);
        if (!(r > 0.0f) || r == INFINITY)
            return kd_fail(KD_EINVAL, "row %lld: id %lld drawn with probability %g", (long long)n,
                           (long long)ids[i], (double)r);
    }
    return KD_OK;
}

kd_status kd_row_loss_topk_check_values(const kd_row_loss_topk_args *args)
{
    const kd_row_loss_args dense = dense_args(args);
    const kd_term_scalars *term =
        ((const kd_step_scalars *)args->scalars->data)->term + args->terms->first;
    KD_TRY(kd_row_loss_check_values(&dense));
    for (int k = 0; k < args->terms->count; k++)
        if (args->mode != KD_TOPK_RENORMALISED && teaches(args, k) &&
            term[k].temperature != args->capture)
            return kd_fail(KD_EINVAL,
                           "%s: temperature %g, but the teacher's masses are of %g: record them at "
                           "that temperature, or use renormalised",
                           kd_row_types[args->terms->kind[k]].name, (double)term[k].temperature,
                           (double)args->capture);
    for (int64_t n = 0; n < args->student->shape[0]; n++)
        if (!ignored(args->labels, args->weight, n)) KD_TRY(check_row(args, n));
    return KD_OK;
}

kd_status kd_row_loss_topk_cpu(kd_exec *exec, const kd_row_loss_topk_args *args)
{
    const kd_row_terms *terms = args->terms;
    job j = { .args = args, .columns = kd_ceil_div(args->classes, BLOCK) * BLOCK };
    j.width = kd_ceil_div(args->teacher_ids->shape[1] + 1, BLOCK) * BLOCK;
    const int threads = omp_get_max_threads();
    const int64_t wide = (terms->count > 1 ? 2 : 1) * j.columns;
    const int64_t blocks = j.width / BLOCK * (int64_t)(sizeof(block) / sizeof(float));
    kd_tensor scratch;
    KD_TRY(kd_push(&scratch, exec, "row_loss_topk.scratch", KD_F32,
                   KD_SHAPE(threads, wide + blocks + 5 * j.width)));
    if (kd_planning(exec)) return KD_OK;

    j.term = ((const kd_step_scalars *)args->scalars->data)->term + args->terms->first;
    KD_TRY(kd_row_loss_topk_check_values(args));
    const int64_t rows = args->student->shape[0];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        float *own = (float *)scratch.data + omp_get_thread_num() * scratch.stride[0];
        float *list = own + wide + blocks;
        support s = { .z = list,
                      .log_p = list + j.width,
                      .mass = list + 2 * j.width,
                      .gradient = list + 3 * j.width,
                      .id = (int32_t *)(list + 4 * j.width),
                      .b = (block *)(own + wide) };
        if (ignored(args->labels, args->weight, n)) {
            for (int k = 0; k < terms->count; k++) set_loss(args->loss, k, n, 0.0f);
            set_same_top(args->same_top, n, false);
            zero_columns(kd_row_of(args->student, n), 0, args->student->shape[1]);
        } else {
            run_row(&j, n, label_of(args->labels, n), weight_of(args->weight, n), &s, own);
        }
    }
    return KD_OK;
}
