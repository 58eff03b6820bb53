/*
 * mpi_ranks CASE - one rank of those that test_mpi.c starts.  Its last line is "rank N: good", or what is
 * wrong.
 */
#include "dist/dist.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GUARD = 16, LONGEST = (1 << 20) + 5 };

static const double patience = 2.0; /* seconds, in the cases that lose it */

typedef struct rank {
    kd_comm *comm;
    kd_device *device;
    kd_exec exec;
    int number, size;
} rank;

/* Magnitudes from 1e-4 to 1e4, so that a sum in another order has other bits. */
static float value_of(int r, int64_t i)
{
    const double exponent = kd_random_uniform(5, (uint64_t)r, (uint64_t)(2 * i)) * 27 - 13;
    const double mantissa = kd_random_uniform(5, (uint64_t)r, (uint64_t)(2 * i + 1)) - 0.5;
    return (float)(mantissa * exp2(exponent));
}

static kd_status wrong(const char *what, int64_t n, int64_t i)
{
    return kd_fail(KD_EINTERNAL, "%s of %lld: element %lld is wrong", what, (long long)n,
                   (long long)i);
}

/* ---- what all do together --------------------------------------------------------------------- */

/* Rounded after each rank, rank by rank: bit by bit what every rank must have. */
static kd_status check_sum(const float *got, int size, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float sum = value_of(0, i);
        for (int r = 1; r < size; r++) sum += value_of(r, i);
        if (memcmp(&got[i], &sum, sizeof sum) != 0) return wrong("all_reduce", n, i);
    }
    for (int i = 0; i < GUARD; i++)
        if (!isnan(got[-1 - i]) || !isnan(got[n + i])) return wrong("all_reduce's guard", n, i);
    return KD_OK;
}

static kd_status sums(rank *r)
{
    static const int64_t lengths[] = { 0, 1, 2, 3, 17, 4099, LONGEST };
    static float memory[LONGEST + 2 * GUARD];
    for (int k = 0; k < KD_COUNT(lengths); k++) {
        const int64_t n = lengths[k];
        for (int64_t i = 0; i < n + 2 * GUARD; i++) memory[i] = NAN;
        for (int64_t i = 0; i < n; i++) memory[GUARD + i] = value_of(r->number, i);
        const kd_tensor t = kd_tensor_of(memory + GUARD, KD_F32, KD_SHAPE(n));
        KD_TRY(r->comm->type->all_reduce(r->comm, &r->exec, &t));
        KD_TRY(check_sum(memory + GUARD, r->size, n));
    }
    return KD_OK;
}

/* A function, so that no compiler rounds product and sum at once. */
static double double_of(int r, int64_t i) { return value_of(r, i) * 1e-7; }

static kd_status host_sums(rank *r)
{
    static const int counts[] = { 0, 1, 5, 1024, 1025, 3001 };
    static double values[3001 + 1];
    for (int k = 0; k < KD_COUNT(counts); k++) {
        for (int i = 0; i < KD_COUNT(values); i++) values[i] = double_of(r->number, i);
        KD_TRY(r->comm->type->all_reduce_host(r->comm, values, counts[k]));
        for (int i = 0; i < KD_COUNT(values); i++) {
            double want = double_of(i < counts[k] ? 0 : r->number, i);
            for (int o = 1; o < r->size && i < counts[k]; o++) want += double_of(o, i);
            if (memcmp(&values[i], &want, sizeof want) != 0)
                return wrong("all_reduce_host", counts[k], i);
        }
    }
    return KD_OK;
}

static kd_status broadcasts(rank *r)
{
    enum { BYTES = 12345 };
    static unsigned char bytes[BYTES + 1];
    for (int root = 0; root < r->size; root++) {
        const kd_tensor t = kd_tensor_of(bytes, KD_U8, KD_SHAPE(BYTES));
        memset(bytes, r->number + 1, sizeof bytes);
        KD_TRY(r->comm->type->broadcast(r->comm, &r->exec, &t, root));
        for (int i = 0; i < BYTES; i++)
            if (bytes[i] != root + 1) return wrong("broadcast", BYTES, i);
        if (bytes[BYTES] != r->number + 1) return wrong("broadcast's guard", BYTES, BYTES);
    }
    return KD_OK;
}

static void sleep_for(double seconds)
{
    nanosleep(&(struct timespec){ .tv_sec = (time_t)seconds,
                                  .tv_nsec = (long)(1e9 * (seconds - floor(seconds))) },
              NULL);
}

/* Each in turn comes late: nobody passes before. */
static kd_status barriers(rank *r)
{
    static const double late = 0.2;
    for (int turn = 0; turn < r->size; turn++) {
        KD_TRY(r->comm->type->barrier(r->comm));
        const double start = kd_clock();
        if (turn == r->number) sleep_for(late);
        KD_TRY(r->comm->type->barrier(r->comm));
        if (kd_clock() - start < late / 2) return wrong("barrier", r->size, turn);
    }
    return KD_OK;
}

static kd_status refusals(rank *r)
{
    float x[4] = { 0 };
    double sum = 0;
    const kd_comm_type *type = r->comm->type;
    kd_tensor t = kd_tensor_of(x, KD_BF16, KD_SHAPE(4));
    kd_stack planning = { .planning = true };
    kd_exec other = { .device = r->device, .stack = &planning };
    if (type->all_reduce(r->comm, &r->exec, &t) != KD_EINVAL) return wrong("bf16", 4, 0);
    if (type->broadcast(r->comm, &r->exec, &t, r->size) != KD_EINVAL) return wrong("root", 4, 0);
    t = kd_tensor_of(x, KD_F32, KD_SHAPE(2));
    t.stride[0] = 2;
    if (type->all_reduce(r->comm, &r->exec, &t) != KD_EINVAL) return wrong("stride", 2, 0);
    t.stride[0] = 1;
    if (r->number == 0) KD_TRY(type->all_reduce(r->comm, &other, &t)); /* planning: alone */
    return type->all_reduce_host(r->comm, &sum, 1);                    /* the group is whole */
}

