#include "bench/bench.h"

#include <math.h>
#include <stdlib.h>

static const bench_row *const lists[] = { kd_bench_rows_programs, kd_bench_rows_train,
                                          kd_bench_rows_losses, kd_bench_rows_features,
                                          kd_bench_rows_ops };

/* Of cards that are not here: measured elsewhere by others, as src/DECISIONS.md says. */
static const struct {
    const char *name;
    bench_rates rates;
} known[] = { { "h100-80g", { 3.0e12, 51e12, 798e12, "predicted" } },
              { "h200-141g", { 4.3e12, 51e12, 790e12, "predicted" } } };

static const bench_rates *known_rates(const char *device)
{
    for (int i = 0; i < KD_COUNT(known); i++)
        if (strcmp(known[i].name, device) == 0) return &known[i].rates;
    return NULL;
}

/* ---- which cells ------------------------------------------------------------------------------ */

bool kd_bench_row_is(const bench_row *row, const char *name)
{
    const size_t n = strlen(name);
    return strncmp(row->name, name, n) == 0 && (row->name[n] == '\0' || row->name[n] == ' ');
}

/* The first of that name. */
static const bench_row *find_row(const char *name)
{
    for (int l = 0; l < KD_COUNT(lists); l++)
        for (const bench_row *row = lists[l]; row->name; row++)
            if (kd_bench_row_is(row, name)) return row;
    return NULL;
}

/* What a program takes on a card that is not here, nobody has modelled. */
static bool runs_programs(const kd_bench_options *o)
{
    return o->teacher && o->student && o->data && !known_rates(o->device);
}

static kd_status check_rows(const kd_bench_options *options)
{
    const char *names[KD_OP_COUNT + KD_FEATURE_COUNT + 8] = { NULL };
    int n = 0;
    for (int l = 0; l < KD_COUNT(lists); l++)
        for (const bench_row *row = lists[l]; row->name && n < KD_COUNT(names) - 1; row++)
            names[n++] = row->name;
    for (int i = 0; i < options->row_count; i++) {
        const bench_row *row = find_row(options->rows[i]);
        if (row && row->program && !runs_programs(options))
            return kd_fail(KD_EINVAL,
                           "bench row \"%s\" wants --teacher, --student and --data, and a "
                           "device that is here",
                           row->name);
        if (row) continue;
        const char *near = kd_nearest(options->rows[i], names);
        return kd_fail(KD_EINVAL,
                       "no bench row \"%s\"%s%s; kd list ops names them, and \"head\", "
                       "\"step\", \"prefill\", \"decode\", \"loss\"",
                       options->rows[i], near ? "; nearest: " : "", near ? near : "");
    }
    return KD_OK;
}

/* Appends the row's cells where report->results are; counts them in any case. */
static void add_cells(bench_report *report, const bench_row *row, unsigned where)
{
    int rank = 0;
    for (int s = 0; s < row->shape_count; s++) {
        if (!(row->shapes[s].where & where)) continue;
        if (report->results)
            report->results[report->count] =
                (bench_result){ .row = row, .shape = &row->shapes[s], .rank = rank, .value = NAN };
        report->count++;
        rank++;
    }
}

/* The rows asked for in their order, or all. */
static void add_rows(bench_report *report, const kd_bench_options *options, unsigned where)
{
    report->count = 0;
    for (int i = 0; i < options->row_count; i++)
        for (int l = 0; l < KD_COUNT(lists); l++)
            for (const bench_row *row = lists[l]; row->name; row++)
                if (kd_bench_row_is(row, options->rows[i])) add_cells(report, row, where);
    for (int l = 0; l < KD_COUNT(lists) && options->row_count == 0; l++)
        for (const bench_row *row = lists[l]; row->name; row++)
            if (!row->program || runs_programs(options)) add_cells(report, row, where);
}

static kd_status choose(bench_report *report, kd_arena *arena, const kd_bench_options *options,
                        unsigned where)
{
    add_rows(report, options, where);
    KD_TRY(KD_ARENA_ARRAY(&report->results, arena, kd_max_i64(report->count, 1)));
    add_rows(report, options, where);
    for (int i = 0; i < report->count; i++)
        if (report->results[i].row->program)
            KD_TRY(KD_ARENA_ARRAY(&report->results[i].op_seconds, arena, KD_OP_COUNT));
    return KD_OK;
}

