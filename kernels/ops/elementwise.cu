/*
 * fill, copy, add and rows by index on CUDA; src/ops/elementwise.c has the definitions.
 *
 * Grid      kd_grid_rows over units of 16 bytes of y (an element where a row is not aligned);
 *           tensors without gaps are one row.  copy, where the dimensions that lie closest in memory
 *           differ: one block per tile of 32 x 32 elements, turned in shared memory.
 * Traffic   fill 1, copy and add 2 and 3 times the tensor, gather_rows and scatter_rows twice the
 *           rows; scatter_rows also 4 bytes a row of y for its winners.
 * Numerics  add rounds once; copy converts by way of f32, one rounding, and keeps the bits of equal
 *           types; the others move bits.
 * Same bits scatter_rows: the last of equal rows wins by an integer maximum before any is written.
 * Aliasing  y of add may be a or b; nothing else overlaps.
 * Bad rows  gather_rows answers NaN; scatter_rows has no row to answer in and writes nothing.
 */
#include "common/rows.cuh"

namespace {

constexpr int THREADS = KD_ROWS_THREADS;

/* `t`, as one row where `whole` says that it has no gaps. */
kd_tensor flat(const kd_tensor *t, bool whole)
{
    return whole ? kd_tensor_of(t->data, t->dtype, KD_SHAPE(kd_tensor_elements(t))) : *t;
}

/* ---- fill ------------------------------------------------------------------------------------- */

template <class T> struct FillParams {
    kd_rows<T> y;
    int64_t rows, units; /* units of W elements in a row */
    T value;
};

template <class T, int W> __global__ void __launch_bounds__(THREADS) fill_kernel(FillParams<T> p)
{
    kd_vec<T, W> v;
#pragma unroll
    for (int k = 0; k < W; k++) v.at[k] = p.value;
    for (int64_t r = kd_first_row(); r < p.rows; r += kd_row_step()) {
        kd_vec<T, W> *y = reinterpret_cast<kd_vec<T, W> *>(p.y.row(r));
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) y[u] = v;
    }
}

/* T is an unsigned integer of the element's size. */
template <class T> kd_status fill(kd_exec *exec, const kd_tensor *tensor, T value)
{
    const kd_tensor y = flat(tensor, kd_tensor_contiguous(tensor));
    const FillParams<T> p = { kd_rows_of<T>(&y), kd_tensor_rows(&y), kd_tensor_columns(&y), value };
    return kd_launch_rows(exec, "fill", fill_kernel<T, kd_width<T>>, kd_width<T>, fill_kernel<T, 1>,
                          kd_rows_aligned(&y), p);
}

/* ---- copy ------------------------------------------------------------------------------------- */

template <class T> __device__ __forceinline__ void convert(T *to, const T *from) { *to = *from; }
template <class Y, class X> __device__ __forceinline__ void convert(Y *to, const X *from)
{
    kd_store(to, kd_load(from));
}

template <class Y, class X> struct CopyParams {
    kd_rows<Y> y;
    kd_rows<const X> x;
    int64_t y_step, x_step; /* between neighbours of a row; 1 where W > 1 */
    int64_t rows, units;
};

template <class Y, class X, int W>
__global__ void __launch_bounds__(THREADS) copy_kernel(CopyParams<Y, X> p)
{
    for (int64_t r = kd_first_row(); r < p.rows; r += kd_row_step()) {
        Y *y = p.y.row(r);
        const X *x = p.x.row(r);
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            const kd_vec<X, W> from = *reinterpret_cast<const kd_vec<X, W> *>(x + u * W * p.x_step);
            kd_vec<Y, W> to;
#pragma unroll
            for (int k = 0; k < W; k++) convert(&to.at[k], &from.at[k]);
            *reinterpret_cast<kd_vec<Y, W> *>(y + u * W * p.y_step) = to;
        }
    }
}

