/*
 * rope - rotary position embedding (Su et al. 2021), halves paired as Hugging Face pairs them.
 *
 *     a = positions[n] * frequencies[i]                          (one f32 product, as there)
 *     x'[i]       = scale * (x[i] cos a - x[i + r/2] sin a)      i < r/2,  r = 2 * frequencies
 *     x'[i + r/2] = scale * (x[i + r/2] cos a + x[i] sin a)
 *
 * for every head of row n; columns from r on stay.  Backward is the transpose: -a in place of a,
 * with the same scale.  Cosines are computed once per row for all heads.
 */
#include "ops/rowio.h"
#include "ops/vmath.h"

/*
 * sin and cos of x within 2 ulp of 1 for |x| < 2^20 pi/2, and within 1e-6 for any int32 * f32 below
 * 2^31.  The angle is reduced to [-pi/4, pi/4] in double, where n times the 33 high bits of pi/2 is
 * exact; the kernels are Cephes' sinf and cosf.
 */
static inline void sincos_strip(float *restrict sine, float *restrict cosine, float position,
                                const float *restrict frequencies, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const double a = position * frequencies[i];
        const double magic = 6755399441055744.0; /* 1.5 * 2^52: rounds to an integer */
        const double shifted = a * 0.63661977236758134308 + magic, turns = shifted - magic;
        const double high = a - turns * 1.57079632673412561417;
        const float f = (float)(high - turns * 6.07710050650619224932e-11), z = f * f;
        uint64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        const uint32_t quadrant = (uint32_t)bits;

        float s = kd_vfma(-1.9515295891e-4f, z, 8.3321608736e-3f);
        s = kd_vfma(s, z, -1.6666654611e-1f);
        s = kd_vfma(s * z, f, f);
        float c = kd_vfma(2.443315711809948e-5f, z, -1.388731625493765e-3f);
        c = kd_vfma(c, z, 4.166664568298827e-2f);
        c = kd_vfma(c * z, z, kd_vfma(-0.5f, z, 1.0f));

        const float s1 = quadrant & 1u ? c : s, c1 = quadrant & 1u ? s : c;
        sine[i] = quadrant & 2u ? -s1 : s1;
        cosine[i] = (quadrant + 1u) & 2u ? -c1 : c1;
    }
}

/* Turns n pairs whose first halves start at column `at`. */
static void turn(kd_row x, int64_t at, int64_t half, const float *restrict sine,
                 const float *restrict cosine, int64_t n)
{
    float ab[KD_STRIP], bb[KD_STRIP], out1[KD_STRIP], out2[KD_STRIP];
    const float *a = kd_row_load(ab, x, at, n), *b = kd_row_load(bb, x, at + half, n);
    float *y1 = kd_row_begin(out1, x, at), *y2 = kd_row_begin(out2, x, at + half);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float u = a[i], v = b[i];
        y1[i] = u * cosine[i] - v * sine[i];
        y2[i] = v * cosine[i] + u * sine[i];
    }
    kd_row_finish(x, at, y1, n);
    kd_row_finish(x, at + half, y2, n);
}

kd_status kd_rope_check(const kd_rope_args *args)
{
    const kd_tensor *x = args->x, *frequencies = args->frequencies;
    KD_TRY(kd_expect_rows(x, "x"));
    KD_TRY(kd_tensor_expect(x, "x", -1, KD_SHAPE(-1, -1, -1)));
    KD_TRY(kd_expect_list(args->positions, "positions", KD_I32, x->shape[0]));
    if (!kd_present(frequencies)) return kd_fail(KD_EINVAL, "frequencies: absent");
    KD_TRY(kd_expect_list(frequencies, "frequencies", KD_F32, kd_tensor_elements(frequencies)));
    if (2 * kd_tensor_elements(frequencies) > x->shape[2])
        return kd_fail(KD_EINVAL, "frequencies: found %lld, expected at most %lld (half a head)",
                       (long long)kd_tensor_elements(frequencies), (long long)x->shape[2] / 2);
    return KD_OK;
}

kd_status kd_rope_cpu(kd_exec *exec, const kd_rope_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const kd_tensor *x = args->x;
    const int64_t rows = x->shape[0], heads = x->shape[1];
    const int64_t half = kd_tensor_elements(args->frequencies);
    const int32_t *positions = args->positions->data;
    const float *frequencies = args->frequencies->data;
    const float direction = args->backward ? -args->scale : args->scale;
#pragma omp parallel for schedule(static) if (kd_tensor_elements(x) > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        float sine[KD_STRIP], cosine[KD_STRIP];
        for (int64_t at = 0; at < half; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, half - at);
            sincos_strip(sine, cosine, (float)positions[row], frequencies + at, n);
            for (int64_t i = 0; i < n; i++) {
                sine[i] *= direction;
                cosine[i] *= args->scale;
            }
            for (int64_t h = 0; h < heads; h++)
                turn(kd_row_of(x, row * heads + h), at, half, sine, cosine, n);
        }
    }
    return KD_OK;
}
