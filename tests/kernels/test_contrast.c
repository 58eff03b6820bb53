/*
 * contrast, contrast_partition and renew_rows on a GPU, against the CPU: widths of every kernel, aligned and
 * not, less than a slice of ids and more than two, either type, with and without gradient and weights; ids
 * that are none.
 */
#include "support/parity.h"

#include <math.h>

static const struct {
    int64_t batch, negatives, n, columns, pad;
} shapes[] = { { 1, 1, 1, 1, 0 },     { 3, 6, 50, 5, 3 },     { 2, 511, 60, 128, 0 },
               { 2, 512, 40, 64, 4 }, { 2, 1100, 30, 12, 0 }, { 3, 33, 30, 132, 4 },
               { 2, 40, 20, 256, 1 }, { 2, 35, 20, 260, 0 },  { 2, 9, 12, 1024, 8 },
               { 2, 9, 12, 1023, 0 }, { 0, 4, 7, 9, 0 } };

typedef struct operands {
    kd_tensor x, dx, bank, samples, negatives, partition, weight, scale, loss;
} operands;

static operands make(parity *p, int s, kd_dtype dtype)
{
    test_bench *b = &p->bench;
    const int64_t batch = shapes[s].batch, n = shapes[s].n, pad = shapes[s].pad;
    const kd_shape shape = KD_SHAPE(batch, shapes[s].columns);
    const double by = sqrt(3.0 / (double)shape.dim[1]); /* rows about as long as 1 */
    const operands o = {
        .x = test_filled(b, dtype, shape, pad + 1, -2, 2),
        .dx = test_filled(b, dtype, shape, pad, -1, 1),
        .bank = test_filled(b, KD_F32, KD_SHAPE(n, shape.dim[1]), pad, -by, by),
        .samples = test_filled(b, KD_I32, KD_SHAPE(batch), 0, 0, (double)n),
        .negatives = test_filled(b, KD_I32, KD_SHAPE(batch, shapes[s].negatives), 0, 0, (double)n),
        .partition = test_filled(b, KD_F32, KD_SHAPE(2), 0, 20, 60),
        .weight = test_filled(b, KD_F32, KD_SHAPE(batch), 0, 0.5, 2),
        .scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 0.5, 1),
        .loss = test_filled(b, KD_F32, KD_SHAPE(batch), 0, 0, 1),
    };
    if (batch > 2) { /* a dead row, and one that is not read */
        for (int64_t i = 0; i < shape.dim[1]; i++) {
            test_set(&o.x, shape.dim[1] + i, NAN);
            test_set(&o.x, 2 * shape.dim[1] + i, 0);
        }
        test_set(&o.weight, 1, 0);
        test_set(&o.samples, 1, -5);
    }
    return o;
}

static void check(parity *p, int s, kd_dtype dtype, bool full, float temperature)
{
    const operands o = make(p, s, dtype);
    const double entries = (double)shapes[s].negatives + 1;
    const kd_tensor *weight = full || o.x.shape[0] > 2 ? &o.weight : NULL;
    const char *name = parity_name("shape %d, %s, T %g%s", s, kd_dtype_name(dtype),
                                   (double)temperature, full ? ", full" : "");
    PARITY(p, contrast, 2 * entries, entries, name, .dx = full ? &o.dx : NULL, .loss = &o.loss,
           .x = &o.x, .bank = &o.bank, .samples = &o.samples, .negatives = &o.negatives,
           .partition = &o.partition, .weight = weight, .scale = full ? &o.scale : NULL,
           .temperature = temperature, .eps = full ? 1e-3f : 0, .side = 1);
    if (full) test_set(&o.partition, 1, 0); /* else it is known and stays */
    PARITY(p, contrast_partition, 1e6 * (double)shapes[s].n, entries, name,
           .partition = &o.partition, .x = &o.x, .bank = &o.bank, .samples = &o.samples,
           .negatives = &o.negatives, .weight = weight, .temperature = temperature, .side = 1);
    const double z = test_get(&o.partition, 1);
    cr_assert(o.x.shape[0] == 0 || z > 0, "%s: Z is %g", name, z);
    if (o.x.shape[0] == 2) test_set(&o.samples, 1, test_get(&o.samples, 0));
    PARITY(p, renew_rows, 1, 8, name, .bank = &o.bank, .x = &o.x, .samples = &o.samples,
           .weight = weight, .momentum = full ? 0.5f : 0.9f);
}

