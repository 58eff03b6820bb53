#include "ops/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the CPU's table -------------------------------------------------------------------------- */

const kd_ops kd_ops_cpu = {
#define KD_OP(op, operands) .op = kd_##op##_cpu,
#include "ops/op_list.h"
#undef KD_OP
};

/* ---- descriptions ----------------------------------------------------------------------------- */

/* The offset needs the struct's name, which a row's parts do not know: each row gets a type alias
 * in a block of its own through this macro pair. */
#define OUT(x)   { #x, KD_ROLE_OUT, offsetof(row, x) },
#define INOUT(x) { #x, KD_ROLE_INOUT, offsetof(row, x) },
#define IN(x)    { #x, KD_ROLE_IN, offsetof(row, x) },
#define ARG(type, x)
#define KD_OP(op, parts)                                                                           \
    static const kd_operand *operands_of_##op(int *count)                                          \
    {                                                                                              \
        typedef kd_##op##_args row;                                                                \
        static const kd_operand operands[] = { parts };                                            \
        *count = KD_COUNT(operands);                                                               \
        return operands;                                                                           \
    }                                                                                              \
    static kd_status call_##op(const kd_ops *ops, kd_exec *exec, const void *args)                 \
    {                                                                                              \
        return ops->op(exec, args);                                                                \
    }                                                                                              \
    static kd_status check_##op(const void *args) { return kd_##op##_check(args); }                \
    static bool present_##op(const kd_ops *ops) { return ops->op != NULL; }
#include "ops/op_list.h"
#undef KD_OP
#undef ARG
#undef IN
#undef INOUT
#undef OUT

const kd_op_info kd_op_infos[KD_OP_COUNT] = {
#define KD_OP(op, parts)                                                                           \
    { #op, sizeof(kd_##op##_args), operands_of_##op, check_##op, call_##op, present_##op },
#include "ops/op_list.h"
#undef KD_OP
};

/* ---- running ---------------------------------------------------------------------------------- */

/* A float NaN is all ones in every element size, and no valid id. */
static void poison(const kd_op_info *info, const void *args)
{
    int count;
    const kd_operand *operands = info->operands(&count);
    for (int i = 0; i < count; i++) {
        const kd_tensor *t;
        memcpy(&t, (const char *)args + operands[i].offset, sizeof(void *));
        if (operands[i].role != KD_ROLE_OUT || !kd_present(t) || !kd_tensor_contiguous(t)) continue;
        /* An output may share memory with an input; then its old content is the input. */
        bool shared = false;
        for (int j = 0; j < count; j++) {
            const kd_tensor *other;
            memcpy(&other, (const char *)args + operands[j].offset, sizeof(void *));
            shared |= j != i && kd_present(other) && other->data == t->data;
        }
        if (!shared) memset(t->data, 0xff, kd_tensor_bytes(t));
    }
}

kd_status kd_op_run(kd_exec *exec, kd_op_id op, const void *args)
{
    const kd_op_info *info = &kd_op_infos[op];
    const kd_ops *ops = exec->device->ops;
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_status status = info->check(args);
    if (status == KD_OK && exec->device->poison && !kd_planning(exec)) poison(info, args);
    if (status == KD_OK) status = info->call(ops, exec, args);
    kd_stack_release(exec->stack, mark); /* an op's scratch dies with it */
    if (status != KD_OK) status = kd_fail(status, "%s: %s", info->name, kd_last_error());
    return status;
}

kd_status kd_ops_complete(const kd_ops *ops, const char *device)
{
    char missing[512] = "";
    size_t used = 0;
    for (int i = 0; i < KD_OP_COUNT; i++) {
        if (kd_op_infos[i].present(ops) || used >= sizeof missing) continue;
        const int n = snprintf(missing + used, sizeof missing - used, " %s", kd_op_infos[i].name);
        used += n > 0 ? (size_t)n : 0;
    }
    return used ? kd_fail(KD_ENOTSUP, "%s lacks ops:%s", device, missing) : KD_OK;
}
