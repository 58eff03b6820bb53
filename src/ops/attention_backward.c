/*
 * The gradient of attention.c, where the mathematics stands.
 *
 * A task is one head of one document: tiles of keys outside, of queries inside, so dk and dv of a
 * tile stay in cache and dq is added to in ascending order of keys.  Sums of f32 per query head lie
 * in scratch until the heads of a group are added.
 */
#include "ops/attention_tiles.h"

#include <omp.h>

/* ---- backward --------------------------------------------------------------------------------- */

typedef struct backward_tiles {
    float *q, *dout, *k, *v, *turned_k, *turned_v, *dq, *dk, *dv; /* [TILE, ld] or [d, TILE] */
    float *s, *ds;                                                /* [TILE, TILE] */
} backward_tiles;

/* Sums in f32: dq [H, Nq, d]; dk, dv [H, Nk, d], per query head; delta = sum_d dout o [H, Nq]. */
typedef struct sums {
    kd_tensor dq, dk, dv, delta;
} sums;

static float *sums_row(const kd_tensor *t, int64_t head, int64_t row)
{
    return (float *)t->data + head * t->stride[0] + row * t->stride[1];
}

/* s: scores to weights; ds: d weights to d scores.  Both zero where hidden. */
static void gradient_row(float *s, float *ds, span panels, span seen, float lse, float delta,
                         float softcap)
{
    const float base = lse == -INFINITY ? 0 : lse;
    const float inverse = softcap > 0 ? 1 / softcap : 0;
    const int first = (int)seen.begin, end = (int)seen.end; /* as wide as what they select */
    for (int j = (int)panels.begin; j < panels.end; j++) {
        const float capped = softcap > 0 ? s[j] * inverse : 0; /* not -inf times 0 */
        const bool hidden = j < first || j >= end;
        const float p = kd_vexpf(s[j] - base);
        const float d = p * (ds[j] - delta) * (1 - capped * capped);
        s[j] = hidden ? 0 : p;
        ds[j] = hidden ? 0 : d;
    }
}

/* Weights and d scores of queries [i0, i0 + rows) and the tile of keys at j0. */
static void backward_scores(backward_tiles *w, const problem *p, const document *t,
                            const kd_tensor *lse, const float *delta, int64_t head, int64_t i0,
                            int64_t rows, int64_t j0)
{
    memset(w->s, 0, TILE * TILE * sizeof *w->s);
    memset(w->ds, 0, TILE * TILE * sizeof *w->ds);
    const float *lse_row = (const float *)lse->data + head * lse->stride[0];
    for (int64_t r = 0; r < rows; r += ROWS) {
        const int64_t last = kd_min_i64(r + ROWS, rows) - 1;
        const span seen = within_tile(keys_of(p, t, i0 + r, i0 + last), j0);
        if (seen.end <= seen.begin) continue;
        const span panels = whole_panels(seen);
        strip_product(w->s + r * TILE, TILE, (side){ w->q + r * p->ld, p->ld, 1 }, w->turned_k,
                      TILE, panels.begin, panels.end, 0, p->d, false);
        strip_product(w->ds + r * TILE, TILE, (side){ w->dout + r * p->ld, p->ld, 1 }, w->turned_v,
                      TILE, panels.begin, panels.end, 0, p->d, false);
        for (int64_t i = r; i < r + ROWS; i++) {
            /* Rows past the last query see nothing, so they add nothing below. */
            span row = { 0, 0 };
            if (i <= last) row = within_tile(keys_of(p, t, i0 + i, i0 + i), j0);
            const int64_t at = i0 + kd_min_i64(i, last);
            if (p->softcap > 0) cap_row(w->s + i * TILE, panels, p->softcap);
            gradient_row(w->s + i * TILE, w->ds + i * TILE, panels, row,
                         lse_row[(t->q0 + at) * lse->stride[1]], delta[at], p->softcap);
        }
    }
}

