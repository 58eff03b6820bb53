/*
 * attention on CUDA, the fast way for bf16: products on tensor cores, softmax as the keys go by, no
 * [Nq, Nk] anywhere (Dao, "FlashAttention-2", 2023).  What it does not take, attention_plain.cu
 * does.  src/ops/attention.c has the mathematics.
 *
 * Grid      a block per 128 query rows and head, the last rows first: the longest where causal.
 *           A warp has 32 rows (16 above head size 128) and their results in registers; tiles of K
 *           and V pass through shared memory, one of each: V arrives while q k' is computed, the
 *           next K during softmax and p v.  Another block fills what waiting is left.
 *
 *               head size, up to       32     64     96    128    192    256
 *               warps                   4      4      4      4      8      8
 *               keys in a tile         64     64     64     32     64     32   (registers)
 *               shared memory, KiB     16     32     48     48     96     96   (of 99 on sm_86)
 *               blocks at a time        3      2      2      2      1      1   (registers)
 *
 * Flops     4 d per query and key that it sees, in whole tiles.  A warp skips tiles that none of
 *           its rows sees, and compares positions only in those that some row sees in part.
 * Traffic   q and o once, k and v once per 128 query rows and query head: mostly from the second
 *           cache.  No conflicts of banks (tile.cuh).
 * Numerics  scores and sums in f32; weights are rounded to bf16 before p v, by a relative 2^-9
 *           each, and their sum is of unrounded ones; e^x within a relative 2^-22, the softcap's
 *           tanh within 3e-7.  Weights are e^(s - m) with m not the largest score so far, but within a
 *           factor of 2^8 of it: moving o with every new m would be a sixth of the instructions.
 *           A value of V that is not finite reaches, besides who sees it, rows of the same block
 *           that share a tile with who sees it: zero times it is NaN.
 * Same bits  nobody adds to what another wrote.  o must not overlap q, k or v.
 */
#include "ops/attention.cuh"

#include "common/rows.cuh"
#include "common/tile.cuh"

namespace {

constexpr int QUERIES = 128; /* rows of a block */
constexpr float SLACK = 8;   /* weights are of [0, 2^SLACK] */

/* Of tiles for head sizes up to D.  STRIPS: of 16 rows, of a warp. */
template <int D> constexpr int STRIPS = D <= 128 ? 2 : 1;
template <int D> constexpr int WARPS = QUERIES / (16 * STRIPS<D>);
template <int D> constexpr int THREADS = KD_WARP *WARPS<D>;
template <int D> constexpr int KEYS = D == 128 || D == 256 ? 32 : 64;
template <int D> constexpr size_t SHARED_BYTES = (QUERIES + 2 * KEYS<D>)*D * sizeof(bf16);

struct Params {
    kd_heads<bf16> o;
    kd_heads<float> lse;
    kd_heads<const bf16> q, k, v;
    const kd_seen *seen;
    int rows, blocks; /* of q; blocks of its rows */
    int group, d;
    float scale, softcap; /* so that 2^(scale s) is a weight: with a softcap, of the capped s */
    float inner;          /* softcap: s becomes softcap tanh(inner s) */
};

/* What a lane holds of its warp's rows, for each strip of 16: of d in mma.cuh, rows g and g + 8. */
template <int D> struct State {
    float o[STRIPS<D>][D / 8][4];
    float m[STRIPS<D>][2]; /* what weights are relative to: a score, before scaling */
    float l[STRIPS<D>][2]; /* this lane's part of the sum of weights */
};

template <int D> using Scores = float[STRIPS<D>][KEYS<D> / 8][4];

/* ---- who sees what ---------------------------------------------------------------------------- */

/* Scores of keys j0 on that a row does not see become -inf.  `first` is the warp's first row. */
template <int D>
__device__ __forceinline__ void hide(Scores<D> &s, const Params &p, int first, int j0)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int i = 0; i < 2 * STRIPS<D>; i++) {
        const int row = first + i * 8 + lane / 4;
        const kd_seen seen = row < p.rows ? p.seen[row] : kd_seen{ 0, 0 };
        const int begin = seen.begin - j0 - lane % 4 * 2, end = seen.end - j0 - lane % 4 * 2;
#pragma unroll
        for (int c = 0; c < KEYS<D> / 4; c++) {
            const int key = c / 2 * 8 + c % 2;
            float &score = s[i / 2][c / 2][i % 2 * 2 + c % 2];
            if (key < begin || key >= end) score = -INFINITY;
        }
    }
}