/* ---- a rank that is gone ---------------------------------------------------------------------- */

static kd_status wait_in(rank *r, const char *kind)
{
    static float x[3];
    double number = 1.0;
    const kd_tensor t = kd_tensor_of(x, KD_F32, KD_SHAPE(3));
    if (strcmp(kind, "all_reduce") == 0) return r->comm->type->all_reduce(r->comm, &r->exec, &t);
    if (strcmp(kind, "broadcast") == 0)
        return r->comm->type->broadcast(r->comm, &r->exec, &t, r->size - 1);
    if (strcmp(kind, "barrier") == 0) return r->comm->type->barrier(r->comm);
    return r->comm->type->all_reduce_host(r->comm, &number, 1);
}

static kd_status expect(kd_status status, const char *fmt, ...) KD_PRINTF(2, 3);
static kd_status expect(kd_status status, const char *fmt, ...)
{
    char want[256], got[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(want, sizeof want, fmt, args);
    va_end(args);
    snprintf(got, sizeof got, "%s", kd_last_error());
    if (status == KD_EPEER && strncmp(got, want, strlen(want)) == 0) return KD_OK;
    return kd_fail(KD_EINTERNAL, "%s: \"%s\", expected \"%s\"", kd_status_text(status), got, want);
}

/* The last rank says that it stops; the others are told at once, and once broken a group stays so. */
static kd_status told(rank *r, const char *kind)
{
    const double start = kd_clock();
    if (r->number == r->size - 1) {
        kd_record_failure("disk %s is full", kind);
        r->comm->type->abort(r->comm);
        return expect(wait_in(r, kind), "this rank has stopped: disk %s is full", kind);
    }
    for (int i = 0; i < 2; i++)
        KD_TRY(expect(wait_in(r, kind), "%s: rank %d has stopped: disk %s is full", kind,
                      r->size - 1, kind));
    return kd_clock() - start < 20.0 ? KD_OK : kd_fail(KD_EINTERNAL, "told late");
}

/* The last rank says nothing. */
static kd_status silent(rank *r, const char *kind)
{
    KD_TRY(r->comm->type->barrier(r->comm));
    r->comm->timeout = patience;
    if (r->number == r->size - 1) {
        sleep_for(1.5 * patience);
        return KD_OK;
    }
    const double start = kd_clock();
    KD_TRY(expect(wait_in(r, kind), "%s: rank %d did not answer within 2 s", kind, r->size - 1));
    const double spent = kd_clock() - start;
    if (spent >= patience && spent < patience + 5) return KD_OK;
    return kd_fail(KD_EINTERNAL, "waited %g s", spent);
}

/* ---- one rank --------------------------------------------------------------------------------- */

static kd_status run(rank *r, const char *name)
{
    const char *kind = strchr(name, ':');
    if (strncmp(name, "told", 4) == 0) return told(r, kind + 1);
    if (strncmp(name, "silent", 6) == 0) return silent(r, kind + 1);
    KD_TRY(sums(r));
    KD_TRY(host_sums(r));
    KD_TRY(broadcasts(r));
    KD_TRY(barriers(r));
    return refusals(r);
}

/* MPI begins once in a process. */
static kd_status join_again(const kd_ranks *ranks)
{
    kd_comm *comm;
    const kd_status status = kd_comm_mpi(&comm, ranks->rank, ranks->size, 5.0);
    if (status == KD_ENOTSUP && strstr(kd_last_error(), "MPI has ended")) return KD_OK;
    return kd_fail(KD_EINTERNAL, "joins again: %s", kd_status_text(status));
}

/* A launcher of another MPI: this one would begin a group of its own. */
static kd_status join_another(const kd_ranks *ranks)
{
    kd_comm *comm;
    const kd_status status = kd_comm_mpi(&comm, ranks->rank, ranks->size + 1, 60.0);
    if (status == KD_EINVAL && strstr(kd_last_error(), "built with another MPI")) return KD_OK;
    return kd_fail(KD_EINTERNAL, "joins another: %s", kd_status_text(status));
}

static kd_status take_part(const char *name)
{
    static kd_stack stack;
    kd_ranks ranks;
    kd_comm *none;
    rank r = { .comm = NULL };
    KD_TRY(kd_ranks_find(&ranks, getenv));
    if (kd_comm_mpi(&none, 2, 2, 1.0) != KD_EINVAL || kd_comm_mpi(&none, 0, 2, 0.0) != KD_EINVAL)
        return kd_fail(KD_EINTERNAL, "rank 2 of 2, or no timeout, was taken");
    if (strcmp(name, "other") == 0) return join_another(&ranks);
    KD_TRY(kd_comm_mpi(&r.comm, ranks.rank, ranks.size, 60.0));
    KD_TRY(kd_device_open(&r.device, "cpu"));
    r.exec = (kd_exec){ .device = r.device, .stack = &stack };
    r.number = ranks.rank;
    r.size = ranks.size;
    const kd_status status = run(&r, name);
    kd_comm_close(r.comm);
    kd_device_close(r.device);
    return status == KD_OK && strcmp(name, "together") == 0 ? join_again(&ranks) : status;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "together", *number = getenv("OMPI_COMM_WORLD_RANK");
    const kd_status status = take_part(name);
    printf("rank %s: %s\n", number ? number : "?", status == KD_OK ? "good" : kd_last_error());
    return 0;
}
