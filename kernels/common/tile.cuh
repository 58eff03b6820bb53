/*
 * tile.cuh - tiles of bf16 in shared memory, for mma.cuh.
 *
 * A tile has rows of D elements (a multiple of 32).  The 16-byte chunks of a row change places, in
 * every row otherwise, so that the same chunk of any 8 rows from a multiple of 8 lies in 8 different
 * groups of 4 banks: loads of matrices and copies have no conflicts, without padding.
 */
#ifndef KD_TILE_CUH
#define KD_TILE_CUH

#include "common/mma.cuh"
#include "common/ptx.cuh"

/* Where chunk `chunk` (elements 8 chunk to 8 chunk + 7) of a row is. */
template <int D> __device__ __forceinline__ bf16 *kd_tile_at(bf16 *tile, int row, int chunk)
{
    static_assert(D % 32 == 0, "chunks change places in groups of 4 or 8");
    const int turn = D % 64 == 0 ? row % 8 : row / 2 % 4;
    return tile + row * D + (chunk ^ turn) * 8;
}

/*
 * Starts to copy `rows` rows of d (<= D, a multiple of 8) elements, `stride` elements apart.  The rows of
 * the tile from there to ROWS, and the columns from d to D, become zeros.  All THREADS threads call.  A thread works out UNROLL of its copies at once: fewer leave
 * more registers to the caller's loop.
 */
template <int D, int ROWS, int THREADS, int UNROLL = ROWS *D / 8 / THREADS>
__device__ __forceinline__ void kd_tile_copy(bf16 *tile, const bf16 *from, int64_t stride, int rows,
                                             int d)
{
    constexpr int CHUNKS = D / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0, "as many chunks for every thread");
#pragma unroll UNROLL
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const int at = i * THREADS + (int)threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
        const bool present = row < rows && chunk * 8 < d;
        kd_copy_async(kd_tile_at<D>(tile, row, chunk),
                      present ? from + row * stride + chunk * 8 : from, present);
    }
}

#endif
