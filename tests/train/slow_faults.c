/* Every fault of test_faults.c and test_start.c at every call. */
#include "support/scene.h"

Test(faults, at_every_call_of_a_save)
{
    test_scene s;
    if (!test_can_trace()) return;
    for (int64_t before = 1; before <= 2; before++) {
        test_scene_open(&s, before, 2);
        for (int i = 0; i < TEST_FAULTS; i++) test_scene_fail(&s, &test_faults[i], 1);
        test_scene_close(&s);
    }
}
