/* Options: every accepted form, every refusal with its place, and text that reads back. */
#include "base/base.h"

#include <criterion/criterion.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
    bool flag;
    int64_t tokens, any;
    double temperature, warmup, free;
    const char *out;
    int schedule;
    char sentinel;
} settings;

static const kd_option rows[] = {
    { "flag", KD_BOOL, offsetof(settings, flag), "false", 0, 0, NULL, "a switch" },
    { "tokens", KD_INT, offsetof(settings, tokens), "1M", 1, 2e9, "tokens", "per update" },
    { "any", KD_INT, offsetof(settings, any), "-3", 0, 0, NULL, "unbounded" },
    { "temperature", KD_FLOAT, offsetof(settings, temperature), "1", 0.05, 100, NULL, "of both" },
    { "warmup", KD_FLOAT, offsetof(settings, warmup), "5 %", 0, 1, "share", "of the steps" },
    { "free", KD_FLOAT, offsetof(settings, free), "0", 0, 0, NULL, "unbounded" },
    { "out", KD_STRING, offsetof(settings, out), "", 0, 0, NULL, "folder" },
    { "schedule", KD_CHOICE, offsetof(settings, schedule), "cosine", 0, 0, "constant|linear|cosine",
      "of the rate" },
    { 0 },
};

static kd_arena *arena;

static void setup(void) { cr_assert_eq(kd_arena_create(&arena), KD_OK); }
static void teardown(void) { kd_arena_destroy(arena); }

static kd_status parse(settings *to, const char *text, const char *const *ignore)
{
    kd_node *map = NULL;
    cr_assert_eq(kd_yaml_parse(&map, arena, "run.yaml", text, strlen(text)), KD_OK, "%s: %s", text,
                 kd_last_error());
    return kd_options_parse(to, rows, arena, map, "loss.kl", ignore);
}

/* `row` set to `text` alone; 0 where it is accepted. */
static kd_status set(settings *to, const char *name, const char *text)
{
    kd_node *map = NULL;
    cr_assert_eq(kd_yaml_parse(&map, arena, "run.yaml", "", 0), KD_OK);
    cr_assert_eq(kd_node_set(map, arena, "--flag", name, text), KD_OK, "%s", kd_last_error());
    return kd_options_parse(to, rows, arena, map, "", NULL);
}

static void expect_message(const char *part)
{
    cr_expect(strstr(kd_last_error(), part), "'%s' lacks '%s'", kd_last_error(), part);
}

Test(options, defaults_then_what_the_map_has, .init = setup, .fini = teardown)
{
    settings s;
    const char *const empty[] = { "", "{}", "~", "# nothing" };
    for (int i = 0; i < KD_COUNT(empty); i++) {
        memset(&s, 0x5a, sizeof s);
        cr_assert_eq(parse(&s, empty[i], NULL), KD_OK, "%s", kd_last_error());
        cr_expect(!s.flag && s.tokens == 1000000 && s.any == -3 && s.temperature == 1.0 &&
                      s.warmup == 0.05 && s.free == 0.0 && s.schedule == 2,
                  "'%s'", empty[i]);
        cr_expect_str_eq(s.out, "");
        cr_expect_eq(s.sentinel, 0x5a);
    }
    cr_assert_eq(kd_options_parse(&s, rows, arena, NULL, NULL, NULL), KD_OK);
    cr_expect_eq(s.tokens, 1000000);

    char *text = strdup("flag: yes\ntokens: 5K\ntemperature: 0.05\nout: 'x y'\nextra: {a: 1}\n");
    const char *const ignore[] = { "extra", NULL };
    cr_assert_eq(parse(&s, text, ignore), KD_OK, "%s", kd_last_error());
    free(text);
    cr_expect(s.flag && s.tokens == 5000 && s.temperature == 0.05 && s.any == -3);
    cr_expect_str_eq(s.out, "x y");

    /* The string outlives the tree it was read from. */
    kd_arena *short_lived;
    kd_node *map;
    cr_assert_eq(kd_arena_create(&short_lived), KD_OK);
    cr_assert_eq(kd_yaml_parse(&map, short_lived, "f", "out: kept", 9), KD_OK);
    cr_assert_eq(kd_options_parse(&s, rows, arena, map, "run", NULL), KD_OK);
    kd_arena_destroy(short_lived);
    cr_expect_str_eq(s.out, "kept");
}

