/*
 * Ranks in threads: the same bits on every rank and in rank order, for sizes that do not divide; a
 * rank that stops wakes those who wait; ranks that disagree are told; buckets reduce every element
 * once and none before its block is done.
 */
#include "dist/dist.h"

#include <criterion/criterion.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_RANKS = 8, ROUNDS = 3, GUARD = 16 };

/* Only its type is looked at: what a host tensor's exec carries. */
static kd_device host = { .type = &kd_device_cpu };

typedef struct rank {
    kd_comm *comm;
    kd_status status;
    char message[256];
    int64_t count; /* what the body works on */
    float *values, *original;
    double *doubles;
    unsigned char *bytes;
    atomic_int *arrived;
    int variant;
    bool wrong;
} rank;

typedef kd_status (*rank_body)(rank *r, kd_exec *exec);

typedef struct launch {
    rank *rank;
    rank_body body;
} launch;

/* Assertions belong to the main thread: a rank only keeps what it saw. */
static void *run_rank(void *context)
{
    const launch *l = context;
    kd_stack stack = { 0 };
    kd_exec exec = { .device = &host, .stack = &stack };
    l->rank->status = l->body(l->rank, &exec);
    snprintf(l->rank->message, sizeof l->rank->message, "%s",
             l->rank->status == KD_OK ? "" : kd_last_error());
    return NULL;
}

static void run_ranks(rank *ranks, int size, rank_body body)
{
    pthread_t threads[MAX_RANKS];
    launch launches[MAX_RANKS];
    for (int r = 0; r < size; r++) {
        launches[r] = (launch){ &ranks[r], body };
        cr_assert(pthread_create(&threads[r], NULL, run_rank, &launches[r]) == 0, "thread %d", r);
    }
    for (int r = 0; r < size; r++) pthread_join(threads[r], NULL);
}

static void open_ranks(rank *ranks, int size, int64_t max_elements)
{
    kd_comm *comms[MAX_RANKS];
    cr_assert(kd_comm_threads(comms, size, max_elements) == KD_OK, "%s", kd_last_error());
    for (int r = 0; r < size; r++) {
        ranks[r] = (rank){ .comm = comms[r] };
        cr_assert(comms[r]->rank == r && comms[r]->size == size, "rank %d of %d", r, size);
    }
}

static void close_ranks(rank *ranks, int size)
{
    for (int r = 0; r < size; r++) kd_comm_close(ranks[r].comm);
}

/* Magnitudes from 1e-4 to 1e4, so that a sum in another order has other bits. */
static float value_of(int r, int64_t i)
{
    uint32_t x = (uint32_t)(r * 7919 + i * 104729 + 1);
    x = (x ^ (x >> 15)) * 0x2c1b3c6du;
    x = (x ^ (x >> 12)) * 0x297a2d39u;
    x ^= x >> 15;
    const float mantissa = (float)(x & 0xffffu) / 32768.0f - 1.0f;
    return ldexpf(mantissa, (int)(x >> 16) % 28 - 14);
}

static kd_tensor host_tensor(void *data, kd_dtype dtype, int64_t n)
{
    return (kd_tensor){ data, dtype, 1, { n }, { 1 } };
}

/* ---- sums -------------------------------------------------------------------------------------- */

static kd_status reduce_rounds(rank *r, kd_exec *exec)
{
    for (int round = 0; round < ROUNDS; round++) {
        memcpy(r->values + GUARD, r->original, (size_t)r->count * sizeof *r->values);
        const kd_tensor t = host_tensor(r->values + GUARD, KD_F32, r->count);
        KD_TRY(r->comm->type->all_reduce(r->comm, exec, &t));
    }
    return KD_OK;
}

