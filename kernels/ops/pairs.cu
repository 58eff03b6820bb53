/*
 * What the rows of a batch are to each other, on CUDA; src/ops/pairs.c and pair_losses.c have the definitions.
 *
 * Grid      pair_distances: 64 threads to a tile of 32 x 32 pairs, 4 x 4 a thread, 32 columns of both
 *           sides' rows in shared memory at a time; tiles below the diagonal are the mirror of those
 *           above.  Its backward: the same threads to 32 rows by 32 columns of dx, 32 other rows at
 *           a time.  rkd_distance, pkt: a block to a row, in two or three launches with what has
 *           to be known of all rows between them.  rkd_angle: 256 threads to a tile of 32 x 32 pairs ij, 2 x 2
 *           a thread, 32 k of rows i and j at a time; both angles of a triangle that an element of d
 *           needs come from those two rows, so an element is one thread's sum.
 * Traffic   pair_distances: 128 bytes of x a tile and column; y once.  Its backward the same, and dy
 *           twice for every 32 columns.  rkd_distance: 2, 2 and 3 passes over [N,N].  rkd_angle: 16
 *           bytes a k for 32 pairs, and 20 f32 operations or so an angle: bound by those.  pkt: 2
 *           and 2 passes, then 3.
 * Numerics  f32; a sum over columns or rows in parts of 32 terms; sums over pairs and triples in
 *           double.  Roots and quotients are rounded as IEEE says.
 * Same bits no atomics; the order of every sum depends on the shape alone.
 * Aliasing  none.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

#include <float.h>

namespace {

constexpr int TILE = 32; /* rows, pairs, columns at a time */

/* ---- distances -------------------------------------------------------------------------------- */

constexpr int SIDE = 8, EACH = TILE / SIDE, TILE_THREADS = SIDE * SIDE;

/* to[column][row] = x[first_row + row][first_column + column], zeros outside.  All threads call. */
template <class T>
__device__ __forceinline__ void load_turned(float (*to)[TILE + 1], const kd_rows<const T> &x,
                                            int64_t first_row, int64_t rows, int64_t first_column,
                                            int64_t columns)
{
    for (int i = threadIdx.x; i < TILE * TILE; i += TILE_THREADS) {
        const int64_t row = first_row + i / TILE, column = first_column + i % TILE;
        to[i % TILE][i / TILE] = row < rows && column < columns ? kd_load(x.row(row) + column) : 0;
    }
}

template <class T> struct Distances {
    kd_rows<const T> x;
    kd_rows<float> y;
    int64_t rows, columns;
};

template <class T> __global__ void __launch_bounds__(TILE_THREADS) distances_kernel(Distances<T> p)
{
    KD_SHARED(float, a, [TILE][TILE + 1]);
    KD_SHARED(float, b, [TILE][TILE + 1]);
    if (blockIdx.x < blockIdx.y) return;
    const int64_t i0 = (int64_t)blockIdx.y * TILE, j0 = (int64_t)blockIdx.x * TILE;
    const int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    float sum[EACH][EACH] = {};
    for (int64_t at = 0; at < p.columns; at += TILE) {
        load_turned(a, p.x, i0, p.rows, at, p.columns);
        load_turned(b, p.x, j0, p.rows, at, p.columns);
        __syncthreads();
        float part[EACH][EACH] = {};
#pragma unroll 2
        for (int c = 0; c < TILE; c++)
#pragma unroll
            for (int m = 0; m < EACH; m++)
#pragma unroll
                for (int n = 0; n < EACH; n++) {
                    const float u = a[c][ty + m * SIDE] - b[c][tx + n * SIDE];
                    part[m][n] += u * u;
                }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < EACH; m++)
#pragma unroll
            for (int n = 0; n < EACH; n++) sum[m][n] += part[m][n];
    }
