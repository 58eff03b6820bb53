/*
 * launch.cuh - what every .cu begins with: the seam to the host's C, shared memory by macro, and the
 * one way to launch.
 *
 * The same file is compiled by nvcc and, for tests, as C++ against tests/cudasim, whose
 * cuda_runtime.h defines KD_CUDASIM, KD_SHARED and KD_DYN_SHARED itself.
 */
#ifndef KD_LAUNCH_CUH
#define KD_LAUNCH_CUH

#include <cuda_runtime.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <jansson.h>

extern "C" {
#include "ops/ops.h"
}

/* KD_SHARED(float, tile, [16][17]);  and, sized at launch,  KD_DYN_SHARED(float, buffer); */
#ifndef KD_CUDASIM
#define KD_SHARED(T, name, dims) __shared__ T name dims
#define KD_DYN_SHARED(T, name)                                                                     \
    extern __shared__ __align__(128) unsigned char kd_dynamic_shared[];                            \
    T *const name = reinterpret_cast<T *>(kd_dynamic_shared)
#endif

constexpr int KD_WARP = 32;
constexpr unsigned KD_ALL_LANES = 0xffffffffu;

/* The shape that C spells KD_SHAPE(rows, columns). */
template <class... Dims> inline kd_shape kd_shape_make(Dims... dims)
{
    return { (int32_t)sizeof...(dims), { (int64_t)dims... } };
}
#define KD_SHAPE(...) kd_shape_make(__VA_ARGS__)

/* KD_OK, or the failure naming device, call and CUDA's own words for what went wrong. */
inline kd_status kd_cuda_status(cudaError_t error, const char *call)
{
    return error == cudaSuccess ? KD_OK : kd_cuda_failure((int)error, call);
}

struct kd_grid {
    dim3 blocks, threads;
    size_t shared = 0;    /* bytes of dynamic shared memory */
    unsigned cluster = 1; /* blocks of a cluster, in x; more than 1 from sm_90 on: cluster.cuh */
};

/* Blocks of `threads` threads that a card may hold at a time, of which a multiprocessor holds `held`
 * threads; a kernel strides over the rest. */
inline int64_t kd_blocks_at_once(const kd_exec *exec, int threads, int held = 2048)
{
    return held / threads * (int64_t)kd_cuda_limits_of(exec)->multiprocessors;
}

/* One thread per unit, as far as the card holds them at a time. */
inline kd_grid kd_grid_over(const kd_exec *exec, int64_t units, int threads, int held = 2048)
{
    const int64_t blocks =
        kd_min_i64(kd_ceil_div(units, threads), kd_blocks_at_once(exec, threads, held));
    return { dim3((unsigned)kd_max_i64(blocks, 1)), dim3((unsigned)threads) };
}

/*
 * Enqueues a kernel on the exec's stream.  More than 48 KiB of shared memory is asked for once per
 * kernel by kd_allow_shared.
 */
template <class... Params, class... Args>
inline kd_status kd_launch(kd_exec *exec, const char *name, void (*kernel)(Params...),
                           const kd_grid &grid, Args &&...args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = grid.shared;
    config.stream = (cudaStream_t)kd_cuda_stream(exec);
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = { grid.cluster, 1, 1 };
    config.attrs = &cluster;
    config.numAttrs = grid.cluster > 1;
    return kd_cuda_status(cudaLaunchKernelEx(&config, kernel, static_cast<Args &&>(args)...), name);
}

/* Lets `kernel` be launched with `bytes` of dynamic shared memory. */
template <class... Params> inline kd_status kd_allow_shared(void (*kernel)(Params...), size_t bytes)
{
    return kd_cuda_status(cudaFuncSetAttribute((const void *)kernel,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)bytes),
                          "cudaFuncSetAttribute");
}

/* ---- element types ---------------------------------------------------------------------------- */

typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float kd_load(const float *p) { return *p; }
__device__ __forceinline__ float kd_load(const bf16 *p) { return __bfloat162float(*p); }
__device__ __forceinline__ float kd_load(const __half *p) { return __half2float(*p); }
__device__ __forceinline__ void kd_store(float *p, float x) { *p = x; }
__device__ __forceinline__ void kd_store(bf16 *p, float x) { *p = __float2bfloat16(x); }
__device__ __forceinline__ void kd_store(__half *p, float x) { *p = __float2half_rn(x); }

/* What storing as T and loading again makes of x. */
template <class T> __device__ __forceinline__ float kd_rounded(float x);
template <> __device__ __forceinline__ float kd_rounded<float>(float x) { return x; }
template <> __device__ __forceinline__ float kd_rounded<bf16>(float x)
{
    return __bfloat162float(__float2bfloat16(x));
}

/* Calls launch<float>(...) or launch<bf16>(...) by `dtype`, which the op's check has narrowed to
 * these two. */
#define KD_BY_DTYPE(dtype, launch, ...)                                                            \
    ((dtype) == KD_F32 ? launch<float>(__VA_ARGS__) : launch<bf16>(__VA_ARGS__))

#endif
