/*
 * row_softmax.cuh - softmaxes of one row of logits by one block: how a row is cut into units, what a
 * thread knows of its units after one sweep, and what the block makes of that.
 *
 * A unit is KD_UNIT consecutive classes, whatever the element type, so the order of every sum depends
 * on the number of classes and of threads alone.  Thread t takes units begin + t, begin + t +
 * blockDim.x, ...  Reductions leave the same bits every time.
 */
#ifndef KD_ROW_SOFTMAX_CUH
#define KD_ROW_SOFTMAX_CUH

#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"

constexpr int KD_UNIT = 8;
constexpr float KD_LOG2_E = 1.4426950408889634f;

/* ---- units ------------------------------------------------------------------------------------ */

/* One side of a row.  data NULL: absent. */
template <class T> struct kd_logits {
    T *data;
    const T
        *staged;  /* in shared memory: the units of this block, where a kernel keeps them there */
    bool aligned; /* data is a multiple of 16 bytes */
};

/* The units [begin, end) of a row of `classes`, and how many of them are this thread's. */
struct kd_units {
    int begin, end, mine, classes;
};

__device__ __forceinline__ kd_units kd_units_of(int begin, int end, int classes)
{
    const int threads = (int)blockDim.x;
    return { begin, end, (end - begin - (int)threadIdx.x + threads - 1) / threads, classes };
}

/* The thread's i-th unit. */
__device__ __forceinline__ int kd_unit_at(const kd_units &u, int i)
{
    return u.begin + (int)threadIdx.x + i * (int)blockDim.x;
}

/* A unit as it lies in memory: a load that is not yet waited for. */
template <class T> struct kd_raw_unit {
    uint4 part[KD_UNIT / kd_width<T>];
};

/* Past the caches where the whole unit is written: nobody reads it soon. */
template <class T> __device__ __forceinline__ void kd_store_whole(T *to, const float (&x)[KD_UNIT])
{
    constexpr int W = kd_width<T>;
#pragma unroll
    for (int h = 0; h < KD_UNIT; h += W) {
        kd_vec<T, W> part;
        uint4 bits;
#pragma unroll
        for (int i = 0; i < W; i++) kd_store(&part.at[i], x[h + i]);
        memcpy(&bits, &part, sizeof bits);
        __stcs(reinterpret_cast<uint4 *>(to + h), bits);
    }
}

/* Whether a unit is loaded as one; of another kd_load_unit reads element by element. */
template <bool STAGED, class T>
__device__ __forceinline__ bool kd_unit_is_whole(const kd_logits<T> &logits, const kd_units &u,
                                                 int unit)
{
    return STAGED || (logits.aligned && u.classes - unit * KD_UNIT >= KD_UNIT);
}

/* Starts to load a unit. */
template <bool STAGED, class T>
__device__ __forceinline__ void kd_fetch_unit(kd_raw_unit<T> &raw, const kd_logits<T> &logits,
                                              const kd_units &u, int unit)
{
    if (!kd_unit_is_whole<STAGED>(logits, u, unit)) return;
    const T *from =
        STAGED ? logits.staged + (unit - u.begin) * KD_UNIT : logits.data + unit * KD_UNIT;
#pragma unroll
    for (int i = 0; i < KD_UNIT / kd_width<T>; i++)
        raw.part[i] = reinterpret_cast<const uint4 *>(from)[i];
}

/* The classes of a unit, FETCHED into `raw` before.  Those from u.classes on are `fill` and not
 * read. */
