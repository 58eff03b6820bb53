/* A model's files: one, or shards whose index may not lie. */
#include "scratch.h"

static void write_shard(const char *name, const char *tensor)
{
    const char *path = scratch_path(name);
    const int64_t one = 1;
    const float value = 5;
    kd_st_writer *w = NULL;
    cr_assert(kd_st_writer_create(&w, path) == KD_OK, "%s", kd_last_error());
    cr_assert(kd_st_writer_declare(w, tensor, KD_F32, 1, &one) == KD_OK);
    cr_assert(kd_st_writer_begin(w) == KD_OK);
    cr_assert(kd_st_writer_write(w, tensor, &value, 4) == KD_OK);
    cr_assert(kd_st_writer_close(w) == KD_OK);
}

/* Shards 1.safetensors with "a", 2.safetensors with "b", 3.safetensors with "a" again. */
typedef struct index_case {
    const char *what, *index, *message; /* NULL: accepted */
} index_case;

static const index_case index_cases[] = {
    { "good",
      "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"a\":\"1.safetensors\","
      "\"b\":\"2.safetensors\"}}",
      NULL },
    { "no metadata", "{\"weight_map\":{\"a\":\"1.safetensors\"}}", NULL },
    { "no weight_map", "{}", "weight_map is nothing, expected an object of file names" },
    { "not an object", "[]", "weight_map is nothing, expected an object of file names" },
    { "empty weight_map", "{\"weight_map\":{}}",
      "weight_map is {}, expected an object of file names" },
    { "weight_map as a list", "{\"weight_map\":[]}",
      "weight_map is [], expected an object of file names" },
    { "a number", "{\"weight_map\":{\"a\":1}}",
      "weight_map[\"a\"] is 1, expected the name of a .safetensors file in the same directory" },
    { "duplicate", "{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"3.safetensors\"}}",
      "1:38: |duplicate" },
    { "not UTF-8", "{\"weight_map\":{\"a\xff\":\"1.safetensors\"}}", "1:17: |0xff" },
    { "NUL", "{\"weight_map\":{\"a\":\"1\\u0000.safetensors\"}}", "1:40: |NUL" },
    { "a control code", "{\"weight_map\":{\"\\u001b[2J\":\"../1.safetensors\"}}",
      "weight_map[\"\\x1b[2J\"] is \"../1.safetensors\", expected the name of a .safetensors file "
      "in the same directory" },
    { "nothing", "", "1:0: |expected" },
    { "cut off", "{\"weight_map\":{\"a\":\"1.safe",
      "1:26: premature end of input near '\"1.safe'" },
    { "nested", "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}",
      ":1:37: nested deeper than 32" },
    { "backslash", "{\"weight_map\":{\"a\":\"..\\\\1.safetensors\"}}",
      "weight_map[\"a\"] is \"..\\\\1.safetensors\", expected the name of a .safetensors file in "
      "the same directory" },
    { "parent", "{\"weight_map\":{\"a\":\"../1.safetensors\"}}",
      "weight_map[\"a\"] is \"../1.safetensors\", expected the name of a .safetensors file in the "
      "same directory" },
    { "absolute", "{\"weight_map\":{\"a\":\"/tmp/1.safetensors\"}}",
      "weight_map[\"a\"] is \"/tmp/1.safetensors\", expected the name of a .safetensors file in "
      "the same directory" },
    { "inner folder", "{\"weight_map\":{\"a\":\"x/1.safetensors\"}}",
      "weight_map[\"a\"] is \"x/1.safetensors\", expected the name of a .safetensors file in the "
      "same directory" },
    { "other kind of file", "{\"weight_map\":{\"a\":\"1.bin\"}}",
      "weight_map[\"a\"] is \"1.bin\", expected the name of a .safetensors file in the same "
      "directory" },
    { "hidden", "{\"weight_map\":{\"a\":\".safetensors\"}}",
      "weight_map[\"a\"] is \".safetensors\", expected the name of a .safetensors file in the same "
      "directory" },
    { "missing shard", "{\"weight_map\":{\"a\":\"4.safetensors\"}}",
      "No such file or directory, but |model.safetensors.index.json lists it" },
    { "name not in its shard", "{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"1.safetensors\"}}",
      "tensor \"c\" is not in 1.safetensors" },
    { "name in another shard", "{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"2.safetensors\"}}",
      "tensor \"a\" is not in 2.safetensors" },
    { "tensor not in the index", "{\"weight_map\":{\"c\":\"1.safetensors\"}}",
      "tensor \"a\" is missing from |model.safetensors.index.json" },
    { "tensor in two shards",
      "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\","
      "\"c\":\"3.safetensors\"}}",
      "tensor \"a\" belongs to 1.safetensors according to |model.safetensors.index.json" },
};