#pragma unroll
    for (int m = 0; m < EACH; m++)
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            const int64_t i = i0 + ty + m * SIDE, j = j0 + tx + n * SIDE;
            if (i >= p.rows || j >= p.rows) continue;
            p.y.row(i)[j] = sum[m][n];
            if (i0 != j0) p.y.row(j)[i] = sum[m][n];
        }
}

template <class T> kd_status distances(kd_exec *exec, const kd_pair_distances_args *args)
{
    const Distances<T> p = { kd_rows_of<const T>(args->x), kd_rows_of<float>(args->y),
                             args->x->shape[0], args->x->shape[1] };
    const unsigned tiles = (unsigned)kd_ceil_div(p.rows, TILE);
    return kd_launch(exec, "pair_distances", distances_kernel<T>,
                     { dim3(tiles, tiles), dim3(TILE_THREADS) }, p);
}

template <class T> struct DistancesBackward {
    kd_rows<T> dx;
    kd_rows<const float> dy;
    kd_rows<const T> x;
    int64_t rows, columns;
};

/* w[j][i] = 2 (dy_ij + dy_ji) of a tile; both readings run along rows of dy.  All threads call. */
__device__ __forceinline__ void load_pulls(float (*w)[TILE + 1], const kd_rows<const float> &dy,
                                           int64_t i0, int64_t j0, int64_t rows)
{
    for (int e = threadIdx.x; e < TILE * TILE; e += TILE_THREADS) {
        const int64_t j = j0 + e / TILE, i = i0 + e % TILE;
        w[e / TILE][e % TILE] = i < rows && j < rows ? 2 * dy.row(j)[i] : 0;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < TILE * TILE; e += TILE_THREADS) {
        const int64_t i = i0 + e / TILE, j = j0 + e % TILE;
        if (i < rows && j < rows) w[e % TILE][e / TILE] += 2 * dy.row(i)[j];
    }
}

template <class T>
__global__ void __launch_bounds__(TILE_THREADS) distances_backward_kernel(DistancesBackward<T> p)
{
    KD_SHARED(float, w, [TILE][TILE + 1]);
    KD_SHARED(float, other, [TILE][TILE]);
    const int64_t i0 = (int64_t)blockIdx.y * TILE, d0 = (int64_t)blockIdx.x * TILE;
    const int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    float own[EACH][EACH], sum[EACH][EACH] = {};
#pragma unroll
    for (int m = 0; m < EACH; m++)
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            const int64_t i = i0 + ty + m * SIDE, d = d0 + tx + n * SIDE;
            own[m][n] = i < p.rows && d < p.columns ? kd_load(p.x.row(i) + d) : 0;
        }
    for (int64_t j0 = 0; j0 < p.rows; j0 += TILE) {
        load_pulls(w, p.dy, i0, j0, p.rows);
        for (int e = threadIdx.x; e < TILE * TILE; e += TILE_THREADS) {
            const int64_t j = j0 + e / TILE, d = d0 + e % TILE;
            other[e / TILE][e % TILE] = j < p.rows && d < p.columns ? kd_load(p.x.row(j) + d) : 0;
        }
        __syncthreads();
        float part[EACH][EACH] = {};
#pragma unroll 4
        for (int j = 0; j < TILE; j++)
#pragma unroll
            for (int m = 0; m < EACH; m++)
#pragma unroll
                for (int n = 0; n < EACH; n++)
                    part[m][n] += w[j][ty + m * SIDE] * (own[m][n] - other[j][tx + n * SIDE]);
        __syncthreads();
#pragma unroll
        for (int m = 0; m < EACH; m++)
#pragma unroll
            for (int n = 0; n < EACH; n++) sum[m][n] += part[m][n];
    }
#pragma unroll
    for (int m = 0; m < EACH; m++)
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            const int64_t i = i0 + ty + m * SIDE, d = d0 + tx + n * SIDE;
            if (i >= p.rows || d >= p.columns) continue;
            T *to = p.dx.row(i) + d;
            kd_store(to, kd_load(to) + sum[m][n]);
        }
}

