/*
 * Ranks with a GPU each, here threads: sums, broadcasts and barriers, as they are and recorded in a
 * graph; a step on 2 and 4 ranks is a step on one; a rank that is gone ends the others' waiting.
 * Needs as many devices as ranks.
 */
#include "support/lesson.h"
#include "support/support.h"
#include "support/text_file.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#if __has_include(<cudasim.h>)
#include <cudasim.h>
enum { EMULATED = 1 };
#else
enum { EMULATED = 0 };
static void cudasim_set(const char *name, const char *value) { (void)name, (void)value; }
#endif

enum { MAX_RANKS = 4, MOST = 4099, GUARD = 16, ROUNDS = 3, PATIENCE = 100 };

/* ---- ranks ------------------------------------------------------------------------------------- */

typedef struct rank rank;
typedef kd_status (*rank_body)(rank *r);

struct rank {
    int number, size, variant;
    int first; /* device, of rank 0 */
    const kd_nccl_id *id;
    rank_body body;
    kd_device *device;
    kd_comm *comm;
    kd_stack stack;
    kd_exec exec;
    float *memory; /* [MOST + 2 GUARD] of the device */
    int64_t count; /* what the body works on */
    atomic_int *arrived;
    void *context;
    bool wrong;
    kd_status status;
    char message[512];
};

/* Of value_of a rank's; magnitudes from 1e-4 to 1e4, so that a sum in another order has other bits. */
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

static kd_status open_rank(rank *r)
{
    char name[16];
    void *memory;
    snprintf(name, sizeof name, "cuda:%d", r->first + r->number);
    KD_TRY(kd_device_open(&r->device, name));
    r->exec = (kd_exec){ .device = r->device, .stack = &r->stack };
    KD_TRY(kd_device_alloc(&memory, r->device, (MOST + 2 * GUARD) * sizeof(float), "test"));
    r->memory = memory;
    return kd_comm_nccl(&r->comm, r->device, r->number, r->size, r->id, PATIENCE);
}

static void close_rank(rank *r)
{
    kd_comm_close(r->comm);
    if (!r->device) return;
    kd_device_release(r->device, r->memory);
    kd_device_close(r->device);
}

/* Assertions belong to the main thread: a rank keeps what it saw. */
static void *run_rank(void *context)
{
    rank *r = context;
    r->status = open_rank(r);
    if (r->status == KD_OK) r->status = r->body(r);
    if (r->status == KD_OK) return NULL;
    snprintf(r->message, sizeof r->message, "%s", kd_last_error());
    if (r->comm) r->comm->type->abort(r->comm); /* the others wait for this rank */
    return NULL;
}

/* They are closed by the main thread: one that stopped stays silent until then. */
static void run_ranks(rank *ranks, int size, rank_body body)
{
    pthread_t threads[MAX_RANKS];
    kd_nccl_id id;
    test_ok(kd_nccl_id_create(&id));
    for (int r = 0; r < size; r++) {
        ranks[r].number = r;
        ranks[r].size = size;
        ranks[r].id = &id;
        ranks[r].body = body;
        cr_assert(pthread_create(&threads[r], NULL, run_rank, &ranks[r]) == 0);
    }
    for (int r = 0; r < size; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < size; r++) close_rank(&ranks[r]);
}

static void expect_good(const rank *ranks, int size, const char *what)
{
    for (int r = 0; r < size; r++)
        cr_assert(ranks[r].status == KD_OK && !ranks[r].wrong, "%s: rank %d of %d: %s", what, r,
                  size, ranks[r].status == KD_OK ? "wrong result" : ranks[r].message);
}

/* Devices for `size` ranks, or the test is skipped. */
static void require_ranks(int size)
{
    kd_device *device;
    kd_nccl_id id;
    if (EMULATED) setenv("KD_SIM_DEVICES", "4", 1);
    if (kd_device_cuda.count() < size) cr_skip_test("found fewer than %d CUDA devices", size);
    if (kd_nccl_id_create(&id) == KD_ENOTSUP) cr_skip_test("%s", kd_last_error());
    if (kd_device_open(&device, "cuda") == KD_ENOTSUP) cr_skip_test("%s", kd_last_error());
    test_ok(kd_device_open(&device, "cuda"));
    kd_device_close(device);
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
    require_ranks(2);
    const int devices = kd_device_cuda.count();
    for (int size = 1; size <= MAX_RANKS && size <= devices; size++) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        run_ranks(ranks, size, sums);
        expect_good(ranks, size, "sums");
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
    require_ranks(2);
    const int devices = kd_device_cuda.count();
    for (int size = 1; size <= MAX_RANKS && size <= devices; size++) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        atomic_int arrived = 0;
        for (int r = 0; r < size; r++) ranks[r].arrived = &arrived;
        run_ranks(ranks, size, mixed);
        expect_good(ranks, size, "mixed");
    }
}

