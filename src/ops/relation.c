/*
 * How the rows of a document relate to each other, of a student against its teacher: attention maps
 * (a, b: queries and keys) and MiniLM's relations (a = b: queries, keys or values).  One pass over tiles
 * of 64 queries by 64 keys, no [N, N] anywhere: with the log-sum-exp of every row known beforehand, each
 * score is final when it is computed.
 *
 * Of head h, query i and the keys j that i sees (attention.c; n_i of them):
 *
 *     s = cap(scale a_i b_j) / T, t alike of the teacher
 *     KL   p = e^(t - lse_t), q = e^(s - lse_s)   value_i = sum_j p (log p - log q)   ds = q - p
 *     MSE  t, s become 0 where <= floor           value_i = sum_j (s - t)^2 / n_i     ds = 2 (s - t) / n_i
 *
 *     loss_i = weight_i f 1/R sum_h value_i       f = T^2 or 1
 *     g_ij = scale[0] weight_i f / (R T) ds cap' scale
 *     da_i += sum_j g_ij b_j                      db_j += sum_i g_ij a_i
 *
 * With b = a and one tensor for both gradients that is (g + g') a.  A score that counted as 0 has no
 * gradient.  A row that sees no key, or of weight 0, has loss 0 and adds nothing, whatever its scores.
 * p log p is 0 where p is.
 *
 * Order of work: a task is one head of one document, tiles of keys outside, of queries inside; sums of
 * f32 per head lie in scratch until the heads of a group are added in ascending order.  So bits do not
 * depend on threads, and da may be db.
 */
#include "ops/attention_tiles.h"

#include <omp.h>

/* Sums in f32; absent where nobody wants the gradient. */
typedef struct sums {
    kd_tensor da, db; /* [R, N, d], per head of a */
    kd_tensor value;  /* [R, N] */
} sums;

typedef struct job {
    const kd_relation_args *args;
    problem student, teacher; /* q: a, k: b */
    sums to;
} job;

typedef struct relation_tiles {
    float *a, *b, *turned_b, *other, *turned_other, *da, *db; /* [TILE, ld] or [d, TILE] */
    float *s, *t;                                             /* [TILE, TILE] */
} relation_tiles;

/* What a query row's scores need. */
typedef struct row_terms {
    float lse, teacher_lse, inverse_t;
    float factor; /* of ds: all of g but the score's scale */
    float share;  /* MSE: 1 / n_i */
} row_terms;

static float *sums_row(const kd_tensor *t, int64_t head, int64_t row)
{
    return (float *)t->data + head * t->stride[0] + row * t->stride[1];
}

static float weight_of(const kd_tensor *weight, int64_t row)
{
    return kd_present(weight) ? ((const float *)weight->data)[row] : 1;
}

static float loss_factor(const kd_relation *r)
{
    return r->t_squared ? r->temperature * r->temperature : 1;
}

/* ---- rows of scores --------------------------------------------------------------------------- */

/* cap' of a capped score */
static inline float slope_of(float s, float inverse_cap)
{
    const float x = s * inverse_cap;
    return 1 - x * x;
}

static float inverse_or_zero(float x) { return x > 0 ? 1 / x : 0; }

/* s becomes ds times the factor, t what it adds to the value; both zero where hidden. */
static void diverge_row(float *s, float *t, span panels, span seen, const row_terms *of,
                        const kd_relation *r)
{
    const float cap = inverse_or_zero(r->student.softcap);
    const int first = (int)seen.begin, end = (int)seen.end; /* as wide as what they select */
    for (int j = (int)panels.begin; j < panels.end; j++) {
        const bool hidden = j < first || j >= end;
        const float log_q = s[j] * of->inverse_t - of->lse;
        const float log_p = t[j] * of->inverse_t - of->teacher_lse;
        const float q = kd_vexpf(log_q), p = kd_vexpf(log_p);
        const float value = p * (log_p - log_q), d = (q - p) * slope_of(s[j], cap) * of->factor;
        t[j] = hidden || p == 0 ? 0 : value;
        s[j] = hidden ? 0 : d;
    }
}

