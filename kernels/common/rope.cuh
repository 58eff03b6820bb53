/*
 * rope.cuh - rotary position for the kernels that turn heads: the cosines and sines of a block's rows,
 * once for all their heads.
 */
#ifndef KD_ROPE_CUH
#define KD_ROPE_CUH

#include "common/launch.cuh"

/* Threads of a block, and (row, pair)s whose turns it keeps. */
constexpr int KD_ANGLES = 256;

struct kd_turns {
    const int32_t *positions;
    const float *frequencies;
    int half; /* pairs of a row */
    float scale, direction;
};

inline kd_turns kd_turns_of(const kd_tensor *positions, const kd_tensor *frequencies, float scale,
                            bool backward)
{
    return { (const int32_t *)positions->data, (const float *)frequencies->data,
             (int)kd_tensor_elements(frequencies), scale, backward ? -scale : scale };
}

/*
 * turn[r * pairs + i] = (cos, sin) of pair first + i of row + r, for r < rows <= KD_ANGLES / pairs.
 * sincosf reduces over the whole range of f32 and is within 2 ulp.  __fmul_rn: the product is rounded
 * before the reduction, which would take it into a multiply-add.
 */
__device__ __forceinline__ void kd_make_turns(float2 *turn, const kd_turns &t, int64_t row,
                                              int rows, int first, int pairs)
{
    const int i = threadIdx.x, r = i / pairs, at = first + i % pairs;
    if (r >= rows || at >= t.half) return;
    float sine, cosine;
    sincosf(__fmul_rn((float)t.positions[row + r], t.frequencies[at]), &sine, &cosine);
    turn[i] = make_float2(cosine * t.scale, sine * t.direction);
}

/* Turns W pairs (a, b). */
template <int W>
__device__ __forceinline__ void kd_turn(float (&a)[W], float (&b)[W], const float2 *turn)
{
#pragma unroll
    for (int i = 0; i < W; i++) {
        const float u = a[i], v = b[i];
        const float2 t = turn[i];
        a[i] = u * t.x - v * t.y;
        b[i] = v * t.x + u * t.y;
    }
}

#endif
