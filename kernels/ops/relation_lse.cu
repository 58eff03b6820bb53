/*
 * relation_lse on CUDA, the fast way for bf16 rows of up to 256 elements, a multiple of 8, that lie at
 * multiples of 16 bytes; relation_plain.cu is for every shape.
 *
 * Grid      a block per ROWS query rows and head, the last rows first: the longest where causal.  It
 *           holds them in registers and streams the keys, in two stages, through shared memory.
 * Work      1 product of [N, N, d]: half of what attention takes, whose values nobody wants here.
 * Traffic   a and lse once, b once per ROWS query rows, from L2.
 * Numerics  f32; 2^x and log2 within 2^-22, tanh within 3e-7.
 * Same bits nobody adds to what another wrote.
 */
#include "common/rows.cuh"
#include "ops/attention_products.cuh"
#include "ops/relation.cuh"

namespace {

/* Of a kernel for heads of up to D elements: TILES tiles of 16 own rows for each of WARPS warps; STAGE
 * other rows in shared memory at a time, of which CHUNK at a time become scores. */
template <int D_, int TILES_, int WARPS_, int STAGE_, int CHUNK_> struct Shape {
    static constexpr int D = D_, TILES = TILES_, WARPS = WARPS_, STAGE = STAGE_, CHUNK = CHUNK_;
    static constexpr int THREADS = WARPS * KD_WARP, ROWS = WARPS * TILES * 16;
    static constexpr int BLOCKS = 512 / THREADS; /* of a multiprocessor, at least: 127 registers */
    /* Two stages of other rows and, before the first of them, the own rows. */
    static constexpr size_t SHARED =
        (size_t)(ROWS > 2 * STAGE ? ROWS : 2 * STAGE) * D * sizeof(bf16);
};

/* Per own row, as mma.cuh has rows: g and g + 8 of every tile. */
template <class S> using Values = float[S::TILES][2];

struct Params {
    kd_heads<const bf16> own, other;
    kd_heads<float> lse;
    const kd_seen *seen;
    int rows, group, d;
    kd_side side;
};

/* m and l move on to a chunk of scores in the base of the exponentials; a row's m is that of its 4
 * lanes, its l the lane's part. */
template <class S, int N>
__device__ __forceinline__ void soften(Values<S> &m, Values<S> &l, const float (&s)[S::TILES][N][4])
{
#pragma unroll
    for (int i = 0; i < 2 * S::TILES; i++) {
        const int r = i % 2 * 2;
        float &high = m[i / 2][i % 2], top = high;
#pragma unroll
        for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[i / 2][n][r], s[i / 2][n][r + 1]));
        top = fmaxf(top, __shfl_xor_sync(KD_ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(KD_ALL_LANES, top, 2));
        const float base = top == -INFINITY ? 0 : top;
        float sum = l[i / 2][i % 2] * kd_exp2(high - base);
#pragma unroll
        for (int n = 0; n < N; n++)
            sum += kd_exp2(s[i / 2][n][r] - base) + kd_exp2(s[i / 2][n][r + 1] - base);
        l[i / 2][i % 2] = sum;
        high = top;
    }
}

/* From products to scores in the base of the exponentials; -inf where the row does not see the key. */
template <class S, int N>
__device__ __forceinline__ void score(float (&s)[S::TILES][N][4], const Params &p, int own_first,
                                      int other_first, bool all_seen)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int i = 0; i < 2 * S::TILES; i++) {
        const int row = own_first + i * 8 + lane / 4;
        kd_seen seen = { 0, INT32_MAX };
        if (!all_seen) seen = row < p.rows ? p.seen[row] : kd_seen{ 0, 0 };
        const int begin = seen.begin - other_first - lane % 4 * 2;
        const int end = seen.end - other_first - lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float &x = s[i / 2][n][i % 2 * 2 + c];
                if (p.side.inner > 0) x = kd_tanh(x * p.side.inner);
                x = n * 8 + c < begin || n * 8 + c >= end ? -INFINITY : x * p.side.exponent;
            }
    }
}

/* The own rows to registers, through the memory of the stages. */
template <class S>
__device__ __forceinline__ void load_operand(Operand<S> &own, bf16 *shared, const Params &p,
                                             int first, int head)
{
    kd_tile_copy<S::D, S::ROWS, S::THREADS>(shared, p.own.at(first, head), p.own.row,
                                            p.rows - first, p.d);
    kd_copy_commit();
    kd_copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < S::D / 16; k++) load_own<S>(own[k], shared, offset_of_own<S>(), k);
    __syncthreads();
}

template <class S>
__device__ __forceinline__ void copy_stage(bf16 *to, const Params &p, int first, int end, int head)
{
    kd_tile_copy<S::D, S::STAGE, S::THREADS>(to, p.other.at(first, head / p.group), p.other.row,
                                             end - first, p.d);
    kd_copy_commit();
}

