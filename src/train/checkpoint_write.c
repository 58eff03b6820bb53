/*
 * Saving a checkpoint: every file is written below a staging name and fsynced, then the manifest,
 * then the staging folder, which is renamed into its place, and the parent is fsynced.  Until the
 * rename there is no folder of a checkpoint's name; from it on there is a whole one.
 *
 * The staging folder is locked (flock) as long as its writer lives: another run that starts removes
 * only what nobody holds.
 */
#include "train/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

kd_status kd_student_dir(const char **path, kd_arena *arena, const char *dir,
                         const kd_checkpoint *checkpoint, int student)
{
    if (student == 0) return kd_arena_string(path, arena, dir);
    return kd_arena_format(path, arena, "%s/students/%s", dir,
                           checkpoint->students[student]->label);
}

/* ---- parts ------------------------------------------------------------------------------------ */

/* Labels become a folder's name and the beginning of tensor names. */
static kd_status check_labels(const kd_checkpoint *c)
{
    if (c->student_count < 1)
        return kd_fail(KD_EINVAL, "checkpoint: %d students, expected at least 1", c->student_count);
    for (int i = 0; i < c->student_count; i++) {
        const char *label = c->students[i]->label;
        if (!*label || *label == '.' || strchr(label, '/'))
            return kd_fail(KD_EINVAL, "checkpoint: student \"%s\": no name for a folder", label);
        for (int j = 0; j < i; j++)
            if (strcmp(label, c->students[j]->label) == 0)
                return kd_fail(KD_EINVAL, "checkpoint: two students called \"%s\"", label);
    }
    return KD_OK;
}

static kd_status write_models(kd_arena *arena, const char *dir, const kd_checkpoint *c)
{
    for (int i = 0; i < c->student_count; i++) {
        const char *own;
        KD_TRY(kd_student_dir(&own, arena, dir, c, i));
        KD_TRY(kd_model_save(c->students[i], own, c->students[i]->dtype));
        if (c->tokenizer_dir) KD_TRY(kd_tokenizer_copy(own, c->tokenizer_dir));
    }
    return KD_OK;
}

/* NULL: no memory. */
static json_t *trainer_state_of(const kd_checkpoint *c)
{
    const kd_progress *p = &c->progress;
    const bool best = p->best_step >= 0 && isfinite(p->best);
    return json_pack("{s:I, s:I, s:f, s:I, s:o, s:o, s:o}", "global_step", (json_int_t)p->step,
                     "max_steps", (json_int_t)c->steps, "epoch", c->epoch, "num_input_tokens_seen",
                     (json_int_t)p->tokens, "best_metric", best ? json_real(p->best) : json_null(),
                     "best_global_step", best ? json_integer(p->best_step) : json_null(),
                     "log_history", c->history ? json_deep_copy(c->history) : json_array());
}

static kd_status write_trainer_state(kd_arena *arena, const char *dir, const kd_checkpoint *c)
{
    const char *path;
    KD_TRY(kd_path_join(&path, arena, dir, "trainer_state.json"));
    const int64_t before = kd_json_refused();
    json_t *state = trainer_state_of(c);
    KD_TRY(kd_json_made(&state, before, path));
    const kd_status status = kd_json_write(path, state);
    json_decref(state);
    return status;
}

/* The array passes through `host` [KD_CHECKPOINT_PIECE] in pieces. */
static kd_status write_array(kd_st_writer *writer, const char *name, const kd_slab *slab,
                             const kd_tensor *array, float *host)
{
    kd_stack stack = { 0 };
    kd_exec exec = { .device = slab->device, .stack = &stack };
    const int64_t elements = array->shape[0];
    for (int64_t at = 0; at < elements; at += KD_CHECKPOINT_PIECE) {
        const int64_t n = kd_min_i64(KD_CHECKPOINT_PIECE, elements - at);
        const kd_tensor piece = kd_tensor_slice(array, 0, at, n);
        KD_TRY(kd_download(&exec, host, &piece));
        KD_TRY(kd_sync(&exec));
        KD_TRY(kd_st_writer_write(writer, name, host, (size_t)n * sizeof *host));
    }
    return KD_OK;
}

/* Declares every array, or writes it where there is a `host` buffer. */
static kd_status each_array(kd_st_writer *writer, kd_arena *arena, const kd_checkpoint *c,
                            float *host)
{
    for (int i = 0; i < c->student_count; i++) {
        const kd_slab *slab = &c->students[i]->slab;
        kd_slab_array arrays[KD_SLAB_ARRAYS];
        const int count = kd_slab_arrays(arrays, slab);
        for (int k = 0; k < count; k++) {
            const char *name;
            KD_TRY(kd_arena_format(&name, arena, "%s.%s", c->students[i]->label, arrays[k].name));
            if (host)
                KD_TRY(write_array(writer, name, slab, &arrays[k].tensor, host));
            else
                KD_TRY(kd_st_writer_declare(writer, name, KD_F32, 1, arrays[k].tensor.shape));
        }
    }
    return KD_OK;
}

