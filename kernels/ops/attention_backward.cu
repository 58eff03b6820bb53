/*
 * The gradient of attention on CUDA; src/ops/attention.c has the mathematics, attention_plain.cu the
 * way for every shape.  This is the way for bf16 rows of up to 256 elements, a multiple of 8, that
 * lie at multiples of 16 bytes.
 *
 * Scheme    A block owns rows, across documents: keys for dk and dv, queries for dq.  It holds them in
 *           registers and streams the rows of the other side, in two stages, through shared memory:
 *               s  = own1 other1'      own1, other1: k, q for keys;   q, k for queries
 *               dp = own2 other2'      own2, other2: v, dout;         dout, v
 *               sum2 += p other2       dv, of keys alone
 *               sum1 += ds other1      dk or dq
 *           p and ds leave the first two products where the last two want them: no shared memory in
 *           between, and one barrier a stage.  The query heads of a group follow each other, so dk
 *           and dv are written once; where that leaves multiprocessors idle (few key heads), parts of
 *           the group are blocks of their own, whose f32 sums are added in order.
 * Work      s and dp are computed twice, for keys and for queries: 7 products of [Tq, Tk, d] in place
 *           of 5.  The 5 need sums of dq over blocks: with atomics, not the same bits every run; or as
 *           f32 partials, 0.8 bytes / 128 keys per operation, 1.5 TB/s at 250 TF/s, and scratch of
 *           H Nq d Tk / 128.  Above 128 elements sums of both dk and dv do not fit the registers:
 *           dv is a kernel of its own, 8 products.
 * Bounds    (worked out, not measured) A matrix load of 512 bytes, 4 clocks, feeds 2 (d > 64) or 4
 *           products of 16 x 8 x 16, at 1.6 clocks each on an H100 and 2 on an A100: above 64 shared
 *           memory holds mma.sync to 0.7 of its rate, 300 TF/s counted as 5 products.  Other rows
 *           come once per 128 own rows, from L2: 1/256 byte per operation.
 * Numerics  Sums in f32.  p and ds are rounded to bf16 where they become operands: a relative 2^-9 of
 *           each term.  2^x within 2^-22.
 * Same bits a block adds in the order of heads and rows; nobody adds to what another wrote.
 */
#include "common/rows.cuh"
#include "ops/attention_products.cuh"
#include "ops/attention_statistics.cuh"

namespace {

/* ---- shapes ----------------------------------------------------------------------------------- */

/*
 * Of a kernel for heads of up to D elements: TILES tiles of 16 own rows for each of WARPS warps; STAGE
 * other rows in shared memory at a time, of which CHUNK at a time become scores.  FIRST and SECOND:
 * which sums it makes.
 */
template <int D_, int TILES_, int WARPS_, int STAGE_, int CHUNK_, bool KEYS_, bool FIRST_,
          bool SECOND_>
struct Shape {
    static constexpr int D = D_, TILES = TILES_, WARPS = WARPS_, STAGE = STAGE_, CHUNK = CHUNK_;
    static constexpr bool KEYS = KEYS_, FIRST = FIRST_, SECOND = SECOND_;
    static constexpr int THREADS = WARPS * KD_WARP, ROWS = WARPS * TILES * 16;
    /* Registers do not hold both operands and the sums: own2 stays in shared memory. */
    static constexpr bool KEPT = FIRST && D > 192;
    static constexpr int BLOCKS = 256 / THREADS; /* of a multiprocessor, at least: 255 registers */