template <bool STAGED, bool FETCHED, class T>
__device__ __forceinline__ void kd_load_unit(float (&z)[KD_UNIT], kd_raw_unit<T> &raw,
                                             const kd_logits<T> &logits, const kd_units &u,
                                             int unit, float fill)
{
    constexpr int W = kd_width<T>;
    const int first = unit * KD_UNIT, count = u.classes - first;
    if (kd_unit_is_whole<STAGED>(logits, u, unit)) {
        if (!FETCHED) kd_fetch_unit<STAGED>(raw, logits, u, unit);
#pragma unroll
        for (int i = 0; i < KD_UNIT; i += W) {
            kd_vec<T, W> part;
            memcpy(&part, &raw.part[i / W], sizeof part);
#pragma unroll
            for (int k = 0; k < W; k++) z[i + k] = kd_load(&part.at[k]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < KD_UNIT; i++)
            z[i] = i < count ? kd_load(logits.data + first + i) : fill;
    }
    if (STAGED && count < KD_UNIT) {
#pragma unroll
        for (int i = 0; i < KD_UNIT; i++) z[i] = i < count ? z[i] : fill;
    }
}

/* Takes this thread's units into shared memory at `to`; they are there after kd_copy_wait<0>. */
template <class T>
__device__ __forceinline__ void kd_stage_units(kd_logits<T> &logits, T *to, const kd_units &u)
{
    for (int k = 0; k < u.mine; k++) {
        const int first = kd_unit_at(u, k) * KD_UNIT, count = u.classes - first;
        T *slot = to + (first - u.begin * KD_UNIT);
        if (logits.aligned && count >= KD_UNIT) {
#pragma unroll
            for (int h = 0; h < KD_UNIT; h += kd_width<T>)
                kd_copy_async(slot + h, logits.data + first + h);
        } else {
            for (int i = 0; i < KD_UNIT && i < count; i++) slot[i] = logits.data[first + i];
        }
    }
    logits.staged = to;
}

/* Those of the unit's columns that lie in [from, to). */
template <class T>
__device__ __forceinline__ void kd_store_unit(const kd_logits<T> &logits, int unit, int from,
                                              int to, const float (&x)[KD_UNIT])
{
    const int first = unit * KD_UNIT;
    if (logits.aligned && first >= from && first + KD_UNIT <= to) {
        kd_store_whole(logits.data + first, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++)
        if (first + i >= from && first + i < to) kd_store(logits.data + first + i, x[i]);
}

/* Columns [from, to) by all threads of the block. */
template <class T>
__device__ __forceinline__ void kd_fill_columns(const kd_logits<T> &logits, int from, int to,
                                                float value)
{
    const float x[KD_UNIT] = { value, value, value, value, value, value, value, value };
    for (int unit = from / KD_UNIT + (int)threadIdx.x; unit * KD_UNIT < to; unit += (int)blockDim.x)
        kd_store_unit(logits, unit, from, to, x);
}

/* Pairwise: 3 roundings where 8 additions in a row have 7. */
__device__ __forceinline__ float kd_unit_sum(const float (&x)[KD_UNIT])
{
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

/* ---- one thread's sums ------------------------------------------------------------------------ */

/* In registers, where every index is known to the compiler; or in shared memory, a column per
 * thread. */
template <int N> struct kd_own_registers {
    float at[N];
};
struct kd_own_shared {
    float *at;
};

template <int N> __device__ __forceinline__ void kd_own_open(kd_own_registers<N> &, float *) {}
__device__ __forceinline__ void kd_own_open(kd_own_shared &own, float *columns)
{
    own.at = columns + threadIdx.x;
}

template <int N> __device__ __forceinline__ float &kd_own(kd_own_registers<N> &own, int i)
{
    return own.at[i];
}
__device__ __forceinline__ float &kd_own(kd_own_shared &own, int i)
{
    return own.at[i * (int)blockDim.x];
}

/* ---- a block's ---------------------------------------------------------------------------------- */

constexpr int KD_MAX_SUMS = 2 * KD_MAX_ROW_TERMS;

/* Shared memory for reductions: of every warp. */
typedef float kd_partials[KD_MAX_SUMS][KD_WARP];

/* to[i] = the block's largest x[i]; NaN is never the largest. */
template <int N>
__device__ __forceinline__ void kd_reduce_max(float *to, kd_partials &partials, const float (&x)[N])
{
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
    const int warps = (int)blockDim.x / KD_WARP;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float most = kd_warp_max(x[i]);
        if (lane == 0) partials[i][warp] = most;
    }
    __syncthreads();
    for (int i = warp; i < N; i += warps) {
        const float most = kd_warp_max(lane < warps ? partials[i][lane] : -INFINITY);
        if (lane == 0) to[i] = most;
    }
    __syncthreads();
}

/* to[i] = the block's sum of own[i], i < count: f32 over the lanes of a warp, double over warps. */
template <int UNROLL, class Own>
__device__ __forceinline__ void kd_reduce_sums(double *to, kd_partials &partials, Own &own,
                                               int count)
{
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
    const int warps = (int)blockDim.x / KD_WARP;
#pragma unroll UNROLL
    for (int i = 0; i < count; i++) {
        const float sum = kd_warp_sum(kd_own(own, i));
        if (lane == 0) partials[i][warp] = sum;
    }
    __syncthreads();
    for (int i = warp; i < count; i += warps) {
        const double sum = kd_warp_sum(lane < warps ? (double)partials[i][lane] : 0.0);
        if (lane == 0) to[i] = sum;
    }
    __syncthreads();
}

/* ---- softmax ---------------------------------------------------------------------------------- */

/* What a thread has seen of one side: sums of exponentials are relative to its own `max`. */
struct kd_seen {
    float max, min;
    int unit; /* the first that holds `max`; -1: no class above -inf */
};

/* One side of a row at one temperature. */
struct kd_side {
    float max, log_sum, log2_sum; /* of exp((z - max) / T) */
    float dead;                   /* log-probability of a dead class; NaN in a row that has a NaN */
};

struct kd_softmax {
    float inv_t, scale; /* 1 / T, log2(e) / T */
    kd_side student, teacher;
};

/* `sum` of exp((z - max) / T) over the row, which is not a distribution where no class lives. */
__device__ __forceinline__ kd_side kd_side_of(float max, double sum, float dead)
{
    const float total = max == -INFINITY ? NAN : (float)sum;
    const float log_sum = logf(total);
    return { max, log_sum, log2f(total), isnan(log_sum) ? log_sum : dead };
}

#endif
