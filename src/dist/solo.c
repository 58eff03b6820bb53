/* solo.c - a group of one: every sum is its only term. */
#include "dist/dist.h"

#include <math.h>
#include <stdlib.h>

static kd_status solo_all_reduce(kd_comm *comm, kd_exec *exec, const kd_tensor *t)
{
    (void)comm, (void)exec, (void)t;
    return KD_OK;
}

static kd_status solo_all_reduce_host(kd_comm *comm, double *values, int count)
{
    (void)comm, (void)values, (void)count;
    return KD_OK;
}

static kd_status solo_broadcast(kd_comm *comm, kd_exec *exec, const kd_tensor *t, int root)
{
    (void)exec, (void)t;
    return kd_comm_check_root(comm, root);
}

static kd_status solo_barrier(kd_comm *comm)
{
    (void)comm;
    return KD_OK;
}

static void solo_abort(kd_comm *comm) { (void)comm; } /* nobody waits */

static void solo_close(kd_comm *comm) { free(comm); }

static const kd_comm_type solo = {
    .name = "solo",
    .all_reduce = solo_all_reduce,
    .all_reduce_host = solo_all_reduce_host,
    .broadcast = solo_broadcast,
    .barrier = solo_barrier,
    .abort = solo_abort,
    .close = solo_close,
};

kd_status kd_comm_solo(kd_comm **comm)
{
    *comm = malloc(sizeof **comm);
    if (!*comm) return kd_fail(KD_ENOMEM, "communicator: no memory");
    **comm = (kd_comm){ .type = &solo, .rank = 0, .size = 1, .timeout = INFINITY };
    return KD_OK;
}
