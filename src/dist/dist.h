/*
 * dist.h - ranks that train one student together.
 *
 * solo.c threads.c buckets.c
 */
#ifndef KD_DIST_H
#define KD_DIST_H

#include "device/device.h"

typedef struct kd_comm kd_comm;

/* Sums run over ranks in rank order: the same bits on every rank, every time. */
typedef struct kd_comm_type {
    const char *name;
    kd_status (*all_reduce)(kd_comm *comm, kd_exec *exec, const kd_tensor *t); /* f32, in place */
    kd_status (*all_reduce_host)(kd_comm *comm, double *values, int count);
    kd_status (*broadcast)(kd_comm *comm, kd_exec *exec, const kd_tensor *t, int root);
    kd_status (*barrier)(kd_comm *comm);
    void (*abort)(kd_comm *comm); /* wakes every waiting rank with KD_EPEER */
    void (*close)(kd_comm *comm);
} kd_comm_type;

struct kd_comm {
    const kd_comm_type *type;
    int rank, size;
};

KD_MUST_CHECK kd_status kd_comm_solo(kd_comm **comm);

/* `size` communicators of one group, for ranks that are threads of this process.  Tensors are at
 * most `max_elements` long. */
KD_MUST_CHECK kd_status kd_comm_threads(kd_comm **comms, int size, int64_t max_elements);
void kd_comm_close(kd_comm *comm);

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
