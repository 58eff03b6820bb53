/*
 * row_loss_topk on CUDA; src/ops/row_loss_topk.c has the definition.
 *
 * Grid        a block of 256 threads per row; the K known classes in shared memory, taken out of the row
 *             and -inf put in their place, so that sweeps over what remains are those of row_loss.
 * Traffic     bf16: a sweep for the tail's maximum and sums, one for the gradient, in reverse order: 6
 *             bytes a class; 8 where a dense term's gradient reads its sums.  24 bytes per known class.
 * Shared      28 bytes per known class and 8 per term and thread: K up to some 5,000.
 * Numerics    as row_loss; sums over known classes are one warp's, in double.
 * Determinism no atomics but the minimum of integers: the same bits every run.
 * Ids         that repeat are looked for pairwise, K^2 / 256 steps of a thread.
 * Invalid     ids, repetitions, sampling probabilities, temperatures: NaN in the whole row.
 */
#include "ops/row_loss_launch.cuh"

namespace {

typedef Set<EXTRAS, NONE> All;

constexpr int THREADS = All::threads;

struct TopkParams {
    Params row;
    const int32_t *ids;
    const void *log_p;
    const float *sampling, *tail;
    int64_t id_stride, log_p_stride, sampling_stride, tail_stride;
    bool narrow; /* log_p is bf16 */
    int k, width, mode;
    float capture;
};

/* What is known of a row; all arrays [width], one slot more than K. */
struct Known {
    float *z, *l, *mass, *gradient;
    int *id; /* -1: no entry */
};

/* At one temperature. */
struct Level {
    float base, scale, shift; /* log p_i = (l_i - base) scale - shift, but of draws */
    float lack; /* 1 - the sum of the draws' targets; NaN where there is no distribution */
    float tail_p, tail_log_p, tail_log_q;
    bool tail_lives;
    kd_side tail; /* the student's softmax over what is not known */
    float of_tail;
};

struct Short {
    Level level[KD_MAX_ROW_TERMS];
    int top[2]; /* first largest known class of student and teacher; INT32_MAX: none */
    bool poisoned, dense_sums;
};

__device__ __forceinline__ bool in_bucket(const TopkParams &p, int kind)
{
    return p.mode == KD_TOPK_TAIL && reads_teacher(kind);
}

/* ---- the known classes ------------------------------------------------------------------------- */

template <class T>
__device__ __forceinline__ void load_known(Known &known, Short &shared, const TopkParams &p,
                                           const Row<T, float> &row)
{
    for (int i = (int)threadIdx.x; i < p.width; i += THREADS) {
        const int id = i < p.k ? p.ids[row.n * p.id_stride + i] : -1;
        const bool there = id >= 0 && id < p.row.classes;
        const int64_t at = row.n * p.log_p_stride + i;
        if (id != -1 && !there) shared.poisoned = true;
        known.id[i] = there ? id : -1;
        known.z[i] = there ? kd_load(row.student.data + id) : -INFINITY;
        known.l[i] = !there     ? -INFINITY
                     : p.narrow ? kd_load((const bf16 *)p.log_p + at)
                                : kd_load((const float *)p.log_p + at);
        known.gradient[i] = 0.0f;
        if (!there || p.mode != KD_TOPK_SAMPLED) continue;
        const float r = p.sampling[row.n * p.sampling_stride + i];
        if (!(r > 0.0f) || r == INFINITY) shared.poisoned = true;
        known.gradient[i] = kd_exp2(known.l[i] * KD_LOG2_E) / r; /* until the draws are counted */
    }
}

/* Draws of one class become its first's; elsewhere none may be there twice. */
__device__ __forceinline__ void merge_known(Known &known, Short &shared, const TopkParams &p)
{
    unsigned long long again = 0; /* of this thread's entries */
    int entry = 0;
    for (int i = (int)threadIdx.x; i < p.k; i += THREADS, entry++) {
        const int id = known.id[i];
        float mass = 0.0f;
        int draws = 0;
        bool before = false;
        for (int j = 0; j < p.k; j++) {
            const bool same = known.id[j] == id;
            draws += known.id[j] >= 0;
            before = before || (same && j < i);
            mass += same ? known.gradient[j] : 0.0f;
        }
        known.mass[i] = mass / (float)draws;
        if (id < 0 || !before) continue;
        if (p.mode != KD_TOPK_SAMPLED) shared.poisoned = true;
        again |= 1ull << entry;
    }
    __syncthreads();
    entry = 0;
    for (int i = (int)threadIdx.x; i < p.width; i += THREADS, entry++) {
        known.gradient[i] = 0.0f;
        if (again >> entry & 1u) {
            known.id[i] = -1;
            known.z[i] = known.l[i] = -INFINITY;
        }
    }
}

/* Of a warp: the first class among those whose x is largest. */
__device__ __forceinline__ void largest_known(float &most, int &top, const float *x,
                                              const Known &known, int k)
{
    float mine = -INFINITY;
    for (int i = (int)threadIdx.x; i < k; i += KD_WARP) mine = fmaxf(mine, x[i]);
    most = kd_warp_max(mine);
    int first = INT32_MAX;
    for (int i = (int)threadIdx.x; i < k; i += KD_WARP)
        if (known.id[i] >= 0 && x[i] == most && most > -INFINITY) first = min(first, known.id[i]);
    for (int lanes = 16; lanes > 0; lanes /= 2)
        first = min(first, __shfl_xor_sync(KD_ALL_LANES, first, lanes));
    top = first;
}

/* Of a warp: sum of e^((x_i - max) scale). */
__device__ __forceinline__ double sum_known(const float *x, const Known &known, int k, float max,
                                            float scale)
{
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < k; i += KD_WARP)
        if (known.id[i] >= 0) sum += (double)kd_exp2((x[i] - max) * scale * KD_LOG2_E);
    return kd_warp_sum(sum);
}

