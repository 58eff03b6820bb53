/*
 * Sums of columns, rows and squares on CUDA; src/ops/reduce.c has the definitions.
 *
 * Grid      sum_columns: one block for 32 units of 16 bytes of columns and PIECE_ROWS rows, a unit a
 *           lane, every eighth row a warp.  sum_rows, sum_squares: one block for PIECE elements of a
 *           row.  What took more than one piece is added up by a second launch of the same kernel
 *           over the pieces' sums.
 * Traffic   x once; sum_columns also writes and reads 8 bytes for PIECE_ROWS elements of a column.
 * Numerics  double throughout: every element is converted and added, which sm_80 and sm_90 do faster
 *           than their memory delivers (16 conversions a clock and multiprocessor; HBM brings 3 or 4
 *           f32, 7 bf16).  One rounding, of y.
 * Same bits the order depends on the shape alone, not on the card.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

template <int W> __device__ __forceinline__ void load_doubles(double (&to)[W], const double *from)
{
    static_assert(W == 1, "sums of pieces are read one at a time");
    to[0] = *from;
}

template <int W, class T>
__device__ __forceinline__ void load_doubles(double (&to)[W], const T *from)
{
    float x[W];
    kd_load(x, from);
#pragma unroll
    for (int k = 0; k < W; k++) to[k] = x[k];
}

/* ---- columns ---------------------------------------------------------------------------------- */

constexpr int PIECE_ROWS = 128, ROW_WARPS = 8;

template <class T> struct ColumnsParams {
    kd_rows<const T> x;
    int64_t rows, columns, piece; /* rows of a piece */
    double *sums;                 /* [pieces, columns]; NULL: one piece, added to y */
    float *y;
    unsigned slices; /* blocks side by side for the columns */
};

template <class T, int W>
__global__ void __launch_bounds__(KD_WARP *ROW_WARPS) columns_kernel(ColumnsParams<T> p)
{
    KD_SHARED(double, share, [ROW_WARPS][W][KD_WARP + 1]);
    const int64_t piece = blockIdx.x / p.slices, slice = blockIdx.x % p.slices;
    const int64_t first = piece * p.piece;
    const int64_t last = first + p.piece < p.rows ? first + p.piece : p.rows;
    const int64_t column = (slice * KD_WARP + threadIdx.x) * W;
    double sum[W] = {};
    if (column < p.columns) {
#pragma unroll 4
        for (int64_t r = first + threadIdx.y; r < last; r += ROW_WARPS) {
            double x[W];
            load_doubles(x, p.x.row(r) + column);
#pragma unroll
            for (int k = 0; k < W; k++) sum[k] += x[k];
        }
    }
#pragma unroll
    for (int k = 0; k < W; k++) share[threadIdx.y][k][threadIdx.x] = sum[k];
    __syncthreads();
    const int at = threadIdx.y * KD_WARP + threadIdx.x;
    const int64_t to = slice * KD_WARP * W + at;
    if (at >= KD_WARP * W || to >= p.columns) return;
    double total = 0;
#pragma unroll
    for (int w = 0; w < ROW_WARPS; w++) total += share[w][at % W][at / W];
    if (p.sums)
        p.sums[piece * p.columns + to] = total;
    else
        p.y[to] = (float)(p.y[to] + total);
}

template <class T, int W>
kd_status launch_columns(kd_exec *exec, ColumnsParams<T> p, int64_t pieces)
{
    p.slices = (unsigned)kd_ceil_div(p.columns, KD_WARP * W);
    const kd_grid grid = { dim3((unsigned)(p.slices * pieces)), dim3(KD_WARP, ROW_WARPS) };
    return kd_launch(exec, "sum_columns", columns_kernel<T, W>, grid, p);
}

template <class T>
kd_status sum_columns(kd_exec *exec, const kd_sum_columns_args *args, const kd_tensor *sums)
{
    const int64_t pieces = sums->shape[0], columns = kd_tensor_columns(args->x);
    float *y = (float *)args->y->data;
    double *partial = pieces > 1 ? (double *)sums->data : NULL;
    const ColumnsParams<T> p = {
        kd_rows_of<const T>(args->x), kd_tensor_rows(args->x), columns, PIECE_ROWS, partial, y, 0
    };
    const ColumnsParams<double> rest = {
        kd_rows_of<const double>(sums), pieces, columns, pieces, NULL, y, 0
    };
    if (kd_rows_aligned(args->x))
        KD_TRY((launch_columns<T, kd_width<T>>(exec, p, pieces)));
    else
        KD_TRY((launch_columns<T, 1>(exec, p, pieces)));
    return pieces > 1 ? launch_columns<double, 1>(exec, rest, 1) : KD_OK;
}

