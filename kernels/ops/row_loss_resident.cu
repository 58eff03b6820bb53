/* row_loss over rows held in shared memory: row_loss.cu. */
#include "ops/row_loss_launch.cuh"

extern "C" kd_status kd_row_loss_resident(kd_exec *exec, const kd_row_loss_args *args, int ranks)
{
    const int rows = (int)args->student->shape[0];
    Params p = params_of(args);
    p.ranks = ranks;
    if (args->student->dtype == KD_BF16) return launch_bf16<true>(exec, rows, p);
    return launch_any<true, float, float>(exec, rows, p);
}