/* ---- steps ------------------------------------------------------------------------------------- */

enum { STEPS = 4, SEQUENCE = 10, SAMPLES = 8, CLASSES = 61, TOKENS = 400 };

/* Every micro-batch counts another number of rows. */
static const char *write_tokens(void)
{
    static int64_t tokens[TOKENS], borders[TOKENS + 1];
    static uint8_t mask[TOKENS];
    int64_t documents = 0;
    for (int64_t i = 0; i < TOKENS; i++) {
        tokens[i] = (int64_t)(kd_random_uniform(4, 1, (uint64_t)i) * CLASSES);
        mask[i] = i % 60 < 40;
        if (kd_random_uniform(4, 2, (uint64_t)i) < 0.1 && i > 0) borders[++documents] = i;
    }
    borders[++documents] = TOKENS;
    return test_text_write("nccl", &(test_text){ .dtype = "U16",
                                                 .tokens = tokens,
                                                 .count = TOKENS,
                                                 .documents = borders,
                                                 .borders = documents + 1,
                                                 .mask = mask,
                                                 .mask_count = TOKENS });
}

typedef struct lesson {
    const char *path;
    int64_t micro, bucket;
    double lr;
    test_lesson at;
    kd_loader *loader;
    double loss[STEPS];
    float *gradient[STEPS];
    unsigned char *bits; /* of the student, after the last step */
    size_t bytes;
} lesson;

static kd_status open_lesson(lesson *l, const rank *r)
{
    const test_lesson_options options = {
        .models = { { .seed = 1, .layers = 3 },
                    { .seed = 2, .family = "qwen3", .tied = true, .trainable = true } },
        .count = 2,
        .rows = l->micro * SEQUENCE,
        .chunk = 7,
        .bucket = l->bucket,
        .steps = STEPS,
        .lr = l->lr,
        .comm = r->comm,
        .on = r->device,
    };
    const kd_loader_options data = { .files = { l->path },
                                     .weights = { 1 },
                                     .sources = 1,
                                     .vocabulary = CLASSES,
                                     .sequence = SEQUENCE,
                                     .step_samples = SAMPLES,
                                     .micro_samples = l->micro,
                                     .rank = r->number,
                                     .ranks = r->size,
                                     .seed = 6 };
    KD_TRY(kd_loader_open(&l->loader, &data));
    return test_lesson_open(&l->at, &options);
}

static void close_lesson(lesson *l)
{
    test_lesson_close(&l->at);
    kd_loader_close(l->loader);
    l->loader = NULL;
}

static kd_status take_step(lesson *l, int64_t step)
{
    const kd_step_batch *batch;
    kd_step_result result;
    KD_TRY(kd_loader_next(&batch, l->loader, NULL));
    KD_TRY(test_lesson_step(&l->at, &result, batch, step));
    l->loss[step] = result.student[1].loss;
    l->gradient[step] = test_lesson_gradient(&l->at, 1);
    return KD_OK;
}

static kd_status train(rank *r)
{
    lesson *l = r->context;
    kd_status status = open_lesson(l, r);
    for (int64_t step = 0; step < STEPS && status == KD_OK; step++) status = take_step(l, step);
    if (status == KD_OK) l->bits = test_lesson_bits(&l->at, &l->bytes);
    close_lesson(l);
    return status;
}

static void free_lesson(lesson *l)
{
    for (int step = 0; step < STEPS; step++) free(l->gradient[step]);
    free(l->bits);
}

static void train_ranks(lesson *lessons, int size, int64_t micro, double lr, const char *graphs)
{
    rank ranks[MAX_RANKS] = { { .size = 0 } };
    const char *path = write_tokens();
    setenv("KD_GRAPHS", graphs, 1);
    for (int r = 0; r < size; r++) {
        lessons[r] = (lesson){ .path = path, .micro = micro, .bucket = size, .lr = lr };
        ranks[r].context = &lessons[r];
    }
    run_ranks(ranks, size, train);
    expect_good(ranks, size, "training");
}

