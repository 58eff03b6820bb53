/*
 * clip, guard, adamw and sgd on CUDA; src/ops/update.c has the definitions.
 *
 * Grid      clip, guard: one block, in guard a thread per value of a window.  adamw, sgd: one launch over the slab range, a thread for 4 elements
 *           (for one where a pointer is not at 16 bytes or the range is no multiple of 8); as many
 *           blocks as are resident at once, so that none runs after the others.
 * Traffic   adamw reads gradient, m, v, param and writes m, v, param: 28 bytes a parameter, and 2 for
 *           a bf16 copy (4: f32).  sgd 12, with momentum 20, and the copy.
 * Numerics  f32; division and square root correctly rounded.  guard's sums and powers in double.
 * Scalars   read from device memory by every thread, so a captured graph serves every step.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = 256, RESIDENT = 5; /* blocks of a multiprocessor: registers of adamw */

/* ---- clip ------------------------------------------------------------------------------------- */

struct ClipParams {
    kd_step_scalars *scalars;
    const float *sum_squares, *losses;
    int64_t count; /* of losses */
    float max_norm;
};

__global__ void __launch_bounds__(THREADS) clip_kernel(ClipParams p)
{
    int bad = 0;
    for (int64_t i = threadIdx.x; i < p.count; i += THREADS) bad |= !isfinite(p.losses[i]);
    bad = __syncthreads_or(bad);
    if (threadIdx.x) return;
    const float norm = sqrtf(*p.sum_squares);
    const float factor = p.max_norm > 0 ? p.max_norm / (norm + 1e-6f) : 1;
    float loss = 0;
    for (int64_t i = 0; i < p.count && i < KD_MAX_TERMS; i++)
        loss += p.losses[i] * p.scalars->term[i].scale;
    p.scalars->norm = norm;
    p.scalars->loss = loss;
    p.scalars->clip = factor < 1 ? factor : 1;
    p.scalars->verdict = bad || !isfinite(loss) ? KD_VERDICT_LOSS
                         : !isfinite(norm)      ? KD_VERDICT_GRADIENT
                                                : KD_VERDICT_GOOD;
}

/* ---- guard ------------------------------------------------------------------------------------ */

struct GuardParams {
    kd_guard *guard;
    kd_step_scalars *scalars;
    int students;
    bool skip;
    float zscore, beta1, beta2;
    int64_t max_skips;
};

/* x becomes the value of step `seen` of the window; all threads of the block call. */
__device__ float z_of(float *window, int64_t seen, float x, double *buffer)
{
    const unsigned newest = (unsigned)(seen % KD_GUARD_WINDOW);
    const double n = KD_GUARD_WINDOW;
    if (threadIdx.x == newest) window[newest] = x;
    if (seen < KD_GUARD_WINDOW) return NAN;
    const double value = window[threadIdx.x];
    const double mean = kd_block_sum<KD_GUARD_WINDOW>(value, buffer) / n;
    const double squares = kd_block_sum<KD_GUARD_WINDOW>((value - mean) * (value - mean), buffer);
    return squares > 0 ? (float)((x - mean) / sqrt(squares / n)) : 0;
}

__global__ void __launch_bounds__(KD_GUARD_WINDOW) guard_kernel(GuardParams p)
{
    KD_SHARED(double, buffer, [KD_GUARD_WINDOW / KD_WARP]);
    kd_guard *const g = p.guard;
    kd_step_scalars *const s = p.scalars;
    const int64_t seen = g->seen;
    const bool held = g->stopped != 0;
    bool finite = true, spike = false;
    for (int i = 0; i < p.students; i++) finite = finite && s[i].verdict == KD_VERDICT_GOOD;
    __syncthreads();
    for (int i = 0; i < p.students; i++) {
        float z[2] = { NAN, NAN };
        if (finite && !held) {
            z[0] = z_of(g->window[i][0], seen, s[i].loss, buffer);
            z[1] = z_of(g->window[i][1], seen, s[i].norm, buffer);
        }
        const bool high = p.zscore > 0 && (z[0] > p.zscore || z[1] > p.zscore);
        spike = spike || high;
        if (threadIdx.x) continue;
        s[i].loss_z = z[0];
        s[i].norm_z = z[1];
        if (high) s[i].verdict = KD_VERDICT_SPIKE;
    }
    if (threadIdx.x) return;
    const bool good = !held && finite && !spike;
    const double n = (double)g->updates + 1;
    if (!held) {
        g->seen = seen + finite;
        g->updates += good;
        g->skips += !good;
        g->in_row = good ? 0 : g->in_row + 1;
        g->stopped = g->in_row > p.max_skips || (!finite && !p.skip);
    }
    for (int i = 0; i < p.students; i++) {
        if (!good && s[i].verdict == KD_VERDICT_GOOD) s[i].verdict = KD_VERDICT_HELD;
        s[i].bias1 = (float)(1 - pow((double)p.beta1, n));
        s[i].bias2 = (float)(1 - pow((double)p.beta2, n));
        s[i].skips = (float)g->skips;
        s[i].in_row = (float)g->in_row;
        s[i].stopped = (float)g->stopped;
    }
}

/* ---- slab ranges ------------------------------------------------------------------------------ */

/* T is the type of the copy that the model computes with. */
template <class T> struct Range {
    float *param, *m, *v; /* m, v: NULL where the rule has none */
    const float *gradient;
    T *weights; /* or NULL */
    const kd_step_scalars *scalars;
    int64_t count;
};

struct AdamwRule {
    float beta1, beta2, eps, decay;
};

struct SgdRule {
    float momentum, decay;
    bool nesterov;
};

