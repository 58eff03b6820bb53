/* What kd eval says of where a model is good, held against kd logits and sums in double; and kd report
 * where no browser looks at its page. */
#include "cli/command.h"

#include <math.h>
#include <sys/stat.h>

enum { DOCUMENTS = 3, LENGTH = 24, TOKENS = DOCUMENTS * LENGTH, CLASSES = 101, MODELS = 2 };

static const char *const models[MODELS] = { "golden/models/qwen2", "student" };

/* ---- the same in double ----------------------------------------------------------------------- */

typedef struct bins {
    double tokens[64], kl[64], trusted[64], confidence[64], right[64];
} bins;

static int32_t tokens[TOKENS];

static void write_data(void)
{
    int64_t borders[DOCUMENTS + 1];
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)(CLASSES * kd_random_uniform(8, 0, (uint64_t)i));
    for (int d = 0; d <= DOCUMENTS; d++) borders[d] = d * LENGTH;
    const column columns[] = { { "tokens", KD_I32, { TOKENS }, tokens },
                               { "documents", KD_I64, { DOCUMENTS + 1 }, borders } };
    write_file("valid.safetensors", columns, 2);
}

/* log softmax of every row of document `d`; freed by the caller. */
static double *log_probabilities(const char *model, int d)
{
    const column input = { "tokens", KD_I32, { LENGTH }, tokens + d * LENGTH };
    int64_t n;
    write_file("one.safetensors", &input, 1);
    expect_code(run("logits --model %s --tokens one.safetensors --out one.out", model), 0, model);
    float *logits = read_tensor(&n, "one.out", "logits", KD_F32);
    cr_assert_eq(n, LENGTH * CLASSES);
    double *log_p = malloc((size_t)n * sizeof *log_p);
    for (int row = 0; row < LENGTH; row++) {
        const float *z = logits + row * CLASSES;
        double sum = 0.0;
        for (int j = 0; j < CLASSES; j++) sum += exp((double)z[j]);
        for (int j = 0; j < CLASSES; j++) log_p[row * CLASSES + j] = (double)z[j] - log(sum);
    }
    free(logits);
    return log_p;
}

static double entropy_of(const double *log_p)
{
    double entropy = 0.0;
    for (int j = 0; j < CLASSES; j++) entropy -= exp(log_p[j]) * log_p[j];
    return entropy;
}

/* A row of a student: where it lies by context and by entropy, and its KL. */
static void add_row(bins *context, bins *entropy, const double *teacher, const double *student,
                    int row)
{
    double kl = 0.0;
    for (int j = 0; j < CLASSES; j++) kl += exp(teacher[j]) * (teacher[j] - student[j]);
    const int c = (int)log2(row + 1.0), e = (int)(2.0 * entropy_of(teacher));
    context->tokens[c] += 1.0;
    context->kl[c] += kl;
    entropy->tokens[e] += 1.0;
    entropy->kl[e] += kl;
}

static void add_trust(bins *trust, const double *log_p, int32_t label)
{
    int best = 0;
    for (int j = 1; j < CLASSES; j++)
        if (log_p[j] > log_p[best]) best = j;
    const int at = (int)(15.0 * exp(log_p[best]));
    trust->trusted[at] += 1.0;
    trust->confidence[at] += exp(log_p[best]);
    trust->right[at] += best == label;
}

static void expect(bins *context, bins *entropy, bins trust[MODELS])
{
    for (int d = 0; d < DOCUMENTS; d++) {
        double *log_p[MODELS];
        for (int m = 0; m < MODELS; m++) log_p[m] = log_probabilities(models[m], d);
        for (int row = 0; row + 1 < LENGTH; row++) {
            const int64_t at = (int64_t)row * CLASSES;
            add_row(context, entropy, log_p[0] + at, log_p[1] + at, row);
            for (int m = 0; m < MODELS; m++)
                add_trust(&trust[m], log_p[m] + at, tokens[d * LENGTH + row + 1]);
        }
        for (int m = 0; m < MODELS; m++) free(log_p[m]);
    }
}

/* ---- against what is printed ------------------------------------------------------------------ */

static double number_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* The forward pass in f32 is that of kd logits but for the order of sums. */
static const double near = 1e-4;