/* ---- the teacher ------------------------------------------------------------------------------- */

/* Of a warp: what the teacher is at temperature 1 / inv_t. */
__device__ __forceinline__ void teach(Level &level, const Known &known, const TopkParams &p, int n,
                                      float inv_t, float largest)
{
    int entries = 0;
    double mass = 0.0;
    for (int i = (int)threadIdx.x; i < p.k; i += KD_WARP) {
        entries += known.id[i] >= 0;
        mass += known.id[i] >= 0 && p.mode == KD_TOPK_SAMPLED ? (double)known.mass[i] : 0.0;
    }
    entries = kd_warp_sum(entries);
    mass = kd_warp_sum(mass);
    level.scale = 1.0f;
    level.base = level.shift = level.tail_p = level.lack = 0.0f;
    level.tail_log_p = KD_ROW_LOG_FLOOR;
    if (p.mode == KD_TOPK_SAMPLED) {
        level.lack = entries ? (float)(1.0 - mass) : NAN;
    } else if (p.mode == KD_TOPK_RENORMALISED) {
        level.scale = p.capture * inv_t;
        const double sum = sum_known(known.l, known, p.k, largest, level.scale);
        level.base = largest;
        level.shift = logf(largest == -INFINITY ? NAN : (float)sum);
        level.lack = 0.0f * level.shift;
    } else {
        double sum = 0.0; /* in double: a tail of 1e-9 is its difference from 1 */
        for (int i = (int)threadIdx.x; i < p.k; i += KD_WARP)
            if (known.id[i] >= 0) sum += exp((double)known.l[i]);
        sum = kd_warp_sum(sum);
        double tail = sum > 1.0 ? 0.0 : 1.0 - sum;
        if (p.tail) tail = (double)p.tail[n * p.tail_stride];
        if (entries == p.row.classes) tail *= 0.0;
        const float mass = (float)(sum + tail);
        level.shift = logf(mass);
        level.tail_p = (float)tail / mass;
        if (level.tail_p != 0.0f) level.tail_log_p = logf(level.tail_p);
    }
}

