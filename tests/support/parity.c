#include "support/parity.h"

#include "support/emulated.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_OPERANDS = 16, MAX_ARGS = 512 };

/* The block of the bench that holds an operand, and its copy on the GPU. */
typedef struct copy {
    const test_block *block;
    void *device;
    unsigned char *before, *after; /* on the host: as it was, and what the GPU made of it */
} copy;

typedef struct operands {
    const kd_operand *list;
    int count;
    const kd_tensor *host[MAX_OPERANDS]; /* NULL: absent */
    int at[MAX_OPERANDS];                /* index into copies */
    copy copies[MAX_OPERANDS];
    int copy_count;
} operands;

static const kd_tensor *tensor_of(const void *args, const kd_operand *operand)
{
    const kd_tensor *t;
    memcpy(&t, (const char *)args + operand->offset, sizeof(void *));
    return kd_present(t) ? t : NULL;
}

void parity_open(parity *p, size_t stack_bytes)
{
    *p = (parity){ 0 };
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
    test_open(&p->bench, stack_bytes);
    test_ok(kd_device_cuda.open(&p->gpu, 0));
}

void parity_capability(int capability)
{
    char text[16];
    snprintf(text, sizeof text, "%d", capability);
    cudasim_set("KD_SIM_CAPABILITY", text);
}

void parity_close(parity *p)
{
    kd_device_close(p->gpu);
    test_close(&p->bench);
}

