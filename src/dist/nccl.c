/*
 * nccl.c - ranks with a GPU each, as processes or as threads of one.
 *
 * Reductions go on the device's communication queue, beside the backward pass: each waits for the
 * exec's queue by an event, and by another the exec's queue waits for the last of them (join).  In a
 * graph the events become edges.  NCCL's calls are collective, so every rank has to record, and
 * replay, the same.
 *
 * Bits: each element is summed in one place and the sum handed to all, so ranks have the same.  The
 * order of the terms follows from NCCL's algorithm, which follows from sizes and machines: the same
 * job on the same machines has the same bits, another need not.  NCCL_ALGO=Ring leaves it no choice.
 *
 * Nobody promises that the death of a rank is told to the others.  So the communicator does not
 * block: what depends on other ranks is asked for again and again, for at most `timeout` seconds.
 * A group that failed is aborted, which ends its kernels and wakes who waits for the device.  Since
 * NCCL 2.26 an abort goes on until no graph holds the communicator; a thread of its own sits that out.
 */
#include "dist/dist.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { HOST_VALUES = 64, CLOSE_SECONDS = 10 };

/* Looked for when ranks first join (base/library.c). */
#define FUNCTIONS(X)                                                                               \
    X(ncclAllReduce)                                                                               \
    X(ncclBroadcast)                                                                               \
    X(ncclCommAbort)                                                                               \
    X(ncclCommDestroy)                                                                             \
    X(ncclCommFinalize)                                                                            \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclCommInitRankConfig)                                                                      \
    X(ncclGetErrorString)                                                                          \
    X(ncclGetLastError)                                                                            \
    X(ncclGetUniqueId)                                                                             \
    X(ncclGetVersion)

static struct {
#define X(function) __typeof__(&(function)) function;
    FUNCTIONS(X)
#undef X
} api;

#define X(function) #function,
static const char *const functions[] = { FUNCTIONS(X) };
#undef X

_Static_assert(sizeof api == KD_COUNT(functions) * sizeof(void *), "pointers and nothing else");

static kd_library library = {
    .file = "libnccl.so.2", .functions = functions, .count = KD_COUNT(functions), .table = &api
};

_Static_assert(sizeof(kd_nccl_id) == sizeof(ncclUniqueId), "an id is NCCL's");

typedef struct nccl_rank {
    kd_comm base;
    kd_device *device;
    ncclComm_t comm; /* NULL: not there, or being aborted */
    kd_stack stack;  /* never used: an exec has one */
    kd_exec queue;   /* of communication */
    kd_event *ready, *done;
    bool pending;        /* something was enqueued that nobody has joined */
    void *values, *host; /* [HOST_VALUES] doubles, of the device and pinned */
    pthread_t aborting;
    bool aborted;     /* `aborting` has been started */
    kd_status broken; /* KD_OK until something ends the group for good */
    char reason[256];
} nccl_rank;

static nccl_rank *rank_of(kd_comm *comm) { return (nccl_rank *)comm; }

/* ---- failures --------------------------------------------------------------------------------- */

static void *abort_communicator(void *comm)
{
    (void)api.ncclCommAbort(comm);
    return NULL;
}

/* The first reason stays. */
static void break_group(nccl_rank *r, kd_status status, const char *reason)
{
    if (r->broken == KD_OK) {
        r->broken = status;
        snprintf(r->reason, sizeof r->reason, "%s", reason);
    }
    if (!r->comm) return;
    r->aborted = pthread_create(&r->aborting, NULL, abort_communicator, r->comm) == 0;
    if (!r->aborted) (void)api.ncclCommAbort(r->comm);
    r->comm = NULL;
}

static kd_status broken(const nccl_rank *r)
{
    return kd_fail(r->broken, "cuda:%d, rank %d of %d: %s", r->device->index, r->base.rank,
                   r->base.size, r->reason);
}

