/*
 * elementwise - fill, copy, add, and rows chosen by index.
 *
 *     fill          y = value
 *     copy          y = x, converted between f32, bf16 and f16, any strides of equal shapes
 *     add           y = a + b
 *     gather_rows   y[n] = x[rows[n]], zero where rows[n] is -1
 *     scatter_rows  y[rows[n]] = x[n], nothing where rows[n] is -1; of equal rows the last one stays
 */
#include "ops/rowio.h"

/* ---- fill and copy ---------------------------------------------------------------------------- */

kd_status kd_fill_check(const kd_fill_args *args) { return kd_expect_rows(args->y, "y"); }

kd_status kd_fill_cpu(kd_exec *exec, const kd_fill_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->y), columns = kd_tensor_columns(args->y);
    const float value = args->value;
    const uint16_t half = kd_f32_to_bf16(value);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++) {
        const kd_row y = kd_row_of(args->y, r);
        if (y.dtype == KD_F32)
            for (int64_t i = 0; i < columns; i++) ((float *)y.data)[i] = value;
        else
            for (int64_t i = 0; i < columns; i++) ((uint16_t *)y.data)[i] = half;
    }
    return KD_OK;
}

/* Up to KD_STRIP elements that stand `stride` apart, packed; `size` is 2 or 4 bytes. */
static void pack(void *restrict to, const void *restrict from, int64_t stride, int64_t n,
                 size_t size)
{
    if (size == 4)
        for (int64_t i = 0; i < n; i++) ((uint32_t *)to)[i] = ((const uint32_t *)from)[i * stride];
    else
        for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i] = ((const uint16_t *)from)[i * stride];
}

static void unpack(void *restrict to, const void *restrict from, int64_t stride, int64_t n,
                   size_t size)
{
    if (size == 4)
        for (int64_t i = 0; i < n; i++) ((uint32_t *)to)[i * stride] = ((const uint32_t *)from)[i];
    else
        for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i * stride] = ((const uint16_t *)from)[i];
}

static void copy_row(kd_row y, int64_t y_stride, kd_row x, int64_t x_stride, int64_t columns)
{
    const size_t y_size = kd_dtype_size(y.dtype), x_size = kd_dtype_size(x.dtype);
    uint32_t from[KD_STRIP], to[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const void *source = (const char *)x.data + at * x_stride * (int64_t)x_size;
        void *target = (char *)y.data + at * y_stride * (int64_t)y_size;
        if (x_stride != 1) {
            pack(from, source, x_stride, n, x_size);
            source = from;
        }
        /* Only types that kd_copy_cpu let through come here, so the conversion cannot fail. */
        if (kd_convert(y_stride == 1 ? target : to, y.dtype, source, x.dtype, n) != KD_OK) return;
        if (y_stride != 1) unpack(target, to, y_stride, n, y_size);
    }
}

kd_status kd_copy_check(const kd_copy_args *args)
{
    const kd_tensor *x = args->x, *y = args->y;
    if (!kd_present(x)) return kd_fail(KD_EINVAL, "x: absent");
    KD_TRY(kd_tensor_expect(y, "y", -1, kd_shape_of(x)));
    if (x->dtype > KD_F16 || y->dtype > KD_F16)
        return kd_fail(KD_ENOTSUP, "from %s to %s, expected f32, bf16 or f16",
                       kd_dtype_name(x->dtype), kd_dtype_name(y->dtype));
    return KD_OK;
}

/* A matrix by columns into one by rows. */
static bool is_turned(const kd_tensor *y, const kd_tensor *x)
{
    return x->rank == 2 && x->dtype == KD_F32 && y->dtype == KD_F32 && x->stride[0] == 1 &&
           y->stride[1] == 1 && x->shape[0] > 1 && x->shape[1] > 1;
}

/* By blocks of which the cache holds both sides' lines. */
static void turn(const kd_tensor *y, const kd_tensor *x)
{
    enum { SIDE = 16 };
    const int64_t rows = x->shape[0], columns = x->shape[1];
    const int64_t x_step = x->stride[1], y_step = y->stride[0];
    const float *from = x->data;
    float *to = y->data;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row += SIDE)
        for (int64_t column = 0; column < columns; column += SIDE)
            for (int64_t r = row; r < kd_min_i64(row + SIDE, rows); r++)
                for (int64_t c = column; c < kd_min_i64(column + SIDE, columns); c++)
                    to[r * y_step + c] = from[c * x_step + r];
}

