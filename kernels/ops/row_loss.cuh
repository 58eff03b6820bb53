/*
 * row_loss.cuh - the kernel of row_loss.cu: one row by one block, over units of the row.
 */
#ifndef KD_ROW_LOSS_CUH
#define KD_ROW_LOSS_CUH

#include "common/row_softmax.cuh"

#define KD_ROW_FN     static __device__ __forceinline__
#define KD_ROW_LOG(x) logf(x)
#define KD_ROW_ABS(x) fabsf(x)

#include "ops/rows/cross_entropy.h"
#include "ops/rows/forward_kl.h"
#include "ops/rows/jsd.h"
#include "ops/rows/reverse_kl.h"
#include "ops/rows/skew_kl.h"
#include "ops/rows/skew_reverse_kl.h"
#include "ops/rows/total_variation.h"
#include "ops/rows/z_loss.h"

namespace {

/* ---- which terms ------------------------------------------------------------------------------ */

/* In place of a kind: any terms, told at run time; no second term. */
enum { ANY = -1, NONE = -2 };

constexpr bool reads_teacher(int kind)
{
    switch (kind) {
#define KD_ROW(term, teacher, ...)                                                                 \
    case KD_ROW_##term:                                                                            \
        return teacher;
#include "ops/row_list.h"
#undef KD_ROW
    default: return false;
    }
}

constexpr kd_row_need need_of(int kind)
{
    switch (kind) {
#define KD_ROW(term, teacher, label, sums, ...)                                                    \
    case KD_ROW_##term:                                                                            \
        return sums;
#include "ops/row_list.h"
#undef KD_ROW
    default: return KD_SUMS_NEVER;
    }
}

/* The terms of one instantiation.  Of two, the second reads no teacher. */
template <int FIRST, int SECOND> struct Set {
    static constexpr bool fixed = FIRST != ANY;
    static constexpr int terms = !fixed ? KD_MAX_ROW_TERMS : SECOND == NONE ? 1 : 2;
    static constexpr int unroll = fixed ? terms : 1;
    static constexpr bool teacher = !fixed || reads_teacher(FIRST);
    static constexpr bool always =
        need_of(FIRST) == KD_SUMS_ALWAYS || need_of(SECOND) == KD_SUMS_ALWAYS;
    static constexpr bool clean = fixed && !always; /* worth a sweep of its own for clean rows */
    /* Threads of a block, so that two of 512 or one of 1024 have what registers they need. */
    static constexpr int threads = !fixed || FIRST == KD_ROW_jsd ? 512 : 1024;
    static __device__ __forceinline__ int kind(int j, int told)
    {
        return !fixed ? told : j == 0 ? FIRST : SECOND;
    }
};

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
    int count;
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
};

template <class S> struct State {
    Facts<S> facts;
    kd_reduction reduction;
    float label_logit;
    int top[2];    /* first largest class of student and teacher */
    bool poisoned; /* a temperature is none */
    bool need;     /* some gradient reads its sums */
    bool clean;    /* no class of either side is dead at any temperature */
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
};

/* ---- one unit at one temperature --------------------------------------------------------------- */

struct Classes {
    float log_q[KD_UNIT], q[KD_UNIT], log_p[KD_UNIT], p[KD_UNIT], live[KD_UNIT];
    int label; /* which of them is the row's label; any other number: none */
};

/* In a CLEAN row nothing is dead, and what fills up the last unit is finite and has probability 0. */
constexpr float LOWEST = -1e30f;

template <bool CLEAN>
__device__ __forceinline__ void fill_side(float (&log_x)[KD_UNIT], float (&x)[KD_UNIT],
                                          float (&live)[KD_UNIT], const float (&z)[KD_UNIT],
                                          const kd_side &side, const kd_softmax &softmax)
{
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++) {
        const float from_max = z[i] - side.max, tempered = from_max * softmax.inv_t;
        const bool dead = !CLEAN && tempered == -INFINITY;
        log_x[i] = dead ? side.dead : tempered - side.log_sum;
        x[i] = kd_exp2(fmaf(from_max, softmax.scale, -side.log2_sum));
        live[i] = dead ? 0.0f : 1.0f;
    }
}

template <bool CLEAN>
__device__ __forceinline__ void fill_classes(Classes &c, const float (&z)[KD_UNIT],
                                             const float (&t)[KD_UNIT], const kd_softmax &softmax)
{
    float unused[KD_UNIT];
    fill_side<CLEAN>(c.log_q, c.q, c.live, z, softmax.student, softmax);
    fill_side<CLEAN>(c.log_p, c.p, unused, t, softmax.teacher, softmax);
}

