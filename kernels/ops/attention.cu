/* attention on CUDA; src/ops/attention.c has the mathematics. */
#include "ops/attention.cuh"

extern "C" kd_status kd_attention_cuda(kd_exec *exec, const kd_attention_args *args)
{
    return kd_attention_plain(exec, args);
}
