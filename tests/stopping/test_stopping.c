/*
 * A run that is asked to stop, wherever it is: it has saved what it did, ends with 75, and the same
 * command goes on to the bits and the records of a run that was never asked.  Here at some places;
 * slow_stopping.c takes all.
 */
#include "stopping/stopped.h"

#include <signal.h>

Test(stopping, at_any_piece_of_work_loses_nothing)
{
    stopped s;
    if (!stopped_open(&s, "f32", "valid.kl")) return;
    int64_t piece = 0;
    while (stopped_once(&s, NULL, hit_piece(SIGTERM, piece))) piece += 2;
    cr_assert(piece > 38 && s.steps == (1u << (STOPPED_STEPS + 1)) - 1,
              "%lld pieces; stopped after steps %x", (long long)piece, s.steps);
    stopped_close(&s);

    /* Weights that are rounded, and no best that an evaluation would change. */
    if (!stopped_open(&s, "bf16", "none")) return;
    for (piece = 0; stopped_once(&s, NULL, hit_piece(SIGTERM, piece));) piece += 7;
    stopped_close(&s);
}

/* Such a run's checkpoint may be older than its step's evaluation, which is on record then. */
Test(stopping, and_dying_after_that_loses_no_record)
{
    const hit evaluation = hit_piece(SIGTERM, 17);
    stopped s;
    if (!stopped_open(&s, "f32", "valid.kl")) return;
    int64_t piece = 1;
    while (stopped_once(&s, &evaluation, hit_piece(SIGKILL, piece))) piece += 3;
    cr_assert(piece > 20, "only %lld pieces", (long long)piece);
    stopped_close(&s);
}

Test(stopping, at_some_system_calls_loses_nothing)
{
    static const int signals[] = { SIGTERM, SIGUSR1, SIGINT };
    stopped s;
    if (!stopped_open(&s, "f32", "valid.kl")) return;
    int64_t call = 0, n = 0;
    while (stopped_once(&s, NULL, hit_call(signals[n++ % 3], call))) call += 29;
    cr_assert(n > 15 && s.reads > 3, "only %lld calls, %d reads", (long long)call, s.reads);
    /* A run that goes on is opened otherwise. */
    const hit before = hit_piece(SIGTERM, 17);
    for (call = 3, s.reads = 0; stopped_once(&s, &before, hit_call(SIGTERM, call));) call += 37;
    cr_assert(s.reads > 3, "only %d reads", s.reads);
    hit twice = hit_call(SIGINT, 20);
    for (twice.twice = true; stopped_once(&s, NULL, twice);) twice.call += 61;
    stopped_close(&s);
}
