/*
 * bpe_load.c - a byte-level BPE model out of tokenizer.json.
 *
 * Refused, because other readers were broken by it: ids that are not integers of [0, 2^24), that two
 * tokens share, or that leave more holes than there are tokens; merges of unknown tokens; an added
 * token without text, twice, or at odds with the vocabulary; model options that change the algorithm.
 *
 * Everything is found by bisection in sorted arrays, never by hashing: a file cannot choose keys that
 * collide.
 */
#include "format/bpe.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_HOLES = 1024 };

/* ---- the byte alphabet ------------------------------------------------------------------------ */

/* GPT-2's: a byte that prints stands for itself, the others for U+0100 and on, in order. */
static void fill_alphabet(int16_t bytes[512])
{
    int next = 256;
    for (int i = 0; i < 512; i++) bytes[i] = -1;
    for (int byte = 0; byte < 256; byte++) {
        const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        bytes[prints ? byte : next++] = (int16_t)byte;
    }
}

/* A token's text as its bytes; a token with a character outside the alphabet stands for its own
 * text, as in PyPI tokenizers. */
static kd_status token_bytes(kd_bpe_token *token, kd_arena *arena, const int16_t alphabet[512],
                             const char *text)
{
    const size_t n = strlen(text);
    char *bytes;
    uint32_t count = 0;
    KD_TRY(KD_ARENA_ARRAY(&bytes, arena, (int64_t)n + 1));
    for (size_t i = 0; i < n;) {
        const unsigned char *s = (const unsigned char *)text + i;
        const int length = s[0] < 0x80 ? 1 : 2; /* jansson let only UTF-8 through */
        const unsigned point = length == 1 ? s[0] : (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu);
        const int byte = s[0] < 0xe0 && point < 512 ? alphabet[point] : -1;
        if (byte < 0) {
            memcpy(bytes, text, n);
            *token = (kd_bpe_token){ .bytes = bytes, .length = (uint32_t)n };
            return KD_OK;
        }
        bytes[count++] = (char)byte;
        i += (size_t)length;
    }
    *token = (kd_bpe_token){ .bytes = bytes, .length = count, .plain = true };
    return KD_OK;
}

/* ---- tokens ----------------------------------------------------------------------------------- */

/* Ids bound every table, so they must be about as many as the tokens. */
static kd_status measure_ids(kd_tokenizer *t, json_t *vocab, const json_t *added)
{
    const char *text;
    json_t *value;
    int32_t id;
    json_object_foreach(vocab, text, value)
    {
        KD_TRY(kd_token_id(&id, t->path, "token", text, value));
        t->size = kd_max_i64(t->size, (int64_t)id + 1);
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        KD_TRY(kd_token_added(&text, &id, t->path, json_array_get(added, i), i));
        if (!*text || strlen(text) > KD_MAX_ADDED_BYTES)
            return kd_fail(KD_EFORMAT,
                           "%s: added_tokens[%zu]: content of %zu bytes, expected 1 to %d", t->path,
                           i, strlen(text), KD_MAX_ADDED_BYTES);
        t->size = kd_max_i64(t->size, (int64_t)id + 1);
    }
    const int64_t count = (int64_t)(json_object_size(vocab) + json_array_size(added));
    if (t->size > 2 * count + MAX_HOLES)
        return kd_fail(KD_EFORMAT, "%s: largest id %lld of %lld tokens, expected at most %lld",
                       t->path, (long long)t->size - 1, (long long)count,
                       (long long)(2 * count + MAX_HOLES - 1));
    return KD_OK;
}

static kd_status load_vocabulary(kd_tokenizer *t, json_t *vocab, const int16_t alphabet[512])
{
    const char *text;
    json_t *value;
    KD_TRY(KD_ARENA_ARRAY(&t->tokens, t->arena, t->size));
    for (int i = 0; i < 256; i++) t->alphabet[i] = -1;
    json_object_foreach(vocab, text, value)
    {
        const int32_t id = (int32_t)json_integer_value(value);
        kd_bpe_token *token = &t->tokens[id];
        if (token->bytes)
            return kd_fail(KD_EFORMAT, "%s: token \"%.60s\" shares id %d with another", t->path,
                           text, id);
        KD_TRY(token_bytes(token, t->arena, alphabet, text));
        if (token->plain && token->length == 1) t->alphabet[(unsigned char)token->bytes[0]] = id;
    }
    return KD_OK;
}

