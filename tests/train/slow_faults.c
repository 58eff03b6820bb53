/* The faults of test_faults.c and test_start.c at more calls; kills at all of them. */
#include "support/short_run.h"

Test(faults, at_every_call_of_a_save)
{
    test_scene s;
    if (!test_can_trace()) return;
    for (int way = 0; way < 3; way++) { /* beside the old one, and in its place in two ways */
        test_scene_open(&s, way ? 2 : 1, 2);
        s.no_exchange = way == 2;
        for (int i = 0; i < TEST_FAULTS; i++) test_scene_fail(&s, &test_faults[i], 1);
        test_scene_close(&s);
    }
}

Test(faults, at_every_call_of_a_run)
{
    test_short_run r;
    if (!test_can_trace()) return;
    test_short_run_open(&r, KD_GOLDEN);
    for (int i = 0; i < TEST_FAULTS; i++)
        test_short_run_fail(&r, &test_faults[i], i, i == 0 ? 1 : 211);
    test_short_run_close(&r);
}

Test(faults, a_power_cut_in_a_run)
{
    test_short_run r;
    if (!test_can_trace()) return;
    test_short_run_open(&r, KD_GOLDEN);
    test_short_run_cut(&r, 0, 11);
    test_short_run_close(&r);
}
