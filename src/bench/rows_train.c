/* Rows of what only training does: embedding, rows by index, sums, the row terms, the head, the update. */
#include "bench/rows.h"

/* ---- embedding and rows by index -------------------------------------------------------------- */

static bench_work work_moved_rows(const bench_shape *s)
{
    return (bench_work){ .bytes = 2 * element(s) * dim(s, 0) * dim(s, 1) };
}

/* Of K = 1 there is no factor. */
static bool is_weighted(const bench_shape *s) { return s->dim[3] > 1; }

/* Of a cell NDVK: an element each of N D, `bytes` for each of the rows of the table that occur, of which
 * there are N K at most; of a factor's entries the id, and the factor or the product.  Two operations
 * an element that is read: never the floor. */
static bench_work work_of_entries(const bench_shape *s, double bytes)
{
    const double entries = dim(s, 0) * dim(s, 3), rows = fmin(entries, dim(s, 2));
    return (bench_work){ .bytes = dim(s, 1) * (element(s) * dim(s, 0) + bytes * rows) +
                                  (is_weighted(s) ? 8 * entries : 0) };
}

static bench_work work_table(const bench_shape *s) { return work_of_entries(s, element(s)); }

/* Rows of the table are read and written, in f32. */
static bench_work work_embedding_backward(const bench_shape *s) { return work_of_entries(s, 8); }

static const kd_tensor *ids(bench_run *r, int set, int64_t n, int64_t below)
{
    return kd_bench_filled(r, set, KD_I32, KD_SHAPE(n), 0, (double)below, 9);
}

/* [N, K] ids of a pattern as long as they are; a list of N where K is 1. */
static const kd_tensor *entries(bench_run *r, int set, int64_t below)
{
    const int64_t n = r->shape->dim[0], k = r->shape->dim[3];
    int32_t *host;
    if (!is_weighted(r->shape)) return ids(r, set, n, below);
    if (r->status == KD_OK) r->status = KD_ARENA_ARRAY(&host, r->arena, n * k);
    if (r->status != KD_OK) return NULL;
    for (int64_t i = 0; i < n * k; i++) host[i] = (int32_t)((double)below * kd_bench_hashed(i, 9));
    return kd_bench_given(r, set, KD_I32, KD_SHAPE(n, k), host);
}

static const kd_tensor *factor(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], k = r->shape->dim[3];
    return is_weighted(r->shape) ? kd_bench_filled(r, set, KD_F32, KD_SHAPE(n, k), -1, 1, 7) : NULL;
}

static void open_embedding(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1], v = r->shape->dim[2];
    ARGS(r, set, embedding, .y = result(r, set, KD_SHAPE(n, d)),
         .table = values(r, set, KD_SHAPE(v, d), 1), .ids = entries(r, set, v),
         .factor = factor(r, set));
}

static void open_embedding_backward(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1], v = r->shape->dim[2];
    ARGS(r, set, embedding_backward, .dtable = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(v, d)),
         .dy = values(r, set, KD_SHAPE(n, d), 1), .ids = entries(r, set, v),
         .factor = factor(r, set));
}

static void open_embedding_products(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1], v = r->shape->dim[2];
    ARGS(r, set, embedding_products,
         .y = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n, r->shape->dim[3])),
         .x = values(r, set, KD_SHAPE(n, d), 2), .table = values(r, set, KD_SHAPE(v, d), 1),
         .ids = entries(r, set, v));
}

static void open_gather_rows(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1], v = r->shape->dim[2];
    ARGS(r, set, gather_rows, .y = result(r, set, KD_SHAPE(n, d)),
         .x = values(r, set, KD_SHAPE(v, d), 1), .rows = ids(r, set, n, v));
}

static void open_scatter_rows(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1], v = r->shape->dim[2];
    ARGS(r, set, scatter_rows, .y = result(r, set, KD_SHAPE(v, d)),
         .x = values(r, set, KD_SHAPE(n, d), 1), .rows = ids(r, set, n, v));
}

static const bench_shape tables[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 16, 7, 1 } },
    { BENCH_GPU, "", KD_BF16, { 16384, 2048, 50304, 1 } },
    { BENCH_CPU, "", KD_F32, { 1024, 576, 49152, 1 } },
    { BENCH_CPU, "", KD_BF16, { 1024, 576, 49152, 1 } },
    { BENCH_QUICK, "", KD_F32, { 5, 16, 7, 3 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 2048, 128256, 64 } },
    { BENCH_CPU, "", KD_F32, { 256, 576, 49152, 64 } },
};

