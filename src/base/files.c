/*
 * files.c - reading, writing and folders, each step checked.
 *
 * Status: an input that is missing, unreadable or not a regular file is KD_EFORMAT (the user named
 * the wrong thing); a disk that fails or is full is KD_EIO.
 */
#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static kd_status io_failed(int error, const char *path, const char *verb)
{
    return kd_fail(error == ENOMEM ? KD_ENOMEM : KD_EIO, "%s: cannot %s: %s", path, verb,
                   strerror(error));
}

static kd_status input_failed(int error, const char *path, const char *verb)
{
    switch (error) {
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case EACCES:
    case ELOOP:
    case ENXIO: /* a socket */
    case ENAMETOOLONG: return kd_fail(KD_EFORMAT, "%s: cannot %s: %s", path, verb, strerror(error));
    default: return io_failed(error, path, verb);
    }
}

/* ---- bytes ------------------------------------------------------------------------------------ */

kd_status kd_read_at(int fd, const char *path, void *data, size_t bytes, int64_t at)
{
    enum {
        MOST = 16 << 20
    }; /* a slow disk's answer to a signal must not wait for a whole tensor */
    for (size_t done = 0; done < bytes;) {
        const size_t left = bytes - done;
        KD_TRY(kd_stop_read(path));
        const ssize_t n =
            pread(fd, (char *)data + done, left < MOST ? left : MOST, (off_t)at + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_failed(errno, path, "read");
        if (n == 0) {
            return kd_fail(KD_EFORMAT, "%s: ends at byte %lld, expected %zu bytes at byte %lld",
                           path, (long long)at + (long long)done, bytes, (long long)at);
        }
        done += (size_t)n;
    }
    return KD_OK;
}

kd_status kd_write_at(int fd, const char *path, const void *data, size_t bytes, int64_t at)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t n =
            pwrite(fd, (const char *)data + done, bytes - done, (off_t)at + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            return kd_fail(KD_EIO, "%s: cannot write %zu bytes at byte %lld: %s", path,
                           bytes - done, (long long)at + (long long)done,
                           n < 0 ? strerror(errno) : "nothing was written");
        }
        done += (size_t)n;
    }
    return KD_OK;
}

kd_status kd_fsync(int fd, const char *path)
{
    while (fsync(fd) != 0) {
        if (errno == EINTR) continue;
        if (errno == EINVAL) return KD_OK; /* a file system without fsync for this kind of file */
        return io_failed(errno, path, "fsync");
    }
    return KD_OK;
}

/* close() reports what a delayed write could not store; after EINTR Linux has closed the file. */
static kd_status close_written(int fd, const char *path)
{
    if (close(fd) != 0 && errno != EINTR) return io_failed(errno, path, "close");
    return KD_OK;
}

kd_status kd_file_fsync(const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return io_failed(errno, path, "open for fsync");
    const kd_status status = kd_fsync(fd, path);
    close(fd);
    return status;
}

static kd_status sync_parent(const char *path)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    const size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= sizeof dir) return io_failed(ENAMETOOLONG, path, "fsync the folder");
    memcpy(dir, path, length);
    dir[length] = '\0';
    return kd_file_fsync(!slash ? "." : length == 0 ? "/" : dir);
}

/* ---- whole files ------------------------------------------------------------------------------ */

kd_status kd_file_open(int *fd, int64_t *bytes, const char *path)
{
    /* O_NONBLOCK: opening a FIFO that nobody writes to must not hang. */
    const int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (opened < 0) return input_failed(errno, path, "open");
    struct stat info;
    if (fstat(opened, &info) != 0) {
        const int error = errno;
        close(opened);
        return io_failed(error, path, "stat");
    }
    if (!S_ISREG(info.st_mode)) {
        close(opened);
        return kd_fail(KD_EFORMAT, "%s: not a regular file", path);
    }
    *fd = opened;
    *bytes = info.st_size;
    return KD_OK;
}

