/*
 * attention_rows.cuh - what a warp does that has one row of one head, the plain way: any head size,
 * alignment and element type.  Of attention_plain.cu and relation_plain.cu alone.
 */
#ifndef KD_ATTENTION_ROWS_CUH
#define KD_ATTENTION_ROWS_CUH

#include "ops/attention.cuh"

namespace {

constexpr int WARPS = 4, THREADS = WARPS * KD_WARP, COLUMNS = KD_MAX_HEAD / KD_WARP;

/* A row to shared memory as f32; the caller waits. */
template <class T>
__device__ __forceinline__ void stage(float *to, const T *from, int d, float factor)
{
    for (int c = threadIdx.x % KD_WARP; c < d; c += KD_WARP) to[c] = kd_load(from + c) * factor;
}

template <class T> __device__ __forceinline__ float dot(const float *a, const T *b, int d)
{
    float sum = 0;
    for (int c = 0; c < d; c++) sum += a[c] * kd_load(b + c);
    return sum;
}

/* sum += weights[0..count) times rows [first, first + count) of one head, in this lane's columns. */
template <class T>
__device__ __forceinline__ void add_rows(float (&sum)[COLUMNS], const float *weights,
                                         const kd_heads<const T> &rows, int64_t first, int count,
                                         int64_t head, int d)
{
    for (int i = 0; i < count; i++) {
        const T *row = rows.at(first + i, head);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const int column = c * KD_WARP + (int)threadIdx.x % KD_WARP;
            if (column < d) sum[c] += weights[i] * kd_load(row + column);
        }
    }
}

template <class T>
__device__ __forceinline__ void store_row(T *to, const float (&from)[COLUMNS], int d, float factor)
{
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int column = c * KD_WARP + (int)threadIdx.x % KD_WARP;
        if (column < d) kd_store(to + column, from[c] * factor);
    }
}

__device__ __forceinline__ float capped(float s, float softcap)
{
    return softcap > 0 ? softcap * tanhf(s / softcap) : s;
}

/* The warp's number in the grid. */
__device__ __forceinline__ int64_t task(void)
{
    return (int64_t)blockIdx.x * WARPS + threadIdx.x / KD_WARP;
}

kd_grid grid_of(int64_t tasks)
{
    return { dim3((unsigned)kd_ceil_div(tasks, WARPS)), dim3(THREADS) };
}

} // namespace

#endif
