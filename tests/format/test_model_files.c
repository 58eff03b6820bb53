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
    { "no weight_map", "{}", "weight_map is missing" },
    { "not an object", "[]", "weight_map is missing" },
    { "empty weight_map", "{\"weight_map\":{}}", "weight_map is empty" },
    { "weight_map as a list", "{\"weight_map\":[]}", "no object" },
    { "a number", "{\"weight_map\":{\"a\":1}}", "no string" },
    { "duplicate", "{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"3.safetensors\"}}",
      "duplicate" },
    { "parent", "{\"weight_map\":{\"a\":\"../1.safetensors\"}}", "\"../1.safetensors\"" },
    { "absolute", "{\"weight_map\":{\"a\":\"/tmp/1.safetensors\"}}", "in the same directory" },
    { "inner folder", "{\"weight_map\":{\"a\":\"x/1.safetensors\"}}", "in the same directory" },
    { "other kind of file", "{\"weight_map\":{\"a\":\"1.bin\"}}", "in the same directory" },
    { "hidden", "{\"weight_map\":{\"a\":\".safetensors\"}}", "in the same directory" },
    { "missing shard", "{\"weight_map\":{\"a\":\"4.safetensors\"}}", "4.safetensors: missing" },
    { "name not in its shard", "{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"1.safetensors\"}}",
      "tensor \"c\" is not in 1.safetensors" },
    { "name in another shard", "{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"2.safetensors\"}}",
      "tensor \"a\" is not in 2.safetensors" },
    { "tensor not in the index", "{\"weight_map\":{\"c\":\"1.safetensors\"}}",
      "tensor \"a\" is missing" },
    { "tensor in two shards",
      "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\","
      "\"c\":\"3.safetensors\"}}",
      "belongs to 1.safetensors" },
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
        cr_expect_eq(status, c->message ? KD_EFORMAT : KD_OK, "%s: status %d: %s", c->what, status,
                     kd_last_error());
        if (c->message)
            cr_expect(strstr(kd_last_error(), c->message) && strstr(kd_last_error(), scratch_dir),
                      "%s: %s", c->what, kd_last_error());
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
