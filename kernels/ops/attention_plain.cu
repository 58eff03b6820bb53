/*
 * attention and its gradient on CUDA, the plain way: any head size, stride and element type;
 * src/ops/attention.c has the mathematics.  Also who sees whom, for the fast way too.
 *
 * Grid      seen: a thread per row, over a block that reads all offsets to trust them.
 *           forward, delta, dq: a warp per query row and head; dk and dv: a warp per key row and key
 *           head, over the query heads of its group.  A warp takes 32 rows of the other side at a time:
 *           a lane for each while scores are computed, a lane for every 32nd column while rows are added.
 * Traffic   every row of the other side that is seen, per row: from the caches.
 * Numerics  everything in f32; weights are not rounded.
 * Same bits  a warp adds in the order of the rows and nobody adds to what another wrote.
 */
#include "common/reduce.cuh"
#include "ops/attention_rows.cuh"

namespace {

/* ---- who sees whom ---------------------------------------------------------------------------- */

constexpr int SEEN_THREADS = 256;
constexpr int64_t UNLIMITED = INT64_MAX / 4;

struct SeenParams {
    kd_seen *seen;
    const int32_t *own, *other; /* offsets [documents + 1] */
    int64_t documents, rows, other_rows;
    int64_t left, right; /* row i of t sees i + (other t - t) - left to ... + right */
};

__device__ kd_seen seen_by(const SeenParams &p, int64_t row)
{
    int64_t low = 0, high = p.documents + 1; /* the first document that starts after the row */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (p.own[middle] <= row)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || low > p.documents) return { 0, 0 };
    const int64_t start = p.other[low - 1], length = p.other[low] - start;
    const int64_t at = row - p.own[low] + length;
    const int64_t begin = max(at - p.left, (int64_t)0), end = min(at + p.right + 1, length);
    if (begin >= end) return { 0, 0 };
    return { (int32_t)(start + begin), (int32_t)(start + end) };
}

__device__ __forceinline__ bool offset_is_bad(const int32_t *cu, int64_t i, int64_t rows)
{
    return cu[i] < (i ? cu[i - 1] : 0) || cu[i] > rows;
}

__global__ void __launch_bounds__(SEEN_THREADS) seen_kernel(SeenParams p)
{
    int bad = 0;
    for (int64_t i = threadIdx.x; i <= p.documents; i += SEEN_THREADS)
        bad |= offset_is_bad(p.own, i, p.rows) || offset_is_bad(p.other, i, p.other_rows);
    bad = __syncthreads_or(bad);
    const int64_t row = (int64_t)blockIdx.x * SEEN_THREADS + threadIdx.x;
    if (row < p.rows) p.seen[row] = bad ? kd_seen{ -1, -1 } : seen_by(p, row);
}

/* ---- forward ---------------------------------------------------------------------------------- */

template <class T> struct ForwardParams {
    kd_heads<T> o;
    kd_heads<float> lse;
    kd_heads<const T> q, k, v;
    const kd_seen *seen;
    int64_t rows;
    int heads, group, d;
    float scale, softcap;
};

template <class T> __global__ void __launch_bounds__(THREADS) forward_kernel(ForwardParams<T> p)
{
    KD_SHARED(float, queries, [WARPS][KD_MAX_HEAD]);
    KD_SHARED(float, shares, [WARPS][KD_WARP]);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP;
    if (task() >= p.rows * p.heads) return;
    const int64_t row = task() / p.heads, head = task() % p.heads;
    const kd_seen seen = p.seen[row];
    float *query = queries[warp], *share = shares[warp];
    stage(query, p.q.at(row, head), p.d, p.scale);
    __syncwarp();

    float m = -INFINITY, l = 0, o[COLUMNS] = {};
    for (int j0 = seen.begin; j0 < seen.end; j0 += KD_WARP) {
        const int count = min(seen.end - j0, KD_WARP);
        float s = -INFINITY;
        if (lane < count) s = capped(dot(query, p.k.at(j0 + lane, head / p.group), p.d), p.softcap);
        const float next = fmaxf(m, kd_warp_max(s));
        const float base = next == -INFINITY ? 0 : next; /* all scores -inf: shares 0, not NaN */
        const float shrink = expf(m - base);
        share[lane] = expf(s - base);
        l = l * shrink + kd_warp_sum(share[lane]);
        m = next;
        __syncwarp();
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) o[c] *= shrink;
        add_rows(o, share, p.v, j0, count, head / p.group, p.d);
        __syncwarp(); /* before the shares of the next keys */
    }
    const bool blind = l == 0;
    const float poison = seen.begin < 0 ? NAN : 0;
    store_row(p.o.at(row, head), o, p.d, (blind ? 0 : 1 / l) + poison);
    if (lane == 0) *p.lse.at(row, head) = (blind ? -INFINITY : m + logf(l)) + poison;
}

