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

/* ---- relations -------------------------------------------------------------------------------- */

/* B documents of T tokens, R heads of d on both sides; "full": not causal; "self": of rows to themselves,
 * as MiniLM's, both ways; "mse": of scores. */
static double pairs(const bench_shape *s)
{
    const bool all = strcmp(s->variant, "full") == 0 || strcmp(s->variant, "self") == 0;
    return (all ? 1 : 0.5) * dim(s, 0) * dim(s, 1) * dim(s, 1) * dim(s, 2);
}

static bench_work work_relation_lse(const bench_shape *s)
{
    return (bench_work){ .bytes = 2 * element(s) * product(s, 4) + 4 * product(s, 3),
                         .flops = 2 * pairs(s) * dim(s, 3) };
}

/* Scores of both sides and two gradients, each pair seen once; a and b read on both sides, da and db
 * read and written, of one tensor each where b is a. */
static bench_work work_relation(const bench_shape *s)
{
    const double tensors = strcmp(s->variant, "self") == 0 ? 2 + 2 : 4 + 4;
    return (bench_work){ .bytes = tensors * element(s) * product(s, 4) + 8 * product(s, 3),
                         .flops = 4 * 2 * pairs(s) * dim(s, 3) };
}

static const kd_tensor *documents(bench_run *r, int set)
{
    int32_t cu[257];
    for (int64_t i = 0; i <= r->shape->dim[0]; i++) cu[i] = (int32_t)(i * r->shape->dim[1]);
    return kd_bench_given(r, set, KD_I32, KD_SHAPE(r->shape->dim[0] + 1), cu);
}

static void open_relation_lse(bench_run *r, int set)
{
    const int64_t *n = r->shape->dim;
    const kd_shape rows = KD_SHAPE(n[0] * n[1], n[2], n[3]);
    ARGS(r, set, relation_lse, .lse = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n[2], rows.dim[0])),
         .a = values(r, set, rows, 1), .b = values(r, set, rows, 2), .cu = documents(r, set),
         .scores = { .scale = 1 / sqrtf((float)n[3]) }, .temperature = 1, .causal = !is(r, "full"));
}

/* The log-sum-exps are those of some scores; the work does not depend on them. */
static void open_relation(bench_run *r, int set)
{
    const int64_t *n = r->shape->dim;
    const kd_shape rows = KD_SHAPE(n[0] * n[1], n[2], n[3]), sums = KD_SHAPE(n[2], rows.dim[0]);
    const kd_scoring scores = { .scale = 1 / sqrtf((float)n[3]) };
    const kd_tensor *a = values(r, set, rows, 1), *teacher_a = values(r, set, rows, 2);
    const kd_tensor *da = result(r, set, rows);
    const bool self = is(r, "self");
    ARGS(r, set, relation, .loss = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(rows.dim[0])), .da = da,
         .db = self ? da : result(r, set, rows), .a = a, .b = self ? a : values(r, set, rows, 3),
         .teacher_a = teacher_a, .teacher_b = self ? teacher_a : values(r, set, rows, 4),
         .lse = kd_bench_filled(r, set, KD_F32, sums, 4, 8, 5),
         .teacher_lse = kd_bench_filled(r, set, KD_F32, sums, 4, 8, 6), .cu = documents(r, set),
         .scale = kd_bench_filled(r, set, KD_F32, KD_SHAPE(1), 1, 2, 7),
         .relation = { .kind = is(r, "mse") ? KD_RELATION_MSE : KD_RELATION_KL,
                       .student = scores,
                       .teacher = scores,
                       .temperature = 1,
                       .causal = !is(r, "full") && !self });
}

static const bench_shape relation_lses[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 17, 2, 16 } },
    { BENCH_GPU, "", KD_BF16, { 8, 2048, 16, 64 } },
    { BENCH_GPU, "full", KD_BF16, { 8, 2048, 16, 128 } },
    { BENCH_CPU, "", KD_F32, { 4, 256, 9, 64 } },
};

static const bench_shape relations[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 17, 2, 16 } },
    { BENCH_QUICK, "self", KD_F32, { 2, 17, 2, 16 } },
    { BENCH_GPU, "", KD_BF16, { 8, 2048, 16, 64 } },
    { BENCH_GPU, "", KD_BF16, { 8, 2048, 16, 128 } },
    { BENCH_GPU, "mse", KD_BF16, { 8, 2048, 16, 64 } },
    { BENCH_GPU, "self", KD_BF16, { 8, 2048, 64, 32 } },
    { BENCH_CPU, "", KD_F32, { 4, 256, 9, 64 } },
    { BENCH_CPU, "mse", KD_F32, { 4, 256, 9, 64 } },
    { BENCH_CPU, "self", KD_F32, { 4, 256, 9, 64 } },
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
    OP_ROW(relation_lse, "BTRd", work_relation_lse, relation_lses),
    OP_ROW(relation, "BTRd", work_relation, relations),
    OP_ROW(map_powers, "BCS", work_map_powers, maps),
    OP_ROW(map_powers_backward, "BCS", work_map_powers_backward, maps),
    { 0 },
};