static const bench_shape sampled_heads[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 16, 7, 3 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 2048, 128256, 64 } },
    { BENCH_CPU, "", KD_F32, { 256, 576, 49152, 64 } },
};

static const bench_shape chosen[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 16, 9 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 4096, 16384 } },
    { BENCH_CPU, "", KD_F32, { 512, 576, 1024 } },
};

/* ---- slabs and sums --------------------------------------------------------------------------- */

static bench_work work_fill(const bench_shape *s)
{
    return (bench_work){ element(s) * dim(s, 0), 0, 0 };
}
static bench_work work_copy(const bench_shape *s)
{
    return (bench_work){ .bytes = 2 * element(s) * dim(s, 0) };
}
static bench_work work_add(const bench_shape *s)
{
    return (bench_work){ .bytes = 3 * element(s) * dim(s, 0) };
}

static void open_fill(bench_run *r, int set)
{
    ARGS(r, set, fill, .y = result(r, set, KD_SHAPE(r->shape->dim[0])), .value = 0.25f);
}

static void open_copy(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0]);
    ARGS(r, set, copy, .y = result(r, set, shape), .x = values(r, set, shape, 1));
}

static void open_add(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0]);
    ARGS(r, set, add, .y = result(r, set, shape), .a = values(r, set, shape, 1),
         .b = values(r, set, shape, 2));
}

static void open_sum_squares(bench_run *r, int set)
{
    ARGS(r, set, sum_squares, .y = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(1)),
         .x = values(r, set, KD_SHAPE(r->shape->dim[0]), 1));
}

static const bench_shape slabs[] = {
    { BENCH_QUICK, "", KD_F32, { 1000 } },     { BENCH_GPU, "", KD_F32, { 256 << 20 } },
    { BENCH_GPU, "", KD_BF16, { 256 << 20 } }, { BENCH_CPU, "", KD_F32, { 32 << 20 } },
    { BENCH_CPU, "", KD_BF16, { 32 << 20 } },
};

static const bench_shape slabs_f32[] = {
    { BENCH_QUICK, "", KD_F32, { 1000 } },
    { BENCH_GPU, "", KD_F32, { 256 << 20 } },
    { BENCH_CPU, "", KD_F32, { 32 << 20 } },
};

static bench_work work_sum(const bench_shape *s)
{
    return (bench_work){ .bytes = element(s) * dim(s, 0) * dim(s, 1) };
}

static void open_sum_columns(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1];
    ARGS(r, set, sum_columns, .y = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(d)),
         .x = values(r, set, KD_SHAPE(n, d), 1));
}

static void open_sum_rows(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1];
    ARGS(r, set, sum_rows, .y = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n)),
         .x = values(r, set, KD_SHAPE(n, d), 1));
}

static const bench_shape columns[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 48 } },
    { BENCH_GPU, "", KD_BF16, { 16384, 3072 } },
    { BENCH_CPU, "", KD_F32, { 1024, 3072 } },
};

static const bench_shape losses[] = {
    { BENCH_QUICK, "", KD_F32, { 3, 50 } },
    { BENCH_GPU, "", KD_F32, { 3, 16384 } },
    { BENCH_CPU, "", KD_F32, { 3, 16384 } },
};

/* ---- the row terms ---------------------------------------------------------------------------- */

static const struct {
    const char *variant;
    kd_row_terms terms;
} mixes[] = {
    { "ce", { .count = 1, .kind = { KD_ROW_cross_entropy } } },
    { "kl", { .count = 1, .kind = { KD_ROW_forward_kl } } },
    { "rkl", { .count = 1, .kind = { KD_ROW_reverse_kl } } },
    { "jsd", { .count = 1, .kind = { KD_ROW_jsd } } },
    { "ce+kl", { .count = 2, .kind = { KD_ROW_cross_entropy, KD_ROW_forward_kl } } },
};

static const kd_row_terms *mix_of(const bench_shape *s)
{
    for (int i = 0; i < KD_COUNT(mixes); i++)
        if (strcmp(mixes[i].variant, s->variant) == 0) return &mixes[i].terms;
    return NULL;
}