static kd_status write_optimizer(kd_arena *arena, const char *dir, const kd_checkpoint *c)
{
    kd_st_writer *writer = NULL;
    float *host = NULL;
    const char *path;
    kd_status status;
    KD_TRY(kd_path_join(&path, arena, dir, "engine/optimizer.safetensors"));
    KD_TRY(kd_st_writer_create(&writer, path));
    KD_TRY_GOTO(each_array(writer, arena, c, NULL), status, failed);
    KD_TRY_GOTO(kd_st_writer_begin(writer), status, failed);
    host = malloc(KD_CHECKPOINT_PIECE * sizeof *host);
    if (!host) {
        status = kd_fail(KD_ENOMEM, "%s: no memory to write it", path);
        goto failed;
    }
    KD_TRY_GOTO(each_array(writer, arena, c, host), status, failed);
    free(host);
    return kd_st_writer_close(writer);
failed:
    free(host);
    kd_st_writer_abort(writer);
    return status;
}

static const char *config_text(const kd_checkpoint *c) { return c->config ? c->config : "{}\n"; }

static kd_status write_folder(kd_arena *arena, const char *dir, const kd_checkpoint *c,
                              const json_t *state)
{
    const char *engine, *path;
    KD_TRY(write_models(arena, dir, c));
    KD_TRY(write_trainer_state(arena, dir, c));
    KD_TRY(kd_path_join(&engine, arena, dir, "engine"));
    KD_TRY(kd_dir_create(engine));
    KD_TRY(kd_path_join(&path, arena, engine, "state.json"));
    KD_TRY(kd_json_write(path, state));
    KD_TRY(kd_path_join(&path, arena, engine, "config.json"));
    KD_TRY(kd_file_write_atomic(path, config_text(c), strlen(config_text(c))));
    KD_TRY(write_optimizer(arena, dir, c));
    return kd_manifest_write(dir);
}

/* ---- the folder that may be there already ----------------------------------------------------- */

static kd_status same_config(bool *same, kd_arena *arena, const char *dir, const kd_checkpoint *c)
{
    const char *path;
    char *text;
    size_t bytes;
    KD_TRY(kd_path_join(&path, arena, dir, "engine/config.json"));
    KD_TRY(kd_file_read(&text, &bytes, path, (size_t)64 << 20));
    *same = strcmp(text, config_text(c)) == 0;
    free(text);
    return KD_OK;
}

/* The same records: a checkpoint may have been written before its step was evaluated. */
static kd_status same_history(bool *same, kd_arena *arena, const char *dir, const kd_checkpoint *c)
{
    const char *path;
    json_t *found;
    KD_TRY(kd_path_join(&path, arena, dir, "trainer_state.json"));
    KD_TRY(kd_json_read(&found, path));
    const int64_t before = kd_json_refused();
    json_t *wanted = trainer_state_of(c);
    const kd_status status = kd_json_made(&wanted, before, path);
    *same = json_equal(found, wanted);
    json_decref(found);
    json_decref(wanted);
    return status;
}

/* Whole, and of the same state of the same run: only the clock may differ. */
static kd_status is_saved(bool *saved, kd_arena *arena, const char *dir, const kd_checkpoint *c,
                          const json_t *state)
{
    const char *path;
    json_t *found, *wanted = NULL;
    *saved = false;
    KD_TRY(kd_path_join(&path, arena, dir, "engine/state.json"));
    KD_TRY(kd_json_read(&found, path));
    const int64_t before = kd_json_refused();
    kd_status status;
    wanted = json_deep_copy(state);
    KD_TRY_GOTO(kd_json_made(&wanted, before, path), status, done);
    (void)json_object_del(found, "seconds");
    (void)json_object_del(wanted, "seconds");
    if (!json_equal(found, wanted)) goto done;
    KD_TRY_GOTO(same_config(saved, arena, dir, c), status, done);
    if (*saved) KD_TRY_GOTO(same_history(saved, arena, dir, c), status, done);
    if (*saved) KD_TRY_GOTO(kd_checkpoint_verify(dir), status, done);
done:
    if (status != KD_OK) *saved = false;
    json_decref(found);
    json_decref(wanted);
    return status;
}

/* ---- staging ---------------------------------------------------------------------------------- */

/* `*lock` is held until it is closed, or until this process dies; -1 where there are no locks. */
static kd_status open_staging(int *lock, const char *staging)
{
    KD_TRY(kd_checkpoint_discard(staging)); /* of a dead process with our number */
    KD_TRY(kd_dir_create(staging));
    *lock = open(staging, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock < 0)
        return kd_fail(KD_EIO, "%s: cannot open the folder: %s", staging, strerror(errno));
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0) return KD_OK;
    if (errno == EWOULDBLOCK) return kd_fail(KD_EIO, "%s: held by another process", staging);
    kd_log(KD_LOG_DEBUG, "%s: not locked: %s", staging, strerror(errno));
    return KD_OK;
}

/* In place of a folder that is there: by one exchange where the file system has that, so that there
 * is one at every moment; else by two renames, between which the next start puts back what was there. */
