/* Ranks as processes: mpirun -n N kd train trains as one process does, evaluates, resumes and stops as
 * one; a rank that dies or hangs ends the others; what the environment says of ranks. */
#include "cli/small_run.h"
#include "support/mpirun.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/wait.h>

#ifndef KD_MPIRUN
#define KD_MPIRUN ""
#endif

static result mpirun(int ranks, const char *fmt, ...) KD_PRINTF(2, 3);
static result mpirun(int ranks, const char *fmt, ...)
{
    char line[900], command[1200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    snprintf(command, sizeof command, "%s -n %d %s %s </dev/null", KD_MPIRUN, ranks, KD_COMMAND,
             line);
    return run_line(command);
}

/* ---- the same run ----------------------------------------------------------------------------- */

/* |a - b| / |a|, of each tensor. */
static void expect_near_weights(const char *a, const char *b, double most)
{
    kd_st_file *file;
    cr_assert_eq(kd_st_open(&file, a), KD_OK, "%s", kd_last_error());
    for (int64_t i = 0; i < file->count; i++) {
        const char *name = file->entries[i].name;
        int64_t n, m;
        double difference = 0.0, norm = 0.0;
        float *x = read_tensor(&n, a, name, KD_F32), *y = read_tensor(&m, b, name, KD_F32);
        cr_assert(n == m, "%s of %s", name, b);
        for (int64_t k = 0; k < n; k++) {
            difference += ((double)x[k] - y[k]) * ((double)x[k] - y[k]);
            norm += (double)x[k] * x[k];
        }
        cr_expect(difference <= most * most * norm, "%s, %s: %.3g of its norm", b, name,
                  sqrt(difference / norm));
        free(x);
        free(y);
    }
    kd_st_close(file);
}

/* Every record, in its numbers but for time. */
static void expect_near_metrics(const char *a, const char *b, double most)
{
    static const char *const keys[] = {
        "step", "loss", "ce", "kl", "lr", "same_top", "valid", "nll"
    };
    static char *text[2];
    char *at[2] = { slurp(&text[0], a), slurp(&text[1], b) };
    while (*at[0] || *at[1]) {
        json_t *record[2];
        for (int i = 0; i < 2; i++) {
            const size_t length = strcspn(at[i], "\n");
            cr_assert_eq(kd_json_parse(&record[i], b, at[i], length), KD_OK, "%s", kd_last_error());
            at[i] += length + 1;
        }
        cr_expect_eq(json_object_size(record[0]), json_object_size(record[1]));
        for (int k = 0; k < KD_COUNT(keys); k++) {
            const double x = json_number_value(json_object_get(record[0], keys[k]));
            const double y = json_number_value(json_object_get(record[1], keys[k]));
            cr_expect(fabs(x - y) <= most * fabs(x), "%s, step %d, %s: %.9g, expected %.9g", b,
                      (int)json_integer_value(json_object_get(record[0], "step")), keys[k], y, x);
        }
        json_decref(record[0]);
        json_decref(record[1]);
    }
}

/* With micro-batches of one size AdamW, which makes a step of every rounding, stays near too. */
Test(ranks, train_as_one_process_does, .init = setup, .fini = teardown)
{
    static const struct {
        int ranks;
        const char *options;
    } cases[] = {
        { 2, "--batch.micro=4" },
        { 4, "--batch.micro=2 --data.pack=none" },
        { 2, "--batch.micro=2 --optim.type=sgd --optim.lr=0.1 --optim.momentum=0.9" },
    };
    test_require_mpi();
    prepare_run();
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const char *options = cases[i].options;
        char one[32], all[32], weights[2][64], metrics[2][64];
        snprintf(one, sizeof one, "one%d", i);
        snprintf(all, sizeof all, "all%d", i);
        result r = run("train run.yaml --run.out=%s '--eval.every=5 steps' %s", one, options);
        expect_code(r, 0, options);
        r = mpirun(cases[i].ranks, "train run.yaml --run.out=%s '--eval.every=5 steps' %s", all,
                   options);
        expect_code(r, 0, options);
        cr_expect(strstr(r.err, "of Open MPI, joined by mpi"), "%s", r.err);
        cr_expect(!*r.out, "%s", r.out);
        const char *once = strstr(r.err, "finished  ");
        cr_expect(once && !strstr(once + 1, "finished  "), "said by more than one: %s", r.err);
        for (int k = 0; k < 2; k++) {
            snprintf(weights[k], sizeof weights[k], "%s/model.safetensors", k ? all : one);
            snprintf(metrics[k], sizeof metrics[k], "%s/metrics.jsonl", k ? all : one);
        }
        expect_near_weights(weights[0], weights[1], 1e-6);
        expect_near_metrics(metrics[0], metrics[1], 1e-5);
    }
}

