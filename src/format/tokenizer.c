/*
 * tokenizer.c - is this the same tokenizer?
 *
 * Two directories hold the same tokenizer when the canonical texts of their tokenizer.json are equal,
 * however the files were formatted and whichever library wrote them.  The fingerprint is XXH3-128 of
 * that text, which is, in UTF-8, lines ended by "\n", in this order:
 *
 *   id TAB token                  of model.vocab, by ascending id
 *   id TAB token TAB score        instead, where model.vocab is a list of [token, score] (Unigram);
 *                                 the score is a JSON real
 *   left SPACE right              of model.merges in their order, from "left right" or ["left", "right"]
 *   normalizer                    as JSON, "null" where it is absent
 *   pre_tokenizer                 as JSON, "null" where it is absent
 *   id TAB content TAB special    of added_tokens, by ascending id; special is 0 or 1
 *
 * JSON is written without spaces, keys sorted by their bytes, strings raw but for \" \\ \b \f \n \r \t
 * and \u00XX (upper case) below U+0020, reals with %.17g, ".0" where no point or exponent shows, and
 * exponents without plus or leading zeros: what jansson writes.
 * Ids are decimal; nothing is escaped in tokens.  tools/data/fingerprint.py computes the same.
 *
 * Post-processor, decoder and truncation do not change which ids a text has, so they do not count.
 */
#include "format/format.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

enum { MAX_IDS = 1 << 24 };

typedef struct token {
    int64_t id;
    const char *text;
    bool special;
} token;

/* What is being hashed, and where it came from. */
typedef struct canon {
    const char *path;
    kd_arena *arena;
    FILE *out;
    int64_t size; /* largest id + 1 */
} canon;

static int by_id(const void *a, const void *b)
{
    const token *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static kd_status check_id(const canon *c, const char *what, const char *text, const json_t *id)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MAX_IDS)
        return kd_fail(KD_EFORMAT, "%s: %s \"%.60s\": id %lld, expected an integer from 0 to %d",
                       c->path, what, text, (long long)json_integer_value(id), MAX_IDS - 1);
    return KD_OK;
}

static kd_status sort_tokens(canon *c, const char *what, token *tokens, int64_t count)
{
    if (count) qsort(tokens, (size_t)count, sizeof *tokens, by_id);
    for (int64_t i = 1; i < count; i++) {
        if (tokens[i].id == tokens[i - 1].id)
            return kd_fail(KD_EFORMAT, "%s: %s \"%.60s\" and \"%.60s\" share id %lld", c->path,
                           what, tokens[i - 1].text, tokens[i].text, (long long)tokens[i].id);
    }
    if (count) c->size = kd_max_i64(c->size, tokens[count - 1].id + 1);
    return KD_OK;
}

/* A line of JSON. */
static kd_status write_part(canon *c, const json_t *part)
{
    const size_t flags = JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17);
    if (json_dumpf(part ? part : json_null(), c->out, flags) != 0)
        return kd_fail(KD_ENOMEM, "%s: no memory", c->path);
    (void)fputc('\n', c->out);
    return KD_OK;
}

static kd_status write_vocabulary(canon *c, json_t *vocab)
{
    token *tokens = NULL;
    int64_t n = 0;
    const char *text;
    json_t *value;
    KD_TRY(KD_ARENA_ARRAY(&tokens, c->arena, (int64_t)json_object_size(vocab)));
    json_object_foreach(vocab, text, value)
    {
        KD_TRY(check_id(c, "token", text, value));
        tokens[n++] = (token){ .id = (int64_t)json_integer_value(value), .text = text };
    }
    KD_TRY(sort_tokens(c, "tokens", tokens, n));
    for (int64_t i = 0; i < n; i++)
        (void)fprintf(c->out, "%lld\t%s\n", (long long)tokens[i].id, tokens[i].text);
    return KD_OK;
}

static kd_status write_unigram(canon *c, const json_t *vocab)
{
    const size_t n = json_array_size(vocab);
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(vocab, i);
        const char *text = json_string_value(json_array_get(pair, 0));
        const json_t *score = json_array_get(pair, 1);
        if (!text || !json_is_number(score) || i >= MAX_IDS)
            return kd_fail(KD_EFORMAT,
                           "%s: model.vocab[%zu], expected [token, score] and at most %d", c->path,
                           i, MAX_IDS);
        (void)fprintf(c->out, "%zu\t%s\t", i, text);
        json_t *real = json_real(json_number_value(score));
        const kd_status status = write_part(c, real);
        json_decref(real);
        KD_TRY(status);
    }
    c->size = (int64_t)n;
    return KD_OK;
}

