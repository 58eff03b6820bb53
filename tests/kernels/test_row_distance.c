/* row_distance on a GPU against the CPU: a warp a row, a block a row, rows that are not aligned. */
#include "support/parity.h"

static const struct {
    int64_t rows, columns, pad;
} shapes[] = { { 1, 1, 0 },   { 9, 7, 3 },    { 17, 64, 8 },  { 3, 520, 0 },
               { 2, 515, 1 }, { 3, 2048, 8 }, { 2, 4100, 4 }, { 0, 5, 0 } };
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

static void check(parity *p, int s, int t, kd_distance kind, bool full)
{
    test_bench *b = &p->bench;
    const int64_t n = shapes[s].rows, columns = shapes[s].columns, pad = shapes[s].pad;
    const kd_shape shape = KD_SHAPE(n, columns);
    const kd_dtype x = dtypes[t & 1], y = dtypes[t >> 1];
    const kd_tensor d = test_filled(b, x, shape, pad, -1, 1);
    const kd_tensor loss = test_tensor(b, KD_F32, KD_SHAPE(n), 0);
    const kd_tensor student = test_filled(b, x, shape, 2 * pad, -2, 2);
    const kd_tensor teacher = test_filled(b, y, shape, pad, -1, 3);
    const kd_tensor weight = test_filled(b, KD_F32, KD_SHAPE(n), 0, 0.5, 2);
    const kd_tensor scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 0.5, 1);
    const char *name = parity_name("kind %d, shape %d, types %d", kind, s, t);
    if (n > 1) test_set(&weight, 1, 0);
    const double large = kind == KD_DISTANCE_SQUARED ? 16.0 * (double)columns : 4;
    PARITY(p, row_distance, large, 16, name, .d_student = full ? &d : NULL, .loss = &loss,
           .student = &student, .teacher = &teacher, .weight = full ? &weight : NULL,
           .scale = &scale, .kind = kind, .factor = 0.75f);
}

Test(row_distance, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, 1 << 16);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < 4; t++)
            for (int kind = 0; kind < KD_DISTANCE_COUNT; kind++)
                for (int full = 0; full < 2; full++) {
                    const int mark = test_mark(&p.bench);
                    check(&p, s, t, (kd_distance)kind, full);
                    test_release(&p.bench, mark);
                }
    parity_close(&p);
}
