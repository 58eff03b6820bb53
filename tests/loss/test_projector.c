/*
 * Projectors: their gradients by central differences, over maps as over rows, in bf16, and as they begin; and files
 * that do not go together.  Values and gradients: tests/golden/losses/<loss>.projector_*.
 */
#include "format/format.h"
#include "loss/loss.h"
#include "support/feature.h"
#include "support/refusal.h"
#include "support/support.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

enum { B = 2, IN = 3, OUT = 4, H = 4, W = 5, KERNEL_H = 2, KERNEL_W = 3, STACK = 1 << 20 };

/* ---- one projector in memory ------------------------------------------------------------------ */

typedef struct bed {
    test_bench bench;
    kd_arena *arena;
    kd_projector_options options;
    kd_projector projector;
    kd_params params;
    kd_slab slab;
} bed;

static void parse(kd_projector_options *options, kd_arena *arena, const char *text)
{
    kd_node *node = NULL;
    test_ok(kd_yaml_parse(&node, arena, "projector", text, strlen(text)));
    test_ok(kd_options_parse(options, kd_projector_rows, arena, node, "projector", NULL));
}

static void open_bed(bed *d, const char *options, kd_dtype dtype)
{
    *d = (bed){ .arena = NULL };
    test_open(&d->bench, STACK);
    test_ok(kd_arena_create(&d->arena));
    parse(&d->options, d->arena, options);
    d->projector = (kd_projector){
        .options = &d->options, .in = IN, .out = OUT, .kernel = { KERNEL_H, KERNEL_W }
    };
    d->params.arena = d->arena;
    test_ok(kd_projector_declare(&d->projector, &d->params, "p", 0));
    kd_params_layout(&d->params);
    test_ok(kd_slab_open(&d->slab, d->bench.exec.device, &d->params, dtype, true, 0, false));
    test_ok(kd_projector_initialise(&d->projector, &d->bench.exec, &d->slab, 7));
    test_fill_constant(&d->slab.gradients, 0);
}

static void close_bed(bed *d)
{
    kd_slab_close(&d->slab);
    kd_arena_destroy(d->arena);
    test_close(&d->bench);
}

/* A contiguous copy of what the projector makes of x. */
static kd_tensor forward(bed *d, const kd_tensor *x)
{
    const kd_mark mark = kd_stack_mark(d->bench.exec.stack);
    kd_projected s;
    test_ok(kd_projector_forward(&s, &d->bench.exec, x, &d->slab, &d->projector));
    const kd_tensor y = test_tensor(&d->bench, s.y.dtype, kd_shape_of(&s.y), 0);
    memcpy(y.data, s.y.data, kd_tensor_bytes(&y));
    kd_stack_release(d->bench.exec.stack, mark);
    return y;
}

/* Adds to dx and to the slab's gradients those of sum dy y. */
static void backward(bed *d, const kd_tensor *dx, const kd_tensor *dy, const kd_tensor *x)
{
    const kd_mark mark = kd_stack_mark(d->bench.exec.stack);
    kd_projected s;
    test_ok(kd_projector_forward(&s, &d->bench.exec, x, &d->slab, &d->projector));
    test_ok(kd_projector_backward(&d->bench.exec, dx, dy, x, &s, &d->slab, &d->projector));
    kd_stack_release(d->bench.exec.stack, mark);
}

/* ---- gradients -------------------------------------------------------------------------------- */

static double value(bed *d, const kd_tensor *x, const kd_tensor *dy)
{
    const int mark = test_mark(&d->bench);
    const kd_tensor y = forward(d, x);
    double sum = 0;
    for (int64_t i = 0; i < kd_tensor_elements(&y); i++) sum += test_get(&y, i) * test_get(dy, i);
    test_release(&d->bench, mark);
    return sum;
}

