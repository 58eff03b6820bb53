#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 1024 };

static _Thread_local char last_error[MESSAGE_BYTES];

const char *kd_status_text(kd_status status)
{
    switch (status) {
#define X(name, value, exit_code, text)                                                            \
    case KD_##name: return text;
        KD_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

int kd_status_exit_code(kd_status status)
{
    switch (status) {
#define X(name, value, exit_code, text)                                                            \
    case KD_##name: return exit_code;
        KD_STATUS_LIST(X)
#undef X
    }
    return 1;
}

const char *kd_last_error(void) { return last_error; }

void kd_escape(char *to, size_t size, const char *text)
{
    size_t used = 0;
    int c1 = 0; /* bytes left of a character of U+0080 to U+009F */
    for (const unsigned char *c = (const unsigned char *)text; *c && used + 5 <= size; c++) {
        if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) c1 = 2;
        const bool control = *c < 0x20 || *c == 0x7f || c1 > 0;
        c1 -= c1 > 0;
        if (control)
            used += (size_t)snprintf(to + used, size - used, "\\x%02x", *c);
        else
            to[used++] = (char)*c;
    }
    to[used] = '\0';
}

void kd_record_failure(const char *fmt, ...)
{
    /* Formatted aside first: the arguments may point into last_error. */
    char message[MESSAGE_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    kd_escape(last_error, sizeof last_error, message);
}

kd_status kd_trace(kd_status status, const char *file, int line, const char *call)
{
    if (kd_log_get_level() >= KD_LOG_DEBUG)
        kd_log(KD_LOG_DEBUG, "  %s from %s:%d: %s", kd_status_text(status), file, line, call);
    return status;
}

bool kd_mul_i64(int64_t *product, int64_t a, int64_t b)
{
    return !__builtin_mul_overflow(a, b, product);
}

bool kd_add_i64(int64_t *sum, int64_t a, int64_t b) { return !__builtin_add_overflow(a, b, sum); }
