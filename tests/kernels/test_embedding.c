/* embedding and its gradient on a GPU, against the CPU. */
#include "support/parity.h"

#include <math.h>

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

static const struct {
    int64_t rows, columns, vocabulary, pad;
} cases[] = {
    { 1, 1, 1, 0 },        { 9, 1, 3, 2 },       { 1, 65, 4, 0 },    { 33, 129, 7, 3 },
    { 5, 1032, 2, 8 },     { 32, 8, 256, 0 },    { 65, 24, 300, 8 }, { 2047, 3, 257, 0 },
    { 2049, 8, 700, 0 },   { 300, 4, 70000, 0 }, { 0, 8, 5, 0 },     { 96, 16, 1, 0 },
    { 4200, 1, 65537, 0 },
};

/* How the ids of a case are spread. */
enum { UNIFORM, ALL_EQUAL, TWO, SKEWED, ASCENDING, SPREADS };

static kd_tensor spread(parity *p, kd_shape shape, int64_t vocabulary, int how)
{
    const kd_tensor ids = test_tensor(&p->bench, KD_I32, shape, 0);
    for (int64_t i = 0, n = kd_tensor_elements(&ids); i < n; i++) {
        const double u = test_uniform(&p->bench), last = (double)(vocabulary - 1);
        double id = floor(u * (double)vocabulary);
        if (how == ALL_EQUAL) id = last;
        if (how == TWO) id = u < 0.7 ? last : 0;
        if (how == SKEWED) id = floor(pow(u, 6) * (double)vocabulary); /* as words of a text */
        if (how == ASCENDING) id = fmin((double)(i / 3), last);
        test_set(&ids, i, id);
    }
    return ids;
}

/* Rows that begin `shift` elements off the vectors' boundary. */
static kd_tensor shifted(parity *p, kd_dtype dtype, kd_shape shape, int64_t shift, int64_t pad)
{
    const kd_shape wide = KD_SHAPE(shape.dim[0], shape.dim[1] + shift);
    const kd_tensor whole = test_filled(&p->bench, dtype, wide, pad, -1, 1);
    return kd_tensor_slice(&whole, 1, shift, shape.dim[1]);
}

Test(embedding, rows_of_a_table)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases) * 4; c++) {
        const int s = c / 4, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c % 2];
        const int64_t shift = c / 2 % 2, columns = cases[s].columns; /* off the vectors' boundary */
        const kd_shape shape = KD_SHAPE(cases[s].rows, columns);
        const kd_tensor table =
            shifted(&p, dtype, KD_SHAPE(cases[s].vocabulary, columns), shift, cases[s].pad);
        const kd_tensor ids = spread(&p, KD_SHAPE(cases[s].rows), cases[s].vocabulary, UNIFORM);
        const kd_tensor add = test_filled(&p.bench, dtype, shape, 2 * cases[s].pad, -1, 1);
        const kd_tensor y = test_tensor(&p.bench, dtype, shape, cases[s].pad);
        const char *name =
            parity_name("%s, case %d, shift %d", kd_dtype_name(dtype), s, (int)shift);
        PARITY(&p, embedding, 0, 1, name, .y = &y, .table = &table, .ids = &ids);
        PARITY(&p, embedding, 1, 1, name, .y = &y, .table = &table, .ids = &ids, .add = &add);
        PARITY(&p, embedding, 1, 1, name, .y = &add, .table = &table, .ids = &ids, .add = &add);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* Up to 32 rows are added in the CPU's order: its bits.  More may be added in pieces. */
