/*
 * embedding, embedding_backward and embedding_products on CUDA; src/ops/embedding.c has the definitions.
 *
 * Forward   kd_grid_rows over units of 16 bytes of y.  Reads an id and a row of the table (and of
 *           add), writes a row; with a factor K ids and rows, whose sum in f32 begins with add and goes
 *           on in the order of k.  An id outside the table makes its row NaN.  y may be add.
 *
 * Products  a warp per product, neighbours of one row x: a table row each, 16 bytes of a lane at a time;
 *           x comes from the first-level cache but once.  f32, each lane's units in order, then the
 *           lanes.  An id outside the table makes NaN.
 *
 * Backward  An entry is an id: row n of dy, or with a factor each of the row's K.
 *           1. Entries are sorted by id, those of one id in their own order: a radix sort of 8 bits a
 *              pass, so 2 passes up to 65535 ids and 3 up to 16 million; each pass counts digits per
 *              tile of TILE entries and then places them.  The last pass divides entries by K.
 *           2. One thread sums W columns of PIECE sorted entries: d table[id] + dy[n] + dy[n'] + ...
 *              written at the end of each id.  Where the piece starts inside an id, its first sum
 *              goes to scratch instead.
 *           3. An id longer than its piece gets the sums of the pieces that follow, in order, shared
 *              by SHARES threads.
 *   Traffic dy once, or K times, from the cache where it holds dy; d table twice an entry that is
 *           reached; 4 bytes for PIECE elements of dy at most in scratch; 20 bytes an entry and pass to
 *           sort.
 *   Numerics f32.  An id whose sorted entries lie in one piece is summed in their order.
 *   Same bits no float atomics; counts are integers, and the sort keeps the order of entries.
 *   Scratch 16 bytes an entry, 20 with a factor, and a row of f32 for PIECE entries.
 *   An id outside the table has no row to answer in and adds nothing; the forward op of the same ids
 *   has answered NaN.
 */
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace {

constexpr int THREADS = KD_ROWS_THREADS;

/* ---- forward ---------------------------------------------------------------------------------- */

template <class T> struct EmbeddingParams {
    T *y;
    const T *table, *add; /* add or NULL */
    int64_t y_stride, table_stride, add_stride;
    const int32_t *ids;
    const float *factor;                    /* [rows, count]; NULL: absent, and an id a row */
    int64_t rows, units, vocabulary, count; /* units of W elements in a row */
};

template <class T, int W>
__global__ void __launch_bounds__(THREADS) embedding_kernel(EmbeddingParams<T> p)
{
    for (int64_t n = kd_first_row(); n < p.rows; n += kd_row_step()) {
        const int64_t id = p.ids[n];
        const bool inside = id >= 0 && id < p.vocabulary;
        const T *from = p.table + (inside ? id : 0) * p.table_stride;
        const T *add = p.add + n * p.add_stride;
        T *y = p.y + n * p.y_stride;
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float x[W];
#pragma unroll
            for (int k = 0; k < W; k++) x[k] = NAN;
            if (inside) kd_load(x, from + u * W);
            if (p.add) {
                float more[W];
                kd_load(more, add + u * W);
#pragma unroll
                for (int k = 0; k < W; k++) x[k] += more[k];
            }
            kd_store(y + u * W, x);
        }
    }
}

/* x += factor * row `id` of the table, from column `at` on. */
template <class T, int W>
__device__ __forceinline__ void add_scaled(float (&x)[W], const EmbeddingParams<T> &p, int64_t id,
                                           float factor, int64_t at)
{
    float row[W];
#pragma unroll
    for (int k = 0; k < W; k++) row[k] = NAN;
    if (id >= 0 && id < p.vocabulary) kd_load(row, p.table + id * p.table_stride + at);
#pragma unroll
    for (int k = 0; k < W; k++) x[k] = fmaf(factor, row[k], x[k]);
}

