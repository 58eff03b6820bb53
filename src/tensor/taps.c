#include "tensor/tensor.h"

kd_tap *kd_taps_find(kd_taps *taps, kd_tap_kind kind, int layer)
{
    for (int i = 0; i < taps->count; i++)
        if (taps->items[i].kind == kind && taps->items[i].layer == layer) return &taps->items[i];
    return NULL;
}

kd_status kd_taps_request(kd_taps *taps, kd_tap_kind kind, int layer, bool wants_gradient)
{
    kd_tap *tap = kd_taps_find(taps, kind, layer);
    if (!tap) {
        if (taps->count == KD_MAX_TAPS)
            return kd_fail(KD_EINVAL, "more than %d taps of one model", KD_MAX_TAPS);
        tap = &taps->items[taps->count++];
        *tap = (kd_tap){ .kind = kind, .layer = layer };
    }
    tap->wants_gradient |= wants_gradient;
    return KD_OK;
}