__device__ __forceinline__ kd_row_class class_at(const Classes &c, int i)
{
    return { c.log_q[i], c.q[i], c.log_p[i], c.p[i], c.live[i], i == c.label ? 1.0f : 0.0f };
}

__device__ __forceinline__ void add_sums(float &a, float &b, int kind, const Classes &c,
                                         float option)
{
    float a_of[KD_UNIT], b_of[KD_UNIT];
    switch (kind) {
#define KD_ROW(term, ...)                                                                          \
    case KD_ROW_##term:                                                                            \
        _Pragma("unroll") for (int i = 0; i < KD_UNIT; i++)                                        \
        {                                                                                          \
            const kd_row_sums share = kd_row_##term##_sums(class_at(c, i), option);                \
            a_of[i] = share.a;                                                                     \
            b_of[i] = share.b;                                                                     \
        }                                                                                          \
        break;
#include "ops/row_list.h"
#undef KD_ROW
    default: return;
    }
    a += kd_unit_sum(a_of);
    b += kd_unit_sum(b_of);
}

__device__ __forceinline__ void add_gradient(float (&gradient)[KD_UNIT], int kind, const Classes &c,
                                             const kd_row_stats &stats, float scale)
{
    switch (kind) {
#define KD_ROW(term, ...)                                                                          \
    case KD_ROW_##term:                                                                            \
        _Pragma("unroll") for (int i = 0; i < KD_UNIT; i++)                                        \
        {                                                                                          \
            const float g = kd_row_##term##_gradient(class_at(c, i), stats);                       \
            gradient[i] += c.live[i] == 0.0f ? 0.0f : scale * g;                                   \
        }                                                                                          \
        break;
#include "ops/row_list.h"
#undef KD_ROW
    default: return;
    }
}

__device__ __forceinline__ float value_of(int kind, const kd_row_stats &stats)
{
    switch (kind) {
#define KD_ROW(term, ...)                                                                          \
    case KD_ROW_##term:                                                                            \
        return kd_row_##term##_value(stats);
#include "ops/row_list.h"
#undef KD_ROW
    default: return NAN;
    }
}

/* ---- sweeps ----------------------------------------------------------------------------------- */