template <class T>
kd_status distances_backward(kd_exec *exec, const kd_pair_distances_backward_args *args)
{
    const DistancesBackward<T> p = { kd_rows_of<T>(args->dx), kd_rows_of<const float>(args->dy),
                                     kd_rows_of<const T>(args->x), args->x->shape[0],
                                     args->x->shape[1] };
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.columns, TILE),
                                (unsigned)kd_ceil_div(p.rows, TILE)),
                           dim3(TILE_THREADS) };
    return kd_launch(exec, "pair_distances_backward", distances_backward_kernel<T>, grid, p);
}

/* ---- losses over [N,N] ------------------------------------------------------------------------ */

constexpr int THREADS = 256;

struct Pairs {
    kd_rows<const float> student, teacher;
    kd_rows<float> d; /* data NULL: the value alone */
    float *loss;
    const float *weight, *scale; /* or NULL */
    int64_t rows;
};

const float *floats(const kd_tensor *t) { return kd_present(t) ? (const float *)t->data : NULL; }

template <class Args> Pairs pairs_of(const Args *args)
{
    return { kd_rows_of<const float>(args->student),
             kd_rows_of<const float>(args->teacher),
             kd_rows_of<float>(args->d),
             (float *)args->loss->data,
             floats(args->weight),
             floats(args->scale),
             args->student->shape[0] };
}

/* A block to each row. */
kd_grid grid_of(const Pairs &p) { return { dim3((unsigned)p.rows), dim3(THREADS) }; }

__device__ __forceinline__ float weight_of(const Pairs &p, int64_t row)
{
    return p.weight ? p.weight[row] : 1;
}

/* How many rows count, in every thread. */
__device__ __forceinline__ double count_of(const Pairs &p, double *share)
{
    double count = 0;
    for (int64_t i = threadIdx.x; i < p.rows; i += THREADS) count += weight_of(p, i) != 0;
    return kd_block_sum<THREADS>(count, share);
}

/* Whether both rows count. */
__device__ __forceinline__ bool counts(const Pairs &p, int64_t i, int64_t j)
{
    return weight_of(p, i) != 0 && weight_of(p, j) != 0;
}

__device__ __forceinline__ float clipped(float u) { return fminf(fmaxf(u, -1.0f), 1.0f); }

__device__ __forceinline__ float huber(float u, float clip) { return clip * (u - 0.5f * clip); }

/* sum of `n` numbers that stand `step` apart, in every thread. */
__device__ __forceinline__ double sum_of(const double *x, int64_t n, int step, double *share)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += x[i * step];
    return kd_block_sum<THREADS>(sum, share);
}

/* ---- RKD distance ----------------------------------------------------------------------------- */

/* Of a row: the sum of its distances and how many are positive, of student and of teacher; M m. */
enum { S_SUM, S_POSITIVE, T_SUM, T_POSITIVE, PULL, ROW_SUMS };

struct Distance {
    Pairs pairs;
    double *sums; /* [N, ROW_SUMS] */
    bool whole;
};

__device__ __forceinline__ void sum_distances(double *to, const Pairs &p, const float *s,
                                              double *share)
{
    double sum = 0, positive = 0;
    for (int64_t j = threadIdx.x; j < p.rows; j += THREADS) {
        if (!counts(p, blockIdx.x, j)) continue;
        sum += sqrtf(s[j]);
        positive += s[j] > 0;
    }
    sum = kd_block_sum<THREADS>(sum, share);
    positive = kd_block_sum<THREADS>(positive, share);
    if (threadIdx.x == 0) to[0] = sum, to[1] = positive;
}

__global__ void __launch_bounds__(THREADS) distance_sums_kernel(Distance p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    double *const to = p.sums + (int64_t)blockIdx.x * ROW_SUMS;
    sum_distances(to + S_SUM, p.pairs, p.pairs.student.row(blockIdx.x), share);
    sum_distances(to + T_SUM, p.pairs, p.pairs.teacher.row(blockIdx.x), share);
}

