/* What goes wrong within a save, a load or a rotation, a call at a time: the caller, names, the device,
 * the heap.  The disk's faults are in test_faults.c. */
#include "support/damage.h"
#include "support/interpose.h"
#include "support/refusal.h"
#include "support/scene.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const test_run_options options = { .dtype = KD_BF16, .moments = 2, .count = 2 };

/* ---- the caller ------------------------------------------------------------------------------- */

Test(save, of_students_without_a_name_is_refused)
{
    static const char *const labels[][3] = {
        { "", "pupil", "student \"\": no name for a folder" },
        { ".x", "pupil", "student \".x\": no name for a folder" },
        { "a/b", "pupil", "student \"a/b\": no name for a folder" },
        { "a", "b/", "student \"b/\": no name for a folder" },
        { "a", "a", "two students called \"a\"" },
        { "a", "\xff", "engine/state.json: a text in it is not UTF-8" },
    };
    const char *out = test_folder();
    test_run run;
    test_log();
    test_run_open(&run, options);
    test_run_fill(&run, 1, 1);
    for (int i = 0; i < KD_COUNT(labels); i++) {
        for (int s = 0; s < 2; s++) run.students[s]->label = labels[i][s];
        test_refused(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint), KD_EINVAL, labels[i][2]);
    }
    run.checkpoint.student_count = 0;
    test_refused(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint), KD_EINVAL,
                 "0 students, expected at least 1");
    cr_assert(test_count(out, "") == 0, "a refused save left something");
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

static json_t *read_json(const char *dir, const char *name)
{
    json_t *json;
    test_ok(kd_json_read(&json, test_path(dir, name)));
    return json;
}

