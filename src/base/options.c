/*
 * options.c - rows that parse configuration files and flags, print help, and are saved.
 *
 * Numbers are read and written in the C locale whatever setlocale() says.
 */
#include "base/base.h"

#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { PATH_BYTES = 256, TEXT_BYTES = 256 };

/* ---- numbers ---------------------------------------------------------------------------------- */

static const char *skip_spaces(const char *text) { return text + strspn(text, " \t"); }

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* What may follow a number: nothing, or the row's unit ("500 steps"). */
static bool ends_with_unit(const char *rest, const char *unit)
{
    rest = skip_spaces(rest);
    if (unit && rest[0] && strncmp(rest, unit, strlen(unit)) == 0) rest += strlen(unit);
    return *skip_spaces(rest) == '\0';
}

static bool append_digit(int64_t *value, char digit, int sign)
{
    return kd_mul_i64(value, *value, 10) && kd_add_i64(value, *value, sign * (digit - '0'));
}

/* value * 10^power where that is an integer and fits. */
static bool scale_by_ten(int64_t *value, int power)
{
    for (; power > 0 && *value != 0; power--) {
        if (!kd_mul_i64(value, *value, 10)) return false;
    }
    for (; power < 0 && *value != 0; power++) {
        if (*value % 10 != 0) return false;
        *value /= 10;
    }
    return true;
}

/* "-12", "1.5M", "1e6": exact, or refused. */
static bool parse_int(int64_t *out, const char *text, const char *unit)
{
    const char *c = skip_spaces(text);
    const int sign = *c == '-' ? -1 : 1;
    int64_t value = 0, exponent = 0;
    int power = 0, digits = 0;
    if (*c == '-' || *c == '+') c++;
    for (; is_digit(*c); c++, digits++) {
        if (!append_digit(&value, *c, sign)) return false;
    }
    if (*c == '.') {
        for (c++; is_digit(*c); c++, digits++, power--) {
            if (!append_digit(&value, *c, sign)) return false;
        }
    }
    if (digits == 0) return false;
    if (*c == 'e' || *c == 'E') {
        const int exponent_sign = c[1] == '-' ? -1 : 1;
        c += c[1] == '-' || c[1] == '+' ? 2 : 1;
        if (!is_digit(*c)) return false;
        for (; is_digit(*c); c++) {
            if (!append_digit(&exponent, *c, exponent_sign) || llabs(exponent) > 999) return false;
        }
    }
    power += (int)exponent;
    const char *suffix = skip_spaces(c);
    if (*suffix == 'K' || *suffix == 'M' || *suffix == 'B') {
        power += *suffix == 'K' ? 3 : *suffix == 'M' ? 6 : 9;
        c = suffix + 1;
    }
    if (!scale_by_ten(&value, power) || !ends_with_unit(c, unit)) return false;
    *out = value;
    return true;
}

static double c_locale_double(const char *text)
{
    const locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    const double value = strtod_l(text, NULL, c_locale);
    freelocale(c_locale);
    return value;
}

/* The bytes of a decimal number at `text`: no hexadecimal, inf or nan.  0 where there is none. */
static size_t number_length(bool *has_exponent, const char *text)
{
    const char *c = text;
    int digits = 0;
    if (*c == '-' || *c == '+') c++;
    for (; is_digit(*c); c++) digits++;
    if (*c == '.') c++;
    for (; is_digit(*c); c++) digits++;
    if (digits == 0) return 0;
    *has_exponent = *c == 'e' || *c == 'E';
    if (*has_exponent) {
        c++;
        if (*c == '-' || *c == '+') c++;
        if (!is_digit(*c)) return 0;
        c += strspn(c, "0123456789");
    }
    return (size_t)(c - text);
}

static bool parse_float(double *out, const char *text, const char *unit)
{
    char number[128];
    bool has_exponent = false;
    text = skip_spaces(text);
    const size_t length = number_length(&has_exponent, text);
    if (length == 0 || length + sizeof "e-2" > sizeof number) return false;
    memcpy(number, text, length + 1);
    number[length] = '\0';
    const char *rest = skip_spaces(text + length);
    if (*rest == '%') {
        if (has_exponent || !unit || strcmp(unit, "share") != 0) return false;
        memcpy(number + length, "e-2", 4); /* rounds once, so "2.2 %" is 0.022 */
        rest++;
    }
    const double value = c_locale_double(number);
    if (!isfinite(value) || !ends_with_unit(rest, unit)) return false;
    *out = value;
    return true;
}

