/*
 * Ranks with a GPU each, here threads: sums, broadcasts and barriers, as they are and recorded in a
 * graph; a rank that is gone ends the others' waiting; what fails is named.  Needs as many devices as
 * ranks.
 */
#include "support/ranks.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_RANKS = TEST_MAX_RANKS, MOST = 4099, GUARD = 16, ROUNDS = 3 };

typedef test_rank rank;

/* Magnitudes from 1e-4 to 1e4, so that a sum in another order has other bits. */
static float value_of(int r, int64_t i)
{
    const double exponent = kd_random_uniform(5, (uint64_t)r, (uint64_t)(2 * i)) * 27 - 13;
    const double mantissa = kd_random_uniform(5, (uint64_t)r, (uint64_t)(2 * i + 1)) - 0.5;
    return (float)(mantissa * exp2(exponent));
}

static kd_tensor part(const rank *r, int64_t at, int64_t n)
{
    return kd_tensor_of(r->memory + at, KD_F32, KD_SHAPE(n));
}

/* ---- sums -------------------------------------------------------------------------------------- */

static kd_status reduce_and_join(rank *r)
{
    const kd_tensor t = part(r, GUARD, r->count);
    KD_TRY(r->comm->type->all_reduce(r->comm, &r->exec, &t));
    return kd_comm_join(r->comm, &r->exec);
}

static kd_status record(rank *r, kd_graph **graph)
{
    KD_TRY(kd_capture_begin(&r->exec));
    const kd_status status = reduce_and_join(r), ended = kd_capture_end(graph, &r->exec);
    return status == KD_OK ? ended : status;
}

/* On a GPU NCCL adds in an order of its own. */
static bool is_sum(float got, int size, int64_t i)
{
    float sum = value_of(0, i), scale = fabsf(sum);
    for (int r = 1; r < size; r++) {
        sum += value_of(r, i);
        scale += fabsf(value_of(r, i));
    }
    return EMULATED ? memcmp(&got, &sum, sizeof sum) == 0 : fabsf(got - sum) <= 1e-6f * scale;
}

static kd_status check_sum(rank *r)
{
    static _Thread_local float values[MOST + 2 * GUARD];
    const int64_t n = r->count;
    const kd_tensor all = part(r, 0, n + 2 * GUARD);
    KD_TRY(kd_download(&r->exec, values, &all));
    KD_TRY(kd_sync(&r->exec));
    for (int64_t i = 0; i < n; i++) r->wrong |= !is_sum(values[GUARD + i], r->size, i);
    for (int i = 0; i < GUARD; i++) r->wrong |= !isnan(values[i]) || !isnan(values[GUARD + n + i]);
    return KD_OK;
}

/* The first round as it is, which a recording needs before it; then recorded, twice. */
static kd_status sum_rounds(rank *r, const float *mine)
{
    kd_graph *graph = NULL;
    kd_status status = KD_OK;
    for (int round = 0; round < ROUNDS; round++) {
        const kd_tensor t = part(r, GUARD, r->count);
        if (round == 1) KD_TRY_GOTO(record(r, &graph), status, done);
        KD_TRY_GOTO(r->device->type->fill(r->device, NULL, r->memory, 0xff,
                                          (size_t)(r->count + 2 * GUARD) * sizeof *mine),
                    status, done);
        KD_TRY_GOTO(kd_upload(&r->exec, &t, mine), status, done);
        KD_TRY_GOTO(graph ? kd_graph_launch(&r->exec, graph) : reduce_and_join(r), status, done);
        KD_TRY_GOTO(check_sum(r), status, done);
    }
done:
    kd_graph_destroy(r->device, graph);
    return status;
}

static kd_status sums(rank *r)
{
    static const int64_t lengths[] = { 1, 2, 3, 17, 255, 513, MOST };
    static _Thread_local float mine[MOST];
    for (int64_t i = 0; i < MOST; i++) mine[i] = value_of(r->number, i);
    for (int k = 0; k < KD_COUNT(lengths); k++) {
        r->count = lengths[k];
        KD_TRY(sum_rounds(r, mine));
    }
    return KD_OK;
}

Test(nccl, sums_are_those_of_all_ranks_recorded_or_not)
{
    const int devices = test_require_ranks(2);
    for (int size = 1; size <= MAX_RANKS && size <= devices; size++) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        test_ranks_run(ranks, size, sums);
        test_ranks_good(ranks, size, "sums");
    }
}