/* 1 / mu of the side whose sums are `first` and the one after, and its M; `rows` count. */
__device__ __forceinline__ float inverse_mean(double *count, const Distance &p, int first,
                                              double rows, double *share)
{
    const int64_t n = p.pairs.rows;
    const double sum = sum_of(p.sums + first, n, ROW_SUMS, share);
    const double positive = sum_of(p.sums + first + 1, n, ROW_SUMS, share);
    *count = p.whole ? rows * rows : positive;
    return sum > 0 ? (float)(*count / sum) : 0;
}

__global__ void __launch_bounds__(THREADS) distance_loss_kernel(Distance p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    const int64_t n = p.pairs.rows, row = blockIdx.x;
    const float *s = p.pairs.student.row(row), *t = p.pairs.teacher.row(row);
    double count, sum = 0, pull = 0;
    const double counted = count_of(p.pairs, share);
    const float s_inverse = inverse_mean(&count, p, S_SUM, counted, share);
    const float t_inverse = inverse_mean(&count, p, T_SUM, counted, share);
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        if (!counts(p.pairs, row, j)) continue;
        const float psi = sqrtf(s[j]) * s_inverse, u = psi - sqrtf(t[j]) * t_inverse;
        const float clip = clipped(u);
        sum += huber(u, clip);
        pull += clip * psi;
    }
    sum = kd_block_sum<THREADS>(sum, share);
    pull = kd_block_sum<THREADS>(pull, share);
    if (threadIdx.x) return;
    const double by = counted > 0 ? weight_of(p.pairs, row) / counted : 0;
    p.pairs.loss[row] = (float)(by * sum);
    p.sums[row * ROW_SUMS + PULL] = by * pull;
}

__global__ void __launch_bounds__(THREADS) distance_gradient_kernel(Distance p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    const int64_t n = p.pairs.rows, row = blockIdx.x;
    const float *s = p.pairs.student.row(row), *t = p.pairs.teacher.row(row);
    float *d = p.pairs.d.row(row);
    double t_count, count;
    const double counted = count_of(p.pairs, share);
    const float t_inverse = inverse_mean(&t_count, p, T_SUM, counted, share);
    const float s_inverse = inverse_mean(&count, p, S_SUM, counted, share);
    const double pulls = sum_of(p.sums + PULL, n, ROW_SUMS, share);
    const float mean = count > 0 ? (float)(pulls / count) : 0;
    const float by = weight_of(p.pairs, row) / (float)counted;
    const float factor = 0.5f * *p.pairs.scale * s_inverse;
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        const float distance = sqrtf(s[j]);
        const float u = distance * s_inverse - sqrtf(t[j]) * t_inverse;
        const bool moves = s[j] > 0 && counts(p.pairs, row, j);
        d[j] = moves ? factor * (by * clipped(u) - mean) / distance : 0;
    }
}

/* ---- RKD angle -------------------------------------------------------------------------------- */

constexpr int ACROSS = 16, HELD = TILE / ACROSS; /* pairs of a thread, a side */

struct Angle {
    Pairs pairs;
    double *sums; /* [N, tiles]: of a row's h over the j of a tile and all k */
    int64_t tiles;
};

/* TILE rows by TILE k of one side: S and 1 / D. */
struct Sides {
    float s[TILE][TILE + 1], inverse[TILE][TILE + 1];
};

__device__ __forceinline__ float inverse_of(float s) { return s >= FLT_MIN ? 1 / sqrtf(s) : 0; }

/* S_ij; 0, which takes it out of every sum, outside of the batch and where a row does not count. */
__device__ __forceinline__ float element(const Pairs &p, const kd_rows<const float> &s, int64_t i,
                                         int64_t j)
{
    return i < p.rows && j < p.rows && counts(p, i, j) ? s.row(i)[j] : 0;
}

