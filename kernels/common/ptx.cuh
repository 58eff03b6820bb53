/*
 * ptx.cuh - the instructions that CUDA C++ has no name for, each with its emulated meaning beside
 * it.  Matrix products are in mma.cuh.
 */
#ifndef KD_PTX_CUH
#define KD_PTX_CUH

#include "common/launch.cuh"

#ifndef KD_CUDASIM
#include <cuda_fp8.h>
#endif

/* ---- copies from global to shared memory that a thread need not wait for (cp.async) ------------- */

/*
 * 16 bytes, both addresses multiples of 16 (KD_DYN_SHARED begins at one), past the first-level
 * cache.  Where `present` is false, zeros, and `from` may lead to any such address: nothing is read.
 *
 * A copy belongs to the group that the same thread's next kd_copy_commit closes.
 * kd_copy_wait<N> returns when all but the thread's N newest groups have arrived; other threads
 * see them after the __syncthreads that follows.  Until then the destination is undefined
 * (emulated: NaN), and it must not be read or written.
 */
__device__ __forceinline__ void kd_copy_async(void *to, const void *from, bool present = true)
{
#ifndef KD_CUDASIM
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(present ? 16 : 0)
                 : "memory");
#else
    alignas(16) static const unsigned char zeros[16] = {};
    if ((uintptr_t)from % 16) simt::trap("cp.async: misaligned address", { __FILE__, __LINE__ });
    simt::cp_async(to, present ? from : zeros, 16);
#endif
}

__device__ __forceinline__ void kd_copy_commit()
{
#ifndef KD_CUDASIM
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    simt::cp_commit();
#endif
}

template <int N> __device__ __forceinline__ void kd_copy_wait()
{
#ifndef KD_CUDASIM
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
    simt::cp_wait(N);
#endif
}

/* ---- approximate functions --------------------------------------------------------------------- */

/* 2^x within a relative 2^-22; results below 2^-126 are 0.  2^-inf is 0. */
__device__ __forceinline__ float kd_exp2(float x)
{
#ifndef KD_CUDASIM
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y; /* NaN stays */
#endif
}

/* log2 x within 2^-22, absolute in [0.5, 2] and relative elsewhere; -inf below 2^-126. */
__device__ __forceinline__ float kd_log2(float x)
{
#ifndef KD_CUDASIM
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return log2f(fabsf(x) < 0x1p-126f ? 0 : x);
#endif
}

/* 1 / x within a relative 2^-23; of a subnormal x infinite. */
__device__ __forceinline__ float kd_reciprocal(float x)
{
#ifndef KD_CUDASIM
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / (fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x);
#endif
}

/* tanh x within an absolute 3e-7. */
__device__ __forceinline__ float kd_tanh(float x)
{
    return 1 - __fdividef(2, 1 + kd_exp2(2.885390082f * x)); /* 2 / ln 2 */
}

/* ---- e4m3 -------------------------------------------------------------------------------------- */

/* kd_f32_to_e4m3: one instruction from sm_89 on, which makes 448 of infinity. */
__device__ __forceinline__ uint8_t kd_e4m3(float x)
{
#ifndef KD_CUDASIM
    return fabsf(x) < INFINITY ? __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3) : 0x7f;
#else
    return kd_f32_to_e4m3(x);
#endif
}

#endif
