/*
 * row_loss_topk on a GPU: what test_row_loss_topk.c of ops asks of the CPU; NaN for what the CPU refuses.
 */
#include "support/parity.h"
#include "support/topk.h"

#include <math.h>

static kd_status run_gpu(void *context, const kd_row_loss_topk_args *args)
{
    return parity_run_gpu(context, KD_OP_row_loss_topk, args);
}

static topk_fixture on_gpu(topk_fixture f, parity *p)
{
    f.run = run_gpu;
    f.rows.context = p;
    f.rows.exp_error = 2.0; /* ex2.approx: 2^-22 */
    return f;
}

Test(row_loss_topk, agrees_with_the_formulas_in_double)
{
    static const int64_t sizes[] = { 2, 17, 300 };
    static const double temperatures[] = { 1.0, 0.05, 100.0 };
    parity p;
    parity_open(&p, 1 << 20);
    for (int i = 0; i < KD_COUNT(sizes) * 18; i++) {
        const int64_t classes = sizes[i / 18];
        const int64_t k = i % 3 == 0 ? 1 : i % 3 == 1 ? (classes + 1) / 2 : classes;
        const double temperature = temperatures[i / 3 % 2 ? i % 3 : 0];
        const kd_topk mode = (kd_topk)(i / 6 % 3);
        const int mark = test_mark(&p.bench);
        topk_fixture f = on_gpu(topk_hostile(&p.bench, classes, k, mode,
                                             mode == KD_TOPK_RENORMALISED ? 2.0 : temperature,
                                             i % 2 ? KD_BF16 : KD_F32, i % 5 ? KD_F32 : KD_BF16),
                                &p);
        if (i % 4 == 0) f.tail.data = NULL;
        if (i % 2) rows_align(&f.rows);
        for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
            if (!topk_takes(&f, kind)) continue;
            f.rows.terms.count = 0;
            rows_add_term(&f.rows, (kd_row_kind)kind, temperature,
                          kd_row_types[kind].option_default, i % 2);
            if (kind % 2) topk_run_and_check(&f);
            rows_add_term(&f.rows, KD_ROW_cross_entropy, 1.0, i % 4 ? 0.0 : 0.1, false);
            rows_add_term(&f.rows, KD_ROW_z_loss, temperature, 0.0, false);
            topk_run_and_check(&f);
        }
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* The row that is made wrong is NaN, and no other. */
static void check_only_row_1_is_nan(topk_fixture *f, const char *what)
{
    const kd_tensor result = rows_copy_student(&f->rows);
    test_ok(topk_run(f, &result));
    for (int64_t n = 0; n < ROW_NO_LABEL; n++) {
        const double loss = test_get(&f->rows.loss, n), g = test_get(&result, n * result.shape[1]);
        cr_assert(isnan(loss) == (n == 1), "%s: loss of row %lld is %g", what, (long long)n, loss);
        cr_assert(isnan(g) == (n == 1), "%s: gradient of row %lld is %g", what, (long long)n, g);
    }
}

Test(row_loss_topk, what_the_cpu_refuses_is_nan)
{
    parity p;
    parity_open(&p, 1 << 20);
    topk_fixture f = on_gpu(topk_hostile(&p.bench, 40, 4, KD_TOPK_TAIL, 1.0, KD_F32, KD_F32), &p);
    rows_add_term(&f.rows, KD_ROW_forward_kl, 1.0, 0.0, false);
    const double good = test_get(&f.ids, 5), bad[] = { 40.0, -2.0, 1e9, test_get(&f.ids, 4) };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        test_set(&f.ids, 5, bad[i]);
        check_only_row_1_is_nan(&f, parity_name("id %g", bad[i]));
    }
    test_set(&f.ids, 5, good);
    test_set(&f.log_p, 5, NAN);
    check_only_row_1_is_nan(&f, "log p");
    f.mode = KD_TOPK_SAMPLED;
    test_set(&f.log_p, 5, -1.0);
    test_set(&f.sampling, 5, 0.0);
    check_only_row_1_is_nan(&f, "sampling");
    parity_close(&p);
}
