/* Feature and relation losses on a GPU, against PyTorch's statement of their papers. */
#include "support/feature.h"

#include <criterion/criterion.h>

Test(features, values_and_gradients_are_pytorchs)
{
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
    test_golden_features(KD_GOLDEN "/losses", "cuda", 4);
}
