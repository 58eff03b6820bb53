/*
 * reduce.cuh - sums and maxima over a warp and over a block, in an order that depends on the number of
 * threads alone: the same bits every time, in every thread.
 */
#ifndef KD_REDUCE_CUH
#define KD_REDUCE_CUH

#include "common/launch.cuh"

/* Over each LANES neighbouring lanes of a warp (a power of two); all lanes call. */
template <int LANES, class T> __device__ __forceinline__ T kd_lanes_sum(T x)
{
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(KD_ALL_LANES, x, lanes);
    return x;
}

template <class T> __device__ __forceinline__ T kd_warp_sum(T x)
{
    return kd_lanes_sum<KD_WARP>(x);
}

/* NaN is never the largest. */
__device__ __forceinline__ float kd_warp_max(float x)
{
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(KD_ALL_LANES, x, lanes));
    return x;
}

/*
 * Over a block of THREADS (a multiple of 32) threads, all of which call; `buffer` is shared memory of
 * THREADS / 32 elements that nothing else uses between the call before and the call after.
 */
template <int THREADS, class T> __device__ __forceinline__ T kd_block_sum(T x, T *buffer)
{
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
    x = kd_warp_sum(x);
    if (THREADS == KD_WARP) return x;
    __syncthreads(); /* the buffer may still be read for the call before */
    if (lane == 0) buffer[warp] = x;
    __syncthreads();
    return kd_warp_sum(lane < THREADS / KD_WARP ? buffer[lane] : T(0));
}

template <int THREADS> __device__ __forceinline__ float kd_block_max(float x, float *buffer)
{
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
    x = kd_warp_max(x);
    if (THREADS == KD_WARP) return x;
    __syncthreads();
    if (lane == 0) buffer[warp] = x;
    __syncthreads();
    return kd_warp_max(lane < THREADS / KD_WARP ? buffer[lane] : -INFINITY);
}

#endif
