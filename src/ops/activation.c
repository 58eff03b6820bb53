/*
 * activation - SwiGLU (Shazeer 2020), GELU (Hendrycks and Gimpel 2016), both forms, and ReLU.
 *
 *     s(x) = 1 / (1 + e^-x)
 *     swiglu   y = gate s(gate) up
 *              dgate = dy up s (1 + gate (1 - s))      dup = dy gate s
 *
 *     gelu     y = x Phi(x)                            Phi(x) = (1 + erf(x / sqrt 2)) / 2
 *              dx = dy (Phi(x) + x phi(x))             phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
 *
 *     tanh     y = x s(2 u)                            u = sqrt(2 / pi) (x + 0.044715 x^3)
 *     form     dx = dy (s(2 u) + x s(2 u) (1 - s(2 u)) 2 u')
 *              which is x (1 + tanh u) / 2, without its cancellation for negative x
 *
 *     relu     y = x, 0 where x <= 0                    dx = dy, 0 where x <= 0
 *              a NaN of x stays one in y; an infinite dy beside x <= 0 gives 0
 *
 * Everything is f32 inside.  Gradients may overwrite any operand of the same element.
 */
#include "ops/rowio.h"
#include "ops/vmath.h"

/* s(x) in `s` and 1 - s(x) in `rest`, both with full relative accuracy. */
static inline void logistic(float *s, float *rest, float x)
{
    const float e = kd_vexpf(-fabsf(x)), high = 1 / (1 + e), low = e * high;
    *s = x < 0 ? low : high;
    *rest = x < 0 ? high : low;
}

/*
 * Phi(x): with t = |x| / sqrt 2, erf t is a polynomial for t < 0.9277 and erfc t the exponential of
 * one above.  The error is below 2^-23 absolutely (coefficients: N. Juffa, erff, minimax).
 */
static inline float normal_cdf(float x)
{
    const float a = x * 0.70710678118654752f;
    const float t = fabsf(a) > 12 ? 12 : fabsf(a), q = t * t; /* e^-144 is 0 in f32 */
    float r = kd_vfma(-1.72853470e-5f, t, 3.83197126e-4f);
    r = kd_vfma(r, q, kd_vfma(-3.88396438e-3f, t, 2.42546219e-2f));
    r = kd_vfma(r, t, -1.06777877e-1f);
    r = kd_vfma(r, t, -6.34846687e-1f);
    r = kd_vfma(r, t, -1.28717512e-1f);
    r = kd_vfma(r, t, -t);
    const float tail = 0.5f * kd_vexpf(r);

    float c = -5.96761703e-4f;
    c = kd_vfma(c, q, 4.99119423e-3f);
    c = kd_vfma(c, q, -2.67681349e-2f);
    c = kd_vfma(c, q, 1.12819925e-1f);
    c = kd_vfma(c, q, -3.76125336e-1f);
    c = kd_vfma(c, q, 1.28379166e-1f);
    const float centre = 0.5f + 0.5f * kd_vfma(c, a, a);

    const float outer = a < 0 ? tail : 1 - tail;
    return t > 0.927734375f ? outer : centre;
}

/* 2 u, and its derivative.  Beyond |x| = 16, s(2 u) is 0 or 1 and x^3 may overflow. */
static inline float twice_u(float *slope, float x)
{
    const float root = 0.79788456080286536f; /* sqrt(2 / pi) */
    const float z = x > 16 ? 16 : x < -16 ? -16 : x, z2 = z * z;
    *slope = 2 * root * (1 + 3 * 0.044715f * z2);
    return 2 * root * z * (1 + 0.044715f * z2);
}

/* ---- strips ----------------------------------------------------------------------------------- */

static void swiglu_strip(float *y, const float *gate, const float *up, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float s, rest;
        logistic(&s, &rest, gate[i]);
        y[i] = gate[i] * s * up[i];
    }
}

static void swiglu_backward_strip(float *dgate, float *dup, const float *dy, const float *gate,
                                  const float *up, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float d = dy[i], g = gate[i], u = up[i];
        float s, rest;
        logistic(&s, &rest, g);
        dgate[i] = d * u * s * (1 + g * rest);
        dup[i] = d * g * s;
    }
}

static void gelu_strip(float *y, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * normal_cdf(x[i]);
}

static void gelu_tanh_strip(float *y, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float s, rest, slope;
        logistic(&s, &rest, twice_u(&slope, x[i]));
        y[i] = x[i] * s;
    }
}

static void gelu_backward_strip(float *dx, const float *dy, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float density = 0.39894228040143268f * kd_vexpf(-0.5f * x[i] * x[i]);
        dx[i] = dy[i] * (normal_cdf(x[i]) + x[i] * density);
    }
}

static void gelu_tanh_backward_strip(float *dx, const float *dy, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float s, rest, slope;
        logistic(&s, &rest, twice_u(&slope, x[i]));
        dx[i] = dy[i] * (s + x[i] * (s * rest) * slope);
    }
}

static void relu_strip(float *y, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = x[i] <= 0 ? 0 : x[i];
}

static void relu_backward_strip(float *dx, const float *dy, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dx[i] = x[i] <= 0 ? 0 : dy[i];
}

/* ---- SwiGLU ----------------------------------------------------------------------------------- */

kd_status kd_swiglu_check(const kd_swiglu_args *args)
{
    KD_TRY(kd_expect_rows(args->gate, "gate"));
    const kd_shape shape = kd_shape_of(args->gate);
    const kd_dtype dtype = args->gate->dtype;
    KD_TRY(kd_expect_rows_of(args->up, "up", dtype, shape));
    return kd_expect_rows_of(args->y, "y", dtype, shape);
}