/* ---- doubles, broadcast, barrier --------------------------------------------------------------- */

static kd_status host_sums(rank *r)
{
    static const int counts[] = { 0, 1, 5, 64, 65, 131 };
    for (int k = 0; k < KD_COUNT(counts); k++) {
        double values[131 + 1];
        for (int i = 0; i < KD_COUNT(values); i++) values[i] = value_of(r->number, i) * 1e-7;
        KD_TRY(r->comm->type->all_reduce_host(r->comm, values, counts[k]));
        for (int i = 0; i < KD_COUNT(values); i++) {
            double want = 0, scale = 0;
            for (int o = 0; o < r->size; o++) {
                const double term = value_of(o, i) * 1e-7;
                want += term;
                scale += fabs(term);
            }
            if (i >= counts[k]) want = value_of(r->number, i) * 1e-7;
            r->wrong |= !(fabs(values[i] - want) <= 4e-16 * scale);
        }
    }
    return KD_OK;
}

static kd_status broadcasts(rank *r)
{
    enum { BYTES = 37 };
    for (int root = 0; root < r->size; root++) {
        unsigned char bytes[BYTES + 1];
        const kd_tensor t = kd_tensor_of(r->memory, KD_U8, KD_SHAPE(BYTES));
        const kd_tensor all = kd_tensor_of(r->memory, KD_U8, KD_SHAPE(BYTES + 1));
        KD_TRY(r->device->type->fill(r->device, NULL, r->memory, r->number, BYTES + 1));
        KD_TRY(r->comm->type->broadcast(r->comm, &r->exec, &t, root));
        KD_TRY(kd_download(&r->exec, bytes, &all));
        KD_TRY(kd_sync(&r->exec));
        for (int i = 0; i < BYTES; i++) r->wrong |= bytes[i] != root;
        r->wrong |= bytes[BYTES] != r->number;
    }
    return KD_OK;
}

static kd_status mixed(rank *r)
{
    for (int round = 0; round < ROUNDS; round++) {
        KD_TRY(host_sums(r));
        KD_TRY(broadcasts(r));
        atomic_fetch_add(r->arrived, 1);
        KD_TRY(r->comm->type->barrier(r->comm));
        r->wrong |= atomic_load(r->arrived) < (round + 1) * r->size;
    }
    return KD_OK;
}

Test(nccl, doubles_broadcast_and_barrier)
{
    const int devices = test_require_ranks(2);
    for (int size = 1; size <= MAX_RANKS && size <= devices; size++) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        atomic_int arrived = 0;
        for (int r = 0; r < size; r++) ranks[r].arrived = &arrived;
        test_ranks_run(ranks, size, mixed);
        test_ranks_good(ranks, size, "mixed");
    }
}

/* ---- a rank that is gone ----------------------------------------------------------------------- */

static kd_status wait_in(rank *r, int kind)
{
    double number = 1.0;
    const kd_tensor t = part(r, 0, 3);
    if (kind == 1) return r->comm->type->all_reduce_host(r->comm, &number, 1);
    if (kind == 2) return r->comm->type->barrier(r->comm);
    if (kind == 3) KD_TRY(r->comm->type->broadcast(r->comm, &r->exec, &t, 0));
    if (kind == 0) KD_TRY(r->comm->type->all_reduce(r->comm, &r->exec, &t));
    kd_event *event;
    KD_TRY(kd_event_create(&event, r->device));
    kd_status status = kd_comm_join(r->comm, &r->exec);
    if (status == KD_OK) status = kd_event_record(&r->exec, event);
    if (status == KD_OK) status = kd_comm_wait(r->comm, r->device, event);
    kd_event_destroy(r->device, event);
    return status;
}

typedef struct stop {
    int kind;  /* of what the others wait in */
    bool says; /* the last rank aborts; else it is silent */
} stop;

static const stop stops[] = { { 0, true }, { 1, true }, { 0, false }, { 2, false }, { 3, false } };

static kd_status stop_or_wait(rank *r)
{
    const stop *s = &stops[r->variant];
    KD_TRY(r->comm->type->barrier(r->comm));
    if (r->number < r->size - 1) return wait_in(r, s->kind);
    if (s->says) r->comm->type->abort(r->comm);
    return KD_OK;
}

