/* The k-th allocation fails, for every k of load, train, save and resume. */
#include "allocation/failing.h"

#include <criterion/criterion.h>

Test(allocation, that_fails_anywhere_ends_loading_well) { test_failing(TEST_FAILING_VERBS, true); }
Test(allocation, that_fails_anywhere_ends_training_well) { test_failing(TEST_FAILING_TRAIN, true); }
Test(allocation, that_fails_anywhere_ends_resuming_well)
{
    test_failing(TEST_FAILING_RESUME, true);
}