static void difference_row(float *s, float *t, span panels, span seen, const row_terms *of,
                           const kd_relation *r)
{
    const float cap = inverse_or_zero(r->student.softcap);
    const float low = r->floor < 0 ? r->floor : -INFINITY;
    const int first = (int)seen.begin, end = (int)seen.end;
    for (int j = (int)panels.begin; j < panels.end; j++) {
        const bool hidden = j < first || j >= end;
        const float x = s[j] * of->inverse_t, y = t[j] * of->inverse_t;
        const bool none = x <= low; /* false of NaN, which shall be seen */
        const float difference = (none ? 0 : x) - (y <= low ? 0 : y);
        const float d = 2 * difference * of->share * slope_of(s[j], cap) * of->factor;
        t[j] = hidden ? 0 : difference * difference * of->share;
        s[j] = hidden || none ? 0 : d;
    }
}

static float panel_sum(const float *t, span panels)
{
    vec sum = { 0 };
    for (int64_t j = panels.begin; j < panels.end; j += LANES) sum += *(const vec *)(t + j);
    return sum_of((float *)&sum);
}

static row_terms terms_of(const job *k, const document *t, int64_t head, int64_t i)
{
    const kd_relation_args *args = k->args;
    const kd_relation *r = &args->relation;
    const int64_t row = t->q0 + i;
    const float inverse_t = 1 / r->temperature;
    const float scale = kd_present(args->scale) ? *(const float *)args->scale->data : 0;
    row_terms of = { .inverse_t = inverse_t,
                     .factor = scale * weight_of(args->weight, row) * loss_factor(r) * inverse_t /
                               (float)k->student.heads };
    if (r->kind == KD_RELATION_KL) {
        const float lse = *sums_row(args->lse, head, row);
        const float teacher_lse = *sums_row(args->teacher_lse, head, row);
        of.lse = lse == -INFINITY ? 0 : lse;
        of.teacher_lse = teacher_lse == -INFINITY ? 0 : teacher_lse;
    } else {
        const span seen = keys_of(&k->student, t, i, i);
        of.share = 1 / (float)(r->pairs > 0 ? r->pairs : kd_max_i64(seen.end - seen.begin, 1));
    }
    return of;
}

/* ---- tiles ------------------------------------------------------------------------------------ */

/* Of queries [i0, i0 + rows) and the tile of keys at j0: w->s gets ds, and the values are added to the
 * rows'. */
static void relate_tile(relation_tiles *w, const job *k, const document *t, int64_t head,
                        int64_t i0, int64_t rows, int64_t j0)
{
    const problem *p = &k->student, *of_teacher = &k->teacher;
    const kd_relation *r = &k->args->relation;
    memset(w->s, 0, TILE * TILE * sizeof *w->s);
    for (int64_t first = 0; first < rows; first += ROWS) {
        const int64_t last = kd_min_i64(first + ROWS, rows) - 1;
        const span seen = within_tile(keys_of(p, t, i0 + first, i0 + last), j0);
        if (seen.end <= seen.begin) continue;
        const span panels = whole_panels(seen);
        float *s = w->s + first * TILE, *other = w->t + first * TILE;
        strip_product(s, TILE, (side){ w->a + first * p->ld, p->ld, 1 }, w->turned_b, TILE,
                      panels.begin, panels.end, 0, p->d, false);
        strip_product(other, TILE, (side){ w->other + first * of_teacher->ld, of_teacher->ld, 1 },
                      w->turned_other, TILE, panels.begin, panels.end, 0, of_teacher->d, false);
        for (int64_t i = first; i < first + ROWS; i++, s += TILE, other += TILE) {
            /* Rows past the last query and of weight 0 see nothing, so they add nothing below. */
            const int64_t row = t->q0 + i0 + i;
            span own = { 0, 0 };
            if (i <= last && weight_of(k->args->weight, row) != 0)
                own = within_tile(keys_of(p, t, i0 + i, i0 + i), j0);
            if (p->softcap > 0) cap_row(s, panels, p->softcap);
            if (of_teacher->softcap > 0) cap_row(other, panels, of_teacher->softcap);
            const row_terms of = terms_of(k, t, head, i0 + kd_min_i64(i, last));
            if (r->kind == KD_RELATION_KL)
                diverge_row(s, other, panels, own, &of, r);
            else
                difference_row(s, other, panels, own, &of, r);
            if (i <= last) *sums_row(&k->to.value, head, row) += panel_sum(other, panels);
        }
    }
}