    /* Elements of bf16: own2 where it is kept; then two stages of other1 and other2, and before
     * the first of them the own rows. */
    static constexpr int KEPT_AT = ROWS * D, OWN = (FIRST && !KEPT ? 2 : 1) * ROWS * D;
    static constexpr int STAGES = 2 * 2 * STAGE * D;
    static constexpr int STATISTICS = STAGE + 2; /* of a stage; the first row may be odd */
    static constexpr size_t SHARED =
        (size_t)((KEPT ? KEPT_AT : 0) + (OWN > STAGES ? OWN : STAGES)) * sizeof(bf16) +
        2 * STATISTICS * sizeof(Statistics);
};

struct Params {
    kd_heads<const bf16> own1, own2, other1, other2;
    kd_heads<bf16> out1, out2;
    const kd_seen *seen;          /* by own rows */
    const Statistics *statistics; /* [H, stride] */
    float *partial;               /* sums of some heads of a group: [2, parts, rows, heads, d] */
    int64_t stride;
    int rows, queries; /* own rows; all queries */
    int group, share;  /* query heads of a key head, and of a part of them */
    int d;
    float scale, softcap;
    float inner;    /* softcap: scores are softcap tanh(inner product) */
    float exponent; /* of 2: times a product or, with a softcap, its tanh */
};

/* ---- scores to weights and gradients ---------------------------------------------------------- */

/* s becomes p and dp becomes ds.  `mine`: of the rows (row g, row g + 8 of every tile); `theirs`: of
 * the CHUNK other rows. */
template <class S, bool CAPPED, int N>
__device__ __forceinline__ void weigh(float (&s)[S::TILES][N][4], float (&dp)[S::TILES][N][4],
                                      const Statistics (&mine)[S::TILES][2],
                                      const Statistics *theirs, const Params &p)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int n = 0; n < N; n++) {
        Statistics column[2] = {};
        if (S::KEYS) {
            column[0] = theirs[n * 8 + lane % 4 * 2];
            column[1] = theirs[n * 8 + lane % 4 * 2 + 1];
        }
#pragma unroll
        for (int t = 0; t < S::TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const Statistics of = S::KEYS ? column[i % 2] : mine[t][i / 2];
                float score = s[t][n][i], slope = dp[t][n][i] - of.delta;
                if (CAPPED) {
                    score = kd_tanh(score * p.inner);
                    slope *= 1 - score * score;
                }
                s[t][n][i] = kd_exp2(score * p.exponent - of.lse);
                if (S::FIRST) dp[t][n][i] = s[t][n][i] * slope;
            }
    }
}

/* ---- the kernel ------------------------------------------------------------------------------- */

/* What a block has in shared memory. */
template <class S> struct Tiles {
    bf16 *kept, *stages;
    Statistics *statistics;

    __device__ __forceinline__ bf16 *other(int stage, int operand) const
    {
        return stages + (stage * 2 + operand) * S::STAGE * S::D;
    }
};

template <class S> __device__ __forceinline__ Tiles<S> tiles_of(bf16 *shared)
{
    Statistics *statistics = (Statistics *)((char *)shared + S::SHARED) - 2 * S::STATISTICS;
    return { shared, shared + (S::KEPT ? S::KEPT_AT : 0), statistics };
}

/* The first of a stage's other rows, and their head. */
struct Place {
    int first, head;
};

/* Starts to copy other rows from `at` to `end`, as far as a stage goes; and what is known of them
 * where they are queries. */
template <class S>
__device__ __forceinline__ void copy_stage(const Tiles<S> &tiles, int stage, const Params &p,
                                           Place at, int end)
{
    kd_tile_copy<S::D, S::STAGE, S::THREADS>(tiles.other(stage, 0), p.other1.at(at.first, at.head),
                                             p.other1.row, end - at.first, p.d);
    kd_tile_copy<S::D, S::STAGE, S::THREADS>(tiles.other(stage, 1), p.other2.at(at.first, at.head),
                                             p.other2.row, end - at.first, p.d);
    if (S::KEYS && threadIdx.x < S::STATISTICS / 2) {
        const int pair = threadIdx.x * 2, row = at.first / 2 * 2 + pair;
        kd_copy_async(tiles.statistics + stage * S::STATISTICS + pair,
                      p.statistics + at.head * p.stride + row, row < p.queries);
    }
    kd_copy_commit();
}