template <class T, int W>
__global__ void __launch_bounds__(THREADS) weighted_kernel(EmbeddingParams<T> p)
{
    for (int64_t n = kd_first_row(); n < p.rows; n += kd_row_step()) {
        const int32_t *ids = p.ids + n * p.count;
        const float *factor = p.factor + n * p.count;
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step()) {
            float x[W] = {};
            if (p.add) kd_load(x, p.add + n * p.add_stride + u * W);
#pragma unroll 4
            for (int64_t k = 0; k < p.count; k++) add_scaled(x, p, ids[k], factor[k], u * W);
            kd_store(p.y + n * p.y_stride + u * W, x);
        }
    }
}

template <class T> kd_status embedding(kd_exec *exec, const kd_embedding_args *args)
{
    const kd_tensor *y = args->y, *table = args->table;
    const bool adds = kd_present(args->add), weighted = kd_present(args->factor);
    const EmbeddingParams<T> p = { (T *)y->data,
                                   (const T *)table->data,
                                   adds ? (const T *)args->add->data : NULL,
                                   y->stride[0],
                                   table->stride[0],
                                   adds ? args->add->stride[0] : 0,
                                   (const int32_t *)args->ids->data,
                                   weighted ? (const float *)args->factor->data : NULL,
                                   y->shape[0],
                                   y->shape[1],
                                   table->shape[0],
                                   weighted ? args->factor->shape[1] : 1 };
    const bool aligned = kd_rows_aligned(y, table, args->add);
    if (weighted)
        return kd_launch_rows(exec, "embedding", weighted_kernel<T, kd_width<T>>, kd_width<T>,
                              weighted_kernel<T, 1>, aligned, p);
    return kd_launch_rows(exec, "embedding", embedding_kernel<T, kd_width<T>>, kd_width<T>,
                          embedding_kernel<T, 1>, aligned, p);
}

/* ---- products --------------------------------------------------------------------------------- */

template <class T> struct ProductsParams {
    float *y; /* [rows, count] */
    const T *x, *table;
    int64_t x_stride, table_stride;
    const int32_t *ids;
    const void *bias; /* or NULL */
    bool narrow;      /* bias is bf16 */
    int64_t rows, units, vocabulary, count;
};

template <class T> __device__ __forceinline__ float bias_of(const ProductsParams<T> &p, int64_t id)
{
    if (!p.bias) return 0.0f;
    return p.narrow ? kd_load((const bf16 *)p.bias + id) : kd_load((const float *)p.bias + id);
}

/* A row's threads count as units of kd_grid_rows, a warp a product. */
template <class T, int W>
__global__ void __launch_bounds__(THREADS) products_kernel(ProductsParams<T> p)
{
    const int lane = threadIdx.x % KD_WARP;
    for (int64_t n = kd_first_row(); n < p.rows; n += kd_row_step()) {
        for (int64_t u = kd_first_unit(); u < p.count * KD_WARP; u += kd_unit_step()) {
            const int64_t i = n * p.count + u / KD_WARP, id = p.ids[i];
            const bool inside = id >= 0 && id < p.vocabulary;
            const T *x = p.x + n * p.x_stride + lane * W;
            const T *table = p.table + id * p.table_stride + lane * W;
            float sum = 0.0f;
#pragma unroll 2
            for (int64_t left = inside ? p.units - lane : 0; left > 0; left -= KD_WARP) {
                float a[W], b[W];
                kd_load(a, x);
                kd_load(b, table);
                x += KD_WARP * W;
                table += KD_WARP * W;
#pragma unroll
                for (int k = 0; k < W; k++) sum = fmaf(a[k], b[k], sum);
            }
            sum = kd_warp_sum(sum);
            if (lane == 0) p.y[i] = inside ? sum + bias_of(p, id) : NAN;
        }
    }
}

template <class T> kd_status products(kd_exec *exec, const kd_embedding_products_args *args)
{
    const kd_tensor *x = args->x, *table = args->table;
    const bool biased = kd_present(args->bias);
    ProductsParams<T> p = { (float *)args->y->data,
                            (const T *)x->data,
                            (const T *)table->data,
                            x->stride[0],
                            table->stride[0],
                            (const int32_t *)args->ids->data,
                            biased ? args->bias->data : NULL,
                            biased && args->bias->dtype == KD_BF16,
                            x->shape[0],
                            x->shape[1],
                            table->shape[0],
                            args->y->shape[1] };
    const kd_grid grid = kd_grid_rows(exec, p.rows, p.count * KD_WARP);
    if (!kd_rows_aligned(x, table))
        return kd_launch(exec, "embedding_products", products_kernel<T, 1>, grid, p);
    p.units /= kd_width<T>;
    return kd_launch(exec, "embedding_products", products_kernel<T, kd_width<T>>, grid, p);
}

