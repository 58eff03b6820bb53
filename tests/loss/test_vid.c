/*
 * VID: equal maps, order of channels, the first value of its parameter in memory and from a file, samples that do
 * not count, refusals.  Values and gradients: tests/ops/test_vid.c, tests/golden/losses.
 */
#include "format/format.h"
#include "loss/loss.h"
#include "support/golden.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

enum { B = 3, C = 4, H = 2, W = 5, PLACES = H * W };

static _Alignas(16) unsigned char defaults[KD_FEATURE_OPTION_BYTES];

static void parse(void)
{
    kd_arena *arena;
    test_ok(kd_arena_create(&arena));
    test_ok(kd_options_parse(defaults, kd_feature_vid.options, arena, NULL, "vid", NULL));
    kd_arena_destroy(arena);
}

static kd_feature_args make(test_bench *b, kd_dtype dtype)
{
    static const double one = 1;
    const kd_shape shape = KD_SHAPE(B, C, H, W);
    parse();
    return (kd_feature_args){ .student = test_filled(b, dtype, shape, 2, -1, 2),
                              .d_student = test_filled(b, dtype, shape, 1, 0, 0),
                              .teacher = test_filled(b, KD_F32, shape, 0, -1, 1),
                              .log_variance = test_filled(b, KD_F32, KD_SHAPE(C), 0, -2, 2),
                              .d_log_variance = test_filled(b, KD_F32, KD_SHAPE(C), 0, 0, 0),
                              .loss = test_tensor(b, KD_F32, KD_SHAPE(B), 0),
                              .scale = test_values(b, KD_F32, KD_SHAPE(1), &one),
                              .options = defaults };
}

static void run(test_bench *b, const kd_feature_args *args)
{
    test_fill_constant(&args->loss, NAN);
    test_ok(kd_feature_run(&b->exec, &kd_feature_vid, args));
}

static double softplus(double a) { return log(1 + exp(a)); }

/* No distance: what is left are the variances. */
Test(vid, equal_maps_have_the_variances_value)
{
    test_bench b;
    test_open(&b, 1 << 12);
    kd_feature_args a = make(&b, KD_F32);
    a.teacher = a.student;
    run(&b, &a);
    double want = 0;
    for (int c = 0; c < C; c++)
        want += log(softplus(test_get(&a.log_variance, c)) + 1e-5) / (2 * C);
    for (int i = 0; i < B; i++)
        cr_expect(fabs(test_get(&a.loss, i) - want) < 1e-6 && want != 0, "%g, expected %g",
                  test_get(&a.loss, i), want);
    for (int i = 0; i < B * C * PLACES; i++) cr_assert(test_get(&a.d_student, i) == 0);
    for (int c = 0; c < C; c++)
        cr_expect(test_get(&a.d_log_variance, c) > 0, "a variance is not wanted smaller");
    test_close(&b);
}

/* Exchanges channels 0 and 2 of all that has channels. */
static void exchange(const kd_tensor *t, int64_t samples, int64_t places)
{
    for (int64_t b = 0; b < samples; b++)
        for (int64_t p = 0; p < places; p++) {
            const int64_t i = b * C * places + p, j = i + 2 * places;
            const double kept = test_get(t, i);
            test_set(t, i, test_get(t, j));
            test_set(t, j, kept);
        }
}

Test(vid, order_of_channels_changes_nothing)
{
    test_bench b;
    test_open(&b, 1 << 12);
    const kd_feature_args a = make(&b, KD_BF16);
    run(&b, &a);
    const double *before = test_doubles(&b, &a.loss);
    exchange(&a.student, B, PLACES);
    exchange(&a.teacher, B, PLACES);
    exchange(&a.log_variance, 1, 1);
    run(&b, &a);
    test_near(&a.loss, before, 4, 4, "loss");
    test_close(&b);
}