static kd_status fail(nccl_rank *r, ncclResult_t result, const char *call)
{
    char reason[sizeof r->reason];
    const char *more = api.ncclGetLastError(r->comm);
    snprintf(reason, sizeof reason, "%s: %s%s%s", call, api.ncclGetErrorString(result),
             more && *more ? ": " : "", more ? more : "");
    break_group(r, result == ncclRemoteError ? KD_EPEER : KD_EDEVICE, reason);
    return broken(r);
}

static kd_status time_out(nccl_rank *r, const char *call)
{
    char reason[sizeof r->reason];
    snprintf(reason, sizeof reason, "%s: the other ranks did not answer within %g s", call,
             r->base.timeout);
    break_group(r, KD_EPEER, reason);
    return broken(r);
}

/* ---- waiting ---------------------------------------------------------------------------------- */

/* Longer and longer, up to a millisecond. */
static void nap(long *nanoseconds)
{
    nanosleep(&(struct timespec){ .tv_nsec = *nanoseconds }, NULL);
    if (*nanoseconds < 1000000) *nanoseconds *= 2;
}

enum { FIRST_NAP = 2000 };

/* Of a call that answered `result`: it may go on in the background. */
static kd_status settle(nccl_rank *r, ncclResult_t result, const char *call)
{
    const double start = kd_clock();
    for (long pause = FIRST_NAP;; nap(&pause)) {
        ncclResult_t state = result;
        if (state == ncclSuccess || state == ncclInProgress) {
            const ncclResult_t asked = api.ncclCommGetAsyncError(r->comm, &state);
            if (asked != ncclSuccess) return fail(r, asked, "ncclCommGetAsyncError");
        }
        if (state == ncclSuccess) return KD_OK;
        if (state != ncclInProgress) return fail(r, state, call);
        if (kd_clock() - start > r->base.timeout) return time_out(r, call);
    }
}

static kd_status nccl_wait(kd_comm *comm, kd_device *device, kd_event *event)
{
    nccl_rank *r = rank_of(comm);
    const double start = kd_clock();
    (void)device;
    if (r->broken != KD_OK) return broken(r);
    (void)kd_cuda_stream(&r->queue);
    for (long pause = FIRST_NAP;; nap(&pause)) {
        ncclResult_t state;
        const cudaError_t error = cudaEventQuery((cudaEvent_t)event);
        const ncclResult_t asked = api.ncclCommGetAsyncError(r->comm, &state);
        if (asked != ncclSuccess) return fail(r, asked, "ncclCommGetAsyncError");
        if (state != ncclSuccess && state != ncclInProgress) return fail(r, state, "collective");
        if (error == cudaSuccess) return KD_OK;
        if (error != cudaErrorNotReady) return kd_cuda_failure((int)error, "cudaEventQuery()");
        (void)cudaGetLastError(); /* not ready is no error */
        if (kd_clock() - start > r->base.timeout) return time_out(r, "collective");
    }
}

/* ---- collectives ------------------------------------------------------------------------------ */

static kd_status check(const nccl_rank *r, const kd_exec *exec, const kd_tensor *t, bool sum,
                       const char *what)
{
    if (exec->device != r->device)
        return kd_fail(KD_EINVAL, "%s: found a tensor on %s:%d, expected this rank's cuda:%d", what,
                       exec->device->type->name, exec->device->index, r->device->index);
    KD_TRY(kd_comm_check_tensor(t, sum, what));
    return r->broken == KD_OK ? KD_OK : broken(r);
}

/* What is enqueued for communication next comes after the exec's work. */
static kd_status fork_queue(nccl_rank *r, kd_exec *exec)
{
    KD_TRY(kd_event_record(exec, r->ready));
    KD_TRY(kd_event_await(&r->queue, r->ready));
    r->pending = true;
    return KD_OK;
}

static kd_status nccl_join(kd_comm *comm, kd_exec *exec)
{
    nccl_rank *r = rank_of(comm);
    if (!r->pending) return KD_OK;
    r->pending = false;
    KD_TRY(kd_event_record(&r->queue, r->done));
    return kd_event_await(exec, r->done);
}

