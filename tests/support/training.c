/* training.c - what every run of training.h is given, and how two are compared. */
#include "support/training.h"

#include "support/text_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

kd_run *test_training_run(const test_training *c, const char *out)
{
    kd_run *made;
    const char *const settings[][2] = {
        { "teacher.model", KD_GOLDEN "/step/teacher" },
        { "teacher.dtype", c->dtype },
        { "student.model", KD_GOLDEN "/step/student" },
        { "student.dtype", c->dtype },
        { "data.train", c->train },
        { "data.valid", c->valid },
        { "data.sequence", "10" },
        { "loss.ce.weight", "0.4" },
        { "loss.kl", "{weight: {from: 0.1, to: 0.6, steps: 7}, temperature: 2}" },
        { "optim.lr", "1e-2" },
        { "optim.warmup", "3 steps" },
        { "batch.samples", "4" },
        { "batch.micro", "2" },
        { "run.steps", "12" },
        { "run.device", "cpu" },
        { "run.out", test_path(c->folder, out) },
        { "run.checkpoint.every", "1 steps" },
        { "run.checkpoint.keep", "20" },
        { "eval.every", "3 steps" },
    };
    test_ok(kd_run_create(&made));
    for (int i = 0; i < KD_COUNT(settings); i++)
        test_ok(kd_run_set(made, settings[i][0], settings[i][1]));
    for (int i = 0; i < c->setting_count; i++)
        test_ok(kd_run_set(made, c->settings[i][0], c->settings[i][1]));
    return made;
}

kd_status test_train(const test_training *c, const char *out)
{
    kd_run *made = test_training_run(c, out);
    const kd_status status = kd_run_train(made);
    kd_run_destroy(made);
    return status;
}

void test_died(const char *out, int from, int to)
{
    for (int step = from; step <= to; step++) {
        char name[64];
        snprintf(name, sizeof name, "checkpoint-%06d", step);
        test_ok(kd_dir_remove(test_path(out, name)));
    }
    cr_assert(unlink(test_path(out, "config.json")) == 0);
}

char *test_metrics(const char *out, bool evaluations)
{
    char *text;
    size_t bytes, kept = 0;
    test_ok(kd_file_read(&text, &bytes, test_path(out, "metrics.jsonl"), 1 << 20));
    for (char *line = text, *next; *line; line = next) {
        char *end = strchr(line, '\n'), *times = strstr(line, ",\"seconds\"");
        cr_assert(end != NULL, "%s: metrics.jsonl ends within a line", out);
        next = end + 1;
        const bool valid = strncmp(strchr(line, ','), ",\"model\":\"student\",\"split\"", 26) == 0;
        if (valid && !evaluations) continue;
        const size_t length = (size_t)((times && times < end ? times : end) - line);
        memmove(text + kept, line, length);
        text[kept + length] = '\n';
        kept += length + 1;
    }
    text[kept] = '\0';
    return text;
}

void test_same_file(const char *a, const char *b, const char *name)
{
    kd_hash x, y;
    test_ok(kd_hash_file(&x, test_path(a, name)));
    test_ok(kd_hash_file(&y, test_path(b, name)));
    cr_assert(strcmp(x.hex, y.hex) == 0, "%s and %s: other bytes in %s", a, b, name);
}

void test_same_checkpoint(const char *a, const char *b, int64_t step)
{
    char name[64], left[512], right[512];
    snprintf(name, sizeof name, "checkpoint-%06lld", (long long)step);
    snprintf(left, sizeof left, "%s", test_path(a, name));
    snprintf(right, sizeof right, "%s", test_path(b, name));
    test_same_file(left, right, "model.safetensors");
    test_same_file(left, right, "engine/optimizer.safetensors");
}

void test_same_text(const char *got, const char *want, const char *what)
{
    size_t at = 0;
    while (got[at] && got[at] == want[at]) at++;
    cr_assert(got[at] == want[at], "%s: from byte %zu \"%.60s\", expected \"%.60s\"", what, at,
              got + at, want + at);
}

void test_training_open(test_training *c, const char *dtype)
{
    *c = (test_training){ .dtype = dtype, .folder = test_folder() };
    c->train = test_text_random("train", TEST_TRAINING_TOKENS, 89, true);
    c->valid = test_text_random("valid", TEST_TRAINING_TOKENS, 80, true);
    (void)test_log();
}

void test_training_close(test_training *c)
{
    kd_log_redirect(NULL, NULL);
    test_ok(kd_dir_remove(c->folder));
    test_text_remove();
}