__device__ __forceinline__ void load_sides(Sides *to, const Pairs &p, const kd_rows<const float> &s,
                                           int64_t first, int64_t k)
{
    for (int e = threadIdx.x; e < TILE * TILE; e += THREADS) {
        const float v = element(p, s, first + e / TILE, k + e % TILE);
        to->s[e / TILE][e % TILE] = v;
        to->inverse[e / TILE][e % TILE] = inverse_of(v);
    }
}

/* One pair ij: its own sides, and its sums over k, in parts and whole. */
struct Corner {
    float s, s_inverse, t, t_half;
};
struct Sums {
    float huber, side, apex;
};

template <bool GRADIENT>
__device__ __forceinline__ void add_triangle(Sums *to, const Corner &c, float a, float b, float x,
                                             float y, float ta, float tb, float tx, float ty,
                                             float w)
{
    const float psi = (c.s + (a - b)) * (0.5f * c.s_inverse) * x;
    const float u = psi - (c.t + (ta - tb)) * c.t_half * tx, clip = clipped(u);
    to->huber += huber(u, clip);
    if (!GRADIENT) return;
    to->side += clip * (x - psi * c.s_inverse);
    const float v = ((a + b) - c.s) * (0.5f * x) * y - ((ta + tb) - c.t) * (0.5f * tx) * ty;
    to->apex += w * clipped(v) * x * y;
}

template <bool GRADIENT> __global__ void __launch_bounds__(THREADS) angle_kernel(Angle p)
{
    KD_SHARED(Sides, side, [4]); /* student's and teacher's rows i, then rows j */
    KD_SHARED(float, w, [TILE]);
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    const double counted = GRADIENT ? count_of(p.pairs, share) : 0;
    const int64_t n = p.pairs.rows, i0 = (int64_t)blockIdx.y * TILE,
                  j0 = (int64_t)blockIdx.x * TILE;
    const int ty = threadIdx.x / ACROSS, tx = threadIdx.x % ACROSS;
    Corner corner[HELD][HELD];
    double sum[HELD] = {}, along[HELD][HELD] = {}, across[HELD][HELD] = {};
#pragma unroll
    for (int m = 0; m < HELD; m++)
#pragma unroll
        for (int q = 0; q < HELD; q++) {
            const int64_t i = i0 + ty + m * ACROSS, j = j0 + tx + q * ACROSS;
            const float s = element(p.pairs, p.pairs.student, i, j);
            const float t = element(p.pairs, p.pairs.teacher, i, j);
            corner[m][q] = { s, inverse_of(s), t, 0.5f * inverse_of(t) };
        }
    for (int64_t k0 = 0; k0 < n; k0 += TILE) {
        load_sides(&side[0], p.pairs, p.pairs.student, i0, k0);
        load_sides(&side[1], p.pairs, p.pairs.teacher, i0, k0);
        load_sides(&side[2], p.pairs, p.pairs.student, j0, k0);
        load_sides(&side[3], p.pairs, p.pairs.teacher, j0, k0);
        if (threadIdx.x < TILE)
            w[threadIdx.x] = k0 + threadIdx.x < n ? weight_of(p.pairs, k0 + threadIdx.x) : 0;
        __syncthreads();
        Sums part[HELD][HELD] = {};
#pragma unroll 2
        for (int k = 0; k < TILE; k++)
#pragma unroll
            for (int m = 0; m < HELD; m++)
#pragma unroll
                for (int q = 0; q < HELD; q++) {
                    const int i = ty + m * ACROSS, j = tx + q * ACROSS;
                    add_triangle<GRADIENT>(&part[m][q], corner[m][q], side[0].s[i][k],
                                           side[2].s[j][k], side[0].inverse[i][k],
                                           side[2].inverse[j][k], side[1].s[i][k], side[3].s[j][k],
                                           side[1].inverse[i][k], side[3].inverse[j][k], w[k]);
                }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < HELD; m++)
#pragma unroll
            for (int q = 0; q < HELD; q++) {
                sum[m] += part[m][q].huber;
                along[m][q] += part[m][q].side;
                across[m][q] += part[m][q].apex;
            }
    }
