/* signals.c - the wish to stop, which a run reads where it is safe to. */
#include "base/base.h"

#include <signal.h>
#include <stdatomic.h>

static atomic_bool stop_requested, reads_fail;

static void request_stop(int number)
{
    (void)number;
    atomic_store(&stop_requested, true);
}

void kd_stop_install(void)
{
    struct sigaction action = { .sa_handler = request_stop, .sa_flags = SA_RESTART };
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    action.sa_flags |= SA_RESETHAND; /* the second INT meets the default action: the end */
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a log that nobody reads any more ends no run */
}

bool kd_stop_requested(void) { return atomic_load(&stop_requested); }
void kd_stop_reset(void) { atomic_store(&stop_requested, false); }
void kd_stop_reads(bool fail) { atomic_store(&reads_fail, fail); }

kd_status kd_stop_read(const char *path)
{
    if (!atomic_load(&reads_fail) || !kd_stop_requested()) return KD_OK;
    return kd_fail(KD_ESTOPPED, "%s: asked to stop", path);
}