template <class S> __global__ void __launch_bounds__(S::THREADS, S::BLOCKS) lse_kernel(Params p)
{
    KD_DYN_SHARED(bf16, shared);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP, head = blockIdx.y;
    const int first = ((int)gridDim.x - 1 - (int)blockIdx.x) * S::ROWS;
    const int own_first = first + warp * S::TILES * 16;
    const kd_reach block = kd_reach_of(p.seen, first, min(first + S::ROWS, p.rows));
    const kd_reach own = kd_reach_of(p.seen, own_first, min(own_first + S::TILES * 16, p.rows));
    Operand<S> operand;
    load_operand<S>(operand, shared, p, first, head);

    Values<S> m, l = {};
#pragma unroll
    for (int i = 0; i < 2 * S::TILES; i++) m[i / 2][i % 2] = -INFINITY;
    if (block.begin < block.end) copy_stage<S>(shared, p, block.begin, block.end, head);
    for (int j0 = block.begin, stage = 0; j0 < block.end; j0 += S::STAGE, stage ^= 1) {
        bf16 *const here = shared + stage * S::STAGE * S::D;
        bf16 *const next = shared + (stage ^ 1) * S::STAGE * S::D;
        kd_copy_wait<0>();
        __syncthreads(); /* also: nobody reads the other stage any more */
        if (j0 + S::STAGE < block.end) copy_stage<S>(next, p, j0 + S::STAGE, block.end, head);
#pragma unroll 1
        for (int at = 0; at < S::STAGE; at += S::CHUNK) {
            const int other = j0 + at, end = other + S::CHUNK;
            if (end <= own.begin || other >= own.end) continue;
            float s[S::TILES][S::CHUNK / 8][4] = {};
            const int offset = offset_by_columns<S::D>(at);
#pragma unroll
            for (int k = 0; k < S::D / 16; k++) add_scores<S>(s, operand[k], here, offset, k);
            score<S>(s, p, own_first, other, other >= own.all_begin && end <= own.all_end);
            soften<S>(m, l, s);
        }
    }
    const float poison = p.seen[first].begin < 0 ? NAN : 0; /* no offsets: NaN everywhere */
#pragma unroll
    for (int i = 0; i < 2 * S::TILES; i++) {
        const int row = own_first + i * 8 + lane / 4;
        float sum = l[i / 2][i % 2];
        sum += __shfl_xor_sync(KD_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(KD_ALL_LANES, sum, 2);
        if (lane % 4 == 0 && row < p.rows)
            *p.lse.at(row, head) =
                (sum == 0 ? -INFINITY : LN2 * (m[i / 2][i % 2] + kd_log2(sum))) + poison;
    }
}

template <int D, int TILES, int WARPS, int STAGE, int CHUNK>
kd_status launch(kd_exec *exec, const Params &p, int64_t heads)
{
    using S = Shape<D, TILES, WARPS, STAGE, CHUNK>;
    KD_TRY(kd_allow_shared(lse_kernel<S>, S::SHARED));
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, S::ROWS), (unsigned)heads),
                           dim3(S::THREADS), S::SHARED };
    return kd_launch(exec, "relation lse", lse_kernel<S>, grid, p);
}

kd_status fast(kd_exec *exec, const kd_relation_lse_args *args)
{
    const int64_t heads = args->a->shape[1], d = args->a->shape[2];
    kd_tensor seen;
    KD_TRY(kd_relation_lse_seen(&seen, exec, args));
    if (kd_planning(exec) || args->a->shape[0] == 0) return KD_OK;
    Params p = {};
    p.own = kd_heads_of<const bf16>(args->a);
    p.other = kd_heads_of<const bf16>(args->b);
    p.lse = { (float *)args->lse->data, args->lse->stride[1], args->lse->stride[0] };
    p.seen = (const kd_seen *)seen.data;
    p.rows = (int)args->a->shape[0];
    p.group = (int)(heads / args->b->shape[1]);
    p.d = (int)d;
    p.side = kd_side_of(args->scores, args->temperature, LOG2E);
    if (d <= 32) return launch<32, 2, 4, 64, 32>(exec, p, heads);
    if (d <= 64) return launch<64, 2, 4, 64, 32>(exec, p, heads);
    if (d <= 128) return launch<128, 1, 8, 64, 16>(exec, p, heads);
    return launch<256, 1, 4, 32, 16>(exec, p, heads);
}

bool fits(const kd_exec *exec, const kd_relation_lse_args *args)
{
    constexpr size_t SHARED = Shape<128, 1, 8, 64, 16>::SHARED; /* the most */
    static_assert(SHARED >= Shape<256, 1, 4, 32, 16>::SHARED, "the most");
    return kd_relation_is_fast(exec, args->a, SHARED) && kd_rows_aligned(args->a, args->b);
}

} // namespace

extern "C" kd_status kd_relation_lse_cuda(kd_exec *exec, const kd_relation_lse_args *args)
{
    return fits(exec, args) ? fast(exec, args) : kd_relation_lse_plain(exec, args);
}
