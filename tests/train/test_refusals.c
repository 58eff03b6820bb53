/* Checkpoints whose hashes are right and whose content is not: refused by file, key or tensor, with
 * found and expected, before anything of the run is touched.  Damage is in test_checkpoint.c. */
#include "support/refusal.h"
#include "support/students.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- engine/state.json ------------------------------------------------------------------------ */

typedef struct state_case {
    const char *key, *value; /* JSON in place of state[key]; NULL: removed */
    const char *parts;
} state_case;

#define SOURCES(first) "[" first ",0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]"
#define GUARD(updates, skips, seen, in_row, windows)                                               \
    "{\"updates\":" updates ",\"skips\":" skips ",\"seen\":" seen ",\"in_row\":" in_row            \
    ",\"windows\":[" windows "]}"
static const state_case state_cases[] = {
    { "format", NULL, "format: found nothing, expected an integer" },
    { "format", "3", "format: found 3, expected 2" },
    { "format", "2.0", "format: found 2.0, expected an integer" },
    { "format", "\"1\"", "format: found \"1\", expected an integer" },
    { "contract", NULL, "contract: missing" },
    { "contract", "7", "contract: missing" },
    { "contract", "\"device cpu; threads 2\"", "contract: found \" threads 2\", expected |seed 1" },
    { "step", NULL, "step: found nothing, expected an integer" },
    { "step", "1e3", "step: found 1000.0, expected an integer" },
    { "step", "true", "step: found true, expected an integer" },
    { "step", "-1", "step: found -1, expected a count" },
    { "tokens", "9223372036854775807", "tokens: found 9223372036854775807, expected a count" },
    { "tokens", "9007199254740993.0", "tokens: found 9.00719925474099e15, expected an integer" },
    { "best_step", "-2", "best_step: found -2, expected -1 or a count" },
    { "best", "\"infinity\"", "best: found \"infinity\", expected a number, \"nan\", \"inf\"" },
    { "best", "null", "best: found null, expected a number" },
    { "best", NULL, "best: found nothing, expected a number" },
    { "seconds", "[]", "seconds: found [], expected a number" },
    { "cursor", NULL, "samples: found nothing, expected an integer" },
    { "cursor", "3", "samples: found nothing, expected an integer" },
    { "cursor", "{\"samples\":-7}", "samples: found -7, expected a count" },
    { "cursor", "{\"samples\":7}", "cursor.source_samples: found 0 numbers, expected 16" },
    { "cursor", "{\"samples\":7,\"source_samples\":[7]}", "found 1 numbers, expected 16" },
    { "cursor", "{\"samples\":7,\"source_samples\":" SOURCES("7.0") "}",
      "cursor.source_samples: found 7.0, expected an integer" },
    { "cursor", "{\"samples\":7,\"source_samples\":" SOURCES("\"7\"") "}",
      "cursor.source_samples: found \"7\", expected an integer" },
    { "guard", NULL, "updates: found nothing, expected an integer" },
    { "guard", GUARD("8.0", "2", "11", "1", ""), "updates: found 8.0, expected an integer" },
    { "guard", GUARD("10", "-2", "11", "1", ""), "skips: found -2, expected a count" },
    { "guard", GUARD("10", "1", "11", "1", ""), "guard: found 10 updates, 1 skips |of 12 steps" },
    { "guard", GUARD("10", "2", "13", "1", ""), "13 finite steps, expected those of 12 steps" },
    { "guard", GUARD("10", "2", "9", "1", ""), "9 finite steps, expected those of 12 steps" },
    { "guard", GUARD("10", "2", "11", "3", ""), "2 skips (3 in a row)" },
    { "guard", GUARD("10", "2", "11", "1", ""), "guard.windows: found 0, expected 2 of each of 1" },
    { "guard", GUARD("10", "2", "11", "1", "[1,2],[]"),
      "guard.windows: found 2 numbers, expected 11" },
    { "guard", GUARD("10", "2", "11", "1", "[0,0,0,0,0,0,0,0,0,0,1e39],[]"),
      "guard.windows: found 1e39, expected a number of f32" },
    { "guard", GUARD("10", "2", "11", "1", "[0,0,0,0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0,0,0,\"x\"]"),
      "guard.windows: found \"x\", expected a number of f32" },
    { "guard", GUARD("10", "2", "11", "1", "7,[]"), "guard.windows: found 0 numbers, expected 11" },
    { "guard", "{\"updates\":10,\"skips\":2}", "seen: found nothing, expected an integer" },
    { "guard", "{\"updates\":10,\"skips\":2,\"seen\":11}", "in_row: found nothing, expected" },
    { "students", NULL, "students: found 0, expected 1" },
    { "students", "[7]", "student student: label: found nothing, expected \"student\"" },
    { "students", "[{\"label\":\"other\"}]", "label: found \"other\", expected \"student\"" },
    { "students", "[{\"label\":\"student\",\"architecture\":3}]",
      "architecture: found 3, expected \"LlamaForCausalLM\"" },
    { "students",
      "[{\"label\":\"student\",\"architecture\":\"LlamaForCausalLM\",\"dtype\":\"bf16\"}]",
      "state.json: moments: found nothing, expected an integer" },
};

