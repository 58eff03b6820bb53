/*
 * What top_classes owes: the classes and log-probabilities of a plain sort in double, ties, zeros of
 * both signs, dead classes and all; nothing of rows without a label; the same bits for any number of
 * threads; refusals.
 */
#include "support/support.h"
#include "support/top_rows.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

/* Classes by their logits, largest first, of equal ones the first; NaN anywhere. */
static const double *sorted_by;
static int by_logit(const void *a, const void *b)
{
    const int i = *(const int *)a, j = *(const int *)b;
    if (sorted_by[i] != sorted_by[j]) return sorted_by[i] < sorted_by[j] ? 1 : -1;
    return i < j ? -1 : i > j;
}

static double log_sum(const double *z, int64_t classes, double max, double inv_t)
{
    double sum = 0;
    for (int64_t j = 0; j < classes; j++) sum += exp((z[j] - max) * inv_t);
    return log(sum);
}

/* K different classes, and NaN for each. */
static void check_poisoned(const kd_tensor *ids, const kd_tensor *log_p, int64_t n, int64_t classes,
                           const char *name)
{
    const int64_t k = ids->shape[1];
    for (int64_t i = 0; i < k; i++) {
        const double id = test_get(ids, n * k + i);
        cr_assert(id >= 0 && id < (double)classes, "%s: class %g", name, id);
        for (int64_t before = 0; before < i; before++)
            cr_assert(test_get(ids, n * k + before) != id, "%s: class %g twice", name, id);
        cr_assert(isnan(test_get(log_p, n * k + i)), "%s: log p %lld", name, (long long)i);
    }
}

static void check_row(const top_rows *rows, const kd_tensor *ids, const kd_tensor *log_p, int64_t n,
                      double temperature)
{
    const int64_t k = ids->shape[1], classes = rows->classes;
    const double inv_t = (double)(1.0f / (float)temperature);
    double *z = malloc((size_t)classes * sizeof *z);
    int *order = malloc((size_t)classes * sizeof *order);
    cr_assert(z && order);
    bool poisoned = false;
    for (int64_t j = 0; j < classes; j++) {
        z[j] = test_get(&rows->logits, n * rows->logits.shape[1] + j);
        order[j] = (int)j;
        poisoned |= isnan(z[j]);
    }
    const bool read = test_get(&rows->labels, n) != -1;
    const char *name = top_rows_name(rows, n, k, temperature);
    if (read && poisoned) {
        check_poisoned(ids, log_p, n, classes, name);
    } else {
        sorted_by = z;
        if (read) qsort(order, (size_t)classes, sizeof *order, by_logit);
        const double max = z[order[0]], rest = read ? log_sum(z, classes, max, inv_t) : 0;
        for (int64_t i = 0; i < k; i++) {
            const double want = read ? (z[order[i]] - max) * inv_t - rest : 0;
            cr_assert(test_get(ids, n * k + i) == order[i], "%s: class %g at %lld, expected %d",
                      name, test_get(ids, n * k + i), (long long)i, order[i]);
            test_near_value(test_get(log_p, n * k + i), (double)(float)want, KD_F32, 1, 1, 16,
                            "%s: log p %lld", name, (long long)i);
        }
    }
    free(order);
    free(z);
}

