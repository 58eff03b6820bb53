/*
 * rms_norm, layer_norm and their gradients on CUDA; src/ops/norm.c has the definitions.
 *
 * Grid      forward: the lanes that share a row hold it in registers, 32 elements each: 8 lanes or a
 *           warp, with 256 threads of rows to a block, or a block of 128 or 512 threads.  Backward: 16
 *           elements each, up to 8192 columns, in as many blocks as are resident at once; a block
 *           strides over the rows and keeps the columns' sums of dweight and dbias in registers.
 *           Longer and unaligned rows go to a block of 512 threads that reads them again from the
 *           cache (and, backward, keeps its sums in its partial row).
 * Traffic   elements moved, each once: forward x and y (residual, sum), 4 (8) bytes an element in
 *           bf16; backward dy, x and dx (add), 6 (8) bytes, and 8 bytes a column and block of partial
 *           sums, which the second-level cache mostly holds: 3 % of the whole at 16384 rows in the 396
 *           blocks that an H100 runs.
 * Aim       0.88 (forward) and 0.80 (backward, up to 4096 columns: beyond, one block has the whole
 *           multiprocessor and its loads wait for its sums) of the bandwidth of a copy.
 * Numerics  f32 trees in a row; mean first, then the variance around it; rsqrtf is within 2 ulp.
 *           The gradients of the parameters: see common/partials.cuh.
 * Outputs   sum may be x or residual, dx may be add: a thread reads what it is about to overwrite.
 */
#include "common/partials.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int HELD = 32;          /* elements of a row that a thread holds, forward */
constexpr int HELD_BACKWARD = 16; /* of x and of dy */
constexpr int LONG = 512;         /* threads of a block for a row that is not held */

constexpr int threads_of(int lanes) { return lanes <= KD_WARP ? 256 : lanes; }

template <int LANES> __device__ __forceinline__ float row_sum(float x, float *buffer)
{
    if constexpr (LANES <= KD_WARP)
        return kd_lanes_sum<LANES>(x);
    else
        return kd_block_sum<LANES>(x, buffer);
}

/* ---- forward ---------------------------------------------------------------------------------- */

template <class T> struct Forward {
    kd_rows<T> y, sum, x, residual;
    const T *weight, *bias;
    float *mean, *rstd;
    int64_t rows, columns;
    float eps;
};

template <class T, bool CENTRE, int W>
__device__ __forceinline__ void normalise(T *y, const Forward<T> &p, int64_t at,
                                          const float (&s)[W], float mean, float rstd)
{
    float w[W], b[W], out[W];
    kd_load(w, p.weight + at);
    if (CENTRE) kd_load(b, p.bias + at);
#pragma unroll
    for (int k = 0; k < W; k++) out[k] = (s[k] - mean) * rstd * w[k] + (CENTRE ? b[k] : 0);
    kd_store(y + at, out);
}

template <class T, bool CENTRE, int LANES>
__global__ void __launch_bounds__(threads_of(LANES)) held_kernel(Forward<T> p)
{
    constexpr int W = kd_width<T>, V = HELD / W, ROWS = threads_of(LANES) / LANES;
    KD_SHARED(float, buffer, [32]);
    const int first = threadIdx.x % LANES * W;
    const int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    const int columns = (int)p.columns, end = row < p.rows ? columns : 0; /* none beyond the last */
    const T *const x = p.x.row(row), *const residual = p.sum.data ? p.residual.row(row) : NULL;
    T *const sum = p.sum.data ? p.sum.row(row) : NULL;
    kd_vec<T, W> of_x[V] = {}, of_residual[V] = {}; /* all on their way before any is waited for */
#pragma unroll
    for (int v = 0; v < V; v++) {
        const int at = first + v * LANES * W;
        if (at >= end) continue;
        of_x[v] = *reinterpret_cast<const kd_vec<T, W> *>(x + at);
        if (sum) of_residual[v] = *reinterpret_cast<const kd_vec<T, W> *>(residual + at);
    }
    float s[V][W], total = 0;
#pragma unroll
    for (int v = 0; v < V; v++) {
        const int at = first + v * LANES * W;
#pragma unroll
        for (int k = 0; k < W; k++) s[v][k] = kd_load(&of_x[v].at[k]);
        if (!sum || at >= end) continue;
#pragma unroll
        for (int k = 0; k < W; k++)
            s[v][k] = kd_rounded<T>(s[v][k] + kd_load(&of_residual[v].at[k]));
        kd_store(sum + at, s[v]);
    }
    float mean = 0;
    if (CENTRE) {
#pragma unroll
        for (int v = 0; v < V; v++)
#pragma unroll
            for (int k = 0; k < W; k++) mean += s[v][k];
        mean = row_sum<LANES>(mean, buffer) / (float)columns;
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        if (first + v * LANES * W >= columns) continue; /* its zeros are no deviations */
#pragma unroll
        for (int k = 0; k < W; k++) total += (s[v][k] - mean) * (s[v][k] - mean);
    }
    const float rstd = rsqrtf(row_sum<LANES>(total, buffer) / (float)columns + p.eps);
    if (first == 0 && end) p.rstd[row] = rstd;
    if (CENTRE && first == 0 && end) p.mean[row] = mean;
    T *const y = p.y.row(row);
#pragma unroll
    for (int v = 0; v < V; v++) {
        const int at = first + v * LANES * W;
        if (at < end) normalise<T, CENTRE>(y, p, at, s[v], mean, rstd);
    }
}