static const test_run_options options = { .dtype = KD_BF16, .moments = 2, .count = 1 };

/* A manifest for what the folder now holds. */
static void seal(const char *dir)
{
    (void)remove(test_path(dir, "MANIFEST.json"));
    test_ok(kd_manifest_write(dir));
}

/* Into a run that is not as the checkpoint, and stays as it is. */
static void expect_refused(const char *dir, const char *parts, const char *what)
{
    test_run other;
    kd_progress progress = { .step = -7 };
    test_run_open(&other, options);
    test_run_spoil(&other);
    void *copy = test_run_copy(&other);
    test_refusal(kd_checkpoint_load(&progress, dir, &other.checkpoint), KD_EFORMAT, parts, what);
    test_refusal(KD_EFORMAT, KD_EFORMAT, dir, what);
    cr_expect(progress.step == -7 && test_run_equals(&other, copy), "%s: loaded in part", what);
    free(copy);
    test_run_close(&other);
}

static const char *save(const char *out)
{
    static char dir[512];
    const char *path;
    test_run run;
    test_run_open(&run, options);
    test_run_fill(&run, 3, 12);
    test_ok(kd_checkpoint_save(&path, run.arena, out, &run.checkpoint));
    (void)snprintf(dir, sizeof dir, "%s", path);
    test_run_close(&run);
    return dir;
}

Test(refusals, state)
{
    const char *out = test_folder(), *dir = save(out);
    json_t *good;
    test_log();
    test_ok(kd_json_read(&good, test_path(dir, "engine/state.json")));
    for (int i = 0; i < KD_COUNT(state_cases); i++) {
        const state_case *c = &state_cases[i];
        char what[128];
        (void)snprintf(what, sizeof what, "%s = %s", c->key, c->value ? c->value : "removed");
        json_t *state = json_deep_copy(good);
        if (c->value)
            cr_assert(json_object_set_new(state, c->key,
                                          json_loads(c->value, JSON_DECODE_ANY, NULL)) == 0);
        else
            (void)json_object_del(state, c->key);
        test_ok(kd_json_write(test_path(dir, "engine/state.json"), state));
        json_decref(state);
        seal(dir);
        expect_refused(dir, c->parts, what);
        test_refusal(KD_EFORMAT, KD_EFORMAT, "engine/state.json: ", what);
    }
    json_decref(good);
    test_ok(kd_dir_remove(out));
}

static json_t *good_state(const char *dir)
{
    json_t *state;
    test_ok(kd_json_read(&state, test_path(dir, "engine/state.json")));
    return state;
}

/* One too few, and one too many. */
Test(refusals, parameters)
{
    const char *out = test_folder(), *dir = save(out);
    test_log();
    for (int more = 0; more < 2; more++) {
        json_t *state = good_state(dir);
        json_t *student = json_array_get(json_object_get(state, "students"), 0);
        json_t *list = json_object_get(student, "parameters");
        const size_t last = json_array_size(list) - !more;
        char parts[128];
        if (more)
            cr_assert(json_array_append_new(list, json_pack("{s:s}", "name", "x")) == 0);
        else
            cr_assert(json_array_remove(list, last) == 0);
        (void)snprintf(parts, sizeof parts, "student student: parameter %zu: found %s", last,
                       more ? "{\"name\":\"x\"}, expected none" : "none, expected {\"name\":\"");
        json_t *original = good_state(dir);
        test_ok(kd_json_write(test_path(dir, "engine/state.json"), state));
        seal(dir);
        expect_refused(dir, parts, more ? "one too many" : "one too few");
        test_ok(kd_json_write(test_path(dir, "engine/state.json"), original));
        json_decref(original);
        json_decref(state);
    }
    test_ok(kd_dir_remove(out));
}