Test(options, integers_are_exact_or_refused, .init = setup, .fini = teardown)
{
    const struct {
        const char *text;
        int64_t want;
    } good[] = {
        { "0", 0 },
        { "-0", 0 },
        { "+7", 7 },
        { "007", 7 },
        { "1K", 1000 },
        { "1M", 1000000 },
        { "1B", 1000000000 },
        { "1.5M", 1500000 },
        { "0.25 K", 250 },
        { "2e3", 2000 },
        { "1.0", 1 },
        { "1500e-2", 15 },
        { "-12K", -12000 },
        { "0e999", 0 },
        { "9007199254740993", 9007199254740993 },
        { "9223372036854775807", INT64_MAX },
        { "-9223372036854775808", INT64_MIN },
        { "9223372036B", INT64_C(9223372036000000000) },
    };
    settings s;
    for (int i = 0; i < KD_COUNT(good); i++) {
        cr_expect_eq(set(&s, "any", good[i].text), KD_OK, "%s", kd_last_error());
        cr_expect_eq(s.any, good[i].want, "%s: %lld", good[i].text, (long long)s.any);
    }
    const char *const bad[] = { "",
                                "abc",
                                "1.5",
                                "1e-1",
                                "1x",
                                "1 2",
                                "0x10",
                                "1KK",
                                "1k",
                                "--1",
                                "1e",
                                "1e+",
                                "K",
                                ".",
                                "-",
                                "1_000",
                                "1,000",
                                "nan",
                                "[1]",
                                "{a: 1}",
                                "true",
                                "1 tokens",
                                "9223372036854775808",
                                "-9223372036854775809",
                                "9223372037B",
                                "1e19",
                                "1e1000",
                                "99999999999999999999",
                                "5 %" };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        s.any = 77;
        cr_expect_eq(set(&s, "any", bad[i]), KD_EINVAL, "'%s' gave %lld", bad[i], (long long)s.any);
        cr_expect_eq(s.any, 77, "'%s' was written", bad[i]);
        expect_message("--flag: any: expected int, default -3; found");
    }
}

Test(options, integers_keep_to_their_range_and_unit, .init = setup, .fini = teardown)
{
    settings s;
    cr_expect_eq(set(&s, "tokens", "3K tokens"), KD_OK, "%s", kd_last_error());
    cr_expect_eq(s.tokens, 3000);
    const char *const outside[] = { "0", "-1", "2000000001", "3B", "5 steps", "5 tokensx" };
    for (int i = 0; i < KD_COUNT(outside); i++) {
        cr_expect_eq(set(&s, "tokens", outside[i]), KD_EINVAL, "%s", outside[i]);
        expect_message("expected int, 1 to 2000000000 tokens, default 1M; found");
    }
}

Test(options, floats_are_finite_decimals_in_range, .init = setup, .fini = teardown)
{
    const struct {
        const char *name, *text;
        double want;
    } good[] = {
        { "free", "2e-5", 2e-5 },        { "free", ".5", 0.5 },
        { "free", "5.", 5.0 },           { "free", "-1E+3", -1e3 },
        { "free", "1e-320", 1e-320 },    { "free", "0.1", 0.1 },
        { "warmup", "2 %", 0.02 },       { "warmup", "2.2%", 0.022 },
        { "warmup", "100 %", 1.0 },      { "warmup", "0.07 share", 0.07 },
        { "temperature", "0.05", 0.05 }, { "temperature", "100", 100.0 },
    };
    settings s;
    for (int i = 0; i < KD_COUNT(good); i++) {
        cr_expect_eq(set(&s, good[i].name, good[i].text), KD_OK, "%s", kd_last_error());
        const double got = good[i].name[0] == 'f'   ? s.free
                           : good[i].name[0] == 'w' ? s.warmup
                                                    : s.temperature;
        cr_expect_eq(got, good[i].want, "%s: %.17g", good[i].text, got);
    }
    const struct {
        const char *name, *text, *message;
    } bad[] = {
        { "free", "inf", "expected float, default 0; found 'inf'" },
        { "free", "nan", "found 'nan'" },
        { "free", "1e999", "found '1e999'" },
        { "free", "0x1p3", "found '0x1p3'" },
        { "free", "1,5", "found '1,5'" },
        { "free", "1 %", "found '1 %'" },
        { "free", "", "found ''" },
        { "free", "e5", "found 'e5'" },
        { "free", "1e", "found '1e'" },
        { "free", "[1]", "found a list" },
        { "free", "{a: 1}", "found a map" },
        { "warmup", "101 %", "expected float, 0 to 1 share, default 5 %; found '101 %'" },
        { "warmup", "1e1 %", "found '1e1 %'" },
        { "warmup", "-1 %", "found '-1 %'" },
        { "temperature", "0.04999", "expected float, 0.05 to 100, default 1; found '0.04999'" },
        { "temperature", "100.1", "found '100.1'" },
    };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        cr_expect_eq(set(&s, bad[i].name, bad[i].text), KD_EINVAL, "%s", bad[i].text);
        expect_message(bad[i].message);
    }
    char digits[300] = "0.";
    memset(digits + 2, '1', 290);
    digits[292] = '\0';
    cr_expect_eq(set(&s, "free", digits), KD_EINVAL, "longer than any number needs");
}

