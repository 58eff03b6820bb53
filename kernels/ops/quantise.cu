/*
 * e4m3 with one scale per tensor on CUDA; src/ops/quantise.c has the definition.
 *
 * Grid      16 bytes of x a thread, x along a row and y over the rows, twice: every block's largest
 *           element into scratch; then every block takes the largest of those, and casts its part.
 * Traffic   x twice, the second time from the cache where it fits; y once: 5 bytes per bf16 element.
 * Numerics  scale and 1 / scale are rounded as IEEE says, so the bits are the CPU's.
 * Same bits a maximum is the same in any order.
 * Aliasing  none.
 */
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"

#include <float.h>

namespace {

constexpr int THREADS = KD_ROWS_THREADS;

template <class T> struct Params {
    kd_rows<const T> x;
    kd_rows<uint8_t> y;
    int64_t rows, units;
    float *largest; /* of each block of the grid, which both kernels have the same of */
    float *scale;
};

/* kd_block_max counts threads in one dimension, the grid has two. */
__device__ __forceinline__ float block_largest(float x, float *buffer)
{
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    x = kd_warp_max(x);
    if (thread % KD_WARP == 0) buffer[thread / KD_WARP] = x;
    __syncthreads();
    return kd_warp_max(buffer[thread % (THREADS / KD_WARP)]);
}

template <class T, int W> __global__ void __launch_bounds__(THREADS) largest_kernel(Params<T> p)
{
    KD_SHARED(float, share, [THREADS / KD_WARP]);
    float largest = 0;
    for (int64_t r = kd_first_row(); r < p.rows; r += kd_row_step()) {
        const T *row = p.x.row(r);
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float x[W];
            kd_load(x, row + u * W);
#pragma unroll
            for (int k = 0; k < W; k++)
                if (fabsf(x[k]) < INFINITY) largest = fmaxf(largest, fabsf(x[k]));
        }
    }
    largest = block_largest(largest, share);
    if (threadIdx.x == 0 && threadIdx.y == 0)
        p.largest[blockIdx.y * gridDim.x + blockIdx.x] = largest;
}

template <class T, int W> __global__ void __launch_bounds__(THREADS) cast_kernel(Params<T> p)
{
    KD_SHARED(float, share, [THREADS / KD_WARP]);
    float largest = 0;
    for (unsigned i = threadIdx.y * blockDim.x + threadIdx.x; i < gridDim.x * gridDim.y;
         i += THREADS)
        largest = fmaxf(largest, p.largest[i]);
    largest = block_largest(largest, share) / KD_E4M3_LARGEST;
    const float scale = largest >= FLT_MIN ? largest : 1, inverse = 1 / scale;
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0 && threadIdx.y == 0)
        *p.scale = scale;
    for (int64_t r = kd_first_row(); r < p.rows; r += kd_row_step()) {
        const T *row = p.x.row(r);
        uint8_t *y = p.y.row(r);
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float x[W];
            kd_vec<uint8_t, W> codes;
            kd_load(x, row + u * W);
#pragma unroll
            for (int k = 0; k < W; k++) codes.at[k] = kd_e4m3(x[k] * inverse);
            *reinterpret_cast<kd_vec<uint8_t, W> *>(y + u * W) = codes;
        }
    }
}

/* Whether every row of y takes W codes at a time. */
bool codes_aligned(const kd_tensor *y, int width)
{
    return (uintptr_t)y->data % width == 0 && (y->shape[0] <= 1 || y->stride[0] % width == 0);
}

template <class T>
kd_status quantise(kd_exec *exec, const kd_quantise_args *args, const kd_tensor *largest)
{
    constexpr int W = kd_width<T>;
    const Params<T> p = { kd_rows_of<const T>(args->x),
                          kd_rows_of<uint8_t>(args->y),
                          args->x->shape[0],
                          args->x->shape[1],
                          (float *)largest->data,
                          (float *)args->scale->data };
    const bool aligned = kd_rows_aligned(args->x) && codes_aligned(args->y, W);
    KD_TRY(kd_launch_rows(exec, "quantise", largest_kernel<T, W>, W, largest_kernel<T, 1>, aligned,
                          p));
    return kd_launch_rows(exec, "quantise", cast_kernel<T, W>, W, cast_kernel<T, 1>, aligned, p);
}

} // namespace

extern "C" kd_status kd_quantise_cuda(kd_exec *exec, const kd_quantise_args *args)
{
    kd_tensor largest; /* kd_grid_rows has no more blocks than that */
    KD_TRY(kd_push(&largest, exec, "quantise.largest", KD_F32,
                   KD_SHAPE(kd_blocks_at_once(exec, THREADS))));
    if (kd_planning(exec)) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, quantise, exec, args, &largest);
}
