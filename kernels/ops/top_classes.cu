/*
 * top_classes on CUDA; src/ops/top_classes.c has the definition.
 *
 * Grid        a block of 256 threads per row, in rounds of a unit of 8 classes per thread.
 * Traffic     the row once: 2 bytes a class of bf16; 8 bytes per class that is written.
 * Candidates  are keys of a class and its logit, in shared memory.  A round adds those above the floor,
 *             at first all; when there is no room for another, the k largest are kept and the floor
 *             moves up to them.  Of a row in random order all but the first rounds add few; of one in
 *             ascending order every class is one, and the k largest are looked for after each round.
 * The k       largest of many: digit by digit of 8 bits of the key, from the top; in the end they are
 *             sorted by pairs.
 * Numerics    (z - max) / T - log sum e^((z - max) / T): sums of a thread in f32, relative to its own
 *             maximum so far, of the block in double.
 * Same bits   keys are different, so that the k largest are the same in whatever order candidates
 *             came; of atomics, integers only.
 * Shared      34 KiB a block: six are at work on a multiprocessor of sm_90, four on one of sm_80.
 */
#include "common/row_softmax.cuh"

namespace {

constexpr int THREADS = 256, ROUND = THREADS * KD_UNIT;
constexpr int ROOM = 2 * ROUND, FULL = ROOM - ROUND, DIGITS = 256;
static_assert(KD_MAX_TOP < FULL, "a round must fit behind the classes that are kept");

struct Params {
    const void *logits;
    const int32_t *labels; /* or NULL */
    int32_t *ids;          /* [rows, k], as log_p */
    float *log_p;
    int64_t stride;
    float inv_t;
    int classes, k;
};

struct Shared {
    uint64_t key[ROOM];
    int digits[DIGITS]; /* how many keys have it */
    uint64_t floor;     /* what is below it is none of the k */
    int count;          /* of keys */
    int left;           /* of the k, among the keys that begin as the floor does */
    bool found;         /* no further digit of the floor is wanted */
    float max[THREADS / KD_WARP];
    double sum[THREADS / KD_WARP];
};

/* ---- keys: in the order of z, +0 and -0 equal; of equal ones the first class is the largest ------ */

__device__ __forceinline__ uint64_t key_of(float z, int j)
{
    const uint32_t bits = z == 0.0f ? 0u : __float_as_uint(z);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)ordered << 32 | (uint32_t) ~(uint32_t)j;
}

