/*
 * Rows of whole losses over features and relations, value and gradient: what a user pays who adds one.
 *
 * A row's letters are those of what the loss reads (kd_feature_type); G and F are H, and a head of the
 * teacher's is as wide as the student's.  A document is all rows.  Variant "full": causal is off.
 * Operations that are no products of matrices are counted as flops where there are more of them than
 * numbers read, as in rows_features.c.
 */
#include "bench/rows.h"

#include <math.h>

enum { PREFIX = sizeof "loss " - 1 };

static const kd_feature_type *type_of(const bench_row *row)
{
    const kd_feature_type *const *type = kd_feature_types;
    while (*type && strcmp((*type)->name, row->name + PREFIX) != 0) type++;
    return *type;
}

/* ---- operands --------------------------------------------------------------------------------- */

/* 0 for a letter that the row does not have. */
static int64_t dim_of(const bench_run *r, char letter)
{
    const char *at = strchr(r->row->letters, letter);
    if (at) return r->shape->dim[at - r->row->letters];
    if (letter == 'G' || letter == 'F') return dim_of(r, 'H');
    if (letter >= '0' && letter <= '9') return letter - '0';
    return letter == 'e' ? dim_of(r, 'd') : 0;
}

/* "[N, H', d]" */
static kd_shape shape_of(const bench_run *r, const kd_read *read)
{
    kd_shape shape = { 0, { 0 } };
    for (const char *c = read->shape; *c; c++)
        if (strchr("[], '", *c) == NULL) shape.dim[shape.rank++] = dim_of(r, *c);
    return shape;
}

/* No two rows alike, as kd_bench_filled has them after 64: in a batch those would be no pair. */
static kd_tensor distinct(bench_run *r, int set, kd_dtype dtype, kd_shape shape, double most,
                          unsigned salt)
{
    int64_t n = 1;
    for (int i = 0; i < shape.rank; i++) n *= shape.dim[i];
    const kd_tensor *all = kd_bench_filled(r, set, dtype, KD_SHAPE(1, n), -most, most, salt);
    return kd_tensor_of(all->data, dtype, shape);
}

static void open_operand(bench_run *r, int set, kd_feature_args *args, const kd_read *read,
                         unsigned salt)
{
    kd_tensor *operand = kd_feature_operand(args, read->name, false);
    const kd_shape shape = shape_of(r, read);
    const kd_dtype dtype = read->flags & KD_READ_F32 ? KD_F32 : r->shape->dtype;
    if (read->flags & KD_READ_OPTIONAL) return;
    if (strcmp(read->name, "documents") == 0) {
        const int32_t rows[] = { 0, (int32_t)r->shape->dim[0] };
        *operand = *kd_bench_given(r, set, KD_I32, KD_SHAPE(2), rows);
    } else if (read->flags & KD_READ_INTEGER) {
        *operand = *kd_bench_filled(r, set, KD_I32, shape, 0, (double)dim_of(r, 'n'), salt);
    } else if (strcmp(read->name, "partition") == 0) {
        *operand = *kd_bench_zeros(r, set, KD_F32, shape);
    } else if (read->flags & KD_READ_STATE) { /* a bank, whose rows are about as long as 1 */
        const double most = sqrt(3.0 / (double)shape.dim[1]);
        *operand = distinct(r, set, KD_F32, shape, most, salt);
    } else {
        *operand = distinct(r, set, dtype, shape, 1.0, salt);
    }
    if (read->flags & KD_READ_GRADIENT)
        *kd_feature_operand(args, read->name, true) = *kd_bench_zeros(r, set, dtype, shape);
}

static kd_status parse_options(const void **options, bench_run *r, const kd_feature_type *type)
{
    static const char full[] = "causal: false";
    unsigned char *target;
    kd_node *given = NULL;
    if (!type->options) return KD_OK;
    KD_TRY(KD_ARENA_ARRAY(&target, r->arena, KD_FEATURE_OPTION_BYTES));
    if (is(r, "full")) KD_TRY(kd_yaml_parse(&given, r->arena, "bench", full, sizeof full - 1));
    *options = target;
    return kd_options_parse(target, type->options, r->arena, given, type->name, NULL);
}

