/*
 * kd/bench.h - how fast every op and the chunked head are here, against the machine and against peers.
 *
 * A cell is one row at one shape.  Its floor is what the memory and the matrix units need for the
 * bytes and operations that its model counts, at the rates measured in the same run (copy and matrix
 * product).  Peers are another process that answers for the same cells in turn with ours.
 */
#ifndef KD_BENCH_H
#define KD_BENCH_H

#include <kd/status.h>

#include <stdbool.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kd_bench_options {
    const char *device; /* "auto", "cpu", "cuda:1"; "h100-80g": the model's figures, predicted */
    const char *const *rows; /* names of rows, "attention"; count 0: all */
    int row_count;
    bool quick;        /* one small shape a row: that it runs, not how fast */
    double seconds;    /* to spend on a cell, at least ten samples */
    double limit;      /* seconds after which no further cell is begun; 0: none */
    const char *peers; /* command of the peers' process; NULL: none */
    /* Folders of models and a data set: what the rows "step", "prefill" and "decode" work on; NULL:
     * those rows are left out. */
    const char *teacher, *student, *data;
    const char *json;    /* file that is written, anew after every cell; NULL: none */
    const char *compare; /* an earlier such file; NULL: none */
} kd_bench_options;

/*
 * Prints a table on `out`, lost comparisons and missed targets first, then one line per cell.  The first shape of every row
 * is run before the second of any, rows in the order of `rows`: what a limit or a kill cuts off matters least.
 *
 * Errors: KD_EINVAL for an unknown row, naming the nearest; KD_EINTERNAL (exit code 1) when a cell is
 * slower than in `compare` beyond the spread of both; what opening the device fails with.
 */
KD_MUST_CHECK kd_status kd_bench(FILE *out, const kd_bench_options *options);

#ifdef __cplusplus
}
#endif
#endif
