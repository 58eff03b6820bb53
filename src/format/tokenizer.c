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
#include "format/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

typedef struct token {
    int32_t id;
    const char *text;
    bool special;
} token;

/* What is being hashed, and where it came from. */
typedef struct canon {
    const char *path;
    kd_arena *arena;
    FILE *out;
    int64_t size;       /* largest id + 1 */
    const token *vocab; /* by ascending id */
    int64_t vocab_count;
} canon;

/* ---- parts ------------------------------------------------------------------------------------ */

kd_status kd_token_id(int32_t *id, const char *path, const char *what, const char *text,
                      const json_t *value)
{
    const int64_t n = (int64_t)json_integer_value(value);
    char shown[80];
    if (!json_is_integer(value) || n < 0 || n >= KD_MAX_IDS)
        return kd_fail(KD_EFORMAT, "%s: %s \"%.60s\": id is %s, expected an integer from 0 to %d",
                       path, what, text, kd_json_show(shown, sizeof shown, value), KD_MAX_IDS - 1);
    *id = (int32_t)n;
    return KD_OK;
}

kd_status kd_token_list(const json_t **list, const char *path, const json_t *value,
                        const char *name)
{
    char shown[80];
    *list = json_is_null(value) ? NULL : value;
    if (!*list || json_is_array(value)) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: %s is %s, expected a list", path, name,
                   kd_json_show(shown, sizeof shown, value));
}

kd_status kd_token_merge(const char **left, size_t *length, const char **right, const char *path,
                         const json_t *merge, size_t i)
{
    const char *whole = json_string_value(merge), *space = whole ? strchr(whole, ' ') : NULL;
    char shown[80];
    *left = json_string_value(json_array_get(merge, 0));
    *right = json_string_value(json_array_get(merge, 1));
    if (space && !strchr(space + 1, ' ')) {
        *left = whole;
        *length = (size_t)(space - whole);
        *right = space + 1;
        return KD_OK;
    }
    if (!*left || !*right || json_array_size(merge) != 2)
        return kd_fail(KD_EFORMAT,
                       "%s: model.merges[%zu] is %s, expected \"a b\" or [\"a\", \"b\"]", path, i,
                       kd_json_show(shown, sizeof shown, merge));
    *length = strlen(*left);
    return KD_OK;
}

kd_status kd_token_added(const char **text, int32_t *id, const char *path, const json_t *item,
                         size_t i)
{
    static const char *const flags[] = { "special", "normalized", "single_word", "lstrip",
                                         "rstrip" };
    const json_t *content = json_object_get(item, "content");
    char shown[80];
    *text = json_string_value(content);
    if (!*text)
        return kd_fail(KD_EFORMAT, "%s: added_tokens[%zu]: content is %s, expected a string", path,
                       i, kd_json_show(shown, sizeof shown, content));
    for (int k = 0; k < KD_COUNT(flags); k++) {
        const json_t *flag = json_object_get(item, flags[k]);
        if (flag && !json_is_boolean(flag))
            return kd_fail(KD_EFORMAT,
                           "%s: added token \"%.60s\": %s is %s, expected true or false", path,
                           *text, flags[k], kd_json_show(shown, sizeof shown, flag));
    }
    return kd_token_id(id, path, "added token", *text, json_object_get(item, "id"));
}

/* ---- the canonical text ----------------------------------------------------------------------- */

static int by_id(const void *a, const void *b)
{
    const token *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static kd_status sort_tokens(canon *c, const char *what, token *tokens, int64_t count)
{
    if (count) qsort(tokens, (size_t)count, sizeof *tokens, by_id);
    for (int64_t i = 1; i < count; i++) {
        if (tokens[i].id == tokens[i - 1].id)
            return kd_fail(KD_EFORMAT, "%s: %s \"%.60s\" and \"%.60s\" share id %d", c->path, what,
                           tokens[i - 1].text, tokens[i].text, (int)tokens[i].id);
    }
    if (count) c->size = kd_max_i64(c->size, (int64_t)tokens[count - 1].id + 1);
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
        tokens[n].text = text;
        KD_TRY(kd_token_id(&tokens[n++].id, c->path, "token", text, value));
    }
    KD_TRY(sort_tokens(c, "tokens", tokens, n));
    for (int64_t i = 0; i < n; i++)
        (void)fprintf(c->out, "%d\t%s\n", (int)tokens[i].id, tokens[i].text);
    c->vocab = tokens;
    c->vocab_count = n;
    return KD_OK;
}

