/* The folder that a run writes: held by one run at a time, and swept of what dead ones left. */
#include "train/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- one run at a time ------------------------------------------------------------------------ */

enum { HOST = 64, OWNER = 128 };

static void host_name(char host[HOST])
{
    if (gethostname(host, HOST) != 0) strcpy(host, "localhost");
    host[HOST - 1] = '\0';
}

/* Who holds the lock, or "another run": a file that names a dead process of this host is of a holder
 * before this one, which has not yet written its own name. */
static void describe_holder(char text[OWNER + 32], int fd)
{
    char owner[OWNER + 1] = "", host[HOST];
    char *end;
    const ssize_t n = pread(fd, owner, OWNER, 0);
    owner[n > 0 ? n : 0] = '\0';
    owner[strcspn(owner, "\n")] = '\0';
    const long pid = strtol(owner, &end, 10);
    host_name(host);
    const bool ours = *end == ' ' && strcmp(end + 1, host) == 0;
    const bool dead = ours && kill((pid_t)pid, 0) != 0 && errno == ESRCH;
    if (pid > 0 && *end == ' ' && !dead)
        snprintf(text, OWNER + 32, "process %ld on %s", pid, end + 1);
    else
        snprintf(text, OWNER + 32, "another run");
}

static kd_status write_owner(int fd, const char *path)
{
    char host[HOST], owner[OWNER];
    host_name(host);
    const int n = snprintf(owner, sizeof owner, "%ld %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) != 0)
        return kd_fail(KD_EIO, "%s: cannot truncate: %s", path, strerror(errno));
    return kd_write_at(fd, path, owner, (size_t)n, 0);
}

static kd_status take(int fd, const char *out, const char *path)
{
    char holder[OWNER + 32];
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
        return kd_fail(KD_EFORMAT, "%s: not a regular file", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) {
            kd_log(KD_LOG_WARN,
                   "%s: cannot be locked (%s): that no other run writes to %s is left "
                   "to you",
                   path, strerror(errno), out);
            return KD_OK;
        }
        describe_holder(holder, fd);
        return kd_fail(KD_EFORMAT, "%s: %s writes here", out, holder);
    }
    return write_owner(fd, path);
}

kd_status kd_output_lock(int *lock, const char *out)
{
    char path[PATH_MAX];
    *lock = -1;
    KD_TRY(kd_dir_create(out));
    if (snprintf(path, sizeof path, "%s/.lock", out) >= (int)sizeof path)
        return kd_fail(KD_EIO, "%s: %s", out, strerror(ENAMETOOLONG));
    /* Never through a link, and without waiting for a FIFO's reader. */
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (fd < 0) return kd_fail(KD_EIO, "%s: cannot open: %s", path, strerror(errno));
    const kd_status status = take(fd, out, path);
    if (status != KD_OK)
        close(fd);
    else
        *lock = fd;
    return status;
}

kd_status kd_output_check(int lock, const char *out)
{
    struct stat held, now;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/.lock", out);
    if (stat(path, &now) != 0)
        return kd_fail(KD_EIO, "%s: removed while the run wrote there: %s", path, strerror(errno));
    if (fstat(lock, &held) == 0 && held.st_dev == now.st_dev && held.st_ino == now.st_ino)
        return KD_OK;
    return kd_fail(KD_EIO, "%s: another file than the one that this run has locked", path);
}

/* ---- what dead runs left ---------------------------------------------------------------------- */

/* Held by its writer as long as that lives.  Where nothing can be locked nothing is removed. */
static bool is_abandoned(const char *staging)
{
    const int fd = open(staging, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    const bool ours = flock(fd, LOCK_EX | LOCK_NB) == 0;
    close(fd);
    return ours;
}

static bool begins(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* What cannot be removed is reported and stays: a folder may be read by somebody who may not write. */
static void discard(const char *path)
{
    if (kd_checkpoint_discard(path) != KD_OK)
        kd_log(KD_LOG_WARN, "left by a run that was stopped: %s", kd_last_error());
    else
        kd_log(KD_LOG_INFO, "%s: left by a run that was stopped; removed", path);
}

/* out/.old-checkpoint-000500.1234, where the folder that was to replace it did not come. */
static kd_status put_back(kd_arena *arena, const char *out, const char *name)
{
    const char *from, *to, *was = name + strlen(KD_REPLACED_PREFIX);
    KD_TRY(kd_path_join(&from, arena, out, name));
    KD_TRY(kd_arena_format(&to, arena, "%s/%.*s", out, (int)strcspn(was, "."), was));
    if (kd_dir_exists(to)) {
        discard(from);
        return KD_OK;
    }
    if (rename(from, to) != 0)
        return kd_fail(KD_EIO, "%s: cannot rename to %s: %s", from, to, strerror(errno));
    kd_log(KD_LOG_INFO, "%s: was being replaced by a run that was stopped; put back", to);
    return kd_file_fsync(out);
}

/* Of the files of a finished model, of metrics.jsonl. */
static kd_status sweep_files(kd_arena *arena, const char *dir)
{
    const char *const *names, *path;
    int count;
    KD_TRY(kd_dir_list(&names, &count, arena, dir));
    for (int i = 0; i < count; i++) {
        if (!kd_file_is_staging(names[i])) continue;
        KD_TRY(kd_path_join(&path, arena, dir, names[i]));
        discard(path);
    }
    return KD_OK;
}

static kd_status sweep_students(kd_arena *arena, const char *out)
{
    const char *const *names, *students, *path;
    int count;
    KD_TRY(kd_path_join(&students, arena, out, "students"));
    if (!kd_dir_exists(students)) return KD_OK;
    KD_TRY(kd_dir_list(&names, &count, arena, students));
    for (int i = 0; i < count; i++) {
        KD_TRY(kd_path_join(&path, arena, students, names[i]));
        if (kd_dir_exists(path)) KD_TRY(sweep_files(arena, path));
    }
    return KD_OK;
}

static kd_status sweep(kd_arena *arena, const char *out)
{
    const char *const *names, *path;
    int count;
    KD_TRY(kd_dir_list(&names, &count, arena, out));
    for (int i = 0; i < count; i++) {
        KD_TRY(kd_path_join(&path, arena, out, names[i]));
        if (begins(names[i], KD_REPLACED_PREFIX "checkpoint-"))
            KD_TRY(put_back(arena, out, names[i]));
        else if (begins(names[i], KD_REMOVED_PREFIX "checkpoint-") ||
                 (begins(names[i], KD_STAGING_PREFIX) && is_abandoned(path)))
            discard(path);
    }
    KD_TRY(sweep_files(arena, out));
    return sweep_students(arena, out);
}

kd_status kd_output_sweep(const char *out)
{
    kd_arena *arena;
    KD_TRY(kd_arena_create(&arena));
    const kd_status status = sweep(arena, out);
    kd_arena_destroy(arena);
    return status;
}