static void expect_same_file(const char *a, const char *b)
{
    char *x = NULL, *y = NULL;
    size_t n, m;
    cr_assert_eq(kd_file_read(&x, &n, a, 1 << 24), KD_OK, "%s", kd_last_error());
    cr_assert_eq(kd_file_read(&y, &m, b, 1 << 24), KD_OK, "%s", kd_last_error());
    cr_expect(n == m && memcmp(x, y, n) == 0, "%s and %s differ", a, b);
    free(x);
    free(y);
}

Test(ranks, resume_with_the_same_bits, .init = setup, .fini = teardown)
{
    const char *line = "train run.yaml '--run.checkpoint.every=5 steps' --run.checkpoint.keep=9 "
                       "'--eval.every=4 steps'";
    test_require_mpi();
    prepare_run();
    expect_code(mpirun(2, "%s --run.out=straight", line), 0, "train");
    expect_code(mpirun(2, "%s", line), 0, "train");
    (void)run_line("cd out && rm -r *.json model.safetensors checkpoint-00001*");
    const result r = mpirun(2, "%s", line);
    expect_code(r, 0, "train again");
    cr_expect(strstr(r.err, "goes on with step 5"), "%s", r.err);
    expect_same_file("straight/model.safetensors", "out/model.safetensors");
    expect_same_file("straight/checkpoint-000012/engine/optimizer.safetensors",
                     "out/checkpoint-000012/engine/optimizer.safetensors");
    expect_near_metrics("straight/metrics.jsonl", "out/metrics.jsonl", 0.0);
}

/* ---- signals ---------------------------------------------------------------------------------- */

/* Writes what it is and, in the end, how it ended; kd itself is the process of the number. */
static const char rank_script[] =
    "r=$OMPI_COMM_WORLD_RANK\n"
    "sh -c 'echo $$ > pid.tmp.'$r'; mv pid.tmp.'$r' pid.'$r'; exec \"$@\"' sh \"$@\" 2> err.$r\n"
    "echo $? > code.$r\n";

/* Until a checkpoint is there: every rank is at work. */
static pid_t start_ranks(int ranks, const char *setting)
{
    char count[16];
    write_text("rank.sh", rank_script);
    snprintf(count, sizeof count, "%d", ranks);
    const pid_t child = fork();
    if (child == 0) {
        const int log = open("mpirun.txt", O_WRONLY | O_CREAT | O_TRUNC, 0666);
        (void)dup2(log, STDERR_FILENO);
        (void)dup2(log, STDOUT_FILENO);
        (void)dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
        execl(KD_MPIRUN, "mpirun", "-n", count, "sh", "rank.sh", KD_COMMAND, "train", "run.yaml",
              "--run.steps=100000000", "--run.checkpoint.every=20 steps", "--dist.timeout=3",
              setting, (char *)NULL);
        _exit(127);
    }
    cr_assert(child > 0);
    for (int i = 0; i < 1200 && !kd_dir_exists("out/checkpoint-000020"); i++) usleep(50000);
    cr_assert(kd_dir_exists("out/checkpoint-000020"), "no checkpoint within 60 s");
    return child;
}

static int number_in(const char *name, int rank)
{
    static char *text;
    char path[32];
    snprintf(path, sizeof path, "%s.%d", name, rank);
    return kd_file_exists(path) ? atoi(slurp(&text, path)) : -1;
}

/* What it said, until the next call. */
static const char *log_of(int rank)
{
    static char *log;
    char path[32];
    snprintf(path, sizeof path, "err.%d", rank);
    return slurp(&log, path);
}