template <class T, int W>
__global__ void __launch_bounds__(THREADS, RESIDENT) adamw_kernel(Range<T> r, AdamwRule rule)
{
    const kd_step_scalars s = *r.scalars;
    if (s.verdict != (float)KD_VERDICT_GOOD) return;
    const float rise1 = 1 - rule.beta1, rise2 = 1 - rule.beta2;
    const float shrink = 1 - s.lr * rule.decay, step = s.lr / s.bias1;
    const float inv_bias2 = 1 / sqrtf(s.bias2);
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W; i < r.count;
         i += (int64_t)gridDim.x * THREADS * W) {
        float g[W], m[W], v[W], param[W];
        kd_load(g, r.gradient + i);
        kd_load(m, r.m + i);
        kd_load(v, r.v + i);
        kd_load(param, r.param + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            g[k] *= s.clip;
            m[k] += rise1 * (g[k] - m[k]);
            v[k] = rule.beta2 * v[k] + rise2 * g[k] * g[k];
            param[k] = param[k] * shrink - step * m[k] / (sqrtf(v[k]) * inv_bias2 + rule.eps);
        }
        kd_store(r.m + i, m);
        kd_store(r.v + i, v);
        kd_store(r.param + i, param);
        if (r.weights) kd_store(r.weights + i, param);
    }
}

template <class T, int W>
__global__ void __launch_bounds__(THREADS, RESIDENT) sgd_kernel(Range<T> r, SgdRule rule)
{
    const float clip = r.scalars->clip, lr = r.scalars->lr;
    if (r.scalars->verdict != (float)KD_VERDICT_GOOD) return;
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W; i < r.count;
         i += (int64_t)gridDim.x * THREADS * W) {
        float g[W], m[W] = {}, param[W];
        kd_load(g, r.gradient + i);
        kd_load(param, r.param + i);
        if (r.m) kd_load(m, r.m + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            g[k] = clip * g[k] + rule.decay * param[k];
            m[k] = rule.momentum * m[k] + g[k]; /* g itself where momentum is 0 */
            param[k] -= lr * (rule.nesterov ? g[k] + rule.momentum * m[k] : m[k]);
        }
        if (r.m) kd_store(r.m + i, m);
        kd_store(r.param + i, param);
        if (r.weights) kd_store(r.weights + i, param);
    }
}

/* ---- launching -------------------------------------------------------------------------------- */

template <class T> T *data_of(const kd_tensor *t) { return kd_present(t) ? (T *)t->data : NULL; }

/* Runs `wide`, of 4 elements a thread, where every array allows it. */
template <class T, class Rule, class Args>
kd_status launch_range(kd_exec *exec, const char *name, void (*wide)(Range<T>, Rule),
                       void (*narrow)(Range<T>, Rule), const Args *args, const kd_tensor *m,
                       const kd_tensor *v, const Rule &rule)
{
    const Range<T> r = { data_of<float>(args->param),
                         data_of<float>(m),
                         data_of<float>(v),
                         data_of<const float>(args->gradient),
                         data_of<T>(args->weights),
                         data_of<const kd_step_scalars>(args->scalars),
                         kd_tensor_elements(args->param) };
    const bool aligned = kd_rows_aligned(args->param, args->gradient, m, v, args->weights);
    const int64_t units = aligned ? r.count / 4 : r.count;
    const kd_grid grid = kd_grid_over(exec, units, THREADS, RESIDENT * THREADS);
    return kd_launch(exec, name, aligned ? wide : narrow, grid, r, rule);
}

template <class T> kd_status adamw(kd_exec *exec, const kd_adamw_args *args)
{
    const AdamwRule rule = { args->beta1, args->beta2, args->eps, args->decay };
    return launch_range(exec, "adamw", adamw_kernel<T, 4>, adamw_kernel<T, 1>, args, args->m,
                        args->v, rule);
}

template <class T> kd_status sgd(kd_exec *exec, const kd_sgd_args *args)
{
    const SgdRule rule = { args->momentum, args->decay, args->nesterov };
    const kd_tensor *m = args->momentum != 0 ? args->m : NULL;
    return launch_range(exec, "sgd", sgd_kernel<T, 4>, sgd_kernel<T, 1>, args, m,
                        (const kd_tensor *)NULL, rule);
}

kd_dtype copy_dtype(const kd_tensor *weights)
{
    return kd_present(weights) ? weights->dtype : KD_F32;
}

} // namespace

extern "C" kd_status kd_clip_cuda(kd_exec *exec, const kd_clip_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const ClipParams p = { data_of<kd_step_scalars>(args->scalars),
                           data_of<const float>(args->sum_squares),
                           data_of<const float>(args->losses), kd_tensor_elements(args->losses),
                           args->max_norm };
    return kd_launch(exec, "clip", clip_kernel, { dim3(1), dim3(THREADS) }, p);
}

extern "C" kd_status kd_guard_cuda(kd_exec *exec, const kd_guard_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int students = (int)(kd_tensor_bytes(args->scalars) / sizeof(kd_step_scalars));
    const GuardParams p = { data_of<kd_guard>(args->guard),
                            data_of<kd_step_scalars>(args->scalars),
                            students,
                            args->skip,
                            args->zscore,
                            args->beta1,
                            args->beta2,
                            args->max_skips };
    return kd_launch(exec, "guard", guard_kernel, { dim3(1), dim3(KD_GUARD_WINDOW) }, p);
}

extern "C" kd_status kd_adamw_cuda(kd_exec *exec, const kd_adamw_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->param) == 0) return KD_OK;
    return KD_BY_DTYPE(copy_dtype(args->weights), adamw, exec, args);
}

extern "C" kd_status kd_sgd_cuda(kd_exec *exec, const kd_sgd_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->param) == 0) return KD_OK;
    return KD_BY_DTYPE(copy_dtype(args->weights), sgd, exec, args);
}
