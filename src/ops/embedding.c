/*
 * embedding - rows of a table, one or a weighted sum of K for each row of y, and the gradients' way back.
 *
 *     y[n] = sum over k of factor[n,k] table[ids[n,k]]  + add[n]       without factor: table[ids[n]]
 *     dtable[ids[n,k]] += factor[n,k] dy[n]                            embedding_backward
 *     dfactor[n,k] = dy[n] table[ids[n,k]]                             embedding_products
 *
 * A vocabulary's head of which K classes a row are wanted is the same three: its logits are products, the
 * gradient of its hidden rows is a sum of K rows, that of its weight goes back by ids; nothing of size V
 * exists.
 *
 * An id outside [0, V) is refused before anything is written.  Backward, threads share the columns
 * and each walks all rows in order, so an id that repeats is summed in one order whatever the number
 * of threads.
 */
#include "ops/rowio.h"

/* ---- checks ------------------------------------------------------------------------------------- */

/* f32 [rows, K], and ids as many. */
static kd_status check_entries(const kd_tensor *ids, const kd_tensor *values, const char *what,
                               int64_t rows)
{
    KD_TRY(kd_tensor_expect(values, what, KD_F32, KD_SHAPE(rows, -1)));
    KD_TRY(kd_expect_list(values, what, KD_F32, rows * values->shape[1]));
    KD_TRY(kd_tensor_expect(ids, "ids", KD_I32, kd_shape_of(values)));
    return kd_expect_list(ids, "ids", KD_I32, rows * values->shape[1]);
}

/* ids are a list of `rows`, or with a factor of [rows, K]. */
static kd_status check_ids(const kd_tensor *ids, const kd_tensor *factor, int64_t rows)
{
    return kd_present(factor) ? check_entries(ids, factor, "factor", rows)
                              : kd_expect_list(ids, "ids", KD_I32, rows);
}

kd_status kd_embedding_check(const kd_embedding_args *args)
{
    KD_TRY(kd_expect_rows(args->table, "table"));
    KD_TRY(kd_tensor_expect(args->table, "table", -1, KD_SHAPE(-1, -1)));
    const int64_t columns = args->table->shape[1];
    KD_TRY(kd_expect_rows_of(args->y, "y", args->table->dtype, KD_SHAPE(-1, columns)));
    const int64_t rows = args->y->shape[0];
    KD_TRY(check_ids(args->ids, args->factor, rows));
    if (kd_present(args->add))
        KD_TRY(kd_expect_rows_of(args->add, "add", args->y->dtype, KD_SHAPE(rows, columns)));
    return KD_OK;
}

kd_status kd_embedding_backward_check(const kd_embedding_backward_args *args)
{
    KD_TRY(kd_expect_rows(args->dy, "dy"));
    KD_TRY(kd_tensor_expect(args->dy, "dy", -1, KD_SHAPE(-1, -1)));
    const int64_t rows = args->dy->shape[0], columns = args->dy->shape[1];
    KD_TRY(kd_expect_rows_of(args->dtable, "dtable", KD_F32, KD_SHAPE(-1, columns)));
    return check_ids(args->ids, args->factor, rows);
}

kd_status kd_embedding_products_check(const kd_embedding_products_args *args)
{
    KD_TRY(kd_expect_rows(args->table, "table"));
    KD_TRY(kd_tensor_expect(args->table, "table", -1, KD_SHAPE(-1, -1)));
    KD_TRY(
        kd_expect_rows_of(args->x, "x", args->table->dtype, KD_SHAPE(-1, args->table->shape[1])));
    KD_TRY(check_entries(args->ids, args->y, "y", args->x->shape[0]));
    if (!kd_present(args->bias)) return KD_OK;
    KD_TRY(kd_expect_rows(args->bias, "bias"));
    return kd_tensor_expect(args->bias, "bias", -1, KD_SHAPE(args->table->shape[0]));
}

/* ---- forward ---------------------------------------------------------------------------------- */