/* ---- added tokens ----------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b)
{
    return strcmp(((const kd_bpe_added *)a)->text, ((const kd_bpe_added *)b)->text);
}

/* PyPI tokenizers numbers the added tokens that are not in the vocabulary itself, whatever the file
 * says: a file that says otherwise would have other ids there. */
static kd_status check_added_id(const kd_tokenizer *t, const char *text, int64_t id,
                                const json_t *vocab, int64_t largest)
{
    const json_t *known = json_object_get(vocab, text);
    const int64_t count = (int64_t)json_object_size(vocab);
    const int64_t want =
        known ? (int64_t)json_integer_value(known) : kd_max_i64(count, largest + 1);
    if (id == want && (known || !t->tokens[id].bytes)) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: added token \"%.60s\" has id %lld, expected %lld %s", t->path,
                   text, (long long)id, (long long)want,
                   known ? "as in the vocabulary" : "after the tokens before it");
}

static kd_status load_added_token(kd_tokenizer *t, const json_t *item, const json_t *vocab,
                                  int64_t *largest, const int16_t alphabet[512])
{
    static const char *const strips[] = { "single_word", "lstrip", "rstrip" };
    const char *text = json_string_value(json_object_get(item, "content"));
    const int32_t id = (int32_t)json_integer_value(json_object_get(item, "id"));
    kd_bpe_token *token = &t->tokens[id];
    KD_TRY(check_added_id(t, text, id, vocab, *largest));
    *largest = kd_max_i64(*largest, id);
    if (!token->bytes) {
        KD_TRY(token_bytes(token, t->arena, alphabet, text));
        token->plain = false; /* no merge gives it */
    }
    token->special = json_is_true(json_object_get(item, "special"));
    kd_bpe_added_set *set = &t->added[json_is_true(json_object_get(item, "normalized"))];
    kd_bpe_added *added = &set->items[set->count++];
    *added = (kd_bpe_added){ .length = (uint32_t)strlen(text), .id = id };
    for (int i = 0; i < KD_COUNT(strips); i++)
        if (json_is_true(json_object_get(item, strips[i]))) added->takes = strips[i];
    set->first[(unsigned char)text[0]] = true;
    return kd_arena_string(&added->text, t->arena, text);
}

static kd_status load_added(kd_tokenizer *t, const json_t *list, const json_t *vocab,
                            const int16_t alphabet[512])
{
    const size_t n = json_array_size(list);
    int64_t largest = -1;
    for (int k = 0; k < 2; k++) KD_TRY(KD_ARENA_ARRAY(&t->added[k].items, t->arena, (int64_t)n));
    for (size_t i = 0; i < n; i++)
        KD_TRY(load_added_token(t, json_array_get(list, i), vocab, &largest, alphabet));
    for (int k = 0; k < 2; k++) {
        kd_bpe_added_set *set = &t->added[k];
        if (set->count) qsort(set->items, (size_t)set->count, sizeof *set->items, by_text);
        for (int64_t i = 1; i < set->count; i++)
            if (strcmp(set->items[i].text, set->items[i - 1].text) == 0)
                return kd_fail(KD_EFORMAT, "%s: added token \"%.60s\" twice", t->path,
                               set->items[i].text);
    }
    return KD_OK;
}

/* ---- merges ----------------------------------------------------------------------------------- */

