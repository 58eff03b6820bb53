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

/*
 * A grid of `threads` (a power of two) a block over `rows` of `units` units each, in which no thread
 * divides: x runs along a row, y over the rows, both in strides of gridDim * blockDim.
 */
inline kd_grid kd_grid_rows(const kd_exec *exec, int64_t rows, int64_t units, int threads)
{
    int along = 1;
    while (along < threads && along < units) along *= 2;
    const int64_t most = kd_blocks_at_once(exec, threads);
    const int64_t x = kd_min_i64(kd_max_i64(kd_ceil_div(units, along), 1), most);
    const int64_t y = kd_min_i64(kd_ceil_div(rows, threads / along), kd_max_i64(most / x, 1));
    return { dim3((unsigned)x, (unsigned)kd_min_i64(kd_max_i64(y, 1), 65535)),
             dim3((unsigned)along, (unsigned)(threads / along)) };
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
