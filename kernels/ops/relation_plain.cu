/*
 * relation and relation_lse on CUDA, the plain way: any head size, stride and element type;
 * src/ops/relation.c has the mathematics.  Also the losses of rows, for the fast way too.
 *
 * Grid      lse, values and da: a warp per row and head; db: a warp per row and key head, over the query
 *           heads of its group.  A warp takes 32 rows of the other side at a time: a lane for each while
 *           scores are computed, a lane for every 32nd column while rows are added.
 *           losses: a thread per row, over the heads.
 * Traffic   every row of the other side that is seen, per row: from the caches.
 * Numerics  everything in f32.
 * Same bits  a warp adds in the order of the rows and nobody adds to what another wrote; da may be db:
 *           they are launches of their own.
 */
#include "common/reduce.cuh"
#include "ops/attention_rows.cuh"
#include "ops/relation.cuh"

namespace {

/* ---- log-sum-exp ------------------------------------------------------------------------------ */

template <class T> struct LseParams {
    kd_heads<float> lse;
    kd_heads<const T> a, b;
    const kd_seen *seen;
    int64_t rows;
    int heads, group, d;
    kd_scoring scores;
    float inverse_t;
};

template <class T> __global__ void __launch_bounds__(THREADS) lse_kernel(LseParams<T> p)
{
    KD_SHARED(float, queries, [WARPS][KD_MAX_HEAD]);
    const int lane = threadIdx.x % KD_WARP;
    if (task() >= p.rows * p.heads) return;
    const int64_t row = task() / p.heads, head = task() % p.heads;
    const kd_seen seen = p.seen[row];
    float *query = queries[threadIdx.x / KD_WARP];
    stage(query, p.a.at(row, head), p.d, p.scores.scale);
    __syncwarp();

    float m = -INFINITY, l = 0;
    for (int j0 = seen.begin; j0 < seen.end; j0 += KD_WARP) {
        float s = -INFINITY;
        if (j0 + lane < seen.end)
            s = capped(dot(query, p.b.at(j0 + lane, head / p.group), p.d), p.scores.softcap) *
                p.inverse_t;
        const float next = fmaxf(m, kd_warp_max(s));
        const float base = next == -INFINITY ? 0 : next;
        l = l * expf(m - base) + kd_warp_sum(expf(s - base));
        m = next;
    }
    const float poison = seen.begin < 0 ? NAN : 0;
    if (lane == 0) *p.lse.at(row, head) = (l == 0 ? -INFINITY : m + logf(l)) + poison;
}

template <class T>
kd_status lse(kd_exec *exec, const kd_relation_lse_args *args, const kd_tensor *seen)
{
    LseParams<T> p = {};
    p.lse = { (float *)args->lse->data, args->lse->stride[1], args->lse->stride[0] };
    p.a = kd_heads_of<const T>(args->a);
    p.b = kd_heads_of<const T>(args->b);
    p.seen = (const kd_seen *)seen->data;
    p.rows = args->a->shape[0];
    p.heads = (int)args->a->shape[1];
    p.group = p.heads / (int)args->b->shape[1];
    p.d = (int)args->a->shape[2];
    p.scores = args->scores;
    p.inverse_t = 1 / args->temperature;
    return kd_launch(exec, "relation lse", lse_kernel<T>, grid_of(p.rows * p.heads), p);
}

/* ---- values and gradients --------------------------------------------------------------------- */

template <class T, class U> struct Params {
    kd_heads<T> da, db; /* data NULL: absent */
    kd_heads<const T> a, b;
    kd_heads<const U> teacher_a, teacher_b;
    kd_heads<const float> lse, teacher_lse;
    const float *weight, *scale; /* NULL: absent */
    float *value;                /* [R, N] */
    const kd_seen *seen_by_queries, *seen_by_keys;
    int64_t rows;
    int heads, group, teacher_group, d, teacher_d;
    kd_relation r;
    float inverse_t, unit; /* unit: f / (R T), of gradients */
};

/* What a pair of rows adds to the query's value, and the gradient of that by the student's product. */
struct Compared {
    float value, ds;
};

/* `s`, `t`: products of both sides, scaled. */
template <class P>
__device__ __forceinline__ Compared compare(const P &p, float s, float t, int64_t row, int64_t head)
{
    const float cap = p.r.student.softcap;
    s = capped(s, cap);
    const float slope = cap > 0 ? 1 - s / cap * (s / cap) : 1;
    const float x = s * p.inverse_t, y = capped(t, p.r.teacher.softcap) * p.inverse_t;
    if (p.r.kind == KD_RELATION_MSE) {
        const kd_seen seen = p.seen_by_queries[row];
        const float low = p.r.floor < 0 ? p.r.floor : -INFINITY;
        const float share = 1 / (float)(p.r.pairs > 0 ? p.r.pairs : seen.end - seen.begin);
        const float difference = (x <= low ? 0 : x) - (y <= low ? 0 : y);
        return { difference * difference * share, x <= low ? 0 : 2 * difference * share * slope };
    }
    const float lse = *p.lse.at(row, head), teacher_lse = *p.teacher_lse.at(row, head);
    const float log_q = x - (lse == -INFINITY ? 0 : lse);
    const float log_p = y - (teacher_lse == -INFINITY ? 0 : teacher_lse);
    const float weight = expf(log_p);
    return { weight == 0 ? 0 : weight * (log_p - log_q), (expf(log_q) - weight) * slope };
}

template <class P> __device__ __forceinline__ float weight_of(const P &p, int64_t row)
{
    return p.weight ? p.weight[row] : 1;
}

template <class T>
__device__ __forceinline__ void add_row(T *to, const float (&sum)[COLUMNS], int d, float factor)
{
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int column = c * KD_WARP + (int)threadIdx.x % KD_WARP;
        if (column < d) kd_store(to + column, kd_load(to + column) + sum[c] * factor);
    }
}

