/*
 * cuda_stage.c - uploads through pinned memory.
 *
 * The host writes one half while the device may still read the other.  A half is taken again when
 * the event after its last copy has passed; that is where an upload may wait.  In a run it does not:
 * a half holds the inputs of dozens of micro-batches, and the host is at most a step ahead; what is
 * larger (the negatives of crd) comes when the passes before it are over (kd_step_draw), since here
 * nobody watches the other ranks.  Weights pass in pieces, where the wait is the transfer itself.
 */
#include "device/cuda.h"

enum {
    HALF = 8 << 20, /* where the time of a transfer is bandwidth alone */
    ALIGN = 256,
};

static kd_status open_stage(kd_cuda_stage *s)
{
    if (s->done[1]) return KD_OK;
    for (int i = 0; i < 2; i++) {
        void *memory = NULL;
        if (!s->halves[i]) CUDA_TRY(cudaHostAlloc(&memory, HALF, cudaHostAllocDefault));
        if (memory) s->halves[i] = memory;
        if (!s->done[i]) CUDA_TRY(cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming));
    }
    return KD_OK;
}

void kd_cuda_stage_close(kd_cuda_stage *s)
{
    for (int i = 0; i < 2; i++) {
        if (s->done[i]) (void)cudaEventDestroy(s->done[i]);
        if (s->halves[i]) (void)cudaFreeHost(s->halves[i]);
    }
    *s = (kd_cuda_stage){ .used = 0 };
}

static kd_status wait_for(cudaEvent_t event)
{
    const cudaError_t error = cudaEventQuery(event);
    if (error != cudaErrorNotReady)
        return error ? kd_cuda_failure((int)error, "cudaEventQuery()") : KD_OK;
    (void)cudaGetLastError(); /* not ready is no error */
    CUDA_TRY(cudaEventSynchronize(event));
    return KD_OK;
}

/* Room in the half in hand, or the other half once the device has read it. */
static kd_status make_room(kd_cuda_stage *s, cudaStream_t stream)
{
    if (s->used < HALF && s->stream == stream) return KD_OK;
    if (s->used > 0) {
        CUDA_TRY(cudaEventRecord(s->done[s->at], s->stream));
        s->at ^= 1;
        KD_TRY(wait_for(s->done[s->at]));
        s->used = 0;
    }
    s->stream = stream;
    return KD_OK;
}

kd_status kd_cuda_upload(kd_device *device, kd_queue *queue, void *to, const void *from,
                         size_t bytes)
{
    kd_cuda_stage *s = &((kd_cuda_device *)device)->stage;
    const cudaStream_t stream = kd_cuda_stream_of(device, queue);
    KD_TRY(open_stage(s));
    for (size_t at = 0, n; at < bytes; at += n) {
        KD_TRY(make_room(s, stream));
        n = HALF - s->used < bytes - at ? HALF - s->used : bytes - at;
        unsigned char *half = s->halves[s->at] + s->used;
        memcpy(half, (const char *)from + at, n);
        CUDA_TRY(cudaMemcpyAsync((char *)to + at, half, n, cudaMemcpyHostToDevice, stream));
        s->used += kd_round_up(n, ALIGN);
    }
    return KD_OK;
}