/* Of what is left any checkpoint is whole; a staging folder may lie beside it. */
static void expect_good_checkpoint(void)
{
    const result r = run("inspect out/$(ls out | grep checkpoint- | tail -n 1)");
    expect_code(r, 0, "inspect");
    cr_expect(strstr(r.out, "every file is as it was written"), "%s", r.out);
}

static void stop_ranks(const char *how)
{
    enum { RANKS = 2 };
    int status;
    const pid_t child = start_ranks(RANKS, how);
    cr_assert(kill(number_in("pid", 1), SIGTERM) == 0);
    cr_assert(waitpid(child, &status, 0) == child);
    for (int r = 0; r < RANKS; r++) {
        char text[64];
        snprintf(text, sizeof text, "kd: rank %d of %d: stopped at step ", r, RANKS);
        cr_expect(number_in("code", r) == 75 && strstr(log_of(r), text), "%s, rank %d: exit %d, %s",
                  how, r, number_in("code", r), log_of(r));
    }
    expect_good_checkpoint();
    (void)run_line("rm -r out pid.* code.* err.*");
}

/* Within a step of many micro-batches, and a run that mostly evaluates. */
Test(ranks, stop_together_when_one_is_asked_to, .init = setup, .fini = teardown)
{
    test_require_mpi();
    prepare_run();
    stop_ranks("--batch.micro=1");
    stop_ranks("--eval.every=1 steps");
}

/* Within the timeout and 5 s, with exit 6, naming step, collective and the rank that is gone.  Beside a
 * checkpoint the timeout of 3 s has what writing it may take more. */
static void lose_a_rank(int victim, int signal)
{
    enum { RANKS = 3 };
    char missing[16];
    int status;
    const pid_t child = start_ranks(RANKS, "--batch.samples=6");
    const double start = kd_clock();
    cr_assert(kill(number_in("pid", victim), signal) == 0);
    for (int r = 0; r < RANKS; r++)
        while (r != victim && number_in("code", r) < 0 && kd_clock() - start < 60) usleep(20000);
    const double spent = kd_clock() - start;
    (void)kill(number_in("pid", victim), SIGKILL);
    cr_assert(waitpid(child, &status, 0) == child);
    cr_expect(spent < 3 + 5, "rank %d, signal %d: the others left after %g s", victim, signal,
              spent);
    snprintf(missing, sizeof missing, "rank %d", victim);
    for (int r = 0; r < RANKS; r++) {
        if (r == victim) continue;
        cr_expect(number_in("code", r) == 6, "rank %d: exit %d", r, number_in("code", r));
        const char *log = log_of(r);
        cr_expect(strstr(log, missing) && strstr(log, "did not answer within 3") &&
                      strstr(log, ": step ") && strstr(log, ": all_reduce"),
                  "rank %d, signal %d to rank %d: %s", r, signal, victim, log);
    }
    expect_good_checkpoint();
    (void)run_line("rm -r out pid.* code.* err.*");
}

Test(ranks, leave_when_one_dies_or_hangs, .init = setup, .fini = teardown)
{
    test_require_mpi();
    prepare_run();
    lose_a_rank(1, SIGKILL);
    lose_a_rank(0, SIGSTOP);
}

/* A weight that grows beyond all floats: all find the same step, and say the same of it. */
Test(ranks, stop_at_the_same_number_that_is_not_finite, .init = setup, .fini = teardown)
{
    enum { RANKS = 2 };
    char line[600];
    test_require_mpi();
    prepare_run();
    write_text("rank.sh", rank_script);
    snprintf(line, sizeof line,
             "%s -n %d sh rank.sh %s train run.yaml '--run.checkpoint.every=1 steps' "
             "'--loss.kl.weight={from: 1, to: 3e38, steps: 3}' </dev/null",
             KD_MPIRUN, (int)RANKS, KD_COMMAND);
    (void)run_line(line);
    for (int r = 0; r < RANKS; r++) {
        const char *log = log_of(r);
        cr_expect(number_in("code", r) == 5, "rank %d: exit %d: %s", r, number_in("code", r), log);
        cr_expect(strstr(log, "of 2: step 1: ") && strstr(log, "(rank 0"), "rank %d: %s", r, log);
        cr_expect(strstr(log, "; nothing was updated; state before it: checkpoint-000001"),
                  "rank %d: %s", r, log);
    }
    cr_expect(!kd_dir_exists("out/checkpoint-000002"));
}

