#include "support/scene.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>

/* ---- two states ------------------------------------------------------------------------------- */

static const test_run_options options = { .dtype = KD_BF16, .moments = 2, .count = 2 };

void test_scene_open(test_scene *s, int64_t before, int64_t after)
{
    s->no_exchange = false;
    test_log();
    snprintf(s->out, sizeof s->out, "%s", test_folder());
    test_run_open(&s->loaded, options);
    for (int i = 0; i < 2; i++) {
        test_run_open(&s->runs[i], options);
        test_run_fill(&s->runs[i], 1 + (uint64_t)i, i ? after : before);
        s->bits[i] = test_run_copy(&s->runs[i]);
    }
    s->runs[1].checkpoint.progress.tokens = 5;
}

void test_scene_close(test_scene *s)
{
    test_ok(kd_dir_remove(s->out));
    test_run_close(&s->loaded);
    for (int i = 0; i < 2; i++) {
        free(s->bits[i]);
        test_run_close(&s->runs[i]);
    }
}

void test_scene_reset(test_scene *s)
{
    test_ok(kd_dir_remove(s->out));
    test_ok(kd_checkpoint_save(NULL, NULL, s->out, &s->runs[0].checkpoint));
}

int test_scene_found(test_scene *s, const char *name)
{
    kd_progress progress;
    const char *dir;
    test_ok(kd_output_sweep(s->out));
    test_ok(kd_checkpoint_latest(&dir, s->loaded.arena, s->out));
    cr_assert(dir != NULL, "%s: no good checkpoint is left", name);
    cr_assert(test_count(s->out, ".") == 0, "%s: something was left and not swept", name);
    test_run_spoil(&s->loaded);
    test_ok(kd_checkpoint_load(&progress, dir, &s->loaded.checkpoint));
    const int64_t tokens = s->runs[1].checkpoint.progress.tokens;
    const int state = progress.tokens == tokens;
    cr_assert(progress.step == s->runs[state].checkpoint.progress.step &&
                  test_run_equals(&s->loaded, s->bits[state]),
              "%s: state %d came back with other bits", name, state);
    return state;
}

int test_scene_save(const void *scene)
{
    const test_scene *s = scene;
    return (int)kd_checkpoint_save(NULL, NULL, s->out, &s->runs[1].checkpoint);
}

int test_scene_rotate(const void *scene)
{
    const test_scene *s = scene;
    return (int)kd_checkpoint_rotate(s->out, 1, 1);
}

/* ---- faults ----------------------------------------------------------------------------------- */

const test_fault test_faults[TEST_FAULTS] = {
    { "killed", TEST_KILL, 0, false, 0 },
    { "full disk", TEST_FAIL, ENOSPC, false, 0 },
    { "over quota, and it stays so", TEST_FAIL, EDQUOT, true, 0 },
    { "failing disk", TEST_FAIL, EIO, false, 0 },
    { "dead disk", TEST_FAIL, EIO, true, 0 },
    { "interrupted", TEST_FAIL, EINTR, false, 0 },
    { "half", TEST_SHORT, 0, false, 0 },
    { "halves", TEST_SHORT, 0, true, 0 },
};

/* A save that goes on after one of these failed has lied. */
static bool is_vital(const test_call *c)
{
#if defined(__x86_64__)
    /* A close may say what a delayed write could not store. */
    const bool closes = c->number == SYS_close && kd_file_is_staging(c->paths[0]);
    return closes || c->number == SYS_pwrite64 || c->number == SYS_fsync || c->number == SYS_rename;
#else
    return (void)c, false;
#endif
}

/* A rename that failed is undone at once; the next start has nothing to put back. */
static void expect_in_place(const test_scene *s, const test_call *c, const char *name)
{
#if defined(__x86_64__)
    char folder[64];
    snprintf(folder, sizeof folder, KD_CHECKPOINT_NAME,
             (long long)s->runs[0].checkpoint.progress.step);
    cr_assert(c->number != SYS_rename || test_exists(s->out, folder), "%s: %s is not in its place",
              name, folder);
#else
    (void)s, (void)c, (void)name;
#endif
}

/* Why, and of which file: all failures of a call say both. */
static void expect_message(const test_child *child, const test_trace *t, const char *name)
{
    cr_assert(child->status == KD_EIO, "%s: status %d, expected that of exit code 4: %s", name,
              child->status, child->message);
    cr_assert(strstr(child->message, strerror(t->error)) && strstr(child->message, t->below),
              "%s: \"%s\" does not say why and where", name, child->message);
    cr_assert(!is_vital(&t->victim) ||
                  (strstr(child->message, "step ") && strstr(child->message, " needed, ") &&
                   strstr(child->message, " free)")),
              "%s: \"%s\" does not say what the disk lacks", name, child->message);
}

/* Returns whether the save made more than `at` calls. */
static bool save_with(test_scene *s, const test_fault *f, int64_t at)
{
    char name[96];
    test_trace t = { .below = s->out,
                     .harm = f->harm,
                     .error = f->error,
                     .only = f->only,
                     .at = at,
                     .onwards = f->onwards,
                     .no_exchange = s->no_exchange };
    snprintf(name, sizeof name, "%s at call %lld", f->name, (long long)at);
    const test_child *child = test_traced(&t, test_scene_save, s);
    const bool saved = child->status == KD_OK, endured = f->error == EINTR || f->harm == TEST_SHORT;
    const int left = test_count(s->out, ".tmp-");
    if (!saved && f->harm != TEST_KILL) expect_message(child, &t, name);
    if (t.hit && f->harm == TEST_FAIL && !f->onwards) expect_in_place(s, &t.victim, name);
    const int state = test_scene_found(s, name);
    cr_assert(!saved || state == 1, "%s: said to be saved, and is not", name);
    cr_assert(!saved || !t.hit || endured || !is_vital(&t.victim),
              "%s: call %ld on %s failed unnoticed", name, t.victim.number, t.victim.paths[0]);
    cr_assert(saved || (t.hit && !endured), "%s: status %d: %s", name, child->status,
              child->message);
    if (f->harm == TEST_FAIL && !f->onwards && !saved)
        cr_assert(left == 0, "%s: a failed save left its staging", name);
    if (state == 1) test_scene_reset(s); /* else the sweep has left what reset would make */
    return t.hit;
}

void test_scene_fail(test_scene *s, const test_fault *f, int stride)
{
    int64_t at = 0;
    test_scene_reset(s);
    while (save_with(s, f, at)) at += stride;
    /* A save that makes no calls would pass all of the above. */
    cr_assert(at > (f->only ? 0 : 20), "%s: only %lld calls were seen", f->name, (long long)at);
}
