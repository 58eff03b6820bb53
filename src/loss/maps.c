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

kd_status kd_maps_rows(kd_tensor *rows, const kd_tensor *maps, const char *what)
{
    KD_TRY(kd_maps_flat(rows, maps, what));
    if (maps->rank == 0) return KD_OK;
    const int64_t places = rows->shape[2];
    rows->rank = 2;
    rows->shape[1] *= places;
    rows->stride[1] = 1;
    if (maps->shape[1] <= 1 || maps->stride[1] == places) return KD_OK;
    return kd_fail(KD_EINVAL, "%s: maps lie %lld elements apart; expected %lld", what,
                   (long long)maps->stride[1], (long long)places);
}