template <class T>
kd_status forward(kd_exec *exec, const kd_attention_args *args, const kd_tensor *seen)
{
    ForwardParams<T> p = {};
    p.o = kd_heads_of<T>(args->o);
    p.lse = { (float *)args->lse->data, args->lse->stride[1], args->lse->stride[0] };
    p.q = kd_heads_of<const T>(args->q);
    p.k = kd_heads_of<const T>(args->k);
    p.v = kd_heads_of<const T>(args->v);
    p.seen = (const kd_seen *)seen->data;
    p.rows = args->q->shape[0];
    p.heads = (int)args->q->shape[1];
    p.group = p.heads / (int)args->k->shape[1];
    p.d = (int)args->q->shape[2];
    p.scale = args->scale;
    p.softcap = args->softcap;
    return kd_launch(exec, "attention", forward_kernel<T>, grid_of(p.rows * p.heads), p);
}

/* ---- backward --------------------------------------------------------------------------------- */

template <class T> struct BackwardParams {
    kd_heads<T> dq, dk, dv;
    kd_heads<const T> dout, o, q, k, v;
    kd_heads<const float> lse;
    float *delta; /* [H, Nq] */
    const kd_seen *seen_by_queries, *seen_by_keys;
    int64_t queries, keys;
    int heads, group, d;
    float scale, softcap;
};

/* The weight and the gradient of one score; `s` is scale q k', `dp` is dout v'. */
struct Gradient {
    float p, ds;
};

template <class T>
__device__ __forceinline__ Gradient gradient_of(const BackwardParams<T> &p, float s, float dp,
                                                int64_t row, int64_t head)
{
    const float lse = *p.lse.at(row, head), score = capped(s, p.softcap);
    const float slope = p.softcap > 0 ? score / p.softcap : 0;
    const float weight = expf(score - (lse == -INFINITY ? 0 : lse));
    return { weight, weight * (dp - p.delta[head * p.queries + row]) * (1 - slope * slope) };
}

template <class T> __global__ void __launch_bounds__(THREADS) delta_kernel(BackwardParams<T> p)
{
    if (task() >= p.queries * p.heads) return;
    const int64_t row = task() / p.heads, head = task() % p.heads;
    const T *o = p.o.at(row, head), *dout = p.dout.at(row, head);
    float sum = 0;
    for (int c = threadIdx.x % KD_WARP; c < p.d; c += KD_WARP)
        sum += kd_load(o + c) * kd_load(dout + c);
    sum = kd_warp_sum(sum);
    if (threadIdx.x % KD_WARP == 0) p.delta[head * p.queries + row] = sum;
}

template <class T> __global__ void __launch_bounds__(THREADS) queries_kernel(BackwardParams<T> p)
{
    KD_SHARED(float, rows, [WARPS][2][KD_MAX_HEAD]);
    KD_SHARED(float, gradients, [WARPS][KD_WARP]);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP;
    if (task() >= p.queries * p.heads) return;
    const int64_t row = task() / p.heads, head = task() % p.heads, key_head = head / p.group;
    const kd_seen seen = p.seen_by_queries[row];
    float *query = rows[warp][0], *dout = rows[warp][1], *gradient = gradients[warp];
    stage(query, p.q.at(row, head), p.d, p.scale);
    stage(dout, p.dout.at(row, head), p.d, 1);
    __syncwarp();

    float dq[COLUMNS] = {};
    for (int j0 = seen.begin; j0 < seen.end; j0 += KD_WARP) {
        const int count = min(seen.end - j0, KD_WARP);
        if (lane < count) {
            const float s = dot(query, p.k.at(j0 + lane, key_head), p.d);
            const float dp = dot(dout, p.v.at(j0 + lane, key_head), p.d);
            gradient[lane] = gradient_of(p, s, dp, row, head).ds;
        }
        __syncwarp();
        add_rows(dq, gradient, p.k, j0, count, key_head, p.d);
        __syncwarp();
    }
    store_row(p.dq.at(row, head), dq, p.d, seen.begin < 0 ? NAN : p.scale);
}

template <class T> __global__ void __launch_bounds__(THREADS, 6) keys_kernel(BackwardParams<T> p)
{
    KD_SHARED(float, rows, [WARPS][2][KD_MAX_HEAD]);
    KD_SHARED(float, weights, [WARPS][2][KD_WARP]);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP;
    const int64_t key_heads = p.heads / p.group;
    if (task() >= p.keys * key_heads) return;
    const int64_t row = task() / key_heads, key_head = task() % key_heads;
    const kd_seen seen = p.seen_by_keys[row];
    float *key = rows[warp][0], *value = rows[warp][1];
    stage(key, p.k.at(row, key_head), p.d, p.scale);
    stage(value, p.v.at(row, key_head), p.d, 1);
    __syncwarp();

    float dk[COLUMNS] = {}, dv[COLUMNS] = {};
    for (int64_t head = key_head * p.group; head < (key_head + 1) * p.group; head++)
        for (int i0 = seen.begin; i0 < seen.end; i0 += KD_WARP) {
            const int count = min(seen.end - i0, KD_WARP);
            if (lane < count) {
                const float s = dot(key, p.q.at(i0 + lane, head), p.d);
                const float dp = dot(value, p.dout.at(i0 + lane, head), p.d);
                const Gradient g = gradient_of(p, s, dp, i0 + lane, head);
                weights[warp][0][lane] = g.p;
                weights[warp][1][lane] = g.ds;
            }
            __syncwarp();
            add_rows(dv, weights[warp][0], p.dout, i0, count, head, p.d);
            add_rows(dk, weights[warp][1], p.q, i0, count, head, p.d);
            __syncwarp();
        }
    const bool poison = seen.begin < 0;
    store_row(p.dk.at(row, key_head), dk, p.d, poison ? NAN : p.scale);
    store_row(p.dv.at(row, key_head), dv, p.d, poison ? NAN : 1);
}

