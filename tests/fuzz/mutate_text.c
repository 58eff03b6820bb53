/* mutate_text.c - JSON by tokens, YAML by lines; neither need be well formed. */
#include "fuzz/fuzz.h"

enum { MAX_TOKENS = 4096, MAX_SPAN = 512 };

/* ---- JSON ------------------------------------------------------------------------------------- */

typedef struct token {
    uint32_t begin, end;
} token;

/* From the first token to the last, both of them in it. */
typedef struct span {
    int first, last;
} span;

static token tokens[MAX_TOKENS];

static size_t token_end(const fuzz_text *text, size_t at)
{
    const uint8_t *d = text->data;
    size_t end = at + 1;
    if (d[at] == '"') {
        while (end < text->bytes && d[end] != '"') end += d[end] == '\\' ? 2 : 1;
        return end < text->bytes ? end + 1 : text->bytes;
    }
    if (strchr("[]{},:", d[at])) return end;
    while (end < text->bytes && !strchr("[]{},:\" \t\n\r", d[end])) end++;
    return end;
}

static int find_tokens(const fuzz_text *text)
{
    int count = 0;
    for (size_t at = 0; at < text->bytes && count < MAX_TOKENS;) {
        if (text->data[at] && strchr(" \t\n\r", text->data[at])) {
            at++;
            continue;
        }
        const size_t end = token_end(text, at);
        tokens[count++] = (token){ (uint32_t)at, (uint32_t)end };
        at = end;
    }
    return count;
}

static int char_of(const fuzz_text *text, int count, int i)
{
    return i >= 0 && i < count ? text->data[tokens[i].begin] : 0;
}

/* A value, with its key where `whole` says so. */
static span choose(fuzz_text *text, int count, bool whole)
{
    int first = 0, depth = 0;
    for (int tries = 0; tries < 8; tries++) {
        first = (int)fuzz_random(text, (uint32_t)count);
        if (!strchr("]},:", char_of(text, count, first))) break;
    }
    int last = first;
    for (; last < count; last++) {
        const int c = char_of(text, count, last);
        depth += (c == '[' || c == '{') - (c == ']' || c == '}');
        if (depth <= 0) break;
    }
    if (last == count) last = first;
    if (whole && char_of(text, count, first - 1) == ':' && first > 1) first -= 2;
    return (span){ first, last };
}

static void replace(fuzz_text *text, span s, const void *with, size_t bytes)
{
    fuzz_splice(text, tokens[s.first].begin, tokens[s.last].end, with, bytes);
}

static void put_literal(fuzz_text *text, span s)
{
    static const char *const literals[] = { "0",
                                            "1",
                                            "2",
                                            "-1",
                                            "-0",
                                            "0.0",
                                            "1.0",
                                            "2e0",
                                            "1e999",
                                            "1e-5",
                                            "127",
                                            "128",
                                            "255",
                                            "256",
                                            "32767",
                                            "65535",
                                            "65536",
                                            "2147483647",
                                            "2147483648",
                                            "4294967296",
                                            "9007199254740993",
                                            "281474976710656",
                                            "281474976710657",
                                            "9223372036854775807",
                                            "9223372036854775808",
                                            "-9223372036854775808",
                                            "18446744073709551616",
                                            "true",
                                            "false",
                                            "null",
                                            "\"\"",
                                            "\"0\"",
                                            "[]",
                                            "{}",
                                            "[[]]",
                                            "[0]",
                                            "[0,0]",
                                            "[1,1,1,1,1,1,1,1,1]",
                                            "{\"\":0}",
                                            "\"\\u0000\"",
                                            "\"\\ud800\"",
                                            "\"../x\"",
                                            "\"/x\"",
                                            "\"\xff\"",
                                            "NaN",
                                            "-",
                                            "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[" };
    const char *chosen = literals[fuzz_random(text, KD_COUNT(literals))];
    replace(text, s, chosen, strlen(chosen));
}

static void nudge_number(fuzz_text *text, span s)
{
    char number[32];
    const token t = tokens[s.first];
    if (t.end - t.begin >= sizeof number) return;
    memcpy(number, text->data + t.begin, t.end - t.begin);
    number[t.end - t.begin] = '\0';
    char *end;
    const uint64_t value = (uint64_t)strtoll(number, &end, 10);
    if (end == number || *end) return;
    const uint64_t next[] = { value + 1, value - 1, value * 2, value / 2,
                              value + 8, value - 8, value * 8, UINT64_C(0) - value };
    snprintf(number, sizeof number, "%lld", (long long)next[fuzz_random(text, KD_COUNT(next))]);
    fuzz_splice(text, t.begin, t.end, number, strlen(number));
}

/* A copy of `from` in the place of `to`, or as one more element behind it. */
static void put_copy(fuzz_text *text, span to, span from, bool behind)
{
    uint8_t copy[MAX_SPAN + 1];
    const size_t begin = tokens[from.first].begin, bytes = tokens[from.last].end - begin;
    if (bytes > MAX_SPAN) return;
    copy[0] = ',';
    memcpy(copy + 1, text->data + begin, bytes);
    const size_t at = tokens[to.last].end;
    if (behind)
        fuzz_splice(text, at, at, copy, bytes + 1);
    else
        replace(text, to, copy + 1, bytes);
}

static void cut(fuzz_text *text, int count, span s)
{
    if (char_of(text, count, s.last + 1) == ',')
        s.last++;
    else if (char_of(text, count, s.first - 1) == ',')
        s.first--;
    replace(text, s, NULL, 0);
}

