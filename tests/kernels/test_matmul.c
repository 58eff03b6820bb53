/* Matrix products on a GPU: against the CPU, their table of plans, and the choice of algorithms. */
#include "oracle/matmul.h"
#include "oracle/ops.h"
#include "support/parity.h"
#include "support/products.h"

#include <cublasLt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* How many descriptors the emulated library ever made; absent from the real one. */
extern long kd_sim_cublaslt_made __attribute__((weak));

static void compare(parity *p, const product_case *c)
{
    const int mark = test_mark(&p->bench);
    const product t = product_open(&p->bench, c);
    const double scale = product_scale(c), length = (double)c->k + 1;
    if (c->accumulate)
        PARITY(p, matmul_add, scale, length, product_name(c), .y = &t.y, .a = &t.a, .b = &t.b);
    else
        PARITY(p, matmul, scale, length, product_name(c), .y = &t.y, .a = &t.a, .b = &t.b,
               .bias = &t.bias);
    test_release(&p->bench, mark);
}

static void visit(void *context, const product_case *c) { compare(context, c); }

Test(matmul, every_layout_type_and_form)
{
    parity p;
    parity_open(&p, 8u << 20);
    product_each(visit, &p);
    parity_close(&p);
}

static void visit_batch(void *context, const product_batch *c)
{
    parity *p = context;
    const int mark = test_mark(&p->bench);
    const product t = product_batch_open(&p->bench, c);
    PARITY(p, matmul_batched, 1 + (double)c->k / 3, (double)c->k + 1, product_batch_name(c),
           .y = &t.y, .a = &t.a, .b = &t.b);
    test_release(&p->bench, mark);
}

Test(matmul, batches)
{
    static const product_batch aligned = { .b = 5, .m = 64, .k = 200, .n = 128, .ta = true };
    parity p;
    parity_open(&p, 8u << 20);
    product_each_batch(visit_batch, &p);
    visit_batch(&p, &aligned);
    parity_close(&p);
}

/* Rows of whole vectors, where the picky algorithms may run, and splits of a long k. */
Test(matmul, aligned_and_long)
{
    static const product_case cases[] = {
        { .m = 64, .k = 64, .n = 128, .dtype = KD_BF16, .y_dtype = KD_BF16, .tb = true },
        { .m = 64,
          .k = 64,
          .n = 128,
          .dtype = KD_BF16,
          .y_dtype = KD_F32,
          .ta = true,
          .accumulate = true },
        { .m = 600,
          .k = 8,
          .n = 24,
          .dtype = KD_BF16,
          .y_dtype = KD_BF16,
          .bias = true,
          .bias_dtype = KD_BF16 },
        { .m = 64, /* a bias that starts where vectors do not */
          .k = 64,
          .n = 128,
          .dtype = KD_BF16,
          .y_dtype = KD_BF16,
          .bias = true,
          .bias_dtype = KD_BF16,
          .bias_skip = 1 },
        { .m = 24,
          .k = 8,
          .n = 600,
          .dtype = KD_F32,
          .y_dtype = KD_F32,
          .bias = true,
          .bias_dtype = KD_F32 },
        { .m = 8, .k = 3000, .n = 8, .dtype = KD_BF16, .y_dtype = KD_F32, .tb = true },
        { .m = 8, .k = 3000, .n = 8, .dtype = KD_BF16, .y_dtype = KD_BF16, .ta = true },
        { .m = 1, .k = 576, .n = 1536, .dtype = KD_BF16, .y_dtype = KD_BF16, .tb = true },
    };
    parity p;
    parity_open(&p, 8u << 20);
    for (int i = 0; i < KD_COUNT(cases); i++) compare(&p, &cases[i]);
    parity_close(&p);
}

/* ---- GELU ------------------------------------------------------------------------------------- */

/*
 * pre as the product, and y = gelu of pre before or after it was rounded: the slope of GELU is below
 * 1.13, so one rounding of pre, of `size` at most, moves y by no more than 1.13 size eps.
 */
