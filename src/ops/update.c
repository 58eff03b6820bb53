/*
 * update - from gradients to new weights.
 *
 *     clip    norm = sqrt(sum_squares)
 *             clip = min(1, max_norm / (norm + 1e-6)); 1 without a limit (max_norm <= 0)
 *                    (torch.nn.utils.clip_grad_norm_)
 *             loss = sum over terms of scale * losses
 *             verdict: a loss is not finite, else the norm is not, else good
 *
 *     guard   z = (x - mean) / deviation of the window's KD_GUARD_WINDOW last values, x the newest of
 *             them and the deviation that of a population; 0 where all are equal (llm.c, -sl and -sg).
 *             So |z| <= sqrt(KD_GUARD_WINDOW - 1).  A spike goes into the window: a level that stays
 *             is normal after a while.  What is not finite does not.
 *
 *     adamw   g = clip * gradient;   p *= 1 - lr * decay
 *             m += (1 - beta1) * (g - m);   v = beta2 * v + (1 - beta2) * g^2
 *             p -= lr / bias1 * m / (sqrt(v / bias2) + eps)
 *             (Loshchilov and Hutter 2019; torch.optim.AdamW)
 *
 *     sgd     g = clip * gradient + decay * p;   m = momentum * m + g
 *             p -= lr * m;   nesterov: p -= lr * (g + momentum * m);   without momentum: p -= lr * g
 *             (torch.optim.SGD, dampening 0)
 *
 * lr, bias corrections, clip and verdict come from the step's scalars.  With any verdict but good
 * nothing moves: not the parameters, not the moments, not the copy.  Bias corrections count updates,
 * not steps: moments know nothing of a step that was left out.
 */
#include "ops/rowio.h"

#include <math.h>

enum { BLOCK = 4096 }; /* elements that one thread takes at a time */

static kd_status check_scalars(const kd_tensor *scalars)
{
    if (!kd_present(scalars)) return kd_fail(KD_EINVAL, "scalars: absent");
    if (kd_tensor_bytes(scalars) < sizeof(kd_step_scalars))
        return kd_fail(KD_EINVAL, "scalars: found %zu bytes, expected %zu",
                       kd_tensor_bytes(scalars), sizeof(kd_step_scalars));
    return KD_OK;
}

kd_status kd_clip_check(const kd_clip_args *args)
{
    KD_TRY(check_scalars(args->scalars));
    KD_TRY(kd_expect_list(args->sum_squares, "sum_squares", KD_F32, 1));
    if (!kd_present(args->losses)) return kd_fail(KD_EINVAL, "losses: absent");
    return kd_expect_list(args->losses, "losses", KD_F32, kd_tensor_elements(args->losses));
}

kd_status kd_clip_cpu(kd_exec *exec, const kd_clip_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t count = kd_tensor_elements(args->losses);
    kd_step_scalars *s = args->scalars->data;
    const float *losses = args->losses->data;
    s->norm = sqrtf(*(const float *)args->sum_squares->data);
    const float factor = args->max_norm > 0 ? args->max_norm / (s->norm + 1e-6f) : 1;
    s->clip = factor < 1 ? factor : 1;
    s->loss = 0;
    for (int64_t i = 0; i < kd_min_i64(count, KD_MAX_TERMS); i++)
        s->loss += losses[i] * s->term[i].scale;
    bool finite = isfinite(s->loss);
    for (int64_t i = 0; i < count; i++) finite &= isfinite(losses[i]) != 0;
    s->verdict = !finite              ? KD_VERDICT_LOSS
                 : !isfinite(s->norm) ? KD_VERDICT_GRADIENT
                                      : KD_VERDICT_GOOD;
    return KD_OK;
}

/* ---- guard ------------------------------------------------------------------------------------ */

kd_status kd_guard_check(const kd_guard_args *args)
{
    KD_TRY(check_scalars(args->scalars));
    const size_t students = kd_tensor_bytes(args->scalars) / sizeof(kd_step_scalars);
    if (students > KD_MAX_STUDENTS)
        return kd_fail(KD_EINVAL, "scalars: found %zu students, expected at most %d", students,
                       (int)KD_MAX_STUDENTS);
    if (!kd_present(args->guard)) return kd_fail(KD_EINVAL, "guard: absent");
    if (kd_tensor_bytes(args->guard) < sizeof(kd_guard))
        return kd_fail(KD_EINVAL, "guard: found %zu bytes, expected %zu",
                       kd_tensor_bytes(args->guard), sizeof(kd_guard));
    return KD_OK;
}

