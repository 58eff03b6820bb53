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

/* ---- pairs of a batch ------------------------------------------------------------------------- */

/* Operations that are no products of matrices are counted as flops all the same: where there are N or
 * N^2 of them for each number read, they are what a row is bound by. */
static const kd_tensor *square(bench_run *r, int set, unsigned salt)
{
    const int64_t n = r->shape->dim[0];
    return kd_bench_filled(r, set, KD_F32, KD_SHAPE(n, n), 0.5, 1, salt);
}

static const kd_tensor *list(bench_run *r, int set)
{
    return kd_bench_zeros(r, set, KD_F32, KD_SHAPE(r->shape->dim[0]));
}

static const kd_tensor *one(bench_run *r, int set)
{
    return kd_bench_filled(r, set, KD_F32, KD_SHAPE(1), 1, 2, 3);
}

static bench_work work_normalise(const bench_shape *s)
{
    return (bench_work){ .bytes = 2 * element(s) * product(s, 2) };
}

static bench_work work_normalise_backward(const bench_shape *s)
{
    return (bench_work){ .bytes = 4 * element(s) * product(s, 2) };
}

static bench_work work_keep_rows(const bench_shape *s)
{
    return (bench_work){ .bytes = (element(s) + 4) * product(s, 2) };
}

static void open_normalise(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, normalise, .y = result(r, set, shape), .norm = list(r, set),
         .x = values(r, set, shape, 1), .eps = 1e-7f, .added = true);
}

static void open_normalise_backward(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, normalise_backward, .dx = result(r, set, shape), .dy = values(r, set, shape, 1),
         .x = values(r, set, shape, 2),
         .norm = kd_bench_filled(r, set, KD_F32, KD_SHAPE(shape.dim[0]), 8, 9, 3), .eps = 1e-7f,
         .added = true);
}

static void open_keep_rows(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, keep_rows, .y = kd_bench_zeros(r, set, KD_F32, shape), .share = list(r, set),
         .x = values(r, set, shape, 1),
         .weight = kd_bench_filled(r, set, KD_F32, KD_SHAPE(shape.dim[0]), 1, 2, 3));
}

static const bench_shape batches[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33 } },
    { BENCH_GPU, "", KD_BF16, { 4096, 4096 } },
    { BENCH_CPU, "", KD_F32, { 512, 512 } },
};

/* A difference, its square and a sum for half of the pairs; the gradient's for all. */
static bench_work work_pair_distances(const bench_shape *s)
{
    const double n = dim(s, 0), d = dim(s, 1);
    return (bench_work){ .bytes = element(s) * n * d + 4 * n * n, .flops = 1.5 * n * n * d };
}

static bench_work work_pair_distances_backward(const bench_shape *s)
{
    const double n = dim(s, 0), d = dim(s, 1);
    return (bench_work){ .bytes = 3 * element(s) * n * d + 4 * n * n, .flops = 3 * n * n * d };
}

static void open_pair_distances(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0];
    ARGS(r, set, pair_distances, .y = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n, n)),
         .x = values(r, set, KD_SHAPE(n, r->shape->dim[1]), 1));
}

static void open_pair_distances_backward(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, pair_distances_backward, .dx = result(r, set, shape), .dy = square(r, set, 2),
         .x = values(r, set, shape, 1));
}

static const bench_shape pairs_of_rows[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33 } },     { BENCH_GPU, "", KD_F32, { 1024, 512 } },
    { BENCH_GPU, "", KD_BF16, { 4096, 4096 } }, { BENCH_CPU, "", KD_F32, { 512, 512 } },
    { BENCH_CPU, "", KD_BF16, { 512, 512 } },
};

/* Both sides read, d written. */
static bench_work work_squares(const bench_shape *s)
{
    return (bench_work){ .bytes = 12 * dim(s, 0) * dim(s, 0) };
}

/* Two angles, 20 operations each, for each of N^3. */
static bench_work work_rkd_angle(const bench_shape *s)
{
    const double n = dim(s, 0);
    return (bench_work){ .bytes = 12 * n * n, .flops = 40 * n * n * n };
}

static void open_rkd_distance(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0];
    ARGS(r, set, rkd_distance, .d = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n, n)),
         .loss = list(r, set), .student = square(r, set, 1), .teacher = square(r, set, 2),
         .scale = one(r, set));
}

static void open_rkd_angle(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0];
    ARGS(r, set, rkd_angle, .d = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n, n)),
         .loss = list(r, set), .student = square(r, set, 1), .teacher = square(r, set, 2),
         .scale = one(r, set));
}

static void open_pkt(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0];
    ARGS(r, set, pkt, .d = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n, n)), .loss = list(r, set),
         .student = square(r, set, 1), .teacher = square(r, set, 2), .scale = one(r, set),
         .eps = 1e-7f);
}

static const bench_shape squares[] = {
    { BENCH_QUICK, "", KD_F32, { 5 } },
    { BENCH_GPU, "", KD_F32, { 512 } },
    { BENCH_GPU, "", KD_F32, { 2048 } },
    { BENCH_CPU, "", KD_F32, { 512 } },
};

static bench_work work_correlation(const bench_shape *s)
{
    return (bench_work){ .bytes = 4 * element(s) * product(s, 2) };
}

static void open_correlation(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, correlation, .d_student = result(r, set, shape), .loss = list(r, set),
         .student = values(r, set, shape, 1), .teacher = values(r, set, shape, 2),
         .scale = one(r, set));
}

/* ---- the rows --------------------------------------------------------------------------------- */

const bench_row kd_bench_rows_features[] = {
    OP_ROW(row_distance, "ND", work_row_distance, row_distances),
    OP_ROW(map_powers, "BCS", work_map_powers, maps),
    OP_ROW(map_powers_backward, "BCS", work_map_powers_backward, maps),
    OP_ROW(normalise, "ND", work_normalise, batches),
    OP_ROW(normalise_backward, "ND", work_normalise_backward, batches),
    OP_ROW(keep_rows, "ND", work_keep_rows, batches),
    OP_ROW(pair_distances, "ND", work_pair_distances, pairs_of_rows),
    OP_ROW(pair_distances_backward, "ND", work_pair_distances_backward, pairs_of_rows),
    OP_ROW(rkd_distance, "N", work_squares, squares),
    OP_ROW(rkd_angle, "N", work_rkd_angle, squares),
    OP_ROW(pkt, "N", work_squares, squares),
    OP_ROW(correlation, "ND", work_correlation, batches),
    { 0 },
};