Test(options, switches_and_choices, .init = setup, .fini = teardown)
{
    const char *const words[2][6] = { { "false", "no", "off", "0", "False", "OFF" },
                                      { "true", "yes", "on", "1", "True", "YES" } };
    settings s;
    for (int value = 0; value < 2; value++) {
        for (int i = 0; i < 6; i++) {
            s.flag = !value;
            cr_expect_eq(set(&s, "flag", words[value][i]), KD_OK, "%s", kd_last_error());
            cr_expect_eq(s.flag, value == 1, "%s", words[value][i]);
        }
    }
    const char *const choices[] = { "constant", "linear", "cosine" };
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(set(&s, "schedule", choices[i]), KD_OK, "%s", kd_last_error());
        cr_expect_eq(s.schedule, i);
    }
    const struct {
        const char *name, *text, *message;
    } bad[] = {
        { "flag", "maybe", "--flag: expected bool, default false; found 'maybe'" },
        { "flag", "2", "found '2'" },
        { "flag", "", "found ''" },
        { "schedule", "cosin", "expected choice, constant|linear|cosine, default cosine; found" },
        { "schedule", "cosinee", "found 'cosinee'" },
        { "schedule", "linear|cosine", "found 'linear|cosine'" },
        { "schedule", "", "found ''" },
        { "schedule", "1", "found '1'" },
        { "out", "[a]", "expected text, optional; found a list" },
    };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        cr_expect_eq(set(&s, bad[i].name, bad[i].text), KD_EINVAL, "%s", bad[i].text);
        expect_message(bad[i].message);
    }
}

Test(options, refusals_name_line_path_and_the_nearest, .init = setup, .fini = teardown)
{
    const char *const ignore[] = { "projector", NULL };
    const struct {
        const char *text, *message;
    } bad[] = {
        { "flag: true\n\ntemprature: 4\n",
          "run.yaml:3: loss.kl.temprature: unknown option; nearest: "
          "temperature (float, 0.05 to 100, default 1)" },
        { "projetcor: x\n", "run.yaml:1: loss.kl.projetcor: unknown option; nearest: projector" },
        { "zzzzzz: 1\n", "loss.kl.zzzzzz: unknown option; known: flag, tokens, any, temperature" },
        { "'': 1\n", "loss.kl.: unknown option; known: flag" },
        { "flag: true\ntokens: many\n",
          "run.yaml:2: loss.kl.tokens: expected int, 1 to 2000000000 tokens, default 1M; found "
          "'many'" },
        { "[1]\n", "run.yaml:1: loss.kl: expected a map of options; found a list" },
        { "word\n", "run.yaml:1: loss.kl: expected a map of options; found a text" },
    };
    settings s;
    for (int i = 0; i < KD_COUNT(bad); i++) {
        cr_expect_eq(parse(&s, bad[i].text, ignore), KD_EINVAL, "%s", bad[i].text);
        expect_message(bad[i].message);
    }
    static const kd_option required[] = {
        { "file", KD_STRING, offsetof(settings, out), NULL, 0, 0, NULL, "what to read" }, { 0 }
    };
    kd_node *map;
    cr_assert_eq(kd_yaml_parse(&map, arena, "run.yaml", "\n{}", 3), KD_OK);
    cr_expect_eq(kd_options_parse(&s, required, arena, map, "data", NULL), KD_EINVAL);
    cr_expect_str_eq(kd_last_error(),
                     "run.yaml:2: data.file: missing: what to read (text, required)");
    cr_expect_eq(kd_options_parse(&s, required, arena, NULL, "data", NULL), KD_EINVAL);
    cr_expect_str_eq(kd_last_error(), "data.file: missing: what to read (text, required)");
}

