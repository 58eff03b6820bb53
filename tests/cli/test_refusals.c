/* Malformed input from outside: exit code 3, or 2 for what is written in a run file and in flags, and
 * a message that says where, what was found and what was expected. */
#include "cli/command.h"

#include <math.h>
#include <sys/stat.h>

enum { TOKENS = 600, VOCABULARY = 101 };

static const char run_yaml[] = "teacher: {model: t}\n"
                               "student: {model: s}\n"
                               "data: {train: train.safetensors, sequence: 32}\n"
                               "loss: {kl: {weight: 1}}\n"
                               "optim: {lr: 1e-3}\n"
                               "batch: {samples: 8}\n"
                               "run: {steps: 2, out: out, device: cpu}\n";

static const char tokenizer_a[] = "{\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}";
static const char tokenizer_b[] = "{\"model\":{\"vocab\":{\"b\":0,\"a\":1},\"merges\":[]}}";
static const char tokenizer_large[] = "{\"model\":{\"vocab\":{\"a\":101}}}";

static void write_tokens(int at, uint16_t id)
{
    uint16_t tokens[TOKENS];
    for (int i = 0; i < TOKENS; i++) tokens[i] = (uint16_t)(i % 2);
    tokens[at] = id;
    const column input = { "tokens", KD_U16, { TOKENS }, tokens };
    write_file("train.safetensors", &input, 1);
}

static void write_model(const char *to)
{
    char path[64];
    cr_assert(mkdir(to, 0777) == 0);
    (void)snprintf(path, sizeof path, "%s/config.json", to);
    cr_assert_eq(kd_file_copy(path, "golden/models/qwen2/config.json"), KD_OK);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", to);
    cr_assert_eq(kd_file_copy(path, "golden/models/qwen2/model.safetensors"), KD_OK);
}

static void restore(void)
{
    cr_assert_eq(kd_dir_remove("t"), KD_OK);
    cr_assert_eq(kd_dir_remove("s"), KD_OK);
    write_model("t");
    write_model("s");
    write_tokens(0, 0);
    write_text("run.yaml", run_yaml);
}

/* What is wrong with the run's files. */
static void poison_teacher(void)
{
    kd_st_file *file;
    const float value = NAN;
    cr_assert_eq(kd_st_open(&file, "t/model.safetensors"), KD_OK);
    const int64_t at = kd_st_find(file, "model.norm.weight")->offset + 4 * 5;
    kd_st_close(file);
    FILE *f = fopen("t/model.safetensors", "r+b");
    cr_assert(f && fseek(f, (long)at, SEEK_SET) == 0 && fwrite(&value, 4, 1, f) == 1 &&
              fclose(f) == 0);
}

static void cut_teacher(void) { cr_assert(truncate("t/model.safetensors", 60000) == 0); }

static void hide_teacher(void)
{
    cr_assert(unlink("t/model.safetensors") == 0 && mkfifo("t/model.safetensors", 0600) == 0);
}

static void contradict_teacher(void)
{
    json_t *config;
    cr_assert_eq(kd_json_read(&config, "t/config.json"), KD_OK);
    (void)json_object_set_new(config, "intermediate_size", json_integer(64));
    cr_assert_eq(kd_json_write("t/config.json", config), KD_OK);
    json_decref(config);
}

static void two_tokenizers(void)
{
    write_text("t/tokenizer.json", tokenizer_a);
    write_text("s/tokenizer.json", tokenizer_b);
}

static void broken_tokenizer(void)
{
    write_text("s/tokenizer.json", "{\"model\":{\"vocab\":[1]}}");
}

static void large_tokenizer(void) { write_text("t/tokenizer.json", tokenizer_large); }

static void other_data(void)
{
    static const uint16_t tokens[TOKENS];
    const int64_t n = TOKENS;
    kd_st_writer *w;
    two_tokenizers();
    write_text("s/tokenizer.json", tokenizer_a);
    cr_assert_eq(kd_st_writer_create(&w, "train.safetensors"), KD_OK);
    cr_assert_eq(kd_st_writer_metadata(w, "tokenizer", "0123456789abcdef"), KD_OK);
    cr_assert_eq(kd_st_writer_declare(w, "tokens", KD_U16, 1, &n), KD_OK);
    cr_assert_eq(kd_st_writer_begin(w), KD_OK);
    cr_assert_eq(kd_st_writer_write(w, "tokens", tokens, sizeof tokens), KD_OK);
    cr_assert_eq(kd_st_writer_close(w), KD_OK);
}

