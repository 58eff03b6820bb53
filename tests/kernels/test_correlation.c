/* The correlation of neighbours on a GPU, against the CPU: one row, two, rows aligned and not, either
 * type on either side, weight and d_student absent and present. */
#include "support/parity.h"

#include <math.h>

static const struct {
    int64_t rows, columns, pad;
} cases[] = { { 0, 8, 0 },  { 1, 5, 0 },    { 2, 1, 0 },   { 5, 7, 3 },
              { 9, 64, 8 }, { 3, 2051, 1 }, { 300, 16, 0 } };

Test(correlation, value_and_gradient)
{
    const double one = 0.75;
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases) * 16; c++) {
        const int64_t rows = cases[c / 16].rows, columns = cases[c / 16].columns;
        const int64_t pad = cases[c / 16].pad;
        const kd_dtype s_type = c & 1 ? KD_BF16 : KD_F32, t_type = c & 2 ? KD_BF16 : KD_F32;
        const int mark = test_mark(&p.bench);
        const kd_tensor s = test_filled(&p.bench, s_type, KD_SHAPE(rows, columns), pad, -1, 1);
        const kd_tensor t = test_filled(&p.bench, t_type, KD_SHAPE(rows, columns), pad, -1, 1);
        const kd_tensor d = test_filled(&p.bench, s_type, KD_SHAPE(rows, columns), pad, -1, 1);
        const kd_tensor weight = test_filled(&p.bench, KD_F32, KD_SHAPE(rows), 0, 0, 2);
        const kd_tensor scale = test_values(&p.bench, KD_F32, KD_SHAPE(1), &one);
        const kd_tensor loss = test_tensor(&p.bench, KD_F32, KD_SHAPE(rows), 0);
        if (rows > 1) test_set(&s, 0, test_get(&t, 0));
        for (int64_t i = 0; i < columns && rows > 4 && c & 8; i++) {
            test_set(&s, (rows - 1) * columns + i, NAN);
            test_set(&t, 2 * columns + i, NAN);
        }
        if (rows > 4) test_set(&weight, rows - 1, 0), test_set(&weight, 2, 0);
        PARITY(&p, correlation, 8, (double)columns, parity_name("case %d", c),
               .d_student = c & 4 ? &d : NULL, .loss = &loss, .student = &s, .teacher = &t,
               .weight = c & 8 ? &weight : NULL, .scale = &scale);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}
