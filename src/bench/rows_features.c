/* Rows of what losses over features and relations do. */
#include "bench/rows.h"

/* Both sides, and the gradient read and written. */
static bench_work work_row_distance(const bench_shape *s)
{
    return (bench_work){ .bytes = 4 * element(s) * product(s, 2) };
}

static void open_row_distance(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, row_distance, .d_student = result(r, set, shape),
         .loss = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(shape.dim[0])),
         .student = values(r, set, shape, 1), .teacher = values(r, set, shape, 2),
         .scale = kd_bench_filled(r, set, KD_F32, KD_SHAPE(1), 1, 2, 3),
         .kind = is(r, "cosine") ? KD_DISTANCE_COSINE : KD_DISTANCE_SQUARED, .factor = 1);
}

static const bench_shape row_distances[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33 } },           { BENCH_GPU, "", KD_BF16, { 8192, 4096 } },
    { BENCH_GPU, "cosine", KD_BF16, { 8192, 4096 } }, { BENCH_CPU, "", KD_F32, { 1024, 576 } },
    { BENCH_CPU, "cosine", KD_F32, { 1024, 576 } },
};

const bench_row kd_bench_rows_features[] = {
    OP_ROW(row_distance, "ND", work_row_distance, row_distances),
    { 0 },
};
