/* json.c - jansson, made strict. */
#include "base/base.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32, MAX_VALUES = 1 << 24 };

/* tokenizer.json of a vocabulary of a million takes about 100 MB. */
static const size_t MAX_FILE = (size_t)512 << 20;

/* ---- memory ----------------------------------------------------------------------------------- */

/* jansson lives through a refused allocation everywhere but in its reader, which loses a byte of a token
 * without a word, or ends the process by an assertion.  So a reader that is refused gets what it asks
 * for out of memory that was put aside before, and nothing more to read. */
typedef struct reserve {
    char *memory;
    size_t used, size;
} reserve;

static json_malloc_t inner_malloc;
static json_free_t inner_free;
static _Thread_local int64_t refused;
static _Thread_local reserve aside; /* of the reader that runs */

static void *from_reserve(size_t bytes)
{
    const size_t need = kd_round_up(bytes, 16);
    refused++;
    if (need < bytes || need > aside.size - aside.used) return NULL;
    aside.used += need;
    return aside.memory + aside.used - need;
}

static void *json_take(size_t bytes)
{
    void *memory = inner_malloc(bytes);
    return memory ? memory : from_reserve(bytes);
}

static void json_give(void *memory)
{
    const uintptr_t at = (uintptr_t)memory, begin = (uintptr_t)aside.memory;
    if (at - begin >= aside.size) inner_free(memory);
}

/* In front of what the program has set, if it has. */
static void stand_before(void)
{
    json_get_alloc_funcs(&inner_malloc, &inner_free);
    json_set_alloc_funcs(json_take, json_give);
}

int64_t kd_json_refused(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, stand_before);
    return refused;
}

kd_status kd_json_made(json_t **value, int64_t before, const char *what)
{
    const bool memory = kd_json_refused() != before;
    if (*value && !memory) return KD_OK;
    json_decref(*value);
    *value = NULL;
    return memory ? kd_fail(KD_ENOMEM, "%s: no memory", what)
                  : kd_fail(KD_EINVAL, "%s: a text in it is not UTF-8", what);
}

/* ---- reading ---------------------------------------------------------------------------------- */

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

/* In scan: what began at `token` ends before `at`. */
static void end_token(size_t *longest, size_t *token, size_t at)
{
    if (*longest <= at - *token) *longest = at - *token + 1;
    *token = at;
}

/* What jansson would let through, found before it allocates: it recurses to 2,048 levels, makes up to
 * a hundred bytes of "[],", and reads -0 as the integer 0.  No
 * token has more than `longest` bytes. */
static kd_status scan(size_t *longest, const char *source, const char *text, size_t bytes)
{
    place p = { source, 1, 0 };
    int depth = 0, values = 0;
    bool quoted = false;
    size_t token = 0; /* the one at i begins here, or behind */
    *longest = 0;
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
            end_token(longest, &token, i);
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
        if (!quoted && (c == ',' || c == ':')) end_token(longest, &token, i);
    }
    end_token(longest, &token, bytes);
    return KD_OK;
}

/* What a reader still has to read. */
typedef struct feed {
    const char *text;
    size_t bytes;
    int64_t before;
} feed;

/* In small pieces, so that a reader that was refused soon ends. */
static size_t next_piece(void *buffer, size_t size, void *context)
{
    enum { PIECE = 256 };
    feed *f = context;
    size_t n = f->bytes < size ? f->bytes : size;
    if (n > PIECE) n = PIECE;
    if (refused != f->before) return (size_t)-1;
    if (n) memcpy(buffer, f->text, n);
    f->text += n;
    f->bytes -= n;
    return n;
}

/* For a buffer that doubles until it holds the longest token, and for small objects of one piece. */
static kd_status put_aside(size_t longest, const char *source)
{
    size_t token = 4096;
    while (token / 2 <= longest) token *= 2;
    aside = (reserve){ .memory = malloc(2 * token), .size = 2 * token };
    if (aside.memory) return KD_OK;
    aside.size = 0;
    return kd_fail(KD_ENOMEM, "%s: no memory", source);
}

kd_status kd_json_parse(json_t **out, const char *source, const char *text, size_t bytes)
{
    feed f = { text, bytes, kd_json_refused() };
    json_error_t error;
    size_t longest;
    KD_TRY(scan(&longest, source, text, bytes));
    KD_TRY(put_aside(longest, source));
    json_t *value = json_load_callback(next_piece, &f, JSON_REJECT_DUPLICATES, &error);
    kd_status status = KD_OK;
    if (!value && refused == f.before)
        status = kd_fail(KD_EFORMAT, "%s:%d:%d: %s", source, error.line, error.column, error.text);
    else
        status = kd_json_made(&value, f.before, source);
    free(aside.memory); /* after what was made of it */
    aside = (reserve){ .size = 0 };
    if (status == KD_OK) *out = value;
    return status;
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

/* ---- writing ---------------------------------------------------------------------------------- */

const char *kd_json_show(char *buffer, size_t size, const json_t *value)
{
    const size_t flags = JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15);
    const size_t n = value ? json_dumpb(value, buffer, size - 1, flags) : 0;
    if (!value || n > size - 1) return value ? "a long value" : "nothing";
    buffer[n] = '\0';
    return buffer;
}

kd_status kd_json_dump(char **text, const char *what, const json_t *value, size_t flags)
{
    const int64_t before = kd_json_refused();
    *text = json_dumps(value, flags);
    if (*text && kd_json_refused() == before) return KD_OK;
    free(*text);
    return kd_fail(value ? KD_ENOMEM : KD_EINVAL, "%s: no %s", what, value ? "memory" : "JSON");
}

kd_status kd_json_print(FILE *out, const char *what, const json_t *value)
{
    char *text;
    KD_TRY(kd_json_dump(&text, what, value, JSON_INDENT(2)));
    fprintf(out, "%s\n", text);
    free(text);
    return KD_OK;
}

kd_status kd_json_write(const char *path, const json_t *value)
{
    char *text;
    KD_TRY(kd_json_dump(&text, path, value, JSON_INDENT(2)));
    const size_t bytes = strlen(text);
    text[bytes] = '\n'; /* in place of the NUL: the write takes a length */
    const kd_status status = kd_file_write_atomic(path, text, bytes + 1);
    free(text);
    return status;
}

/* ---- options ---------------------------------------------------------------------------------- */

/* A text stays one: a folder called 1.50 is not the number 1.5. */
static kd_status value_of(json_t **value, const void *target, const kd_option *row)
{
    char text[128], list[sizeof text + 2];
    if (row->kind == KD_STRING) {
        const char *string = *(const char *const *)((const char *)target + row->offset);
        *value = json_string(string ? string : "");
        return KD_OK;
    }
    KD_TRY(kd_option_print(text, sizeof text, target, row));
    /* Numbers and booleans are JSON too, a choice is not. */
    json_t *parsed;
    snprintf(list, sizeof list, "[%s]", text);
    const kd_status status = kd_json_parse(&parsed, row->name, list, strlen(list));
    if (status == KD_ENOMEM) return status;
    *value = status == KD_OK ? json_incref(json_array_get(parsed, 0)) : json_string(text);
    if (status == KD_OK) json_decref(parsed);
    return KD_OK;
}

kd_status kd_options_json(json_t *map, const void *target, const kd_option *rows)
{
    for (const kd_option *row = rows; row->name; row++) {
        json_t *value = NULL;
        KD_TRY(value_of(&value, target, row));
        if (json_object_set_new(map, row->name, value) != 0)
            return kd_fail(KD_ENOMEM, "configuration: no memory");
    }
    return KD_OK;
}
