/* The fingerprint: Python's number for the same file, equal across spellings, different where ids are. */
#include "scratch.h"

static const char *const kinds[] = { "bpe", "unigram" };

static kd_tokenizer_info inspect(const char *dir)
{
    kd_tokenizer_info info;
    cr_assert(kd_tokenizer_inspect(&info, dir) == KD_OK, "%s", kd_last_error());
    cr_assert(info.present, "%s", dir);
    return info;
}

Test(tokenizer, equals_python)
{
    for (int i = 0; i < KD_COUNT(kinds); i++) {
        char dir[512], path[600], want[40] = "", *text;
        size_t bytes;
        int size = 0;
        (void)snprintf(dir, sizeof dir, "%s/tokenizer/%s", KD_GOLDEN, kinds[i]);
        (void)snprintf(path, sizeof path, "%s/fingerprint.txt", dir);
        cr_assert(kd_file_read(&text, &bytes, path, 100) == KD_OK);
        cr_assert_eq(sscanf(text, "%32s %d", want, &size), 2);
        free(text);
        const kd_tokenizer_info info = inspect(dir);
        cr_expect_str_eq(info.fingerprint.hex, want, "%s", kinds[i]);
        cr_expect_eq(info.size, size, "%s: %lld ids", kinds[i], (long long)info.size);
    }
}

/* Merges as strings in place of pairs. */
static void join_merges(json_t *json)
{
    json_t *merges = json_object_get(json_object_get(json, "model"), "merges"), *pair;
    size_t i;
    json_array_foreach(merges, i, pair)
    {
        char text[128];
        cr_assert(json_array_size(pair) == 2, "the golden file has pairs");
        (void)snprintf(text, sizeof text, "%s %s", json_string_value(json_array_get(pair, 0)),
                       json_string_value(json_array_get(pair, 1)));
        (void)json_array_set_new(merges, i, json_string(text));
    }
}

static kd_hash hash_of(const json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT | JSON_ENSURE_ASCII);
    (void)scratch_text("tokenizer.json", text);
    free(text);
    return inspect(scratch_dir).fingerprint;
}

Test(tokenizer, what_counts)
{
    scratch_open();
    json_t *json = scratch_golden("tokenizer/bpe/tokenizer.json");
    json_t *model = json_object_get(json, "model");
    json_t *merges = json_object_get(model, "merges"), *vocab = json_object_get(model, "vocab");
    json_t *added = json_object_get(json, "added_tokens");
    const kd_hash base = hash_of(json);

    /* Spelling, order, post-processing: the same tokenizer. */
    join_merges(json);
    cr_expect_str_eq(hash_of(json).hex, base.hex, "merges as strings");
    json_t *first = json_incref(json_array_get(added, 0));
    (void)json_array_remove(added, 0);
    (void)json_array_append_new(added, first);
    cr_expect_str_eq(hash_of(json).hex, base.hex, "added tokens in another order");
    json_t *id = json_incref(json_object_get(vocab, "A"));
    (void)json_object_del(vocab, "A");
    (void)json_object_set_new(vocab, "A", id);
    cr_expect_str_eq(hash_of(json).hex, base.hex, "vocabulary in another order");
    (void)json_object_set_new(json, "post_processor", json_pack("{s:s}", "type", "x"));
    (void)json_object_set_new(json, "truncation", json_integer(4));
    cr_expect_str_eq(hash_of(json).hex, base.hex, "post-processor");

    /* Each of these is another one. */
    json_t *other = json_deep_copy(json);
    (void)json_object_del(other, "normalizer");
    cr_expect_str_neq(hash_of(other).hex, base.hex, "normalizer");
    json_decref(other);
    other = json_deep_copy(json);
    (void)json_object_set_new(json_object_get(other, "pre_tokenizer"), "x", json_true());
    cr_expect_str_neq(hash_of(other).hex, base.hex, "pre-tokenizer");
    json_decref(other);
    other = json_deep_copy(json);
    (void)json_object_set_new(json_array_get(json_object_get(other, "added_tokens"), 0), "special",
                              json_false());
    cr_expect_str_neq(hash_of(other).hex, base.hex, "special");
    json_decref(other);
    json_t *last = json_incref(json_array_get(merges, 0));
    (void)json_array_remove(merges, 0);
    (void)json_array_append_new(merges, last);
    cr_expect_str_neq(hash_of(json).hex, base.hex, "order of merges");
    json_decref(json);
    scratch_close();
}