/* The shortest text that reads back to the same bits. */
static void print_double(char *text, size_t size, double value)
{
    const locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    const locale_t before = uselocale(c_locale);
    if (value == rint(value) && fabs(value) < 1e15) {
        snprintf(text, size, "%.0f", value);
    } else {
        for (int digits = 1; digits <= 17; digits++) {
            snprintf(text, size, "%.*g", digits, value);
            if (strtod(text, NULL) == value) break;
        }
    }
    uselocale(before);
    freelocale(c_locale);
}

/* ---- choices and words ------------------------------------------------------------------------ */

/* The `index`th of "a|b|c" and its length; NULL past the last. */
static const char *choice_at(size_t *length, const char *choices, int index)
{
    const char *c = choices;
    for (; index > 0; index--) {
        c = strchr(c, '|');
        if (!c) return NULL;
        c++;
    }
    *length = strcspn(c, "|");
    return c;
}

static bool parse_choice(int *out, const char *text, const char *choices)
{
    size_t length;
    for (int i = 0;; i++) {
        const char *choice = choice_at(&length, choices, i);
        if (!choice) return false;
        if (strlen(text) == length && memcmp(text, choice, length) == 0) {
            *out = i;
            return true;
        }
    }
}

static bool parse_bool(bool *out, const char *text)
{
    static const char *const words[2][4] = { { "false", "no", "off", "0" },
                                             { "true", "yes", "on", "1" } };
    for (int value = 0; value < 2; value++) {
        for (int i = 0; i < 4; i++) {
            if (strcasecmp(text, words[value][i]) != 0) continue;
            *out = value == 1;
            return true;
        }
    }
    return false;
}

/* ---- what a row accepts, as text -------------------------------------------------------------- */

static const char *kind_name(const kd_option *row)
{
    switch (row->kind) {
    case KD_BOOL: return "bool";
    case KD_INT: return "int";
    case KD_FLOAT: return "float";
    case KD_STRING: return "text";
    case KD_CHOICE: return "choice";
    }
    return "?";
}

static bool is_bounded(const kd_option *row)
{
    return (row->kind == KD_INT || row->kind == KD_FLOAT) && (row->min != 0 || row->max != 0);
}

/* Bounds that only say "no bound" are not worth a reader's time. */
static bool is_open(double bound) { return isinf(bound) || fabs(bound) >= 1e15; }

static void describe_range(char *text, size_t size, const kd_option *row)
{
    char min[32], max[32];
    print_double(min, sizeof min, row->min);
    print_double(max, sizeof max, row->max);
    const char *unit = row->unit ? row->unit : "";
    const char *gap = unit[0] ? " " : "";
    if (!is_bounded(row) || (is_open(row->min) && is_open(row->max))) {
        snprintf(text, size, "%s", unit);
    } else if (is_open(row->max)) {
        snprintf(text, size, "at least %s%s%s", min, gap, unit);
    } else if (is_open(row->min)) {
        snprintf(text, size, "at most %s%s%s", max, gap, unit);
    } else {
        snprintf(text, size, "%s to %s%s%s", min, max, gap, unit);
    }
}

/* "0.05 to 100, default 1" */
static void describe_values(char *text, size_t size, const kd_option *row)
{
    char range[TEXT_BYTES];
    describe_range(range, sizeof range, row);
    const char *gap = range[0] ? ", " : "";
    if (!row->fallback) {
        snprintf(text, size, "%s%srequired", range, gap);
    } else if (row->fallback[0] == '\0') {
        snprintf(text, size, "%s%soptional", range, gap);
    } else {
        snprintf(text, size, "%s%sdefault %s", range, gap, row->fallback);
    }
}

/* "float, 0.05 to 100, default 1" */
static void describe(char *text, size_t size, const kd_option *row)
{
    char values[2 * TEXT_BYTES];
    describe_values(values, sizeof values, row);
    snprintf(text, size, "%s, %s", kind_name(row), values);
}

static void join(char *path, size_t size, const char *section, const char *name)
{
    const bool bare = !section || section[0] == '\0';
    snprintf(path, size, "%s%s%s", bare ? "" : section, bare ? "" : ".", name);
}

