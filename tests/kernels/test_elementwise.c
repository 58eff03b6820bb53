/* fill, copy, add and rows by index on a GPU, against the CPU. */
#include "support/parity.h"

static const struct {
    int64_t rows, columns, pad;
} shapes[] = { { 1, 1, 0 }, { 3, 7, 0 }, { 5, 64, 8 }, { 4, 65, 3 }, { 17, 1024, 0 } };

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

Test(elementwise, add)
{
    parity p;
    parity_open(&p, 0);
    for (int i = 0; i < KD_COUNT(shapes); i++)
        for (int d = 0; d < KD_COUNT(dtypes); d++) {
            const int mark = test_mark(&p.bench);
            const kd_shape shape = KD_SHAPE(shapes[i].rows, shapes[i].columns);
            const kd_tensor a = test_filled(&p.bench, dtypes[d], shape, shapes[i].pad, -2, 2);
            const kd_tensor b = test_filled(&p.bench, dtypes[d], shape, 0, -2, 2);
            const kd_tensor y = test_tensor(&p.bench, dtypes[d], shape, 2 * shapes[i].pad);
            const char *name = parity_name("add %s [%lld, %lld] + %lld", kd_dtype_name(dtypes[d]),
                                           (long long)shapes[i].rows, (long long)shapes[i].columns,
                                           (long long)shapes[i].pad);
            PARITY(&p, add, 1, 1, name, .y = &y, .a = &a, .b = &b);
            PARITY(&p, add, 1, 1, name, .y = &a, .a = &a, .b = &b);
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}
