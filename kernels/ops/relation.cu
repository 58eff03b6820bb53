/*
 * relation on CUDA, the fast way for bf16 rows of both sides of up to 256 elements, a multiple of 8,
 * that lie at multiples of 16 bytes; relation_plain.cu is for every shape, and src/ops/relation.c has
 * the mathematics.
 *
 * Scheme    A block owns rows, across documents: queries for losses and da, keys for db.  It holds those
 *           of the student and of the teacher in registers and streams the rows of the other side, in two
 *           stages, through shared memory:
 *               s = own other'      of the student; t = own other' of the teacher, of another width
 *               sum += ds other     of the student: da or db
 *           ds leaves the products where the sum wants it: no shared memory in between, one barrier a
 *           stage.  With the log-sum-exp known, a score is final when it is computed.  Query heads
 *           that share both key heads follow each other; more of a group come as further launches,
 *           which add to what the one before wrote.
 * Work      3 products of [N, N, d] (2 without da) for queries and 3 for keys, in place of 4: db from the
 *           queries' sweep would need atomics, not the same bits every run.  A side narrower than the
 *           kernel's D skips its products in steps of 16 columns.
 * Traffic   own rows once; other rows once per ROWS own rows, from L2.
 * Numerics  sums in f32; ds is rounded to bf16 where it becomes an operand: a relative 2^-9 of each
 *           term, taken of the difference q - p itself.  2^x within 2^-22, tanh within 3e-7.
 * Same bits a block adds in the order of heads and rows; nobody adds to what another wrote but the
 *           launches that follow each other, so da may be db.
 */
#include "common/rows.cuh"
#include "ops/attention_products.cuh"
#include "ops/relation.cuh"

namespace {

/* ---- shapes ----------------------------------------------------------------------------------- */

/* Of a kernel for heads of up to D elements: TILES tiles of 16 own rows for each of WARPS warps; STAGE
 * other rows in shared memory at a time, of which CHUNK at a time become scores. */
template <int D_, int TILES_, int WARPS_, int STAGE_, int CHUNK_, bool KEYS_> struct Shape {
    static constexpr int D = D_, TILES = TILES_, WARPS = WARPS_, STAGE = STAGE_, CHUNK = CHUNK_;
    static constexpr bool KEYS = KEYS_;
    static constexpr int THREADS = WARPS * KD_WARP, ROWS = WARPS * TILES * 16;
    /* Registers do not hold both operands and the sums: the teacher's stays in shared memory. */
    static constexpr bool KEPT = D > 128;
    static constexpr int BLOCKS = 256 / THREADS; /* of a multiprocessor, at least: 255 registers */

    /* Elements of bf16: the teacher's own rows where they are kept; then two stages of both sides'
     * other rows and, before the first of them, the own rows. */
    static constexpr int KEPT_AT = KEPT ? ROWS * D : 0, OWN = (KEPT ? 1 : 2) * ROWS * D;
    static constexpr int STAGES = 2 * 2 * STAGE * D;
    static constexpr size_t TILE_BYTES =
        (size_t)(KEPT_AT + (OWN > STAGES ? OWN : STAGES)) * sizeof(bf16);
    static constexpr size_t SHARED = TILE_BYTES + (KEYS ? 2 * STAGE * 16 : 0);
};

/* Of a query row and head, as the scores want it. */
struct alignas(16) Statistics {
    float lse, teacher_lse; /* times log2 e; 0 where -inf: the weights are then 2^-inf */
    float factor;           /* of ds; 0: the row does not count */
    float share;            /* of the value: MSE, 1 / keys that the row sees */
};

struct Params {
    kd_heads<const bf16> own1, own2, other1, other2; /* 1: student; 2: teacher */
    kd_heads<bf16> out;                              /* data NULL: absent */
    const kd_seen *seen;                             /* by own rows */
    const Statistics *statistics;                    /* [R, rows] */
    float *value;                                    /* [R, rows]; queries */
    const float *scale;
    int rows;
    int group, teacher_group; /* query heads of a key head */
    int first_head, share;    /* keys: of a group's heads, the first and how many */
    int d, teacher_d;
    kd_side student, teacher;
    float unit;  /* of the gradient, besides *scale and the factors of rows */
    float floor; /* MSE: -inf where there is none */
    bool mse;
};

/* ---- scores to values and gradients ------------------------------------------------------------- */

/* s becomes ds and t what the pair adds to the value.  `mine`: of the rows (row g, row g + 8 of every
 * tile); `theirs`: of the CHUNK other rows. */
template <class S, bool CAPPED, bool MSE, int N>
__device__ __forceinline__ void compare(float (&s)[S::TILES][N][4], float (&t)[S::TILES][N][4],
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
        for (int tile = 0; tile < S::TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const Statistics &of = S::KEYS ? column[i % 2] : mine[tile][i / 2];
                float x = s[tile][n][i], y = t[tile][n][i], slope = of.factor;
                if (CAPPED && p.student.inner > 0) {
                    x = kd_tanh(x * p.student.inner);
                    slope *= 1 - x * x;
                }
                if (CAPPED && p.teacher.inner > 0) y = kd_tanh(y * p.teacher.inner);
                x *= p.student.exponent, y *= p.teacher.exponent;
                float value, ds;
                if (MSE) {
                    const bool none = x <= p.floor;
                    const float difference = (none ? 0 : x) - (y <= p.floor ? 0 : y);
                    value = difference * difference;
                    ds = none ? 0 : difference * slope;
                } else {
                    x -= of.lse, y -= of.teacher_lse;
                    const float weight = kd_exp2(y);
                    value = weight == 0 ? 0 : weight * (y - x);
                    ds = (kd_exp2(x) - weight) * slope;
                }
                s[tile][n][i] = of.factor == 0 ? 0 : ds;
                t[tile][n][i] = of.factor == 0 ? 0 : value;
            }
    }
}

