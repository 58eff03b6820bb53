/*
 * interpose.h - what the test program takes from the heap, and a heap that refuses.  interpose.c stands
 * before the C library's malloc and its kin in the programs that link it.
 */
#ifndef KD_TEST_INTERPOSE_H
#define KD_TEST_INTERPOSE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct test_heap {
    int64_t live_bytes, live_blocks; /* as the C library rounds them */
    int64_t calls;                   /* that gave memory, so far, to all but the next */
    int64_t library_calls;           /* by oneDNN and by the OpenMP runtime */
    int64_t aligned_bytes;           /* asked of aligned_alloc so far: device memory */
} test_heap;

/* False where there is nothing to stand before (another C library, a sanitizer's own heap). */
bool test_heap_read(test_heap *heap);

/* Refused are kd, jansson, libyaml and what the C library asks for on their behalf.  Never refused are the
 * OpenMP runtime, which then ends the process by itself, and oneDNN with its C++ library, which crash
 * (src/device/cpu_dnn.c asks for room before it lets them in). */
typedef struct test_heap_fault {
    int64_t at;      /* of their calls from now on, from 0, this one is refused; negative: none */
    bool for_good;   /* and every one after it */
    uint64_t *sites; /* [room]: where each comes from, a hash of its callers; NULL: not asked */
    int64_t room;
} test_heap_fault;

/* False where nothing can be refused. */
bool test_heap_arm(const test_heap_fault *fault);

/* How many there were since. */
int64_t test_heap_disarm(void);

/* Writes to stderr who asked for the first that was refused, for addr2line. */
void test_heap_print_refused(void);

#endif
