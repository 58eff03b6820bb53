/*
 * threads.c - ranks that are threads of one process.
 *
 * A collective has two meetings.  At `enter` every rank shows what it brings; the last to arrive
 * compares, so ranks that call different collectives are told instead of mixed.  Between the
 * meetings everybody may touch everybody's memory: an all-reduce gives each rank a slice of the
 * elements, which it sums over all ranks in rank order and writes to all.  Each element is summed
 * once, so all ranks hold the same bits.
 *
 * An abort wakes those who wait at `enter`.  `leave` does not end early: who is inside needs no
 * absent rank to finish, and a rank that returned before would take its memory from under the others.
 */
#include "dist/dist.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

typedef enum collective { ALL_REDUCE, ALL_REDUCE_HOST, BROADCAST, BARRIER } collective;

static const char *const collective_names[] = { "all_reduce", "all_reduce_host", "broadcast",
                                                "barrier" };

/* What a rank brings to a meeting. */
typedef struct call {
    collective kind;
    int64_t count; /* elements; bytes of a broadcast */
    int root;
    void *data;
} call;

typedef struct group group;

typedef struct member {
    kd_comm base;
    group *group;
} member;

struct group {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int size, open; /* members; those not yet closed */
    int arrived, inside;
    uint64_t entered, left; /* meetings that took place */
    kd_status broken;       /* KD_OK until something ends the group for good */
    char reason[160];
    int64_t max_elements;
    call *calls; /* [size]; steady between enter and leave */
    member members[];
};

static member *member_of(kd_comm *comm) { return (member *)comm; }

/* The first reason stays.  The mutex is held. */
static void break_group(group *g, kd_status status, const char *reason)
{
    if (g->broken == KD_OK) {
        g->broken = status;
        snprintf(g->reason, sizeof g->reason, "%s", reason);
    }
    pthread_cond_broadcast(&g->changed);
}

/* The mutex is held. */
static void compare_calls(group *g)
{
    const call *a = &g->calls[0];
    for (int r = 1; r < g->size; r++) {
        const call *b = &g->calls[r];
        if (a->kind == b->kind && a->count == b->count && a->root == b->root) continue;
        char reason[sizeof g->reason];
        snprintf(reason, sizeof reason,
                 "rank %d is in %s of %" PRId64 " (root %d), rank 0 in %s of %" PRId64 " (root %d)",
                 r, collective_names[b->kind], b->count, b->root, collective_names[a->kind],
                 a->count, a->root);
        break_group(g, KD_EINTERNAL, reason);
        return;
    }
}

/* Returns when all ranks are here; nobody is inside unless all are. */
static kd_status enter(member *m, call mine)
{
    group *g = m->group;
    pthread_mutex_lock(&g->mutex);
    const uint64_t meeting = g->entered;
    if (g->broken == KD_OK) {
        g->calls[m->base.rank] = mine;
        if (++g->arrived == g->size) compare_calls(g);
        if (g->arrived == g->size && g->broken == KD_OK) {
            g->arrived = 0;
            g->inside = g->size;
            g->entered++;
            pthread_cond_broadcast(&g->changed);
        }
        while (g->entered == meeting && g->broken == KD_OK)
            pthread_cond_wait(&g->changed, &g->mutex);
    }
    kd_status status = KD_OK;
    if (g->entered == meeting)
        status = kd_fail(g->broken, "%s on rank %d: %s", collective_names[mine.kind], m->base.rank,
                         g->reason);
    pthread_mutex_unlock(&g->mutex);
    return status;
}

