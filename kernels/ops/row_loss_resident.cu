/* row_loss over rows held in shared memory: row_loss.cu. */
#include "ops/row_loss_launch.cuh"

kd_status kd_row_loss_resident(kd_exec *exec, int rows, kd_row_params *p, kd_dtype dtype)
{
    if (dtype == KD_BF16) return launch_bf16<true>(exec, rows, *p);
    return launch<true, Set<ANY, NONE>, float, float>(exec, rows, *p);
}
