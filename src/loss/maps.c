#include "loss/maps.h"

kd_status kd_maps_flat(kd_tensor *flat, const kd_tensor *maps, const char *what)
{
    *flat = *maps;
    if (maps->rank == 0) return KD_OK; /* absent */
    flat->rank = 3;
    flat->shape[2] = maps->shape[2] * maps->shape[3];
    flat->stride[2] = maps->stride[3];
    if (maps->shape[2] <= 1 || maps->stride[2] == maps->shape[3] * maps->stride[3]) return KD_OK;
    return kd_fail(KD_EINVAL, "%s: rows of a map lie %lld elements apart; expected %lld", what,
                   (long long)maps->stride[2], (long long)(maps->shape[3] * maps->stride[3]));
}

kd_status kd_maps_match(const kd_tensor *student, const kd_tensor *teacher)
{
    const kd_shape s = kd_shape_of(student);
    return kd_tensor_expect(teacher, "teacher", -1, KD_SHAPE(s.dim[0], -1, s.dim[2], s.dim[3]));
}
