/*
 * embedding - rows of a table, and the gradient's way back.
 *
 *     y[n] = table[ids[n]] + add[n]            dtable[ids[n]] += dy[n]
 *
 * An id outside [0, V) is refused before anything is written.  Backward, threads share the columns
 * and each walks all rows in order, so an id that repeats is summed in one order whatever the number
 * of threads.
 */
#include "ops/rowio.h"

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

kd_status kd_embedding_check(const kd_embedding_args *args)
{
    KD_TRY(kd_expect_rows(args->table, "table"));
    KD_TRY(kd_tensor_expect(args->table, "table", -1, KD_SHAPE(-1, -1)));
    const int64_t columns = args->table->shape[1];
    KD_TRY(kd_expect_rows_of(args->y, "y", args->table->dtype, KD_SHAPE(-1, columns)));
    const int64_t rows = args->y->shape[0];
    KD_TRY(kd_expect_list(args->ids, "ids", KD_I32, rows));
    if (kd_present(args->add))
        KD_TRY(kd_expect_rows_of(args->add, "add", args->y->dtype, KD_SHAPE(rows, columns)));
    return KD_OK;
}

kd_status kd_embedding_cpu(kd_exec *exec, const kd_embedding_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_expect_ids(args->ids, "ids", 0, args->table->shape[0]));

    const int64_t rows = args->y->shape[0], columns = args->y->shape[1];
    const int32_t *ids = args->ids->data;
    const size_t bytes = (size_t)columns * kd_dtype_size(args->y->dtype);
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t n = 0; n < rows; n++) {
        const kd_row y = kd_row_of(args->y, n), table = kd_row_of(args->table, ids[n]);
        if (kd_present(args->add))
            add_row(y, table, kd_row_of(args->add, n), columns);
        else
            memcpy(y.data, table.data, bytes);
    }
    return KD_OK;
}

enum { SHARE = 64 }; /* columns that one thread takes at a time: whole cache lines */

static void add_columns(const kd_embedding_backward_args *args, int64_t at, int64_t n)
{
    const int32_t *ids = args->ids->data;
    float buffer[KD_STRIP];
    for (int64_t row = 0, rows = args->dy->shape[0]; row < rows; row++) {
        const float *d = kd_row_load(buffer, kd_row_of(args->dy, row), at, n);
        float *to = (float *)kd_row_of(args->dtable, ids[row]).data + at;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] += d[i];
    }
}

kd_status kd_embedding_backward_check(const kd_embedding_backward_args *args)
{
    KD_TRY(kd_expect_rows(args->dy, "dy"));
    KD_TRY(kd_tensor_expect(args->dy, "dy", -1, KD_SHAPE(-1, -1)));
    const int64_t rows = args->dy->shape[0], columns = args->dy->shape[1];
    KD_TRY(kd_expect_rows_of(args->dtable, "dtable", KD_F32, KD_SHAPE(-1, columns)));
    return kd_expect_list(args->ids, "ids", KD_I32, rows);
}

kd_status kd_embedding_backward_cpu(kd_exec *exec, const kd_embedding_backward_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    KD_TRY(kd_expect_ids(args->ids, "ids", 0, args->dtable->shape[0]));
    const int64_t rows = args->dy->shape[0], columns = args->dy->shape[1];
#pragma omp parallel for schedule(static) if (rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t at = 0; at < columns; at += SHARE)
        add_columns(args, at, kd_min_i64(SHARE, columns - at));
    return KD_OK;
}
