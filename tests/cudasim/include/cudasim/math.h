/*
 * math.h - CUDA's device functions that a host's <cmath> has not.  The approximate ones (__expf,
 * __fdividef ...) are computed exactly here: tests must leave room for their error on a GPU.
 */
#ifndef CUDASIM_MATH_H
#define CUDASIM_MATH_H

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace simt {

template <class To, class From> inline To bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "not a reinterpretation");
    To to;
    memcpy(static_cast<void *>(&to), &from, sizeof to);
    return to;
}

/* As the device converts: NaN is 0, what does not fit is the nearest that does. */
template <class Int, class Float> inline Int to_int(Float x)
{
    if (std::isnan(x)) return 0;
    if (x <= (Float)std::numeric_limits<Int>::min()) return std::numeric_limits<Int>::min();
    if (x >= (Float)std::numeric_limits<Int>::max()) return std::numeric_limits<Int>::max();
    return (Int)x;
}

template <class T> inline T reverse_bits(T x)
{
    T r = 0;
    for (unsigned i = 0; i < 8 * sizeof x; i++) r |= (T)((x >> i) & 1) << (8 * sizeof x - 1 - i);
    return r;
}

} // namespace simt

/* ---- floating point --------------------------------------------------------------------------- */

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
inline float fdividef(float a, float b) { return a / b; }
inline float normcdff(float x) { return 0.5f * erfcf(x * -0.70710678118654752f); }
inline double normcdf(double x) { return 0.5 * erfc(x * -0.70710678118654752); }
inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
inline float cospif(float x) { return (float)cos(M_PI * (double)x); }
inline void sincospif(float x, float *s, float *c) { *s = sinpif(x), *c = cospif(x); }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline void __sincosf(float x, float *s, float *c) { *s = sinf(x), *c = cosf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return !(x > 0) ? 0 : x > 1 ? 1 : x; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

/* ---- conversions ------------------------------------------------------------------------------ */

inline int __float_as_int(float x) { return simt::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return simt::bits<unsigned>(x); }
inline float __int_as_float(int x) { return simt::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::bits<float>(x); }
inline long long __double_as_longlong(double x) { return simt::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::bits<double>(x); }

inline int __float2int_rn(float x) { return simt::to_int<int>(rintf(x)); }
inline int __float2int_rz(float x) { return simt::to_int<int>(truncf(x)); }
inline int __float2int_rd(float x) { return simt::to_int<int>(floorf(x)); }
inline int __float2int_ru(float x) { return simt::to_int<int>(ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return simt::to_int<unsigned>(rintf(x)); }
inline unsigned __float2uint_rz(float x) { return simt::to_int<unsigned>(truncf(x)); }
inline unsigned __float2uint_rd(float x) { return simt::to_int<unsigned>(floorf(x)); }
inline unsigned __float2uint_ru(float x) { return simt::to_int<unsigned>(ceilf(x)); }
inline long long __float2ll_rn(float x) { return simt::to_int<long long>(rintf(x)); }
inline long long __float2ll_rz(float x) { return simt::to_int<long long>(truncf(x)); }
inline int __double2int_rn(double x) { return simt::to_int<int>(rint(x)); }
inline int __double2int_rz(double x) { return simt::to_int<int>(trunc(x)); }
inline long long __double2ll_rn(double x) { return simt::to_int<long long>(rint(x)); }
inline float __double2float_rn(double x) { return (float)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }
inline float __ull2float_rn(unsigned long long x) { return (float)x; }
inline double __int2double_rn(int x) { return x; }
inline double __ll2double_rn(long long x) { return (double)x; }

/* ---- integers --------------------------------------------------------------------------------- */

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) { return simt::reverse_bits(x); }
inline unsigned long long __brevll(unsigned long long x) { return simt::reverse_bits(x); }
inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((__extension__(unsigned __int128) a * b) >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n)
{
    return (unsigned)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> (n & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    const uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = selector >> 4 * i;
        unsigned byte = (unsigned)(bytes >> 8 * (s & 7)) & 0xff;
        if (s & 8) byte = byte & 0x80 ? 0xff : 0; /* the byte's sign, repeated */
        result |= byte << 8 * i;
    }
    return result;
}

/* Of floats, the one that is a number. */
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b)
{
    using T = std::common_type_t<A, B>;
    const T x = (T)a, y = (T)b;
    if constexpr (std::is_floating_point_v<T>) return std::fmin(x, y);
    return y < x ? y : x;
}
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b)
{
    using T = std::common_type_t<A, B>;
    const T x = (T)a, y = (T)b;
    if constexpr (std::is_floating_point_v<T>) return std::fmax(x, y);
    return x < y ? y : x;
}

#endif
