/*
 * bench.h - cells, how they are set up, timed, compared with peers and reported.
 *
 * bench.c rows_ops.c rows_train.c rows_features.c rows_losses.c programs.c setup.c measure.c peers.c
 * report.c targets.c
 */
#ifndef KD_BENCH_INTERNAL_H
#define KD_BENCH_INTERNAL_H

#include "loss/loss.h"
#include "ops/ops.h"

#include <kd/bench.h>

enum {
    BENCH_DIMS = 4,
    BENCH_SETS = 8,     /* copies of a cell's operands, used in turn so that no cache holds them */
    BENCH_TENSORS = 16, /* of one set */
    BENCH_ARGS = 512,   /* bytes of the largest argument struct */
};

/* ---- what is timed ---------------------------------------------------------------------------- */

typedef enum bench_where { BENCH_GPU = 1, BENCH_CPU = 2, BENCH_QUICK = 4 } bench_where;

typedef struct bench_shape {
    unsigned where;
    const char *variant; /* "ce+kl"; "" */
    kd_dtype dtype;
    int64_t dim[BENCH_DIMS]; /* as the row's letters say */
} bench_shape;

typedef struct bench_work {
    double bytes; /* that must cross the memory's bus */
    double flops; /* of matrix products */
    bool in_turn; /* the floor is the sum of both, not the larger: separate kernels */
} bench_work;

typedef struct bench_run bench_run;
typedef struct bench_program bench_program;

typedef struct bench_row {
    const char *name, *letters; /* "row_loss", "NV" */
    /* Makes the operands of set `set` and fills run->args[set]; failures stay in run->status. */
    void (*open)(bench_run *run, int set);
    kd_status (*run)(bench_run *run, int set); /* NULL: run->op over run->args[set] */
    bench_work (*work)(const bench_shape *shape);
    const bench_shape *shapes;
    int shape_count;
    int restored; /* tensor of each set that a run spoils and that is put back between samples; -1 */
    int op;       /* kd_op_id; -1: none of its own */
    /* A cell that opens models itself, in place of all of the above but the shapes; else NULL. */
    kd_status (*program)(bench_program *program, kd_arena *arena);
} bench_row;

/* End with { 0 }. */
extern const bench_row kd_bench_rows_ops[], kd_bench_rows_train[], kd_bench_rows_features[],
    kd_bench_rows_losses[], kd_bench_rows_programs[];

/* "loss" is asked for, or is said of, "loss pkt" and all other rows of that first word. */
bool kd_bench_row_is(const bench_row *row, const char *name);

/* ---- one cell, set up ------------------------------------------------------------------------- */

struct bench_run {
    const bench_row *row;
    const bench_shape *shape;
    kd_status status; /* of the first tensor that could not be made */
    kd_exec exec;
    kd_stack stack;
    kd_arena *arena; /* of the cell */
    int sets;
    bool counting;                               /* only operand_bytes is wanted */
    kd_tensor tensor[BENCH_SETS][BENCH_TENSORS]; /* in the order of their making */
    int count[BENCH_SETS];
    kd_tensor pristine; /* what `restored` is put back from */
    _Alignas(16) unsigned char args[BENCH_SETS][BENCH_ARGS];
    void *context[BENCH_SETS];
    size_t operand_bytes; /* of one set */
    kd_tensor value;      /* f32 [*]: its sum is compared with the peers'; absent: nothing is */
};

/* Tensors of a set; element i of a pattern is a function of i and `salt` alone, so that a peer makes
 * the same: low + (high - low) * hash(i mod period).  Integers are whole numbers of [low, high).
 * The period is 64 rows of the last dimension.  The tensor is the run's. */
const kd_tensor *kd_bench_filled(bench_run *run, int set, kd_dtype dtype, kd_shape shape,
                                 double low, double high, unsigned salt);
const kd_tensor *kd_bench_zeros(bench_run *run, int set, kd_dtype dtype, kd_shape shape);
/* The hash: in [0, 1). */
double kd_bench_hashed(int64_t index, unsigned salt);

/* Host values into a new tensor. */
const kd_tensor *kd_bench_given(bench_run *run, int set, kd_dtype dtype, kd_shape shape,
                                const void *values);

KD_MUST_CHECK kd_status kd_bench_open(bench_run *run, kd_device *device, const bench_row *row,
                                      const bench_shape *shape);
void kd_bench_close(bench_run *run);
KD_MUST_CHECK kd_status kd_bench_once(bench_run *run, int set);