/* Prints every row, sets a fresh target from the printed text, and compares. */
static void expect_round_trip(const settings *want)
{
    kd_node *map = NULL;
    cr_assert_eq(kd_yaml_parse(&map, arena, "f", "", 0), KD_OK);
    for (const kd_option *row = rows; row->name; row++) {
        char text[256];
        cr_assert_eq(kd_option_print(text, sizeof text, want, row), KD_OK, "%s", kd_last_error());
        cr_assert_eq(kd_node_set(map, arena, "printed", row->name, text), KD_OK, "%s: %s: %s",
                     row->name, text, kd_last_error());
    }
    settings got;
    cr_assert_eq(kd_options_parse(&got, rows, arena, map, "", NULL), KD_OK, "%s", kd_last_error());
    cr_expect_eq(got.flag, want->flag);
    cr_expect_eq(got.tokens, want->tokens);
    cr_expect_eq(got.any, want->any);
    cr_expect_eq(memcmp(&got.free, &want->free, sizeof got.free), 0, "%a, not %a", got.free,
                 want->free);
    cr_expect_eq(got.temperature, want->temperature);
    cr_expect_eq(got.warmup, want->warmup);
    cr_expect_eq(got.schedule, want->schedule);
    cr_expect_str_eq(got.out, want->out, "'%s', not '%s'", got.out, want->out);
}

Test(options, print_reads_back_to_the_same_bits, .init = setup, .fini = teardown)
{
    settings s = { .tokens = 1, .temperature = 1, .out = "" };
    const double floats[] = { 0.0,
                              -0.0,
                              0.1,
                              2e-5,
                              1.0 / 3,
                              1e300,
                              -4.9e-324,
                              123456789.125,
                              1e15,
                              1e16,
                              100,
                              0x1.fffffffffffffp1023,
                              0.30000000000000004 };
    for (int i = 0; i < KD_COUNT(floats); i++) {
        s.free = floats[i];
        expect_round_trip(&s);
    }
    const int64_t integers[] = { 0, -1, INT64_MIN, INT64_MAX, 1000000 };
    for (int i = 0; i < KD_COUNT(integers); i++) {
        s.any = integers[i];
        s.flag = !s.flag;
        s.schedule = i % 3;
        expect_round_trip(&s);
    }
}

Test(options, print_reads_back_to_the_same_text, .init = setup, .fini = teardown)
{
    settings s = { .tokens = 1, .temperature = 1 };
    const char *const strings[] = { "plain",
                                    "a/b-c_d.st",
                                    "",
                                    "null",
                                    "~",
                                    "a: b",
                                    "- x",
                                    "---",
                                    "...",
                                    "[1]",
                                    "{a: 1}",
                                    "*x",
                                    "&x",
                                    "!x",
                                    "%x",
                                    "@x",
                                    "'",
                                    "\"",
                                    "\\",
                                    "a\nb",
                                    "\t",
                                    " x ",
                                    "# x",
                                    "a #b",
                                    "\xc3\xa9",
                                    "\x7f\x01",
                                    "-1",
                                    "true",
                                    "|",
                                    ">",
                                    "?",
                                    "? x",
                                    ":",
                                    ",",
                                    "a,b",
                                    "a\xc2\x88\xc2\x85z",
                                    "\xe2\x80\xa8 \xe2\x80\xa9",
                                    "\xef\xbb\xbfz",
                                    "\xf0\x9f\x98\x80 \xe2\x82\xac" };
    for (int i = 0; i < KD_COUNT(strings); i++) {
        s.out = strings[i];
        expect_round_trip(&s);
    }
}