/* x becomes the value of step `seen` of the window. */
static float z_of(float *window, int64_t seen, float x)
{
    const double n = KD_GUARD_WINDOW;
    double sum = 0, squares = 0;
    window[seen % KD_GUARD_WINDOW] = x;
    if (seen < KD_GUARD_WINDOW) return NAN;
    for (int i = 0; i < KD_GUARD_WINDOW; i++) sum += (double)window[i];
    const double mean = sum / n;
    for (int i = 0; i < KD_GUARD_WINDOW; i++)
        squares += ((double)window[i] - mean) * ((double)window[i] - mean);
    return squares > 0 ? (float)(((double)x - mean) / sqrt(squares / n)) : 0;
}

/* Into the windows, of steps that are finite; whether one is a spike. */
static bool judge(kd_guard *g, kd_step_scalars *s, int students, float zscore)
{
    bool spike = false;
    for (int i = 0; i < students; i++) {
        s[i].loss_z = z_of(g->window[i][0], g->seen, s[i].loss);
        s[i].norm_z = z_of(g->window[i][1], g->seen, s[i].norm);
        if (zscore > 0 && (s[i].loss_z > zscore || s[i].norm_z > zscore)) {
            s[i].verdict = KD_VERDICT_SPIKE;
            spike = true;
        }
    }
    g->seen++;
    return spike;
}

kd_status kd_guard_cpu(kd_exec *exec, const kd_guard_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int students = (int)(kd_tensor_bytes(args->scalars) / sizeof(kd_step_scalars));
    kd_guard *g = args->guard->data;
    kd_step_scalars *s = args->scalars->data;
    const double n = (double)g->updates + 1;
    bool finite = true;
    for (int i = 0; i < students; i++) {
        finite &= s[i].verdict == KD_VERDICT_GOOD;
        s[i].loss_z = s[i].norm_z = NAN;
    }
    const bool held = g->stopped != 0;
    const bool good = !held && finite && !judge(g, s, students, args->zscore);
    if (!held) {
        g->updates += good;
        g->skips += !good;
        g->in_row = good ? 0 : g->in_row + 1;
        g->stopped = g->in_row > args->max_skips || (!finite && !args->skip);
    }
    for (int i = 0; i < students; i++) {
        if (!good && s[i].verdict == KD_VERDICT_GOOD) s[i].verdict = KD_VERDICT_HELD;
        s[i].bias1 = (float)(1 - pow((double)args->beta1, n));
        s[i].bias2 = (float)(1 - pow((double)args->beta2, n));
        s[i].skips = (float)g->skips;
        s[i].in_row = (float)g->in_row;
        s[i].stopped = (float)g->stopped;
    }
    return KD_OK;
}

/* ---- slab ranges ------------------------------------------------------------------------------ */

/* param and gradient f32 [n]; moments the same or absent; weights f32 or bf16 [n] or absent. */
static kd_status check_update(const kd_tensor *param, const kd_tensor *weights,
                              const kd_tensor *gradient, const kd_tensor *scalars)
{
    KD_TRY(check_scalars(scalars));
    if (!kd_present(param)) return kd_fail(KD_EINVAL, "param: absent");
    const int64_t n = kd_tensor_elements(param);
    KD_TRY(kd_expect_list(param, "param", KD_F32, n));
    KD_TRY(kd_expect_list(gradient, "gradient", KD_F32, n));
    if (!kd_present(weights)) return KD_OK;
    KD_TRY(kd_expect_rows(weights, "weights"));
    return kd_expect_list(weights, "weights", weights->dtype, n);
}

/* New masters into the copy that the model computes with. */
static void publish(const kd_tensor *weights, const float *param, int64_t at, int64_t n)
{
    if (!kd_present(weights)) return;
    if (weights->dtype == KD_F32) {
        memcpy((float *)weights->data + at, param + at, (size_t)n * sizeof *param);
        return;
    }
    uint16_t *half = (uint16_t *)weights->data + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) half[i] = kd_f32_to_bf16(param[at + i]);
}

/* ---- AdamW ------------------------------------------------------------------------------------ */

typedef struct adam_factors {
    float clip, shrink, beta1, beta2, eps;
    float step;      /* lr / bias1 */
    float inv_bias2; /* 1 / sqrt(bias2) */
} adam_factors;

