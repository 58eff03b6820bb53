#include "support/short_run.h"

#include "support/crash.h"
#include "support/text_file.h"

#include <dirent.h>
#include <errno.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- the run ---------------------------------------------------------------------------------- */

static const char *write_tokens(void)
{
    enum { TOKENS = 300 };
    static int64_t tokens[TOKENS];
    const int64_t borders[] = { 0, 90, 130, TOKENS };
    for (int i = 0; i < TOKENS; i++) tokens[i] = i * 7 % 80;
    return test_text_write("short", &(test_text){ .dtype = "U16",
                                                  .tokens = tokens,
                                                  .count = TOKENS,
                                                  .documents = borders,
                                                  .borders = KD_COUNT(borders) });
}

static kd_status train(const test_short_run *r)
{
    kd_run *made;
    kd_status status;
    const char *const settings[][2] = {
        { "teacher.model", r->teacher },
        { "student.model", r->student },
        { "data.train", r->train },
        { "data.sequence", "10" },
        { "loss.kl.weight", "1" },
        { "optim.lr", "1e-2" },
        { "batch.samples", "2" },
        { "run.steps", "3" },
        { "run.device", "cpu" },
        { "run.out", r->out },
        { "run.resume", r->resume ? r->resume : "auto" },
        { "run.checkpoint.every", "1 steps" },
        { "run.checkpoint.keep", "2" },
    };
    omp_set_num_threads(1);
    KD_TRY(kd_run_create(&made));
    for (int i = 0; i < KD_COUNT(settings); i++)
        KD_TRY_GOTO(kd_run_set(made, settings[i][0], settings[i][1]), status, done);
    status = kd_run_train(made);
done:
    kd_run_destroy(made);
    return status;
}

int test_short_run_job(const void *run) { return kd_status_exit_code(train(run)); }

/* Records of metrics.jsonl without their times. */
static char *read_metrics(const char *out)
{
    char *text;
    size_t bytes, kept = 0;
    test_ok(kd_file_read(&text, &bytes, test_path(out, "metrics.jsonl"), 1 << 20));
    for (char *line = text, *next; *line; line = next) {
        char *end = strchr(line, '\n'), *times = strstr(line, ",\"seconds\"");
        cr_assert(end && times && times < end, "%s: metrics.jsonl ends within a line", out);
        next = end + 1;
        memmove(text + kept, line, (size_t)(times - line));
        kept += (size_t)(times - line);
        text[kept++] = '\n';
    }
    text[kept] = '\0';
    return text;
}

void test_short_run_open(test_short_run *r, const char *golden)
{
    kd_hash hash;
    *r = (test_short_run){ .train = write_tokens() };
    snprintf(r->teacher, sizeof r->teacher, "%s/step/teacher", golden);
    snprintf(r->student, sizeof r->student, "%s/step/student", golden);
    snprintf(r->root, sizeof r->root, "%s", test_folder());
    snprintf(r->out, sizeof r->out, "%s/out", r->root);
    const test_child *child = test_in_child(test_short_run_job, r);
    cr_assert(child->status == 0, "%s", child->message);
    test_ok(kd_hash_file(&hash, test_path(r->out, "model.safetensors")));
    snprintf(r->model, sizeof r->model, "%s", hash.hex);
    r->metrics = read_metrics(r->out);
}

void test_short_run_close(test_short_run *r)
{
    free(r->metrics);
    test_ok(kd_dir_remove(r->root));
    test_text_remove();
}

void test_short_run_reset(const test_short_run *r) { test_ok(kd_dir_remove(r->out)); }

void test_short_run_unfinish(const test_short_run *r)
{
    test_short_run_reset(r);
    const test_child *child = test_in_child(test_short_run_job, r);
    cr_assert(child->status == 0, "%s", child->message);
    cr_assert(remove(test_path(r->out, "config.json")) == 0 &&
              remove(test_path(r->out, "model.safetensors")) == 0);
}

/* ---- starting again --------------------------------------------------------------------------- */

