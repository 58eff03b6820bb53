/* vid.h - op vid in double, over contiguous [samples, channels, places]; src/ops/vid.c. */
#ifndef KD_ORACLE_VID_H
#define KD_ORACLE_VID_H

#include <stdint.h>

typedef struct oracle_vid {
    const double *student, *teacher, *log_variance, *weight; /* weight: or NULL */
    int64_t samples, channels, places;
    double eps;
} oracle_vid;

/* loss [samples]; d and d_log_variance += `scale` times the gradient of their sum, or NULL. */
void oracle_vid_run(double *loss, double *d, double *d_log_variance, const oracle_vid *v,
                    double scale);

#endif
