/*
 * What embedding owes: rows by id and weighted sums of them, with and without an addend, sums over
 * repeated ids with the same bits for any number of threads, products of rows with rows, and a refusal
 * that names the row and its id.
 */
#include "oracle/ops.h"
#include "support/support.h"

#include <omp.h>

typedef struct embedding_case {
    int64_t rows, columns, vocabulary, pad;
} embedding_case;

static const embedding_case cases[] = {
    { 1, 1, 1, 0 }, { 9, 1, 3, 2 }, { 1, 65, 4, 0 }, { 33, 129, 7, 3 }, { 5, 1031, 2, 1 },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

Test(embedding, agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 0);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        for (int t = 0; t < KD_COUNT(dtypes); t++) {
            const int mark = test_mark(&b);
            const embedding_case c = cases[i];
            const kd_shape shape = KD_SHAPE(c.rows, c.columns);
            const kd_shape table_shape = KD_SHAPE(c.vocabulary, c.columns);
            const kd_tensor table = test_filled(&b, dtypes[t], table_shape, c.pad, -1, 1);
            const kd_tensor ids =
                test_filled(&b, KD_I32, KD_SHAPE(c.rows), 0, 0, (double)c.vocabulary);
            const kd_tensor add = test_filled(&b, dtypes[t], shape, c.pad + 1, -1, 1);
            const kd_tensor y = test_tensor(&b, dtypes[t], shape, c.pad);
            double *want = test_zeros(&b, c.rows * c.columns);
            double *tables = test_doubles(&b, &table), *id = test_doubles(&b, &ids);

            oracle_embedding(want, tables, id, NULL, NULL, c.rows, 1, c.columns);
            test_ok(KD_RUN(&b.exec, embedding, .y = &y, .table = &table, .ids = &ids));
            test_near(&y, want, 0, 1, "case %d", i);
            oracle_embedding(want, tables, id, NULL, test_doubles(&b, &add), c.rows, 1, c.columns);
            test_ok(KD_RUN(&b.exec, embedding, .y = &y, .table = &table, .ids = &ids, .add = &add));
            test_near(&y, want, 0, 1, "case %d, with add", i);
            test_ok(
                KD_RUN(&b.exec, embedding, .y = &add, .table = &table, .ids = &ids, .add = &add));
            test_same_bits(&add, &y, "case %d, in place of add", i);

            const kd_tensor dtable = test_filled(&b, KD_F32, table_shape, c.pad + 2, -1, 1);
            double *gradient = test_doubles(&b, &dtable);
            oracle_embedding_backward(gradient, test_doubles(&b, &y), id, NULL, c.rows, 1,
                                      c.columns);
            test_ok(KD_RUN(&b.exec, embedding_backward, .dtable = &dtable, .dy = &y, .ids = &ids));
            test_near(&dtable, gradient, 1, (double)c.rows, "case %d, dtable", i);
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

/* A case with a factor of `count` a row, of both kinds of sign, and some zeros. */
static void weighted_case(test_bench *b, embedding_case c, int64_t count, kd_dtype dtype,
                          const char *name)
{
    const kd_shape shape = KD_SHAPE(c.rows, c.columns), entries = KD_SHAPE(c.rows, count);
    const kd_shape table_shape = KD_SHAPE(c.vocabulary, c.columns);
    const kd_tensor table = test_filled(b, dtype, table_shape, c.pad, -1, 1);
    const kd_tensor ids = test_filled(b, KD_I32, entries, 0, 0, (double)c.vocabulary);
    const kd_tensor factor = test_filled(b, KD_F32, entries, 0, -1, 1);
    for (int64_t i = 0; i < c.rows * count; i += 3) test_set(&factor, i, 0);
    const kd_tensor add = test_filled(b, dtype, shape, c.pad + 1, -1, 1);
    const kd_tensor y = test_tensor(b, dtype, shape, c.pad);
    double *want = test_zeros(b, c.rows * c.columns);
    double *tables = test_doubles(b, &table), *id = test_doubles(b, &ids);
    double *factors = test_doubles(b, &factor);
    const double n = (double)count + 1;

    oracle_embedding(want, tables, id, factors, NULL, c.rows, count, c.columns);
    test_ok(KD_RUN(&b->exec, embedding, .y = &y, .table = &table, .ids = &ids, .factor = &factor));
    test_near(&y, want, n, n, "%s", name);
    oracle_embedding(want, tables, id, factors, test_doubles(b, &add), c.rows, count, c.columns);
    test_ok(KD_RUN(&b->exec, embedding, .y = &y, .table = &table, .ids = &ids, .factor = &factor,
                   .add = &add));
    test_near(&y, want, n, n, "%s, with add", name);
    test_ok(KD_RUN(&b->exec, embedding, .y = &add, .table = &table, .ids = &ids, .factor = &factor,
                   .add = &add));
    test_same_bits(&add, &y, "%s, in place of add", name);

    const kd_tensor dtable = test_filled(b, KD_F32, table_shape, c.pad + 2, -1, 1);
    double *gradient = test_doubles(b, &dtable);
    oracle_embedding_backward(gradient, test_doubles(b, &y), id, factors, c.rows, count, c.columns);
    test_ok(KD_RUN(&b->exec, embedding_backward, .dtable = &dtable, .dy = &y, .ids = &ids,
                   .factor = &factor));
    test_near(&dtable, gradient, n, (double)c.rows * n, "%s, dtable", name);
}

/* The products of rows of `x` with those of the table, without a bias and with one of each type. */
static void products_case(test_bench *b, embedding_case c, int64_t count, kd_dtype dtype,
                          const char *name)
{
    const kd_tensor x = test_filled(b, dtype, KD_SHAPE(c.rows, c.columns), c.pad + 1, -1, 1);
    const kd_tensor table = test_filled(b, dtype, KD_SHAPE(c.vocabulary, c.columns), c.pad, -1, 1);
    const kd_tensor ids =
        test_filled(b, KD_I32, KD_SHAPE(c.rows, count), 0, 0, (double)c.vocabulary);
    const kd_tensor y = test_tensor(b, KD_F32, KD_SHAPE(c.rows, count), 0);
    double *want = test_zeros(b, c.rows * count), *id = test_doubles(b, &ids);
    for (int with = 0; with < 3; with++) {
        const kd_tensor bias =
            test_filled(b, with == 1 ? KD_F32 : KD_BF16, KD_SHAPE(c.vocabulary), 0, -1, 1);
        oracle_embedding_products(want, test_doubles(b, &x), test_doubles(b, &table), id,
                                  with ? test_doubles(b, &bias) : NULL, c.rows, count, c.columns);
        test_ok(KD_RUN(&b->exec, embedding_products, .y = &y, .x = &x, .table = &table, .ids = &ids,
                       .bias = with ? &bias : NULL));
        test_near(&y, want, 0, 1, "%s, bias %d", name, with);
    }
}

Test(embedding, sums_and_products_agree_with_the_oracle)
{
    static const int64_t counts[] = { 0, 1, 2, 67 };
    test_bench b;
    test_open(&b, 0);
    for (int i = 0; i < KD_COUNT(cases) * KD_COUNT(counts) * 2; i++) {
        char name[64];
        const int mark = test_mark(&b);
        const embedding_case c = cases[i / 2 / KD_COUNT(counts)];
        const int64_t count = counts[i / 2 % KD_COUNT(counts)];
        snprintf(name, sizeof name, "%s, %lld x %lld, %lld of %lld", kd_dtype_name(dtypes[i % 2]),
                 (long long)c.rows, (long long)c.columns, (long long)count,
                 (long long)c.vocabulary);
        weighted_case(&b, c, count, dtypes[i % 2], name);
        products_case(&b, c, count, dtypes[i % 2], name);
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(embedding, repeated_ids_add_in_one_order)
{
    enum { ROWS = 700, COLUMNS = 131, VOCABULARY = 3, COUNT = 5 };
    kd_tensor dtable[2][2], y[2], products[2];
    test_bench b;
    test_open(&b, 0);
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        b.seed = 3;
        const kd_shape shape = KD_SHAPE(ROWS, COLUMNS), entries = KD_SHAPE(ROWS, COUNT);
        const kd_tensor dy = test_filled(&b, KD_F32, shape, 1, -1, 1);
        const kd_tensor ids = test_filled(&b, KD_I32, KD_SHAPE(ROWS), 0, 0, VOCABULARY);
        const kd_tensor some = test_filled(&b, KD_I32, entries, 0, 0, VOCABULARY);
        const kd_tensor factor = test_filled(&b, KD_F32, entries, 0, -1, 1);
        for (int t = 0; t < 2; t++)
            dtable[i][t] = test_filled(&b, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
        y[i] = test_tensor(&b, KD_F32, shape, 0);
        products[i] = test_tensor(&b, KD_F32, entries, 0);
        test_ok(
            KD_RUN(&b.exec, embedding_backward, .dtable = &dtable[i][0], .dy = &dy, .ids = &ids));
        test_ok(KD_RUN(&b.exec, embedding_backward, .dtable = &dtable[i][1], .dy = &dy,
                       .ids = &some, .factor = &factor));
        test_ok(KD_RUN(&b.exec, embedding, .y = &y[i], .table = &dtable[i][0], .ids = &some,
                       .factor = &factor));
        test_ok(KD_RUN(&b.exec, embedding_products, .y = &products[i], .x = &dy,
                       .table = &dtable[i][0], .ids = &some));
    }
    for (int t = 0; t < 2; t++)
        test_same_bits(&dtable[0][t], &dtable[1][t], "1 and 2 threads, factor %d", t);
    test_same_bits(&y[0], &y[1], "1 and 2 threads, sums");
    test_same_bits(&products[0], &products[1], "1 and 2 threads, products");
    test_close(&b);
}

enum { ROWS = 5, COLUMNS = 3, VOCABULARY = 4, COUNT = 2 };

typedef struct oracle_case {
    double table[VOCABULARY * COLUMNS], ids[ROWS * COUNT], factor[ROWS * COUNT];
    double dy[ROWS * COLUMNS], y[ROWS * COLUMNS];
} oracle_case;

static double oracle_value(void *context)
{
    oracle_case *o = context;
    oracle_embedding(o->y, o->table, o->ids, o->factor, NULL, ROWS, COUNT, COLUMNS);
    return oracle_dot(o->y, o->dy, ROWS * COLUMNS);
}

Test(embedding, oracle_gradient_agrees_with_differences)
{
    test_bench b;
    test_open(&b, 0);
    oracle_case o = { .ids = { 3, 0, 3, 3, 1, 2, 2, 2, 0, 1 } };
    for (int i = 0; i < VOCABULARY * COLUMNS; i++) o.table[i] = test_uniform(&b);
    for (int i = 0; i < ROWS * COUNT; i++) o.factor[i] = test_uniform(&b) - 0.5;
    for (int i = 0; i < ROWS * COLUMNS; i++) o.dy[i] = test_uniform(&b) - 0.5;
    double dtable[VOCABULARY * COLUMNS] = { 0 }, dfactor[ROWS * COUNT];
    oracle_embedding_backward(dtable, o.dy, o.ids, o.factor, ROWS, COUNT, COLUMNS);
    test_gradient(oracle_value, &o, o.table, VOCABULARY * COLUMNS, dtable, "dtable");
    oracle_embedding_products(dfactor, o.dy, o.table, o.ids, NULL, ROWS, COUNT, COLUMNS);
    test_gradient(oracle_value, &o, o.factor, ROWS * COUNT, dfactor, "dfactor");
    test_close(&b);
}

/* Nothing is written before every id was seen. */
Test(embedding, refuses_ids_and_shapes_that_do_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor table = test_filled(&b, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor y = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, 2, 2);
    const kd_tensor same = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, 2, 2);
    const kd_tensor ids = test_filled(&b, KD_I32, KD_SHAPE(ROWS), 0, 0, VOCABULARY);
    const kd_tensor dtable = test_filled(&b, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, 3, 3);
    const kd_tensor before = test_filled(&b, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, 3, 3);
    const struct {
        double id;
        const char *text;
    } bad[] = { { VOCABULARY, "ids[3] is 4, expected 0 to 3" }, { -1, "ids[3] is -1" } };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        test_set(&ids, 3, bad[i].id);
        test_refused(KD_RUN(&b.exec, embedding, .y = &y, .table = &table, .ids = &ids), KD_EINVAL,
                     bad[i].text);
        test_refused(KD_RUN(&b.exec, embedding_backward, .dtable = &dtable, .dy = &y, .ids = &ids),
                     KD_EINVAL, bad[i].text);
    }
    if (!b.exec.device->poison) test_same_bits(&y, &same, "y after a refusal");
    test_same_bits(&dtable, &before, "dtable after a refusal");

    const kd_tensor half = test_filled(&b, KD_BF16, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    test_refused(KD_RUN(&b.exec, embedding, .y = &y, .table = &half, .ids = &ids), KD_EINVAL,
                 "y: found f32");
    test_refused(KD_RUN(&b.exec, embedding_backward, .dtable = &half, .dy = &y, .ids = &ids),
                 KD_EINVAL, "dtable: found bf16");

    const kd_tensor factor = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COUNT), 0, -1, 1);
    const kd_tensor some = test_filled(&b, KD_I32, KD_SHAPE(ROWS, COUNT), 0, 0, VOCABULARY);
    test_refused(
        KD_RUN(&b.exec, embedding, .y = &y, .table = &table, .ids = &ids, .factor = &factor),
        KD_EINVAL, "ids: found");
    test_refused(KD_RUN(&b.exec, embedding_backward, .dtable = &dtable, .dy = &y, .ids = &some),
                 KD_EINVAL, "ids: found");
    const kd_tensor turned = test_filled(&b, KD_I32, KD_SHAPE(COUNT, ROWS), 0, 0, VOCABULARY);
    test_refused(KD_RUN(&b.exec, embedding_backward, .dtable = &dtable, .dy = &y, .ids = &turned,
                        .factor = &factor),
                 KD_EINVAL, "ids: found");
    test_set(&some, 9, VOCABULARY);
    test_refused(
        KD_RUN(&b.exec, embedding, .y = &y, .table = &table, .ids = &some, .factor = &factor),
        KD_EINVAL, "ids[9] is 4, expected 0 to 3");
    test_refused(KD_RUN(&b.exec, embedding_backward, .dtable = &dtable, .dy = &y, .ids = &some,
                        .factor = &factor),
                 KD_EINVAL, "ids[9] is 4");
    test_same_bits(&dtable, &before, "dtable after a refusal of entries");

    const kd_tensor fy = test_untouchable(&y), ft = test_untouchable(&table);
    const kd_tensor fi = test_untouchable(&ids), fd = test_untouchable(&dtable);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, embedding, .y = &fy, .table = &ft, .ids = &fi, .add = &fy));
    test_ok(KD_RUN(&plan, embedding_backward, .dtable = &fd, .dy = &fy, .ids = &fi));
    test_close(&b);
}

