/* Samples of a cell: each long enough for the clock, through every set, the spoilt put back between. */
#include "bench/bench.h"

#include <math.h>
#include <stdlib.h>

enum { WARM = 3, LEAST = 10, MOST = 400 };

/* Seconds.  Starting and waiting take about 20 us on a GPU, whose clocks rise within the warm-up; less
 * where little time is given, which is for trying. */
static double shortest_sample(double seconds) { return fmin(10e-3, seconds / 20); }
static double warm_up(double seconds) { return fmin(0.2, seconds / 4); }

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bench_time kd_bench_statistics(double *samples, int count)
{
    qsort(samples, (size_t)count, sizeof *samples, by_value);
    return (bench_time){ samples[count / 5], samples[count / 2], samples[count - 1 - count / 5],
                         count };
}

static kd_status restore(bench_run *run)
{
    const int at = run->row->restored;
    if (at < 0) return KD_OK;
    for (int set = 0; set < run->sets; set++) {
        const kd_tensor *t = &run->tensor[set][at];
        KD_TRY(run->exec.device->type->copy(run->exec.device, NULL, t->data, run->pristine.data,
                                            kd_tensor_bytes(t)));
    }
    return kd_sync(&run->exec);
}

/* Seconds of one run, over `rounds` rounds of all sets. */
static kd_status sample(double *seconds, bench_run *run, int rounds)
{
    KD_TRY(restore(run));
    const double start = kd_clock();
    for (int i = 0; i < rounds; i++)
        for (int set = 0; set < run->sets; set++) KD_TRY(kd_bench_once(run, set));
    KD_TRY(kd_sync(&run->exec));
    *seconds = (kd_clock() - start) / (rounds * run->sets);
    return KD_OK;
}

kd_status kd_bench_measure(bench_time *time, bench_run *run, double seconds)
{
    double samples[MOST], one = 0;
    const double warm = kd_clock() + warm_up(seconds), shortest = shortest_sample(seconds);
    for (int i = 0; i < WARM || kd_clock() < warm; i++) KD_TRY(sample(&one, run, 1));
    /* What is put back between samples is good for one run. */
    const double round = one * run->sets;
    const int rounds =
        run->row->restored >= 0 || round >= shortest ? 1 : (int)(shortest / round) + 1;
    const double start = kd_clock();
    int count = 0;
    while (count < LEAST || (count < MOST && kd_clock() - start < seconds))
        KD_TRY(sample(&samples[count++], run, rounds));
    *time = kd_bench_statistics(samples, count);
    return KD_OK;
}
