/*
 * cuda_runtime.h - stands in for NVIDIA's when a .cu is compiled as C++: the language's keywords, the
 * built-in variables and device functions, and the launch.  Types, enums and the C API's prototypes
 * are NVIDIA's own (cuda_runtime_api.h); the .cpp files of this folder implement that API.
 */
#ifndef CUDASIM_CUDA_RUNTIME_H
#define CUDASIM_CUDA_RUNTIME_H

#define KD_CUDASIM 1

#include <cuda_runtime_api.h>
#ifdef __cplusplus /* nccl.h asks for this header in C too, where the API is all there is */

#include <cstddef>
#include <tuple>
#include <utility>

#include <vector_functions.h>

/* Not __noinline__: libstdc++ spells an attribute so. */
#undef __noinline__
#undef __shared__
#undef __constant__
#undef __global__
#undef __device__
#undef __host__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __forceinline__
#undef __managed__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__   static_assert(false, "use KD_SHARED or KD_DYN_SHARED");
#define __constant__ static
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
static constexpr int warpSize = 32;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

#include "cudasim/collectives.h"
#include "cudasim/math.h"
#include "cudasim/memory.h"
#include "cudasim/simt.h"

#define __trap() ::simt::trap("__trap", { __FILE__, __LINE__ })
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }

namespace simt {

/* A pointer among a kernel's arguments; those within a struct are not seen. */
template <class T> inline void check_parameter(const T &parameter)
{
    if constexpr (std::is_pointer_v<T> && !std::is_function_v<std::remove_pointer_t<T>>)
        check_argument(parameter);
}

} // namespace simt

/* ---- C++ overloads of the runtime API, with NVIDIA's signatures -------------------------------- */

template <class... Params, class... Args>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Params...),
                                      Args &&...args)
{
    std::tuple<std::remove_cv_t<Params>...> baked(std::forward<Args>(args)...);
    std::apply([](const auto &...p) { (simt::check_parameter(p), ...); }, baked);
    return simt::launch(reinterpret_cast<const void *>(kernel), config,
                        [kernel, baked] { std::apply(kernel, baked); });
}

template <class T> inline cudaError_t cudaMalloc(T **out, size_t bytes)
{
    return cudaMalloc(reinterpret_cast<void **>(out), bytes);
}

template <class... Params>
inline cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute,
                                        int value)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), attribute, value);
}

template <class... Params>
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, void (*kernel)(Params...))
{
    return cudaFuncGetAttributes(out, reinterpret_cast<const void *>(kernel));
}

#endif
#endif
