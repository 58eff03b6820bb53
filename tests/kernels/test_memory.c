/*
 * What a run on a CUDA device says of memory: an estimate made without the device is what a run takes
 * there, a plan that does not fit and one that fits while an allocation fails are refused with what
 * would fit, and metrics tell what the device holds.
 */
#include "support/students.h"
#include "support/text_file.h"
#include "train/session.h"

#include <math.h>
#include <stdlib.h>

#if __has_include(<cudasim.h>)
#include <cudasim.h>

enum { TOKENS = 500, VOCABULARY = 80 };

static const char *write_tokens(void)
{
    static int64_t tokens[TOKENS];
    static const int64_t borders[] = { 0, 70, 71, 300, TOKENS };
    for (int64_t i = 0; i < TOKENS; i++) tokens[i] = i * i % VOCABULARY;
    return test_text_write("tokens", &(test_text){ .dtype = "U16",
                                                   .tokens = tokens,
                                                   .count = TOKENS,
                                                   .documents = borders,
                                                   .borders = KD_COUNT(borders) });
}

/* Of 16 x `micro` samples a step. */
static kd_run *make_run(const char *out, const char *dtype, const char *sequence, int micro)
{
    kd_run *made;
    char own[16], all[16];
    const char *const settings[][2] = { { "teacher.model", KD_GOLDEN "/step/teacher" },
                                        { "teacher.dtype", dtype },
                                        { "student.model", KD_GOLDEN "/step/student" },
                                        { "student.dtype", dtype },
                                        { "data.train", write_tokens() },
                                        { "data.sequence", sequence },
                                        { "loss.alpha", "0.6" },
                                        { "optim.lr", "1e-3" },
                                        { "batch.samples", all },
                                        { "batch.micro", own },
                                        { "run.steps", "3" },
                                        { "run.device", "cuda" },
                                        { "run.deterministic", "true" },
                                        { "run.out", out },
                                        { "run.checkpoint.every", "never" } };
    snprintf(own, sizeof own, "%d", micro);
    snprintf(all, sizeof all, "%d", 2 * micro);
    test_ok(kd_run_create(&made));
    for (int i = 0; i < KD_COUNT(settings); i++)
        test_ok(kd_run_set(made, settings[i][0], settings[i][1]));
    return made;
}

static void require_cuda(void)
{
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
}

static double bytes_taken(void)
{
    cudasim_counts c;
    cudasim_read(&c);
    return (double)c.bytes;
}

static void near(double got, double want, const char *dtype, const char *what)
{
    cr_assert(fabs(got - want) <= 0.01 * want, "%s: %s is %.3f MB, the session took %.3f MB", dtype,
              what, got / 1e6, want / 1e6);
}

/* ---- planned elsewhere, taken here ------------------------------------------------------------ */

/* What a build without CUDA's ops would plan. */
static double planned_without_kernels(kd_run *made)
{
    kd_session s = { .device = NULL };
    kd_device *device;
    test_ok(kd_device_open_meta(&device, "a100-80g"));
    device->ops = &kd_ops_meta;
    test_ok(kd_session_plan(&s, made, device, 0));
    const double bytes = (double)kd_session_bytes(&s);
    kd_session_close(&s);
    return bytes;
}

/* Of 32,768 rows.  An A100's products may take 8 MiB of workspace, which the emulator's do not: that is
 * of a run's size here, not there. */
Test(memory, is_estimated_without_the_device_as_a_run_takes_it)
{
    static const char *const dtypes[] = { "f32", "bf16" };
    require_cuda();
    cudasim_set("KD_SIM_CAPABILITY", "80");
    for (int i = 0; i < KD_COUNT(dtypes); i++) {
        kd_run *made = make_run("nowhere", dtypes[i], "64", 512);
        kd_estimate e, here;
        kd_session s;
        const double before = bytes_taken();
        test_ok(kd_run_estimate(&e, made, "a100-80g"));
        test_ok(kd_run_estimate(&here, made, "cuda"));
        cr_assert(bytes_taken() == before, "an estimate takes memory");
        test_ok(kd_session_open(&s, made));
        const double taken = bytes_taken() - before;
        near(here.peak_bytes, taken, dtypes[i], "the plan");
        near(e.peak_bytes - e.reserve_bytes, taken + (8 << 20), dtypes[i], "the estimate");
        near(planned_without_kernels(made), taken + (8 << 20), dtypes[i],
             "the estimate of a build without kernels");
        cr_assert_eq(s.device->held, s.device->most);
        near((double)s.device->held, taken, dtypes[i], "what the device counts");
        kd_session_close(&s);
        cr_assert(bytes_taken() == before, "%s: memory stays behind", dtypes[i]);
        kd_run_destroy(made);
    }
    test_text_remove();
}

/* ---- what does not fit ------------------------------------------------------------------------ */

static void refused(kd_status status, const char *log, const char *const *parts, int count)
{
    cr_assert(status == KD_ENOMEM && kd_status_exit_code(status) == 4, "%s: %s",
              kd_status_text(status), kd_last_error());
    for (int i = 0; i < count; i++)
        cr_assert(strstr(kd_last_error(), parts[i]), "no \"%s\" in: %s", parts[i], kd_last_error());
    cr_assert(strstr(log, "student: weights, gradients and moments") && strstr(log, "of that") &&
                  strstr(log, "head logits"),
              "no plan in: %s", log);
}