static kd_status write_merges(canon *c, const json_t *merges)
{
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *whole = json_string_value(merge);
        const char *left = json_string_value(json_array_get(merge, 0));
        const char *right = json_string_value(json_array_get(merge, 1));
        const char *space = whole ? strchr(whole, ' ') : NULL;
        if (space && !strchr(space + 1, ' '))
            (void)fprintf(c->out, "%s\n", whole);
        else if (left && right && json_array_size(merge) == 2)
            (void)fprintf(c->out, "%s %s\n", left, right);
        else
            return kd_fail(KD_EFORMAT, "%s: model.merges[%zu], expected \"a b\" or [\"a\", \"b\"]",
                           c->path, i);
    }
    return KD_OK;
}

static kd_status write_added(canon *c, const json_t *added)
{
    token *tokens = NULL;
    const size_t n = json_array_size(added);
    KD_TRY(KD_ARENA_ARRAY(&tokens, c->arena, (int64_t)n));
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(added, i), *id = json_object_get(item, "id");
        const char *text = json_string_value(json_object_get(item, "content"));
        if (!text) return kd_fail(KD_EFORMAT, "%s: added_tokens[%zu] has no content", c->path, i);
        KD_TRY(check_id(c, "added token", text, id));
        tokens[i] = (token){ .id = (int64_t)json_integer_value(id),
                             .text = text,
                             .special = json_is_true(json_object_get(item, "special")) };
    }
    KD_TRY(sort_tokens(c, "added tokens", tokens, (int64_t)n));
    for (size_t i = 0; i < n; i++)
        (void)fprintf(c->out, "%lld\t%s\t%d\n", (long long)tokens[i].id, tokens[i].text,
                      tokens[i].special);
    return KD_OK;
}

static kd_status write_canon(canon *c, const json_t *json)
{
    const json_t *model = json_object_get(json, "model");
    json_t *vocab = json_object_get(model, "vocab");
    if (json_is_object(vocab))
        KD_TRY(write_vocabulary(c, vocab));
    else if (json_is_array(vocab))
        KD_TRY(write_unigram(c, vocab));
    else
        return kd_fail(KD_EFORMAT, "%s: model.vocab is neither an object nor a list", c->path);
    KD_TRY(write_merges(c, json_object_get(model, "merges")));
    KD_TRY(write_part(c, json_object_get(json, "normalizer")));
    KD_TRY(write_part(c, json_object_get(json, "pre_tokenizer")));
    return write_added(c, json_object_get(json, "added_tokens"));
}

static kd_status fingerprint(kd_tokenizer_info *info, kd_arena *arena, const char *path)
{
    json_t *json = NULL;
    char *text = NULL;
    size_t bytes = 0;
    KD_TRY(kd_json_read(&json, path));
    canon c = { .path = path, .arena = arena, .out = open_memstream(&text, &bytes) };
    kd_status status = c.out ? write_canon(&c, json) : kd_fail(KD_ENOMEM, "%s: no memory", path);
    if (c.out && (ferror(c.out) | fclose(c.out)) != 0 && status == KD_OK)
        status = kd_fail(KD_ENOMEM, "%s: no memory", path);
    if (status == KD_OK) {
        info->fingerprint = kd_hash_bytes(text, bytes);
        info->size = c.size;
        info->present = true;
    }
    free(text);
    json_decref(json);
    return status;
}

kd_status kd_tokenizer_inspect(kd_tokenizer_info *info, const char *dir)
{
    *info = (kd_tokenizer_info){ 0 };
    kd_arena *arena = NULL;
    const char *path = NULL;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(kd_path_join(&path, arena, dir, "tokenizer.json"), status, done);
    if (kd_file_exists(path)) KD_TRY_GOTO(fingerprint(info, arena, path), status, done);
done:
    kd_arena_destroy(arena);
    return status;
}

static kd_status copy_file(kd_arena *arena, const char *to_dir, const char *from_dir,
                           const char *name)
{
    const char *from = NULL, *to = NULL;
    KD_TRY(kd_path_join(&from, arena, from_dir, name));
    if (!kd_file_exists(from)) return KD_OK;
    KD_TRY(kd_path_join(&to, arena, to_dir, name));
    return kd_file_copy(to, from);
}

kd_status kd_tokenizer_copy(const char *to_dir, const char *from_dir)
{
    static const char *const names[] = {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "tokenizer.model",
        "spiece.model",
        "chat_template.jinja",
        "chat_template.json",
    };
    /* A directory onto itself would read what it has just cut to nothing. */
    struct stat a, b;
    if (stat(to_dir, &a) == 0 && stat(from_dir, &b) == 0 && a.st_dev == b.st_dev &&
        a.st_ino == b.st_ino)
        return KD_OK;
    kd_arena *arena = NULL;
    kd_status status = KD_OK;
    KD_TRY(kd_arena_create(&arena));
    for (int i = 0; i < KD_COUNT(names); i++)
        KD_TRY_GOTO(copy_file(arena, to_dir, from_dir, names[i]), status, done);
done:
    kd_arena_destroy(arena);
    return status;
}
