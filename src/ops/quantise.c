/*
 * quantise - e4m3 with a scale per row, and products of such.
 *
 *     scale[n] = max_d |x[n,d]| / 448          y[n,d] = e4m3(x[n,d] / scale[n])
 *     y[m,n] = a_scale[m] b_scale[n] sum_k a[m,k] b[k,n] + bias[n]
 *
 * A scale is of its own row alone: what a token's row becomes does not depend on its neighbours.
 *
 * The product here widens both to bf16, which holds every e4m3 number, some columns of b at a time;
 * products of them are exact in f32, so what it rounds is the sums and y.
 */
#include "ops/rowio.h"

#include <math.h>

enum { PANEL = 256 }; /* columns of b at a time */

/* Elements next to each other along dimension `along`. */
static kd_status expect_codes(const kd_tensor *t, const char *what, kd_shape shape, int along)
{
    KD_TRY(kd_tensor_expect(t, what, KD_F8_E4M3, shape));
    if (t->shape[along] > 1 && t->stride[along] != 1)
        return kd_fail(KD_EINVAL, "%s: found stride %lld in dimension %d, expected 1", what,
                       (long long)t->stride[along], along);
    return KD_OK;
}

/* ---- quantise --------------------------------------------------------------------------------- */

kd_status kd_quantise_check(const kd_quantise_args *args)
{
    KD_TRY(kd_expect_rows(args->x, "x"));
    KD_TRY(kd_tensor_expect(args->x, "x", -1, KD_SHAPE(-1, -1)));
    KD_TRY(expect_codes(args->y, "y", kd_shape_of(args->x), 1));
    return kd_expect_list(args->scale, "scale", KD_F32, args->x->shape[0]);
}

/* Of the finite elements. */
static float largest_of(kd_row row, int64_t columns)
{
    float buffer[KD_STRIP], largest = 0;
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *x = kd_row_load(buffer, row, at, n);
        for (int64_t i = 0; i < n; i++) {
            const float size = fabsf(x[i]);
            if (size > largest && size < INFINITY) largest = size;
        }
    }
    return largest;
}

kd_status kd_quantise_cpu(kd_exec *exec, const kd_quantise_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->x->shape[0], columns = args->x->shape[1];
    float *scales = args->scale->data;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        const kd_row from = kd_row_of(args->x, row);
        uint8_t *y = kd_row_of(args->y, row).data;
        scales[row] = kd_e4m3_scale(largest_of(from, columns));
        const float inverse = 1 / scales[row];
        float buffer[KD_STRIP];
        for (int64_t at = 0; at < columns; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, columns - at);
            const float *x = kd_row_load(buffer, from, at, n);
            for (int64_t i = 0; i < n; i++) y[at + i] = kd_f32_to_e4m3(x[i] * inverse);
        }
    }
    return KD_OK;
}

/* ---- products --------------------------------------------------------------------------------- */

kd_status kd_matmul_scaled_check(const kd_matmul_scaled_args *args)
{
    KD_TRY(expect_codes(args->a, "a", KD_SHAPE(-1, -1), 1));
    KD_TRY(expect_codes(args->b, "b", KD_SHAPE(args->a->shape[1], -1), 0));
    KD_TRY(kd_expect_rows(args->y, "y"));
    KD_TRY(kd_tensor_expect(args->y, "y", -1, KD_SHAPE(args->a->shape[0], args->b->shape[1])));
    KD_TRY(kd_expect_list(args->a_scale, "a_scale", KD_F32, args->y->shape[0]));
    KD_TRY(kd_expect_list(args->b_scale, "b_scale", KD_F32, args->y->shape[1]));
    if (!kd_present(args->bias)) return KD_OK;
    return kd_expect_list(args->bias, "bias", KD_BF16, args->y->shape[1]);
}