static void adam_block(float *restrict param, float *restrict m, float *restrict v,
                       const float *restrict gradient, int64_t n, adam_factors f)
{
    const float rise1 = 1 - f.beta1, rise2 = 1 - f.beta2;
    for (int64_t i = 0; i < n; i++) {
        const float g = f.clip * gradient[i];
        m[i] += rise1 * (g - m[i]);
        v[i] = f.beta2 * v[i] + rise2 * g * g;
        param[i] = param[i] * f.shrink - f.step * m[i] / (sqrtf(v[i]) * f.inv_bias2 + f.eps);
    }
}

kd_status kd_adamw_check(const kd_adamw_args *args)
{
    KD_TRY(check_update(args->param, args->weights, args->gradient, args->scalars));
    const int64_t count = kd_tensor_elements(args->param);
    KD_TRY(kd_expect_list(args->m, "m", KD_F32, count));
    return kd_expect_list(args->v, "v", KD_F32, count);
}

kd_status kd_adamw_cpu(kd_exec *exec, const kd_adamw_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t count = kd_tensor_elements(args->param);
    const kd_step_scalars *s = args->scalars->data;
    if (s->verdict != KD_VERDICT_GOOD) return KD_OK;
    const adam_factors f = { .clip = s->clip,
                             .shrink = 1 - s->lr * args->decay,
                             .beta1 = args->beta1,
                             .beta2 = args->beta2,
                             .eps = args->eps,
                             .step = s->lr / s->bias1,
                             .inv_bias2 = 1 / sqrtf(s->bias2) };
    float *param = args->param->data, *m = args->m->data, *v = args->v->data;
    const float *gradient = args->gradient->data;
#pragma omp parallel for schedule(static) if (count > KD_PARALLEL_ABOVE)
    for (int64_t at = 0; at < count; at += BLOCK) {
        const int64_t n = kd_min_i64(BLOCK, count - at);
        adam_block(param + at, m + at, v + at, gradient + at, n, f);
        publish(args->weights, param, at, n);
    }
    return KD_OK;
}

/* ---- SGD -------------------------------------------------------------------------------------- */

typedef struct sgd_factors {
    float clip, lr, decay, momentum;
    bool nesterov;
} sgd_factors;

static void sgd_block(float *restrict param, const float *restrict gradient, int64_t n,
                      sgd_factors f)
{
    for (int64_t i = 0; i < n; i++) param[i] -= f.lr * (f.clip * gradient[i] + f.decay * param[i]);
}

static void momentum_block(float *restrict param, float *restrict m, const float *restrict gradient,
                           int64_t n, sgd_factors f)
{
    for (int64_t i = 0; i < n; i++) {
        const float g = f.clip * gradient[i] + f.decay * param[i];
        m[i] = f.momentum * m[i] + g;
        param[i] -= f.lr * (f.nesterov ? g + f.momentum * m[i] : m[i]);
    }
}

kd_status kd_sgd_check(const kd_sgd_args *args)
{
    KD_TRY(check_update(args->param, args->weights, args->gradient, args->scalars));
    const int64_t count = kd_tensor_elements(args->param);
    if (args->momentum != 0) KD_TRY(kd_expect_list(args->m, "m", KD_F32, count));
    if (args->nesterov && args->momentum == 0)
        return kd_fail(KD_EINVAL, "nesterov: found momentum 0, expected more");
    return KD_OK;
}

kd_status kd_sgd_cpu(kd_exec *exec, const kd_sgd_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t count = kd_tensor_elements(args->param);
    const kd_step_scalars *s = args->scalars->data;
    if (s->verdict != KD_VERDICT_GOOD) return KD_OK;
    const sgd_factors f = { s->clip, s->lr, args->decay, args->momentum, args->nesterov };
    float *param = args->param->data, *m = args->momentum != 0 ? args->m->data : NULL;
    const float *gradient = args->gradient->data;
#pragma omp parallel for schedule(static) if (count > KD_PARALLEL_ABOVE)
    for (int64_t at = 0; at < count; at += BLOCK) {
        const int64_t n = kd_min_i64(BLOCK, count - at);
        if (m)
            momentum_block(param + at, m + at, gradient + at, n, f);
        else
            sgd_block(param + at, gradient + at, n, f);
        publish(args->weights, param, at, n);
    }
    return KD_OK;
}
