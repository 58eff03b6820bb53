/*
 * row_loss on CUDA; src/ops/row_loss.c has the definition, src/ops/rows the mathematics of each term.
 *
 * Two ways to the same result; row_loss.cuh is the kernel of both:
 *
 *   plain      A block per row, the row in global memory.  One sweep finds the maxima, the sums of
 *              exponentials relative to them, the first largest classes and the minima; the next, in
 *              reverse order so that it begins with what the caches still hold, the terms' sums and
 *              the gradient; where a gradient reads its sums (row_list.h) they are two.
 *   resident   A row is read once, into the shared memory of one block or of a cluster of 2, 4 or 8
 *              (sm_90), which exchange maxima and sums; every sweep is over shared memory.  Rows up
 *              to 440,000 classes of bf16 with a teacher.  Not the default until a card has shown it
 *              to be the faster: KD_ROW_BLOCKS (device.h).
 *
 * Traffic     bytes per class of bf16 logits, student and teacher, least first:
 *                                                  resident   plain   plain, gradient reads sums
 *                 with a teacher                       6        10      14
 *                 cross entropy, z_loss alone          4         6       8
 *             Plain has the first column's where all rows in flight stay in the second-level cache:
 *             up to some 32,000 classes on an H100, 50,000 with blocks of 1024.  At 3 TB/s, 8192 rows
 *             of 128,256 classes take at least 2.1 ms in 6 bytes, 3.5 in 10.
 * Exp         ex2 per class: sweep 1, one per side and temperature and an eighth of one; every later
 *             sweep, one per side and temperature.  Cross entropy with a divergence at T: 6 at two
 *             temperatures, 4 at one; at 16 per clock and multiprocessor 8192 x 128,256 take 1.7 ms.
 * Issue       instructions per class of cross entropy and forward KL at two temperatures, read off
 *             the sm_90a code: 24 in sweep 1, 30 in sweep 2; at 128 per clock and multiprocessor 1.9
 *             ms.  jsd 18, 115 and 79 (three logarithms of full precision): 7.5 ms, bound by that.
 * In flight   a thread's next 16 bytes of either side while it works on one: 32 KiB a multiprocessor,
 *             where 3 TB/s over 0.7 us want 16; the sweeps that take logarithms wait for arithmetic.
 * Registers   64 (two blocks of 512 threads or one of 1024); jsd with cross entropy 92, any terms
 *             128 (one block of 512); held in shared memory up to 80; kernels/budget.txt.
 * Rows        whose logits do not begin at multiples of 16 bytes are read element by element: slow.
 *
 * Numerics    e^((z - max) / T) is ex2 of (z - max) times log2(e) / T, rounded once: a relative error
 *             of 2^-22 and |(z - max) / T| 2^-23; a probability is one ex2 of the same with log2 of
 *             the sum taken off.  Below 2^-126 it is 0.  Quotients are within 2^-22, logarithms
 *             within 1 ulp.  A thread adds up to 32 unit sums of 8 classes in f32 at 128,000 classes
 *             (8 in a cluster of 8), a warp pairwise in f32, warps and blocks in double: within 40
 *             2^-24 of a sum of one sign.
 * Determinism The order of every sum depends on classes, threads and blocks alone: the same bits every
 *             run; not between the two ways.  Atomics only take the minimum of integers.
 * Aliasing    The gradient overwrites the student.  A thread writes the units that it read itself.
 * Invalid     A label outside [0, classes) makes its row NaN, an invalid temperature every row.
 */
#include "ops/row_loss_launch.cuh"

namespace {

/*
 * How many blocks hold a row in shared memory: as few as leave room for three of them on a
 * multiprocessor, so that some load while others compute; 0: it is too long.
 */
int ranks_for(kd_exec *exec, const Params &p, size_t class_bytes)
{
    const kd_cuda_limits *limits = kd_cuda_limits_of(exec);
    const int most = limits->capability / 10 == 9 ? 8 : 1; /* what code with clusters runs on */
    const int units = (p.classes + KD_UNIT - 1) / KD_UNIT;
    for (int ranks = kd_min_i64(kd_max_i64(limits->row_blocks, 1), most);; ranks *= 2) {
        const size_t bytes = (size_t)((units + ranks - 1) / ranks) * KD_UNIT * class_bytes +
                             bytes_of_sums<Set<ANY, NONE>>(p.count, STAGED_THREADS) + OWN_SHARED;
        if (bytes <= limits->shared / 3) return ranks;
        if (ranks == most) return bytes <= limits->shared / (most == 1 ? 2 : 1) ? ranks : 0;
    }
}

kd_status launch_plain(kd_exec *exec, int rows, Params &p, kd_dtype student, kd_dtype teacher)
{
    if (student == KD_BF16 && teacher == KD_BF16) return launch_bf16<false>(exec, rows, p);
    if (student == KD_BF16) return launch_any<false, bf16, float>(exec, rows, p);
    if (teacher == KD_BF16) return launch_any<false, float, bf16>(exec, rows, p);
    return launch_any<false, float, float>(exec, rows, p);
}

} // namespace

extern "C" kd_status kd_row_loss_cuda(kd_exec *exec, const kd_row_loss_args *args)
{
    const int64_t rows = args->student->shape[0], columns = args->student->shape[1];
    if (kd_planning(exec) || rows == 0) return KD_OK;
    const int64_t most_rows = INT32_MAX / 8, most_columns = INT32_MAX - KD_UNIT;
    if (rows > most_rows || columns > most_columns)
        return kd_fail(KD_ENOTSUP, "[%lld, %lld] logits, expected at most [%lld, %lld]",
                       (long long)rows, (long long)columns, (long long)most_rows,
                       (long long)most_columns);
    Params p = params_of(args);
    const kd_dtype student = args->student->dtype;
    const kd_dtype teacher = p.teacher ? args->teacher->dtype : student;
    if (kd_cuda_limits_of(exec)->row_blocks && student == teacher) {
        p.ranks = ranks_for(exec, p, kd_dtype_size(student) * (p.teacher ? 2 : 1));
        if (p.ranks) return kd_row_loss_resident(exec, args, p.ranks);
        p.ranks = 1;
    }
    return launch_plain(exec, (int)rows, p, student, teacher);
}