typedef struct broken {
    const char *text, *message;
} broken;

static const broken brokens[] = {
    { "{", "1:1: |expected" },
    { "{}", "model.vocab is nothing, expected an object or a list" },
    { "[]", "model.vocab is nothing, expected an object or a list" },
    { "{\"model\":{\"vocab\":3}}", "model.vocab is 3, expected an object or a list" },
    { "{\"model\":{\"vocab\":{\"a\":-1}}}",
      "token \"a\": id is -1, expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{\"a\":1.0}}}",
      "token \"a\": id is 1.0, expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{\"a\":\"1\"}}}",
      "token \"a\": id is \"1\", expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{\"a\":16777216}}}",
      "token \"a\": id is 16777216, expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{\"a\":0,\"b\":0}}}", "tokens \"a\" and \"b\" share id 0" },
    { "{\"model\":{\"vocab\":{\"a\":0,\"a\":1}}}", "1:28: |duplicate" },
    { "{\"model\":{\"vocab\":[[\"a\"]]}}",
      "model.vocab[0] is [\"a\"], expected [token, score] and at most 16777216" },
    { "{\"model\":{\"vocab\":[[\"a\",\"b\"]]}}",
      "model.vocab[0] is [\"a\",\"b\"], expected [token, score] and at most 16777216" },
    { "{\"model\":{\"vocab\":[3]}}",
      "model.vocab[0] is 3, expected [token, score] and at most 16777216" },
    { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}",
      "model.merges[0] is \"aa\", expected \"a b\" or [\"a\", \"b\"]" },
    { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\",\"a a a\"]}}",
      "model.merges[1] is \"a a a\", expected \"a b\" or [\"a\", \"b\"]" },
    { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\",\"a\"]]}}",
      "model.merges[0] is [\"a\",\"a\",\"a\"], expected \"a b\" or [\"a\", \"b\"]" },
    { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[{}]}}",
      "model.merges[0] is {}, expected \"a b\" or [\"a\", \"b\"]" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":[{\"id\":1}]}",
      "added_tokens[0]: content is nothing, expected a string" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":[{\"content\":\"x\"}]}",
      "added token \"x\": id is nothing, expected an integer from 0 to 16777215" },
    { "", "1:0: |expected" },
    { "{\"model\":{\"vocab\":{\"a\":-0}}}", ":1:24: -0 is not a decimal integer" },
    { "{\"model\":{\"vocab\":{\"a\":01}}}", "1:24: |near" },
    { "{\"model\":{\"vocab\":{\"a\":1e3}}}",
      "token \"a\": id is 1000.0, expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{\"a\":9007199254740993}}}",
      "token \"a\": id is 9007199254740993, expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{\"a\":9223372036854775808}}}", "1:42: |too big" },
    { "{\"model\":{\"vocab\":{\"\xff\":1}}}", "1:20: |0xff" },
    { "{\"model\":{\"vocab\":{\"\\u0000\":1}}}", "1:27: |NUL" },
    { "{\"model\":{\"vocab\":{\"\\u001b[2J\":-1}}}",
      "token \"\\x1b[2J\": id is -1, expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{},\"merges\":{\"a\":\"b\"}}}",
      "model.merges is {\"a\":\"b\"}, expected a list" },
    { "{\"model\":{\"vocab\":{},\"merges\":\"a b\"}}", "model.merges is \"a b\", expected a list" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":{\"x\":1}}",
      "added_tokens is {\"x\":1}, expected a list" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":[7]}",
      "added_tokens[0]: content is nothing, expected a string" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":[{\"content\":[],\"id\":1}]}",
      "added_tokens[0]: content is [], expected a string" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":[{\"content\":\"x\",\"id\":1,\"special\":1}]}",
      "added token \"x\": special is 1, expected true or false" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":[{\"content\":\"x\",\"id\":-1}]}",
      "added token \"x\": id is -1, expected an integer from 0 to 16777215" },
    { "{\"model\":{\"vocab\":{\"a\":7}},\"added_tokens\":[{\"content\":\"x\",\"id\":7}]}",
      "added token \"x\" has id 7, which is \"a\" in the vocabulary" },
    { "{\"model\":{\"vocab\":[[\"a\",0]]},\"added_tokens\":[{\"content\":\"x\",\"id\":0}]}",
      "added token \"x\" has id 0, which is \"a\" in the vocabulary" },
    { "{\"model\":{\"vocab\":{}},\"added_tokens\":[{\"content\":\"x\",\"id\":1},{\"content\":\"y\","
      "\"id\":1}]}",
      "added tokens \"x\" and \"y\" share id 1" },
};

