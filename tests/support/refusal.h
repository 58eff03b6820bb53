/* refusal.h - a refusal says what is wrong: its status, and each part of its message. */
#ifndef KD_TEST_REFUSAL_H
#define KD_TEST_REFUSAL_H

#include "base/base.h"

/* Fails, naming the case `what`, unless `found` is `expected` and the last message has every part of
 * `parts`, which '|' separates.  The test goes on.  Nothing is asked of the message of KD_OK. */
void test_refusal(kd_status found, kd_status expected, const char *parts, const char *what);

#endif
