/* mpirun.h - programs that mpirun starts, for the tests of ranks that are processes. */
#ifndef KD_TEST_MPIRUN_H
#define KD_TEST_MPIRUN_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <unistd.h>

/* Skips the test where there is no mpirun, or a build without MPI. */
static inline void test_require_mpi(void)
{
#ifdef KD_MPIRUN
    if (access(KD_MPIRUN, X_OK) != 0) cr_skip_test("skipped: no %s", KD_MPIRUN);
    /* Open MPI as root, with more ranks than cores, any of them on any core; and a rank that dies
     * does not end the others, who are to find out. */
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
    setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 1);
    setenv("OMPI_MCA_orte_enable_recovery", "1", 1);
    setenv("OMP_NUM_THREADS", "1", 1);
    /* What MPI does not free is not ours to find. */
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
#else
    cr_skip_test("skipped: a build without MPI");
#endif
}

#endif
