/*
 * pairs - how far apart the rows of a batch of N are.
 *
 * pair_distances    S_ij = sum_d (x_id - x_jd)^2, of the differences themselves: the identity
 *                   |a|^2 + |b|^2 - 2 a.b loses the digits of rows that lie close.
 *         backward  dx_i += 2 sum_j (dS_ij + dS_ji) (x_i - x_j)
 *
 * Sums over a row are f32 within a strip, of which there is a sum in double.
 */
#include "ops/rowio.h"
#include "ops/vmath.h"

static float *row_of(const kd_tensor *t, int64_t row) { return kd_row_of(t, row).data; }

/* ---- distances -------------------------------------------------------------------------------- */

enum { GROUP = 8, LANES = 16 }; /* rows that are read side by side; columns of a vector */

static kd_status check_distances(const kd_tensor *y, const char *name, const kd_tensor *x)
{
    KD_TRY(kd_expect_rows(x, "x"));
    KD_TRY(kd_tensor_expect(x, "x", -1, KD_SHAPE(-1, -1)));
    return kd_expect_rows_of(y, name, KD_F32, KD_SHAPE(x->shape[0], x->shape[0]));
}

/* x in f32, with rows of zeros up to a multiple of GROUP and columns of them up to one of LANES. */
static kd_status push_wide(kd_tensor *wide, kd_exec *exec, const char *name, const kd_tensor *x)
{
    return kd_push(
        wide, exec, name, KD_F32,
        KD_SHAPE(kd_ceil_div(x->shape[0], GROUP) * GROUP, kd_ceil_div(x->shape[1], LANES) * LANES));
}

static void widen(const kd_tensor *wide, const kd_tensor *x)
{
    const int64_t columns = x->shape[1];
    for (int64_t r = 0; r < wide->shape[0]; r++) {
        float *to = row_of(wide, r), buffer[KD_STRIP];
        const kd_row from = r < x->shape[0] ? kd_row_of(x, r) : (kd_row){ NULL, KD_F32 };
        for (int64_t at = 0; at < columns; at += KD_STRIP) {
            const int64_t n = kd_min_i64(KD_STRIP, columns - at);
            const float *v = kd_row_load(buffer, from, at, n);
            if (v)
                memcpy(to + at, v, (size_t)n * sizeof *to);
            else
                memset(to + at, 0, (size_t)n * sizeof *to);
        }
        memset(to + columns, 0, (size_t)(wide->shape[1] - columns) * sizeof *to);
    }
}

typedef float vec __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));

static inline vec squared_more(vec sum, vec x)
{
    for (int l = 0; l < LANES; l++) sum[l] = kd_vfma(x[l], x[l], sum[l]);
    return sum;
}

static float sum_of(vec v)
{
    float lane[LANES];
    memcpy(lane, &v, sizeof lane);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

/* Between two rows and four; the rows of b are `columns` apart. */
static void distances_of(float to[2][4], const float *a, const float *b, int64_t columns)
{
    double total[2][4] = { { 0 } };
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, columns);
        vec s00 = { 0 }, s01 = { 0 }, s02 = { 0 }, s03 = { 0 };
        vec s10 = { 0 }, s11 = { 0 }, s12 = { 0 }, s13 = { 0 };
        for (int64_t i = at; i < end; i += LANES) {
            const vec u = *(const vec *)(a + i), v = *(const vec *)(a + columns + i);
            const vec b0 = *(const vec *)(b + i), b1 = *(const vec *)(b + columns + i);
            const vec b2 = *(const vec *)(b + 2 * columns + i);
            const vec b3 = *(const vec *)(b + 3 * columns + i);
            s00 = squared_more(s00, u - b0), s10 = squared_more(s10, v - b0);
            s01 = squared_more(s01, u - b1), s11 = squared_more(s11, v - b1);
            s02 = squared_more(s02, u - b2), s12 = squared_more(s12, v - b2);
            s03 = squared_more(s03, u - b3), s13 = squared_more(s13, v - b3);
        }
        const vec strip[2][4] = { { s00, s01, s02, s03 }, { s10, s11, s12, s13 } };
        for (int r = 0; r < 2; r++)
            for (int c = 0; c < 4; c++) total[r][c] += sum_of(strip[r][c]);
    }
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 4; c++) to[r][c] = (float)total[r][c];
}

kd_status kd_pair_distances_check(const kd_pair_distances_args *args)
{
    return check_distances(args->y, "y", args->x);
}

