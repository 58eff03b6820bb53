/* The worker, the stop flag, and text for people. */
#include "base/base.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct task {
    int calls;
    int fail_at;
    bool slow;
} task;

static kd_status run(void *context)
{
    task *t = context;
    if (t->slow) nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
    t->calls++; /* unguarded on purpose: start and wait must order it */
    if (t->calls == t->fail_at) return kd_fail(KD_ENONFINITE, "call %d failed", t->calls);
    return KD_OK;
}

Test(worker, hands_over_status_and_message, .timeout = 20)
{
    kd_worker *worker;
    task t = { .fail_at = 3, .slow = true };
    cr_assert_eq(kd_worker_create(&worker, run, &t), KD_OK);
    cr_expect_eq(kd_worker_wait(worker), KD_OK, "nothing was started");
    for (int i = 1; i <= 200; i++) {
        if (i == 10) t.slow = false;
        (void)kd_fail(KD_EINVAL, "mine");
        kd_worker_start(worker);
        const kd_status status = kd_worker_wait(worker);
        cr_assert_eq(t.calls, i);
        cr_expect_eq(status, i == 3 ? KD_ENONFINITE : KD_OK, "call %d", i);
        cr_expect_str_eq(kd_last_error(), i == 3 ? "call 3 failed" : "mine", "call %d", i);
        cr_expect_eq(kd_worker_wait(worker), KD_OK, "a status is handed over once");
    }
    kd_worker_destroy(worker);

    /* Destroying waits for the running job. */
    t = (task){ .slow = true };
    cr_assert_eq(kd_worker_create(&worker, run, &t), KD_OK);
    kd_worker_start(worker);
    kd_worker_destroy(worker);
    cr_expect_eq(t.calls, 1);
    cr_assert_eq(kd_worker_create(&worker, run, &t), KD_OK);
    kd_worker_destroy(worker);
    kd_worker_destroy(NULL);
}

Test(stop, signals_set_the_flag_and_the_second_int_ends)
{
    const int numbers[] = { SIGTERM, SIGUSR1, SIGINT };
    for (int i = 0; i < KD_COUNT(numbers); i++) {
        kd_stop_install();
        cr_expect_not(kd_stop_requested(), "signal %d", numbers[i]);
        for (int again = 0; again < (numbers[i] == SIGINT ? 1 : 3); again++) raise(numbers[i]);
        cr_expect(kd_stop_requested(), "signal %d", numbers[i]);
        cr_expect_eq(kd_stop_read("x"), KD_OK, "reads go on where nobody said otherwise");
        kd_stop_reads(true);
        cr_expect_eq(kd_stop_read("x"), KD_ESTOPPED, "signal %d", numbers[i]);
        cr_expect_str_eq(kd_last_error(), "x: asked to stop");
        kd_stop_reads(false);
        kd_stop_reset();
        cr_expect_not(kd_stop_requested(), "signal %d", numbers[i]);
    }
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        kd_stop_install();
        raise(SIGTERM);
        raise(SIGINT);
        if (!kd_stop_requested()) _exit(1);
        raise(SIGINT);
        _exit(2);
    }
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT, "status %x", (unsigned)status);
}

Test(text, counts_bytes_and_durations)
{
    char text[64];
    const struct {
        int64_t count;
        const char *want;
    } counts[] = {
        { 0, "0" },
        { 999, "999" },
        { 1000, "1,000" },
        { -1000, "-1,000" },
        { -999, "-999" },
        { 1234567, "1,234,567" },
        { -123456, "-123,456" },
        { INT64_MAX, "9,223,372,036,854,775,807" },
        { INT64_MIN, "-9,223,372,036,854,775,808" },
    };
    for (int i = 0; i < KD_COUNT(counts); i++) {
        cr_expect_str_eq(kd_format_count(text, sizeof text, counts[i].count), counts[i].want, "%s",
                         text);
    }
    const struct {
        double value;
        const char *want;
    } bytes[] = {
        { 0, "0 B" },           { 999, "999 B" },      { 999.7, "1.0 kB" },
        { 1000, "1.0 kB" },     { 26.8e9, "26.8 GB" }, { 999.94e6, "999.9 MB" },
        { 999.96e6, "1.0 GB" }, { -1.5e6, "-1.5 MB" }, { 7.2e12, "7.2 TB" },
        { 1e22, "10000.0 EB" }, { NAN, "-" },          { INFINITY, "-" },
    };
    for (int i = 0; i < KD_COUNT(bytes); i++) {
        cr_expect_str_eq(kd_format_bytes(text, sizeof text, bytes[i].value), bytes[i].want, "%s",
                         text);
    }
    const struct {
        double value;
        const char *want;
    } durations[] = {
        { 0, "0:00" },       { 0.6, "0:01" },       { 59.6, "1:00" },      { 579, "9:39" },
        { 3599.4, "59:59" }, { 3599.6, "1:00:00" }, { 40052, "11:07:32" }, { 360000, "100:00:00" },
        { -1, "-" },         { NAN, "-" },          { INFINITY, "-" },
    };
    for (int i = 0; i < KD_COUNT(durations); i++) {
        cr_expect_str_eq(kd_format_duration(text, sizeof text, durations[i].value),
                         durations[i].want, "%s", text);
    }
    char small[4] = "xxx";
    cr_expect_str_eq(kd_format_count(small, sizeof small, 1234567), "1,2", "cut, not overrun");
}

Test(text, nearest_word)
{
    const char *const names[] = {
        "temperature", "weight", "lr", "kl", "warmup", "t_squared", NULL
    };
    const struct {
        const char *word, *want;
    } rows[] = {
        { "temprature", "temperature" },
        { "tempereature", "temperature" },
        { "wieght", "weight" },
        { "lr", "lr" },
        { "rl", "lr" },
        { "warm", "warmup" },
        { "t-squared", "t_squared" },
        { "qqqqqq", NULL },
        { "xy", NULL },
        { "", NULL },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        const char *got = kd_nearest(rows[i].word, names);
        cr_expect_eq(got == NULL, rows[i].want == NULL, "%s: %s", rows[i].word, got ? got : "none");
        if (got && rows[i].want) cr_expect_str_eq(got, rows[i].want, "%s", rows[i].word);
    }
    char longest[200];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    const char *const long_names[] = { longest, "aaaaaaaa", NULL };
    cr_expect_eq(kd_nearest(longest, long_names), NULL);
    cr_expect_str_eq(kd_nearest("aaaaaaa", long_names), "aaaaaaaa");
}

Test(clock, time_and_memory_move_forward)
{
    const double start = kd_clock();
    nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
    const double passed = kd_clock() - start;
    cr_expect(passed >= 0.02 && passed < 10, "%g s", passed);

    enum { BYTES = 64 << 20 };
    const size_t before = kd_resident_bytes();
    cr_assert(before > 1 << 20, "%zu", before);
    char *block = malloc(BYTES);
    memset(block, 1, BYTES);
    cr_expect(block[BYTES - 1] == 1);
    const size_t during = kd_resident_bytes();
    cr_expect(during >= before + BYTES / 10 * 9, "%zu to %zu", before, during);
    free(block);
    cr_expect(kd_resident_peak_bytes() >= before + BYTES / 10 * 9);
}