Test(options, what_does_not_fit_is_not_printed)
{
    char text[64];
    settings s = { .free = 0.1 };
    cr_expect_eq(kd_option_print(text, 4, &s, &rows[5]), KD_OK, "just fits");
    cr_expect_str_eq(text, "0.1");
    cr_expect_eq(kd_option_print(text, 3, &s, &rows[5]), KD_EINVAL);
    s.out = "a b";
    cr_expect_eq(kd_option_print(text, 6, &s, &rows[6]), KD_OK, "just fits");
    cr_expect_str_eq(text, "\"a b\"");
    for (size_t size = 1; size < 6; size++) {
        cr_expect_eq(kd_option_print(text, size, &s, &rows[6]), KD_EINVAL, "%zu", size);
    }
    s.out = "cut \xc2";
    cr_expect_eq(kd_option_print(text, sizeof text, &s, &rows[6]), KD_OK, "no read past the end");
    s.schedule = 3;
    cr_expect_eq(kd_option_print(text, sizeof text, &s, &rows[7]), KD_EINVAL);
}

Test(options, help_shows_kind_range_unit_and_default)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *file = open_memstream(&text, &bytes);
    cr_assert(file);
    kd_options_help(file, "loss", rows);
    fclose(file);
    const char *const lines[] = {
        "  --loss.flag        BOOL     default false                            a switch\n",
        "  --loss.tokens      INT      1 to 2000000000 tokens, default 1M       per update\n",
        "  --loss.temperature FLOAT    0.05 to 100, default 1                   of both\n",
        "  --loss.warmup      FLOAT    0 to 1 share, default 5 %                of the steps\n",
        "  --loss.out         TEXT     optional                                 folder\n",
        "  --loss.schedule    CHOICE   constant|linear|cosine, default cosine   of the rate\n",
    };
    for (int i = 0; i < KD_COUNT(lines); i++) {
        cr_expect(strstr(text, lines[i]), "no line\n%sin\n%s", lines[i], text);
    }
    free(text);
}

/* A locale with a decimal comma: an installed one, or one made for the test. */
static bool set_comma_locale(void)
{
    const char *const names[] = { "de_DE.UTF-8", "de_DE", "fr_FR.UTF-8", "nl_NL.UTF-8" };
    for (int i = 0; i < KD_COUNT(names); i++) {
        if (setlocale(LC_ALL, names[i])) return true;
    }
    char dir[] = "/tmp/kd-locale-XXXXXX", command[200];
    cr_assert(mkdtemp(dir));
    snprintf(command, sizeof command,
             "localedef -c -i de_DE -f UTF-8 %s/de_DE.UTF-8 >/dev/null 2>&1", dir);
    const bool made =
        system(command) == 0 && setenv("LOCPATH", dir, 1) == 0 && setlocale(LC_ALL, "de_DE.UTF-8");
    cr_expect_eq(kd_dir_remove(dir), KD_OK);
    return made;
}

Test(options, numbers_ignore_the_locale, .init = setup, .fini = teardown)
{
    if (!set_comma_locale()) cr_skip_test("no locale with a decimal comma can be had");
    char text[32];
    snprintf(text, sizeof text, "%.1f", 0.5);
    cr_assert_str_eq(text, "0,5", "the locale does not bite");
    settings s = { .temperature = 0.25 };
    cr_assert_eq(set(&s, "free", "1.5e-3"), KD_OK, "%s", kd_last_error());
    cr_expect_eq(s.free, 1.5e-3);
    cr_expect_eq(set(&s, "free", "1,5"), KD_EINVAL);
    cr_expect_eq(set(&s, "temperature", "0.01"), KD_EINVAL);
    expect_message("0.05 to 100");
    s.temperature = 0.25;
    cr_assert_eq(kd_option_print(text, sizeof text, &s, &rows[3]), KD_OK);
    cr_expect_str_eq(text, "0.25");
    cr_expect_str_eq(kd_format_bytes(text, sizeof text, 26.8e9), "26.8 GB");
    snprintf(text, sizeof text, "%.1f", 0.5);
    cr_expect_str_eq(text, "0,5", "the caller's locale is as it was");
}
