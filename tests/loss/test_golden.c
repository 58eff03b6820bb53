/* Feature and relation losses against PyTorch's statement of their papers, from file to file. */
#include "support/feature.h"

#include <criterion/criterion.h>

Test(golden, values_and_gradients_are_pytorchs)
{
    test_golden_features(KD_GOLDEN "/losses", "cpu", 1);
}
