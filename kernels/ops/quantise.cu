/*
 * e4m3 with a scale per row on CUDA, and scales of products; src/ops/quantise.c has the definitions.
 *
 * Grid      quantise: a warp to a row of up to 1024 elements, eight rows to a block, else a block of
 *           256 threads to a row; both read the row again from the cache for the cast.  rescale: 16
 *           bytes of y a thread, x along a row and y over the rows.
 * Traffic   quantise: x and y once, 3 bytes per bf16 element.  rescale: y in and out, 4 bytes.
 * Numerics  a scale and its inverse are rounded as IEEE says, so the codes are the CPU's to the bit.
 * Same bits a maximum is the same in any order.
 * Aliasing  none.
 */
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"

#include <float.h>

namespace {

constexpr int THREADS = KD_ROWS_THREADS;
constexpr int SHORT = 1024; /* elements of a row that a warp has: 4 loads a lane of bf16 */

/* ---- quantise --------------------------------------------------------------------------------- */

template <class T> struct Cast {
    kd_rows<const T> x;
    kd_rows<uint8_t> y;
    float *scale;
    int64_t rows, columns;
};

template <class T, int LANES, int W>
__global__ void __launch_bounds__(THREADS) cast_kernel(Cast<T> p)
{
    KD_SHARED(float, share, [THREADS / KD_WARP]);
    const int64_t r = (int64_t)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const int64_t first = (int64_t)(threadIdx.x % LANES) * W;
    const int64_t columns = r < p.rows ? p.columns : 0; /* none beyond the last row */
    const T *const row = p.x.row(r);
    float largest = 0;
    for (int64_t at = first; at < columns; at += LANES * W) {
        float x[W];
        kd_load(x, row + at);
#pragma unroll
        for (int k = 0; k < W; k++)
            if (fabsf(x[k]) < INFINITY) largest = fmaxf(largest, fabsf(x[k]));
    }
    largest = LANES == KD_WARP ? kd_warp_max(largest) : kd_block_max<THREADS>(largest, share);
    largest /= KD_E4M3_LARGEST;
    const float scale = largest >= FLT_MIN ? largest : 1, inverse = 1 / scale;
    if (first == 0 && r < p.rows) p.scale[r] = scale;
    uint8_t *const y = p.y.row(r);
    for (int64_t at = first; at < columns; at += LANES * W) {
        float x[W];
        kd_vec<uint8_t, W> codes;
        kd_load(x, row + at);
#pragma unroll
        for (int k = 0; k < W; k++) codes.at[k] = kd_e4m3(x[k] * inverse);
        *reinterpret_cast<kd_vec<uint8_t, W> *>(y + at) = codes;
    }
}

/* Whether every row of y takes W codes at a time. */
bool codes_aligned(const kd_tensor *y, int width)
{
    return (uintptr_t)y->data % width == 0 && (y->shape[0] <= 1 || y->stride[0] % width == 0);
}

template <class T, int LANES> kd_status cast(kd_exec *exec, const Cast<T> &p, bool aligned)
{
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, THREADS / LANES)), dim3(THREADS) };
    return kd_launch(exec, "quantise",
                     aligned ? cast_kernel<T, LANES, kd_width<T>> : cast_kernel<T, LANES, 1>, grid,
                     p);
}

template <class T> kd_status quantise(kd_exec *exec, const kd_quantise_args *args)
{
    const Cast<T> p = { kd_rows_of<const T>(args->x), kd_rows_of<uint8_t>(args->y),
                        (float *)args->scale->data, args->x->shape[0], args->x->shape[1] };
    const bool aligned = kd_rows_aligned(args->x) && codes_aligned(args->y, kd_width<T>);
    return p.columns <= SHORT ? cast<T, KD_WARP>(exec, p, aligned)
                              : cast<T, THREADS>(exec, p, aligned);
}

/* ---- rescale ---------------------------------------------------------------------------------- */

template <class T> struct Rescale {
    kd_rows<T> y;
    const float *row, *column;
    const bf16 *bias; /* or NULL */
    int64_t rows, units;
};

template <class T, int W> __global__ void __launch_bounds__(THREADS) rescale_kernel(Rescale<T> p)
{
    for (int64_t r = kd_first_row(); r < p.rows; r += kd_row_step()) {
        T *const row = p.y.row(r);
        const float by = p.row[r];
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float y[W], column[W], bias[W] = {};
            kd_load(y, row + u * W);
            kd_load(column, p.column + u * W);
            if (p.bias) kd_load(bias, p.bias + u * W);
#pragma unroll
            for (int k = 0; k < W; k++) y[k] = by * (column[k] * y[k]) + bias[k];
            kd_store(row + u * W, y);
        }
    }
}

template <class T> kd_status rescale(kd_exec *exec, const kd_rescale_args *args)
{
    constexpr int W = kd_width<T>;
    const Rescale<T> p = { kd_rows_of<T>(args->y),
                           (const float *)args->row->data,
                           (const float *)args->column->data,
                           kd_present(args->bias) ? (const bf16 *)args->bias->data : NULL,
                           args->y->shape[0],
                           args->y->shape[1] };
    const bool aligned = kd_rows_aligned(args->y) &&
                         (uintptr_t)p.column % (W * sizeof(float)) == 0 &&
                         (uintptr_t)p.bias % (W * sizeof(bf16)) == 0;
    return kd_launch_rows(exec, "rescale", rescale_kernel<T, W>, W, rescale_kernel<T, 1>, aligned,
                          p);
}

} // namespace

extern "C" kd_status kd_quantise_cuda(kd_exec *exec, const kd_quantise_args *args)
{
    if (kd_planning(exec) || args->x->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, quantise, exec, args);
}

extern "C" kd_status kd_rescale_cuda(kd_exec *exec, const kd_rescale_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    return KD_BY_DTYPE(args->y->dtype, rescale, exec, args);
}
