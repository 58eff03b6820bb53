/* What launchers leave in the environment, and what kd makes of it. */
#include "dist/dist.h"
#include "support/support.h"

#include <stdio.h>
#include <string.h>

/* "NAME=value" separated by blanks. */
static char environment[1024];

static char *lookup(const char *name)
{
    static char values[8][256];
    static int next;
    const size_t length = strlen(name);
    for (const char *at = environment; *at; at += strcspn(at, " "), at += *at == ' ') {
        if (strncmp(at, name, length) != 0 || at[length] != '=') continue;
        char *value = values[next++ % 8];
        snprintf(value, sizeof values[0], "%.*s", (int)strcspn(at + length + 1, " "),
                 at + length + 1);
        return value;
    }
    return NULL;
}

#define TORCH "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1"
#define OMPI                                                                                       \
    "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 "                  \
    "OMPI_COMM_WORLD_LOCAL_SIZE=2"
#define STEP                                                                                       \
    "SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=16 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=8 "       \
    "SLURM_JOB_ID=77"

static const struct {
    const char *environment;
    kd_ranks want;
} good[] = {
    { "", { .size = 1 } },
    { "MASTER_ADDR=a MASTER_PORT=1 LOCAL_WORLD_SIZE=8", { .size = 1 } },
    { "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0", { "torchrun", 0, 1, 0, false, "" } },
    { TORCH, { "torchrun", 3, 8, 1, false, "" } },
    { TORCH " MASTER_ADDR=node07 MASTER_PORT=29500",
      { "torchrun", 3, 8, 1, false, "node07:29501" } },
    { TORCH " MASTER_ADDR=fe80::1 MASTER_PORT=65535",
      { "torchrun", 3, 8, 1, false, "[fe80::1]:65534" } },
    { TORCH " MASTER_ADDR=[fe80::1] MASTER_PORT=1", { "torchrun", 3, 8, 1, false, "[fe80::1]:2" } },
    { TORCH " MASTER_ADDR=a MASTER_PORT=1 NCCL_COMM_ID=b:9",
      { "torchrun", 3, 8, 1, false, "b:9" } },
    { TORCH " LOCAL_WORLD_SIZE=8 MASTER_PORT=7", { "torchrun", 3, 8, 1, false, "127.0.0.1:8" } },
    { TORCH " LOCAL_WORLD_SIZE=4 MASTER_PORT=7", { "torchrun", 3, 8, 1, false, "" } },
    { OMPI " MASTER_PORT=4000", { "Open MPI", 1, 2, 1, true, "127.0.0.1:4001" } },
    { OMPI " RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_PORT=4000",
      { "torchrun", 1, 2, 0, false, "" } },
    { "PMI_RANK=2 PMI_SIZE=3 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1", { "PMI", 2, 3, 0, true, "" } },
    { "PMI_RANK=2 PMI_SIZE=3", { "PMI", 2, 3, -1, true, "" } },
    { "MPI_LOCALRANKID=0", { .size = 1 } },
    { STEP " SLURM_STEP_NODELIST=n[07-12,20],m MASTER_PORT=5",
      { "SLURM", 5, 8, 1, true, "n07:6" } },
    { STEP " SLURM_STEP_NODELIST=r[1-2]n[3,4] MASTER_PORT=5",
      { "SLURM", 5, 8, 1, true, "r1n3:6" } },
    { STEP " SLURM_STEP_NODELIST=a,b MASTER_PORT=5", { "SLURM", 5, 8, 1, true, "a:6" } },
    { STEP " SLURM_STEP_NUM_NODES=1 MASTER_PORT=5", { "SLURM", 5, 8, 1, true, "127.0.0.1:6" } },
    /* A batch script, a step of one task, and launchers that srun started. */
    { "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=8 SLURM_JOB_ID=77", { .size = 1 } },
    { "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_STEP_ID=1 SLURM_STEP_NUM_TASKS=1", { .size = 1 } },
    { STEP " " TORCH, { "torchrun", 3, 8, 1, false, "" } },
    { STEP " " OMPI " MASTER_PORT=1", { "Open MPI", 1, 2, 1, true, "127.0.0.1:2" } },
};

Test(environment, says_which_rank_this_is)
{
    for (int i = 0; i < KD_COUNT(good); i++) {
        kd_ranks got;
        const kd_ranks *want = &good[i].want;
        snprintf(environment, sizeof environment, "%s", good[i].environment);
        test_ok(kd_ranks_find(&got, lookup));
        cr_assert((got.launcher == NULL) == (want->launcher == NULL) &&
                      (!got.launcher || strcmp(got.launcher, want->launcher) == 0),
                  "\"%s\": %s", environment, got.launcher ? got.launcher : "one process");
        cr_assert(got.rank == want->rank && got.size == want->size && got.local == want->local &&
                      got.mpi == want->mpi,
                  "\"%s\": rank %d of %d, %d on its machine", environment, got.rank, got.size,
                  got.local);
        cr_assert(strcmp(got.meeting, want->meeting) == 0, "\"%s\": meets at \"%s\"", environment,
                  got.meeting);
    }
}