kd_status kd_swiglu_cpu(kd_exec *exec, const kd_swiglu_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->gate), columns = kd_tensor_columns(args->gate);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        const kd_row y = kd_row_of(args->y, r);
        const kd_row gate = kd_row_of(args->gate, r), up = kd_row_of(args->up, r);
        float gb[KD_STRIP], ub[KD_STRIP], yb[KD_STRIP];
        for (int64_t at = 0; at < columns; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, columns - at);
            float *out = kd_row_begin(yb, y, at);
            swiglu_strip(out, kd_row_load(gb, gate, at, n), kd_row_load(ub, up, at, n), n);
            kd_row_finish(y, at, out, n);
        }
    }
    return KD_OK;
}

static void swiglu_backward_row(const kd_swiglu_backward_args *args, int64_t r)
{
    const int64_t columns = kd_tensor_columns(args->gate);
    const kd_row dgate = kd_row_of(args->dgate, r), dup = kd_row_of(args->dup, r);
    const kd_row dy = kd_row_of(args->dy, r);
    const kd_row gate = kd_row_of(args->gate, r), up = kd_row_of(args->up, r);
    float db[KD_STRIP], gb[KD_STRIP], ub[KD_STRIP], out1[KD_STRIP], out2[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        float *a = kd_row_begin(out1, dgate, at), *b = kd_row_begin(out2, dup, at);
        swiglu_backward_strip(a, b, kd_row_load(db, dy, at, n), kd_row_load(gb, gate, at, n),
                              kd_row_load(ub, up, at, n), n);
        kd_row_finish(dgate, at, a, n);
        kd_row_finish(dup, at, b, n);
    }
}

kd_status kd_swiglu_backward_check(const kd_swiglu_backward_args *args)
{
    KD_TRY(kd_expect_rows(args->gate, "gate"));
    const kd_shape shape = kd_shape_of(args->gate);
    const kd_dtype dtype = args->gate->dtype;
    KD_TRY(kd_expect_rows_of(args->up, "up", dtype, shape));
    KD_TRY(kd_expect_rows_of(args->dy, "dy", dtype, shape));
    KD_TRY(kd_expect_rows_of(args->dgate, "dgate", dtype, shape));
    return kd_expect_rows_of(args->dup, "dup", dtype, shape);
}

kd_status kd_swiglu_backward_cpu(kd_exec *exec, const kd_swiglu_backward_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->gate), columns = kd_tensor_columns(args->gate);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) swiglu_backward_row(args, r);
    return KD_OK;
}

/* ---- functions of one element ----------------------------------------------------------------- */

static kd_status map(kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                     void (*strip)(float *, const float *, int64_t))
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(x), columns = kd_tensor_columns(x);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        const kd_row to = kd_row_of(y, r), from = kd_row_of(x, r);
        float xb[KD_STRIP], yb[KD_STRIP];
        for (int64_t at = 0; at < columns; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, columns - at);
            float *out = kd_row_begin(yb, to, at);
            strip(out, kd_row_load(xb, from, at, n), n);
            kd_row_finish(to, at, out, n);
        }
    }
    return KD_OK;
}

static kd_status map_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                              const kd_tensor *x,
                              void (*strip)(float *, const float *, const float *, int64_t))
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(x), columns = kd_tensor_columns(x);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        const kd_row to = kd_row_of(dx, r), upper = kd_row_of(dy, r), from = kd_row_of(x, r);
        float xb[KD_STRIP], db[KD_STRIP], ob[KD_STRIP];
        for (int64_t at = 0; at < columns; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, columns - at);
            float *out = kd_row_begin(ob, to, at);
            const float *v = kd_row_load(xb, from, at, n), *d = kd_row_load(db, upper, at, n);
            strip(out, d, v, n);
            kd_row_finish(to, at, out, n);
        }
    }
    return KD_OK;
}

static kd_status check(const kd_tensor *y, const kd_tensor *x)
{
    KD_TRY(kd_expect_rows(x, "x"));
    return kd_expect_rows_of(y, "y", x->dtype, kd_shape_of(x));
}

static kd_status check_backward(const kd_tensor *dx, const kd_tensor *dy, const kd_tensor *x)
{
    KD_TRY(kd_expect_rows(x, "x"));
    KD_TRY(kd_expect_rows_of(dy, "dy", x->dtype, kd_shape_of(x)));
    return kd_expect_rows_of(dx, "dx", x->dtype, kd_shape_of(x));
}

kd_status kd_gelu_check(const kd_gelu_args *args) { return check(args->y, args->x); }

kd_status kd_gelu_cpu(kd_exec *exec, const kd_gelu_args *args)
{
    return map(exec, args->y, args->x, args->tanh_form ? gelu_tanh_strip : gelu_strip);
}

kd_status kd_gelu_backward_check(const kd_gelu_backward_args *args)
{
    return check_backward(args->dx, args->dy, args->x);
}

kd_status kd_gelu_backward_cpu(kd_exec *exec, const kd_gelu_backward_args *args)
{
    return map_backward(exec, args->dx, args->dy, args->x,
                        args->tanh_form ? gelu_tanh_backward_strip : gelu_backward_strip);
}

kd_status kd_relu_check(const kd_relu_args *args) { return check(args->y, args->x); }

kd_status kd_relu_cpu(kd_exec *exec, const kd_relu_args *args)
{
    return map(exec, args->y, args->x, relu_strip);
}

kd_status kd_relu_backward_check(const kd_relu_backward_args *args)
{
    return check_backward(args->dx, args->dy, args->x);
}

kd_status kd_relu_backward_cpu(kd_exec *exec, const kd_relu_backward_args *args)
{
    return map_backward(exec, args->dx, args->dy, args->x, relu_backward_strip);
}