Test(embedding, backward)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases) * SPREADS * 2; c++) {
        const int s = c / (2 * SPREADS), how = c / 2 % SPREADS, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c % 2];
        const int64_t rows = cases[s].rows, shift = (s + how) % 2;
        const kd_shape table = KD_SHAPE(cases[s].vocabulary, cases[s].columns);
        const kd_tensor dy = shifted(&p, dtype, KD_SHAPE(rows, table.dim[1]), shift, cases[s].pad);
        const kd_tensor ids = spread(&p, KD_SHAPE(rows), table.dim[0], how);
        const kd_tensor dtable = test_filled(&p.bench, KD_F32, table, cases[s].pad, -1, 1);
        const kd_tensor twin = test_tensor(&p.bench, KD_F32, table, cases[s].pad);
        const char *name = parity_name("%s, case %d, spread %d", kd_dtype_name(dtype), s, how);
        test_ok(KD_RUN(&p.bench.exec, copy, .y = &twin, .x = &dtable));
        PARITY(&p, embedding_backward, 1, (double)rows + 1, name, .dtable = &dtable, .dy = &dy,
               .ids = &ids);
        test_ok(PARITY_GPU(&p, embedding_backward, .dtable = &twin, .dy = &dy, .ids = &ids));
        if (rows <= 32) test_same_bits(&twin, &dtable, "%s", name);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* A row of NaN and infinity reaches its own id alone. */
Test(embedding, backward_keeps_what_is_not_finite)
{
    parity p;
    parity_open(&p, 0);
    const kd_tensor dy = test_filled(&p.bench, KD_F32, KD_SHAPE(200, 12), 0, -1, 1);
    const kd_tensor dtable = test_filled(&p.bench, KD_F32, KD_SHAPE(3, 12), 0, -1, 1);
    const kd_tensor ids = spread(&p, KD_SHAPE(200), 3, UNIFORM);
    test_set(&ids, 150, 1);
    test_set(&dy, 150 * 12 + 3, NAN);
    test_set(&dy, 150 * 12 + 4, INFINITY);
    PARITY(&p, embedding_backward, 1, 200, "not finite", .dtable = &dtable, .dy = &dy, .ids = &ids);
    parity_close(&p);
}

/* With a factor: from none a row to more than a tile and than many pieces of one id. */
static const struct {
    int64_t rows, count, columns, vocabulary, pad;
} weighted[] = {
    { 1, 1, 1, 1, 0 },   { 3, 0, 8, 5, 0 },    { 9, 3, 1, 3, 2 },       { 5, 64, 65, 4, 0 },
    { 0, 4, 8, 5, 0 },   { 33, 2, 136, 7, 8 }, { 7, 31, 1031, 9, 1 },   { 130, 33, 8, 300, 8 },
    { 43, 3, 16, 1, 0 }, { 2100, 2, 4, 2, 4 }, { 300, 7, 4, 70000, 0 },
};

