/*
 * pairs - what a batch of N rows is to itself, and losses over it: RKD (Park et al. 2019) and PKT
 * (Passalis and Tefas 2018).  s: student, t: teacher.
 *
 * pair_distances    S_ij = sum_d (x_id - x_jd)^2, of the differences themselves: the identity
 *                   |a|^2 + |b|^2 - 2 a.b loses the digits of rows that lie close.
 *         backward  dx_i += 2 sum_j (dS_ij + dS_ji) (x_i - x_j)
 *
 * In the losses a row of weight 0 does not count: N is how many do, and a sum, a mean or a pair is over
 * those.  Its elements are read, so they have to be numbers; its loss and its d are 0.
 *
 * h(u) = u^2 / 2 for |u| <= 1, |u| - 1/2 beyond: Huber's; its derivative clip(u) = min(max(u, -1), 1).
 *
 * rkd_distance      D = sqrt(S), mu = the mean of D over the M pairs with S > 0, or over all M = N^2;
 *                   psi = D / mu, u = psi^s - psi^t; mu = 0: psi = 0
 *     loss_i = w_i / N sum_j h(u_ij)
 *     dS_ij  = (g_ij - m) / (2 mu D_ij), 0 where S_ij = 0
 *              g_ij = scale w_i clip(u_ij) / N, m = 1/M sum_ij g_ij psi_ij: mu's own gradient
 *
 * rkd_angle         psi_ijk = (S_ij + S_ik - S_jk) / (2 D_ij D_ik), the cosine at i by the law of
 *                   cosines; 0 where a side is 0 (S below the smallest normal f32)
 *     loss_i = w_i / N^2 sum_jk h(u_ijk),  u = psi^s - psi^t
 *     dS_ij  = 1/D_ij sum_k g_ijk (1/D_ik - psi_ijk / D_ij)         S_ij as a side at i
 *            - 1/2 sum_k g_kij / (D_ki D_kj)                        S_ij opposite to k
 *              g_ijk = scale w_i clip(u_ijk) / N^2
 *     One sweep over k has both angles of the triangle that element ij needs, so nothing of N^3 is
 *     kept.  A cosine is known to eps max(D_ij, D_ik) / min(D_ij, D_ik).
 *
 * pkt               K = max((G + 1) / 2, 0), R_i = sum_j K_ij, P_ij = K_ij / R_i
 *     loss_i = w_i / N sum_j P^t_ij log((P^t_ij + eps) / (P^s_ij + eps))
 *     A_ij   = scale w_i / N (H_ij - sum_k H_ik P^s_ik) / (2 R^s_i)
 *              H = (P^s - P^t + eps) / (P^s + eps): -P^t / (P^s + eps) and 1, which has no effect
 *     d_ij   = A_ij + A_ji, since G is symmetric
 *
 * Sums over a row are f32 within a strip; what has N^2 or N^3 terms is summed in double.
 */
#include "ops/rowio.h"
#include "ops/vmath.h"

#include <float.h>
#include <math.h>

static float *row_of(const kd_tensor *t, int64_t row) { return kd_row_of(t, row).data; }

/* ---- distances -------------------------------------------------------------------------------- */

enum { GROUP = 8 }; /* rows that are read side by side */

static kd_status check_distances(const kd_tensor *y, const char *name, const kd_tensor *x)
{
    KD_TRY(kd_expect_rows(x, "x"));
    KD_TRY(kd_tensor_expect(x, "x", -1, KD_SHAPE(-1, -1)));
    return kd_expect_rows_of(y, name, KD_F32, KD_SHAPE(x->shape[0], x->shape[0]));
}

/* x in f32, with rows of zeros up to a multiple of GROUP. */
static kd_status push_wide(kd_tensor *wide, kd_exec *exec, const char *name, const kd_tensor *x)
{
    return kd_push(wide, exec, name, KD_F32,
                   KD_SHAPE(kd_ceil_div(x->shape[0], GROUP) * GROUP, x->shape[1]));
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
    }
}

