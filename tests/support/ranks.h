/*
 * ranks.h - ranks with a GPU each (dist/nccl.c), here as threads.  Under the emulator there are four
 * devices, or what KD_SIM_DEVICES says when test_require_ranks is called.
 */
#ifndef KD_TEST_RANKS_H
#define KD_TEST_RANKS_H

#include "dist/dist.h"
#include "support/emulated.h"
#include "support/support.h"

#include <stdatomic.h>

enum { TEST_MAX_RANKS = 4, TEST_RANK_FLOATS = 4200, TEST_RANK_SECONDS = 100 };

typedef struct test_rank {
    int number, size;
    int first; /* device, of rank 0 */
    const kd_nccl_id *id;
    kd_device *device;
    kd_comm *comm; /* its timeout is TEST_RANK_SECONDS */
    kd_stack stack;
    kd_exec exec;
    float *memory; /* [TEST_RANK_FLOATS] of the device */
    int variant;   /* the rest is for the body, */
    int64_t count; /* which cannot assert: assertions belong to the main thread */
    atomic_int *arrived;
    void *context;
    bool wrong;
    kd_status status;
    char message[512];
} test_rank;

/* Of a rank with number, size, first and id. */
KD_MUST_CHECK kd_status test_rank_open(test_rank *rank);
void test_rank_close(test_rank *rank);

/* Runs `body` on all of [size] and closes them when all are through: one that stopped stays silent
 * until then.  A rank that fails aborts the group. */
void test_ranks_run(test_rank *ranks, int size, kd_status (*body)(test_rank *rank));

/* Fails unless all ended well and none found a wrong result. */
void test_ranks_good(const test_rank *ranks, int size, const char *what);

/* Skips the test where there are not `size` devices, or no NCCL.  The number of devices. */
int test_require_ranks(int size);

#endif
