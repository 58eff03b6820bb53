/* fill, copy, add and rows by index on a GPU, against the CPU. */
#include "support/parity.h"

#include <math.h>

static const kd_shape shapes[] = {
    { 1, { 1 } },           { 1, { 7 } },        { 1, { 4099 } },    { 2, { 3, 7 } },
    { 2, { 5, 64 } },       { 2, { 4, 65 } },    { 2, { 70, 3 } },   { 2, { 33, 1 } },
    { 2, { 0, 8 } },        { 3, { 9, 4, 40 } }, { 3, { 2, 0, 5 } }, { 4, { 2, 3, 5, 8 } },
    { 4, { 3, 2, 1, 17 } },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16, KD_F16 };

/* Plain; rows apart; rows that start one element off the boundaries of vectors. */
enum { PLAIN, PADDED, SHIFTED, LAYOUTS };

static kd_tensor make(parity *p, kd_dtype dtype, kd_shape shape, int layout)
{
    kd_shape wider = shape;
    if (layout == SHIFTED) wider.dim[shape.rank - 1] += 2;
    const kd_tensor t = test_tensor(&p->bench, dtype, wider, layout == PADDED ? 8 : 0);
    return layout == SHIFTED ? kd_tensor_slice(&t, shape.rank - 1, 1, shape.dim[shape.rank - 1])
                             : t;
}

static kd_tensor made(parity *p, kd_dtype dtype, kd_shape shape, int layout)
{
    const kd_tensor t = make(p, dtype, shape, layout);
    test_fill(&p->bench, &t, -3, 3);
    return t;
}

/* A case: shape `s`, element type and layout. */
static const char *name_of(const char *op, int s, kd_dtype dtype, int layout)
{
    static const char *const words[] = { "plain", "padded", "shifted" };
    return parity_name("%s %s, shape %d, %s", op, kd_dtype_name(dtype), s, words[layout]);
}

Test(elementwise, fill)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(shapes) * 2 * LAYOUTS; c++) {
        const int s = c / 6, layout = c % LAYOUTS, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c / LAYOUTS % 2];
        const kd_tensor y = make(&p, dtype, shapes[s], layout);
        PARITY(&p, fill, 0, 0, name_of("fill", s, dtype, layout), .y = &y, .value = -1.7f);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(elementwise, add)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(shapes) * 2 * LAYOUTS; c++) {
        const int s = c / 6, layout = c % LAYOUTS, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c / LAYOUTS % 2];
        const kd_tensor a = made(&p, dtype, shapes[s], layout);
        const kd_tensor b = made(&p, dtype, shapes[s], PLAIN);
        const kd_tensor y = make(&p, dtype, shapes[s], layout);
        const kd_tensor again = make(&p, dtype, shapes[s], layout);
        const char *name = name_of("add", s, dtype, layout);
        PARITY(&p, add, 1, 1, name, .y = &y, .a = &a, .b = &b);
        test_ok(PARITY_GPU(&p, add, .y = &again, .a = &a, .b = &b));
        test_same_bits(&again, &y, "%s", name);
        PARITY(&p, add, 1, 1, name, .y = &b, .a = &a, .b = &b);
        PARITY(&p, add, 1, 1, name, .y = &a, .a = &a, .b = &a);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* ---- copy ------------------------------------------------------------------------------------- */

/* `t` with dimensions a and b exchanged. */
static kd_tensor turned(kd_tensor t, int a, int b)
{
    const int64_t shape = t.shape[a], stride = t.stride[a];
    t.shape[a] = t.shape[b], t.stride[a] = t.stride[b];
    t.shape[b] = shape, t.stride[b] = stride;
    return t;
}

/* Both ways to the same bits: the CPU's, and the GPU's over the sentinels of `y`'s twin. */
static void copy(parity *p, const kd_tensor *y, const kd_tensor *twin, const kd_tensor *x,
                 const char *name)
{
    PARITY(p, copy, 0, 0, name, .y = y, .x = x);
    test_ok(PARITY_GPU(p, copy, .y = twin, .x = x));
    test_same_bits(twin, y, "%s", name);
}

