/*
 * attention_statistics.cuh - what the gradient of attention wants of every query row: its log-sum-exp
 * in the base of the exponentials, and delta = o' dout.  Of attention_backward.cu alone.
 */
#ifndef KD_ATTENTION_STATISTICS_CUH
#define KD_ATTENTION_STATISTICS_CUH

#include "ops/attention.cuh"

namespace {

constexpr float LOG2E = 1.44269504f;

/* Of a query row, as the scores want it. */
struct alignas(8) Statistics {
    float lse; /* times log2 e; 0 where it is -inf: the weights are then 2^-inf */
    float delta;
};

constexpr int ROW_LANES = 8, ROW_THREADS = 128; /* lanes of a row: 16 bytes each */

struct StatisticsParams {
    Statistics *to; /* [H, stride] */
    kd_heads<const bf16> o, dout;
    kd_heads<const float> lse;
    int64_t rows, stride;
    int heads, d;
};

__global__ void __launch_bounds__(ROW_THREADS) statistics_kernel(StatisticsParams p)
{
    const int64_t task = (int64_t)blockIdx.x * (ROW_THREADS / ROW_LANES) + threadIdx.x / ROW_LANES;
    const int64_t row = min(task / p.heads, p.rows - 1), head = task % p.heads;
    const int lane = threadIdx.x % ROW_LANES;
    float sum = 0;
    for (int c = lane * 8; c < p.d; c += ROW_LANES * 8) {
        float o[8], dout[8];
        kd_load(o, p.o.at(row, head) + c);
        kd_load(dout, p.dout.at(row, head) + c);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += o[i] * dout[i];
    }
#pragma unroll
    for (int lanes = ROW_LANES / 2; lanes > 0; lanes /= 2)
        sum += __shfl_xor_sync(KD_ALL_LANES, sum, lanes);
    if (lane != 0 || task >= p.rows * p.heads) return;
    const float lse = *p.lse.at(row, head);
    p.to[head * p.stride + row] = { lse == -INFINITY ? 0 : lse * LOG2E, sum };
}

} // namespace

#endif
