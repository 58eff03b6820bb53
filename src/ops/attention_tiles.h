/*
 * attention_tiles.h - what both directions of attention are made of: products of tiles in
 * registers, who sees whom, tiles in and out of f32.  Of attention.c, attention_backward.c and
 * relation.c alone.
 */
#ifndef KD_OPS_ATTENTION_TILES_H
#define KD_OPS_ATTENTION_TILES_H

#include "ops/rowio.h"
#include "ops/vmath.h"

/* A strip of ROWS by 2 * LANES results stays in registers: 16 of 32 with AVX-512, 8 of 16 else. */
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 4 };
#else
enum { LANES = 4, ROWS = 4 };
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
static inline __attribute__((always_inline)) void panel(float *c, ptrdiff_t ldc, side a,
                                                        const float *b, ptrdiff_t ldb,
                                                        ptrdiff_t begin, ptrdiff_t end, bool add)
{
    vec sum[ROWS][2] = { { { 0 } } };
    if (add) {
        UNROLLED
        for (int i = 0; i < ROWS; i++) {
            sum[i][0] = *(const vec *)(c + i * ldc);
            sum[i][1] = *(const vec *)(c + i * ldc + LANES);
        }
    }
    for (ptrdiff_t p = begin; p < end; p++) {
        const vec b0 = *(const vec *)(b + p * ldb), b1 = *(const vec *)(b + p * ldb + LANES);
        UNROLLED
        for (int i = 0; i < ROWS; i++) {
            const float x = a.at[i * a.row + p * a.step];
            sum[i][0] = fma_vec(x, b0, sum[i][0]);
            sum[i][1] = fma_vec(x, b1, sum[i][1]);
        }
    }
    UNROLLED
    for (int i = 0; i < ROWS; i++) {
        *(vec *)(c + i * ldc) = sum[i][0];
        *(vec *)(c + i * ldc + LANES) = sum[i][1];
    }
}

/* Calls, not inlined code: beside other loops the row addresses would not stay in registers. */
__attribute__((noinline)) static void panel_of_rows(float *c, ptrdiff_t ldc, side a, const float *b,
                                                    ptrdiff_t ldb, ptrdiff_t begin, ptrdiff_t end,
                                                    bool add)
{
    panel(c, ldc, (side){ a.at, a.row, 1 }, b, ldb, begin, end, add);
}

__attribute__((noinline)) static void panel_of_columns(float *c, ptrdiff_t ldc, side a,
                                                       const float *b, ptrdiff_t ldb,
                                                       ptrdiff_t begin, ptrdiff_t end, bool add)
{
    panel(c, ldc, (side){ a.at, 1, a.step }, b, ldb, begin, end, add);
}

/* A strip of c = a b (or c += a b) over columns [first, columns), multiples of PANEL. */
static inline void strip_product(float *c, ptrdiff_t ldc, side a, const float *b, ptrdiff_t ldb,
                                 int64_t first, int64_t columns, int64_t begin, int64_t end,
                                 bool add)
{
    for (int64_t j = first; j < columns; j += PANEL)
        (a.step == 1 ? panel_of_rows : panel_of_columns)(c + j, ldc, a, b + j, ldb, begin, end,
                                                         add);
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

static inline document document_of(const problem *p, int64_t i)
{
    return (document){ p->cu_q[i], p->cu_q[i + 1] - p->cu_q[i], p->cu_k[i],
                       p->cu_k[i + 1] - p->cu_k[i] };
}

/* Keys that any of the queries first..last sees. */
static inline span keys_of(const problem *p, const document *t, int64_t first, int64_t last)
{
    const int64_t shift = t->tk - t->tq;
    return (span){ kd_max_i64(0, first + shift - p->left),
                   kd_min_i64(t->tk, last + shift + p->right + 1) };
}

/* Queries that see any of the keys first..last. */
static inline span queries_of(const problem *p, const document *t, int64_t first, int64_t last)
{
    const int64_t shift = t->tk - t->tq;
    return (span){ kd_max_i64(0, first - shift - p->right),
                   kd_min_i64(t->tq, last - shift + p->left + 1) };
}

/* The part of `s` within the tile that starts at `origin`, counted from there. */
static inline span within_tile(span s, int64_t origin)
{
    return (span){ kd_max_i64(s.begin - origin, 0), kd_min_i64(s.end - origin, TILE) };
}

static inline span whole_panels(span s)
{
    return (span){ s.begin / PANEL * PANEL, kd_ceil_div(s.end, PANEL) * PANEL };
}

/* ---- tiles ------------------------------------------------------------------------------------ */

static inline void *row_of(const kd_tensor *t, int64_t row, int64_t head)
{
    return (char *)t->data +
           (row * t->stride[0] + head * t->stride[1]) * (int64_t)kd_dtype_size(t->dtype);
}

/* Rows [row, row + rows) of one head as f32 times `factor`; zeros up to TILE rows and ld columns. */
static inline void load_tile(float *tile, const problem *p, const kd_tensor *t, int64_t row,
                             int64_t head, int64_t rows, float factor)
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

static inline void store_row(const kd_tensor *t, int64_t row, int64_t head, const float *from,
                             int64_t d, float factor)
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
static inline void transpose_tile(float *to, const float *tile, const problem *p)
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

static inline void cap_row(float *s, span panels, float softcap)
{
    const float inverse = 1 / softcap;
    for (int64_t j = panels.begin; j < panels.end; j++) s[j] = softcap * tanh_of(s[j] * inverse);
}

/* Both destroy `lanes`; halving keeps a fixed order without a chain of LANES steps. */
static inline float max_of(float lanes[LANES])
{
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] = lanes[l] > lanes[l + width] ? lanes[l] : lanes[l + width];
    return lanes[0];
}