kd_status kd_pair_distances_cpu(kd_exec *exec, const kd_pair_distances_args *args)
{
    kd_tensor wide;
    KD_TRY(push_wide(&wide, exec, "pair_distances.rows", args->x));
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->x->shape[0], columns = args->x->shape[1];
    widen(&wide, args->x);
    /* The upper half with its mirror; a pair of rows has less to do the further down it is. */
#pragma omp parallel for schedule(static, 1) if (rows * rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t i = 0; i < rows; i += 2)
        for (int64_t j = i / 4 * 4; j < rows; j += 4) {
            float y[2][4];
            distances_of(y, row_of(&wide, i), row_of(&wide, j), wide.shape[1]);
            for (int64_t a = i; a < kd_min_i64(i + 2, rows); a++)
                for (int64_t b = kd_max_i64(j, a); b < kd_min_i64(j + 4, rows); b++) {
                    row_of(args->y, a)[b] = y[a - i][b - j];
                    row_of(args->y, b)[a] = y[a - i][b - j];
                }
        }
    return KD_OK;
}

kd_status kd_pair_distances_backward_check(const kd_pair_distances_backward_args *args)
{
    KD_TRY(check_distances(args->dy, "dy", args->x));
    return kd_expect_rows_of(args->dx, "dx", args->x->dtype, kd_shape_of(args->x));
}

/* Of two rows x, `n` columns: sum += sum over GROUP rows from `at` on of w_j (x - x_j). */
static void add_group(float *restrict sum, float *restrict other_sum, const float w[2][GROUP],
                      const float *x, const float *other, const float *at, int64_t columns,
                      int64_t n)
{
    const float *x0 = at, *x1 = x0 + columns, *x2 = x1 + columns, *x3 = x2 + columns;
    const float *x4 = x3 + columns, *x5 = x4 + columns, *x6 = x5 + columns, *x7 = x6 + columns;
    const float *v = w[0], *z = w[1];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float a = x[i], b = other[i];
        float s = sum[i], t = other_sum[i];
        s = kd_vfma(v[0], a - x0[i], s), t = kd_vfma(z[0], b - x0[i], t);
        s = kd_vfma(v[1], a - x1[i], s), t = kd_vfma(z[1], b - x1[i], t);
        s = kd_vfma(v[2], a - x2[i], s), t = kd_vfma(z[2], b - x2[i], t);
        s = kd_vfma(v[3], a - x3[i], s), t = kd_vfma(z[3], b - x3[i], t);
        s = kd_vfma(v[4], a - x4[i], s), t = kd_vfma(z[4], b - x4[i], t);
        s = kd_vfma(v[5], a - x5[i], s), t = kd_vfma(z[5], b - x5[i], t);
        s = kd_vfma(v[6], a - x6[i], s), t = kd_vfma(z[6], b - x6[i], t);
        s = kd_vfma(v[7], a - x7[i], s), t = kd_vfma(z[7], b - x7[i], t);
        sum[i] = s, other_sum[i] = t;
    }
}

/* 2 (dS_ij + dS_ji) for GROUP columns j, 0 past the last. */
static void pair_weights(float w[GROUP], const kd_tensor *dy, int64_t row, int64_t j)
{
    const int64_t rows = dy->shape[0], step = dy->stride[0];
    const float *along = row_of(dy, row), *down = (const float *)dy->data + row;
    for (int64_t k = j; k < j + GROUP; k++)
        w[k - j] = k < rows ? 2 * (along[k] + down[k * step]) : 0;
}

/* Rows `row` and, where there is one, row + 1; the sum of a row that is not there is of the last one. */
static void distances_backward_rows(const kd_pair_distances_backward_args *args,
                                    const kd_tensor *wide, int64_t row)
{
    const int64_t rows = args->x->shape[0], columns = args->x->shape[1];
    const int64_t last = kd_min_i64(row + 1, rows - 1);
    float sum[2][KD_STRIP], buffer[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        memset(sum, 0, sizeof sum);
        for (int64_t j = 0; j < rows; j += GROUP) {
            float w[2][GROUP];
            pair_weights(w[0], args->dy, row, j);
            pair_weights(w[1], args->dy, last, j);
            add_group(sum[0], sum[1], (const float(*)[GROUP])w, row_of(wide, row) + at,
                      row_of(wide, last) + at, row_of(wide, j) + at, wide->shape[1], n);
        }
        for (int64_t r = row; r <= last; r++) {
            const kd_row dx = kd_row_of(args->dx, r);
            const float *before = kd_row_load(buffer, dx, at, n), *more = sum[r - row];
            float *out = kd_row_begin(buffer, dx, at);
#pragma omp simd
            for (int64_t i = 0; i < n; i++) out[i] = before[i] + more[i];
            kd_row_finish(dx, at, out, n);
        }
    }
}

kd_status kd_pair_distances_backward_cpu(kd_exec *exec, const kd_pair_distances_backward_args *args)
{
    kd_tensor wide;
    KD_TRY(push_wide(&wide, exec, "pair_distances.rows", args->x));
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->x->shape[0], columns = args->x->shape[1];
    widen(&wide, args->x);
#pragma omp parallel for schedule(static) if (rows * rows * columns > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row += 2) distances_backward_rows(args, &wide, row);
    return KD_OK;
}
