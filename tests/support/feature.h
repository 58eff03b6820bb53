/* feature.h - feature and relation losses against tests/golden/losses. */
#ifndef KD_TEST_SUPPORT_FEATURE_H
#define KD_TEST_SUPPORT_FEATURE_H

#include "loss/loss.h"

/* Runs every file of `folder` on `device` through kd_feature_file, and fails unless every tensor that comes
 * out is there and within `slack` times its tolerance; and unless each loss has a file. */
void test_golden_features(const char *folder, const char *device, double slack);

#endif
