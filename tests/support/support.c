#include "support/support.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { GUARD = 64 }; /* elements before and after a tensor */

/* ---- opening and closing ---------------------------------------------------------------------- */

void test_open(test_bench *bench, size_t stack_bytes)
{
    memset(bench, 0, sizeof *bench);
    bench->seed = 42;
    test_ok(kd_device_open(&bench->exec.device, "cpu"));
    bench->stack.peak = stack_bytes;
    test_ok(kd_stack_open(&bench->stack, bench->exec.device));
    bench->exec.stack = &bench->stack;
}

/* Bytes of `view` are marked; all others must still be 0xff. */
static void check_guards(const test_block *block)
{
    const kd_tensor *t = &block->view;
    const size_t size = kd_dtype_size(t->dtype);
    unsigned char *inside = calloc(block->bytes, 1);
    cr_assert_not_null(inside);
    const size_t origin = (size_t)((unsigned char *)t->data - block->base);
    for (int64_t i = 0, n = kd_tensor_elements(t); i < n; i++) {
        int64_t rest = i, offset = 0;
        for (int32_t d = t->rank - 1; d >= 0; rest /= t->shape[d], d--)
            offset += rest % t->shape[d] * t->stride[d];
        memset(inside + origin + (size_t)offset * size, 1, size);
    }
    for (size_t i = 0; i < block->bytes; i++)
        cr_assert(inside[i] || block->base[i] == 0xff,
                  "byte %lld from the start of a tensor was written; it is not part of it",
                  (long long)i - (long long)origin);
    free(inside);
}

int test_mark(const test_bench *bench) { return bench->count; }

void test_release(test_bench *bench, int mark)
{
    while (bench->count > mark) {
        test_block *block = &bench->blocks[--bench->count];
        if (block->base) check_guards(block);
        free(block->base);
        free(block->doubles);
    }
}

void test_close(test_bench *bench)
{
    test_release(bench, 0);
    cr_assert_eq(bench->stack.used, 0, "the stack still holds %zu bytes", bench->stack.used);
    kd_stack_close(&bench->stack, bench->exec.device);
    kd_device_close(bench->exec.device);
}

/* ---- tensors ---------------------------------------------------------------------------------- */

static test_block *next_block(test_bench *bench)
{
    cr_assert_lt(bench->count, TEST_MAX_TENSORS, "more than %d tensors on one bench",
                 TEST_MAX_TENSORS);
    test_block *block = &bench->blocks[bench->count++];
    *block = (test_block){ 0 };
    return block;
}

kd_tensor test_tensor(test_bench *bench, kd_dtype dtype, kd_shape shape, int64_t pad)
{
    test_block *block = next_block(bench);
    const size_t size = kd_dtype_size(dtype);
    kd_tensor t = kd_tensor_of(NULL, dtype, shape);
    if (shape.rank > 1) t.stride[0] += pad;
    const int64_t span = shape.rank ? t.shape[0] * t.stride[0] : 1;
    block->bytes = (size_t)(span + 2 * GUARD) * size;
    block->base = malloc(block->bytes);
    cr_assert_not_null(block->base);
    memset(block->base, 0xff, block->bytes);
    t.data = block->base + GUARD * size;
    block->view = t;
    return t;
}

kd_tensor test_filled(test_bench *bench, kd_dtype dtype, kd_shape shape, int64_t pad, double low,
                      double high)
{
    const kd_tensor t = test_tensor(bench, dtype, shape, pad);
    test_fill(bench, &t, low, high);
    return t;
}

kd_tensor test_values(test_bench *bench, kd_dtype dtype, kd_shape shape, const double *values)
{
    const kd_tensor t = test_tensor(bench, dtype, shape, 0);
    for (int64_t i = 0, n = kd_tensor_elements(&t); i < n; i++) test_set(&t, i, values[i]);
    return t;
}

double test_uniform(test_bench *bench)
{
    bench->seed = bench->seed * 6364136223846793005u + 1442695040888963407u; /* Knuth, MMIX */
    return (double)(bench->seed >> 11) * 0x1p-53;
}

