/*
 * row_loss_launch.cuh - which instantiation of the kernel a launch takes, and its grid; the same for
 * rows that stay in global memory (row_loss.cu) and rows held in shared memory (row_loss_resident.cu).
 */
#ifndef KD_ROW_LOSS_LAUNCH_CUH
#define KD_ROW_LOSS_LAUNCH_CUH

#include "ops/row_loss.cuh"

/* p->ranks blocks hold each row in shared memory; there must be room.  Both sides are `dtype`. */
kd_status kd_row_loss_resident(kd_exec *exec, int rows, kd_row_params *p, kd_dtype dtype);

namespace {

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
    return in_flight > limits->cache / 5 * 3 ? S::threads : 512;
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
        KD_TRY(kd_allow_shared(row_loss_kernel<STAGED, S, T, U>, grid.shared));
    }
    return kd_launch(exec, "row_loss", row_loss_kernel<STAGED, S, T, U>, grid, p);
}

/* Terms of bf16 logits on both sides. */
template <bool STAGED> kd_status launch_bf16(kd_exec *exec, int rows, Params &p)
{
#define KD_MIX(FIRST, SECOND)                                                                      \
    if (take_mix(p, FIRST, SECOND))                                                                \
        return launch<STAGED, Set<FIRST, SECOND>, bf16, bf16>(exec, rows, p);
    KD_MIXES(KD_MIX)
#undef KD_MIX
    return launch<STAGED, Set<ANY, NONE>, bf16, bf16>(exec, rows, p);
}

} // namespace

#endif
