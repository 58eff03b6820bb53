/* feature.h - feature and relation losses: against tests/golden/losses, and what must not change them. */
#ifndef KD_TEST_SUPPORT_FEATURE_H
#define KD_TEST_SUPPORT_FEATURE_H

#include "loss/loss.h"

/* Runs every file of `folder` on `device` through kd_feature_file, and fails unless every tensor that comes
 * out is there and within `slack` times its tolerance; and unless each loss has a file. */
void test_golden_features(const char *folder, const char *device, double slack);

double test_total(const kd_tensor *t);
double test_largest(const kd_tensor *t); /* of |t|, which must be finite */

/* Turns each row of the last dimension in its planes 0-1, 1-2 and so on, by angles of their own. */
void test_rotate(const kd_tensor *t);

#endif