static void id_beyond(void) { write_tokens(77, VOCABULARY); }

/* Beyond the tokenizer, within the padded table of embeddings. */
static void id_in_padding(void)
{
    write_text("t/tokenizer.json", tokenizer_a);
    write_tokens(300, 2);
}

static void no_data(void) { cr_assert(unlink("train.safetensors") == 0); }

static void empty_data(void) { cr_assert(truncate("train.safetensors", 0) == 0); }

static void run_is_a_folder(void)
{
    cr_assert(unlink("run.yaml") == 0 && mkdir("run.yaml", 0777) == 0);
}

static const struct {
    const char *what;
    void (*damage)(void);
    const char *parts;
} files[] = {
    { "NaN in a weight", poison_teacher,
      "t/model.safetensors: tensor \"model.norm.weight\": element 5 (byte |found nan, expected" },
    { "cut weights", cut_teacher, "t/model.safetensors: tensor \"|expected a range within the" },
    { "a FIFO", hide_teacher, "t/model.safetensors: not a regular file" },
    { "config.json of another model", contradict_teacher,
      "t/model.safetensors: tensor \"model.layers.0.mlp.|found shape [|expected [64, 36] by "
      "config" },
    { "two tokenizers", two_tokenizers,
      "t and s have different tokenizers (fingerprints |); their logits cannot be compared" },
    { "a broken tokenizer", broken_tokenizer, "s/tokenizer.json: model.vocab[0] is 1, expected" },
    { "more ids than embeddings", large_tokenizer,
      "t/tokenizer.json: found id 101, expected ids below the vocab_size 101 of config.json" },
    { "data of another tokenizer", other_data,
      "train.safetensors: made with the tokenizer 0123456789abcdef, the models have " },
    { "an id beyond the vocabulary", id_beyond,
      "train.safetensors: tokens[77] (byte |): found id 101, expected 0 to 100" },
    { "an id beyond the tokenizer", id_in_padding,
      "train.safetensors: tokens[300] (byte |): found id 2, expected 0 to 1" },
    { "no data", no_data, "train.safetensors: cannot open: No such file" },
    { "empty data", empty_data, "train.safetensors: 0 bytes, expected at least 8" },
    { "a folder for a run file", run_is_a_folder, "run.yaml: not a regular file" },
};

static void expect(const result *r, int code, const char *parts, const char *what)
{
    char copy[512], *rest = NULL;
    cr_expect_eq(r->code, code, "%s: exit %d, expected %d: %s", what, r->code, code, r->err);
    cr_expect(!*r->out, "%s: stdout is \"%s\"", what, r->out);
    (void)snprintf(copy, sizeof copy, "%s", parts);
    for (char *part = strtok_r(copy, "|", &rest); part; part = strtok_r(NULL, "|", &rest))
        cr_expect(strstr(r->err, part) != NULL, "%s: no \"%s\" in \"%s\"", what, part, r->err);
}

Test(refusals, files_exit_3, .init = setup, .fini = teardown)
{
    restore();
    const result good = run("validate run.yaml");
    expect_code(good, 0, "validate");
    for (int i = 0; i < KD_COUNT(files); i++) {
        restore();
        files[i].damage();
        result r = run("validate run.yaml");
        expect(&r, 3, files[i].parts, files[i].what);
        r = run("train run.yaml");
        expect(&r, 3, files[i].parts, files[i].what);
        cr_expect(!kd_file_exists("out/config.json"), "%s: left a model", files[i].what);
        if (kd_dir_exists("run.yaml")) cr_assert(rmdir("run.yaml") == 0);
    }
    restore();
    two_tokenizers();
    const result r = run("eval --teacher t --models s --data train.safetensors");
    expect(&r, 3, "t and s have different tokenizers", "eval");
}

