/*
 * tile.cuh - tiles of bf16 in shared memory, for mma.cuh.
 *
 * A tile has rows of D elements (a multiple of 32).  The 16-byte chunks of a row change places, in
 * every row otherwise, so that the same chunk of any 8 rows from a multiple of 8 lies in 8
 * different groups of 4 banks: loads of matrices and copies have no conflicts, without padding.
 */
#ifndef KD_TILE_CUH
#define KD_TILE_CUH

#include "common/mma.cuh"
#include "common/ptx.cuh"

/* Elements from the start of the tile to a chunk (elements 8 chunk to 8 chunk + 7) of a row. */
template <int D> __device__ __forceinline__ constexpr int kd_tile_offset(int row, int chunk)
{
    static_assert(D % 32 == 0, "chunks change places in groups of 4 or 8");
    const int turn = D % 64 == 0 ? row % 8 : row / 2 % 4;
    return row * D + (chunk ^ turn) * 8;
}

template <int D> constexpr bool kd_tile_is_free_of_conflicts()
{
    for (int chunk = 0; chunk < D / 8; chunk++) {
        int groups = 0;
        for (int row = 0; row < 8; row++) groups |= 1 << kd_tile_offset<D>(row, chunk) / 8 % 8;
        if (groups != 0xff) return false;
    }
    return true;
}
static_assert(kd_tile_is_free_of_conflicts<32>() && kd_tile_is_free_of_conflicts<64>() &&
                  kd_tile_is_free_of_conflicts<96>(),
              "8 rows lie in 8 groups of banks");

template <int D> __device__ __forceinline__ bf16 *kd_tile_at(bf16 *tile, int row, int chunk)
{
    return tile + kd_tile_offset<D>(row, chunk);
}

/*
 * From the offset of chunk 0 or 1 of a row to that of the chunk `chunks` (even) further, in the row
 * `rows` (a multiple of 8) further.  Of constants: one exclusive or, where kd_tile_offset is ten
 * instructions and a register for each result.
 */
template <int D> __device__ __forceinline__ int kd_tile_step(int offset, int rows, int chunks)
{
    constexpr int GROUP = D % 64 == 0 ? 8 : 4;
    return (offset ^ chunks % GROUP * 8) + chunks / GROUP * GROUP * 8 + rows * D;
}

/*
 * Starts to copy `rows` rows of d (<= D, a multiple of 8) elements, `stride` elements apart.  The
 * rows of the tile from there to ROWS, and the columns from d to D, become zeros.  All THREADS
 * threads call.
 */
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void kd_tile_copy(bf16 *tile, const bf16 *from, int64_t stride, int rows,
                                             int d)
{
    constexpr int GROUP = D % 64 == 0 ? 8 : 4,
                  STEP = THREADS / GROUP; /* chunks and rows at a time */
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "the same turn in all rows of a thread");
    const int first = (int)threadIdx.x / GROUP, chunk = (int)threadIdx.x % GROUP;
    bf16 *const to = kd_tile_at<D>(tile, first, chunk);
    const bf16 *at = from + first * stride + chunk * 8;
#pragma unroll
    for (int row = 0; row < ROWS; row += STEP, at += STEP * stride)
#pragma unroll
        for (int c = 0; c < D / 8; c += GROUP) {
            const bool present = first + row < rows && (chunk + c) * 8 < d;
            kd_copy_async(to + row * D + c * 8, at + c * 8, present);
        }
}

#endif