/* Of the memory, 92 % may be planned with (train/session.c): 4 samples just fit, 8 do not. */
Test(memory, that_a_plan_does_not_find_is_refused_with_what_would_fit)
{
    static const char *const parts[] = { "with batch.micro 8", "batch.micro: 4 fits" };
    kd_estimate fits;
    char memory[32];
    require_cuda();
    kd_run *made = make_run("nowhere", "f32", "10", 4);
    test_ok(kd_run_estimate(&fits, made, "cuda"));
    kd_run_destroy(made);
    made = make_run("nowhere", "f32", "10", 8);
    snprintf(memory, sizeof memory, "%.0f", fits.peak_bytes / 0.92 * 1.01);
    cudasim_set("KD_SIM_MEMORY", memory);
    const char *const log = test_log();
    refused(kd_run_validate(made), log, parts, KD_COUNT(parts));
    test_ok(kd_run_estimate(&fits, made, "cuda"));
    cr_assert(!fits.fits && fits.largest_micro == 4, "kd estimate says %lld",
              (long long)fits.largest_micro);
    kd_log_redirect(NULL, NULL);
    kd_run_destroy(made);
    test_text_remove();
}

/* Weights, moments, the stack; and later a launch and a graph that find no room. */
Test(memory, that_runs_out_although_the_plan_fits_is_refused_with_what_is_left)
{
    static const char *const failures[] = { "cudaMalloc:1", "cudaMalloc:5", "cudaMalloc:9",
                                            "cudaLaunchKernelEx:20:2", "cudaGraphLaunch:1:2" };
    require_cuda();
    for (int i = 0; i < KD_COUNT(failures); i++) {
        const char *const folder = test_folder();
        char call[32];
        snprintf(call, sizeof call, "%.*s", (int)strcspn(failures[i], ":"), failures[i]);
        const char *const parts[] = { i < 3 ? call : "out of memory", "17.2 GB are free now",
                                      "with batch.micro 4", "batch.micro: 2 fits" };
        kd_run *made = make_run(test_path(folder, "out"), "f32", "10", 4);
        const char *const log = test_log();
        cudasim_set("KD_SIM_FAIL", failures[i]);
        refused(kd_run_train(made), log, parts, KD_COUNT(parts));
        cudasim_set("KD_SIM_FAIL", "");
        kd_log_redirect(NULL, NULL);
        kd_run_destroy(made);
        test_ok(kd_dir_remove(folder));
    }
    test_text_remove();
}

/* Another process has taken what the plan found. */
Test(memory, that_another_takes_meanwhile_is_not_planned_with)
{
    static const char *const parts[] = { "no room; ", "with batch.micro 8", "batch.micro: 2 fits" };
    kd_estimate small;
    kd_session s;
    char memory[32];
    require_cuda();
    kd_run *made = make_run("nowhere", "f32", "10", 2);
    test_ok(kd_run_estimate(&small, made, "cuda"));
    kd_run_destroy(made);
    made = make_run("nowhere", "f32", "10", 8);
    test_ok(kd_session_open(&s, made));
    snprintf(memory, sizeof memory, "%.0f", small.peak_bytes / 0.92 * 1.01);
    cudasim_set("KD_SIM_MEMORY", memory);
    const char *const log = test_log();
    (void)kd_fail(KD_ENOMEM, "no room");
    refused(kd_session_short(&s), log, parts, KD_COUNT(parts));
    kd_log_redirect(NULL, NULL);
    kd_session_close(&s);
    kd_run_destroy(made);
    test_text_remove();
}

/* ---- what a run tells ------------------------------------------------------------------------- */

static double number_after(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtod(at + strlen(key), NULL) : NAN;
}

Test(memory, of_device_and_host_is_in_metrics_log_and_contract)
{
    const char *folder = test_folder(), *out = test_path(folder, "out");
    char *text;
    size_t bytes;
    cudasim_counts c;
    require_cuda();
    kd_run *made = make_run(out, "f32", "10", 4);
    const char *const log = test_log();
    cudasim_reset();
    cudasim_read(&c);
    const double before = (double)c.bytes;
    test_ok(kd_run_train(made));
    kd_run_destroy(made);
    cudasim_read(&c);
    cr_assert(strstr(log, "tok/s   device     host"), "%s", log);
    kd_log_redirect(NULL, NULL);
    test_ok(kd_file_read(&text, &bytes, test_path(out, "metrics.jsonl"), 1 << 20));
    const double held = number_after(text, "\"device_bytes\":");
    const double most = number_after(text, "\"device_peak_bytes\":");
    cr_assert(held > 0 && held == most && held == (double)c.most_bytes - before,
              "%.0f bytes held, %.0f at most, of %.0f", held, most, (double)c.most_bytes - before);
    cr_assert(number_after(text, "\"host_bytes\":") > 1e6, "%s", text);
    free(text);
    test_ok(kd_file_read(&text, &bytes, test_path(out, "checkpoint-000003/engine/state.json"),
                         1 << 20));
    cr_assert(strstr(text, ", cuda, cudasim") && strstr(text, ", CUDA 1") &&
                  strstr(text, ", cuBLASLt 1"),
              "no libraries in the contract: %s", text);
    free(text);
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}
#endif
