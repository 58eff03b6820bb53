/*
 * Likelihood of the teacher's maps on CUDA; src/ops/vid.c has the definitions.
 *
 * Grid      a warp to a channel of a sample; then a warp to each sample and to each channel.
 * Traffic   student and teacher once, d_student read and written.
 * Numerics  f32 elements, sums and what is of a channel in double.
 * Same bits the order of a sum depends on the shapes alone.
 * Aliasing  none.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / KD_WARP;

template <class S, class T> struct Vid {
    kd_rows<const S> student;
    kd_rows<const T> teacher;
    kd_rows<S> d;                               /* data NULL: absent */
    double *sum;                                /* [samples, channels] */
    const float *log_variance, *weight, *scale; /* weight, scale: or NULL */
    float *loss, *d_log_variance;
    int64_t samples, channels, places;
    double eps, share; /* share: of an element in a sample's mean */
};

template <class P> __device__ __forceinline__ double weight_of(const P &p, int64_t sample)
{
    return p.weight ? p.weight[sample] : 1;
}

template <class P> __device__ __forceinline__ double variance(const P &p, int64_t channel)
{
    const double a = p.log_variance[channel];
    return fmax(a, 0.0) + log1p(exp(-fabs(a))) + p.eps;
}

template <class S, class T, int W>
__global__ void __launch_bounds__(THREADS) rows_kernel(Vid<S, T> p)
{
    const int64_t rows = p.samples * p.channels, step = (int64_t)gridDim.x * WARPS;
    for (int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.y; r < rows; r += step) {
        const double weight = weight_of(p, r / p.channels);
        const double scale = p.scale ? *p.scale : 0;
        const float by = (float)(scale * weight * p.share / variance(p, r % p.channels));
        const int64_t places = weight == 0 ? 0 : p.places;
        const S *x = p.student.row(r);
        const T *t = p.teacher.row(r);
        double sum = 0;
        for (int64_t at = threadIdx.x * W; at < places; at += KD_WARP * W) {
            float e[W], other[W], to[W];
            kd_load(e, x + at);
            kd_load(other, t + at);
#pragma unroll
            for (int k = 0; k < W; k++) {
                e[k] -= other[k];
                sum += e[k] * e[k];
            }
            if (!p.d.data) continue;
            S *d = p.d.row(r) + at;
            kd_load(to, d);
#pragma unroll
            for (int k = 0; k < W; k++) to[k] += by * e[k];
            kd_store(d, to);
        }
        sum = kd_warp_sum(sum);
        if (threadIdx.x == 0) p.sum[r] = sum;
    }
}

/* In every thread of a warp. */
template <class P> __device__ __forceinline__ double value_of(const P &p, int64_t sample)
{
    double value = 0;
    for (int64_t c = threadIdx.x; c < p.channels; c += KD_WARP) {
        const double v = variance(p, c);
        value += (p.sum[sample * p.channels + c] / v + p.places * log(v)) / 2;
    }
    return kd_warp_sum(value) * p.share;
}

template <class P> __device__ __forceinline__ double slope_of(const P &p, int64_t channel)
{
    const double v = variance(p, channel);
    double slope = 0;
    for (int64_t b = threadIdx.x; b < p.samples; b += KD_WARP)
        slope += weight_of(p, b) * (p.places - p.sum[b * p.channels + channel] / v) / v / 2;
    return kd_warp_sum(slope) * p.share / (1 + exp(-(double)p.log_variance[channel]));
}

/* Samples, then channels where their gradient is wanted. */
template <class S, class T> __global__ void __launch_bounds__(THREADS) ends_kernel(Vid<S, T> p)
{
    const int64_t all = p.samples + (p.d_log_variance ? p.channels : 0);
    const int64_t step = (int64_t)gridDim.x * WARPS;
    for (int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.y; i < all; i += step) {
        if (i < p.samples) {
            const double weight = weight_of(p, i), value = value_of(p, i);
            if (threadIdx.x == 0) p.loss[i] = weight == 0 ? 0 : (float)(weight * value);
        } else {
            const int64_t c = i - p.samples;
            const double slope = slope_of(p, c);
            if (threadIdx.x == 0) p.d_log_variance[c] += (float)(*p.scale * slope);
        }
    }
}

kd_grid warps(const kd_exec *exec, int64_t rows)
{
    const int64_t most = kd_blocks_at_once(exec, THREADS);
    const int64_t blocks = kd_min_i64(kd_max_i64(kd_ceil_div(rows, WARPS), 1), most);
    return { dim3((unsigned)blocks), dim3(KD_WARP, WARPS) };
}

float *list_of(const kd_tensor *t) { return kd_present(t) ? (float *)t->data : NULL; }

template <class S, class T>
kd_status vid_with(kd_exec *exec, const kd_vid_args *args, const kd_tensor *sums)
{
    const kd_tensor *x = args->student;
    const double elements = (double)x->shape[1] * (double)x->shape[2];
    const Vid<S, T> p = { kd_rows_of<const S>(x),
                          kd_rows_of<const T>(args->teacher),
                          kd_rows_of<S>(args->d_student),
                          (double *)sums->data,
                          list_of(args->log_variance),
                          list_of(args->weight),
                          list_of(args->scale),
                          list_of(args->loss),
                          list_of(args->d_log_variance),
                          x->shape[0],
                          x->shape[1],
                          x->shape[2],
                          (double)args->eps,
                          elements > 0 ? 1 / elements : 0 };
    constexpr int W = kd_width<S> < kd_width<T> ? kd_width<S> : kd_width<T>;
    const bool aligned = kd_rows_aligned(x, args->teacher, args->d_student);
    KD_TRY(kd_launch(exec, "vid", aligned ? rows_kernel<S, T, W> : rows_kernel<S, T, 1>,
                     warps(exec, p.samples * p.channels), p));
    return kd_launch(exec, "vid", ends_kernel<S, T>, warps(exec, p.samples + p.channels), p);
}

template <class S> kd_status vid(kd_exec *exec, const kd_vid_args *args, const kd_tensor *sums)
{
    return args->teacher->dtype == KD_F32 ? vid_with<S, float>(exec, args, sums)
                                          : vid_with<S, bf16>(exec, args, sums);
}

} // namespace

extern "C" kd_status kd_vid_cuda(kd_exec *exec, const kd_vid_args *args)
{
    kd_tensor sums;
    KD_TRY(kd_push(&sums, exec, "vid.sums", KD_I64,
                   KD_SHAPE(args->student->shape[0], args->student->shape[1])));
    if (kd_planning(exec) || args->student->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->student->dtype, vid, exec, args, &sums);
}