static void check_kl(const json_t *list, const bins *want, const char *what)
{
    size_t at = 0;
    for (int i = 0; i < 64; i++) {
        if (want->tokens[i] == 0.0) continue;
        const json_t *bin = json_array_get(list, at++);
        const double kl = want->kl[i] / want->tokens[i];
        cr_expect(number_of(bin, "tokens") == want->tokens[i], "%s, bin %d: %g tokens, expected %g",
                  what, i, number_of(bin, "tokens"), want->tokens[i]);
        cr_expect(fabs(number_of(bin, "kl") - kl) < near * (1.0 + kl), "%s, bin %d: %g, not %g",
                  what, i, number_of(bin, "kl"), kl);
    }
    cr_expect(at == json_array_size(list), "%s: %zu bins, expected %zu", what,
              json_array_size(list), at);
}

static void check_trust(const json_t *model, const bins *want)
{
    const json_t *c = json_object_get(model, "calibration"), *list = json_object_get(c, "bins");
    const double all = TOKENS - DOCUMENTS;
    double ece = 0.0, right = 0.0;
    cr_assert_eq(json_array_size(list), 15);
    for (int i = 0; i < 15; i++) {
        const json_t *bin = json_array_get(list, (size_t)i);
        ece += fabs(want->right[i] - want->confidence[i]) / all;
        right += want->right[i] / all;
        cr_expect(number_of(bin, "tokens") == want->trusted[i], "bin %d", i);
        if (want->trusted[i] == 0.0) continue;
        cr_expect(fabs(number_of(bin, "confidence") - want->confidence[i] / want->trusted[i]) <
                  near);
        cr_expect(fabs(number_of(bin, "accuracy") - want->right[i] / want->trusted[i]) < 1e-12);
    }
    cr_expect(fabs(number_of(c, "ece") - ece) < near, "%g, not %g", number_of(c, "ece"), ece);
    cr_expect(fabs(number_of(c, "accuracy") - right) < 1e-12);
}

static void evaluate(const char *options)
{
    expect_code(run("eval --teacher golden/models/qwen2 --models student --data valid.safetensors "
                    "--sequence %d %s",
                    LENGTH, options),
                0, options);
}

Test(report, bins_are_those_of_the_logits, .init = setup, .fini = teardown)
{
    static bins context, entropy, trust[MODELS];
    write_data();
    expect_code(run("init --teacher golden/models/qwen2 --layers 1 --out student"), 0, "init");
    evaluate("--micro 2 --out eval.json");
    expect(&context, &entropy, trust);
    json_t *eval;
    cr_assert_eq(kd_json_read(&eval, "eval.json"), KD_OK, "%s", kd_last_error());
    const json_t *rows = json_object_get(eval, "models"), *student = json_array_get(rows, 1);
    check_kl(json_object_get(student, "by_context"), &context, "context");
    check_kl(json_object_get(student, "by_teacher_entropy"), &entropy, "entropy");
    cr_expect(!json_object_get(json_array_get(rows, 0), "by_context"), "the teacher's own KL");
    for (int m = 0; m < MODELS; m++) check_trust(json_array_get(rows, (size_t)m), &trust[m]);
    json_decref(eval);

    /* Without a teacher nothing is by it. */
    result r = run("eval --models student --data valid.safetensors --sequence %d --json", LENGTH);
    expect_code(r, 0, "eval of one model");
    eval = answer(&r, "eval of one model");
    student = json_array_get(json_object_get(eval, "models"), 0);
    cr_expect(!json_object_get(student, "by_context") &&
              !json_object_get(student, "by_teacher_entropy"));
    check_trust(student, &trust[1]);
    json_decref(eval);
}

/* ---- the page --------------------------------------------------------------------------------- */

static void expect_page(const char *path, const char *const *has, const char *const *lacks)
{
    char *page = NULL;
    slurp(&page, path);
    for (; *has; has++) cr_expect(strstr(page, *has), "%s lacks %s", path, *has);
    for (; *lacks; lacks++) cr_expect(!strstr(page, *lacks), "%s has %s", path, *lacks);
    cr_expect(strcmp(page + strlen(page) - strlen("</html>\n"), "</html>\n") == 0);
    free(page);
}

