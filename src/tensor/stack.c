#include "tensor/tensor.h"

kd_status kd_stack_plan(kd_stack *stack, kd_arena *arena)
{
    *stack = (kd_stack){ .planning = true, .phase = "start", .peak_phase = "start" };
    KD_TRY(KD_ARENA_ARRAY(&stack->entries, arena, KD_STACK_ENTRIES));
    return KD_ARENA_ARRAY(&stack->peak_entries, arena, KD_STACK_ENTRIES);
}

static void record(kd_stack *stack, const char *name, size_t bytes)
{
    if (stack->entries && stack->count < KD_STACK_ENTRIES)
        stack->entries[stack->count] = (kd_stack_entry){ name, bytes };
    stack->count++;
    if (stack->used <= stack->peak) return;
    stack->peak = stack->used;
    stack->peak_phase = stack->phase;
    if (!stack->entries) return;
    stack->peak_count = stack->count < KD_STACK_ENTRIES ? stack->count : KD_STACK_ENTRIES;
    memcpy(stack->peak_entries, stack->entries, (size_t)stack->peak_count * sizeof *stack->entries);
}

kd_status kd_stack_push(kd_tensor *out, kd_stack *stack, const char *name, kd_dtype dtype,
                        kd_shape shape)
{
    int64_t bytes = (int64_t)kd_dtype_size(dtype);
    for (int32_t i = 0; i < shape.rank; i++)
        if (shape.dim[i] < 0 || !kd_mul_i64(&bytes, bytes, shape.dim[i]))
            return kd_fail(KD_EINVAL, "%s: dimension %d is %lld", name, (int)i,
                           (long long)shape.dim[i]);
    const size_t need = kd_round_up((size_t)bytes, KD_STACK_ALIGN);
    if (!stack->planning && need > stack->capacity - stack->used)
        return kd_fail(
            KD_EINTERNAL,
            "%s: %zu bytes at %zu do not fit the plan of %zu bytes; the plan did not run "
            "this code",
            name, need, stack->used, stack->capacity);
    /* While planning an address only has to be present and aligned. */
    unsigned char *at = stack->planning ? (unsigned char *)(uintptr_t)(KD_STACK_ALIGN + stack->used)
                                        : stack->base + stack->used;
    *out = kd_tensor_of(at, dtype, shape);
    stack->used += need;
    record(stack, name, need);
    return KD_OK;
}

kd_mark kd_stack_mark(const kd_stack *stack) { return (kd_mark){ stack->used, stack->count }; }

void kd_stack_release(kd_stack *stack, kd_mark mark)
{
    stack->used = mark.used;
    stack->count = mark.count;
}