template <class T, class U>
__global__ void __launch_bounds__(THREADS, 4) queries_kernel(Params<T, U> p)
{
    KD_SHARED(float, rows, [WARPS][2][KD_MAX_HEAD]);
    KD_SHARED(float, gradients, [WARPS][KD_WARP]);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP;
    if (task() >= p.rows * p.heads) return;
    const int64_t row = task() / p.heads, head = task() % p.heads;
    const kd_seen seen = p.seen_by_queries[row];
    const float weight = weight_of(p, row);
    const int end = weight == 0 ? seen.begin : seen.end;
    float *query = rows[warp][0], *teacher = rows[warp][1], *gradient = gradients[warp];
    stage(query, p.a.at(row, head), p.d, p.r.student.scale);
    stage(teacher, p.teacher_a.at(row, head), p.teacher_d, p.r.teacher.scale);
    __syncwarp();

    float value = 0, da[COLUMNS] = {};
    for (int j0 = seen.begin; j0 < end; j0 += KD_WARP) {
        const int count = min(end - j0, KD_WARP);
        if (lane < count) {
            const float s = dot(query, p.b.at(j0 + lane, head / p.group), p.d);
            const float t =
                dot(teacher, p.teacher_b.at(j0 + lane, head / p.teacher_group), p.teacher_d);
            const Compared c = compare(p, s, t, row, head);
            value += c.value;
            gradient[lane] = c.ds;
        }
        __syncwarp();
        if (p.da.data) add_rows(da, gradient, p.b, j0, count, head / p.group, p.d);
        __syncwarp();
    }
    value = kd_warp_sum(value);
    if (lane == 0) p.value[head * p.rows + row] = seen.begin < 0 ? NAN : value;
    if (!p.da.data || (seen.begin >= 0 && seen.begin >= end)) return;
    add_row(p.da.at(row, head), da, p.d,
            seen.begin < 0 ? NAN : p.r.student.scale * p.unit * *p.scale * weight);
}