/* Counts elements whose sum has other bits in descending rank order: the test must be able to fail. */
static int64_t check_sums(const rank *ranks, int size, int64_t n)
{
    int64_t sensitive = 0;
    for (int64_t i = 0; i < n; i++) {
        float up = ranks[0].original[i], down = ranks[size - 1].original[i];
        for (int r = 1; r < size; r++) up += ranks[r].original[i];
        for (int r = size - 2; r >= 0; r--) down += ranks[r].original[i];
        sensitive += up != down;
        for (int r = 0; r < size; r++)
            cr_assert(memcmp(&ranks[r].values[GUARD + i], &up, sizeof up) == 0,
                      "%d ranks, %lld elements: rank %d has %.9g at %lld, expected %.9g", size,
                      (long long)n, r, (double)ranks[r].values[GUARD + i], (long long)i,
                      (double)up);
    }
    for (int r = 0; r < size; r++)
        for (int g = 0; g < GUARD; g++)
            cr_assert(isnan(ranks[r].values[g]) && isnan(ranks[r].values[GUARD + n + g]),
                      "%d ranks, %lld elements: rank %d wrote outside", size, (long long)n, r);
    return sensitive;
}

Test(threads, sums_have_the_same_bits_on_every_rank)
{
    static const int64_t lengths[] = { 0, 1, 2, 15, 16, 17, 255, 513, 4099 };
    static const int sizes[] = { 1, 2, 3, 5, 8 };
    for (int s = 0; s < KD_COUNT(sizes); s++) {
        const int size = sizes[s];
        rank ranks[MAX_RANKS];
        open_ranks(ranks, size, 4099);
        int64_t sensitive = 0;
        for (int k = 0; k < KD_COUNT(lengths); k++) {
            const int64_t n = lengths[k];
            for (int r = 0; r < size; r++) {
                ranks[r].count = n;
                ranks[r].original = malloc((size_t)(n + 1) * sizeof(float));
                ranks[r].values = malloc((size_t)(n + 2 * GUARD) * sizeof(float));
                for (int64_t i = 0; i < n; i++) ranks[r].original[i] = value_of(r, i);
                for (int64_t i = 0; i < n + 2 * GUARD; i++) ranks[r].values[i] = NAN;
            }
            run_ranks(ranks, size, reduce_rounds);
            for (int r = 0; r < size; r++)
                cr_assert(ranks[r].status == KD_OK, "%d ranks, %lld elements: %s", size,
                          (long long)n, ranks[r].message);
            sensitive += check_sums(ranks, size, n);
            for (int r = 0; r < size; r++) free(ranks[r].original), free(ranks[r].values);
        }
        cr_assert(size < 3 || sensitive > 0, "%d ranks: no sum depends on its order", size);
        close_ranks(ranks, size);
    }
}

/* ---- doubles, broadcast, barrier ----------------------------------------------------------------- */

enum { DOUBLES = 5, BYTES = 37 };

/* A function, so that no compiler rounds product and sum at once. */
static double double_of(int r, int64_t i) { return value_of(r, i) * 1e-7; }

static kd_status mixed_rounds(rank *r, kd_exec *exec)
{
    const int me = r->comm->rank, size = r->comm->size;
    for (int round = 0; round < ROUNDS; round++) {
        for (int count = 0; count <= DOUBLES; count++) {
            double values[DOUBLES + 1];
            for (int i = 0; i <= DOUBLES; i++) values[i] = double_of(me, i + round);
            KD_TRY(r->comm->type->all_reduce_host(r->comm, values, count));
            for (int i = 0; i <= DOUBLES; i++) {
                double want = double_of(0, i + round);
                for (int k = 1; k < size; k++) want += double_of(k, i + round);
                if (i >= count) want = double_of(me, i + round);
                r->wrong |= memcmp(&want, &values[i], sizeof want) != 0;
            }
        }
        for (int root = 0; root < size; root++) {
            unsigned char bytes[BYTES + 1];
            memset(bytes, me, sizeof bytes);
            const kd_tensor t = host_tensor(bytes, KD_U8, BYTES);
            KD_TRY(r->comm->type->broadcast(r->comm, exec, &t, root));
            for (int i = 0; i < BYTES; i++) r->wrong |= bytes[i] != root;
            r->wrong |= bytes[BYTES] != me;
        }
        atomic_fetch_add(r->arrived, 1);
        KD_TRY(r->comm->type->barrier(r->comm));
        r->wrong |= atomic_load(r->arrived) < (round + 1) * size;
        KD_TRY(r->comm->type->barrier(r->comm));
        r->wrong |= atomic_load(r->arrived) < (round + 1) * size;
    }
    return KD_OK;
}

