/*
 * pair_losses - losses over what the pairs of a batch of N rows are: RKD (Park et al. 2019), over their
 * squared distances S, and PKT (Passalis and Tefas 2018), over their cosines G.  s: student, t: teacher.
 *
 * A row of weight 0 does not count: N is how many do, and a sum, a mean or a pair is over
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
 *     A sweep over k has all angles that element ij needs, so nothing of N^3 is kept; what is opposite to
 *     k is alike for ij and ji, and swept once.  A cosine is known to eps max(D_ij, D_ik) / min(D_ij, D_ik).
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

/* By the bits of |u|, whose order is that of whole numbers: one instruction, where min and max that keep
 * NaN are five.  NaN becomes 1 or -1; a loss has it from u. */
static inline float clipped(float u)
{
    const uint32_t bits = kd_float_bits(u);
    const int32_t size = (int32_t)(bits & 0x7fffffffu), one = 0x3f800000;
    return kd_bits_float((bits & 0x80000000u) | (uint32_t)(size < one ? size : one));
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

/* What psi_ijk is made of for all k: (fixed + half (S_ik - S_jk)) / D_ik. */
typedef struct corner {
    float fixed, half;
} corner;

static corner corner_of(sides s, int64_t j)
{
    const float half = 0.5f * s.inverse_i[j];
    return (corner){ s.i[j] * half, half };
}

static inline float cosine_of(corner c, float a, float b, float inverse)
{
    return kd_vfma(c.half, a - b, c.fixed) * inverse;
}

/* sum over k of h(u_ijk). */
static double angle_loss(sides s, sides t, int64_t j, int64_t rows)
{
    const corner sc = corner_of(s, j), tc = corner_of(t, j);
    double total = 0;
    for (int64_t at = 0; at < rows; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, rows);
        float strip = 0;
#pragma omp simd reduction(+ : strip)
        for (int64_t k = at; k < end; k++) {
            const float u = cosine_of(sc, s.i[k], s.j[k], s.inverse_i[k]) -
                            cosine_of(tc, t.i[k], t.j[k], t.inverse_i[k]);
            const float clip = clipped(u);
            strip += clip * kd_vfma(-0.5f, clip, u);
        }
        total += strip;
    }
    return total;
}

/* The same; *side = sum over k of clip_ijk (1/D_ik - psi_ijk / D_ij). */
static double angle_sides(double *side, sides s, sides t, int64_t j, int64_t rows)
{
    const corner sc = corner_of(s, j), tc = corner_of(t, j);
    const float back = -s.inverse_i[j];
    double total = 0, sides_sum = 0;
    for (int64_t at = 0; at < rows; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, rows);
        float strip = 0, along = 0;
#pragma omp simd reduction(+ : strip, along)
        for (int64_t k = at; k < end; k++) {
            const float x = s.inverse_i[k], psi = cosine_of(sc, s.i[k], s.j[k], x);
            const float u = psi - cosine_of(tc, t.i[k], t.j[k], t.inverse_i[k]);
            const float clip = clipped(u);
            strip += clip * kd_vfma(-0.5f, clip, u);
            along += clip * kd_vfma(back, psi, x);
        }
        total += strip, sides_sum += along;
    }
    *side = sides_sum;
    return total;
}

/* sum over k of w_k clip_kij / (D_ki D_kj): alike for i and j. */
static double angle_apexes(sides s, sides t, const float *w, int64_t j, int64_t rows)
{
    const float s_ij = s.i[j], t_ij = t.i[j];
    double total = 0;
    for (int64_t at = 0; at < rows; at += KD_STRIP) {
        const int64_t end = kd_min_i64(at + KD_STRIP, rows);
        float across = 0;
#pragma omp simd reduction(+ : across)
        for (int64_t k = at; k < end; k++) {
            const float xy = s.inverse_i[k] * s.inverse_j[k];
            const float t_xy = t.inverse_i[k] * t.inverse_j[k];
            const float psi = ((s.i[k] + s.j[k]) - s_ij) * xy;
            const float u = 0.5f * (psi - ((t.i[k] + t.j[k]) - t_ij) * t_xy);
            across += clipped(u) * (w[k] * xy);
        }
        total += across;
    }
    return total;
}

/* Rows i that a row j is read for once: both sides' stay in the first-level cache. */
enum { TOGETHER = 4 };

/* Of rows from `first` on, for j from i on: what S_ij gets as the side opposite to all others, and S_ji
 * alike. */
static void angle_opposite(const pairs *a, const kd_tensor inverse[2], int64_t first, double scale)
{
    const int64_t end = kd_min_i64(first + TOGETHER, a->rows);
    for (int64_t j = first; j < a->rows; j++)
        for (int64_t i = first; i < end && i <= j; i++) {
            const sides s = sides_of(a->student, &inverse[0], i, j);
            const sides t = sides_of(a->teacher, &inverse[1], i, j);
            const float d = (float)(-0.5 * scale * angle_apexes(s, t, a->w, j, a->rows));
            row_of(a->d, i)[j] = d;
            row_of(a->d, j)[i] = d;
        }
}

/* Of rows from `first` on: their losses and what S_ij gets as a side at i.  `scale` is of one triple of d. */
static void angle_rows(const pairs *a, const kd_tensor inverse[2], int64_t first, double scale)
{
    const int64_t end = kd_min_i64(first + TOGETHER, a->rows);
    const double share = 1 / fmax(a->count * a->count, 1);
    double total[TOGETHER] = { 0 };
    for (int64_t j = 0; j < a->rows; j++)
        for (int64_t i = first; i < end; i++) {
            const sides s = sides_of(a->student, &inverse[0], i, j);
            const sides t = sides_of(a->teacher, &inverse[1], i, j);
            double side;
            if (!kd_present(a->d)) {
                total[i - first] += angle_loss(s, t, j, a->rows);
                continue;
            }
            total[i - first] += angle_sides(&side, s, t, j, a->rows);
            row_of(a->d, i)[j] += (float)(scale * a->w[i] * side * s.inverse_i[j]);
        }
    for (int64_t i = first; i < end; i++)
        ((float *)a->loss->data)[i] = (float)(share * a->w[i] * total[i - first]);
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
    const bool parallel = a.rows * a.rows * a.rows > KD_PARALLEL_ABOVE;
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < a.rows; i++) {
        invert(&inverse[0], &a, a.student, i);
        invert(&inverse[1], &a, a.teacher, i);
    }
    double scale = 0;
    if (kd_present(a.d)) {
        scale = scale_of(&a) / fmax(a.count * a.count, 1);
        /* Rows have less to do the further down they are. */
#pragma omp parallel for schedule(static, 1) if (parallel)
        for (int64_t i = 0; i < a.rows; i += TOGETHER) angle_opposite(&a, inverse, i, scale);
    }
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t i = 0; i < a.rows; i += TOGETHER) angle_rows(&a, inverse, i, scale);
    return KD_OK;
}

/* ---- PKT -------------------------------------------------------------------------------------- */

/* K, where the column's weight is not 0. */
static inline float similarity(float g, float w)
{
    const float k = 0.5f * g + 0.5f;
    return k <= 0 || w == 0 ? 0 : k; /* NaN stays */
}

/* 1 / R of a row. */
static float inverse_sum(const float *gram, const float *w, int64_t columns)
{
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < columns; j++) total += similarity(gram[j], w[j]);
    return total <= 0 ? 0 : (float)(1 / total);
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
