/*
 * What map_powers and its backward owe: every power over places and over channels, maps longer than a
 * strip, in both types; no gradient at 0 or of a place that wants none; the same bits from one thread and two.
 */
#include "oracle/maps.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const struct {
    int64_t samples, channels, places, pad;
} shapes[] = {
    { 1, 1, 1, 0 }, { 2, 5, 7, 3 }, { 3, 4, 1030, 1 }, { 2, 33, 64, 0 }, { 0, 3, 5, 0 }
};
static const float powers[] = { 2, 1, 3, 2.5f };
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

typedef struct operands {
    kd_tensor x, dx, y, dy;
} operands;

static operands make(test_bench *b, int shape, kd_dtype dtype, bool channels)
{
    const int64_t n = shapes[shape].samples, c = shapes[shape].channels, s = shapes[shape].places;
    const kd_shape whole = KD_SHAPE(n, c, s), sums = KD_SHAPE(n, channels ? c : s);
    operands o = { .x = test_filled(b, dtype, whole, shapes[shape].pad, -2, 2),
                   .dx = test_filled(b, dtype, whole, 2 * shapes[shape].pad, -1, 1),
                   .y = test_tensor(b, KD_F32, sums, 0),
                   .dy = test_filled(b, KD_F32, sums, 0, -1, 1) };
    return o;
}

static void check(test_bench *b, const operands *o, float power, bool channels, const char *name)
{
    const int64_t n = o->x.shape[0], c = o->x.shape[1], s = o->x.shape[2];
    double *x = test_doubles(b, &o->x), *dy = test_doubles(b, &o->dy);
    double *dx = test_doubles(b, &o->dx), *y = test_zeros(b, kd_tensor_elements(&o->y));
    oracle_map_powers(y, x, n, c, s, (double)power, channels);
    oracle_map_powers_backward(dx, dy, x, n, c, s, (double)power, channels);
    test_ok(
        KD_RUN(&b->exec, map_powers, .y = &o->y, .x = &o->x, .power = power, .channels = channels));
    test_ok(KD_RUN(&b->exec, map_powers_backward, .dx = &o->dx, .dy = &o->dy, .x = &o->x,
                   .power = power, .channels = channels));
    test_near(&o->y, y, 8.0, 8, "%s, power %g, channels %d", name, (double)power, channels);
    test_near(&o->dx, dx, 16, 4, "%s, power %g, channels %d: dx", name, (double)power, channels);
}

Test(maps, agrees_with_the_oracle)
{
    test_bench b;
    test_open(&b, 1 << 10);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int t = 0; t < KD_COUNT(dtypes); t++)
            for (int p = 0; p < KD_COUNT(powers); p++)
                for (int channels = 0; channels < 2; channels++) {
                    const int mark = test_mark(&b);
                    const operands o = make(&b, s, dtypes[t], channels);
                    check(&b, &o, powers[p], channels, kd_dtype_name(dtypes[t]));
                    test_release(&b, mark);
                }
    test_close(&b);
}

typedef struct differences {
    double x[12], dy[6];
    double power;
    bool channels;
} differences;

static double value_of(void *context)
{
    const differences *c = context;
    double y[6], total = 0;
    oracle_map_powers(y, c->x, 2, 2, 3, c->power, c->channels);
    for (int i = 0; i < (c->channels ? 4 : 6); i++) total += y[i] * c->dy[i];
    return total;
}

Test(maps, the_oracles_gradient_is_that_of_its_value)
{
    test_bench b;
    test_open(&b, 0);
    for (int p = 0; p < KD_COUNT(powers); p++)
        for (int channels = 0; channels < 2; channels++) {
            differences c = { .power = (double)powers[p], .channels = channels };
            double dx[12] = { 0 };
            for (int i = 0; i < 12; i++)
                c.x[i] = i % 2 ? 0.2 + test_uniform(&b) : -1 + 0.8 * test_uniform(&b);
            for (int i = 0; i < 6; i++) c.dy[i] = test_uniform(&b);
            oracle_map_powers_backward(dx, c.dy, c.x, 2, 2, 3, c.power, channels);
            test_gradient(value_of, &c, c.x, 12, dx, "power %g, channels %d", c.power, channels);
        }
    test_close(&b);
}

Test(maps, nothing_is_read_where_no_gradient_is_wanted)
{
    test_bench b;
    test_open(&b, 1 << 10);
    const operands o = make(&b, 1, KD_F32, false);
    test_set(&o.x, 3, NAN);
    test_set(&o.x, 4, 0);
    for (int i = 0; i < 14; i++) test_set(&o.dy, i, i == 3 ? 0 : 1);
    const double third = test_get(&o.dx, 3), fourth = test_get(&o.dx, 4);
    test_ok(KD_RUN(&b.exec, map_powers_backward, .dx = &o.dx, .dy = &o.dy, .x = &o.x, .power = 1));
    cr_expect(test_get(&o.dx, 3) == third && test_get(&o.dx, 4) == fourth);
    test_close(&b);
}

Test(maps, bits_do_not_depend_on_threads)
{
    test_bench b[2];
    operands o[2][2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        test_open(&b[i], 1 << 10);
        for (int channels = 0; channels < 2; channels++) {
            o[i][channels] = make(&b[i], 2, KD_BF16, channels);
            check(&b[i], &o[i][channels], 2, channels, "threads");
        }
    }
    for (int channels = 0; channels < 2; channels++) {
        test_same_bits(&o[0][channels].y, &o[1][channels].y, "y");
        test_same_bits(&o[0][channels].dx, &o[1][channels].dx, "dx");
    }
    for (int i = 0; i < 2; i++) test_close(&b[i]);
}

Test(maps, refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const operands o = make(&b, 1, KD_F32, false);
    const kd_tensor wrong = test_tensor(&b, KD_F32, KD_SHAPE(2, 5), 0);
    test_refused(KD_RUN(&b.exec, map_powers, .y = &wrong, .x = &o.x, .power = 2), KD_EINVAL,
                 "map_powers: y");
    test_refused(KD_RUN(&b.exec, map_powers, .y = &o.y, .x = &o.x, .power = 0.5f), KD_EINVAL,
                 "power: found 0.5, expected 1 to 16");
    test_refused(
        KD_RUN(&b.exec, map_powers_backward, .dx = &o.x, .dy = &wrong, .x = &o.x, .power = 2),
        KD_EINVAL, "dy");
    test_close(&b);
}
