/*
 * o = softmax(s) v with s = cap(scale q k'), and its gradient; one pass over tiles of 64 queries by
 * 64 keys, no [Tq, Tk] anywhere (Dao, "FlashAttention-2", 2023).
 *
 * Query i of a document sees key j when -left <= j - (i + tk - tq) <= right: left = window - 1 or
 * unlimited; right = 0 when causal, else as left, so a window without causality reaches both ways.
 *
 *   forward    m = max s, l = sum e^(s - m), o = sum e^(s - m) v / l, lse = m + log l
 *   backward   p = e^(s - lse), D = sum_d dout o
 *              dv = p' dout, ds = p (dout v' - D) cap', dq = scale ds k, dk = scale ds' q
 *   softcap    cap(x) = c tanh(x / c), cap' = 1 - (s / c)^2
 *
 * A query that sees no key has o = 0, lse = -inf and zero gradients; so has a row of no document.
 *
 * Order of work: a task writes what no other task writes and adds in the order of its tiles, and
 * the heads of a group are summed in ascending order, so bits do not depend on threads.
 */
#include "ops/attention_tiles.h"

#include <omp.h>

/* ---- forward ---------------------------------------------------------------------------------- */

typedef struct forward_tiles {
    float *q, *k, *turned, *v, *o; /* [TILE, ld]; turned: k' [d, TILE] */
    float *s;                      /* [TILE, TILE] */
    float m[TILE], l[TILE];
} forward_tiles;

/* Adds what queries [i0, i0 + rows) see in the tile of keys at j0. */
static void forward_tile(forward_tiles *w, const problem *p, const document *t, int64_t i0,
                         int64_t rows, int64_t j0)
{
    for (int64_t r = 0; r < rows; r += ROWS) {
        const int64_t last = kd_min_i64(r + ROWS, rows) - 1;
        const span seen = within_tile(keys_of(p, t, i0 + r, i0 + last), j0);
        if (seen.end <= seen.begin) continue;
        const span panels = whole_panels(seen);
        float *s = w->s + r * TILE;
        strip_product(s, TILE, (side){ w->q + r * p->ld, p->ld, 1 }, w->turned, TILE, panels.begin,
                      panels.end, 0, p->d, false);
        for (int64_t i = r; i <= last; i++) {
            const span row = within_tile(keys_of(p, t, i0 + i, i0 + i), j0);
            float *scores = w->s + i * TILE;
            if (row.end <= row.begin) {
                memset(scores, 0, TILE * sizeof *scores);
                continue;
            }
            if (p->softcap > 0) cap_row(scores, panels, p->softcap);
            soften_row(scores, panels, row, &w->m[i], &w->l[i], w->o + i * p->ld, p->ld);
        }
        strip_product(w->o + r * p->ld, p->ld, (side){ s, TILE, 1 }, w->v, p->ld, 0, p->ld,
                      seen.begin, seen.end, true);
    }
}

static void forward_task(forward_tiles *w, const problem *p, const document *t, int64_t head,
                         int64_t i0, const kd_attention_args *args)
{
    const int64_t rows = kd_min_i64(TILE, t->tq - i0);
    const span seen = keys_of(p, t, i0, i0 + rows - 1);
    load_tile(w->q, p, p->q, t->q0 + i0, head, rows, p->scale);
    memset(w->o, 0, (size_t)(TILE * p->ld) * sizeof *w->o);
    for (int64_t i = 0; i < TILE; i++) w->m[i] = -INFINITY, w->l[i] = 0;
    for (int64_t j0 = seen.begin / TILE * TILE; j0 < seen.end; j0 += TILE) {
        const int64_t keys = kd_min_i64(TILE, t->tk - j0);
        load_tile(w->k, p, p->k, t->k0 + j0, head / p->group, keys, 1);
        transpose_tile(w->turned, w->k, p);
        load_tile(w->v, p, p->v, t->k0 + j0, head / p->group, keys, 1);
        forward_tile(w, p, t, i0, rows, j0);
    }
    for (int64_t i = 0; i < rows; i++) {
        const int64_t row = t->q0 + i0 + i;
        const bool blind = w->l[i] == 0;
        store_row(args->o, row, head, w->o + i * p->ld, p->d, blind ? 0 : 1 / w->l[i]);
        float *lse = (float *)args->lse->data + head * args->lse->stride[0];
        lse[row * args->lse->stride[1]] = blind ? -INFINITY : w->m[i] + logf(w->l[i]);
    }
}

/* Rows of no document: before the first and after the last. */
static void clear_strangers(const kd_tensor *t, const int32_t *cu, int64_t documents)
{
    static const float zeros[MAX_HEAD];
    for (int64_t row = 0; row < t->shape[0]; row++) {
        if (row == cu[0]) row = cu[documents];
        if (row >= t->shape[0]) break;
        for (int64_t head = 0; head < t->shape[1]; head++)
            store_row(t, row, head, zeros, t->shape[2], 1);
    }
}

