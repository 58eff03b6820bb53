/*
 * rows.cuh - tensors as rows, for kernels: where row r starts, whatever the outer strides, and how
 * many elements a thread may move at once.
 */
#ifndef KD_ROWS_CUH
#define KD_ROWS_CUH

#include "common/launch.cuh"

/* Rows over all dimensions but the last, in row-major order.  data NULL: absent. */
template <class T> struct kd_rows {
    T *data;
    int64_t stride[3], size[2]; /* of the outer dimensions, fastest first; size of the faster two */
    int outer;                  /* how many there are: 0 to 3 */

    __device__ __forceinline__ T *row(int64_t r) const
    {
        if (outer <= 1) return data + r * stride[0];
        const int64_t q = r / size[0];
        T *at = data + (r - q * size[0]) * stride[0];
        if (outer == 2) return at + q * stride[1];
        const int64_t s = q / size[1];
        return at + (q - s * size[1]) * stride[1] + s * stride[2];
    }
};

template <class T> inline kd_rows<T> kd_rows_of(const kd_tensor *t)
{
    kd_rows<T> rows = {};
    if (!kd_present(t)) return rows;
    rows.data = (T *)t->data;
    rows.outer = t->rank - 1;
    for (int i = 0; i < rows.outer; i++) {
        rows.stride[i] = t->stride[rows.outer - 1 - i];
        if (i < 2) rows.size[i] = t->shape[rows.outer - 1 - i];
    }
    return rows;
}

/* Whether every row of `t` starts at a multiple of 16 bytes and has a whole number of them, so that
 * a thread may move 16 bytes at a time.  True of an absent tensor. */
inline bool kd_rows_aligned(const kd_tensor *t)
{
    if (!kd_present(t)) return true;
    const int64_t unit = 16 / (int64_t)kd_dtype_size(t->dtype);
    bool aligned = (uintptr_t)t->data % 16 == 0 && t->shape[t->rank - 1] % unit == 0;
    for (int i = 0; i + 1 < t->rank; i++)
        aligned = aligned && (t->shape[i] <= 1 || t->stride[i] % unit == 0);
    return aligned;
}

template <class... Tensors> inline bool kd_rows_aligned(const kd_tensor *t, Tensors... others)
{
    return kd_rows_aligned(t) && kd_rows_aligned(others...);
}

/* ---- a grid over rows ------------------------------------------------------------------------- */

constexpr int KD_ROWS_THREADS = 256;

/*
 * A grid over `rows` of `units` units each in which no thread divides: x runs along a row, y over the
 * rows, and a kernel strides over what is left:
 *     for (int64_t r = kd_first_row(); r < p.rows; r += kd_row_step())
 *         for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step())
 */
inline kd_grid kd_grid_rows(const kd_exec *exec, int64_t rows, int64_t units)
{
    int along = 1;
    while (along < KD_ROWS_THREADS && along < units) along *= 2;
    const int down = KD_ROWS_THREADS / along;
    const int64_t most = kd_blocks_at_once(exec, KD_ROWS_THREADS);
    const int64_t x = kd_min_i64(kd_max_i64(kd_ceil_div(units, along), 1), most);
    const int64_t y = kd_min_i64(kd_ceil_div(rows, down), kd_max_i64(most / x, 1));
    return { dim3((unsigned)x, (unsigned)kd_max_i64(y, 1)), dim3((unsigned)along, (unsigned)down) };
}

__device__ __forceinline__ int64_t kd_first_row()
{
    return (int64_t)blockIdx.y * blockDim.y + threadIdx.y;
}
__device__ __forceinline__ int64_t kd_row_step() { return (int64_t)gridDim.y * blockDim.y; }
__device__ __forceinline__ int64_t kd_first_unit()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t kd_unit_step() { return (int64_t)gridDim.x * blockDim.x; }

/* Over p.rows of p.units, given in elements: `wide`, whose units are of `width` elements, where every
 * row is aligned, else `narrow`, whose units are elements. */
template <class Params>
inline kd_status kd_launch_rows(kd_exec *exec, const char *name, void (*wide)(Params), int width,
                                void (*narrow)(Params), bool aligned, Params p)
{
    if (aligned) p.units /= width;
    return kd_launch(exec, name, aligned ? wide : narrow, kd_grid_rows(exec, p.rows, p.units), p);
}

/* ---- vectors ---------------------------------------------------------------------------------- */

/* W consecutive elements: 16 bytes, one element, or what goes with 16 bytes of a wider type. */
template <class T, int W> struct alignas(sizeof(T) * W) kd_vec {
    T at[W];
};

template <class T> constexpr int kd_width = 16 / (int)sizeof(T);

template <class T, int W> __device__ __forceinline__ void kd_load(float (&to)[W], const T *from)
{
    const kd_vec<T, W> v = *reinterpret_cast<const kd_vec<T, W> *>(from);
#pragma unroll
    for (int i = 0; i < W; i++) to[i] = kd_load(&v.at[i]);
}

template <class T, int W> __device__ __forceinline__ void kd_store(T *to, const float (&from)[W])
{
    kd_vec<T, W> v;
#pragma unroll
    for (int i = 0; i < W; i++) kd_store(&v.at[i], from[i]);
    *reinterpret_cast<kd_vec<T, W> *>(to) = v;
}

#endif