/* ---- the machine ------------------------------------------------------------------------------ */

/* The median of one cell that is no part of the report. */
static kd_status time_of(double *seconds, kd_device *device, const char *row, kd_dtype dtype,
                         int64_t m, int64_t n, int64_t k)
{
    bench_run run;
    bench_time time;
    const bench_shape shape = { BENCH_GPU, "", dtype, { m, n, k } };
    KD_TRY(kd_bench_open(&run, device, find_row(row), &shape));
    const kd_status status = kd_bench_measure(&time, &run, 0.3);
    kd_bench_close(&run);
    *seconds = time.median;
    return status;
}

/* What is measured here is what the floors stand on: a copy and a large square product. */
static kd_status measure_rates(bench_rates *rates, kd_device *device, bool gpu, bool quick)
{
    const int64_t copied = quick ? 1 << 12 : gpu ? 512 << 20 : 32 << 20;
    const int64_t side = quick ? 64 : gpu ? 8192 : 1024;
    double copy, f32, bf16;
    KD_TRY(time_of(&copy, device, "copy", KD_F32, copied, 0, 0));
    KD_TRY(time_of(&f32, device, "matmul", KD_F32, side, side, side));
    KD_TRY(time_of(&bf16, device, "matmul", KD_BF16, side, side, side));
    const double work = 2.0 * (double)side * (double)side * (double)side;
    *rates = (bench_rates){ 8.0 * (double)copied / copy, work / f32, work / bf16, "measured" };
    return KD_OK;
}

/* ---- one cell --------------------------------------------------------------------------------- */

static kd_status value_of(double *value, bench_run *run)
{
    *value = NAN;
    if (!kd_present(&run->value)) return KD_OK;
    float *host;
    const int64_t n = kd_tensor_elements(&run->value);
    KD_TRY(KD_ARENA_ARRAY(&host, run->arena, n));
    KD_TRY(kd_bench_once(run, 0));
    KD_TRY(kd_download(&run->exec, host, &run->value));
    KD_TRY(kd_sync(&run->exec));
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)host[i];
    *value = sum;
    return KD_OK;
}

static kd_status time_ours(bench_time *time, bench_result *r, kd_device *device, double seconds)
{
    bench_run run;
    kd_status status;
    KD_TRY(kd_bench_open(&run, device, r->row, r->shape));
    r->taken = (double)run.stack.capacity;
    KD_TRY_GOTO(value_of(&r->value, &run), status, done);
    KD_TRY_GOTO(kd_bench_measure(time, &run, seconds), status, done);
done:
    kd_bench_close(&run);
    return status;
}

static kd_status ask(bench_result *r, kd_device *device, bench_peers *peers,
                     const kd_bench_options *options)
{
    if (!peers) return KD_OK;
    const bench_question question = { r->row,           r->shape, device->type->name,
                                      options->seconds, r->value, options };
    return kd_bench_peers_ask(r->peers, &r->peer_count, peers, &question);
}

/* As run_cell does. */
static kd_status run_program(bench_result *r, kd_device *device, bench_peers *peers,
                             const kd_bench_options *options)
{
    bench_program program = { .options = options,
                              .shape = r->shape,
                              .value = NAN,
                              .profiled = strcmp(device->type->name, "cpu") == 0 };
    KD_TRY(kd_bench_run_program(&program, r->row));
    r->value = program.value;
    KD_TRY(ask(r, device, peers, options));
    KD_TRY(kd_bench_run_program(&program, r->row));
    r->taken = program.peak;
    memcpy(r->op_seconds, program.op_seconds, sizeof program.op_seconds);
    r->time = kd_bench_statistics(program.seconds, program.count);
    return KD_OK;
}

/* Ours, theirs, ours again: the better half of ours is not chosen, both are one sample.  What ours takes
 * is given back in between, so that a peer has the whole memory, too. */