/* Between two rows and four; the rows of b are `columns` apart. */
static void distances_of(float to[2][4], const float *a, const float *b, int64_t columns)
{
    double total[2][4] = { { 0 } };
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        const float *a0 = a + at, *a1 = a0 + columns;
        const float *b0 = b + at, *b1 = b0 + columns, *b2 = b1 + columns, *b3 = b2 + columns;
        float s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
#pragma omp simd reduction(+ : s00, s01, s02, s03, s10, s11, s12, s13)
        for (int64_t i = 0; i < n; i++) {
            const float u = a0[i], v = a1[i];
            s00 += (u - b0[i]) * (u - b0[i]);
            s01 += (u - b1[i]) * (u - b1[i]);
            s02 += (u - b2[i]) * (u - b2[i]);
            s03 += (u - b3[i]) * (u - b3[i]);
            s10 += (v - b0[i]) * (v - b0[i]);
            s11 += (v - b1[i]) * (v - b1[i]);
            s12 += (v - b2[i]) * (v - b2[i]);
            s13 += (v - b3[i]) * (v - b3[i]);
        }
        const float strip[2][4] = { { s00, s01, s02, s03 }, { s10, s11, s12, s13 } };
        for (int r = 0; r < 2; r++)
            for (int c = 0; c < 4; c++) total[r][c] += strip[r][c];
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
            distances_of(y, row_of(&wide, i), row_of(&wide, j), columns);
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

/* sum += sum over GROUP rows from `at` on of w_j (x - x_j), `n` columns of them. */
static void add_group(float *restrict sum, const float *restrict w, const float *x, const float *at,
                      int64_t columns, int64_t n)
{
    const float *x0 = at, *x1 = x0 + columns, *x2 = x1 + columns, *x3 = x2 + columns;
    const float *x4 = x3 + columns, *x5 = x4 + columns, *x6 = x5 + columns, *x7 = x6 + columns;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float u = x[i];
        sum[i] += w[0] * (u - x0[i]) + w[1] * (u - x1[i]) + w[2] * (u - x2[i]) +
                  w[3] * (u - x3[i]) + w[4] * (u - x4[i]) + w[5] * (u - x5[i]) +
                  w[6] * (u - x6[i]) + w[7] * (u - x7[i]);
    }
}

