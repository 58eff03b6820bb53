/* distance.h - row_distance in double; src/ops/row_distance.c has the formulas. */
#ifndef KD_ORACLE_DISTANCE_H
#define KD_ORACLE_DISTANCE_H

#include "ops/ops.h"

/* The value between x and y [columns]; `gradient` [columns] (may be NULL) is that with respect to x. */
double oracle_distance(double *gradient, const double *x, const double *y, int64_t columns,
                       kd_distance kind);

#endif
