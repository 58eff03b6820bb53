/*
 * stopped.h - a run that gets a signal at a chosen place, each time in a process of its own, and what
 * is asked of the folder that it leaves.
 */
#ifndef KD_TEST_STOPPED_H
#define KD_TEST_STOPPED_H

#include "stopping/work.h"
#include "support/training.h"

enum { STOPPED_STEPS = 4, STOPPED_SEEN = 1024 };

/* Four steps, an evaluation of three micro-batches after each second and a checkpoint after the third;
 * once without a signal, and once with a checkpoint after every step. */
typedef struct stopped {
    test_training training;
    char whole[512], every[512];
    unsigned steps; /* bit s: a run was stopped after s steps */
    int reads;      /* at which runs were stopped */
    kd_hash *seen; /* [STOPPED_SEEN] folders that were gone on with, to the end and the same bits */
    int seen_count;
} stopped;

/* False, and nothing is open, where no process may be traced. */
bool stopped_open(stopped *s, const char *dtype, const char *keep_best);
void stopped_close(stopped *s);

/* Where a run is hit.  System calls are those of its main thread, counted from where it heeds
 * signals, without waits and those about memory; they are entered when the signal is there. */
typedef struct hit {
    int signal;
    int64_t call;  /* system call; -1: none */
    int64_t piece; /* of work.h; -1: none */
    bool twice;    /* and again at the next call */
} hit;

static inline hit hit_call(int signal, int64_t call)
{
    return (hit){ .signal = signal, .call = call, .piece = -1 };
}

static inline hit hit_piece(int signal, int64_t piece)
{
    return (hit){ .signal = signal, .call = -1, .piece = piece };
}

/*
 * A run that is hit, and what follows.  Unless it had ended before, it ends in KD_ESTOPPED with every
 * whole step saved and no micro-batch begun (after a call: but the teacher's check).  Hit by
 * SIGKILL, or twice, it ends with whatever there is.  The same run goes on from there to the weights,
 * moments and records of one without a signal.  With `before` the folder is what a run leaves that was
 * hit there.  False when it ended before the hit.
 */
bool stopped_once(stopped *s, const hit *before, hit h);

#endif