static int by_pair(const void *a, const void *b)
{
    const kd_bpe_merge *x = a, *y = b;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    if (x->right != y->right) return x->right < y->right ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

/* The texts of both sides and of what they give, each with its NUL, in one allocation. */
static kd_status merge_texts(char *texts[3], const kd_tokenizer *t, const json_t *merge, size_t i)
{
    const char *left, *right;
    size_t m;
    KD_TRY(kd_token_merge(&left, &m, &right, t->path, merge, i));
    const size_t n = strlen(right);
    texts[2] = malloc(2 * (m + n) + 3);
    if (!texts[2]) return kd_fail(KD_ENOMEM, "%s: no memory", t->path);
    memcpy(texts[2], left, m);
    memcpy(texts[2] + m, right, n + 1);
    texts[0] = texts[2] + m + n + 1;
    memcpy(texts[0], left, m);
    texts[0][m] = '\0';
    texts[1] = texts[0] + m + 1;
    memcpy(texts[1], right, n + 1);
    return KD_OK;
}

static kd_status load_merge(kd_bpe_merge *out, const kd_tokenizer *t, const json_t *merge,
                            const json_t *vocab, size_t i)
{
    char *texts[3] = { NULL };
    int32_t ids[3] = { -1, -1, -1 };
    KD_TRY(merge_texts(texts, t, merge, i));
    int k = 0;
    for (; k < 3; k++) {
        const json_t *id = json_object_get(vocab, texts[k]);
        if (!id) break;
        ids[k] = (int32_t)json_integer_value(id);
    }
    const kd_status status =
        k == 3 ? KD_OK
               : kd_fail(KD_EFORMAT, "%s: model.merges[%zu]: \"%.60s\" is not in the vocabulary",
                         t->path, i, texts[k]);
    *out = (kd_bpe_merge){ .left = ids[0], .right = ids[1], .rank = (int32_t)i, .id = ids[2] };
    free(texts[2]);
    return status;
}

static kd_status load_merges(kd_tokenizer *t, const json_t *merges, const json_t *vocab)
{
    const size_t n = json_array_size(merges); /* < 2^24, as kd_json_parse bounds all values */
    int64_t kept = 0;
    if (!merges) return kd_fail(KD_EFORMAT, "%s: model.merges is missing", t->path);
    KD_TRY(KD_ARENA_ARRAY(&t->merges, t->arena, (int64_t)n));
    KD_TRY(KD_ARENA_ARRAY(&t->merge_begin, t->arena, t->size + 1));
    for (size_t i = 0; i < n; i++)
        KD_TRY(load_merge(&t->merges[i], t, json_array_get(merges, i), vocab, i));
    if (n) qsort(t->merges, n, sizeof *t->merges, by_pair);
    for (size_t i = 0; i < n; i++) {
        const kd_bpe_merge merge = t->merges[i];
        const kd_bpe_merge *last = kept ? &t->merges[kept - 1] : NULL;
        /* Of a pair that is there twice the later counts, as in PyPI tokenizers. */
        const bool again = last && last->left == merge.left && last->right == merge.right;
        t->merges[again ? kept - 1 : kept] = merge;
        kept += !again;
    }
    for (int64_t left = 0, at = 0; left <= t->size; left++) {
        while (at < kept && t->merges[at].left < left) at++;
        t->merge_begin[left] = at;
    }
    return KD_OK;
}

/* ---- whole words ------------------------------------------------------------------------------ */

static int compare_bytes(const kd_bpe_token *a, const kd_bpe_token *b)
{
    const uint32_t n = a->length < b->length ? a->length : b->length;
    const int order = memcmp(a->bytes, b->bytes, n);
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

/* qsort has no context in C11; a tokenizer is loaded by one thread. */
static _Thread_local const kd_bpe_token *sort_tokens;

static int by_bytes(const void *a, const void *b)
{
    return compare_bytes(&sort_tokens[*(const int32_t *)a], &sort_tokens[*(const int32_t *)b]);
}

static kd_status load_words(kd_tokenizer *t)
{
    KD_TRY(KD_ARENA_ARRAY(&t->words, t->arena, t->size));
    for (int32_t id = 0; id < t->size; id++)
        if (t->tokens[id].plain) t->words[t->word_count++] = id;
    sort_tokens = t->tokens;
    qsort(t->words, (size_t)t->word_count, sizeof *t->words, by_bytes);
    return KD_OK;
}

int32_t kd_bpe_word(const kd_tokenizer *t, const char *bytes, size_t count)
{
    int64_t low = 0, high = t->word_count;
    if (count > INT32_MAX) return -1;
    const kd_bpe_token word = { .bytes = bytes, .length = (uint32_t)count };
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const int order = compare_bytes(&t->tokens[t->words[middle]], &word);
        if (order == 0) return t->words[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

/* ---- the whole -------------------------------------------------------------------------------- */

static bool empty(const json_t *value)
{
    return !value || json_is_null(value) || (json_is_string(value) && !*json_string_value(value));
}

static kd_status check_model(const kd_tokenizer *t, const json_t *model)
{
    static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    const char *type = json_string_value(json_object_get(model, "type"));
    /* Old files name no type; only BPE has merges. */
    if (type ? strcmp(type, "BPE") != 0 : !json_object_get(model, "merges"))
        return kd_fail(KD_ENOTSUP, "%s: model.type %.60s; kd reads BPE", t->path,
                       type ? type : "is missing and there are no merges");
    const json_t *vocab = json_object_get(model, "vocab");
    char shown[80];
    if (!json_is_object(vocab))
        return kd_fail(KD_EFORMAT, "%s: model.vocab is %s, expected an object", t->path,
                       kd_json_show(shown, sizeof shown, vocab));
    for (int i = 0; i < KD_COUNT(affixes); i++)
        if (!empty(json_object_get(model, affixes[i])))
            return kd_fail(KD_ENOTSUP, "%s: model.%s; kd reads byte-level BPE, which has none",
                           t->path, affixes[i]);
    if (json_number_value(json_object_get(model, "dropout")) != 0.0)
        return kd_fail(KD_ENOTSUP, "%s: model.dropout: its ids are random", t->path);
    if (json_is_true(json_object_get(model, "byte_fallback")))
        return kd_fail(KD_ENOTSUP, "%s: model.byte_fallback; kd reads byte-level BPE", t->path);
    return KD_OK;
}

static kd_status load(kd_tokenizer *t, const json_t *json)
{
    const json_t *model = json_object_get(json, "model"), *merges, *added;
    int16_t alphabet[512];
    KD_TRY(check_model(t, model));
    json_t *vocab = json_object_get(model, "vocab");
    KD_TRY(kd_token_list(&merges, t->path, json_object_get(model, "merges"), "model.merges"));
    KD_TRY(kd_token_list(&added, t->path, json_object_get(json, "added_tokens"), "added_tokens"));
    fill_alphabet(alphabet);
    KD_TRY(measure_ids(t, vocab, added));
    KD_TRY(load_vocabulary(t, vocab, alphabet));
    KD_TRY(load_added(t, added, vocab, alphabet));
    KD_TRY(load_merges(t, merges, vocab));
    if (json_is_true(json_object_get(model, "ignore_merges"))) KD_TRY(load_words(t));
    return kd_bpe_load_pipeline(t, json);
}

kd_status kd_tokenizer_open(kd_tokenizer **tokenizer, const char *dir)
{
    kd_arena *arena = NULL;
    kd_tokenizer *t;
    json_t *json = NULL;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(KD_ARENA_ARRAY(&t, arena, 1), status, failed);
    t->arena = arena;
    KD_TRY_GOTO(kd_path_join(&t->path, arena, dir, "tokenizer.json"), status, failed);
    KD_TRY_GOTO(kd_json_read(&json, t->path), status, failed);
    KD_TRY_GOTO(load(t, json), status, failed);
    json_decref(json);
    *tokenizer = t;
    return KD_OK;
failed:
    json_decref(json);
    kd_arena_destroy(arena);
    return status;
}

void kd_tokenizer_close(kd_tokenizer *t)
{
    if (t) kd_arena_destroy(t->arena);
}
