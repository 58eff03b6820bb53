/* The ids and texts of PyPI tokenizers, or a refusal that says why; no file and no text is slow. */
#include "scratch.h"

static const char *const kinds[] = { "gpt2", "digits", "llama3", "qwen2" };

static kd_tokenizer *open_golden(const char *kind)
{
    char dir[512];
    kd_tokenizer *t = NULL;
    (void)snprintf(dir, sizeof dir, "%s/bpe/%s", KD_GOLDEN, kind);
    cr_assert(kd_tokenizer_open(&t, dir) == KD_OK, "%s: %s", kind, kd_last_error());
    return t;
}

static void expect_ids(const char *kind, const char *what, const int32_t *ids, int64_t count,
                       const json_t *want)
{
    cr_expect_eq(count, (int64_t)json_array_size(want), "%s: \"%.60s\": %lld ids, expected %zu",
                 kind, what, (long long)count, json_array_size(want));
    for (int64_t i = 0; i < count; i++) {
        const long long id = (long long)json_integer_value(json_array_get(want, (size_t)i));
        cr_assert(ids[i] == id, "%s: \"%.60s\": ids[%lld] is %d, expected %lld", kind, what,
                  (long long)i, ids[i], id);
    }
}

/* Decoding an id at a time gives the same text, whole characters only. */
static void expect_stream(const char *kind, const kd_tokenizer *t, const int32_t *ids,
                          int64_t count, bool skip, const char *want, size_t want_bytes)
{
    kd_text_stream stream = { .tokenizer = t, .skip_special = skip };
    char *all = calloc(1, want_bytes + 1);
    size_t used = 0;
    for (int64_t i = 0; i <= count; i++) {
        const char *text;
        size_t bytes;
        cr_assert(kd_text_stream_push(&text, &bytes, &stream, i < count ? ids[i] : -1) == KD_OK);
        json_t *valid = json_stringn(text, bytes); /* NULL: not UTF-8 */
        cr_assert(used + bytes <= want_bytes, "%s: \"%.60s\" is longer", kind, want);
        cr_expect(text[bytes] == 0 && valid != NULL, "%s: \"%.60s\": piece %lld is not UTF-8", kind,
                  want, (long long)i);
        json_decref(valid);
        memcpy(all + used, text, bytes);
        used += bytes;
    }
    cr_expect(used == want_bytes && !memcmp(all, want, used), "%s: \"%.60s\" streamed: \"%.60s\"",
              kind, want, all);
    free(all);
    free(stream.text);
}

static void expect_text(const char *kind, const kd_tokenizer *t, const int32_t *ids, int64_t count,
                        bool skip, const char *want, size_t want_bytes)
{
    char *text;
    size_t bytes;
    cr_assert(kd_tokenizer_decode(&text, &bytes, t, ids, count, skip) == KD_OK, "%s",
              kd_last_error());
    cr_expect(bytes == want_bytes && !memcmp(text, want, bytes + 1), "%s: \"%.60s\" came as \"%s\"",
              kind, want, text);
    free(text);
    expect_stream(kind, t, ids, count, skip, want, want_bytes);
}

Test(bpe, equals_python)
{
    json_t *cases = scratch_golden("bpe/cases.json");
    json_t *texts = json_object_get(cases, "texts"), *text;
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        kd_tokenizer *t = open_golden(kinds[k]);
        const json_t *want = json_object_get(cases, kinds[k]), *row;
        int32_t *ids;
        int64_t count;
        size_t i;
        json_array_foreach(texts, i, text)
        {
            const char *bytes = json_string_value(text);
            const size_t n = json_string_length(text);
            cr_assert(kd_tokenizer_encode(&ids, &count, t, bytes, n, false) == KD_OK, "%s: %s",
                      kinds[k], kd_last_error());
            expect_ids(kinds[k], bytes, ids, count,
                       json_array_get(json_object_get(want, "ids"), i));
            expect_text(kinds[k], t, ids, count, false, bytes, n);
            free(ids);
        }
        cr_assert(kd_tokenizer_encode(&ids, &count, t, "Hi there", 8, true) == KD_OK);
        expect_ids(kinds[k], "wrapped", ids, count, json_object_get(want, "wrapped"));
        free(ids);
        json_array_foreach(json_object_get(want, "decoded"), i, row)
        {
            const json_t *list = json_object_get(row, "ids"), *to = json_object_get(row, "text");
            int32_t random[64];
            for (size_t j = 0; j < json_array_size(list); j++)
                random[j] = (int32_t)json_integer_value(json_array_get(list, j));
            expect_text(kinds[k], t, random, (int64_t)json_array_size(list),
                        json_is_true(json_object_get(row, "skip")), json_string_value(to),
                        json_string_length(to));
        }
        kd_tokenizer_close(t);
    }
    json_decref(cases);
}

