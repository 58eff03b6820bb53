/*
 * Rows kept, rows of length one and their gradient on CUDA; src/ops/normalise.c has the definitions.
 *
 * Grid      a block of 256 threads to a row, 4 elements a thread at a time where rows are aligned.
 * Traffic   keep_rows, normalise: x and y once; backward: x, dy and dx, dx twice.  The second reading of a row is
 *           the cache's.
 * Numerics  sums in double, as on the CPU; elements in f32, divided as IEEE says.
 * Same bits the order of a sum depends on the length of the row alone.
 * Aliasing  none.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256, WIDTH = 4;

kd_grid grid_of(const kd_exec *exec, int64_t rows)
{
    return { dim3((unsigned)kd_min_i64(rows, kd_blocks_at_once(exec, THREADS))), dim3(THREADS) };
}

/* sum of a_i b_i over a row, in every thread. */
template <int W, class A, class B>
__device__ __forceinline__ double dot(const A *a, const B *b, int64_t columns, double *share)
{
    double sum = 0;
    for (int64_t at = threadIdx.x * W; at < columns; at += THREADS * W) {
        float u[W], v[W];
        kd_load(u, a + at);
        kd_load(v, b + at);
#pragma unroll
        for (int k = 0; k < W; k++) sum += (double)u[k] * v[k];
    }
    return kd_block_sum<THREADS>(sum, share);
}

__device__ __forceinline__ float divisor(float norm, float eps, bool added)
{
    return added ? norm + eps : fmaxf(norm, eps);
}

template <class T, class U> struct Normalise {
    kd_rows<const T> x;
    kd_rows<U> y;
    float *norm;
    int64_t rows, columns;
    float eps;
    bool added;
};

template <class T, class U, int W>
__global__ void __launch_bounds__(THREADS) normalise_kernel(Normalise<T, U> p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
        const T *x = p.x.row(r);
        U *y = p.y.row(r);
        const float norm = (float)sqrt(dot<W>(x, x, p.columns, share));
        const float s = divisor(norm, p.eps, p.added);
        if (threadIdx.x == 0) p.norm[r] = norm;
#pragma unroll 2
        for (int64_t at = threadIdx.x * W; at < p.columns; at += THREADS * W) {
            float v[W];
            kd_load(v, x + at);
#pragma unroll
            for (int k = 0; k < W; k++) v[k] = s == 0 ? 0 : v[k] / s;
            kd_store(y + at, v);
        }
    }
}

template <class T, class U> kd_status normalise_to(kd_exec *exec, const kd_normalise_args *args)
{
    const Normalise<T, U> p = { kd_rows_of<const T>(args->x),
                                kd_rows_of<U>(args->y),
                                (float *)args->norm->data,
                                kd_tensor_rows(args->x),
                                kd_tensor_columns(args->x),
                                args->eps,
                                args->added };
    return kd_launch(exec, "normalise",
                     kd_rows_aligned(args->x, args->y) ? normalise_kernel<T, U, WIDTH>
                                                       : normalise_kernel<T, U, 1>,
                     grid_of(exec, p.rows), p);
}

template <class T> kd_status normalise(kd_exec *exec, const kd_normalise_args *args)
{
    return args->y->dtype == KD_F32 ? normalise_to<T, float>(exec, args)
                                    : normalise_to<T, bf16>(exec, args);
}

template <class T, class U> struct Backward {
    kd_rows<T> dx;
    kd_rows<const U> dy;
    kd_rows<const T> x;
    const float *norm;
    int64_t rows, columns;
    float eps;
    bool added;
};

template <class T, class U, int W>
__global__ void __launch_bounds__(THREADS) backward_kernel(Backward<T, U> p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
        const T *x = p.x.row(r);
        const U *dy = p.dy.row(r);
        T *dx = p.dx.row(r);
        const float norm = p.norm[r], s = divisor(norm, p.eps, p.added);
        const bool turns = norm > 0 && (p.added || norm > p.eps);
        const double product = dot<W>(x, dy, p.columns, share);
        const float c = turns ? (float)(product / norm / s) : 0;
        if (s == 0) continue;
        for (int64_t at = threadIdx.x * W; at < p.columns; at += THREADS * W) {
            float v[W], g[W], to[W];
            kd_load(v, x + at);
            kd_load(g, dy + at);
            kd_load(to, dx + at);
#pragma unroll
            for (int k = 0; k < W; k++) to[k] += (g[k] - v[k] * c) / s;
            kd_store(dx + at, to);
        }
    }
}

template <class T, class U>
kd_status backward_from(kd_exec *exec, const kd_normalise_backward_args *args)
{
    const Backward<T, U> p = { kd_rows_of<T>(args->dx),
                               kd_rows_of<const U>(args->dy),
                               kd_rows_of<const T>(args->x),
                               (const float *)args->norm->data,
                               kd_tensor_rows(args->x),
                               kd_tensor_columns(args->x),
                               args->eps,
                               args->added };
    return kd_launch(exec, "normalise_backward",
                     kd_rows_aligned(args->dx, args->dy, args->x) ? backward_kernel<T, U, WIDTH>
                                                                  : backward_kernel<T, U, 1>,
                     grid_of(exec, p.rows), p);
}

template <class T> kd_status backward(kd_exec *exec, const kd_normalise_backward_args *args)
{
    return args->dy->dtype == KD_F32 ? backward_from<T, float>(exec, args)
                                     : backward_from<T, bf16>(exec, args);
}

/* ---- rows that count -------------------------------------------------------------------------- */

template <class T> struct Keep {
    kd_rows<const T> x;
    kd_rows<float> y;
    const float *weight;
    float *part; /* weight over how many count */
    int64_t rows, columns;
};

template <class T, int W> __global__ void __launch_bounds__(THREADS) keep_kernel(Keep<T> p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    double count = 0;
    for (int64_t i = threadIdx.x; i < p.rows; i += THREADS) count += p.weight[i] != 0;
    count = kd_block_sum<THREADS>(count, share);
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
        const bool kept = p.weight[r] != 0;
        const T *x = p.x.row(r);
        float *y = p.y.row(r);
        if (threadIdx.x == 0) p.part[r] = kept ? (float)(p.weight[r] / count) : 0;
        for (int64_t at = threadIdx.x * W; at < p.columns; at += THREADS * W) {
            float v[W] = {};
            if (kept) kd_load(v, x + at);
            kd_store(y + at, v);
        }
    }
}

template <class T> kd_status keep(kd_exec *exec, const kd_keep_rows_args *args)
{
    const Keep<T> p = { kd_rows_of<const T>(args->x),      kd_rows_of<float>(args->y),
                        (const float *)args->weight->data, (float *)args->share->data,
                        kd_tensor_rows(args->x),           kd_tensor_columns(args->x) };
    return kd_launch(exec, "keep_rows",
                     kd_rows_aligned(args->x, args->y) ? keep_kernel<T, WIDTH> : keep_kernel<T, 1>,
                     grid_of(exec, p.rows), p);
}

} // namespace

extern "C" kd_status kd_keep_rows_cuda(kd_exec *exec, const kd_keep_rows_args *args)
{
    if (kd_planning(exec) || kd_tensor_rows(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, keep, exec, args);
}

extern "C" kd_status kd_normalise_cuda(kd_exec *exec, const kd_normalise_args *args)
{
    if (kd_planning(exec) || kd_tensor_rows(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, normalise, exec, args);
}

extern "C" kd_status kd_normalise_backward_cuda(kd_exec *exec,
                                                const kd_normalise_backward_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, backward, exec, args);
}