/* What no state says that agrees with a run. */
Test(refusals, progress)
{
    static const struct {
        const char *key, *value, *parts;
    } cases[] = {
        { "students", "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]",
          "s: guard.windows: found 2, expected 2 of each of 33 students" },
        { "guard", GUARD("0", "4294967296", "0", "4294967296", ""),
          "s: guard: found 0 updates, 4294967296 skips (4294967296 in a row)" },
        { "seconds", "7", NULL },
    };
    const char *out = test_folder(), *dir = save(out);
    test_log();
    for (int i = 0; i < KD_COUNT(cases); i++) {
        kd_progress progress = { .step = -7 };
        json_t *state = good_state(dir), *value = json_loads(cases[i].value, JSON_DECODE_ANY, NULL);
        cr_assert(value && json_object_set_new(state, cases[i].key, value) == 0);
        if (i == 1) cr_assert(json_object_set_new(state, "step", json_integer(1LL << 32)) == 0);
        const kd_status status = kd_state_progress(&progress, state, "s");
        test_refusal(status, cases[i].parts ? KD_EFORMAT : KD_OK, cases[i].parts, cases[i].key);
        cr_expect(cases[i].parts ? progress.step == -7 : progress.seconds == 7, "%s", cases[i].key);
        json_decref(state);
    }
    test_ok(kd_dir_remove(out));
}

/* ---- MANIFEST.json ---------------------------------------------------------------------------- */

/* In place of what the manifest says of engine/optimizer.safetensors; its own hash is right. */
static const char *const entries[][2] = {
    { "7", "bytes or xxh3 missing" },
    { "{\"bytes\":1.0,\"xxh3\":\"0\"}", "bytes or xxh3 missing" },
    { "{\"bytes\":1,\"xxh3\":0}", "bytes or xxh3 missing" },
    { "{\"xxh3\":\"0\"}", "bytes or xxh3 missing" },
    { "{\"bytes\":9007199254740993,\"xxh3\":\"0\"}",
      "optimizer.safetensors: found |expected 9007199254740993" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\"}",
      "optimizer.safetensors: bytes 0 to |: found xxh3 |expected 0" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":[]}", "tensors is no object" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":0,\"end\":1}}}",
      "a tensor without begin, end or xxh3" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"end\":1,\"xxh3\":\"\"}}}",
      "a tensor without begin, end or xxh3" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":0,\"xxh3\":\"\"}}}",
      "a tensor without begin, end or xxh3" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":0,\"end\":1.0,\"xxh3\":\"\"}}}",
      "a tensor without begin, end or xxh3" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":0,\"end\":1,\"xxh3\":7}}}",
      "a tensor without begin, end or xxh3" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":0.0,\"end\":1,\"xxh3\":\"\"}}}",
      "a tensor without begin, end or xxh3" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":2,\"end\":1,\"xxh3\":\"\"}}}",
      "tensors that do not lie side by side" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":-1,\"end\":1,\"xxh3\":\"\"}}}",
      "tensors that do not lie side by side" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":0,\"end\":9007199254740993,"
      "\"xxh3\":\"\"}}}",
      "tensors that do not lie side by side" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"a\":{\"begin\":0,\"end\":1,\"xxh3\":\"\"},"
      "\"b\":{\"begin\":2,\"end\":3,\"xxh3\":\"\"}}}",
      "tensors that do not lie side by side" },
    { "{\"bytes\":%lld,\"xxh3\":\"0\",\"tensors\":{\"\\u001b[2J\":{\"begin\":8,\"end\":9,\"xxh3\":"
      "\"x\"}}}",
      "tensor \"\\x1b[2J\": bytes 8 to 9: found xxh3 |, expected x" },
};

static void write_manifest(const char *dir, const char *entry)
{
    char text[2048], whole[4096];
    /* Files are checked in their order: ours first. */
    (void)snprintf(text, sizeof text,
                   "{\"files\": {\"engine/optimizer.safetensors\": %s, \"config.json\": 1, "
                   "\"model.safetensors\": 1, \"trainer_state.json\": 1, \"engine/state.json\": 1}",
                   entry);
    const int n = snprintf(whole, sizeof whole, "%s,\n  \"xxh3\": \"%s\"\n}\n", text,
                           kd_hash_bytes(text, strlen(text)).hex);
    test_ok(kd_file_write_atomic(test_path(dir, "MANIFEST.json"), whole, (size_t)n));
}

