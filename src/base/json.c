/* json.c - jansson, made strict. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32, MAX_VALUES = 1 << 24 };

/* tokenizer.json of a vocabulary of a million takes about 100 MB. */
static const size_t MAX_FILE = (size_t)512 << 20;

/* Where in the text a scan stands. */
typedef struct place {
    const char *source;
    int line;
    size_t line_start;
} place;

static kd_status refuse(const place *p, size_t at, const char *what)
{
    return kd_fail(KD_EFORMAT, "%s:%d:%zu: %s", p->source, p->line, at - p->line_start + 1, what);
}

/* Whether the minus at text[i] is that of an integer -0: not of 1e-05, nor of -0.5. */
static bool is_zero(const char *text, size_t i, size_t bytes)
{
    const bool exponent = i > 0 && strchr("eE", text[i - 1]);
    return !exponent && i + 1 < bytes && text[i + 1] == '0' &&
           (i + 2 == bytes || !strchr(".eE", text[i + 2]));
}

/* What jansson would let through, found before it allocates: it recurses to 2,048 levels, makes up to
 * a hundred bytes of "[],", and reads -0 as the integer 0. */
static kd_status scan(const char *source, const char *text, size_t bytes)
{
    place p = { source, 1, 0 };
    int depth = 0, values = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (c == '\n') {
            p.line++;
            p.line_start = i + 1;
        }
        if (quoted && c == '\\') {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (quoted) {
            continue;
        } else if (c == '[' || c == '{') {
            if (++depth > MAX_DEPTH) return refuse(&p, i, "nested deeper than 32");
            values++;
        } else if (c == ']' || c == '}') {
            depth--;
        } else if (c == ',') {
            values++;
        } else if (c == '-' && is_zero(text, i, bytes)) {
            return refuse(&p, i, "-0 is not a decimal integer");
        }
        if (values > MAX_VALUES) return refuse(&p, i, "more than 16777216 values");
    }
    return KD_OK;
}

kd_status kd_json_parse(json_t **out, const char *source, const char *text, size_t bytes)
{
    KD_TRY(scan(source, text, bytes));
    json_error_t error;
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!value) {
        const bool memory = json_error_code(&error) == json_error_out_of_memory;
        return kd_fail(memory ? KD_ENOMEM : KD_EFORMAT, "%s:%d:%d: %s", source, error.line,
                       error.column, error.text);
    }
    *out = value;
    return KD_OK;
}

kd_status kd_json_read(json_t **out, const char *path)
{
    char *text;
    size_t bytes;
    KD_TRY(kd_file_read(&text, &bytes, path, MAX_FILE));
    const kd_status status = kd_json_parse(out, path, text, bytes);
    free(text);
    return status;
}

const char *kd_json_show(char *buffer, size_t size, const json_t *value)
{
    const size_t flags = JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15);
    const size_t n = value ? json_dumpb(value, buffer, size - 1, flags) : 0;
    if (!value || n > size - 1) return value ? "a long value" : "nothing";
    buffer[n] = '\0';
    return buffer;
}

kd_status kd_json_write(const char *path, const json_t *value)
{
    char *text = json_dumps(value, JSON_INDENT(2));
    if (!text) {
        return kd_fail(KD_EINVAL, "%s: not a JSON object or list, or out of memory", path);
    }
    const size_t bytes = strlen(text);
    text[bytes] = '\n'; /* in place of the NUL: the write takes a length */
    const kd_status status = kd_file_write_atomic(path, text, bytes + 1);
    free(text);
    return status;
}