/* The emulator loses patience before the group does, and a device that it breaks stays broken. */
Test(nccl, a_rank_that_stops_ends_the_waiting_of_the_others)
{
    enum { SIZE = 3 };
    if (!EMULATED)
        cr_skip_test("skipped: on a GPU the ranks would wait for %d s", TEST_RANK_SECONDS);
    test_require_ranks(SIZE);
    cudasim_set("KD_SIM_DEVICES", "16");
    cudasim_set("KD_SIM_TIMEOUT", "1");
    for (int v = 0; v < KD_COUNT(stops); v++) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        const double start = kd_clock();
        for (int r = 0; r < SIZE; r++) ranks[r].variant = v, ranks[r].first = v * SIZE;
        test_ranks_run(ranks, SIZE, stop_or_wait);
        for (int r = 0; r < SIZE - 1; r++) {
            char who[32];
            snprintf(who, sizeof who, "cuda:%d, rank %d of 3: ", v * SIZE + r, r);
            cr_assert(ranks[r].status == KD_EPEER && strstr(ranks[r].message, who),
                      "variant %d: rank %d: %s: %s", v, r, kd_status_text(ranks[r].status),
                      ranks[r].message);
        }
        cr_assert(kd_clock() - start < 30, "variant %d: %g s", v, kd_clock() - start);
    }
}

/* One rank of two does not come; one alone does not get its answer at once. */
Test(nccl, waiting_ends_after_the_timeout)
{
    test_require_ranks(1);
    cudasim_set("KD_SIM_ASYNC", "lazy");
    rank r = { .size = 0 };
    kd_nccl_id id;
    double number = 1.0;
    test_ok(kd_device_open(&r.device, "cuda"));
    test_ok(kd_nccl_id_create(&id));
    test_refused(kd_comm_nccl(&r.comm, r.device, 0, 2, &id, 0.05), KD_EPEER,
                 "cuda:0, rank 0 of 2: ncclCommInitRankConfig: the other ranks did not answer "
                 "within 0.05 s");
    if (EMULATED) { /* joins at the first question; on a GPU it may not */
        test_ok(kd_nccl_id_create(&id));
        test_ok(kd_comm_nccl(&r.comm, r.device, 0, 1, &id, 1e-9));
        test_refused(r.comm->type->all_reduce_host(r.comm, &number, 1), KD_EPEER,
                     "cuda:0, rank 0 of 1: collective: the other ranks did not answer within "
                     "1e-09 s");
        test_refused(r.comm->type->barrier(r.comm), KD_EPEER, "collective: ");
        kd_comm_close(r.comm);
    }
    kd_device_close(r.device);
}

/* ---- what is refused, and what fails ------------------------------------------------------------ */

Test(nccl, what_it_cannot_do_is_refused)
{
    test_require_ranks(1);
    kd_nccl_id id;
    kd_device *cpu;
    kd_comm *none;
    rank r = { .number = 0, .size = 1, .id = &id };
    test_ok(kd_nccl_id_create(&id));
    test_ok(kd_device_open(&cpu, "cpu"));
    test_ok(test_rank_open(&r));
    const kd_comm_type *type = r.comm->type;
    test_refused(kd_comm_nccl(&none, cpu, 0, 1, &id, 1), KD_ENOTSUP, "found cpu");
    test_refused(kd_comm_nccl(&none, r.device, 2, 2, &id, 1), KD_EINVAL, "rank 2 of 2");
    test_refused(kd_comm_nccl(&none, r.device, 0, 1, &id, 0), KD_EINVAL, "timeout 0 s");
    kd_tensor t = kd_tensor_of(r.memory, KD_BF16, KD_SHAPE(4));
    test_refused(type->all_reduce(r.comm, &r.exec, &t), KD_EINVAL, "expected f32");
    t = part(&r, 0, 4);
    test_refused(type->broadcast(r.comm, &r.exec, &t, 1), KD_EINVAL, "root 1");
    t.stride[0] = 2;
    test_refused(type->all_reduce(r.comm, &r.exec, &t), KD_EINVAL, "strided");
    kd_exec other = { .device = cpu, .stack = &r.stack };
    test_refused(type->broadcast(r.comm, &other, &t, 0), KD_EINVAL, "a tensor on cpu:0");
    r.stack.planning = true;
    test_ok(type->all_reduce(r.comm, &other, &t));
    test_ok(kd_comm_join(r.comm, &other));
    test_rank_close(&r);
    kd_device_close(cpu);
}

