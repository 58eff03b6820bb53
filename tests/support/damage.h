/*
 * damage.h - a checkpoint as small as can be, whose files are damaged a bit or a byte at a time.
 */
#ifndef KD_TEST_DAMAGE_H
#define KD_TEST_DAMAGE_H

#include "support/students.h"

enum { TEST_DAMAGE_FILES = 9, TEST_DAMAGE_OF_ONE = 7 };
extern const char
    *const test_damage_files[TEST_DAMAGE_FILES]; /* the first is the manifest; the last
                                                                  two are of a second student */

/* A good checkpoint of step 1, then one of step 2: damage is done to the second. */
typedef struct test_damage {
    test_run run;
    char out[64], dir[96];
} test_damage;

void test_damage_open(test_damage *damage, int students);
void test_damage_close(test_damage *damage);

void test_xor_byte(const char *path, int64_t at, unsigned mask);

/* Each flips every `stride`th bit of `file`, or cuts it to every `stride`th length, one at a time: it is
 * found, and named by file, by tensor or header where there are such, and by offset; after
 * a cut the other checkpoint is the latest.  The file is whole again afterwards.  Returns how many were tried. */
int64_t test_damage_flip(const test_damage *damage, const char *file, int64_t first,
                         int64_t stride);
int64_t test_damage_cut(const test_damage *damage, const char *file, int64_t first, int64_t stride);

#endif
