/* golden.h - reads what other people's code computed (tests/golden), and what kd wrote. */
#ifndef KD_TEST_GOLDEN_H
#define KD_TEST_GOLDEN_H

#include "format/format.h"

/* An open file whose tensors are read whole.  Everything read dies with it. */
typedef struct test_golden {
    kd_arena *arena;
    kd_st_file *file;
} test_golden;

void test_golden_open(test_golden *golden, const char *path);
void test_golden_close(test_golden *golden);

/* They fail the test where there is no such tensor; `entry` (may be NULL) tells its shape. */
const float *test_golden_f32(const test_golden *golden, const char *name,
                             const kd_st_entry **entry);
const int32_t *test_golden_i32(const test_golden *golden, const char *name,
                               const kd_st_entry **entry);
const int64_t *test_golden_i64(const test_golden *golden, const char *name,
                               const kd_st_entry **entry);

#endif