/* Neighbours in memory run along the last dimension of both. */
template <class Y, class X>
kd_status copy_rows(kd_exec *exec, const kd_tensor *to, const kd_tensor *from)
{
    constexpr int W = 16 / (int)(sizeof(Y) > sizeof(X) ? sizeof(Y) : sizeof(X));
    const bool whole = kd_tensor_contiguous(to) && kd_tensor_contiguous(from);
    const kd_tensor y = flat(to, whole), x = flat(from, whole);
    const int64_t y_step = y.stride[y.rank - 1], x_step = x.stride[x.rank - 1];
    const CopyParams<Y, X> p = { kd_rows_of<Y>(&y),  kd_rows_of<const X>(&x), y_step, x_step,
                                 kd_tensor_rows(&y), kd_tensor_columns(&y) };
    const bool aligned = y_step == 1 && x_step == 1 && kd_rows_aligned(&y, &x);
    return kd_launch_rows(exec, "copy", copy_kernel<Y, X, W>, W, copy_kernel<Y, X, 1>, aligned, p);
}

constexpr int TILE = 32;

/* Neighbours in y run along dimension 3, in x along dimension 2. */
template <class Y, class X> struct TurnParams {
    Y *y;
    const X *x;
    int64_t size[4], y_stride[4], x_stride[4];
    unsigned tiles[2]; /* along dimensions 2 and 3 */
};

template <class Y, class X>
__global__ void __launch_bounds__(TILE * 8) turn_kernel(TurnParams<Y, X> p)
{
    KD_SHARED(Y, tile, [TILE][TILE + 1]); /* the odd column keeps the banks apart */
    const unsigned across = blockIdx.x % p.tiles[1], rest = blockIdx.x / p.tiles[1];
    const int64_t i = (int64_t)(rest % p.tiles[0]) * TILE, j = (int64_t)across * TILE;
    const int64_t outer = rest / p.tiles[0] / p.size[1], inner = rest / p.tiles[0] % p.size[1];
    const X *x = p.x + outer * p.x_stride[0] + inner * p.x_stride[1];
    Y *y = p.y + outer * p.y_stride[0] + inner * p.y_stride[1];
    for (int at = threadIdx.y; at < TILE; at += 8)
        if (i + threadIdx.x < p.size[2] && j + at < p.size[3])
            convert(&tile[at][threadIdx.x],
                    &x[(i + threadIdx.x) * p.x_stride[2] + (j + at) * p.x_stride[3]]);
    __syncthreads();
    for (int at = threadIdx.y; at < TILE; at += 8)
        if (i + at < p.size[2] && j + threadIdx.x < p.size[3])
            y[(i + at) * p.y_stride[2] + (j + threadIdx.x) * p.y_stride[3]] = tile[threadIdx.x][at];
}

/* Neighbours in memory run along the last dimension of y and the last but one of x. */
template <class Y, class X>
kd_status copy_turned(kd_exec *exec, const kd_tensor *y, const kd_tensor *x)
{
    TurnParams<Y, X> p = { (Y *)y->data, (const X *)x->data, { 1, 1, 1, 1 }, {}, {}, {} };
    for (int d = 0; d < y->rank; d++) {
        p.size[4 - y->rank + d] = y->shape[d];
        p.y_stride[4 - y->rank + d] = y->stride[d];
        p.x_stride[4 - y->rank + d] = x->stride[d];
    }
    for (int d = 0; d < 2; d++) p.tiles[d] = (unsigned)kd_ceil_div(p.size[2 + d], TILE);
    const int64_t blocks = p.size[0] * p.size[1] * p.tiles[0] * p.tiles[1];
    if (blocks > INT32_MAX)
        return kd_fail(KD_ENOTSUP, "y: %lld tiles to transpose, expected at most %d",
                       (long long)blocks, (int)INT32_MAX);
    return kd_launch(exec, "copy", turn_kernel<Y, X>, { dim3((unsigned)blocks), dim3(TILE, 8) }, p);
}

/* The dimension along which neighbours lie closest; every answer is right, this one is fast. */
int closest(const kd_tensor *t)
{
    int found = t->rank - 1;
    int64_t least = INT64_MAX;
    for (int d = t->rank - 1; d >= 0; d--)
        if (t->shape[d] > 1 && t->stride[d] != 0 && t->stride[d] < least) {
            found = d;
            least = t->stride[d];
        }
    return found;
}

