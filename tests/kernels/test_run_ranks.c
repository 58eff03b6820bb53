/*
 * A run on ranks with a GPU each, here threads that are told their places as a launcher tells processes:
 * each takes the GPU of its number and joins by NCCL at the place that the environment names; together
 * they train what one GPU trains.  Needs as many devices as ranks.
 */
#include "support/ranks.h"
#include "support/students.h"
#include "support/text_file.h"
#include "train/run.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

enum { RANKS = 2, TOKENS = 500, CLASSES = 80 };

static const char *write_tokens(const char *name)
{
    static int64_t tokens[TOKENS];
    static const int64_t borders[] = { 0, 90, 230, TOKENS };
    for (int64_t i = 0; i < TOKENS; i++)
        tokens[i] = (int64_t)(kd_random_uniform(4, 1, (uint64_t)i) * CLASSES);
    return test_text_write(name, &(test_text){ .dtype = "U16",
                                               .tokens = tokens,
                                               .count = TOKENS,
                                               .documents = borders,
                                               .borders = KD_COUNT(borders) });
}

typedef struct rank {
    kd_ranks place;
    kd_run *run;
    kd_status status;
    char message[512];
} rank;

static void open_run(rank *r, const char *out)
{
    const char *const settings[][2] = { { "teacher.model", KD_GOLDEN "/step/teacher" },
                                        { "student.model", KD_GOLDEN "/step/student" },
                                        { "data.train", write_tokens("run") },
                                        { "data.valid", write_tokens("valid") },
                                        { "data.sequence", "10" },
                                        { "loss.alpha", "0.6" },
                                        { "optim.lr", "1e-3" },
                                        { "batch.samples", "8" },
                                        { "batch.micro", "2" },
                                        { "run.steps", "3" },
                                        { "run.device", "cuda" },
                                        { "run.out", out },
                                        { "eval.every", "2 steps" } };
    test_ok(kd_run_create(&r->run));
    for (int i = 0; i < KD_COUNT(settings); i++)
        test_ok(kd_run_set(r->run, settings[i][0], settings[i][1]));
    r->run->ranks = &r->place;
}

static void *train(void *context)
{
    rank *r = context;
    r->status = kd_run_train(r->run);
    if (r->status != KD_OK) snprintf(r->message, sizeof r->message, "%s", kd_last_error());
    return NULL;
}

static kd_ranks place(int number, int size)
{
    return (kd_ranks){ .launcher = "torchrun",
                       .rank = number,
                       .size = size,
                       .local = number,
                       .meeting = "127.0.0.1:29501" };
}

static void train_ranks(rank *ranks, int size, const char *out)
{
    pthread_t threads[RANKS];
    for (int r = 0; r < size; r++) {
        ranks[r].place = place(r, size);
        open_run(&ranks[r], out);
    }
    for (int r = 0; r < size; r++)
        cr_assert(pthread_create(&threads[r], NULL, train, &ranks[r]) == 0);
    for (int r = 0; r < size; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < size; r++) {
        cr_assert(ranks[r].status == KD_OK, "rank %d: %s", r, ranks[r].message);
        kd_run_destroy(ranks[r].run);
    }
}

static void compare_weights(const char *a, const char *b, double most)
{
    kd_st_file *files[2];
    test_ok(kd_st_open(&files[0], test_path(a, "model.safetensors")));
    test_ok(kd_st_open(&files[1], test_path(b, "model.safetensors")));
    cr_assert(files[0]->count == files[1]->count && files[0]->count > 0);
    for (int64_t i = 0; i < files[0]->count; i++) {
        const kd_st_entry *e[2] = { &files[0]->entries[i], &files[1]->entries[i] };
        float *x[2];
        double difference = 0, norm = 0;
        for (int k = 0; k < 2; k++) {
            x[k] = malloc((size_t)e[k]->elements * sizeof **x);
            cr_assert(x[k] && e[k]->elements == e[0]->elements, "tensor %d", (int)i);
            test_ok(kd_st_read(x[k], KD_F32, files[k], e[k], 0, e[k]->elements));
        }
        for (int64_t j = 0; j < e[0]->elements; j++) {
            difference += pow((double)x[1][j] - x[0][j], 2);
            norm += pow(x[0][j], 2);
        }
        cr_assert(difference <= most * most * norm, "%s: %.3g of its norm", e[0]->name,
                  sqrt(difference / norm));
        free(x[0]);
        free(x[1]);
    }
    kd_st_close(files[0]);
    kd_st_close(files[1]);
}

Test(run_ranks, two_gpus_train_what_one_trains)
{
    const char *folder = test_folder();
    char one[512], both[512];
    rank ranks[RANKS] = { { .status = KD_OK } };
    test_require_ranks(RANKS);
    (void)test_log();
    snprintf(one, sizeof one, "%s", test_path(folder, "one"));
    snprintf(both, sizeof both, "%s", test_path(folder, "both"));
    train_ranks(ranks, 1, one);
    setenv("NCCL_COMM_ID", "127.0.0.1:29501",
           1); /* threads share it: set once, before they begin */
    train_ranks(ranks, RANKS, both);
    compare_weights(one, both, 1e-6);
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}

Test(run_ranks, what_cannot_be_joined_is_refused)
{
    static const struct {
        int local;
        const char *device, *meeting, *said;
        kd_status status;
    } cases[] = {
        { 0, "cuda:0", "a:1", "run.device: found \"cuda:0\" and 2 ranks", KD_EINVAL },
        { -1, "cuda", "a:1", "no MPI_LOCALRANKID", KD_EINVAL },
        { 99, "cuda", "a:1", "cuda:99", KD_EDEVICE },
        { 0, "auto", "", "expected MASTER_ADDR, the machine of rank 0", KD_EINVAL },
        { 0, "cpu", "a:1", "2 ranks of torchrun on the CPU: MPI joins those", KD_ENOTSUP },
    };
    const char *folder = test_folder();
    test_require_ranks(RANKS);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        rank r = { .place = place(1, 2) };
        open_run(&r, test_path(folder, "out"));
        test_ok(kd_run_set(r.run, "run.device", cases[i].device));
        r.place.local = cases[i].local;
        snprintf(r.place.meeting, sizeof r.place.meeting, "%s", cases[i].meeting);
        (void)train(&r);
        cr_assert(r.status == cases[i].status && strstr(r.message, cases[i].said), "%d: %s: %s", i,
                  kd_status_text(r.status), r.message);
        kd_run_destroy(r.run);
    }
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}
