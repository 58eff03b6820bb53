/*
 * bpe.c - text to ids and back, byte for byte as PyPI tokenizers does it.
 *
 * Encoding: added tokens are cut out of the text, first those that are matched before normalising,
 * leftmost and then longest; what is between them is split into words (pretokenize.c), and within a
 * word the pair of the lowest rank is merged first, of equal ranks the leftmost (Sennrich et al. 2016,
 * section 3.2).  A queue of pairs makes a word of n bytes O(n log n).
 *
 * Normalising is never done: NFC leaves most text as it is, and text it might not is refused.
 */
#include "format/bpe.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 30 };

/* ---- encoding --------------------------------------------------------------------------------- */

/* A piece of the word, in the list of pieces that are left. */
typedef struct symbol {
    int32_t id, previous, next; /* -1: none; id -1: merged into the one before */
} symbol;

/* That symbol `at` and the one after it could become `id`. */
typedef struct pair {
    int32_t rank, at, id;
} pair;

typedef struct encoder {
    const kd_tokenizer *tokenizer;
    const char *text;
    uint8_t *classes; /* of each byte */
    int32_t *ids;
    int64_t count, capacity;
    symbol *symbols; /* [word_capacity] */
    pair *queue;     /* [3 * word_capacity] a heap: every merge adds two pairs at most */
    size_t queued, word_capacity;
} encoder;

static kd_status grow(void **array, const char *what, size_t count, size_t size)
{
    void *larger = realloc(*array, count * size);
    if (!larger) return kd_fail(KD_ENOMEM, "%s: no memory for %zu entries", what, count);
    *array = larger;
    return KD_OK;
}

static kd_status emit(encoder *e, int32_t id)
{
    if (e->count == e->capacity) {
        const int64_t capacity = 2 * e->capacity + 64;
        KD_TRY(grow((void **)(void *)&e->ids, "ids", (size_t)capacity, sizeof *e->ids));
        e->capacity = capacity;
    }
    e->ids[e->count++] = id;
    return KD_OK;
}

static const kd_bpe_merge *find_merge(const kd_tokenizer *t, int32_t left, int32_t right)
{
    int64_t low = t->merge_begin[left], high = t->merge_begin[left + 1];
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const kd_bpe_merge *merge = &t->merges[middle];
        if (merge->right == right) return merge;
        if (merge->right < right)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static bool before(pair a, pair b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }

/* Queues the merge of symbol `at` with its next, where there is one. */
static void queue_pair(encoder *e, int32_t at)
{
    const symbol *s = e->symbols;
    if (at < 0 || s[at].next < 0) return;
    const kd_bpe_merge *merge = find_merge(e->tokenizer, s[at].id, s[s[at].next].id);
    if (!merge) return;
    const pair added = { merge->rank, at, merge->id };
    size_t i = e->queued++;
    for (; i > 0 && before(added, e->queue[(i - 1) / 2]); i = (i - 1) / 2)
        e->queue[i] = e->queue[(i - 1) / 2];
    e->queue[i] = added;
}

static pair take_pair(encoder *e)
{
    const pair first = e->queue[0], last = e->queue[--e->queued];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < e->queued; i = child) {
        child += child + 1 < e->queued && before(e->queue[child + 1], e->queue[child]);
        if (!before(e->queue[child], last)) break;
        e->queue[i] = e->queue[child];
    }
    e->queue[i] = last;
    return first;
}

static void merge_word(encoder *e)
{
    symbol *s = e->symbols;
    while (e->queued) {
        const pair top = take_pair(e);
        const int32_t next = s[top.at].id < 0 ? -1 : s[top.at].next;
        if (next < 0) continue;
        /* Queued before a neighbour changed.  The reference compares what the pair makes, not the
         * pair: so do we. */
        const kd_bpe_merge *merge = find_merge(e->tokenizer, s[top.at].id, s[next].id);
        if (!merge || merge->id != top.id) continue;
        s[top.at].id = top.id;
        s[top.at].next = s[next].next;
        s[next].id = -1;
        if (s[top.at].next >= 0) s[s[top.at].next].previous = top.at;
        queue_pair(e, s[top.at].previous);
        queue_pair(e, top.at);
    }
}

static kd_status reserve_word(encoder *e, size_t bytes)
{
    if (bytes <= e->word_capacity) return KD_OK;
    const size_t capacity = 2 * bytes;
    KD_TRY(grow((void **)(void *)&e->symbols, "word", capacity, sizeof *e->symbols));
    KD_TRY(grow((void **)(void *)&e->queue, "word", 3 * capacity, sizeof *e->queue));
    e->word_capacity = capacity;
    return KD_OK;
}