/* ---- products --------------------------------------------------------------------------------- */

/* s = q k', `first` counted in the block. */
template <int D>
__device__ __forceinline__ void score(Scores<D> &s, const bf16 *q, const bf16 *k, int first)
{
    const int lane = threadIdx.x % KD_WARP;
    const int at_q = kd_tile_offset<D>(first + lane % 16, lane / 16);
    const int at_k = kd_tile_offset<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < STRIPS<D>; i++)
#pragma unroll
        for (int n = 0; n < KEYS<D> / 8; n++)
#pragma unroll
            for (int r = 0; r < 4; r++) s[i][n][r] = 0;
#pragma unroll
    for (int c = 0; c < D / 8; c += 2) {
        uint32_t a[STRIPS<D>][4];
#pragma unroll
        for (int i = 0; i < STRIPS<D>; i++)
            kd_load_matrices(a[i], q + kd_tile_step<D>(at_q, i * 16, c));
#pragma unroll
        for (int n = 0; n < KEYS<D> / 8; n += 2) {
            uint32_t b[4];
            kd_load_matrices(b, k + kd_tile_step<D>(at_k, n * 8, c));
#pragma unroll
            for (int i = 0; i < STRIPS<D>; i++) {
                kd_mma(s[i][n], a[i], b[0], b[1]);
                kd_mma(s[i][n + 1], a[i], b[2], b[3]);
            }
        }
    }
}

/* o += weights v */
template <int D>
__device__ __forceinline__ void gather(State<D> &state, const Scores<D> &weights, const bf16 *v)
{
    const int lane = threadIdx.x % KD_WARP;
    const int at_v = kd_tile_offset<D>(lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < KEYS<D> / 8; n += 2) {
        uint32_t a[STRIPS<D>][4];
#pragma unroll
        for (int i = 0; i < STRIPS<D>; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float *pair = &weights[i][n + r / 2][r % 2 * 2];
                a[i][r] = kd_bf16_pair(pair[0], pair[1]);
            }
#pragma unroll
        for (int c = 0; c < D / 8; c += 2) {
            uint32_t b[4];
            kd_load_matrices_transposed(b, v + kd_tile_step<D>(at_v, n * 8, c));
#pragma unroll
            for (int i = 0; i < STRIPS<D>; i++) {
                kd_mma(state.o[i][c], a[i], b[0], b[1]);
                kd_mma(state.o[i][c + 1], a[i], b[2], b[3]);
            }
        }
    }
}

/* ---- softmax ---------------------------------------------------------------------------------- */

template <int D> __device__ __forceinline__ void cap(Scores<D> &s, const Params &p)
{
#pragma unroll
    for (int i = 0; i < STRIPS<D>; i++)
#pragma unroll
        for (int n = 0; n < KEYS<D> / 8; n++)
#pragma unroll
            for (int r = 0; r < 4; r++) s[i][n][r] = p.softcap * kd_tanh(p.inner * s[i][n][r]);
}

/* Over the 4 lanes that hold a row. */
__device__ __forceinline__ float row_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(KD_ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(KD_ALL_LANES, x, 2));
}

__device__ __forceinline__ float row_sum(float x)
{
    x += __shfl_xor_sync(KD_ALL_LANES, x, 1);
    return x + __shfl_xor_sync(KD_ALL_LANES, x, 2);
}

/* What weights are relative to, in the exponent of 2: 0 where nothing is seen, for 0, not NaN. */
__device__ __forceinline__ float base_of(float m, float scale)
{
    return m == -INFINITY ? 0 : m * scale;
}

/* m becomes the largest score with those of this tile; l and o move to it. */
template <int D>
__device__ __forceinline__ void move_base(State<D> &state, const float (&top)[2 * STRIPS<D>],
                                          float scale)
{
#pragma unroll
    for (int row = 0; row < 2 * STRIPS<D>; row++) {
        const int i = row / 2, r = row % 2 * 2;
        float &m = state.m[i][row % 2];
        const float next = fmaxf(m, top[row]);
        const float shrink = kd_exp2(m * scale - base_of(next, scale));
        m = next;
        state.l[i][row % 2] *= shrink;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            state.o[i][c][r] *= shrink;
            state.o[i][c][r + 1] *= shrink;
        }
    }
}