static kd_status replace(kd_arena *arena, const char *out, const char *name, const char *path,
                         const char *staging)
{
    const char *aside = staging;
    if (renameat2(AT_FDCWD, staging, AT_FDCWD, path, RENAME_EXCHANGE) != 0) {
        KD_TRY(kd_checkpoint_set_aside(&aside, arena, out, KD_REPLACED_PREFIX, name));
        if (rename(staging, path) != 0) {
            const int error = errno;
            if (rename(aside, path) != 0)
                kd_log(KD_LOG_WARN, "%s: cannot rename it back: %s", aside, strerror(errno));
            return kd_fail(KD_EIO, "%s: cannot rename to %s: %s", staging, path, strerror(error));
        }
    }
    KD_TRY(kd_file_fsync(out));
    if (kd_checkpoint_discard(aside) != KD_OK)
        kd_log(KD_LOG_WARN, "replaced checkpoint not removed: %s", kd_last_error());
    return KD_OK;
}

static kd_status publish(kd_arena *arena, const char *out, const char *name, const char *path,
                         const char *staging)
{
    if (kd_dir_exists(path)) return replace(arena, out, name, path, staging);
    if (rename(staging, path) != 0)
        return kd_fail(KD_EIO, "%s: cannot rename to %s: %s", staging, path, strerror(errno));
    return kd_file_fsync(out);
}

static double bytes_needed(const kd_checkpoint *c)
{
    double bytes = 0;
    for (int i = 0; i < c->student_count; i++) {
        kd_slab_array arrays[KD_SLAB_ARRAYS];
        const kd_slab *slab = &c->students[i]->slab;
        const int count = kd_slab_arrays(arrays, slab);
        bytes += (double)kd_tensor_bytes(&slab->weights);
        for (int k = 0; k < count; k++) bytes += (double)kd_tensor_bytes(&arrays[k].tensor);
    }
    return bytes;
}

/* Adds to the message what the disk has, and leaves nothing behind. */
static kd_status give_up(kd_status status, const char *out, const char *staging,
                         const kd_checkpoint *c)
{
    char need[32], has[32] = "an unknown number of bytes";
    struct statvfs disk;
    kd_format_bytes(need, sizeof need, bytes_needed(c));
    if (statvfs(out, &disk) == 0)
        kd_format_bytes(has, sizeof has, (double)disk.f_bavail * (double)disk.f_frsize);
    status = kd_fail(status, "step %lld not saved: %s (%s needed, %s free)",
                     (long long)c->progress.step, kd_last_error(), need, has);
    char message[1024];
    snprintf(message, sizeof message, "%s", kd_last_error());
    if (kd_checkpoint_discard(staging) == KD_OK) return status;
    kd_log(KD_LOG_WARN, "unfinished checkpoint not removed: %s", kd_last_error());
    return kd_fail(status, "%s", message);
}

static kd_status stage(kd_arena *arena, const char *out, const char *name, const char *path,
                       const kd_checkpoint *c, const json_t *state)
{
    const char *staging;
    int lock = -1;
    kd_status status;
    KD_TRY(kd_arena_format(&staging, arena, "%s/" KD_STAGING_PREFIX "%s.%ld", out,
                           name + strlen("checkpoint-"), (long)getpid()));
    KD_TRY_GOTO(open_staging(&lock, staging), status, done);
    KD_TRY_GOTO(write_folder(arena, staging, c, state), status, done);
    KD_TRY_GOTO(publish(arena, out, name, path, staging), status, done);
done:
    if (status != KD_OK) status = give_up(status, out, staging, c);
    if (lock >= 0) close(lock);
    return status;
}

/* ---- saving ----------------------------------------------------------------------------------- */

static kd_status save(kd_arena *arena, const char *out, const char *name, const char *path,
                      const kd_checkpoint *c)
{
    json_t *state = NULL;
    bool saved = false;
    kd_status status;
    KD_TRY(check_labels(c));
    KD_TRY(kd_dir_create(out));
    KD_TRY(kd_state_make(&state, c));
    if (kd_dir_exists(path)) {
        status = is_saved(&saved, arena, path, c, state);
        if (status != KD_OK)
            kd_log(KD_LOG_WARN, "%s: replaced: %s", path, kd_last_error());
        else if (!saved)
            kd_log(KD_LOG_INFO, "%s: replaced: it was of another state", path);
    }
    status = saved ? KD_OK : stage(arena, out, name, path, c, state);
    json_decref(state);
    return status;
}

kd_status kd_checkpoint_save(const char **path, kd_arena *arena, const char *out,
                             const kd_checkpoint *checkpoint)
{
    kd_arena *own = NULL;
    const char *name, *full;
    kd_status status;
    KD_TRY(kd_arena_create(&own));
    KD_TRY_GOTO(
        kd_arena_format(&name, own, KD_CHECKPOINT_NAME, (long long)checkpoint->progress.step),
        status, done);
    KD_TRY_GOTO(kd_path_join(&full, own, out, name), status, done);
    KD_TRY_GOTO(save(own, out, name, full, checkpoint), status, done);
    if (path) KD_TRY_GOTO(kd_arena_string(path, arena, full), status, done);
done:
    kd_arena_destroy(own);
    return status;
}