/* db += ds' a of the tile, and da += ds b of its queries. */
static void relate_products(relation_tiles *w, const job *k, const document *t, int64_t head,
                            int64_t i0, int64_t rows, int64_t j0, int64_t keys)
{
    const problem *p = &k->student;
    for (int64_t r = 0; r < keys && kd_present(&k->to.db); r += ROWS) {
        const int64_t last = kd_min_i64(r + ROWS, keys) - 1;
        const span seen = within_tile(queries_of(p, t, j0 + r, j0 + last), i0);
        if (seen.end <= seen.begin) continue;
        strip_product(w->db + r * p->ld, p->ld, (side){ w->s + r, 1, TILE }, w->a, p->ld, 0, p->ld,
                      seen.begin, seen.end, true);
    }
    for (int64_t r = 0; r < rows && kd_present(&k->to.da); r += ROWS) {
        const int64_t last = kd_min_i64(r + ROWS, rows) - 1;
        const span seen = within_tile(keys_of(p, t, i0 + r, i0 + last), j0);
        strip_product(w->da, p->ld, (side){ w->s + r * TILE, TILE, 1 }, w->b, p->ld, 0, p->ld,
                      seen.begin, seen.end, false);
        for (int64_t i = r; i <= last; i++) {
            float *da = sums_row(&k->to.da, head, t->q0 + i0 + i);
            for (int64_t c = 0; c < p->d; c++) da[c] += w->da[(i - r) * p->ld + c];
        }
    }
}

/* The tile of keys at j0 against every query that sees one of them. */
static void relate_keys(relation_tiles *w, const job *k, const document *t, int64_t head,
                        int64_t j0)
{
    const problem *p = &k->student, *of_teacher = &k->teacher;
    const int64_t keys = kd_min_i64(TILE, t->tk - j0);
    load_tile(w->other, of_teacher, of_teacher->k, t->k0 + j0, head / of_teacher->group, keys, 1);
    transpose_tile(w->turned_other, w->other, of_teacher);
    load_tile(w->b, p, p->k, t->k0 + j0, head / p->group, keys, 1);
    transpose_tile(w->turned_b, w->b, p);
    memset(w->db, 0, (size_t)(TILE * p->ld) * sizeof *w->db);
    const span seen = queries_of(p, t, j0, j0 + keys - 1);
    for (int64_t i0 = seen.begin / TILE * TILE; i0 < seen.end; i0 += TILE) {
        const int64_t rows = kd_min_i64(TILE, t->tq - i0);
        load_tile(w->a, p, p->q, t->q0 + i0, head, rows, p->scale);
        load_tile(w->other, of_teacher, of_teacher->q, t->q0 + i0, head, rows, of_teacher->scale);
        relate_tile(w, k, t, head, i0, rows, j0);
        relate_products(w, k, t, head, i0, rows, j0, keys);
    }
    for (int64_t i = 0; i < keys && kd_present(&k->to.db); i++)
        memcpy(sums_row(&k->to.db, head, t->k0 + j0 + i), w->db + i * p->ld,
               (size_t)p->d * sizeof(float));
}

/* ---- results ---------------------------------------------------------------------------------- */

