/*
 * qk_norm_rope and its gradient on CUDA; src/ops/qk_norm.c has the definitions.
 *
 * Grid      a block of 256 threads has the turns of a few rows in shared memory (common/rope.cuh) and
 *           goes through their heads, 8, 16 or 32 lanes to a head: a lane holds 16 bytes of either
 *           half of it, so that both elements of a pair are its own.  Heads that are not aligned or
 *           have more elements than that are 32 lanes' work, an element at a time.  Backward, as many
 *           blocks as are resident at once stride over the rows and keep their sums of the weights'
 *           gradients in registers.
 * Traffic   bytes an element of q and k in bf16: forward 4 (x, y), backward 6 (dy, x, dx); the norms,
 *           the copies and rope apart would move 12 and 14.  The partial sums are 2 d floats a block.
 * Numerics  f32 from the load to the one rounding of the store; rsqrtf is within 2 ulp, sine and cosine
 *           too.  The gradients of the weights: see common/partials.cuh.
 * Outputs   dx may be dy: a thread reads what it is about to overwrite.
 */
#include "common/partials.cuh"
#include "common/reduce.cuh"
#include "common/rope.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = KD_ANGLES, MOST_ROWS = 8, RESIDENT = 2;

/* [N, H + G, d], d contiguous. */
template <class T> struct Heads {
    T *data;
    int64_t row_stride, head_stride;

    __device__ __forceinline__ T *head(int64_t row, int head) const
    {
        return data + row * row_stride + head * head_stride;
    }
};

template <class T> Heads<T> heads_of(const kd_tensor *t)
{
    return { (T *)t->data, t->stride[0], t->stride[1] };
}

template <class T> struct Params {
    Heads<T> x, y;      /* forward: from x to y */
    Heads<T> dy, dx;    /* backward */
    const T *weight[2]; /* of q and of k */
    float *rstd;
    float *partial[2]; /* [blocks, size] of either weight's gradient; or NULL */
    kd_turns turns;
    int64_t rows;
    int all, heads, size; /* q and k; q alone; elements of a head */
    float eps;
};

/*
 * A head in registers: `low` has a lane's columns of the first half of the turned part and whatever
 * is never turned, `high` the partners of the former.  Slot s is column s and its partner s + half
 * for s < half, and column s + half alone beyond.
 */
template <int V, int W> struct Head {
    float low[V][W], high[V][W];
};

template <int W> struct Slot {
    int low, high; /* columns; negative: none */
};

template <int LANES, int W> __device__ __forceinline__ Slot<W> slot_of(int v, int size, int half)
{
    const int at = (v * LANES + threadIdx.x % LANES) * W;
    if (at < half) return { at, at + half };
    return { at + half < size ? at + half : -1, -1 };
}

template <int LANES, int V, int W, class T>
__device__ __forceinline__ void load_head(Head<V, W> &head, const T *from, int size, int half)
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        const Slot<W> slot = slot_of<LANES, W>(v, size, half);
#pragma unroll
        for (int k = 0; k < W; k++) head.low[v][k] = head.high[v][k] = 0;
        if (slot.low >= 0) kd_load(head.low[v], from + slot.low);
        if (slot.high >= 0) kd_load(head.high[v], from + slot.high);
    }
}

template <int LANES, int V, int W, class T>
__device__ __forceinline__ void store_head(T *to, const Head<V, W> &head, int size, int half)
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        const Slot<W> slot = slot_of<LANES, W>(v, size, half);
        if (slot.low >= 0) kd_store(to + slot.low, head.low[v]);
        if (slot.high >= 0) kd_store(to + slot.high, head.high[v]);
    }
}

template <int LANES, int V, int W>
__device__ __forceinline__ void turn_head(Head<V, W> &head, const float2 *turn, int size, int half)
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        const Slot<W> slot = slot_of<LANES, W>(v, size, half);
        if (slot.high >= 0) kd_turn(head.low[v], head.high[v], turn + slot.low);
    }
}

/* ---- kernels ---------------------------------------------------------------------------------- */

/* Rows whose heads a block turns at a time. */
constexpr int height_of(int half)
{
    return half == 0 || KD_ANGLES / half > MOST_ROWS ? MOST_ROWS : KD_ANGLES / half;
}