static void distances_backward_row(const kd_pair_distances_backward_args *args,
                                   const kd_tensor *wide, int64_t row)
{
    const int64_t rows = args->x->shape[0], columns = args->x->shape[1];
    const int64_t step = args->dy->stride[0];
    const float *dy = row_of(args->dy, row), *column = (const float *)args->dy->data + row;
    const kd_row dx = kd_row_of(args->dx, row);
    float sum[KD_STRIP], buffer[KD_STRIP];
    for (int64_t at = 0; at < columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, columns - at);
        memset(sum, 0, sizeof sum);
        for (int64_t j = 0; j < rows; j += GROUP) {
            float w[GROUP];
            for (int64_t k = 0; k < GROUP; k++)
                w[k] = j + k < rows ? 2 * (dy[j + k] + column[(j + k) * step]) : 0;
            add_group(sum, w, row_of(wide, row) + at, row_of(wide, j) + at, columns, n);
        }
        const float *before = kd_row_load(buffer, dx, at, n);
        float *out = kd_row_begin(buffer, dx, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[i] = before[i] + sum[i];
        kd_row_finish(dx, at, out, n);
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
    for (int64_t row = 0; row < rows; row++) distances_backward_row(args, &wide, row);
    return KD_OK;
}

/* ---- losses over [N,N] ------------------------------------------------------------------------ */

typedef struct pairs {
    const kd_tensor *d, *loss, *student, *teacher, *weight, *scale;
    int64_t rows;
    const float *w; /* [N], ones where there is no weight */
    double count;   /* of rows whose weight is not 0 */
} pairs;

#define PAIRS_OF(args)                                                                             \
    ((pairs){ .d = (args)->d,                                                                      \
              .loss = (args)->loss,                                                                \
              .student = (args)->student,                                                          \
              .teacher = (args)->teacher,                                                          \
              .weight = (args)->weight,                                                            \
              .scale = (args)->scale,                                                              \
              .rows = (args)->student->shape[0] })

static kd_status check_pairs(const pairs *a)
{
    const kd_shape square = KD_SHAPE(a->rows, a->rows);
    KD_TRY(kd_expect_rows_of(a->student, "student", KD_F32, square));
    KD_TRY(kd_expect_rows_of(a->teacher, "teacher", KD_F32, square));
    KD_TRY(kd_expect_list(a->loss, "loss", KD_F32, a->rows));
    if (kd_present(a->weight)) KD_TRY(kd_expect_list(a->weight, "weight", KD_F32, a->rows));
    if (kd_present(a->d)) KD_TRY(kd_expect_rows_of(a->d, "d", KD_F32, square));
    return kd_present(a->d) ? kd_expect_list(a->scale, "scale", KD_F32, 1) : KD_OK;
}

static kd_status check_student(const kd_tensor *student)
{
    KD_TRY(kd_expect_rows(student, "student"));
    return kd_tensor_expect(student, "student", KD_F32, KD_SHAPE(-1, -1));
}

/* Sets w and count, in `scratch` of N floats. */
static void weigh(pairs *a, const kd_tensor *scratch)
{
    float *w = scratch->data;
    for (int64_t i = 0; i < a->rows; i++) {
        w[i] = kd_list_at(a->weight, i, 1);
        a->count += w[i] != 0;
    }
    a->w = w;
}

static float scale_of(const pairs *a) { return *(const float *)a->scale->data; }

static inline float clipped(float u)
{
    const float low = u < -1 ? -1 : u;
    return low > 1 ? 1 : low;
}

static inline float huber(float u, float clip) { return clip * (u - 0.5f * clip); }

/* ---- RKD distance ----------------------------------------------------------------------------- */

/* What the rows of one side sum to, then the side itself. */
typedef struct mean_distance {
    double inverse; /* 1 / mu, or 0 */
    double pairs;   /* M */
} mean_distance;

/* sums [N][2]: of a row's distances, and how many of them are positive. */
static void sum_distances(double *sums, const pairs *a, const kd_tensor *s, int64_t row)
{
    const float *v = row_of(s, row), *w = a->w;
    double total = 0, positive = 0;
    if (w[row] != 0) {
#pragma omp simd reduction(+ : total, positive)
        for (int64_t j = 0; j < a->rows; j++) {
            const float kept = w[j] != 0 ? v[j] : 0;
            total += sqrtf(kept);
            positive += kept > 0 ? 1 : 0;
        }
    }
    sums[2 * row] = total, sums[2 * row + 1] = positive;
}

static mean_distance mean_of(const double *sums, const pairs *a, bool whole)
{
    double total = 0, positive = 0;
    for (int64_t i = 0; i < a->rows; i++) total += sums[2 * i], positive += sums[2 * i + 1];
    const double count = whole ? a->count * a->count : positive;
    return (mean_distance){ total > 0 ? count / total : 0, count };
}

/* The loss of a row; its share of M m goes to *pull, for a scale of 1. */
static float distance_loss(double *pull, const pairs *a, int64_t row, float s_inverse,
                           float t_inverse)
{
    const float *s = row_of(a->student, row), *t = row_of(a->teacher, row), *w = a->w;
    const double share = w[row] / a->count;
    double total = 0, pulls = 0;
    *pull = 0;
    if (w[row] == 0) return 0;
    for (int64_t at = 0; at < a->rows; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, a->rows);
        float strip = 0, pulled = 0;
#pragma omp simd reduction(+ : strip, pulled)
        for (int64_t j = at; j < end; j++) {
            const float psi = sqrtf(s[j]) * s_inverse;
            const float u = w[j] != 0 ? psi - sqrtf(t[j]) * t_inverse : 0, clip = clipped(u);
            strip += huber(u, clip);
            pulled += clip * psi;
        }
        total += strip, pulls += pulled;
    }
    *pull = share * pulls;
    return (float)(share * total);
}