static void check_gelu(parity *p, const product_case *c)
{
    const int mark = test_mark(&p->bench);
    const product t = product_open(&p->bench, c);
    const kd_shape shape = KD_SHAPE(c->m, c->n + c->skip);
    const kd_tensor whole = test_tensor(&p->bench, c->y_dtype, shape, c->pad);
    const kd_tensor pre = kd_tensor_slice(&whole, 1, c->skip, c->n);
    const int64_t count = c->m * c->n;
    double *want = test_zeros(&p->bench, count), *y = test_zeros(&p->bench, count);
    oracle_matmul(want, test_doubles(&p->bench, &t.a), test_doubles(&p->bench, &t.b),
                  c->bias ? test_doubles(&p->bench, &t.bias) : NULL, c->m, c->k, c->n);
    test_ok(
        PARITY_GPU(p, matmul_gelu, .y = &t.y, .pre = &pre, .a = &t.a, .b = &t.b, .bias = &t.bias));
    test_near(&pre, want, product_scale(c), (double)c->k + 1, "pre of %s", product_name(c));
    oracle_gelu(y, want, count, true);
    const double moved = c->y_dtype == KD_BF16 ? 1.13 * ldexp(1, -8) : 0;
    const double size = oracle_largest(want, count) * moved * ldexp(1, 23);
    test_near(&t.y, y, product_scale(c) + size, (double)c->k + 1, "gelu of %s", product_name(c));
    test_release(&p->bench, mark);
}

static void check_gelus(void)
{
    static const struct {
        int64_t m, k, n, pad, skip;
    } shapes[] = { { 1, 1, 1, 0, 0 },   { 5, 16, 8, 0, 0 }, { 33, 24, 64, 8, 8 },
                   { 9, 40, 30, 2, 0 }, { 4, 7, 16, 0, 1 }, { 1, 32, 21, 0, 0 },
                   { 3, 0, 8, 0, 0 },   { 0, 8, 8, 0, 0 },  { 3, 8, 16, 1, 8 },
                   { 3, 8, 15, 0, 1 } };
    static const kd_dtype dtypes[][3] = { { KD_F32, KD_F32, KD_F32 },
                                          { KD_BF16, KD_F32, KD_BF16 },
                                          { KD_BF16, KD_BF16, KD_F32 },
                                          { KD_BF16, KD_BF16, KD_BF16 } };
    parity p;
    parity_open(&p, 8u << 20);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int d = 0; d < KD_COUNT(dtypes); d++)
            for (int bias = 0; bias < 2; bias++) {
                const product_case c = { .m = shapes[s].m,
                                         .k = shapes[s].k,
                                         .n = shapes[s].n,
                                         .pad = shapes[s].pad,
                                         .skip = shapes[s].skip,
                                         .tb = d % 2,
                                         .dtype = dtypes[d][0],
                                         .y_dtype = dtypes[d][1],
                                         .bias = bias,
                                         .bias_dtype = dtypes[d][2] };
                check_gelu(&p, &c);
            }
    parity_close(&p);
}

Test(matmul, gelu) { check_gelus(); }

/* Where the library fuses it. */
Test(matmul, gelu_on_hopper)
{
    setenv("KD_SIM_CAPABILITY", "90", 1);
    check_gelus();
}

/* ---- plans ------------------------------------------------------------------------------------ */

/* A product on device memory, without the CPU. */
typedef struct bare {
    product_case c;
    product p;
    void *memory[3];
} bare;

static void bare_tensor(kd_tensor *t, void **memory, kd_device *gpu, kd_dtype dtype, int64_t rows,
                        int64_t columns)
{
    *t = kd_tensor_of((void *)256, dtype, KD_SHAPE(rows, columns));
    test_ok(kd_device_alloc(memory, gpu, kd_tensor_bytes(t), "operand"));
    t->data = *memory;
}

