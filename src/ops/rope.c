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
#include "ops/turn.h"

/* Turns n pairs whose first halves start at column `at`. */
static void turn(kd_row x, int64_t at, int64_t half, const float *restrict sine,
                 const float *restrict cosine, int64_t n)
{
    float ab[KD_STRIP], bb[KD_STRIP], out1[KD_STRIP], out2[KD_STRIP];
    const float *a = kd_row_load(ab, x, at, n), *b = kd_row_load(bb, x, at + half, n);
    float *y1 = kd_row_begin(out1, x, at), *y2 = kd_row_begin(out2, x, at + half);
    kd_turn_pairs(y1, y2, a, b, sine, cosine, n);
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
#pragma omp parallel for schedule(static) if (kd_tensor_elements(x) > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        float sine[KD_STRIP], cosine[KD_STRIP];
        for (int64_t at = 0; at < half; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, half - at);
            kd_turn_angles(sine, cosine, positions[row], frequencies + at, args->scale,
                           args->backward, n);
            for (int64_t h = 0; h < heads; h++)
                turn(kd_row_of(x, row * heads + h), at, half, sine, cosine, n);
        }
    }
    return KD_OK;
}