static kd_status write_unigram(canon *c, const json_t *vocab)
{
    const size_t n = json_array_size(vocab);
    token *tokens = NULL;
    KD_TRY(KD_ARENA_ARRAY(&tokens, c->arena, (int64_t)n));
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(vocab, i), *score = json_array_get(pair, 1);
        char shown[80];
        tokens[i] = (token){ .id = (int32_t)i, .text = json_string_value(json_array_get(pair, 0)) };
        if (!tokens[i].text || !json_is_number(score) || i >= KD_MAX_IDS)
            return kd_fail(KD_EFORMAT,
                           "%s: model.vocab[%zu] is %s, expected [token, score] and at most %d",
                           c->path, i, kd_json_show(shown, sizeof shown, pair), KD_MAX_IDS);
        (void)fprintf(c->out, "%zu\t%s\t", i, tokens[i].text);
        const int64_t before = kd_json_refused();
        json_t *real = json_real(json_number_value(score));
        kd_status status = kd_json_made(&real, before, c->path);
        if (status == KD_OK) status = write_part(c, real);
        json_decref(real);
        KD_TRY(status);
    }
    c->size = c->vocab_count = (int64_t)n;
    c->vocab = tokens;
    return KD_OK;
}

static kd_status write_merges(canon *c, const json_t *merges)
{
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const char *left, *right;
        size_t length;
        KD_TRY(kd_token_merge(&left, &length, &right, c->path, json_array_get(merges, i), i));
        (void)fprintf(c->out, "%.*s %s\n", (int)length, left, right);
    }
    return KD_OK;
}

/* An added token that is in the vocabulary too has its id there. */
static kd_status check_added(const canon *c, const token *added)
{
    const token *known = NULL;
    if (c->vocab_count)
        known = bsearch(added, c->vocab, (size_t)c->vocab_count, sizeof *c->vocab, by_id);
    if (!known || strcmp(known->text, added->text) == 0) return KD_OK;
    return kd_fail(KD_EFORMAT,
                   "%s: added token \"%.60s\" has id %d, which is \"%.60s\" in the vocabulary",
                   c->path, added->text, (int)added->id, known->text);
}

static kd_status write_added(canon *c, const json_t *added)
{
    token *tokens = NULL;
    const size_t n = json_array_size(added);
    KD_TRY(KD_ARENA_ARRAY(&tokens, c->arena, (int64_t)n));
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(added, i);
        KD_TRY(kd_token_added(&tokens[i].text, &tokens[i].id, c->path, item, i));
        tokens[i].special = json_is_true(json_object_get(item, "special"));
        KD_TRY(check_added(c, &tokens[i]));
    }
    KD_TRY(sort_tokens(c, "added tokens", tokens, (int64_t)n));
    for (size_t i = 0; i < n; i++)
        (void)fprintf(c->out, "%d\t%s\t%d\n", (int)tokens[i].id, tokens[i].text, tokens[i].special);
    return KD_OK;
}

static kd_status write_canon(canon *c, const json_t *json)
{
    const json_t *model = json_object_get(json, "model"), *merges, *added;
    json_t *vocab = json_object_get(model, "vocab");
    char shown[80];
    KD_TRY(kd_token_list(&merges, c->path, json_object_get(model, "merges"), "model.merges"));
    KD_TRY(kd_token_list(&added, c->path, json_object_get(json, "added_tokens"), "added_tokens"));
    if (json_is_object(vocab))
        KD_TRY(write_vocabulary(c, vocab));
    else if (json_is_array(vocab))
        KD_TRY(write_unigram(c, vocab));
    else
        return kd_fail(KD_EFORMAT, "%s: model.vocab is %s, expected an object or a list", c->path,
                       kd_json_show(shown, sizeof shown, vocab));
    KD_TRY(write_merges(c, merges));
    KD_TRY(write_part(c, json_object_get(json, "normalizer")));
    KD_TRY(write_part(c, json_object_get(json, "pre_tokenizer")));
    return write_added(c, added);
}

static kd_status fingerprint(kd_tokenizer_info *info, kd_arena *arena, const char *path)
{
    json_t *json = NULL;
    kd_stream *stream;
    char *text = NULL;
    size_t bytes = 0;
    KD_TRY(kd_json_read(&json, path));
    canon c = { .path = path, .arena = arena };
    kd_status status = kd_stream_open(&stream, &c.out, path);
    if (status != KD_OK) goto done;
    status = kd_stream_close(&text, &bytes, stream, write_canon(&c, json));
    if (status == KD_OK) {
        info->fingerprint = kd_hash_bytes(text, bytes);
        info->size = c.size;
        info->present = true;
    }
done:
    free(text);
    json_decref(json);
    return status;
}

kd_status kd_tokenizer_inspect(kd_tokenizer_info *info, const char *dir)
{
    *info = (kd_tokenizer_info){ .dir = dir };
    kd_arena *arena = NULL;
    const char *path = NULL;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(kd_path_join(&path, arena, dir, "tokenizer.json"), status, done);
    bool there;
    KD_TRY_GOTO(kd_file_find(&there, path), status, done);
    if (there) KD_TRY_GOTO(fingerprint(info, arena, path), status, done);
done:
    kd_arena_destroy(arena);
    return status;
}

static kd_status copy_file(kd_arena *arena, const char *to_dir, const char *from_dir,
                           const char *name)
{
    const char *from = NULL, *to = NULL;
    bool there;
    KD_TRY(kd_path_join(&from, arena, from_dir, name));
    KD_TRY(kd_file_find(&there, from));
    if (!there) return KD_OK;
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
