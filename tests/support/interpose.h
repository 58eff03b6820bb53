/*
 * interpose.h - what the test program takes from the heap.  interpose.c stands before the C library's
 * malloc and its kin in the programs that link it.
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

#endif
