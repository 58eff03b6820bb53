/*
 * attention_products.cuh - what a warp does that holds own rows in registers and streams other rows
 * through shared memory.  Of attention_backward.cu and relation.cu alone.
 *
 * S, a shape, has D (elements of a row at most, a multiple of 32) and TILES (of 16 own rows, of a warp).
 */
#ifndef KD_ATTENTION_PRODUCTS_CUH
#define KD_ATTENTION_PRODUCTS_CUH

#include "common/tile.cuh"
#include "ops/attention.cuh"

namespace {

/* In registers, as mma.cuh has them: own rows as left operands, and sums for own rows. */
template <class S> using Operand = uint32_t[S::D / 16][S::TILES][4];
template <class S> using Sum = float[S::TILES][S::D / 8][4];

/* ---- products of a warp ----------------------------------------------------------------------- */

/* Where a lane of its warp reads matrices in tiles of rows of D: see mma.cuh. */
template <int D> __device__ __forceinline__ int offset_by_rows(int row)
{
    const int lane = threadIdx.x % KD_WARP;
    return kd_tile_offset<D>(row + lane % 16, lane / 16);
}

template <int D> __device__ __forceinline__ int offset_by_columns(int row)
{
    const int lane = threadIdx.x % KD_WARP;
    return kd_tile_offset<D>(row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

template <class S> __device__ __forceinline__ int offset_of_own()
{
    return offset_by_rows<S::D>((int)threadIdx.x / KD_WARP * S::TILES * 16);
}

/* Columns 16 k and on, 16 of them, of the warp's own rows from a tile at `offset`. */
template <class S>
__device__ __forceinline__ void load_own(uint32_t (&a)[S::TILES][4], const bf16 *tile, int offset,
                                         int k)
{
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
        kd_load_matrices(a[t], tile + kd_tile_step<S::D>(offset, t * 16, 2 * k));
}

/* to += a b' of these columns; b in a tile at `offset`. */
template <class S, int N>
__device__ __forceinline__ void add_scores(float (&to)[S::TILES][N][4],
                                           const uint32_t (&a)[S::TILES][4], const bf16 *b,
                                           int offset, int k)
{
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t m[4];
        kd_load_matrices(m, b + kd_tile_step<S::D>(offset, n * 8, 2 * k));
#pragma unroll
        for (int t = 0; t < S::TILES; t++) {
            kd_mma(to[t][n], a[t], m[0], m[1]);
            kd_mma(to[t][n + 1], a[t], m[2], m[3]);
        }
    }
}

/* sum += a b; a rounded to bf16, b rows `first` and on of a tile, of which the columns from `d` on are
 * zeros. */
template <class S, int N>
__device__ __forceinline__ void add_products(Sum<S> &sum, const float (&a)[S::TILES][N][4],
                                             const bf16 *b, int first, int d = S::D)
{
    const int offset = offset_by_rows<S::D>(first);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t rounded[S::TILES][4];
#pragma unroll
        for (int t = 0; t < S::TILES; t++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float *pair = &a[t][n + r / 2][r % 2 * 2];
                rounded[t][r] = kd_bf16_pair(pair[0], pair[1]);
            }
#pragma unroll
        for (int c = 0; c < S::D / 8; c += 2) {
            if (c * 8 >= d) continue;
            uint32_t m[4];
            kd_load_matrices_transposed(m, b + kd_tile_step<S::D>(offset, n * 8, c));
#pragma unroll
            for (int t = 0; t < S::TILES; t++) {
                kd_mma(sum[t][c], rounded[t], m[0], m[1]);
                kd_mma(sum[t][c + 1], rounded[t], m[2], m[3]);
            }
        }
    }
}

/* ---- who sees what ---------------------------------------------------------------------------- */

/* Zeros where the own row does not see the other, whatever stands there. */
template <class S, class P, int N>
__device__ __forceinline__ void hide(float (&s)[S::TILES][N][4], float (&dp)[S::TILES][N][4],
                                     const P &p, int own_first, int other_first)
{
    const int lane = threadIdx.x % KD_WARP;
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = own_first + t * 16 + half * 8 + lane / 4;
            const kd_seen seen = row < p.rows ? p.seen[row] : kd_seen{ 0, 0 };
            const int begin = seen.begin - other_first - lane % 4 * 2;
            const int end = seen.end - other_first - lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const bool hidden = n * 8 + i < begin || n * 8 + i >= end;
                    if (hidden) s[t][n][half * 2 + i] = 0;
                    if (hidden) dp[t][n][half * 2 + i] = 0;
                }
        }
}

} // namespace

#endif