void exchange(kd_tensor *t, int a, int b)
{
    const int64_t shape = t->shape[a], stride = t->stride[a];
    t->shape[a] = t->shape[b], t->stride[a] = t->stride[b];
    t->shape[b] = shape, t->stride[b] = stride;
}

template <class Y, class X>
kd_status copy(kd_exec *exec, const kd_tensor *to, const kd_tensor *from)
{
    kd_tensor y = flat(to, to->rank == 0), x = flat(from, from->rank == 0);
    const int y_closest = closest(&y), x_closest = closest(&x), last = y.rank - 1;
    exchange(&y, y_closest, last);
    exchange(&x, y_closest, last);
    if (x_closest == y_closest) return copy_rows<Y, X>(exec, &y, &x);
    const int now = x_closest == last ? y_closest : x_closest; /* where the first exchange put it */
    exchange(&y, now, last - 1);
    exchange(&x, now, last - 1);
    return copy_turned<Y, X>(exec, &y, &x);
}

template <class Y> kd_status copy_to(kd_exec *exec, const kd_copy_args *args)
{
    switch (args->x->dtype) {
    case KD_F32: return copy<Y, float>(exec, args->y, args->x);
    case KD_BF16: return copy<Y, bf16>(exec, args->y, args->x);
    default: return copy<Y, __half>(exec, args->y, args->x);
    }
}

/* ---- add -------------------------------------------------------------------------------------- */

template <class T> struct AddParams {
    kd_rows<T> y;
    kd_rows<const T> a, b;
    int64_t rows, units;
};

template <class T, int W> __global__ void __launch_bounds__(THREADS) add_kernel(AddParams<T> p)
{
    for (int64_t r = kd_first_row(); r < p.rows; r += kd_row_step()) {
        T *y = p.y.row(r);
        const T *from_a = p.a.row(r), *from_b = p.b.row(r);
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float a[W], b[W];
            kd_load(a, from_a + u * W);
            kd_load(b, from_b + u * W);
#pragma unroll
            for (int k = 0; k < W; k++) a[k] += b[k];
            kd_store(y + u * W, a);
        }
    }
}

template <class T> kd_status add(kd_exec *exec, const kd_add_args *args)
{
    const bool whole = kd_tensor_contiguous(args->y) && kd_tensor_contiguous(args->a) &&
                       kd_tensor_contiguous(args->b);
    const kd_tensor y = flat(args->y, whole), a = flat(args->a, whole), b = flat(args->b, whole);
    const AddParams<T> p = { kd_rows_of<T>(&y), kd_rows_of<const T>(&a), kd_rows_of<const T>(&b),
                             kd_tensor_rows(&y), kd_tensor_columns(&y) };
    return kd_launch_rows(exec, "add", add_kernel<T, kd_width<T>>, kd_width<T>, add_kernel<T, 1>,
                          kd_rows_aligned(&y, &a, &b), p);
}

/* ---- rows by index ---------------------------------------------------------------------------- */

/* `many` [most, D] is indexed by `at` [rows], `few` [rows, D] is in its order. */
template <class Many, class Few> struct ChosenParams {
    Many *many;
    Few *few;
    int64_t many_stride, few_stride, most, rows, units;
    const int32_t *at;
    int32_t *winner; /* scatter_rows: [most], the last row for each target */
};

template <class T, int W>
__global__ void __launch_bounds__(THREADS) gather_kernel(ChosenParams<const T, T> p)
{
    kd_vec<T, W> zero, nan;
#pragma unroll
    for (int k = 0; k < W; k++) {
        kd_store(&zero.at[k], 0.0f);
        kd_store(&nan.at[k], NAN);
    }
    for (int64_t n = kd_first_row(); n < p.rows; n += kd_row_step()) {
        const int64_t at = p.at[n];
        const bool inside = at >= 0 && at < p.most;
        const T *x = p.many + (inside ? at : 0) * p.many_stride;
        T *y = p.few + n * p.few_stride;
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step())
            *reinterpret_cast<kd_vec<T, W> *>(y + u * W) =
                inside     ? *reinterpret_cast<const kd_vec<T, W> *>(x + u * W)
                : at == -1 ? zero
                           : nan;
    }
}