Test(bpe, small_things)
{
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        kd_tokenizer *t = open_golden(kinds[k]);
        const int64_t size = kd_tokenizer_size(t);
        char *text;
        size_t bytes;
        int32_t *ids;
        int64_t count;
        const int32_t end = kd_tokenizer_added(t, "<|im_end|>");
        cr_expect(end > 0 && end < size, "%s", kinds[k]);
        cr_expect_eq(kd_tokenizer_added(t, "<|im_end|>x"), -1);
        cr_expect_eq(kd_tokenizer_added(t, "<|im_en"), -1);
        cr_expect_eq(kd_tokenizer_added(t, ""), -1);
        const int32_t wrong[2] = { (int32_t)size, -1 };
        for (int i = 0; i < 2; i++)
            cr_expect_eq(kd_tokenizer_decode(&text, &bytes, t, &wrong[i], 1, true), KD_EINVAL);
        expect_text(kinds[k], t, &end, 0, true, "", 0);
        expect_text(kinds[k], t, &end, 1, true, "", 0);
        expect_text(kinds[k], t, &end, 1, false, "<|im_end|>", 10);
        /* A NUL is a byte like another, and the text may end anywhere. */
        cr_assert(kd_tokenizer_encode(&ids, &count, t, "a\0 b\0<|im_end|>", 15, false) == KD_OK);
        expect_text(kinds[k], t, ids, count, true, "a\0 b\0", 5);
        cr_expect_eq(ids[count - 1], end);
        free(ids);
        cr_assert(kd_tokenizer_encode(&ids, &count, t, "<|im_end|>", 9, false) == KD_OK);
        cr_expect_neq(ids[0], end);
        free(ids);
        kd_tokenizer_close(t);
    }
}

/* ---- texts that are refused ------------------------------------------------------------------- */

typedef struct refused {
    const char *text;
    kd_status status;
    const char *message;
    bool nfc_only;
} refused;

static const refused texts_refused[] = {
    { "ab\xff", KD_EFORMAT, "0xff at offset 2", false },
    { "\x80", KD_EFORMAT, "0x80 at offset 0", false },
    { "a\xc0\xaf", KD_EFORMAT, "offset 1", false },     /* overlong */
    { "a\xe0\x9f\xbf", KD_EFORMAT, "offset 1", false }, /* overlong */
    { "\xed\xa0\x80", KD_EFORMAT, "offset 0", false },  /* surrogate */
    { "\xf4\x90\x80\x80", KD_EFORMAT, "offset 0", false },
    { "\xf5\x80\x80\x80", KD_EFORMAT, "offset 0", false },
    { "abc\xe4\xbd", KD_EFORMAT, "offset 3", false }, /* cut short */
    { "abc\xe4\xbdz", KD_EFORMAT, "offset 3", false },
    { "ab\xf0\xb1\x8d\x90", KD_ENOTSUP, "byte 2", false }, /* U+31350, a letter since Unicode 15 */
    { "e\xcc\x81", KD_ENOTSUP, "byte 1", true },           /* e, combining acute */
    { "\xe1\x84\x80\xe1\x85\xa1", KD_ENOTSUP, "byte 3", true }, /* conjoining jamo */
    { "x \xe2\x84\xab", KD_ENOTSUP, "byte 2", true },           /* Angstrom sign */
};