Test(threads, doubles_broadcast_and_barrier)
{
    for (int size = 1; size <= MAX_RANKS; size += size < 3 ? 1 : 5) {
        rank ranks[MAX_RANKS];
        atomic_int arrived = 0;
        open_ranks(ranks, size, 64);
        for (int r = 0; r < size; r++) ranks[r].arrived = &arrived;
        run_ranks(ranks, size, mixed_rounds);
        for (int r = 0; r < size; r++)
            cr_assert(ranks[r].status == KD_OK && !ranks[r].wrong, "rank %d of %d: wrong result %s",
                      r, size, ranks[r].message);
        close_ranks(ranks, size);
    }
}

/* ---- failures ------------------------------------------------------------------------------------ */

static kd_status wait_in(rank *r, kd_exec *exec, int kind)
{
    float value[3] = { 1.0f, 2.0f, 3.0f };
    double number = 1.0;
    const kd_tensor t = host_tensor(value, KD_F32, 3);
    switch (kind) {
    case 0: return r->comm->type->all_reduce(r->comm, exec, &t);
    case 1: return r->comm->type->all_reduce_host(r->comm, &number, 1);
    case 2: return r->comm->type->broadcast(r->comm, exec, &t, 0);
    default: return r->comm->type->barrier(r->comm);
    }
}

/* The last rank works for a while and stops; the others wait for it. */
static kd_status stop_or_wait(rank *r, kd_exec *exec)
{
    KD_TRY(r->comm->type->barrier(r->comm));
    if (r->comm->rank < r->comm->size - 1) return wait_in(r, exec, r->variant % 4);
    usleep(3000);
    if (r->variant < 4)
        r->comm->type->abort(r->comm);
    else
        kd_comm_close(r->comm);
    return KD_OK;
}

Test(threads, a_rank_that_stops_wakes_those_who_wait)
{
    for (int variant = 0; variant < 8; variant++) {
        enum { SIZE = 4 };
        rank ranks[SIZE];
        open_ranks(ranks, SIZE, 64);
        for (int r = 0; r < SIZE; r++) ranks[r].variant = variant;
        run_ranks(ranks, SIZE, stop_or_wait);
        for (int r = 0; r < SIZE - 1; r++)
            cr_assert(ranks[r].status == KD_EPEER && strstr(ranks[r].message, "rank 3 has stopped"),
                      "variant %d: rank %d has status %d, '%s'", variant, r, (int)ranks[r].status,
                      ranks[r].message);
        /* Once broken it stays so: nobody waits in vain. */
        cr_assert(ranks[0].comm->type->barrier(ranks[0].comm) == KD_EPEER, "variant %d", variant);
        close_ranks(ranks, variant < 4 ? SIZE : SIZE - 1);
    }
}

static kd_status disagree(rank *r, kd_exec *exec)
{
    const bool odd = r->comm->rank == 2;
    float values[4] = { 0.0f };
    const kd_tensor t = host_tensor(values, KD_F32, r->variant == 1 && odd ? 4 : 3);
    if (r->variant == 0 && odd) return r->comm->type->barrier(r->comm);
    if (r->variant == 2) return r->comm->type->broadcast(r->comm, exec, &t, odd ? 1 : 0);
    return r->comm->type->all_reduce(r->comm, exec, &t);
}

Test(threads, ranks_that_disagree_are_told)
{
    static const char *const found[] = { "rank 2 is in barrier of 0 (root 0)",
                                         "rank 2 is in all_reduce of 4 (root 0)",
                                         "rank 2 is in broadcast of 12 (root 1)" };
    for (int variant = 0; variant < 3; variant++) {
        rank ranks[3];
        open_ranks(ranks, 3, 64);
        for (int r = 0; r < 3; r++) ranks[r].variant = variant;
        run_ranks(ranks, 3, disagree);
        for (int r = 0; r < 3; r++)
            cr_assert(ranks[r].status == KD_EINTERNAL && strstr(ranks[r].message, found[variant]),
                      "variant %d: rank %d has status %d, '%s'", variant, r, (int)ranks[r].status,
                      ranks[r].message);
        close_ranks(ranks, 3);
    }
}

