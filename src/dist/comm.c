/* comm.c - what all kinds of groups share. */
#include "dist/dist.h"

void kd_comm_close(kd_comm *comm)
{
    if (comm) comm->type->close(comm);
}

kd_status kd_comm_join(kd_comm *comm, kd_exec *exec)
{
    return comm->type->join && !kd_planning(exec) ? comm->type->join(comm, exec) : KD_OK;
}

kd_status kd_comm_wait(kd_comm *comm, kd_device *device, kd_event *event)
{
    return comm->type->wait ? comm->type->wait(comm, device, event) : kd_event_sync(device, event);
}

kd_status kd_comm_agree(kd_comm *comm, double *value)
{
    double sums[2] = { *value, kd_stop_requested() };
    KD_TRY(comm->type->all_reduce_host(comm, sums, 2));
    *value = sums[0];
    return sums[1] > 0.0 ? kd_fail(KD_ESTOPPED, "asked to stop") : KD_OK;
}

kd_status kd_comm_check_tensor(const kd_tensor *t, bool sum, const char *what)
{
    if (!kd_present(t) || !kd_tensor_contiguous(t))
        return kd_fail(KD_EINVAL, "%s: found %s tensor, expected a contiguous one", what,
                       kd_present(t) ? "a strided" : "no");
    if (sum && t->dtype != KD_F32)
        return kd_fail(KD_EINVAL, "%s: found %s, expected f32", what, kd_dtype_name(t->dtype));
    return KD_OK;
}

kd_status kd_comm_check_host(const kd_exec *exec, const char *what)
{
    if (!exec->device || exec->device->type == &kd_device_cpu) return KD_OK;
    return kd_fail(KD_ENOTSUP, "%s: these ranks are joined on the CPU, found a tensor on %s", what,
                   exec->device->type->name);
}

kd_status kd_comm_check_root(const kd_comm *comm, int root)
{
    if (root >= 0 && root < comm->size) return KD_OK;
    return kd_fail(KD_EINVAL, "broadcast: found root %d, expected 0 to %d", root, comm->size - 1);
}