Test(bpe, texts_refused)
{
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        kd_tokenizer *t = open_golden(kinds[k]);
        for (int i = 0; i < KD_COUNT(texts_refused); i++) {
            const refused *r = &texts_refused[i];
            int32_t *ids = NULL;
            int64_t count;
            const kd_status want =
                r->nfc_only && strcmp(kinds[k], "qwen2") != 0 ? KD_OK : r->status;
            const kd_status status =
                kd_tokenizer_encode(&ids, &count, t, r->text, strlen(r->text), false);
            cr_expect_eq(status, want, "%s: text %d: %s", kinds[k], i, kd_last_error());
            cr_expect(status == KD_OK || strstr(kd_last_error(), r->message), "%s: text %d: %s",
                      kinds[k], i, kd_last_error());
            free(ids);
        }
        kd_tokenizer_close(t);
    }
}

/* ---- long texts ------------------------------------------------------------------------------- */

/* 400 kB of one word, of one run, of starts of tokens: quadratic time would take minutes. */
Test(bpe, linear_time, .timeout = 60)
{
    static const char *const units[] = { "a",    "ab",           " ",    "\n",       "1",
                                         "'",    "'s",           "<",    "<|im",     "[[",
                                         " \n ", "\xe4\xbd\xa0", "the ", "\xcd\x8f", "\xcc\x81",
                                         "!",    "student",      "\t" };
    const size_t most = 400000;
    char *text = malloc(most + 16);
    for (int k = 0; k < KD_COUNT(kinds); k++) {
        kd_tokenizer *t = open_golden(kinds[k]);
        for (int i = 0; i < KD_COUNT(units); i++) {
            const bool moves = strcmp(kinds[k], "qwen2") == 0 && strcmp(units[i], "\xcc\x81") == 0;
            size_t n = 0;
            int32_t *ids = NULL;
            int64_t count = 0;
            for (; n < most; n += strlen(units[i])) memcpy(text + n, units[i], strlen(units[i]));
            const double start = kd_clock();
            const kd_status status = kd_tokenizer_encode(&ids, &count, t, text, n, false);
            cr_assert(status == (moves ? KD_ENOTSUP : KD_OK), "%s: \"%s\": %s", kinds[k], units[i],
                      kd_last_error());
            cr_expect(kd_clock() - start < 5.0, "%s: %zu bytes of \"%s\" took %.1f s", kinds[k], n,
                      units[i], kd_clock() - start);
            if (moves) continue;
            char *back;
            size_t bytes;
            cr_assert(kd_tokenizer_decode(&back, &bytes, t, ids, count, false) == KD_OK);
            cr_expect(bytes == n && !memcmp(back, text, n), "%s: \"%s\"", kinds[k], units[i]);
            free(back);
            free(ids);
        }
        kd_tokenizer_close(t);
    }
    free(text);
}

/* ---- files ------------------------------------------------------------------------------------ */

/* A byte-level tokenizer of a, b and ab; each case replaces one part of it. */
#define FILE_OF(vocab, merges, added, rest)                                                        \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges                          \
    "},\"added_tokens\":" added ",\"decoder\":{\"type\":\"ByteLevel\"}" rest "}"
#define VOCAB  "{\"a\":0,\"b\":1,\"ab\":2}"
#define MERGES "[\"a b\"]"
#define PRE    ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define ADDED(id, content)                                                                         \
    "[{\"id\":" id ",\"content\":\"" content "\",\"special\":true,\"normalized\":false}]"

typedef struct hostile {
    const char *text;
    kd_status status;
    const char *message;
} hostile;

