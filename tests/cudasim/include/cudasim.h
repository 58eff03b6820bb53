/*
 * cudasim.h - for tests of the CUDA backend where it is emulated (KD_CUDA=SIM): what it called, and the
 * switches that README.md describes, from within the process.
 */
#ifndef CUDASIM_H
#define CUDASIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cudasim_counts {
    uint64_t allocations, frees;           /* of device memory */
    uint64_t host_allocations, host_frees; /* of pinned memory */
    uint64_t launches;         /* of kernels, by the host; not those that a graph replays */
    uint64_t copies, fills;    /* calls of cudaMemcpy*, cudaMemset* */
    uint64_t synchronisations; /* calls in which the host waits for a device */
    uint64_t captures, graph_launches;
    uint64_t collectives;       /* calls of NCCL that communicate */
    uint64_t bytes, most_bytes; /* of device memory: held now, and the most since the last reset */
} cudasim_counts;

/* Over all threads and devices, since the start or the last reset. */
void cudasim_read(cudasim_counts *counts);
void cudasim_reset(void);

/* As the environment variable of that name, from now on: cudasim_set("KD_SIM_SCHEDULE", "random:3").
 * Ends the process on a name or value that means nothing. */
void cudasim_set(const char *name, const char *value);

#ifdef __cplusplus
}
#endif

#endif