/* y[m, n] f32 = a[m, k] b[k, n] of bf16, or of f32 where every element is `value`. */
static bare bare_open(kd_device *gpu, int64_t m, int64_t k, int64_t n, float value)
{
    bare b = { .c = { .m = m, .k = k, .n = n } };
    const kd_dtype dtype = value != 0 ? KD_F32 : KD_BF16;
    bare_tensor(&b.p.y, &b.memory[0], gpu, KD_F32, m, n);
    bare_tensor(&b.p.a, &b.memory[1], gpu, dtype, m, k);
    bare_tensor(&b.p.b, &b.memory[2], gpu, dtype, k, n);
    const kd_tensor *const inputs[] = { &b.p.a, &b.p.b };
    for (int i = 0; i < 2; i++) {
        const int64_t count = kd_tensor_elements(inputs[i]);
        float *host = malloc((size_t)count * sizeof *host);
        cr_assert_not_null(host);
        for (int64_t e = 0; e < count; e++)
            host[e] = value != 0 ? value : (float)((e * 37 + 11 * i) % 61 - 30) / 29;
        if (dtype == KD_BF16) test_ok(kd_convert(host, KD_BF16, host, KD_F32, count));
        test_ok(gpu->type->upload(gpu, NULL, inputs[i]->data, host, kd_tensor_bytes(inputs[i])));
        test_ok(gpu->type->sync(gpu, NULL));
        free(host);
    }
    return b;
}

static void bare_close(bare *b, kd_device *gpu)
{
    for (int i = 0; i < KD_COUNT(b->memory); i++) kd_device_release(gpu, b->memory[i]);
}

static void open_gpu(kd_device **gpu)
{
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
    test_ok(kd_device_cuda.open(gpu, 0));
}

static void plan(kd_stack *stack, kd_device *gpu, const bare *b)
{
    stack->planning = true;
    kd_exec exec = { .device = gpu, .stack = stack };
    test_ok(product_run(&exec, &b->c, &b->p));
}

/* The elements of y after a run. */
static float *run(kd_stack *stack, kd_device *gpu, const bare *b)
{
    float *y = malloc(kd_tensor_bytes(&b->p.y));
    kd_exec exec = { .device = gpu, .stack = stack };
    cr_assert_not_null(y);
    test_ok(product_run(&exec, &b->c, &b->p));
    test_ok(kd_download(&exec, y, &b->p.y));
    test_ok(kd_sync(&exec));
    return y;
}

static void same(const float *a, const float *b, const bare *of, const char *what)
{
    cr_assert(memcmp(a, b, kd_tensor_bytes(&of->p.y)) == 0, "%s: other bits", what);
}

/* Planned once, a product makes nothing more and gives the same bits, whatever runs in between. */
Test(matmul, second_sight_makes_nothing)
{
    static const int64_t shapes[][3] = {
        { 8, 64, 16 }, { 16, 64, 8 }, { 5, 33, 7 }, { 64, 8, 16 }
    };
    enum { SHAPES = KD_COUNT(shapes) };
    kd_device *gpu;
    open_gpu(&gpu);
    bare b[SHAPES];
    float *first[SHAPES];
    kd_stack stack = { 0 };
    for (int i = 0; i < SHAPES; i++) {
        b[i] = bare_open(gpu, shapes[i][0], shapes[i][1], shapes[i][2], 0);
        plan(&stack, gpu, &b[i]);
    }
    test_ok(kd_stack_open(&stack, gpu));
    const long made = &kd_sim_cublaslt_made ? kd_sim_cublaslt_made : 0;
    for (int i = 0; i < SHAPES; i++) first[i] = run(&stack, gpu, &b[i]);
    for (int i = SHAPES - 1; i >= 0; i--) {
        float *again = run(&stack, gpu, &b[i]);
        same(first[i], again, &b[i], "again");
        free(again);
        free(first[i]);
    }
    cr_assert_eq(&kd_sim_cublaslt_made ? kd_sim_cublaslt_made : 0, made,
                 "a planned product made descriptors");
    for (int i = 0; i < SHAPES; i++) bare_close(&b[i], gpu);
    kd_stack_close(&stack, gpu);
    kd_device_close(gpu);
}