/* A rate so small that no weight moves: each step's gradient is that of the same student. */
static const double still = 1e-30;

static void compare_gradients(const lesson *got, const lesson *want, const kd_model *model,
                              int size)
{
    for (int step = 0; step < STEPS; step++) {
        cr_assert(fabs(got->loss[step] - want->loss[step]) <= 1e-6 * fabs(want->loss[step]),
                  "%d ranks, step %d: loss %.9g, expected %.9g", size, step, got->loss[step],
                  want->loss[step]);
        test_near_gradient(got->gradient[step], model, want->gradient[step], model, 1e-6,
                           "%d ranks, step %d", size, step);
    }
}

Test(nccl, steps_on_ranks_have_the_gradient_of_one_rank)
{
    static const int sizes[] = { 2, 4 };
    lesson alone, layout = { .path = write_tokens(), .micro = 1, .lr = still };
    require_ranks(2);
    const int devices = kd_device_cuda.count();
    train_ranks(&alone, 1, SAMPLES, still, "1");
    test_ok(open_lesson(&layout, &(rank){ .size = 1 }));
    for (int k = 0; k < KD_COUNT(sizes) && sizes[k] <= devices; k++) {
        const int size = sizes[k];
        lesson lessons[MAX_RANKS];
        train_ranks(lessons, size, SAMPLES / size / 2, still, "1");
        for (int r = 0; r < size; r++)
            compare_gradients(&lessons[r], &alone, layout.at.models[1], size);
        for (int r = 0; r < size; r++) free_lesson(&lessons[r]);
    }
    close_lesson(&layout);
    free_lesson(&alone);
    test_text_remove();
}