void kd_options_help(void *file, const char *path, const kd_option *rows)
{
    char full[PATH_BYTES], values[2 * TEXT_BYTES];
    int flags = 0, texts = 0;
    for (const kd_option *row = rows; row->name; row++) {
        join(full, sizeof full, path, row->name);
        describe_values(values, sizeof values, row);
        flags = (int)kd_max_i64(flags, (int64_t)strlen(full));
        texts = (int)kd_max_i64(texts, (int64_t)strlen(values));
    }
    texts = (int)kd_min_i64(texts, 40); /* one long row must not push the others off the screen */
    for (const kd_option *row = rows; row->name; row++) {
        char kind[16];
        join(full, sizeof full, path, row->name);
        describe_values(values, sizeof values, row);
        snprintf(kind, sizeof kind, "%s", kind_name(row));
        for (char *c = kind; *c; c++) *c = (char)(*c - 'a' + 'A');
        fprintf(file, "  --%-*s %-6s   %-*s   %s\n", flags, full, kind, texts, values,
                row->help ? row->help : "");
    }
}

/* ---- parsing ---------------------------------------------------------------------------------- */

static bool in_range(const kd_option *row, double value)
{
    return !is_bounded(row) || (value >= row->min && value <= row->max);
}

static kd_status parse_value(void *target, const kd_option *row, kd_arena *arena,
                             const kd_node *node, const char *path)
{
    char wanted[3 * TEXT_BYTES];
    describe(wanted, sizeof wanted, row);
    if (node->kind != KD_NODE_SCALAR) {
        return kd_node_fail(node, path, "expected %s; found a %s", wanted,
                            node->kind == KD_NODE_MAP ? "map" : "list");
    }
    void *slot = (char *)target + row->offset;
    bool good = true;
    switch (row->kind) {
    case KD_BOOL: good = parse_bool(slot, node->text); break;
    case KD_INT: {
        int64_t value;
        good = parse_int(&value, node->text, row->unit) && in_range(row, (double)value);
        if (good) *(int64_t *)slot = value;
        break;
    }
    case KD_FLOAT: {
        double value;
        good = parse_float(&value, node->text, row->unit) && in_range(row, value);
        if (good) *(double *)slot = value;
        break;
    }
    case KD_STRING: KD_TRY(kd_arena_string(slot, arena, node->text)); break;
    case KD_CHOICE: good = parse_choice(slot, node->text, row->unit); break;
    }
    if (good) return KD_OK;
    return kd_node_fail(node, path, "expected %s; found '%.80s'", wanted, node->text);
}

static const kd_option *find_row(const kd_option *rows, const char *name)
{
    for (const kd_option *row = rows; row->name; row++) {
        if (strcmp(row->name, name) == 0) return row;
    }
    return NULL;
}

static bool stands_in(const char *const *list, const char *name)
{
    for (; list && *list; list++) {
        if (strcmp(*list, name) == 0) return true;
    }
    return false;
}

