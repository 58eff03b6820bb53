/*
 * cuda.c - NVIDIA GPUs: opening, memory, two streams, events.
 *
 * Everything a step does is in order on `compute`, its small copies too; `communication`, of the
 * highest priority, is for reductions that run beside the backward pass.  (A third stream for copies
 * would have to wait for the step that still reads the inputs' memory.)  CUDA's current device
 * belongs to a thread, so every call here sets it: ranks may be threads.
 */
#include "device/cuda.h"

#include <stdio.h>
#include <stdlib.h>

enum { LEAST_CAPABILITY = 80 }; /* what the kernels are compiled for */

extern const kd_ops kd_ops_cuda; /* the table is ops' own; device only carries its address */

kd_status kd_cuda_failure(int error, const char *call)
{
    int device = 0;
    (void)cudaGetLastError(); /* the next call shall not be blamed for this one */
    (void)cudaGetDevice(&device);
    return kd_fail(error == cudaErrorMemoryAllocation ? KD_ENOMEM : KD_EDEVICE,
                   "cuda:%d: %.*s: %s (%s)", device, (int)strcspn(call, "("), call,
                   cudaGetErrorString((cudaError_t)error), cudaGetErrorName((cudaError_t)error));
}

static kd_cuda_device *cuda_of(kd_device *device) { return (kd_cuda_device *)device; }

cudaStream_t kd_cuda_stream_of(const kd_device *device, kd_queue *queue)
{
    (void)cudaSetDevice(
        device->index); /* it was there at opening; the next call says what is wrong */
    return queue ? (cudaStream_t)queue : ((const kd_cuda_device *)device)->compute;
}

/* ---- opening ---------------------------------------------------------------------------------- */

static int cuda_count(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError(); /* no driver: no device */
    return 0;
}

/* "13.0" of 13000. */
static const char *version_text(char *text, size_t size, int version)
{
    if (version == 0) return "none";
    snprintf(text, size, "%d.%d", version / 1000, version % 1000 / 10);
    return text;
}

/* That there is such a device, or why not. */
static kd_status find_device(int index)
{
    int count = 0, driver = 0;
    char installed[16], built[16];
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && index < count) return KD_OK;
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    const char *a = version_text(installed, sizeof installed, driver);
    const char *b = version_text(built, sizeof built, CUDART_VERSION);
    if (driver == 0)
        return kd_fail(KD_EDEVICE,
                       "cuda:%d: no NVIDIA driver found (driver %s, built with CUDA %s)", index, a,
                       b);
    if (error == cudaSuccess || error == cudaErrorNoDevice)
        return kd_fail(KD_EDEVICE, "cuda:%d: found %d GPUs (driver %s, built with CUDA %s)", index,
                       count, a, b);
    return kd_fail(KD_EDEVICE, "cuda:%d: %s (%s; driver %s, built with CUDA %s)", index,
                   cudaGetErrorString(error), cudaGetErrorName(error), a, b);
}

/* 0 until a card has shown that the other way is faster. */
static kd_status read_row_blocks(int *blocks)
{
    const char *text = getenv("KD_ROW_BLOCKS");
    *blocks = 0;
    if (!text) return KD_OK;
    if (strlen(text) != 1 || !strchr("01248", *text))
        return kd_fail(KD_EINVAL, "KD_ROW_BLOCKS: \"%s\", expected 0, 1, 2, 4 or 8", text);
    *blocks = *text - '0';
    return KD_OK;
}

static kd_status read_limits(kd_cuda_device *cuda)
{
    const int index = cuda->base.index;
    struct cudaDeviceProp card;
    int major, minor, processors, shared, cache;
    CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    CUDA_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
    CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
    CUDA_TRY(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, index));
    CUDA_TRY(cudaGetDeviceProperties(&card, index));
    cuda->limits =
        (kd_cuda_limits){ 10 * major + minor, processors, (size_t)shared, (size_t)cache, 0 };
    KD_TRY(read_row_blocks(&cuda->limits.row_blocks));
    snprintf(cuda->name, sizeof cuda->name, "%.*s", (int)sizeof cuda->name - 1, card.name);
    if (cuda->limits.capability >= LEAST_CAPABILITY) return KD_OK;
    return kd_fail(KD_EDEVICE, "cuda:%d: %s has compute capability %d.%d, expected %d.%d or later",
                   index, cuda->name, major, minor, LEAST_CAPABILITY / 10, LEAST_CAPABILITY % 10);
}

