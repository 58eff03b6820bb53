/* kd/device.h - where a model runs. */
#ifndef KD_DEVICE_H
#define KD_DEVICE_H

#include <kd/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kd_device kd_device;

typedef struct kd_device_info {
    char type[16]; /* "cpu", "cuda" */
    char name[96]; /* "AMD EPYC, 2 threads"; "NVIDIA H100 80GB HBM3, sm_90" */
    char
        software[64]; /* whose versions decide bits: "CUDA 13.0, cuBLASLt 13.1.0", "oneDNN 3.6.2" */
    char driver[16];  /* of a GPU, "13.0" */
    size_t memory;    /* bytes a run may plan with: of a GPU, what is free when it is opened */
    size_t total;     /* bytes there are */
    int threads;      /* host threads that compute; 0 on a GPU */
} kd_device_info;

/* `name` is "auto" (the first type that has a device, CUDA before CPU), "cpu", "cuda" or "cuda:1".
 * KD_EINVAL for an unknown name, KD_EDEVICE when there is no such device; the message names a
 * missing op. */
KD_MUST_CHECK kd_status kd_device_open(kd_device **device, const char *name);
void kd_device_close(kd_device *device);

/* Number of devices of each type this build knows: calls `visit` per type, in order of preference. */
void kd_device_each(void (*visit)(void *context, const char *type, int count), void *context);

void kd_device_describe(kd_device_info *info, const kd_device *device);

#ifdef __cplusplus
}
#endif
#endif