static kd_status encode_word(encoder *e, size_t at, size_t end)
{
    const kd_tokenizer *t = e->tokenizer;
    const int32_t n = (int32_t)(end - at);
    const int32_t whole = t->words ? kd_bpe_word(t, e->text + at, end - at) : -1;
    if (whole >= 0) return emit(e, whole);
    KD_TRY(reserve_word(e, end - at));
    for (int32_t i = 0; i < n; i++) {
        const unsigned char byte = (unsigned char)e->text[at + (size_t)i];
        e->symbols[i] = (symbol){ t->alphabet[byte], i - 1, i + 1 < n ? i + 1 : -1 };
        if (t->alphabet[byte] < 0)
            return kd_fail(KD_ENOTSUP, "%s: no token for byte 0x%02x at offset %zu", t->path, byte,
                           at + (size_t)i);
    }
    e->queued = 0;
    for (int32_t i = 0; i < n; i++) queue_pair(e, i);
    merge_word(e);
    for (int32_t i = 0; i >= 0; i = e->symbols[i].next) KD_TRY(emit(e, e->symbols[i].id));
    return KD_OK;
}

static kd_status encode_split(encoder *e, int split, size_t at, size_t end)
{
    const kd_tokenizer *t = e->tokenizer;
    while (at < end) {
        const bool last = split == t->split_count;
        const size_t n =
            last ? end - at : kd_split_next(t->splits[split], e->text, e->classes, at, end);
        KD_TRY(last ? encode_word(e, at, at + n) : encode_split(e, split + 1, at, at + n));
        at += n;
    }
    return KD_OK;
}

/* ---- added tokens ----------------------------------------------------------------------------- */