static void leave(group *g)
{
    pthread_mutex_lock(&g->mutex);
    const uint64_t meeting = g->left;
    if (--g->inside == 0) {
        g->left++;
        pthread_cond_broadcast(&g->changed);
    }
    while (g->left == meeting) pthread_cond_wait(&g->changed, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
}

static kd_status check_tensor(const member *m, const kd_exec *exec, const kd_tensor *t, bool sum,
                              const char *what)
{
    KD_TRY(kd_comm_check_host(exec, what));
    KD_TRY(kd_comm_check_tensor(t, sum, what));
    if (kd_tensor_elements(t) > m->group->max_elements)
        return kd_fail(KD_EINVAL, "%s: found %" PRId64 " elements, expected at most %" PRId64, what,
                       kd_tensor_elements(t), m->group->max_elements);
    return KD_OK;
}

/* Sums elements [begin, end) over ranks, in rank order, into all of them. */
static void sum_slice(const group *g, int64_t begin, int64_t end)
{
    enum { CHUNK = 512 };
    float sum[CHUNK];
    for (int64_t at = begin; at < end; at += CHUNK) {
        const int64_t n = kd_min_i64(CHUNK, end - at);
        memcpy(sum, (const float *)g->calls[0].data + at, (size_t)n * sizeof *sum);
        for (int r = 1; r < g->size; r++) {
            const float *other = (const float *)g->calls[r].data + at;
            for (int64_t i = 0; i < n; i++) sum[i] += other[i];
        }
        for (int r = 0; r < g->size; r++)
            memcpy((float *)g->calls[r].data + at, sum, (size_t)n * sizeof *sum);
    }
}

static kd_status threads_all_reduce(kd_comm *comm, kd_exec *exec, const kd_tensor *t)
{
    if (kd_planning(exec)) return KD_OK;
    member *m = member_of(comm);
    group *g = m->group;
    KD_TRY(check_tensor(m, exec, t, true, "all_reduce"));
    KD_TRY(kd_sync(exec));
    const int64_t n = kd_tensor_elements(t);
    KD_TRY(enter(m, (call){ ALL_REDUCE, n, 0, t->data }));
    /* Whole cache lines, so that no two ranks write to one. */
    const int64_t slice = kd_ceil_div(kd_ceil_div(n, g->size), 16) * 16;
    sum_slice(g, kd_min_i64(comm->rank * slice, n), kd_min_i64((comm->rank + 1) * slice, n));
    leave(g);
    return KD_OK;
}

static kd_status threads_all_reduce_host(kd_comm *comm, double *values, int count)
{
    member *m = member_of(comm);
    const group *g = m->group;
    KD_TRY(enter(m, (call){ ALL_REDUCE_HOST, count, 0, values }));
    for (int i = 0; i < count && comm->rank == 0; i++) {
        double sum = values[i];
        for (int r = 1; r < g->size; r++) sum += ((const double *)g->calls[r].data)[i];
        for (int r = 0; r < g->size; r++) ((double *)g->calls[r].data)[i] = sum;
    }
    leave(m->group);
    return KD_OK;
}

static kd_status threads_broadcast(kd_comm *comm, kd_exec *exec, const kd_tensor *t, int root)
{
    if (kd_planning(exec)) return KD_OK;
    member *m = member_of(comm);
    const group *g = m->group;
    KD_TRY(check_tensor(m, exec, t, false, "broadcast"));
    KD_TRY(kd_comm_check_root(comm, root));
    KD_TRY(kd_sync(exec));
    const size_t bytes = kd_tensor_bytes(t);
    KD_TRY(enter(m, (call){ BROADCAST, (int64_t)bytes, root, t->data }));
    if (comm->rank != root) memcpy(t->data, g->calls[root].data, bytes);
    leave(m->group);
    return KD_OK;
}

static kd_status threads_barrier(kd_comm *comm)
{
    member *m = member_of(comm);
    KD_TRY(enter(m, (call){ BARRIER, 0, 0, NULL }));
    leave(m->group);
    return KD_OK;
}

static void threads_abort(kd_comm *comm)
{
    group *g = member_of(comm)->group;
    char reason[64];
    snprintf(reason, sizeof reason, "rank %d has stopped", comm->rank);
    pthread_mutex_lock(&g->mutex);
    break_group(g, KD_EPEER, reason);
    pthread_mutex_unlock(&g->mutex);
}

static void destroy_group(group *g)
{
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
    free(g->calls);
    free(g);
}

/* A rank that is gone will not come: whoever waits for it is told. */
static void threads_close(kd_comm *comm)
{
    group *g = member_of(comm)->group;
    threads_abort(comm);
    pthread_mutex_lock(&g->mutex);
    const int open = --g->open;
    pthread_mutex_unlock(&g->mutex);
    if (open == 0) destroy_group(g);
}

static const kd_comm_type threads = {
    .name = "threads",
    .all_reduce = threads_all_reduce,
    .all_reduce_host = threads_all_reduce_host,
    .broadcast = threads_broadcast,
    .barrier = threads_barrier,
    .abort = threads_abort,
    .close = threads_close,
};

kd_status kd_comm_threads(kd_comm **comms, int size, int64_t max_elements)
{
    if (size < 1 || max_elements < 0)
        return kd_fail(KD_EINVAL, "ranks: found %d for %" PRId64 " elements, expected at least 1",
                       size, max_elements);
    const size_t count = (size_t)size;
    group *g = calloc(1, sizeof *g + count * sizeof g->members[0]);
    call *calls = calloc(count, sizeof *calls);
    if (!g || !calls) {
        free(g);
        free(calls);
        return kd_fail(KD_ENOMEM, "communicator: no memory for %d ranks", size);
    }
    pthread_mutex_init(&g->mutex, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->size = g->open = size;
    g->max_elements = max_elements;
    g->calls = calls;
    for (int r = 0; r < size; r++) {
        g->members[r] = (member){ .base = { &threads, r, size, INFINITY }, .group = g };
        comms[r] = &g->members[r].base;
    }
    return KD_OK;
}