/* Scores become weights 2^(scale (s - m)).  m follows the largest score only when that is ahead by
 * 2^SLACK in some row of the warp: with the first tile, and seldom later. */
template <int D> __device__ __forceinline__ void soften(State<D> &state, Scores<D> &s, float scale)
{
    float top[2 * STRIPS<D>];
    bool ahead = false;
#pragma unroll
    for (int row = 0; row < 2 * STRIPS<D>; row++) {
        const int i = row / 2, r = row % 2 * 2;
        top[row] = -INFINITY;
#pragma unroll
        for (int n = 0; n < KEYS<D> / 8; n++)
            top[row] = fmaxf(top[row], fmaxf(s[i][n][r], s[i][n][r + 1]));
        top[row] = row_max(top[row]);
        ahead |= top[row] * scale > state.m[i][row % 2] * scale + SLACK;
    }
    if (__any_sync(KD_ALL_LANES, ahead)) move_base<D>(state, top, scale);
#pragma unroll
    for (int row = 0; row < 2 * STRIPS<D>; row++) {
        const int i = row / 2, r = row % 2 * 2;
        const float base = base_of(state.m[i][row % 2], scale);
#pragma unroll
        for (int n = 0; n < KEYS<D> / 8; n++) {
            s[i][n][r] = kd_exp2(s[i][n][r] * scale - base);
            s[i][n][r + 1] = kd_exp2(s[i][n][r + 1] * scale - base);
            state.l[i][row % 2] += s[i][n][r] + s[i][n][r + 1];
        }
    }
}

/* ---- results ---------------------------------------------------------------------------------- */

/* Through the warp's rows of the tile of queries, so that whole rows are written. */
template <int D>
__device__ __forceinline__ void store(const State<D> &state, const Params &p, bf16 *tile, int row0,
                                      int first, int head)
{
    const int lane = threadIdx.x % KD_WARP;
    __syncwarp(); /* before the queries are overwritten */
#pragma unroll
    for (int row = 0; row < 2 * STRIPS<D>; row++) {
        const int i = row / 2, r = row % 2 * 2, at = first + row * 8 + lane / 4;
        const float l = row_sum(state.l[i][row % 2]);
        const bool blind = l == 0;
        const float factor = blind ? 0 : 1 / l;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            const uint32_t pair =
                kd_bf16_pair(state.o[i][c][r] * factor, state.o[i][c][r + 1] * factor);
            reinterpret_cast<uint32_t *>(kd_tile_at<D>(tile, at, c))[lane % 4] = pair;
        }
        if (lane % 4 == 0 && row0 + at < p.rows)
            *p.lse.at(row0 + at, head) =
                blind ? -INFINITY
                      : 0.69314718f * (state.m[i][row % 2] * p.scale + kd_log2(l)); /* ln 2 */
    }
    __syncwarp();
    for (int i = lane; i < 16 * STRIPS<D> * (D / 8); i += KD_WARP) {
        const int at = first + i / (D / 8), chunk = i % (D / 8);
        if (row0 + at < p.rows && chunk * 8 < p.d)
            *reinterpret_cast<uint4 *>(p.o.at(row0 + at, head) + chunk * 8) =
                *reinterpret_cast<const uint4 *>(kd_tile_at<D>(tile, at, chunk));
    }
}

/* ---- the kernel ------------------------------------------------------------------------------- */