/* out[row, g] += factor * sum of the group's heads in ascending order; nothing in rows of no document. */
static void add_heads(const kd_tensor *out, const kd_tensor *heads, const problem *p, int64_t group,
                      float factor)
{
    const int64_t d = out->shape[2], end = p->cu_q[p->documents];
#pragma omp parallel for schedule(static)
    for (int64_t row = p->cu_q[0]; row < end; row++)
        for (int64_t g = 0; g < out->shape[1]; g++) {
            float sum[MAX_HEAD] = { 0 };
            for (int64_t h = g * group; h < (g + 1) * group; h++) {
                const float *from = sums_row(heads, h, row);
                for (int64_t j = 0; j < d; j++) sum[j] += from[j];
            }
            if (out->dtype == KD_F32) {
                float *to = row_of(out, row, g);
                for (int64_t j = 0; j < d; j++) to[j] += sum[j] * factor;
            } else {
                uint16_t *to = row_of(out, row, g);
                for (int64_t j = 0; j < d; j++)
                    to[j] = kd_f32_to_bf16(kd_bf16_to_f32(to[j]) + sum[j] * factor);
            }
        }
}

static void write_losses(const job *k)
{
    const kd_relation_args *args = k->args;
    float *loss = args->loss->data;
    const float mean = loss_factor(&args->relation) / (float)k->student.heads;
    for (int64_t row = 0; row < args->a->shape[0]; row++) {
        float sum = 0;
        for (int64_t h = 0; h < k->student.heads; h++) sum += *sums_row(&k->to.value, h, row);
        loss[row] = weight_of(args->weight, row) * mean * sum;
    }
}

/* ---- checks ----------------------------------------------------------------------------------- */

static kd_status check_pair(const kd_tensor *a, const char *a_name, const kd_tensor *b,
                            const char *b_name)
{
    KD_TRY(kd_expect_rows(a, a_name));
    KD_TRY(kd_tensor_expect(a, a_name, -1, KD_SHAPE(-1, -1, -1)));
    KD_TRY(kd_expect_rows(b, b_name));
    KD_TRY(kd_tensor_expect(b, b_name, (int)a->dtype, KD_SHAPE(a->shape[0], -1, a->shape[2])));
    if (b->shape[1] < 1 || a->shape[1] % b->shape[1] != 0)
        return kd_fail(KD_EINVAL, "%s has %lld heads, no multiple of the %lld of %s", a_name,
                       (long long)a->shape[1], (long long)b->shape[1], b_name);
    if (a->shape[2] < 1 || a->shape[2] > MAX_HEAD)
        return kd_fail(KD_ENOTSUP, "%s has heads of %lld elements, expected 1 to %d: more heads",
                       a_name, (long long)a->shape[2], MAX_HEAD);
    return KD_OK;
}

static kd_status check_documents(const kd_tensor *cu)
{
    if (!kd_present(cu) || kd_tensor_elements(cu) < 1)
        return kd_fail(KD_EINVAL, "cu: absent or empty, expected offsets of documents");
    return kd_expect_list(cu, "cu", KD_I32, kd_tensor_elements(cu));
}

static kd_status check_temperature(float temperature)
{
    if (temperature > 0 && temperature < INFINITY) return KD_OK;
    return kd_fail(KD_EINVAL, "temperature %g, expected above 0", (double)temperature);
}

kd_status kd_relation_lse_check(const kd_relation_lse_args *args)
{
    KD_TRY(check_pair(args->a, "a", args->b, "b"));
    KD_TRY(
        kd_tensor_expect(args->lse, "lse", KD_F32, KD_SHAPE(args->a->shape[1], args->a->shape[0])));
    KD_TRY(check_temperature(args->temperature));
    return check_documents(args->cu);
}

