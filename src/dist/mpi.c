/*
 * mpi.c - ranks on the CPU, as processes that an MPI launcher started.
 *
 * All collectives are messages between pairs, since MPI's own sums promise no order.  An all-reduce
 * gives each rank a slice of the elements, as threads.c does: it gets that slice from everybody, adds
 * in rank order and hands the sum to all.  So all ranks hold the same bits, those of threads.c.
 *
 * Waiting is polled, which lets it end.  A rank that stops by itself tells the others, who look out for
 * that while they wait; one that does not answer within the timeout is named.  Since whom a rank waits
 * for may be waiting in turn, a rank that gives up says so too and listens a moment: of that only
 * those take notice who wait for the speaker, until all name the rank that says nothing.  MPI_Init and
 * MPI_Finalize know no timeout; a thread calls them, and the caller waits for it as for a rank.  What
 * a broken group leaves unfinished is left: MPI_Finalize would wait for the rank that is gone.
 */
#include "dist/dist.h"

#include <mpi.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CHUNK = 1 << 20,       /* elements of a sum at a time */
    HOST_VALUES = 1 << 10, /* doubles at a time */
    PIECE = 64 << 20,      /* bytes of a broadcast at a time */
    DATA = 1,              /* tags */
    STOPPED = 2,           /* a rank has failed, and why */
    GAVE_UP = 3,           /* a rank waits no longer, and for whom it did */
    LINGER_SECONDS = 1     /* for the others to be told, and heard */
};

typedef struct mpi_rank {
    kd_comm base;
    MPI_Comm all;
    kd_worker *library; /* begins and ends MPI; NULL: the program has begun it */
    bool begun;
    int64_t slice;         /* elements */
    float *whole, *own;    /* [size * slice]: what is summed; one slice of every rank's */
    double *values;        /* [size, HOST_VALUES] */
    MPI_Request *requests; /* [2 * size]: from, then to each rank */
    MPI_Request *notices;  /* [size]: to each rank, of `notice` */
    char notice[256];
    bool told;        /* it is on its way */
    char heard[320];  /* of a rank that has stopped; "": nothing */
    kd_status broken; /* KD_OK until something ends the group for good */
    char reason[512];
} mpi_rank;

static mpi_rank *rank_of(kd_comm *comm) { return (mpi_rank *)comm; }

/* ---- failures --------------------------------------------------------------------------------- */

static kd_status broken(const mpi_rank *r) { return kd_fail(r->broken, "%s", r->reason); }

/* The first reason stays. */
static kd_status KD_PRINTF(3, 4) break_group(mpi_rank *r, kd_status status, const char *fmt, ...)
{
    if (r->broken == KD_OK) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(r->reason, sizeof r->reason, fmt, args);
        va_end(args);
        r->broken = status;
    }
    return broken(r);
}

static kd_status check(mpi_rank *r, int result, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    if (result == MPI_SUCCESS) return KD_OK;
    MPI_Error_string(result, text, &length);
    return break_group(r, KD_EPEER, "%s: %s", call, text);
}

/* Something from or to rank p is still on its way. */
static bool waits_for(const mpi_rank *r, int p)
{
    int from = 1, to = 1;
    MPI_Request_get_status(r->requests[p], &from, MPI_STATUS_IGNORE);
    MPI_Request_get_status(r->requests[r->base.size + p], &to, MPI_STATUS_IGNORE);
    return !from || !to;
}

/* "1, 3"; how many. */
static int late_ranks(const mpi_rank *r, char *names, size_t size)
{
    int late = 0;
    size_t used = 0;
    for (int p = 0; p < r->base.size; p++) {
        if (!waits_for(r, p)) continue;
        if (used < size)
            used += (size_t)snprintf(names + used, size - used, "%s%d", late ? ", " : "", p);
        late++;
    }
    return late;
}

/* What a rank had to say that concerns this one goes to `why`.  `waiting`: else it has given up itself,
 * and those who heard of that have nothing new to say. */
static bool hear(const mpi_rank *r, bool waiting, char *why, size_t size)
{
    for (int tag = STOPPED; tag <= GAVE_UP; tag++) {
        char text[sizeof r->notice] = "";
        int there = 0;
        MPI_Status from;
        if (MPI_Iprobe(MPI_ANY_SOURCE, tag, r->all, &there, &from) != MPI_SUCCESS || !there)
            continue;
        const int speaker = from.MPI_SOURCE;
        if (MPI_Recv(text, sizeof text, MPI_CHAR, speaker, tag, r->all, &from) != MPI_SUCCESS ||
            ((tag == GAVE_UP || !waiting) && !waits_for(r, speaker)))
            continue;
        text[sizeof text - 1] = '\0';
        snprintf(why, size, "rank %d has stopped: %s", speaker, text);
        return true;
    }
    return false;
}

