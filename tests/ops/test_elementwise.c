/* What fill, copy, add, gather_rows and scatter_rows owe; each is exact but for one rounding. */
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const kd_dtype dtypes[] = { KD_F32, KD_BF16, KD_F16 };
static const kd_shape shapes[] = {
    { 1, { 7 } },        { 2, { 1, 1 } },       { 2, { 5, 1 } },     { 2, { 3, 1033 } },
    { 3, { 5, 3, 17 } }, { 4, { 2, 3, 5, 7 } }, { 2, { 150, 129 } },
};

Test(elementwise, fill_and_add)
{
    test_bench b;
    test_open(&b, 0);
    for (int s = 0; s < KD_COUNT(shapes); s++) {
        for (int t = 0; t < 2; t++) {
            const int mark = test_mark(&b);
            const kd_tensor x = test_filled(&b, dtypes[t], shapes[s], 3, -1, 1);
            const kd_tensor z = test_filled(&b, dtypes[t], shapes[s], 1, -1, 1);
            const kd_tensor y = test_tensor(&b, dtypes[t], shapes[s], 2);
            double *want = test_doubles(&b, &x), *other = test_doubles(&b, &z);
            const int64_t n = kd_tensor_elements(&x);
            for (int64_t i = 0; i < n; i++) want[i] += other[i];
            test_ok(KD_RUN(&b.exec, add, .y = &y, .a = &x, .b = &z));
            test_near(&y, want, 0, 1, "add, shape %d", s);
            test_ok(KD_RUN(&b.exec, add, .y = &x, .a = &x, .b = &z));
            test_same_bits(&x, &y, "add in place of a, shape %d", s);
            test_fill_constant(&x, 2.5);
            test_ok(KD_RUN(&b.exec, add, .y = &z, .a = &x, .b = &z));
            for (int64_t i = 0; i < n; i++) want[i] = 2.5 + other[i];
            test_near(&z, want, 0, 1, "add in place of b, shape %d", s);
            test_ok(KD_RUN(&b.exec, fill, .y = &y, .value = -1.75f));
            for (int64_t i = 0; i < n; i++) want[i] = -1.75;
            test_near(&y, want, 0, 0, "fill, shape %d", s);
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

/* The last two dimensions exchanged: no stride of 1 at the end. */
static kd_tensor turned(const kd_tensor *t)
{
    kd_tensor v = *t;
    const int32_t r = t->rank;
    v.shape[r - 1] = t->shape[r - 2], v.shape[r - 2] = t->shape[r - 1];
    v.stride[r - 1] = t->stride[r - 2], v.stride[r - 2] = t->stride[r - 1];
    return v;
}

/* Every pair of types; rows to rows, rows to columns, columns to rows, columns to columns. */
Test(elementwise, copy_converts_and_restrides)
{
    test_bench b;
    test_open(&b, 0);
    for (int s = 1; s < KD_COUNT(shapes); s++) {
        for (int pair = 0; pair < 9; pair++) {
            for (int way = 0; way < 4; way++) {
                const int mark = test_mark(&b);
                const kd_dtype from = dtypes[pair / 3], to = dtypes[pair % 3];
                kd_tensor x = test_filled(&b, from, shapes[s], 3, -3, 3);
                if (way & 1) x = turned(&x);
                kd_shape shape = kd_shape_of(&x);
                if (way & 2) {
                    const kd_tensor flat = kd_tensor_of(NULL, to, shape), back = turned(&flat);
                    shape = kd_shape_of(&back);
                }
                kd_tensor y = test_tensor(&b, to, shape, 2);
                if (way & 2) y = turned(&y);
                test_ok(KD_RUN(&b.exec, copy, .y = &y, .x = &x));
                test_near(&y, test_doubles(&b, &x), 0, 0, "%s to %s, shape %d, way %d",
                          kd_dtype_name(from), kd_dtype_name(to), s, way);
                if (from == to) test_same_bits(&y, &x, "shape %d, way %d", s, way);
                test_release(&b, mark);
            }
        }
    }
    const kd_tensor special = test_tensor(&b, KD_F32, KD_SHAPE(3), 0); /* NaN first */
    const kd_tensor half = test_tensor(&b, KD_BF16, KD_SHAPE(3), 0);
    test_set(&special, 1, -INFINITY);
    test_set(&special, 2, 3.4e38);
    test_ok(KD_RUN(&b.exec, copy, .y = &half, .x = &special));
    test_near(&half, (const double[]){ NAN, -INFINITY, INFINITY }, 0, 0, "what is not finite");
    test_close(&b);
}

Test(elementwise, rows_by_index)
{
    enum { MANY = 23, CHOSEN = 17 };
    static const int64_t widths[] = { 1, 31, 1029 };
    test_bench b;
    test_open(&b, 0);
    for (int w = 0; w < KD_COUNT(widths); w++) {
        for (int t = 0; t < 2; t++) {
            const int mark = test_mark(&b);
            const int64_t width = widths[w];
            const kd_tensor many = test_filled(&b, dtypes[t], KD_SHAPE(MANY, width), 3, -1, 1);
            const kd_tensor few = test_tensor(&b, dtypes[t], KD_SHAPE(CHOSEN, width), 1);
            const kd_tensor rows = test_filled(&b, KD_I32, KD_SHAPE(CHOSEN), 0, -1, MANY);
            test_set(&rows, 2, -1);
            test_set(&rows, 3, MANY - 1);
            test_set(&rows, 4, 0);
            test_set(&rows, CHOSEN - 1, MANY - 1); /* twice: the last one stays */
            double *all = test_doubles(&b, &many), *want = test_zeros(&b, CHOSEN * width);
            for (int64_t i = 0; i < CHOSEN * width; i++) {
                const int64_t row = (int64_t)test_get(&rows, i / width);
                want[i] = row < 0 ? 0 : all[row * width + i % width];
            }
            test_ok(KD_RUN(&b.exec, gather_rows, .y = &few, .x = &many, .rows = &rows));
            test_near(&few, want, 0, 0, "gather, width %d", (int)width);

            test_fill(&b, &few, 5, 6);
            for (int64_t i = 0; i < CHOSEN * width; i++) {
                const int64_t row = (int64_t)test_get(&rows, i / width);
                if (row >= 0) all[row * width + i % width] = test_get(&few, i);
            }
            test_ok(KD_RUN(&b.exec, scatter_rows, .y = &many, .x = &few, .rows = &rows));
            test_near(&many, all, 0, 0, "scatter, width %d", (int)width);
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

Test(elementwise, plans_without_memory_and_refuses_what_does_not_fit)
{
    test_bench b;
    test_open(&b, 0);
    const kd_tensor x = test_filled(&b, KD_F32, KD_SHAPE(4, 6), 0, -1, 1);
    const kd_tensor y = test_filled(&b, KD_F32, KD_SHAPE(3, 6), 0, -1, 1);
    const kd_tensor half = test_filled(&b, KD_BF16, KD_SHAPE(4, 6), 0, -1, 1);
    const kd_tensor bytes = test_filled(&b, KD_U8, KD_SHAPE(4, 6), 0, 0, 9);
    const kd_tensor rows = test_filled(&b, KD_I32, KD_SHAPE(3), 0, 0, 4);
    const kd_tensor fx = test_untouchable(&x), fy = test_untouchable(&y);
    const kd_tensor fr = test_untouchable(&rows);
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(KD_RUN(&plan, fill, .y = &fx, .value = 1));
    test_ok(KD_RUN(&plan, copy, .y = &fx, .x = &fx));
    test_ok(KD_RUN(&plan, add, .y = &fx, .a = &fx, .b = &fx));
    test_ok(KD_RUN(&plan, gather_rows, .y = &fy, .x = &fx, .rows = &fr));
    test_ok(KD_RUN(&plan, scatter_rows, .y = &fx, .x = &fy, .rows = &fr));

    test_refused(KD_RUN(&b.exec, fill, .y = &bytes), KD_EINVAL, "y: found u8");
    test_refused(KD_RUN(&b.exec, copy, .y = &y, .x = &x), KD_EINVAL, "copy: y");
    test_refused(KD_RUN(&b.exec, copy, .y = &x, .x = &bytes), KD_ENOTSUP, "from u8 to f32");
    test_refused(KD_RUN(&b.exec, add, .y = &x, .a = &x, .b = &half), KD_EINVAL, "b: found bf16");
    test_refused(KD_RUN(&b.exec, gather_rows, .y = &x, .x = &y, .rows = &rows), KD_EINVAL,
                 "rows: found i32 [3], expected 4 elements");
    test_set(&rows, 1, 4);
    test_refused(KD_RUN(&b.exec, gather_rows, .y = &y, .x = &x, .rows = &rows), KD_EINVAL,
                 "rows[1] is 4, expected -1 to 3");
    test_set(&rows, 1, -2);
    test_refused(KD_RUN(&b.exec, scatter_rows, .y = &x, .x = &y, .rows = &rows), KD_EINVAL,
                 "rows[1] is -2");
    test_close(&b);
}