static kd_status fail_unknown(const kd_node *node, const char *path, const kd_option *rows,
                              kd_arena *arena, const char *const *ignore)
{
    int count = 0;
    for (const kd_option *row = rows; row->name; row++) count++;
    for (const char *const *name = ignore; name && *name; name++) count++;
    const char **names;
    KD_TRY(KD_ARENA_ARRAY(&names, arena, count + 1));
    int n = 0;
    for (const kd_option *row = rows; row->name; row++) names[n++] = row->name;
    for (const char *const *name = ignore; name && *name; name++) names[n++] = *name;

    const char *near = kd_nearest(node->key, names);
    const kd_option *row = near ? find_row(rows, near) : NULL;
    if (row) {
        char wanted[3 * TEXT_BYTES];
        describe(wanted, sizeof wanted, row);
        return kd_node_fail(node, path, "unknown option; nearest: %s (%s)", near, wanted);
    }
    if (near) return kd_node_fail(node, path, "unknown option; nearest: %s", near);

    char known[TEXT_BYTES] = "none";
    size_t used = 0;
    for (int i = 0; i < n && used < sizeof known; i++) {
        used +=
            (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", names[i]);
    }
    return kd_node_fail(node, path, "unknown option; known: %s", known);
}

kd_status kd_options_parse(void *target, const kd_option *rows, kd_arena *arena, const kd_node *map,
                           const char *path, const char *const *ignore)
{
    char full[PATH_BYTES];
    const bool empty = map && map->kind == KD_NODE_SCALAR && map->text[0] == '\0';
    if (map && map->kind != KD_NODE_MAP && !empty) {
        return kd_node_fail(map, path && path[0] ? path : "the file",
                            "expected a map of options; found a %s",
                            map->kind == KD_NODE_LIST ? "list" : "text");
    }
    for (const kd_node *node = map ? map->child : NULL; node; node = node->next) {
        if (find_row(rows, node->key) || stands_in(ignore, node->key)) continue;
        join(full, sizeof full, path, node->key);
        return fail_unknown(node, full, rows, arena, ignore);
    }
    for (const kd_option *row = rows; row->name; row++) {
        const kd_node fallback = { .text = row->fallback, .source = "default" };
        const kd_node *node = kd_node_find(map, row->name);
        join(full, sizeof full, path, row->name);
        if (!node && !row->fallback) {
            char wanted[3 * TEXT_BYTES];
            describe(wanted, sizeof wanted, row);
            return kd_node_fail(map, full, "missing: %s (%s)", row->help ? row->help : "", wanted);
        }
        KD_TRY(parse_value(target, row, arena, node ? node : &fallback, full));
    }
    return KD_OK;
}

/* ---- printing --------------------------------------------------------------------------------- */

/* Reads back as itself without quotes: conservative, a needless quote is harmless. */
static bool is_plain(const char *text)
{
    const size_t length = strlen(text);
    /* A leading '-' or '.' may begin a list or end a document. */
    return length > 0 && text[0] != '-' && text[0] != '.' && strcmp(text, "null") != 0 &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.-") ==
               length;
}

/* The code point of the `bytes` UTF-8 bytes at `c`; never past the NUL of a text cut short. */
static unsigned decode(int *bytes, const unsigned char *c)
{
    const int length = c[0] < 0x80 ? 1 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    unsigned point = length == 1 ? c[0] : c[0] & (0xffu >> (length + 1));
    *bytes = 1;
    for (; *bytes < length && c[*bytes]; ++*bytes) point = point << 6 | (c[*bytes] & 0x3fu);
    return point;
}

/* What YAML refuses or folds when it stands in a text as it is. */
static bool must_escape(unsigned point)
{
    return point < 0x20 || (point >= 0x7f && point < 0xa0) || point == 0x2028 || point == 0x2029 ||
           point == 0xfeff || point == 0xfffe || point == 0xffff;
}

/* False where `size` bytes do not hold it. */
static bool print_quoted(char *out, size_t size, const char *text)
{
    size_t used = 0;
    int bytes;
    if (size < 3) return false;
    out[used++] = '"';
    for (const unsigned char *c = (const unsigned char *)text; *c; c += bytes) {
        char piece[8];
        const unsigned point = decode(&bytes, c);
        int n;
        if (must_escape(point)) {
            n = snprintf(piece, sizeof piece, "\\u%04x", point);
        } else if (point == '"' || point == '\\') {
            n = snprintf(piece, sizeof piece, "\\%c", (int)point);
        } else {
            n = snprintf(piece, sizeof piece, "%.*s", bytes, (const char *)c);
        }
        if (used + (size_t)n + 2 > size) return false;
        memcpy(out + used, piece, (size_t)n);
        used += (size_t)n;
    }
    memcpy(out + used, "\"", 2);
    return true;
}

static bool print_text(char *text, size_t size, const char *value)
{
    if (!value) value = "";
    if (!is_plain(value)) return print_quoted(text, size, value);
    return snprintf(text, size, "%s", value) < (int)size;
}

kd_status kd_option_print(char *text, size_t size, const void *target, const kd_option *row)
{
    const void *slot = (const char *)target + row->offset;
    char number[32];
    bool fits = false;
    size_t length = 0;
    switch (row->kind) {
    case KD_BOOL: fits = print_text(text, size, *(const bool *)slot ? "true" : "false"); break;
    case KD_INT:
        snprintf(number, sizeof number, "%" PRId64, *(const int64_t *)slot);
        fits = snprintf(text, size, "%s", number) < (int)size;
        break;
    case KD_FLOAT:
        print_double(number, sizeof number, *(const double *)slot);
        fits = snprintf(text, size, "%s", number) < (int)size;
        break;
    case KD_STRING: fits = print_text(text, size, *(const char *const *)slot); break;
    case KD_CHOICE: {
        const char *choice = choice_at(&length, row->unit, *(const int *)slot);
        if (!choice) return kd_fail(KD_EINVAL, "%s: no choice %d", row->name, *(const int *)slot);
        fits = snprintf(text, size, "%.*s", (int)length, choice) < (int)size;
        break;
    }
    }
    return fits ? KD_OK : kd_fail(KD_EINVAL, "%s: does not fit %zu bytes", row->name, size);
}