template <int D> __global__ void __launch_bounds__(THREADS<D>) flash_kernel(Params p)
{
    constexpr int N = KEYS<D>;
    KD_DYN_SHARED(bf16, q);
    bf16 *const k = q + QUERIES * D, *const v = k + N * D;
    const int head = blockIdx.x / p.blocks, key_head = head / p.group;
    const int row0 = (p.blocks - 1 - (int)blockIdx.x % p.blocks) * QUERIES;
    const int first = (int)threadIdx.x / KD_WARP * 16 * STRIPS<D>; /* of the warp, in the block */
    const kd_reach block = kd_reach_of(p.seen, row0, min(row0 + QUERIES, p.rows));
    const kd_reach warp =
        kd_reach_of(p.seen, row0 + first, min(row0 + first + 16 * STRIPS<D>, p.rows));

    State<D> state = {};
#pragma unroll
    for (int i = 0; i < 2 * STRIPS<D>; i++) {
        state.m[i / 2][i % 2] = -INFINITY;
        state.l[i / 2][i % 2] = p.seen[row0].begin < 0 ? NAN : 0; /* no offsets: NaN everywhere */
    }
    if (block.begin < block.end) {
        kd_tile_copy<D, QUERIES, THREADS<D>>(q, p.q.at(row0, head), p.q.row, p.rows - row0, p.d);
        kd_tile_copy<D, N, THREADS<D>>(k, p.k.at(block.begin, key_head), p.k.row,
                                       block.end - block.begin, p.d);
        kd_copy_commit();
    }
    for (int j0 = block.begin; j0 < block.end; j0 += N) {
        const bool seen = j0 < warp.end && j0 + N > warp.begin;
        const bool whole = j0 >= warp.all_begin && j0 + N <= warp.all_end;
        Scores<D> s;
        kd_copy_wait<0>();
        __syncthreads(); /* K is here; V of the tile before is done with */
        kd_tile_copy<D, N, THREADS<D>>(v, p.v.at(j0, key_head), p.v.row, block.end - j0, p.d);
        kd_copy_commit();
        if (seen) score<D>(s, q, k, first);
        kd_copy_wait<0>();
        __syncthreads(); /* V is here; K is done with */
        if (j0 + N < block.end) {
            kd_tile_copy<D, N, THREADS<D>>(k, p.k.at(j0 + N, key_head), p.k.row, block.end - j0 - N,
                                           p.d);
            kd_copy_commit();
        }
        if (!seen) continue;
        if (p.softcap > 0) cap<D>(s, p);
        if (!whole) hide<D>(s, p, row0 + first, j0);
        soften<D>(state, s, p.scale);
        gather<D>(state, s, v);
    }
    store<D>(state, p, q, row0, first, head);
}

/* ---- launching -------------------------------------------------------------------------------- */

template <int D> kd_status launch(kd_exec *exec, const Params &p, int heads)
{
    KD_TRY(kd_allow_shared(flash_kernel<D>, SHARED_BYTES<D>));
    const kd_grid grid = { dim3((unsigned)p.blocks * (unsigned)heads), dim3(THREADS<D>),
                           SHARED_BYTES<D> };
    return kd_launch(exec, "attention", flash_kernel<D>, grid, p);
}

kd_status flash(kd_exec *exec, const kd_attention_args *args, const kd_tensor *seen)
{
    const float log2_e = 1.44269504f, softcap = args->softcap;
    const int heads = (int)args->q->shape[1];
    Params p = {};
    p.o = kd_heads_of<bf16>(args->o);
    p.lse = { (float *)args->lse->data, args->lse->stride[1], args->lse->stride[0] };
    p.q = kd_heads_of<const bf16>(args->q);
    p.k = kd_heads_of<const bf16>(args->k);
    p.v = kd_heads_of<const bf16>(args->v);
    p.seen = (const kd_seen *)seen->data;
    p.rows = (int)args->q->shape[0];
    p.blocks = (int)kd_ceil_div(p.rows, QUERIES);
    p.group = heads / (int)args->k->shape[1];
    p.d = (int)args->q->shape[2];
    p.scale = softcap > 0 ? log2_e : log2_e * args->scale;
    p.softcap = softcap;
    p.inner = softcap > 0 ? args->scale / softcap : 0;
    if (p.d <= 32) return launch<32>(exec, p, heads);
    if (p.d <= 64) return launch<64>(exec, p, heads);
    if (p.d <= 96) return launch<96>(exec, p, heads);
    if (p.d <= 128) return launch<128>(exec, p, heads);
    if (p.d <= 192) return launch<192>(exec, p, heads);
    return launch<256>(exec, p, heads);
}

/* A scale below zero would make the largest score the smallest. */
bool fits(kd_exec *exec, const kd_attention_args *args)
{
    return args->q->dtype == KD_BF16 && args->scale > 0 &&
           kd_rows_aligned(args->q, args->k, args->v, args->o) &&
           kd_cuda_limits_of(exec)->shared >= SHARED_BYTES<256>;
}

} // namespace

extern "C" kd_status kd_attention_cuda(kd_exec *exec, const kd_attention_args *args)
{
    if (!fits(exec, args)) return kd_attention_plain(exec, args);
    kd_tensor seen;
    KD_TRY(kd_attention_seen(&seen, exec, args, false));
    if (kd_planning(exec) || kd_tensor_elements(args->q) == 0) return KD_OK;
    return flash(exec, args, &seen);
}