static void wrap(fuzz_text *text, span s, const char *open, const char *close)
{
    const size_t begin = tokens[s.first].begin, end = tokens[s.last].end;
    fuzz_splice(text, end, end, close, strlen(close));
    fuzz_splice(text, begin, begin, open, strlen(open));
}

static void edit_string(fuzz_text *text, span s)
{
    static const char *const pieces[] = { "\\u0000",      "\\ud800", "\\n",  "\xc3", "/",
                                          "../",          ".",       "\\\\", "\\\"", " ",
                                          "\xe2\x80\xa8", "a" };
    const token t = tokens[s.first];
    const char *piece = pieces[fuzz_random(text, KD_COUNT(pieces))];
    if (t.end - t.begin < 2) return;
    const size_t at = t.begin + 1 + fuzz_random(text, t.end - t.begin - 1);
    fuzz_splice(text, at, fuzz_random(text, 2) && at + 1 < t.end ? at + 1 : at, piece,
                strlen(piece));
}

void fuzz_mutate_json(fuzz_text *text)
{
    const int count = find_tokens(text);
    if (count == 0) {
        fuzz_splice(text, 0, text->bytes, "{}", 2);
        return;
    }
    const uint32_t choice = fuzz_random(text, 10);
    const span s = choose(text, count, choice == 1 || choice == 2);
    const bool number = strchr("-0123456789", char_of(text, count, s.first)) != NULL;
    switch (choice) {
    case 1: cut(text, count, s); break;
    case 2: put_copy(text, s, choose(text, count, true), true); break;
    case 3: put_copy(text, s, choose(text, count, false), false); break;
    case 4: wrap(text, s, "[", "]"); break;
    case 5: wrap(text, s, "{\"x\":", "}"); break;
    case 6:
    case 7:
    case 8:
        if (number)
            nudge_number(text, s);
        else if (char_of(text, count, s.first) == '"')
            edit_string(text, s);
        else
            put_copy(text, s, choose(text, count, false), false);
        break;
    default: put_literal(text, s);
    }
}

/* ---- YAML ------------------------------------------------------------------------------------- */

/* The line that has byte `at`: from `begin` to behind its newline. */
static void find_line(size_t *begin, size_t *end, const fuzz_text *text, size_t at)
{
    *begin = at;
    while (*begin > 0 && text->data[*begin - 1] != '\n') --*begin;
    const uint8_t *newline = memchr(text->data + at, '\n', text->bytes - at);
    *end = newline ? (size_t)(newline - text->data) + 1 : text->bytes;
}

static void put_value(fuzz_text *text, size_t begin, size_t end)
{
    static const char *const values[] = { "0",
                                          "1",
                                          "-1",
                                          "0.5",
                                          "1e300",
                                          "nan",
                                          "inf",
                                          "-inf",
                                          ".inf",
                                          "1e15",
                                          "9223372036854775807",
                                          "9223372036854775808",
                                          "null",
                                          "~",
                                          "true",
                                          "no",
                                          "\"\"",
                                          "''",
                                          "[]",
                                          "{}",
                                          "[1, 2]",
                                          "{a: b}",
                                          "*a",
                                          "&a b",
                                          "!t x",
                                          "\"\\u0000\"",
                                          "\"\\x85\"",
                                          "1.50",
                                          "0x10",
                                          "007",
                                          "1k",
                                          "500 steps",
                                          "30 min",
                                          "1e300 steps",
                                          "inf steps",
                                          "2 h",
                                          "never",
                                          "|",
                                          ">",
                                          "- - - -",
                                          "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
                                          "#",
                                          "a: b",
                                          "\"\\\"",
                                          "\xef\xbb\xbf",
                                          "1 000",
                                          "1_000" };
    const uint8_t *colon = memchr(text->data + begin, ':', end - begin);
    const char *value = values[fuzz_random(text, KD_COUNT(values))];
    const size_t at = colon ? (size_t)(colon - text->data) + 1 : begin;
    size_t stop = end;
    if (stop > at && text->data[stop - 1] == '\n') stop--;
    fuzz_splice(text, at, stop, value, strlen(value));
    if (colon) fuzz_splice(text, at, at, " ", 1);
}

/* The line at `at` gets a copy of another one before it. */
static void copy_line(fuzz_text *text, size_t at)
{
    uint8_t copy[MAX_SPAN];
    size_t begin, end;
    find_line(&begin, &end, text, fuzz_random(text, (uint32_t)text->bytes));
    if (end - begin > MAX_SPAN) return;
    memcpy(copy, text->data + begin, end - begin);
    fuzz_splice(text, at, at, copy, end - begin);
}

void fuzz_mutate_yaml(fuzz_text *text)
{
    size_t begin, end;
    if (text->bytes == 0) {
        fuzz_splice(text, 0, 0, "a: b\n", 5);
        return;
    }
    find_line(&begin, &end, text, fuzz_random(text, (uint32_t)text->bytes));
    switch (fuzz_random(text, 6)) {
    case 0: fuzz_splice(text, begin, end, NULL, 0); break;
    case 1: copy_line(text, begin); break;
    case 2: fuzz_splice(text, begin, begin, "  ", 2); break;
    case 3:
        if (end - begin > 2 && memcmp(text->data + begin, "  ", 2) == 0)
            fuzz_splice(text, begin, begin + 2, NULL, 0);
        break;
    default: put_value(text, begin, end);
    }
}
