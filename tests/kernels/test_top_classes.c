/* top_classes on a GPU, against the CPU. */
#include "support/parity.h"
#include "support/top_rows.h"

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

/* The classes are the CPU's, those of rows with NaN too. */
Test(top_classes, takes_the_classes_of_the_cpu)
{
    static const float temperatures[] = { 1, 0.05f, 4 };
    parity p;
    parity_open(&p, 1 << 16);
    for (int c = 0; c < TOP_CASES * 4; c++) {
        const int mark = test_mark(&p.bench);
        const float temperature = temperatures[c % 3];
        const top_rows rows = top_rows_of(&p.bench, c / 4, dtypes[c % 2]);
        const kd_shape shape = KD_SHAPE(TOP_ROWS, rows.k);
        const kd_tensor ids = test_tensor(&p.bench, KD_I32, shape, 0);
        const kd_tensor log_p = test_tensor(&p.bench, KD_F32, shape, 0);
        const kd_tensor twin = test_tensor(&p.bench, KD_I32, shape, 0);
        const kd_tensor *labels = c / 2 % 2 ? &rows.labels : NULL;
        const char *name = parity_name("%s, case %d, T %g", kd_dtype_name(dtypes[c % 2]), c / 4,
                                       (double)temperature);
        PARITY(&p, top_classes, 1, 64, name, .ids = &ids, .log_p = &log_p, .logits = &rows.logits,
               .labels = labels, .classes = rows.classes, .temperature = temperature);
        test_ok(PARITY_GPU(&p, top_classes, .ids = &twin, .log_p = &log_p, .logits = &rows.logits,
                           .labels = labels, .classes = rows.classes, .temperature = temperature));
        test_same_bits(&twin, &ids, "%s", name);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(top_classes, of_no_rows_is_nothing)
{
    parity p;
    parity_open(&p, 1 << 16);
    const kd_tensor logits = test_tensor(&p.bench, KD_F32, KD_SHAPE(0, 8), 0);
    const kd_tensor ids = test_tensor(&p.bench, KD_I32, KD_SHAPE(0, 3), 0);
    const kd_tensor log_p = test_tensor(&p.bench, KD_F32, KD_SHAPE(0, 3), 0);
    PARITY(&p, top_classes, 0, 1, "no rows", .ids = &ids, .log_p = &log_p, .logits = &logits,
           .classes = 8, .temperature = 1);
    parity_close(&p);
}