/* `gradient` less `before` is the slope of the value along each element of t. */
static void check_slopes(bed *d, const kd_tensor *t, const kd_tensor *gradient, double before,
                         const kd_tensor *x, const kd_tensor *dy, const char *what)
{
    const double h = 0x1p-8;
    for (int64_t i = 0; i < kd_tensor_elements(t); i++) {
        const double at = test_get(t, i);
        test_set(t, i, at + h);
        const double up = test_get(t, i), above = value(d, x, dy);
        test_set(t, i, at - h);
        const double slope = (above - value(d, x, dy)) / (up - test_get(t, i));
        test_set(t, i, at);
        cr_expect(fabs(test_get(gradient, i) - before - slope) <= 2e-3 * (fabs(slope) + 1),
                  "%s[%lld]: %.6g, the value rises by %.6g", what, (long long)i,
                  test_get(gradient, i) - before, slope);
    }
}

/* ReLU, whose kinks a difference steps over, is left to the golden files. */
Test(projector, gradients_are_the_slopes_of_the_value)
{
    static const char *const kinds[] = { "{type: conv}",
                                         "{type: conv, bias: false, normalise: before}",
                                         "{type: conv, output: gelu, normalise: both}",
                                         "{type: conv1x1, normalise: both}",
                                         "{type: conv1x1, output: gelu}",
                                         "{type: mlp, normalise: after}",
                                         "{type: linear, normalise: before}",
                                         "{type: none, normalise: after}" };
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        bed d;
        open_bed(&d, kinds[k], KD_F32);
        const kd_tensor x = test_filled(&d.bench, KD_F32, KD_SHAPE(B, IN, H, W), 3, -1, 2);
        const kd_tensor dx = test_filled(&d.bench, KD_F32, kd_shape_of(&x), 2, 5, 5);
        const kd_tensor y = forward(&d, &x);
        const kd_tensor dy = test_filled(&d.bench, KD_F32, kd_shape_of(&y), 0, -1, 1);
        backward(&d, &dx, &dy, &x);
        check_slopes(&d, &x, &dx, 5, &x, &dy, kinds[k]);
        for (int i = 0; i < d.params.count; i++) {
            const kd_tensor weight = kd_slab_weight(&d.slab, i);
            const kd_tensor gradient = kd_slab_gradient(&d.slab, i);
            check_slopes(&d, &weight, &gradient, 0, &x, &dy, d.params.items[i].name);
        }
        close_bed(&d);
    }
}

/* Of a teacher's features no gradient is asked for: the projector learns the same. */
Test(projector, learns_without_a_gradient_of_its_input)
{
    static const char *const kinds[] = { "{type: conv, normalise: both, output: relu}",
                                         "{type: mlp, normalise: before}" };
    const kd_tensor absent = { 0 };
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        bed d;
        open_bed(&d, kinds[k], KD_F32);
        const kd_tensor x = test_filled(&d.bench, KD_F32, KD_SHAPE(B, IN, H, W), 0, -1, 2);
        const kd_tensor dx = test_filled(&d.bench, KD_F32, kd_shape_of(&x), 0, 0, 0);
        const kd_tensor y = forward(&d, &x);
        const kd_tensor dy = test_filled(&d.bench, KD_F32, kd_shape_of(&y), 0, -1, 1);
        const kd_tensor *gradients = &d.slab.gradients;
        const kd_tensor before = test_tensor(&d.bench, KD_F32, kd_shape_of(gradients), 0);
        backward(&d, &dx, &dy, &x);
        memcpy(before.data, gradients->data, kd_tensor_bytes(gradients));
        test_fill_constant(gradients, 0);
        backward(&d, &absent, &dy, &x);
        test_same_bits(gradients, &before, "%s", kinds[k]);
        cr_expect(test_largest(&before) > 0.1);
        close_bed(&d);
    }
}

/* ---- maps and rows ---------------------------------------------------------------------------- */

