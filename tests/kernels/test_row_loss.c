/*
 * row_loss on a GPU: what test_row_loss.c of ops asks of the CPU, of every kernel that may be
 * chosen; and against the CPU where operands are absent or rows are not finite.
 */
#include "support/parity.h"
#include "support/rows.h"

#include <math.h>

/* The widest options of each kind's branch: both ends, the default, one more. */
static int options_of(double options[4], int kind)
{
    const kd_row_type *type = &kd_row_types[kind];
    options[0] = type->option_min;
    options[1] = type->option_default;
    options[2] = type->option_max;
    options[3] = 0.9;
    return type->option ? 4 : 1;
}

static kd_status run_gpu(void *context, const kd_row_loss_args *args)
{
    return parity_run_gpu(context, KD_OP_row_loss, args);
}

static row_fixture on_gpu(row_fixture f, parity *p)
{
    f.run = run_gpu;
    f.context = p;
    return f;
}

/* ---- against the formulas in double ----------------------------------------------------------- */

/* Every term alone, and the mixes that have a kernel of their own. */
static void check_terms(row_fixture *f, bool all_options)
{
    static const double temperatures[] = { 0.05, 1.0, 2.0, 4.0 };
    for (int kind = 0; kind < KD_ROW_COUNT; kind++) {
        double options[4];
        const int count = all_options ? options_of(options, kind) : 1;
        if (!all_options) options[0] = kd_row_types[kind].option_default;
        for (int i = 0; i < count * KD_COUNT(temperatures); i++) {
            const double temperature = temperatures[i % KD_COUNT(temperatures)];
            f->terms.count = 0;
            rows_add_term(f, (kd_row_kind)kind, temperature, options[i / KD_COUNT(temperatures)],
                          i % 2);
            rows_run_and_check(f);
            if (!kd_row_types[kind].teacher) continue;
            /* with cross entropy at the same temperature or another, smoothed or not */
            rows_add_term(f, KD_ROW_cross_entropy, i % 3 ? 1.0 : temperature, i % 4 ? 0.0 : 0.1,
                          false);
            rows_run_and_check(f);
        }
    }
}

Test(row_loss, agrees_with_the_formulas_in_double)
{
    static const int64_t sizes[] = { 1, 3, 7, 8, 9, 64, 300 };
    parity p;
    parity_open(&p, 1 << 20);
    for (int size = 0; size < KD_COUNT(sizes); size++)
        for (int half = 0; half < 2; half++) {
            const int mark = test_mark(&p.bench);
            row_fixture f = rows_hostile(&p.bench, sizes[size], half ? KD_BF16 : KD_F32);
            f = on_gpu(f, &p);
            check_terms(&f, sizes[size] == 9);
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}