/* The own rows: to registers, but for a second operand that is kept. */
template <class S>
__device__ __forceinline__ void load_operands(Operand<S> &own1, Operand<S> &own2,
                                              const Tiles<S> &tiles, const Params &p, int first,
                                              int head)
{
    const int rows = p.rows - first;
    bf16 *second = S::KEPT ? tiles.kept : tiles.stages + S::ROWS * S::D;
    kd_tile_copy<S::D, S::ROWS, S::THREADS>(tiles.stages, p.own1.at(first, head), p.own1.row, rows,
                                            p.d);
    if (S::FIRST)
        kd_tile_copy<S::D, S::ROWS, S::THREADS>(second, p.own2.at(first, head), p.own2.row, rows,
                                                p.d);
    kd_copy_commit();
    kd_copy_wait<0>();
    __syncthreads();
    const int offset = offset_of_own<S>();
#pragma unroll
    for (int k = 0; k < S::D / 16; k++) {
        load_own<S>(own1[k], tiles.stages, offset, k);
        if (S::FIRST && !S::KEPT) load_own<S>(own2[k], second, offset, k);
    }
    __syncthreads(); /* before the stages come to lie there */
}

template <class S, class T>
__device__ __forceinline__ void store(const kd_heads<T> &out, const Sum<S> &sum, const Params &p,
                                      int first, int head, float factor)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + t * 16 + half * 8 + lane / 4;
            if (row >= p.rows) continue;
            T *to = out.at(row, head) + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                const float pair[2] = { sum[t][n][half * 2] * factor,
                                        sum[t][n][half * 2 + 1] * factor };
                if (n * 8 < p.d) kd_store(to + n * 8, pair);
            }
        }
}

/* Where a chunk of other rows is: from row `at` of a stage, which is row `first` of all. */
struct Chunk {
    int stage, at, first;
};

