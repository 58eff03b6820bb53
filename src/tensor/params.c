#include "tensor/tensor.h"

static kd_status grow(kd_params *params)
{
    const int capacity = params->capacity ? 2 * params->capacity : 64;
    kd_param *items;
    KD_TRY(KD_ARENA_ARRAY(&items, params->arena, capacity));
    if (params->count) memcpy(items, params->items, (size_t)params->count * sizeof *items);
    params->items = items;
    params->capacity = capacity;
    return KD_OK;
}

kd_status kd_params_declare(int *index, kd_params *params, const char *name, kd_shape shape,
                            unsigned flags, int block)
{
    if (params->count == params->capacity) KD_TRY(grow(params));
    kd_param *p = &params->items[params->count];
    *p = (kd_param){ .shape = shape, .flags = flags, .block = block };
    KD_TRY(kd_arena_string(&p->name, params->arena, name));
    *index = params->count++;
    return KD_OK;
}

static int64_t padded(int64_t n) { return kd_ceil_div(n, KD_PARAM_ALIGN) * KD_PARAM_ALIGN; }

void kd_params_layout(kd_params *params)
{
    int64_t extra = INT64_MAX;
    params->trained = 0;
    params->elements = params->states = params->codes = params->scales = params->scalars = 0;
    for (int i = 0; i < params->count; i++) {
        kd_param *p = &params->items[i];
        int64_t n = 1;
        for (int32_t d = 0; d < p->shape.rank; d++) n *= p->shape.dim[d];
        int64_t *total = p->flags & KD_PARAM_E4M3    ? &params->codes
                         : p->flags & KD_PARAM_STATE ? &params->states
                                                     : &params->elements;
        p->offset = *total;
        *total += padded(n);
        if (total == &params->states) continue;
        params->trained = i + 1;
        if (p->flags & KD_PARAM_EXTRA)
            extra = kd_min_i64(extra, p->offset);
        else
            params->scalars += n;
        if (total != &params->codes) continue;
        p->scale = params->scales;
        params->scales += padded(p->shape.dim[0]);
    }
    params->extra = kd_min_i64(extra, params->elements);
}
