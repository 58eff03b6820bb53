#include "device/device.h"

#include <stdlib.h>
#include <string.h>

const kd_device_type *const kd_device_types[] = { &kd_device_cuda, &kd_device_cpu, NULL };

static kd_status open_whole(kd_device **device, const kd_device_type *type, int index)
{
    KD_TRY(type->open(device, index));
    const kd_status status = kd_ops_complete((*device)->ops, type->name);
    if (status != KD_OK) type->close(*device);
    return status;
}

static kd_status open_auto(kd_device **device)
{
    for (int i = 0; kd_device_types[i]; i++)
        if (kd_device_types[i]->count() > 0) return open_whole(device, kd_device_types[i], 0);
    return kd_fail(KD_EDEVICE, "no device found");
}

kd_status kd_device_open(kd_device **device, const char *name)
{
    if (strcmp(name, "auto") == 0) return open_auto(device);
    const size_t length = strcspn(name, ":");
    for (int i = 0; kd_device_types[i]; i++) {
        const kd_device_type *type = kd_device_types[i];
        if (strlen(type->name) != length || strncmp(type->name, name, length) != 0) continue;
        char *end = NULL;
        const long index = name[length] ? strtol(name + length + 1, &end, 10) : 0;
        if (end && (*end || end == name + length + 1))
            return kd_fail(KD_EINVAL, "device \"%s\": expected a number after ':'", name);
        if (index < 0 || index >= type->count())
            return kd_fail(KD_EDEVICE, "device \"%s\": this machine and build have %d of type %s",
                           name, type->count(), type->name);
        return open_whole(device, type, (int)index);
    }
    return kd_fail(KD_EINVAL, "device \"%s\": expected auto, cpu, cuda or cuda:N", name);
}

void kd_device_close(kd_device *device)
{
    if (device) device->type->close(device);
}

void kd_device_each(void (*visit)(void *, const char *, int), void *context)
{
    for (int i = 0; kd_device_types[i]; i++)
        visit(context, kd_device_types[i]->name, kd_device_types[i]->count());
}

void kd_device_describe(kd_device_info *info, const kd_device *device)
{
    *info = (kd_device_info){ 0 };
    device->type->describe(info, device);
}

kd_status kd_device_alloc(void **out, kd_device *device, size_t bytes, const char *what)
{
    if (device->type->alloc(out, device, bytes) == KD_OK) return KD_OK;
    return kd_fail(KD_ENOMEM, "%s: %.2f GB on %s: %s", what, (double)bytes / 1e9,
                   device->type->name, kd_last_error());
}

void kd_device_release(kd_device *device, void *memory)
{
    if (memory) device->type->release(device, memory);
}

kd_status kd_upload(kd_exec *exec, const kd_tensor *to, const void *from)
{
    if (kd_planning(exec)) return KD_OK;
    return exec->device->type->copy(exec->device, exec->queue, to->data, from, kd_tensor_bytes(to));
}

kd_status kd_download(kd_exec *exec, void *to, const kd_tensor *from)
{
    if (kd_planning(exec)) return KD_OK;
    return exec->device->type->copy(exec->device, exec->queue, to, from->data,
                                    kd_tensor_bytes(from));
}

kd_status kd_sync(kd_exec *exec)
{
    return kd_planning(exec) ? KD_OK : exec->device->type->sync(exec->device, exec->queue);
}

kd_status kd_device_tune(kd_exec *exec)
{
    const kd_device_type *type = exec->device->type;
    return type->tune ? type->tune(exec) : KD_OK;
}

kd_status kd_stack_open(kd_stack *stack, kd_device *device)
{
    void *base;
    KD_TRY(kd_device_alloc(&base, device, stack->peak, "activations and scratch"));
    stack->base = base;
    stack->capacity = stack->peak;
    stack->used = 0;
    stack->count = 0;
    stack->planning = false;
    stack->entries = NULL;
    return KD_OK;
}

void kd_stack_close(kd_stack *stack, kd_device *device)
{
    kd_device_release(device, stack->base);
    stack->base = NULL;
    stack->capacity = 0;
}
