/*
 * The start of a run in a folder where another run, or an earlier one, has been: killed, failed, cut
 * off the power, damaged since, or still there.
 */
#include "support/short_run.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

Test(start, after_a_fault_ends_with_the_same_bits)
{
    test_short_run r;
    if (!test_can_trace()) return;
    test_short_run_open(&r, KD_GOLDEN);
    for (int i = 0; i < TEST_FAULTS; i++)
        test_short_run_fail(&r, &test_faults[i], 5 + 11 * i, i == 0 ? 17 : 251);
    test_short_run_close(&r);
}

Test(start, after_a_power_cut_ends_with_the_same_bits)
{
    test_short_run r;
    if (!test_can_trace()) return;
    test_short_run_open(&r, KD_GOLDEN);
    test_short_run_cut(&r, 3, 71);
    test_short_run_close(&r);
}