static bool needs_teacher(const bench_shape *s) { return strcmp(s->variant, "ce") != 0; }

/* Cross entropy at T = 1, divergences at T = 2 with T^2; every term at weight 1 / N. */
static kd_step_scalars scalars_of(const bench_shape *s)
{
    kd_step_scalars scalars = { .clip = 1 };
    const kd_row_terms *terms = mix_of(s);
    for (int k = 0; k < terms->count; k++) {
        const bool label = kd_row_types[terms->kind[k]].label;
        scalars.term[k] = (kd_term_scalars){ .scale = 1 / (float)s->dim[0],
                                             .temperature = label ? 1 : 2,
                                             .t_squared = label ? 1 : 4,
                                             .option = label ? 0 : 0.5f };
    }
    return scalars;
}

/* Student and teacher read once, the gradient written once. */
static bench_work work_row_loss(const bench_shape *s)
{
    const double passes = needs_teacher(s) ? 3 : 2;
    return (bench_work){ .bytes = passes * element(s) * dim(s, 0) * dim(s, 1) };
}

static void open_row_loss(bench_run *r, int set)
{
    const bench_shape *s = r->shape;
    const int64_t n = s->dim[0], v = s->dim[1];
    const kd_step_scalars scalars = scalars_of(s);
    const kd_tensor *student = kd_bench_filled(r, set, s->dtype, KD_SHAPE(n, v), -4, 4, 1);
    const kd_tensor *teacher =
        needs_teacher(s) ? kd_bench_filled(r, set, s->dtype, KD_SHAPE(n, v), -4, 4, 2) : NULL;
    const kd_tensor *loss = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(mix_of(s)->count, n));
    if (set == 0) r->value = *loss;
    ARGS(r, set, row_loss, .student = student, .loss = loss, .teacher = teacher,
         .labels = ids(r, set, n, v),
         .scalars = kd_bench_given(r, set, KD_U8, KD_SHAPE((int64_t)sizeof scalars), &scalars),
         .terms = mix_of(s), .classes = v);
}

static const bench_shape logits[] = {
    { BENCH_QUICK, "ce+kl", KD_F32, { 3, 50 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 128256 } },
    { BENCH_GPU, "ce+kl", KD_BF16, { 8192, 128256 } },
    { BENCH_GPU, "rkl", KD_BF16, { 8192, 128256 } },
    { BENCH_GPU, "jsd", KD_BF16, { 8192, 128256 } },
    { BENCH_GPU, "ce", KD_BF16, { 8192, 128256 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 32000 } },
    { BENCH_GPU, "ce+kl", KD_BF16, { 16384, 8192 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 151936 } },
    { BENCH_GPU, "kl", KD_F32, { 4096, 128256 } },
    { BENCH_CPU, "kl", KD_F32, { 64, 49152 } },
    { BENCH_CPU, "ce+kl", KD_F32, { 64, 151936 } },
    { BENCH_CPU, "kl", KD_BF16, { 64, 49152 } },
    { BENCH_CPU, "kl", KD_BF16, { 64, 151936 } },
    { BENCH_CPU, "jsd", KD_F32, { 64, 49152 } },
};

/* Student read once and its gradient written once; of what is known of the teacher, ids and log p. */
static bench_work work_row_loss_topk(const bench_shape *s)
{
    return (bench_work){ .bytes = dim(s, 0) *
                                  (2 * element(s) * dim(s, 1) + (4 + element(s)) * dim(s, 2)) };
}

static void open_row_loss_topk(bench_run *r, int set)
{
    const bench_shape *s = r->shape;
    const int64_t n = s->dim[0], v = s->dim[1], k = s->dim[2];
    kd_step_scalars scalars = scalars_of(s);
    int32_t *known;
    for (int i = 0; i < mix_of(s)->count; i++)
        scalars.term[i].temperature = scalars.term[i].t_squared = 1;
    if (r->status == KD_OK) r->status = KD_ARENA_ARRAY(&known, r->arena, n * k);
    if (r->status != KD_OK) return;
    for (int64_t i = 0; i < n * k; i++) known[i] = (int32_t)((i % k * (v / k) + i / k) % v);
    ARGS(r, set, row_loss_topk,
         .student = kd_bench_filled(r, set, s->dtype, KD_SHAPE(n, v), -4, 4, 1),
         .loss = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(mix_of(s)->count, n)),
         .teacher_ids = kd_bench_given(r, set, KD_I32, KD_SHAPE(n, k), known),
         .teacher_log_p = kd_bench_filled(r, set, s->dtype, KD_SHAPE(n, k), -12, -8, 2),
         .labels = ids(r, set, n, v),
         .scalars = kd_bench_given(r, set, KD_U8, KD_SHAPE((int64_t)sizeof scalars), &scalars),
         .terms = mix_of(s), .classes = v, .mode = KD_TOPK_TAIL, .capture = 1);
}