/* Past the table's bound everything is made anew; the old shapes still work. */
Test(matmul, table_is_bounded)
{
    kd_device *gpu;
    open_gpu(&gpu);
    bare b = bare_open(gpu, 1100, 2, 1, 0);
    kd_stack stack = { .planning = true };
    plan(&stack, gpu, &b);
    test_ok(kd_stack_open(&stack, gpu));
    float *first = run(&stack, gpu, &b);
    kd_exec exec = { .device = gpu, .stack = &stack };
    for (int64_t m = 1; m <= 1100; m++) {
        product part = b.p;
        part.y = kd_tensor_slice(&b.p.y, 0, 0, m);
        part.a = kd_tensor_slice(&b.p.a, 0, 0, m);
        test_ok(product_run(&exec, &b.c, &part));
    }
    float *again = run(&stack, gpu, &b);
    same(first, again, &b, "after 1100 others");
    free(first);
    free(again);
    bare_close(&b, gpu);
    kd_stack_close(&stack, gpu);
    kd_device_close(gpu);
}

/* TF32 rounds 1 + 2^-12 to 1, f32 does not. */
Test(matmul, tf32_is_asked_for)
{
    for (int tf32 = 0; tf32 < 2; tf32++) {
        kd_device *gpu;
        open_gpu(&gpu);
        gpu->tf32 = tf32;
        const float value = 1 + ldexpf(1, -12), square = tf32 ? 1 : value * value;
        bare b = bare_open(gpu, 16, 32, 8, value);
        kd_stack stack = { .planning = true };
        plan(&stack, gpu, &b);
        test_ok(kd_stack_open(&stack, gpu));
        float *y = run(&stack, gpu, &b);
        for (int i = 0; i < 16 * 8; i++)
            cr_assert(fabsf(y[i] - 32 * square) < 32 * 32 * ldexpf(1, -23), "tf32 %d: %.9g", tf32,
                      (double)y[i]);
        free(y);
        bare_close(&b, gpu);
        kd_stack_close(&stack, gpu);
        kd_device_close(gpu);
    }
}

Test(matmul, refuses)
{
    kd_device *gpu;
    open_gpu(&gpu);
    bare b = bare_open(gpu, 4, 6, 3, 1);
    kd_stack stack = { .planning = true };
    kd_exec exec = { .device = gpu, .stack = &stack };
    kd_tensor bad = b.p.a;
    bad.stride[1] = 2;
    test_refused(KD_RUN(&exec, matmul, .y = &b.p.y, .a = &bad, .b = &b.p.b), KD_EINVAL,
                 "a: [4, 6] with strides 6, 2");
    bad = b.p.a;
    bad.stride[0] = 5; /* rows that overlap */
    test_refused(KD_RUN(&exec, matmul, .y = &b.p.y, .a = &bad, .b = &b.p.b), KD_EINVAL,
                 "a: [4, 6] with strides 5, 1");
    bare_close(&b, gpu);
    kd_device_close(gpu);
}

/* ---- algorithms by the clock ------------------------------------------------------------------ */

static char logged[4096];

static void keep(void *context, kd_log_level level, const char *line)
{
    (void)context, (void)level;
    strncat(logged, line, sizeof logged - strlen(logged) - 1);
}

enum { TUNED_M = 16, TUNED_K = 640, TUNED_N = 24 };

/* Opens a device, plans, tunes, runs one product, and gives its elements; free them. */
static float *run_once(bool tune)
{
    kd_device *gpu;
    open_gpu(&gpu);
    gpu->tune = tune;
    bare b = bare_open(gpu, TUNED_M, TUNED_K, TUNED_N, 0);
    kd_stack stack = { .planning = true };
    plan(&stack, gpu, &b);
    stack.peak += 1u << 20; /* for the operands that are timed */
    test_ok(kd_stack_open(&stack, gpu));
    kd_exec exec = { .device = gpu, .stack = &stack };
    test_ok(kd_device_tune(&exec));
    float *y = run(&stack, gpu, &b);
    bare_close(&b, gpu);
    kd_stack_close(&stack, gpu);
    kd_device_close(gpu);
    return y;
}