/* The student's whole row from its tail, whose maximum and sum these are, and the known classes. */
__device__ __forceinline__ void join_student(kd_softmax &softmax, Level &level, const Known &known,
                                             const TopkParams &p, float tail_max, double tail_sum,
                                             float known_max)
{
    const float max = fmaxf(tail_max, known_max);
    const bool none = tail_max == -INFINITY;
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < p.k; i += KD_WARP)
        if (known.id[i] >= 0) sum += (double)kd_exp2((known.z[i] - max) * softmax.scale);
    sum = kd_warp_sum(sum);
    /* Where no class of the tail lives its sum is 0, or NaN. */
    sum += tail_sum * (none ? 1.0 : (double)kd_exp2((tail_max - max) * softmax.scale));
    softmax.student = kd_side_of(max, sum, KD_ROW_LOG_FLOOR);
    level.tail_lives = !none;
    level.tail = none ? kd_side{ 0.0f, 0.0f, 0.0f, KD_ROW_LOG_FLOOR }
                      : kd_side_of(tail_max, tail_sum, KD_ROW_LOG_FLOOR);
    level.tail_log_q =
        none ? softmax.student.dead
             : (tail_max - max) * softmax.inv_t + level.tail.log_sum - softmax.student.log_sum;
}

/* ---- the short row ----------------------------------------------------------------------------- */

__device__ __forceinline__ void fill_known(Classes &c, const Known &known, const TopkParams &p,
                                           int unit, const kd_softmax &softmax, const Level &level,
                                           int kind, int label, int top)
{
    c.label = c.top = -1;
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++) {
        const int at = unit * KD_UNIT + i;
        const bool tail = at == p.k && in_bucket(p, kind), there = tail || known.id[at] >= 0;
        const kd_side &side = softmax.student;
        const float x = (known.z[at] - side.max) * softmax.inv_t;
        const bool dead = tail ? !level.tail_lives : x == -INFINITY;
        const float log_p =
            tail ? level.tail_log_p : (known.l[at] - level.base) * level.scale - level.shift;
        const bool none = !there || log_p == -INFINITY;
        c.log_q[i] = tail ? level.tail_log_q : dead ? side.dead : x - side.log_sum;
        c.q[i] = !there || (dead && side.dead == KD_ROW_LOG_FLOOR)
                     ? 0.0f
                     : kd_exp2(c.log_q[i] * KD_LOG2_E);
        c.live[i] = there && !dead ? 1.0f : 0.0f;
        c.log_p[i] = none ? KD_ROW_LOG_FLOOR : log_p;
        c.p[i] = !there                      ? 0.0f
                 : tail                      ? level.tail_p
                 : p.mode == KD_TOPK_SAMPLED ? known.mass[at]
                 : none                      ? 0.0f
                                             : kd_exp2(log_p * KD_LOG2_E);
        if (!reads_teacher(kind)) c.p[i] = 0.0f, c.log_p[i] = KD_ROW_LOG_FLOOR;
        if (!there) c.log_q[i] = KD_ROW_LOG_FLOOR;
        if (there && !tail && known.id[at] == label) c.label = i;
        if (there && !tail && known.id[at] == top) c.top = i;
        c.z[i] = c.t[i] = 0.0f;
    }
}

/* Sums over the known classes, or their gradients and the tail's. */
template <class Own>
__device__ __forceinline__ void sweep_known(Own &own, Known &known, Short &shared,
                                            const State<All> &state, const TopkParams &p, int label,
                                            bool gradient)
{
    const Facts<All> &facts = state.facts;
    for (int unit = (int)threadIdx.x; unit * KD_UNIT < p.width; unit += THREADS) {
        for (int j = 0; j < p.row.count; j++) {
            const Term &term = facts.term[j];
            Classes c;
            fill_known(c, known, p, unit, facts.softmax[term.group], shared.level[term.group],
                       term.kind, label, shared.top[1]);
            if (!gradient) {
                add_sums<true>(kd_own(own, 2 * j), kd_own(own, 2 * j + 1), term.kind, c,
                               term.stats);
                continue;
            }
            float out[KD_UNIT] = {};
            add_gradient<true>(out, term.kind, c, term.stats, term.scale);
            for (int i = 0; i < KD_UNIT; i++) {
                const int at = unit * KD_UNIT + i;
                if (at == p.k)
                    shared.level[term.group].of_tail += out[i];
                else
                    known.gradient[at] += out[i];
            }
        }
    }
}