static void tell(mpi_rank *r, int tag, const char *text)
{
    if (r->told) return;
    r->told = true;
    snprintf(r->notice, sizeof r->notice, "%.*s", (int)sizeof r->notice - 1, text);
    for (int p = 0; p < r->base.size; p++) {
        r->notices[p] = MPI_REQUEST_NULL;
        if (p != r->base.rank)
            (void)MPI_Isend(r->notice, sizeof r->notice, MPI_CHAR, p, tag, r->all, &r->notices[p]);
    }
}

/* ---- waiting ---------------------------------------------------------------------------------- */

/* A message within a machine takes microseconds; longer and longer after those. */
static void nap(int64_t polls)
{
    enum { SPINS = 200, LONGEST = 500000 };
    if (polls < SPINS)
        sched_yield();
    else
        nanosleep(&(struct timespec){ .tv_nsec = kd_min_i64(1000 * (polls - SPINS), LONGEST) },
                  NULL);
}

/* The others are told, which to a rank that is gone never ends; one that gave up too may know more. */
static kd_status give_up(mpi_rank *r, const char *what, const char *names)
{
    const double start = kd_clock();
    char why[sizeof r->notice + 64];
    (void)break_group(r, KD_EPEER, "%s: rank %s did not answer within %.3g s", what, names,
                      r->base.timeout);
    tell(r, GAVE_UP, r->reason);
    for (int64_t polls = 0; kd_clock() - start < LINGER_SECONDS; nap(polls++)) {
        if (!hear(r, false, why, sizeof why)) continue;
        snprintf(r->reason, sizeof r->reason, "%s: %s", what, why);
        break;
    }
    return broken(r);
}

static kd_status await(mpi_rank *r, const char *what)
{
    const double start = kd_clock();
    char names[128];
    for (int64_t polls = 0;; nap(polls++)) {
        int done = 0;
        /* Heard first: what a rank sent before it stopped has come by then, and counts. */
        if (!*r->heard) (void)hear(r, true, r->heard, sizeof r->heard);
        KD_TRY(
            check(r, MPI_Testall(2 * r->base.size, r->requests, &done, MPI_STATUSES_IGNORE), what));
        if (done) return KD_OK;
        if (*r->heard) return break_group(r, KD_EPEER, "%s: %s", what, r->heard);
        /* Nobody is late where it was this process that slept. */
        if (kd_clock() - start > r->base.timeout && late_ranks(r, names, sizeof names) > 0)
            return give_up(r, what, names);
    }
}

/* ---- messages --------------------------------------------------------------------------------- */

static void begin_messages(mpi_rank *r)
{
    for (int i = 0; i < 2 * r->base.size; i++) r->requests[i] = MPI_REQUEST_NULL;
}

static kd_status receive(mpi_rank *r, int from, void *data, size_t bytes)
{
    return check(r, MPI_Irecv(data, (int)bytes, MPI_BYTE, from, DATA, r->all, &r->requests[from]),
                 "MPI_Irecv");
}

static kd_status send(mpi_rank *r, int to, const void *data, size_t bytes)
{
    return check(
        r, MPI_Isend(data, (int)bytes, MPI_BYTE, to, DATA, r->all, &r->requests[r->base.size + to]),
        "MPI_Isend");
}

/* To rank p the `bytes` at p * `stride` of `out`; those from rank p to p * `bytes` of `in`. */
static kd_status exchange(mpi_rank *r, void *in, const void *out, size_t stride, size_t bytes,
                          const char *what)
{
    begin_messages(r);
    for (int p = 0; p < r->base.size; p++) {
        void *to = (char *)in + (size_t)p * bytes;
        const void *from = (const char *)out + (size_t)p * stride;
        if (p == r->base.rank) {
            memcpy(to, from, bytes);
            continue;
        }
        KD_TRY(receive(r, p, to, bytes));
        KD_TRY(send(r, p, from, bytes));
    }
    return await(r, what);
}

/* ---- collectives ------------------------------------------------------------------------------ */

static kd_status ready(const mpi_rank *r, kd_exec *exec, const kd_tensor *t, bool sum,
                       const char *what)
{
    KD_TRY(kd_comm_check_host(exec, what));
    KD_TRY(kd_comm_check_tensor(t, sum, what));
    if (r->broken != KD_OK) return broken(r);
    return kd_sync(exec);
}