Test(embedding, weighted_sums)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(weighted) * 4; c++) {
        const int s = c / 4, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c % 2];
        const int64_t shift = c / 2 % 2, columns = weighted[s].columns;
        const double n = (double)weighted[s].count + 1;
        const kd_shape shape = KD_SHAPE(weighted[s].rows, columns);
        const kd_shape entries = KD_SHAPE(weighted[s].rows, weighted[s].count);
        const kd_tensor table =
            shifted(&p, dtype, KD_SHAPE(weighted[s].vocabulary, columns), shift, weighted[s].pad);
        const kd_tensor ids = spread(&p, entries, weighted[s].vocabulary, UNIFORM);
        const kd_tensor factor = test_filled(&p.bench, KD_F32, entries, 0, -1, 1);
        const kd_tensor add = test_filled(&p.bench, dtype, shape, 2 * weighted[s].pad, -1, 1);
        const kd_tensor y = test_tensor(&p.bench, dtype, shape, weighted[s].pad);
        const char *name = parity_name("%s, sum %d, shift %d", kd_dtype_name(dtype), s, (int)shift);
        PARITY(&p, embedding, n, n, name, .y = &y, .table = &table, .ids = &ids, .factor = &factor);
        PARITY(&p, embedding, n, n, name, .y = &y, .table = &table, .ids = &ids, .factor = &factor,
               .add = &add);
        PARITY(&p, embedding, n, n, name, .y = &add, .table = &table, .ids = &ids,
               .factor = &factor, .add = &add);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(embedding, weighted_backward)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(weighted) * SPREADS * 2; c++) {
        const int s = c / (2 * SPREADS), how = c / 2 % SPREADS, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c % 2];
        const int64_t rows = weighted[s].rows, columns = weighted[s].columns, shift = (s + how) % 2;
        const kd_shape entries = KD_SHAPE(rows, weighted[s].count);
        const kd_tensor dy = shifted(&p, dtype, KD_SHAPE(rows, columns), shift, weighted[s].pad);
        const kd_tensor ids = spread(&p, entries, weighted[s].vocabulary, how);
        const kd_tensor factor = test_filled(&p.bench, KD_F32, entries, 0, -1, 1);
        const kd_tensor dtable = test_filled(
            &p.bench, KD_F32, KD_SHAPE(weighted[s].vocabulary, columns), weighted[s].pad, -1, 1);
        const char *name = parity_name("%s, sum %d, spread %d", kd_dtype_name(dtype), s, how);
        /* The partial sums of n entries of either sign grow as their root. */
        const double n = (double)(rows * weighted[s].count) + 1;
        PARITY(&p, embedding_backward, sqrt(n), n, name, .dtable = &dtable, .dy = &dy, .ids = &ids,
               .factor = &factor);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(embedding, products)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(weighted) * 8; c++) {
        const int s = c / 8, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c % 2];
        const int64_t shift[] = { c / 2 % 2, c / 4 % 2 }, columns = weighted[s].columns;
        const kd_shape entries = KD_SHAPE(weighted[s].rows, weighted[s].count);
        const kd_tensor x =
            shifted(&p, dtype, KD_SHAPE(weighted[s].rows, columns), shift[0], weighted[s].pad);
        const kd_tensor table =
            shifted(&p, dtype, KD_SHAPE(weighted[s].vocabulary, columns), shift[1], 0);
        const kd_tensor ids = spread(&p, entries, weighted[s].vocabulary, UNIFORM);
        const kd_tensor y = test_tensor(&p.bench, KD_F32, entries, 0);
        for (int with = 0; with < 3; with++) {
            const kd_tensor bias = test_filled(&p.bench, with == 1 ? KD_F32 : KD_BF16,
                                               KD_SHAPE(weighted[s].vocabulary), 0, -1, 1);
            const char *name = parity_name("%s, products %d, shifts %d, bias %d",
                                           kd_dtype_name(dtype), s, c / 2 % 4, with);
            PARITY(&p, embedding_products, 1, (double)columns, name, .y = &y, .x = &x,
                   .table = &table, .ids = &ids, .bias = with ? &bias : NULL);
        }
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

enum { ROWS = 150, COLUMNS = 8, VOCABULARY = 40, COUNT = 3 };

