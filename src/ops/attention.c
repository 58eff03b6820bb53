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
#include "ops/rowio.h"
#include "ops/vmath.h"

#include <omp.h>

/* A strip of ROWS by 2 * LANES results stays in registers: 16 of 32 with AVX-512, 8 of 16 else. */
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 8 };
#else
enum { LANES = 8, ROWS = 4 };
#endif
enum { TILE = 64, PANEL = 2 * LANES, MAX_HEAD = 256 };

/* Without it GCC keeps the strip in memory. */
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLLED _Pragma("GCC unroll 16")
#else
#define UNROLLED
#endif

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));

/* ---- products of tiles ------------------------------------------------------------------------ */

static inline vec fma_vec(float a, vec b, vec c)
{
    for (int l = 0; l < LANES; l++) c[l] = kd_vfma(a, b[l], c[l]);
    return c;
}

/* A tile seen by rows or, exchanged, by columns. */
typedef struct side {
    const float *at;
    ptrdiff_t row, step;
} side;

/* c[ROWS, PANEL] (+)= a[ROWS, begin..end) b[begin..end, PANEL); all rows of b and c aligned. */
static inline void panel(float *c, ptrdiff_t ldc, side a, const float *b, ptrdiff_t ldb,
                         ptrdiff_t begin, ptrdiff_t end, bool add)
{
    vec sum[ROWS][2] = { { { 0 } } };
    if (add)
        UNROLLED for (int i = 0; i < ROWS; i++) for (int h = 0; h < 2; h++) sum[i][h] =
            *(const vec *)(c + i * ldc + h * LANES);
    for (ptrdiff_t p = begin; p < end; p++) {
        const vec b0 = *(const vec *)(b + p * ldb), b1 = *(const vec *)(b + p * ldb + LANES);
        UNROLLED
        for (int i = 0; i < ROWS; i++) {
            const float x = a.at[i * a.row + p * a.step];
            sum[i][0] = fma_vec(x, b0, sum[i][0]);
            sum[i][1] = fma_vec(x, b1, sum[i][1]);
        }
    }
    UNROLLED for (int i = 0; i < ROWS; i++) for (int h = 0; h < 2; h++) *
        (vec *)(c + i * ldc + h * LANES) = sum[i][h];
}

/* A strip of c = a b (or c += a b) over `columns` (a multiple of PANEL) from `first` on. */
static void strip_product(float *c, ptrdiff_t ldc, side a, const float *b, ptrdiff_t ldb,
                          int64_t first, int64_t columns, int64_t begin, int64_t end, bool add)
{
    for (int64_t j = first; j < columns; j += PANEL)
        if (a.step == 1)
            panel(c + j, ldc, (side){ a.at, a.row, 1 }, b + j, ldb, begin, end, add);
        else
            panel(c + j, ldc, (side){ a.at, 1, a.step }, b + j, ldb, begin, end, add);
}

/* ---- who sees whom ---------------------------------------------------------------------------- */

static const int64_t unlimited = INT64_MAX / 4;

typedef struct problem {
    const kd_tensor *q, *k, *v;
    const int32_t *cu_q, *cu_k;
    int64_t documents, heads, group; /* group: query heads of one key head */
    int64_t d, ld;                   /* head size; rounded up to whole panels */
    int64_t left, right;
    float scale, softcap;
} problem;

/* Rows [q0, q0 + tq) of q and [k0, k0 + tk) of k and v. */
typedef struct document {
    int64_t q0, tq, k0, tk;
} document;

/* Indices [begin, end); nothing when end <= begin. */
typedef struct span {
    int64_t begin, end;
} span;

static document document_of(const problem *p, int64_t i)
{
    return (document){ p->cu_q[i], p->cu_q[i + 1] - p->cu_q[i], p->cu_k[i],
                       p->cu_k[i + 1] - p->cu_k[i] };
}

/* Keys that any of the queries first..last sees. */
static span keys_of(const problem *p, const document *t, int64_t first, int64_t last)
{
    const int64_t shift = t->tk - t->tq;
    return (span){ kd_max_i64(0, first + shift - p->left),
                   kd_min_i64(t->tk, last + shift + p->right + 1) };
}

