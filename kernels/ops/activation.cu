/*
 * swiglu, gelu, relu and their gradients on CUDA; src/ops/activation.c has the definitions.
 *
 * Grid      a thread has 16 bytes of every operand (one element where a row is not aligned), a block
 *           256 of them: of one row, or of as many short rows as fit.
 * Traffic   elements read and written, each once: swiglu 3, backward 5; gelu and relu 2, backward
 *           3.  In bf16 6, 10, 4 and 6 bytes an element.
 * Numerics  f32 inside.  expf is CUDA's accurate one (2 ulp), the quotient of the logistic function,
 *           whose divisor is in [1, 2], is within 2 ulp; the error of Phi is below 2^-23 absolutely, as
 *           on the CPU.  No form costs more than some 40 instructions an element, what the memory of
 *           an H100 leaves time for.
 * Outputs may be operands: a thread reads what it is about to overwrite.
 */
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256;

/* ---- one element ------------------------------------------------------------------------------ */

/* s(x) in `s` and 1 - s(x) in `rest`, both with full relative accuracy. */
__device__ __forceinline__ void logistic(float *s, float *rest, float x)
{
    const float e = expf(-fabsf(x)), high = __fdividef(1.0f, 1.0f + e), low = e * high;
    *s = x < 0 ? low : high;
    *rest = x < 0 ? high : low;
}

__device__ __forceinline__ float normal_cdf(float x)
{
    return 0.5f + 0.5f * erff(0.70710678118654752f * x);
}

/* 2 u, and its derivative.  Beyond |x| = 16, s(2 u) is 0 or 1 and x^3 may overflow. */
__device__ __forceinline__ float twice_u(float *slope, float x)
{
    const float root = 0.79788456080286536f; /* sqrt(2 / pi) */
    const float z = x > 16 ? 16 : x < -16 ? -16 : x, z2 = z * z;
    *slope = 2 * root * (1 + 3 * 0.044715f * z2);
    return 2 * root * z * (1 + 0.044715f * z2);
}

__device__ __forceinline__ void swiglu(float (&y)[1], const float (&gate_up)[2])
{
    float s, rest;
    logistic(&s, &rest, gate_up[0]);
    y[0] = gate_up[0] * s * gate_up[1];
}

__device__ __forceinline__ void swiglu_backward(float (&d)[2], const float (&dy_gate_up)[3])
{
    const float dy = dy_gate_up[0], gate = dy_gate_up[1], up = dy_gate_up[2];
    float s, rest;
    logistic(&s, &rest, gate);
    d[0] = dy * up * s * (1 + gate * rest);
    d[1] = dy * gate * s;
}

__device__ __forceinline__ void gelu(float (&y)[1], const float (&x)[1])
{
    y[0] = x[0] * normal_cdf(x[0]);
}

__device__ __forceinline__ void gelu_tanh(float (&y)[1], const float (&x)[1])
{
    float s, rest, slope;
    logistic(&s, &rest, twice_u(&slope, x[0]));
    y[0] = x[0] * s;
}

__device__ __forceinline__ void gelu_backward(float (&dx)[1], const float (&dy_x)[2])
{
    const float x = dy_x[1], density = 0.39894228040143268f * expf(-0.5f * x * x);
    dx[0] = dy_x[0] * (normal_cdf(x) + x * density);
}

__device__ __forceinline__ void gelu_tanh_backward(float (&dx)[1], const float (&dy_x)[2])
{
    const float x = dy_x[1];
    float s, rest, slope;
    logistic(&s, &rest, twice_u(&slope, x));
    dx[0] = dy_x[0] * (s + x * (s * rest) * slope);
}

/* Comparisons, not fmaxf, which would lose a NaN. */
__device__ __forceinline__ void relu(float (&y)[1], const float (&x)[1])
{
    y[0] = x[0] <= 0 ? 0 : x[0];
}

__device__ __forceinline__ void relu_backward(float (&dx)[1], const float (&dy_x)[2])
{
    dx[0] = dy_x[1] <= 0 ? 0 : dy_x[0];
}

/* ---- all elements ----------------------------------------------------------------------------- */

template <class T, int TO, int FROM> struct MapParams {
    kd_rows<T> to[TO], from[FROM];
    int64_t rows, columns;
};

template <class T, int W, int TO, int FROM, void (*F)(float (&)[TO], const float (&)[FROM])>
__global__ void __launch_bounds__(THREADS) map_kernel(MapParams<T, TO, FROM> p)
{
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= p.rows) return;
    const T *from[FROM];
    T *to[TO];
#pragma unroll
    for (int i = 0; i < FROM; i++) from[i] = p.from[i].row(row);