template <class S, int N>
__device__ __forceinline__ void compare(float (&s)[S::TILES][N][4], float (&t)[S::TILES][N][4],
                                        const Statistics (&mine)[S::TILES][2],
                                        const Statistics *theirs, const Params &p)
{
    const bool capped = p.student.inner > 0 || p.teacher.inner > 0;
    if (p.mse && capped)
        compare<S, true, true>(s, t, mine, theirs, p);
    else if (p.mse)
        compare<S, false, true>(s, t, mine, theirs, p);
    else if (capped)
        compare<S, true, false>(s, t, mine, theirs, p);
    else
        compare<S, false, false>(s, t, mine, theirs, p);
}

/* ---- what a block has in shared memory ---------------------------------------------------------- */

template <class S> struct Tiles {
    bf16 *kept, *stages;
    Statistics *statistics; /* [2, STAGE] */

    __device__ __forceinline__ bf16 *other(int stage, int side) const
    {
        return stages + (stage * 2 + side) * S::STAGE * S::D;
    }
};

template <class S> __device__ __forceinline__ Tiles<S> tiles_of(bf16 *shared)
{
    return { shared, shared + S::KEPT_AT, (Statistics *)((char *)shared + S::TILE_BYTES) };
}

/* The first of a stage's other rows, and the query head. */
struct Place {
    int first, head;
};

/* Starts to copy other rows from `at` to `end`, as far as a stage goes; and what is known of them
 * where they are queries. */
template <class S>
__device__ __forceinline__ void copy_stage(const Tiles<S> &tiles, int stage, const Params &p,
                                           Place at, int end)
{
    const int head1 = S::KEYS ? at.head : at.head / p.group;
    const int head2 = S::KEYS ? at.head : at.head / p.teacher_group;
    kd_tile_copy<S::D, S::STAGE, S::THREADS>(tiles.other(stage, 0), p.other1.at(at.first, head1),
                                             p.other1.row, end - at.first, p.d);
    kd_tile_copy<S::D, S::STAGE, S::THREADS>(tiles.other(stage, 1), p.other2.at(at.first, head2),
                                             p.other2.row, end - at.first, p.teacher_d);
    if (S::KEYS && threadIdx.x < S::STAGE) {
        const int row = at.first + threadIdx.x;
        kd_copy_async(tiles.statistics + stage * S::STAGE + threadIdx.x,
                      p.statistics + (int64_t)at.head * p.rows + row, row < p.rows);
    }
    kd_copy_commit();
}

/* The own rows: to registers, but for the teacher's where they are kept. */
template <class S>
__device__ __forceinline__ void load_operands(Operand<S> &own1, Operand<S> &own2,
                                              const Tiles<S> &tiles, const Params &p, int first,
                                              int head1, int head2)
{
    const int rows = p.rows - first;
    bf16 *second = S::KEPT ? tiles.kept : tiles.stages + S::ROWS * S::D;
    kd_tile_copy<S::D, S::ROWS, S::THREADS>(tiles.stages, p.own1.at(first, head1), p.own1.row, rows,
                                            p.d);
    kd_tile_copy<S::D, S::ROWS, S::THREADS>(second, p.own2.at(first, head2), p.own2.row, rows,
                                            p.teacher_d);
    kd_copy_commit();
    kd_copy_wait<0>();
    __syncthreads();
    const int offset = offset_of_own<S>();
#pragma unroll
    for (int k = 0; k < S::D / 16; k++) {
        load_own<S>(own1[k], tiles.stages, offset, k);
        if (!S::KEPT) load_own<S>(own2[k], second, offset, k);
    }
    __syncthreads(); /* before the stages come to lie there */
}

