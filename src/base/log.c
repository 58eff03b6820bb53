#include "base/base.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 2048 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int level = -1; /* not yet read from the environment */
static bool live;      /* the terminal's last line is to be rewritten */
static void (*sink)(void *, kd_log_level, const char *);
static void *sink_context;

void kd_log_set_level(kd_log_level to) { __atomic_store_n(&level, (int)to, __ATOMIC_RELAXED); }

kd_log_level kd_log_get_level(void)
{
    int now = __atomic_load_n(&level, __ATOMIC_RELAXED);
    if (now >= 0) return (kd_log_level)now;
    static const char *const names[] = { "error", "warn", "info", "debug" };
    const char *wanted = getenv("KD_LOG");
    now = KD_LOG_INFO;
    for (int i = 0; wanted && i < KD_COUNT(names); i++)
        if (strcmp(wanted, names[i]) == 0) now = i;
    kd_log_set_level((kd_log_level)now);
    return (kd_log_level)now;
}

void kd_log_redirect(void (*to)(void *, kd_log_level, const char *), void *context)
{
    pthread_mutex_lock(&lock);
    sink = to;
    sink_context = context;
    pthread_mutex_unlock(&lock);
}

/* `line` has room for two more bytes after its NUL. */
static void put(kd_log_level at, char *line, bool rewrite)
{
    pthread_mutex_lock(&lock);
    if (sink) {
        sink(sink_context, at, line);
    } else if (!rewrite || isatty(STDERR_FILENO)) {
        const bool terminal = isatty(STDERR_FILENO);
        char out[LINE_BYTES + 16];
        const int n = snprintf(out, sizeof out, "%s%s%s", live && terminal ? "\r\033[K" : "", line,
                               rewrite && terminal ? "" : "\n");
        live = rewrite && terminal;
        /* Nothing can be done about a log line that cannot be written. */
        if (n > 0 && write(STDERR_FILENO, out, (size_t)n) < 0) live = false;
    }
    pthread_mutex_unlock(&lock);
}

void kd_log(kd_log_level at, const char *fmt, ...)
{
    if (at > kd_log_get_level()) return;
    char text[LINE_BYTES], line[LINE_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    kd_escape(line, sizeof line, text);
    put(at, line, false);
}

void kd_log_live(const char *fmt, ...)
{
    if (KD_LOG_INFO > kd_log_get_level()) return;
    char line[LINE_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    put(KD_LOG_INFO, line, true);
}
