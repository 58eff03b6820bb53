#include "device/device.h"

#include <assert.h>

static size_t array_bytes(int64_t elements, kd_dtype dtype)
{
    return kd_round_up((size_t)elements * kd_dtype_size(dtype), KD_STACK_ALIGN);
}

size_t kd_slab_bytes(const kd_params *params, kd_dtype dtype, bool trainable, int moments)
{
    size_t bytes = array_bytes(params->elements, dtype);
    if (trainable) {
        const size_t parallel = 1 + (size_t)moments + (dtype != KD_F32);
        bytes += parallel * array_bytes(params->elements, KD_F32);
    }
    if (params->codes > 0)
        bytes += array_bytes(params->codes, KD_F8_E4M3) + array_bytes(params->scales, KD_F32);
    return bytes + array_bytes(params->states, KD_F32);
}

/* One array of the slab: from the device, or an address nobody may touch. */
static kd_status take_array(kd_tensor *out, kd_slab *slab, kd_dtype dtype, int64_t elements,
                            const char *what, bool planning)
{
    void *data = (void *)((uintptr_t)1 << 46); /* where no planned stack comes */
    if (!planning) KD_TRY(kd_device_alloc(&data, slab->device, array_bytes(elements, dtype), what));
    *out = kd_tensor_of(data, dtype, KD_SHAPE(elements));
    return KD_OK;
}

static kd_status take(kd_tensor *out, kd_slab *slab, kd_dtype dtype, const char *what,
                      bool planning)
{
    return take_array(out, slab, dtype, slab->params.elements, what, planning);
}

static kd_status take_codes(kd_slab *slab, bool planning)
{
    const kd_params *p = &slab->params;
    if (p->codes == 0) return KD_OK;
    assert(!slab->trainable);
    KD_TRY(take_array(&slab->codes, slab, KD_F8_E4M3, p->codes, "e4m3 weights", planning));
    return take_array(&slab->scales, slab, KD_F32, p->scales, "scales", planning);
}

kd_status kd_slab_open(kd_slab *slab, kd_device *device, const kd_params *params, kd_dtype dtype,
                       bool trainable, int moments, bool planning)
{
    *slab = (kd_slab){ .device = planning ? NULL : device,
                       .params = *params,
                       .dtype = dtype,
                       .trainable = trainable,
                       .moments = trainable ? moments : 0 };
    kd_status status;
    KD_TRY_GOTO(take(&slab->weights, slab, dtype, "weights", planning), status, failed);
    KD_TRY_GOTO(take_codes(slab, planning), status, failed);
    if (params->states > 0)
        KD_TRY_GOTO(take_array(&slab->states, slab, KD_F32, params->states, "states", planning),
                    status, failed);
    if (!trainable) return KD_OK;
    KD_TRY_GOTO(take(&slab->gradients, slab, KD_F32, "gradients", planning), status, failed);
    for (int i = 0; i < slab->moments; i++)
        KD_TRY_GOTO(take(&slab->moment[i], slab, KD_F32, "moments", planning), status, failed);
    if (dtype != KD_F32)
        KD_TRY_GOTO(take(&slab->masters, slab, KD_F32, "f32 masters", planning), status, failed);
    return KD_OK;
failed:
    kd_slab_close(slab);
    return status;
}

void kd_slab_close(kd_slab *slab)
{
    if (slab->device) {
        kd_device_release(slab->device, slab->weights.data);
        kd_device_release(slab->device, slab->codes.data);
        kd_device_release(slab->device, slab->scales.data);
        kd_device_release(slab->device, slab->states.data);
        kd_device_release(slab->device, slab->masters.data);
        kd_device_release(slab->device, slab->gradients.data);
        kd_device_release(slab->device, slab->moment[0].data);
        kd_device_release(slab->device, slab->moment[1].data);
    }
    *slab = (kd_slab){ 0 };
}

static kd_tensor view(const kd_slab *slab, const kd_tensor *array, int index)
{
    if (index < 0 || !kd_present(array)) return (kd_tensor){ 0 };
    const kd_param *p = &slab->params.items[index];
    char *at = (char *)array->data + p->offset * (int64_t)kd_dtype_size(array->dtype);
    return kd_tensor_of(at, array->dtype, p->shape);
}

static bool has_flag(const kd_slab *slab, int index, kd_param_flag flag)
{
    return index >= 0 && slab->params.items[index].flags & flag;
}

kd_tensor kd_slab_weight(const kd_slab *slab, int index)
{
    if (has_flag(slab, index, KD_PARAM_E4M3)) return view(slab, &slab->codes, index);
    if (has_flag(slab, index, KD_PARAM_STATE)) return view(slab, &slab->states, index);
    return view(slab, &slab->weights, index);
}

kd_tensor kd_slab_scale(const kd_slab *slab, int index)
{
    if (!has_flag(slab, index, KD_PARAM_E4M3)) return (kd_tensor){ 0 };
    const kd_param *p = &slab->params.items[index];
    return kd_tensor_slice(&slab->scales, 0, p->scale, p->shape.dim[0]);
}

kd_tensor kd_slab_gradient(const kd_slab *slab, int index)
{
    if (has_flag(slab, index, KD_PARAM_STATE)) return (kd_tensor){ 0 };
    return view(slab, &slab->gradients, index);
}

kd_tensor kd_slab_master(const kd_slab *slab, int index)
{
    if (has_flag(slab, index, KD_PARAM_STATE) || !kd_present(&slab->masters))
        return kd_slab_weight(slab, index);
    return view(slab, &slab->masters, index);
}
