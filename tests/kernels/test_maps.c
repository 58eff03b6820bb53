/* map_powers on a GPU against the CPU: aligned rows and not, both ways to sum, more rows than blocks. */
#include "support/parity.h"

static const struct {
    int64_t samples, channels, places, pad;
} shapes[] = { { 1, 1, 1, 0 },    { 2, 5, 7, 3 }, { 3, 9, 64, 0 },
               { 2, 3, 1030, 2 }, { 0, 3, 5, 0 }, { 300, 9, 8, 0 } };
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
static const float powers[] = { 2, 1, 2.5f };

static void check(parity *p, int shape, int t, float power, bool channels)
{
    test_bench *b = &p->bench;
    const int64_t n = shapes[shape].samples, c = shapes[shape].channels, s = shapes[shape].places;
    const kd_shape whole = KD_SHAPE(n, c, s), sums = KD_SHAPE(n, channels ? c : s);
    const kd_tensor x = test_filled(b, dtypes[t], whole, shapes[shape].pad, -2, 2);
    const kd_tensor dx = test_filled(b, dtypes[t], whole, shapes[shape].pad, -1, 1);
    const kd_tensor y = test_tensor(b, KD_F32, sums, 0);
    const kd_tensor dy = test_filled(b, KD_F32, sums, 0, -1, 1);
    const char *name = parity_name("shape %d of %s, power %g, channels %d", shape,
                                   kd_dtype_name(dtypes[t]), (double)power, channels);
    PARITY(p, map_powers, 8.0 * (double)(channels ? s : c), 4, name, .y = &y, .x = &x,
           .power = power, .channels = channels);
    PARITY(p, map_powers_backward, 16, 4, name, .dx = &dx, .dy = &dy, .x = &x, .power = power,
           .channels = channels);
}

Test(maps, agree_with_the_cpu)
{
    parity p;
    parity_open(&p, 1 << 16);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < KD_COUNT(dtypes); t++)
            for (int power = 0; power < KD_COUNT(powers); power++)
                for (int channels = 0; channels < 2; channels++) {
                    const int mark = test_mark(&p.bench);
                    check(&p, s, t, powers[power], channels);
                    test_release(&p.bench, mark);
                }
    parity_close(&p);
}