static const hostile files[] = {
    { "", KD_EFORMAT, "1:0: |tokenizer.json" },
    { "[]", KD_ENOTSUP, "model.type is missing and there are no merges; kd reads BPE" },
    { "{\"model\":3}", KD_ENOTSUP, "model.type is missing and there are no merges; kd reads BPE" },
    { "{\"model\":{\"type\":\"Unigram\"}}", KD_ENOTSUP, "model.type Unigram; kd reads BPE" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", KD_EFORMAT,
      "model.vocab is [], expected an object" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"dropout\":0.1}}", KD_ENOTSUP,
      "model.dropout: its ids are random" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"byte_fallback\":true}}",
      KD_ENOTSUP, "model.byte_fallback; kd reads byte-level BPE" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}",
      KD_ENOTSUP, "model.end_of_word_suffix; kd reads byte-level BPE, which has none" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"continuing_subword_prefix\":3}}",
      KD_ENOTSUP, "model.continuing_subword_prefix; kd reads byte-level BPE, which has none" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", KD_ENOTSUP,
      "decoder ?; kd reads ByteLevel" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]},\"decoder\":{\"type\":3}}",
      KD_ENOTSUP, "decoder ?; kd reads ByteLevel" },
    { FILE_OF("{\"a\":-1}", "[]", "[]", ""), KD_EFORMAT,
      "token \"a\": id is -1, expected an integer from 0 to 16777215" },
    { FILE_OF("{\"a\":16777216}", "[]", "[]", ""), KD_EFORMAT,
      "token \"a\": id is 16777216, expected an integer from 0 to 16777215" },
    { FILE_OF("{\"a\":9223372036854775808}", "[]", "[]", ""), KD_EFORMAT,
      "1:55: |tokenizer.json:1" },
    { FILE_OF("{\"a\":4294967296}", "[]", "[]", ""), KD_EFORMAT,
      "token \"a\": id is 4294967296, expected an integer from 0 to 16777215" },
    { FILE_OF("{\"a\":0.0}", "[]", "[]", ""), KD_EFORMAT,
      "token \"a\": id is 0.0, expected an integer from 0 to 16777215" },
    { FILE_OF("{\"a\":\"0\"}", "[]", "[]", ""), KD_EFORMAT,
      "token \"a\": id is \"0\", expected an integer from 0 to 16777215" },
    { FILE_OF("{\"a\":null}", "[]", "[]", ""), KD_EFORMAT,
      "token \"a\": id is null, expected an integer from 0 to 16777215" },
    { FILE_OF("{\"a\":0,\"b\":0}", "[]", "[]", ""), KD_EFORMAT,
      "token \"b\" shares id 0 with another" },
    { FILE_OF("{\"a\":0,\"a\":1}", "[]", "[]", ""), KD_EFORMAT, "1:41: |duplicate" },
    { FILE_OF("{\"a\":16777215}", "[]", "[]", ""), KD_EFORMAT,
      "largest id 16777215 of 1 tokens, expected at most 1025" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", KD_EFORMAT, "model.merges is missing" },
    { FILE_OF("{\"a\":-0}", "[]", "[]", ""), KD_EFORMAT, ":1:37: -0 is not a decimal integer" },
    { FILE_OF("{\"a\":1e3}", "[]", "[]", ""), KD_EFORMAT,
      "token \"a\": id is 1000.0, expected an integer from 0 to 16777215" },
    { FILE_OF(VOCAB, MERGES, "[{\"id\":3,\"content\":\"<x>\",\"lstrip\":\"no\"}]", ""), KD_EFORMAT,
      "added token \"<x>\": lstrip is \"no\", expected true or false" },
    { FILE_OF(VOCAB, "{}", "[]", ""), KD_EFORMAT, "model.merges is {}, expected a list" },
    { FILE_OF(VOCAB, "[\"ab\"]", "[]", ""), KD_EFORMAT,
      "model.merges[0] is \"ab\", expected \"a b\" or [\"a\", \"b\"]" },
    { FILE_OF(VOCAB, "[\"a b\",\"a b \"]", "[]", ""), KD_EFORMAT,
      "model.merges[1] is \"a b \", expected \"a b\" or [\"a\", \"b\"]" },
    { FILE_OF(VOCAB, "[[\"a\"]]", "[]", ""), KD_EFORMAT,
      "model.merges[0] is [\"a\"], expected \"a b\" or [\"a\", \"b\"]" },
    { FILE_OF(VOCAB, "[[\"a\",\"b\",\"b\"]]", "[]", ""), KD_EFORMAT,
      "model.merges[0] is [\"a\",\"b\",\"b\"], expected \"a b\" or [\"a\", \"b\"]" },
    { FILE_OF(VOCAB, "[[\"a\",1]]", "[]", ""), KD_EFORMAT,
      "model.merges[0] is [\"a\",1], expected \"a b\" or [\"a\", \"b\"]" },
    { FILE_OF(VOCAB, "[7]", "[]", ""), KD_EFORMAT,
      "model.merges[0] is 7, expected \"a b\" or [\"a\", \"b\"]" },
    { FILE_OF(VOCAB, "[\"a c\"]", "[]", ""), KD_EFORMAT,
      "model.merges[0]: \"c\" is not in the vocabulary" },
    { FILE_OF(VOCAB, "[\"b a\"]", "[]", ""), KD_EFORMAT,
      "model.merges[0]: \"ba\" is not in the vocabulary" },
    { FILE_OF(VOCAB, "[\" a\"]", "[]", ""), KD_EFORMAT,
      "model.merges[0]: \"\" is not in the vocabulary" },
    { FILE_OF(VOCAB, MERGES, "{}", ""), KD_EFORMAT, "added_tokens is {}, expected a list" },
    { FILE_OF(VOCAB, MERGES, "[3]", ""), KD_EFORMAT,
      "added_tokens[0]: content is nothing, expected a string" },
    { FILE_OF(VOCAB, MERGES, ADDED("3", ""), ""), KD_EFORMAT,
      "added_tokens[0]: content of 0 bytes, expected 1 to 512" },
    { FILE_OF(VOCAB, MERGES, ADDED("-3", "<x>"), ""), KD_EFORMAT,
      "added token \"<x>\": id is -3, expected an integer from 0 to 16777215" },
    { FILE_OF(VOCAB, MERGES, ADDED("2000000", "<x>"), ""), KD_EFORMAT,
      "largest id 2000000 of 4 tokens, expected at most 1031" },
    { FILE_OF(VOCAB, MERGES, ADDED("1", "<x>"), ""), KD_EFORMAT,
      "added token \"<x>\" has id 1, expected 3 after the tokens before it" },
    { FILE_OF(VOCAB, MERGES, ADDED("3", "ab"), ""), KD_EFORMAT,
      "added token \"ab\" has id 3, expected 2 as in the vocabulary" },
    { FILE_OF(VOCAB, MERGES, "[{\"id\":3,\"content\":\"<x>\"},{\"id\":4,\"content\":\"<x>\"}]", ""),
      KD_EFORMAT, "added token \"<x>\" twice" },
    { FILE_OF(VOCAB, MERGES, "[{\"id\":3,\"content\":\"<x>\"},{\"id\":3,\"content\":\"<y>\"}]", ""),
      KD_EFORMAT, "added token \"<y>\" has id 3, expected 4 after the tokens before it" },
    { FILE_OF(VOCAB, MERGES, "[]",
              ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
              "\"id\":"
              "\"x\"}}],\"special_tokens\":{\"x\":{\"ids\":[3]}}}"),
      KD_EFORMAT, "post_processor: \"x\": expected at most 16 ids below 3" },
    { FILE_OF(VOCAB, MERGES, "[]",
              ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
              "}}]}"),
      KD_EFORMAT, "post_processor: no ids for \"?\"" },
    { FILE_OF(VOCAB, MERGES, "[]",
              ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
              "\"id\":"
              "\"x\"}}],\"special_tokens\":{\"x\":{\"ids\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}}}"),
      KD_EFORMAT, "post_processor: \"x\": expected at most 16 ids below 3" },
};