static kd_status nccl_all_reduce(kd_comm *comm, kd_exec *exec, const kd_tensor *t)
{
    nccl_rank *r = rank_of(comm);
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(check(r, exec, t, true, "all_reduce"));
    KD_TRY(fork_queue(r, exec));
    const ncclResult_t result =
        api.ncclAllReduce(t->data, t->data, (size_t)kd_tensor_elements(t), ncclFloat32, ncclSum,
                          r->comm, kd_cuda_stream(&r->queue));
    return settle(r, result, "ncclAllReduce");
}

static kd_status nccl_broadcast(kd_comm *comm, kd_exec *exec, const kd_tensor *t, int root)
{
    nccl_rank *r = rank_of(comm);
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(check(r, exec, t, false, "broadcast"));
    KD_TRY(kd_comm_check_root(comm, root));
    KD_TRY(fork_queue(r, exec));
    const ncclResult_t result = api.ncclBroadcast(t->data, t->data, kd_tensor_bytes(t), ncclUint8,
                                                  root, r->comm, kd_cuda_stream(&r->queue));
    KD_TRY(settle(r, result, "ncclBroadcast"));
    return nccl_join(comm, exec);
}

static kd_status copy(const nccl_rank *r, void *to, const void *from, size_t bytes)
{
    const cudaError_t error =
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, kd_cuda_stream(&r->queue));
    return error == cudaSuccess ? KD_OK : kd_cuda_failure((int)error, "cudaMemcpyAsync()");
}

/* Waits for the reductions before it, which share the queue, and not for the exec's. */
static kd_status reduce_values(nccl_rank *r, double *values, size_t count)
{
    const size_t bytes = count * sizeof *values;
    memcpy(r->host, values, bytes);
    KD_TRY(copy(r, r->values, r->host, bytes));
    const ncclResult_t result = api.ncclAllReduce(r->values, r->values, count, ncclFloat64, ncclSum,
                                                  r->comm, kd_cuda_stream(&r->queue));
    KD_TRY(settle(r, result, "ncclAllReduce"));
    KD_TRY(copy(r, r->host, r->values, bytes));
    KD_TRY(kd_event_record(&r->queue, r->done));
    KD_TRY(nccl_wait(&r->base, r->device, r->done));
    memcpy(values, r->host, bytes);
    return KD_OK;
}

static kd_status nccl_all_reduce_host(kd_comm *comm, double *values, int count)
{
    nccl_rank *r = rank_of(comm);
    if (r->broken != KD_OK) return broken(r);
    for (int at = 0; at < count; at += HOST_VALUES)
        KD_TRY(reduce_values(r, values + at, (size_t)kd_min_i64(count - at, HOST_VALUES)));
    return KD_OK;
}

static kd_status nccl_barrier(kd_comm *comm)
{
    double nothing = 0.0;
    return nccl_all_reduce_host(comm, &nothing, 1);
}

/* ---- beginning and end ------------------------------------------------------------------------ */

static void nccl_abort(kd_comm *comm)
{
    break_group(rank_of(comm), KD_EPEER, "this rank has stopped");
}

static void leave(nccl_rank *r)
{
    r->base.timeout = CLOSE_SECONDS;
    if (settle(r, api.ncclCommFinalize(r->comm), "ncclCommFinalize") != KD_OK) return;
    const ncclResult_t result = api.ncclCommDestroy(r->comm);
    r->comm = NULL;
    if (result != ncclSuccess)
        kd_log(KD_LOG_WARN, "cuda:%d, rank %d: ncclCommDestroy: %s", r->device->index, r->base.rank,
               api.ncclGetErrorString(result));
}