static void distance_gradient(const pairs *a, int64_t row, float s_inverse, float t_inverse,
                              float scale, float pull)
{
    const float *s = row_of(a->student, row), *t = row_of(a->teacher, row);
    const float *w = a->w, own = w[row], share = own / (float)a->count;
    const float factor = 0.5f * scale * s_inverse;
    const int64_t rows = a->rows;
    float *restrict d = row_of(a->d, row);
#pragma omp simd
    for (int64_t j = 0; j < rows; j++) {
        const float distance = sqrtf(s[j]);
        const float u = distance * s_inverse - sqrtf(t[j]) * t_inverse;
        const bool counts = (s[j] > 0) & (own != 0) & (w[j] != 0);
        d[j] = counts ? factor * (share * clipped(u) - pull) / distance : 0;
    }
}

kd_status kd_rkd_distance_check(const kd_rkd_distance_args *args)
{
    KD_TRY(check_student(args->student));
    const pairs a = PAIRS_OF(args);
    return check_pairs(&a);
}

kd_status kd_rkd_distance_cpu(kd_exec *exec, const kd_rkd_distance_args *args)
{
    pairs a = PAIRS_OF(args);
    kd_tensor scratch, weight; /* scratch: doubles, for which there is no element type */
    KD_TRY(kd_push(&scratch, exec, "rkd_distance.sums", KD_I64, KD_SHAPE(4, a.rows)));
    KD_TRY(kd_push(&weight, exec, "rkd_distance.weight", KD_F32, KD_SHAPE(a.rows)));
    if (kd_planning(exec)) return KD_OK;
    weigh(&a, &weight);
    double *s_sums = scratch.data, *t_sums = s_sums + 2 * a.rows;
    float *loss = a.loss->data;
    const bool parallel = a.rows * a.rows > KD_PARALLEL_ABOVE;
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < a.rows; i++) {
        sum_distances(s_sums, &a, a.student, i);
        sum_distances(t_sums, &a, a.teacher, i);
    }
    const mean_distance s = mean_of(s_sums, &a, args->whole);
    const mean_distance t = mean_of(t_sums, &a, args->whole);
    const float s_inverse = (float)s.inverse, t_inverse = (float)t.inverse;
    double *pulls = s_sums, pull = 0; /* the sums are done with */
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < a.rows; i++)
        loss[i] = distance_loss(&pulls[i], &a, i, s_inverse, t_inverse);
    if (!kd_present(a.d)) return KD_OK;
    for (int64_t i = 0; i < a.rows; i++) pull += pulls[i];
    const float mean = s.pairs > 0 ? (float)(pull / s.pairs) : 0, scale = scale_of(&a);
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < a.rows; i++)
        distance_gradient(&a, i, s_inverse, t_inverse, scale, mean);
    return KD_OK;
}

/* ---- RKD angle -------------------------------------------------------------------------------- */

/* Sides at i and j of one side's matrix, and 1 / D of them. */
typedef struct sides {
    const float *i, *j, *inverse_i, *inverse_j;
} sides;

static sides sides_of(const kd_tensor *s, const kd_tensor *inverse, int64_t i, int64_t j)
{
    return (sides){ row_of(s, i), row_of(s, j), row_of(inverse, i), row_of(inverse, j) };
}

/* 1 / D, or 0: which takes a side out of every sum. */
static void invert(const kd_tensor *inverse, const pairs *a, const kd_tensor *s, int64_t row)
{
    const float *v = row_of(s, row), *w = a->w;
    float *to = row_of(inverse, row);
#pragma omp simd
    for (int64_t j = 0; j < a->rows; j++)
        to[j] = v[j] >= FLT_MIN && w[row] != 0 && w[j] != 0 ? 1 / sqrtf(v[j]) : 0;
}

/* sum over k of h(u_ijk). */
static double angle_loss(sides s, sides t, int64_t j, int64_t rows)
{
    const float s_ij = s.i[j], s_half = 0.5f * s.inverse_i[j];
    const float t_ij = t.i[j], t_half = 0.5f * t.inverse_i[j];
    double total = 0;
    for (int64_t at = 0; at < rows; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, rows);
        float strip = 0;
#pragma omp simd reduction(+ : strip)
        for (int64_t k = at; k < end; k++) {
            const float psi = (s_ij + (s.i[k] - s.j[k])) * s_half * s.inverse_i[k];
            const float u = psi - (t_ij + (t.i[k] - t.j[k])) * t_half * t.inverse_i[k];
            strip += huber(u, clipped(u));
        }
        total += strip;
    }
    return total;
}

