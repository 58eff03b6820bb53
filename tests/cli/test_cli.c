/* The built program from outside: exit codes, what stands on stdout and what on stderr. */
#include "cli/command.h"

#include <float.h>
#include <math.h>

/* ---- the surface ------------------------------------------------------------------------------ */

Test(cli, says_what_is_wrong_and_with_which_code, .init = setup, .fini = teardown)
{
    static const struct {
        const char *line;
        int code;
        const char *out, *err; /* parts; NULL: nothing at all */
    } cases[] = {
        { "", 2, NULL, "kd: no verb" },
        { "--help", 0, "usage: kd VERB", NULL },
        { "-h", 0, "Exit codes", NULL },
        { "--version", 0, "kd ", NULL },
        { "trian", 2, NULL, "unknown verb \"trian\"; nearest: train" },
        { "xyzzy", 2, NULL, "unknown verb \"xyzzy\"; see kd --help" },
        { "train", 2, NULL, "train: expected a run file" },
        { "train none.yaml", 3, NULL, "none.yaml" },
        { "inspect", 2, NULL, "inspect: expected a model directory" },
        { "inspect a b", 2, NULL, "\"b\" is one too many" },
        { "inspect none", 3, NULL, "none" },
        { "inspect golden", 3, NULL, "config.json" },
        { "list lossses", 2, NULL, "no list of \"lossses\"; nearest: losses" },
        { "list models", 0, "qwen2", NULL },
        { "loss", 2, NULL, "loss: expected the name of a loss first" },
        { "loss --in x kl", 2, NULL, "loss: expected the name of a loss first" },
        { "loss jsdd --in x --out y", 2, NULL, "unknown loss \"jsdd\"; nearest: jsd" },
        { "loss kl --in x --out y --beta=0", 2, NULL, "--beta: unknown option" },
        { "loss jsd --in x --out y --beta=2", 2, NULL, "--beta: expected float, 0 to 1" },
        { "loss kl --in none --out y", 3, NULL, "none" },
        { "loss --help", 0, "may stand behind a projector", NULL },
        { "loss hint --help", 0, "none|linear|mlp|conv1x1|conv, default none", NULL },
        { "loss hint --in x --out y --projector.tpye conv", 2, NULL, "nearest: projector.type" },
        { "loss cosine --in x --out y --projector.type conv", 2, NULL, "expected linear or mlp" },
        { "loss attention_kl --in x --out y --projector.type linear", 2, NULL,
          "no rows or maps that a projector could widen" },
        { "logits --model golden/models/qwen2 --tokens none --out y", 3, NULL, "none" },
        { "logits --model none --tokens none --out y", 3, NULL, "none" },
        { "logits --model golden/models/qwen2 --tokens golden/rows.safetensors --out y", 3, NULL,
          "no tensor \"tokens\"" },
        { "logits --model m --tokens t --out o --device gpu", 2, NULL, "device \"gpu\"" },
        { "logits --model m --tokens t --out o --dtype f64", 2, NULL, "f64" },
        { "init --out x", 2, NULL, "give one of --teacher and --config" },
        { "init --out x --teacher golden/models/gpt2", 2, NULL, "one of --keep and --layers" },
        { "init --out x --teacher golden/models/gpt2 --keep 1,0", 2, NULL, "ascending layers" },
        { "init --out x --teacher golden/models/gpt2 --keep 0-", 2, NULL, "ascending layers" },
        { "init --out x --teacher golden/models/gpt2 --keep 0,,1", 2, NULL, "ascending layers" },
        { "init --out x --teacher golden/models/gpt2 --keep 0,99", 2, NULL, "layer 99" },
        { "init --out x --teacher golden/models/gpt2 --layers 99", 2, NULL, "--layers: 99" },
        { "init --out x --config none.json", 3, NULL, "none.json" },
        { "init --out golden/models/gpt2 --teacher golden/models/gpt2 --keep 0", 3, NULL,
          "holds a model already" },
        { "eval --models a --data b --names c,d", 2, NULL, "--names: 2 for 1 models" },
        { "eval --models a,,b --data b", 2, NULL, "an empty name" },
        { "eval --models a", 2, NULL, "eval: data: missing" },
        { "list > /dev/full", 4, NULL, "standard output cannot be written" },
        { "env", 0, "threads", NULL },
    };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const result r = run("%s", cases[i].line);
        expect_code(r, cases[i].code, cases[i].line);
        cr_expect(cases[i].out ? strstr(r.out, cases[i].out) != NULL : !*r.out,
                  "kd %s: stdout is \"%s\"", cases[i].line, r.out);
        cr_expect(cases[i].err ? strstr(r.err, cases[i].err) != NULL : !*r.err,
                  "kd %s: stderr is \"%s\"", cases[i].line, r.err);
        cr_expect(!cases[i].code || strstr(r.err, "kd: "), "kd %s: no \"kd: \"", cases[i].line);
        cr_expect(!kd_file_exists("x/config.json") && !kd_file_exists("y"), "kd %s: left a file",
                  cases[i].line);
    }
}

