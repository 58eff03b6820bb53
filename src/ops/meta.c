/*
 * Ops of a GPU that is not here, in a build that has none of its kernels: memory is planned for it,
 * nothing ever runs.  Of their scratch only the workspace of matrix products is known here; the rest
 * is below 1 % of what a run takes that is worth a GPU.
 */
#include "ops/ops.h"

static kd_status plan(kd_exec *exec, const char *op)
{
    kd_tensor workspace;
    if (!kd_planning(exec)) return kd_fail(KD_EINTERNAL, "%s: run on a device that is a plan", op);
    if (strncmp(op, "matmul", strlen("matmul")) != 0) return KD_OK;
    return kd_push(&workspace, exec, "matmul.workspace", KD_U8,
                   KD_SHAPE((int64_t)kd_cuda_workspace(kd_cuda_limits_of(exec))));
}

#define KD_OP(name, operands)                                                                      \
    static kd_status name##_meta(kd_exec *exec, const kd_##name##_args *args)                      \
    {                                                                                              \
        (void)args;                                                                                \
        return plan(exec, #name);                                                                  \
    }
#include "ops/op_list.h"
#undef KD_OP

const kd_ops kd_ops_meta = {
#define KD_OP(op, operands) .op = op##_meta,
#include "ops/op_list.h"
#undef KD_OP
};