/* An abort that does not end keeps its thread; the process can still go. */
static void await_abort(const nccl_rank *r)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += CLOSE_SECONDS;
    if (pthread_timedjoin_np(r->aborting, NULL, &until) == 0) return;
    kd_log(KD_LOG_WARN, "cuda:%d, rank %d: ncclCommAbort did not end within %d s", r->device->index,
           r->base.rank, CLOSE_SECONDS);
    (void)pthread_detach(r->aborting);
}

static void nccl_close(kd_comm *comm)
{
    nccl_rank *r = rank_of(comm);
    (void)kd_cuda_stream(&r->queue);
    if (r->comm) leave(r);
    if (r->aborted) await_abort(r);
    kd_event_destroy(r->device, r->ready);
    kd_event_destroy(r->device, r->done);
    kd_device_release(r->device, r->values);
    kd_device_release_host(r->device, r->host);
    free(r);
}

static const kd_comm_type nccl = {
    .name = "nccl",
    .all_reduce = nccl_all_reduce,
    .join = nccl_join,
    .wait = nccl_wait,
    .all_reduce_host = nccl_all_reduce_host,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .abort = nccl_abort,
    .close = nccl_close,
};

void kd_nccl_version(char *text, size_t size)
{
    int version = 0;
    if (kd_library_load(&library) != KD_OK)
        snprintf(text, size, "no NCCL: %s", kd_last_error());
    else if (api.ncclGetVersion(&version) != ncclSuccess)
        snprintf(text, size, "no NCCL: %s", api.ncclGetLastError(NULL));
    else
        snprintf(text, size, "NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

kd_status kd_nccl_id_create(kd_nccl_id *id)
{
    ncclUniqueId made;
    KD_TRY(kd_library_load(&library));
    const ncclResult_t result = api.ncclGetUniqueId(&made);
    if (result != ncclSuccess)
        return kd_fail(KD_EDEVICE, "ncclGetUniqueId: %s: %s", api.ncclGetErrorString(result),
                       api.ncclGetLastError(NULL));
    memcpy(id, &made, sizeof *id);
    return KD_OK;
}

static kd_status enter(nccl_rank *r, const kd_nccl_id *id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId unique;
    config.blocking = 0;
    memcpy(&unique, id, sizeof unique);
    KD_TRY(kd_event_create(&r->ready, r->device));
    KD_TRY(kd_event_create(&r->done, r->device));
    KD_TRY(kd_device_alloc(&r->values, r->device, HOST_VALUES * sizeof(double), "sums over ranks"));
    KD_TRY(kd_device_alloc_host(&r->host, r->device, HOST_VALUES * sizeof(double)));
    (void)kd_cuda_stream(&r->queue); /* joins with the thread's device */
    const ncclResult_t result =
        api.ncclCommInitRankConfig(&r->comm, r->base.size, unique, r->base.rank, &config);
    if (!r->comm) return fail(r, result, "ncclCommInitRankConfig");
    return settle(r, result, "ncclCommInitRankConfig");
}

kd_status kd_comm_nccl(kd_comm **comm, kd_device *device, int rank, int size, const kd_nccl_id *id,
                       double timeout)
{
    if (device->type != &kd_device_cuda)
        return kd_fail(KD_ENOTSUP, "rank %d of %d: NCCL joins GPUs, found %s", rank, size,
                       device->type->name);
    if (rank < 0 || rank >= size || !(timeout > 0.0))
        return kd_fail(KD_EINVAL, "rank %d of %d, timeout %g s: expected 0 to %d and more than 0",
                       rank, size, timeout, size - 1);
    KD_TRY(kd_library_load(&library));
    nccl_rank *r = calloc(1, sizeof *r);
    if (!r) return kd_fail(KD_ENOMEM, "communicator: no memory");
    *r = (nccl_rank){ .base = { &nccl, rank, size, timeout }, .device = device };
    r->queue = (kd_exec){ device, device->type->communication(device), &r->stack };
    const kd_status status = enter(r, id);
    if (status != KD_OK) {
        nccl_close(&r->base);
        return status;
    }
    *comm = &r->base;
    return KD_OK;
}
