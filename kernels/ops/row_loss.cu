#include "ops/row_loss.cuh"

namespace {

/* ---- which kernel ----------------------------------------------------------------------------- */

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

int64_t row_bytes(const kd_tensor *t) { return t->stride[0] * (int64_t)kd_dtype_size(t->dtype); }

bool rows_start_aligned(const kd_tensor *t)
{
    return kd_present(t) && (uintptr_t)t->data % 16 == 0 &&
           (t->shape[0] <= 1 || row_bytes(t) % 16 == 0);
}

Params params_of(const kd_row_loss_args *args)
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
    p.scalars = ((const kd_step_scalars *)args->scalars->data)->term;
    p.count = args->terms->count;
    for (int k = 0; k < p.count; k++) {
        p.kind[k] = args->terms->kind[k];
        p.index[k] = k;
    }
    return p;
}

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
unsigned threads_for(int64_t units)
{
    unsigned threads = KD_WARP;
    while (threads < 512 && 2 * (int64_t)threads < units) threads *= 2;
    return threads;
}

template <class S, class T, class U> kd_status launch(kd_exec *exec, int64_t rows, const Params &p)
{
    const unsigned threads = threads_for(kd_ceil_div(p.classes, KD_UNIT));
    kd_grid grid = { dim3((unsigned)rows), dim3(threads) };
    if (!S::fixed) grid.shared = 2 * (size_t)p.count * threads * sizeof(float);
    return kd_launch(exec, "row_loss", row_loss_kernel<false, S, T, U>, grid, p);
}

kd_status launch_bf16(kd_exec *exec, int64_t rows, Params &p)
{
#define KD_MIX(FIRST, SECOND)                                                                      \
    if (take_mix(p, FIRST, SECOND)) return launch<Set<FIRST, SECOND>, bf16, bf16>(exec, rows, p);
    KD_MIXES(KD_MIX)
#undef KD_MIX
    return launch<Set<ANY, NONE>, bf16, bf16>(exec, rows, p);
}

} // namespace

extern "C" kd_status kd_row_loss_cuda(kd_exec *exec, const kd_row_loss_args *args)
{
    const int64_t rows = args->student->shape[0];
    if (kd_planning(exec) || rows == 0) return KD_OK;
    const int64_t most = INT32_MAX - KD_UNIT;
    if (args->student->shape[1] > most || rows > most)
        return kd_fail(KD_ENOTSUP, "[%lld, %lld] logits, expected at most %lld rows and columns",
                       (long long)rows, (long long)args->student->shape[1], (long long)most);
    Params p = params_of(args);
    const bool student = args->student->dtype == KD_BF16;
    const bool teacher = p.teacher ? args->teacher->dtype == KD_BF16 : student;
    typedef Set<ANY, NONE> Any;
    if (student && teacher) return launch_bf16(exec, rows, p);
    if (student) return launch<Any, bf16, float>(exec, rows, p);
    if (teacher) return launch<Any, float, bf16>(exec, rows, p);
    return launch<Any, float, float>(exec, rows, p);
}
