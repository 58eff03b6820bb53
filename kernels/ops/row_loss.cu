#include "ops/row_loss_launch.cuh"

namespace {

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
    p.ranks = 1;
    p.count = args->terms->count;
    for (int k = 0; k < p.count; k++) {
        p.kind[k] = args->terms->kind[k];
        p.index[k] = k;
    }
    return p;
}

/*
 * How many blocks hold a row in shared memory: as few as leave room for three of them on a
 * multiprocessor, so that some load while others compute; 0: it is too long.
 */
int ranks_for(kd_exec *exec, const Params &p, size_t class_bytes)
{
    const kd_cuda_limits *limits = kd_cuda_limits_of(exec);
    const size_t own = 5 << 10; /* static, and what the system takes */
    const int most = limits->capability >= 90 ? 8 : 1;
    const int units = (p.classes + KD_UNIT - 1) / KD_UNIT;
    for (int ranks = kd_min_i64(kd_max_i64(limits->row_blocks, 1), most);; ranks *= 2) {
        const size_t bytes = (size_t)((units + ranks - 1) / ranks) * KD_UNIT * class_bytes +
                             bytes_of_sums<Set<ANY, NONE>>(p.count, 512) + own;
        if (bytes <= limits->shared / 3) return ranks;
        if (ranks == most) return bytes <= limits->shared / (most == 1 ? 2 : 1) ? ranks : 0;
    }
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
    const size_t class_bytes = kd_dtype_size(student) + (p.teacher ? kd_dtype_size(teacher) : 0);
    if (kd_cuda_limits_of(exec)->row_blocks) {
        p.ranks = ranks_for(exec, p, class_bytes);
        if (p.ranks) return kd_row_loss_resident(exec, (int)rows, &p, student, teacher);
        p.ranks = 1;
    }
    return launch_types<false>(exec, (int)rows, p, student, teacher);
}