Test(threads, planning_returns_at_once_and_bad_tensors_are_refused)
{
    rank ranks[2];
    open_ranks(ranks, 2, 8);
    kd_comm *comm = ranks[0].comm;
    float values[18] = { 7.0f };
    kd_stack stack = { .planning = true };
    kd_exec exec = { .device = &host, .stack = &stack };
    kd_tensor t = host_tensor((void *)(uintptr_t)256, KD_F32, 1 << 20);
    cr_assert(comm->type->all_reduce(comm, &exec, &t) == KD_OK, "planning: %s", kd_last_error());
    cr_assert(comm->type->broadcast(comm, &exec, &t, 1) == KD_OK, "planning: %s", kd_last_error());

    /* Alone of two ranks: a call that is not refused would never return. */
    stack.planning = false;
    t = host_tensor(values, KD_F32, 9);
    cr_assert(comm->type->all_reduce(comm, &exec, &t) == KD_EINVAL, "9 elements of 8");
    t = host_tensor(values, KD_BF16, 4);
    cr_assert(comm->type->all_reduce(comm, &exec, &t) == KD_EINVAL, "bf16");
    t = host_tensor(values, KD_F32, 4);
    t.stride[0] = 2;
    cr_assert(comm->type->all_reduce(comm, &exec, &t) == KD_EINVAL, "strided");
    t = host_tensor(NULL, KD_F32, 4);
    cr_assert(comm->type->broadcast(comm, &exec, &t, 0) == KD_EINVAL, "absent");
    t = host_tensor(values, KD_F32, 4);
    cr_assert(comm->type->broadcast(comm, &exec, &t, 2) == KD_EINVAL, "root");
    kd_device gpu = { .type = &kd_device_cuda };
    exec.device = &gpu;
    cr_assert(comm->type->all_reduce(comm, &exec, &t) == KD_ENOTSUP, "another device");
    close_ranks(ranks, 2);
    kd_comm *none[1];
    cr_assert(kd_comm_threads(none, 0, 8) == KD_EINVAL, "no ranks");
}

Test(threads, a_group_of_one_changes_nothing)
{
    kd_comm *comm;
    cr_assert(kd_comm_solo(&comm) == KD_OK, "%s", kd_last_error());
    float values[3] = { 1.0f, -0.0f, 3.0f };
    const float before[3] = { 1.0f, -0.0f, 3.0f };
    double number = 0.1;
    kd_stack stack = { 0 };
    kd_exec exec = { .device = &host, .stack = &stack };
    const kd_tensor t = host_tensor(values, KD_F32, 3);
    cr_assert(comm->rank == 0 && comm->size == 1, "size");
    cr_assert(comm->type->all_reduce(comm, &exec, &t) == KD_OK, "all_reduce");
    cr_assert(comm->type->all_reduce_host(comm, &number, 1) == KD_OK && number == 0.1, "host");
    cr_assert(comm->type->broadcast(comm, &exec, &t, 0) == KD_OK, "broadcast");
    cr_assert(comm->type->broadcast(comm, &exec, &t, 1) == KD_EINVAL, "root");
    cr_assert(comm->type->barrier(comm) == KD_OK, "barrier");
    kd_stop_install();
    cr_assert(kd_comm_agree(comm, &number) == KD_OK && number == 0.1, "agree");
    (void)raise(SIGTERM);
    cr_assert(kd_comm_agree(comm, &number) == KD_ESTOPPED && number == 0.1, "agree to stop");
    kd_stop_reset();
    comm->type->abort(comm);
    cr_assert(memcmp(values, before, sizeof values) == 0, "values");
    kd_comm_close(comm);
    kd_comm_close(NULL);
}

/* ---- buckets ------------------------------------------------------------------------------------- */

/* A comm that adds 1 to each element it is given, and compares when that is with when it could be. */
typedef struct counter {
    kd_comm base;
    const kd_slab *slab;
    int done, calls; /* block that is being announced */
    bool early, late;
} counter;

static kd_status count_reduce(kd_comm *comm, kd_exec *exec, const kd_tensor *t)
{
    counter *c = (counter *)comm;
    (void)exec;
    const kd_params *params = &c->slab->params;
    const int64_t begin = (float *)t->data - (float *)c->slab->gradients.data;
    int lowest = INT_MAX;
    for (int p = 0; p < params->count; p++) {
        const int64_t at = params->items[p].offset;
        const bool inside = at >= begin && at < begin + t->shape[0];
        if (inside && params->items[p].block < lowest) lowest = params->items[p].block;
    }
    c->early |= lowest < c->done;
    c->late |= lowest > c->done;
    for (int64_t i = 0; i < t->shape[0]; i++) ((float *)t->data)[i] += 1.0f;
    c->calls++;
    return KD_OK;
}

