/*
 * crash.h - what a power cut may leave of a folder.  Writes, renames and fsyncs of a process are
 * recorded (tracer.h); the states of the disk that they allow are then made one by one, as ALICE does
 * (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
 *
 * Data is on the disk for certain after an fsync of its file, a name after an fsync of the folder
 * that it is in.  Until then either may be there or not, in any order; of data also a part, or zeros
 * in its place.  A rename is there or not, never half.
 */
#ifndef KD_TEST_CRASH_H
#define KD_TEST_CRASH_H

#include "support/tracer.h"

typedef struct test_disk test_disk;

/* All that lies below `root` now is on the disk. */
test_disk *test_disk_open(const char *root);
void test_disk_close(test_disk *disk);

/* For test_trace.seen, with the disk as its context. */
void test_disk_see(void *disk, const test_call *call);

int64_t test_disk_calls(const test_disk *disk); /* that changed or fsynced something */

/*
 * Makes `root` what variant `variant` (from 0) of a cut after the first `calls` leaves: everything,
 * nothing, data by halves or as zeros, every single one lost or alone kept, and draws.
 */
typedef enum test_cut {
    TEST_CUT_MADE,
    TEST_CUT_AGAIN, /* `root` is untouched: an earlier cut left the same */
    TEST_CUT_NONE   /* `root` is untouched: there is no such variant */
} test_cut;
test_cut test_disk_cut(test_disk *disk, int64_t calls, int variant);

#endif