static void add_row(kd_row y, kd_row table, kd_row add, int64_t columns)
{
    float tb[KD_STRIP], ab[KD_STRIP], yb[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *t = kd_row_load(tb, table, at, n), *a = kd_row_load(ab, add, at, n);
        float *out = kd_row_begin(yb, y, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = t[i] + a[i];
        kd_row_finish(y, at, out, n);
    }
}

/* y = sum over k of factor[k] table[ids[k]] + add */
static void sum_rows(kd_row y, const kd_tensor *table, const int32_t *ids, const float *factor,
                     int64_t count, kd_row add, int64_t columns)
{
    float tb[KD_STRIP], sum[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *a = kd_row_load(tb, add, at, n);
        for (int64_t i = 0; i < n; i++) sum[i] = a ? a[i] : 0.0f;
        for (int64_t k = 0; k < count; k++) {
            const float *t = kd_row_load(tb, kd_row_of(table, ids[k]), at, n);
            const float f = factor[k];
#pragma omp simd
            for (int64_t i = 0; i < n; i++) sum[i] += f * t[i];
        }
        if (y.dtype == KD_F32) memcpy((float *)y.data + at, sum, (size_t)n * sizeof *sum);
        kd_row_finish(y, at, sum, n);
    }
}

kd_status kd_embedding_cpu(kd_exec *exec, const kd_embedding_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_expect_ids(args->ids, "ids", 0, args->table->shape[0]));

    const int64_t rows = args->y->shape[0], columns = args->y->shape[1];
    const int64_t count = kd_present(args->factor) ? args->factor->shape[1] : 1;
    const int32_t *ids = args->ids->data;
    const size_t bytes = (size_t)columns * kd_dtype_size(args->y->dtype);
#pragma omp parallel for schedule(static) if (rows * count * columns > KD_PARALLEL_ABOVE)
    for (int64_t n = 0; n < rows; n++) {
        const kd_row y = kd_row_of(args->y, n), add = kd_row_of(args->add, n);
        if (kd_present(args->factor)) {
            sum_rows(y, args->table, ids + n * count, (float *)args->factor->data + n * count,
                     count, add, columns);
            continue;
        }
        const kd_row table = kd_row_of(args->table, ids[n]);
        if (add.data)
            add_row(y, table, add, columns);
        else
            memcpy(y.data, table.data, bytes);
    }
    return KD_OK;
}

static double bias_of(const kd_tensor *bias, int64_t id)
{
    if (!kd_present(bias)) return 0.0;
    return bias->dtype == KD_F32 ? ((const float *)bias->data)[id]
                                 : kd_bf16_to_f32(((const uint16_t *)bias->data)[id]);
}

kd_status kd_embedding_products_cpu(kd_exec *exec, const kd_embedding_products_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_expect_ids(args->ids, "ids", 0, args->table->shape[0]));
    const int64_t rows = args->y->shape[0], count = args->y->shape[1], columns = args->x->shape[1];
    const int32_t *ids = args->ids->data;
    float *y = args->y->data;
#pragma omp parallel for schedule(static) if (rows * count * columns > KD_PARALLEL_ABOVE)
    for (int64_t n = 0; n < rows; n++)
        for (int64_t i = n * count; i < (n + 1) * count; i++) {
            const double product =
                kd_row_dot(kd_row_of(args->x, n), kd_row_of(args->table, ids[i]), columns);
            y[i] = (float)(product + bias_of(args->bias, ids[i]));
        }
    return KD_OK;
}

/* ---- backward ----------------------------------------------------------------------------------- */

enum { SHARE = 64 }; /* columns that one thread takes at a time: whole cache lines */

static void add_columns(const kd_embedding_backward_args *args, int64_t at, int64_t n)
{
    const int32_t *ids = args->ids->data;
    const float *factor = kd_present(args->factor) ? args->factor->data : NULL;
    const int64_t count = factor ? args->factor->shape[1] : 1;
    float buffer[KD_STRIP];
    for (int64_t row = 0, rows = args->dy->shape[0]; row < rows; row++) {
        const float *d = kd_row_load(buffer, kd_row_of(args->dy, row), at, n);
        for (int64_t k = row * count; k < (row + 1) * count; k++) {
            float *to = (float *)kd_row_of(args->dtable, ids[k]).data + at;
            const float f = factor ? factor[k] : 1.0f;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) to[i] += f * d[i];
        }
    }
}

kd_status kd_embedding_backward_cpu(kd_exec *exec, const kd_embedding_backward_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_expect_ids(args->ids, "ids", 0, args->dtable->shape[0]));
    const int64_t entries = kd_tensor_elements(args->ids), columns = args->dy->shape[1];
#pragma omp parallel for schedule(static) if (entries * columns > KD_PARALLEL_ABOVE)
    for (int64_t at = 0; at < columns; at += SHARE)
        add_columns(args, at, kd_min_i64(SHARE, columns - at));
    return KD_OK;
}
