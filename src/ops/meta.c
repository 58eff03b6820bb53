/* Ops of a device that only exists on paper: memory is planned for it, nothing ever runs. */
#include "ops/ops.h"

#define KD_OP(name, operands)                                                                      \
    static kd_status name##_meta(kd_exec *exec, const kd_##name##_args *args)                      \
    {                                                                                              \
        (void)args;                                                                                \
        return kd_planning(exec)                                                                   \
                   ? KD_OK                                                                         \
                   : kd_fail(KD_EINTERNAL, #name ": run on a device that is a plan");              \
    }
#include "ops/op_list.h"
#undef KD_OP

const kd_ops kd_ops_meta = {
#define KD_OP(op, operands) .op = op##_meta,
#include "ops/op_list.h"
#undef KD_OP
};