Test(nccl, ranks_have_the_same_bits_with_and_without_graphs)
{
    static const int sizes[] = { 2, 4 };
    require_ranks(2);
    const int devices = kd_device_cuda.count();
    for (int k = 0; k < KD_COUNT(sizes) && sizes[k] <= devices; k++) {
        lesson with[MAX_RANKS], without[MAX_RANKS];
        const int size = sizes[k];
        train_ranks(with, size, 1, 0.01, "1");
        train_ranks(without, size, 1, 0.01, "0");
        for (int r = 0; r < size; r++) {
            cr_assert(memcmp(with[r].bits, with[0].bits, with[0].bytes) == 0,
                      "%d ranks: rank %d has other bits than rank 0", size, r);
            cr_assert(memcmp(with[r].bits, without[r].bits, with[r].bytes) == 0,
                      "%d ranks: rank %d has other bits without graphs", size, r);
        }
        for (int r = 0; r < size; r++) free_lesson(&with[r]), free_lesson(&without[r]);
    }
    test_text_remove();
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
    if (!EMULATED) cr_skip_test("skipped: on a GPU the ranks would wait for %d s", PATIENCE);
    require_ranks(SIZE);
    cudasim_set("KD_SIM_DEVICES", "16");
    cudasim_set("KD_SIM_TIMEOUT", "1");
    for (int v = 0; v < KD_COUNT(stops); v++) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        const double start = kd_clock();
        for (int r = 0; r < SIZE; r++) ranks[r].variant = v, ranks[r].first = v * SIZE;
        run_ranks(ranks, SIZE, stop_or_wait);
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

/* The last rank is there when the step begins, and is no longer when gradients are summed. */
static kd_status train_or_vanish(rank *r)
{
    lesson *l = r->context;
    double valid = 1.0;
    kd_status status = open_lesson(l, r);
    for (int64_t step = 0; step < STEPS && status == KD_OK; step++)
        if (step < STEPS - 1 || r->number < r->size - 1)
            status = take_step(l, step);
        else
            status = r->comm->type->all_reduce_host(r->comm, &valid, 1);
    close_lesson(l);
    return status;
}

/* Late streams: the step is enqueued whole, and found broken where its result is waited for. */
Test(nccl, a_rank_that_vanishes_in_a_step_ends_the_others)
{
    enum { SIZE = 2 };
    if (!EMULATED) cr_skip_test("skipped: on a GPU the ranks would wait for %d s", PATIENCE);
    require_ranks(SIZE);
    cudasim_set("KD_SIM_TIMEOUT", "1");
    cudasim_set("KD_SIM_ASYNC", "lazy");
    rank ranks[MAX_RANKS] = { { .size = 0 } };
    lesson lessons[SIZE];
    const char *path = write_tokens();
    for (int r = 0; r < SIZE; r++) {
        lessons[r] = (lesson){ .path = path, .micro = 2, .bucket = 1 };
        ranks[r].context = &lessons[r];
    }
    run_ranks(ranks, SIZE, train_or_vanish);
    cr_assert(ranks[0].status == KD_EPEER && strncmp(ranks[0].message, "step 3: ", 8) == 0 &&
                  strstr(ranks[0].message, "cuda:0, rank 0 of 2: "),
              "rank 0: %s: %s", kd_status_text(ranks[0].status), ranks[0].message);
    cr_assert(ranks[1].status == KD_OK, "rank 1: %s", ranks[1].message);
    for (int r = 0; r < SIZE; r++) free_lesson(&lessons[r]);
    test_text_remove();
}

/* One rank of two does not come; one alone does not get its answer at once. */
Test(nccl, waiting_ends_after_the_timeout)
{
    require_ranks(1);
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
    require_ranks(1);
    kd_nccl_id id;
    kd_device *cpu;
    kd_comm *none;
    rank r = { .number = 0, .size = 1, .id = &id };
    test_ok(kd_nccl_id_create(&id));
    test_ok(kd_device_open(&cpu, "cpu"));
    test_ok(open_rank(&r));
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
    close_rank(&r);
    kd_device_close(cpu);
}

static kd_status join_and_use(rank *r)
{
    KD_TRY(open_rank(r));
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
        { "ncclAllReduce:1", "cuda:0, rank 0 of 1: ncclAllReduce: unhandled system error: asked",
          KD_EDEVICE },
        { "ncclAllReduce:2", "rank 0 of 1: ncclAllReduce", KD_EDEVICE },
        { "ncclBroadcast:1:3", "ncclBroadcast: internal error", KD_EDEVICE },
        { "ncclBroadcast:1:6", "ncclBroadcast: remote process exited", KD_EPEER },
        { "ncclCommGetAsyncError:3", "ncclCommGetAsyncError: ", KD_EDEVICE },
        { "cudaEventQuery:1", "cuda:0: cudaEventQuery: ", KD_EDEVICE },
        { "cudaStreamWaitEvent:1", "cuda:0: cudaStreamWaitEvent: ", KD_EDEVICE },
        { "cudaMemcpyAsync:2", "cuda:0: cudaMemcpyAsync: ", KD_EDEVICE },
        { "ncclCommFinalize:1", "", KD_OK },
        { "ncclCommDestroy:1", "", KD_OK },
    };
    if (!EMULATED) cr_skip_test("skipped: only the emulator fails when it is asked to");
    require_ranks(1);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        kd_nccl_id id;
        test_ok(kd_nccl_id_create(&id));
        rank r = { .number = 0, .size = 1, .id = &id };
        cudasim_set("KD_SIM_FAIL", cases[i].setting);
        const kd_status status = join_and_use(&r);
        cr_assert(status == cases[i].status && (!status || strstr(kd_last_error(), cases[i].said)),
                  "%s: %s: %s", cases[i].setting, kd_status_text(status), kd_last_error());
        close_rank(&r);
        cudasim_set("KD_SIM_FAIL", "");
    }
    cudasim_set("KD_SIM_FAIL", "ncclGetUniqueId:1");
    test_refused(kd_nccl_id_create(&(kd_nccl_id){ "" }), KD_EDEVICE, "ncclGetUniqueId: ");
}

/* ---- ranks that disagree ----------------------------------------------------------------------- */

static kd_status disagree(rank *r)
{
    r->count = 3 + r->number;
    return reduce_and_join(r);
}

/* NCCL itself does not look; the emulator ends the process. */
Test(nccl, ranks_that_sum_other_counts_are_found)
{
    char text[1024] = "";
    int ends[2], how;
    if (!EMULATED) cr_skip_test("skipped: only the emulator compares what ranks call");
    setenv("KD_SIM_DEVICES", "2", 1);
    cr_assert(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        rank ranks[MAX_RANKS] = { { .size = 0 } };
        dup2(ends[1], STDERR_FILENO);
        run_ranks(ranks, 2, disagree);
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
