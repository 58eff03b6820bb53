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

/* x once; backward x again, and dx read and written. */
static bench_work work_map_powers(const bench_shape *s)
{
    return (bench_work){ .bytes = element(s) * product(s, 3) };
}

static bench_work work_map_powers_backward(const bench_shape *s)
{
    return (bench_work){ .bytes = 3 * element(s) * product(s, 3) };
}

static kd_shape map_shape(const bench_run *r)
{
    return KD_SHAPE(r->shape->dim[0], r->shape->dim[1], r->shape->dim[2]);
}

static void open_map_powers(bench_run *r, int set)
{
    const kd_shape shape = map_shape(r);
    ARGS(r, set, map_powers,
         .y = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(shape.dim[0], shape.dim[2])),
         .x = values(r, set, shape, 1), .power = 2);
}

static void open_map_powers_backward(bench_run *r, int set)
{
    const kd_shape shape = map_shape(r);
    ARGS(r, set, map_powers_backward, .dx = result(r, set, shape),
         .dy = kd_bench_filled(r, set, KD_F32, KD_SHAPE(shape.dim[0], shape.dim[2]), -1, 1, 2),
         .x = values(r, set, shape, 1), .power = 2);
}

static const bench_shape maps[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 3, 35 } },
    { BENCH_GPU, "", KD_BF16, { 256, 256, 1024 } },
    { BENCH_CPU, "", KD_F32, { 64, 64, 256 } },
};

const bench_row kd_bench_rows_features[] = {
    OP_ROW(row_distance, "ND", work_row_distance, row_distances),
    OP_ROW(map_powers, "BCS", work_map_powers, maps),
    OP_ROW(map_powers_backward, "BCS", work_map_powers_backward, maps),
    { 0 },
};