static void open_loss(bench_run *r, int set)
{
    const kd_feature_type *type = type_of(r->row);
    kd_feature_args *args;
    if (r->status == KD_OK) r->status = KD_ARENA_ARRAY(&args, r->arena, 1);
    if (r->status != KD_OK) return;
    for (int i = 0; type->reads[i].name; i++)
        open_operand(r, set, args, &type->reads[i], (unsigned)i + 1);
    args->loss = *kd_bench_zeros(r, set, KD_F32, KD_SHAPE(r->shape->dim[0]));
    args->scale = *kd_bench_filled(r, set, KD_F32, KD_SHAPE(1), 1, 2, 99);
    if (set == 0) r->value = args->loss;
    if (r->status == KD_OK) r->status = parse_options(&args->options, r, type);
    r->context[set] = args;
}

static kd_status run_loss(bench_run *r, int set)
{
    return kd_feature_run(&r->exec, type_of(r->row), r->context[set]);
}

/* ---- floors ----------------------------------------------------------------------------------- */

/* Student and teacher read, the gradient read and written. */
static double four_times(const bench_shape *s, int dims)
{
    return 4 * element(s) * product(s, dims);
}

static bench_work work_of_rows(const bench_shape *s)
{
    return (bench_work){ .bytes = four_times(s, 2) };
}

static bench_work work_of_maps(const bench_shape *s)
{
    return (bench_work){ .bytes = four_times(s, 4) };
}

/* Half of either Gram matrix, and all of a product with one. */
static bench_work work_of_grams(const bench_shape *s)
{
    return (bench_work){ .bytes = four_times(s, 2), .flops = 4 * dim(s, 0) * product(s, 2) };
}

/* Three operations for each difference of half of either side's pairs, and for those of the gradient. */
static bench_work work_of_distances(const bench_shape *s)
{
    return (bench_work){ .bytes = four_times(s, 2), .flops = 6 * dim(s, 0) * product(s, 2) };
}

/* And 40 for each of N^3. */
static bench_work work_of_angles(const bench_shape *s)
{
    const double n = dim(s, 0);
    bench_work work = work_of_distances(s);
    work.flops += 40 * n * n * n;
    return work;
}

/* As of Gram matrices, sample by sample, over channels or places, whichever are fewer. */
static bench_work work_of_nst(const bench_shape *s)
{
    const double channels = dim(s, 1), places = dim(s, 2) * dim(s, 3);
    return (bench_work){ .bytes = four_times(s, 4),
                         .flops = 4 * product(s, 4) * fmin(channels, places) };
}

/* A row of the other's bank for each negative of either side. */
static bench_work work_of_contrast(const bench_shape *s)
{
    return (bench_work){ .bytes = 2 * 4 * product(s, 2) * (dim(s, 2) + 1) };
}

/* Scores of both sides and two gradients for each pair seen; of the KL, both scores once more for what
 * their rows sum to. */
static bench_work work_of_scores(const bench_shape *s, double tensors, int products)
{
    const bool full = strcmp(s->variant, "full") == 0;
    const double pairs = (full ? 1 : 0.5) * dim(s, 0) * dim(s, 0) * dim(s, 1);
    return (bench_work){ .bytes = tensors * element(s) * product(s, 3),
                         .flops = products * 2 * pairs * dim(s, 2) };
}

static bench_work work_of_kl(const bench_shape *s) { return work_of_scores(s, 8, 6); }
static bench_work work_of_mse(const bench_shape *s) { return work_of_scores(s, 8, 4); }
static bench_work work_of_self(const bench_shape *s) { return work_of_scores(s, 4, 6); }