/* ---- backward: entries sorted by id ----------------------------------------------------------- */

constexpr int DIGITS = 256, WARPS = THREADS / KD_WARP, ROUNDS = 8, TILE = THREADS * ROUNDS;
static_assert(DIGITS == THREADS, "one thread a digit");

/* One pass of the sort. */
struct PassParams {
    const int32_t *ids, *entries; /* [n]; entries NULL: 0, 1, 2, ... */
    int32_t *sorted_ids, *sorted_entries;
    int32_t *counts; /* [tiles, DIGITS] */
    int32_t n, tiles, vocabulary;
    int shift; /* of the digit in an id */
    /* NULL but in the last pass of entries with a factor, `each` a row: sorted_entries are rows then. */
    const float *factor;
    float *sorted_factor;
    int32_t each;
};

/* Ids that are none count as `vocabulary` and come last. */
__device__ __forceinline__ int32_t id_of(const PassParams &p, int32_t i)
{
    const int32_t id = p.ids[i];
    return id >= 0 && id < p.vocabulary ? id : p.vocabulary;
}

__global__ void __launch_bounds__(THREADS) count_kernel(PassParams p)
{
    KD_SHARED(int32_t, count, [DIGITS]);
    count[threadIdx.x] = 0;
    __syncthreads();
    const int32_t first = blockIdx.x * TILE, last = p.n - first < TILE ? p.n : first + TILE;
    for (int32_t i = first + threadIdx.x; i < last; i += THREADS)
        atomicAdd(&count[id_of(p, i) >> p.shift & (DIGITS - 1)], 1);
    __syncthreads();
    p.counts[blockIdx.x * DIGITS + threadIdx.x] = count[threadIdx.x];
}

/* Where this tile's entries of digit threadIdx.x go: after all smaller digits and after the same digit
 * of the tiles before. */
__device__ int32_t place_of_digit(const PassParams &p, int32_t *scan)
{
    int32_t before = 0, total = 0;
#pragma unroll 4
    for (int32_t tile = 0; tile < p.tiles; tile++) {
        const int32_t count = p.counts[tile * DIGITS + threadIdx.x];
        if (tile < (int32_t)blockIdx.x) before += count;
        total += count;
    }
    int32_t sum = total;
    for (unsigned reach = 1; reach < DIGITS; reach *= 2) {
        scan[threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x >= reach) sum += scan[threadIdx.x - reach];
        __syncthreads();
    }
    return sum - total + before;
}

/* Each warp ranks its own ROUNDS * 32 consecutive entries, 32 at a time. */
__global__ void __launch_bounds__(THREADS) place_kernel(PassParams p)
{
    KD_SHARED(int32_t, scan, [DIGITS]);
    KD_SHARED(int32_t, seen, [WARPS][DIGITS + 1]); /* the last: lanes past the end */
    const int warp = threadIdx.x / KD_WARP, lane = threadIdx.x % KD_WARP;
    const int32_t first = blockIdx.x * TILE + warp * ROUNDS * KD_WARP + lane;
    for (int d = lane; d <= DIGITS; d += KD_WARP) seen[warp][d] = 0;
    __syncwarp();
    int32_t id[ROUNDS], rank[ROUNDS];
    int digit[ROUNDS];
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
        const bool inside = first + r * KD_WARP < p.n;
        id[r] = inside ? id_of(p, first + r * KD_WARP) : 0;
        digit[r] = inside ? id[r] >> p.shift & (DIGITS - 1) : DIGITS;
        const unsigned same = __match_any_sync(KD_ALL_LANES, digit[r]);
        const int ahead = __popc(same & ((1u << lane) - 1));
        rank[r] = seen[warp][digit[r]] + ahead;
        __syncwarp();
        if (ahead == 0) seen[warp][digit[r]] += __popc(same);
        __syncwarp();
    }
    int32_t place = place_of_digit(p, scan); /* all of seen is written after its barriers */
    for (int w = 0; w < WARPS; w++) {
        const int32_t count = seen[w][threadIdx.x];
        seen[w][threadIdx.x] = place;
        place += count;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
        const int32_t from = first + r * KD_WARP;
        if (from >= p.n) continue;
        const int32_t to = seen[warp][digit[r]] + rank[r];
        p.sorted_ids[to] = id[r];
        const int32_t entry = p.entries ? p.entries[from] : from;
        p.sorted_entries[to] = p.factor ? entry / p.each : entry;
        if (p.factor) p.sorted_factor[to] = p.factor[entry];
    }
}