/* The end of the items of [low, high) whose byte `depth` is below `byte`. */
static int64_t bisect(const kd_bpe_added_set *set, int64_t low, int64_t high, size_t depth,
                      int byte)
{
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if ((unsigned char)set->items[middle].text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const kd_bpe_added *kd_bpe_match(const kd_bpe_added_set *set, const char *text, size_t bytes)
{
    const kd_bpe_added *best = NULL;
    int64_t low = 0, high = set->count;
    if (!bytes || !set->first[(unsigned char)text[0]]) return NULL;
    /* Items [low, high) begin with text[0 .. depth); the one of just that length comes first. */
    for (size_t depth = 0; low < high; depth++) {
        if (set->items[low].length == depth) best = &set->items[low++];
        if (depth == bytes || !text[depth]) break;
        const int byte = (unsigned char)text[depth];
        low = bisect(set, low, high, depth, byte);
        high = bisect(set, low, high, depth, byte + 1);
    }
    return best;
}

/* Cuts the tokens of `set` out, hands the rest to the next set and then to the words. */
static kd_status encode_piece(encoder *e, int set, size_t at, size_t end)
{
    const kd_tokenizer *t = e->tokenizer;
    if (set == KD_COUNT(t->added)) return encode_split(e, 0, at, end);
    size_t begin = at;
    while (at < end) {
        const kd_bpe_added *added = kd_bpe_match(&t->added[set], e->text + at, end - at);
        if (!added) {
            at++;
            continue;
        }
        if (added->takes)
            return kd_fail(KD_ENOTSUP, "%s: \"%.60s\" at offset %zu: an added token with %s",
                           t->path, added->text, at, added->takes);
        KD_TRY(encode_piece(e, set + 1, begin, at));
        KD_TRY(emit(e, added->id));
        begin = at += added->length;
    }
    return encode_piece(e, set + 1, begin, end);
}

/* ---- the whole text --------------------------------------------------------------------------- */

static kd_status check_classes(const encoder *e, size_t bytes)
{
    const kd_tokenizer *t = e->tokenizer;
    for (size_t i = 0; i < bytes; i++) {
        const int class = e->classes[i];
        if (t->split_count && (class & KD_CHAR_MASK) == KD_CHAR_DISPUTED)
            return kd_fail(KD_ENOTSUP,
                           "the character at byte %zu is a letter or a number in some versions of "
                           "Unicode only: its ids are not certain",
                           i);
        if (t->nfc && class & KD_CHAR_UNSTABLE)
            return kd_fail(KD_ENOTSUP,
                           "the character at byte %zu may change under NFC, which %s asks for; "
                           "normalise the text and avoid combining marks",
                           i, t->path);
    }
    return KD_OK;
}

static kd_status encode_text(encoder *e, size_t bytes, bool wrap)
{
    const kd_tokenizer *t = e->tokenizer;
    KD_TRY(grow((void **)(void *)&e->classes, "text", bytes + 1, 1));
    KD_TRY(kd_classify(e->classes, e->text, bytes));
    KD_TRY(check_classes(e, bytes));
    for (int i = 0; wrap && i < t->prefix_count; i++) KD_TRY(emit(e, t->prefix[i]));
    KD_TRY(encode_piece(e, 0, 0, bytes));
    for (int i = 0; wrap && i < t->suffix_count; i++) KD_TRY(emit(e, t->suffix[i]));
    return KD_OK;
}

kd_status kd_tokenizer_encode(int32_t **ids, int64_t *count, const kd_tokenizer *t,
                              const char *text, size_t bytes, bool wrap)
{
    const char *reason = t->no_encode ? t->no_encode : wrap ? t->no_wrap : NULL;
    if (reason) return kd_fail(KD_ENOTSUP, "%s: kd does not encode with %s", t->path, reason);
    if (bytes >= MAX_TEXT)
        return kd_fail(KD_EINVAL, "a text of %zu bytes; expected less than %d", bytes, MAX_TEXT);
    encoder e = { .tokenizer = t, .text = text };
    const kd_status status = encode_text(&e, bytes, wrap);
    free(e.classes);
    free(e.symbols);
    free(e.queue);
    if (status != KD_OK) {
        free(e.ids);
        return status;
    }
    *ids = e.ids;
    *count = e.count;
    return KD_OK;
}

/* ---- decoding --------------------------------------------------------------------------------- */

/* U+FFFD for each longest run of bytes that begins a character and does not end it, as Unicode 14
 * section 3.9 recommends and Rust and Python do. */
static size_t write_valid(char *out, kd_text_stream *s, const char *in, size_t n)
{
    size_t used = 0;
    for (size_t at = 0; at < n;) {
        const int length = kd_utf8_next(in + at, n - at);
        if (length == 0) {
            s->held_count = (int)(n - at);
            memcpy(s->held, in + at, n - at);
            break;
        }
        memcpy(out + used, length > 0 ? in + at : "\xef\xbf\xbd", length > 0 ? (size_t)length : 3);
        used += length > 0 ? (size_t)length : 3;
        at += (size_t)abs(length);
    }
    return used;
}

static kd_status append(size_t *used, kd_text_stream *s, const char *bytes, size_t n)
{
    const size_t held = (size_t)s->held_count, all = held + n;
    /* Behind what was written, room for three bytes out of each; the input lies at its end. */
    const size_t need = *used + 4 * all + 1;
    if (need > s->capacity) {
        KD_TRY(grow((void **)(void *)&s->text, "text", 2 * need, 1));
        s->capacity = 2 * need;
    }
    char *in = s->text + s->capacity - all;
    memcpy(in, s->held, held);
    if (n) memcpy(in + held, bytes, n);
    s->held_count = 0;
    *used += write_valid(s->text + *used, s, in, all);
    return KD_OK;
}

static kd_status push(size_t *used, kd_text_stream *s, int32_t id)
{
    const kd_tokenizer *t = s->tokenizer;
    if (id < 0) {
        const bool begun = s->held_count > 0;
        s->held_count = 0;
        return append(used, s, "\xef\xbf\xbd", begun ? 3 : 0);
    }
    if (id >= t->size)
        return kd_fail(KD_EINVAL, "id %d; the tokenizer of %s has %lld", id, t->path,
                       (long long)t->size);
    const kd_bpe_token *token = &t->tokens[id];
    const bool skip = !token->bytes || (token->special && s->skip_special);
    return append(used, s, token->bytes, skip ? 0 : token->length);
}

kd_status kd_text_stream_push(const char **text, size_t *bytes, kd_text_stream *s, int32_t id)
{
    *bytes = 0;
    KD_TRY(push(bytes, s, id));
    s->text[*bytes] = 0;
    *text = s->text;
    return KD_OK;
}

kd_status kd_tokenizer_decode(char **text, size_t *bytes, const kd_tokenizer *t, const int32_t *ids,
                              int64_t count, bool skip_special)
{
    kd_text_stream s = { .tokenizer = t, .skip_special = skip_special };
    kd_status status = KD_OK;
    *bytes = 0;
    for (int64_t i = 0; status == KD_OK && i < count; i++)
        status = ids[i] < 0 ? kd_fail(KD_EINVAL, "ids[%lld] is %d", (long long)i, ids[i])
                            : push(bytes, &s, ids[i]);
    if (status == KD_OK) status = push(bytes, &s, -1);
    if (status != KD_OK) {
        free(s.text);
        return status;
    }
    s.text[*bytes] = 0;
    *text = s.text;
    return KD_OK;
}

int64_t kd_tokenizer_size(const kd_tokenizer *t) { return t->size; }

int32_t kd_tokenizer_added(const kd_tokenizer *t, const char *text)
{
    for (int k = 0; k < KD_COUNT(t->added); k++) {
        const kd_bpe_added *added = kd_bpe_match(&t->added[k], text, strlen(text));
        if (added && added->length == strlen(text)) return added->id;
    }
    return -1;
}