#pragma unroll
    for (int m = 0; m < HELD; m++) {
        const int64_t i = i0 + ty + m * ACROSS;
        const double total = kd_lanes_sum<ACROSS>(sum[m]);
        if (i < n && tx == 0) p.sums[i * p.tiles + blockIdx.x] = total;
        if (!GRADIENT || i >= n) continue;
        const double scale = counted > 0 ? *p.pairs.scale / (counted * counted) : 0;
        const double own = weight_of(p.pairs, i);
#pragma unroll
        for (int q = 0; q < HELD; q++) {
            const int64_t j = j0 + tx + q * ACROSS;
            if (j < n)
                p.pairs.d.row(i)[j] = (float)(scale * (own * along[m][q] * corner[m][q].s_inverse -
                                                       0.5 * across[m][q]));
        }
    }
}

/* A thread to a row. */
__global__ void __launch_bounds__(THREADS) angle_loss_kernel(Angle p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    const double counted = count_of(p.pairs, share);
    const int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (row >= p.pairs.rows) return;
    double sum = 0;
    for (int64_t t = 0; t < p.tiles; t++) sum += p.sums[row * p.tiles + t];
    const double by = counted > 0 ? weight_of(p.pairs, row) / (counted * counted) : 0;
    p.pairs.loss[row] = (float)(by * sum);
}

/* ---- PKT -------------------------------------------------------------------------------------- */

/* Of a row: 1 / R^s, 1 / R^t, sum over k of H P^s. */
struct PktRow {
    float s, t, mean;
};

struct Pkt {
    Pairs pairs;
    PktRow *of; /* [N] */
    float eps;
};

/* K, where the column's weight is not 0. */
__device__ __forceinline__ float similarity(float g, float w)
{
    const float k = 0.5f * g + 0.5f;
    return k <= 0 || w == 0 ? 0 : k; /* NaN stays */
}

__device__ __forceinline__ float inverse_sum(const Pairs &p, const float *gram, double *share)
{
    double sum = 0;
    for (int64_t j = threadIdx.x; j < p.rows; j += THREADS)
        sum += similarity(gram[j], weight_of(p, j));
    sum = kd_block_sum<THREADS>(sum, share);
    return sum <= 0 ? 0 : (float)(1 / sum);
}

__global__ void __launch_bounds__(THREADS) pkt_loss_kernel(Pkt p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    const int64_t n = p.pairs.rows, row = blockIdx.x;
    const float *s = p.pairs.student.row(row), *t = p.pairs.teacher.row(row), eps = p.eps;
    const float s_inverse = inverse_sum(p.pairs, s, share);
    const float t_inverse = inverse_sum(p.pairs, t, share);
    const double counted = count_of(p.pairs, share);
    double sum = 0, mean = 0;
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        const float w = weight_of(p.pairs, j);
        const float a = similarity(s[j], w) * s_inverse, b = similarity(t[j], w) * t_inverse;
        sum += b * logf((b + eps) / (a + eps));
        mean += ((a - b) + eps) / (a + eps) * a;
    }
    sum = kd_block_sum<THREADS>(sum, share);
    mean = kd_block_sum<THREADS>(mean, share);
    if (threadIdx.x) return;
    p.of[row] = { s_inverse, t_inverse, (float)mean };
    p.pairs.loss[row] = counted > 0 ? (float)(weight_of(p.pairs, row) / counted * sum) : 0;
}

/* A of the head comment in src/ops/pair_losses.c, without its factor. */
__device__ __forceinline__ float pkt_pull(float s, float t, const PktRow &of, float eps)
{
    const float a = s * of.s, b = t * of.t;
    return of.s * (((a - b) + eps) / (a + eps) - of.mean);
}