/* winner[] is -1 everywhere before. */
template <class T>
__global__ void __launch_bounds__(THREADS) choose_kernel(ChosenParams<T, const T> p)
{
    for (int64_t n = (int64_t)blockIdx.x * THREADS + threadIdx.x; n < p.rows;
         n += (int64_t)gridDim.x * THREADS)
        if (p.at[n] >= 0 && p.at[n] < p.most) atomicMax(&p.winner[p.at[n]], (int32_t)n);
}

template <class T, int W>
__global__ void __launch_bounds__(THREADS) scatter_kernel(ChosenParams<T, const T> p)
{
    for (int64_t n = kd_first_row(); n < p.rows; n += kd_row_step()) {
        const int64_t at = p.at[n];
        if (at < 0 || at >= p.most || p.winner[at] != n) continue;
        const T *x = p.few + n * p.few_stride;
        T *y = p.many + at * p.many_stride;
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step())
            *reinterpret_cast<kd_vec<T, W> *>(y + u * W) =
                *reinterpret_cast<const kd_vec<T, W> *>(x + u * W);
    }
}

template <class Many, class Few>
ChosenParams<Many, Few> chosen(const kd_tensor *many, const kd_tensor *few, const kd_tensor *rows)
{
    return { (Many *)many->data,
             (Few *)few->data,
             many->stride[0],
             few->stride[0],
             many->shape[0],
             few->shape[0],
             few->shape[1],
             (const int32_t *)rows->data,
             NULL };
}

template <class T> kd_status gather(kd_exec *exec, const kd_gather_rows_args *args)
{
    return kd_launch_rows(exec, "gather_rows", gather_kernel<T, kd_width<T>>, kd_width<T>,
                          gather_kernel<T, 1>, kd_rows_aligned(args->x, args->y),
                          chosen<const T, T>(args->x, args->y, args->rows));
}

template <class T>
kd_status scatter(kd_exec *exec, const kd_scatter_rows_args *args, const kd_tensor *winner)
{
    ChosenParams<T, const T> p = chosen<T, const T>(args->y, args->x, args->rows);
    p.winner = (int32_t *)winner->data;
    KD_TRY(fill<uint32_t>(exec, winner, UINT32_MAX));
    KD_TRY(
        kd_launch(exec, "scatter_rows", choose_kernel<T>, kd_grid_over(exec, p.rows, THREADS), p));
    return kd_launch_rows(exec, "scatter_rows", scatter_kernel<T, kd_width<T>>, kd_width<T>,
                          scatter_kernel<T, 1>, kd_rows_aligned(args->x, args->y), p);
}

} // namespace

extern "C" kd_status kd_fill_cuda(kd_exec *exec, const kd_fill_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    uint32_t bits;
    memcpy(&bits, &args->value, sizeof bits);
    if (args->y->dtype == KD_F32) return fill<uint32_t>(exec, args->y, bits);
    return fill<uint16_t>(exec, args->y, kd_f32_to_bf16(args->value));
}

extern "C" kd_status kd_copy_cuda(kd_exec *exec, const kd_copy_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    switch (args->y->dtype) {
    case KD_F32: return copy_to<float>(exec, args);
    case KD_BF16: return copy_to<bf16>(exec, args);
    default: return copy_to<__half>(exec, args);
    }
}

extern "C" kd_status kd_add_cuda(kd_exec *exec, const kd_add_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    return KD_BY_DTYPE(args->y->dtype, add, exec, args);
}

extern "C" kd_status kd_gather_rows_cuda(kd_exec *exec, const kd_gather_rows_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    return KD_BY_DTYPE(args->y->dtype, gather, exec, args);
}

extern "C" kd_status kd_scatter_rows_cuda(kd_exec *exec, const kd_scatter_rows_args *args)
{
    kd_tensor winner;
    if (args->x->shape[0] > INT32_MAX)
        return kd_fail(KD_ENOTSUP, "x: found %lld rows, expected less than 2^31",
                       (long long)args->x->shape[0]);
    KD_TRY(kd_push(&winner, exec, "scatter_rows.winner", KD_I32, KD_SHAPE(args->y->shape[0])));
    if (kd_planning(exec) || kd_tensor_elements(args->x) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, scatter, exec, args, &winner);
}
