/*
 * model_files.c - the weights of a Hugging Face directory: model.safetensors, or the shards that
 * model.safetensors.index.json names.
 *
 * An index may not lie: every name in weight_map stands in the shard it says and every tensor of every
 * shard stands in weight_map under that shard, so a tensor in two shards is always refused.  A shard is
 * a plain file name ending in .safetensors, and no link that leads out of the directory, but to the
 * blobs of Hugging Face's download cache: snapshots/REVISION/x is a link to ../../blobs/HASH there.
 * metadata.total_size is only compared with a warning, as published indices are known to carry wrong
 * ones.
 */
#include "format/format.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_SHARDS = 4096 };

static kd_status add_file(kd_model_files *m, const char *name)
{
    const char *path = NULL;
    KD_TRY(kd_path_join(&path, m->arena, m->dir, name));
    KD_TRY(kd_st_open(&m->files[m->count], path));
    const kd_st_file *f = m->files[m->count++];
    for (int64_t i = 0; i < f->count; i++) m->bytes += f->entries[i].bytes;
    return KD_OK;
}

static kd_status check_shard_name(const char *index, const char *tensor, const json_t *value)
{
    const char *shard = json_string_value(value), *suffix = ".safetensors";
    const size_t length = shard ? strlen(shard) : 0;
    char shown[160];
    if (shard && shard[0] != '.' && !strchr(shard, '/') && !strchr(shard, '\\') &&
        length > strlen(suffix) && strcmp(shard + length - strlen(suffix), suffix) == 0)
        return KD_OK;
    return kd_fail(KD_EFORMAT,
                   "%s: weight_map[\"%.120s\"] is %s, expected the name of a .safetensors file in "
                   "the same directory",
                   index, tensor, kd_json_show(shown, sizeof shown, value));
}

/* Cuts the last part off a real path: "/a/b" is in "/a". */
static void to_parent(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0';
}

/* Where the links of `path` end lies in `dir`, or in the blobs beside its snapshots. */
static kd_status check_inside(const char *path, const char *dir, const char *index)
{
    char file[PATH_MAX], home[PATH_MAX], folder[PATH_MAX], blobs[PATH_MAX + sizeof "/blobs"];
    if (!realpath(path, file) || !realpath(dir, home))
        return kd_fail(KD_EFORMAT, "%s: %s, but %s lists it", path, strerror(errno), index);
    (void)snprintf(folder, sizeof folder, "%s", file);
    to_parent(folder);
    if (strcmp(folder, home) == 0) return KD_OK;
    to_parent(home);
    const char *snapshots = strrchr(home, '/');
    if (snapshots && strcmp(snapshots, "/snapshots") == 0) {
        to_parent(home);
        (void)snprintf(blobs, sizeof blobs, "%s/blobs", home);
        if (strcmp(folder, blobs) == 0) return KD_OK;
    }
    return kd_fail(KD_EFORMAT, "%s: a link to %s, expected a file in the same directory", path,
                   file);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct shards of `map`, sorted. */
static kd_status list_shards(const char ***shards, int64_t *count, kd_arena *arena,
                             const char *index, json_t *map)
{
    const char *tensor;
    json_t *value;
    int64_t n = 0;
    *count = 0;
    KD_TRY(KD_ARENA_ARRAY(shards, arena, (int64_t)json_object_size(map)));
    json_object_foreach(map, tensor, value)
    {
        KD_TRY(check_shard_name(index, tensor, value));
        (*shards)[n++] = json_string_value(value);
    }
    if (n) qsort(*shards, (size_t)n, sizeof **shards, by_text);
    for (int64_t i = 0; i < n; i++) {
        if (i == 0 || strcmp((*shards)[i], (*shards)[*count - 1]) != 0)
            (*shards)[(*count)++] = (*shards)[i];
    }
    if (*count > MAX_SHARDS)
        return kd_fail(KD_EFORMAT, "%s: %lld shards, expected at most %d", index, (long long)*count,
                       MAX_SHARDS);
    return KD_OK;
}

/* `shard` holds what the index says it holds, and nothing else. */
static kd_status check_shard(const kd_st_file *f, const char *shard, const char *index,
                             const json_t *map)
{
    for (int64_t i = 0; i < f->count; i++) {
        const char *name = f->entries[i].name;
        const char *listed = json_string_value(json_object_get(map, name));
        if (!listed)
            return kd_fail(KD_EFORMAT, "%s: tensor \"%.120s\" is missing from %s", f->path, name,
                           index);
        if (strcmp(listed, shard) != 0)
            return kd_fail(KD_EFORMAT, "%s: tensor \"%.120s\" belongs to %s according to %s",
                           f->path, name, listed, index);
    }
    return KD_OK;
}

static kd_status check_total(const kd_model_files *m, const char *index, const json_t *json)
{
    const json_t *total = json_object_get(json_object_get(json, "metadata"), "total_size");
    char shown[80];
    if (total && (!json_is_integer(total) || json_integer_value(total) != m->bytes))
        kd_log(KD_LOG_WARN, "%s: total_size is %s, the shards hold %lld bytes of tensors", index,
               kd_json_show(shown, sizeof shown, total), (long long)m->bytes);
    return KD_OK;
}

static kd_status open_shards(kd_model_files *m, const char *index, const json_t *json)
{
    json_t *map = json_object_get(json, "weight_map");
    char shown[80];
    if (!json_is_object(map) || json_object_size(map) == 0)
        return kd_fail(KD_EFORMAT, "%s: weight_map is %s, expected an object of file names", index,
                       kd_json_show(shown, sizeof shown, map));
    const char **shards = NULL;
    int64_t count = 0;
    KD_TRY(list_shards(&shards, &count, m->arena, index, map));
    KD_TRY(KD_ARENA_ARRAY(&m->files, m->arena, count));
    for (int64_t i = 0; i < count; i++) {
        const char *path = NULL;
        KD_TRY(kd_path_join(&path, m->arena, m->dir, shards[i]));
        KD_TRY(check_inside(path, m->dir, index));
        KD_TRY(add_file(m, shards[i]));
        KD_TRY(check_shard(m->files[i], shards[i], index, map));
    }
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        if (!kd_model_files_find(m, name, NULL))
            return kd_fail(KD_EFORMAT, "%s: tensor \"%.120s\" is not in %s", index, name,
                           json_string_value(value));
    }
    return check_total(m, index, json);
}