/* Queries that see any of the keys first..last. */
static span queries_of(const problem *p, const document *t, int64_t first, int64_t last)
{
    const int64_t shift = t->tk - t->tq;
    return (span){ kd_max_i64(0, first - shift - p->right),
                   kd_min_i64(t->tq, last - shift + p->left + 1) };
}

/* The part of `s` within the tile that starts at `origin`, counted from there. */
static span within_tile(span s, int64_t origin)
{
    return (span){ kd_max_i64(s.begin - origin, 0), kd_min_i64(s.end - origin, TILE) };
}

static span whole_panels(span s)
{
    return (span){ s.begin / PANEL * PANEL, kd_ceil_div(s.end, PANEL) * PANEL };
}

/* ---- tiles ------------------------------------------------------------------------------------ */

static void *row_of(const kd_tensor *t, int64_t row, int64_t head)
{
    return (char *)t->data +
           (row * t->stride[0] + head * t->stride[1]) * (int64_t)kd_dtype_size(t->dtype);
}

/* Rows [row, row + rows) of one head as f32 times `factor`; zeros up to TILE rows and ld columns. */
static void load_tile(float *tile, const problem *p, const kd_tensor *t, int64_t row, int64_t head,
                      int64_t rows, float factor)
{
    for (int64_t i = 0; i < rows; i++) {
        float *to = tile + i * p->ld;
        if (t->dtype == KD_F32) {
            const float *from = row_of(t, row + i, head);
            for (int64_t j = 0; j < p->d; j++) to[j] = from[j] * factor;
        } else {
            const uint16_t *from = row_of(t, row + i, head);
            for (int64_t j = 0; j < p->d; j++) to[j] = kd_bf16_to_f32(from[j]) * factor;
        }
        for (int64_t j = p->d; j < p->ld; j++) to[j] = 0;
    }
    memset(tile + rows * p->ld, 0, (size_t)((TILE - rows) * p->ld) * sizeof *tile);
}

static void store_row(const kd_tensor *t, int64_t row, int64_t head, const float *from, int64_t d,
                      float factor)
{
    if (t->dtype == KD_F32) {
        float *to = row_of(t, row, head);
        for (int64_t j = 0; j < d; j++) to[j] = from[j] * factor;
    } else {
        uint16_t *to = row_of(t, row, head);
        for (int64_t j = 0; j < d; j++) to[j] = kd_f32_to_bf16(from[j] * factor);
    }
}

/* to [d, TILE] = tile' */
static void transpose_tile(float *to, const float *tile, const problem *p)
{
    for (int64_t j = 0; j < p->d; j++)
        for (int64_t i = 0; i < TILE; i++) to[j * TILE + i] = tile[i * p->ld + j];
}

/* ---- rows of scores --------------------------------------------------------------------------- */

/* tanh within 2 ulp: a polynomial near zero, by e^2x elsewhere (Cephes, tanhf). */
static inline float tanh_of(float x)
{
    const float z = x * x;
    float y = -5.70498872745e-3f;
    y = kd_vfma(y, z, 2.06390887954e-2f);
    y = kd_vfma(y, z, -5.37397155531e-2f);
    y = kd_vfma(y, z, 1.33314422036e-1f);
    y = kd_vfma(y, z, -3.33332819422e-1f);
    y = kd_vfma(y * z, x, x);
    const float far = 1.0f - 2.0f / (kd_vexpf(2.0f * x) + 1.0f);
    return x < 0.625f && x > -0.625f ? y : far;
}

static void cap_row(float *s, span panels, float softcap)
{
    const float inverse = 1 / softcap;
    for (int64_t j = panels.begin; j < panels.end; j++) s[j] = softcap * tanh_of(s[j] * inverse);
}

static float max_of(const float lanes[LANES])
{
    float top = lanes[0];
    for (int l = 1; l < LANES; l++) top = lanes[l] > top ? lanes[l] : top;
    return top;
}