/* The same; *side = sum over k of clip_ijk (1/D_ik - psi_ijk / D_ij), *apex = sum over k of w_k clip_kij
 * / (D_ki D_kj). */
static double angle_gradient(double *side, double *apex, sides s, sides t, const float *w,
                             int64_t j, int64_t rows)
{
    const float s_ij = s.i[j], s_inverse = s.inverse_i[j], s_half = 0.5f * s_inverse;
    const float t_ij = t.i[j], t_half = 0.5f * t.inverse_i[j];
    double total = 0, sides_sum = 0, apex_sum = 0;
    for (int64_t at = 0; at < rows; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, rows);
        float strip = 0, along = 0, across = 0;
#pragma omp simd reduction(+ : strip, along, across)
        for (int64_t k = at; k < end; k++) {
            const float a = s.i[k], b = s.j[k], x = s.inverse_i[k], y = s.inverse_j[k];
            const float ta = t.i[k], tb = t.j[k], tx = t.inverse_i[k], ty = t.inverse_j[k];
            const float psi = (s_ij + (a - b)) * s_half * x;
            const float u = psi - (t_ij + (ta - tb)) * t_half * tx, clip = clipped(u);
            strip += huber(u, clip);
            along += clip * (x - psi * s_inverse);
            const float v =
                ((a + b) - s_ij) * (0.5f * x) * y - ((ta + tb) - t_ij) * (0.5f * tx) * ty;
            across += w[k] * clipped(v) * x * y;
        }
        total += strip, sides_sum += along, apex_sum += across;
    }
    *side = sides_sum, *apex = apex_sum;
    return total;
}

static void angle_row(const pairs *a, const kd_tensor inverse[2], int64_t i)
{
    const double share = 1 / fmax(a->count * a->count, 1);
    const float *w = a->w;
    double total = 0;
    for (int64_t j = 0; j < a->rows; j++) {
        const sides s = sides_of(a->student, &inverse[0], i, j);
        const sides t = sides_of(a->teacher, &inverse[1], i, j);
        if (!kd_present(a->d)) {
            total += angle_loss(s, t, j, a->rows);
            continue;
        }
        const double scale = share * scale_of(a);
        double side, apex;
        total += angle_gradient(&side, &apex, s, t, w, j, a->rows);
        row_of(a->d, i)[j] = (float)(scale * (w[i] * side * s.inverse_i[j] - 0.5 * apex));
    }
    ((float *)a->loss->data)[i] = (float)(share * w[i] * total);
}

kd_status kd_rkd_angle_check(const kd_rkd_angle_args *args)
{
    KD_TRY(check_student(args->student));
    const pairs a = PAIRS_OF(args);
    return check_pairs(&a);
}

kd_status kd_rkd_angle_cpu(kd_exec *exec, const kd_rkd_angle_args *args)
{
    pairs a = PAIRS_OF(args);
    kd_tensor inverse[2], weight;
    KD_TRY(kd_push(&inverse[0], exec, "rkd_angle.inverse", KD_F32, KD_SHAPE(a.rows, a.rows)));
    KD_TRY(kd_push(&inverse[1], exec, "rkd_angle.inverse", KD_F32, KD_SHAPE(a.rows, a.rows)));
    KD_TRY(kd_push(&weight, exec, "rkd_angle.weight", KD_F32, KD_SHAPE(a.rows)));
    if (kd_planning(exec)) return KD_OK;
    weigh(&a, &weight);
    for (int64_t i = 0; i < a.rows; i++) {
        invert(&inverse[0], &a, a.student, i);
        invert(&inverse[1], &a, a.teacher, i);
    }
#pragma omp parallel for schedule(static) if (a.rows * a.rows * a.rows > KD_PARALLEL_ABOVE)
    for (int64_t i = 0; i < a.rows; i++) angle_row(&a, inverse, i);
    return KD_OK;
}

