/* An allocation fails, once from every place that allocates; slow_failing.c: every one of them. */
#include "allocation/failing.h"

#include <criterion/criterion.h>

Test(allocation, that_fails_ends_a_verb_well) { test_failing(TEST_FAILING_VERBS, false); }
Test(allocation, that_fails_ends_training_well) { test_failing(TEST_FAILING_TRAIN, false); }
Test(allocation, that_fails_ends_resuming_well) { test_failing(TEST_FAILING_RESUME, false); }