/* What a run that died may leave beside its checkpoints. */
static int leftovers(const char *out)
{
    DIR *dir = opendir(out);
    int count = 0;
    for (const struct dirent *e; dir && (e = readdir(dir));)
        count += strncmp(e->d_name, ".tmp-", 5) == 0 || strncmp(e->d_name, ".del-", 5) == 0 ||
                 strstr(e->d_name, ".tmp-");
    if (dir) closedir(dir);
    return count;
}

static void expect_ended(const test_short_run *r, const char *name)
{
    kd_hash hash;
    test_ok(kd_hash_file(&hash, test_path(r->out, "model.safetensors")));
    cr_assert(strcmp(hash.hex, r->model) == 0, "%s: another model", name);
    char *metrics = read_metrics(r->out);
    cr_assert(strcmp(metrics, r->metrics) == 0, "%s: other records:\n%s", name, metrics);
    free(metrics);
    cr_assert(leftovers(r->out) == 0, "%s: something was left", name);
    test_ok(kd_checkpoint_verify(test_path(r->out, "checkpoint-000003")));
    test_ok(kd_checkpoint_verify(test_path(r->out, "checkpoint-000002")));
    cr_assert(test_count(r->out, "checkpoint-") == 2, "%s: more checkpoints than two", name);
}

const test_child *test_short_run_ends(const test_short_run *r, const char *name)
{
    const int left = leftovers(r->out);
    /* Killed after its last call. */
    if (test_exists(r->out, "config.json") && left == 0) {
        expect_ended(r, name);
        return NULL;
    }
    const test_child *child = test_in_child(test_short_run_job, r);
    cr_assert(child->status == 0, "%s: exit %d: %s", name, child->status, child->message);
    cr_assert(left == 0 || strstr(child->log, "left by a run that was stopped; removed"),
              "%s: swept without a word: %s", name, child->log);
    expect_ended(r, name);
    return child;
}

/* ---- what happens to it ----------------------------------------------------------------------- */

static bool run_with(const test_short_run *r, const test_fault *f, int64_t at)
{
    char name[96];
    test_trace t = {
        .below = r->root, .harm = f->harm, .error = f->error, .at = at, .onwards = f->onwards
    };
    snprintf(name, sizeof name, "a run, %s at call %lld", f->name, (long long)at);
    test_short_run_reset(r);
    const test_child *child = test_traced(&t, test_short_run_job, r);
    if (f->harm == TEST_SHORT || f->error == EINTR || !t.hit)
        cr_assert(child->status == 0, "%s: exit %d: %s", name, child->status, child->message);
    if (f->harm == TEST_FAIL && child->status != 0)
        cr_assert(child->status == 4 && strstr(child->message, strerror(f->error)) &&
                      strstr(child->message, r->root),
                  "%s: exit %d: %s", name, child->status, child->message);
    (void)test_short_run_ends(r, name);
    return t.hit;
}

void test_short_run_fail(const test_short_run *r, const test_fault *f, int first, int stride)
{
    int64_t at = first;
    while (run_with(r, f, at)) at += stride;
    cr_assert(at > 100, "%s: only %lld calls were seen", f->name, (long long)at);
}

void test_short_run_cut(const test_short_run *r, int first, int stride)
{
    test_short_run_reset(r);
    test_disk *disk = test_disk_open(r->root);
    test_trace t = { .below = r->root, .seen = test_disk_see, .context = disk };
    int64_t states = 0;
    const test_child *child = test_traced(&t, test_short_run_job, r);
    cr_assert(child->status == 0, "%s", child->message);
    const int64_t calls = test_disk_calls(disk);
    for (int64_t n = first; n <= calls; n += stride) {
        test_cut cut = TEST_CUT_MADE;
        for (int variant = 0; cut != TEST_CUT_NONE; variant++) {
            char name[96];
            snprintf(name, sizeof name, "power cut after call %lld of %lld, variant %d",
                     (long long)n, (long long)calls, variant);
            cut = test_disk_cut(disk, n, variant);
            if (cut != TEST_CUT_MADE) continue;
            (void)test_short_run_ends(r, name);
            states++;
        }
    }
    fprintf(stderr, "%lld calls, %lld states of the disk\n", (long long)calls, (long long)states);
    test_disk_close(disk);
}