static kd_status open_files(kd_model_files *m)
{
    const char *single = NULL, *index = NULL;
    bool there;
    KD_TRY(kd_path_join(&single, m->arena, m->dir, "model.safetensors"));
    KD_TRY(kd_path_join(&index, m->arena, m->dir, "model.safetensors.index.json"));
    KD_TRY(kd_file_find(&there, single));
    if (there) {
        KD_TRY(KD_ARENA_ARRAY(&m->files, m->arena, 1));
        return add_file(m, "model.safetensors");
    }
    KD_TRY(kd_file_find(&there, index));
    if (!there)
        return kd_fail(KD_EFORMAT, "%s: neither model.safetensors nor model.safetensors.index.json",
                       m->dir);
    json_t *json = NULL;
    KD_TRY(kd_json_read(&json, index));
    const kd_status status = open_shards(m, index, json);
    json_decref(json);
    return status;
}

kd_status kd_model_files_open(kd_model_files **files, const char *dir)
{
    *files = NULL;
    kd_arena *arena = NULL;
    kd_model_files *m = NULL;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = KD_ARENA_ARRAY(&m, arena, 1);
    if (status != KD_OK) {
        kd_arena_destroy(arena);
        return status;
    }
    m->arena = arena;
    KD_TRY_GOTO(kd_arena_string(&m->dir, arena, dir), status, failed);
    KD_TRY_GOTO(open_files(m), status, failed);
    *files = m;
    return KD_OK;
failed:
    kd_model_files_close(m);
    return status;
}

void kd_model_files_close(kd_model_files *files)
{
    if (!files) return;
    for (int i = 0; i < files->count; i++) kd_st_close(files->files[i]);
    kd_arena_destroy(files->arena);
}

const kd_st_entry *kd_model_files_find(const kd_model_files *files, const char *name,
                                       const kd_st_file **file)
{
    for (int i = 0; i < files->count; i++) {
        const kd_st_entry *entry = kd_st_find(files->files[i], name);
        if (!entry) continue;
        if (file) *file = files->files[i];
        return entry;
    }
    return NULL;
}
