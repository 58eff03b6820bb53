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

/* ---- a bank of rows --------------------------------------------------------------------------- */

/* A gather of K + 1 rows of a bank for each row of x, and their ids. */
static bench_work work_contrast_partition(const bench_shape *s)
{
    return (bench_work){ .bytes = dim(s, 0) * (dim(s, 1) + 1) * (4 * dim(s, 2) + 4) };
}

static bench_work work_contrast(const bench_shape *s)
{
    bench_work work = work_contrast_partition(s);
    work.bytes += 3 * element(s) * dim(s, 0) * dim(s, 2); /* x, and dx twice */
    return work;
}

static const kd_tensor *numbers(bench_run *r, int set, kd_shape shape, unsigned salt)
{
    return kd_bench_filled(r, set, KD_I32, shape, 0, (double)r->shape->dim[3], salt);
}

/* Elements of a bank's rows: about as long as 1. */
static const kd_tensor *bank(bench_run *r, int set)
{
    const double by = sqrt(3.0 / (double)r->shape->dim[2]);
    return kd_bench_filled(r, set, KD_F32, KD_SHAPE(r->shape->dim[3], r->shape->dim[2]), -by, by,
                           2);
}

static void open_contrast(bench_run *r, int set)
{
    const int64_t *n = r->shape->dim;
    const kd_shape shape = KD_SHAPE(n[0], n[2]);
    ARGS(r, set, contrast, .dx = result(r, set, shape), .loss = list(r, set),
         .x = values(r, set, shape, 1), .bank = bank(r, set),
         .samples = numbers(r, set, KD_SHAPE(n[0]), 3),
         .negatives = numbers(r, set, KD_SHAPE(n[0], n[1]), 4),
         .partition = kd_bench_filled(r, set, KD_F32, KD_SHAPE(1), 1e5, 2e5, 5),
         .scale = one(r, set), .temperature = 0.07f, .eps = 1e-7f);
}

/* Z is the first tensor, which is put back to 0. */
static void open_contrast_partition(bench_run *r, int set)
{
    const int64_t *n = r->shape->dim;
    const kd_tensor *partition = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(1));
    ARGS(r, set, contrast_partition, .partition = partition,
         .x = values(r, set, KD_SHAPE(n[0], n[2]), 1), .bank = bank(r, set),
         .samples = numbers(r, set, KD_SHAPE(n[0]), 3),
         .negatives = numbers(r, set, KD_SHAPE(n[0], n[1]), 4), .temperature = 0.07f);
}

static const bench_shape contrasts[] = {
    { BENCH_QUICK, "", KD_F32, { 3, 70, 33, 500 } },
    { BENCH_GPU, "", KD_BF16, { 64, 16384, 128, 50000 } },
    { BENCH_GPU, "", KD_BF16, { 256, 16384, 128, 1281167 } },
    { BENCH_CPU, "", KD_F32, { 16, 16384, 128, 50000 } },
};

/* Rows of x and of the bank read, those of the bank written. */
static bench_work work_renew_rows(const bench_shape *s)
{
    return (bench_work){ .bytes = (element(s) + 8) * product(s, 2) };
}

static void open_renew_rows(bench_run *r, int set)
{
    const int64_t rows = r->shape->dim[0], columns = r->shape->dim[1];
    int32_t *ids;
    if (r->status == KD_OK) r->status = KD_ARENA_ARRAY(&ids, r->arena, rows);
    if (r->status != KD_OK) return;
    for (int64_t i = 0; i < rows; i++) ids[i] = (int32_t)(i * 7);
    ARGS(r, set, renew_rows,
         .bank = kd_bench_filled(r, set, KD_F32, KD_SHAPE(7 * rows, columns), -1, 1, 1),
         .x = values(r, set, KD_SHAPE(rows, columns), 2),
         .samples = kd_bench_given(r, set, KD_I32, KD_SHAPE(rows), ids), .momentum = 0.5f);
}

static const bench_shape renewals[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33 } },
    { BENCH_GPU, "", KD_BF16, { 1024, 128 } },
    { BENCH_CPU, "", KD_F32, { 1024, 128 } },
};

/* ---- products of maps ------------------------------------------------------------------------- */

static bench_work work_matmul_batched(const bench_shape *s)
{
    const double b = dim(s, 0), m = dim(s, 1), n = dim(s, 2), k = dim(s, 3);
    return (bench_work){ .bytes = 4 * b * (m * k + k * n + m * n), .flops = 2 * b * m * n * k };
}

