/*
 * turn.h - rotary position on rows of f32: the angles of a row and the turning of its pairs; rope.c has
 * the definition.  Internal to src/ops.
 */
#ifndef KD_OPS_TURN_H
#define KD_OPS_TURN_H

#include "ops/vmath.h"

#include <stdbool.h>

/*
 * The turns of n pairs at `position`: scale times the sine (negated for `backward`) and cosine of each
 * angle.  Those are within 2 ulp of 1 for |angle| < 2^20 pi/2, and within 1e-6 for any int32 * f32
 * below 2^31: the angle is reduced to [-pi/4, pi/4] in double, where n times the 33 high bits of pi/2
 * is exact; the kernels are Cephes' sinf and cosf.
 */
static inline void kd_turn_angles(float *restrict sine, float *restrict cosine, int32_t position,
                                  const float *restrict frequencies, float scale, bool backward,
                                  int64_t n)
{
    const float direction = backward ? -scale : scale;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const double a = (float)position * frequencies[i];
        const double magic = 6755399441055744.0; /* 1.5 * 2^52: rounds to an integer */
        const double shifted = a * 0.63661977236758134308 + magic, turns = shifted - magic;
        const double high = a - turns * 1.57079632673412561417;
        const float f = (float)(high - turns * 6.07710050650619224932e-11), z = f * f;
        uint64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        const uint32_t quadrant = (uint32_t)bits;

        float s = kd_vfma(-1.9515295891e-4f, z, 8.3321608736e-3f);
        s = kd_vfma(s, z, -1.6666654611e-1f);
        s = kd_vfma(s * z, f, f);
        float c = kd_vfma(2.443315711809948e-5f, z, -1.388731625493765e-3f);
        c = kd_vfma(c, z, 4.166664568298827e-2f);
        c = kd_vfma(c * z, z, kd_vfma(-0.5f, z, 1.0f));

        const float s1 = quadrant & 1u ? c : s, c1 = quadrant & 1u ? s : c;
        sine[i] = direction * (quadrant & 2u ? -s1 : s1);
        cosine[i] = scale * ((quadrant + 1u) & 2u ? -c1 : c1);
    }
}

/* (y1, y2) = the pairs (a, b), turned; y1 may be a and y2 may be b. */
static inline void kd_turn_pairs(float *y1, float *y2, const float *a, const float *b,
                                 const float *restrict sine, const float *restrict cosine,
                                 int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float u = a[i], v = b[i];
        y1[i] = u * cosine[i] - v * sine[i];
        y2[i] = v * cosine[i] + u * sine[i];
    }
}

#endif