static kd_status sum_chunk(mpi_rank *r, float *x, int64_t n)
{
    static const char what[] = "all_reduce";
    const int64_t slice = kd_ceil_div(n, r->base.size);
    const size_t bytes = (size_t)slice * sizeof *x;
    memcpy(r->whole, x, (size_t)n * sizeof *x);
    memset(r->whole + n, 0, (size_t)(slice * r->base.size - n) * sizeof *x);
    KD_TRY(exchange(r, r->own, r->whole, bytes, bytes, what));
    for (int p = 1; p < r->base.size; p++)
        for (int64_t i = 0; i < slice; i++) r->own[i] += r->own[p * slice + i];
    KD_TRY(exchange(r, r->whole, r->own, 0, bytes, what));
    memcpy(x, r->whole, (size_t)n * sizeof *x);
    return KD_OK;
}

static kd_status mpi_all_reduce(kd_comm *comm, kd_exec *exec, const kd_tensor *t)
{
    mpi_rank *r = rank_of(comm);
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(ready(r, exec, t, true, "all_reduce"));
    const int64_t n = kd_tensor_elements(t), most = r->slice * comm->size;
    for (int64_t at = 0; at < n; at += most)
        KD_TRY(sum_chunk(r, (float *)t->data + at, kd_min_i64(n - at, most)));
    return KD_OK;
}

static kd_status mpi_all_reduce_host(kd_comm *comm, double *values, int count)
{
    mpi_rank *r = rank_of(comm);
    if (r->broken != KD_OK) return broken(r);
    for (int at = 0; at < count; at += HOST_VALUES) {
        const int n = (int)kd_min_i64(count - at, HOST_VALUES);
        KD_TRY(
            exchange(r, r->values, values + at, 0, (size_t)n * sizeof *values, "all_reduce_host"));
        for (int i = 0; i < n; i++) {
            double sum = r->values[i];
            for (int p = 1; p < comm->size; p++) sum += r->values[p * n + i];
            values[at + i] = sum;
        }
    }
    return KD_OK;
}

static kd_status send_piece(mpi_rank *r, char *data, size_t bytes, int root)
{
    begin_messages(r);
    if (r->base.rank != root) {
        KD_TRY(receive(r, root, data, bytes));
        return await(r, "broadcast");
    }
    for (int p = 0; p < r->base.size; p++)
        if (p != root) KD_TRY(send(r, p, data, bytes));
    return await(r, "broadcast");
}

static kd_status mpi_broadcast(kd_comm *comm, kd_exec *exec, const kd_tensor *t, int root)
{
    mpi_rank *r = rank_of(comm);
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_comm_check_root(comm, root));
    KD_TRY(ready(r, exec, t, false, "broadcast"));
    const int64_t bytes = (int64_t)kd_tensor_bytes(t);
    for (int64_t at = 0; at < bytes; at += PIECE)
        KD_TRY(send_piece(r, (char *)t->data + at, (size_t)kd_min_i64(bytes - at, PIECE), root));
    return KD_OK;
}

static kd_status mpi_barrier(kd_comm *comm)
{
    mpi_rank *r = rank_of(comm);
    const double nothing = 0.0;
    if (r->broken != KD_OK) return broken(r);
    return exchange(r, r->values, &nothing, 0, sizeof nothing, "barrier");
}

/* ---- the end ---------------------------------------------------------------------------------- */

/* Short messages leave at once, where there is somebody. */
static void mpi_abort(kd_comm *comm)
{
    mpi_rank *r = rank_of(comm);
    const double start = kd_clock();
    const char *why = *kd_last_error() ? kd_last_error() : "no reason given";
    int done = 0;
    if (r->broken == KD_OK) { /* without a word of its own: the caller's failure is the last */
        r->broken = KD_EPEER;
        snprintf(r->reason, sizeof r->reason, "this rank has stopped: %s", why);
    }
    tell(r, STOPPED, why);
    for (int64_t polls = 0; !done && kd_clock() - start < LINGER_SECONDS; nap(polls++))
        if (MPI_Testall(comm->size, r->notices, &done, MPI_STATUSES_IGNORE) != MPI_SUCCESS) return;
}

/* The library's thread has begun or ended MPI; not within the timeout: it, and what it works on, are
 * left to the end of the process. */
static kd_status await_library(mpi_rank *r, const char *call)
{
    const double start = kd_clock();
    for (int64_t polls = 0; kd_worker_busy(r->library); nap(polls++))
        if (kd_clock() - start > r->base.timeout)
            return break_group(r, KD_EPEER, "%s: the other ranks did not answer within %.3g s",
                               call, r->base.timeout);
    return kd_worker_wait(r->library);
}

static void end_library(mpi_rank *r)
{
    kd_worker_start(r->library);
    if (await_library(r, "MPI_Finalize") == KD_OK)
        kd_worker_destroy(r->library);
    else
        kd_log(KD_LOG_WARN, "rank %d: %s", r->base.rank, kd_last_error());
}