/* Fails unless tuning says `text` and the product is near that of an untuned device; returns whether
 * it has its very bits. */
static bool tuned_run(const char *text, const char *name)
{
    float *plain = run_once(false);
    logged[0] = '\0';
    kd_log_redirect(keep, NULL);
    float *tuned = run_once(true);
    kd_log_redirect(NULL, NULL);
    cr_assert(strstr(logged, text), "%s: found \"%s\", expected \"%s\"", name, logged, text);
    bool same_bits = true;
    for (int i = 0; i < TUNED_M * TUNED_N; i++) {
        cr_assert(fabsf(plain[i] - tuned[i]) <= TUNED_K * ldexpf(1, -23), "%s: %d: %g and %g", name,
                  i, (double)plain[i], (double)tuned[i]);
        same_bits = same_bits && plain[i] == tuned[i];
    }
    free(plain);
    free(tuned);
    return same_bits;
}

static void find_cache(char path[512], const char *folder)
{
    kd_arena *arena;
    const char *const *names;
    int count;
    snprintf(path, 512, "%s/kd", folder);
    test_ok(kd_arena_create(&arena));
    test_ok(kd_dir_list(&names, &count, arena, path));
    cr_assert_eq(count, 1);
    snprintf(path, 512, "%s/kd/%s", folder, names[0]);
    kd_arena_destroy(arena);
}

/* The same file with another value at `key`. */
static void change_cache(const char *path, const char *key, json_t *value)
{
    json_t *file;
    test_ok(kd_json_read(&file, path));
    cr_assert_eq(json_object_set_new(file, key, value), 0);
    test_ok(kd_json_write(path, file));
    json_decref(file);
}

/* The same file with another algorithm for its products. */
static void change_algorithm(const char *path, const int config[9])
{
    json_t *file, *saved;
    const char *key;
    test_ok(kd_json_read(&file, path));
    json_object_foreach(json_object_get(file, "products"), key, saved) for (size_t i = 0; i < 9;
                                                                            i++)
        json_array_set_new(saved, i, json_integer(config[i]));
    test_ok(kd_json_write(path, file));
    json_decref(file);
}

Test(matmul, algorithms_are_timed_and_remembered)
{
    static const char timed[] = "of 1 products timed, of 0 remembered";
    static const char remembered[] = "of 0 products timed, of 1 remembered";
    char folder[] = "/tmp/kd-tune-XXXXXX", path[512];
    cr_assert_not_null(mkdtemp(folder));
    setenv("XDG_CACHE_HOME", folder, 1);
    tuned_run(timed, "no file");
    tuned_run(remembered, "file");
    find_cache(path, folder);

    change_cache(path, "cublaslt", json_integer(7));
    tuned_run("\"cublaslt\" is not ours", "file of another version");
    tuned_run(remembered, "written anew");
    change_cache(path, "products", json_integer(7));
    tuned_run("no \"products\"", "file without products");
    test_ok(kd_file_write_atomic(path, "{ \"device\": ", 12));
    tuned_run("ignored", "damaged file");
    tuned_run(remembered, "written anew again");

    static const int plain[9] = { 0, CUBLASLT_MATMUL_TILE_32x32, 1 }, foreign[9] = { 12345 };
    change_algorithm(path, plain); /* one that the emulated library knows, and names late */
    if (&kd_sim_cublaslt_made)
        cr_assert(!tuned_run(remembered, "another algorithm"), "the file's algorithm did not run");
    change_algorithm(path, foreign);
    tuned_run(timed, "an algorithm that the heuristic does not name");

    test_ok(kd_dir_remove(folder));
    setenv("XDG_CACHE_HOME", "/dev/null/no", 1);
    tuned_run("algorithms are not kept", "no place for a file");
}
