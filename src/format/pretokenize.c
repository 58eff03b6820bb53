/*
 * pretokenize.c - cuts text into the words that are merged one by one.
 *
 * The patterns are those of GPT-2, Llama 3 and Qwen2, known by their exact text and scanned by hand in
 * the order of their alternatives: a general regular-expression engine may take exponential time, and
 * another one's \p{L} need not be ours.  Every alternative but the last two begins with a character
 * that decides how far it reaches, so a scan is linear.
 */
#include "format/bpe.h"

#include <string.h>

const char *const kd_split_patterns[KD_SPLIT_COUNT] = {
    [KD_SPLIT_GPT2] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    [KD_SPLIT_LLAMA3] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                        " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    [KD_SPLIT_QWEN2] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                       " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

/* ---- characters ------------------------------------------------------------------------------- */

/* Unicode 14, table 3-7: overlong forms, surrogates and what lies past U+10FFFF begin nothing. */
int kd_utf8_next(const char *text, size_t bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    const int length = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? -1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (length < 2) return length;
    if (s[0] > 0xf4) return -1;
    for (int i = 1; i < length; i++) {
        const unsigned char low = i > 1 ? 0x80 : s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
        const unsigned char high = i > 1 ? 0xbf : s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
        if ((size_t)i == bytes) return 0;
        if (s[i] < low || s[i] > high) return -i;
    }
    return length;
}

static uint32_t code_point(const char *text, int length)
{
    const unsigned char *s = (const unsigned char *)text;
    uint32_t point = length == 1 ? s[0] : s[0] & (0xffu >> (length + 1));
    for (int i = 1; i < length; i++) point = point << 6 | (s[i] & 0x3fu);
    return point;
}

static uint8_t class_of(uint32_t point)
{
    if (point == '\r' || point == '\n') return KD_CHAR_NEWLINE;
    int low = 0, high = kd_unicode_run_count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (kd_unicode_runs[middle] >> 8 <= point)
            low = middle;
        else
            high = middle;
    }
    return (uint8_t)(kd_unicode_runs[low] & 0xffu);
}

kd_status kd_classify(uint8_t *classes, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        const int length = kd_utf8_next(text + at, bytes - at);
        if (length <= 0)
            return kd_fail(KD_EFORMAT, "the text is not UTF-8: byte 0x%02x at offset %zu",
                           (unsigned char)text[at], at);
        const uint8_t class = class_of(code_point(text + at, length));
        classes[at] = class;
        for (int i = 1; i < length; i++) classes[at + (size_t)i] = class | KD_CHAR_CONTINUED;
        at += (size_t)length;
    }
    return KD_OK;
}

/* ---- scanners --------------------------------------------------------------------------------- */

typedef struct scan {
    const char *text;
    const uint8_t *classes;
    size_t end;
} scan;

static int class_at(const scan *s, size_t at)
{
    return at < s->end ? s->classes[at] & KD_CHAR_MASK : -1;
}

static bool space_at(const scan *s, size_t at)
{
    const int class = class_at(s, at);
    return class == KD_CHAR_SPACE || class == KD_CHAR_NEWLINE;
}

static size_t run(const scan *s, size_t at, int class)
{
    while (class_at(s, at) == class) at++;
    return at;
}

static size_t character(const scan *s, size_t at)
{
    for (at++; at < s->end && s->classes[at] & KD_CHAR_CONTINUED;) at++;
    return at;
}

/* Where 's 't 're 've 'm 'll 'd ends; `at` where there is none.  Folded, the long s is an s too. */
static size_t contraction(const scan *s, size_t at, bool folded)
{
    static const char *const tails[] = { "s", "t", "re", "ve", "m", "ll", "d", "\xc5\xbf" };
    if (s->text[at] != '\'') return at;
    for (int i = 0; i < KD_COUNT(tails) - !folded; i++) {
        const size_t n = strlen(tails[i]);
        size_t k = 0;
        if (s->end - at - 1 < n) continue;
        for (; k < n; k++) {
            const char c = s->text[at + 1 + k];
            if (c != tails[i][k] && !(folded && c >= 'A' && c <= 'Z' && c + 32 == tails[i][k]))
                break;
        }
        if (k == n) return at + 1 + n;
    }
    return at;
}

/* \s+(?!\S)|\s+ : white space but for the last before something else, unless that is all. */
static size_t white_space(const scan *s, size_t at)
{
    size_t end = at, last = at;
    while (space_at(s, end)) {
        last = end;
        end = character(s, end);
    }
    return end == s->end || last == at ? end : last;
}

static size_t gpt2(const scan *s, size_t at)
{
    static const int classes[] = { KD_CHAR_LETTER, KD_CHAR_NUMBER, KD_CHAR_OTHER };
    const size_t short_form = contraction(s, at, false);
    if (short_form > at) return short_form;
    const size_t from = at + (s->text[at] == ' ');
    for (int i = 0; i < KD_COUNT(classes); i++)
        if (class_at(s, from) == classes[i]) return run(s, from, classes[i]);
    return white_space(s, at);
}

/* \s*[\r\n]+ : through the last newline of the white space; `at` where there is none. */
static size_t through_newline(const scan *s, size_t at)
{
    size_t last = at;
    for (size_t i = at; space_at(s, i); i++)
        if (class_at(s, i) == KD_CHAR_NEWLINE) last = i + 1;
    return last;
}

static size_t numbers(const scan *s, size_t at, int most)
{
    for (int i = 0; i < most && class_at(s, at) == KD_CHAR_NUMBER; i++) at = character(s, at);
    return at;
}

static size_t llama3(const scan *s, size_t at, int most_digits)
{
    const size_t short_form = contraction(s, at, true);
    if (short_form > at) return short_form;
    const int class = class_at(s, at);
    if (class == KD_CHAR_LETTER) return run(s, at, KD_CHAR_LETTER);
    if (class == KD_CHAR_NUMBER) return numbers(s, at, most_digits);
    const size_t second = character(s, at);
    if (class != KD_CHAR_NEWLINE && class_at(s, second) == KD_CHAR_LETTER)
        return run(s, second, KD_CHAR_LETTER);
    const size_t from = at + (s->text[at] == ' ');
    if (class_at(s, from) == KD_CHAR_OTHER)
        return run(s, run(s, from, KD_CHAR_OTHER), KD_CHAR_NEWLINE);
    const size_t newline = through_newline(s, at);
    return newline > at ? newline : white_space(s, at);
}

static size_t digits(const scan *s, size_t at)
{
    if (class_at(s, at) == KD_CHAR_NUMBER) return character(s, at);
    while (at < s->end && class_at(s, at) != KD_CHAR_NUMBER) at++;
    return at;
}

size_t kd_split_next(kd_split split, const char *text, const uint8_t *classes, size_t at,
                     size_t end)
{
    const scan s = { text, classes, end };
    switch (split) {
    case KD_SPLIT_DIGITS: return digits(&s, at) - at;
    case KD_SPLIT_GPT2: return gpt2(&s, at) - at;
    case KD_SPLIT_LLAMA3: return llama3(&s, at, 3) - at;
    case KD_SPLIT_QWEN2: return llama3(&s, at, 1) - at;
    case KD_SPLIT_COUNT: break;
    }
    return end - at;
}