const char *parity_name(const char *fmt, ...)
{
    static _Thread_local char name[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return name;
}

/* ---- copies ----------------------------------------------------------------------------------- */

static int copy_of(operands *o, parity *p, const kd_tensor *t)
{
    const unsigned char *data = t->data;
    for (int i = 0; i < o->copy_count; i++)
        if (data >= o->copies[i].block->base &&
            data < o->copies[i].block->base + o->copies[i].block->bytes)
            return i;
    for (int i = 0; i < p->bench.count; i++) {
        const test_block *block = &p->bench.blocks[i];
        if (!block->base || data < block->base || data >= block->base + block->bytes) continue;
        copy *c = &o->copies[o->copy_count];
        *c =
            (copy){ .block = block, .before = malloc(block->bytes), .after = malloc(block->bytes) };
        cr_assert(c->before && c->after);
        memcpy(c->before, block->base, block->bytes);
        test_ok(kd_device_alloc(&c->device, p->gpu, block->bytes, "copy"));
        return o->copy_count++;
    }
    cr_assert_fail("an operand is no tensor of the bench");
    return -1;
}

static void open_operands(operands *o, parity *p, kd_op_id op, const void *args)
{
    *o = (operands){ 0 };
    o->list = kd_op_infos[op].operands(&o->count);
    for (int i = 0; i < o->count; i++) {
        o->host[i] = tensor_of(args, &o->list[i]);
        if (o->host[i]) o->at[i] = copy_of(o, p, o->host[i]);
    }
}

static void close_operands(operands *o, parity *p)
{
    for (int i = 0; i < o->copy_count; i++) {
        kd_device_release(p->gpu, o->copies[i].device);
        free(o->copies[i].before);
        free(o->copies[i].after);
    }
}

/* ---- the GPU ---------------------------------------------------------------------------------- */

static kd_status run_on(kd_exec *exec, const operands *o, kd_op_id op, const void *args)
{
    unsigned char local[MAX_ARGS];
    kd_tensor device[MAX_OPERANDS];
    cr_assert_leq(kd_op_infos[op].bytes, sizeof local);
    memcpy(local, args, kd_op_infos[op].bytes);
    for (int i = 0; i < o->count; i++) {
        const kd_tensor *pointer = &device[i];
        if (!o->host[i]) continue;
        const copy *c = &o->copies[o->at[i]];
        device[i] = *o->host[i];
        device[i].data =
            (char *)c->device + ((const unsigned char *)o->host[i]->data - c->block->base);
        memcpy(local + o->list[i].offset, &pointer, sizeof(void *));
    }
    return kd_op_run(exec, op, local);
}

/* Scratch as the plan counts it, full of NaN. */
static void open_scratch(kd_stack *stack, parity *p, const operands *o, kd_op_id op,
                         const void *args)
{
    *stack = (kd_stack){ .planning = true };
    kd_exec planner = { .device = p->gpu, .stack = stack };
    test_ok(run_on(&planner, o, op, args));
    test_ok(kd_stack_open(stack, p->gpu));
}

static kd_status run_gpu(parity *p, operands *o, kd_op_id op, const void *args)
{
    kd_stack stack;
    open_scratch(&stack, p, o, op, args);
    kd_exec exec = { .device = p->gpu, .stack = &stack };
    const kd_device_type *type = p->gpu->type;
    test_ok(type->fill(p->gpu, NULL, stack.base, 0xff, stack.capacity));
    for (int i = 0; i < o->copy_count; i++)
        test_ok(type->upload(p->gpu, NULL, o->copies[i].device, o->copies[i].before,
                             o->copies[i].block->bytes));
    const kd_status status = run_on(&exec, o, op, args);
    for (int i = 0; i < o->copy_count; i++)
        test_ok(type->download(p->gpu, NULL, o->copies[i].after, o->copies[i].device,
                               o->copies[i].block->bytes));
    test_ok(type->sync(p->gpu, NULL));
    kd_stack_close(&stack, p->gpu);
    return status;
}

/* ---- comparing -------------------------------------------------------------------------------- */

/* An operand as it lies in the GPU's copy. */
static kd_tensor after_view(const operands *o, int i)
{
    const copy *c = &o->copies[o->at[i]];
    kd_tensor t = *o->host[i];
    t.data = c->after + ((const unsigned char *)t.data - c->block->base);
    return t;
}

static void mark(unsigned char *marks, const test_block *block, const kd_tensor *t)
{
    const size_t size = kd_dtype_size(t->dtype);
    for (int64_t i = 0, n = kd_tensor_elements(t); i < n; i++) {
        int64_t rest = i, offset = 0;
        for (int32_t d = t->rank - 1; d >= 0; rest /= t->shape[d], d--)
            offset += rest % t->shape[d] * t->stride[d];
        memset(marks + ((unsigned char *)t->data - block->base) + offset * (int64_t)size, 1, size);
    }
}

static void check_untouched(const operands *o, const char *name)
{
    for (int c = 0; c < o->copy_count; c++) {
        const copy *at = &o->copies[c];
        unsigned char *written = calloc(at->block->bytes, 1);
        cr_assert_not_null(written);
        for (int i = 0; i < o->count; i++)
            if (o->host[i] && o->at[i] == c && o->list[i].role != KD_ROLE_IN)
                mark(written, at->block, o->host[i]);
        for (size_t b = 0; b < at->block->bytes; b++)
            cr_assert(written[b] || at->before[b] == at->after[b],
                      "%s: byte %zu of a block was written; it is not part of an output", name, b);
        free(written);
    }
}

static void check_near(const operands *o, double scale, double length, const char *name)
{
    for (int i = 0; i < o->count; i++) {
        if (!o->host[i] || o->list[i].role == KD_ROLE_IN || o->host[i]->dtype == KD_U8) continue;
        const kd_tensor got = after_view(o, i), *want = o->host[i];
        for (int64_t e = 0, n = kd_tensor_elements(want); e < n; e++)
            test_near_value(test_get(&got, e), test_get(want, e), want->dtype, 2, scale, length,
                            "%s: %s[%lld]", name, o->list[i].name, (long long)e);
    }
}

void parity_run(parity *p, kd_op_id op, const void *args, double scale, double length,
                const char *name)
{
    operands o;
    open_operands(&o, p, op, args);
    cr_assert(kd_op_infos[op].present(p->gpu->ops), "%s: no CUDA function", kd_op_infos[op].name);
    test_ok(run_gpu(p, &o, op, args));
    for (int i = 0; i < o.copy_count;
         i++) { /* the second run's results go where the first's were */
        unsigned char *first = o.copies[i].after;
        o.copies[i].after = malloc(o.copies[i].block->bytes);
        cr_assert_not_null(o.copies[i].after);
        memcpy(o.copies[i].block->base, first, o.copies[i].block->bytes);
        free(first);
    }
    test_ok(run_gpu(p, &o, op, args));
    for (int i = 0; i < o.copy_count; i++) {
        copy *c = &o.copies[i];
        cr_assert(memcmp(c->block->base, c->after, c->block->bytes) == 0,
                  "%s: two runs gave different bits", name);
        memcpy(c->block->base, c->before, c->block->bytes);
    }
    check_untouched(&o, name);
    test_ok(kd_op_run(&p->bench.exec, op, args));
    check_near(&o, scale, length, name);
    close_operands(&o, p);
}

kd_status parity_run_gpu(parity *p, kd_op_id op, const void *args)
{
    operands o;
    open_operands(&o, p, op, args);
    const kd_status status = run_gpu(p, &o, op, args);
    check_untouched(&o, kd_op_infos[op].name);
    for (int i = 0; i < o.copy_count; i++)
        memcpy(o.copies[i].block->base, o.copies[i].after, o.copies[i].block->bytes);
    close_operands(&o, p);
    return status;
}