/* ---- PKT -------------------------------------------------------------------------------------- */

/* K, where the column's weight is not 0. */
static inline float similarity(float g, float w)
{
    const float k = 0.5f * g + 0.5f;
    return k > 0 && w != 0 ? k : 0;
}

/* 1 / R of a row. */
static float inverse_sum(const float *gram, const float *w, int64_t columns)
{
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < columns; j++) total += similarity(gram[j], w[j]);
    return total > 0 ? (float)(1 / total) : 0;
}

/* H of the head comment. */
static inline float pull_of(float q, float p, float eps) { return ((q - p) + eps) / (q + eps); }

/* Of a row: 1 / R^s, 1 / R^t, sum over k of H P^s. */
typedef struct pkt_row {
    float s, t, mean;
} pkt_row;

static void pkt_loss(pkt_row *row, const pairs *a, int64_t i, float eps)
{
    const float *s = row_of(a->student, i), *t = row_of(a->teacher, i), *w = a->w;
    const float s_inverse = inverse_sum(s, w, a->rows), t_inverse = inverse_sum(t, w, a->rows);
    double total = 0, mean = 0;
    for (int64_t at = 0; at < a->rows; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, a->rows);
        float strip = 0, pulled = 0;
#pragma omp simd reduction(+ : strip, pulled)
        for (int64_t j = at; j < end; j++) {
            const float q = similarity(s[j], w[j]) * s_inverse;
            const float p = similarity(t[j], w[j]) * t_inverse;
            strip += p * kd_vlogf((p + eps) / (q + eps));
            pulled += pull_of(q, p, eps) * q;
        }
        total += strip, mean += pulled;
    }
    *row = (pkt_row){ s_inverse, t_inverse, (float)mean };
    ((float *)a->loss->data)[i] = (float)(w[i] / fmax(a->count, 1) * total);
}

static void pkt_gradient(const pairs *a, const pkt_row *of, int64_t i, float eps)
{
    const float *s = row_of(a->student, i), *t = row_of(a->teacher, i), *w = a->w;
    const float scale = w[i] != 0 ? 0.5f * scale_of(a) / (float)a->count : 0, here = w[i];
    const pkt_row own = of[i];
    const int64_t rows = a->rows;
    float *restrict d = row_of(a->d, i);
#pragma omp simd
    for (int64_t j = 0; j < rows; j++) {
        const float q = similarity(s[j], w[j]), p = similarity(t[j], w[j]);
        const float at_i = pull_of(q * own.s, p * own.t, eps) - own.mean;
        const float at_j = pull_of(q * of[j].s, p * of[j].t, eps) - of[j].mean;
        d[j] = w[j] != 0 ? scale * (here * own.s * at_i + w[j] * of[j].s * at_j) : 0;
    }
}

kd_status kd_pkt_check(const kd_pkt_args *args)
{
    KD_TRY(check_student(args->student));
    const pairs a = PAIRS_OF(args);
    KD_TRY(check_pairs(&a));
    if (args->eps > FLT_MIN && args->eps < INFINITY) return KD_OK;
    return kd_fail(KD_EINVAL, "eps is %g, expected a number above 0", (double)args->eps);
}

kd_status kd_pkt_cpu(kd_exec *exec, const kd_pkt_args *args)
{
    pairs a = PAIRS_OF(args);
    kd_tensor scratch, weight;
    KD_TRY(kd_push(&scratch, exec, "pkt.rows", KD_F32, KD_SHAPE(a.rows, 3)));
    KD_TRY(kd_push(&weight, exec, "pkt.weight", KD_F32, KD_SHAPE(a.rows)));
    if (kd_planning(exec)) return KD_OK;
    weigh(&a, &weight);
    pkt_row *of = scratch.data;
    const bool parallel = a.rows * a.rows > KD_PARALLEL_ABOVE;
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < a.rows; i++) pkt_loss(&of[i], &a, i, args->eps);
    if (!kd_present(a.d)) return KD_OK;
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < a.rows; i++) pkt_gradient(&a, of, i, args->eps);
    return KD_OK;
}
