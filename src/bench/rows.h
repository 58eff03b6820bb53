/* rows.h - what the tables of bench rows share.  Internal to src/bench/rows_*.c. */
#ifndef KD_BENCH_ROWS_H
#define KD_BENCH_ROWS_H

#include "bench/bench.h"

#include <math.h>

/* The arguments of a set, whose operands are in memory of the run. */
#define ARGS(run, set, op, ...)                                                                    \
    (*(kd_##op##_args *)(void *)(run)->args[set] = (kd_##op##_args){ __VA_ARGS__ })

static inline double element(const bench_shape *s) { return (double)kd_dtype_size(s->dtype); }
static inline double dim(const bench_shape *s, int i) { return (double)s->dim[i]; }

static inline double product(const bench_shape *s, int dims)
{
    double n = 1;
    for (int i = 0; i < dims; i++) n *= dim(s, i);
    return n;
}

static inline const kd_tensor *values(bench_run *r, int set, kd_shape shape, unsigned salt)
{
    return kd_bench_filled(r, set, r->shape->dtype, shape, -1, 1, salt);
}

static inline const kd_tensor *result(bench_run *r, int set, kd_shape shape)
{
    return kd_bench_zeros(r, set, r->shape->dtype, shape);
}

static inline bool is(const bench_run *r, const char *variant)
{
    return strcmp(r->shape->variant, variant) == 0;
}

/* A row that is timed by running one op. */
#define OP_ROW(op, letters, work, list)                                                            \
    {                                                                                              \
#op, letters, open_##op, NULL, work, list, KD_COUNT(list), -1, KD_OP_##op                  \
    }

#endif