/* The row without its known classes: sums of the dense terms, and the gradient with the tail's share. */
template <class T, class Own>
__device__ __forceinline__ void sweep_tail(Own &own, const Row<T, float> &row,
                                           const State<All> &state, const Short &shared,
                                           const TopkParams &p, bool sums, bool gradient)
{
    const Facts<All> &facts = state.facts;
    const int mine = row.units.mine, step = gradient ? -(int)blockDim.x : (int)blockDim.x;
    int unit = kd_unit_at(row.units, gradient ? mine - 1 : 0);
    for (int left = mine; left > 0; left--, unit += step) {
        float z[KD_UNIT], out[KD_UNIT] = {};
        kd_raw_unit<T> raw = {};
        kd_load_unit<false, false>(z, raw, row.student, row.units, unit, -INFINITY);
        int given = -1;
        for (int j = 0; j < p.row.count; j++) {
            const Term &term = facts.term[j];
            const kd_softmax &softmax = facts.softmax[term.group];
            const Level &level = shared.level[term.group];
            if (in_bucket(p, term.kind)) {
                if (!gradient || term.group == given) continue; /* of all the temperature's terms */
                given = term.group;
                for (int i = 0; i < KD_UNIT; i++)
                    out[i] +=
                        z[i] == -INFINITY
                            ? 0.0f
                            : level.of_tail * kd_exp2(fmaf(z[i] - level.tail.max, softmax.scale,
                                                           -level.tail.log2_sum));
                continue;
            }
            Classes c;
            fill_side<false>(c.log_q, c.q, c.live, z, softmax.student, softmax);
            for (int i = 0; i < KD_UNIT; i++) {
                c.p[i] = reads_teacher(term.kind) ? 0.0f * level.lack : 0.0f;
                c.log_p[i] = KD_ROW_LOG_FLOOR + c.p[i];
                c.z[i] = c.t[i] = 0.0f;
            }
            c.label = row.label - unit * KD_UNIT;
            c.top = -1;
            if (sums)
                add_sums<true>(kd_own(own, 2 * j), kd_own(own, 2 * j + 1), term.kind, c,
                               term.stats);
            if (gradient) add_gradient<true>(out, term.kind, c, term.stats, term.scale);
        }
        if (gradient) kd_store_unit(row.student, unit, 0, row.units.classes, out);
    }
}

/* ---- a row ------------------------------------------------------------------------------------- */

/* The first warp: all that is known before the terms' sums. */
__device__ __forceinline__ void finish_row(State<All> &state, Short &shared, const Known &known,
                                           const TopkParams &p, int n, int label)
{
    Facts<All> &facts = state.facts;
    float largest, most;
    int tops[2];
    largest_known(most, tops[0], known.z, known, p.k);
    largest_known(largest, tops[1], known.l, known, p.k);
    if (state.most[0] > most || tops[0] == INT32_MAX)
        tops[0] = state.top[0];
    else if (state.most[0] == most)
        tops[0] = min(tops[0], state.top[0]);
    for (int g = 0; g < facts.groups; g++) {
        Level level = {};
        kd_softmax softmax = facts.softmax[g];
        if (facts.reads_teacher[g]) teach(level, known, p, n, softmax.inv_t, largest);
        join_student(softmax, level, known, p, state.most[0], state.sum[0][g], most);
        if (threadIdx.x != 0) continue;
        shared.level[g] = level;
        facts.softmax[g] = softmax;
    }
    if (threadIdx.x == 0) {
        shared.top[0] = tops[0];
        shared.top[1] = tops[1];
    }
    __syncwarp();
    bool poisoned = false, dense_sums = false;
    for (int j = (int)threadIdx.x; j < p.row.count; j += KD_WARP) {
        Term &term = facts.term[j];
        const kd_softmax &at = facts.softmax[term.group];
        const kd_row_need need = need_of(term.kind);
        term.stats.lse = at.student.max * at.inv_t + at.student.log_sum;
        if (label >= 0) {
            const float z = state.label_logit[0], x = (z - at.student.max) * at.inv_t;
            term.stats.log_q_label = log_probability(z, at.student, at.inv_t);
            term.stats.label_live = x == -INFINITY ? 0.0f : 1.0f;
        }
        if (reads_teacher(term.kind) && p.mode != KD_TOPK_RENORMALISED)
            poisoned |= p.row.scalars[term.index].temperature != p.capture;
        if (!in_bucket(p, term.kind))
            dense_sums |=
                need == KD_SUMS_ALWAYS || (need == KD_SUMS_OPTION && term.stats.option != 0.0f);
    }
    if (poisoned) shared.poisoned = true;
    if (dense_sums) shared.dense_sums = true;
}