/* Takes a unit into what the thread has seen; own[slot + g] are its sums at temperature g. */
template <class S, class Own>
__device__ __forceinline__ void see(kd_seen &seen, Own &own, int slot, const Facts<S> &facts,
                                    bool teacher, const float (&z)[KD_UNIT], const kd_units &units,
                                    int unit)
{
    const int groups = S::fixed ? (teacher ? 1 : S::terms) : facts.groups;
    const int count = units.classes - unit * KD_UNIT;
    float most = z[0], least = z[0];
#pragma unroll
    for (int i = 1; i < KD_UNIT; i++) {
        most = fmaxf(most, z[i]);
        least = fminf(least, z[i]);
    }
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

template <bool STAGED, class S, class T, class U, class Own>
__device__ __forceinline__ void sweep_statistics(kd_seen (&seen)[2], Own &own, const Row<T, U> &row,
                                                 const Facts<S> &facts, int teacher_slot)
{
    for (int i = 0; i < row.units.mine; i++) {
        const int unit = kd_unit_at(row.units, i);
        float z[KD_UNIT], t[KD_UNIT];
        kd_load_unit<STAGED>(z, row.student, row.units, unit, -INFINITY);
        if (row.teacher.data) kd_load_unit<STAGED>(t, row.teacher, row.units, unit, -INFINITY);
        see<S>(seen[0], own, 0, facts, false, z, row.units, unit);
        if (row.teacher.data) see<S>(seen[1], own, teacher_slot, facts, true, t, row.units, unit);
    }
}

/* The sums of every term (own[2 j], own[2 j + 1]), the gradient, or both. */
template <bool STAGED, bool CLEAN, class S, class T, class U, class Own>
__device__ __forceinline__ void sweep_terms(Own &own, const Row<T, U> &row, const Facts<S> &facts,
                                            int count, bool sums, bool gradient, bool backward)
{
    const float fill = CLEAN ? LOWEST : -INFINITY;
    for (int i = 0; i < row.units.mine; i++) {
        const int unit = kd_unit_at(row.units, backward ? row.units.mine - 1 - i : i);
        float z[KD_UNIT], t[KD_UNIT] = {}, out[KD_UNIT] = {};
        kd_load_unit<STAGED>(z, row.student, row.units, unit, fill);
        if (S::fixed ? S::teacher : row.teacher.data != NULL)
            kd_load_unit<STAGED>(t, row.teacher, row.units, unit, fill);
        Classes c;
        c.label = row.label < 0 ? -1 : row.label - unit * KD_UNIT;
        int group = -1;
#pragma unroll(S::unroll)
        for (int j = 0; j < count; j++) {
            const Term &term = facts.term[j];
            const int kind = S::kind(j, term.kind);
            if (j == 0 || term.group != group)
                fill_classes<CLEAN>(c, z, t, facts.softmax[S::fixed ? j : term.group]);
            group = term.group;
            kd_row_stats stats = term.stats;
            if (CLEAN) stats.option = stats.a = stats.b = 0.0f; /* see `need` */
            if (sums) add_sums(kd_own(own, 2 * j), kd_own(own, 2 * j + 1), kind, c, stats.option);
            if (gradient) add_gradient(out, kind, c, stats, term.scale);
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
    state.top[0] = state.top[1] = INT32_MAX;
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
            term.scale = weight * s.scale * s.t_squared * inv_t;
            term.squared = weight * s.t_squared;
            term.kind = kind;
            term.group = groups;
            term.index = p.index[i];
            state.facts.reads_teacher[groups] |= reads_teacher(kind);
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

/* One thread: softmaxes and what of the terms is known without their sums.  most: the largest of
 * student and teacher, then minus their smallest. */
template <class S>
__device__ void finish_statistics(State<S> &state, int label, bool teacher, int count)
{
    Facts<S> &facts = state.facts;
    const float *most = state.reduction.most;
    const double *sum = state.reduction.sum;
    state.need = false;
    state.clean = true;
    for (int g = 0; g < facts.groups; g++) {
        kd_softmax &at = facts.softmax[g];
        at.student = kd_side_of(most[0], sum[g], KD_ROW_LOG_FLOOR);
        state.clean &= all_live(-most[2], most[0], at.inv_t);
        if (!teacher || !facts.reads_teacher[g]) continue;
        at.teacher = kd_side_of(most[1], sum[count + g], KD_ROW_LOG_FLOOR);
        state.clean &= all_live(-most[3], most[1], at.inv_t);
    }
    for (int j = 0; j < count; j++) {
        Term &term = facts.term[j];
        const kd_softmax &at = facts.softmax[term.group];
        const kd_row_need need = need_of(S::kind(j, term.kind));
        term.stats.lse = most[0] * at.inv_t + at.student.log_sum;
        if (label >= 0) {
            const float x = (state.label_logit - most[0]) * at.inv_t;
            term.stats.log_q_label = x == -INFINITY ? at.student.dead : x - at.student.log_sum;
            term.stats.label_live = x == -INFINITY ? 0.0f : 1.0f;
        }
        state.need |= need == KD_SUMS_ALWAYS ||
                      (need == KD_SUMS_OPTION && term.stats.option != 0.0f) ||
                      (need == KD_SUMS_DEAD && dies(-most[2], most[0], at.inv_t));
    }
}

/* ---- results ---------------------------------------------------------------------------------- */

/* The row's place in `loss`, but for the term. */
__device__ __forceinline__ float *loss_of(const Params &p, int64_t n)
{
    return p.loss + n * p.loss_stride[1];
}

/* A row that is not computed: ignored (0) or invalid (NaN). */
template <class T>
__device__ __forceinline__ void write_constant(const kd_logits<T> &student, const Params &p,
                                               int64_t n, float value)
{
    kd_fill_columns(student, 0, p.classes, value);
    kd_fill_columns(student, p.classes, p.columns, 0.0f);
    if ((int)threadIdx.x < p.count) loss_of(p, n)[threadIdx.x * p.loss_stride[0]] = value;
    if (p.same_top && threadIdx.x == 0) p.same_top[n * p.same_top_stride] = 0.0f;
}

/* Every thread that has the row's largest class looks for it in the unit it remembers. */
template <bool STAGED, class T>
__device__ __forceinline__ void find_top(int &top, const kd_logits<T> &logits,
                                         const kd_units &units, const kd_seen &seen, float max)
{
    if (seen.unit < 0 || seen.max != max) return;
    float z[KD_UNIT];
    kd_load_unit<STAGED>(z, logits, units, seen.unit, -INFINITY);
    int first = KD_UNIT;
#pragma unroll
    for (int i = KD_UNIT - 1; i >= 0; i--) first = z[i] == max ? i : first;
    atomicMin(&top, seen.unit * KD_UNIT + first);
}

/* ---- the kernel ------------------------------------------------------------------------------- */

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
                                                const Params &p, int64_t n)
{
    const int count = S::fixed ? S::terms : p.count;
    kd_seen seen[2] = { { -INFINITY, INFINITY, -1 }, { -INFINITY, INFINITY, -1 } };
#pragma unroll(2 * S::unroll)
    for (int i = 0; i < 2 * count; i++) kd_own(own, i) = 0.0f;
    sweep_statistics<STAGED>(seen, own, row, state.facts, count);

    const float most[4] = { seen[0].max, seen[1].max, -seen[0].min, -seen[1].min };
    kd_reduce_max(state.reduction, most);
    if (p.same_top) {
        find_top<STAGED>(state.top[0], row.student, row.units, seen[0], state.reduction.most[0]);
        find_top<STAGED>(state.top[1], row.teacher, row.units, seen[1], state.reduction.most[1]);
    }
    rescale(own, 0, state.facts, seen[0].max, state.reduction.most[0]);
    if (S::teacher) rescale(own, count, state.facts, seen[1].max, state.reduction.most[1]);
    kd_reduce_sums<2 * S::unroll>(state.reduction, own, 2 * count);
    if (threadIdx.x == 0) {
        finish_statistics(state, row.label, row.teacher.data != NULL, count);
        if (p.same_top)
            p.same_top[n * p.same_top_stride] =
                state.top[0] == state.top[1] && state.top[0] < INT32_MAX ? 1.0f : 0.0f;
    }
    __syncthreads();
}

/* What `sums` has left in own, into the terms. */
template <class S, class Own>
__device__ __forceinline__ void finish_sums(State<S> &state, Own &own, int count)
{
    kd_reduce_sums<2 * S::unroll>(state.reduction, own, 2 * count);
    const int j = (int)threadIdx.x;
    if (j < count) {
        state.facts.term[j].stats.a = (float)state.reduction.sum[2 * j];
        state.facts.term[j].stats.b = (float)state.reduction.sum[2 * j + 1];
    }
    __syncthreads();
}

template <bool STAGED, class S, class T, class U, class Own>
__device__ __forceinline__ void run_row(State<S> &state, Own &own, const Row<T, U> &row,
                                        const Params &p, int64_t n)
{
    const int count = S::fixed ? S::terms : p.count;
    find_statistics<STAGED>(state, own, row, p, n);
#pragma unroll(2 * S::unroll)
    for (int i = 0; i < 2 * count; i++) kd_own(own, i) = 0.0f;
    const bool need = S::always || state.need;
    if (need) {
        sweep_terms<STAGED, false>(own, row, state.facts, count, true, false, true);
        finish_sums(state, own, count);
    }
    if (S::clean && !need && state.clean)
        sweep_terms<STAGED, true>(own, row, state.facts, count, true, true, true);
    else
        sweep_terms<STAGED, false>(own, row, state.facts, count, !need, true, !need);
    if (!need) finish_sums(state, own, count);
    if ((int)threadIdx.x < count) {
        const Term &term = state.facts.term[threadIdx.x];
        loss_of(p, n)[term.index * p.loss_stride[0]] =
            term.squared * value_of(term.kind, term.stats);
    }
    kd_fill_columns(row.student, p.classes, p.columns, 0.0f);
}

template <class T>
__device__ __forceinline__ kd_logits<T> logits_of(const void *data, int64_t stride, bool aligned,
                                                  int64_t n)
{
    return { data ? (T *)data + n * stride : NULL, NULL, aligned };
}

template <bool STAGED, class S, class T, class U>
__global__ void __launch_bounds__(S::threads) row_loss_kernel(Params p)
{
    KD_SHARED(State<S>, shared, [1]);
    State<S> &state = shared[0];
    const int64_t n = blockIdx.x;
    const int label = p.labels ? p.labels[n * p.label_stride] : -1;
    const float weight = p.weight ? p.weight[n * p.weight_stride] : 1.0f;
    Row<T, U> row = {
        logits_of<T>(p.student, p.student_stride, p.student_aligned, n),
        logits_of<U>(p.teacher, p.teacher_stride, p.teacher_aligned, n),
        kd_units_of(0, (p.classes + KD_UNIT - 1) / KD_UNIT, p.classes),
        label,
    };
    if ((p.labels && label == -1) || weight == 0.0f) {
        write_constant(row.student, p, n, 0.0f);
        return;
    }
    const bool no_label = p.labels && (label < 0 || label >= p.classes);
    if (threadIdx.x == 0) {
        plan_terms(state, p, weight);
        if (label >= 0 && !no_label) state.label_logit = kd_load(row.student.data + label);
    }
    __syncthreads();
    if (state.poisoned || no_label) {
        write_constant(row.student, p, n, NAN);
        return;
    }
    typename own_of<S, S::fixed>::type own;
    if (!S::fixed) {
        KD_DYN_SHARED(float, columns);
        kd_own_open(own, columns);
    }
    run_row<STAGED>(state, own, row, p, n);
}

} // namespace

#endif