Test(contrast, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, 1 << 16);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < 4; t++) {
            const int mark = test_mark(&p.bench);
            check(&p, s, t & 1 ? KD_BF16 : KD_F32, t & 2, t & 1 ? 0.07f : 0.3f);
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}

/* The gradient alone, at the size of its numbers; a Z near what the CPU finds, relative to it. */
Test(contrast, is_near_where_numbers_are_small)
{
    parity p;
    parity_open(&p, 1 << 16);
    for (int s = 1; s < 6; s++) {
        const int mark = test_mark(&p.bench);
        const operands o = make(&p, s, KD_F32);
        const double entries = (double)shapes[s].negatives + 1;
        test_fill_constant(&o.dx, 0), test_fill_constant(&o.loss, 0);
        for (int64_t i = 0; i < 2; i++) test_set(&o.partition, i, 1e5);
        PARITY(&p, contrast, 8, 16, parity_name("shape %d", s), .dx = &o.dx, .loss = &o.loss,
               .x = &o.x, .bank = &o.bank, .samples = &o.samples, .negatives = &o.negatives,
               .partition = &o.partition, .weight = &o.weight, .scale = &o.scale,
               .temperature = 0.5f, .eps = 1e-7f, .side = 0);
        test_set(&o.partition, 0, 0);
        PARITY(&p, contrast_partition, (double)shapes[s].n, entries, parity_name("shape %d", s),
               .partition = &o.partition, .x = &o.x, .bank = &o.bank, .samples = &o.samples,
               .negatives = &o.negatives, .weight = &o.weight, .temperature = 0.5f, .side = 0);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* A negative or a sample that is none: NaN in its own row, nothing in Z, no row of the bank. */
Test(contrast, ids_out_of_range)
{
    static const double bad[] = { 50, -1, INT32_MAX, INT32_MIN };
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < 2 * KD_COUNT(bad); c++) {
        const int mark = test_mark(&p.bench);
        const operands o = make(&p, 1, KD_F32);
        double *bank = test_doubles(&p.bench, &o.bank), dx = test_get(&o.dx, 0);
        test_fill_constant(&o.weight, 1);
        for (int64_t i = 0; i < 15; i++) test_set(&o.x, i, i % 4 ? 0.5 : -1);
        for (int64_t i = 0; i < 3; i++) test_set(&o.samples, i, 3.0 + (double)i);
        test_set(c % 2 ? &o.samples : &o.negatives, c % 2 ? 0 : 2, bad[c / 2]);
        const double known = test_get(&o.partition, 1);
        test_set(&o.partition, 0, 0);
        for (int64_t side = 0; side < 2; side++)
            test_ok(PARITY_GPU(&p, contrast_partition, .partition = &o.partition, .x = &o.x,
                               .bank = &o.bank, .samples = &o.samples, .negatives = &o.negatives,
                               .temperature = 0.3f, .side = side));
        cr_assert(test_get(&o.partition, 0) > 0 && test_get(&o.partition, 1) == known);
        test_ok(PARITY_GPU(&p, contrast, .dx = &o.dx, .loss = &o.loss, .x = &o.x, .bank = &o.bank,
                           .samples = &o.samples, .negatives = &o.negatives,
                           .partition = &o.partition, .weight = &o.weight, .scale = &o.scale,
                           .temperature = 0.3f, .eps = 1e-7f, .side = 0));
        cr_assert(isnan(test_get(&o.loss, 0)) && isnan(test_get(&o.dx, 0)) && isfinite(dx));
        for (int64_t i = 1; i < 3; i++) cr_assert(isfinite(test_get(&o.loss, i)));
        for (int64_t i = 5; i < 15; i++) cr_assert(isfinite(test_get(&o.dx, i)));
        test_ok(PARITY_GPU(&p, renew_rows, .bank = &o.bank, .x = &o.x, .samples = &o.samples,
                           .weight = &o.weight, .momentum = 0.5f));
        int64_t moved = 0;
        for (int64_t i = 0; i < 250; i++)
            if (test_get(&o.bank, i) != bank[i]) moved |= INT64_C(1) << (i / 5);
        cr_assert_eq(moved, c % 2 ? 0x30 : 0x38, "%g: rows %llx", bad[c / 2],
                     (unsigned long long)moved);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}
