/*
 * partials.cuh - gradients of parameters that every row of a tensor adds to: each block sums its rows
 * in registers and writes one f32 row of partial sums, and a second kernel adds those rows in order.
 *
 * The order of additions depends on the number of blocks, which depends on the rows and on how many
 * multiprocessors the card has: the same bits every time on the same card.
 */
#ifndef KD_PARTIALS_CUH
#define KD_PARTIALS_CUH

#include "common/launch.cuh"

namespace {

/* ---- within a block of KD_PARTIAL_WARPS warps, whose groups of LANES lanes have rows of their own */

constexpr int KD_PARTIAL_WARPS = 8, KD_PARTIAL_COLUMNS = 512;
constexpr int KD_PARTIAL_FLOATS = KD_PARTIAL_WARPS * KD_PARTIAL_COLUMNS; /* of `buffer` */

/* Sums x over the groups of a warp into its row of the buffer, at `column` (negative: not kept); all
 * lanes call. */
template <int LANES, int W>
__device__ __forceinline__ void kd_put_partial(float *buffer, int column, const float (&x)[W])
{
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int k = 0; k < W; k++) {
        float total = x[k];
#pragma unroll
        for (int lanes = LANES; lanes < KD_WARP; lanes *= 2)
            total += __shfl_xor_sync(KD_ALL_LANES, total, lanes);
        if (column >= 0 && lane < LANES) buffer[warp * KD_PARTIAL_COLUMNS + column + k] = total;
    }
}

/* to[0, columns) = the sum of the warps' rows, in order; the buffer is free afterwards. */
__device__ __forceinline__ void kd_write_partial(float *to, const float *buffer, int columns)
{
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += KD_PARTIAL_WARPS * KD_WARP) {
        float total = 0;
#pragma unroll
        for (int warp = 0; warp < KD_PARTIAL_WARPS; warp++)
            total += buffer[warp * KD_PARTIAL_COLUMNS + i];
        to[i] = total;
    }
    __syncthreads();
}

/* ---- between blocks --------------------------------------------------------------------------- */

/* Two gradients at a time: dweight and dbias, or those of q and k. */
struct kd_partials {
    float *from[2]; /* [rows, columns]; NULL: no such gradient */
    float *to[2];
    int64_t rows, columns;
};

/* Scratch for the partial sums of `blocks` blocks to either gradient that is present. */
inline kd_status kd_push_partials(kd_partials *p, kd_exec *exec, int64_t blocks, int64_t columns,
                                  const kd_tensor *first, const kd_tensor *second)
{
    const kd_tensor *const to[2] = { first, second };
    *p = { { NULL, NULL }, { NULL, NULL }, blocks, columns };
    for (int i = 0; i < 2; i++) {
        kd_tensor from;
        if (!kd_present(to[i])) continue;
        KD_TRY(kd_push(&from, exec, "partial sums", KD_F32, KD_SHAPE(blocks, columns)));
        p->from[i] = (float *)from.data;
        p->to[i] = (float *)to[i]->data;
    }
    return KD_OK;
}

__global__ void __launch_bounds__(1024) kd_add_partials_kernel(kd_partials p)
{
    KD_SHARED(double, sums, [32][32]);
    const int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.x;
    const float *const from = blockIdx.y ? p.from[1] : p.from[0];
    if (!from) return;
    double total = 0;
    if (column < p.columns)
        for (int64_t row = threadIdx.y; row < p.rows; row += blockDim.y)
            total += from[row * p.columns + column];
    sums[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y != 0 || column >= p.columns) return;
    for (unsigned i = 1; i < blockDim.y; i++) total += sums[i][threadIdx.x];
    float *const to = (blockIdx.y ? p.to[1] : p.to[0]) + column;
    *to = (float)(*to + total);
}

/* to[i] += the sum of the rows of from[i], in double: a block's rows of threads take turns with them,
 * and are themselves added in order. */
inline kd_status kd_add_partials(kd_exec *exec, const kd_partials &p)
{
    if (!p.from[0] && !p.from[1]) return KD_OK;
    const unsigned height = (unsigned)kd_min_i64(32, kd_ceil_div(p.rows, 4));
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.columns, 32), p.from[1] ? 2 : 1),
                           dim3(32, height) };
    return kd_launch(exec, "add_partials", kd_add_partials_kernel, grid, p);
}

/* As many blocks as are resident at `resident` a multiprocessor, of at least `least` rows each. */
inline int64_t kd_partial_blocks(kd_exec *exec, int64_t rows, int64_t least, int resident)
{
    const int64_t most = (int64_t)resident * kd_cuda_limits_of(exec)->multiprocessors;
    return kd_min_i64(kd_ceil_div(rows, least), most);
}

} // namespace

#endif