kd_status kd_relation_check(const kd_relation_args *args)
{
    const bool trains = kd_present(args->da) || kd_present(args->db);
    KD_TRY(check_pair(args->a, "a", args->b, "b"));
    const int64_t rows = args->a->shape[0], heads = args->a->shape[1];
    KD_TRY(check_pair(args->teacher_a, "teacher_a", args->teacher_b, "teacher_b"));
    KD_TRY(kd_tensor_expect(args->teacher_a, "teacher_a", -1, KD_SHAPE(rows, heads, -1)));
    KD_TRY(kd_expect_list(args->loss, "loss", KD_F32, rows));
    if (kd_present(args->da)) KD_TRY(check_like(args->da, "da", args->a));
    if (kd_present(args->db)) KD_TRY(check_like(args->db, "db", args->b));
    if (trains) KD_TRY(kd_expect_list(args->scale, "scale", KD_F32, 1));
    if (kd_present(args->weight)) KD_TRY(kd_expect_list(args->weight, "weight", KD_F32, rows));
    if (args->relation.kind == KD_RELATION_KL) {
        KD_TRY(kd_tensor_expect(args->lse, "lse", KD_F32, KD_SHAPE(heads, rows)));
        KD_TRY(kd_tensor_expect(args->teacher_lse, "teacher_lse", KD_F32, KD_SHAPE(heads, rows)));
    } else if (args->relation.kind != KD_RELATION_MSE) {
        return kd_fail(KD_EINVAL, "relation %d, expected 0 to %d", (int)args->relation.kind,
                       KD_RELATION_COUNT - 1);
    }
    KD_TRY(check_temperature(args->relation.temperature));
    return check_documents(args->cu);
}

/* ---- the ops ---------------------------------------------------------------------------------- */

/* Queries [i0, i0 + rows) of a head: `tiles` holds [TILE, ld] of a and b, [d, TILE] of b', [TILE, TILE]. */
static void lse_task(float *tiles, const problem *p, const document *t, int64_t head, int64_t i0,
                     const kd_relation_lse_args *args)
{
    const int64_t rows = kd_min_i64(TILE, t->tq - i0), wide = TILE * p->ld;
    float *a = take(&tiles, wide), *b = take(&tiles, wide), *turned = take(&tiles, wide);
    float m[TILE], l[TILE];
    const span seen = keys_of(p, t, i0, i0 + rows - 1);
    load_tile(a, p, p->q, t->q0 + i0, head, rows, p->scale);
    for (int64_t i = 0; i < TILE; i++) m[i] = -INFINITY, l[i] = 0;
    for (int64_t j0 = seen.begin / TILE * TILE; j0 < seen.end; j0 += TILE) {
        load_tile(b, p, p->k, t->k0 + j0, head / p->group, kd_min_i64(TILE, t->tk - j0), 1);
        transpose_tile(turned, b, p);
        for (int64_t r = 0; r < rows; r += ROWS) {
            const int64_t last = kd_min_i64(r + ROWS, rows) - 1;
            const span some = within_tile(keys_of(p, t, i0 + r, i0 + last), j0);
            if (some.end <= some.begin) continue;
            const span panels = whole_panels(some);
            strip_product(tiles, TILE, (side){ a + r * p->ld, p->ld, 1 }, turned, TILE,
                          panels.begin, panels.end, 0, p->d, false);
            for (int64_t i = r; i <= last; i++) {
                const span row = within_tile(keys_of(p, t, i0 + i, i0 + i), j0);
                float *s = tiles + (i - r) * TILE;
                if (row.end <= row.begin) continue;
                if (p->softcap > 0) cap_row(s, panels, p->softcap);
                for (int64_t j = panels.begin; j < panels.end; j++) s[j] /= args->temperature;
                soften_row(s, panels, row, &m[i], &l[i], NULL, 0);
            }
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        float *lse = (float *)args->lse->data + head * args->lse->stride[0];
        lse[(t->q0 + i0 + i) * args->lse->stride[1]] = l[i] == 0 ? -INFINITY : m[i] + logf(l[i]);
    }
}

kd_status kd_relation_lse_cpu(kd_exec *exec, const kd_relation_lse_args *args)
{
    problem p = {
        .q = args->a, .k = args->b, .scale = args->scores.scale, .softcap = args->scores.softcap
    };
    KD_TRY(kd_attention_problem(&p, exec, args->cu, args->cu));
    set_window(&p, args->causal, args->window);
    kd_tensor scratch;
    KD_TRY(kd_push(&scratch, exec, "relation.tiles", KD_F32,
                   KD_SHAPE(omp_get_max_threads(), 3 * TILE * p.ld + ROWS * TILE)));
    if (kd_planning(exec)) return KD_OK;
    clear_stranger_lse(args->lse, p.cu_q, p.documents);
    const int64_t blocks = blocks_of(&p);
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < blocks * p.heads; task++) {
        document t;
        int64_t i0;
        if (find_block(&t, &i0, &p, task / p.heads))
            lse_task((float *)scratch.data + omp_get_thread_num() * scratch.stride[0], &p, &t,
                     task % p.heads, i0, args);
    }
    return KD_OK;
}