template <class T, class U>
__global__ void __launch_bounds__(THREADS, 4) keys_kernel(Params<T, U> p)
{
    KD_SHARED(float, rows, [WARPS][2][KD_MAX_HEAD]);
    KD_SHARED(float, gradients, [WARPS][KD_WARP]);
    const int lane = threadIdx.x % KD_WARP, warp = threadIdx.x / KD_WARP;
    const int64_t key_heads = p.heads / p.group;
    if (task() >= p.rows * key_heads) return;
    const int64_t row = task() / key_heads, key_head = task() % key_heads;
    const kd_seen seen = p.seen_by_keys[row];
    float *key = rows[warp][0], *teacher = rows[warp][1], *gradient = gradients[warp];
    stage(key, p.b.at(row, key_head), p.d, p.r.student.scale);

    float db[COLUMNS] = {};
    for (int64_t head = key_head * p.group; head < (key_head + 1) * p.group; head++) {
        __syncwarp(); /* the head before is done with its teacher */
        stage(teacher, p.teacher_b.at(row, head / p.teacher_group), p.teacher_d, p.r.teacher.scale);
        __syncwarp();
        for (int i0 = seen.begin; i0 < seen.end; i0 += KD_WARP) {
            const int count = min(seen.end - i0, KD_WARP);
            const float weight = lane < count ? weight_of(p, i0 + lane) : 0;
            gradient[lane] = 0;
            if (weight != 0) {
                const float s = dot(key, p.a.at(i0 + lane, head), p.d);
                const float t = dot(teacher, p.teacher_a.at(i0 + lane, head), p.teacher_d);
                gradient[lane] = weight * compare(p, s, t, i0 + lane, head).ds;
            }
            __syncwarp();
            add_rows(db, gradient, p.a, i0, count, head, p.d);
            __syncwarp();
        }
    }
    add_row(p.db.at(row, key_head), db, p.d,
            seen.begin < 0 ? NAN : p.r.student.scale * p.unit * *p.scale);
}

template <class T, class U>
kd_status relate(kd_exec *exec, const kd_relation_args *args, const kd_relation_scratch *scratch)
{
    Params<T, U> p = {};
    if (kd_present(args->da)) p.da = kd_heads_of<T>(args->da);
    if (kd_present(args->db)) p.db = kd_heads_of<T>(args->db);
    p.a = kd_heads_of<const T>(args->a);
    p.b = kd_heads_of<const T>(args->b);
    p.teacher_a = kd_heads_of<const U>(args->teacher_a);
    p.teacher_b = kd_heads_of<const U>(args->teacher_b);
    p.r = args->relation;
    if (p.r.kind == KD_RELATION_KL) {
        const kd_tensor *lse = args->lse, *teacher_lse = args->teacher_lse;
        p.lse = { (const float *)lse->data, lse->stride[1], lse->stride[0] };
        p.teacher_lse = { (const float *)teacher_lse->data, teacher_lse->stride[1],
                          teacher_lse->stride[0] };
    }
    p.weight = kd_present(args->weight) ? (const float *)args->weight->data : NULL;
    p.scale = kd_present(args->scale) ? (const float *)args->scale->data : NULL;
    p.value = (float *)scratch->value.data;
    p.seen_by_queries = (const kd_seen *)scratch->seen_by_queries.data;
    p.seen_by_keys = (const kd_seen *)scratch->seen_by_keys.data;
    p.rows = args->a->shape[0];
    p.heads = (int)args->a->shape[1];
    p.group = p.heads / (int)args->b->shape[1];
    p.teacher_group = p.heads / (int)args->teacher_b->shape[1];
    p.d = (int)args->a->shape[2];
    p.teacher_d = (int)args->teacher_a->shape[2];
    p.inverse_t = 1 / p.r.temperature;
    p.unit = kd_relation_factor(&p.r) * p.inverse_t / (float)p.heads;
    KD_TRY(kd_launch(exec, "relation da", queries_kernel<T, U>, grid_of(p.rows * p.heads), p));
    if (!p.db.data) return KD_OK;
    return kd_launch(exec, "relation db", keys_kernel<T, U>, grid_of(p.rows * p.heads / p.group),
                     p);
}