/* to [R,K] bf16 = from [R,K]. */
static void widen(const kd_tensor *to, const kd_tensor *from)
{
    const int64_t rows = from->shape[0], columns = from->shape[1];
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *x = kd_row_of(from, row).data;
        uint16_t *y = kd_row_of(to, row).data;
        for (int64_t i = 0; i < columns; i++) y[i] = kd_f32_to_bf16(kd_e4m3_to_f32(x[i]));
    }
}

/* A row's or a column's scale, and a column's bias. */
typedef struct scales {
    const float *row, *column;
    const uint16_t *bias; /* NULL: none */
} scales;

static scales scales_of(const kd_tensor *row, const kd_tensor *column, const kd_tensor *bias)
{
    return (scales){ row->data, column->data, kd_present(bias) ? bias->data : NULL };
}

/* y = row (column x) + bias, for columns from `first` on; x of y's shape, and may be y. */
static void rescale(const kd_tensor *y, const kd_tensor *x, scales by, int64_t first)
{
    const int64_t rows = y->shape[0], columns = y->shape[1];
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        const kd_row from = kd_row_of(x, row), to = kd_row_of(y, row);
        float in[KD_STRIP], buffer[KD_STRIP];
        for (int64_t at = 0; at < columns; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, columns - at);
            const float *column = by.column + first + at, *values = kd_row_load(in, from, at, n);
            const uint16_t *bias = by.bias ? by.bias + first + at : NULL;
            float *out = kd_row_begin(buffer, to, at);
            for (int64_t i = 0; i < n; i++)
                out[i] =
                    by.row[row] * (column[i] * values[i]) + (bias ? kd_bf16_to_f32(bias[i]) : 0);
            kd_row_finish(to, at, out, n);
        }
    }
}

kd_status kd_rescale_check(const kd_rescale_args *args)
{
    KD_TRY(kd_expect_rows(args->y, "y"));
    KD_TRY(kd_tensor_expect(args->y, "y", -1, KD_SHAPE(-1, -1)));
    KD_TRY(kd_expect_list(args->row, "row", KD_F32, args->y->shape[0]));
    KD_TRY(kd_expect_list(args->column, "column", KD_F32, args->y->shape[1]));
    if (!kd_present(args->bias)) return KD_OK;
    return kd_expect_list(args->bias, "bias", KD_BF16, args->y->shape[1]);
}

kd_status kd_rescale_cpu(kd_exec *exec, const kd_rescale_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    rescale(args->y, args->y, scales_of(args->row, args->column, args->bias), 0);
    return KD_OK;
}

kd_status kd_matmul_scaled_cpu(kd_exec *exec, const kd_matmul_scaled_args *args)
{
    const int64_t m = args->a->shape[0], k = args->a->shape[1], columns = args->b->shape[1];
    const kd_tensor weight = kd_tensor_transposed(args->b);
    const scales by = scales_of(args->a_scale, args->b_scale, args->bias);
    kd_tensor a, panel, sums;
    KD_TRY(kd_push(&a, exec, "matmul_scaled.a", KD_BF16, KD_SHAPE(m, k)));
    if (!kd_planning(exec)) widen(&a, args->a);
    for (int64_t at = 0; at < columns; at += PANEL) {
        const int64_t n = kd_min_i64(PANEL, columns - at);
        const kd_mark mark = kd_stack_mark(exec->stack);
        const kd_tensor rows = kd_tensor_slice(&weight, 0, at, n);
        const kd_tensor y = kd_tensor_slice(args->y, 1, at, n);
        KD_TRY(kd_push(&panel, exec, "matmul_scaled.b", KD_BF16, KD_SHAPE(n, k)));
        KD_TRY(kd_push(&sums, exec, "matmul_scaled.sums", KD_F32, KD_SHAPE(m, n)));
        const kd_tensor b = kd_tensor_transposed(&panel);
        if (!kd_planning(exec)) widen(&panel, &rows);
        KD_TRY(kd_dnn_matmul(kd_cpu_dnn(exec->device), exec, &sums, &a, &b, NULL, false));
        if (!kd_planning(exec)) rescale(&y, &sums, by, at);
        kd_stack_release(exec->stack, mark);
    }
    return KD_OK;
}
