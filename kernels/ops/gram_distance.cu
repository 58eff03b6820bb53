/*
 * Distances of Gram matrices on CUDA; src/ops/gram_distance.c has the definitions.
 *
 * Grid      a warp to a row of the student's products, which by channels also takes rows of the teacher's;
 *           then a block of 256 threads to a sample.
 * Traffic   both products once, the student's written back where there is a gradient.
 * Numerics  f32 elements, squares and sums in double.
 * Same bits the order of a sum depends on the shapes alone.
 * Aliasing  none.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256;

struct Grams {
    float *student;
    const float *teacher, *weight, *scale; /* weight, scale: or NULL */
    float *loss;
    double *sum; /* one per row */
    int64_t samples, rows, columns, channels, teacher_channels;
    int64_t more; /* rows of the teacher's products that no row of the student goes with */
};

__device__ __forceinline__ float weight_of(const Grams &p, int64_t sample)
{
    return p.weight ? p.weight[sample] : 1;
}

__device__ __forceinline__ double squares(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += KD_WARP) sum += (double)x[i] * x[i];
    return kd_warp_sum(sum);
}

/* `n` elements times `by`; by 0: zeros whatever they were. */
__device__ __forceinline__ void multiply(float *x, float by, bool clear, int64_t n)
{
    for (int64_t i = threadIdx.x; i < n; i += KD_WARP) x[i] = clear ? 0 : x[i] * by;
}

__device__ __forceinline__ double places_row(const Grams &p, int64_t row, float weight)
{
    const float fs = 1.0f / (float)p.channels, ft = 1.0f / (float)p.teacher_channels;
    const float by = p.scale ? 4 * weight * *p.scale : 0;
    float *a = p.student + row * p.columns;
    const float *t = p.teacher + row * p.columns;
    double sum = 0;
    if (weight == 0) {
        if (p.scale) multiply(a, 0, true, p.columns);
        return 0;
    }
    for (int64_t i = threadIdx.x; i < p.columns; i += KD_WARP) {
        const float e = a[i] * fs - t[i] * ft;
        sum += (double)e * e;
        if (p.scale) a[i] = by * fs * e;
    }
    return kd_warp_sum(sum);
}

__device__ __forceinline__ double channels_row(const Grams &p, int64_t row, float weight)
{
    const double fs = 1 / (double)p.channels, ft = 1 / (double)p.teacher_channels;
    const float by = p.scale ? 4 * weight * *p.scale : 0;
    const int64_t c = p.channels, ct = p.teacher_channels;
    float *a = p.student + row * p.columns;
    const bool none = weight == 0;
    const double sum = none ? 0 : squares(a, c) * fs * fs - 2 * squares(a + c, ct) * fs * ft;
    if (!p.scale) return sum;
    multiply(a, (float)(by * fs * fs), none, c);
    multiply(a + c, -(float)(by * fs * ft), none, ct);
    return sum;
}

__device__ __forceinline__ double teacher_row(const Grams &p, int64_t row, float weight)
{
    const double ft = 1 / (double)p.teacher_channels;
    if (weight == 0) return 0;
    return squares(p.teacher + row * p.teacher_channels, p.teacher_channels) * ft * ft;
}

template <bool BY_CHANNEL> __global__ void __launch_bounds__(THREADS) rows_kernel(Grams p)
{
    const int64_t all = p.rows + p.more, step = (int64_t)gridDim.x * (THREADS / KD_WARP);
    int64_t i = (int64_t)blockIdx.x * (THREADS / KD_WARP) + threadIdx.y;
    for (; i < p.samples * all; i += step) {
        const int64_t b = i / all, row = i - b * all;
        const float weight = weight_of(p, b);
        double sum;
        if (!BY_CHANNEL)
            sum = places_row(p, b * p.rows + row, weight);
        else if (row < p.rows)
            sum = channels_row(p, b * p.rows + row, weight);
        else
            sum = teacher_row(p, b * p.more + row - p.rows, weight);
        if (threadIdx.x == 0) p.sum[i] = sum;
    }
}

__global__ void __launch_bounds__(THREADS) samples_kernel(Grams p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    for (int64_t b = blockIdx.x; b < p.samples; b += gridDim.x) {
        const double *sum = p.sum + b * (p.rows + p.more);
        double value = 0, rest = 0; /* apart, so that equal sides leave 0 */
        for (int64_t i = threadIdx.x; i < p.rows; i += THREADS) value += sum[i];
        for (int64_t i = threadIdx.x; i < p.more; i += THREADS) rest += sum[p.rows + i];
        value = kd_block_sum<THREADS>(value, share);
        value += kd_block_sum<THREADS>(rest, share);
        if (threadIdx.x == 0) p.loss[b] = value < 0 ? 0 : (float)(value * weight_of(p, b));
    }
}

} // namespace

extern "C" kd_status kd_gram_distance_cuda(kd_exec *exec, const kd_gram_distance_args *args)
{
    const kd_tensor *x = args->student;
    const int64_t more = args->by_channel ? args->teacher_channels : 0;
    kd_tensor sums;
    KD_TRY(kd_push(&sums, exec, "gram_distance.sums", KD_I64,
                   KD_SHAPE(x->shape[0], x->shape[1] + more)));
    if (kd_planning(exec) || x->shape[0] == 0) return KD_OK;
    const Grams p = { (float *)x->data,
                      (const float *)args->teacher->data,
                      kd_present(args->weight) ? (const float *)args->weight->data : NULL,
                      kd_present(args->scale) ? (const float *)args->scale->data : NULL,
                      (float *)args->loss->data,
                      (double *)sums.data,
                      x->shape[0],
                      x->shape[1],
                      x->shape[2],
                      args->channels,
                      args->teacher_channels,
                      more };
    const int64_t warps = THREADS / KD_WARP, most = kd_blocks_at_once(exec, THREADS);
    const int64_t blocks = kd_min_i64(kd_ceil_div(p.samples * (p.rows + more), warps), most);
    const kd_grid rows = { dim3((unsigned)kd_max_i64(blocks, 1)), dim3(KD_WARP, (unsigned)warps) };
    const kd_grid samples = { dim3((unsigned)kd_min_i64(p.samples, most)), dim3(THREADS) };
    KD_TRY(kd_launch(exec, "gram_distance",
                     args->by_channel ? rows_kernel<true> : rows_kernel<false>, rows, p));
    return kd_launch(exec, "gram_distance", samples_kernel, samples, p);
}