/* What CHUNK other rows add to the sums; `all_seen`: by all of the warp's rows, from `own_first`. */
template <class S>
__device__ __forceinline__ void add_chunk(Sum<S> &sum1, Sum<S> &sum2, const Operand<S> &own1,
                                          const Operand<S> &own2,
                                          const Statistics (&mine)[S::TILES][2],
                                          const Tiles<S> &tiles, const Params &p, Chunk c,
                                          int own_first, bool all_seen)
{
    bf16 *const other1 = tiles.other(c.stage, 0), *const other2 = tiles.other(c.stage, 1);
    float s[S::TILES][S::CHUNK / 8][4] = {}, dp[S::TILES][S::CHUNK / 8][4] = {};
    const int offset = offset_by_columns<S::D>(c.at);
#pragma unroll
    for (int k = 0; k < S::D / 16; k++) {
        add_scores<S>(s, own1[k], other1, offset, k);
        if (S::KEPT) {
            uint32_t a[S::TILES][4];
            load_own<S>(a, tiles.kept, offset_of_own<S>(), k);
            add_scores<S>(dp, a, other2, offset, k);
        } else if (S::FIRST) {
            add_scores<S>(dp, own2[k], other2, offset, k);
        }
    }
    const int odd = (c.first - c.at) % 2; /* the stage's first row */
    const Statistics *theirs = tiles.statistics + c.stage * S::STATISTICS + c.at + odd;
    if (p.softcap > 0)
        weigh<S, true>(s, dp, mine, theirs, p);
    else
        weigh<S, false>(s, dp, mine, theirs, p);
    if (!all_seen) hide<S>(s, dp, p, own_first, c.first);
    if (S::SECOND) add_products<S>(sum2, s, other2, c.at);
    if (S::FIRST) add_products<S>(sum1, dp, other1, c.at);
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) backward_kernel(Params p)
{
    KD_DYN_SHARED(bf16, shared);
    const Tiles<S> tiles = tiles_of<S>(shared);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP;
    /* Where it is causal, the first keys and the last queries have most to do. */
    const int tile = S::KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    const int first = tile * S::ROWS, own_first = first + warp * S::TILES * 16;
    const int head = blockIdx.y;
    const int other_head = S::KEYS ? head * p.group + blockIdx.z * p.share : head / p.group;
    const int last_head =
        S::KEYS ? min(other_head + p.share, (head + 1) * p.group) : other_head + 1;
    const kd_reach block = kd_reach_of(p.seen, first, min(first + S::ROWS, p.rows));
    const kd_reach own = kd_reach_of(p.seen, own_first, min(own_first + S::TILES * 16, p.rows));

    Operand<S> own1, own2;
    load_operands<S>(own1, own2, tiles, p, first, head);
    Statistics mine[S::TILES][2] = {};
#pragma unroll
    for (int t = 0; t < 2 * S::TILES && !S::KEYS; t++) {
        const int row = own_first + t * 8 + lane / 4;
        if (row < p.rows) mine[t / 2][t % 2] = p.statistics[head * p.stride + row];
    }
    Sum<S> sum1 = {}, sum2 = {};

    Place here = { block.begin, block.begin < block.end ? other_head : last_head };
    if (here.head < last_head) copy_stage<S>(tiles, 0, p, here, block.end);
    for (int stage = 0; here.head < last_head; stage ^= 1) {
        Place next = { here.first + S::STAGE, here.head };
        if (next.first >= block.end) next = { block.begin, here.head + 1 };
        kd_copy_wait<0>();
        __syncthreads(); /* also: nobody reads the other stage any more */
        if (next.head < last_head) copy_stage<S>(tiles, stage ^ 1, p, next, block.end);
#pragma unroll 1
        for (int at = 0; at < S::STAGE; at += S::CHUNK) {
            const int other = here.first + at;
            if (other + S::CHUNK <= own.begin || other >= own.end) continue;
            const bool all_seen = other >= own.all_begin && other + S::CHUNK <= own.all_end;
            add_chunk<S>(sum1, sum2, own1, own2, mine, tiles, p, { stage, at, other }, own_first,
                         all_seen);
        }
        here = next;
    }
    const float poison = p.seen[first].begin < 0 ? NAN : 1; /* no offsets: NaN everywhere */
    if (gridDim.z == 1) {
        if (S::FIRST) store<S>(p.out1, sum1, p, own_first, head, p.scale * poison);
        if (S::SECOND) store<S>(p.out2, sum2, p, own_first, head, poison);
        return;
    }
    const int64_t row = (int64_t)gridDim.y * p.d, size = p.rows * row;
    const kd_heads<float> part1 = { p.partial + blockIdx.z * size, row, p.d };
    const kd_heads<float> part2 = { part1.data + gridDim.z * size, row, p.d };
    if (S::FIRST) store<S>(part1, sum1, p, own_first, head, p.scale * poison);
    if (S::SECOND) store<S>(part2, sum2, p, own_first, head, poison);
}

/* ---- sums of parts ---------------------------------------------------------------------------- */

constexpr int PART_THREADS = 256;

struct PartsParams {
    kd_heads<bf16> to1, to2;
    const float *from; /* [2, parts, rows, heads, d] */
    int64_t size;      /* rows heads d */
    int heads, d, parts;
};

/* A thread has 4 elements of to1 or to2. */
__global__ void __launch_bounds__(PART_THREADS) parts_kernel(PartsParams p)
{
    const int64_t at = ((int64_t)blockIdx.x * PART_THREADS + threadIdx.x) * 4;
    if (at >= p.size) return;
    float sum[4] = {};
    for (int part = 0; part < p.parts; part++) {
        float x[4];
        kd_load(x, p.from + ((int64_t)blockIdx.y * p.parts + part) * p.size + at);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += x[i];
    }
    const int64_t head = at / p.d;
    bf16 *to = (blockIdx.y ? p.to2 : p.to1).at(head / p.heads, head % p.heads);
    kd_store(to + at % p.d, sum);
}