/* Any length: a block to a row. */
template <class T, bool CENTRE, int W>
__global__ void __launch_bounds__(LONG) long_kernel(Forward<T> p)
{
    KD_SHARED(float, buffer, [32]);
    const int64_t row = blockIdx.x, first = (int64_t)threadIdx.x * W, step = LONG * W;
    const T *x = p.x.row(row);
    T *const y = p.y.row(row);
    float s[W], mean = 0, total = 0;
    if (p.sum.data) {
        const T *residual = p.residual.row(row);
        T *sum = p.sum.row(row);
        for (int64_t at = first; at < p.columns; at += step) {
            float r[W];
            kd_load(s, x + at);
            kd_load(r, residual + at);
#pragma unroll
            for (int k = 0; k < W; k++) s[k] += r[k];
            kd_store(sum + at, s);
        }
        x = sum; /* each thread reads again what it wrote itself */
    }
    if (CENTRE) {
        for (int64_t at = first; at < p.columns; at += step) {
            kd_load(s, x + at);
#pragma unroll
            for (int k = 0; k < W; k++) mean += s[k];
        }
        mean = kd_block_sum<LONG>(mean, buffer) / (float)p.columns;
    }
    for (int64_t at = first; at < p.columns; at += step) {
        kd_load(s, x + at);
#pragma unroll
        for (int k = 0; k < W; k++) total += (s[k] - mean) * (s[k] - mean);
    }
    const float rstd = rsqrtf(kd_block_sum<LONG>(total, buffer) / (float)p.columns + p.eps);
    if (threadIdx.x == 0) p.rstd[row] = rstd;
    if (CENTRE && threadIdx.x == 0) p.mean[row] = mean;
    for (int64_t at = first; at < p.columns; at += step) {
        kd_load(s, x + at);
        normalise<T, CENTRE>(y, p, at, s, mean, rstd);
    }
}

/* Either norm; an absent mean tells them apart. */
struct Norm {
    const char *name;
    const kd_tensor *y, *mean, *rstd, *sum, *x, *residual, *weight, *bias;
    float eps;
};

template <class T, bool CENTRE, int LANES>
kd_status launch_held(kd_exec *exec, const char *name, const Forward<T> &p)
{
    const int threads = threads_of(LANES);
    const kd_grid grid = { dim3((unsigned)kd_ceil_div(p.rows, threads / LANES)), dim3(threads) };
    return kd_launch(exec, name, held_kernel<T, CENTRE, LANES>, grid, p);
}

template <class T, bool CENTRE> kd_status forward_of(kd_exec *exec, const Norm &a)
{
    const Forward<T> p = { kd_rows_of<T>(a.y),
                           kd_rows_of<T>(a.sum),
                           kd_rows_of<T>(a.x),
                           kd_rows_of<T>(a.residual),
                           (const T *)a.weight->data,
                           CENTRE ? (const T *)a.bias->data : NULL,
                           CENTRE ? (float *)a.mean->data : NULL,
                           (float *)a.rstd->data,
                           kd_tensor_rows(a.x),
                           kd_tensor_columns(a.x),
                           a.eps };
    const kd_grid grid = { dim3((unsigned)p.rows), dim3(LONG) };
    if (!kd_rows_aligned(a.y, a.sum, a.x, a.residual, a.weight, a.bias))
        return kd_launch(exec, a.name, long_kernel<T, CENTRE, 1>, grid, p);
    if (p.columns <= 8 * HELD) return launch_held<T, CENTRE, 8>(exec, a.name, p);
    if (p.columns <= 32 * HELD) return launch_held<T, CENTRE, 32>(exec, a.name, p);
    if (p.columns <= 128 * HELD) return launch_held<T, CENTRE, 128>(exec, a.name, p);
    if (p.columns <= 512 * HELD) return launch_held<T, CENTRE, 512>(exec, a.name, p);
    return kd_launch(exec, a.name, long_kernel<T, CENTRE, kd_width<T>>, grid, p);
}