/* Numbers that JSON has not, and what a caller may leave out. */
Test(save, of_odd_numbers_gives_them_back)
{
    static const double odd[] = { NAN, INFINITY, -INFINITY };
    const char *out = test_folder(), *dir;
    test_run run;
    kd_progress progress;
    test_log();
    test_run_open(&run, options);
    test_run_fill(&run, 1, 7);
    run.checkpoint.config = run.checkpoint.contract = NULL;
    for (int i = 0; i < KD_COUNT(odd); i++) {
        run.checkpoint.progress.best = odd[i];
        test_ok(kd_checkpoint_save(&dir, run.arena, out, &run.checkpoint));
        test_ok(kd_checkpoint_load(&progress, dir, &run.checkpoint));
        cr_assert(isnan(odd[i]) ? isnan(progress.best) : progress.best == odd[i], "%g became %g",
                  odd[i], progress.best);
        json_t *state = read_json(dir, "trainer_state.json"),
               *config = read_json(dir, "engine/config.json");
        cr_assert(json_is_null(json_object_get(state, "best_metric")) &&
                  json_is_null(json_object_get(state, "best_global_step")));
        cr_assert(json_object_size(config) == 0);
        json_decref(state);
        json_decref(config);
    }
    run.checkpoint.contract = "device cpu";
    test_refused(kd_checkpoint_load(&progress, dir, &run.checkpoint), KD_EFORMAT,
                 "contract: found \"\", expected \"device cpu\"");
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

Test(save, replaces_what_it_cannot_compare)
{
    const char *out = test_folder(), *dir, *log;
    test_run run;
    test_run_open(&run, options);
    test_run_fill(&run, 1, 7);
    test_ok(kd_checkpoint_save(&dir, run.arena, out, &run.checkpoint));
    static const char *const files[] = { "engine/config.json", "engine/state.json" };
    for (int i = 0; i < KD_COUNT(files); i++) {
        log = test_log();
        cr_assert(unlink(test_path(dir, files[i])) == 0);
        test_ok(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint));
        cr_assert(strstr(log, ": replaced: ") && strstr(log, files[i]), "%s: %s", files[i], log);
        test_ok(kd_checkpoint_verify(dir));
    }
    log = test_log();
    run.checkpoint.config = "{\"run\": {\"seed\": 2}}\n";
    test_ok(kd_checkpoint_save(NULL, NULL, out, &run.checkpoint));
    cr_assert(strstr(log, "it was of another state"), "%s", log);
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

/* ---- names ------------------------------------------------------------------------------------ */

/* "out/./././..." of `length` bytes: the same folder. */
static char *lengthen(const char *out, size_t length)
{
    char *path = malloc(length + 1);
    size_t n = strlen(out);
    memcpy(path, out, n);
    for (; n + 2 <= length; n += 2) memcpy(path + n, "/.", 2);
    if (n < length) path[n++] = '/';
    path[n] = '\0';
    return path;
}

Test(save, under_a_name_that_is_too_long_is_refused)
{
    const char *out = test_folder(), *log = test_log();
    test_run run;
    test_run_open(&run, options);
    test_run_fill(&run, 1, 7);
    char *path = lengthen(out, PATH_MAX - 20);
    test_refused(kd_checkpoint_save(NULL, NULL, path, &run.checkpoint), KD_EIO,
                 "step 7 not saved: ");
    cr_assert(strstr(log, "unfinished checkpoint not removed: "), "%s", log);
    free(path);
    path = lengthen(out, PATH_MAX);
    test_refused(kd_checkpoint_save(NULL, NULL, path, &run.checkpoint), KD_EIO, out);
    free(path);
    cr_assert(test_count(out, "") == 0, "a refused save left something");
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

Test(save, sets_aside_what_is_there)
{
    const char *out = test_folder(), *aside;
    kd_arena *arena;
    test_ok(kd_arena_create(&arena));
    test_refused(kd_checkpoint_set_aside(&aside, arena, out, KD_REPLACED_PREFIX, "absent"), KD_EIO,
                 "/absent: cannot rename to ");
    char *path = lengthen(out, PATH_MAX - 20);
    test_refused(kd_checkpoint_set_aside(&aside, arena, path, KD_REPLACED_PREFIX, "0123456789"),
                 KD_EIO, out);
    free(path);
    test_refused(kd_checkpoint_discard("/proc/self/status"), KD_EIO,
                 "/proc/self/status: cannot remove: ");
    cr_assert(kd_checkpoint_step("checkpoint-000012") == 12 &&
              kd_checkpoint_step("a/checkpoint-7") == 7 && kd_checkpoint_step("final") == -1);
    kd_arena_destroy(arena);
    test_ok(kd_dir_remove(out));
}

/* ---- the manifest ----------------------------------------------------------------------------- */

Test(save, of_files_that_no_manifest_has_is_refused)
{
    const char *out = test_folder();
    test_ok(kd_file_write_atomic(test_path(out, "\xff"), "x", 1));
    test_refused(kd_manifest_write(out), KD_EINVAL, "\"\xff\" is not UTF-8");
    cr_assert(unlink(test_path(out, "\xff")) == 0 && mkfifo(test_path(out, "fifo"), 0666) == 0);
    test_refused(kd_manifest_write(out), KD_EFORMAT, "/fifo: not a regular file");
    cr_assert(unlink(test_path(out, "fifo")) == 0);
    test_ok(kd_dir_create(test_path(out, "1/2/3/4/5/6/7/8")));
    test_ok(kd_manifest_write(out));
    test_ok(kd_dir_create(test_path(out, "1/2/3/4/5/6/7/8/9")));
    test_refused(kd_manifest_write(out), KD_EINVAL, ": folders deeper than 8");
    test_ok(kd_dir_remove(out));
}

/* Tensors without elements lie where others begin; a file without tensors is all header. */
Test(save, knows_empty_tensors)
{
    static const int64_t counts[] = { 2, 0, 3 };
    static const char *const names[] = { "a", "b", "c" };
    static const float zeros[3];
    const char *out = test_folder(), *dir;
    test_run run;
    int64_t bytes;
    test_log();
    test_run_open(&run, options);
    test_run_fill(&run, 1, 7);
    test_ok(kd_checkpoint_save(&dir, run.arena, out, &run.checkpoint));
    for (int tensors = 0; tensors <= 3; tensors += 3) {
        kd_st_writer *w;
        const char *path = test_path(dir, "more.safetensors");
        test_ok(kd_st_writer_create(&w, path));
        for (int i = 0; i < tensors; i++)
            test_ok(kd_st_writer_declare(w, names[i], KD_F32, 1, &counts[i]));
        test_ok(kd_st_writer_begin(w));
        for (int i = 0; i < tensors; i++)
            test_ok(kd_st_writer_write(w, names[i], zeros, (size_t)counts[i] * sizeof *zeros));
        test_ok(kd_st_writer_close(w));
        cr_assert(unlink(test_path(dir, "MANIFEST.json")) == 0);
        test_ok(kd_manifest_write(dir));
        test_ok(kd_checkpoint_verify(dir));
        test_ok(kd_file_size(&bytes, path));
        test_xor_byte(path, bytes - 1, 1);
        test_refused(kd_checkpoint_verify(dir), KD_EFORMAT,
                     tensors ? "more.safetensors: tensor \"c\": " : "more.safetensors: header: ");
    }
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

/* ---- the device ------------------------------------------------------------------------------- */

/* The CPU's, of which the call `left` calls from now fails. */
static const kd_device_type *cpu;
static int64_t left;

static kd_status broken_download(kd_device *device, kd_queue *queue, void *to, const void *from,
                                 size_t bytes)
{
    if (left-- == 0) return kd_fail(KD_EDEVICE, "planted: download");
    return cpu->download(device, queue, to, from, bytes);
}

static kd_status broken_upload(kd_device *device, kd_queue *queue, void *to, const void *from,
                               size_t bytes)
{
    if (left-- == 0) return kd_fail(KD_EDEVICE, "planted: upload");
    return cpu->upload(device, queue, to, from, bytes);
}

static kd_status broken_sync(kd_device *device, kd_queue *queue)
{
    if (left-- == 0) return kd_fail(KD_EDEVICE, "planted: sync");
    return cpu->sync(device, queue);
}

static const kd_ops *cpu_ops;

static kd_status broken_copy(kd_exec *exec, const kd_copy_args *args)
{
    if (left-- == 0) return kd_fail(KD_EDEVICE, "planted: copy");
    return cpu_ops->copy(exec, args);
}

/* By call: two kinds that a save makes, and three of a load. */
static void break_device(kd_device_type *type, kd_ops *ops, int what)
{
    *type = *cpu;
    *ops = *cpu_ops;
    if (what == 4)
        ops->copy = broken_copy;
    else if (what % 2)
        type->sync = broken_sync;
    else
        type->download = broken_download, type->upload = broken_upload;
}

Test(save, from_a_failing_device_leaves_nothing)
{
    const char *out = test_folder(), *dir;
    test_run run;
    kd_progress progress;
    test_log();
    test_run_options extended = options;
    extended.extra = true;
    test_run_open(&run, extended);
    test_run_fill(&run, 1, 7);
    kd_device *device = run.device;
    cpu = device->type;
    cpu_ops = device->ops;
    for (int what = 0; what < 5; what++) {
        const bool saves = what < 2;
        kd_device_type type;
        kd_ops ops;
        break_device(&type, &ops, what);
        kd_status status = KD_EDEVICE;
        int64_t calls = 0;
        for (; status == KD_EDEVICE; calls++) {
            left = calls;
            device->type = &type, device->ops = &ops;
            status = saves ? kd_checkpoint_save(&dir, run.arena, out, &run.checkpoint)
                           : kd_checkpoint_load(&progress, dir, &run.checkpoint);
            device->type = cpu, device->ops = cpu_ops;
            const char *message = kd_last_error();
            cr_assert(status == KD_OK || (status == KD_EDEVICE && strstr(message, "planted: ")),
                      "call %lld: %s", (long long)calls, message);
            cr_assert(status != KD_OK || left >= 0, "call %lld failed unnoticed", (long long)calls);
            cr_assert(!saves || test_count(out, "") == (status == KD_OK), "call %lld: left behind",
                      (long long)calls);
            cr_assert(!saves || status == KD_OK || strstr(message, "step 7 not saved: "), "%s",
                      message);
        }
        cr_assert(status == KD_OK && calls > (what == 4 ? 1 : 6), "only %lld calls",
                  (long long)calls);
        if (what == 0) test_ok(kd_dir_remove(dir));
    }
    test_run_close(&run);
    test_ok(kd_dir_remove(out));
}

/* ---- the heap --------------------------------------------------------------------------------- */

/* From here on two names cannot be exchanged, in this process; false where that cannot be had. */
static bool forbid_exchange(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[4])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RENAME_EXCHANGE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = { KD_COUNT(filter), filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0)
        return true;
    fprintf(stderr, "skipped: no system call can be forbidden here\n");
    return false;
}

enum { MAX_CALLS = 1 << 15 };
static uint64_t sites[MAX_CALLS];

static bool is_new(int64_t call)
{
    for (int64_t i = 0; i < call; i++)
        if (sites[i] == sites[call]) return false;
    return true;
}

/* Runs `job` once for every place in it that allocates, which is refused; `before` makes the scene and
 * `after` judges it. */
static void refuse_everywhere(test_scene *s, const char *name, void (*before)(test_scene *s),
                              test_job job,
                              void (*after)(test_scene *s, const char *name, kd_status status))
{
    int64_t calls = 0, tried = 0;
    for (int64_t at = -2; at < calls; at++) { /* the first time what is kept for good is taken */
        char what[128];
        test_heap_fault fault = { .at = at };
        if (at < 0) fault = (test_heap_fault){ .at = -1, .sites = sites, .room = MAX_CALLS };
        if (at >= 0 && !is_new(at)) continue;
        before(s);
        cr_assert(test_heap_arm(&fault));
        const kd_status status = (kd_status)job(s);
        const int64_t made = test_heap_disarm();
        if (at < 0) calls = made;
        cr_assert(made < MAX_CALLS && (at >= 0 || status == KD_OK), "%s", kd_last_error());
        (void)snprintf(what, sizeof what, "%s, allocation %lld of %lld", name, (long long)at,
                       (long long)calls);
        cr_assert(status == KD_OK || (status == KD_ENOMEM && strstr(kd_last_error(), "memory")),
                  "%s: status %d: %s", what, (int)status, kd_last_error());
        after(s, what, status);
        tried++;
    }
    cr_assert(tried > 5, "%s: only %lld were tried", name, (long long)tried);
}

static void old_or_new(test_scene *s, const char *name, kd_status status)
{
    /* What was replaced may not be removed yet. */
    cr_assert(status == KD_OK || test_count(s->out, ".tmp-") == 0, "%s: half a checkpoint is left",
              name);
    const int state = test_scene_found(s, name);
    cr_assert(status != KD_OK || state == 1, "%s: said to be saved, and is not", name);
}

/* Saved a second time over itself: it is compared, and stays. */
static void both(test_scene *s)
{
    test_scene_reset(s);
    test_ok(kd_checkpoint_save(NULL, NULL, s->out, &s->runs[1].checkpoint));
}

static void the_new(test_scene *s, const char *name, kd_status status)
{
    (void)status;
    cr_assert(test_scene_found(s, name) == 1, "%s: the good one is gone", name);
}

static void three(test_scene *s)
{
    test_scene_reset(s);
    s->runs[0].checkpoint.progress.step = 2;
    test_ok(kd_checkpoint_save(NULL, NULL, s->out, &s->runs[0].checkpoint));
    s->runs[0].checkpoint.progress.step = 1;
    test_ok(kd_checkpoint_save(NULL, NULL, s->out, &s->runs[1].checkpoint));
}

static void best_and_newest(test_scene *s, const char *name, kd_status status)
{
    (void)status;
    cr_assert(test_scene_found(s, name) == 1, "%s: the newest is gone", name);
    test_ok(kd_checkpoint_verify(test_path(s->out, "checkpoint-000001")));
}

static bool can_refuse(void)
{
    const test_heap_fault none = { .at = -1 };
    if (!test_heap_arm(&none)) return false;
    (void)test_heap_disarm();
    return true;
}

Test(save, without_memory_leaves_the_old_or_the_new)
{
    test_scene s;
    if (!can_refuse()) cr_skip_test("skipped: no heap here can be made to refuse");
    json_object_seed(1);
    test_scene_open(&s, 2, 2); /* in place of a good folder of the same step */
    refuse_everywhere(&s, "a save", test_scene_reset, test_scene_save, old_or_new);
    refuse_everywhere(&s, "a save again", both, test_scene_save, the_new);
    if (forbid_exchange())
        refuse_everywhere(&s, "a save by two renames", test_scene_reset, test_scene_save,
                          old_or_new);
    test_scene_close(&s);
}

Test(save, and_a_rotation_without_memory)
{
    test_scene s;
    if (!can_refuse()) cr_skip_test("skipped: no heap here can be made to refuse");
    json_object_seed(1);
    test_scene_open(&s, 1, 3);
    refuse_everywhere(&s, "a rotation", three, test_scene_rotate, best_and_newest);
    test_scene_close(&s);
}

/* ---- the disk, under a load ------------------------------------------------------------------- */

static int load_job(const void *scene)
{
    const test_scene *s = scene;
    kd_progress progress;
    return (int)kd_checkpoint_load(&progress, test_path(s->out, "checkpoint-000001"),
                                   &s->runs[0].checkpoint);
}

Test(save, comes_back_or_the_load_says_why)
{
    test_scene s;
    if (!test_can_trace()) return;
    test_scene_open(&s, 1, 2);
    test_scene_reset(&s);
    test_trace t = { .below = s.out, .harm = TEST_FAIL, .error = EIO, .only = SYS_pread64 };
    for (;; t.at++) {
        const test_child *child = test_traced(&t, load_job, &s);
        cr_assert(child->status == (t.hit ? KD_EIO : KD_OK), "read %lld: %s", (long long)t.at,
                  child->message);
        if (!t.hit) break;
        cr_assert(strstr(child->message, "cannot read: Input/output error") &&
                      strstr(child->message, s.out),
                  "read %lld: %s", (long long)t.at, child->message);
    }
    cr_assert(t.at > 20, "only %lld reads", (long long)t.at);
    test_scene_close(&s);
}