/* ---- launches --------------------------------------------------------------------------------- */

template <class S>
kd_status launch(kd_exec *exec, const Params &p, int64_t heads, int64_t parts = 1)
{
    if (p.rows == 0) return KD_OK;
    KD_TRY(kd_allow_shared(backward_kernel<S>, S::SHARED));
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, S::ROWS), (unsigned)heads,
                                (unsigned)parts),
                           dim3(S::THREADS), S::SHARED };
    return kd_launch(exec, "attention_backward", backward_kernel<S>, grid, p);
}

struct Scratch {
    kd_tensor statistics, seen_by_queries, seen_by_keys, partial;
};

Params params_of(const kd_attention_backward_args *args, const Scratch &scratch, bool keys)
{
    Params p = {};
    p.own1 = kd_heads_of<const bf16>(keys ? args->k : args->q);
    p.own2 = kd_heads_of<const bf16>(keys ? args->v : args->dout);
    p.other1 = kd_heads_of<const bf16>(keys ? args->q : args->k);
    p.other2 = kd_heads_of<const bf16>(keys ? args->dout : args->v);
    p.out1 = kd_heads_of<bf16>(keys ? args->dk : args->dq);
    p.out2 = kd_heads_of<bf16>(args->dv);
    p.seen = (const kd_seen *)(keys ? scratch.seen_by_keys : scratch.seen_by_queries).data;
    p.statistics = (const Statistics *)scratch.statistics.data;
    p.partial = (float *)scratch.partial.data;
    p.stride = scratch.statistics.shape[1];
    p.rows = (int)(keys ? args->k : args->q)->shape[0];
    p.queries = (int)args->q->shape[0];
    p.group = (int)(args->q->shape[1] / args->k->shape[1]);
    p.d = (int)args->q->shape[2];
    p.scale = args->scale;
    p.softcap = args->softcap;
    p.inner = p.softcap > 0 ? p.scale / p.softcap : 0;
    p.exponent = LOG2E * (p.softcap > 0 ? p.softcap : p.scale);
    return p;
}

kd_status launch_statistics(kd_exec *exec, const kd_attention_backward_args *args,
                            const Scratch &scratch)
{
    StatisticsParams p = {};
    p.to = (Statistics *)scratch.statistics.data;
    p.o = kd_heads_of<const bf16>(args->o);
    p.dout = kd_heads_of<const bf16>(args->dout);
    p.lse = { (const float *)args->lse->data, args->lse->stride[1], args->lse->stride[0] };
    p.rows = args->q->shape[0];
    p.stride = scratch.statistics.shape[1];
    p.heads = (int)args->q->shape[1];
    p.d = (int)args->q->shape[2];
    if (p.rows == 0) return KD_OK;
    const int64_t blocks = kd_ceil_div(p.rows * p.heads * ROW_LANES, ROW_THREADS);
    return kd_launch(exec, "attention statistics", statistics_kernel,
                     { dim3((unsigned)blocks), dim3(ROW_THREADS) }, p);
}

kd_status launch_parts(kd_exec *exec, const Params &keys, int64_t heads, int64_t parts)
{
    const PartsParams p = { keys.out1,  keys.out2, keys.partial, keys.rows * heads * keys.d,
                            (int)heads, keys.d,    (int)parts };
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.size, 4 * PART_THREADS), 2),
                           dim3(PART_THREADS) };
    return kd_launch(exec, "attention parts", parts_kernel, grid, p);
}

