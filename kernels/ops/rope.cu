/*
 * rope on CUDA; src/ops/rope.c has the definition.
 *
 * Grid      a block has the angles of 256 (row, pair)s: of several rows, or of a part of a long one.
 *           Their cosines and sines go to shared memory, and all its threads then turn all heads of
 *           those rows, 16 bytes of either half at a time (a pair, where halves are not aligned).
 * Traffic   x is read and written once: 4 bytes an element in bf16; positions and frequencies are
 *           nothing beside it.  Queries and keys that lie side by side are one x.
 * Numerics  the angle is one rounded product, its sine and cosine are within 2 ulp for every one.
 */
#include "common/rope.cuh"
#include "common/rows.cuh"

namespace {

template <class T> struct Params {
    T *x;
    int64_t row_stride, head_stride, rows;
    int heads, half;
    kd_turns turns;
};

template <class T, int W> __global__ void __launch_bounds__(KD_ANGLES) rope_kernel(Params<T> p)
{
    KD_SHARED(float2, turn, [KD_ANGLES]);
    const int pairs = min(p.half, KD_ANGLES), first = blockIdx.y * pairs;
    const int count = min(pairs, p.half - first), height = KD_ANGLES / pairs;
    const int64_t row = (int64_t)blockIdx.x * height;
    const int rows = (int)min((int64_t)height, p.rows - row);
    kd_make_turns(turn, p.turns, row, rows, first, pairs);
    __syncthreads();

    const int units = count / W, items = rows * p.heads * units;
    for (int i = threadIdx.x; i < items; i += KD_ANGLES) {
        const int at = i % units * W, head = i / units % p.heads, r = i / units / p.heads;
        T *low = p.x + (row + r) * p.row_stride + head * p.head_stride + first + at;
        T *high = low + p.half;
        float a[W], b[W];
        kd_load(a, low);
        kd_load(b, high);
        kd_turn(a, b, turn + r * pairs + at);
        kd_store(low, a);
        kd_store(high, b);
    }
}

template <class T> kd_status rope(kd_exec *exec, const kd_rope_args *args)
{
    constexpr int W = kd_width<T>;
    const kd_tensor *x = args->x;
    const kd_turns turns =
        kd_turns_of(args->positions, args->frequencies, args->scale, args->backward);
    const int64_t half = kd_tensor_elements(args->frequencies);
    const Params<T> p = { (T *)x->data,     x->stride[0], x->stride[1], x->shape[0],
                          (int)x->shape[1], (int)half,    turns };
    const int64_t pairs = kd_min_i64(half, KD_ANGLES);
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, KD_ANGLES / pairs),
                                (unsigned)kd_ceil_div(half, pairs)),
                           dim3(KD_ANGLES) };
    if (kd_rows_aligned(x) && half % W == 0)
        return kd_launch(exec, "rope", rope_kernel<T, W>, grid, p);
    return kd_launch(exec, "rope", rope_kernel<T, 1>, grid, p);
}

} // namespace

extern "C" kd_status kd_rope_cuda(kd_exec *exec, const kd_rope_args *args)
{
    const bool nothing =
        kd_tensor_elements(args->x) == 0 || kd_tensor_elements(args->frequencies) == 0;
    if (kd_planning(exec) || nothing) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, rope, exec, args);
}