Test(cli, every_verb_has_help_and_names_the_nearest_option, .init = setup, .fini = teardown)
{
    char verbs[32][32], wanted[64];
    int count = 0;
    for (char *line = strtok(run("--help").out, "\n"); line && count < 32;
         line = strtok(NULL, "\n"))
        if (strncmp(line, "  ", 2) == 0) sscanf(line, "%31s", verbs[count++]);
    cr_assert_geq(count, 10);
    for (int i = 0; i < count; i++) {
        const char *name = strcmp(verbs[i], "loss") == 0 ? "loss ce" : verbs[i];
        result r = run("%s --help", name);
        expect_code(r, 0, verbs[i]);
        snprintf(wanted, sizeof wanted, "usage: kd %s", verbs[i]);
        cr_expect(strncmp(r.out, wanted, strlen(wanted)) == 0, "kd %s: \"%.80s\"", name, r.out);
        cr_expect(!*r.err, "kd %s --help: stderr is \"%s\"", name, r.err);
        /* The first option that help shows, with a slip in it. */
        const char *option = strstr(r.out, "\n  --");
        char word[64] = "x";
        if (option && strstr(r.out, "  --") == option + 1) sscanf(option + 5, "%62s", word);
        r = run("%s --%sq", name, word);
        expect_code(r, 2, verbs[i]);
        cr_expect(strstr(r.err, "unknown option") || strchr(word, '.'), "kd %s --%sq: \"%s\"", name,
                  word, r.err);
        if (strlen(word) > 3 && !strchr(word, '.'))
            cr_expect(strstr(r.err, word), "kd %s --%sq: \"%s\"", name, word, r.err);
    }
}

Test(cli, answers_in_json, .init = setup, .fini = teardown)
{
    static const char *const lines[][2] = {
        { "list --json", "losses" },
        { "list ops --json", "ops" },
        { "env --json", "devices" },
        { "inspect golden/models/qwen3 --json", "architecture" },
        { "inspect golden/models/qwen3/model.safetensors --json", "tensors" },
    };
    for (int i = 0; i < KD_COUNT(lines); i++) {
        const result r = run("%s", lines[i][0]);
        expect_code(r, 0, lines[i][0]);
        json_t *json = answer(&r, lines[i][0]);
        cr_expect(json_object_get(json, lines[i][1]), "kd %s: no \"%s\"", lines[i][0], lines[i][1]);
        json_decref(json);
    }
    const result r = run("inspect golden/models/qwen3 --json");
    json_t *json = answer(&r, "inspect");
    /* What config.json says, and its parameters counted by hand from the tensors of the file. */
    kd_st_file *file;
    int64_t elements = 0;
    cr_assert_eq(kd_st_open(&file, "golden/models/qwen3/model.safetensors"), KD_OK);
    for (int64_t i = 0; i < file->count; i++) elements += file->entries[i].elements;
    kd_st_close(file);
    cr_expect_eq(json_integer_value(json_object_get(json, "parameters")), elements);
    cr_expect_eq(json_integer_value(json_object_get(json, "weight_bytes")), 4 * elements);
    cr_expect_str_eq(json_string_value(json_object_get(json, "architecture")), "Qwen3ForCausalLM");
    json_decref(json);
}

/* ---- loss ------------------------------------------------------------------------------------- */

static void expect_values(const char *what, const char *name, const double *want, int64_t count)
{
    int64_t n;
    float *got = read_tensor(&n, "out.safetensors", name, KD_F32);
    cr_assert_eq(n, count, "kd %s: %s has %lld elements", what, name, (long long)n);
    for (int64_t i = 0; i < n; i++)
        cr_expect(fabs((double)got[i] - want[i]) <= 4 * FLT_EPSILON * (fabs(want[i]) + 1.0),
                  "kd %s: %s[%lld] is %.9g, expected %.9g", what, name, (long long)i,
                  (double)got[i], want[i]);
    free(got);
}

/* Two classes, so that every number can be written down: q = (1/4, 3/4), p = (1/2, 1/2).  The third
 * column is the student's padding, the second row is ignored. */