Test(vid, what_does_not_count_is_not_read)
{
    const double weights[] = { 1, 0, 2 };
    test_bench b;
    test_open(&b, 1 << 12);
    kd_feature_args a = make(&b, KD_F32);
    run(&b, &a);
    const double *before = test_doubles(&b, &a.loss);
    a.weight = test_values(&b, KD_F32, KD_SHAPE(B), weights);
    test_fill_constant(&a.d_log_variance, 0);
    for (int i = C * PLACES; i < 2 * C * PLACES; i++) test_set(&a.teacher, i, NAN);
    run(&b, &a);
    cr_expect(fabs(test_get(&a.loss, 2) - 2 * before[2]) <= 1e-6 && test_get(&a.loss, 1) == 0);
    for (int c = 0; c < C; c++) cr_expect(isfinite(test_get(&a.d_log_variance, c)));
    test_fill_constant(&a.weight, 0);
    test_fill_constant(&a.d_log_variance, 0);
    run(&b, &a);
    for (int i = 0; i < B; i++) cr_expect(test_get(&a.loss, i) == 0);
    for (int c = 0; c < C; c++) cr_expect(test_get(&a.d_log_variance, c) == 0);
    test_close(&b);
}

static void write_file(const char *path, const kd_feature_args *a, bool parameter)
{
    const kd_tensor *all[] = { &a->student, &a->teacher, &a->log_variance };
    static const char *const names[] = { "student", "teacher", "log_variance" };
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, path));
    for (int i = 0; i < 2 + parameter; i++)
        test_ok(kd_st_writer_declare(w, names[i], KD_F32, all[i]->rank, all[i]->shape));
    test_ok(kd_st_writer_begin(w));
    for (int i = 0; i < 2 + parameter; i++)
        test_ok(kd_st_writer_write(w, names[i], all[i]->data, kd_tensor_bytes(all[i])));
    test_ok(kd_st_writer_close(w));
}

/* A file that has no parameter gives what one with the first value gives. */
Test(vid, the_parameter_begins_with_the_options_variance)
{
    static const double variances[] = { 5, 0.01, 300, 1e6 };
    struct {
        double eps, variance;
    } o = { 1e-5, 0 };
    for (int i = 0; i < KD_COUNT(variances); i++) {
        o.variance = variances[i];
        const double a = (double)kd_feature_vid.begin(&o);
        const double v = (a > 30 ? a : softplus(a)) + o.eps;
        cr_expect(fabs(v - o.variance) < 1e-6 * o.variance, "%g, expected %g", v, o.variance);
    }

    char in[] = "/tmp/kd-vid-XXXXXX", out[2][64];
    test_golden got[2];
    const int fd = mkstemp(in), loss = kd_feature_find("vid");
    cr_assert(fd >= 0);
    close(fd);
    test_bench b;
    test_open(&b, 1 << 12);
    kd_feature_args args = make(&b, KD_F32);
    args.student = test_filled(&b, KD_F32, KD_SHAPE(B, C, H, W), 0, -1, 1);
    test_fill_constant(&args.log_variance, (double)kd_feature_vid.begin(defaults));
    for (int i = 0; i < 2; i++) {
        snprintf(out[i], sizeof out[i], "%s.%d", in, i);
        write_file(in, &args, i);
        test_ok(kd_feature_file(loss, in, out[i], defaults, NULL, "cpu"));
        test_golden_open(&got[i], out[i]);
    }
    static const char *const names[] = { "loss", "d_student", "d_log_variance" };
    for (int n = 0; n < KD_COUNT(names); n++) {
        const kd_st_entry *e[2];
        const float *x = test_golden_f32(&got[0], names[n], &e[0]);
        const float *y = test_golden_f32(&got[1], names[n], &e[1]);
        cr_expect(memcmp(x, y, (size_t)e[0]->elements * sizeof *x) == 0, "%s", names[n]);
    }
    for (int i = 0; i < 2; i++) {
        test_golden_close(&got[i]);
        cr_assert_eq(unlink(out[i]), 0);
    }
    cr_assert_eq(unlink(in), 0);
    test_close(&b);
}

Test(vid, refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 1 << 12);
    kd_feature_args a = make(&b, KD_F32);
    const kd_feature_args good = a;
    a.log_variance = (kd_tensor){ 0 };
    test_refused(kd_feature_run(&b.exec, &kd_feature_vid, &a), KD_EINVAL,
                 "vid: log_variance [C] is absent");
    a.log_variance = test_tensor(&b, KD_F32, KD_SHAPE(C + 1), 0);
    a.d_log_variance = (kd_tensor){ 0 };
    test_refused(kd_feature_run(&b.exec, &kd_feature_vid, &a), KD_EINVAL, "vid: log_variance");
    a = good;
    a.teacher = test_tensor(&b, KD_F32, KD_SHAPE(B, C + 1, H, W), 0);
    test_refused(kd_feature_run(&b.exec, &kd_feature_vid, &a), KD_EINVAL, "vid: teacher");
    test_close(&b);
}
