#include "tensor/tensor.h"

#include <float.h>

float kd_f16_to_f32(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
    uint32_t wide;
    float x;
    if (exponent == 0x1f) {
        wide = sign | 0x7f800000u | (fraction << 13);
    } else if (exponent) {
        wide = sign | ((exponent + 112) << 23) | (fraction << 13);
    } else { /* subnormal: fraction * 2^-24 is exact in f32 */
        x = (float)fraction * 0x1p-24f;
        return sign ? -x : x;
    }
    memcpy(&x, &wide, sizeof x);
    return x;
}

uint16_t kd_f32_to_f16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* rounds past 65504 */
    if (magnitude < 0x38800000u) {                       /* below 2^-14: subnormal */
        /* Adding 0.5 lines the result's last bit up with f32's, and the sum rounds to even. */
        float y;
        memcpy(&y, &magnitude, sizeof y);
        y += 0.5f;
        memcpy(&bits, &y, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    const uint32_t odd = (magnitude >> 13) & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

float kd_e4m3_to_f32(uint8_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x80u) << 24;
    const uint32_t exponent = (bits >> 3) & 0xfu, fraction = bits & 7u;
    uint32_t wide = sign | ((exponent + 120) << 23) | (fraction << 20);
    float x;
    if (exponent == 0) { /* subnormal: fraction * 2^-9 */
        x = (float)fraction * 0x1p-9f;
        return sign ? -x : x;
    }
    if ((bits & 0x7fu) == 0x7fu) wide = sign | 0x7fc00000u;
    memcpy(&x, &wide, sizeof x);
    return x;
}

uint8_t kd_f32_to_e4m3(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint8_t sign = (uint8_t)((bits >> 24) & 0x80u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) return 0x7f;
    if (magnitude >= 0x43e00000u) return sign | 0x7e; /* 448 */
    if (magnitude < 0x3c800000u) {                    /* below 2^-6: subnormal */
        /* As in kd_f32_to_f16: 2^14 lines the result's last bit, 2^-9, up with f32's. */
        float y;
        memcpy(&y, &magnitude, sizeof y);
        y += 0x1p14f;
        memcpy(&bits, &y, sizeof bits);
        return (uint8_t)(sign | (bits - 0x46800000u));
    }
    const uint32_t odd = (magnitude >> 20) & 1u;
    return (uint8_t)(sign | ((magnitude - 0x3c000000u + 0x7ffffu + odd) >> 20));
}

float kd_e4m3_scale(float largest)
{
    const float scale = largest / KD_E4M3_LARGEST;
    return scale >= FLT_MIN ? scale : 1;
}

static void widen(float *to, const void *from, kd_dtype dtype, int64_t count)
{
    const uint16_t *half = from;
    if (dtype == KD_BF16)
        for (int64_t i = 0; i < count; i++) to[i] = kd_bf16_to_f32(half[i]);
    else
        for (int64_t i = 0; i < count; i++) to[i] = kd_f16_to_f32(half[i]);
}

static void narrow(uint16_t *to, kd_dtype dtype, const float *from, int64_t count)
{
    if (dtype == KD_BF16)
        for (int64_t i = 0; i < count; i++) to[i] = kd_f32_to_bf16(from[i]);
    else
        for (int64_t i = 0; i < count; i++) to[i] = kd_f32_to_f16(from[i]);
}

kd_status kd_convert(void *to, kd_dtype to_dtype, const void *from, kd_dtype from_dtype,
                     int64_t count)
{
    if (to_dtype == from_dtype) {
        memmove(to, from, (size_t)count * kd_dtype_size(to_dtype));
        return KD_OK;
    }
    if (to_dtype > KD_F16 || from_dtype > KD_F16)
        return kd_fail(KD_ENOTSUP, "conversion from %s to %s", kd_dtype_name(from_dtype),
                       kd_dtype_name(to_dtype));
    if (to_dtype == KD_F32) {
        widen(to, from, from_dtype, count);
    } else if (from_dtype == KD_F32) {
        narrow(to, to_dtype, from, count);
    } else {
        float buffer[512];
        for (int64_t i = 0; i < count; i += KD_COUNT(buffer)) {
            const int64_t n = kd_min_i64(count - i, KD_COUNT(buffer));
            widen(buffer, (const uint16_t *)from + i, from_dtype, n);
            narrow((uint16_t *)to + i, to_dtype, buffer, n);
        }
    }
    return KD_OK;
}
