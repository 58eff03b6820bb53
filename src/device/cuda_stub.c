/* Stands for CUDA in a build without it: there is no device, so "auto" takes the CPU. */
#include "device/device.h"

static int cuda_count(void) { return 0; }

static kd_status cuda_open(kd_device **device, int index)
{
    (void)device;
    return kd_fail(KD_EDEVICE, "cuda:%d: this build of kd has no CUDA", index);
}

const kd_device_type kd_device_cuda = { .name = "cuda", .count = cuda_count, .open = cuda_open };