static const struct {
    const char *text, *parts;
} configurations[] = {
    { "teacher: {model: t}\nteacher: {model: s}\n",
      "run.yaml:2: teacher: stands already on line 1" },
    { "teacher: &t {model: t}\nstudent: *t\n", "run.yaml:1: anchors (&name) are not accepted" },
    { "teacher: *t\n", "run.yaml:1: aliases (*name) are not accepted" },
    { "a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n", "run.yaml:1: nested deeper than 32" },
    { "teacher: {model: \"t\xff\"}\n", "run.yaml:1: " },
    { "teacher: {model: \"t\\0\"}\n", "run.yaml:1: a NUL within a text" },
    { "teacher: {model: t\n", "run.yaml:2: did not find expected" },
    { "teachr: {model: t}\n", "run.yaml:1: teachr: unknown section; nearest: teacher" },
    { "- teacher\n", "run.yaml: expected sections" },
    { "teacher\n", "run.yaml: expected sections" },
    { "", "run.yaml: expected sections such as student: and data:" },
    { "student: {model: s}\n", "the run has no `data: {train: ...}`" },
    { "student: {model: s, dtipe: f32}\ndata: {train: x}\n",
      "run.yaml:1: student.dtipe: unknown option; nearest: dtype" },
    { "student: {model: s}\ndata: {train: x, sequence: 1.5}\n",
      "run.yaml:2: data.sequence: expected int|found '1.5'" },
    { "student: {model: s}\ndata: {train: x, sequence: 9223372036854775808}\n",
      "run.yaml:2: data.sequence: expected int|found '9223372036854775808'" },
    { "student: {model: s}\ndata: {train: x, sequence: 0x10}\n",
      "run.yaml:2: data.sequence: expected int|found '0x10'" },
    { "student: {model: s}\ndata: {train: x, sequence: -32}\n",
      "run.yaml:2: data.sequence: expected int|found '-32'" },
    { "student: {model: s}\ndata: {train: x, sequence: [32]}\n",
      "run.yaml:2: data.sequence: expected int|found a list" },
    { "student: {model: s}\ndata: {train: x}\nloss: {kl: {temperature: nan}}\n",
      "run.yaml:3: loss.kl.temperature: expected float, |found 'nan'" },
    { "student: {model: s}\ndata: {train: x}\nloss: {kl: {temperature: 1e999}}\n",
      "run.yaml:3: loss.kl.temperature: expected float, |found '1e999'" },
    { "student: {model: s}\ndata: {train: x}\nloss: {kl: {temperature: 1,5}}\n", "run.yaml:3: " },
    { "student: {model: \"\x1b[2J\"}\n", "run.yaml:1: control characters are not allowed" },
    { "student: {model: s, \"\\e[2J\": 1}\ndata: {train: x}\n",
      "run.yaml:1: student.\\x1b[2J: unknown option" },
};

static const char *const flags[][2] = {
    { "--batch.micro=99999999999999999999",
      "batch.micro: \"99999999999999999999\"; expected auto" },
    { "--batch.micro=9", "batch.micro: \"9\"; expected auto or 1 to 8 samples" },
    { "--batch.micro=3", "batch.micro: 3 x 1 ranks does not divide 8 samples" },
    { "--run.steps=1e400", "--run.steps: expected int|found '1e400'" },
    { "--run.steps=2.5", "--run.steps: expected int|found '2.5'" },
    { "--run.steps='*a'", "--run.steps:1: aliases" },
    { "--run.steps='[1'", "--run.steps:2: did not find" },
    { "--run.checkpoint.every='1e300 steps'", "run.checkpoint.every: \"1e300 steps\"; expected" },
    { "--run.checkpoint.every='inf steps'", "run.checkpoint.every: \"inf steps\"; expected" },
    { "--eval.every='0.4 steps'", "eval.every: \"0.4 steps\"; expected" },
    { "--optim.warmup='1e300 steps'", "optim.warmup: \"1e300 steps\"; expected" },
    { "--loss.top_k.k=1000", "loss.top_k.k: 1000, expected at most " },
    { "--loss.top_k.k=1025", "--loss.top_k.k: expected int, 1 to 1024 classes" },
    { "--loss.top_k.others=tail", "loss.top_k.k: missing: of the teacher" },
    { "--run.stps=2", "--run.stps: unknown option; nearest: steps" },
};

Test(refusals, what_is_written_exits_2, .init = setup, .fini = teardown)
{
    restore();
    for (int i = 0; i < KD_COUNT(configurations); i++) {
        write_text("run.yaml", configurations[i].text);
        const result r = run("train run.yaml");
        expect(&r, 2, configurations[i].parts, configurations[i].text);
    }
    write_text("run.yaml", run_yaml);
    for (int i = 0; i < KD_COUNT(flags); i++) {
        const result r = run("train run.yaml %s", flags[i][0]);
        expect(&r, 2, flags[i][1], flags[i][0]);
    }
}
