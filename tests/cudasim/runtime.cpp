/* runtime.cpp - launches, copies, and what a device says of itself. */
#include "sim.h"

#include <cstdio>
#include <map>

using namespace simt;

int simt::most_shared()
{
    const int capability = config().capability;
    return (capability >= 90 ? 227 : capability == 89 ? 99 : 163) << 10;
}

namespace {

enum { DEFAULT_SHARED = 48 << 10, PORTABLE_CLUSTER = 8 };

std::mutex &limits_lock = *new std::mutex;
/* What a kernel was given leave for on a device holds for that device alone. */
typedef std::map<std::pair<int, const void *>, int> leaves;
leaves &shared_limits = *new leaves;

int shared_limit(const void *kernel)
{
    const std::lock_guard<std::mutex> hold(limits_lock);
    const auto found = shared_limits.find({ current_device(), kernel });
    return found == shared_limits.end() ? (int)DEFAULT_SHARED : found->second;
}

/* ---- launches ----------------------------------------------------------------------------------- */

bool legal_dims(dim3 grid, dim3 threads)
{
    return grid.x && grid.y && grid.z && threads.x && threads.y && threads.z &&
           grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 && threads.x <= 1024 &&
           threads.y <= 1024 && threads.z <= 64 &&
           (uint64_t)threads.x * threads.y * threads.z <= 1024;
}

cudaError_t read_attributes(dim3 *cluster, const cudaLaunchConfig_t *c)
{
    *cluster = { 1, 1, 1 };
    for (unsigned i = 0; i < c->numAttrs; i++) {
        const cudaLaunchAttribute &a = c->attrs[i];
        switch (a.id) {
        case cudaLaunchAttributeClusterDimension:
            *cluster = { a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z };
            break;
        case cudaLaunchAttributeIgnore:
        case cudaLaunchAttributePriority:
        case cudaLaunchAttributeProgrammaticStreamSerialization: break; /* never early: legal */
        default: return cudaErrorNotSupported;
        }
    }
    const uint64_t blocks = (uint64_t)cluster->x * cluster->y * cluster->z;
    if (blocks == 1) return cudaSuccess;
    if (config().capability < 90) return cudaErrorNotSupported;
    return blocks == 0 || blocks > PORTABLE_CLUSTER || c->gridDim.x % cluster->x ||
                   c->gridDim.y % cluster->y || c->gridDim.z % cluster->z
               ? cudaErrorInvalidClusterSize
               : cudaSuccess;
}

} // namespace

cudaError_t simt::launch(const void *kernel, const cudaLaunchConfig_t *c, std::function<void()> f)
{
    if (const int planned = planned_failure("cudaLaunchKernelEx", cudaErrorLaunchFailure))
        return answer((cudaError_t)planned);
    dim3 cluster;
    if (!legal_dims(c->gridDim, c->blockDim)) return answer(cudaErrorInvalidConfiguration);
    if (const cudaError_t error = read_attributes(&cluster, c)) return answer(error);
    const size_t shared = c->dynamicSmemBytes;
    if (shared > (size_t)shared_limit(kernel)) return answer(cudaErrorInvalidValue);
    const CUstream_st *s = stream_of(c->stream);
    if (!s || s->device != current_device()) return answer(cudaErrorInvalidResourceHandle);
    counted.launches++;
    return answer(enqueue(c->stream, node::KERNEL,
                          [grid = c->gridDim, threads = c->blockDim, cluster, shared,
                           f = std::move(f)] { run_grid(grid, threads, cluster, shared, f); }));
}

void simt::check_argument(const void *p)
{
    if (p && place_of(p) == place::PAGEABLE)
        trap("a kernel is given the address of pageable host memory", nowhere);
}

/* ---- copies ------------------------------------------------------------------------------------- */

namespace {

/* Whether `kind` fits where both ends are, and a device end lies within one allocation. */
bool legal_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    const bool to_device = place_of(to) == place::DEVICE,
               from_device = place_of(from) == place::DEVICE;
    if ((to_device && !inside_allocation(to, bytes)) ||
        (from_device && !inside_allocation(from, bytes)))
        return false;
    if (kind == cudaMemcpyDefault) return true;
    return to_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
           from_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
}