__device__ __forceinline__ float logit_of(uint64_t key)
{
    const uint32_t ordered = (uint32_t)(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

/* ---- the k largest ----------------------------------------------------------------------------- */

/* Of a warp: takes into the floor the largest digit, at `shift`, above which there are less than
 * `left` keys. */
__device__ __forceinline__ void next_digit(Shared &shared, int shift)
{
    constexpr int EACH = DIGITS / KD_WARP;
    const int lane = (int)threadIdx.x;
    const int top = DIGITS - 1 - lane * EACH; /* of this lane's digits; they descend */
    int own = 0;
    for (int i = 0; i < EACH; i++) own += shared.digits[top - i];
    int upto = own;
    for (int reach = 1; reach < KD_WARP; reach *= 2) {
        const int before = __shfl_up_sync(KD_ALL_LANES, upto, (unsigned)reach);
        if (lane >= reach) upto += before;
    }
    int left = shared.left - (upto - own);
    __syncwarp();
    if (left < 1 || left > own) return; /* one lane goes on */
    int digit = top;
    while (left > shared.digits[digit]) left -= shared.digits[digit--];
    shared.floor |= (uint64_t)digit << shift;
    shared.left = left;
    shared.found = left == shared.digits[digit];
}

/* The floor becomes the first digits, then zeros, of the k-th largest key: as many as it takes for no
 * other key to be between them. */
__device__ __forceinline__ void find_floor(Shared &shared, int count, int k)
{
    if (threadIdx.x == 0) {
        shared.floor = 0;
        shared.left = k;
        shared.found = false;
    }
    for (int shift = 64 - 8; shift >= 0; shift -= 8) {
        shared.digits[threadIdx.x] = 0;
        __syncthreads();
        if (shared.found) break;
        const uint64_t floor = shared.floor >> shift;
        for (int i = (int)threadIdx.x; i < count; i += THREADS) {
            const uint64_t key = shared.key[i] >> shift;
            if (key >> 8 == floor >> 8) atomicAdd(&shared.digits[key & (DIGITS - 1)], 1);
        }
        __syncthreads();
        if (threadIdx.x < KD_WARP) next_digit(shared, shift);
        __syncthreads();
    }
}

/* Keeps the k largest keys, k < count, in any order, and moves the floor up to them.  All threads
 * call, after a barrier. */
__device__ void keep_largest(Shared &shared, int k)
{
    const int count = shared.count;
    __syncthreads();
    find_floor(shared, count, k);
    if (threadIdx.x == 0) shared.count = 0;
    /* What is written has been read: no more keys are kept than were looked at. */
    for (int first = 0; first < count; first += THREADS) {
        const int i = first + (int)threadIdx.x;
        const uint64_t key = i < count ? shared.key[i] : 0;
        __syncthreads();
        if (i < count && key >= shared.floor) shared.key[atomicAdd(&shared.count, 1)] = key;
    }
    __syncthreads();
}

/* Largest first (bitonic).  The keys from k to the next power of two are overwritten. */
__device__ __forceinline__ void sort_keys(Shared &shared, int k)
{
    int n = 1;
    while (n < k) n *= 2;
    for (int i = k + (int)threadIdx.x; i < n; i += THREADS) shared.key[i] = 0;
    for (int run = 2; run <= n; run *= 2)
        for (int apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (int pair = (int)threadIdx.x; pair < n / 2; pair += THREADS) {
                const int i = 2 * pair - (pair & (apart - 1)), j = i + apart;
                const uint64_t a = shared.key[i], b = shared.key[j];
                if ((a < b) == ((i & run) == 0)) {
                    shared.key[i] = b;
                    shared.key[j] = a;
                }
            }
        }
    __syncthreads();
}

/* ---- a row ------------------------------------------------------------------------------------- */

/* A thread's part of sum e^((z - max) / T). */
struct Seen {
    float max, sum;
};

__device__ __forceinline__ void see(Seen &seen, const float (&z)[KD_UNIT], float scale)
{
    float most = z[0], e[KD_UNIT];
#pragma unroll
    for (int i = 1; i < KD_UNIT; i++) most = fmaxf(most, z[i]);
    if (most > seen.max) {
        seen.sum *= kd_exp2((seen.max - most) * scale);
        seen.max = most;
    }
    const float base = seen.max == -INFINITY ? 0.0f : seen.max; /* nothing but dead classes: 0 */
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++) e[i] = kd_exp2((z[i] - base) * scale);
    seen.sum += kd_unit_sum(e);
}

/* Adds the classes of a unit from `first` on that are not below the floor, whose logit is `least`;
 * whether there is no room for another round now.  Of equal logits those that come later are none of
 * the k. */
__device__ __forceinline__ bool collect(Shared &shared, const float (&z)[KD_UNIT], int first,
                                        int classes)
{
    const uint64_t floor = shared.floor;
    const float least = logit_of(floor);
    bool some = false, full = false;
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++) some |= !(z[i] <= least);
    if (!some) return false;
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++) {
        const uint64_t key = key_of(z[i], first + i);
        if (z[i] <= least || key < floor || first + i >= classes) continue;
        const int at = atomicAdd(&shared.count, 1);
        shared.key[at] = key;
        full |= at >= FULL - 1;
    }
    return full;
}

