/*
 * Correlation of neighbours on CUDA; src/ops/correlation.c has the definition.
 *
 * Grid      a block of 256 threads to a row, 4 elements a thread at a time where rows are aligned; a
 *           block reads the row, the one before and the one after.
 * Traffic   student and teacher once each, the other readings are the cache's; d_student in and out.
 * Numerics  f32 elements, a row's sum in double.
 * Same bits the order of a sum depends on the length of the row alone.
 * Aliasing  none.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256, WIDTH = 4;

template <class S, class T> struct Correlation {
    kd_rows<const S> student;
    kd_rows<const T> teacher;
    kd_rows<S> d; /* data NULL: the value alone */
    float *loss;
    const float *weight, *scale; /* or NULL */
    int64_t rows, columns;
};

template <class P> __device__ __forceinline__ float weight_of(const P &p, int64_t row)
{
    return p.weight ? p.weight[row] : 1;
}

/* The next row from `row` on, in steps of 1 or -1, that counts; or one outside of the batch. */
template <class P> __device__ __forceinline__ int64_t counted(const P &p, int64_t row, int64_t step)
{
    while (row >= 0 && row < p.rows && weight_of(p, row) == 0) row += step;
    return row;
}

/* student - teacher of a row, or zeros. */
template <int W, class S, class T>
__device__ __forceinline__ void differences(float (&e)[W], const Correlation<S, T> &p, int64_t row,
                                            int64_t at)
{
    float t[W] = {};
#pragma unroll
    for (int k = 0; k < W; k++) e[k] = 0;
    if (row >= 0 && row < p.rows) {
        kd_load(e, p.student.row(row) + at);
        kd_load(t, p.teacher.row(row) + at);
    }
#pragma unroll
    for (int k = 0; k < W; k++) e[k] -= t[k];
}

template <class S, class T, int W>
__global__ void __launch_bounds__(THREADS) correlation_kernel(Correlation<S, T> p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    double count = 0;
    for (int64_t i = threadIdx.x; i < p.rows; i += THREADS) count += weight_of(p, i) != 0;
    count = kd_block_sum<THREADS>(count, share);
    const double by = count > 1 ? count / (count - 1) : 0;
    const float scale = p.d.data ? (float)(by * *p.scale) : 0;
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
        const float own = weight_of(p, r);
        const int64_t previous = counted(p, r - 1, -1), next = counted(p, r + 1, 1);
        const float above = previous < 0 ? 0 : weight_of(p, previous);
        const int64_t columns = own != 0 ? p.columns : 0;
        double sum = 0;
        for (int64_t at = threadIdx.x * W; at < columns; at += THREADS * W) {
            float before[W], e[W], after[W], to[W];
            differences(e, p, r, at);
            differences(after, p, next, at);
#pragma unroll
            for (int k = 0; k < W; k++) sum += fabsf(e[k] * after[k]);
            if (!p.d.data) continue;
            differences(before, p, previous, at);
            S *d = p.d.row(r) + at;
            kd_load(to, d);
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float sign = e[k] > 0 ? scale : e[k] < 0 ? -scale : 0;
                to[k] += sign * (above * fabsf(before[k]) + own * fabsf(after[k]));
            }
            kd_store(d, to);
        }
        sum = kd_block_sum<THREADS>(sum, share);
        if (threadIdx.x == 0) p.loss[r] = (float)(by * own * sum);
    }
}

template <class S, class T> kd_status correlate_with(kd_exec *exec, const kd_correlation_args *args)
{
    const Correlation<S, T> p = { kd_rows_of<const S>(args->student),
                                  kd_rows_of<const T>(args->teacher),
                                  kd_rows_of<S>(args->d_student),
                                  (float *)args->loss->data,
                                  kd_present(args->weight) ? (const float *)args->weight->data
                                                           : NULL,
                                  kd_present(args->scale) ? (const float *)args->scale->data : NULL,
                                  args->student->shape[0],
                                  args->student->shape[1] };
    const kd_grid grid = { dim3((unsigned)kd_min_i64(p.rows, kd_blocks_at_once(exec, THREADS))),
                           dim3(THREADS) };
    return kd_launch(exec, "correlation",
                     kd_rows_aligned(args->student, args->teacher, args->d_student)
                         ? correlation_kernel<S, T, WIDTH>
                         : correlation_kernel<S, T, 1>,
                     grid, p);
}

template <class S> kd_status correlate(kd_exec *exec, const kd_correlation_args *args)
{
    return args->teacher->dtype == KD_F32 ? correlate_with<S, float>(exec, args)
                                          : correlate_with<S, bf16>(exec, args);
}

} // namespace

extern "C" kd_status kd_correlation_cuda(kd_exec *exec, const kd_correlation_args *args)
{
    if (kd_planning(exec) || args->student->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->student->dtype, correlate, exec, args);
}