template <class T, int W, int LANES, int V>
__global__ void __launch_bounds__(THREADS) qk_norm_rope_kernel(Params<T> p)
{
    KD_SHARED(float2, turn, [KD_ANGLES]);
    const int height = height_of(p.turns.half);
    const int64_t row = (int64_t)blockIdx.x * height;
    const int rows = (int)min((int64_t)height, p.rows - row), items = rows * p.all;
    if (p.turns.half) kd_make_turns(turn, p.turns, row, rows, 0, p.turns.half);
    __syncthreads();
    for (int base = 0; base < items; base += THREADS / LANES) {
        const int item = base + threadIdx.x / LANES, r = item / p.all, head = item % p.all;
        const bool here = item < items;
        const int size = here ? p.size : 0, half = here ? p.turns.half : 0; /* else all is zero */
        Head<V, W> x, w;
        load_head<LANES>(x, p.x.head(row + r, head), size, half);
        load_head<LANES>(w, p.weight[head >= p.heads], size, half);
        float squares = 0;
#pragma unroll
        for (int i = 0; i < V * W; i++) {
            const float low = x.low[i / W][i % W], high = x.high[i / W][i % W];
            squares += low * low + high * high;
        }
        const float rstd = rsqrtf(kd_lanes_sum<LANES>(squares) / (float)p.size + p.eps);
        if (here && threadIdx.x % LANES == 0) p.rstd[(row + r) * p.all + head] = rstd;
#pragma unroll
        for (int i = 0; i < V * W; i++) {
            x.low[i / W][i % W] *= rstd * w.low[i / W][i % W];
            x.high[i / W][i % W] *= rstd * w.high[i / W][i % W];
        }
        turn_head<LANES>(x, turn + r * half, size, half);
        store_head<LANES>(p.y.head(row + r, head), x, size, half);
    }
}

/* dx of a head into `g`, which has dy turned back; and its share of the weight's gradient. */
template <int LANES, int V, int W>
__device__ __forceinline__ void gradient(Head<V, W> &g, Head<V, W> &dw, const Head<V, W> &x,
                                         const Head<V, W> &w, float rstd, float mean)
{
#pragma unroll
    for (int v = 0; v < V; v++)
#pragma unroll
        for (int k = 0; k < W; k++) {
            const float low = x.low[v][k] * rstd, high = x.high[v][k] * rstd;
            dw.low[v][k] += g.low[v][k] * low;
            dw.high[v][k] += g.high[v][k] * high;
            g.low[v][k] = rstd * (g.low[v][k] * w.low[v][k] - low * mean);
            g.high[v][k] = rstd * (g.high[v][k] * w.high[v][k] - high * mean);
        }
}

template <int LANES, int V, int W>
__device__ __forceinline__ void write_sums(float *to, const Head<V, W> &dw, float *buffer, int size,
                                           int half)
{
    if (!to) return;
#pragma unroll
    for (int v = 0; v < V; v++) {
        const Slot<W> slot = slot_of<LANES, W>(v, size, half);
        kd_put_partial<LANES>(buffer, slot.low, dw.low[v]);
        kd_put_partial<LANES>(buffer, slot.high, dw.high[v]);
    }
    kd_write_partial(to + (int64_t)blockIdx.x * size, buffer, size);
}

template <class T, int W, int LANES, int V>
__global__ void __launch_bounds__(THREADS, W > 1 ? RESIDENT : 1)
    qk_norm_rope_backward_kernel(Params<T> p)
{
    KD_SHARED(float2, turn, [KD_ANGLES]);
    KD_SHARED(float, buffer, [KD_PARTIAL_FLOATS]);
    const int height = height_of(p.turns.half);
    Head<V, W> dq = {}, dk = {};
    for (int64_t row = (int64_t)blockIdx.x * height; row < p.rows;
         row += (int64_t)gridDim.x * height) {
        const int rows = (int)min((int64_t)height, p.rows - row), items = rows * p.all;
        __syncthreads(); /* the turns of the rows before are read no more */
        if (p.turns.half) kd_make_turns(turn, p.turns, row, rows, 0, p.turns.half);
        __syncthreads();
        for (int base = 0; base < items; base += THREADS / LANES) {
            const int item = base + threadIdx.x / LANES, r = item / p.all, head = item % p.all;
            const bool here = item < items;
            const int size = here ? p.size : 0, half = here ? p.turns.half : 0;
            const float rstd = here ? p.rstd[(row + r) * p.all + head] : 0;
            Head<V, W> g, x, w;
            load_head<LANES>(g, p.dy.head(row + r, head), size, half);
            load_head<LANES>(x, p.x.head(row + r, head), size, half);
            load_head<LANES>(w, p.weight[head >= p.heads], size, half);
            turn_head<LANES>(g, turn + r * half, size, half);
            float sum = 0;
#pragma unroll
            for (int i = 0; i < V * W; i++)
                sum += g.low[i / W][i % W] * w.low[i / W][i % W] * x.low[i / W][i % W] +
                       g.high[i / W][i % W] * w.high[i / W][i % W] * x.high[i / W][i % W];
            const float mean = kd_lanes_sum<LANES>(sum * rstd) / (float)p.size;
            if (head < p.heads)
                gradient<LANES>(g, dq, x, w, rstd, mean);
            else
                gradient<LANES>(g, dk, x, w, rstd, mean);
            store_head<LANES>(p.dx.head(row + r, head), g, size, half);
        }
    }
    write_sums<LANES>(p.partial[0], dq, buffer, p.size, p.turns.half);
    write_sums<LANES>(p.partial[1], dk, buffer, p.size, p.turns.half);
}