Test(elementwise, copy_of_rows)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(shapes) * 9 * LAYOUTS; c++) {
        const int s = c / 27, layout = c % LAYOUTS, mark = test_mark(&p.bench);
        const kd_dtype from = dtypes[c / 9 % 3], to = dtypes[c / 3 % 3];
        const kd_tensor x = made(&p, from, shapes[s], layout);
        const kd_tensor y = make(&p, to, shapes[s], (layout + s) % LAYOUTS);
        const kd_tensor twin = make(&p, to, shapes[s], (layout + s) % LAYOUTS);
        copy(&p, &y, &twin, &x, name_of(kd_dtype_name(from), s, to, layout));
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

static const struct {
    kd_shape shape;
    int a, b; /* exchanged in one of the two, or both */
} turns[] = {
    { { 2, { 1, 40 } }, 0, 1 },      { { 2, { 32, 32 } }, 0, 1 },
    { { 2, { 31, 65 } }, 0, 1 },     { { 3, { 5, 3, 33 } }, 0, 2 },
    { { 3, { 3, 34, 7 } }, 1, 2 },   { { 3, { 33, 3, 2 } }, 0, 1 },
    { { 4, { 2, 3, 5, 7 } }, 0, 3 }, { { 4, { 3, 33, 2, 9 } }, 1, 3 },
    { { 2, { 0, 3 } }, 0, 1 },       { { 4, { 2, 1, 33, 34 } }, 2, 3 },
};

/* Rows to columns, columns to rows, columns to columns. */
Test(elementwise, copy_between_layouts)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(turns) * 9 * 3; c++) {
        const int t = c / 27, way = c % 3 + 1, mark = test_mark(&p.bench);
        const kd_dtype from = dtypes[c / 9 % 3], to = dtypes[c / 3 % 3];
        kd_tensor x = made(&p, from, turns[t].shape, t % LAYOUTS);
        if (way & 1) x = turned(x, turns[t].a, turns[t].b);
        kd_tensor flat = kd_tensor_of(NULL, to, kd_shape_of(&x));
        if (way & 2) flat = turned(flat, turns[t].a, turns[t].b);
        kd_tensor y = make(&p, to, kd_shape_of(&flat), PADDED);
        kd_tensor twin = make(&p, to, kd_shape_of(&flat), PADDED);
        if (way & 2) y = turned(y, turns[t].a, turns[t].b);
        if (way & 2) twin = turned(twin, turns[t].a, turns[t].b);
        copy(&p, &y, &twin, &x,
             parity_name("%s to %s, turn %d, way %d", kd_dtype_name(from), kd_dtype_name(to), t,
                         way));
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* Ties, subnormals, what rounds to infinity, signed zero; one column of many; one row for all. */
Test(elementwise, copy_of_odd_values_and_strides)
{
    static const double values[] = { 0.0,       -0.0,     1 + 0x1p-8,  1 + 0x3p-8, 1 + 0x1p-11,
                                     65504,     65519.99, 65520,       -1e38,      INFINITY,
                                     -INFINITY, 0x1p-14,  0x1.8p-24,   0x1p-25,    0x1.8p-25,
                                     -0x1p-26,  0x1p-127, 3.3895314e38 };
    parity p;
    parity_open(&p, 0);
    const kd_tensor odd = test_values(&p.bench, KD_F32, KD_SHAPE(KD_COUNT(values)), values);
    for (int t = 0; t < KD_COUNT(dtypes); t++) {
        const kd_shape shape = kd_shape_of(&odd);
        const kd_tensor y = make(&p, dtypes[t], shape, PLAIN);
        const kd_tensor twin = make(&p, dtypes[t], shape, PLAIN);
        const kd_tensor nan = make(&p, KD_F32, shape, PLAIN);
        copy(&p, &y, &twin, &odd, parity_name("odd values to %s", kd_dtype_name(dtypes[t])));
        PARITY(&p, copy, 0, 0, "NaN", .y = &y, .x = &nan);

        const kd_tensor pairs = made(&p, dtypes[t], KD_SHAPE(5, 37, 2), PLAIN);
        const kd_tensor x = kd_tensor_slice(&pairs, 2, 1, 1);
        const kd_tensor one = make(&p, KD_F32, KD_SHAPE(5, 37, 1), SHIFTED);
        PARITY(&p, copy, 0, 0, "every second element", .y = &one, .x = &x);
        kd_tensor row = made(&p, dtypes[t], KD_SHAPE(1, 40), PLAIN), point = row;
        const kd_tensor rows = make(&p, KD_BF16, KD_SHAPE(6, 40), PLAIN);
        row.shape[0] = point.shape[0] = 6;
        row.stride[0] = point.stride[0] = point.stride[1] = 0;
        PARITY(&p, copy, 0, 0, "one row for all", .y = &rows, .x = &row);
        PARITY(&p, copy, 0, 0, "one element for all", .y = &rows, .x = &point);
    }
    kd_tensor whole = test_values(&p.bench, KD_F32, KD_SHAPE(1), values + 2);
    kd_tensor rounded = make(&p, KD_BF16, KD_SHAPE(1), PLAIN);
    whole.rank = rounded.rank = 0;
    PARITY(&p, copy, 0, 0, "rank 0", .y = &rounded, .x = &whole);
    parity_close(&p);
}

/* ---- rows by index ---------------------------------------------------------------------------- */

static const struct {
    int64_t many, few, columns;
    int ids; /* different ones: 1 is all equal */
} chosen[] = {
    { 1, 1, 1, 1 },   { 7, 5, 3, 7 },    { 5, 9, 64, 5 },      { 40, 33, 65, 40 }, { 9, 700, 8, 1 },
    { 3, 700, 5, 2 }, { 4, 3, 2100, 4 }, { 600, 500, 4, 600 }, { 5, 0, 8, 5 },     { 3, 300, 1, 3 },
};

/* Ids of [-1, count). */
static kd_tensor choose(parity *p, int64_t n, int count)
{
    return test_filled(&p->bench, KD_I32, KD_SHAPE(n), 0, count == 1 ? 0 : -1, count);
}

Test(elementwise, rows_by_index)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(chosen) * 2 * LAYOUTS; c++) {
        const int s = c / 6, layout = c % LAYOUTS, mark = test_mark(&p.bench);
        const kd_dtype dtype = dtypes[c / LAYOUTS % 2];
        const kd_shape all = KD_SHAPE(chosen[s].many, chosen[s].columns);
        const kd_shape some = KD_SHAPE(chosen[s].few, chosen[s].columns);
        const kd_tensor many = made(&p, dtype, all, layout);
        const kd_tensor few = made(&p, dtype, some, (layout + s) % LAYOUTS);
        const kd_tensor y = make(&p, dtype, some, (layout + 1) % LAYOUTS);
        const kd_tensor rows = choose(&p, chosen[s].few, chosen[s].ids);
        PARITY(&p, gather_rows, 0, 0, name_of("gather", s, dtype, layout), .y = &y, .x = &many,
               .rows = &rows);
        PARITY(&p, scatter_rows, 0, 0, name_of("scatter", s, dtype, layout), .y = &many, .x = &few,
               .rows = &rows);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* A bad row is NaN where it is read and is not written where it is written. */
Test(elementwise, rows_out_of_range)
{
    static const double ids[] = { 2, 4, -1, -2, INT32_MAX, 0, INT32_MIN, 3 };
    enum { N = KD_COUNT(ids), MANY = 4 };
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < 4; c++) {
        const int64_t columns = c & 1 ? 24 : 5;
        const kd_tensor x = made(&p, dtypes[c / 2], KD_SHAPE(MANY, columns), PADDED);
        const kd_tensor few = made(&p, dtypes[c / 2], KD_SHAPE(N, columns), PLAIN);
        const kd_tensor y = made(&p, dtypes[c / 2], KD_SHAPE(N, columns), PLAIN);
        const kd_tensor many = made(&p, dtypes[c / 2], KD_SHAPE(MANY, columns), PADDED);
        const kd_tensor rows = test_values(&p.bench, KD_I32, KD_SHAPE(N), ids);
        double *want = test_doubles(&p.bench, &many);
        test_ok(PARITY_GPU(&p, gather_rows, .y = &y, .x = &x, .rows = &rows));
        test_ok(PARITY_GPU(&p, scatter_rows, .y = &many, .x = &few, .rows = &rows));
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = 0; i < columns; i++) {
                const bool inside = ids[n] >= 0 && ids[n] < MANY;
                const int64_t at = inside ? (int64_t)ids[n] * columns + i : 0;
                const double value = inside ? test_get(&x, at) : ids[n] == -1 ? 0 : NAN;
                test_near_value(test_get(&y, n * columns + i), value, KD_F32, 0, 0, 0,
                                "gathered row %lld", (long long)n);
                if (inside) want[at] = test_get(&few, n * columns + i);
            }
        test_near(&many, want, 0, 0, "scattered rows");
    }
    parity_close(&p);
}