kd_tensor test_offsets(test_bench *bench, const int32_t *lengths, int count, int32_t first)
{
    const kd_tensor cu = test_tensor(bench, KD_I32, KD_SHAPE(count + 1), 0);
    test_set(&cu, 0, first);
    for (int i = 0; i < count; i++) test_set(&cu, i + 1, first += lengths[i]);
    return cu;
}

kd_tensor test_heads(const kd_tensor *fused, int64_t first, int64_t heads, int64_t width)
{
    const kd_tensor columns = kd_tensor_slice(fused, 1, first * width, heads * width);
    return kd_tensor_split(&columns, width);
}

void test_fill(test_bench *bench, const kd_tensor *t, double low, double high)
{
    const bool whole = t->dtype >= KD_I64;
    for (int64_t i = 0, n = kd_tensor_elements(t); i < n; i++) {
        const double value = low + (high - low) * test_uniform(bench);
        test_set(t, i, whole ? floor(value) : value);
    }
}

void test_fill_constant(const kd_tensor *t, double value)
{
    for (int64_t i = 0, n = kd_tensor_elements(t); i < n; i++) test_set(t, i, value);
}

/* ---- elements --------------------------------------------------------------------------------- */

static void *element(const kd_tensor *t, int64_t index)
{
    int64_t offset = 0;
    for (int32_t d = t->rank - 1; d >= 0; index /= t->shape[d], d--)
        offset += index % t->shape[d] * t->stride[d];
    return (char *)t->data + offset * (int64_t)kd_dtype_size(t->dtype);
}

double test_get(const kd_tensor *t, int64_t index)
{
    const void *at = element(t, index);
    switch (t->dtype) {
    case KD_F32: return *(const float *)at;
    case KD_BF16: return kd_bf16_to_f32(*(const uint16_t *)at);
    case KD_F16: return kd_f16_to_f32(*(const uint16_t *)at);
    case KD_F8_E4M3: return kd_e4m3_to_f32(*(const uint8_t *)at);
    case KD_I64: return (double)*(const int64_t *)at;
    case KD_I32: return *(const int32_t *)at;
    case KD_U32: return *(const uint32_t *)at;
    case KD_U16: return *(const uint16_t *)at;
    case KD_U8: return *(const uint8_t *)at;
    case KD_I8: return *(const int8_t *)at;
    default: cr_assert_fail("test_get: %s", kd_dtype_name(t->dtype)); return NAN;
    }
}

void test_set(const kd_tensor *t, int64_t index, double value)
{
    void *at = element(t, index);
    switch (t->dtype) {
    case KD_F32: *(float *)at = (float)value; break;
    case KD_BF16: *(uint16_t *)at = kd_f32_to_bf16((float)value); break;
    case KD_F16: *(uint16_t *)at = kd_f32_to_f16((float)value); break;
    case KD_F8_E4M3: *(uint8_t *)at = kd_f32_to_e4m3((float)value); break;
    case KD_I64: *(int64_t *)at = (int64_t)value; break;
    case KD_I32: *(int32_t *)at = (int32_t)value; break;
    case KD_U32: *(uint32_t *)at = (uint32_t)value; break;
    case KD_U16: *(uint16_t *)at = (uint16_t)value; break;
    case KD_U8: *(uint8_t *)at = (uint8_t)value; break;
    case KD_I8: *(int8_t *)at = (int8_t)value; break;
    default: cr_assert_fail("test_set: %s", kd_dtype_name(t->dtype));
    }
}

double *test_zeros(test_bench *bench, int64_t count)
{
    test_block *block = next_block(bench);
    block->doubles = calloc((size_t)(count ? count : 1), sizeof *block->doubles);
    cr_assert_not_null(block->doubles);
    return block->doubles;
}

double *test_doubles(test_bench *bench, const kd_tensor *t)
{
    const int64_t n = kd_tensor_elements(t);
    double *values = test_zeros(bench, n);
    for (int64_t i = 0; i < n; i++) values[i] = test_get(t, i);
    return values;
}

/* ---- comparing -------------------------------------------------------------------------------- */