static kd_status relation_scratch(kd_tensor *tiles, job *k, kd_exec *exec)
{
    const problem *p = &k->student;
    const int64_t rows = p->q->shape[0];
    KD_TRY(kd_push(&k->to.value, exec, "relation.value", KD_F32, KD_SHAPE(p->heads, rows)));
    if (kd_present(k->args->da))
        KD_TRY(kd_push(&k->to.da, exec, "relation.da", KD_F32, KD_SHAPE(p->heads, rows, p->d)));
    if (kd_present(k->args->db))
        KD_TRY(kd_push(&k->to.db, exec, "relation.db", KD_F32, KD_SHAPE(p->heads, rows, p->d)));
    return kd_push(
        tiles, exec, "relation.tiles", KD_F32,
        KD_SHAPE(omp_get_max_threads(), TILE * (5 * p->ld + 2 * k->teacher.ld + 2 * TILE)));
}

static void relate_all(const job *k, const kd_tensor *tiles)
{
    const problem *p = &k->student;
    const int64_t wide = TILE * p->ld, teacher_wide = TILE * k->teacher.ld;
#pragma omp parallel
    {
        float *at = (float *)tiles->data + omp_get_thread_num() * tiles->stride[0];
        relation_tiles w = { .a = take(&at, wide),
                             .b = take(&at, wide),
                             .turned_b = take(&at, wide),
                             .da = take(&at, wide),
                             .db = take(&at, wide),
                             .other = take(&at, teacher_wide),
                             .turned_other = take(&at, teacher_wide),
                             .s = take(&at, TILE * TILE),
                             .t = at };
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < p->documents * p->heads; task++) {
            const document t = document_of(p, task / p->heads);
            const int64_t head = task % p->heads;
            for (int64_t j0 = 0; j0 < t.tk; j0 += TILE) relate_keys(&w, k, &t, head, j0);
        }
    }
}

kd_status kd_relation_cpu(kd_exec *exec, const kd_relation_args *args)
{
    const kd_relation *r = &args->relation;
    job k = { .args = args,
              .student = { .q = args->a,
                           .k = args->b,
                           .scale = r->student.scale,
                           .softcap = r->student.softcap },
              .teacher = { .q = args->teacher_a,
                           .k = args->teacher_b,
                           .scale = r->teacher.scale,
                           .softcap = r->teacher.softcap } };
    kd_tensor tiles;
    KD_TRY(kd_attention_problem(&k.student, exec, args->cu, args->cu));
    KD_TRY(kd_attention_problem(&k.teacher, exec, args->cu, args->cu));
    set_window(&k.student, r->causal, r->window);
    KD_TRY(relation_scratch(&tiles, &k, exec));
    if (kd_planning(exec)) return KD_OK;

    memset(k.to.value.data, 0, kd_tensor_bytes(&k.to.value));
    if (kd_present(&k.to.da)) memset(k.to.da.data, 0, kd_tensor_bytes(&k.to.da));
    relate_all(&k, &tiles);
    write_losses(&k);
    if (kd_present(args->da)) add_heads(args->da, &k.to.da, &k.student, 1, k.student.scale);
    if (kd_present(args->db)) add_heads(args->db, &k.to.db, &k.student, k.student.group, 1);
    return KD_OK;
}