/*
 * From pageable memory the bytes are taken now, as CUDA stages them; from pinned memory when the copy
 * runs, so that who changes it too soon is found.  A graph reads both when it runs.
 */
cudaError_t copy_async(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    CUstream_st *s = stream_of(stream);
    if (!s) return cudaErrorInvalidResourceHandle;
    const bool captured = s->capture != nullptr;
    if (captured || place_of(from) != place::PAGEABLE) {
        const cudaError_t error = enqueue(stream, node::COPY, [=] { memmove(to, from, bytes); });
        if (error || captured || place_of(to) != place::PAGEABLE) return error;
        finish(s->last); /* into pageable memory a copy is over when the call returns */
        return device_error(s->device);
    }
    const auto staged =
        std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
    return enqueue(stream, node::COPY, [=] { memcpy(to, staged->data(), bytes); });
}

} // namespace

extern "C" {

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    SIM_CALL();
    counted.copies++;
    if (bytes == 0) return cudaSuccess;
    if (!legal_copy(to, from, bytes, kind)) return answer(cudaErrorInvalidValue);
    return answer(copy_async(to, from, bytes, stream));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    SIM_CALL();
    counted.copies++;
    counted.synchronisations++;
    if (const cudaError_t error = forbidden_in_capture()) return answer(error);
    if (bytes == 0) return cudaSuccess;
    if (!legal_copy(to, from, bytes, kind)) return answer(cudaErrorInvalidValue);
    const cudaError_t error = copy_async(to, from, bytes, nullptr);
    if (error) return answer(error);
    finish(stream_of(nullptr)->last);
    return answer(device_error(current_device()));
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    SIM_CALL();
    counted.fills++;
    if (bytes == 0) return cudaSuccess;
    if (!inside_allocation(to, bytes)) return answer(cudaErrorInvalidValue);
    return answer(enqueue(stream, node::FILL, [=] { memset(to, value, bytes); }));
}

cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    SIM_CALL();
    return cudaMemsetAsync(to, value, bytes, nullptr);
}

/* ---- devices and kernels ------------------------------------------------------------------------ */

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    SIM_CALL();
    if (device < 0 || device >= config().devices) return answer(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = config().capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = config().capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 4; break; /* few, so that grids have to stride */
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = DEFAULT_SHARED; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = simt::most_shared(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = simt::most_shared() + 1024; break;
    case cudaDevAttrL2CacheSize: *value = 40 << 20; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrClusterLaunch: *value = config().capability >= 90; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    default: return answer(cudaErrorNotSupported);
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device)
{
    SIM_CALL();
    if (device < 0 || device >= config().devices) return answer(cudaErrorInvalidDevice);
    const auto attribute = [device](enum cudaDeviceAttr which) {
        int value = 0;
        (void)cudaDeviceGetAttribute(&value, which, device);
        return value;
    };
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "cudasim sm_%d", config().capability);
    out->major = attribute(cudaDevAttrComputeCapabilityMajor);
    out->minor = attribute(cudaDevAttrComputeCapabilityMinor);
    out->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
    out->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    out->sharedMemPerBlock = DEFAULT_SHARED;
    out->sharedMemPerBlockOptin = (size_t)simt::most_shared();
    out->sharedMemPerMultiprocessor = (size_t)simt::most_shared() + 1024;
    out->maxThreadsPerBlock = 1024;
    out->maxThreadsPerMultiProcessor = 2048;
    out->warpSize = 32;
    out->totalGlobalMem = config().memory;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    SIM_CALL();
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    SIM_CALL();
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    SIM_CALL();
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return answer(cudaErrorNotSupported);
    if (value < 0 || value > simt::most_shared()) return answer(cudaErrorInvalidValue);
    const std::lock_guard<std::mutex> hold(limits_lock);
    shared_limits[{ current_device(), kernel }] = value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel)
{
    SIM_CALL();
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    out->maxDynamicSharedSizeBytes = shared_limit(kernel);
    return cudaSuccess;
}

} // extern "C"