template <class T>
kd_status relate_teacher(kd_exec *exec, const kd_relation_args *args,
                         const kd_relation_scratch *scratch)
{
    return args->teacher_a->dtype == KD_F32 ? relate<T, float>(exec, args, scratch)
                                            : relate<T, bf16>(exec, args, scratch);
}

/* ---- losses of rows --------------------------------------------------------------------------- */

constexpr int LOSS_THREADS = 128;

struct LossParams {
    float *loss;
    const float *value, *weight; /* [R, N]; [N] or NULL */
    int64_t rows;
    int heads;
    float mean; /* f / R */
};

__global__ void __launch_bounds__(LOSS_THREADS) losses_kernel(LossParams p)
{
    const int64_t row = (int64_t)blockIdx.x * LOSS_THREADS + threadIdx.x;
    if (row >= p.rows) return;
    float sum = 0;
    for (int head = 0; head < p.heads; head++) sum += p.value[head * p.rows + row];
    p.loss[row] = weight_of(p, row) * p.mean * sum;
}

} // namespace

/* ---- what both ways share --------------------------------------------------------------------- */

kd_status kd_relation_lse_seen(kd_tensor *seen, kd_exec *exec, const kd_relation_lse_args *args)
{
    kd_attention_args as = {};
    as.q = args->a;
    as.k = args->b;
    as.cu_q = as.cu_k = args->cu;
    as.causal = args->causal;
    as.window = args->window;
    return kd_attention_seen(seen, exec, &as, false);
}

kd_status kd_relation_open(kd_relation_scratch *scratch, kd_exec *exec,
                           const kd_relation_args *args)
{
    kd_attention_args as = {};
    as.q = args->a;
    as.k = args->b;
    as.cu_q = as.cu_k = args->cu;
    as.causal = args->relation.causal;
    as.window = args->relation.window;
    KD_TRY(kd_push(&scratch->value, exec, "relation.value", KD_F32,
                   KD_SHAPE(args->a->shape[1], args->a->shape[0])));
    KD_TRY(kd_attention_seen(&scratch->seen_by_queries, exec, &as, false));
    if (!kd_present(args->db)) return KD_OK;
    return kd_attention_seen(&scratch->seen_by_keys, exec, &as, true);
}

kd_status kd_relation_losses(kd_exec *exec, const kd_relation_args *args,
                             const kd_relation_scratch *scratch)
{
    LossParams p = {};
    p.loss = (float *)args->loss->data;
    p.value = (const float *)scratch->value.data;
    p.weight = kd_present(args->weight) ? (const float *)args->weight->data : NULL;
    p.rows = args->a->shape[0];
    p.heads = (int)args->a->shape[1];
    p.mean = kd_relation_factor(&args->relation) / (float)p.heads;
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, LOSS_THREADS)), dim3(LOSS_THREADS) };
    return kd_launch(exec, "relation losses", losses_kernel, grid, p);
}

kd_status kd_relation_lse_plain(kd_exec *exec, const kd_relation_lse_args *args)
{
    kd_tensor seen;
    KD_TRY(kd_relation_lse_seen(&seen, exec, args));
    if (kd_planning(exec) || args->a->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->a->dtype, lse, exec, args, &seen);
}

kd_status kd_relation_plain(kd_exec *exec, const kd_relation_args *args)
{
    kd_relation_scratch scratch = {};
    KD_TRY(kd_relation_open(&scratch, exec, args));
    if (kd_planning(exec) || args->a->shape[0] == 0) return KD_OK;
    KD_TRY(KD_BY_DTYPE(args->a->dtype, relate_teacher, exec, args, &scratch));
    return kd_relation_losses(exec, args, &scratch);
}
