/* distance.h - losses that are the distance of rows.  Internal to src/loss. */
#ifndef KD_LOSS_DISTANCE_H
#define KD_LOSS_DISTANCE_H

#include "loss/loss.h"

/* loss = factor times the distance of student and teacher, row by row. */
static inline kd_status kd_distance_run(kd_exec *exec, const kd_feature_args *args,
                                        kd_distance kind, double factor)
{
    return KD_RUN(exec, row_distance, .d_student = &args->d_student, .loss = &args->loss,
                  .student = &args->student, .teacher = &args->teacher, .weight = &args->weight,
                  .scale = &args->scale, .kind = kind, .factor = (float)factor);
}

#endif