static const char *const bad[][2] = {
    { "RANK=0", "WORLD_SIZE is not set, but other variables of torchrun are: expected RANK, "
                "WORLD_SIZE and LOCAL_RANK" },
    { "RANK=0 WORLD_SIZE=2", "LOCAL_RANK is not set" },
    { "LOCAL_RANK=0", "RANK is not set" },
    { "OMPI_COMM_WORLD_SIZE=2",
      "OMPI_COMM_WORLD_RANK is not set, but other variables of Open MPI" },
    { "PMI_RANK=2", "PMI_SIZE is not set" },
    { "SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2", "SLURM_LOCALID is not set" },
    { "RANK=2 WORLD_SIZE=2 LOCAL_RANK=0", "RANK: found \"2\", expected an integer from 0 to 1" },
    { "RANK=0 WORLD_SIZE=0 LOCAL_RANK=0",
      "WORLD_SIZE: found \"0\", expected an integer from 1 to" },
    { "RANK=0 WORLD_SIZE=2 LOCAL_RANK=2", "LOCAL_RANK: found \"2\"" },
    { "RANK=-1 WORLD_SIZE=2 LOCAL_RANK=0", "RANK: found \"-1\"" },
    { "RANK=1x WORLD_SIZE=2 LOCAL_RANK=0", "RANK: found \"1x\"" },
    { "RANK= WORLD_SIZE=2 LOCAL_RANK=0", "RANK: found \"\"" },
    { "RANK=+1 WORLD_SIZE=2 LOCAL_RANK=0", "RANK: found \"+1\"" },
    { "RANK=1 WORLD_SIZE=2.0 LOCAL_RANK=0", "WORLD_SIZE: found \"2.0\"" },
    { "RANK=1 WORLD_SIZE=99999999999999999999 LOCAL_RANK=0", "WORLD_SIZE: found \"9999" },
    { TORCH " MASTER_ADDR=a MASTER_PORT=65536", "MASTER_PORT: found \"65536\"" },
    { TORCH " " OMPI, "RANK=3, WORLD_SIZE=8, but OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2: "
                      "torchrun and Open MPI contradict each other" },
    { OMPI " PMI_RANK=0 PMI_SIZE=2", "OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2, but "
                                     "PMI_RANK=0, PMI_SIZE=2: Open MPI and PMI" },
};

Test(environment, refuses_what_is_half_there_or_contradicts_itself)
{
    for (int i = 0; i < KD_COUNT(bad); i++) {
        kd_ranks got;
        snprintf(environment, sizeof environment, "%s", bad[i][0]);
        const kd_status status = kd_ranks_find(&got, lookup);
        cr_assert(status == KD_EINVAL && strstr(kd_last_error(), bad[i][1]), "\"%s\": %s: %s",
                  environment, kd_status_text(status), kd_last_error());
    }
}

/* Without MASTER_PORT: the same for all ranks of a job, another for another job. */
Test(environment, meets_on_a_port_of_the_job)
{
    static const char *const jobs[][2] = {
        { OMPI " PMIX_NAMESPACE=1 SLURM_STEP_ID=0", OMPI " PMIX_NAMESPACE=2 SLURM_STEP_ID=0" },
        { STEP " SLURM_STEP_NUM_NODES=1", "SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_STEP_ID=0 "
                                          "SLURM_STEP_NUM_TASKS=8 SLURM_JOB_ID=78 "
                                          "SLURM_STEP_NUM_NODES=1" },
    };
    for (int i = 0; i < KD_COUNT(jobs); i++) {
        kd_ranks a, b, c;
        int port = 0;
        snprintf(environment, sizeof environment, "%s", jobs[i][0]);
        test_ok(kd_ranks_find(&a, lookup));
        test_ok(kd_ranks_find(&b, lookup));
        snprintf(environment, sizeof environment, "%s", jobs[i][1]);
        test_ok(kd_ranks_find(&c, lookup));
        cr_assert(sscanf(a.meeting, "127.0.0.1:%d", &port) == 1 && port >= 20000 && port < 30000,
                  "job %d: \"%s\"", i, a.meeting);
        cr_assert(strcmp(a.meeting, b.meeting) == 0 && strcmp(a.meeting, c.meeting) != 0,
                  "job %d: \"%s\", \"%s\" and \"%s\"", i, a.meeting, b.meeting, c.meeting);
    }
}
