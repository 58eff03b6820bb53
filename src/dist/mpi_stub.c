/* Stands for MPI in a build without it. */
#include "dist/dist.h"

#include <stdio.h>

kd_status kd_comm_mpi(kd_comm **comm, int rank, int size, double timeout)
{
    (void)comm, (void)timeout;
    return kd_fail(KD_ENOTSUP, "rank %d of %d: ranks on the CPU, and this build of kd has no MPI",
                   rank, size);
}

void kd_mpi_version(char *text, size_t size) { snprintf(text, size, "no MPI in this build"); }