/* What threads have summed, added to the terms' sums. */
template <class Own>
__device__ __forceinline__ void add_to_terms(State<All> &state, Own &own, int count)
{
    kd_reduce_sums<2>(state.sum[1], state.partials, own, 2 * count);
    const int j = (int)threadIdx.x;
    if (j < count) {
        state.facts.term[j].stats.a += (float)state.sum[1][2 * j];
        state.facts.term[j].stats.b += (float)state.sum[1][2 * j + 1];
    }
    __syncthreads();
    clear<All>(own, 2 * count);
}

template <class T, class Own>
__device__ __forceinline__ void run_known(State<All> &state, Short &shared, Known &known, Own &own,
                                          const Row<T, float> &row, const TopkParams &p)
{
    const int count = p.row.count, thread = (int)threadIdx.x;
    const bool dense_sums = shared.dense_sums;
    clear<All>(own, 2 * count);
    if (dense_sums) sweep_tail(own, row, state, shared, p, true, false);
    sweep_known(own, known, shared, state, p, row.label, false);
    add_to_terms(state, own, count);
    if (thread < count && p.mode == KD_TOPK_SAMPLED && reads_teacher(state.facts.term[thread].kind))
        state.facts.term[thread].stats.b += shared.level[state.facts.term[thread].group].lack;
    __syncthreads();
    sweep_known(own, known, shared, state, p, row.label, true);
    __syncthreads();
    sweep_tail(own, row, state, shared, p, !dense_sums, true);
    add_to_terms(state, own, count);
    if (thread < count) {
        const Term &term = state.facts.term[thread];
        write_loss(p.row, row, term.index, term.squared * value_of(term.kind, term.stats));
    }
    for (int i = thread; i < p.k; i += THREADS)
        if (known.id[i] >= 0) kd_store(row.student.data + known.id[i], known.gradient[i]);
    write_padding(p.row, row);
    write_same_top(p.row, row, shared.top[1] < INT32_MAX && shared.top[0] == shared.top[1]);
}