Test(top_classes, agrees_with_a_sort_in_double)
{
    static const double temperatures[] = { 1, 0.05, 4 };
    test_bench b;
    test_open(&b, 1 << 16);
    for (int c = 0; c < TOP_CASES * 2; c++) {
        const int mark = test_mark(&b);
        const double temperature = temperatures[c % 3];
        const top_rows rows = top_rows_of(&b, c / 2, dtypes[c % 2]);
        for (int given = 0; given < 2; given++) {
            const kd_shape shape = KD_SHAPE(TOP_ROWS, rows.k);
            const kd_tensor ids = test_tensor(&b, KD_I32, shape, 0);
            const kd_tensor log_p = test_tensor(&b, KD_F32, shape, 0);
            test_ok(KD_RUN(&b.exec, top_classes, .ids = &ids, .log_p = &log_p,
                           .logits = &rows.logits, .labels = &rows.labels, .classes = rows.classes,
                           .temperature = (float)temperature));
            for (int64_t n = 0; n < TOP_ROWS; n++) check_row(&rows, &ids, &log_p, n, temperature);
            test_fill_constant(&rows.labels, 0); /* the second time every row is read */
        }
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(top_classes, same_bits_for_any_number_of_threads)
{
    kd_tensor ids[2], log_p[2];
    test_bench b;
    test_open(&b, 1 << 16);
    const top_rows rows = top_rows_of(&b, TOP_CASES - 1, KD_BF16);
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        ids[i] = test_tensor(&b, KD_I32, KD_SHAPE(TOP_ROWS, rows.k), 0);
        log_p[i] = test_tensor(&b, KD_F32, KD_SHAPE(TOP_ROWS, rows.k), 0);
        test_ok(KD_RUN(&b.exec, top_classes, .ids = &ids[i], .log_p = &log_p[i],
                       .logits = &rows.logits, .classes = rows.classes, .temperature = 1));
    }
    test_same_bits(&ids[0], &ids[1], "1 and 2 threads");
    test_same_bits(&log_p[0], &log_p[1], "1 and 2 threads, log p");
    test_close(&b);
}

Test(top_classes, refuses_what_does_not_fit)
{
    enum { ROWS = 3, COLUMNS = 1100 };
    static const struct {
        int64_t k, classes;
        float temperature;
        const char *text;
    } bad[] = {
        { 5, 4, 1, "ids: found 5 a row, expected 1 to 4" },
        { KD_MAX_TOP + 1, COLUMNS, 1, "ids: found 1025 a row, expected 1 to 1024" },
        { 0, 4, 1, "ids: found 0 a row" },
        { 3, 0, 1, "classes: found 0" },
        { 3, COLUMNS + 1, 1, "classes: found 1101" },
        { 3, 4, 0, "temperature: found 0" },
        { 3, 4, -1, "temperature: found -1" },
        { 3, 4, NAN, "temperature: found" },
    };
    test_bench b;
    test_open(&b, 1 << 16);
    const kd_tensor logits = test_filled(&b, KD_F32, KD_SHAPE(ROWS, COLUMNS), 0, -1, 1);
    const kd_tensor labels = test_filled(&b, KD_I32, KD_SHAPE(ROWS + 1), 0, 0, 1);
    for (int i = 0; i < KD_COUNT(bad); i++) {
        const kd_shape shape = KD_SHAPE(ROWS, bad[i].k);
        const kd_tensor ids = test_tensor(&b, KD_I32, shape, 0);
        const kd_tensor log_p = test_tensor(&b, KD_F32, shape, 0);
        test_refused(KD_RUN(&b.exec, top_classes, .ids = &ids, .log_p = &log_p, .logits = &logits,
                            .classes = bad[i].classes, .temperature = bad[i].temperature),
                     KD_EINVAL, bad[i].text);
    }
    const kd_shape shape = KD_SHAPE(ROWS, 2);
    const kd_tensor ids = test_tensor(&b, KD_I32, shape, 0);
    const kd_tensor log_p = test_tensor(&b, KD_F32, shape, 0);
    test_refused(KD_RUN(&b.exec, top_classes, .ids = &ids, .log_p = &log_p, .logits = &logits,
                        .labels = &labels, .classes = 4, .temperature = 1),
                 KD_EINVAL, "labels: found");
    test_refused(KD_RUN(&b.exec, top_classes, .ids = &log_p, .log_p = &log_p, .logits = &logits,
                        .classes = 4, .temperature = 1),
                 KD_EINVAL, "ids: found f32");

    const kd_tensor fi = test_untouchable(&ids), fp = test_untouchable(&log_p);
    const kd_tensor fl = test_untouchable(&logits);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, top_classes, .ids = &fi, .log_p = &fp, .logits = &fl, .classes = 4,
                   .temperature = 1));
    test_close(&b);
}
