/* E4M3: every code, and the roundings between any two. */
#include "support/support.h"

#include <float.h>
#include <math.h>

/* From the format's definition, of a code without its sign. */
static double value_of(int code)
{
    const int exponent = code >> 3, fraction = code & 7;
    return exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
}

/* Both signs of `x`. */
static void rounds_to(float x, int code)
{
    const int plus = kd_f32_to_e4m3(x), minus = kd_f32_to_e4m3(-x);
    cr_assert(plus == code && minus == (code | 0x80), "%.9g: found %#x and %#x, expected %#x",
              (double)x, plus, minus, code);
}

Test(convert, e4m3_codes)
{
    for (int code = 0; code < 0x7f; code++) {
        const float plus = kd_e4m3_to_f32((uint8_t)code);
        const float minus = kd_e4m3_to_f32((uint8_t)(code | 0x80));
        cr_assert((double)plus == value_of(code), "code %#x is %.9g", code, (double)plus);
        cr_assert(minus == -plus && signbit(minus), "code %#x is %.9g", code | 0x80, (double)minus);
        rounds_to(plus, code);
        /* bf16 holds it, which op matmul_scaled relies on. */
        cr_assert_eq(kd_bf16_to_f32(kd_f32_to_bf16(plus)), plus);
    }
    cr_assert(isnan(kd_e4m3_to_f32(0x7f)) && isnan(kd_e4m3_to_f32(0xff)));
}

Test(convert, e4m3_roundings)
{
    for (int code = 0; code < 0x7e; code++) {
        const float low = (float)value_of(code), high = (float)value_of(code + 1);
        const float middle = (low + high) / 2;
        rounds_to(middle, code + (code & 1));
        rounds_to(nextafterf(middle, 0), code);
        rounds_to(nextafterf(middle, INFINITY), code + 1);
        rounds_to(nextafterf(low, INFINITY), code);
        rounds_to(nextafterf(high, 0), code + 1);
    }
    static const float beyond[] = { 448, 449, 463.9f, 464, 465, 480, 1e10f, FLT_MAX };
    for (int i = 0; i < KD_COUNT(beyond); i++) rounds_to(beyond[i], 0x7e);
    static const float tiny[] = { 0, 1e-45f, FLT_MIN, 0x1p-11f };
    for (int i = 0; i < KD_COUNT(tiny); i++) rounds_to(tiny[i], 0);
    static const float none[] = { NAN, -NAN, INFINITY, -INFINITY };
    for (int i = 0; i < KD_COUNT(none); i++)
        cr_assert_eq(kd_f32_to_e4m3(none[i]), 0x7f, "%g: found %#x", (double)none[i],
                     kd_f32_to_e4m3(none[i]));
}

Test(convert, e4m3_scales)
{
    static const struct {
        float largest, scale;
    } cases[] = { { 448, 1 },
                  { 1, 1.0f / 448 },
                  { 3e38f, 3e38f / 448 },
                  { FLT_MAX, FLT_MAX / 448 },
                  { 0, 1 },
                  { 1e-45f, 1 },
                  { FLT_MIN, 1 },
                  { 500 * FLT_MIN, 500 * FLT_MIN / 448 } };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const float scale = kd_e4m3_scale(cases[i].largest);
        cr_assert_eq(scale, cases[i].scale, "of %g: %g", (double)cases[i].largest, (double)scale);
        cr_assert(isfinite(1 / scale), "1 / %g overflows", (double)scale);
    }
}
