/* An allocation fails, once from every place that allocates; slow_failing.c: every one of them. */
#include "allocation/failing.h"

#include <criterion/criterion.h>

Test(allocation, that_fails_ends_every_verb_well)
{
    test_failing((test_failing_options){ .per_site = 1, .for_good = true });
}
