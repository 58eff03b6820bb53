#include "device/device.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct cpu_device {
    kd_device base;
    kd_dnn *dnn;
} cpu_device;

extern const kd_ops kd_ops_cpu; /* the table is ops' own; device only carries its address */

static int cpu_count(void) { return 1; }

static kd_status cpu_open(kd_device **device, int index)
{
    if (index > 0) return kd_fail(KD_EDEVICE, "cpu:%d: there is one, cpu:0", index);
    cpu_device *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return kd_fail(KD_ENOMEM, "cpu: no memory");
    cpu->base = (kd_device){ .type = &kd_device_cpu, .ops = kd_device_cpu.ops, .index = index };
    const kd_status status = kd_dnn_open(&cpu->dnn);
    if (status != KD_OK) {
        free(cpu);
        return status;
    }
    *device = &cpu->base;
    return KD_OK;
}

static void cpu_close(kd_device *device)
{
    cpu_device *cpu = (cpu_device *)device;
    kd_dnn_close(cpu->dnn);
    free(cpu);
}

kd_dnn *kd_cpu_dnn(kd_device *device) { return ((cpu_device *)device)->dnn; }

/* "model name : AMD EPYC" of /proc/cpuinfo.  Part of a checkpoint's contract, so it does not depend on
 * memory, as stdio does. */
static void processor_name(char *name, size_t size)
{
    char text[4096];
    const int file = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    const ssize_t bytes = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0) close(file);
    text[bytes > 0 ? bytes : 0] = '\0';
    const char *line = strstr(text, "model name"), *colon = line ? strstr(line, ": ") : NULL;
    if (colon)
        snprintf(name, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
    else
        snprintf(name, size, "processor");
}

static void cpu_describe(kd_device_info *info, const kd_device *device)
{
    (void)device;
    char processor[64];
    processor_name(processor, sizeof processor);
    info->threads = omp_get_max_threads();
    kd_dnn_version(info->software, sizeof info->software);
    info->memory = info->total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    snprintf(info->type, sizeof info->type, "cpu");
    snprintf(info->name, sizeof info->name, "%s, %d threads", processor, info->threads);
}

int64_t kd_cpu_rows(const kd_device_info *info)
{
    return kd_max_i64(256, 128 * (int64_t)info->threads);
}

static kd_status cpu_alloc(void **out, kd_device *device, size_t bytes)
{
    (void)device;
    const size_t size = kd_round_up(bytes ? bytes : 1, KD_STACK_ALIGN);
    *out = aligned_alloc(KD_STACK_ALIGN, size);
    if (!*out) return kd_fail(KD_ENOMEM, "%s", strerror(ENOMEM));
    memset(*out, 0, size);
    return KD_OK;
}

static void cpu_release(kd_device *device, void *memory)
{
    (void)device;
    free(memory);
}

static kd_status cpu_copy(kd_device *device, kd_queue *queue, void *to, const void *from,
                          size_t bytes)
{
    (void)device, (void)queue;
    if (bytes > 0) memcpy(to, from, bytes);
    return KD_OK;
}

static kd_status cpu_fill(kd_device *device, kd_queue *queue, void *to, int byte, size_t bytes)
{
    (void)device, (void)queue;
    if (bytes > 0) memset(to, byte, bytes);
    return KD_OK;
}

static kd_status cpu_sync(kd_device *device, kd_queue *queue)
{
    (void)device, (void)queue;
    return KD_OK;
}

const kd_device_type kd_device_cpu = {
    .name = "cpu",
    .ops = &kd_ops_cpu,
    .count = cpu_count,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .sync = cpu_sync,
};