Test(tokenizer, refusals)
{
    kd_tokenizer_info info;
    scratch_open();
    cr_expect(kd_tokenizer_inspect(&info, scratch_dir) == KD_OK && !info.present);
    for (int i = 0; i < KD_COUNT(brokens); i++) {
        (void)scratch_text("tokenizer.json", brokens[i].text);
        const kd_status status = kd_tokenizer_inspect(&info, scratch_dir);
        test_refusal(status, KD_EFORMAT, brokens[i].message, brokens[i].text);
        test_refusal(status, KD_EFORMAT, scratch_path("tokenizer.json"), brokens[i].text);
        cr_expect(!info.present, "%s", brokens[i].text);
    }
    scratch_close();
}

/* A tokenizer.json that is no file is not taken for none. */
Test(tokenizer, irregular, .timeout = 20)
{
    kd_tokenizer_info info;
    scratch_open();
    const char *path = scratch_path("tokenizer.json");
    cr_assert(mkfifo(path, 0600) == 0);
    test_refusal(kd_tokenizer_inspect(&info, scratch_dir), KD_EFORMAT,
                 "tokenizer.json: not a regular file", "FIFO");
    cr_assert(unlink(path) == 0 && mkdir(path, 0700) == 0);
    test_refusal(kd_tokenizer_inspect(&info, scratch_dir), KD_EFORMAT,
                 "tokenizer.json: not a regular file", "folder");
    cr_assert(rmdir(path) == 0 && symlink("nowhere", path) == 0);
    test_refusal(kd_tokenizer_inspect(&info, scratch_dir), KD_EFORMAT,
                 "tokenizer.json: cannot stat: No such file", "link");
    test_refusal(kd_tokenizer_copy("/tmp", scratch_dir), KD_EFORMAT, "tokenizer.json: cannot stat",
                 "copying it");
    scratch_close();
}

Test(tokenizer, copies)
{
    static const char *const names[] = { "tokenizer.json", "merges.txt", "chat_template.jinja" };
    static const char text[] = "a\r\n\0b";
    scratch_open();
    char to[128], path[256], *data;
    size_t bytes;
    (void)snprintf(to, sizeof to, "%s", scratch_path("to"));
    cr_assert(kd_dir_create(to) == KD_OK);
    for (int i = 0; i < KD_COUNT(names); i++) (void)scratch_write(names[i], text, sizeof text);
    (void)scratch_write("secret.txt", text, sizeof text);
    cr_assert(kd_tokenizer_copy(to, scratch_dir) == KD_OK, "%s", kd_last_error());
    cr_assert(kd_tokenizer_copy(scratch_dir, scratch_dir) == KD_OK, "%s", kd_last_error());
    for (int i = 0; i < 2 * KD_COUNT(names); i++) {
        (void)snprintf(path, sizeof path, "%s/%s", i % 2 ? to : scratch_dir, names[i / 2]);
        cr_assert(kd_file_read(&data, &bytes, path, 100) == KD_OK, "%s", kd_last_error());
        cr_expect(bytes == sizeof text && !memcmp(data, text, bytes), "%s", path);
        free(data);
    }
    (void)snprintf(path, sizeof path, "%s/secret.txt", to);
    cr_expect(!kd_file_exists(path));
    scratch_close();
}
