/* Stands for NCCL in a build without it. */
#include "dist/dist.h"

#include <stdio.h>

void kd_nccl_version(char *text, size_t size) { snprintf(text, size, "no NCCL in this build"); }

kd_status kd_nccl_id_create(kd_nccl_id *id)
{
    (void)id;
    return kd_fail(KD_ENOTSUP, "ranks with a GPU each: this build of kd has no NCCL");
}

kd_status kd_comm_nccl(kd_comm **comm, kd_device *device, int rank, int size, const kd_nccl_id *id,
                       double timeout)
{
    (void)comm, (void)device, (void)id, (void)timeout;
    return kd_fail(KD_ENOTSUP, "rank %d of %d: this build of kd has no NCCL", rank, size);
}