/* ---- timing ----------------------------------------------------------------------------------- */

typedef struct bench_time {
    double low, median, high; /* seconds: 20th, 50th, 80th of 100 samples */
    int samples;
} bench_time;

/* Warms up, until a card's clocks have risen; then takes samples for `seconds`, at least ten.  A sample
 * runs through all sets so often that starting and waiting are lost in it. */
KD_MUST_CHECK kd_status kd_bench_measure(bench_time *time, bench_run *run, double seconds);

bench_time kd_bench_statistics(double *samples, int count); /* sorts them */

/* ---- programs --------------------------------------------------------------------------------- */

enum { BENCH_SECONDS = 16 };

/* A cell of kd_bench_rows_programs; runs add to what is there. */
struct bench_program {
    const kd_bench_options *options; /* models and data */
    const bench_shape *shape;
    double seconds[BENCH_SECONDS];
    int count;
    double peak;                    /* resident bytes; NaN: not told */
    double value;                   /* the first step's loss; NaN: none */
    bool profiled;                  /* the device waits for each op, whose time is its own then */
    double op_seconds[KD_OP_COUNT]; /* of all that was run */
};

KD_MUST_CHECK kd_status kd_bench_run_program(bench_program *program, const bench_row *row);
double kd_bench_tokens(const bench_row *row,
                       const bench_shape *shape); /* of one time of a program */

/* ---- peers ------------------------------------------------------------------------------------ */

enum { BENCH_PEERS = 8 };

typedef struct bench_peer {
    char name[32], error[96]; /* why it did not run; "": it did */
    bench_time time;
    double bytes; /* that it took beyond its inputs, a program in all; NaN: not said */
    bool differs; /* its loss is not ours: the comparison means nothing */
} bench_peer;

typedef struct bench_peers bench_peers;

typedef struct bench_question {
    const bench_row *row;
    const bench_shape *shape;
    const char *device;
    double seconds, value;           /* NaN: there is none to compare */
    const kd_bench_options *options; /* a program's models and data */
} bench_question;

/* Starts `command` with the shell.  One JSON line to it per cell, one back.  Where its process ended
 * instead, another is started and asked once more; ending again is the one answer's error. */
KD_MUST_CHECK kd_status kd_bench_peers_open(bench_peers **peers, const char *command);
KD_MUST_CHECK kd_status kd_bench_peers_ask(bench_peer answers[BENCH_PEERS], int *count,
                                           bench_peers *peers, const bench_question *question);
void kd_bench_peers_close(bench_peers *peers);

/* ---- results ---------------------------------------------------------------------------------- */

typedef struct bench_rates {
    double copy;                  /* bytes a second, read and written */
    double flops_f32, flops_bf16; /* a second, of a large product */
    const char *how;              /* "measured", "predicted" */
} bench_rates;

typedef struct bench_result {
    const bench_row *row;
    const bench_shape *shape;
    int rank;        /* which of its row's cells it is */
    bench_time time; /* median 0: not run, see `error` */
    double floor;    /* seconds */
    double taken;    /* bytes beyond the operands; of a program the resident peak */
    double value;    /* NaN: none */
    bench_peer peers[BENCH_PEERS];
    int peer_count;
    double *op_seconds; /* [KD_OP_COUNT] of a program; NULL: none */
    char error[160];
} bench_result;

double kd_bench_floor(const bench_rates *rates, const bench_row *row, const bench_shape *shape);
const char *kd_bench_cell_name(char *name, size_t size, const bench_row *row,
                               const bench_shape *shape); /* "row_loss ce+kl bf16 N=8192 V=32000" */

typedef struct bench_report {
    kd_device_info device;
    bench_rates rates;
    bench_result *results;
    int count;
} bench_report;

/* Theirs over ours: above 1 we are faster, or take less.  NaN where there is nothing to compare. */
double kd_bench_ratio(const bench_result *result, const bench_peer *peer);
double kd_bench_memory_ratio(const bench_result *result, const bench_peer *peer);

/* Targets on a CPU: those missed, each with its profile, those met, and what cannot be said here. */
void kd_bench_print_targets(FILE *out, const bench_report *report);

void kd_bench_print_cell(FILE *out, const bench_report *report, const bench_result *result);
void kd_bench_print(FILE *out, const bench_report *report);
KD_MUST_CHECK kd_status kd_bench_write(const char *path, const bench_report *report);
KD_MUST_CHECK kd_status kd_bench_compare(FILE *out, const char *path, const bench_report *report);

#endif
