/* A GPU that is not here: `kd estimate` plans for it. */
#include "device/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

typedef struct meta_device {
    kd_device base;
    char name[64];
    double memory;
    kd_cuda_limits limits;
} meta_device;

extern const kd_ops kd_ops_meta;

static int meta_count(void) { return 0; /* never found by "auto" */ }

static kd_status meta_open(kd_device **device, int index)
{
    (void)device;
    return kd_fail(KD_EDEVICE, "meta:%d: a planned device has a size; see kd_device_open_meta",
                   index);
}

static void meta_close(kd_device *device) { free(device); }

static void meta_describe(kd_device_info *info, const kd_device *device)
{
    const meta_device *meta = (const meta_device *)device;
    snprintf(info->type, sizeof info->type, "plan");
    snprintf(info->name, sizeof info->name, "%s", meta->name);
    info->memory = info->total = (size_t)meta->memory;
}

static kd_status meta_alloc(void **out, kd_device *device, size_t bytes)
{
    (void)out, (void)device;
    return kd_fail(KD_EINTERNAL, "%zu bytes of a device that is a plan", bytes);
}

const kd_device_type kd_device_meta = { .name = "plan",
                                        .count = meta_count,
                                        .open = meta_open,
                                        .close = meta_close,
                                        .describe = meta_describe,
                                        .alloc = meta_alloc };

/* Names in common use, the first for a mere size; memory as the driver reports it, in bytes. */
static const struct {
    const char *name;
    double bytes;
    kd_cuda_limits limits; /* of which scratch depends on capability, processors, shared memory */
} known[] = { { "h100-80g", 79.6 * (1 << 30), { 90, 132, 227 << 10, 50 << 20, 0 } },
              { "h200-141g", 140.4 * (1 << 30), { 90, 132, 227 << 10, 50 << 20, 0 } },
              { "a100-80g", 79.3 * (1 << 30), { 80, 108, 163 << 10, 40 << 20, 0 } },
              { "a100-40g", 39.5 * (1 << 30), { 80, 108, 163 << 10, 40 << 20, 0 } },
              { "l40s-48g", 44.5 * (1 << 30), { 89, 142, 99 << 10, 96 << 20, 0 } },
              { "rtx4090-24g", 23.6 * (1 << 30), { 89, 128, 99 << 10, 72 << 20, 0 } } };

static bool parse_card(double *bytes, kd_cuda_limits *limits, const char *name)
{
    char *end;
    *bytes = strtod(name, &end) * 1e9;
    *limits = known[0].limits;
    if (end != name && *bytes > 0.0 && (strcasecmp(end, "GB") == 0 || strcasecmp(end, "G") == 0))
        return true;
    for (int i = 0; i < KD_COUNT(known); i++) {
        if (strcasecmp(name, known[i].name) != 0) continue;
        *bytes = known[i].bytes;
        *limits = known[i].limits;
        return true;
    }
    return false;
}

kd_status kd_device_open_meta(kd_device **device, const char *name)
{
    double bytes;
    kd_cuda_limits limits;
    if (!parse_card(&bytes, &limits, name))
        return kd_fail(KD_EINVAL,
                       "device \"%s\": expected cpu, a size such as 80GB, or one of h100-80g "
                       "h200-141g a100-80g a100-40g l40s-48g rtx4090-24g",
                       name);
    meta_device *meta = calloc(1, sizeof *meta);
    if (!meta) return kd_fail(KD_ENOMEM, "plan: no memory");
    meta->base = (kd_device){ .type = &kd_device_meta,
                              .ops = kd_device_cuda.ops ? kd_device_cuda.ops : &kd_ops_meta,
                              .card = &meta->limits };
    meta->memory = bytes;
    meta->limits = limits;
    snprintf(meta->name, sizeof meta->name, "%s", name);
    *device = &meta->base;
    return KD_OK;
}
