/*
 * Scores against a bank of rows, their gradient, and the bank's renewal on CUDA; src/ops/contrast.c has the
 * definitions.
 *
 * Grid      scores: SLICE of a row's K + 1 entries to a block of 8 warps, 64 to a warp, whose lanes share a row of
 *           the bank; as many rows in flight as 32 registers hold.  Sums of slices go to scratch, and a block a row of
 *           x joins them in order.  renew_rows: a block a row of x.
 * Traffic   a gather of K + 1 rows of 4 D bytes for each row of x, once: what a score needs, its gradient has in
 *           registers.  Scratch 4 (D + 2) bytes for SLICE entries, written and read.
 * Numerics  f32; sums over slices and lengths of rows too.  expf and log1pf as the library has them.
 * Same bits the order of a sum depends on D and K alone; one block renews a row of the bank.
 * Ids       outside of the bank: the row's loss and gradient are NaN, and none of it counts in Z or renews.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / KD_WARP, SLICE = WARPS * 2 * KD_WARP;
constexpr float DEAD = 1e-12f;

template <class T> struct Scores {
    kd_rows<const T> x;
    kd_rows<T> dx; /* data NULL: the value alone */
    kd_rows<const float> bank;
    const int32_t *samples, *negatives;
    const float *weight, *partition, *scale; /* weight or scale NULL */
    float *loss;
    float *values, *counts, *gradients; /* of slices: [B, slices] twice, [B, slices, D] */
    int64_t rows, columns, entries, bank_rows, slices;
    float per_temperature, log_level, constant; /* log(c + eps), K log(1 + eps / c) */
};

template <class P> __device__ __forceinline__ float weight_of(const P &p, int64_t b)
{
    return p.weight ? p.weight[b] : 1.0f;
}

/* 1 / |x|, or 0 of a dead row. */
__device__ __forceinline__ float unit_factor(float squares)
{
    const float length = sqrtf(squares);
    return length == INFINITY ? NAN : length <= DEAD ? 0.0f : 1.0f / length;
}

/* This lane's elements of a row: W at (u 32 + lane) W for each u; zeros behind the last column. */
template <int U, int W, class E>
__device__ __forceinline__ void load_lane(float (&to)[U][W], const E *row, int64_t columns)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int k = 0; k < W; k++) {
            const int64_t at = (u * KD_WARP + lane) * W + k;
            to[u][k] = at < columns ? kd_load(row + at) : 0.0f;
        }
}

/* The same of the bank, W at once: its rows are aligned where W is more than 1. */
template <int U, int W>
__device__ __forceinline__ void load_bank(float (&to)[U][W], const float *row, int64_t columns)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int u = 0; u < U; u++) {
        const int64_t at = (u * KD_WARP + lane) * W;
#pragma unroll
        for (int k = 0; k < W; k++) to[u][k] = 0;
        if (at < columns) kd_load(to[u], row + at);
    }
}

template <class T, int U, int W>
__device__ __forceinline__ void embed(float (&v)[U][W], const Scores<T> &p, int64_t b)
{
    float squares = 0;
    load_lane(v, p.x.row(b), p.columns);
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int k = 0; k < W; k++) squares += v[u][k] * v[u][k];
    const float factor = unit_factor(kd_warp_sum(squares));
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int k = 0; k < W; k++) v[u][k] *= factor;
}

/* An entry's value and its share of d / d v, before 1 / T. */
struct Term {
    float value, share;
};

__device__ __forceinline__ Term judge(float score, float offset, bool positive)
{
    const float a = positive ? offset - score : score - offset;
    const float e = expf(-fabsf(a)), low = e / (1.0f + e), share = a > 0 ? 1.0f - low : low;
    return { (a > 0 ? a : 0.0f) + log1pf(e), positive ? -share : share };
}

