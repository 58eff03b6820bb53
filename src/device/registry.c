#include "device/device.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

const kd_device_type *const kd_device_types[] = { &kd_device_cuda, &kd_device_cpu, NULL };

static kd_status open_whole(kd_device **device, const kd_device_type *type, int index)
{
    KD_TRY(type->open(device, index));
    kd_status status = kd_device_debug(*device);
    if (status == KD_OK) status = kd_ops_complete(*device);
    if (status == KD_OK) return KD_OK;
    kd_device_close(*device);
    *device = NULL;
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
        if (index < 0 || index > INT_MAX)
            return kd_fail(KD_EINVAL, "device \"%s\": expected a number from 0", name);
        return open_whole(device, type, (int)index);
    }
    return kd_fail(KD_EINVAL, "device \"%s\": expected auto, cpu, cuda or cuda:N", name);
}

void kd_device_close(kd_device *device)
{
    if (!device) return;
    kd_device_close(device->host);
    device->type->close(device);
}

kd_status kd_device_on_cpu(kd_device *device, const char *names)
{
    KD_TRY(kd_ops_named(&device->on_cpu, names));
    device->graphs = false; /* it waits within an op */
    return device->host ? KD_OK : kd_device_cpu.open(&device->host, 0);
}

kd_status kd_device_debug(kd_device *device)
{
    const char *graphs = getenv("KD_GRAPHS"), *names = getenv("KD_ON_CPU");
    device->poison = getenv("KD_POISON") != NULL;
    if (graphs && strcmp(graphs, "0") == 0) device->graphs = false;
    return names && device->type != &kd_device_cpu ? kd_device_on_cpu(device, names) : KD_OK;
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

/* ---- memory and copies ------------------------------------------------------------------------ */

struct kd_allocation {
    kd_allocation *next;
    const void *memory;
    size_t bytes;
};

size_t kd_device_available(kd_device *device)
{
    kd_device_info info;
    if (device->type->available) return device->type->available(device);
    kd_device_describe(&info, device);
    return info.memory;
}

kd_status kd_device_alloc(void **out, kd_device *device, size_t bytes, const char *what)
{
    char text[32];
    kd_allocation *entry = malloc(sizeof *entry);
    const kd_status status = entry ? device->type->alloc(out, device, bytes)
                                   : kd_fail(KD_ENOMEM, "no memory to note it");
    if (status != KD_OK) {
        free(entry);
        return kd_fail(status, "%s: %s on %s: %s", what,
                       kd_format_bytes(text, sizeof text, (double)bytes), device->type->name,
                       kd_last_error());
    }
    *entry = (kd_allocation){ device->allocations, *out, bytes };
    device->allocations = entry;
    device->held += bytes;
    if (device->most < device->held) device->most = device->held;
    return KD_OK;
}

void kd_device_release(kd_device *device, void *memory)
{
    kd_allocation **at = &device->allocations, *entry;
    if (!memory) return;
    while ((*at)->memory != memory) at = &(*at)->next;
    entry = *at;
    *at = entry->next;
    device->held -= entry->bytes;
    free(entry);
    device->type->release(device, memory);
}

kd_status kd_device_alloc_host(void **out, kd_device *device, size_t bytes)
{
    if (device->type->alloc_host) return device->type->alloc_host(out, device, bytes);
    *out = calloc(1, bytes);
    return *out ? KD_OK : kd_fail(KD_ENOMEM, "%zu bytes of host memory", bytes);
}

void kd_device_release_host(kd_device *device, void *memory)
{
    if (!memory) return;
    if (device->type->release_host)
        device->type->release_host(device, memory);
    else
        free(memory);
}

kd_status kd_upload(kd_exec *exec, const kd_tensor *to, const void *from)
{
    if (kd_planning(exec)) return KD_OK;
    return exec->device->type->upload(exec->device, exec->queue, to->data, from,
                                      kd_tensor_bytes(to));
}

kd_status kd_download(kd_exec *exec, void *to, const kd_tensor *from)
{
    if (kd_planning(exec)) return KD_OK;
    return exec->device->type->download(exec->device, exec->queue, to, from->data,
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

/* ---- events and graphs ------------------------------------------------------------------------ */

kd_status kd_event_create(kd_event **event, kd_device *device)
{
    *event = NULL;
    return device->type->event_create ? device->type->event_create(event, device) : KD_OK;
}

void kd_event_destroy(kd_device *device, kd_event *event)
{
    if (event) device->type->event_destroy(device, event);
}

kd_status kd_event_record(kd_exec *exec, kd_event *event)
{
    return event ? exec->device->type->event_record(exec->device, exec->queue, event) : KD_OK;
}

kd_status kd_event_await(kd_exec *exec, kd_event *event)
{
    return event ? exec->device->type->event_await(exec->device, exec->queue, event) : KD_OK;
}

kd_status kd_event_sync(kd_device *device, kd_event *event)
{
    return event ? device->type->event_sync(device, event) : KD_OK;
}

kd_status kd_capture_begin(kd_exec *exec)
{
    return exec->device->type->capture_begin(exec->device, exec->queue);
}

kd_status kd_capture_end(kd_graph **graph, kd_exec *exec)
{
    return exec->device->type->capture_end(graph, exec->device, exec->queue);
}

kd_status kd_graph_launch(kd_exec *exec, kd_graph *graph)
{
    return exec->device->type->graph_launch(exec->device, exec->queue, graph);
}

void kd_graph_destroy(kd_device *device, kd_graph *graph)
{
    if (graph) device->type->graph_destroy(device, graph);
}

/* ---- stacks ----------------------------------------------------------------------------------- */

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
