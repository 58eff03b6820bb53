/* The folder of all checkpoints of a run: the newest good one, and rotation. */
#include "train/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- removing --------------------------------------------------------------------------------- */

kd_status kd_checkpoint_discard(const char *path)
{
    struct stat info;
    if (lstat(path, &info) != 0 || S_ISDIR(info.st_mode)) return kd_dir_remove(path);
    if (unlink(path) == 0) return KD_OK;
    return kd_fail(KD_EIO, "%s: cannot remove: %s", path, strerror(errno));
}

kd_status kd_checkpoint_set_aside(const char **aside, kd_arena *arena, const char *out,
                                  const char *prefix, const char *name)
{
    const char *path;
    KD_TRY(kd_path_join(&path, arena, out, name));
    KD_TRY(kd_arena_format(aside, arena, "%s/%s%s.%ld", out, prefix, name, (long)getpid()));
    KD_TRY(kd_checkpoint_discard(*aside)); /* of a dead process with our number */
    if (rename(path, *aside) != 0)
        return kd_fail(KD_EIO, "%s: cannot rename to %s: %s", path, *aside, strerror(errno));
    return kd_file_fsync(out);
}

static bool begins(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* ---- listing ---------------------------------------------------------------------------------- */

typedef struct folder {
    const char *name;
    int64_t step;
} folder;

/* ^checkpoint-(\d+)$, as transformers has it. */
static bool parse_name(int64_t *step, const char *name)
{
    if (!begins(name, "checkpoint-")) return false;
    const char *digits = name + strlen("checkpoint-");
    if (!*digits || digits[strspn(digits, "0123456789")] != '\0') return false;
    errno = 0;
    const long long value = strtoll(digits, NULL, 10);
    *step = value;
    return errno == 0;
}

int64_t kd_checkpoint_step(const char *dir)
{
    const char *slash = strrchr(dir, '/');
    int64_t step;
    return parse_name(&step, slash ? slash + 1 : dir) ? step : -1;
}

static int newest_first(const void *a, const void *b)
{
    const folder *x = a, *y = b;
    if (x->step != y->step) return x->step > y->step ? -1 : 1;
    return strcmp(x->name, y->name);
}

static kd_status list_checkpoints(folder **folders, int *count, kd_arena *arena, const char *out,
                                  const char *const *names, int name_count)
{
    *count = 0;
    KD_TRY(KD_ARENA_ARRAY(folders, arena, name_count));
    for (int i = 0; i < name_count; i++) {
        const char *path;
        folder found = { .name = names[i] };
        if (!parse_name(&found.step, names[i])) continue;
        KD_TRY(kd_path_join(&path, arena, out, names[i]));
        if (kd_dir_exists(path)) (*folders)[(*count)++] = found;
    }
    if (*count > 1) qsort(*folders, (size_t)*count, sizeof **folders, newest_first);
    return KD_OK;
}

/* ---- the newest good one ---------------------------------------------------------------------- */

static kd_status latest(const char **dir, kd_arena *arena, kd_arena *own, const char *out)
{
    const char *const *names;
    folder *folders;
    int name_count, count;
    KD_TRY(kd_dir_list(&names, &name_count, own, out));
    KD_TRY(list_checkpoints(&folders, &count, own, out, names, name_count));
    for (int i = 0; i < count; i++) {
        const char *path;
        KD_TRY(kd_path_join(&path, own, out, folders[i].name));
        const kd_status status = kd_checkpoint_verify(path);
        if (status == KD_OK) return kd_arena_string(dir, arena, path);
        /* These say nothing of the folder. */
        if (status == KD_ENOMEM || status == KD_ESTOPPED) return status;
        kd_log(KD_LOG_WARN, "%s: passed over, damaged: %s", path, kd_last_error());
    }
    if (count == 0) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: holds %d checkpoint%s and none is whole: %s", out, count,
                   count > 1 ? "s" : "", kd_last_error());
}

kd_status kd_checkpoint_latest(const char **dir, kd_arena *arena, const char *out)
{
    kd_arena *own;
    *dir = NULL;
    if (!kd_dir_exists(out)) return KD_OK;
    KD_TRY(kd_arena_create(&own));
    const kd_status status = latest(dir, arena, own, out);
    kd_arena_destroy(own);
    return status;
}

/* ---- rotation --------------------------------------------------------------------------------- */

/* A folder that is not whole is never counted as kept, so it cannot push out the last good one.
 * Sizes are looked at, not hashes: this runs after every save. */
static kd_status rotate(kd_arena *arena, const char *out, int keep, int64_t best_step)
{
    const char *const *names;
    folder *folders;
    int name_count, count, kept = 0;
    KD_TRY(kd_dir_list(&names, &name_count, arena, out));
    KD_TRY(list_checkpoints(&folders, &count, arena, out, names, name_count));
    for (int i = 0; i < count; i++) {
        const char *path, *aside;
        KD_TRY(kd_path_join(&path, arena, out, folders[i].name));
        if (kept < keep) {
            kept += kd_manifest_check(path, false) == KD_OK;
        } else if (folders[i].step != best_step) {
            KD_TRY(kd_checkpoint_set_aside(&aside, arena, out, KD_REMOVED_PREFIX, folders[i].name));
            KD_TRY(kd_checkpoint_discard(aside));
        }
    }
    return KD_OK;
}

kd_status kd_checkpoint_rotate(const char *out, int keep, int64_t best_step)
{
    kd_arena *arena;
    if (keep < 1)
        return kd_fail(KD_EINVAL, "keep: found %d checkpoints, expected at least 1", keep);
    KD_TRY(kd_arena_create(&arena));
    const kd_status status = rotate(arena, out, keep, best_step);
    kd_arena_destroy(arena);
    return status;
}