Test(model_files, indices)
{
    scratch_open();
    write_shard("1.safetensors", "a");
    write_shard("2.safetensors", "b");
    write_shard("3.safetensors", "a");
    for (int i = 0; i < KD_COUNT(index_cases); i++) {
        const index_case *c = &index_cases[i];
        (void)scratch_text("model.safetensors.index.json", c->index);
        kd_model_files *files = NULL;
        const kd_status status = kd_model_files_open(&files, scratch_dir);
        test_refusal(status, c->message ? KD_EFORMAT : KD_OK, c->message, c->what);
        test_refusal(status, status, scratch_dir, c->what);
        kd_model_files_close(files);
    }
    cr_expect_str_empty(scratch_log);
    scratch_close();
}

Test(model_files, single_and_sharded)
{
    kd_model_files *files = NULL;
    const kd_st_file *file = NULL;
    scratch_open();
    cr_expect_eq(kd_model_files_open(&files, scratch_dir), KD_EFORMAT);
    cr_expect(strstr(kd_last_error(), "neither model.safetensors"), "%s", kd_last_error());

    write_shard("1.safetensors", "a");
    write_shard("2.safetensors", "b");
    (void)scratch_text("model.safetensors.index.json",
                       "{\"metadata\":{\"total_size\":9},\"weight_map\":{\"a\":\"1.safetensors\","
                       "\"b\":\"2.safetensors\"}}");
    cr_assert(kd_model_files_open(&files, scratch_dir) == KD_OK, "%s", kd_last_error());
    cr_expect(strstr(scratch_log, "total_size is 9, the shards hold 8"), "%s", scratch_log);
    cr_expect_eq(files->count, 2);
    cr_expect_eq(files->bytes, 8);
    const kd_st_entry *b = kd_model_files_find(files, "b", &file);
    float value = 0;
    cr_assert(b != NULL && kd_st_read(&value, KD_F32, file, b, 0, 1) == KD_OK && value == 5);
    cr_expect_null(kd_model_files_find(files, "c", &file));
    kd_model_files_close(files);

    static const char *const totals[][2] = { { "8", NULL },
                                             { "8.0", "total_size is 8.0," },
                                             { "9007199254740993", "is 9007199254740993," } };
    for (int i = 0; i < KD_COUNT(totals); i++) {
        char text[256];
        (void)snprintf(text, sizeof text,
                       "{\"metadata\":{\"total_size\":%s},\"weight_map\":{\"a\":"
                       "\"1.safetensors\",\"b\":\"2.safetensors\"}}",
                       totals[i][0]);
        (void)scratch_text("model.safetensors.index.json", text);
        scratch_log[0] = '\0';
        cr_assert(kd_model_files_open(&files, scratch_dir) == KD_OK, "%s", kd_last_error());
        cr_expect(totals[i][1] ? strstr(scratch_log, totals[i][1]) != NULL : !*scratch_log,
                  "total_size %s: %s", totals[i][0], scratch_log);
        kd_model_files_close(files);
    }

    /* A shard that is a link, as in Hugging Face's cache; then one that is a folder. */
    cr_assert(rename(scratch_path("2.safetensors"), scratch_path("blob")) == 0);
    cr_assert(symlink("blob", scratch_path("2.safetensors")) == 0);
    cr_expect(kd_model_files_open(&files, scratch_dir) == KD_OK, "%s", kd_last_error());
    kd_model_files_close(files);
    cr_assert(unlink(scratch_path("2.safetensors")) == 0);
    cr_assert(mkdir(scratch_path("2.safetensors"), 0700) == 0);
    cr_expect_eq(kd_model_files_open(&files, scratch_dir), KD_EFORMAT);

    /* Where both are there, the single file is the model, as for transformers. */
    write_shard("model.safetensors", "whole");
    cr_assert(kd_model_files_open(&files, scratch_dir) == KD_OK, "%s", kd_last_error());
    cr_expect_eq(files->count, 1);
    cr_expect(kd_model_files_find(files, "whole", NULL) && !kd_model_files_find(files, "a", NULL));
    kd_model_files_close(files);
    kd_model_files_close(NULL);
    scratch_close();
}