/* ---- the kernel ------------------------------------------------------------------------------- */

/* Per own row, as mma.cuh has rows: g and g + 8 of every tile. */
template <class S> using Values = float[S::TILES][2];

/* Where a chunk of other rows is: from row `at` of a stage, which is row `first` of all. */
struct Chunk {
    int stage, at, first;
};

/* What CHUNK other rows add; `all_seen`: by all of the warp's rows, from `own_first`. */
template <class S>
__device__ __forceinline__ void add_chunk(Sum<S> &sum, Values<S> &value, const Operand<S> &own1,
                                          const Operand<S> &own2,
                                          const Statistics (&mine)[S::TILES][2],
                                          const Tiles<S> &tiles, const Params &p, Chunk c,
                                          int own_first, bool all_seen)
{
    bf16 *const other1 = tiles.other(c.stage, 0), *const other2 = tiles.other(c.stage, 1);
    float s[S::TILES][S::CHUNK / 8][4] = {}, t[S::TILES][S::CHUNK / 8][4] = {};
    const int offset = offset_by_columns<S::D>(c.at);
#pragma unroll
    for (int k = 0; k < S::D / 16; k++) {
        if (k * 16 < p.d) add_scores<S>(s, own1[k], other1, offset, k);
        if (k * 16 >= p.teacher_d) continue;
        if (S::KEPT) {
            uint32_t a[S::TILES][4];
            load_own<S>(a, tiles.kept, offset_of_own<S>(), k);
            add_scores<S>(t, a, other2, offset, k);
        } else {
            add_scores<S>(t, own2[k], other2, offset, k);
        }
    }
    compare<S>(s, t, mine, tiles.statistics + c.stage * S::STAGE + c.at, p);
    if (!all_seen) hide<S>(s, t, p, own_first, c.first);
    if (!S::KEYS)
#pragma unroll
        for (int tile = 0; tile < S::TILES; tile++)
#pragma unroll
            for (int n = 0; n < S::CHUNK / 8; n++) {
                value[tile][0] += t[tile][n][0] + t[tile][n][1];
                value[tile][1] += t[tile][n][2] + t[tile][n][3];
            }
    if (p.out.data) add_products<S>(sum, s, other1, c.at, p.d);
}

/* out += factor * sum */
template <class S>
__device__ __forceinline__ void add_to(const kd_heads<bf16> &out, const Sum<S> &sum,
                                       const Params &p, int first, int head, float factor)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int tile = 0; tile < S::TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + tile * 16 + half * 8 + lane / 4;
            if (row >= p.rows) continue;
            bf16 *to = out.at(row, head) + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                if (n * 8 >= p.d) continue;
                float pair[2];
                kd_load(pair, (const bf16 *)to + n * 8);
                pair[0] += sum[tile][n][half * 2] * factor;
                pair[1] += sum[tile][n][half * 2 + 1] * factor;
                kd_store(to + n * 8, pair);
            }
        }
}

template <class S>
__device__ __forceinline__ void store_values(const Values<S> &value,
                                             const Statistics (&mine)[S::TILES][2], const Params &p,
                                             int first, int head, float poison)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int i = 0; i < 2 * S::TILES; i++) {
        const int row = first + i * 8 + lane / 4;
        float sum = value[i / 2][i % 2];
        sum += __shfl_xor_sync(KD_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(KD_ALL_LANES, sum, 2);
        if (lane % 4 == 0 && row < p.rows)
            p.value[(int64_t)head * p.rows + row] = sum * mine[i / 2][i % 2].share * poison;
    }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) relation_kernel(Params p)
{
    KD_DYN_SHARED(bf16, shared);
    const Tiles<S> tiles = tiles_of<S>(shared);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP;
    /* Where it is causal, the first keys and the last queries have most to do. */
    const int tile = S::KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    const int first = tile * S::ROWS, own_first = first + warp * S::TILES * 16;
    const int own_head = blockIdx.y;
    const int first_head = S::KEYS ? own_head * p.group + p.first_head : own_head;
    const int last_head = S::KEYS ? first_head + p.share : own_head + 1;
    const kd_reach block = kd_reach_of(p.seen, first, min(first + S::ROWS, p.rows));
    const kd_reach own = kd_reach_of(p.seen, own_first, min(own_first + S::TILES * 16, p.rows));

    Operand<S> own1, own2;
    load_operands<S>(own1, own2, tiles, p, first, own_head,
                     S::KEYS ? first_head / p.teacher_group : own_head);
    Statistics mine[S::TILES][2] = {};
#pragma unroll
    for (int i = 0; i < 2 * S::TILES && !S::KEYS; i++) {
        const int row = own_first + i * 8 + lane / 4;
        if (row < p.rows) mine[i / 2][i % 2] = p.statistics[(int64_t)own_head * p.rows + row];
    }
    Sum<S> sum = {};
    Values<S> value = {};

    Place here = { block.begin, block.begin < block.end ? first_head : last_head };
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
            add_chunk<S>(sum, value, own1, own2, mine, tiles, p, { stage, at, other }, own_first,
                         all_seen);
        }
        here = next;
    }
    const float poison = p.seen[first].begin < 0 ? NAN : 1; /* no offsets: NaN everywhere */
    if (!S::KEYS) store_values<S>(value, mine, p, own_first, own_head, poison);
    if (p.out.data) add_to<S>(p.out, sum, p, own_first, own_head, p.unit * *p.scale * poison);
}

