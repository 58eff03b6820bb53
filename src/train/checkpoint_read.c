/*
 * Loading a checkpoint.  Weights come from the model's own files, which for f32 are the truth and
 * for narrower types are the masters rounded to nearest even, just as the optimizer publishes them;
 * masters and moments come from engine/optimizer.safetensors.  Nothing is touched until the folder
 * has verified and agreed with what is expected.
 */
#include "train/checkpoint.h"

#include <stdlib.h>

static kd_status read_array(const kd_st_file *file, const char *name, const kd_slab *slab,
                            const kd_tensor *array, float *host)
{
    const int64_t elements = array->shape[0];
    const kd_st_entry *entry = kd_st_find(file, name);
    if (!entry) return kd_fail(KD_EFORMAT, "%s: no tensor %s", file->path, name);
    if (entry->dtype != KD_F32 || entry->rank != 1 || entry->elements != elements)
        return kd_fail(KD_EFORMAT,
                       "%s: %s: found %s of rank %d with %lld elements, expected F32 "
                       "of rank 1 with %lld",
                       file->path, name, entry->dtype_name, (int)entry->rank,
                       (long long)entry->elements, (long long)elements);
    kd_stack stack = { 0 };
    kd_exec exec = { .device = slab->device, .stack = &stack };
    for (int64_t at = 0; at < elements; at += KD_CHECKPOINT_PIECE) {
        const int64_t n = kd_min_i64(KD_CHECKPOINT_PIECE, elements - at);
        const kd_tensor piece = kd_tensor_slice(array, 0, at, n);
        KD_TRY(kd_st_read(host, KD_F32, file, entry, at, n));
        KD_TRY(kd_st_check_finite(file, entry, at, host, n));
        KD_TRY(kd_upload(&exec, &piece, host));
        KD_TRY(kd_sync(&exec));
    }
    return KD_OK;
}

/* The narrow copy of masters that no model's file has. */
static kd_status publish_extra(const kd_slab *slab)
{
    kd_stack stack = { 0 };
    kd_exec exec = { .device = slab->device, .stack = &stack };
    const int64_t extra = slab->params.extra, count = slab->params.elements - extra;
    if (count == 0 || !kd_present(&slab->masters)) return KD_OK;
    const kd_tensor from = kd_tensor_slice(&slab->masters, 0, extra, count);
    const kd_tensor to = kd_tensor_slice(&slab->weights, 0, extra, count);
    KD_TRY(KD_RUN(&exec, copy, .y = &to, .x = &from));
    return kd_sync(&exec);
}

static kd_status read_arrays(kd_arena *arena, const kd_st_file *file, const kd_model *student,
                             float *host)
{
    kd_slab_array arrays[KD_SLAB_ARRAYS];
    const int count = kd_slab_arrays(arrays, &student->slab);
    for (int i = 0; i < count; i++) {
        const char *name;
        KD_TRY(kd_arena_format(&name, arena, "%s.%s", student->label, arrays[i].name));
        KD_TRY(read_array(file, name, &student->slab, &arrays[i].tensor, host));
    }
    return publish_extra(&student->slab);
}

static kd_status read_optimizer(kd_arena *arena, const char *dir, const kd_checkpoint *expected)
{
    const char *path;
    kd_st_file *file = NULL;
    float *host = NULL;
    kd_status status = KD_OK;
    KD_TRY(kd_path_join(&path, arena, dir, "engine/optimizer.safetensors"));
    KD_TRY(kd_st_open(&file, path));
    host = malloc(KD_CHECKPOINT_PIECE * sizeof *host);
    if (!host) {
        status = kd_fail(KD_ENOMEM, "%s: no memory to read it", path);
        goto done;
    }
    for (int i = 0; i < expected->student_count; i++)
        KD_TRY_GOTO(read_arrays(arena, file, expected->students[i], host), status, done);
done:
    free(host);
    kd_st_close(file);
    return status;
}

static kd_status read_weights(kd_arena *arena, const char *dir, const kd_checkpoint *expected)
{
    for (int i = 0; i < expected->student_count; i++) {
        const char *own;
        kd_model_files *files;
        KD_TRY(kd_student_dir(&own, arena, dir, expected, i));
        KD_TRY(kd_model_files_open(&files, own));
        const kd_status status = kd_model_load(expected->students[i], files);
        kd_model_files_close(files);
        KD_TRY(status);
    }
    return KD_OK;
}

static kd_status load(kd_progress *progress, kd_arena *arena, const char *dir, json_t **state,
                      const kd_checkpoint *expected)
{
    const char *path;
    kd_progress found;
    KD_TRY(kd_checkpoint_verify(dir));
    KD_TRY(kd_path_join(&path, arena, dir, "engine/state.json"));
    KD_TRY(kd_json_read(state, path));
    KD_TRY(kd_state_check(*state, path, expected));
    KD_TRY(kd_state_progress(&found, *state, path));
    KD_TRY(read_weights(arena, dir, expected));
    KD_TRY(read_optimizer(arena, dir, expected));
    *progress = found;
    return KD_OK;
}

kd_status kd_checkpoint_load(kd_progress *progress, const char *dir, const kd_checkpoint *expected)
{
    kd_arena *arena;
    json_t *state = NULL;
    KD_TRY(kd_arena_create(&arena));
    const kd_status status = load(progress, arena, dir, &state, expected);
    json_decref(state);
    kd_arena_destroy(arena);
    return status;
}
