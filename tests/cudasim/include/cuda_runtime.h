// SIMT emulation: stands in for NVIDIA's cuda_runtime.h when a .cu is compiled by g++/clang++ as C++.
// Types, enums and the C API prototypes are NVIDIA's own (cuda_runtime_api.h, vector_types.h); simt.cpp
// implements the C API, and this header the device side.
#pragma once
#define KD_CUDASIM 1
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#undef __noinline__
#undef __shared__
#undef __constant__
#undef __global__
#undef __device__
#undef __host__
#undef __launch_bounds__
#undef __forceinline__
#undef __managed__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static /* blocks run one after another on one OS thread */
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define warpSize 32

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {
struct site { const char* file; int line; };
#define SIMT_HERE ::simt::site s_ = {__builtin_FILE(), __builtin_LINE()}
enum op { SYNCWARP, SHFL, BALLOT, ANY, ALL, RADD, RMINS, RMAXS, RMINU, RMAXU, RAND_, ROR, RXOR, MATCH, FN };
enum bop { BSYNC, BCOUNT, BOR, BAND };
uint64_t warp(op o, unsigned mask, uint64_t val, int arg, site s);
int barrier(bop o, int pred, site s);
unsigned lane();
// any warp-wide instruction: the last lane to arrive runs fn once over all lanes' argument blocks
void warp_fn(unsigned mask, void* arg, void (*fn)(void** args, unsigned mask), site s);
void cp_async(void* dst, const void* src, unsigned n);   // copied only when waited for; dst is NaN until then
void cp_commit();
void cp_wait(unsigned keep);
unsigned activemask();
[[noreturn]] void trap(const char* what, site s);
void* dyn_smem(size_t align);
int shared_id();
void* shared_get(int id, size_t bytes);
struct kernel_key { const void* fn; };
cudaError_t launch(const void* fn, const cudaLaunchConfig_t* c, std::function<void()> body);
template <class T> inline uint64_t pack(T v) { static_assert(sizeof(T) <= 8, ""); uint64_t u = 0; memcpy(&u, &v, sizeof v); return u; }
template <class T> inline T unpack(uint64_t u) { T v; memcpy(&v, &u, sizeof v); return v; }
}  // namespace simt