/* Maps of one place are rows, to the bit; so is a 1x1 convolution a linear projector. */
Test(projector, a_map_of_one_place_is_a_row)
{
    static const char *const kinds[][2] = {
        { "{type: linear, normalise: both}", "{type: linear, normalise: both}" },
        { "{type: mlp, activation: relu}", "{type: mlp, activation: relu}" },
        { "{type: linear, output: relu}", "{type: conv1x1, output: relu}" },
    };
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        bed rows, maps;
        open_bed(&rows, kinds[k][0], KD_F32);
        open_bed(&maps, kinds[k][1], KD_F32);
        const kd_tensor x = test_filled(&rows.bench, KD_F32, KD_SHAPE(6, IN), 0, -1, 2);
        const kd_tensor dx = test_filled(&rows.bench, KD_F32, KD_SHAPE(6, IN), 0, 1, 2);
        const kd_tensor dy = test_filled(&rows.bench, KD_F32, KD_SHAPE(6, OUT), 0, -1, 1);
        const kd_tensor u = kd_tensor_of(x.data, KD_F32, KD_SHAPE(6, IN, 1, 1));
        const kd_tensor du = test_tensor(&maps.bench, KD_F32, kd_shape_of(&u), 0);
        const kd_tensor dv = kd_tensor_of(dy.data, KD_F32, KD_SHAPE(6, OUT, 1, 1));
        memcpy(du.data, dx.data, kd_tensor_bytes(&dx));
        const kd_tensor y = forward(&rows, &x), v = forward(&maps, &u);
        cr_expect(memcmp(y.data, v.data, kd_tensor_bytes(&y)) == 0, "%s", kinds[k][0]);
        backward(&rows, &dx, &dy, &x);
        backward(&maps, &du, &dv, &u);
        /* Length 1 before: of maps the gradient is rounded once more, on its way to the other order. */
        for (int64_t i = 0; i < kd_tensor_elements(&dx); i++)
            cr_expect(fabs(test_get(&dx, i) - test_get(&du, i)) <= 4e-7, "%s", kinds[k][0]);
        test_same_bits(&rows.slab.gradients, &maps.slab.gradients, "%s", kinds[k][0]);
        close_bed(&rows);
        close_bed(&maps);
    }
}

/* In bf16 as in f32 of the same numbers, within bf16's rounding. */
Test(projector, bf16_is_f32_but_for_its_rounding)
{
    static const char *const kinds[] = { "{type: conv, normalise: both}", "{type: conv1x1}",
                                         "{type: mlp}" };
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        bed d[2];
        kd_tensor x[2], dx[2], y[2], dy[2];
        for (int i = 0; i < 2; i++) {
            const kd_dtype dtype = i ? KD_BF16 : KD_F32;
            open_bed(&d[i], kinds[k], dtype);
            x[i] = test_filled(&d[i].bench, KD_BF16, KD_SHAPE(B, IN, H, W), 0, -1, 2);
            if (!i) {
                const kd_tensor wide = test_tensor(&d[i].bench, KD_F32, kd_shape_of(&x[i]), 0);
                for (int64_t e = 0; e < kd_tensor_elements(&wide); e++)
                    test_set(&wide, e, test_get(&x[i], e));
                x[i] = wide;
            }
            dx[i] = test_filled(&d[i].bench, dtype, kd_shape_of(&x[i]), 0, 0, 0);
            y[i] = forward(&d[i], &x[i]);
            dy[i] = test_tensor(&d[i].bench, dtype, kd_shape_of(&y[i]), 0);
            for (int64_t e = 0; e < kd_tensor_elements(&y[i]); e++)
                test_set(&dy[i], e, (double)(e % 7) / 8 - 0.375);
            backward(&d[i], &dx[i], &dy[i], &x[i]);
        }
        for (int64_t e = 0; e < kd_tensor_elements(&y[0]); e++)
            cr_expect(fabs(test_get(&y[0], e) - test_get(&y[1], e)) <= 0.03, "%s: y", kinds[k]);
        for (int64_t e = 0; e < kd_tensor_elements(&dx[0]); e++)
            cr_expect(fabs(test_get(&dx[0], e) - test_get(&dx[1], e)) <= 0.03, "%s: dx", kinds[k]);
        const kd_tensor *g[] = { &d[0].slab.gradients, &d[1].slab.gradients };
        for (int64_t e = 0; e < kd_tensor_elements(g[0]); e++)
            cr_expect(fabs(test_get(g[0], e) - test_get(g[1], e)) <= 0.1, "%s: dW", kinds[k]);
        for (int i = 0; i < 2; i++) close_bed(&d[i]);
    }
}

