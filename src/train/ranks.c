/* How a session's rank finds its place: its device, its group, and that all mean the same run. */
#include "train/session.h"

#include <stdio.h>
#include <stdlib.h>

/* Until the first update ranks may be far apart: one reads its models from a disk, one from memory. */
static const double opening = 3.0;

/* ---- its device ------------------------------------------------------------------------------- */

/* Where each rank sees one GPU alone, that is its own. */
static kd_status choose_gpu(const char **name, kd_session *s)
{
    const int count = kd_device_cuda.count();
    const int index = count == 1 ? 0 : s->ranks.local;
    if (index < 0)
        return kd_fail(KD_EINVAL,
                       "rank %d of %d: %s does not say which of its machine this process is (no "
                       "MPI_LOCALRANKID); expected one visible GPU, found %d",
                       s->ranks.rank, s->ranks.size, s->ranks.launcher, count);
    return kd_arena_format(name, s->run->arena, "cuda:%d", index);
}

static kd_status open_device(kd_session *s)
{
    const char *name = s->run->run.device;
    if (s->ranks.size > 1) {
        if (strchr(name, ':') && strncmp(name, "cuda", 4) == 0)
            return kd_fail(KD_EINVAL,
                           "run.device: found \"%s\" and %d ranks; expected cuda, cpu or auto: a "
                           "rank takes the GPU of its number on its machine",
                           name, s->ranks.size);
        const bool any = strcmp(name, "auto") == 0 && kd_device_cuda.count() > 0;
        if (any || strcmp(name, "cuda") == 0) KD_TRY(choose_gpu(&name, s));
    }
    return kd_device_open(&s->device, name);
}

/* ---- its group -------------------------------------------------------------------------------- */

static kd_status join_gpus(kd_session *s, double timeout)
{
    kd_nccl_id id;
    if (!*s->ranks.meeting)
        return kd_fail(KD_EINVAL,
                       "%d ranks of %s on several machines: expected MASTER_ADDR, the machine of "
                       "rank 0, in the environment of each",
                       s->ranks.size, s->ranks.launcher);
    /* NCCL takes it from the environment only. */
    if (!getenv("NCCL_COMM_ID") && setenv("NCCL_COMM_ID", s->ranks.meeting, 0) != 0)
        return kd_fail(KD_ENOMEM, "NCCL_COMM_ID: no memory");
    KD_TRY(kd_nccl_id_create(&id));
    return kd_comm_nccl(&s->comm, s->device, s->ranks.rank, s->ranks.size, &id, timeout);
}

static kd_status join_cpus(kd_session *s, double timeout)
{
    if (!s->ranks.mpi)
        return kd_fail(KD_ENOTSUP,
                       "%d ranks of %s on the CPU: MPI joins those, and %s does not start it; "
                       "expected mpirun or srun",
                       s->ranks.size, s->ranks.launcher, s->ranks.launcher);
    return kd_comm_mpi(&s->comm, s->ranks.rank, s->ranks.size, timeout);
}

static const char *comm_name(const kd_ranks *ranks, bool gpu)
{
    if (ranks->size == 1) return "solo";
    if (gpu) return "nccl";
    return ranks->mpi ? "mpi" : "nothing";
}

kd_status kd_session_join(kd_session *s)
{
    const double timeout = opening * s->run->dist.timeout;
    if (s->run->ranks)
        s->ranks = *s->run->ranks;
    else
        KD_TRY(kd_ranks_find(&s->ranks, getenv));
    KD_TRY(open_device(s));
    if (s->ranks.size == 1) return kd_comm_solo(&s->comm);
    return s->device->type == &kd_device_cuda ? join_gpus(s, timeout) : join_cpus(s, timeout);
}

/* ---- one run ---------------------------------------------------------------------------------- */

/* Numbers are equal where the mean of their squares is the square of their mean: a sum is all that
 * ranks can ask each other for.  20 bits, so that doubles are exact. */
kd_status kd_session_agree(kd_session *s)
{
    const char *config, *all;
    KD_TRY(kd_run_json(&config, s->run));
    KD_TRY(kd_arena_format(&all, s->arena, "%s\n%s", s->contract, config));
    const double mine = (double)(kd_hash_key(all, strlen(all)) & 0xfffff), n = s->comm->size;
    double sums[2] = { mine, mine * mine };
    KD_TRY(s->comm->type->all_reduce_host(s->comm, sums, 2));
    if (n * sums[1] == sums[0] * sums[0]) return KD_OK;
    return kd_fail(
        KD_EINVAL,
        "the ranks do not have the same run file, options, kd, device, threads and plan; "
        "this one: %s",
        s->contract);
}

kd_status kd_session_leave(const kd_session *s, kd_status status)
{
    if (status == KD_OK || s->ranks.size < 2) return status;
    if (s->comm && !s->agreed) s->comm->type->abort(s->comm);
    return kd_fail(status, "rank %d of %d: %s", s->ranks.rank, s->ranks.size, kd_last_error());
}

/* ---- what kd env says ------------------------------------------------------------------------- */

kd_status kd_ranks_describe(kd_rank_info *info)
{
    kd_ranks ranks;
    *info = (kd_rank_info){ .size = 1 };
    kd_mpi_version(info->mpi, sizeof info->mpi);
    kd_nccl_version(info->nccl, sizeof info->nccl);
    KD_TRY(kd_ranks_find(&ranks, getenv));
    const bool gpu = kd_device_cuda.count() > 0;
    info->launcher = ranks.launcher;
    info->rank = ranks.rank;
    info->size = ranks.size;
    info->local = ranks.local;
    info->communicator = comm_name(&ranks, gpu);
    if (ranks.size > 1 && gpu) snprintf(info->meeting, sizeof info->meeting, "%s", ranks.meeting);
    return KD_OK;
}
