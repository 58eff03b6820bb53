/*
 * fill, copy, add and rows by index on CUDA; src/ops/elementwise.c has the definitions.
 *
 * Grid      one thread per 16 bytes of y (per element where a row is not aligned); blocks stride
 *           over the rest, at most 8 per multiprocessor and wave.
 * Traffic   fill 1, copy 2, add 3 times the tensor.  Outputs may be operands.
 */
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256;

kd_grid grid_of(kd_exec *exec, int64_t units)
{
    const int64_t most = 8 * (int64_t)kd_cuda_limits_of(exec)->multiprocessors;
    const int64_t blocks = kd_min_i64(kd_ceil_div(units, THREADS), most);
    return { dim3((unsigned)kd_max_i64(blocks, 1)), dim3(THREADS) };
}

/* ---- add -------------------------------------------------------------------------------------- */

template <class T> struct AddParams {
    kd_rows<T> y, a, b;
    int64_t rows, units; /* units of W elements in a row */
};

template <class T, int W> __global__ void __launch_bounds__(THREADS) add_kernel(AddParams<T> p)
{
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < p.rows * p.units; i += step) {
        const int64_t row = i / p.units, at = i % p.units * W;
        float a[W], b[W];
        kd_load(a, p.a.row(row) + at);
        kd_load(b, p.b.row(row) + at);
#pragma unroll
        for (int k = 0; k < W; k++) a[k] += b[k];
        kd_store(p.y.row(row) + at, a);
    }
}

template <class T> kd_status add(kd_exec *exec, const kd_add_args *args)
{
    constexpr int W = kd_width<T>;
    const int64_t columns = kd_tensor_columns(args->y);
    AddParams<T> p = { kd_rows_of<T>(args->y), kd_rows_of<T>(args->a), kd_rows_of<T>(args->b),
                       kd_tensor_rows(args->y), columns };
    if (!kd_rows_aligned(args->y, args->a, args->b))
        return kd_launch(exec, "add", add_kernel<T, 1>, grid_of(exec, p.rows * columns), p);
    p.units = columns / W;
    return kd_launch(exec, "add", add_kernel<T, W>, grid_of(exec, p.rows * p.units), p);
}

} // namespace

extern "C" kd_status kd_add_cuda(kd_exec *exec, const kd_add_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    return KD_BY_DTYPE(args->y->dtype, add, exec, args);
}