static const bench_shape known_classes[] = {
    { BENCH_QUICK, "ce+kl", KD_F32, { 3, 50, 4 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 128256, 64 } },
    { BENCH_GPU, "ce+kl", KD_BF16, { 8192, 128256, 64 } },
    { BENCH_CPU, "ce+kl", KD_F32, { 64, 151936, 64 } },
};

/* The logits read once; an id and a log p of each class that is taken. */
static bench_work work_top_classes(const bench_shape *s)
{
    return (bench_work){ .bytes = dim(s, 0) * (element(s) * dim(s, 1) + 8 * dim(s, 2)) };
}

static void open_top_classes(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], v = r->shape->dim[1], k = r->shape->dim[2];
    ARGS(r, set, top_classes, .ids = kd_bench_zeros(r, set, KD_I32, KD_SHAPE(n, k)),
         .log_p = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n, k)),
         .logits = kd_bench_filled(r, set, r->shape->dtype, KD_SHAPE(n, v), -4, 4, 2), .classes = v,
         .temperature = 1);
}

static const bench_shape taken_classes[] = {
    { BENCH_QUICK, "", KD_F32, { 3, 50, 4 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 128256, 64 } },
    { BENCH_CPU, "", KD_F32, { 256, 49152, 64 } },
};

/* ---- the head --------------------------------------------------------------------------------- */

typedef struct head {
    kd_term terms[2];
    kd_objective objective;
    kd_taps student, teacher;
    kd_targets targets;
    const kd_tensor *scalars, *totals;
} head;

/* Products of both heads and of the student's two gradients, then the row terms' traffic. */
static bench_work work_head(const bench_shape *s)
{
    const double n = dim(s, 0), hs = dim(s, 1), ht = dim(s, 2), v = dim(s, 3);
    return (bench_work){ .bytes = 3 * element(s) * n * v,
                         .flops = 2 * n * v * (3 * hs + ht),
                         .in_turn = true };
}

static void open_head(bench_run *r, int set)
{
    const bench_shape *s = r->shape;
    const int64_t n = s->dim[0], hs = s->dim[1], ht = s->dim[2], v = s->dim[3];
    const kd_step_scalars scalars = scalars_of(s);
    kd_device_info info;
    head *h;
    if (!r->counting && !r->context[set]) {
        r->status = kd_arena_alloc(&r->context[set], r->arena, sizeof *h);
        if (r->status != KD_OK) return;
    }
    head counted;
    h = r->counting ? &counted : r->context[set];
    *h = (head){ 0 };
    kd_device_describe(&info, r->exec.device);
    const int64_t chunk =
        kd_objective_chunk(n, 2 * v * (int64_t)kd_dtype_size(s->dtype), hs, &info);
    const int64_t rows = kd_ceil_div(n, chunk) * chunk;
    const float spread = 1 / sqrtf((float)hs);
    h->student.head = (kd_head){ .hidden = *values(r, set, KD_SHAPE(n, hs), 1),
                                 .weight = *kd_bench_filled(r, set, s->dtype, KD_SHAPE(v, hs),
                                                            -4 * spread, 4 * spread, 2),
                                 .d_weight = *kd_bench_zeros(r, set, KD_F32, KD_SHAPE(v, hs)),
                                 .classes = v };
    h->teacher.head = (kd_head){ .hidden = *values(r, set, KD_SHAPE(n, ht), 3),
                                 .weight = *kd_bench_filled(r, set, s->dtype, KD_SHAPE(v, ht),
                                                            -4 * spread, 4 * spread, 4),
                                 .classes = v };
    for (int k = 0; k < mix_of(s)->count; k++)
        h->terms[k] = (kd_term){ .name = "bench",
                                 .kind = mix_of(s)->kind[k],
                                 .weight = { 1, 1, 0 },
                                 .temperature = (double)scalars.term[k].temperature,
                                 .student = 0,
                                 .teacher = kd_row_types[mix_of(s)->kind[k]].teacher ? 1 : -1 };
    h->objective = (kd_objective){
        .terms = h->terms, .count = mix_of(s)->count, .chunk = chunk, .classes = v
    };
    int32_t *each, *labels;
    if (r->status == KD_OK) r->status = KD_ARENA_ARRAY(&each, r->arena, rows);
    if (r->status == KD_OK) r->status = KD_ARENA_ARRAY(&labels, r->arena, rows);
    if (r->status != KD_OK) return;
    for (int64_t i = 0; i < rows; i++) {
        each[i] = i < n ? (int32_t)i : -1;
        labels[i] = i < n ? (int32_t)((double)v * kd_bench_hashed(i, 9)) : -1;
    }
    h->targets.rows = *kd_bench_given(r, set, KD_I32, KD_SHAPE(rows), each);
    h->targets.labels = *kd_bench_given(r, set, KD_I32, KD_SHAPE(rows), labels);
    h->targets.count = n;
    h->scalars = kd_bench_given(r, set, KD_U8, KD_SHAPE((int64_t)sizeof scalars), &scalars);
    h->totals = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(kd_objective_terms(&h->objective, 0) + 1));
    if (set == 0) r->value = kd_tensor_slice(h->totals, 0, 0, h->objective.count);
}