/* x'x of maps, by places. */
static void open_matmul_batched(bench_run *r, int set)
{
    const int64_t *n = r->shape->dim;
    kd_tensor *turned = &r->tensor[set][r->count[set]++];
    *turned = *values(r, set, KD_SHAPE(n[0], n[3], n[1]), 1);
    turned->shape[1] = n[1], turned->stride[1] = 1;
    turned->shape[2] = n[3], turned->stride[2] = n[1];
    ARGS(r, set, matmul_batched, .y = result(r, set, KD_SHAPE(n[0], n[1], n[2])), .a = turned,
         .b = values(r, set, KD_SHAPE(n[0], n[3], n[2]), 2));
}

static const bench_shape batched_products[] = {
    { BENCH_QUICK, "", KD_F32, { 3, 9, 10, 5 } },
    { BENCH_GPU, "", KD_F32, { 64, 256, 256, 256 } },
    { BENCH_GPU, "", KD_F32, { 256, 64, 64, 256 } },
    { BENCH_CPU, "", KD_F32, { 64, 64, 64, 256 } },
    { BENCH_CPU, "", KD_F32, { 16, 256, 256, 256 } },
};

/* The student's products read and written, the teacher's read. */
static bench_work work_gram_distance(const bench_shape *s)
{
    const double c = dim(s, 1), places = dim(s, 2),
                 each = strcmp(s->variant, "channels") == 0 ? 5 * c * c : 3 * places * places;
    return (bench_work){ .bytes = 4 * dim(s, 0) * each };
}

/* With a scale that keeps what is overwritten of one size. */
static void open_gram_distance(bench_run *r, int set)
{
    const int64_t *n = r->shape->dim, c = n[1], rows = is(r, "channels") ? c : n[2];
    const double scale = (double)(c * c) / 4;
    ARGS(r, set, gram_distance,
         .student = values(r, set, KD_SHAPE(n[0], rows, is(r, "channels") ? 2 * c : rows), 1),
         .loss = list(r, set), .teacher = values(r, set, KD_SHAPE(n[0], rows, rows), 2),
         .scale = kd_bench_filled(r, set, KD_F32, KD_SHAPE(1), scale, 1.01 * scale, 3),
         .channels = c, .teacher_channels = c, .by_channel = is(r, "channels"));
}

static const bench_shape grams[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 5, 7 } },
    { BENCH_QUICK, "channels", KD_F32, { 2, 5, 7 } },
    { BENCH_GPU, "", KD_F32, { 64, 256, 256 } },
    { BENCH_GPU, "channels", KD_F32, { 256, 128, 1024 } },
    { BENCH_CPU, "", KD_F32, { 16, 256, 256 } },
    { BENCH_CPU, "channels", KD_F32, { 16, 128, 1024 } },
};

/* Both sides, and the gradient read and written. */
static bench_work work_vid(const bench_shape *s)
{
    return (bench_work){ .bytes = 4 * element(s) * product(s, 3) };
}

static void open_vid(bench_run *r, int set)
{
    const kd_shape shape = map_shape(r), channels = KD_SHAPE(shape.dim[1]);
    ARGS(r, set, vid, .d_student = result(r, set, shape),
         .d_log_variance = kd_bench_zeros(r, set, KD_F32, channels), .loss = list(r, set),
         .student = values(r, set, shape, 1), .teacher = values(r, set, shape, 2),
         .log_variance = kd_bench_filled(r, set, KD_F32, channels, -1, 5, 3), .scale = one(r, set),
         .eps = 1e-5f);
}

/* ---- the rows --------------------------------------------------------------------------------- */

const bench_row kd_bench_rows_features[] = {
    OP_ROW(row_distance, "ND", work_row_distance, row_distances),
    OP_ROW(relation_lse, "BTRd", work_relation_lse, relation_lses),
    OP_ROW(relation, "BTRd", work_relation, relations),
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
    OP_ROW(contrast, "BKDn", work_contrast, contrasts),
    { "contrast_partition", "BKDn", open_contrast_partition, NULL, work_contrast_partition,
      contrasts, KD_COUNT(contrasts), 0, KD_OP_contrast_partition, NULL },
    OP_ROW(renew_rows, "ND", work_renew_rows, renewals),
    OP_ROW(matmul_batched, "BMNK", work_matmul_batched, batched_products),
    OP_ROW(gram_distance, "BCS", work_gram_distance, grams),
    OP_ROW(vid, "BCS", work_vid, maps),
    { 0 },
};