template <class T>
kd_status backward(kd_exec *exec, const kd_attention_backward_args *args, const kd_tensor *delta,
                   const kd_tensor *seen_by_queries, const kd_tensor *seen_by_keys)
{
    BackwardParams<T> p = {};
    p.dq = kd_heads_of<T>(args->dq);
    p.dk = kd_heads_of<T>(args->dk);
    p.dv = kd_heads_of<T>(args->dv);
    p.dout = kd_heads_of<const T>(args->dout);
    p.o = kd_heads_of<const T>(args->o);
    p.q = kd_heads_of<const T>(args->q);
    p.k = kd_heads_of<const T>(args->k);
    p.v = kd_heads_of<const T>(args->v);
    p.lse = { (const float *)args->lse->data, args->lse->stride[1], args->lse->stride[0] };
    p.delta = (float *)delta->data;
    p.seen_by_queries = (const kd_seen *)seen_by_queries->data;
    p.seen_by_keys = (const kd_seen *)seen_by_keys->data;
    p.queries = args->q->shape[0];
    p.keys = args->k->shape[0];
    p.heads = (int)args->q->shape[1];
    p.group = p.heads / (int)args->k->shape[1];
    p.d = (int)args->q->shape[2];
    p.scale = args->scale;
    p.softcap = args->softcap;
    if (p.queries * p.heads > 0) {
        const kd_grid grid = grid_of(p.queries * p.heads);
        KD_TRY(kd_launch(exec, "attention delta", delta_kernel<T>, grid, p));
        KD_TRY(kd_launch(exec, "attention dq", queries_kernel<T>, grid, p));
    }
    if (p.keys == 0) return KD_OK;
    return kd_launch(exec, "attention dk", keys_kernel<T>, grid_of(p.keys * p.heads / p.group), p);
}

} // namespace

kd_status kd_attention_seen(kd_tensor *seen, kd_exec *exec, const kd_attention_args *args,
                            bool of_keys)
{
    const kd_tensor *own = of_keys ? args->k : args->q, *other = of_keys ? args->q : args->k;
    KD_TRY(kd_push(seen, exec, of_keys ? "attention.seen_by_keys" : "attention.seen_by_queries",
                   KD_I32, KD_SHAPE(own->shape[0], 2)));
    if (kd_planning(exec) || own->shape[0] == 0) return KD_OK;
    const int64_t left = args->window > 0 ? kd_min_i64(args->window - 1, UNLIMITED) : UNLIMITED;
    const int64_t right = args->causal ? 0 : left;
    SeenParams p = {};
    p.seen = (kd_seen *)seen->data;
    p.own = (const int32_t *)(of_keys ? args->cu_k : args->cu_q)->data;
    p.other = (const int32_t *)(of_keys ? args->cu_q : args->cu_k)->data;
    p.documents = kd_tensor_elements(args->cu_q) - 1;
    p.rows = own->shape[0];
    p.other_rows = other->shape[0];
    p.left = of_keys ? right : left;
    p.right = of_keys ? left : right;
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, SEEN_THREADS)), dim3(SEEN_THREADS) };
    return kd_launch(exec, "attention seen", seen_kernel, grid, p);
}

kd_status kd_attention_plain(kd_exec *exec, const kd_attention_args *args)
{
    kd_tensor seen;
    KD_TRY(kd_attention_seen(&seen, exec, args, false));
    if (kd_planning(exec) || kd_tensor_elements(args->q) == 0) return KD_OK;
    return KD_BY_DTYPE(args->q->dtype, forward, exec, args, &seen);
}

kd_status kd_attention_backward_plain(kd_exec *exec, const kd_attention_backward_args *args)
{
    const kd_attention_args of_forward = kd_attention_forward_of(args);
    kd_tensor delta, seen_by_queries, seen_by_keys;
    KD_TRY(kd_push(&delta, exec, "attention.delta", KD_F32,
                   KD_SHAPE(args->q->shape[1], args->q->shape[0])));
    KD_TRY(kd_attention_seen(&seen_by_queries, exec, &of_forward, false));
    KD_TRY(kd_attention_seen(&seen_by_keys, exec, &of_forward, true));
    if (kd_planning(exec)) return KD_OK;
    return KD_BY_DTYPE(args->q->dtype, backward, exec, args, &delta, &seen_by_queries,
                       &seen_by_keys);
}