Test(cli, loss_gives_the_numbers_of_the_formulas, .init = setup, .fini = teardown)
{
    const float ln3 = (float)log(3.0), ln9 = (float)log(9.0);
    const float student[] = { 0, ln3, 7, 5, 5, 5, ln9 / 2, ln9, 50 };
    const float teacher[] = { 1, 1, 9, 9, 2, 2 }, weight[] = { 1, 1, 2 };
    const int64_t labels[] = { 0, -100, 1 };
    const column columns[] = { { "student", KD_F32, { 3, 3 }, student },
                               { "teacher", KD_F32, { 3, 2 }, teacher },
                               { "labels", KD_I64, { 3 }, labels },
                               { "weight", KD_F32, { 3 }, weight } };
    write_file("in.safetensors", columns, KD_COUNT(columns));
    const double ln2 = log(2.0), kl = log(4.0 / 3.0) / 2.0, tv = 0.25;
    const double q_half = sqrt(3.0) / (1.0 + sqrt(3.0)); /* of class 1 at temperature 2 */
    const double kl_half = -0.5 * log(4.0 * q_half * (1.0 - q_half));
    const struct {
        const char *line;
        double loss[3], gradient[9];
    } cases[] = {
        { "loss ce --classes 2",
          { 2 * ln2, 0, 2 * log(4.0 / 3.0) },
          { -0.75, 0.75, 0, 0, 0, 0, 0.5, -0.5, 0 } },
        { "loss kl --device cpu", { kl, 0, 2 * kl }, { -0.25, 0.25, 0, 0, 0, 0, -0.5, 0.5, 0 } },
        { "loss total_variation",
          { tv, 0, 2 * tv },
          { -3.0 / 16, 3.0 / 16, 0, 0, 0, 0, -3.0 / 8, 3.0 / 8, 0 } },
        { "loss forward_kl --temperature=2",
          { 4 * kl_half, 0, 8 * kl_half },
          { 1 - 2 * q_half, 2 * q_half - 1, 0, 0, 0, 0, 2 - 4 * q_half, 4 * q_half - 2, 0 } },
        { "loss forward_kl --temperature 2 --no-t_squared",
          { kl_half, 0, 2 * kl_half },
          { 0.25 - q_half / 2, q_half / 2 - 0.25, 0, 0, 0, 0, 0.5 - q_half, q_half - 0.5, 0 } },
    };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const result r = run("%s --in in.safetensors --out out.safetensors", cases[i].line);
        expect_code(r, 0, cases[i].line);
        cr_expect(!*r.out, "kd %s: stdout is \"%s\"", cases[i].line, r.out);
        expect_values(cases[i].line, "loss", cases[i].loss, 3);
        expect_values(cases[i].line, "d_student", cases[i].gradient, 9);
    }
}

/* A 1x1 convolution whose numbers can be written down: of two places (1, 2) and (3, -1) it makes x - y + 1/2 and
 * 2 x; ReLU holds back the first place of the first. */
Test(cli, loss_takes_a_projector, .init = setup, .fini = teardown)
{
    const float student[] = { 1, 3, 2, -1 }, teacher[] = { 0, 0.5F, 2, 2 };
    const float weights[] = { 1, -1, 2, 0 }, bias[] = { 0.5F, 0 };
    const column columns[] = { { "student", KD_F32, { 1, 2, 1, 2 }, student },
                               { "teacher", KD_F32, { 1, 2, 1, 2 }, teacher },
                               { "projector.0.weight", KD_F32, { 2, 2, 1, 1 }, weights },
                               { "projector.0.bias", KD_F32, { 2 }, bias } };
    /* Differences: -1/2 and 4 of the first channel, 0 and 4 of the second; ReLU makes the first 0. */
    const struct {
        const char *line;
        double loss, d_student[4], d_weight[4], d_bias[2];
    } cases[] = {
        { "--projector.type conv1x1",
          8.0625,
          { -0.25, 6, 0.25, -2 },
          { 5.75, -2.5, 6, -2 },
          { 1.75, 2 } },
        { "--projector.type=conv1x1 --projector.output relu",
          8,
          { 0, 6, 0, -2 },
          { 6, -2, 6, -2 },
          { 2, 2 } },
    };
    write_file("in.safetensors", columns, KD_COUNT(columns));
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const char *line = cases[i].line;
        const result r = run("loss hint --in in.safetensors --out out.safetensors %s", line);
        expect_code(r, 0, line);
        expect_values(line, "loss", &cases[i].loss, 1);
        expect_values(line, "d_student", cases[i].d_student, 4);
        expect_values(line, "d_projector.0.weight", cases[i].d_weight, 4);
        expect_values(line, "d_projector.0.bias", cases[i].d_bias, 2);
    }
    const result r = run("loss hint --in in.safetensors --out out.safetensors "
                         "--projector.type conv1x1 --no-projector.trainable");
    kd_st_file *file;
    expect_code(r, 0, "--no-projector.trainable");
    cr_assert_eq(kd_st_open(&file, "out.safetensors"), KD_OK);
    cr_expect(!kd_st_find(file, "d_projector.0.weight") && kd_st_find(file, "d_student"));
    kd_st_close(file);
}