/* The warp's sums of R values, that of value i in each lane with lane % R == i; `value` is used up. */
template <int R> __device__ __forceinline__ float scattered_sum(float (&value)[R])
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int half = R / 2; half > 0; half /= 2)
#pragma unroll
        for (int r = 0; r < half; r++) {
            const bool upper = lane & half;
            const float given = upper ? value[r] : value[r + half];
            value[r] =
                (upper ? value[r + half] : value[r]) + __shfl_xor_sync(KD_ALL_LANES, given, half);
        }
#pragma unroll
    for (int lanes = R; lanes < KD_WARP; lanes *= 2)
        value[0] += __shfl_xor_sync(KD_ALL_LANES, value[0], lanes);
    return value[0];
}

/*
 * R rows of the bank from entry `first` of a warp's 32 on, whose ids are in the lanes: -1 stands for an id that is
 * none, -2 for no entry.  SUMS: of exponents, and how many, for Z; else of values and gradients.
 */
template <bool SUMS, class T, int U, int W, int R>
__device__ __forceinline__ void take_rows(float (&d)[U][W], float &value, float &count,
                                          const float (&v)[U][W], const Scores<T> &p, float offset,
                                          int32_t ids, int first, int64_t entry)
{
    const int lane = threadIdx.x % KD_WARP;
    const int32_t my_id = __shfl_sync(KD_ALL_LANES, ids, first + lane % R);
    float row[R][U][W], score[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int32_t id = __shfl_sync(KD_ALL_LANES, ids, first + r);
        load_bank(row[r], p.bank.row(id < 0 ? 0 : id), p.columns);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        score[r] = 0;
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int k = 0; k < W; k++) score[r] += row[r][u][k] * v[u][k];
    }
    float mine = scattered_sum(score) * p.per_temperature;
    if (my_id == -1) mine = NAN;
    if (SUMS) {
        if (lane < R && my_id >= 0) value += expf(mine), count += 1;
        return;
    }
    const Term term = judge(mine, offset, entry + first + lane % R == 0);
    if (lane < R && my_id != -2) value += term.value;
    const float share = my_id == -2 ? 0.0f : term.share;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const float s = __shfl_sync(KD_ALL_LANES, share, r);
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int k = 0; k < W; k++) d[u][k] += s * row[r][u][k];
    }
}

template <class T>
__device__ __forceinline__ int32_t id_of(const Scores<T> &p, int64_t b, int64_t entry)
{
    if (entry >= p.entries) return -2;
    const int32_t id = entry == 0 ? p.samples[b] : p.negatives[b * (p.entries - 1) + entry - 1];
    return id >= 0 && id < p.bank_rows ? id : -1;
}

/* What the warps have of a slice, joined and written. */
template <class T, int U, int W>
__device__ void write_slice(const Scores<T> &p, int64_t slice, const float (&d)[U][W], float value,
                            float count, float *share)
{
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
    KD_SHARED(float, sums, [2][WARPS]);
    value = kd_warp_sum(value), count = kd_warp_sum(count);
    __syncthreads(); /* the slice before has been read */
    if (lane == 0) sums[0][warp] = value, sums[1][warp] = count;
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int k = 0; k < W; k++)
            share[warp * (U * W * KD_WARP) + (u * KD_WARP + lane) * W + k] = d[u][k];
    __syncthreads();
    if (threadIdx.x < 2) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += sums[threadIdx.x][w];
        (threadIdx.x ? p.counts : p.values)[slice] = sum;
    }
    if (!p.gradients) return;
    for (int64_t at = threadIdx.x; at < p.columns; at += THREADS) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += share[w * (U * W * KD_WARP) + at];
        p.gradients[slice * p.columns + at] = sum;
    }
}