// per-block shared memory: exact-size heap block per thread block, filled with 0xFF (NaN) at block start
#define KD_SHARED(T, name, dims)                                 \
    static const int simt_id_##name = ::simt::shared_id();      \
    T(&name) dims = *reinterpret_cast<T(*) dims>(::simt::shared_get(simt_id_##name, sizeof(T dims)))
#define KD_DYN_SHARED(T, name) T* const name = static_cast<T*>(::simt::dyn_smem(alignof(T)))

// ---- barriers and warp collectives
inline void __syncthreads(SIMT_HERE) { simt::barrier(simt::BSYNC, 0, s_); }
inline int __syncthreads_count(int p, SIMT_HERE) { return simt::barrier(simt::BCOUNT, p, s_); }
inline int __syncthreads_or(int p, SIMT_HERE) { return simt::barrier(simt::BOR, p, s_); }
inline int __syncthreads_and(int p, SIMT_HERE) { return simt::barrier(simt::BAND, p, s_); }
inline void __syncwarp(unsigned m = 0xffffffffu, SIMT_HERE) { simt::warp(simt::SYNCWARP, m, 0, 0, s_); }
inline unsigned __activemask() { return simt::activemask(); }
template <class T> inline T __shfl_sync(unsigned m, T v, int src, int w = 32, SIMT_HERE) {
    int l = (int)simt::lane();
    return simt::unpack<T>(simt::warp(simt::SHFL, m, simt::pack(v), (l & ~(w - 1)) | (src & (w - 1)), s_));
}
template <class T> inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, SIMT_HERE) {
    int l = (int)simt::lane(), s = l ^ x;
    if (s >= (l & ~(w - 1)) + w) s = l;
    return simt::unpack<T>(simt::warp(simt::SHFL, m, simt::pack(v), s, s_));
}
template <class T> inline T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, SIMT_HERE) {
    int l = (int)simt::lane(), s = l + (int)d;
    if (s >= (l & ~(w - 1)) + w) s = l;
    return simt::unpack<T>(simt::warp(simt::SHFL, m, simt::pack(v), s, s_));
}
template <class T> inline T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, SIMT_HERE) {
    int l = (int)simt::lane(), s = l - (int)d;
    if (s < (l & ~(w - 1))) s = l;
    return simt::unpack<T>(simt::warp(simt::SHFL, m, simt::pack(v), s, s_));
}
inline unsigned __ballot_sync(unsigned m, int p, SIMT_HERE) { return (unsigned)simt::warp(simt::BALLOT, m, !!p, 0, s_); }
inline int __any_sync(unsigned m, int p, SIMT_HERE) { return (int)simt::warp(simt::ANY, m, !!p, 0, s_); }
inline int __all_sync(unsigned m, int p, SIMT_HERE) { return (int)simt::warp(simt::ALL, m, !!p, 0, s_); }
template <class T> inline unsigned __match_any_sync(unsigned m, T v, SIMT_HERE) { return (unsigned)simt::warp(simt::MATCH, m, simt::pack(v), 0, s_); }
inline unsigned __reduce_add_sync(unsigned m, unsigned v, SIMT_HERE) { return (unsigned)simt::warp(simt::RADD, m, v, 0, s_); }
inline int __reduce_add_sync(unsigned m, int v, SIMT_HERE) { return (int)simt::warp(simt::RADD, m, (unsigned)v, 0, s_); }
inline unsigned __reduce_max_sync(unsigned m, unsigned v, SIMT_HERE) { return (unsigned)simt::warp(simt::RMAXU, m, v, 0, s_); }
inline int __reduce_max_sync(unsigned m, int v, SIMT_HERE) { return (int)simt::warp(simt::RMAXS, m, (unsigned)v, 0, s_); }
inline unsigned __reduce_min_sync(unsigned m, unsigned v, SIMT_HERE) { return (unsigned)simt::warp(simt::RMINU, m, v, 0, s_); }
inline int __reduce_min_sync(unsigned m, int v, SIMT_HERE) { return (int)simt::warp(simt::RMINS, m, (unsigned)v, 0, s_); }
inline unsigned __reduce_and_sync(unsigned m, unsigned v, SIMT_HERE) { return (unsigned)simt::warp(simt::RAND_, m, v, 0, s_); }
inline unsigned __reduce_or_sync(unsigned m, unsigned v, SIMT_HERE) { return (unsigned)simt::warp(simt::ROR, m, v, 0, s_); }
inline unsigned __reduce_xor_sync(unsigned m, unsigned v, SIMT_HERE) { return (unsigned)simt::warp(simt::RXOR, m, v, 0, s_); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// ---- memory
namespace simt {
template <class T> inline const T& al(const T* p, site s) {  // vector access must be naturally aligned, as on the device
    if (reinterpret_cast<uintptr_t>(p) % (sizeof(T) > 16 ? 16 : sizeof(T))) trap("misaligned address", s);
    return *p;
}
}
template <class T> inline T __ldg(const T* p, SIMT_HERE) { return simt::al(p, s_); }
template <class T> inline T __ldcs(const T* p, SIMT_HERE) { return simt::al(p, s_); }
template <class T> inline T __ldca(const T* p, SIMT_HERE) { return simt::al(p, s_); }
template <class T> inline T __ldcg(const T* p, SIMT_HERE) { return simt::al(p, s_); }
template <class T> inline void __stcs(T* p, T v, SIMT_HERE) { simt::al(p, s_); *p = v; }
template <class T> inline void __stcg(T* p, T v, SIMT_HERE) { simt::al(p, s_); *p = v; }

// ---- atomics (relaxed; real atomics so that TSan sees them as such)
namespace simt {
template <class T, class F> inline T rmw(T* p, F f) {
    using U = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    U* q = reinterpret_cast<U*>(p);
    U o = __atomic_load_n(q, __ATOMIC_RELAXED);
    for (;;) {
        T t; memcpy(&t, &o, sizeof t);
        T n = f(t); U u; memcpy(&u, &n, sizeof u);
        if (__atomic_compare_exchange_n(q, &o, u, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return t;
    }
}
}
template <class T> inline T atomicAdd(T* p, std::common_type_t<T> v) { return simt::rmw(p, [=](T o) { return (T)(o + v); }); }
template <class T> inline T atomicSub(T* p, std::common_type_t<T> v) { return simt::rmw(p, [=](T o) { return (T)(o - v); }); }
template <class T> inline T atomicMax(T* p, std::common_type_t<T> v) { return simt::rmw(p, [=](T o) { return o < v ? v : o; }); }
template <class T> inline T atomicMin(T* p, std::common_type_t<T> v) { return simt::rmw(p, [=](T o) { return v < o ? v : o; }); }
template <class T> inline T atomicOr(T* p, std::common_type_t<T> v) { return simt::rmw(p, [=](T o) { return (T)(o | v); }); }
template <class T> inline T atomicAnd(T* p, std::common_type_t<T> v) { return simt::rmw(p, [=](T o) { return (T)(o & v); }); }
template <class T> inline T atomicExch(T* p, std::common_type_t<T> v) { return simt::rmw(p, [=](T) { return v; }); }
template <class T> inline T atomicCAS(T* p, std::common_type_t<T> c, std::common_type_t<T> v) { return simt::rmw(p, [=](T o) { return o == c ? v : o; }); }
inline unsigned atomicInc(unsigned* p, unsigned m) { return simt::rmw(p, [=](unsigned o) { return o >= m ? 0u : o + 1; }); }

// ---- math
inline float __expf(float x) { return expf(x); }
inline float __exp2f_(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float __saturatef(float a) { return a < 0 ? 0 : a > 1 ? 1 : a; }
inline int __float_as_int(float f) { return simt::unpack<int>(simt::pack(f)); }
inline unsigned __float_as_uint(float f) { return simt::unpack<unsigned>(simt::pack(f)); }
inline float __int_as_float(int i) { return simt::unpack<float>(simt::pack(i)); }
inline float __uint_as_float(unsigned i) { return simt::unpack<float>(simt::pack(i)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) { unsigned r = 0; for (int i = 0; i < 32; i++) r |= ((x >> i) & 1u) << (31 - i); return r; }
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }
#define __trap() ::simt::trap("__trap", {__FILE__, __LINE__})
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }

// ---- launch: same signature as NVIDIA's C++ template
template <class... Exp, class... Act>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*k)(Exp...), Act&&... args) {
    std::tuple<std::remove_cv_t<Exp>...> a(std::forward<Act>(args)...);
    return simt::launch(reinterpret_cast<const void*>(k), c, [k, a] { std::apply(k, a); });
}
template <class T> inline cudaError_t cudaMalloc(T** p, size_t n) { return cudaMalloc(reinterpret_cast<void**>(p), n); }
template <class T> inline cudaError_t cudaFuncSetAttribute(T* f, cudaFuncAttribute a, int v) { return cudaFuncSetAttribute(reinterpret_cast<const void*>(f), a, v); }
template <class T> inline cudaError_t cudaMemcpyToSymbol(T& s, const void* p, size_t n, size_t o = 0, cudaMemcpyKind = cudaMemcpyHostToDevice) { memcpy(reinterpret_cast<char*>(&s) + o, p, n); return cudaSuccess; }