/* ---- what is refused -------------------------------------------------------------------------- */

Test(ranks, that_do_not_agree_are_refused, .init = setup, .fini = teardown)
{
    char line[1200];
    test_require_mpi();
    prepare_run();
    snprintf(line, sizeof line, "%s -n 1 %s train run.yaml : -n 1 %s train run.yaml --optim.lr=1",
             KD_MPIRUN, KD_COMMAND, KD_COMMAND);
    result r = run_line(line);
    cr_expect(strstr(r.err, "the ranks do not have the same run file"), "%s", r.err);
    cr_expect(!kd_dir_exists("out"));
    /* The failure of one is the others' reason. */
    snprintf(line, sizeof line,
             "%s -n 1 %s train run.yaml : -n 1 %s train run.yaml --teacher.model=nowhere",
             KD_MPIRUN, KD_COMMAND, KD_COMMAND);
    r = run_line(line);
    cr_expect(strstr(r.err, "kd: rank 1 of 2: nowhere/config.json: cannot open") &&
                  strstr(r.err, "rank 1 has stopped: nowhere/config.json: cannot open"),
              "%s", r.err);
    r = mpirun(3, "train run.yaml");
    cr_expect(strstr(r.err, "batch: 8 samples do not divide into 3 ranks"), "%s", r.err);
    r = mpirun(2, "train run.yaml --run.device=cuda:1");
    cr_expect(strstr(r.err, "run.device: found \"cuda:1\" and 2 ranks"), "%s", r.err);
}

Test(ranks, of_the_environment_are_understood, .init = setup, .fini = teardown)
{
    static const char conflict[] = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 PMI_RANK=1 PMI_SIZE=2";
    static const struct {
        const char *environment, *verb, *said;
        int code;
    } cases[] = {
        { "", "env", "ranks      one process\n", 0 },
        { "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", "env",
          "ranks      rank 1 of 2 by torchrun, 1 on its machine; would be joined by ", 0 },
        { "PMI_RANK=0 PMI_SIZE=2 CUDA_VISIBLE_DEVICES=", "env",
          "-1 on its machine; would be joined by mpi", 0 },
        { "RANK=1", "env", "ranks      refused: WORLD_SIZE is not set", 0 },
        { conflict, "env", "launcher   PMI: PMI_RANK=1 PMI_SIZE=2\n", 0 },
        { conflict, "train run.yaml", "torchrun and PMI contradict each other", 2 },
        { "RANK=1", "train run.yaml", "WORLD_SIZE is not set", 2 },
        { "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", "train run.yaml --run.device=cpu",
          "2 ranks of torchrun on the CPU: MPI joins those", 2 },
        { "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0", "train run.yaml", "finished  out", 0 },
    };
    prepare_run();
    for (int i = 0; i < KD_COUNT(cases); i++) {
        char line[512];
        snprintf(line, sizeof line, "env %s %s %s", cases[i].environment, KD_COMMAND,
                 cases[i].verb);
        const result r = run_line(line);
        expect_code(r, cases[i].code, line);
        cr_expect(strstr(cases[i].verb[0] == 'e' ? r.out : r.err, cases[i].said), "%s: %s%s", line,
                  r.out, r.err);
    }
    const result r = run_line("env OMPI_COMM_WORLD_SIZE=2 " KD_COMMAND " env --json");
    json_t *json = answer(&r, "env --json");
    const json_t *ranks = json_object_get(json, "ranks");
    cr_expect(json_is_string(json_object_get(ranks, "refused")) &&
              json_is_string(json_object_get(ranks, "mpi")) &&
              json_is_string(
                  json_object_get(json_object_get(ranks, "variables"), "OMPI_COMM_WORLD_SIZE")));
    json_decref(json);
}