/* dv += p' dout, dk += ds' q, dq = ds k of one pair of tiles. */
static void backward_products(backward_tiles *w, const problem *p, const document *t, int64_t i0,
                              int64_t rows, int64_t j0, int64_t keys)
{
    for (int64_t r = 0; r < keys; r += ROWS) {
        const int64_t last = kd_min_i64(r + ROWS, keys) - 1;
        const span seen = within_tile(queries_of(p, t, j0 + r, j0 + last), i0);
        if (seen.end <= seen.begin) continue;
        strip_product(w->dv + r * p->ld, p->ld, (side){ w->s + r, 1, TILE }, w->dout, p->ld, 0,
                      p->ld, seen.begin, seen.end, true);
        strip_product(w->dk + r * p->ld, p->ld, (side){ w->ds + r, 1, TILE }, w->q, p->ld, 0, p->ld,
                      seen.begin, seen.end, true);
    }
    for (int64_t r = 0; r < rows; r += ROWS) {
        const int64_t last = kd_min_i64(r + ROWS, rows) - 1;
        const span seen = within_tile(keys_of(p, t, i0 + r, i0 + last), j0);
        strip_product(w->dq + r * p->ld, p->ld, (side){ w->ds + r * TILE, TILE, 1 }, w->k, p->ld, 0,
                      p->ld, seen.begin, seen.end, false);
    }
}

/* The tile of keys at j0 against every query that sees one of them. */
static void backward_keys(backward_tiles *w, const problem *p, const document *t, int64_t head,
                          int64_t j0, const sums *to, const kd_attention_backward_args *args)
{
    const int64_t keys = kd_min_i64(TILE, t->tk - j0), group = head / p->group;
    const size_t tile_bytes = (size_t)(TILE * p->ld) * sizeof(float);
    load_tile(w->v, p, p->v, t->k0 + j0, group, keys, 1);
    transpose_tile(w->turned_v, w->v, p);
    load_tile(w->k, p, p->k, t->k0 + j0, group, keys, 1);
    transpose_tile(w->turned_k, w->k, p);
    memset(w->dk, 0, tile_bytes);
    memset(w->dv, 0, tile_bytes);
    const span seen = queries_of(p, t, j0, j0 + keys - 1);
    for (int64_t i0 = seen.begin / TILE * TILE; i0 < seen.end; i0 += TILE) {
        const int64_t rows = kd_min_i64(TILE, t->tq - i0);
        load_tile(w->q, p, p->q, t->q0 + i0, head, rows, p->scale);
        load_tile(w->dout, p, args->dout, t->q0 + i0, head, rows, 1);
        backward_scores(w, p, t, args->lse, sums_row(&to->delta, head, t->q0), head, i0, rows, j0);
        backward_products(w, p, t, i0, rows, j0, keys);
        for (int64_t i = 0; i < rows; i++) {
            float *dq = sums_row(&to->dq, head, t->q0 + i0 + i);
            for (int64_t j = 0; j < p->d; j++) dq[j] += w->dq[i * p->ld + j];
        }
    }
    for (int64_t i = 0; i < keys; i++) {
        memcpy(sums_row(&to->dk, head, t->k0 + j0 + i), w->dk + i * p->ld,
               (size_t)p->d * sizeof(float));
        memcpy(sums_row(&to->dv, head, t->k0 + j0 + i), w->dv + i * p->ld,
               (size_t)p->d * sizeof(float));
    }
}

static void backward_task(backward_tiles *w, const problem *p, const document *t, int64_t head,
                          const sums *to, const kd_attention_backward_args *args)
{
    for (int64_t i0 = 0; i0 < t->tq; i0 += TILE) {
        const int64_t rows = kd_min_i64(TILE, t->tq - i0);
        load_tile(w->q, p, args->o, t->q0 + i0, head, rows, 1);
        load_tile(w->dout, p, args->dout, t->q0 + i0, head, rows, 1);
        for (int64_t i = 0; i < rows; i++) {
            float lanes[LANES] = { 0 };
            for (int64_t j = 0; j < p->ld; j += LANES)
                for (int l = 0; l < LANES; l++)
                    lanes[l] += w->q[i * p->ld + j + l] * w->dout[i * p->ld + j + l];
            *sums_row(&to->delta, head, t->q0 + i0 + i) = sum_of(lanes);
            memset(sums_row(&to->dq, head, t->q0 + i0 + i), 0, (size_t)p->d * sizeof(float));
        }
    }
    for (int64_t j0 = 0; j0 < t->tk; j0 += TILE) backward_keys(w, p, t, head, j0, to, args);
}

