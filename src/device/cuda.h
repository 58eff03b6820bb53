/* cuda.h - what the CUDA files of device share; private to them. */
#ifndef KD_DEVICE_CUDA_H
#define KD_DEVICE_CUDA_H

#include "device/device.h"

#include <cuda_runtime_api.h>

/* cuda_stage.c: pinned memory that uploads pass through; two halves in turn. */
typedef struct kd_cuda_stage {
    unsigned char *halves[2]; /* NULL until the first upload */
    cudaEvent_t done[2];      /* what was copied from the half */
    cudaStream_t stream;      /* of the copies from the half in hand */
    int at;                   /* the half in hand */
    size_t used;              /* of it */
} kd_cuda_stage;

typedef struct kd_cuda_device {
    kd_device base;
    cudaStream_t compute, communication;
    kd_cuda_limits limits;
    size_t free, total; /* memory, when the device was opened */
    int driver;         /* version as 1000 major + 10 minor */
    char name[64];
    kd_cuda_stage stage;
    kd_blas *blas;
} kd_cuda_device;

/* Hands up a CUDA error as a status that names device, call and what CUDA says of it. */
#define CUDA_TRY(call)                                                                             \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        if (error_ != cudaSuccess) return kd_cuda_failure((int)error_, #call);                     \
    } while (0)

/* The queue's stream, on a thread that now speaks for the device. */
cudaStream_t kd_cuda_stream_of(const kd_device *device, kd_queue *queue);

kd_status kd_cuda_upload(kd_device *device, kd_queue *queue, void *to, const void *from,
                         size_t bytes);
void kd_cuda_stage_close(kd_cuda_stage *stage);

/* cuda_graph.c */
kd_status kd_cuda_capture_begin(kd_device *device, kd_queue *queue);
kd_status kd_cuda_capture_end(kd_graph **graph, kd_device *device, kd_queue *queue);
kd_status kd_cuda_graph_launch(kd_device *device, kd_queue *queue, kd_graph *graph);
void kd_cuda_graph_destroy(kd_device *device, kd_graph *graph);

#endif
