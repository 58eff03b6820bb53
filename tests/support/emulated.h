/* emulated.h - whether CUDA is emulated here; a switch of the emulator elsewhere does nothing. */
#ifndef KD_TEST_EMULATED_H
#define KD_TEST_EMULATED_H

#if __has_include(<cudasim.h>)
#include <cudasim.h>
enum { EMULATED = 1 };
#else
enum { EMULATED = 0 };
static inline void cudasim_set(const char *name, const char *value) { (void)name, (void)value; }
#endif

#endif