static kd_status run_head(bench_run *r, int set)
{
    head *h = r->context[set];
    kd_taps *const taps[] = { &h->student, &h->teacher };
    const kd_mark mark = kd_stack_mark(r->exec.stack);
    KD_TRY(KD_RUN(&r->exec, fill, .y = h->totals, .value = 0));
    KD_TRY(kd_objective_head(&h->objective, &r->exec, 0, taps, &h->targets, h->scalars, h->totals,
                             NULL, true));
    kd_stack_release(r->exec.stack, mark);
    return KD_OK;
}

static const bench_shape heads[] = {
    { BENCH_QUICK, "ce+kl", KD_F32, { 7, 16, 24, 50 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 2048, 4096, 128256 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 4096, 4096, 128256 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 896, 3584, 151936 } },
    { BENCH_GPU, "kl", KD_BF16, { 8192, 768, 1024, 50304 } },
    { BENCH_CPU, "ce+kl", KD_F32, { 256, 576, 576, 49152 } },
    { BENCH_CPU, "ce+kl", KD_BF16, { 256, 576, 576, 49152 } },
};

/* ---- the update ------------------------------------------------------------------------------- */

static const kd_tensor *update_scalars(bench_run *r, int set)
{
    const kd_step_scalars scalars = { .lr = 1e-4f, .bias1 = 0.5f, .bias2 = 0.5f, .clip = 1 };
    return kd_bench_given(r, set, KD_U8, KD_SHAPE((int64_t)sizeof scalars), &scalars);
}

static void open_clip(bench_run *r, int set)
{
    ARGS(r, set, clip, .scalars = update_scalars(r, set),
         .sum_squares = kd_bench_filled(r, set, KD_F32, KD_SHAPE(1), 1, 2, 1),
         .losses = kd_bench_filled(r, set, KD_F32, KD_SHAPE(r->shape->dim[0]), 0, 1, 2),
         .max_norm = 1);
}

static void open_guard(bench_run *r, int set)
{
    static const kd_guard full = { .seen = KD_GUARD_WINDOW };
    static const kd_step_scalars scalars[KD_MAX_STUDENTS];
    const int64_t bytes = r->shape->dim[0] * (int64_t)sizeof *scalars;
    ARGS(r, set, guard,
         .guard = kd_bench_given(r, set, KD_U8, KD_SHAPE((int64_t)sizeof full), &full),
         .scalars = kd_bench_given(r, set, KD_U8, KD_SHAPE(bytes), scalars), .zscore = 5,
         .max_skips = 10, .beta1 = 0.9f, .beta2 = 0.95f);
}

/* The dtype is that of the weights' copy; f32 weights are the masters themselves. */
static const kd_tensor *published(bench_run *r, int set)
{
    return r->shape->dtype == KD_F32 ? NULL : result(r, set, KD_SHAPE(r->shape->dim[0]));
}

static double update_bytes(const bench_shape *s, double f32s)
{
    return dim(s, 0) * (4 * f32s + (s->dtype == KD_F32 ? 0 : element(s)));
}

