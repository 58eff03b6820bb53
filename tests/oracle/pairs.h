/*
 * pairs.h - losses over the pairs of a batch in double, straight from their formulas; contiguous
 * arrays.  The formulas stand at the heads of src/ops/normalise.c, pairs.c, pair_losses.c and
 * correlation.c.
 */
#ifndef KD_ORACLE_PAIRS_H
#define KD_ORACLE_PAIRS_H

#include <stdbool.h>
#include <stdint.h>

void oracle_normalise(double *y, double *norm, const double *x, int64_t rows, int64_t columns,
                      double eps, bool added);
/* dx is added to. */
void oracle_normalise_backward(double *dx, const double *dy, const double *x, int64_t rows,
                               int64_t columns, double eps, bool added);

/* y [rows, rows]; dx is added to. */
void oracle_pair_distances(double *y, const double *x, int64_t rows, int64_t columns);
void oracle_pair_distances_backward(double *dx, const double *dy, const double *x, int64_t rows,
                                    int64_t columns);

/* student, teacher [rows, rows]; w [rows] or NULL.  d may be NULL, and is else scale times the gradient
 * of the sum of `loss`, every element of `student` being a variable of its own. */
typedef struct oracle_pairs {
    const double *student, *teacher, *weight;
    double scale;
    int64_t rows;
} oracle_pairs;

void oracle_rkd_distance(double *d, double *loss, const oracle_pairs *p, bool whole);
void oracle_rkd_angle(double *d, double *loss, const oracle_pairs *p);
/* Here ij and ji are one variable: d_ij is the sum of both. */
void oracle_pkt(double *d, double *loss, const oracle_pairs *p, double eps);

/* student, teacher [rows, columns]; d is added to. */
void oracle_correlation(double *d, double *loss, const oracle_pairs *p, int64_t columns);

/* The sizes that a float's errors of the three are measured by, in loss and in d: what is summed, times
 * the condition of the terms. */
typedef struct oracle_size {
    double loss, d;
} oracle_size;

oracle_size oracle_rkd_distance_size(const oracle_pairs *p);
oracle_size oracle_rkd_angle_size(const oracle_pairs *p);
oracle_size oracle_pkt_size(const oracle_pairs *p, double eps);

#endif