/* Formats the name of a case; the text lives until the next call on this thread. */
static const char *case_name(const char *fmt, va_list args)
{
    static _Thread_local char name[256];
    vsnprintf(name, sizeof name, fmt, args);
    return name;
}

/* Half a unit in the last place; f16 alone has subnormals that a test can meet. */
static double rounding(kd_dtype dtype, double value)
{
    if (dtype == KD_BF16) return 0x1p-8 * fabs(value);
    return dtype == KD_F16 ? fmax(0x1p-11 * fabs(value), 0x1p-25) : 0;
}

void test_near_value(double got, double want, kd_dtype dtype, int roundings, double scale,
                     double length, const char *fmt, ...)
{
    const double error = fabs(got - want);
    const double tolerance = FLT_EPSILON * (fabs(got) + fabs(want) + scale) * sqrt(length) +
                             roundings * rounding(dtype, want);
    if (isnan(want) ? isnan(got) : isinf(want) ? got == want : isfinite(got) && error <= tolerance)
        return;
    va_list args;
    va_start(args, fmt);
    char name[320];
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    cr_assert_fail("%s is %.9g, expected %.9g (error %.3g, tolerance %.3g)", name, got, want, error,
                   tolerance);
}

void test_near(const kd_tensor *got, const double *want, double scale, double length,
               const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const char *name = case_name(fmt, args);
    va_end(args);
    for (int64_t i = 0, n = kd_tensor_elements(got); i < n; i++)
        test_near_value(test_get(got, i), want[i], got->dtype, 1, scale, length, "%s: element %lld",
                        name, (long long)i);
}

void test_same_bits(const kd_tensor *a, const kd_tensor *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const char *name = case_name(fmt, args);
    va_end(args);
    cr_assert(a->dtype == b->dtype, "%s: different element types", name);
    const int64_t n = kd_tensor_elements(a);
    cr_assert(n == kd_tensor_elements(b), "%s: different sizes", name);
    for (int64_t i = 0; i < n; i++)
        cr_assert(memcmp(element(a, i), element(b, i), kd_dtype_size(a->dtype)) == 0,
                  "%s: element %lld is %.9g here and %.9g there", name, (long long)i,
                  test_get(a, i), test_get(b, i));
}

void test_gradient(double (*value)(void *context), void *context, double *x, int64_t n,
                   const double *gradient, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const char *name = case_name(fmt, args);
    va_end(args);
    const double root = cbrt(DBL_EPSILON); /* balances truncation h^2 and rounding eps / h */
    for (int64_t i = 0; i < n; i++) {
        const double keep = x[i], h = root * (fabs(keep) + 1);
        x[i] = keep + h;
        const double up = value(context), high = x[i];
        x[i] = keep - h;
        const double down = value(context), low = x[i];
        x[i] = keep;
        const double want = (up - down) / (high - low), error = fabs(want - gradient[i]);
        const double tolerance =
            16 * root * root * (fabs(want) + fabs(gradient[i]) + fabs(up) + fabs(down) + 1);
        cr_assert(error <= tolerance,
                  "%s: d/dx[%lld] is %.12g, differences say %.12g (error %.3g, tolerance %.3g)",
                  name, (long long)i, gradient[i], want, error, tolerance);
    }
}

void test_expect_status(kd_status found, kd_status expected, const char *text, const char *call)
{
    cr_assert(found == expected, "%s: %s (%s), expected %s", call, kd_status_text(found),
              found == KD_OK ? "no message" : kd_last_error(), kd_status_text(expected));
    cr_assert(found == KD_OK || strstr(kd_last_error(), text), "%s: \"%s\" does not name \"%s\"",
              call, kd_last_error(), text);
}

/* ---- planning --------------------------------------------------------------------------------- */

kd_exec test_planning(const test_bench *bench, kd_stack *stack)
{
    *stack = (kd_stack){ .planning = true };
    kd_exec exec = bench->exec;
    exec.stack = stack;
    return exec;
}

kd_tensor test_untouchable(const kd_tensor *t)
{
    kd_tensor fake = *t;
    fake.data = (void *)(uintptr_t)KD_STACK_ALIGN; /* in the page that nobody maps */
    return fake;
}
