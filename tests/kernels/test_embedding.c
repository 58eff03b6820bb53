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

static kd_tensor spread(parity *p, int64_t n, int64_t vocabulary, int how)
{
    const kd_tensor ids = test_tensor(&p->bench, KD_I32, KD_SHAPE(n), 0);
    for (int64_t i = 0; i < n; i++) {
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

Test(embedding, rows_of_a_table)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases) * 4; c++) {
        const int s = c / 4, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c % 2];
        const int64_t shift = c / 2 % 2, columns = cases[s].columns; /* off the vectors' boundary */
        const kd_shape shape = KD_SHAPE(cases[s].rows, columns);
        const kd_tensor wide = test_filled(
            &p.bench, dtype, KD_SHAPE(cases[s].vocabulary, columns + shift), cases[s].pad, -1, 1);
        const kd_tensor table = kd_tensor_slice(&wide, 1, shift, columns);
        const kd_tensor ids = spread(&p, cases[s].rows, cases[s].vocabulary, UNIFORM);
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
        const kd_tensor wide =
            test_filled(&p.bench, dtype, KD_SHAPE(rows, table.dim[1] + shift), cases[s].pad, -1, 1);
        const kd_tensor dy = kd_tensor_slice(&wide, 1, shift, table.dim[1]);
        const kd_tensor ids = spread(&p, rows, table.dim[0], how);
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
    const kd_tensor ids = spread(&p, 200, 3, UNIFORM);
    test_set(&ids, 150, 1);
    test_set(&dy, 150 * 12 + 3, NAN);
    test_set(&dy, 150 * 12 + 4, INFINITY);
    PARITY(&p, embedding_backward, 1, 200, "not finite", .dtable = &dtable, .dy = &dy, .ids = &ids);
    parity_close(&p);
}

enum { ROWS = 150, COLUMNS = 8, VOCABULARY = 40 };

/* Bad ids make NaN of their rows forward, and backward leave every row of the table to the good. */
static void bad_ids(parity *p, kd_dtype dtype, double bad, int every)
{
    const int mark = test_mark(&p->bench);
    const kd_tensor table = test_filled(&p->bench, dtype, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor y = test_filled(&p->bench, dtype, KD_SHAPE(ROWS, COLUMNS), 0, -1, 1);
    const kd_tensor dtable =
        test_filled(&p->bench, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor ids = spread(p, ROWS, VOCABULARY, SKEWED);
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

Test(embedding, ids_out_of_range)
{
    static const double bad[] = { VOCABULARY, -1, INT32_MAX, INT32_MIN };
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(bad) * 6; c++)
        bad_ids(&p, dtypes[c % 2], bad[c / 6], (const int[]){ 1, 2, 7 }[c / 2 % 3]);
    parity_close(&p);
}
