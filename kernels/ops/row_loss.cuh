/*
 * row_loss.cuh - the kernel of row_loss.cu: one row by one block, or by a cluster that holds it in
 * shared memory, over units of the row.
 */
#ifndef KD_ROW_LOSS_CUH
#define KD_ROW_LOSS_CUH

#include "common/cluster.cuh"
#include "ops/row_loss_terms.cuh"

namespace {

/* ---- operands and shared memory ---------------------------------------------------------------- */

struct Params {
    void *student;
    const void *teacher;
    int64_t student_stride, teacher_stride;
    bool student_aligned, teacher_aligned;
    int classes, columns;
    const int32_t *labels; /* NULL: absent, as weight and same_top */
    const float *weight;
    float *loss, *same_top;
    int64_t label_stride, weight_stride, loss_stride[2], same_top_stride;
    const kd_term_scalars *scalars;
    int ranks; /* blocks per row; more than one are a cluster */
    int count;
    bool extras;                                         /* some term reads kd_row_extra */
    int kind[KD_MAX_ROW_TERMS], index[KD_MAX_ROW_TERMS]; /* index: the term's in loss and scalars */
};

struct Term {
    kd_row_stats stats; /* a and b are 0 until they are known */
    float scale;        /* of the gradient */
    float squared;      /* of the value */
    int kind, group, index;
};

/* What all threads read of a row; `group` counts distinct temperatures, terms are sorted by it. */
template <class S> struct Facts {
    kd_softmax softmax[S::terms];
    Term term[S::terms];
    bool reads_teacher[S::terms]; /* of a group */
    int groups;
    bool rest, asks_top; /* what the terms read besides: kd_row_extra */
    int top;             /* the teacher's first largest class; INT32_MAX: none, or nobody asks */
};

template <class S> struct State {
    Facts<S> facts;
    kd_partials partials;
    /* Of this block; the others of the cluster read them, so each is written once per row. */
    float most[4];              /* maxima of student and teacher, minus their minima */
    double sum[2][KD_MAX_SUMS]; /* of exponentials; of terms */
    int top[2];                 /* first largest class of student and teacher */
    /* Of the row, where blocks are a cluster. */
    float row_most[4];
    double row_sum[2][KD_MAX_SUMS];
    int row_top[2];

    float label_logit[2]; /* of student and teacher */
    bool poisoned;        /* a temperature is none */
    bool need;            /* some gradient reads its sums */
    bool clean;           /* no class of either side is dead at any temperature */
};

template <class S, bool> struct own_of {
    typedef kd_own_registers<2 * S::terms> type;
};
template <class S> struct own_of<S, false> {
    typedef kd_own_shared type;
};

template <class T, class U> struct Row {
    kd_logits<T> student;
    kd_logits<U> teacher;
    kd_units units;
    int label; /* -1: none */
    int n;
    int rank; /* of the block among those of the row */
};

/* ---- sweeps ----------------------------------------------------------------------------------- */

/* Takes a unit into what the thread has seen; own[slot + g] are its sums at temperature g.  Of where
 * the classes without the label are wanted, the label's logit counts in the minimum alone. */
template <class S, class Own>
__device__ __forceinline__ void see(kd_seen &seen, Own &own, int slot, const Facts<S> &facts,
                                    bool teacher, float (&z)[KD_UNIT], const kd_units &units,
                                    int unit, int label)
{
    const int groups = S::fixed ? (teacher ? 1 : S::terms) : facts.groups;
    const int count = units.classes - unit * KD_UNIT;
    float least = z[0];
#pragma unroll
    for (int i = 1; i < KD_UNIT; i++) least = fminf(least, z[i]);
    if (S::extras && facts.rest) {
#pragma unroll
        for (int i = 0; i < KD_UNIT; i++) z[i] = unit * KD_UNIT + i == label ? -INFINITY : z[i];
    }
    float most = z[0];
#pragma unroll
    for (int i = 1; i < KD_UNIT; i++) most = fmaxf(most, z[i]);
    if (count < KD_UNIT) {
        least = z[0];
#pragma unroll
        for (int i = 1; i < KD_UNIT; i++) least = i < count ? fminf(least, z[i]) : least;
    }
    seen.min = fminf(seen.min, least);
    if (most > seen.max) {
#pragma unroll(S::unroll)
        for (int g = 0; g < groups; g++)
            kd_own(own, slot + g) *= kd_exp2((seen.max - most) * facts.softmax[g].scale);
        seen.max = most;
        seen.unit = unit;
    }
    const float base = seen.max == -INFINITY ? 0.0f : seen.max; /* nothing but dead classes: 0 */
#pragma unroll(S::unroll)
    for (int g = 0; g < groups; g++) {
        if (g >= facts.groups || (teacher && !(S::teacher && facts.reads_teacher[g]))) continue;
        float e[KD_UNIT];
#pragma unroll
        for (int i = 0; i < KD_UNIT; i++) e[i] = kd_exp2((z[i] - base) * facts.softmax[g].scale);
        kd_own(own, slot + g) += kd_unit_sum(e);
    }
}

/* A unit of both sides under way.  From global memory a thread fetches its next before it works on
 * one, and both sides before it waits for either: what keeps the memory busy. */
template <class T, class U> struct Fetched {
    kd_raw_unit<T> student;
    kd_raw_unit<U> teacher;
};

template <bool STAGED, class T, class U>
__device__ __forceinline__ void fetch(Fetched<T, U> &raw, const Row<T, U> &row, bool teacher,
                                      int unit)
{
    kd_fetch_unit<STAGED>(raw.student, row.student, row.units, unit);
    if (teacher) kd_fetch_unit<STAGED>(raw.teacher, row.teacher, row.units, unit);
}

/* The classes of `unit`; AHEAD: which is on its way, as `next` (negative: none) is afterwards. */
template <bool STAGED, bool AHEAD, class T, class U>
__device__ __forceinline__ void load_unit(float (&z)[KD_UNIT], float (&t)[KD_UNIT],
                                          Fetched<T, U> &under_way, const Row<T, U> &row,
                                          bool teacher, int unit, int next, float fill)
{
    Fetched<T, U> now = {};
    if (AHEAD) now = under_way;
    kd_load_unit<STAGED, AHEAD>(z, now.student, row.student, row.units, unit, fill);
    if (teacher) kd_load_unit<STAGED, AHEAD>(t, now.teacher, row.teacher, row.units, unit, fill);
    if (AHEAD && next >= 0) fetch<STAGED>(under_way, row, teacher, next);
}

template <bool STAGED, class S, class T, class U, class Own>
__device__ __forceinline__ void sweep_statistics(kd_seen (&seen)[2], Own &own, const Row<T, U> &row,
                                                 const Facts<S> &facts, int teacher_slot)
{
    constexpr bool AHEAD = !STAGED;
    const bool teacher = row.teacher.data != NULL;
    const int step = (int)blockDim.x;
    int unit = kd_unit_at(row.units, 0);
    Fetched<T, U> raw = {};
    if (AHEAD && unit < row.units.end) fetch<STAGED>(raw, row, teacher, unit);
    for (; unit < row.units.end; unit += step) {
        float z[KD_UNIT], t[KD_UNIT];
        const int next = unit + step < row.units.end ? unit + step : -1;
        load_unit<STAGED, AHEAD>(z, t, raw, row, teacher, unit, next, -INFINITY);
        see<S>(seen[0], own, 0, facts, false, z, row.units, unit, row.label);
        if (teacher) see<S>(seen[1], own, teacher_slot, facts, true, t, row.units, unit, row.label);
    }
}

/* The sums of terms [first, end) (own[2 j], own[2 j + 1]), the gradient, or both. */
template <bool STAGED, bool CLEAN, class S, class T, class U, class Own>
__device__ __forceinline__ void sweep_terms(Own &own, const Row<T, U> &row, const Facts<S> &facts,
                                            int first, int end, bool sums, bool gradient,
                                            bool backward)
{
    const float fill = CLEAN ? LOWEST : -INFINITY;
    constexpr bool AHEAD = !STAGED && S::ahead && CLEAN == S::clean;
    const bool teacher = S::fixed ? S::teacher : row.teacher.data != NULL;
    const int mine = row.units.mine;
    const int step = backward ? -(int)blockDim.x : (int)blockDim.x;
    int unit = kd_unit_at(row.units, backward ? mine - 1 : 0);
    Fetched<T, U> raw = {};
    if (AHEAD && mine > 0) fetch<STAGED>(raw, row, teacher, unit);
    for (int left = mine; left > 0; left--, unit += step) {
        float z[KD_UNIT], t[KD_UNIT] = {}, out[KD_UNIT] = {};
        load_unit<STAGED, AHEAD>(z, t, raw, row, teacher, unit, left > 1 ? unit + step : -1, fill);
        Classes c;
        c.label = row.label - unit * KD_UNIT; /* -1: none, of any unit */
        c.top = !S::extras ? -1 : facts.top - unit * KD_UNIT;
        int group = -1;
#pragma unroll(S::unroll)
        for (int j = first; j < end; j++) {
            const Term &term = facts.term[j];
            const int kind = S::kind(j, term.kind);
            if (j == first || term.group != group)
                fill_classes<CLEAN>(c, z, t, facts.softmax[term.group]);
            group = term.group;
            kd_row_stats stats = term.stats;
            if (CLEAN) stats.option = stats.a = stats.b = 0.0f; /* see `need` */
            if (sums)
                add_sums<S::extras>(kd_own(own, 2 * j), kd_own(own, 2 * j + 1), kind, c, stats);
            if (gradient) add_gradient<S::extras>(out, kind, c, stats, term.scale);
        }
        if (gradient) kd_store_unit(row.student, unit, 0, row.units.classes, out);
    }
}

/* ---- between sweeps ---------------------------------------------------------------------------- */

/* One thread: the terms of a row, sorted by temperature. */
template <class S> __device__ void plan_terms(State<S> &state, const Params &p, float weight)
{
    const int count = S::fixed ? S::terms : p.count;
    unsigned placed = 0;
    int at = 0, groups = 0;
    state.poisoned = false;
    state.top[0] = state.top[1] = state.facts.top = INT32_MAX;
    state.facts.rest = state.facts.asks_top = false;
    for (int j = 0; j < count; j++) {
        if (placed >> j & 1u) continue;
        const float temperature = p.scalars[p.index[j]].temperature, inv_t = 1.0f / temperature;
        state.poisoned |= !(temperature > 0.0f) || temperature == INFINITY;
        kd_softmax &softmax = state.facts.softmax[groups];
        softmax = {};
        softmax.inv_t = inv_t;
        softmax.scale = (float)(1.4426950408889634 / (double)temperature);
        state.facts.reads_teacher[groups] = false;
        for (int i = j; i < count; i++) {
            const kd_term_scalars s = p.scalars[p.index[i]];
            if (s.temperature != temperature && i != j) continue;
            const int kind = S::kind(i, p.kind[i]);
            Term &term = state.facts.term[at++];
            term = {};
            term.stats.option = s.option;
            term.stats.option2 = s.option2;
            term.stats.inv_t = inv_t;
            term.scale = weight * s.scale * s.t_squared * inv_t;
            term.squared = weight * s.t_squared;
            term.kind = kind;
            term.group = groups;
            term.index = p.index[i];
            state.facts.reads_teacher[groups] |= reads_teacher(kind);
            state.facts.rest |= extra_of(kind) == KD_EXTRA_REST;
            state.facts.asks_top |= extra_of(kind) == KD_EXTRA_TOP;
            placed |= 1u << i;
        }
        groups++;
    }
    state.facts.groups = groups;
}

/* Whether a class is dead that is as low as `min`. */
__device__ __forceinline__ bool dies(float min, float max, float inv_t)
{
    return (min - max) * inv_t == -INFINITY;
}

__device__ __forceinline__ bool all_live(float min, float max, float inv_t)
{
    return (fminf(min, LOWEST) - max) * inv_t > -INFINITY;
}

/* A row's softmax from that of its `rest`, whose maximum and sum these are, and its label's logit. */
__device__ __forceinline__ kd_side with_label(float max, double sum, float label, float scale)
{
    const float most = fmaxf(max, label);
    const double rest = max == -INFINITY ? 0.0 : sum * (double)kd_exp2((max - most) * scale);
    return kd_side_of(most, rest + (double)kd_exp2((label - most) * scale), KD_ROW_LOG_FLOOR);
}

__device__ __forceinline__ kd_row_rest rest_of(float max, double sum, const kd_side &row,
                                               float inv_t)
{
    if (max == -INFINITY) return { max, 0.0f, KD_ROW_LOG_FLOOR };
    const float log_sum = logf((float)sum);
    return { max, log_sum, (max - row.max) * inv_t + log_sum - row.log_sum };
}

__device__ __forceinline__ float log_probability(float z, const kd_side &side, float inv_t)
{
    const float x = (z - side.max) * inv_t;
    return x == -INFINITY ? side.dead : x - side.log_sum;
}

/* One side of a row at one temperature; `rest`: max and sum are without the label. */
__device__ __forceinline__ kd_side side_of(float max, double sum, float label, bool rest,
                                           float scale)
{
    return rest ? with_label(max, sum, label, scale) : kd_side_of(max, sum, KD_ROW_LOG_FLOOR);
}

/* One thread: softmaxes and what of the terms is known without their sums. */
template <class S>
__device__ void finish_statistics(State<S> &state, const float *most, const double *sum, int label,
                                  bool teacher, int count)
{
    Facts<S> &facts = state.facts;
    const bool rest = S::extras && facts.rest;
    const float *of_label = state.label_logit;
    state.need = false;
    state.clean = true;
    for (int g = 0; g < facts.groups; g++) {
        kd_softmax &at = facts.softmax[g];
        at.student = side_of(most[0], sum[g], of_label[0], rest, at.scale);
        state.clean &= all_live(-most[2], most[0], at.inv_t);
        if (!teacher || !facts.reads_teacher[g]) continue;
        at.teacher = side_of(most[1], sum[count + g], of_label[1], rest, at.scale);
        state.clean &= all_live(-most[3], most[1], at.inv_t);
    }
    for (int j = 0; j < count; j++) {
        Term &term = facts.term[j];
        const kd_softmax &at = facts.softmax[term.group];
        const kd_row_need need = need_of(S::kind(j, term.kind));
        term.stats.lse = at.student.max * at.inv_t + at.student.log_sum;
        if (label >= 0) {
            const float x = (of_label[0] - at.student.max) * at.inv_t;
            term.stats.log_q_label = log_probability(of_label[0], at.student, at.inv_t);
            term.stats.label_live = x == -INFINITY ? 0.0f : 1.0f;
        }
        if (rest && facts.reads_teacher[term.group]) {
            term.stats.log_p_label = log_probability(of_label[1], at.teacher, at.inv_t);
            term.stats.rest_q = rest_of(most[0], sum[term.group], at.student, at.inv_t);
            term.stats.rest_p = rest_of(most[1], sum[count + term.group], at.teacher, at.inv_t);
        }
        state.need |= need == KD_SUMS_ALWAYS ||
                      (need == KD_SUMS_OPTION && term.stats.option != 0.0f) ||
                      (need == KD_SUMS_DEAD && dies(-most[2], at.student.max, at.inv_t));
    }
}

/* ---- results ---------------------------------------------------------------------------------- */

template <class T, class U>
__device__ __forceinline__ void write_loss(const Params &p, const Row<T, U> &row, int term,
                                           float loss)
{
    p.loss[term * p.loss_stride[0] + row.n * p.loss_stride[1]] = loss;
}

template <class T, class U>
__device__ __forceinline__ void write_same_top(const Params &p, const Row<T, U> &row, bool same)
{
    if (p.same_top && row.rank == 0 && threadIdx.x == 0)
        p.same_top[row.n * p.same_top_stride] = same ? 1.0f : 0.0f;
}

template <class T, class U>
__device__ __forceinline__ void write_padding(const Params &p, const Row<T, U> &row)
{
    if (row.rank == p.ranks - 1) kd_fill_columns(row.student, p.classes, p.columns, 0.0f);
}

/* A row that is not computed: ignored (0) or invalid (NaN). */
template <class T, class U>
__device__ __forceinline__ void write_constant(const Params &p, const Row<T, U> &row, float value)
{
    kd_fill_columns(row.student, row.units.begin * KD_UNIT, min(row.units.end * KD_UNIT, p.classes),
                    value);
    write_padding(p, row);
    if (row.rank == 0 && (int)threadIdx.x < p.count) write_loss(p, row, threadIdx.x, value);
    write_same_top(p, row, false);
}

/* Every thread that has the row's largest class looks for it in the unit it remembers. */
template <bool STAGED, class T>
__device__ __forceinline__ void find_top(int &top, const kd_logits<T> &logits,
                                         const kd_units &units, const kd_seen &seen, float max)
{
    if (seen.unit < 0 || seen.max != max) return;
    float z[KD_UNIT];
    kd_raw_unit<T> raw = {};
    kd_load_unit<STAGED, false>(z, raw, logits, units, seen.unit, -INFINITY);
    int first = KD_UNIT;
#pragma unroll
    for (int i = KD_UNIT - 1; i >= 0; i--) first = z[i] == max ? i : first;
    atomicMin(&top, seen.unit * KD_UNIT + first);
}

/* ---- blocks of a row --------------------------------------------------------------------------- */

/* Maxima, sums and first places, of two blocks. */
__device__ __forceinline__ float join(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double join(double a, double b) { return a + b; }
__device__ __forceinline__ int join(int a, int b) { return min(a, b); }

/* What the blocks of a row have at `mine`, put together in the order of their ranks by one thread per
 * element; `all` of the block's threads go on with `to`. */
template <bool STAGED, class X>
__device__ __forceinline__ const X *across(X *to, const X *mine, int count, int ranks)
{
    if (!STAGED || ranks == 1) return mine;
    kd_cluster_sync();
    if ((int)threadIdx.x < count) {
        X x = *kd_cluster_peer(mine + threadIdx.x, 0);
        for (int rank = 1; rank < ranks; rank++)
            x = join(x, *kd_cluster_peer(mine + threadIdx.x, rank));
        to[threadIdx.x] = x;
    }
    __syncthreads();
    return to;
}

/* Sums relative to the thread's maximum become sums relative to the row's. */
template <class S, class Own>
__device__ __forceinline__ void rescale(Own &own, int slot, const Facts<S> &facts, float from,
                                        float to)
{
    const int groups = S::fixed ? S::terms : facts.groups;
#pragma unroll(S::unroll)
    for (int g = 0; g < groups; g++)
        if (g < facts.groups)
            kd_own(own, slot + g) *= kd_exp2((from - to) * facts.softmax[g].scale);
}

template <bool STAGED, class S, class T, class U, class Own>
__device__ __forceinline__ void find_statistics(State<S> &state, Own &own, const Row<T, U> &row,
                                                const Params &p)
{
    const int count = S::fixed ? S::terms : p.count;
    kd_seen seen[2] = { { -INFINITY, INFINITY, -1 }, { -INFINITY, INFINITY, -1 } };
    sweep_statistics<STAGED>(seen, own, row, state.facts, count);

    const float of_thread[4] = { seen[0].max, seen[1].max, -seen[0].min, -seen[1].min };
    kd_reduce_max(state.most, state.partials, of_thread);
    const float *most = across<STAGED>(state.row_most, state.most, 4, p.ranks);
    const bool tops = p.same_top || (S::extras && state.facts.asks_top);
    const bool rest = S::extras && state.facts.rest;
    if (tops) {
        const float *of_label = state.label_logit;
        const float largest[2] = { rest ? fmaxf(most[0], of_label[0]) : most[0],
                                   rest ? fmaxf(most[1], of_label[1]) : most[1] };
        find_top<STAGED>(state.top[0], row.student, row.units, seen[0], largest[0]);
        find_top<STAGED>(state.top[1], row.teacher, row.units, seen[1], largest[1]);
        for (int i = 0; i < 2; i++)
            if (rest && row.rank == 0 && threadIdx.x == 0 && of_label[i] == largest[i] &&
                largest[i] > -INFINITY)
                atomicMin(&state.top[i], row.label);
    }
    rescale(own, 0, state.facts, seen[0].max, most[0]);
    if (S::teacher) rescale(own, count, state.facts, seen[1].max, most[1]);
    kd_reduce_sums<2 * S::unroll>(state.sum[0], state.partials, own, 2 * count);
    const double *sum = across<STAGED>(state.row_sum[0], state.sum[0], 2 * count, p.ranks);
    if (tops) {
        const int *top = across<STAGED>(state.row_top, state.top, 2, p.ranks);
        write_same_top(p, row, top[0] == top[1] && top[0] < INT32_MAX);
        if (threadIdx.x == 0) state.facts.top = top[1];
    }
    if (threadIdx.x == 0)
        finish_statistics(state, most, sum, row.label, row.teacher.data != NULL, count);
    __syncthreads();
}

template <class S, class Own> __device__ __forceinline__ void clear(Own &own, int count)
{
#pragma unroll(2 * S::unroll)
    for (int i = 0; i < count; i++) kd_own(own, i) = 0.0f;
}

/* What a sweep for the sums has left in own, into the terms. */
template <bool STAGED, class S, class Own>
__device__ __forceinline__ void finish_sums(State<S> &state, Own &own, int count, int ranks)
{
    kd_reduce_sums<2 * S::unroll>(state.sum[1], state.partials, own, 2 * count);
    const double *sum = across<STAGED>(state.row_sum[1], state.sum[1], 2 * count, ranks);
    const int j = (int)threadIdx.x;
    if (j < count) {
        state.facts.term[j].stats.a = (float)sum[2 * j];
        state.facts.term[j].stats.b = (float)sum[2 * j + 1];
    }
    __syncthreads();
}

template <bool STAGED, class S, class T, class U, class Own>
__device__ __forceinline__ void run_row(State<S> &state, Own &own, const Row<T, U> &row,
                                        const Params &p)
{
    const int count = S::fixed ? S::terms : p.count;
    clear<S>(own, 2 * count);
    find_statistics<STAGED>(state, own, row, p);
    clear<S>(own, 2 * count);
    const bool clean = S::clean && state.clean && !state.need;
    const bool need = S::fixed ? !clean : state.need;
    if (need) {
        if (S::clean) /* seldom: registers before time */
#pragma unroll
            for (int j = 0; j < S::unroll; j++)
                sweep_terms<STAGED, false>(own, row, state.facts, j, j + 1, true, false, true);
        else
            sweep_terms<STAGED, false>(own, row, state.facts, 0, count, true, false, true);
        finish_sums<STAGED>(state, own, count, p.ranks);
    }
    if (S::clean && clean)
        sweep_terms<STAGED, true>(own, row, state.facts, 0, count, true, true, true);
    else
        sweep_terms<STAGED, false>(own, row, state.facts, 0, count, !S::fixed && !need, true,
                                   !need);
    if (!need) finish_sums<STAGED>(state, own, count, p.ranks);
    if (row.rank == 0 && (int)threadIdx.x < count) {
        const Term &term = state.facts.term[threadIdx.x];
        write_loss(p, row, term.index, term.squared * value_of(term.kind, term.stats));
    }
    write_padding(p, row);
    if (STAGED && p.ranks > 1) kd_cluster_sync(); /* until nobody reads this block's sums */
}

/* ---- the kernel ------------------------------------------------------------------------------- */

template <class T>
__device__ __forceinline__ kd_logits<T> logits_of(const void *data, int64_t stride, bool aligned,
                                                  int64_t n)
{
    return { data ? (T *)data + n * stride : NULL, NULL, aligned };
}

template <bool STAGED, class T, class U>
__device__ __forceinline__ Row<T, U> row_of(const Params &p)
{
    const int rank = STAGED ? (int)blockIdx.x % p.ranks : 0;
    const int n = STAGED ? (int)blockIdx.x / p.ranks : (int)blockIdx.x;
    const int units = (p.classes + KD_UNIT - 1) / KD_UNIT;
    const int slice = STAGED ? (units + p.ranks - 1) / p.ranks : units;
    const int begin = min(rank * slice, units), end = min(begin + slice, units);
    return { logits_of<T>(p.student, p.student_stride, p.student_aligned, n),
             logits_of<U>(p.teacher, p.teacher_stride, p.teacher_aligned, n),
             kd_units_of(begin, end, p.classes),
             p.labels ? p.labels[n * p.label_stride] : -1,
             n,
             rank };
}

/* Bytes of dynamic shared memory: sums of every thread where there may be any terms, then the units
 * of both sides. */
template <class S> __host__ __device__ size_t bytes_of_sums(int count, int threads)
{
    return S::fixed ? 0 : 2 * (size_t)count * (size_t)threads * sizeof(float);
}

/* Of a block that holds its units in shared memory: three of them fill a multiprocessor. */
constexpr int STAGED_THREADS = 256;

template <bool STAGED, class S, class T, class U>
__global__ void __launch_bounds__(STAGED ? STAGED_THREADS : S::threads,
                                  STAGED &&S::threads > 512 ? 3 : 1) row_loss_kernel(Params p)
{
    KD_SHARED(State<S>, shared, [1]);
    State<S> &state = shared[0];
    Row<T, U> row = row_of<STAGED, T, U>(p);
    const float weight = p.weight ? p.weight[row.n * p.weight_stride] : 1.0f;
    if ((p.labels && row.label == -1) || weight == 0.0f) {
        write_constant(p, row, 0.0f);
        return;
    }
    typename own_of<S, S::fixed>::type own;
    if (STAGED || !S::fixed) {
        KD_DYN_SHARED(unsigned char, dynamic);
        kd_own_open(own, (float *)dynamic);
        if (STAGED) {
            T *student = (T *)(dynamic + bytes_of_sums<S>(p.count, (int)blockDim.x));
            U *teacher = (U *)(student + (row.units.end - row.units.begin) * KD_UNIT);
            kd_stage_units(row.student, student, row.units);
            if (row.teacher.data) kd_stage_units(row.teacher, teacher, row.units);
            kd_copy_commit();
        }
    }
    const bool no_label = p.labels && (row.label < 0 || row.label >= p.classes);
    if (threadIdx.x == 0) {
        plan_terms(state, p, weight);
        const bool labelled = row.label >= 0 && !no_label;
        if (labelled) state.label_logit[0] = kd_load(row.student.data + row.label);
        if (S::extras && labelled && row.teacher.data)
            state.label_logit[1] = kd_load(row.teacher.data + row.label);
    }
    if (STAGED) kd_copy_wait<0>();
    __syncthreads();
    if (state.poisoned || no_label)
        write_constant(p, row, NAN);
    else
        run_row<STAGED>(state, own, row, p);
}

} // namespace

#endif
