/*
 * Powers of feature maps on CUDA; src/ops/maps.c has the definitions.
 *
 * Grid      over channels: a thread for each W places, KD_ROWS_THREADS of them a block, which goes through the
 *           channels; over places: a warp for each channel.  Backward: a thread a unit of places.
 * Traffic   x once; backward x once, dx read and written, dy from the caches.
 * Numerics  f32; over channels each place is a chain of C additions.  powf is within 4 ulp; a power of 2 is
 *           a product.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

template <class T> struct Params {
    kd_rows<const T> x;
    kd_rows<T> dx;
    float *y;            /* forward: [B, S] or [B, C] */
    const float *dy;     /* backward: the same */
    int64_t rows, units; /* what the grid strides over */
    int64_t channels, places;
    float power;
    bool by_channel;
};

__device__ __forceinline__ float raised(float x, float power)
{
    return power == 2.0f ? x * x : powf(fabsf(x), power);
}

__device__ __forceinline__ float slope(float x, float power)
{
    if (power == 2.0f) return 2 * x;
    return x == 0.0f ? 0.0f : copysignf(power * powf(fabsf(x), power - 1), x);
}

/* Rows of the grid are samples, units are W places. */
template <class T, int W>
__global__ void __launch_bounds__(KD_ROWS_THREADS) places_kernel(Params<T> p)
{
    for (int64_t b = kd_first_row(); b < p.rows; b += kd_row_step())
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float sum[W] = {}, x[W];
            for (int64_t c = 0; c < p.channels; c++) {
                kd_load(x, p.x.row(b * p.channels + c) + u * W);
#pragma unroll
                for (int k = 0; k < W; k++) sum[k] += raised(x[k], p.power);
            }
#pragma unroll
            for (int k = 0; k < W; k++) p.y[b * p.places + u * W + k] = sum[k];
        }
}

template <class T, int W>
__global__ void __launch_bounds__(KD_ROWS_THREADS) channels_kernel(Params<T> p)
{
    const int64_t warps = KD_ROWS_THREADS / KD_WARP;
    for (int64_t row = blockIdx.x * warps + threadIdx.y; row < p.rows; row += gridDim.x * warps) {
        const T *from = p.x.row(row);
        float sum = 0, x[W];
        for (int64_t u = threadIdx.x; u < p.units; u += KD_WARP) {
            kd_load(x, from + u * W);
#pragma unroll
            for (int k = 0; k < W; k++) sum += raised(x[k], p.power);
        }
        sum = kd_warp_sum(sum);
        if (threadIdx.x == 0) p.y[row] = sum;
    }
}

/* Rows of the grid are channels of samples. */
template <class T, int W>
__global__ void __launch_bounds__(KD_ROWS_THREADS) backward_kernel(Params<T> p)
{
    for (int64_t row = kd_first_row(); row < p.rows; row += kd_row_step()) {
        const float *dy = p.dy + (p.by_channel ? row : row / p.channels * p.places);
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float x[W], out[W];
            kd_load(x, p.x.row(row) + u * W);
            kd_load(out, p.dx.row(row) + u * W);
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float g = dy[p.by_channel ? 0 : u * W + k];
                if (g != 0.0f) out[k] += g * slope(x[k], p.power);
            }
            kd_store(p.dx.row(row) + u * W, out);
        }
    }
}

template <class T> Params<T> params_of(const kd_tensor *x, float power, bool by_channel)
{
    Params<T> p = {};
    p.x = kd_rows_of<const T>(x);
    p.channels = x->shape[1];
    p.units = p.places = x->shape[2];
    p.rows = by_channel ? x->shape[0] * p.channels : x->shape[0];
    p.power = power;
    p.by_channel = by_channel;
    return p;
}

template <class T, int W> kd_status sum_places(kd_exec *exec, const Params<T> &p)
{
    const int64_t warps = KD_ROWS_THREADS / KD_WARP;
    const int64_t blocks =
        kd_min_i64(kd_ceil_div(p.rows, warps), kd_blocks_at_once(exec, KD_ROWS_THREADS));
    const kd_grid grid = { dim3((unsigned)blocks), dim3(KD_WARP, (unsigned)warps) };
    return kd_launch(exec, "map_powers", channels_kernel<T, W>, grid, p);
}

template <class T> kd_status forward(kd_exec *exec, const kd_map_powers_args *args)
{
    constexpr int W = kd_width<T>;
    Params<T> p = params_of<T>(args->x, args->power, args->channels);
    const bool aligned = kd_rows_aligned(args->x);
    p.y = (float *)args->y->data;
    if (!args->channels)
        return kd_launch_rows(exec, "map_powers", places_kernel<T, W>, W, places_kernel<T, 1>,
                              aligned, p);
    if (!aligned) return sum_places<T, 1>(exec, p);
    p.units /= W;
    return sum_places<T, W>(exec, p);
}

template <class T> kd_status backward(kd_exec *exec, const kd_map_powers_backward_args *args)
{
    constexpr int W = kd_width<T>;
    Params<T> p = params_of<T>(args->x, args->power, args->channels);
    p.dx = kd_rows_of<T>(args->dx);
    p.dy = (const float *)args->dy->data;
    p.rows = args->x->shape[0] * p.channels;
    return kd_launch_rows(exec, "map_powers_backward", backward_kernel<T, W>, W,
                          backward_kernel<T, 1>, kd_rows_aligned(args->x, args->dx), p);
}

} // namespace

extern "C" kd_status kd_map_powers_cuda(kd_exec *exec, const kd_map_powers_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, forward, exec, args);
}

extern "C" kd_status kd_map_powers_backward_cuda(kd_exec *exec,
                                                 const kd_map_powers_backward_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, backward, exec, args);
}