/* Names are text wherever they come from, also what is no UTF-8. */
Test(report, page_is_one_file_of_escaped_text, .init = setup, .fini = teardown)
{
    static const char *const has[] = { "&#60;i&#62;&#38;&#34;&#39;",
                                       "id=\"compression\"",
                                       "default-src 'none'",
                                       "1 line of",
                                       "--data &#39;a b&#39;\\&#39;&#39;c&#39;",
                                       "\xc3\xa9\xef\xbf\xbd",
                                       NULL };
    static const char *const lacks[] = {
        "<i>&", "http:", "https:", "src=", "<script", "\xff", NULL
    };
    const char *run_dir = "<i>&\"'\xc3\xa9\xff";
    char path[256];
    cr_assert(mkdir(run_dir, 0777) == 0 && chdir(run_dir) == 0);
    cr_assert(mkdir("checkpoint-000002", 0777) == 0 &&
              mkdir("checkpoint-000002/engine", 0777) == 0);
    write_text("metrics.jsonl", "{\"step\": 0, \"model\": \"student\", \"loss\": 1, \"ce\": 2}\n"
                                "{\"step\": 1, \"model\": \"student\", \"loss\": 1, \"c");
    write_text(
        "checkpoint-000002/engine/config.json",
        "{\"loss\": {\"ce\": {\"type\": \"cross_entropy\"}}, \"data\": {\"valid\": \"a b'c\"}}");
    cr_assert(chdir("..") == 0);
    const result r =
        run("report ./*i* --out page.html"); /* a pattern, since the shell would read it */
    expect_code(r, 0, "report");
    cr_expect_str_eq(r.out, "page.html\n");
    expect_page("page.html", has, lacks);
    snprintf(path, sizeof path, "%s/report.html", run_dir);
    expect_code(run("report ./*i*"), 0, "report");
    cr_expect(kd_file_exists(path), "%s", path);
}

/* What was compared over some classes stands beside nothing that was measured over all. */
Test(report, says_which_classes_a_term_saw, .init = setup, .fini = teardown)
{
    static const char *const has[] = {
        "forward_kl of the 64 largest classes, tail, T 1; nats per token",
        "KL to the teacher, held out", "cross_entropy, T 1; nats per token", NULL
    };
    static const char *const lacks[] = { "cross_entropy of the", "<script", NULL };
    cr_assert(mkdir("run", 0777) == 0 && mkdir("run/checkpoint-000002", 0777) == 0 &&
              mkdir("run/checkpoint-000002/engine", 0777) == 0);
    write_text("run/metrics.jsonl",
               "{\"step\": 0, \"model\": \"student\", \"loss\": 3, \"kl\": 1, \"ce\": 2}\n"
               "{\"step\": 1, \"model\": \"student\", \"loss\": 2, \"kl\": 1, \"ce\": 1}\n"
               "{\"step\": 0, \"model\": \"student\", \"split\": \"valid\", \"kl\": 2, "
               "\"kl_error\": 0.1}\n"
               "{\"step\": 2, \"model\": \"student\", \"split\": \"valid\", \"kl\": 1, "
               "\"kl_error\": 0.1}\n");
    write_text("run/checkpoint-000002/engine/config.json",
               "{\"loss\": {\"top_k\": {\"k\": 64, \"others\": \"tail\"}, \"ce\": {\"type\": "
               "\"cross_entropy\", \"temperature\": 1.0}, \"kl\": {\"type\": \"forward_kl\", "
               "\"temperature\": 1.0}}}");
    expect_code(run("report run --out page.html"), 0, "report");
    expect_page("page.html", has, lacks);
}

Test(report, refuses_what_is_no_run, .init = setup, .fini = teardown)
{
    cr_assert(mkdir("empty", 0777) == 0 && mkdir("bad", 0777) == 0);
    write_text("bad/eval.json", "{\"models\": 3}");
    static const char *const cases[][2] = {
        { "report nowhere", "nowhere" },
        { "report empty", "empty: no folder of a run: it has no metrics.jsonl and no eval*.json" },
        { "report bad", "bad/eval.json: models: found no list" },
    };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const result r = run("%s", cases[i][0]);
        expect_code(r, 3, cases[i][0]);
        cr_expect(strstr(r.err, cases[i][1]), "%s: %s", cases[i][0], r.err);
    }
    expect_code(run("report"), 2, "report");
    write_text("bad/eval.json", "{");
    expect_code(run("report bad"), 3, "report of what is no JSON");
    cr_expect(!kd_file_exists("bad/report.html"));
}