template <class T> kd_status forward(kd_exec *exec, const Norm &a)
{
    return a.mean ? forward_of<T, true>(exec, a) : forward_of<T, false>(exec, a);
}

kd_status run(kd_exec *exec, const Norm &a)
{
    if (kd_planning(exec) || kd_tensor_elements(a.x) == 0) return KD_OK;
    return KD_BY_DTYPE(a.x->dtype, forward, exec, a);
}

/* ---- backward --------------------------------------------------------------------------------- */

template <class T> struct Backward {
    kd_rows<T> dx, dy, x, add;
    const T *weight;
    const float *mean, *rstd;
    float *dweight, *dbias; /* partial sums [blocks, columns]; or NULL */
    int64_t rows, columns;
};

/* dx of W elements, and their share of the sums over rows. */
template <class T, bool CENTRE, int W>
__device__ __forceinline__ void finish(T *dx, const T *add, const T *weight, const T *x,
                                       const T *dy, float (&dw)[W], float (&db)[W], float mean,
                                       float rstd, float mean_g, float mean_gh)
{
    float a[W], d[W], w[W], plus[W] = {}, out[W];
    kd_load(a, x);
    kd_load(d, dy);
    kd_load(w, weight);
    if (add) kd_load(plus, add);
#pragma unroll
    for (int k = 0; k < W; k++) {
        const float h = (a[k] - mean) * rstd;
        dw[k] += d[k] * h;
        if (CENTRE) db[k] += d[k];
        out[k] = rstd * (d[k] * w[k] - mean_g - h * mean_gh) + plus[k];
    }
    kd_store(dx, out);
}

/* Blocks that a multiprocessor shall hold: 80 registers a thread, or 128 where twice the sums are. */
constexpr int resident_of(int lanes, bool centre)
{
    return (centre || lanes == 512 ? 512 : 768) / threads_of(lanes);
}

template <int LANES, int V, int W>
__device__ __forceinline__ void write_sums(float *to, const float (&sums)[V][W], int columns,
                                           float *buffer)
{
    if (!to) return;
    to += (int64_t)blockIdx.x * columns;
#pragma unroll
    for (int v = 0; v < V; v++) {
        const int at = (v * LANES + threadIdx.x % LANES) * W;
        if (LANES <= KD_WARP) {
            kd_put_partial<LANES>(buffer, at < columns ? at : -1, sums[v]);
        } else if (at < columns) {
#pragma unroll
            for (int k = 0; k < W; k++) to[at + k] = sums[v][k];
        }
    }
    if (LANES <= KD_WARP) kd_write_partial(to, buffer, columns);
}

