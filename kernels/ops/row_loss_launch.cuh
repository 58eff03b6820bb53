/*
 * row_loss_launch.cuh - which instantiation of the kernel a launch takes, and its grid; the same for
 * rows that stay in global memory (row_loss.cu) and rows held in shared memory (row_loss_resident.cu).
 */
#ifndef KD_ROW_LOSS_LAUNCH_CUH
#define KD_ROW_LOSS_LAUNCH_CUH

#include "ops/row_loss.cuh"

/* `ranks` blocks hold each row in shared memory, for which there must be room.  Both sides are of one
 * type; there are rows. */
extern "C" kd_status kd_row_loss_resident(kd_exec *exec, const kd_row_loss_args *args, int ranks);

namespace {

/* Of a block that holds its units there: static, and what the system takes. */
constexpr size_t OWN_SHARED = 5 << 10;

/* ---- operands --------------------------------------------------------------------------------- */

inline int64_t row_bytes(const kd_tensor *t)
{
    return t->stride[0] * (int64_t)kd_dtype_size(t->dtype);
}

inline bool rows_start_aligned(const kd_tensor *t)
{
    return kd_present(t) && (uintptr_t)t->data % 16 == 0 &&
           (t->shape[0] <= 1 || row_bytes(t) % 16 == 0);
}

inline Params params_of(const kd_row_loss_args *args)
{
    const kd_tensor *student = args->student, *teacher = args->teacher;
    Params p = {};
    p.student = student->data;
    p.student_stride = student->stride[0];
    p.student_aligned = rows_start_aligned(student);
    bool read = kd_present(args->same_top);
    for (int k = 0; k < args->terms->count; k++) read |= kd_row_types[args->terms->kind[k]].teacher;
    if (read) {
        p.teacher = teacher->data;
        p.teacher_stride = teacher->stride[0];
        p.teacher_aligned = rows_start_aligned(teacher);
    }
    p.classes = (int)args->classes;
    p.columns = (int)student->shape[1];
    if (kd_present(args->labels)) {
        p.labels = (const int32_t *)args->labels->data;
        p.label_stride = args->labels->stride[0];
    }
    if (kd_present(args->weight)) {
        p.weight = (const float *)args->weight->data;
        p.weight_stride = args->weight->stride[0];
    }
    if (kd_present(args->same_top)) {
        p.same_top = (float *)args->same_top->data;
        p.same_top_stride = args->same_top->stride[0];
    }
    p.loss = (float *)args->loss->data;
    p.loss_stride[0] = args->loss->stride[0];
    p.loss_stride[1] = args->loss->stride[1];
    p.scalars = ((const kd_step_scalars *)args->scalars->data)->term + args->terms->first;
    p.ranks = 1;
    p.count = args->terms->count;
    for (int k = 0; k < p.count; k++) {
        p.kind[k] = args->terms->kind[k];
        p.index[k] = k;
        p.extras |= kd_row_types[p.kind[k]].extra != KD_EXTRA_NONE;
    }
    return p;
}

/* ---- instantiations ---------------------------------------------------------------------------- */

/* A divergence alone or with cross entropy is compiled for itself, of bf16 logits; the first that
 * fits is taken, in whichever order the terms are given. */
#define KD_MIXES(MIX)                                                                              \
    MIX(KD_ROW_forward_kl, KD_ROW_cross_entropy)                                                   \
    MIX(KD_ROW_reverse_kl, KD_ROW_cross_entropy)                                                   \
    MIX(KD_ROW_jsd, KD_ROW_cross_entropy)                                                          \
    MIX(KD_ROW_cross_entropy, NONE)                                                                \
    MIX(KD_ROW_forward_kl, NONE)                                                                   \
    MIX(KD_ROW_reverse_kl, NONE)                                                                   \
    MIX(KD_ROW_jsd, NONE)                                                                          \
    MIX(KD_ROW_skew_kl, NONE)                                                                      \
    MIX(KD_ROW_skew_reverse_kl, NONE)                                                              \
    MIX(KD_ROW_total_variation, NONE)                                                              \
    MIX(KD_ROW_z_loss, NONE)

/* Whether p's terms are these; then puts them in this order. */
bool take_mix(Params &p, int first, int second)
{
    if (p.count != (second == NONE ? 1 : 2)) return false;
    if (p.kind[0] == first && (second == NONE || p.kind[1] == second)) return true;
    if (second == NONE || p.kind[0] != second || p.kind[1] != first) return false;
    p.index[0] = 1;
    p.index[1] = 0;
    return true;
}

/* Few threads where a row is short; so many that each has two units or more where it is long. */
inline int threads_for(int64_t units, int most)
{
    int threads = KD_WARP;
    while (threads < most && 2 * (int64_t)threads < units) threads *= 2;
    return threads;
}

/*
 * Where the rows of two blocks of 512 threads per multiprocessor do not stay in the second-level
 * cache until their second sweep, one block of 1024 has as many threads and half the rows.
 */
template <class S> int most_threads(kd_exec *exec, const Params &p, size_t class_bytes)
{
    const kd_cuda_limits *limits = kd_cuda_limits_of(exec);
    const size_t in_flight = 2 * (size_t)limits->multiprocessors * (size_t)p.classes * class_bytes;
    return in_flight > limits->cache / 5 * 3 || S::threads < 512 ? S::threads : 512;
}

template <bool STAGED, class S, class T, class U>
kd_status launch(kd_exec *exec, int rows, const Params &p)
{
    const size_t class_bytes = sizeof(T) + (p.teacher ? sizeof(U) : 0);
    const int units = (p.classes + KD_UNIT - 1) / KD_UNIT, slice = (units + p.ranks - 1) / p.ranks;
    const int threads = STAGED ? threads_for(slice, STAGED_THREADS)
                               : threads_for(units, most_threads<S>(exec, p, class_bytes));
    kd_grid grid = { dim3((unsigned)(rows * p.ranks)), dim3((unsigned)threads) };
    grid.shared = bytes_of_sums<S>(p.count, threads);
    if (STAGED) {
        grid.shared += (size_t)slice * KD_UNIT * class_bytes;
        grid.cluster = (unsigned)p.ranks;
        KD_TRY(kd_allow_shared(row_loss_kernel<STAGED, S, T, U>,
                               kd_cuda_limits_of(exec)->shared - OWN_SHARED));
    }
    return kd_launch(exec, "row_loss", row_loss_kernel<STAGED, S, T, U>, grid, p);
}

template <bool STAGED, class T, class U>
kd_status launch_any(kd_exec *exec, int rows, const Params &p)
{
    return p.extras ? launch<STAGED, Set<EXTRAS, NONE>, T, U>(exec, rows, p)
                    : launch<STAGED, Set<ANY, NONE>, T, U>(exec, rows, p);
}

/* Terms of bf16 logits on both sides. */
template <bool STAGED> kd_status launch_bf16(kd_exec *exec, int rows, Params &p)
{
#define KD_MIX(FIRST, SECOND)                                                                      \
    if (take_mix(p, FIRST, SECOND))                                                                \
        return launch<STAGED, Set<FIRST, SECOND>, bf16, bf16>(exec, rows, p);
    KD_MIXES(KD_MIX)
#undef KD_MIX
    return launch_any<STAGED, bf16, bf16>(exec, rows, p);
}

} // namespace

#endif
