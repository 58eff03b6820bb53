/* Command lines: every way to write an option, what is kept apart, and every refusal. */
#include "base/base.h"

#include <criterion/criterion.h>
#include <string.h>

typedef struct options {
    const char *model;
    int64_t steps;
    double scale;
    bool json, keep_all;
} options;

static const kd_option rows[] = {
    { "model", KD_STRING, offsetof(options, model), NULL, 0, 0, "", "directory" },
    { "steps", KD_INT, offsetof(options, steps), "7", 0, 1e6, "steps", "updates" },
    { "scale", KD_FLOAT, offsetof(options, scale), "1", -10, 10, "", "factor" },
    { "json", KD_BOOL, offsetof(options, json), "false", 0, 0, "", "as JSON" },
    { "keep_all", KD_BOOL, offsetof(options, keep_all), "true", 0, 0, "", "everything" },
    { 0 },
};

enum { WORDS = 9 };

static int count_words(const char *const *words)
{
    int n = 0;
    while (n < WORDS && words[n]) n++;
    return n;
}

/* argv as main gets it: writable strings are never written to, so the cast is safe. */
static kd_status parse(kd_args *args, options *o, const char *const *words, bool settings)
{
    char *argv[WORDS + 1] = { (char *)(uintptr_t) "verb" };
    const int n = count_words(words);
    for (int i = 0; i < n; i++) argv[i + 1] = (char *)(uintptr_t)words[i];
    return kd_args_parse(args, o, rows, n + 1, argv, settings);
}

Test(args, reads_every_way_to_write_an_option)
{
    static const struct {
        const char *words[WORDS];
        options want;
        int operands;
    } cases[] = {
        { { "--model", "m" }, { "m", 7, 1, false, true }, 0 },
        { { "--model=m", "--steps", "1K" }, { "m", 1000, 1, false, true }, 0 },
        { { "--model=a=b", "--scale", "-2" }, { "a=b", 7, -2, false, true }, 0 },
        { { "--model=a", "--model", "b" }, { "b", 7, 1, false, true }, 0 },
        { { "--model", "m", "--json", "x" }, { "m", 7, 1, true, true }, 1 },
        { { "--json=false", "--model=", "--no-keep_all" }, { "", 7, 1, false, false }, 0 },
        { { "--json", "--no-json", "--keep-all=no", "--model=m" }, { "m", 7, 1, false, false }, 0 },
        { { "a", "--model", "-", "-", "--", "--json", "-x" }, { "-", 7, 1, false, true }, 4 },
    };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        kd_args args;
        options o;
        cr_assert_eq(parse(&args, &o, cases[i].words, false), KD_OK, "case %d: %s", i,
                     kd_last_error());
        const options *w = &cases[i].want;
        cr_expect_str_eq(o.model, w->model, "case %d", i);
        cr_expect(o.steps == w->steps && o.scale == w->scale, "case %d: numbers", i);
        cr_expect(o.json == w->json && o.keep_all == w->keep_all, "case %d: switches", i);
        cr_expect_eq(args.operand_count, cases[i].operands, "case %d: %d operands", i,
                     args.operand_count);
        kd_args_close(&args);
    }
}

Test(args, keeps_settings_of_a_run_apart)
{
    static const char *const words[WORDS] = {
        "a.yaml", "--loss.kl.weight=0.5",     "--data.shuffle",
        "b.yaml", "--no-data.pack",           "--run.steps",
        "-3",     "--loss={ce: {weight: 1}}", "--model=m"
    };
    static const char *const want[] = {
        "loss.kl.weight", "0.5",       "data.shuffle", "true", "data.pack",
        "false",          "run.steps", "-3",           "loss", "{ce: {weight: 1}}"
    };
    kd_args args;
    options o;
    cr_assert_eq(parse(&args, &o, words, true), KD_OK, "%s", kd_last_error());
    cr_assert_eq(args.setting_count, 5);
    for (int i = 0; i < KD_COUNT(want); i++) cr_expect_str_eq(args.settings[i], want[i], "%d", i);
    cr_assert_eq(args.operand_count, 2);
    cr_expect_str_eq(args.operands[0], "a.yaml");
    cr_expect_str_eq(args.operands[1], "b.yaml");
    kd_args_close(&args);
}

Test(args, asks_for_nothing_where_help_is_wanted)
{
    static const char *const cases[][WORDS] = { { "--help" }, { "-h" }, { "x", "--help", "y" } };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        kd_args args;
        cr_assert_eq(parse(&args, NULL, cases[i], false), KD_OK, "%s", kd_last_error());
        cr_expect(args.help, "case %d", i);
        kd_args_close(&args);
    }
}

Test(args, names_what_it_refuses)
{
    static const struct {
        const char *words[WORDS], *text;
    } cases[] = {
        { { "x" }, "verb: model: missing: directory" },
        { { "--modle", "m" }, "--modle: unknown option; nearest: model" },
        { { "--model=m", "--loss.kl.weight=1" }, "--loss.kl.weight: unknown option" },
        { { "--model" }, "--model: a value is missing" },
        { { "--model", "--json" }, "--model: a value is missing" },
        { { "--model=m", "--steps=x" }, "--steps: expected int, 0 to 1000000 steps" },
        { { "--model=m", "--scale=11" }, "--scale: expected float, -10 to 10, default 1" },
        { { "--model=m", "--json=maybe" }, "--json: expected bool" },
        { { "--model=m", "--no-json=true" }, "--no-json: unknown option" },
        { { "--model=m", "--no-steps" }, "--no-steps: unknown option" },
        { { "--model=m", "-j" }, "-j: unknown option; options begin with --" },
        { { "--model=m", "--hepl" }, "nearest: help" },
        { { "--model=m", "--=3" }, "unknown option" },
    };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        kd_args args = { .operand_count = 99 };
        options o;
        cr_expect_eq(parse(&args, &o, cases[i].words, false), KD_EINVAL, "case %d was taken", i);
        cr_expect(strstr(kd_last_error(), cases[i].text), "case %d: \"%s\" lacks \"%s\"", i,
                  kd_last_error(), cases[i].text);
        cr_expect(args.memory == NULL, "case %d: memory is left", i);
    }
}