static kd_status join_and_use(rank *r)
{
    KD_TRY(test_rank_open(r));
    KD_TRY(wait_in(r, 3));
    KD_TRY(wait_in(r, 0));
    return r->comm->type->barrier(r->comm);
}

Test(nccl, names_the_call_that_fails)
{
    static const struct {
        const char *setting, *said;
        kd_status status;
    } cases[] = {
        { "ncclCommInitRankConfig:1", "ncclCommInitRankConfig: unhandled system error",
          KD_EDEVICE },
        { "ncclAllReduce:1", "rank 0 of 1: ncclAllReduce: unhandled system error: asked for by",
          KD_EDEVICE },
        { "ncclAllReduce:2", "rank 0 of 1: ncclAllReduce", KD_EDEVICE },
        { "ncclBroadcast:1:3", "ncclBroadcast: internal error", KD_EDEVICE },
        { "ncclBroadcast:1:6", "ncclBroadcast: remote process exited", KD_EPEER },
        { "ncclCommGetAsyncError:3", "ncclCommGetAsyncError: ", KD_EDEVICE },
        { "cudaEventQuery:1", ": cudaEventQuery: ", KD_EDEVICE },
        { "cudaStreamWaitEvent:1", ": cudaStreamWaitEvent: ", KD_EDEVICE },
        { "cudaMemcpyAsync:2", ": cudaMemcpyAsync: ", KD_EDEVICE },
        { "ncclCommFinalize:1", "", KD_OK },
    };
    if (!EMULATED) cr_skip_test("skipped: only the emulator fails when it is asked to");
    test_require_ranks(1);
    cudasim_set("KD_SIM_DEVICES", "16"); /* lazily an abort breaks one */
    for (int i = 0; i < KD_COUNT(cases); i++) {
        kd_nccl_id id;
        test_ok(kd_nccl_id_create(&id));
        rank r = { .first = i, .size = 1, .id = &id };
        char where[16];
        snprintf(where, sizeof where, "cuda:%d", i);
        cudasim_set("KD_SIM_FAIL", cases[i].setting);
        const kd_status status = join_and_use(&r);
        cr_assert(status == cases[i].status &&
                      (!status ||
                       (strstr(kd_last_error(), cases[i].said) && strstr(kd_last_error(), where))),
                  "%s: %s: %s", cases[i].setting, kd_status_text(status), kd_last_error());
        test_rank_close(&r);
        cudasim_set("KD_SIM_FAIL", "");
    }
    cudasim_set("KD_SIM_FAIL", "ncclGetUniqueId:1");
    test_refused(kd_nccl_id_create(&(kd_nccl_id){ "" }), KD_EDEVICE, "ncclGetUniqueId: ");
}

/* ---- ranks that disagree ----------------------------------------------------------------------- */

static kd_status disagree(rank *r)
{
    r->count = 3 + r->number;
    KD_TRY(reduce_and_join(r));
    return check_sum(r);
}

/* NCCL itself does not look; the emulator ends the process. */
Test(nccl, ranks_that_sum_other_counts_are_found)
{
    char text[1024] = "";
    int ends[2], how;
    if (!EMULATED) cr_skip_test("skipped: only the emulator compares what ranks call");
    setenv("KD_SIM_DEVICES", "2", 1);
    if (kd_nccl_id_create(&(kd_nccl_id){ "" }) == KD_ENOTSUP) cr_skip_test("%s", kd_last_error());
    cr_assert(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        dup2(ends[1], STDERR_FILENO);
        test_ranks_run(ranks, 2, disagree);
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n; (n = read(ends[0], text + used, sizeof text - 1 - used)) > 0;)
        used += (size_t)n;
    close(ends[0]);
    cr_assert(waitpid(child, &how, 0) == child);
    cr_assert(WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT && strstr(text, "ranks disagree") &&
                  strstr(text, "AllReduce of 3") && strstr(text, "AllReduce of 4"),
              "ended with %d: %s", how, text);
}
