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

/* ---- operands --------------------------------------------------------------------------------- */

static const kd_tensor *tensor_of(const void *args, const kd_operand *operand)
{
    const kd_tensor *t;
    memcpy(&t, (const char *)args + operand->offset, sizeof(void *));
    return kd_present(t) ? t : NULL;
}

/* A float NaN is all ones in every element size, and no valid id. */
static kd_status poison(kd_exec *exec, const kd_op_info *info, const void *args)
{
    int count;
    kd_device *device = exec->device;
    const kd_operand *operands = info->operands(&count);
    for (int i = 0; i < count; i++) {
        const kd_tensor *t = tensor_of(args, &operands[i]);
        if (operands[i].role != KD_ROLE_OUT || !t || !kd_tensor_contiguous(t)) continue;
        /* An output may share memory with an input; then its old content is the input. */
        bool shared = false;
        for (int j = 0; j < count; j++) {
            const kd_tensor *other = tensor_of(args, &operands[j]);
            shared |= j != i && other && other->data == t->data;
        }
        if (!shared)
            KD_TRY(device->type->fill(device, exec->queue, t->data, 0xff, kd_tensor_bytes(t)));
    }
    return KD_OK;
}

/* ---- KD_ON_CPU: an op of another device over copies --------------------------------------------- */

enum { MAX_OPERANDS = 16, MAX_ARGS = 512 };

/* Device memory from `low` to `high` and its copy; operands that overlap have one between them. */
typedef struct span {
    unsigned char *low, *high, *host;
    bool written;
} span;

typedef struct copies {
    span spans[MAX_OPERANDS];
    int count;
    kd_tensor tensors[MAX_OPERANDS];
    unsigned char args[MAX_ARGS]; /* of the op, with operands on the host */
} copies;

static span span_of(const kd_tensor *t, kd_role role)
{
    int64_t last = 0;
    for (int32_t d = 0; d < t->rank; d++) last += (t->shape[d] - 1) * t->stride[d];
    const int64_t elements = kd_tensor_elements(t) > 0 ? last + 1 : 0;
    unsigned char *low = t->data;
    return (span){ .low = low,
                   .high = low + elements * (int64_t)kd_dtype_size(t->dtype),
                   .written = role != KD_ROLE_IN };
}

static void add_span(copies *c, span s)
{
    for (int i = 0; i < c->count;) {
        const span *other = &c->spans[i];
        if (other->low >= s.high || s.low >= other->high) {
            i++;
            continue;
        }
        if (other->low < s.low) s.low = other->low;
        if (other->high > s.high) s.high = other->high;
        s.written |= other->written;
        c->spans[i] = c->spans[--c->count];
        i = 0; /* what it has grown to may meet those before */
    }
    c->spans[c->count++] = s;
}

static void *host_of(const copies *c, const span *s)
{
    int i = 0;
    while (c->spans[i].low > s->low || c->spans[i].high < s->high) i++;
    return c->spans[i].host + (s->low - c->spans[i].low);
}

static kd_tensor bytes_of(const span *s)
{
    return kd_tensor_of(s->low, KD_U8, KD_SHAPE(s->high - s->low));
}

static kd_status fetch(copies *c, kd_exec *exec, const kd_op_info *info, const void *args)
{
    int count;
    const kd_operand *operands = info->operands(&count);
    if (count > MAX_OPERANDS || info->bytes > sizeof c->args)
        return kd_fail(KD_EINTERNAL, "%d operands in %zu bytes", count, info->bytes);
    for (int i = 0; i < count; i++) {
        const kd_tensor *t = tensor_of(args, &operands[i]);
        if (t) add_span(c, span_of(t, operands[i].role));
    }
    for (int i = 0; i < c->count; i++) {
        const kd_tensor bytes = bytes_of(&c->spans[i]);
        c->spans[i].host = malloc(kd_tensor_bytes(&bytes) + 1);
        if (!c->spans[i].host) return kd_fail(KD_ENOMEM, "no memory for copies");
        KD_TRY(kd_download(exec, c->spans[i].host, &bytes));
    }
    memcpy(c->args, args, info->bytes);
    for (int i = 0; i < count; i++) {
        const kd_tensor *t = tensor_of(args, &operands[i]), *copy = &c->tensors[i];
        if (!t) continue;
        const span s = span_of(t, operands[i].role);
        c->tensors[i] = *t;
        c->tensors[i].data = host_of(c, &s);
        memcpy(c->args + operands[i].offset, &copy, sizeof(void *));
    }
    return kd_sync(exec);
}