/* ---- launching -------------------------------------------------------------------------------- */

template <class T, int W, int LANES, int V>
kd_status launch_with(kd_exec *exec, const Params<T> &p, int64_t blocks)
{
    const kd_grid grid = { dim3((unsigned)blocks), dim3(THREADS) };
    return p.dx.data
               ? kd_launch(exec, "qk_norm_rope_backward",
                           qk_norm_rope_backward_kernel<T, W, LANES, V>, grid, p)
               : kd_launch(exec, "qk_norm_rope", qk_norm_rope_kernel<T, W, LANES, V>, grid, p);
}

template <class T> kd_status launch(kd_exec *exec, const Params<T> &p, int64_t blocks, bool aligned)
{
    constexpr int W = kd_width<T>;
    const int units = (p.size - p.turns.half) / W;
    if (!aligned || p.turns.half % W != 0 || units > 32)
        return launch_with<T, 1, 32, KD_MAX_NORMED_HEAD / 32>(exec, p, blocks);
    if (units > 16) return launch_with<T, W, 32, 1>(exec, p, blocks);
    if (units > 8) return launch_with<T, W, 16, 1>(exec, p, blocks);
    return launch_with<T, W, 8, 1>(exec, p, blocks);
}

int half_of(const kd_tensor *frequencies)
{
    return kd_present(frequencies) ? (int)kd_tensor_elements(frequencies) : 0;
}

template <class T> kd_status forward(kd_exec *exec, const kd_qk_norm_rope_args *args)
{
    Params<T> p = {};
    p.x = heads_of<T>(args->x);
    p.y = heads_of<T>(args->y);
    p.weight[0] = (const T *)args->q_weight->data;
    p.weight[1] = (const T *)args->k_weight->data;
    p.rstd = (float *)args->rstd->data;
    if (half_of(args->frequencies))
        p.turns = kd_turns_of(args->positions, args->frequencies, args->scale, false);
    p.rows = args->x->shape[0];
    p.all = (int)args->x->shape[1];
    p.heads = (int)args->heads;
    p.size = (int)args->x->shape[2];
    p.eps = args->eps;
    return launch(exec, p, kd_ceil_div(p.rows, height_of(p.turns.half)),
                  kd_rows_aligned(args->x, args->y, args->q_weight, args->k_weight));
}

template <class T>
kd_status backward(kd_exec *exec, const kd_qk_norm_rope_backward_args *args, int64_t blocks,
                   const kd_partials &partials)
{
    Params<T> p = {};
    p.x = heads_of<T>(args->x);
    p.dy = heads_of<T>(args->dy);
    p.dx = heads_of<T>(args->dx);
    p.weight[0] = (const T *)args->q_weight->data;
    p.weight[1] = (const T *)args->k_weight->data;
    p.rstd = (float *)args->rstd->data;
    p.partial[0] = (float *)partials.from[0];
    p.partial[1] = (float *)partials.from[1];
    if (half_of(args->frequencies))
        p.turns = kd_turns_of(args->positions, args->frequencies, args->scale, true);
    p.rows = args->x->shape[0];
    p.all = (int)args->x->shape[1];
    p.heads = (int)args->heads;
    p.size = (int)args->x->shape[2];
    return launch(exec, p, blocks,
                  kd_rows_aligned(args->x, args->dy, args->dx, args->q_weight, args->k_weight));
}

} // namespace

extern "C" kd_status kd_qk_norm_rope_cuda(kd_exec *exec, const kd_qk_norm_rope_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, forward, exec, args);
}

extern "C" kd_status kd_qk_norm_rope_backward_cuda(kd_exec *exec,
                                                   const kd_qk_norm_rope_backward_args *args)
{
    const int64_t size = args->x->shape[2];
    const int64_t tiles = kd_ceil_div(args->x->shape[0], height_of(half_of(args->frequencies)));
    const int64_t blocks = kd_partial_blocks(exec, tiles, 1, RESIDENT);
    kd_partials partials;
    KD_TRY(kd_push_partials(&partials, exec, blocks, size, args->dq_weight, args->dk_weight));
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    KD_TRY(KD_BY_DTYPE(args->x->dtype, backward, exec, args, blocks, partials));
    return kd_add_partials(exec, partials);
}
