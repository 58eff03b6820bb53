/* fuzz.c - files in memory, and what counts as wrong. */
#include "fuzz/fuzz.h"

#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

static const char *const no_message = "nothing was said";

/* ---- files ------------------------------------------------------------------------------------ */

static char folder[64];

static void remove_folder(void) { (void)!kd_dir_remove(folder); }

static void no_line(void *context, kd_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *home = getenv("TMPDIR");
    (void)argc;
    (void)argv;
    kd_log_redirect(no_line, NULL);
    snprintf(folder, sizeof folder, "%s/kd-fuzz-XXXXXX", home ? home : "/dev/shm");
    fuzz_require(mkdtemp(folder), "%s: no folder", folder);
    atexit(remove_folder);
    return 0;
}

const char *fuzz_folder(void) { return folder; }

const char *fuzz_path(const char *name)
{
    static char paths[4][sizeof folder + 64];
    static int next;
    char *path = paths[next++ % KD_COUNT(paths)];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* What the files have: a mutation changes one of several, and opening is most of what a run costs. */
typedef struct written {
    char name[40];
    uint8_t *data;
    size_t bytes;
} written;

static written *find_written(const char *name)
{
    static written all[8];
    int i = 0;
    while (i + 1 < KD_COUNT(all) && all[i].name[0] && strcmp(all[i].name, name) != 0) i++;
    if (strcmp(all[i].name, name) == 0) return &all[i];
    free(all[i].data);
    all[i] = (written){ .data = NULL };
    snprintf(all[i].name, sizeof all[i].name, "%s", name);
    return &all[i];
}

void fuzz_remove(const char *name)
{
    written *w = find_written(name);
    free(w->data);
    *w = (written){ .data = NULL };
    (void)unlink(fuzz_path(name));
}

void fuzz_write(const char *name, const void *data, size_t bytes)
{
    written *w = find_written(name);
    if (w->data && w->bytes == bytes && memcmp(w->data, data, bytes) == 0) return;
    free(w->data);
    w->data = malloc(bytes + 1);
    fuzz_require(w->data, "no memory");
    memcpy(w->data, data, bytes);
    w->bytes = bytes;
    const char *path = fuzz_path(name);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    fuzz_require(fd >= 0, "%s: cannot be written", path);
    fuzz_ok(kd_write_at(fd, path, data, bytes, 0));
    close(fd);
}

void fuzz_write_parts(const fuzz_slot *slots, const fuzz_part *parts, int count)
{
    for (int i = 0; i < count; i++) fuzz_write(slots[i].name, parts[i].data, parts[i].bytes);
}

/* ---- verdicts --------------------------------------------------------------------------------- */

void fuzz_wrong(const char *file, int line, const char *what, const char *fmt, ...)
{
    va_list args;
    fprintf(stderr, "%s:%d: %s: ", file, line, what);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

void fuzz_begin(void) { (void)kd_fail(KD_EINTERNAL, "%s", no_message); }

bool fuzz_accepted(kd_status status, kd_status refusal, kd_status other, const char *name)
{
    const char *message = kd_last_error();
    if (status == KD_OK) return true;
    fuzz_require(status == refusal || status == other, "%s: %s", kd_status_text(status), message);
    fuzz_require(message[0] && strcmp(message, no_message) != 0, "refused without a message");
    fuzz_require(!name || strstr(message, name), "no \"%s\" in: %s", name, message);
    return false;
}

void fuzz_ok(kd_status status)
{
    fuzz_require(status == KD_OK, "%s: %s", kd_status_text(status), kd_last_error());
}