/* ---- shapes ----------------------------------------------------------------------------------- */

static const bench_shape batches[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33 } },     { BENCH_GPU, "", KD_F32, { 1024, 512 } },
    { BENCH_GPU, "", KD_BF16, { 4096, 4096 } }, { BENCH_CPU, "", KD_F32, { 64, 128 } },
    { BENCH_CPU, "", KD_F32, { 512, 512 } },
};

static const bench_shape triples[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33 } },   { BENCH_GPU, "", KD_F32, { 512, 512 } },
    { BENCH_GPU, "", KD_F32, { 2048, 512 } }, { BENCH_CPU, "", KD_F32, { 512, 128 } },
    { BENCH_CPU, "", KD_F32, { 512, 512 } },
};

static const bench_shape maps[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 3, 5, 7 } },
    { BENCH_GPU, "", KD_BF16, { 256, 256, 32, 32 } },
    { BENCH_CPU, "", KD_F32, { 64, 256, 16, 16 } },
    { BENCH_CPU, "", KD_F32, { 64, 128, 32, 32 } },
};

/* Of the papers' B C C H W products no more than a machine of 16 GB holds. */
static const bench_shape channels[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 3, 5, 7 } },
    { BENCH_GPU, "", KD_BF16, { 64, 256, 32, 32 } },
    { BENCH_CPU, "", KD_F32, { 64, 128, 16, 16 } },
    { BENCH_CPU, "", KD_F32, { 64, 64, 32, 32 } },
};

static const bench_shape contrasts[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33, 7, 50 } },
    { BENCH_GPU, "", KD_F32, { 64, 128, 16384, 50000 } },
    { BENCH_CPU, "", KD_F32, { 64, 128, 16384, 50000 } },
};

static const bench_shape tokens[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 33 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 4096 } },
    { BENCH_CPU, "", KD_F32, { 2048, 576 } },
};

static const bench_shape causal[] = {
    { BENCH_QUICK, "", KD_F32, { 35, 2, 16 } },
    { BENCH_GPU, "", KD_BF16, { 2048, 16, 64 } },
    { BENCH_CPU, "", KD_F32, { 1024, 9, 64 } },
};

/* The papers' models see both ways. */
static const bench_shape full[] = {
    { BENCH_QUICK, "full", KD_F32, { 35, 2, 16 } },
    { BENCH_GPU, "full", KD_BF16, { 2048, 16, 64 } },
    { BENCH_CPU, "full", KD_F32, { 1024, 9, 64 } },
};

#define LOSS(name, letters, work, list)                                                            \
    {                                                                                              \
        "loss " #name, letters, open_loss, run_loss, work, list, KD_COUNT(list), -1, -1, NULL      \
    }

const bench_row kd_bench_rows_losses[] = {
    LOSS(attention_transfer, "BCHW", work_of_maps, maps),
    LOSS(cosine, "ND", work_of_rows, tokens),
    LOSS(hidden_mse, "ND", work_of_rows, tokens),
    LOSS(hint, "BCHW", work_of_maps, maps),
    LOSS(normalised_mse, "ND", work_of_rows, tokens),
    LOSS(nst, "BCHW", work_of_nst, channels),
    LOSS(vid, "BCHW", work_of_maps, maps),
    LOSS(cc, "BD", work_of_rows, batches),
    LOSS(pkt, "BD", work_of_grams, batches),
    LOSS(rkd_angle, "BD", work_of_angles, triples),
    LOSS(rkd_distance, "BD", work_of_distances, batches),
    LOSS(sp, "BD", work_of_grams, batches),
    LOSS(crd, "BDKn", work_of_contrast, contrasts),
    LOSS(attention_kl, "NHd", work_of_kl, causal),
    LOSS(attention_mse, "NHd", work_of_mse, full),
    LOSS(minilm_relation, "NHd", work_of_self, full),
    { 0 },
};
