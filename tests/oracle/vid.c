#include "oracle/vid.h"

#include <math.h>

void oracle_vid_run(double *loss, double *d, double *d_log_variance, const oracle_vid *v,
                    double scale)
{
    const int64_t each = v->channels * v->places;
    for (int64_t b = 0; b < v->samples; b++) {
        const double weight = v->weight ? v->weight[b] : 1;
        loss[b] = 0;
        for (int64_t i = 0; i < each && weight != 0; i++) {
            const int64_t c = i / v->places;
            const double a = v->log_variance[c], share = weight / (double)each;
            const double s = (a > 30 ? a : log(1 + exp(a))) + v->eps;
            const double e = v->student[b * each + i] - v->teacher[b * each + i];
            loss[b] += share * (e * e / s + log(s)) / 2;
            if (d) d[b * each + i] += scale * share * e / s;
            if (d_log_variance)
                d_log_variance[c] += scale * share * (1 / s - e * e / (s * s)) / 2 / (1 + exp(-a));
        }
    }
}