/* ---- backward: sums --------------------------------------------------------------------------- */

/* Entries with a factor are many to a row of dy: pieces are long, so that scratch stays small. */
template <bool WEIGHTED> constexpr int PIECE = WEIGHTED ? 128 : 32;
constexpr int BATCH = 4, SHARES = 8;
constexpr int32_t GOES_ON = -1, NO_ROW = -2;

template <class T> struct SumParams {
    const T *dy;
    float *dtable;
    int64_t dy_stride, dtable_stride, units;
    float *head; /* [pieces, columns]: the first sum of a piece that starts inside an id */
    const int32_t *ids, *rows; /* sorted [n] */
    const float *factor;       /* sorted [n]; where WEIGHTED */
    int64_t n, columns;
    int32_t vocabulary;
};

template <class T> __device__ __forceinline__ bool starts_inside(const SumParams<T> &p, int64_t i)
{
    return i > 0 && p.ids[i - 1] == p.ids[i];
}

/* Entries are taken BATCH at a time, so that their loads, and those of the rows of dtable that begin
 * with them, are on their way together. */
template <class T, int W, bool WEIGHTED>
__device__ void sum_piece(const SumParams<T> &p, int64_t piece, int64_t at)
{
    constexpr int64_t SIZE = PIECE<WEIGHTED>;
    const int64_t first = piece * SIZE, last = first + SIZE < p.n ? first + SIZE : p.n;
    float *to = starts_inside(p, first) ? p.head + piece * p.columns + at : NULL;
    float sum[W] = {};
    for (int64_t i = first; i < last; i += BATCH) {
        float d[BATCH][W], old[BATCH][W], factor[BATCH];
        int32_t start[BATCH]; /* the id that starts here, GOES_ON or NO_ROW */
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            start[k] = NO_ROW;
            if (i + k >= last || p.ids[i + k] >= p.vocabulary) continue;
            start[k] = starts_inside(p, i + k) ? GOES_ON : p.ids[i + k];
            kd_load(d[k], p.dy + p.rows[i + k] * p.dy_stride + at);
            factor[k] = WEIGHTED ? p.factor[i + k] : 1.0f;
            if (start[k] >= 0) kd_load(old[k], p.dtable + start[k] * p.dtable_stride + at);
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (start[k] == NO_ROW) continue;
            if (start[k] >= 0) {
                if (to) kd_store(to, sum);
                to = p.dtable + start[k] * p.dtable_stride + at;
            }
#pragma unroll
            for (int c = 0; c < W; c++)
                sum[c] = fmaf(factor[k], d[k][c], start[k] >= 0 ? old[k][c] : sum[c]);
        }
    }
    if (to) kd_store(to, sum);
}

template <class T, int W, bool WEIGHTED>
__global__ void __launch_bounds__(THREADS) sum_kernel(SumParams<T> p)
{
    for (int64_t piece = kd_first_row(); piece * PIECE<WEIGHTED> < p.n; piece += kd_row_step())
        for (int64_t u = kd_first_unit(); u < p.units; u += kd_unit_step())
            sum_piece<T, W, WEIGHTED>(p, piece, u * W);
}

