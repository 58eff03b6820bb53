#include "support/ranks.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

kd_status test_rank_open(test_rank *r)
{
    char name[16];
    void *memory;
    snprintf(name, sizeof name, "cuda:%d", r->first + r->number);
    KD_TRY(kd_device_open(&r->device, name));
    r->exec = (kd_exec){ .device = r->device, .stack = &r->stack };
    KD_TRY(kd_device_alloc(&memory, r->device, TEST_RANK_FLOATS * sizeof(float), "test"));
    r->memory = memory;
    return kd_comm_nccl(&r->comm, r->device, r->number, r->size, r->id, TEST_RANK_SECONDS);
}

void test_rank_close(test_rank *r)
{
    kd_comm_close(r->comm);
    if (!r->device) return;
    kd_device_release(r->device, r->memory);
    kd_device_close(r->device);
}

typedef struct launch {
    test_rank *rank;
    kd_status (*body)(test_rank *rank);
} launch;

static void *run_rank(void *context)
{
    const launch *l = context;
    test_rank *r = l->rank;
    r->status = test_rank_open(r);
    if (r->status == KD_OK) r->status = l->body(r);
    if (r->status == KD_OK) return NULL;
    snprintf(r->message, sizeof r->message, "%s", kd_last_error());
    if (r->comm) r->comm->type->abort(r->comm); /* the others wait for this rank */
    return NULL;
}

void test_ranks_run(test_rank *ranks, int size, kd_status (*body)(test_rank *rank))
{
    pthread_t threads[TEST_MAX_RANKS];
    launch launches[TEST_MAX_RANKS];
    kd_nccl_id id;
    test_ok(kd_nccl_id_create(&id));
    for (int r = 0; r < size; r++) {
        ranks[r].number = r;
        ranks[r].size = size;
        ranks[r].id = &id;
        launches[r] = (launch){ &ranks[r], body };
        cr_assert(pthread_create(&threads[r], NULL, run_rank, &launches[r]) == 0);
    }
    for (int r = 0; r < size; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < size; r++) test_rank_close(&ranks[r]);
}

void test_ranks_good(const test_rank *ranks, int size, const char *what)
{
    for (int r = 0; r < size; r++)
        cr_assert(ranks[r].status == KD_OK && !ranks[r].wrong, "%s: rank %d of %d: %s", what, r,
                  size, ranks[r].status == KD_OK ? "wrong result" : ranks[r].message);
}

int test_require_ranks(int size)
{
    int count;
    kd_device *device;
    kd_nccl_id id;
    if (EMULATED) setenv("KD_SIM_DEVICES", "4", 0);
    if ((count = kd_device_cuda.count()) < size)
        cr_skip_test("found fewer than %d CUDA devices", size);
    if (kd_nccl_id_create(&id) == KD_ENOTSUP) cr_skip_test("%s", kd_last_error());
    const kd_status status = kd_device_open(&device, "cuda");
    if (status == KD_ENOTSUP) cr_skip_test("%s", kd_last_error());
    test_ok(status);
    kd_device_close(device);
    return count;
}