/* Heads of up to D elements; see Shape. */
template <int D, int TILES, int WARPS, int STAGE, int KEYS_CHUNK, int QUERIES_CHUNK>
kd_status backward(kd_exec *exec, const kd_attention_backward_args *args, Scratch scratch)
{
    using Both = Shape<D, TILES, WARPS, STAGE, KEYS_CHUNK, true, true, true>;
    using First = Shape<D, TILES, WARPS, STAGE, KEYS_CHUNK, true, true, false>;
    using Second = Shape<D, TILES, WARPS, STAGE, KEYS_CHUNK, true, false, true>;
    using Queries = Shape<D, TILES, WARPS, STAGE, QUERIES_CHUNK, false, true, false>;
    const int64_t heads = args->q->shape[1], groups = args->k->shape[1], rows = args->k->shape[0];
    const int64_t group = heads / groups;
    const int64_t blocks = kd_max_i64(kd_ceil_div(rows, Both::ROWS) * groups, 1);
    const int64_t wanted = 2 * Both::BLOCKS * kd_cuda_limits_of(exec)->multiprocessors;
    const int64_t share = kd_ceil_div(group, kd_max_i64(kd_min_i64(wanted / blocks, group), 1));
    const int64_t parts = kd_ceil_div(group, share);
    if (parts > 1)
        KD_TRY(kd_push(&scratch.partial, exec, "attention.parts", KD_F32,
                       KD_SHAPE(2 * parts, rows, groups * args->k->shape[2])));
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(launch_statistics(exec, args, scratch));
    KD_TRY(launch<Queries>(exec, params_of(args, scratch, false), heads));
    Params keys = params_of(args, scratch, true);
    keys.share = (int)share;
    if constexpr (D <= 128) {
        KD_TRY(launch<Both>(exec, keys, groups, parts));
    } else {
        KD_TRY(launch<First>(exec, keys, groups, parts));
        KD_TRY(launch<Second>(exec, keys, groups, parts));
    }
    return parts > 1 && rows > 0 ? launch_parts(exec, keys, groups, parts) : KD_OK;
}

kd_status flash(kd_exec *exec, const kd_attention_backward_args *args)
{
    const int64_t rows = args->q->shape[0], heads = args->q->shape[1], d = args->q->shape[2];
    const kd_attention_args of_forward = kd_attention_forward_of(args);
    Scratch scratch = {};
    /* An even number of rows, so that two begin at a multiple of 16 bytes. */
    KD_TRY(kd_push(&scratch.statistics, exec, "attention.statistics", KD_F32,
                   KD_SHAPE(heads, rows + rows % 2, 2)));
    KD_TRY(kd_attention_seen(&scratch.seen_by_queries, exec, &of_forward, false));
    KD_TRY(kd_attention_seen(&scratch.seen_by_keys, exec, &of_forward, true));
    if (d <= 32) return backward<32, 2, 4, 64, 32, 32>(exec, args, scratch);
    if (d <= 64) return backward<64, 2, 4, 64, 16, 16>(exec, args, scratch);
    if (d <= 96) return backward<96, 1, 8, 64, 32, 32>(exec, args, scratch);
    if (d <= 128) return backward<128, 1, 8, 64, 16, 32>(exec, args, scratch);
    if (d <= 192) return backward<192, 1, 8, 32, 16, 16>(exec, args, scratch);
    return backward<256, 1, 4, 16, 16, 16>(exec, args, scratch);
}

bool flash_fits(const kd_exec *exec, const kd_attention_backward_args *args)
{
    constexpr size_t SHARED = Shape<192, 1, 8, 32, 16, true, true, false>::SHARED; /* the most */
    const kd_cuda_limits *limits = kd_cuda_limits_of(exec);
    return args->q->dtype == KD_BF16 && limits->capability >= 80 && limits->shared >= SHARED &&
           kd_max_i64(args->q->shape[0], args->k->shape[0]) < INT32_MAX / 2 &&
           kd_rows_aligned(args->q, args->k, args->v, args->o, args->dout, args->dq, args->dk,
                           args->dv);
}

} // namespace

extern "C" kd_status kd_attention_backward_cuda(kd_exec *exec,
                                                const kd_attention_backward_args *args)
{
    return flash_fits(exec, args) ? flash(exec, args) : kd_attention_backward_plain(exec, args);
}
