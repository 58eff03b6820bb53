#include "ops/rowio.h"

kd_status kd_expect_rows(const kd_tensor *t, const char *what)
{
    if (!kd_present(t)) return kd_fail(KD_EINVAL, "%s: absent", what);
    if (t->dtype != KD_F32 && t->dtype != KD_BF16)
        return kd_fail(KD_EINVAL, "%s: found %s, expected f32 or bf16", what,
                       kd_dtype_name(t->dtype));
    if (t->rank < 1 || t->rank > KD_MAX_RANK)
        return kd_fail(KD_EINVAL, "%s: found rank %d, expected 1 to %d", what, (int)t->rank,
                       (int)KD_MAX_RANK);
    const int32_t last = t->rank - 1;
    if (t->shape[last] > 1 && t->stride[last] != 1)
        return kd_fail(KD_EINVAL, "%s: found stride %lld in the last dimension, expected 1", what,
                       (long long)t->stride[last]);
    return KD_OK;
}

kd_status kd_expect_rows_of(const kd_tensor *t, const char *what, kd_dtype dtype, kd_shape shape)
{
    KD_TRY(kd_tensor_expect(t, what, (int)dtype, shape));
    return kd_expect_rows(t, what);
}

kd_status kd_expect_list(const kd_tensor *t, const char *what, kd_dtype dtype, int64_t count)
{
    char found[96];
    if (!kd_present(t)) return kd_fail(KD_EINVAL, "%s: absent", what);
    if (t->dtype != dtype || kd_tensor_elements(t) != count)
        return kd_fail(KD_EINVAL, "%s: found %s, expected %lld elements of %s", what,
                       kd_tensor_print(found, sizeof found, t), (long long)count,
                       kd_dtype_name(dtype));
    if (!kd_tensor_contiguous(t))
        return kd_fail(KD_EINVAL, "%s: found strides with gaps, expected contiguous elements",
                       what);
    return KD_OK;
}

kd_status kd_expect_ids(const kd_tensor *ids, const char *what, int64_t low, int64_t high)
{
    const int32_t *id = ids->data;
    for (int64_t n = 0, count = kd_tensor_elements(ids); n < count; n++)
        if (id[n] < low || id[n] >= high)
            return kd_fail(KD_EINVAL, "%s[%lld] is %d, expected %lld to %lld", what, (long long)n,
                           (int)id[n], (long long)low, (long long)high - 1);
    return KD_OK;
}