/* Uniform within 1 / sqrt(what an output reads), as torch.nn.Conv2d: to the edges and no further. */
Test(projector, a_convolution_begins_as_pytorchs)
{
    bed d;
    open_bed(&d, "{type: conv}", KD_F32);
    const double reach = 1 / sqrt((double)(IN * KERNEL_H * KERNEL_W));
    const kd_tensor weight = kd_slab_weight(&d.slab, d.projector.weight[0]);
    const kd_tensor bias = kd_slab_weight(&d.slab, d.projector.bias[0]);
    const int64_t shape[] = { OUT, IN, KERNEL_H, KERNEL_W };
    double most = 0, sum = 0;
    for (int i = 0; i < 4; i++) cr_expect_eq(weight.shape[i], shape[i]);
    for (int64_t i = 0; i < kd_tensor_elements(&weight); i++) {
        most = fmax(most, fabs(test_get(&weight, i)));
        sum += test_get(&weight, i);
    }
    cr_expect(most <= reach && most > 0.9 * reach, "%g of %g", most, reach);
    cr_expect(fabs(sum) < 0.25 * reach * (double)kd_tensor_elements(&weight));
    for (int64_t i = 0; i < OUT; i++) cr_expect(fabs(test_get(&bias, i)) <= reach);
    close_bed(&d);
}

/* ---- files ------------------------------------------------------------------------------------ */

typedef struct column {
    const char *name;
    int rank;
    int64_t shape[4];
} column;

enum { MOST_COLUMNS = 7 };

/* Tensors of zeros. */
static void write_file(const char *path, const column *columns)
{
    static const float zeros[4096];
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, path));
    for (const column *c = columns; c->name; c++)
        test_ok(kd_st_writer_declare(w, c->name, KD_F32, c->rank, c->shape));
    test_ok(kd_st_writer_begin(w));
    for (const column *c = columns; c->name; c++) {
        size_t bytes = sizeof(float);
        for (int i = 0; i < c->rank; i++) bytes *= (size_t)c->shape[i];
        cr_assert(bytes <= sizeof zeros);
        test_ok(kd_st_writer_write(w, c->name, zeros, bytes));
    }
    test_ok(kd_st_writer_close(w));
}

/* What kd_feature_file says of such a file; `out` has the name of what it writes. */
static kd_status apply(const char *loss, const char *projector, const column *columns, char *out)
{
    _Alignas(16) unsigned char own[KD_FEATURE_OPTION_BYTES] = { 0 };
    char in[] = "/tmp/kd-projector-XXXXXX";
    kd_projector_options options;
    kd_feature_info info;
    kd_arena *arena;
    const int fd = mkstemp(in), number = kd_feature_find(loss);
    cr_assert(fd >= 0 && number >= 0);
    close(fd);
    test_ok(kd_arena_create(&arena));
    test_ok(kd_feature_describe(&info, number));
    if (info.options) test_ok(kd_options_parse(own, info.options, arena, NULL, "options", NULL));
    parse(&options, arena, projector);
    write_file(in, columns);
    snprintf(out, 64, "%s.out", in);
    const kd_status status = kd_feature_file(number, in, out, own, &options, "cpu");
    kd_arena_destroy(arena);
    cr_assert_eq(unlink(in), 0);
    return status;
}