static kd_status start(kd_cuda_device *cuda)
{
    int least, greatest;
    KD_TRY(find_device(cuda->base.index));
    CUDA_TRY(cudaSetDevice(cuda->base.index));
    KD_TRY(read_limits(cuda));
    CUDA_TRY(cudaDriverGetVersion(&cuda->driver));
    CUDA_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CUDA_TRY(cudaStreamCreateWithPriority(&cuda->compute, cudaStreamNonBlocking, least));
    CUDA_TRY(cudaStreamCreateWithPriority(&cuda->communication, cudaStreamNonBlocking, greatest));
    CUDA_TRY(cudaMemGetInfo(&cuda->free, &cuda->total));
    return kd_blas_open(&cuda->blas, &cuda->base);
}

static void cuda_close(kd_device *device)
{
    kd_cuda_device *cuda = cuda_of(device);
    if (cuda->compute) {
        (void)cudaStreamSynchronize(kd_cuda_stream_of(device, NULL));
        kd_cuda_stage_close(&cuda->stage);
        kd_blas_close(cuda->blas);
        (void)cudaStreamDestroy(cuda->compute);
    }
    if (cuda->communication) (void)cudaStreamDestroy(cuda->communication);
    free(cuda);
}

static kd_status cuda_open(kd_device **device, int index)
{
    kd_cuda_device *cuda = calloc(1, sizeof *cuda);
    if (!cuda) return kd_fail(KD_ENOMEM, "cuda:%d: no memory", index);
    cuda->base = (kd_device){
        .type = &kd_device_cuda, .ops = kd_device_cuda.ops, .index = index, .graphs = true
    };
    cuda->base.card = &cuda->limits;
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
    const kd_cuda_device *cuda = (const kd_cuda_device *)device;
    const int blas = kd_blas_version();
    char installed[16], built[16];
    snprintf(info->type, sizeof info->type, "cuda");
    snprintf(info->name, sizeof info->name, "%s, sm_%d", cuda->name, cuda->limits.capability);
    snprintf(info->driver, sizeof info->driver, "%s",
             version_text(installed, sizeof installed, cuda->driver));
    snprintf(info->software, sizeof info->software, "CUDA %s, cuBLASLt %d.%d.%d",
             version_text(built, sizeof built, CUDART_VERSION), blas / 10000, blas / 100 % 100,
             blas % 100);
    info->memory = cuda->free;
    info->total = cuda->total;
}

/* ---- memory ----------------------------------------------------------------------------------- */

static size_t cuda_available(kd_device *device)
{
    size_t available = 0, total;
    (void)kd_cuda_stream_of(device, NULL);
    if (cudaMemGetInfo(&available, &total) != cudaSuccess) (void)cudaGetLastError();
    return available;
}

static kd_status cuda_alloc(void **out, kd_device *device, size_t bytes)
{
    const cudaStream_t stream = kd_cuda_stream_of(device, NULL);
    CUDA_TRY(cudaMalloc(out, bytes ? bytes : 1));
    const cudaError_t error = cudaMemsetAsync(*out, 0, bytes, stream);
    if (error == cudaSuccess) return KD_OK;
    (void)cudaFree(*out);
    return kd_cuda_failure((int)error, "cudaMemsetAsync()");
}

static void cuda_release(kd_device *device, void *memory)
{
    (void)kd_cuda_stream_of(device, NULL);
    (void)cudaFree(memory);
}