__global__ void __launch_bounds__(THREADS) pkt_gradient_kernel(Pkt p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    const int64_t n = p.pairs.rows, row = blockIdx.x;
    const float *s = p.pairs.student.row(row), *t = p.pairs.teacher.row(row);
    const float own = weight_of(p.pairs, row), counted = (float)count_of(p.pairs, share);
    const float scale = own != 0 ? 0.5f * *p.pairs.scale / counted : 0;
    const PktRow here = p.of[row];
    float *d = p.pairs.d.row(row);
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        const float w = weight_of(p.pairs, j), a = similarity(s[j], w), b = similarity(t[j], w);
        const float sum = own * pkt_pull(a, b, here, p.eps) + w * pkt_pull(a, b, p.of[j], p.eps);
        d[j] = w != 0 ? scale * sum : 0;
    }
}

} // namespace

extern "C" kd_status kd_pair_distances_cuda(kd_exec *exec, const kd_pair_distances_args *args)
{
    if (kd_planning(exec) || args->x->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, distances, exec, args);
}

extern "C" kd_status kd_pair_distances_backward_cuda(kd_exec *exec,
                                                     const kd_pair_distances_backward_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, distances_backward, exec, args);
}

extern "C" kd_status kd_rkd_distance_cuda(kd_exec *exec, const kd_rkd_distance_args *args)
{
    const Pairs pairs = pairs_of(args);
    kd_tensor sums; /* doubles, for which there is no element type */
    KD_TRY(kd_push(&sums, exec, "rkd_distance.sums", KD_I64, KD_SHAPE(pairs.rows, ROW_SUMS)));
    if (kd_planning(exec) || pairs.rows == 0) return KD_OK;
    const Distance p = { pairs, (double *)sums.data, args->whole };
    KD_TRY(kd_launch(exec, "rkd_distance", distance_sums_kernel, grid_of(pairs), p));
    KD_TRY(kd_launch(exec, "rkd_distance", distance_loss_kernel, grid_of(pairs), p));
    if (!pairs.d.data) return KD_OK;
    return kd_launch(exec, "rkd_distance", distance_gradient_kernel, grid_of(pairs), p);
}

extern "C" kd_status kd_rkd_angle_cuda(kd_exec *exec, const kd_rkd_angle_args *args)
{
    const Pairs pairs = pairs_of(args);
    const int64_t tiles = kd_ceil_div(pairs.rows, TILE);
    kd_tensor sums; /* doubles */
    KD_TRY(kd_push(&sums, exec, "rkd_angle.sums", KD_I64, KD_SHAPE(pairs.rows, tiles)));
    if (kd_planning(exec) || pairs.rows == 0) return KD_OK;
    const Angle p = { pairs, (double *)sums.data, tiles };
    const kd_grid grid = { dim3((unsigned)tiles, (unsigned)tiles), dim3(THREADS) };
    const kd_grid rows = { dim3((unsigned)kd_ceil_div(pairs.rows, THREADS)), dim3(THREADS) };
    KD_TRY(kd_launch(exec, "rkd_angle", pairs.d.data ? angle_kernel<true> : angle_kernel<false>,
                     grid, p));
    return kd_launch(exec, "rkd_angle", angle_loss_kernel, rows, p);
}

extern "C" kd_status kd_pkt_cuda(kd_exec *exec, const kd_pkt_args *args)
{
    const Pairs pairs = pairs_of(args);
    kd_tensor rows;
    KD_TRY(kd_push(&rows, exec, "pkt.rows", KD_F32, KD_SHAPE(pairs.rows, 3)));
    if (kd_planning(exec) || pairs.rows == 0) return KD_OK;
    const Pkt p = { pairs, (PktRow *)rows.data, args->eps };
    KD_TRY(kd_launch(exec, "pkt", pkt_loss_kernel, grid_of(pairs), p));
    if (!pairs.d.data) return KD_OK;
    return kd_launch(exec, "pkt", pkt_gradient_kernel, grid_of(pairs), p);
}