template <class T, bool CENTRE, int LANES>
__global__ void __launch_bounds__(threads_of(LANES), resident_of(LANES, CENTRE))
    held_backward_kernel(Backward<T> p)
{
    constexpr int W = kd_width<T>, V = HELD_BACKWARD / W, ROWS = threads_of(LANES) / LANES;
    KD_SHARED(float, buffer, [LANES <= KD_WARP ? KD_PARTIAL_FLOATS : 32]);
    const int first = threadIdx.x % LANES * W, columns = (int)p.columns;
    float dw[V][W] = {}, db[V][W] = {};
    for (int64_t base = (int64_t)blockIdx.x * ROWS; base < p.rows;
         base += (int64_t)gridDim.x * ROWS) {
        const int64_t row = base + threadIdx.x / LANES;
        const int end = row < p.rows ? columns : 0; /* beyond the last row all is zero */
        const float mean = CENTRE && end ? p.mean[row] : 0, rstd = end ? p.rstd[row] : 0;
        const T *const from_x = p.x.row(row), *const from_dy = p.dy.row(row);
        kd_vec<T, W> x[V] = {}, dy[V] = {};
        float sum_g = 0, sum_gh = 0;
#pragma unroll
        for (int v = 0; v < V; v++) {
            const int at = first + v * LANES * W;
            if (at >= end) continue;
            x[v] = *reinterpret_cast<const kd_vec<T, W> *>(from_x + at);
            dy[v] = *reinterpret_cast<const kd_vec<T, W> *>(from_dy + at);
        }
        const T *const add = p.add.data ? p.add.row(row) : NULL;
        T *const dx = p.dx.row(row);
#pragma unroll
        for (int v = 0; v < V; v++) {
            const int at = first + v * LANES * W;
            if (at >= end) continue;
            float w[W];
            kd_load(w, p.weight + at);
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float g = kd_load(&dy[v].at[k]) * w[k];
                if (CENTRE) sum_g += g;
                sum_gh += g * ((kd_load(&x[v].at[k]) - mean) * rstd);
            }
        }
        const float mean_g = CENTRE ? row_sum<LANES>(sum_g, buffer) / (float)columns : 0;
        const float mean_gh = row_sum<LANES>(sum_gh, buffer) / (float)columns;
#pragma unroll
        for (int v = 0; v < V; v++) {
            const int at = first + v * LANES * W;
            if (at < end)
                finish<T, CENTRE>(dx + at, add ? add + at : NULL, p.weight + at, x[v].at, dy[v].at,
                                  dw[v], db[v], mean, rstd, mean_g, mean_gh);
        }
    }
    write_sums<LANES>(p.dweight, dw, columns, buffer);
    if (CENTRE) write_sums<LANES>(p.dbias, db, columns, buffer);
}

/* Any length: a block to a row, and its sums in memory; a thread sees the same columns of each. */
template <class T, bool CENTRE, int W>
__global__ void __launch_bounds__(LONG) long_backward_kernel(Backward<T> p)
{
    KD_SHARED(float, buffer, [32]);
    const int64_t first = (int64_t)threadIdx.x * W, step = LONG * W;
    float *const dweight = p.dweight ? p.dweight + blockIdx.x * p.columns : NULL;
    float *const dbias = p.dbias ? p.dbias + blockIdx.x * p.columns : NULL;
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const float mean = CENTRE ? p.mean[row] : 0, rstd = p.rstd[row];
        const T *const x = p.x.row(row), *const dy = p.dy.row(row);
        const T *const add = p.add.data ? p.add.row(row) : NULL;
        T *const dx = p.dx.row(row);
        float sum_g = 0, sum_gh = 0;
        for (int64_t at = first; at < p.columns; at += step) {
            float a[W], b[W], w[W];
            kd_load(a, x + at);
            kd_load(b, dy + at);
            kd_load(w, p.weight + at);
#pragma unroll
            for (int k = 0; k < W; k++) {
                if (CENTRE) sum_g += b[k] * w[k];
                sum_gh += b[k] * w[k] * ((a[k] - mean) * rstd);
            }
        }
        const float mean_g = CENTRE ? kd_block_sum<LONG>(sum_g, buffer) / (float)p.columns : 0;
        const float mean_gh = kd_block_sum<LONG>(sum_gh, buffer) / (float)p.columns;
        for (int64_t at = first; at < p.columns; at += step) {
            float dw[W] = {}, db[W] = {};
            if (row != blockIdx.x && dweight) kd_load(dw, dweight + at);
            if (row != blockIdx.x && dbias) kd_load(db, dbias + at);
            finish<T, CENTRE>(dx + at, add ? add + at : NULL, p.weight + at, x + at, dy + at, dw,
                              db, mean, rstd, mean_g, mean_gh);
            if (dweight) kd_store(dweight + at, dw);
            if (dbias) kd_store(dbias + at, db);
        }
    }
}

/* Either gradient; an absent mean tells them apart. */
struct Gradient {
    const char *name;
    const kd_tensor *dx, *dweight, *dbias, *dy, *x, *mean, *rstd, *weight, *add;
    kd_partials sums; /* of dweight and dbias */
    int lanes;        /* that hold a row; 0: it is not held */
};

template <class T, bool CENTRE, int LANES>
kd_status launch_held_backward(kd_exec *exec, const Gradient &a, const Backward<T> &p)
{
    const kd_grid grid = { dim3((unsigned)a.sums.rows), dim3(threads_of(LANES)) };
    return kd_launch(exec, a.name, held_backward_kernel<T, CENTRE, LANES>, grid, p);
}

