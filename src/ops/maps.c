/*
 * map_powers - what attention transfer makes of feature maps (Zagoruyko and Komodakis 2017, section 3.1):
 * the sums of powers of their absolute values.
 *
 *     y[b,s]      =  sum_c |x[b,c,s]|^p        over channels, one value per place
 *     y[b,c]      =  sum_s |x[b,c,s]|^p        over places, one value per channel
 *     dx[b,c,s]  +=  dy p |x|^(p - 1) sign(x)  with dy[b,s] or dy[b,c]
 *
 * p is 1 or more, so that the gradient at 0 is finite: 0 there, for p = 1 too.
 */
#include "ops/rowio.h"

#include <math.h>

static kd_status check(const kd_tensor *x, const kd_tensor *y, const char *name, float power,
                       bool channels)
{
    KD_TRY(kd_expect_rows(x, "x"));
    KD_TRY(kd_tensor_expect(x, "x", -1, KD_SHAPE(-1, -1, -1)));
    KD_TRY(kd_expect_list(y, name, KD_F32, x->shape[0] * x->shape[channels ? 1 : 2]));
    KD_TRY(kd_tensor_expect(y, name, KD_F32, KD_SHAPE(x->shape[0], x->shape[channels ? 1 : 2])));
    if (power >= 1 && power <= 16) return KD_OK;
    return kd_fail(KD_EINVAL, "power: found %g, expected 1 to 16", (double)power);
}

kd_status kd_map_powers_check(const kd_map_powers_args *args)
{
    return check(args->x, args->y, "y", args->power, args->channels);
}

kd_status kd_map_powers_backward_check(const kd_map_powers_backward_args *args)
{
    KD_TRY(check(args->x, args->dy, "dy", args->power, args->channels));
    return kd_expect_rows_of(args->dx, "dx", args->x->dtype, kd_shape_of(args->x));
}

/* ---- forward ---------------------------------------------------------------------------------- */

static inline float raised(float x, float power)
{
    return power == 2.0f ? x * x : powf(fabsf(x), power);
}

/* Of one task: a map of no more is read from its first element to its last. */
enum { PLACES = 4 * KD_STRIP };

/* Places [at, at + n) of y[b], summed over channels. */
static void sum_channels(float *y, const kd_tensor *x, int64_t b, int64_t at, int64_t n,
                         float power)
{
    double total[PLACES];
    float buffer[KD_STRIP];
    memset(total, 0, (size_t)n * sizeof *total);
    for (int64_t c = 0; c < x->shape[1]; c++) {
        const kd_row row = kd_row_of(x, b * x->shape[1] + c);
        for (int64_t from = 0; from < n; from += KD_STRIP) {
            const int64_t m = kd_min_i64(KD_STRIP, n - from);
            const float *v = kd_row_load(buffer, row, at + from, m);
            double *restrict to = total + from;
            for (int64_t i = 0; i < m; i++) to[i] += raised(v[i], power);
        }
    }
    for (int64_t i = 0; i < n; i++) y[i] = (float)total[i];
}

static float sum_places(const kd_tensor *x, int64_t row, float power)
{
    float buffer[KD_STRIP];
    double total = 0;
    for (int64_t at = 0; at < x->shape[2]; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, x->shape[2] - at);
        const float *v = kd_row_load(buffer, kd_row_of(x, row), at, n);
        double strip = 0;
        for (int64_t i = 0; i < n; i++) strip += raised(v[i], power);
        total += strip;
    }
    return (float)total;
}

kd_status kd_map_powers_cpu(kd_exec *exec, const kd_map_powers_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const kd_tensor *x = args->x;
    const int64_t samples = x->shape[0], channels = x->shape[1], places = x->shape[2];
    const int64_t strips = kd_ceil_div(places, PLACES);
    const bool parallel = kd_tensor_elements(x) > KD_PARALLEL_ABOVE;
    float *y = args->y->data;
    if (args->channels) {
#pragma omp parallel for schedule(static) if (parallel)
        for (int64_t row = 0; row < samples * channels; row++)
            y[row] = sum_places(x, row, args->power);
        return KD_OK;
    }
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t item = 0; item < samples * strips; item++) {
        const int64_t b = item / strips, at = item % strips * PLACES;
        sum_channels(y + b * places + at, x, b, at, kd_min_i64(PLACES, places - at), args->power);
    }
    return KD_OK;
}

/* ---- backward --------------------------------------------------------------------------------- */

/* `dy` has `step` elements from one place to the next: 1, or 0 where all have the same. */
static void backward_row(kd_row dx, kd_row x, const float *dy, int step, int64_t places,
                         float power)
{
    float xb[KD_STRIP], db[KD_STRIP], ob[KD_STRIP];
    for (int64_t at = 0; at < places; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, places - at);
        const float *v = kd_row_load(xb, x, at, n), *before = kd_row_load(db, dx, at, n);
        float *out = kd_row_begin(ob, dx, at);
        for (int64_t i = 0; i < n; i++) {
            const float g = dy[(at + i) * step];
            const float slope =
                power == 2.0f
                    ? 2 * v[i]
                    : (v[i] == 0 ? 0 : copysignf(power * powf(fabsf(v[i]), power - 1), v[i]));
            out[i] = g == 0 ? before[i] : before[i] + g * slope;
        }
        kd_row_finish(dx, at, out, n);
    }
}

kd_status kd_map_powers_backward_cpu(kd_exec *exec, const kd_map_powers_backward_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const kd_tensor *x = args->x;
    const int64_t rows = x->shape[0] * x->shape[1], places = x->shape[2];
    const float *dy = args->dy->data;
#pragma omp parallel for schedule(static) if (kd_tensor_elements(x) > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = args->channels ? dy + row : dy + row / x->shape[1] * places;
        backward_row(kd_row_of(args->dx, row), kd_row_of(x, row), from, !args->channels, places,
                     args->power);
    }
    return KD_OK;
}