kd_status kd_copy_cpu(kd_exec *exec, const kd_copy_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const kd_tensor *x = args->x, *y = args->y;
    if (is_turned(y, x)) {
        turn(y, x);
        return KD_OK;
    }
    const int64_t rows = kd_tensor_rows(x), columns = kd_tensor_columns(x);
    const int64_t y_stride = y->rank && columns > 1 ? y->stride[y->rank - 1] : 1;
    const int64_t x_stride = x->rank && columns > 1 ? x->stride[x->rank - 1] : 1;
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++)
        copy_row(kd_row_of(y, r), y_stride, kd_row_of(x, r), x_stride, columns);
    return KD_OK;
}

/* ---- add -------------------------------------------------------------------------------------- */

static void add_row(kd_row y, kd_row a, kd_row b, int64_t columns)
{
    float ab[KD_STRIP], bb[KD_STRIP], yb[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *u = kd_row_load(ab, a, at, n), *v = kd_row_load(bb, b, at, n);
        float *out = kd_row_begin(yb, y, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = u[i] + v[i];
        kd_row_finish(y, at, out, n);
    }
}

kd_status kd_add_check(const kd_add_args *args)
{
    KD_TRY(kd_expect_rows(args->a, "a"));
    const kd_shape shape = kd_shape_of(args->a);
    KD_TRY(kd_expect_rows_of(args->b, "b", args->a->dtype, shape));
    return kd_expect_rows_of(args->y, "y", args->a->dtype, shape);
}

kd_status kd_add_cpu(kd_exec *exec, const kd_add_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = kd_tensor_rows(args->a), columns = kd_tensor_columns(args->a);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t r = 0; r < rows; r++)
        add_row(kd_row_of(args->y, r), kd_row_of(args->a, r), kd_row_of(args->b, r), columns);
    return KD_OK;
}

/* ---- rows by index ---------------------------------------------------------------------------- */

/* `many` [*,D] is indexed by rows, `few` [N,D] is in their order. */
static kd_status check_chosen(const kd_tensor *many, const char *many_name, const kd_tensor *few,
                              const char *few_name, const kd_tensor *rows)
{
    KD_TRY(kd_expect_rows(few, few_name));
    if (few->rank != 2)
        return kd_fail(KD_EINVAL, "%s: found rank %d, expected 2", few_name, (int)few->rank);
    KD_TRY(kd_expect_rows_of(many, many_name, few->dtype, KD_SHAPE(-1, few->shape[1])));
    return kd_expect_list(rows, "rows", KD_I32, few->shape[0]);
}

kd_status kd_gather_rows_check(const kd_gather_rows_args *args)
{
    return check_chosen(args->x, "x", args->y, "y", args->rows);
}

kd_status kd_gather_rows_cpu(kd_exec *exec, const kd_gather_rows_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_expect_ids(args->rows, "rows", -1, args->x->shape[0]));
    const int32_t *from = args->rows->data;
    const int64_t rows = args->y->shape[0], columns = args->y->shape[1];
    const size_t bytes = (size_t)columns * kd_dtype_size(args->y->dtype);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t n = 0; n < rows; n++) {
        void *y = kd_row_of(args->y, n).data;
        if (from[n] < 0)
            memset(y, 0, bytes);
        else
            memcpy(y, kd_row_of(args->x, from[n]).data, bytes);
    }
    return KD_OK;
}

kd_status kd_scatter_rows_check(const kd_scatter_rows_args *args)
{
    return check_chosen(args->y, "y", args->x, "x", args->rows);
}

kd_status kd_scatter_rows_cpu(kd_exec *exec, const kd_scatter_rows_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_expect_ids(args->rows, "rows", -1, args->y->shape[0]));
    const int32_t *to = args->rows->data;
    const int64_t rows = args->x->shape[0], columns = args->x->shape[1];
    const int64_t size = (int64_t)kd_dtype_size(args->x->dtype);
    /* Threads share columns, not rows: rows that name the same target are written in order. */
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const size_t bytes = (size_t)(kd_min_i64(KD_STRIP, columns - at) * size);
        for (int64_t n = 0; n < rows; n++) {
            if (to[n] < 0) continue;
            memcpy((char *)kd_row_of(args->y, to[n]).data + at * size,
                   (const char *)kd_row_of(args->x, n).data + at * size, bytes);
        }
    }
    return KD_OK;
}