static kd_status run_cell(bench_result *r, kd_device *device, bench_peers *peers,
                          const kd_bench_options *options)
{
    bench_time first, again;
    const double seconds = options->seconds;
    if (r->row->program) return run_program(r, device, peers, options);
    KD_TRY(time_ours(&first, r, device, seconds / 2));
    KD_TRY(ask(r, device, peers, options));
    KD_TRY(time_ours(&again, r, device, seconds / 2));
    r->time = (bench_time){ fmin(first.low, again.low), (first.median + again.median) / 2,
                            fmax(first.high, again.high), first.samples + again.samples };
    return KD_OK;
}

/* A cell that cannot run is said, not the end of the others.  What is known is in the file at any time. */
static kd_status run_one(bench_report *report, bench_result *r, kd_device *device,
                         bench_peers *peers, const kd_bench_options *options)
{
    char name[128];
    kd_log(KD_LOG_INFO, "%s", kd_bench_cell_name(name, sizeof name, r->row, r->shape));
    r->error[0] = '\0';
    if (run_cell(r, device, peers, options) != KD_OK)
        snprintf(r->error, sizeof r->error, "%s", kd_last_error());
    kd_bench_print_cell(stderr, report, r);
    return options->json ? kd_bench_write(options->json, report) : KD_OK;
}

static kd_status run_cells(bench_report *report, kd_device *device, const kd_bench_options *options,
                           double end)
{
    bench_peers *peers = NULL;
    int most = 0;
    if (options->peers) KD_TRY(kd_bench_peers_open(&peers, options->peers));
    kd_status status = KD_OK;
    for (int i = 0; i < report->count; i++) {
        bench_result *r = &report->results[i];
        most = r->rank > most ? r->rank : most;
        r->floor = kd_bench_floor(&report->rates, r->row, r->shape);
        snprintf(r->error, sizeof r->error, "not reached");
    }
    for (int rank = 0; rank <= most; rank++)
        for (int i = 0; i < report->count && status == KD_OK && kd_clock() < end; i++)
            if (report->results[i].rank == rank)
                status = run_one(report, &report->results[i], device, peers, options);
    kd_bench_peers_close(peers);
    return status;
}

/* ---- the bench -------------------------------------------------------------------------------- */

static kd_status predict(bench_report *report, const kd_bench_options *options)
{
    snprintf(report->device.name, sizeof report->device.name, "%s", options->device);
    report->rates = *known_rates(options->device);
    for (int i = 0; i < report->count; i++)
        report->results[i].floor =
            kd_bench_floor(&report->rates, report->results[i].row, report->results[i].shape);
    return KD_OK;
}

static kd_status measure(bench_report *report, kd_arena *arena, const kd_bench_options *options)
{
    const double end = options->limit > 0 ? kd_clock() + options->limit : INFINITY;
    kd_device *device;
    KD_TRY(kd_device_open(&device, options->device));
    kd_status status;
    device->tune = true; /* as training does */
    kd_device_describe(&report->device, device);
    const bool gpu = strcmp(report->device.type, "cuda") == 0;
    const unsigned where = options->quick ? BENCH_QUICK : gpu ? BENCH_GPU : BENCH_CPU;
    KD_TRY_GOTO(choose(report, arena, options, where), status, done);
    KD_TRY_GOTO(measure_rates(&report->rates, device, gpu, options->quick), status, done);
    KD_TRY_GOTO(run_cells(report, device, options, end), status, done);
done:
    kd_device_close(device);
    return status;
}

static kd_status bench(FILE *out, bench_report *report, kd_arena *arena,
                       const kd_bench_options *options)
{
    KD_TRY(check_rows(options));
    if (known_rates(options->device)) {
        KD_TRY(choose(report, arena, options, BENCH_GPU));
        KD_TRY(predict(report, options));
    } else {
        KD_TRY(measure(report, arena, options));
    }
    kd_bench_print(out, report);
    if (options->json) KD_TRY(kd_bench_write(options->json, report));
    return options->compare ? kd_bench_compare(out, options->compare, report) : KD_OK;
}

kd_status kd_bench(FILE *out, const kd_bench_options *options)
{
    kd_arena *arena;
    bench_report report = { .count = 0 };
    KD_TRY(kd_arena_create(&arena));
    const kd_status status = bench(out, &report, arena, options);
    kd_arena_destroy(arena);
    return status;
}
