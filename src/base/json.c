/* json.c - jansson, made strict. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32 };

/* tokenizer.json of a vocabulary of a million takes about 100 MB. */
static const size_t MAX_FILE = (size_t)512 << 20;

/* jansson recurses to 2,048 levels; this keeps every later walk over the tree shallow. */
static kd_status check_depth(const char *source, const char *text, size_t bytes)
{
    int depth = 0, line = 1;
    size_t line_start = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (c == '\n') {
            line++;
            line_start = i + 1;
        }
        if (quoted) {
            if (c == '\\') i++;
            if (c == '"') quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > MAX_DEPTH) {
                return kd_fail(KD_EFORMAT, "%s:%d:%zu: nested deeper than %d", source, line,
                               i - line_start + 1, MAX_DEPTH);
            }
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return KD_OK;
}

kd_status kd_json_parse(json_t **out, const char *source, const char *text, size_t bytes)
{
    KD_TRY(check_depth(source, text, bytes));
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
