/*
 * environment.c - which rank this process is, from what its launcher left in the environment.
 *
 * torchrun, Open MPI and PMI are believed in that order and must not contradict each other.  SLURM
 * comes last and unquestioned: `srun torchrun` and `srun mpirun` leave it describing the launchers.
 * A batch script has SLURM_PROCID too; what only the tasks of a step have is SLURM_STEP_*.
 */
#include "dist/dist.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct launcher {
    const char *name;
    const char *rank, *size, *local;
    const char *local_size;
    bool may_lack_local; /* PMI as SLURM speaks it */
    bool mpi;
} launcher;

static const launcher launchers[] = {
    { "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", false, false },
    { "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
      "OMPI_COMM_WORLD_LOCAL_SIZE", false, true },
    { "PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", true, true },
    { "SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL, false, true },
};

enum { SLURM = KD_COUNT(launchers) - 1, MAX_RANKS = 1 << 20, MAX_PORT = 65535 };

typedef char *(*lookup)(const char *name);

/* ---- numbers ---------------------------------------------------------------------------------- */

/* Digits alone, in [least, most]. */
static kd_status read_number(int *value, lookup get, const char *name, int least, int most)
{
    const char *text = get(name);
    errno = 0;
    const long number = text[strspn(text, "0123456789")] == '\0' ? strtol(text, NULL, 10) : -1;
    if (!*text || errno != 0 || number < least || number > most)
        return kd_fail(KD_EINVAL, "%s: found \"%.40s\", expected an integer from %d to %d", name,
                       text, least, most);
    *value = (int)number;
    return KD_OK;
}

/* ---- one launcher ----------------------------------------------------------------------------- */

static bool present(const launcher *l, lookup get)
{
    return get(l->rank) || get(l->size) || (!l->may_lack_local && get(l->local));
}

/* A job of one task, and a shell within an allocation, are one process. */
static bool slurm_step(lookup get)
{
    const char *tasks = get("SLURM_STEP_NUM_TASKS");
    return get("SLURM_STEP_ID") && tasks && strcmp(tasks, "1") != 0;
}

static kd_status read_launcher(kd_ranks *ranks, const launcher *l, lookup get)
{
    const char *const names[] = { l->rank, l->size, l->local };
    for (int i = 0; i < KD_COUNT(names) - l->may_lack_local; i++)
        if (!get(names[i]))
            return kd_fail(KD_EINVAL,
                           "%s is not set, but other variables of %s are: expected %s, "
                           "%s and %s, or none of them",
                           names[i], l->name, l->rank, l->size, l->local);
    *ranks = (kd_ranks){ .launcher = l->name, .local = -1, .mpi = l->mpi };
    KD_TRY(read_number(&ranks->size, get, l->size, 1, MAX_RANKS));
    KD_TRY(read_number(&ranks->rank, get, l->rank, 0, ranks->size - 1));
    if (!get(l->local)) return KD_OK;
    return read_number(&ranks->local, get, l->local, 0, ranks->size - 1);
}

static kd_status compare(const kd_ranks *a, const launcher *of_a, const kd_ranks *b,
                         const launcher *of_b)
{
    if (a->rank == b->rank && a->size == b->size) return KD_OK;
    return kd_fail(KD_EINVAL,
                   "%s=%d, %s=%d, but %s=%d, %s=%d: %s and %s contradict each other; unset the "
                   "variables of one",
                   of_a->rank, a->rank, of_a->size, a->size, of_b->rank, b->rank, of_b->size,
                   b->size, of_a->name, of_b->name);
}

/* ---- where ranks meet ------------------------------------------------------------------------- */

/* Of "node[07-12,20],other": "node07". */
static void first_host(char *host, size_t size, const char *list)
{
    size_t used = 0;
    for (const char *c = list; *c && *c != ',' && used + 1 < size; c++) {
        if (*c != '[') {
            host[used++] = *c;
            continue;
        }
        for (c++; *c && !strchr(",-]", *c) && used + 1 < size; c++) host[used++] = *c;
        while (*c && *c != ']') c++;
        if (!*c) break;
    }
    host[used] = '\0';
}

static bool on_one_machine(const launcher *l, int size, lookup get)
{
    const char *nodes = get("SLURM_STEP_NUM_NODES");
    int here = 0;
    if (!l->local_size) return nodes && strcmp(nodes, "1") == 0;
    return get(l->local_size) && read_number(&here, get, l->local_size, 1, size) == KD_OK &&
           here == size;
}

/* MASTER_PORT belongs to the launcher; runs beside each other on a machine shall not meet. */
static kd_status choose_port(int *port, const launcher *l, lookup get)
{
    enum { FIRST = 20000, COUNT = 10000 }; /* below what Linux hands out by itself */
    const char *space = get("PMIX_NAMESPACE"), *id = get("SLURM_JOB_ID");
    const char *step = l == &launchers[SLURM] ? get("SLURM_STEP_ID") : NULL;
    char job[256];
    if (get("MASTER_PORT")) {
        KD_TRY(read_number(port, get, "MASTER_PORT", 1, MAX_PORT));
        *port += *port < MAX_PORT ? 1 : -1;
        return KD_OK;
    }
    if (space)
        snprintf(job, sizeof job, "%s", space);
    else
        snprintf(job, sizeof job, "%s.%s", id ? id : "", step ? step : "");
    *port = FIRST + (int)(kd_hash_key(job, strlen(job)) % COUNT);
    return KD_OK;
}

static kd_status choose_meeting(kd_ranks *ranks, const launcher *l, lookup get)
{
    const char *given = get("NCCL_COMM_ID"), *host = get("MASTER_ADDR");
    char first[256] = "";
    int port;
    if (given) {
        snprintf(ranks->meeting, sizeof ranks->meeting, "%s", given);
        return KD_OK;
    }
    if (!host && on_one_machine(l, ranks->size, get)) host = "127.0.0.1";
    if (!host && l == &launchers[SLURM] && get("SLURM_STEP_NODELIST")) {
        first_host(first, sizeof first, get("SLURM_STEP_NODELIST"));
        host = first;
    }
    if (!host) return KD_OK;
    KD_TRY(choose_port(&port, l, get));
    const bool colons = strchr(host, ':') != NULL && host[0] != '['; /* IPv6 */
    snprintf(ranks->meeting, sizeof ranks->meeting, colons ? "[%s]:%d" : "%s:%d", host, port);
    return KD_OK;
}

/* ---- all of it -------------------------------------------------------------------------------- */

kd_status kd_ranks_find(kd_ranks *ranks, lookup get)
{
    const launcher *believed = NULL;
    *ranks = (kd_ranks){ .size = 1 };
    for (int i = 0; i < KD_COUNT(launchers); i++) {
        const launcher *l = &launchers[i];
        kd_ranks found;
        if (i == SLURM ? believed || !slurm_step(get) : !present(l, get)) continue;
        KD_TRY(read_launcher(&found, l, get));
        if (believed) {
            KD_TRY(compare(ranks, believed, &found, l));
            continue;
        }
        believed = l;
        *ranks = found;
    }
    return ranks->size > 1 ? choose_meeting(ranks, believed, get) : KD_OK;
}