/* ---- checks ----------------------------------------------------------------------------------- */

static kd_status check_offsets(const kd_tensor *cu, const char *what, int64_t rows)
{
    const int32_t *at = cu->data;
    for (int64_t i = 0; i < cu->shape[0]; i++)
        if (at[i] < (i ? at[i - 1] : 0) || at[i] > rows)
            return kd_fail(KD_EINVAL, "%s[%lld] is %d, expected %d to %lld", what, (long long)i,
                           (int)at[i], i ? (int)at[i - 1] : 0, (long long)rows);
    return KD_OK;
}

kd_status kd_attention_check(const kd_attention_args *a)
{
    KD_TRY(kd_expect_rows(a->q, "q"));
    KD_TRY(kd_tensor_expect(a->q, "q", -1, KD_SHAPE(-1, -1, -1)));
    KD_TRY(kd_expect_rows(a->k, "k"));
    KD_TRY(kd_tensor_expect(a->k, "k", (int)a->q->dtype, KD_SHAPE(-1, -1, a->q->shape[2])));
    KD_TRY(check_like(a->v, "v", a->k));
    KD_TRY(check_like(a->o, "o", a->q));
    KD_TRY(kd_tensor_expect(a->lse, "lse", KD_F32, KD_SHAPE(a->q->shape[1], a->q->shape[0])));
    if (!kd_present(a->cu_q)) return kd_fail(KD_EINVAL, "cu_q: absent");
    KD_TRY(kd_expect_list(a->cu_q, "cu_q", KD_I32, kd_tensor_elements(a->cu_q)));
    KD_TRY(kd_expect_list(a->cu_k, "cu_k", KD_I32, kd_tensor_elements(a->cu_q)));
    const int64_t heads = a->q->shape[1], groups = a->k->shape[1], d = a->q->shape[2];
    if (kd_tensor_elements(a->cu_q) < 1) return kd_fail(KD_EINVAL, "cu_q: empty");
    if (groups < 1 || heads % groups != 0)
        return kd_fail(KD_EINVAL, "q has %lld heads, no multiple of the %lld of k",
                       (long long)heads, (long long)groups);
    if (d < 1 || d > MAX_HEAD)
        return kd_fail(KD_ENOTSUP, "head size %lld, expected 1 to %d", (long long)d, MAX_HEAD);
    return KD_OK;
}

kd_status kd_attention_problem(problem *p, const kd_exec *exec, const kd_tensor *cu_q,
                               const kd_tensor *cu_k)
{
    p->documents = kd_tensor_elements(cu_q) - 1;
    p->heads = p->q->shape[1];
    p->group = p->heads / p->k->shape[1];
    p->d = p->q->shape[2];
    p->ld = kd_ceil_div(p->d, PANEL) * PANEL;
    p->cu_q = cu_q->data;
    p->cu_k = cu_k->data;
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(check_offsets(cu_q, "cu_q", p->q->shape[0]));
    return check_offsets(cu_k, "cu_k", p->k->shape[0]);
}

/* ---- the op ----------------------------------------------------------------------------------- */

kd_status kd_attention_cpu(kd_exec *exec, const kd_attention_args *args)
{
    problem p = {
        .q = args->q, .k = args->k, .v = args->v, .scale = args->scale, .softcap = args->softcap
    };
    KD_TRY(kd_attention_problem(&p, exec, args->cu_q, args->cu_k));
    set_window(&p, args->causal, args->window);
    const int64_t wide = TILE * p.ld;
    kd_tensor scratch;
    KD_TRY(kd_push(&scratch, exec, "attention.tiles", KD_F32,
                   KD_SHAPE(omp_get_max_threads(), 5 * wide + TILE * TILE)));
    if (kd_planning(exec)) return KD_OK;

    clear_strangers(args->o, p.cu_q, p.documents);
    clear_stranger_lse(args->lse, p.cu_q, p.documents);
    const int64_t blocks = blocks_of(&p);
#pragma omp parallel
    {
        float *at = (float *)scratch.data + omp_get_thread_num() * scratch.stride[0];
        forward_tiles w = { .q = take(&at, wide),
                            .k = take(&at, wide),
                            .turned = take(&at, wide),
                            .v = take(&at, wide),
                            .o = take(&at, wide),
                            .s = at };
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < blocks * p.heads; task++) {
            document t;
            int64_t i0;
            if (find_block(&t, &i0, &p, task / p.heads))
                forward_task(&w, &p, &t, task % p.heads, i0, args);
        }
    }
    return KD_OK;
}