template <class T> __global__ void __launch_bounds__(THREADS, 1) row_loss_topk_kernel(TopkParams p)
{
    KD_SHARED(State<All>, states, [1]);
    KD_SHARED(Short, shorts, [1]);
    KD_DYN_SHARED(float, dynamic);
    State<All> &state = states[0];
    Short &shared = shorts[0];
    const Row<T, float> row = row_of<false, T, float>(p.row);
    const float weight = p.row.weight ? p.row.weight[row.n * p.row.weight_stride] : 1.0f;
    if ((p.row.labels && row.label == -1) || weight == 0.0f) {
        write_constant(p.row, row, 0.0f);
        return;
    }
    const bool no_label = p.row.labels && (row.label < 0 || row.label >= p.row.classes);
    float *list = dynamic + bytes_of_sums<All>(p.row.count, THREADS) / sizeof(float);
    Known known = { list, list + p.width, list + 2 * p.width, list + 3 * p.width,
                    (int *)(list + 4 * p.width) };
    kd_own_shared own;
    kd_own_open(own, dynamic);
    if (threadIdx.x == 0) {
        plan_terms(state, p.row, weight);
        state.facts.rest = state.facts.asks_top = false;
        shared.poisoned = state.poisoned || no_label;
        shared.dense_sums = false;
        if (row.label >= 0 && !no_label)
            state.label_logit[0] = kd_load(row.student.data + row.label);
    }
    __syncthreads();
    load_known(known, shared, p, row);
    __syncthreads();
    merge_known(known, shared, p);
    __syncthreads();
    if (!shared.poisoned) {
        for (int i = (int)threadIdx.x; i < p.k; i += THREADS)
            if (known.id[i] >= 0) kd_store(row.student.data + known.id[i], -INFINITY);
        __syncthreads();
        kd_seen seen[2] = { { -INFINITY, INFINITY, -1 }, { -INFINITY, INFINITY, -1 } };
        clear<All>(own, 2 * p.row.count);
        sweep_statistics<false, All>(seen, own, row, state.facts, p.row.count);
        const float of_thread[1] = { seen[0].max };
        kd_reduce_max(state.most, state.partials, of_thread);
        find_top<false>(state.top[0], row.student, row.units, seen[0], state.most[0]);
        if (state.most[0] > -INFINITY) rescale(own, 0, state.facts, seen[0].max, state.most[0]);
        kd_reduce_sums<2>(state.sum[0], state.partials, own, 2 * p.row.count);
        if (threadIdx.x < KD_WARP) finish_row(state, shared, known, p, row.n, row.label);
        __syncthreads();
    }
    if (shared.poisoned)
        write_constant(p.row, row, NAN);
    else
        run_known(state, shared, known, own, row, p);
}

template <class T> kd_status launch_topk(kd_exec *exec, int rows, const TopkParams &p, size_t bytes)
{
    kd_grid grid = { dim3((unsigned)rows), dim3((unsigned)THREADS) };
    grid.shared = bytes;
    if (bytes > 40 << 10) KD_TRY(kd_allow_shared(row_loss_topk_kernel<T>, bytes));
    return kd_launch(exec, "row_loss_topk", row_loss_topk_kernel<T>, grid, p);
}

} // namespace

extern "C" kd_status kd_row_loss_topk_cuda(kd_exec *exec, const kd_row_loss_topk_args *args)
{
    const int64_t rows = args->student->shape[0], columns = args->student->shape[1];
    const int64_t k = args->teacher_ids->shape[1], width = kd_ceil_div(k + 1, KD_UNIT) * KD_UNIT;
    if (kd_planning(exec) || rows == 0) return KD_OK;
    const size_t bytes = bytes_of_sums<All>(args->terms->count, THREADS) + 5 * (size_t)width * 4;
    if (rows > INT32_MAX / 8 || columns > INT32_MAX - KD_UNIT || k > 63 * THREADS ||
        bytes + sizeof(State<All>) + sizeof(Short) > kd_cuda_limits_of(exec)->shared)
        return kd_fail(KD_ENOTSUP, "[%lld, %lld] logits with %lld known a row", (long long)rows,
                       (long long)columns, (long long)k);
    const kd_row_loss_args dense = { args->student, args->loss,   args->same_top,
                                     args->student, args->labels, args->weight,
                                     args->scalars, args->terms,  args->classes };
    TopkParams p = {};
    p.row = params_of(&dense);
    p.row.teacher = NULL;
    p.ids = (const int32_t *)args->teacher_ids->data;
    p.id_stride = args->teacher_ids->stride[0];
    p.log_p = args->teacher_log_p->data;
    p.log_p_stride = args->teacher_log_p->stride[0];
    p.narrow = args->teacher_log_p->dtype == KD_BF16;
    if (args->mode == KD_TOPK_SAMPLED) {
        p.sampling = (const float *)args->teacher_sampling->data;
        p.sampling_stride = args->teacher_sampling->stride[0];
    }
    if (kd_present(args->teacher_tail)) {
        p.tail = (const float *)args->teacher_tail->data;
        p.tail_stride = args->teacher_tail->stride[0];
    }
    p.k = (int)k;
    p.width = (int)width;
    p.mode = args->mode;
    p.capture = args->capture;
    return KD_BY_DTYPE(args->student->dtype, launch_topk, exec, (int)rows, p, bytes);
}