/* Shared memory: D of 8 warps. */
template <bool SUMS, class T, int U, int W>
__global__ void __launch_bounds__(THREADS, 2) slices_kernel(Scores<T> p)
{
    constexpr int R = 32 / (U * W);
    KD_SHARED(float, share, [WARPS * U * W * KD_WARP]);
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
    if (SUMS && p.partition[0] != 0) return;
    const float offset = SUMS ? 0.0f : logf(p.partition[0]) + p.log_level;
    const int64_t from = (int64_t)blockIdx.x * SLICE + warp * 2 * KD_WARP;
    for (int64_t b = blockIdx.y; b < p.rows; b += gridDim.y) {
        if (weight_of(p, b) == 0) continue;
        float v[U][W], d[U][W] = {}, value = 0, count = 0;
        embed(v, p, b);
        for (int64_t entry = from; entry < from + 2 * KD_WARP && entry < p.entries;
             entry += KD_WARP) {
            const int32_t ids = id_of(p, b, entry + lane);
            const int most = (int)(p.entries - entry < KD_WARP ? p.entries - entry : KD_WARP);
            for (int first = 0; first < most; first += R)
                take_rows<SUMS, T, U, W, R>(d, value, count, v, p, offset, ids, first, entry);
        }
        write_slice(p, b * p.slices + blockIdx.x, d, value, count, share);
    }
}

/* ---- slices joined ---------------------------------------------------------------------------- */

constexpr int MINE = KD_MAX_CONTRAST / THREADS; /* columns of a thread, at most */

template <class T> __global__ void __launch_bounds__(THREADS) join_kernel(Scores<T> p)
{
    KD_SHARED(float, buffer, [WARPS]);
    for (int64_t b = blockIdx.x; b < p.rows; b += gridDim.x) {
        const float weight = weight_of(p, b);
        if (weight == 0) continue;
        if (threadIdx.x == 0) {
            float value = 0;
            for (int64_t s = 0; s < p.slices; s++) value += p.values[b * p.slices + s];
            p.loss[b] += weight * (value + p.constant);
        }
        if (!p.gradients) continue;
        const T *x = p.x.row(b);
        T *dx = p.dx.row(b);
        float v[MINE], dv[MINE] = {}, squares = 0, along = 0;
#pragma unroll
        for (int k = 0; k < MINE; k++) {
            const int64_t at = threadIdx.x + k * THREADS;
            v[k] = at < p.columns ? kd_load(x + at) : 0.0f;
            squares += v[k] * v[k];
            for (int64_t s = 0; s < p.slices && at < p.columns; s++)
                dv[k] += p.gradients[(b * p.slices + s) * p.columns + at];
        }
        const float factor = unit_factor(kd_block_sum<THREADS>(squares, buffer));
#pragma unroll
        for (int k = 0; k < MINE; k++) v[k] *= factor, along += v[k] * dv[k];
        along = kd_block_sum<THREADS>(along, buffer);
        const float by = p.scale[0] * weight * p.per_temperature * factor;
#pragma unroll
        for (int k = 0; k < MINE; k++) {
            const int64_t at = threadIdx.x + k * THREADS;
            if (at < p.columns && factor != 0)
                kd_store(dx + at, kd_load(dx + at) + by * (dv[k] - v[k] * along));
        }
    }
}

struct Partition {
    const float *weight, *values, *counts;
    float *z;
    int64_t rows, slices, bank_rows;
};

/* One block.  Z is what it was unless it was 0 and the sums are finite. */
__global__ void __launch_bounds__(THREADS) partition_kernel(Partition p)
{
    KD_SHARED(double, buffer, [WARPS]);
    if (p.z[0] != 0) return;
    double sum = 0, count = 0;
    for (int64_t i = threadIdx.x; i < p.rows * p.slices; i += THREADS) {
        if (weight_of(p, i / p.slices) == 0) continue;
        sum += p.values[i], count += p.counts[i];
    }
    sum = kd_block_sum<THREADS>(sum, buffer);
    count = kd_block_sum<THREADS>(count, buffer);
    const float z = (float)(sum / count * p.bank_rows);
    if (threadIdx.x == 0 && z > 0 && z < INFINITY) p.z[0] = z;
}

