/*
 * dist.h - ranks that train one student together.
 *
 * environment.c (which rank this is) comm.c (what all kinds share) solo.c threads.c, nccl.c and mpi.c
 * or the stub of each; buckets.c
 */
#ifndef KD_DIST_H
#define KD_DIST_H

#include "device/device.h"

/* ---- which rank this is ----------------------------------------------------------------------- */

/* A process among those of its run, as its launcher says. */
typedef struct kd_ranks {
    const char
        *launcher; /* "torchrun", "Open MPI", "PMI", "SLURM"; NULL: one process, started alone */
    int rank, size;
    int local;         /* among those of its machine; -1: not known */
    bool mpi;          /* MPI_Init works under this launcher */
    char meeting[320]; /* "host:port" for NCCL's ranks to find each other; "": nothing tells */
} kd_ranks;

/* `get` is getenv.  KD_EINVAL naming variables and values where a number is none, where half of a
 * launcher's variables are there, or where two launchers contradict each other. */
KD_MUST_CHECK kd_status kd_ranks_find(kd_ranks *ranks, char *(*get)(const char *name));

/* ---- groups ----------------------------------------------------------------------------------- */

typedef struct kd_comm kd_comm;

/*
 * Sums have the same bits on every rank, every time: solo, threads and MPI add in rank order, NCCL in
 * an order of its own (nccl.c).  The two that are NULL where a collective is done when it returns are
 * called through kd_comm_join and kd_comm_wait.
 */
typedef struct kd_comm_type {
    const char *name;
    /* f32, in place, after the work of the exec's queue, which may go on beside it: what is enqueued
     * there later leaves `t` alone until kd_comm_join. */
    kd_status (*all_reduce)(kd_comm *comm, kd_exec *exec, const kd_tensor *t);
    kd_status (*join)(kd_comm *comm, kd_exec *exec);
    kd_status (*wait)(kd_comm *comm, kd_device *device, kd_event *event);
    kd_status (*all_reduce_host)(kd_comm *comm, double *values, int count);
    kd_status (*broadcast)(kd_comm *comm, kd_exec *exec, const kd_tensor *t, int root);
    kd_status (*barrier)(kd_comm *comm);
    void (*abort)(kd_comm *comm); /* every rank that waits, or will, gets KD_EPEER; between
                                     processes it may take those `timeout` to notice */
    void (*close)(kd_comm *comm);
} kd_comm_type;

struct kd_comm {
    const kd_comm_type *type;
    int rank, size;
    /* Seconds without an answer of the other ranks after which a wait ends in KD_EPEER: more than the
     * slowest of them is behind.  May change between collectives.  Threads wait for each other as
     * long as it takes. */
    double timeout;
};

KD_MUST_CHECK kd_status kd_comm_solo(kd_comm **comm);

/* `size` communicators of one group, for ranks that are threads of this process.  Tensors are at
 * most `max_elements` long. */
KD_MUST_CHECK kd_status kd_comm_threads(kd_comm **comms, int size, int64_t max_elements);

/* What joins the ranks of an NCCL group.  One rank makes it and hands it to the others; with
 * NCCL_COMM_ID=host:port in the environment each rank may make its own. */
typedef struct kd_nccl_id {
    char bytes[128];
} kd_nccl_id;
KD_MUST_CHECK kd_status kd_nccl_id_create(kd_nccl_id *id);

/*
 * Rank `rank` of `size`, on a CUDA device that is no other rank's; returns when all have joined.
 * Once broken a group stays so.  Called by one thread.  The device outlives it; recorded steps that
 * reduce are gone before it closes.
 */
KD_MUST_CHECK kd_status kd_comm_nccl(kd_comm **comm, kd_device *device, int rank, int size,
                                     const kd_nccl_id *id, double timeout);

/* Rank `rank` of `size` processes that MPI starts, on the CPU; once in a process, unless that has
 * started MPI by itself.  Once broken a group stays so. */
KD_MUST_CHECK kd_status kd_comm_mpi(kd_comm **comm, int rank, int size, double timeout);

/* "Open MPI v4.1.4", "NCCL 2.27.3", or why there is none. */
void kd_mpi_version(char *text, size_t size);
void kd_nccl_version(char *text, size_t size);

void kd_comm_close(kd_comm *comm); /* NULL is fine */

/* The exec's queue goes on when everything reduced so far is there.  A recording that reduces joins
 * before it ends. */
KD_MUST_CHECK kd_status kd_comm_join(kd_comm *comm, kd_exec *exec);

/* As kd_event_sync, but KD_EPEER where a rank that is gone keeps the device from getting there. */
KD_MUST_CHECK kd_status kd_comm_wait(kd_comm *comm, kd_device *device, kd_event *event);

/* Sums `value` over the ranks, and with it the wish to stop: KD_ESTOPPED on all of them, at the same
 * call, once one was asked to (kd_stop_requested). */
KD_MUST_CHECK kd_status kd_comm_agree(kd_comm *comm, double *value);

/* For the kinds: that `t` is there, contiguous and, where `sum`, f32; that the exec's memory is the
 * host's; that there is a rank `root`. */
KD_MUST_CHECK kd_status kd_comm_check_tensor(const kd_tensor *t, bool sum, const char *what);
KD_MUST_CHECK kd_status kd_comm_check_host(const kd_exec *exec, const char *what);
KD_MUST_CHECK kd_status kd_comm_check_root(const kd_comm *comm, int root);

/* ---- buckets: gradients reduced as each block of the backward pass is done -------------------- */

typedef struct kd_buckets {
    kd_comm *comm;
    const kd_slab *slab;
    kd_arena *arena;
    int count;
    struct kd_bucket {
        int64_t begin, end; /* elements of the slab */
        int first_block;    /* ready when this block, the lowest of the bucket, is done */
    } * items;
} kd_buckets;

/* Cuts the slab into runs of whole blocks of at least `min_elements`. */
KD_MUST_CHECK kd_status kd_buckets_create(kd_buckets *buckets, kd_arena *arena, kd_comm *comm,
                                          const kd_slab *slab, int64_t min_elements);

/* Backward has finished `block` (blocks come in descending order; -1 is the embeddings): reduces
 * every bucket that this completes. */
KD_MUST_CHECK kd_status kd_buckets_ready(kd_buckets *buckets, kd_exec *exec, int block);

#endif