template <class T, bool CENTRE> kd_status backward_of(kd_exec *exec, const Gradient &a)
{
    const Backward<T> p = { kd_rows_of<T>(a.dx),
                            kd_rows_of<T>(a.dy),
                            kd_rows_of<T>(a.x),
                            kd_rows_of<T>(a.add),
                            (const T *)a.weight->data,
                            CENTRE ? (const float *)a.mean->data : NULL,
                            (const float *)a.rstd->data,
                            a.sums.from[0],
                            a.sums.from[1],
                            kd_tensor_rows(a.x),
                            kd_tensor_columns(a.x) };
    const kd_grid grid = { dim3((unsigned)a.sums.rows), dim3(LONG) };
    switch (a.lanes) {
    case 8: return launch_held_backward<T, CENTRE, 8>(exec, a, p);
    case 32: return launch_held_backward<T, CENTRE, 32>(exec, a, p);
    case 128: return launch_held_backward<T, CENTRE, 128>(exec, a, p);
    case 256: return launch_held_backward<T, CENTRE, 256>(exec, a, p);
    case 512: return launch_held_backward<T, CENTRE, 512>(exec, a, p);
    }
    return kd_rows_aligned(a.dx, a.dy, a.x, a.add, a.weight)
               ? kd_launch(exec, a.name, long_backward_kernel<T, CENTRE, kd_width<T>>, grid, p)
               : kd_launch(exec, a.name, long_backward_kernel<T, CENTRE, 1>, grid, p);
}

template <class T> kd_status backward(kd_exec *exec, const Gradient &a)
{
    return a.mean ? backward_of<T, true>(exec, a) : backward_of<T, false>(exec, a);
}

int lanes_of(const Gradient &a)
{
    const int64_t columns = kd_tensor_columns(a.x);
    if (!kd_rows_aligned(a.dx, a.dy, a.x, a.add, a.weight)) return 0;
    for (int lanes : { 8, 32, 128, 256, 512 })
        if (columns <= lanes * HELD_BACKWARD) return lanes;
    return 0;
}

kd_status run(kd_exec *exec, Gradient &a)
{
    const int64_t rows = kd_tensor_rows(a.x), columns = kd_tensor_columns(a.x);
    a.lanes = lanes_of(a);
    const int lanes = a.lanes ? a.lanes : LONG;
    const int64_t blocks = kd_partial_blocks(exec, rows, 4 * threads_of(lanes) / lanes,
                                             a.lanes ? resident_of(lanes, a.mean) : 2);
    KD_TRY(kd_push_partials(&a.sums, exec, blocks, columns, a.dweight, a.dbias));
    if (kd_planning(exec) || rows * columns == 0) return KD_OK;
    KD_TRY(KD_BY_DTYPE(a.x->dtype, backward, exec, a));
    return kd_add_partials(exec, a.sums);
}

} // namespace

extern "C" kd_status kd_rms_norm_cuda(kd_exec *exec, const kd_rms_norm_args *args)
{
    Norm a = {};
    a.name = "rms_norm";
    a.y = args->y;
    a.rstd = args->rstd;
    a.sum = args->sum;
    a.x = args->x;
    a.residual = args->residual;
    a.weight = args->weight;
    a.eps = args->eps;
    return run(exec, a);
}

extern "C" kd_status kd_layer_norm_cuda(kd_exec *exec, const kd_layer_norm_args *args)
{
    const Norm a = { "layer_norm", args->y,        args->mean,   args->rstd, args->sum,
                     args->x,      args->residual, args->weight, args->bias, args->eps };
    return run(exec, a);
}

extern "C" kd_status kd_rms_norm_backward_cuda(kd_exec *exec, const kd_rms_norm_backward_args *args)
{
    Gradient a = {};
    a.name = "rms_norm_backward";
    a.dx = args->dx;
    a.dweight = args->dweight;
    a.dy = args->dy;
    a.x = args->x;
    a.rstd = args->rstd;
    a.weight = args->weight;
    a.add = args->add;
    return run(exec, a);
}

extern "C" kd_status kd_layer_norm_backward_cuda(kd_exec *exec,
                                                 const kd_layer_norm_backward_args *args)
{
    Gradient a = {};
    a.name = "layer_norm_backward";
    a.dx = args->dx;
    a.dweight = args->dweight;
    a.dbias = args->dbias;
    a.dy = args->dy;
    a.x = args->x;
    a.mean = args->mean;
    a.rstd = args->rstd;
    a.weight = args->weight;
    a.add = args->add;
    return run(exec, a);
}