/* ---- launching -------------------------------------------------------------------------------- */

struct Scratch {
    kd_tensor values, counts, gradients;
};

kd_status push_scratch(Scratch *s, kd_exec *exec, const kd_tensor *x, const kd_tensor *negatives,
                       bool gradients)
{
    const int64_t slices = kd_ceil_div(negatives->shape[1] + 1, SLICE);
    const kd_shape shape = KD_SHAPE(x->shape[0], slices);
    *s = {};
    KD_TRY(kd_push(&s->values, exec, "contrast.values", KD_F32, shape));
    KD_TRY(kd_push(&s->counts, exec, "contrast.counts", KD_F32, shape));
    if (!gradients) return KD_OK;
    return kd_push(&s->gradients, exec, "contrast.gradients", KD_F32,
                   KD_SHAPE(shape.dim[0], slices, x->shape[1]));
}

/* Of a contrast_args or a contrast_partition_args. */
template <class T, class Args> Scores<T> scores_of(const Args *args, const Scratch *s)
{
    Scores<T> p = {};
    p.x = kd_rows_of<const T>(args->x);
    p.bank = kd_rows_of<const float>(args->bank);
    p.samples = (const int32_t *)args->samples->data;
    p.negatives = (const int32_t *)args->negatives->data;
    p.weight = kd_present(args->weight) ? (const float *)args->weight->data : NULL;
    p.partition = (const float *)args->partition->data + args->side;
    p.values = (float *)s->values.data;
    p.counts = (float *)s->counts.data;
    p.gradients = (float *)s->gradients.data;
    p.rows = args->x->shape[0];
    p.columns = args->x->shape[1];
    p.entries = args->negatives->shape[1] + 1;
    p.bank_rows = args->bank->shape[0];
    p.slices = s->values.shape[1];
    p.per_temperature = 1 / args->temperature;
    return p;
}

template <bool SUMS, class T>
kd_status launch_slices(kd_exec *exec, const char *name, const Scores<T> &p, const kd_tensor *bank)
{
    const kd_grid grid = { dim3((unsigned)p.slices, (unsigned)kd_min_i64(p.rows, 65535)),
                           dim3(THREADS) };
    if (!kd_rows_aligned(bank))
        return kd_launch(exec, name, slices_kernel<SUMS, T, 32, 1>, grid, p);
    if (p.columns <= 128) return kd_launch(exec, name, slices_kernel<SUMS, T, 1, 4>, grid, p);
    if (p.columns <= 256) return kd_launch(exec, name, slices_kernel<SUMS, T, 2, 4>, grid, p);
    return kd_launch(exec, name, slices_kernel<SUMS, T, 8, 4>, grid, p);
}

template <class T> kd_status contrast(kd_exec *exec, const kd_contrast_args *args, const Scratch *s)
{
    Scores<T> p = scores_of<T>(args, s);
    const double negatives = (double)(p.entries - 1), c = negatives / (double)p.bank_rows;
    p.dx = kd_rows_of<T>(args->dx);
    p.scale = kd_present(args->scale) ? (const float *)args->scale->data : NULL;
    p.loss = (float *)args->loss->data;
    p.log_level = (float)log(c + args->eps);
    p.constant = (float)(negatives * log1p(args->eps / c));
    KD_TRY(launch_slices<false>(exec, "contrast", p, args->bank));
    const int64_t blocks = kd_min_i64(p.rows, kd_blocks_at_once(exec, THREADS));
    return kd_launch(exec, "contrast", join_kernel<T>,
                     kd_grid{ dim3((unsigned)blocks), dim3(THREADS) }, p);
}