kd_status kd_file_read(char **data, size_t *bytes, const char *path, size_t limit)
{
    int fd;
    int64_t size;
    char *text = NULL;
    kd_status status;
    KD_TRY(kd_file_open(&fd, &size, path));
    if ((uint64_t)size > limit) {
        status = kd_fail(KD_EFORMAT, "%s: %lld bytes, at most %zu are accepted", path,
                         (long long)size, limit);
        goto failed;
    }
    text = malloc((size_t)size + 1);
    if (!text) {
        status = kd_fail(KD_ENOMEM, "%s: no memory for %lld bytes", path, (long long)size);
        goto failed;
    }
    KD_TRY_GOTO(kd_read_at(fd, path, text, (size_t)size, 0), status, failed);
    close(fd);
    text[size] = '\0';
    *data = text;
    *bytes = (size_t)size;
    return KD_OK;

failed:
    close(fd);
    free(text);
    return status;
}

/* ".tmp-1234-5" at the end: process and number. */
#define STAGING_MARK ".tmp-"

bool kd_file_is_staging(const char *name)
{
    const char *mark = NULL;
    for (const char *at = name; (at = strstr(at, STAGING_MARK)); at++) mark = at;
    if (!mark || mark == name) return false;
    const char *process = mark + strlen(STAGING_MARK);
    const size_t first = strspn(process, "0123456789");
    if (first == 0 || process[first] != '-') return false;
    const char *number = process + first + 1;
    const size_t second = strspn(number, "0123456789");
    return second > 0 && number[second] == '\0';
}

kd_status kd_file_stage(char staging[PATH_MAX], int *fd, const char *path)
{
    static atomic_uint serial;
    struct stat there;
    if (stat(path, &there) == 0 && !S_ISREG(there.st_mode) && !S_ISDIR(there.st_mode))
        return kd_fail(KD_EINVAL, "%s: not a regular file; writing would replace it", path);
    for (int attempt = 0; attempt < 1000; attempt++) {
        const unsigned number = atomic_fetch_add(&serial, 1);
        const int length =
            snprintf(staging, PATH_MAX, "%s" STAGING_MARK "%ld-%u", path, (long)getpid(), number);
        if (length < 0 || length >= PATH_MAX) return io_failed(ENAMETOOLONG, path, "write");
        *fd = open(staging, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (*fd >= 0) return KD_OK;
        if (errno != EEXIST) return io_failed(errno, path, "write");
    }
    return io_failed(EEXIST, staging, "create");
}

kd_status kd_file_publish(int fd, const char *staging, const char *path)
{
    kd_status status = kd_fsync(fd, path);
    const kd_status closed = close_written(fd, path);
    if (status == KD_OK) status = closed;
    if (status == KD_OK && rename(staging, path) != 0)
        status = io_failed(errno, path, "rename onto");
    if (status == KD_OK) return sync_parent(path);
    unlink(staging);
    return status;
}

kd_status kd_file_write_atomic(const char *path, const void *data, size_t bytes)
{
    char staging[PATH_MAX];
    int fd;
    KD_TRY(kd_file_stage(staging, &fd, path));
    const kd_status status = kd_write_at(fd, path, data, bytes, 0);
    if (status == KD_OK) return kd_file_publish(fd, staging, path);
    close(fd);
    unlink(staging);
    return status;
}

static kd_status copy_bytes(int to, const char *to_path, int from, const char *from_path,
                            int64_t bytes)
{
    enum { CHUNK = 1 << 16 };
    char chunk[CHUNK];
    for (int64_t at = 0; at < bytes; at += CHUNK) {
        const size_t n = (size_t)kd_min_i64(CHUNK, bytes - at);
        KD_TRY(kd_read_at(from, from_path, chunk, n, at));
        KD_TRY(kd_write_at(to, to_path, chunk, n, at));
    }
    return KD_OK;
}

kd_status kd_file_copy(const char *to, const char *from)
{
    int source, target = -1;
    int64_t bytes;
    char staging[PATH_MAX];
    kd_status status;
    KD_TRY(kd_file_open(&source, &bytes, from));
    /* Through a staging name, so that copying a file onto itself or onto a link to it is safe. */
    KD_TRY_GOTO(kd_file_stage(staging, &target, to), status, done);
    status = copy_bytes(target, to, source, from, bytes);
    if (status == KD_OK) {
        status = kd_file_publish(target, staging, to);
    } else {
        close(target);
        unlink(staging);
    }

done:
    close(source);
    return status;
}

kd_status kd_file_size(int64_t *bytes, const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) return input_failed(errno, path, "stat");
    if (!S_ISREG(info.st_mode)) return kd_fail(KD_EFORMAT, "%s: not a regular file", path);
    *bytes = info.st_size;
    return KD_OK;
}