static kd_status cuda_alloc_host(void **out, kd_device *device, size_t bytes)
{
    (void)kd_cuda_stream_of(device, NULL);
    CUDA_TRY(cudaHostAlloc(out, bytes ? bytes : 1, cudaHostAllocDefault));
    memset(*out, 0, bytes);
    return KD_OK;
}

static void cuda_release_host(kd_device *device, void *memory)
{
    (void)kd_cuda_stream_of(device, NULL);
    (void)cudaFreeHost(memory);
}

static kd_status cuda_download(kd_device *device, kd_queue *queue, void *to, const void *from,
                               size_t bytes)
{
    CUDA_TRY(
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, kd_cuda_stream_of(device, queue)));
    return KD_OK;
}

static kd_status cuda_copy(kd_device *device, kd_queue *queue, void *to, const void *from,
                           size_t bytes)
{
    CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice,
                             kd_cuda_stream_of(device, queue)));
    return KD_OK;
}

static kd_status cuda_fill(kd_device *device, kd_queue *queue, void *to, int byte, size_t bytes)
{
    CUDA_TRY(cudaMemsetAsync(to, byte, bytes, kd_cuda_stream_of(device, queue)));
    return KD_OK;
}

static kd_status cuda_sync(kd_device *device, kd_queue *queue)
{
    CUDA_TRY(cudaStreamSynchronize(kd_cuda_stream_of(device, queue)));
    return KD_OK;
}

/* ---- events ----------------------------------------------------------------------------------- */

static kd_queue *cuda_communication(kd_device *device)
{
    return (kd_queue *)cuda_of(device)->communication;
}

/* The host sleeps on it: the loader wants the processor. */
static kd_status cuda_event_create(kd_event **out, kd_device *device)
{
    cudaEvent_t event;
    (void)kd_cuda_stream_of(device, NULL);
    CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
    *out = (kd_event *)event;
    return KD_OK;
}

static void cuda_event_destroy(kd_device *device, kd_event *event)
{
    (void)kd_cuda_stream_of(device, NULL);
    (void)cudaEventDestroy((cudaEvent_t)event);
}

static kd_status cuda_event_record(kd_device *device, kd_queue *queue, kd_event *event)
{
    CUDA_TRY(cudaEventRecord((cudaEvent_t)event, kd_cuda_stream_of(device, queue)));
    return KD_OK;
}

static kd_status cuda_event_await(kd_device *device, kd_queue *queue, kd_event *event)
{
    CUDA_TRY(cudaStreamWaitEvent(kd_cuda_stream_of(device, queue), (cudaEvent_t)event, 0));
    return KD_OK;
}

static kd_status cuda_event_sync(kd_device *device, kd_event *event)
{
    (void)kd_cuda_stream_of(device, NULL);
    CUDA_TRY(cudaEventSynchronize((cudaEvent_t)event));
    return KD_OK;
}

/* ---- for launchers ---------------------------------------------------------------------------- */

kd_blas *kd_cuda_blas(const kd_exec *exec) { return ((const kd_cuda_device *)exec->device)->blas; }

void *kd_cuda_stream(const kd_exec *exec) { return kd_cuda_stream_of(exec->device, exec->queue); }

const kd_device_type kd_device_cuda = {
    .name = "cuda",
    .ops = &kd_ops_cuda,
    .count = cuda_count,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .available = cuda_available,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .alloc_host = cuda_alloc_host,
    .release_host = cuda_release_host,
    .upload = kd_cuda_upload,
    .download = cuda_download,
    .copy = cuda_copy,
    .fill = cuda_fill,
    .sync = cuda_sync,
    .tune = kd_blas_tune,
    .communication = cuda_communication,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .event_record = cuda_event_record,
    .event_await = cuda_event_await,
    .event_sync = cuda_event_sync,
    .capture_begin = kd_cuda_capture_begin,
    .capture_end = kd_cuda_capture_end,
    .graph_launch = kd_cuda_graph_launch,
    .graph_destroy = kd_cuda_graph_destroy,
};