template <class T>
kd_status partition(kd_exec *exec, const kd_contrast_partition_args *args, const Scratch *s)
{
    const Scores<T> p = scores_of<T>(args, s);
    const Partition z = { p.weight,   p.values,
                          p.counts,   (float *)args->partition->data + args->side,
                          p.rows,     p.slices,
                          p.bank_rows };
    KD_TRY(launch_slices<true>(exec, "contrast_partition", p, args->bank));
    return kd_launch(exec, "contrast_partition", partition_kernel,
                     kd_grid{ dim3(1), dim3(THREADS) }, z);
}

/* ---- the bank --------------------------------------------------------------------------------- */

template <class T> struct Renewal {
    kd_rows<const T> x;
    kd_rows<float> bank;
    const int32_t *samples;
    const float *weight;
    int64_t rows, columns, bank_rows;
    float momentum;
};

template <class T> __global__ void __launch_bounds__(THREADS) renew_kernel(Renewal<T> p)
{
    KD_SHARED(float, buffer, [WARPS]);
    for (int64_t b = blockIdx.x; b < p.rows; b += gridDim.x) {
        const int32_t id = p.samples[b];
        if (weight_of(p, b) == 0 || id < 0 || id >= p.bank_rows) continue;
        float later = 0, squares = 0;
        for (int64_t i = b + 1 + threadIdx.x; i < p.rows; i += THREADS)
            if (p.samples[i] == id && weight_of(p, i) != 0) later = 1;
        if (kd_block_sum<THREADS>(later, buffer) != 0) continue;
        const T *x = p.x.row(b);
        float *m = p.bank.row(id);
        for (int64_t i = threadIdx.x; i < p.columns; i += THREADS)
            squares += kd_load(x + i) * kd_load(x + i);
        const float share = (1 - p.momentum) * unit_factor(kd_block_sum<THREADS>(squares, buffer));
        squares = 0;
        for (int64_t i = threadIdx.x; i < p.columns; i += THREADS) {
            const float u = p.momentum * m[i] + share * kd_load(x + i);
            squares += u * u;
        }
        squares = kd_block_sum<THREADS>(squares, buffer);
        if (!(squares > 0 && squares < INFINITY)) continue;
        const float by = 1.0f / sqrtf(squares);
        for (int64_t i = threadIdx.x; i < p.columns; i += THREADS)
            m[i] = (p.momentum * m[i] + share * kd_load(x + i)) * by;
    }
}

template <class T> kd_status renew(kd_exec *exec, const kd_renew_rows_args *args)
{
    const Renewal<T> p = { kd_rows_of<const T>(args->x),
                           kd_rows_of<float>(args->bank),
                           (const int32_t *)args->samples->data,
                           kd_present(args->weight) ? (const float *)args->weight->data : NULL,
                           args->x->shape[0],
                           args->x->shape[1],
                           args->bank->shape[0],
                           args->momentum };
    const int64_t blocks = kd_min_i64(p.rows, kd_blocks_at_once(exec, THREADS));
    return kd_launch(exec, "renew_rows", renew_kernel<T>,
                     kd_grid{ dim3((unsigned)blocks), dim3(THREADS) }, p);
}

} // namespace

extern "C" kd_status kd_contrast_cuda(kd_exec *exec, const kd_contrast_args *args)
{
    Scratch s;
    KD_TRY(push_scratch(&s, exec, args->x, args->negatives, kd_present(args->dx)));
    if (kd_planning(exec) || args->x->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, contrast, exec, args, &s);
}

extern "C" kd_status kd_contrast_partition_cuda(kd_exec *exec,
                                                const kd_contrast_partition_args *args)
{
    Scratch s;
    KD_TRY(push_scratch(&s, exec, args->x, args->negatives, false));
    if (kd_planning(exec) || args->x->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, partition, exec, args, &s);
}

extern "C" kd_status kd_renew_rows_cuda(kd_exec *exec, const kd_renew_rows_args *args)
{
    if (kd_planning(exec) || args->x->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, renew, exec, args);
}
