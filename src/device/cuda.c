/* NVIDIA GPUs: memory, one stream of compute, copies. */
#include "device/device.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct cuda_device {
    kd_device base;
    cudaStream_t compute;
    kd_blas *blas;
    kd_cuda_limits limits;
    size_t memory;
    char name[64];
} cuda_device;

extern const kd_ops kd_ops_cuda; /* the table is ops' own; device only carries its address */

/* Hands up a CUDA error as a status that names the call and what CUDA says of it. */
#define CUDA_TRY(device, call)                                                                     \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        if (error_ != cudaSuccess) return failure((device), error_, #call);                        \
    } while (0)

static kd_status failure(int device, cudaError_t error, const char *call)
{
    (void)cudaGetLastError(); /* the next call shall not be blamed for this one */
    return kd_fail(error == cudaErrorMemoryAllocation ? KD_ENOMEM : KD_EDEVICE,
                   "cuda:%d: %.*s: %s (%s)", device, (int)strcspn(call, "("), call,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

static int cuda_count(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError(); /* no driver: no device */
    return 0;
}

static kd_status read_limits(cuda_device *cuda)
{
    const int index = cuda->base.index;
    int major, minor, processors, shared, cache;
    CUDA_TRY(index, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    CUDA_TRY(index, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    CUDA_TRY(index, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
    CUDA_TRY(index,
             cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
    CUDA_TRY(index, cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, index));
    cuda->limits =
        (kd_cuda_limits){ 10 * major + minor, processors, (size_t)shared, (size_t)cache };
    return KD_OK;
}

static kd_status start(cuda_device *cuda)
{
    const int index = cuda->base.index;
    size_t unused;
    CUDA_TRY(index, cudaSetDevice(index));
    KD_TRY(read_limits(cuda));
    CUDA_TRY(index, cudaMemGetInfo(&unused, &cuda->memory));
    CUDA_TRY(index, cudaStreamCreateWithFlags(&cuda->compute, cudaStreamNonBlocking));
    return kd_blas_open(&cuda->blas, &cuda->base);
}

static void cuda_close(kd_device *device)
{
    cuda_device *cuda = (cuda_device *)device;
    kd_blas_close(cuda->blas);
    if (cuda->compute) (void)cudaStreamDestroy(cuda->compute);
    free(cuda);
}

static kd_status cuda_open(kd_device **device, int index)
{
    cuda_device *cuda = calloc(1, sizeof *cuda);
    if (!cuda) return kd_fail(KD_ENOMEM, "cuda:%d: no memory", index);
    cuda->base = (kd_device){ .type = &kd_device_cuda, .ops = &kd_ops_cuda, .index = index };
    const kd_status status = start(cuda);
    if (status != KD_OK) {
        cuda_close(&cuda->base);
        return status;
    }
    *device = &cuda->base;
    return KD_OK;
}

static void cuda_describe(kd_device_info *info, const kd_device *device)
{
    const cuda_device *cuda = (const cuda_device *)device;
    snprintf(info->type, sizeof info->type, "cuda");
    snprintf(info->name, sizeof info->name, "%s", cuda->name);
    info->memory = cuda->memory;
}

static kd_status cuda_alloc(void **out, kd_device *device, size_t bytes)
{
    const cuda_device *cuda = (const cuda_device *)device;
    CUDA_TRY(device->index, cudaMalloc(out, bytes ? bytes : 1));
    CUDA_TRY(device->index, cudaMemsetAsync(*out, 0, bytes, cuda->compute));
    return KD_OK;
}

static void cuda_release(kd_device *device, void *memory)
{
    (void)device;
    (void)cudaFree(memory);
}

static cudaStream_t stream_of(const kd_device *device, kd_queue *queue)
{
    return queue ? (cudaStream_t)queue : ((const cuda_device *)device)->compute;
}

static kd_status cuda_copy(kd_device *device, kd_queue *queue, void *to, const void *from,
                           size_t bytes)
{
    CUDA_TRY(device->index,
             cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(device, queue)));
    return KD_OK;
}

static kd_status cuda_sync(kd_device *device, kd_queue *queue)
{
    CUDA_TRY(device->index, cudaStreamSynchronize(stream_of(device, queue)));
    return KD_OK;
}

const kd_cuda_limits *kd_cuda_limits_of(const kd_exec *exec)
{
    return &((const cuda_device *)exec->device)->limits;
}

kd_blas *kd_cuda_blas(const kd_exec *exec) { return ((const cuda_device *)exec->device)->blas; }

void *kd_cuda_stream(const kd_exec *exec) { return stream_of(exec->device, exec->queue); }

const kd_device_type kd_device_cuda = {
    .name = "cuda",
    .count = cuda_count,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .copy = cuda_copy,
    .sync = cuda_sync,
    .tune = kd_blas_tune,
};