Test(refusals, manifest)
{
    const char *out = test_folder(), *dir = save(out);
    int64_t bytes;
    test_log();
    test_ok(kd_file_size(&bytes, test_path(dir, "engine/optimizer.safetensors")));
    for (int i = 0; i < KD_COUNT(entries); i++) {
        char entry[512], size[32], *hole = NULL;
        (void)snprintf(size, sizeof size, "%lld", (long long)bytes);
        (void)snprintf(entry, sizeof entry, "%s", entries[i][0]);
        hole = strstr(entry, "%lld");
        if (hole) {
            memmove(hole + strlen(size), hole + 4, strlen(hole + 4) + 1);
            memcpy(hole, size, strlen(size));
        }
        write_manifest(dir, entry);
        expect_refused(dir, entries[i][1], entries[i][0]);
        test_refusal(KD_EFORMAT, KD_EFORMAT, "engine/optimizer.safetensors", entries[i][0]);
    }
    test_ok(kd_dir_remove(out));
}

/* ---- engine/optimizer.safetensors ------------------------------------------------------------- */

typedef enum change { WITHOUT, SHORT, OTHER_TYPE, OTHER_RANK, NOT_FINITE } change;

static const struct {
    const char *what;
    change change;
    const char *parts;
} arrays[] = {
    { "no moments", WITHOUT, "no tensor student.moment0" },
    { "one element less", SHORT,
      "student.moment0: found F32 of rank 1 with |expected F32 of rank" },
    { "integers", OTHER_TYPE, "student.moment0: found I32 of rank 1 with |expected F32 of rank 1" },
    { "two dimensions", OTHER_RANK,
      "student.moment0: found F32 of rank 2 with |expected F32 of rank 1" },
    { "NaN", NOT_FINITE, "tensor \"student.moment0\": element 3 (byte |): found nan, expected" },
};

static void rewrite(const char *path, const char *from, change how)
{
    kd_st_file *file;
    kd_st_writer *w;
    test_ok(kd_st_open(&file, from));
    test_ok(kd_st_writer_create(&w, path));
    for (int pass = 0; pass < 2; pass++) {
        if (pass) test_ok(kd_st_writer_begin(w));
        for (int64_t i = 0; i < file->count; i++) {
            const kd_st_entry *e = &file->entries[i];
            const bool here = strcmp(e->name, "student.moment0") == 0;
            const int64_t n = e->elements - (here && how == SHORT), shape[2] = { n, 1 };
            if (here && how == WITHOUT) continue;
            if (!pass) {
                const kd_dtype dtype = here && how == OTHER_TYPE ? KD_I32 : KD_F32;
                test_ok(kd_st_writer_declare(w, e->name, dtype, here && how == OTHER_RANK ? 2 : 1,
                                             shape));
                continue;
            }
            float *values = malloc((size_t)e->bytes);
            test_ok(kd_st_read(values, KD_F32, file, e, 0, e->elements));
            if (here && how == NOT_FINITE) values[3] = NAN;
            test_ok(kd_st_writer_write(w, e->name, values, (size_t)n * sizeof *values));
            free(values);
        }
    }
    test_ok(kd_st_writer_close(w));
    kd_st_close(file);
}

Test(refusals, optimizer_state)
{
    const char *out = test_folder(), *dir = save(out);
    char path[600], kept[600];
    test_log();
    (void)snprintf(path, sizeof path, "%s", test_path(dir, "engine/optimizer.safetensors"));
    (void)snprintf(kept, sizeof kept, "%s", test_path(out, "kept"));
    test_ok(kd_file_copy(kept, path));
    for (int i = 0; i < KD_COUNT(arrays); i++) {
        test_run other;
        kd_progress progress;
        rewrite(path, kept, arrays[i].change);
        seal(dir);
        test_run_open(&other, options);
        test_refusal(kd_checkpoint_load(&progress, dir, &other.checkpoint), KD_EFORMAT,
                     arrays[i].parts, arrays[i].what);
        test_refusal(KD_EFORMAT, KD_EFORMAT, path, arrays[i].what);
        test_run_close(&other);
    }
    test_ok(kd_dir_remove(out));
}
