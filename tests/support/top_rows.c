#include "support/top_rows.h"

#include <math.h>
#include <stdio.h>

static const struct {
    int64_t classes, k, beyond, shift, pad;
} cases[TOP_CASES] = {
    { 1, 1, 0, 0, 0 },      { 1, 1, 3, 1, 2 },      { 8, 8, 0, 0, 0 },    { 65, 1, 0, 0, 0 },
    { 65, 4, 7, 1, 0 },     { 65, 65, 15, 0, 0 },   { 300, 64, 4, 0, 4 }, { 1031, 1024, 1, 1, 0 },
    { 1031, 1, 9, 0, 8 },   { 2047, 100, 1, 0, 0 }, { 2048, 3, 0, 0, 8 }, { 6200, 1024, 8, 0, 0 },
    { 8300, 300, 0, 1, 0 },
};

enum {
    UNIFORM,
    ALL_EQUAL,
    LEVELS,    /* many equal ones at the border */
    ZEROS,     /* of both signs, and one above them */
    FEW_ALIVE, /* the others -inf */
    NONE_ALIVE,
    ONE_NAN,
    NANS,     /* of both signs, among infinities */
    INFINITE, /* one +inf */
    ASCENDING,
    DESCENDING,
    ENDS,  /* of the type's range, again and again */
    CLOSE, /* told apart by their last bits alone */
    SUBNORMAL,
    STEEP, /* one takes all */
    UNLABELLED,
    KINDS
};
static const char *const names[KINDS] = {
    "uniform", "all equal", "levels",   "zeros",      "few alive",  "none alive",
    "one NaN", "NaNs",      "infinite", "ascending",  "descending", "ends",
    "close",   "subnormal", "steep",    "unlabelled",
};
_Static_assert((int)KINDS == (int)TOP_ROWS, "a row of each kind");

/* Class j of `classes`. */
static double logit(test_bench *b, int kind, int64_t j, int64_t classes)
{
    const double u = test_uniform(b), place = (double)j / (double)classes;
    switch (kind) {
    case ALL_EQUAL: return -2.5;
    case LEVELS: return floor(4 * u);
    case ZEROS: return j == classes / 2 ? 1e-3 : j % 3 ? -0.0 : 0.0;
    case FEW_ALIVE: return j % 29 == 3 || j + 1 == classes ? 8 * u - 4 : -INFINITY;
    case NONE_ALIVE: return -INFINITY;
    case ONE_NAN: return j == classes / 3 ? NAN : u;
    case NANS: return j % 5 == 1 ? NAN : j % 5 == 2 ? -NAN : j % 5 == 3 ? INFINITY : -INFINITY;
    case INFINITE: return j == classes / 2 ? INFINITY : u;
    case ASCENDING: return 16 * place - 8;
    case DESCENDING: return 8 - 16 * place;
    case ENDS: return j % 3 == 1 ? 3e38 : j % 3 == 2 ? -3e38 : 1;
    case CLOSE: return 1 + floor(64 * u) * 0x1p-23;
    case SUBNORMAL: return (2 * u - 1) * 0x1p-127;
    case STEEP: return j == classes / 2 ? 80 : -u;
    case UNLABELLED: return NAN;
    default: return 16 * u - 8;
    }
}

top_rows top_rows_of(test_bench *bench, int which, kd_dtype dtype)
{
    const int64_t classes = cases[which].classes, columns = classes + cases[which].beyond;
    const kd_tensor wide = test_tensor(
        bench, dtype, KD_SHAPE(TOP_ROWS, columns + cases[which].shift), cases[which].pad);
    top_rows rows = { .logits = kd_tensor_slice(&wide, 1, cases[which].shift, columns),
                      .labels = test_tensor(bench, KD_I32, KD_SHAPE(TOP_ROWS), 0),
                      .classes = classes,
                      .k = cases[which].k };
    for (int64_t n = 0; n < TOP_ROWS; n++) {
        test_set(&rows.labels, n, n == UNLABELLED ? -1 : 0);
        for (int64_t j = 0; j < columns; j++)
            test_set(&rows.logits, n * columns + j,
                     j < classes ? logit(bench, (int)n, j, classes)
                     : j % 2     ? 3e38
                                 : (double)NAN);
    }
    return rows;
}

const char *top_rows_name(const top_rows *rows, int64_t n, int64_t k, double temperature)
{
    static _Thread_local char name[128];
    snprintf(name, sizeof name, "%s, %lld classes, row %lld (%s), k %lld, T %g",
             kd_dtype_name(rows->logits.dtype), (long long)rows->classes, (long long)n, names[n],
             (long long)k, temperature);
    return name;
}
