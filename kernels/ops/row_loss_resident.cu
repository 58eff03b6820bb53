/* row_loss over rows held in shared memory: row_loss.cu. */
#include "ops/row_loss_launch.cuh"

kd_status kd_row_loss_resident(kd_exec *exec, int rows, kd_row_params *p, kd_dtype student,
                               kd_dtype teacher)
{
    return launch_types<true>(exec, rows, *p, student, teacher);
}