/* Layouts of `blocks` blocks: 0 ascending, 1 with what follows the last block declared first, 2 with
 * everything scattered. */
static void declare(kd_slab *slab, kd_arena *arena, int blocks, int layout)
{
    *slab = (kd_slab){ .params = { .arena = arena }, .dtype = KD_F32, .trainable = true };
    int index;
    const int per_block = 3, count = (blocks + 2) * per_block;
    for (int i = 0; i < count; i++) {
        int block = i / per_block - 1;
        if (layout == 1) block = i < per_block ? blocks : block - 1;
        if (layout == 2) block = i % (blocks + 2) - 1;
        const int64_t n = 1 + (i * 397) % 1500;
        cr_assert(kd_params_declare(&index, &slab->params, "w", KD_SHAPE(n), 0, block) == KD_OK,
                  "%s", kd_last_error());
    }
    kd_params_layout(&slab->params);
    const int64_t n = slab->params.elements;
    slab->gradients = host_tensor(calloc((size_t)n, sizeof(float)), KD_F32, n);
}

static void check_buckets(kd_arena *arena, int blocks, int layout, int64_t min_elements)
{
    static const kd_comm_type counting = { .name = "counter", .all_reduce = count_reduce };
    kd_slab slab;
    declare(&slab, arena, blocks, layout);
    counter c = { .base = { .type = &counting, .size = 1 }, .slab = &slab };
    kd_buckets buckets;
    cr_assert(kd_buckets_create(&buckets, arena, &c.base, &slab, min_elements) == KD_OK, "%s",
              kd_last_error());
    kd_stack stack = { 0 };
    kd_exec exec = { .device = &host, .stack = &stack };
    for (c.done = blocks; c.done >= -1; c.done--)
        cr_assert(kd_buckets_ready(&buckets, &exec, c.done) == KD_OK, "%s", kd_last_error());
    cr_assert(!c.early && !c.late, "%d blocks, layout %d, at least %lld: reduced %s", blocks,
              layout, (long long)min_elements, c.early ? "before its block was done" : "late");
    cr_assert(c.calls == buckets.count && c.calls > 0, "%d calls, %d buckets", c.calls,
              buckets.count);
    for (int64_t i = 0; i < slab.params.elements; i++)
        cr_assert(((float *)slab.gradients.data)[i] == 1.0f,
                  "%d blocks, layout %d, at least %lld: element %lld reduced %g times", blocks,
                  layout, (long long)min_elements, (long long)i,
                  (double)((float *)slab.gradients.data)[i]);
    for (int b = 0; b < buckets.count && buckets.count > 1; b++)
        cr_assert(buckets.items[b].end - buckets.items[b].begin >= min_elements,
                  "%d blocks, layout %d: bucket %d is smaller than %lld", blocks, layout, b,
                  (long long)min_elements);
    if (layout == 0 && min_elements <= 1)
        cr_assert(buckets.count == blocks + 2, "%d blocks: %d buckets", blocks, buckets.count);
    if (min_elements > slab.params.elements) cr_assert(buckets.count == 1, "one bucket");
    free(slab.gradients.data);
}

Test(buckets, reduce_every_element_once_and_none_early)
{
    static const int64_t least[] = { 0, 1, 257, 3000, 20000, INT64_C(1) << 40 };
    kd_arena *arena;
    cr_assert(kd_arena_create(&arena) == KD_OK, "%s", kd_last_error());
    for (int blocks = 0; blocks <= 9; blocks++)
        for (int layout = 0; layout < 3; layout++)
            for (int k = 0; k < KD_COUNT(least); k++)
                check_buckets(arena, blocks, layout, least[k]);
    kd_slab frozen = { .dtype = KD_F32 };
    kd_buckets buckets;
    cr_assert(kd_buckets_create(&buckets, arena, NULL, &frozen, 1) == KD_EINVAL, "frozen slab");
    kd_arena_destroy(arena);
}