/* Twice: for the plan of the scratch, then with it. */
static kd_status call_cpu(const kd_op_info *info, kd_device *cpu, const void *args)
{
    kd_stack stack = { .planning = true };
    kd_exec exec = { .device = cpu, .stack = &stack };
    KD_TRY(info->call(cpu->ops, &exec, args));
    KD_TRY(kd_stack_open(&stack, cpu));
    const kd_status status = info->call(cpu->ops, &exec, args);
    kd_stack_close(&stack, cpu);
    return status;
}

static kd_status run_on_cpu(kd_exec *exec, const kd_op_info *info, const void *args)
{
    copies c = { .count = 0 };
    kd_status status;
    if (kd_planning(exec)) return KD_OK;
    KD_TRY_GOTO(fetch(&c, exec, info, args), status, done);
    KD_TRY_GOTO(call_cpu(info, exec->device->host, c.args), status, done);
    for (int i = 0; i < c.count; i++) {
        const kd_tensor bytes = bytes_of(&c.spans[i]);
        if (c.spans[i].written) KD_TRY_GOTO(kd_upload(exec, &bytes, c.spans[i].host), status, done);
    }
done:
    for (int i = 0; i < c.count; i++) free(c.spans[i].host);
    return status;
}

kd_status kd_ops_named(uint64_t *bits, const char *names)
{
    *bits = 0;
    for (const char *name = names; *name;) {
        const size_t length = strcspn(name, ",");
        int op = 0;
        while (op < KD_OP_COUNT && (strlen(kd_op_infos[op].name) != length ||
                                    strncmp(kd_op_infos[op].name, name, length) != 0))
            op++;
        if (op == KD_OP_COUNT)
            return kd_fail(KD_EINVAL, "KD_ON_CPU: no op \"%.*s\"; kd list ops has their names",
                           (int)length, name);
        *bits |= UINT64_C(1) << op;
        name += length + (name[length] == ',');
    }
    return KD_OK;
}

/* ---- running ---------------------------------------------------------------------------------- */

static bool is_on_cpu(const kd_device *device, int op) { return device->on_cpu >> op & 1; }

static double *profile; /* see kd_ops_profile */

void kd_ops_profile(double to[KD_OP_COUNT]) { profile = to; }

kd_status kd_op_run(kd_exec *exec, kd_op_id op, const void *args)
{
    const double start = profile ? kd_clock() : 0.0;
    const kd_op_info *info = &kd_op_infos[op];
    const kd_device *device = exec->device;
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_status status = info->check(args);
    if (status == KD_OK && device->poison && !kd_planning(exec)) status = poison(exec, info, args);
    if (status == KD_OK)
        status = is_on_cpu(device, op) ? run_on_cpu(exec, info, args)
                                       : info->call(device->ops, exec, args);
    if (profile && !kd_planning(exec)) profile[op] += kd_clock() - start;
    kd_stack_release(exec->stack, mark); /* an op's scratch dies with it */
    if (status != KD_OK) status = kd_fail(status, "%s: %s", info->name, kd_last_error());
    return status;
}

_Static_assert(KD_OP_COUNT <= 64, "kd_device.on_cpu has a bit per op");

kd_status kd_ops_complete(const kd_device *device)
{
    char missing[512] = "";
    size_t used = 0;
    for (int i = 0; i < KD_OP_COUNT; i++) {
        if (kd_op_infos[i].present(device->ops) || is_on_cpu(device, i) || used >= sizeof missing)
            continue;
        const int n = snprintf(missing + used, sizeof missing - used, " %s", kd_op_infos[i].name);
        used += n > 0 ? (size_t)n : 0;
    }
    return used ? kd_fail(KD_ENOTSUP, "%s lacks ops:%s", device->type->name, missing) : KD_OK;
}