Test(bpe, files_refused)
{
    scratch_open();
    for (int i = 0; i < KD_COUNT(files); i++) {
        kd_tokenizer *t = NULL;
        (void)scratch_text("tokenizer.json", files[i].text);
        const kd_status status = kd_tokenizer_open(&t, scratch_dir);
        test_refusal(status, files[i].status, files[i].message, files[i].text);
        test_refusal(status, status, scratch_path("tokenizer.json"), files[i].text);
        cr_expect(!t, "%s: a tokenizer came back", files[i].text);
    }
    scratch_close();
}

/* Files that decode, and refuse to encode what they cannot encode exactly. */
static const hostile decoders[] = {
    { FILE_OF(VOCAB, MERGES, "[]", PRE), KD_OK, "" },
    { FILE_OF(VOCAB, "[[\"a\",\"b\"]]", "null", PRE), KD_OK, "" },
    { FILE_OF(VOCAB, MERGES, "[]", ""), KD_ENOTSUP, "pre_tokenizer null" },
    { FILE_OF(VOCAB, MERGES, "[]",
              ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"),
      KD_ENOTSUP, "add_prefix_space" },
    { FILE_OF(VOCAB, MERGES, "[]",
              ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[]}"),
      KD_ENOTSUP, "Sequence" },
    { FILE_OF(
          VOCAB, MERGES, "[]",
          ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},"
          "{\"type\":\"Digits\",\"individual_digits\":true}]}"),
      KD_ENOTSUP, "Sequence" },
    { FILE_OF(VOCAB, MERGES, "[]",
              ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
              "\"pattern\":"
              "{\"Regex\":\"(a+)+$\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\"}]}"),
      KD_ENOTSUP, "(a+)+$" },
    { FILE_OF(
          VOCAB, MERGES, "[]",
          ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":{}}"),
      KD_ENOTSUP, "behavior" },
    { FILE_OF(VOCAB, MERGES, "[]",
              ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":7},\"behavior\":"
              "\"Isolated\"}"),
      KD_ENOTSUP, "Regex" },
    { FILE_OF(VOCAB, MERGES, "[]", PRE ",\"normalizer\":{\"type\":\"NFKC\"}"), KD_ENOTSUP, "NFKC" },
    { FILE_OF(VOCAB, MERGES, "[{\"id\":3,\"content\":\"e\\u0301\",\"normalized\":true}]",
              PRE ",\"normalizer\":{\"type\":\"NFC\"}"),
      KD_ENOTSUP, "added token" },
    { FILE_OF(VOCAB, MERGES, "[{\"id\":3,\"content\":\"b\",\"lstrip\":true}]", PRE), KD_EFORMAT,
      "has id 3" },
    { FILE_OF(VOCAB, MERGES, "[{\"id\":1,\"content\":\"b\",\"lstrip\":true}]", PRE), KD_ENOTSUP,
      "\"b\" at offset 1: an added token with lstrip" },
    { FILE_OF("{\"a\":0}", "[]", "[]", PRE), KD_ENOTSUP, "byte 0x62 at offset 1" },
};

Test(bpe, encoding_refused)
{
    scratch_open();
    for (int i = 0; i < KD_COUNT(decoders); i++) {
        const hostile *d = &decoders[i];
        kd_tokenizer *t = NULL;
        int32_t *ids = NULL;
        int64_t count;
        (void)scratch_text("tokenizer.json", d->text);
        kd_status status = kd_tokenizer_open(&t, scratch_dir);
        cr_expect(status == (d->status == KD_EFORMAT ? KD_EFORMAT : KD_OK), "%s: %s", d->text,
                  kd_last_error());
        if (t) {
            expect_text(d->text, t, (const int32_t[]){ 0 }, 1, true, "a", 1);
            status = kd_tokenizer_encode(&ids, &count, t, "ab", 2, false);
        }
        cr_expect(status == d->status, "%s: %d: %s", d->text, status, kd_last_error());
        cr_expect(status == KD_OK ? count == 1 && ids[0] == 2
                                  : strstr(kd_last_error(), d->message) != NULL,
                  "%s: %s", d->text, kd_last_error());
        free(ids);
        kd_tokenizer_close(t);
    }
    scratch_close();
}
