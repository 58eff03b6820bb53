/*
 * vmath.h - expf and logf without calls or branches, so that a loop over an array becomes vector
 * code at -O3.  Errors are measured by tests/ops/test_row_loss.c.
 */
#ifndef KD_VMATH_H
#define KD_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t kd_float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float kd_bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* -std=c11 does not contract a * b + c by itself; without the instruction fmaf would be a call. */
static inline float kd_vfma(float a, float b, float c)
{
#ifdef __FMA__
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/*
 * e^x within 1.1 ulp for x in [-87.3, 88]; 0 below (results are never subnormal), so -inf gives 0;
 * +inf above; NaN stays NaN.  x = n log 2 + f with |f| <= log(2) / 2; Taylor's polynomial of degree
 * 6 in f, its last coefficients adjusted to the interval (Cephes, expf).
 */
static inline float kd_vexpf(float x)
{
    const float magic =
        12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const float shifted = kd_vfma(x, 1.44269504088896341f, magic);
    const float n = shifted - magic;
    float f = kd_vfma(n, -0.693359375f, x); /* exact: 9 bits, so n times it fits */
    f = kd_vfma(n, 2.12194440e-4f, f);
    float y = 1.9875691500e-4f;
    y = kd_vfma(y, f, 1.3981999507e-3f);
    y = kd_vfma(y, f, 8.3334519073e-3f);
    y = kd_vfma(y, f, 4.1665795894e-2f);
    y = kd_vfma(y, f, 1.6666665459e-1f);
    y = kd_vfma(y, f, 5.0000001201e-1f);
    y = kd_vfma(y * f, f, f) + 1.0f;
    y *= kd_bits_float((kd_float_bits(shifted) << 23) + 0x3f800000u);
    y = x < -87.3f ? 0.0f : y;
    return x > 88.0f ? INFINITY : y;
}

/*
 * log x within 1 ulp for normal x > 0; NaN stays NaN; other x are not meant (no caller has them,
 * and their special cases keep loops from being vectorised).  x = 2^e m with m in
 * [sqrt(1/2), sqrt(2)) (Cephes, logf).
 */
static inline float kd_vlogf(float x)
{
    const uint32_t offset = kd_float_bits(x) - 0x3f3504f3u; /* of sqrt(1/2) */
    const float e = (float)((int32_t)offset >> 23);
    const float f = kd_bits_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const float f2 = f * f;
    float y = 7.0376836292e-2f;
    y = kd_vfma(y, f, -1.1514610310e-1f);
    y = kd_vfma(y, f, 1.1676998740e-1f);
    y = kd_vfma(y, f, -1.2420140846e-1f);
    y = kd_vfma(y, f, 1.4249322787e-1f);
    y = kd_vfma(y, f, -1.6668057665e-1f);
    y = kd_vfma(y, f, 2.0000714765e-1f);
    y = kd_vfma(y, f, -2.4999993993e-1f);
    y = kd_vfma(y, f, 3.3333331174e-1f);
    y = y * f * f2;
    y = kd_vfma(e, -2.12194440e-4f, y);
    y = kd_vfma(f2, -0.5f, y);
    y = kd_vfma(e, 0.693359375f, f + y);
    return x == x ? y : x;
}

#endif