Test(embedding, refuses_products_that_do_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor table = test_filled(&b, KD_F32, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor half = test_filled(&b, KD_BF16, KD_SHAPE(VOCABULARY, COLUMNS), 0, -1, 1);
    const kd_tensor y = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, 2, 2);
    const kd_tensor ids = test_filled(&b, KD_I32, KD_SHAPE(ROWS), 0, 0, VOCABULARY);
    const kd_tensor factor = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COUNT), 0, -1, 1);
    const kd_tensor some = test_filled(&b, KD_I32, KD_SHAPE(ROWS, COUNT), 0, 0, VOCABULARY);
    const kd_tensor products = test_tensor(&b, KD_F32, KD_SHAPE(ROWS, COUNT), 0);
    test_refused(
        KD_RUN(&b.exec, embedding_products, .y = &products, .x = &y, .table = &half, .ids = &some),
        KD_EINVAL, "x: found f32");
    test_refused(KD_RUN(&b.exec, embedding_products, .x = &y, .table = &table, .ids = &some),
                 KD_EINVAL, "y: absent");
    test_refused(
        KD_RUN(&b.exec, embedding_products, .y = &products, .x = &y, .table = &table, .ids = &ids),
        KD_EINVAL, "ids: found");
    test_refused(KD_RUN(&b.exec, embedding_products, .y = &products, .x = &y, .table = &table,
                        .ids = &some, .bias = &factor),
                 KD_EINVAL, "bias: found");
    test_set(&some, 9, VOCABULARY);
    test_refused(
        KD_RUN(&b.exec, embedding_products, .y = &products, .x = &y, .table = &table, .ids = &some),
        KD_EINVAL, "ids[9] is 4");
    test_close(&b);
}
