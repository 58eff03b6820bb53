/*
 * Power cuts in a save and a rotation: every state that a disk may be in after any of their calls, by
 * what was fsynced until then (support/crash.h).  In each of them the old checkpoint or the new one
 * is found and comes back bit for bit; the new one for certain once the save has said so.
 */
#include "support/crash.h"
#include "support/scene.h"

#include <stdio.h>

typedef void (*check)(test_scene *scene, const char *name, bool done);

/* Records `job` on `root` and gives `judge` each state. */
static void cut_everywhere(test_scene *s, const char *root, test_job job, check judge)
{
    test_disk *disk = test_disk_open(root);
    test_trace t = {
        .below = root, .seen = test_disk_see, .context = disk, .no_exchange = s->no_exchange
    };
    int64_t states = 0;
    const test_child *child = test_traced(&t, job, s);
    cr_assert(child->status == KD_OK, "%s", child->message);
    const int64_t calls = test_disk_calls(disk);
    for (int64_t n = 0; n <= calls; n++) {
        test_cut cut = TEST_CUT_MADE;
        for (int variant = 0; cut != TEST_CUT_NONE; variant++) {
            char name[96];
            cut = test_disk_cut(disk, n, variant);
            if (cut != TEST_CUT_MADE) continue;
            snprintf(name, sizeof name, "power cut after call %lld of %lld, variant %d",
                     (long long)n, (long long)calls, variant);
            judge(s, name, n == calls);
            states++;
        }
    }
    fprintf(stderr, "%lld calls, %lld states of the disk\n", (long long)calls, (long long)states);
    cr_assert(states > 3 * calls / 2, "only %lld states of %lld calls", (long long)states,
              (long long)calls);
    test_disk_close(disk);
}

static void old_or_new(test_scene *s, const char *name, bool done)
{
    const int state = test_scene_found(s, name);
    cr_assert(!done || state == 1, "%s: said to be saved, and is not", name);
}

static void best_and_newest(test_scene *s, const char *name, bool done)
{
    cr_assert(test_scene_found(s, name) == 1, "%s: the newest is gone", name);
    test_ok(kd_checkpoint_verify(test_path(s->out, "checkpoint-000001")));
    const bool gone = !test_exists(s->out, "checkpoint-000002");
    cr_assert(gone || (!done && kd_checkpoint_verify(test_path(s->out, "checkpoint-000002")) == 0),
              "%s: half of a checkpoint has a checkpoint's name", name);
}

Test(power, cut_in_a_save_leaves_the_old_or_the_new)
{
    test_scene s;
    if (!test_can_trace()) return;
    test_scene_open(&s, 1, 2);
    test_scene_reset(&s);
    cut_everywhere(&s, s.out, test_scene_save, old_or_new);
    test_scene_close(&s);

    /* In place of a good folder of the same step, the only one there is. */
    for (int no_exchange = 0; no_exchange < 2; no_exchange++) {
        test_scene_open(&s, 2, 2);
        s.no_exchange = no_exchange;
        test_scene_reset(&s);
        cut_everywhere(&s, s.out, test_scene_save, old_or_new);
        test_scene_close(&s);
    }
}

/* Until then there was nothing, not even a folder. */
static void only_the_new(test_scene *s, const char *name, bool done)
{
    if (!done) return;
    test_ok(
        kd_dir_create(s->out)); /* lets a folder that is lost be seen as one without checkpoints */
    cr_assert(test_scene_found(s, name) == 1);
}

Test(power, cut_after_the_first_save_leaves_it)
{
    test_scene s;
    char root[64];
    if (!test_can_trace()) return;
    test_scene_open(&s, 1, 2);
    snprintf(root, sizeof root, "%.63s", s.out);
    snprintf(s.out, sizeof s.out, "%s/deep/out", root);
    cut_everywhere(&s, root, test_scene_save, only_the_new);
    snprintf(s.out, sizeof s.out, "%s", root);
    test_scene_close(&s);
}

Test(power, cut_in_a_rotation_leaves_the_best_and_the_newest)
{
    test_scene s;
    if (!test_can_trace()) return;
    test_scene_open(&s, 1, 3);
    test_scene_reset(&s);
    s.runs[0].checkpoint.progress.step = 2;
    test_ok(kd_checkpoint_save(NULL, NULL, s.out, &s.runs[0].checkpoint));
    test_ok(kd_checkpoint_save(NULL, NULL, s.out, &s.runs[1].checkpoint));
    cut_everywhere(&s, s.out, test_scene_rotate, best_and_newest);
    test_scene_close(&s);
}