static const struct {
    const char *loss, *projector;
    column columns[MOST_COLUMNS];
    kd_status status;
    const char *parts;
} refused[] = {
    { "attention_kl",
      "{type: linear}",
      { { 0 } },
      KD_EINVAL,
      "attention_kl reads no rows or maps that a projector could widen, but student_q [N, H, d]" },
    { "minilm_relation",
      "{normalise: after}",
      { { 0 } },
      KD_EINVAL,
      "minilm_relation reads no rows or maps" },
    { "cosine",
      "{type: conv1x1}",
      { { 0 } },
      KD_EINVAL,
      "projector.type: a convolution reads maps [B, C, H, W], and cosine has student [N, D]" },
    { "hint",
      "{type: conv1x1}",
      { { "student", 4, { 2, 3, 4, 4 } }, { "teacher", 4, { 2, 5, 4, 4 } } },
      KD_EFORMAT,
      "no tensor \"projector.0.weight\"|f32 [5, 3, 1, 1]" },
    { "hint",
      "{type: conv1x1}",
      { { "student", 4, { 2, 3, 4, 4 } }, { "teacher", 4, { 2, 5, 4, 2 } } },
      KD_EFORMAT,
      "student is f32 [2, 3, 4, 4] and teacher f32 [2, 5, 4, 2]; expected equal height and width, "
      "or a larger student and a projector of type conv" },
    { "hint",
      "{type: linear}",
      { { "student", 4, { 2, 3, 4, 4 } }, { "teacher", 4, { 2, 5, 2, 2 } } },
      KD_EFORMAT,
      "expected equal height and width" },
    { "hint",
      "{type: conv}",
      { { "student", 4, { 2, 3, 4, 4 } }, { "teacher", 4, { 2, 5, 2, 5 } } },
      KD_EFORMAT,
      "teacher f32 [2, 5, 2, 5]; expected a student of at least as many rows and columns" },
    { "hint",
      "{type: conv}",
      { { "student", 4, { 2, 3, 4, 4 } },
        { "teacher", 4, { 2, 5, 2, 3 } },
        { "projector.0.weight", 4, { 5, 3, 2, 3 } } },
      KD_EFORMAT,
      "projector.0.weight is F32 [5, 3, 2, 3]; expected f32, bf16 or f16 [5, 3, 3, 2]" },
    { "hint",
      "{type: conv}",
      { { "student", 4, { 2, 3, 4, 4 } },
        { "teacher", 4, { 2, 5, 2, 3 } },
        { "projector.0.weight", 4, { 5, 3, 3, 2 } } },
      KD_EFORMAT,
      "no tensor \"projector.0.bias\"|f32 [5]" },
    { "cosine",
      "{type: mlp, width: 4}",
      { { "student", 2, { 2, 3 } },
        { "teacher", 2, { 2, 5 } },
        { "projector.0.weight", 2, { 4, 3 } },
        { "projector.0.bias", 1, { 4 } },
        { "projector.1.weight", 2, { 5, 10 } } },
      KD_EFORMAT,
      "projector.1.weight is F32 [5, 10]; expected f32, bf16 or f16 [5, 4]" },
    { "cosine",
      "{type: linear}",
      { { "student", 2, { 2, 0 } }, { "teacher", 2, { 2, 5 } } },
      KD_EFORMAT,
      "student is [2, 0]; expected no dimension of 0" },
    { "hint",
      "{type: conv}",
      { { "student", 4, { 2, 3, 4, 4 } }, { "teacher", 4, { 2, 5, 0, 4 } } },
      KD_EFORMAT,
      "teacher is [2, 5, 0, 4]; expected no dimension of 0" },
    { "cosine",
      "{type: linear, bias: false}",
      { { "student", 2, { 2, 3 } },
        { "teacher", 2, { 4, 5 } },
        { "projector.0.weight", 2, { 5, 3 } } },
      KD_EFORMAT,
      "student has 2 rows or samples, teacher 4" },
    { "cosine",
      "{type: linear, width: 4}",
      { { "student", 2, { 2, 3 } }, { "teacher", 2, { 2, 5 } } },
      KD_EINVAL,
      "projector.width: 4, but only mlp has something between" },
    { "cosine",
      "{normalise: after, output: relu}",
      { { "student", 2, { 2, 5 } }, { "teacher", 2, { 2, 5 } } },
      KD_EINVAL,
      "projector.output: nothing comes out of type none" },
};

Test(projector, files_that_do_not_go_together_are_refused)
{
    for (int i = 0; i < KD_COUNT(refused); i++) {
        char out[64], what[96];
        snprintf(what, sizeof what, "%d: %s, %s", i, refused[i].loss, refused[i].projector);
        const kd_status status =
            apply(refused[i].loss, refused[i].projector, refused[i].columns, out);
        test_refusal(status, refused[i].status, refused[i].parts, what);
        cr_expect(access(out, F_OK) != 0, "%s: %s is there", what, out);
    }
}