static void release(mpi_rank *r)
{
    free(r->whole);
    free(r->own);
    free(r->values);
    free(r->requests);
    free(r->notices);
    free(r);
}

static void mpi_close(kd_comm *comm)
{
    mpi_rank *r = rank_of(comm);
    if (r->broken == KD_OK && r->library) end_library(r);
    if (r->broken == KD_OK) release(r); /* else MPI may still write to what it was given */
}

static const kd_comm_type mpi = {
    .name = "mpi",
    .all_reduce = mpi_all_reduce,
    .all_reduce_host = mpi_all_reduce_host,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .abort = mpi_abort,
    .close = mpi_close,
};

/* ---- the beginning ---------------------------------------------------------------------------- */

/* The thread that begins MPI has to be the one that ends it. */
static kd_status begin_or_end(void *context)
{
    mpi_rank *r = context;
    int provided;
    if (r->begun) return MPI_Finalize() == MPI_SUCCESS ? KD_OK : kd_fail(KD_EPEER, "MPI_Finalize");
    r->begun = true;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS)
        return kd_fail(KD_EPEER, "MPI_Init_thread failed");
    if (provided < MPI_THREAD_SERIALIZED)
        return kd_fail(KD_ENOTSUP, "MPI_Init_thread: this MPI allows no calls from two threads");
    return KD_OK;
}

static kd_status begin_library(mpi_rank *r)
{
    int begun = 0, ended = 0;
    MPI_Initialized(&begun);
    MPI_Finalized(&ended);
    if (ended) return break_group(r, KD_ENOTSUP, "MPI has ended in this process");
    if (begun) return KD_OK;
    KD_TRY(kd_worker_create(&r->library, begin_or_end, r));
    kd_worker_start(r->library);
    return await_library(r, "MPI_Init");
}

static kd_status enter(mpi_rank *r)
{
    int rank, size, done = 0;
    MPI_Request request;
    const double start = kd_clock();
    KD_TRY(begin_library(r));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank != r->base.rank || size != r->base.size)
        return kd_fail(KD_EINVAL,
                       "MPI says rank %d of %d, the environment says rank %d of %d: this kd was "
                       "built with another MPI than the launcher's",
                       rank, size, r->base.rank, r->base.size);
    /* Messages of its own, whatever else the program says by MPI. */
    KD_TRY(check(r, MPI_Comm_idup(MPI_COMM_WORLD, &r->all, &request), "MPI_Comm_idup"));
    for (int64_t polls = 0; !done; nap(polls++)) {
        KD_TRY(check(r, MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Comm_idup"));
        if (!done && kd_clock() - start > r->base.timeout)
            return break_group(r, KD_EPEER, "joining: the other ranks did not answer within %.3g s",
                               r->base.timeout);
    }
    return check(r, MPI_Comm_set_errhandler(r->all, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

static kd_status allocate(mpi_rank *r)
{
    const size_t size = (size_t)r->base.size;
    r->slice = kd_ceil_div(CHUNK, r->base.size);
    const size_t elements = size * (size_t)r->slice;
    r->whole = malloc(elements * sizeof *r->whole);
    r->own = malloc(elements * sizeof *r->own);
    r->values = malloc(size * HOST_VALUES * sizeof *r->values);
    r->requests = malloc(2 * size * sizeof(MPI_Request));
    r->notices = malloc(size * sizeof(MPI_Request));
    if (r->whole && r->own && r->values && r->requests && r->notices) return KD_OK;
    return kd_fail(KD_ENOMEM, "communicator: no memory for %d ranks", r->base.size);
}

kd_status kd_comm_mpi(kd_comm **comm, int rank, int size, double timeout)
{
    if (rank < 0 || rank >= size || !(timeout > 0.0))
        return kd_fail(KD_EINVAL, "rank %d of %d, timeout %g s: expected 0 to %d and more than 0",
                       rank, size, timeout, size - 1);
    mpi_rank *r = calloc(1, sizeof *r);
    if (!r) return kd_fail(KD_ENOMEM, "communicator: no memory");
    *r = (mpi_rank){ .base = { &mpi, rank, size, timeout } };
    const kd_status status = allocate(r);
    if (status != KD_OK) {
        release(r);
        return status;
    }
    KD_TRY(enter(r)); /* `r` stays MPI's */
    *comm = &r->base;
    return KD_OK;
}

void kd_mpi_version(char *text, size_t size)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length;
    MPI_Get_library_version(version, &length);
    version[strcspn(version, ",\n")] = '\0';
    snprintf(text, size, "%s", version);
}