/* ---- statistics ------------------------------------------------------------------------------- */

constexpr int ROW_THREADS = 128;

struct StatisticsParams {
    Statistics *to; /* [R, rows] */
    kd_heads<const float> lse, teacher_lse;
    const float *weight; /* NULL: absent */
    const kd_seen *seen; /* by queries */
    int64_t rows, pairs; /* MSE; 0: what a row sees */
    bool mse;
};

__global__ void __launch_bounds__(ROW_THREADS) statistics_kernel(StatisticsParams p)
{
    const int64_t row = (int64_t)blockIdx.x * ROW_THREADS + threadIdx.x, head = blockIdx.y;
    if (row >= p.rows) return;
    const float weight = p.weight ? p.weight[row] : 1;
    Statistics to = { 0, 0, weight, 1 };
    if (p.mse) {
        const kd_seen seen = p.seen[row];
        to.share = 1 / (float)(p.pairs > 0 ? p.pairs : max(seen.end - seen.begin, 1));
        to.factor = 2 * weight * to.share;
    } else {
        const float lse = *p.lse.at(row, head), teacher_lse = *p.teacher_lse.at(row, head);
        to.lse = lse == -INFINITY ? 0 : lse * LOG2E;
        to.teacher_lse = teacher_lse == -INFINITY ? 0 : teacher_lse * LOG2E;
        to.share = LN2;
    }
    p.to[head * p.rows + row] = to;
}

kd_status launch_statistics(kd_exec *exec, const kd_relation_args *args,
                            const kd_relation_scratch *scratch, const kd_tensor *statistics)
{
    StatisticsParams p = {};
    p.to = (Statistics *)statistics->data;
    p.mse = args->relation.kind == KD_RELATION_MSE;
    if (!p.mse) {
        const kd_tensor *lse = args->lse, *teacher_lse = args->teacher_lse;
        p.lse = { (const float *)lse->data, lse->stride[1], lse->stride[0] };
        p.teacher_lse = { (const float *)teacher_lse->data, teacher_lse->stride[1],
                          teacher_lse->stride[0] };
    }
    p.weight = kd_present(args->weight) ? (const float *)args->weight->data : NULL;
    p.seen = (const kd_seen *)scratch->seen_by_queries.data;
    p.rows = args->a->shape[0];
    p.pairs = args->relation.pairs;
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, ROW_THREADS),
                                (unsigned)args->a->shape[1]),
                           dim3(ROW_THREADS) };
    return kd_launch(exec, "relation statistics", statistics_kernel, grid, p);
}

/* ---- launches --------------------------------------------------------------------------------- */