bool kd_file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

kd_status kd_file_find(bool *there, const char *path)
{
    int64_t bytes;
    struct stat link;
    *there = lstat(path, &link) == 0 || errno != ENOENT;
    return *there ? kd_file_size(&bytes, path) : KD_OK;
}

bool kd_dir_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* ---- folders ---------------------------------------------------------------------------------- */

kd_status kd_dir_create(const char *path)
{
    char partial[PATH_MAX];
    const size_t length = strlen(path);
    if (length == 0) return kd_fail(KD_EINVAL, "cannot create a folder without a name");
    if (length >= sizeof partial) return io_failed(ENAMETOOLONG, path, "create the folder");
    memcpy(partial, path, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        partial[i] = '\0';
        if (mkdir(partial, 0777) == 0) {
            KD_TRY(sync_parent(partial));
        } else {
            const int error = errno;
            if (!kd_dir_exists(partial)) return io_failed(error, partial, "create the folder");
        }
        partial[i] = path[i];
    }
    return KD_OK;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
    (void)info;
    (void)type;
    (void)ftw;
    if (remove(path) != 0 && errno != ENOENT) return (int)io_failed(errno, path, "remove");
    return 0;
}

kd_status kd_dir_remove(const char *path)
{
    struct stat info;
    if (lstat(path, &info) != 0) {
        return errno == ENOENT ? KD_OK : io_failed(errno, path, "remove");
    }
    if (!S_ISDIR(info.st_mode)) return kd_fail(KD_EINVAL, "%s: not a folder, not removed", path);
    /* FTW_PHYS: a link is removed, never followed. */
    const int result = nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return result < 0 ? io_failed(errno, path, "remove") : (kd_status)result;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static kd_status list_entries(const char ***names, int *count, kd_arena *arena, DIR *dir,
                              const char *path)
{
    const char **list = NULL;
    int n = 0, room = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry && errno != 0) return io_failed(errno, path, "list");
        if (!entry) break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (n == room) {
            const char **grown;
            room = room == 0 ? 64 : 2 * room;
            KD_TRY(KD_ARENA_ARRAY(&grown, arena, room));
            for (int i = 0; i < n; i++) grown[i] = list[i];
            list = grown;
        }
        KD_TRY(kd_arena_string(&list[n], arena, entry->d_name));
        n++;
    }
    *names = list;
    *count = n;
    return KD_OK;
}

kd_status kd_dir_list(const char *const **names, int *count, kd_arena *arena, const char *path)
{
    DIR *dir = opendir(path);
    if (!dir) return input_failed(errno, path, "list");
    const char **list = NULL;
    const kd_status status = list_entries(&list, count, arena, dir, path);
    closedir(dir);
    KD_TRY(status);
    if (*count > 1) qsort(list, (size_t)*count, sizeof *list, compare_names);
    *names = list;
    return KD_OK;
}

kd_status kd_path_join(const char **out, kd_arena *arena, const char *dir, const char *name)
{
    const size_t length = strlen(dir);
    const bool bare = length == 0 || dir[length - 1] == '/';
    return kd_arena_format(out, arena, "%s%s%s", dir, bare ? "" : "/", name);
}
