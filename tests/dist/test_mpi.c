/* Ranks that are processes (mpi_ranks.c): sums, broadcasts and barriers; a rank that is gone ends the
 * others' waiting, named; what fails is refused. */
#include "support/mpirun.h"
#include "support/support.h"

#include <stdio.h>
#include <string.h>

/* What mpirun itself ends with is no witness: where ranks leave it one by one it may crash (4.1.4). */
static void run_ranks(int size, const char *name)
{
#ifdef KD_MPIRUN
    char command[512], text[4096] = "";
    int good = 0;
    snprintf(command, sizeof command, "%s -n %d %s %s 2>&1 </dev/null", KD_MPIRUN, size,
             KD_MPI_RANKS, name);
    FILE *out = popen(command, "r");
    cr_assert(out, "%s", command);
    const size_t n = fread(text, 1, sizeof text - 1, out);
    text[n] = '\0';
    while (fgetc(out) != EOF) {
    }
    (void)pclose(out);
    for (const char *at = text; (at = strstr(at, ": good\n")); at++) good++;
    cr_assert(good == size, "%s: %d good ranks: %s", command, good, text);
#else
    (void)size, (void)name;
#endif
}

Test(mpi, sums_broadcasts_and_barriers)
{
    test_require_mpi();
    for (int size = 1; size <= 4; size++) run_ranks(size, "together");
}

Test(mpi, a_rank_that_stops_tells_the_others)
{
    static const char *const cases[] = { "told:all_reduce", "told:all_reduce_host",
                                         "told:broadcast", "told:barrier" };
    test_require_mpi();
    for (int i = 0; i < KD_COUNT(cases); i++) run_ranks(3, cases[i]);
}

Test(mpi, a_rank_that_is_silent_is_named)
{
    static const char *const cases[] = { "silent:all_reduce", "silent:broadcast" };
    test_require_mpi();
    for (int i = 0; i < KD_COUNT(cases); i++) run_ranks(3, cases[i]);
}

Test(mpi, another_launcher_is_found)
{
    test_require_mpi();
    run_ranks(2, "other");
}