static inline float sum_of(float lanes[LANES])
{
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++) lanes[l] += lanes[l + width];
    return lanes[0];
}

/* Scores become weights e^(s - m), zero where hidden; m, l and the sums in o move to the new m. */
static inline void soften_row(float *s, span panels, span seen, float *m, float *l, float *o,
                              int64_t ld)
{
    const int first = (int)seen.begin, end = (int)seen.end; /* as wide as what they select */
    for (int j = (int)panels.begin; j < panels.end; j++)
        s[j] = j >= first && j < end ? s[j] : -INFINITY;
    float top[LANES];
    for (int i = 0; i < LANES; i++) top[i] = -INFINITY;
    for (int64_t j = panels.begin; j < panels.end; j += LANES)
        for (int i = 0; i < LANES; i++) top[i] = s[j + i] > top[i] ? s[j + i] : top[i];
    const float high = max_of(top), next = high > *m ? high : *m;
    const float base = next == -INFINITY ? 0 : next; /* all scores -inf: weights 0, not NaN */
    const float shrink = kd_vexpf(*m - base);
    for (int64_t j = panels.begin; j < panels.end; j++) s[j] = kd_vexpf(s[j] - base);
    vec sum = { 0 };
    for (int64_t j = panels.begin; j < panels.end; j += LANES) sum += *(const vec *)(s + j);
    *l = *l * shrink + sum_of((float *)&sum);
    *m = next;
    if (shrink != 1)
        for (int64_t j = 0; j < ld; j++) o[j] *= shrink;
}

/* ---- setting up ------------------------------------------------------------------------------- */

static inline void set_window(problem *p, bool causal, int64_t window)
{
    p->left = window > 0 ? window - 1 : unlimited;
    p->right = causal ? 0 : p->left;
}

/* Blocks of TILE queries of all documents. */
static inline int64_t blocks_of(const problem *p)
{
    int64_t blocks = 0;
    for (int64_t i = 0; i < p->documents; i++) blocks += kd_ceil_div(document_of(p, i).tq, TILE);
    return blocks;
}

/* The document and first query of the block of TILE queries with this number; false past the
 * last. */
static inline bool find_block(document *t, int64_t *i0, const problem *p, int64_t block)
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

/* Rows of no document see nothing. */
static inline void clear_stranger_lse(const kd_tensor *lse, const int32_t *cu, int64_t documents)
{
    for (int64_t head = 0; head < lse->shape[0]; head++)
        for (int64_t row = 0; row < lse->shape[1]; row++)
            if (row < cu[0] || row >= cu[documents])
                ((float *)lse->data)[head * lse->stride[0] + row * lse->stride[1]] = -INFINITY;
}

/* The next `count` floats of a thread's scratch. */
static inline float *take(float **at, int64_t count)
{
    float *taken = *at;
    *at += count;
    return taken;
}

static inline kd_status check_like(const kd_tensor *t, const char *what, const kd_tensor *like)
{
    KD_TRY(kd_expect_rows(t, what));
    return kd_tensor_expect(t, what, (int)like->dtype, kd_shape_of(like));
}

/* Fills `p`, whose q, k and v are set, but for `scale` and `softcap`; the offsets are read and
 * checked unless the exec plans. */
KD_MUST_CHECK kd_status kd_attention_problem(problem *p, const kd_exec *exec, const kd_tensor *cu_q,
                                             const kd_tensor *cu_k);

#endif