static float sum_of(const float lanes[LANES])
{
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

/* Scores become weights e^(s - m), zero where hidden; m, l and the sums in o move to the new m. */
static void soften_row(float *s, span panels, span seen, float *m, float *l, float *o, int64_t ld)
{
    float top[LANES], sum[LANES] = { 0 };
    for (int i = 0; i < LANES; i++) top[i] = -INFINITY;
    for (int64_t j = panels.begin; j < panels.end; j += LANES)
        for (int i = 0; i < LANES; i++) {
            s[j + i] = j + i >= seen.begin && j + i < seen.end ? s[j + i] : -INFINITY;
            top[i] = s[j + i] > top[i] ? s[j + i] : top[i];
        }
    const float high = max_of(top), next = high > *m ? high : *m;
    const float base = next == -INFINITY ? 0 : next; /* all scores -inf: weights 0, not NaN */
    const float shrink = kd_vexpf(*m - base);
    for (int64_t j = panels.begin; j < panels.end; j += LANES)
        for (int i = 0; i < LANES; i++) {
            s[j + i] = kd_vexpf(s[j + i] - base);
            sum[i] += s[j + i];
        }
    *l = *l * shrink + sum_of(sum);
    *m = next;
    if (shrink != 1)
        for (int64_t j = 0; j < ld; j++) o[j] *= shrink;
}

/* ---- forward ---------------------------------------------------------------------------------- */

typedef struct forward_tiles {
    float *q, *k, *turned, *v, *o; /* [TILE, ld]; turned: k' [d, TILE] */
    float *s;                      /* [TILE, TILE] */
    float m[TILE], l[TILE];
} forward_tiles;

static int64_t tile_floats(const problem *p, int64_t wide, int64_t square)
{
    return wide * TILE * p->ld + square * TILE * TILE;
}

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

static void clear_stranger_lse(const kd_tensor *lse, const int32_t *cu, int64_t documents)
{
    for (int64_t head = 0; head < lse->shape[0]; head++)
        for (int64_t row = 0; row < lse->shape[1]; row++)
            if (row < cu[0] || row >= cu[documents])
                ((float *)lse->data)[head * lse->stride[0] + row * lse->stride[1]] = -INFINITY;
}

/* The document and first query of the block of TILE queries with this number; false past the
 * last. */
static bool find_block(document *t, int64_t *i0, const problem *p, int64_t block)
{
    for (int64_t i = 0; i < p->documents; i++) {
        *t = document_of(p, i);
        const int64_t blocks = kd_ceil_div(t->tq, TILE);
        if (block < blocks) {
            *i0 = block * TILE;
            return true;
        }
        block -= blocks;
    }
    return false;
}

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
    for (int64_t j = panels.begin; j < panels.end; j++) {
        const float capped = s[j] * inverse;
        const bool hidden = j < seen.begin || j >= seen.end;
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

static kd_status check_like(const kd_tensor *t, const char *what, const kd_tensor *like)
{
    KD_TRY(kd_expect_rows(t, what));
    return kd_tensor_expect(t, what, -1, kd_shape_of(like));
}

static kd_status check_problem(problem *p, const kd_exec *exec, const kd_tensor *cu_q,
                               const kd_tensor *cu_k, const kd_tensor *lse)
{
    KD_TRY(kd_expect_rows(p->q, "q"));
    KD_TRY(kd_tensor_expect(p->q, "q", -1, KD_SHAPE(-1, -1, -1)));
    KD_TRY(kd_expect_rows(p->k, "k"));
    KD_TRY(kd_tensor_expect(p->k, "k", -1, KD_SHAPE(-1, -1, p->q->shape[2])));
    KD_TRY(check_like(p->v, "v", p->k));
    KD_TRY(kd_tensor_expect(lse, "lse", KD_F32, KD_SHAPE(p->q->shape[1], p->q->shape[0])));
    KD_TRY(kd_expect_list(cu_q, "cu_q", KD_I32, cu_q ? kd_tensor_elements(cu_q) : 0));
    KD_TRY(kd_expect_list(cu_k, "cu_k", KD_I32, kd_tensor_elements(cu_q)));
    const int64_t heads = p->q->shape[1], groups = p->k->shape[1], d = p->q->shape[2];
    if (kd_tensor_elements(cu_q) < 1) return kd_fail(KD_EINVAL, "cu_q: empty");
    if (groups < 1 || heads % groups != 0)
        return kd_fail(KD_EINVAL, "q has %lld heads, no multiple of the %lld of k",
                       (long long)heads, (long long)groups);
    if (d < 1 || d > MAX_HEAD)
        return kd_fail(KD_ENOTSUP, "head size %lld, expected 1 to %d", (long long)d, MAX_HEAD);
    p->documents = kd_tensor_elements(cu_q) - 1;
    p->heads = heads;
    p->group = heads / groups;
    p->d = d;
    p->ld = kd_ceil_div(d, PANEL) * PANEL;
    p->cu_q = cu_q->data;
    p->cu_k = cu_k->data;
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(check_offsets(cu_q, "cu_q", p->q->shape[0]));
    return check_offsets(cu_k, "cu_k", p->k->shape[0]);
}

static void set_window(problem *p, bool causal, int64_t window)
{
    p->left = window > 0 ? window - 1 : unlimited;
    p->right = causal ? 0 : p->left;
}

/* The next `count` floats of a thread's scratch. */
static float *take(float **at, int64_t count)
{
    float *taken = *at;
    *at += count;
    return taken;
}

/* ---- ops -------------------------------------------------------------------------------------- */

kd_status kd_attention_cpu(kd_exec *exec, const kd_attention_args *args)
{
    problem p = {
        .q = args->q, .k = args->k, .v = args->v, .scale = args->scale, .softcap = args->softcap
    };
    KD_TRY(check_problem(&p, exec, args->cu_q, args->cu_k, args->lse));
    KD_TRY(check_like(args->o, "o", args->q));
    set_window(&p, args->causal, args->window);
    const int64_t wide = TILE * p.ld;
    kd_tensor scratch;
    KD_TRY(kd_push(&scratch, exec, "attention.tiles", KD_F32,
                   KD_SHAPE(omp_get_max_threads(), tile_floats(&p, 5, 1))));
    if (kd_planning(exec)) return KD_OK;

    clear_strangers(args->o, p.cu_q, p.documents);
    clear_stranger_lse(args->lse, p.cu_q, p.documents);
    int64_t blocks = 0;
    for (int64_t i = 0; i < p.documents; i++) blocks += kd_ceil_div(document_of(&p, i).tq, TILE);
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

static kd_status backward_scratch(sums *to, kd_tensor *tiles, kd_exec *exec, const problem *p)
{
    const int64_t nq = p->q->shape[0], nk = p->k->shape[0];
    KD_TRY(kd_push(&to->dq, exec, "attention.dq", KD_F32, KD_SHAPE(p->heads, nq, p->d)));
    KD_TRY(kd_push(&to->dk, exec, "attention.dk", KD_F32, KD_SHAPE(p->heads, nk, p->d)));
    KD_TRY(kd_push(&to->dv, exec, "attention.dv", KD_F32, KD_SHAPE(p->heads, nk, p->d)));
    KD_TRY(kd_push(&to->delta, exec, "attention.delta", KD_F32, KD_SHAPE(p->heads, nq)));
    return kd_push(tiles, exec, "attention.tiles", KD_F32,
                   KD_SHAPE(omp_get_max_threads(), tile_floats(p, 9, 2)));
}

kd_status kd_attention_backward_cpu(kd_exec *exec, const kd_attention_backward_args *args)
{
    problem p = {
        .q = args->q, .k = args->k, .v = args->v, .scale = args->scale, .softcap = args->softcap
    };
    KD_TRY(check_problem(&p, exec, args->cu_q, args->cu_k, args->lse));
    KD_TRY(check_like(args->o, "o", args->q));
    KD_TRY(check_like(args->dout, "dout", args->q));
    KD_TRY(check_like(args->dq, "dq", args->q));
    KD_TRY(check_like(args->dk, "dk", args->k));
    KD_TRY(check_like(args->dv, "dv", args->k));
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