/* How many pieces of `size` from `piece` on start inside `id`: those of sorted entries up to its last. */
template <class T>
__device__ int64_t heads_of(const SumParams<T> &p, int64_t piece, int64_t size, int32_t id)
{
    int64_t low = piece * size, high = p.n; /* ids[low] is id, ids[high] is not */
    while (low + 1 < high) {
        const int64_t middle = (low + high) / 2;
        if (p.ids[middle] == id)
            low = middle;
        else
            high = middle;
    }
    return low / size - piece + 1;
}

/* The block of the first piece that starts inside an id adds the heads of all to the id's row. */
template <class T, int W, bool WEIGHTED>
__global__ void __launch_bounds__(KD_WARP *SHARES) join_kernel(SumParams<T> p)
{
    KD_SHARED(float, share, [SHARES][KD_WARP][W]);
    constexpr int64_t SIZE = PIECE<WEIGHTED>;
    const int64_t piece = (int64_t)blockIdx.x + 1, first = piece * SIZE;
    const int32_t id = p.ids[first];
    if (id >= p.vocabulary || p.ids[first - 1] != id) return;
    if (piece > 1 && p.ids[first - SIZE - 1] == id) return;

    const int64_t heads = heads_of(p, piece, SIZE, id), each = (heads + SHARES - 1) / SHARES;
    const int64_t unit = (int64_t)blockIdx.y * KD_WARP + threadIdx.x, begin = threadIdx.y * each;
    const int64_t end = begin + each < heads ? begin + each : heads;
    float sum[W] = {};
    if (unit < p.units) {
#pragma unroll 4
        for (int64_t h = begin; h < end; h++) {
            float x[W];
            kd_load(x, p.head + (piece + h) * p.columns + unit * W);
#pragma unroll
            for (int c = 0; c < W; c++) sum[c] += x[c];
        }
    }
#pragma unroll
    for (int c = 0; c < W; c++) share[threadIdx.y][threadIdx.x][c] = sum[c];
    __syncthreads();
    if (threadIdx.y || unit >= p.units) return;
    float *to = p.dtable + id * p.dtable_stride + unit * W;
    kd_load(sum, to);
    for (int s = 0; s < SHARES; s++)
#pragma unroll
        for (int c = 0; c < W; c++) sum[c] += share[s][threadIdx.x][c];
    kd_store(to, sum);
}

/* ---- backward: launching ---------------------------------------------------------------------- */

struct Scratch {
    kd_tensor ids[2], entries[2], factor, counts, heads;
};

kd_status push_scratch(Scratch *s, kd_exec *exec, int64_t n, int64_t columns, bool weighted)
{
    const char *name = "embedding_backward.entries";
    for (int i = 0; i < 2; i++) {
        KD_TRY(kd_push(&s->ids[i], exec, "embedding_backward.ids", KD_I32, KD_SHAPE(n)));
        KD_TRY(kd_push(&s->entries[i], exec, name, KD_I32, KD_SHAPE(n)));
    }
    KD_TRY(
        kd_push(&s->factor, exec, "embedding_backward.factor", KD_F32, KD_SHAPE(weighted ? n : 0)));
    KD_TRY(kd_push(&s->counts, exec, "embedding_backward.counts", KD_I32,
                   KD_SHAPE(kd_ceil_div(n, TILE), DIGITS)));
    return kd_push(&s->heads, exec, "embedding_backward.heads", KD_F32,
                   KD_SHAPE(kd_ceil_div(n, weighted ? PIECE<true> : PIECE<false>), columns));
}