/* A link may lead within the folder, and to the blobs of Hugging Face's cache; nowhere else. */
Test(model_files, links)
{
    static const struct {
        const char *dir, *target, *message; /* NULL: accepted */
    } cases[] = {
        { "plain", "other.safetensors", NULL },
        { "plain", "../outside", "a link to |/outside, expected a file in the same directory" },
        { "plain", "below/inner", "below/inner, expected a file in the same directory" },
        { "plain", "none", "No such file or directory, but " },
        { "plain", "shard.safetensors", "Too many levels of symbolic links, but " },
        { "repo/snapshots/rev", "../../blobs/hash", NULL },
        { "repo/snapshots/rev", "../../other/hash", "/repo/other/hash, expected a file in the" },
        { "repo/snapshots/rev", "../../blobs/below/hash", "/blobs/below/hash, expected a file" },
        { "repo/snapshots/rev", "../../../blobs/hash", "/blobs/hash, expected a file in the same" },
    };
    static const char *const folders[] = { "plain/below", "repo/snapshots/rev", "repo/other",
                                           "repo/blobs/below", "blobs" };
    static const char *const files[] = { "outside",           "plain/other.safetensors",
                                         "plain/below/inner", "repo/other/hash",
                                         "repo/blobs/hash",   "repo/blobs/below/hash",
                                         "blobs/hash" };
    scratch_open();
    for (int i = 0; i < KD_COUNT(folders); i++)
        cr_assert(kd_dir_create(scratch_path(folders[i])) == KD_OK);
    for (int i = 0; i < KD_COUNT(files); i++) write_shard(files[i], "a");
    for (int i = 0; i < KD_COUNT(cases); i++) {
        char dir[256], link[300], index[300];
        kd_model_files *opened = NULL;
        static const char text[] = "{\"weight_map\":{\"a\":\"shard.safetensors\"}}";
        (void)snprintf(dir, sizeof dir, "%s", scratch_path(cases[i].dir));
        (void)snprintf(link, sizeof link, "%s/shard.safetensors", dir);
        (void)snprintf(index, sizeof index, "%s/model.safetensors.index.json", dir);
        cr_assert(kd_file_write_atomic(index, text, strlen(text)) == KD_OK);
        cr_assert(symlink(cases[i].target, link) == 0);
        const kd_status status = kd_model_files_open(&opened, dir);
        test_refusal(status, cases[i].message ? KD_EFORMAT : KD_OK, cases[i].message,
                     cases[i].target);
        test_refusal(status, status, link, cases[i].target);
        kd_model_files_close(opened);
        cr_assert(unlink(link) == 0);
    }
    scratch_close();
}

/* What stands in place of a file is not taken for its absence. */
Test(model_files, irregular, .timeout = 20)
{
    static const char *const names[] = { "model.safetensors", "model.safetensors.index.json" };
    scratch_open();
    for (int i = 0; i < KD_COUNT(names); i++) {
        const char *path = scratch_path(names[i]);
        kd_model_files *files = NULL;
        cr_assert(mkfifo(path, 0600) == 0);
        test_refusal(kd_model_files_open(&files, scratch_dir), KD_EFORMAT, "not a regular file",
                     names[i]);
        cr_assert(unlink(path) == 0 && mkdir(path, 0700) == 0);
        test_refusal(kd_model_files_open(&files, scratch_dir), KD_EFORMAT, "not a regular file",
                     names[i]);
        cr_assert(rmdir(path) == 0 && symlink("nowhere", path) == 0);
        test_refusal(kd_model_files_open(&files, scratch_dir), KD_EFORMAT, "No such file",
                     names[i]);
        test_refusal(KD_EFORMAT, KD_EFORMAT, path, names[i]);
        cr_assert(unlink(path) == 0);
        (void)scratch_write(names[i], "", 0);
        test_refusal(kd_model_files_open(&files, scratch_dir), KD_EFORMAT,
                     i ? "expected near end of file" : "0 bytes, expected at least 8", names[i]);
        cr_assert(unlink(path) == 0);
    }
    scratch_close();
}