#pragma unroll
    for (int i = 0; i < TO; i++) to[i] = p.to[i].row(row);
    const int64_t step = (int64_t)gridDim.y * blockDim.x * W;
    for (int64_t at = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * W; at < p.columns;
         at += step) {
        float in[FROM][W], out[TO][W];
#pragma unroll
        for (int i = 0; i < FROM; i++) kd_load(in[i], from[i] + at);
#pragma unroll
        for (int k = 0; k < W; k++) {
            float x[FROM], y[TO];
#pragma unroll
            for (int i = 0; i < FROM; i++) x[i] = in[i][k];
            F(y, x);
#pragma unroll
            for (int i = 0; i < TO; i++) out[i][k] = y[i];
        }
#pragma unroll
        for (int i = 0; i < TO; i++) kd_store(to[i] + at, out[i]);
    }
}

kd_grid grid_of(int64_t rows, int64_t units)
{
    unsigned across = 1; /* threads of one row */
    while (across < THREADS && across < units) across *= 2;
    const unsigned down = THREADS / across;
    const int64_t most = 65535;
    return { dim3((unsigned)kd_ceil_div(rows, down),
                  (unsigned)kd_min_i64(kd_ceil_div(units, across), most)),
             dim3(across, down) };
}

template <class T, int TO, int FROM, void (*F)(float (&)[TO], const float (&)[FROM])>
kd_status map_rows(kd_exec *exec, const char *name, const kd_tensor *const (&to)[TO],
                   const kd_tensor *const (&from)[FROM])
{
    constexpr int W = kd_width<T>;
    MapParams<T, TO, FROM> p = {};
    p.rows = kd_tensor_rows(to[0]);
    p.columns = kd_tensor_columns(to[0]);
    bool aligned = true;
    for (int i = 0; i < TO; i++) {
        p.to[i] = kd_rows_of<T>(to[i]);
        aligned = aligned && kd_rows_aligned(to[i]);
    }
    for (int i = 0; i < FROM; i++) {
        p.from[i] = kd_rows_of<T>(from[i]);
        aligned = aligned && kd_rows_aligned(from[i]);
    }
    return aligned ? kd_launch(exec, name, map_kernel<T, W, TO, FROM, F>,
                               grid_of(p.rows, p.columns / W), p)
                   : kd_launch(exec, name, map_kernel<T, 1, TO, FROM, F>,
                               grid_of(p.rows, p.columns), p);
}

template <int TO, int FROM, void (*F)(float (&)[TO], const float (&)[FROM])>
kd_status map(kd_exec *exec, const char *name, const kd_tensor *const (&to)[TO],
              const kd_tensor *const (&from)[FROM])
{
    if (kd_planning(exec) || kd_tensor_elements(to[0]) == 0) return KD_OK;
    return to[0]->dtype == KD_F32 ? map_rows<float, TO, FROM, F>(exec, name, to, from)
                                  : map_rows<bf16, TO, FROM, F>(exec, name, to, from);
}

} // namespace

extern "C" kd_status kd_swiglu_cuda(kd_exec *exec, const kd_swiglu_args *args)
{
    return map<1, 2, swiglu>(exec, "swiglu", { args->y }, { args->gate, args->up });
}

extern "C" kd_status kd_swiglu_backward_cuda(kd_exec *exec, const kd_swiglu_backward_args *args)
{
    return map<2, 3, swiglu_backward>(exec, "swiglu_backward", { args->dgate, args->dup },
                                      { args->dy, args->gate, args->up });
}

extern "C" kd_status kd_gelu_cuda(kd_exec *exec, const kd_gelu_args *args)
{
    return args->tanh_form ? map<1, 1, gelu_tanh>(exec, "gelu", { args->y }, { args->x })
                           : map<1, 1, gelu>(exec, "gelu", { args->y }, { args->x });
}

extern "C" kd_status kd_gelu_backward_cuda(kd_exec *exec, const kd_gelu_backward_args *args)
{
    return args->tanh_form ? map<1, 2, gelu_tanh_backward>(exec, "gelu_backward", { args->dx },
                                                           { args->dy, args->x })
                           : map<1, 2, gelu_backward>(exec, "gelu_backward", { args->dx },
                                                      { args->dy, args->x });
}

extern "C" kd_status kd_relu_cuda(kd_exec *exec, const kd_relu_args *args)
{
    return map<1, 1, relu>(exec, "relu", { args->y }, { args->x });
}

extern "C" kd_status kd_relu_backward_cuda(kd_exec *exec, const kd_relu_backward_args *args)
{
    return map<1, 2, relu_backward>(exec, "relu_backward", { args->dx }, { args->dy, args->x });
}
