/* Tensors without elements, whatever their other dimensions would make together. */
#include "support/support.h"
#include "tensor/tensor.h"

Test(tensor, of_no_elements_may_have_any_shape)
{
    static const kd_shape shapes[] = {
        { .rank = 4, .dim = { 0, 4, INT32_MAX, INT32_MAX } },
        { .rank = 4, .dim = { INT32_MAX, INT32_MAX, INT32_MAX, 0 } },
        { .rank = 3, .dim = { INT64_MAX, 0, INT64_MAX } },
    };
    for (int i = 0; i < KD_COUNT(shapes); i++) {
        const kd_tensor t = kd_tensor_of(NULL, KD_F32, shapes[i]);
        cr_expect(kd_tensor_elements(&t) == 0 && kd_tensor_bytes(&t) == 0, "shape %d", i);
        cr_expect(kd_tensor_contiguous(&t), "shape %d", i);
    }
}