/* out[row, g] = factor * sum of the group's heads in ascending order; zero in rows of no document. */
static void gather_heads(const kd_tensor *out, const kd_tensor *heads, const int32_t *cu,
                         int64_t documents, int64_t group, float factor)
{
    const int64_t d = out->shape[2];
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < out->shape[0]; row++)
        for (int64_t g = 0; g < out->shape[1]; g++) {
            float sum[MAX_HEAD] = { 0 };
            if (row >= cu[0] && row < cu[documents])
                for (int64_t h = g * group; h < (g + 1) * group; h++) {
                    const float *from = sums_row(heads, h, row);
                    for (int64_t j = 0; j < d; j++) sum[j] += from[j];
                }
            store_row(out, row, g, sum, d, factor);
        }
}

static kd_status backward_scratch(sums *to, kd_tensor *tiles, kd_exec *exec, const problem *p)
{
    const int64_t nq = p->q->shape[0], nk = p->k->shape[0];
    KD_TRY(kd_push(&to->dq, exec, "attention.dq", KD_F32, KD_SHAPE(p->heads, nq, p->d)));
    KD_TRY(kd_push(&to->dk, exec, "attention.dk", KD_F32, KD_SHAPE(p->heads, nk, p->d)));
    KD_TRY(kd_push(&to->dv, exec, "attention.dv", KD_F32, KD_SHAPE(p->heads, nk, p->d)));
    KD_TRY(kd_push(&to->delta, exec, "attention.delta", KD_F32, KD_SHAPE(p->heads, nq)));
    return kd_push(tiles, exec, "attention.tiles", KD_F32,
                   KD_SHAPE(omp_get_max_threads(), 9 * TILE * p->ld + 2 * TILE * TILE));
}

kd_status kd_attention_backward_check(const kd_attention_backward_args *args)
{
    const kd_attention_args forward = { .o = args->o,
                                        .lse = args->lse,
                                        .q = args->q,
                                        .k = args->k,
                                        .v = args->v,
                                        .cu_q = args->cu_q,
                                        .cu_k = args->cu_k };
    KD_TRY(kd_attention_check(&forward));
    KD_TRY(check_like(args->dout, "dout", args->q));
    KD_TRY(check_like(args->dq, "dq", args->q));
    KD_TRY(check_like(args->dk, "dk", args->k));
    return check_like(args->dv, "dv", args->k);
}

kd_status kd_attention_backward_cpu(kd_exec *exec, const kd_attention_backward_args *args)
{
    problem p = {
        .q = args->q, .k = args->k, .v = args->v, .scale = args->scale, .softcap = args->softcap
    };
    KD_TRY(kd_attention_problem(&p, exec, args->cu_q, args->cu_k));
    set_window(&p, args->causal, args->window);
    const int64_t wide = TILE * p.ld;
    sums to;
    kd_tensor scratch;
    KD_TRY(backward_scratch(&to, &scratch, exec, &p));
    if (kd_planning(exec)) return KD_OK;

#pragma omp parallel
    {
        float *at = (float *)scratch.data + omp_get_thread_num() * scratch.stride[0];
        backward_tiles w = { .q = take(&at, wide),
                             .dout = take(&at, wide),
                             .k = take(&at, wide),
                             .v = take(&at, wide),
                             .turned_k = take(&at, wide),
                             .turned_v = take(&at, wide),
                             .dq = take(&at, wide),
                             .dk = take(&at, wide),
                             .dv = take(&at, wide),
                             .s = take(&at, TILE * TILE),
                             .ds = at };
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < p.documents * p.heads; task++) {
            const document t = document_of(&p, task / p.heads);
            backward_task(&w, &p, &t, task % p.heads, &to, args);
        }
    }
    gather_heads(args->dq, &to.dq, p.cu_q, p.documents, 1, p.scale);
    gather_heads(args->dk, &to.dk, p.cu_k, p.documents, p.group, 1);
    gather_heads(args->dv, &to.dv, p.cu_k, p.documents, p.group, 1);
    return KD_OK;
}