/* Reads gradient, param, m, v; writes param, m, v and the copy. */
static bench_work work_adamw(const bench_shape *s)
{
    return (bench_work){ update_bytes(s, 7), 0, 0 };
}
static bench_work work_sgd(const bench_shape *s)
{
    return (bench_work){ update_bytes(s, 5), 0, 0 };
}

static void open_adamw(bench_run *r, int set)
{
    const kd_shape n = KD_SHAPE(r->shape->dim[0]);
    ARGS(r, set, adamw, .param = kd_bench_filled(r, set, KD_F32, n, -1, 1, 1),
         .m = kd_bench_zeros(r, set, KD_F32, n), .v = kd_bench_zeros(r, set, KD_F32, n),
         .weights = published(r, set), .gradient = kd_bench_filled(r, set, KD_F32, n, -1, 1, 2),
         .scalars = update_scalars(r, set), .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
         .decay = 0.1f);
}

static void open_sgd(bench_run *r, int set)
{
    const kd_shape n = KD_SHAPE(r->shape->dim[0]);
    ARGS(r, set, sgd, .param = kd_bench_filled(r, set, KD_F32, n, -1, 1, 1),
         .m = kd_bench_zeros(r, set, KD_F32, n), .weights = published(r, set),
         .gradient = kd_bench_filled(r, set, KD_F32, n, -1, 1, 2),
         .scalars = update_scalars(r, set), .momentum = 0.9f, .decay = 0.1f);
}

static const bench_shape updates[] = {
    { BENCH_QUICK, "", KD_BF16, { 1000 } },
    { BENCH_GPU, "", KD_BF16, { 124 << 20 } },
    { BENCH_CPU, "", KD_F32, { 16 << 20 } },
    { BENCH_CPU, "", KD_BF16, { 16 << 20 } },
};

static bench_work work_clip(const bench_shape *s) { return (bench_work){ 4 * dim(s, 0), 0, 0 }; }

/* Two windows of each student. */
static bench_work work_guard(const bench_shape *s)
{
    return (bench_work){ 2 * sizeof(float) * KD_GUARD_WINDOW * dim(s, 0), 0, 0 };
}

static const bench_shape students[] = {
    { BENCH_QUICK, "", KD_F32, { 2 } },
    { BENCH_GPU | BENCH_CPU, "", KD_F32, { 1 } },
};

static const bench_shape few[] = {
    { BENCH_QUICK, "", KD_F32, { 3 } },
    { BENCH_GPU | BENCH_CPU, "", KD_F32, { 8 } },
};

/* ---- the rows --------------------------------------------------------------------------------- */

#define ROW(op, letters, work, list, restored)                                                     \
    {                                                                                              \
#op, letters, open_##op, NULL, work, list, KD_COUNT(list), restored, KD_OP_##op, NULL      \
    }

const bench_row kd_bench_rows_train[] = {
    ROW(row_loss, "NV", work_row_loss, logits, 0),
    ROW(row_loss_topk, "NVK", work_row_loss_topk, known_classes, 0),
    { "head", "NstV", open_head, run_head, work_head, heads, KD_COUNT(heads), -1, -1, NULL },
    ROW(adamw, "n", work_adamw, updates, -1),
    ROW(sgd, "n", work_sgd, updates, -1),
    ROW(clip, "n", work_clip, few, -1),
    ROW(guard, "n", work_guard, students, -1),
    ROW(sum_squares, "n", work_fill, slabs_f32, -1),
    ROW(sum_columns, "ND", work_sum, columns, -1),
    ROW(sum_rows, "RN", work_sum, losses, -1),
    ROW(top_classes, "NVK", work_top_classes, taken_classes, -1),
    ROW(embedding, "NDVK", work_table, tables, -1),
    ROW(embedding_backward, "NDVK", work_embedding_backward, tables, -1),
    ROW(embedding_products, "NDVK", work_table, sampled_heads, -1),
    ROW(gather_rows, "NDV", work_moved_rows, chosen, -1),
    ROW(scatter_rows, "NDV", work_moved_rows, chosen, -1),
    ROW(fill, "n", work_fill, slabs, -1),
    ROW(copy, "n", work_copy, slabs, -1),
    ROW(add, "n", work_add, slabs, -1),
    { 0 },
};