/* Leaves the k largest keys, in order, and the row's maximum and log sum. */
template <class T>
__device__ __forceinline__ void read_row(Shared &shared, float &max, float &log_sum, const T *row,
                                         const Params &p)
{
    const float scale = p.inv_t * KD_LOG2_E;
    const kd_logits<T> logits = { (T *)row, NULL, (uintptr_t)row % 16 == 0 };
    const kd_units units = kd_units_of(0, (p.classes + KD_UNIT - 1) / KD_UNIT, p.classes);
    Seen seen = { -INFINITY, 0.0f };
    kd_raw_unit<T> ahead = {};
    if (threadIdx.x == 0) {
        shared.floor = 0;
        shared.count = 0;
    }
    int unit = (int)threadIdx.x;
    kd_fetch_unit<false>(ahead, logits, units, unit);
    __syncthreads();
    for (int done = 0; done < units.end; done += THREADS, unit += THREADS) {
        kd_raw_unit<T> raw = ahead;
        float z[KD_UNIT];
        kd_fetch_unit<false>(ahead, logits, units, unit + THREADS);
        kd_load_unit<false, true>(z, raw, logits, units, unit, -INFINITY);
        see(seen, z, scale);
        if (__syncthreads_or(collect(shared, z, unit * KD_UNIT, p.classes)))
            keep_largest(shared, p.k);
    }
    if (shared.count > p.k) keep_largest(shared, p.k);
    sort_keys(shared, p.k);
    max = kd_block_max<THREADS>(seen.max, shared.max);
    seen.sum *= kd_exp2((seen.max - max) * scale); /* NaN where no class lives */
    log_sum = logf((float)kd_block_sum<THREADS>((double)seen.sum, shared.sum));
}

template <class T> __global__ void __launch_bounds__(THREADS) top_classes_kernel(Params p)
{
    KD_SHARED(Shared, blocks, [1]);
    Shared &shared = blocks[0];
    const int64_t n = blockIdx.x;
    int32_t *ids = p.ids + n * p.k;
    float *log_p = p.log_p + n * p.k;
    if (p.labels && p.labels[n] == -1) {
        for (int i = (int)threadIdx.x; i < p.k; i += THREADS) {
            ids[i] = i;
            log_p[i] = 0.0f;
        }
        return;
    }
    float max, log_sum;
    read_row(shared, max, log_sum, (const T *)p.logits + n * p.stride, p);
    for (int i = (int)threadIdx.x; i < p.k; i += THREADS) {
        const uint64_t key = shared.key[i];
        ids[i] = (int32_t) ~(uint32_t)key;
        log_p[i] =
            (float)(((double)logit_of(key) - (double)max) * (double)p.inv_t - (double)log_sum);
    }
}

template <class T> kd_status top_classes(kd_exec *exec, int64_t rows, const Params &p)
{
    const kd_grid grid = { dim3((unsigned)rows), dim3(THREADS) };
    return kd_launch(exec, "top_classes", top_classes_kernel<T>, grid, p);
}

} // namespace

extern "C" kd_status kd_top_classes_cuda(kd_exec *exec, const kd_top_classes_args *args)
{
    const kd_tensor *logits = args->logits;
    const int64_t rows = logits->shape[0];
    if (kd_planning(exec) || rows == 0) return KD_OK;
    if (rows > INT32_MAX || args->classes > INT32_MAX - 2 * ROUND)
        return kd_fail(KD_ENOTSUP, "found %lld rows of %lld classes, expected less than 2^31",
                       (long long)rows, (long long)args->classes);
    const Params p = { logits->data,
                       kd_present(args->labels) ? (const int32_t *)args->labels->data : NULL,
                       (int32_t *)args->ids->data,
                       (float *)args->log_p->data,
                       logits->stride[0],
                       1.0f / args->temperature,
                       (int)args->classes,
                       (int)args->ids->shape[1] };
    return KD_BY_DTYPE(logits->dtype, top_classes, exec, rows, p);
}