/* Leaves the sorted ids, their rows and, where there is one, their factors in p. */
template <class T>
kd_status sort(SumParams<T> *p, kd_exec *exec, const Scratch *s,
               const kd_embedding_backward_args *args)
{
    const bool weighted = kd_present(args->factor);
    const kd_grid grid = { dim3((unsigned)s->counts.shape[0]), dim3(THREADS) };
    PassParams pass = {};
    pass.ids = (const int32_t *)args->ids->data;
    pass.counts = (int32_t *)s->counts.data;
    pass.n = (int32_t)p->n;
    pass.tiles = (int32_t)s->counts.shape[0];
    pass.vocabulary = p->vocabulary;
    for (bool last = false; !last; pass.shift += 8) {
        const int to = pass.shift / 8 % 2;
        pass.sorted_ids = (int32_t *)s->ids[to].data;
        pass.sorted_entries = (int32_t *)s->entries[to].data;
        last = (int64_t)p->vocabulary >> (pass.shift + 8) == 0;
        if (last && weighted) {
            pass.factor = (const float *)args->factor->data;
            pass.sorted_factor = (float *)s->factor.data;
            pass.each = (int32_t)args->factor->shape[1];
        }
        KD_TRY(kd_launch(exec, "embedding_backward", count_kernel, grid, pass));
        KD_TRY(kd_launch(exec, "embedding_backward", place_kernel, grid, pass));
        pass.ids = pass.sorted_ids;
        pass.entries = pass.sorted_entries;
    }
    p->ids = pass.ids;
    p->rows = pass.entries;
    p->factor = pass.sorted_factor;
    return KD_OK;
}

template <class T, int W, bool WEIGHTED> kd_status launch_sums(kd_exec *exec, SumParams<T> p)
{
    const int64_t pieces = kd_ceil_div(p.n, PIECE<WEIGHTED>);
    p.units = p.columns / W;
    KD_TRY(kd_launch(exec, "embedding_backward", sum_kernel<T, W, WEIGHTED>,
                     kd_grid_rows(exec, pieces, p.units), p));
    if (pieces == 1) return KD_OK;
    const kd_grid grid = { dim3((unsigned)(pieces - 1), (unsigned)kd_ceil_div(p.units, KD_WARP)),
                           dim3(KD_WARP, SHARES) };
    return kd_launch(exec, "embedding_backward", join_kernel<T, W, WEIGHTED>, grid, p);
}

template <class T>
kd_status backward(kd_exec *exec, const kd_embedding_backward_args *args, const Scratch *s)
{
    const kd_tensor *dy = args->dy, *dtable = args->dtable;
    SumParams<T> p = { (const T *)dy->data,
                       (float *)dtable->data,
                       dy->stride[0],
                       dtable->stride[0],
                       0,
                       (float *)s->heads.data,
                       NULL,
                       NULL,
                       NULL,
                       kd_tensor_elements(args->ids),
                       dy->shape[1],
                       (int32_t)dtable->shape[0] };
    KD_TRY(sort(&p, exec, s, args));
    const bool aligned = kd_rows_aligned(dy, dtable);
    if (p.factor)
        return aligned ? launch_sums<T, 4, true>(exec, p) : launch_sums<T, 1, true>(exec, p);
    return aligned ? launch_sums<T, 4, false>(exec, p) : launch_sums<T, 1, false>(exec, p);
}

} // namespace

extern "C" kd_status kd_embedding_cuda(kd_exec *exec, const kd_embedding_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    return KD_BY_DTYPE(args->y->dtype, embedding, exec, args);
}

extern "C" kd_status kd_embedding_products_cuda(kd_exec *exec,
                                                const kd_embedding_products_args *args)
{
    if (kd_planning(exec) || kd_tensor_elements(args->y) == 0) return KD_OK;
    return KD_BY_DTYPE(args->x->dtype, products, exec, args);
}

extern "C" kd_status kd_embedding_backward_cuda(kd_exec *exec,
                                                const kd_embedding_backward_args *args)
{
    const kd_tensor *dy = args->dy, *dtable = args->dtable;
    const int64_t entries = kd_tensor_elements(args->ids);
    Scratch scratch;
    if (entries > INT32_MAX || dtable->shape[0] > INT32_MAX)
        return kd_fail(KD_ENOTSUP, "found %lld ids for a table of %lld, expected less than 2^31",
                       (long long)entries, (long long)dtable->shape[0]);
    KD_TRY(push_scratch(&scratch, exec, entries, dy->shape[1], kd_present(args->factor)));
    if (kd_planning(exec) || entries == 0 || kd_tensor_elements(dy) == 0) return KD_OK;
    return KD_BY_DTYPE(dy->dtype, backward, exec, args, &scratch);
}
