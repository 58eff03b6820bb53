/* threads.c - one worker, one job at a time. */
#include "base/base.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum state { IDLE, STARTED, DONE, ENDING } state;

struct kd_worker {
    kd_status (*job)(void *context);
    void *context;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    state state;
    kd_status status; /* of the job that is DONE */
    char message[1024];
};

static void *work(void *argument)
{
    kd_worker *worker = argument;
    pthread_mutex_lock(&worker->mutex);
    for (;;) {
        while (worker->state != STARTED && worker->state != ENDING) {
            pthread_cond_wait(&worker->changed, &worker->mutex);
        }
        if (worker->state == ENDING) break;
        pthread_mutex_unlock(&worker->mutex);
        const kd_status status = worker->job(worker->context);
        pthread_mutex_lock(&worker->mutex);
        worker->status = status;
        /* The message is this thread's own; the waiter gets a copy. */
        snprintf(worker->message, sizeof worker->message, "%s", kd_last_error());
        worker->state = DONE;
        pthread_cond_broadcast(&worker->changed);
    }
    pthread_mutex_unlock(&worker->mutex);
    return NULL;
}

kd_status kd_worker_create(kd_worker **out, kd_status (*job)(void *context), void *context)
{
    kd_worker *worker = calloc(1, sizeof *worker);
    if (!worker) return kd_fail(KD_ENOMEM, "worker: no memory");
    worker->job = job;
    worker->context = context;
    pthread_mutex_init(&worker->mutex,
                       NULL); /* neither can fail on Linux with default attributes */
    pthread_cond_init(&worker->changed, NULL);
    const int error = pthread_create(&worker->thread, NULL, work, worker);
    if (error != 0) {
        pthread_cond_destroy(&worker->changed);
        pthread_mutex_destroy(&worker->mutex);
        free(worker);
        return kd_fail(KD_ENOMEM, "worker: cannot start a thread: %s", strerror(error));
    }
    *out = worker;
    return KD_OK;
}

void kd_worker_start(kd_worker *worker)
{
    pthread_mutex_lock(&worker->mutex);
    assert(worker->state == IDLE); /* wait for the last job first: its status must not be lost */
    worker->state = STARTED;
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(&worker->mutex);
}

kd_status kd_worker_wait(kd_worker *worker)
{
    char message[sizeof worker->message];
    kd_status status = KD_OK;
    pthread_mutex_lock(&worker->mutex);
    while (worker->state == STARTED) pthread_cond_wait(&worker->changed, &worker->mutex);
    if (worker->state == DONE) {
        status = worker->status;
        memcpy(message, worker->message, sizeof message);
        worker->state = IDLE;
    }
    pthread_mutex_unlock(&worker->mutex);
    return status == KD_OK ? KD_OK : kd_fail(status, "%s", message);
}

bool kd_worker_busy(kd_worker *worker)
{
    pthread_mutex_lock(&worker->mutex);
    const bool busy = worker->state == STARTED;
    pthread_mutex_unlock(&worker->mutex);
    return busy;
}

void kd_worker_destroy(kd_worker *worker)
{
    if (!worker) return;
    pthread_mutex_lock(&worker->mutex);
    while (worker->state == STARTED) pthread_cond_wait(&worker->changed, &worker->mutex);
    worker->state = ENDING;
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(&worker->mutex);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->changed);
    pthread_mutex_destroy(&worker->mutex);
    free(worker);
}
