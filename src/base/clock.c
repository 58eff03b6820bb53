/* clock.c - time, memory and numbers as a person reads them; no allocation, no locale. */
#include "base/base.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double kd_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

const char *kd_format_count(char *buffer, size_t size, int64_t count)
{
    char digits[32], text[32];
    const int n = snprintf(digits, sizeof digits, "%lld", (long long)count);
    const int sign = count < 0;
    int used = 0;
    for (int i = 0; i < n; i++) {
        if (i > sign && (n - i) % 3 == 0) text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = '\0';
    snprintf(buffer, size, "%s", text);
    return buffer;
}

const char *kd_format_bytes(char *buffer, size_t size, double bytes)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB", "PB", "EB" };
    if (!isfinite(bytes)) {
        snprintf(buffer, size, "-");
        return buffer;
    }
    const char *sign = bytes < 0 ? "-" : "";
    double value = fabs(bytes);
    int unit = 0;
    /* 999.96 would be printed as 1000.0 of its unit. */
    while (unit + 1 < KD_COUNT(units) && value >= (unit == 0 ? 999.5 : 999.95)) {
        value /= 1000.0;
        unit++;
    }
    /* Integers, since "%.1f" would follow the locale. */
    if (unit == 0) {
        snprintf(buffer, size, "%s%.0f B", sign, value);
    } else {
        const double tenths = rint(10.0 * value);
        const double whole = floor(tenths / 10.0);
        snprintf(buffer, size, "%s%.0f.%.0f %s", sign, whole, tenths - 10.0 * whole, units[unit]);
    }
    return buffer;
}

const char *kd_format_duration(char *buffer, size_t size, double seconds)
{
    if (!(seconds >= 0 && seconds < 1e12)) { /* NaN too: a rate of zero has no time left */
        snprintf(buffer, size, "-");
        return buffer;
    }
    const long long total = llrint(seconds);
    const long long hours = total / 3600;
    const int minutes = (int)(total / 60 % 60), rest = (int)(total % 60);
    if (hours > 0) {
        snprintf(buffer, size, "%lld:%02d:%02d", hours, minutes, rest);
    } else {
        snprintf(buffer, size, "%d:%02d", minutes, rest);
    }
    return buffer;
}

/* ---- the nearest word ------------------------------------------------------------------------- */

enum { MAX_WORD = 64 };

/* Insertions, deletions, substitutions and exchanges of neighbours (optimal string alignment). */
static int edit_distance(const char *a, const char *b)
{
    const int n = (int)strlen(a), m = (int)strlen(b);
    int cost[3][MAX_WORD + 1];
    for (int j = 0; j <= m; j++) cost[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = cost[i % 3];
        const int *up = cost[(i + 2) % 3], *up2 = cost[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = up[j - 1] + (a[i - 1] != b[j - 1]);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                up2[j - 2] + 1 < best) {
                best = up2[j - 2] + 1;
            }
            row[j] = best;
        }
    }
    return cost[n % 3][m];
}

const char *kd_nearest(const char *word, const char *const *names)
{
    const size_t length = strlen(word);
    if (length == 0 || length > MAX_WORD) return NULL;
    const char *nearest = NULL;
    int least = 2 + (int)length / 3; /* one slip per three letters, and one */
    for (; *names; names++) {
        if (strlen(*names) > MAX_WORD) continue;
        const int distance = edit_distance(word, *names);
        /* A word of which every letter is wrong is not near, however short. */
        if (distance >= least || distance >= (int)length) continue;
        least = distance;
        nearest = *names;
    }
    return nearest;
}

/* ---- memory ----------------------------------------------------------------------------------- */

/* The kilobytes after `key` in /proc/self/status; without stdio, which would allocate. */
static size_t status_bytes(const char *key)
{
    char text[4096];
    const int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    const ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return 0;
    text[n] = '\0';
    const char *found = strstr(text, key);
    return found ? (size_t)strtoull(found + strlen(key), NULL, 10) * 1024 : 0;
}

size_t kd_resident_bytes(void) { return status_bytes("\nVmRSS:"); }
size_t kd_resident_peak_bytes(void) { return status_bytes("\nVmHWM:"); }
