/* test_stopping.c's cases at every system call and every piece of work. */
#include "stopping/stopped.h"

#include <signal.h>
#include <stdio.h>

static void hit_calls(const hit *before, hit h, int64_t stride)
{
    stopped s;
    if (!stopped_open(&s, "f32", "valid.kl")) return;
    while (stopped_once(&s, before, h)) h.call += stride;
    /* A run that makes no calls would pass all of the above. */
    cr_assert(h.call > 300 && (h.twice || s.reads > 20), "only %lld calls, %d reads",
              (long long)h.call, s.reads);
    fprintf(stderr, "signal %d%s: %lld system calls, %d different folders, %d reads\n", h.signal,
            h.twice ? " twice" : "", (long long)h.call, s.seen_count, s.reads);
    stopped_close(&s);
}

/* Two tests, so that two processors share them. */
Test(stopping_slow, at_every_second_system_call_loses_nothing)
{
    hit_calls(NULL, hit_call(SIGTERM, 0), 2);
}

Test(stopping_slow, at_every_other_system_call_loses_nothing)
{
    hit_calls(NULL, hit_call(SIGUSR1, 1), 2);
}

Test(stopping_slow, twice_at_any_system_call_leaves_what_goes_on)
{
    hit h = hit_call(SIGINT, 0);
    h.twice = true;
    hit_calls(NULL, h, 17);
}

Test(stopping_slow, at_system_calls_of_a_run_that_goes_on_loses_nothing)
{
    const hit evaluation = hit_piece(SIGTERM, 17);
    hit_calls(&evaluation, hit_call(SIGTERM, 1), 9);
}

Test(stopping_slow, at_every_piece_of_work_loses_nothing)
{
    stopped s;
    if (!stopped_open(&s, "bf16", "valid.kl")) return;
    int64_t piece = 0;
    while (stopped_once(&s, NULL, hit_piece(SIGINT, piece))) piece++;
    fprintf(stderr, "%lld pieces of work, %d different folders\n", (long long)piece, s.seen_count);
    stopped_close(&s);
}