Params params_of(const kd_relation_args *args, const kd_relation_scratch *scratch,
                 const kd_tensor *statistics, bool keys)
{
    const kd_relation *r = &args->relation;
    const kd_tensor *out = keys ? args->db : args->da;
    const float base = r->kind == KD_RELATION_KL ? LOG2E : 1;
    Params p = {};
    p.own1 = kd_heads_of<const bf16>(keys ? args->b : args->a);
    p.own2 = kd_heads_of<const bf16>(keys ? args->teacher_b : args->teacher_a);
    p.other1 = kd_heads_of<const bf16>(keys ? args->a : args->b);
    p.other2 = kd_heads_of<const bf16>(keys ? args->teacher_a : args->teacher_b);
    if (kd_present(out)) p.out = kd_heads_of<bf16>(out);
    p.seen = (const kd_seen *)(keys ? scratch->seen_by_keys : scratch->seen_by_queries).data;
    p.statistics = (const Statistics *)statistics->data;
    p.value = (float *)scratch->value.data;
    p.scale = kd_present(args->scale) ? (const float *)args->scale->data : NULL;
    p.rows = (int)args->a->shape[0];
    p.group = (int)(args->a->shape[1] / args->b->shape[1]);
    p.teacher_group = (int)(args->a->shape[1] / args->teacher_b->shape[1]);
    p.d = (int)args->a->shape[2];
    p.teacher_d = (int)args->teacher_a->shape[2];
    p.student = kd_side_of(r->student, r->temperature, base);
    p.teacher = kd_side_of(r->teacher, r->temperature, base);
    p.unit = kd_relation_factor(r) * r->student.scale / (r->temperature * args->a->shape[1]);
    p.floor = r->floor < 0 ? r->floor : -INFINITY;
    p.mse = r->kind == KD_RELATION_MSE;
    return p;
}

template <class S> kd_status launch(kd_exec *exec, const Params &p, int64_t heads)
{
    KD_TRY(kd_allow_shared(relation_kernel<S>, S::SHARED));
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, S::ROWS), (unsigned)heads),
                           dim3(S::THREADS), S::SHARED };
    return kd_launch(exec, S::KEYS ? "relation db" : "relation da", relation_kernel<S>, grid, p);
}

int64_t common_divisor(int64_t a, int64_t b) { return b == 0 ? a : common_divisor(b, a % b); }

/* Heads of up to D elements; see Shape. */
template <int D, int TILES, int WARPS, int STAGE, int CHUNK>
kd_status relate(kd_exec *exec, const kd_relation_args *args, const kd_relation_scratch *scratch,
                 const kd_tensor *statistics)
{
    using Queries = Shape<D, TILES, WARPS, STAGE, CHUNK, false>;
    using Keys = Shape<D, TILES, WARPS, STAGE, CHUNK, true>;
    KD_TRY(launch<Queries>(exec, params_of(args, scratch, statistics, false), args->a->shape[1]));
    if (!kd_present(args->db)) return KD_OK;
    Params p = params_of(args, scratch, statistics, true);
    p.share = (int)common_divisor(p.group, p.teacher_group);
    for (; p.first_head < p.group; p.first_head += p.share)
        KD_TRY(launch<Keys>(exec, p, args->b->shape[1]));
    return KD_OK;
}

kd_status fast(kd_exec *exec, const kd_relation_args *args)
{
    const int64_t d = kd_max_i64(args->a->shape[2], args->teacher_a->shape[2]);
    kd_relation_scratch scratch = {};
    kd_tensor statistics;
    KD_TRY(kd_relation_open(&scratch, exec, args));
    KD_TRY(kd_push(&statistics, exec, "relation.statistics", KD_F32,
                   KD_SHAPE(args->a->shape[1], args->a->shape[0], 4)));
    if (kd_planning(exec) || args->a->shape[0] == 0) return KD_OK;
    KD_TRY(launch_statistics(exec, args, &scratch, &statistics));
    if (d <= 32)
        KD_TRY((relate<32, 2, 4, 64, 32>(exec, args, &scratch, &statistics)));
    else if (d <= 64)
        KD_TRY((relate<64, 2, 4, 64, 16>(exec, args, &scratch, &statistics)));
    else if (d <= 128)
        KD_TRY((relate<128, 1, 8, 64, 16>(exec, args, &scratch, &statistics)));
    else
        KD_TRY((relate<256, 1, 4, 16, 16>(exec, args, &scratch, &statistics)));
    return kd_relation_losses(exec, args, &scratch);
}

/* Shared memory is that of the card: Shape<128>'s the most. */
bool fits(const kd_exec *exec, const kd_relation_args *args)
{
    constexpr size_t SHARED = Shape<128, 1, 8, 64, 16, true>::SHARED;
    static_assert(SHARED >= Shape<256, 1, 4, 16, 16, true>::SHARED, "the most");
    return kd_relation_is_fast(exec, args->a, SHARED) && args->teacher_a->dtype == KD_BF16 &&
           kd_rows_aligned(args->a, args->b, args->teacher_a, args->teacher_b, args->da, args->db);
}

} // namespace

extern "C" kd_status kd_relation_cuda(kd_exec *exec, const kd_relation_args *args)
{
    return fits(exec, args) ? fast(exec, args) : kd_relation_plain(exec, args);
}
