/* The CUDA backend's table; the functions are in kernels/. */
#include "ops/ops.h"

/* A slot without a function is NULL, and opening the device names it. */
#define KD_OP(name, operands)                                                                      \
    extern kd_status kd_##name##_cuda(kd_exec *, const kd_##name##_args *) __attribute__((weak));
#include "ops/op_list.h"
#undef KD_OP

const kd_ops kd_ops_cuda = {
#define KD_OP(op, operands) .op = kd_##op##_cuda,
#include "ops/op_list.h"
#undef KD_OP
};