/* ---- rows and squares ------------------------------------------------------------------------- */

constexpr int PIECE = 1 << 16, THREADS = 256;

template <class T> struct RowsParams {
    kd_rows<const T> x;
    int64_t rows, columns, piece; /* elements of a piece */
    double *sums;                 /* [rows, pieces]; NULL: one piece, put or added to y */
    float *y;
    bool add;
};

template <class T, int W, bool SQUARES>
__global__ void __launch_bounds__(THREADS) rows_kernel(RowsParams<T> p)
{
    KD_SHARED(double, share, [THREADS / KD_WARP]);
    const int64_t first = blockIdx.x * p.piece;
    const int64_t last = first + p.piece < p.columns ? first + p.piece : p.columns;
    for (int64_t r = blockIdx.y; r < p.rows; r += gridDim.y) {
        const T *row = p.x.row(r);
        double sum = 0;
#pragma unroll 4
        for (int64_t i = first + threadIdx.x * W; i < last; i += THREADS * W) {
            double x[W];
            load_doubles(x, row + i);
#pragma unroll
            for (int k = 0; k < W; k++) sum += SQUARES ? x[k] * x[k] : x[k];
        }
        sum = kd_block_sum<THREADS>(sum, share);
        if (threadIdx.x) continue;
        if (p.sums)
            p.sums[r * gridDim.x + blockIdx.x] = sum;
        else
            p.y[r] = (float)(p.add ? p.y[r] + sum : sum);
    }
}

template <class T, int W, bool SQUARES>
kd_status launch_rows(kd_exec *exec, const RowsParams<T> &p, int64_t pieces)
{
    const kd_grid grid = { dim3((unsigned)pieces, (unsigned)kd_min_i64(p.rows, 65535)),
                           dim3(THREADS) };
    return kd_launch(exec, SQUARES ? "sum_squares" : "sum_rows", rows_kernel<T, W, SQUARES>, grid,
                     p);
}

/* x [R,N], y [R], sums [R,pieces]. */
template <bool SQUARES>
kd_status sum_rows(kd_exec *exec, const kd_tensor *y, const kd_tensor *x, const kd_tensor *sums)
{
    const int64_t rows = kd_tensor_rows(x), pieces = sums->shape[1];
    float *to = (float *)y->data;
    double *partial = pieces > 1 ? (double *)sums->data : NULL;
    const RowsParams<float> p = {
        kd_rows_of<const float>(x), rows, kd_tensor_columns(x), PIECE, partial, to, !SQUARES
    };
    const RowsParams<double> rest = {
        kd_rows_of<const double>(sums), rows, pieces, pieces, NULL, to, !SQUARES
    };
    if (kd_rows_aligned(x))
        KD_TRY((launch_rows<float, kd_width<float>, SQUARES>(exec, p, pieces)));
    else
        KD_TRY((launch_rows<float, 1, SQUARES>(exec, p, pieces)));
    return pieces > 1 ? launch_rows<double, 1, false>(exec, rest, 1) : KD_OK;
}

/* Scratch for what is cut into pieces: doubles, for which there is no element type. */
kd_status push_sums(kd_tensor *sums, kd_exec *exec, const char *name, int64_t rows, int64_t columns)
{
    return kd_push(sums, exec, name, KD_I64, KD_SHAPE(rows, columns));
}

} // namespace

extern "C" kd_status kd_sum_columns_cuda(kd_exec *exec, const kd_sum_columns_args *args)
{
    kd_tensor sums;
    KD_TRY(push_sums(&sums, exec, "sum_columns.pieces",
                     kd_ceil_div(kd_tensor_rows(args->x), PIECE_ROWS), kd_tensor_columns(args->x)));
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, sum_columns, exec, args, &sums);
}

extern "C" kd_status kd_sum_rows_cuda(kd_exec *exec, const kd_sum_rows_args *args)
{
    kd_tensor sums;
    KD_TRY(push_sums(&sums, exec, "sum_rows.pieces", kd_tensor_rows(args->x),
                     kd_ceil_div(kd_tensor_columns(args->x), PIECE)));
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    return sum_rows<false>(exec, args->y, args->x, &sums);
}

extern "C" kd_status kd_sum_squares_cuda(kd_exec *exec, const kd_sum_squares_args *args)
{
    const int64_t count = kd_tensor_elements(args->x);
    const kd_tensor x = kd_tensor_of(args->x->data, KD_F32, KD_SHAPE(1, count));
    kd_tensor sums;
    KD_TRY(
        push_sums(&sums, exec, "sum_squares.pieces", 1, kd_max_i64(kd_ceil_div(count, PIECE), 1)));
    if (kd_planning(exec)) return KD_OK;
    return sum_rows<true>(exec, args->y, &x, &sums);
}
