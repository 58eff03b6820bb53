/*
 * Distances of rows and their gradients on CUDA; src/ops/row_distance.c has the definitions.
 *
 * Grid      a warp a row, eight rows a block; a block a row where rows are long.  Blocks stride over the
 *           rows.
 * Traffic   squared: x and y twice, d_student read and written; of unit vectors x and y once more.
 *           What comes again comes from the caches: 8 to 10 bytes of memory an element in bf16.
 * Numerics  f32, squares of lengths and of differences too: their relative error is that of the sum of
 *           D terms over the threads of a row.  A row as long as 1e19 overflows and gives NaN.
 * Same bits the order depends on D and on whether rows are aligned.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int ROWS = 8, LONG = KD_WARP * ROWS; /* threads of a block */

template <class T, class U> struct Params {
    kd_rows<const T> x;
    kd_rows<const U> y;
    kd_rows<T> d;
    const float *weight, *scale;
    float *loss;
    int64_t rows, columns;
    kd_distance kind;
    float factor;
};

/* f(x, y, at) of every unit of W columns that is this thread's. */
template <int THREADS, int W, class T, class U, class Function>
__device__ __forceinline__ void each(const T *x, const U *y, int64_t columns, Function f)
{
    for (int64_t at = (int64_t)threadIdx.x * W; at < columns; at += THREADS * W) {
        float u[W], v[W];
        kd_load(u, x + at);
        kd_load(v, y + at);
        f(u, v, at);
    }
}

__device__ __forceinline__ float unit_factor(float squares)
{
    const float length = sqrtf(squares);
    return length <= 1e-12f ? 0.0f : 1.0f / length;
}

struct Measure {
    float value, slope, back;
};

__device__ __forceinline__ Measure measure(kd_distance kind, float squares, float x_factor,
                                           float y_factor)
{
    const float root = sqrtf(squares);
    const bool flat = y_factor == 0.0f; /* |x'| is 1 whatever x is */
    switch (kind) {
    case KD_DISTANCE_COSINE:
        return { flat || x_factor == 0.0f ? 1.0f : squares / 2, flat ? 0.0f : x_factor,
                 squares / 2 };
    case KD_DISTANCE_NORMALISED: return { squares, flat ? 0.0f : 2 * x_factor, squares / 2 };
    case KD_DISTANCE_NORMALISED_ROOT:
        return { root, flat || root == 0.0f ? 0.0f : x_factor / root, squares / 2 };
    default: return { squares, 2, 0 };
    }
}

template <class T, class U, int THREADS, int W>
__global__ void __launch_bounds__(LONG) row_distance_kernel(Params<T, U> p)
{
    KD_SHARED(float, buffer, [KD_WARP]);
    for (int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; row < p.rows;
         row += (int64_t)gridDim.x * blockDim.y) {
        const float weight = p.weight ? p.weight[row] : 1.0f;
        if (weight == 0.0f) {
            if (threadIdx.x == 0) p.loss[row] = 0;
            continue;
        }
        const T *x = p.x.row(row);
        const U *y = p.y.row(row);
        float x_factor = 1, y_factor = 1, squares = 0;
        if (p.kind != KD_DISTANCE_SQUARED) {
            float xx = 0, yy = 0;
            each<THREADS, W>(x, y, p.columns, [&](const float *u, const float *v, int64_t) {
#pragma unroll
                for (int k = 0; k < W; k++) xx += u[k] * u[k], yy += v[k] * v[k];
            });
            x_factor = unit_factor(kd_block_sum<THREADS>(xx, buffer));
            y_factor = unit_factor(kd_block_sum<THREADS>(yy, buffer));
        }
        each<THREADS, W>(x, y, p.columns, [&](const float *u, const float *v, int64_t) {
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float e = u[k] * x_factor - v[k] * y_factor;
                squares += e * e;
            }
        });
        const Measure m =
            measure(p.kind, kd_block_sum<THREADS>(squares, buffer), x_factor, y_factor);
        const float share = weight * p.factor;
        if (threadIdx.x == 0) p.loss[row] = share * m.value;
        if (!p.d.data || m.slope == 0.0f) continue;
        T *d = p.d.row(row);
        const float slope = p.scale[0] * share * m.slope;
        each<THREADS, W>(x, y, p.columns, [&](const float *u, const float *v, int64_t at) {
            float out[W];
            kd_load(out, d + at);
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float unit = u[k] * x_factor;
                out[k] += slope * (unit - v[k] * y_factor - m.back * unit);
            }
            kd_store(d + at, out);
        });
    }
}

template <class T, class U, int W> kd_status launch(kd_exec *exec, const Params<T, U> &p)
{
    const bool whole = p.columns >= 16 * KD_WARP * W;
    const int64_t most = kd_blocks_at_once(exec, LONG);
    const int64_t blocks = kd_min_i64(whole ? p.rows : kd_ceil_div(p.rows, ROWS), most);
    const kd_grid grid = { dim3((unsigned)blocks), whole ? dim3(LONG) : dim3(KD_WARP, ROWS) };
    return whole ? kd_launch(exec, "row_distance", row_distance_kernel<T, U, LONG, W>, grid, p)
                 : kd_launch(exec, "row_distance", row_distance_kernel<T, U, KD_WARP, W>, grid, p);
}

template <class T, class U> kd_status run(kd_exec *exec, const kd_row_distance_args *args)
{
    Params<T, U> p = {};
    p.x = kd_rows_of<const T>(args->student);
    p.y = kd_rows_of<const U>(args->teacher);
    p.d = kd_rows_of<T>(args->d_student);
    p.weight = kd_present(args->weight) ? (const float *)args->weight->data : NULL;
    p.scale = (const float *)args->scale->data;
    p.loss = (float *)args->loss->data;
    p.rows = args->student->shape[0];
    p.columns = args->student->shape[1];
    p.kind = args->kind;
    p.factor = args->factor;
    constexpr int W = kd_width<T> < kd_width<U> ? kd_width<T> : kd_width<U>;
    return kd_rows_aligned(args->student, args->teacher, args->d_student)
               ? launch<T, U, W>(exec, p)
               : launch<T, U, 1>(exec, p);
}

template <class T> kd_status by_teacher(kd_exec *exec, const kd_row_distance_args *args)
{
    return args->teacher->dtype == KD_F32 ? run<T, float>(exec, args) : run<T, bf16>(exec, args);
}

} // namespace

extern "C" kd_status kd_row_distance_cuda(kd_exec *exec, const kd_row_distance_args *args)
{
    if (kd_planning(exec) || args->student->shape[0] == 0) return KD_OK;
    return KD_BY_DTYPE(args->student->dtype, by_teacher, exec, args);
}