/* Of a unit of weight 0 nothing is read, whatever it holds. */
Test(projector, units_of_weight_0_are_not_read)
{
    static const char *const projectors[] = { "{type: linear}", "{type: mlp, normalise: both}" };
    static const float weight[3] = { 1, 0, 1 }, nan_row[2] = { NAN, INFINITY };
    const column columns[] = {
        { "student", 2, { 3, 2 } },       { "teacher", 2, { 3, 5 } },
        { "weight", 1, { 3 } },           { "projector.0.weight", 2, { 5, 2 } },
        { "projector.0.bias", 1, { 5 } }, { 0 }
    };
    const column wider[] = { { "student", 2, { 3, 2 } },
                             { "teacher", 2, { 3, 5 } },
                             { "weight", 1, { 3 } },
                             { "projector.0.weight", 2, { 10, 2 } },
                             { "projector.0.bias", 1, { 10 } },
                             { "projector.1.weight", 2, { 5, 10 } },
                             { "projector.1.bias", 1, { 5 } },
                             { 0 } };
    for (int i = 0; i < KD_COUNT(projectors); i++) {
        char path[] = "/tmp/kd-projector-XXXXXX", out[64];
        kd_projector_options options;
        kd_st_file *file;
        kd_arena *arena;
        const int fd = mkstemp(path);
        snprintf(out, sizeof out, "%s.out", path);
        close(fd);
        write_file(path, i ? wider : columns);
        test_ok(kd_st_open(&file, path));
        const int again = open(path, O_WRONLY);
        cr_assert(pwrite(again, nan_row, sizeof nan_row,
                         kd_st_find(file, "student")->offset + (off_t)sizeof nan_row) > 0);
        cr_assert(pwrite(again, weight, sizeof weight, kd_st_find(file, "weight")->offset) > 0);
        close(again);
        kd_st_close(file);
        test_ok(kd_arena_create(&arena));
        parse(&options, arena, projectors[i]);
        test_ok(kd_feature_file(kd_feature_find("hidden_mse"), path, out, NULL, &options, "cpu"));
        kd_arena_destroy(arena);
        test_ok(kd_st_open(&file, out));
        for (int64_t e = 0; e < file->count; e++) {
            float values[64];
            const kd_st_entry *entry = &file->entries[e];
            cr_assert(entry->elements <= KD_COUNT(values));
            test_ok(kd_st_read(values, KD_F32, file, entry, 0, entry->elements));
            for (int64_t k = 0; k < entry->elements; k++)
                cr_expect(isfinite(values[k]), "%s: %s[%lld]", projectors[i], entry->name,
                          (long long)k);
        }
        kd_st_close(file);
        cr_assert(unlink(path) == 0 && unlink(out) == 0);
    }
}

/* The shapes that come out are those of what went in, behind the projector those of the teacher; VID's own parameter
 * begins with the teacher's channels, and a batch may be one sample. */
Test(projector, a_files_results_have_its_shapes)
{
    static const int64_t samples[] = { 2, 1 };
    for (int i = 0; i < KD_COUNT(samples); i++) {
        const column columns[] = { { "student", 4, { samples[i], 3, 4, 5 } },
                                   { "teacher", 4, { samples[i], 6, 2, 2 } },
                                   { "projector.0.weight", 4, { 6, 3, 3, 4 } },
                                   { "projector.0.bias", 1, { 6 } },
                                   { 0 } };
        const column results[] = { { "d_student", 4, { samples[i], 3, 4, 5 } },
                                   { "d_log_variance", 1, { 6 } },
                                   { "d_projector.0.weight", 4, { 6, 3, 3, 4 } },
                                   { "d_projector.0.bias", 1, { 6 } },
                                   { "loss", 1, { samples[i] } } };
        char out[64];
        kd_st_file *file;
        test_ok(apply("vid", "{type: conv}", columns, out));
        test_ok(kd_st_open(&file, out));
        cr_expect_eq(file->count, KD_COUNT(results));
        for (int r = 0; r < KD_COUNT(results); r++) {
            const kd_st_entry *e = kd_st_find(file, results[r].name);
            cr_assert(e && e->rank == results[r].rank, "%s", results[r].name);
            for (int k = 0; k < e->rank; k++) cr_expect_eq(e->shape[k], results[r].shape[k]);
        }
        kd_st_close(file);
        cr_assert_eq(unlink(out), 0);
    }
}