/* Bad ids make NaN of their rows forward, and backward leave every row of the table to the good. */
static void bad_ids(parity *p, kd_dtype dtype, double bad, int every)
{
    const int mark = test_mark(&p->bench);
    const kd_tensor table = test_filled(&p->bench, dtype, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor y = test_filled(&p->bench, dtype, KD_SHAPE(ROWS, COLUMNS), 0, -1, 1);
    const kd_tensor dtable =
        test_filled(&p->bench, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor ids = spread(p, KD_SHAPE(ROWS), VOCABULARY, SKEWED);
    for (int n = 0; n < ROWS; n += every) test_set(&ids, n, bad);
    double *sums = test_doubles(&p->bench, &dtable), *want = test_zeros(&p->bench, ROWS * COLUMNS);
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        const bool good = i / COLUMNS % every != 0;
        const int at = good ? (int)test_get(&ids, i / COLUMNS) * COLUMNS + i % COLUMNS : 0;
        want[i] = good ? test_get(&table, at) : NAN;
        if (good) sums[at] += test_get(&y, i);
    }
    test_ok(PARITY_GPU(p, embedding_backward, .dtable = &dtable, .dy = &y, .ids = &ids));
    test_near(&dtable, sums, 1, ROWS, "%g at every %d, backward", bad, every);
    test_ok(PARITY_GPU(p, embedding, .y = &y, .table = &table, .ids = &ids));
    test_near(&y, want, 0, 0, "%g at every %d", bad, every);
    test_ok(PARITY_GPU(p, embedding, .y = &y, .table = &table, .ids = &ids, .add = &y));
    for (int i = 0; i < ROWS * COLUMNS; i++) want[i] *= 2;
    test_near(&y, want, 0, 1, "%g at every %d, with add", bad, every);
    test_release(&p->bench, mark);
}

/* Of entries with a factor, which is 0 for the bad: NaN in their sum and their product, and nothing of
 * them in the table. */
static void bad_entries(parity *p, kd_dtype dtype, double bad, int every)
{
    const int mark = test_mark(&p->bench);
    const kd_shape entries = KD_SHAPE(ROWS, COUNT);
    const kd_tensor table = test_filled(&p->bench, dtype, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor dy = test_filled(&p->bench, dtype, KD_SHAPE(ROWS, COLUMNS), 0, -1, 1);
    const kd_tensor y = test_tensor(&p->bench, dtype, KD_SHAPE(ROWS, COLUMNS), 0);
    const kd_tensor dtable =
        test_filled(&p->bench, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor ids = spread(p, entries, VOCABULARY, SKEWED);
    const kd_tensor factor = test_filled(&p->bench, KD_F32, entries, 0, -1, 1);
    const kd_tensor products = test_tensor(&p->bench, KD_F32, entries, 0);
    for (int e = 0; e < ROWS * COUNT; e += every) {
        test_set(&ids, e, bad);
        test_set(&factor, e, 0);
    }
    double *sums = test_doubles(&p->bench, &dtable);
    double *want = test_zeros(&p->bench, ROWS * COLUMNS);
    double *dots = test_zeros(&p->bench, ROWS * COUNT);
    for (int e = 0; e < ROWS * COUNT; e++) {
        if (e % every == 0) dots[e] = NAN;
        for (int i = 0; i < COLUMNS; i++) {
            const int at = (int)test_get(&ids, e) * COLUMNS + i, n = e / COUNT * COLUMNS + i;
            if (e % every == 0) {
                want[n] = NAN;
                continue;
            }
            want[n] += test_get(&factor, e) * test_get(&table, at);
            dots[e] += test_get(&dy, n) * test_get(&table, at);
            sums[at] += test_get(&factor, e) * test_get(&dy, n);
        }
    }
    const char *name = parity_name("%g at every %d", bad, every);
    test_ok(PARITY_GPU(p, embedding, .y = &y, .table = &table, .ids = &ids, .factor = &factor));
    test_near(&y, want, COUNT, COUNT, "%s, sums", name);
    test_ok(
        PARITY_GPU(p, embedding_products, .y = &products, .x = &dy, .table = &table, .ids = &ids));
    test_near(&products, dots, COLUMNS, COLUMNS, "%s, products", name);
    test_ok(PARITY_GPU(p, embedding_backward, .dtable = &dtable, .dy = &dy, .ids = &ids,
                       .factor = &factor));
    test_near(&dtable, sums, sqrt(ROWS * COUNT), ROWS * COUNT, "%s, backward", name);
    test_release(&p->bench, mark);
}

Test(embedding, ids_out_of_range)
{
    static const double bad[] = { VOCABULARY, -1, INT32_MAX, INT32_MIN };
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(bad) * 6; c++) {
        const int every = (const int[]){ 1, 2, 7 }[c / 2 % 3];
        bad_ids(&p, dtypes[c % 2], bad[c / 6], every);
        bad_entries(&p, dtypes[c % 2], bad[c / 6], every);
    }
    parity_close(&p);
}
