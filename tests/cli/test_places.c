/* The built program where a shell's user may put it: streams that are closed or that nobody reads,
 * folders with unusual names, another language's numbers. */
#include "cli/small_run.h"

#include <sys/stat.h>

/* kd train with 2 steps; `before` and `after` it on the shell's line. */
static result train_on(const char *before, const char *after)
{
    char line[1024];
    snprintf(line, sizeof line, "%s %s train run.yaml --run.device=cpu --run.steps=2 %s", before,
             KD_COMMAND, after);
    return run_line(line);
}

static void expect_model(const char *path, const char *want, const char *what)
{
    kd_hash hash;
    cr_assert_eq(kd_hash_file(&hash, path), KD_OK, "%s: %s", what, kd_last_error());
    cr_expect_str_eq(hash.hex, want, "%s: another model", what);
}

Test(places, do_not_change_a_run, .init = setup, .fini = teardown)
{
    static const struct {
        const char *what, *before, *after, *model;
    } cases[] = {
        { "stderr is closed", "", "--run.out=out 2>&-", "out" },
        { "all streams are closed", "", "--run.out=out <&- >&- 2>&-", "out" },
        { "nobody reads the log", "", "--run.out=out 2>&1 | true", "out" },
        { "a full disk behind the log", "", "--run.out=out 2>/dev/full", "out" },
        { "numbers of another language", "LC_ALL=de_DE.UTF-8 LC_NUMERIC=de_DE.UTF-8",
          "--run.out=out", "out" },
        { "a space", "", "--run.out='my model'", "my model" },
        { "a line's end", "", "--run.out='my\nmodel'", "my\nmodel" },
        { "a path from the root", "", "--run.out=\"$PWD/out\"", "out" },
        { "a quote and a tab", "", "--run.out=\"it's\tout\"", "it's\tout" },
        { "umlauts", "", "--run.out=f\303\274r/\303\244", "f\303\274r/\303\244" },
        { "a folder without a UTF-8 name",
          "mkdir \"$(printf '\\351t\\351')\";"
          " cd \"$(printf '\\351t\\351')\"; ln -s ../* .; rm -f stdout.txt stderr.txt;",
          "--run.out=../out", "out" },
    };
    kd_hash hash;
    prepare_run();
    result r = train_on("", "--run.out=plain");
    expect_code(r, 0, "train");
    cr_assert_eq(kd_hash_file(&hash, "plain/model.safetensors"), KD_OK);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        char path[128];
        r = train_on(cases[i].before, cases[i].after);
        expect_code(r, 0, cases[i].what);
        snprintf(path, sizeof path, "%s/model.safetensors", cases[i].model);
        expect_model(path, hash.hex, cases[i].what);
        cr_assert_eq(kd_dir_remove(cases[i].model), KD_OK);
    }
    /* A name that no JSON can hold is refused, not cut or guessed at. */
    r = train_on("", "--run.out=\"$(printf '\\351t\\351')\"");
    expect_code(r, 2, "a name that is not UTF-8");
    cr_expect(strstr(r.err, "UTF-8"), "%s", r.err);
    r = train_on("", "--run.out=\"$(printf '\\377\\376x')\"");
    expect_code(r, 2, "a name that looks like UTF-16");
    cr_expect(strstr(r.err, "UTF-8"), "%s", r.err);
}

/* A log's stream that was closed is none of the files that are opened next. */
Test(places, closed_streams_get_nothing, .init = setup, .fini = teardown)
{
    static const char *const ends[] = { "2>&-",
                                        "<&- 2>&-",
                                        "<&- >&- 2>&-",
                                        "--data.valid= 2>&-",
                                        "--data.valid= <&- 2>&-",
                                        "--data.valid= <&- >&- 2>&-" };
    prepare_run();
    for (int i = 0; i < KD_COUNT(ends); i++) {
        char after[64];
        snprintf(after, sizeof after, "--run.out=out%d %s", i, ends[i]);
        expect_code(train_on("", after), 0, after);
    }
    const result r = run_line("grep -ral 'tokens per update' out*");
    cr_expect(r.code == 1 && !*r.out, "the log was written to %s", r.out);
    expect_code(run_line(KD_COMMAND " list >&-"), 4, "list without a stdout");
    expect_code(run_line(KD_COMMAND " list >/dev/full"), 4, "list to a full disk");
}

/* Two at once: the second names the first. */
Test(places, of_another_run_are_refused, .init = setup, .fini = teardown)
{
    char pid[64];
    prepare_run();
    const result r = run_line(
        KD_COMMAND
        " train run.yaml --run.steps=1000000 2>first.txt & first=$!\n"
        "for i in $(seq 300); do [ -s out/metrics.jsonl ] && break; sleep 0.05; done\n" KD_COMMAND
        " train run.yaml --run.steps=1000000; code=$?\n"
        "echo $first; kill -KILL $first; wait $first; exit $code");
    expect_code(r, 3, "a second run");
    snprintf(pid, sizeof pid, "kd: out: process %ld on ", strtol(r.out, NULL, 10));
    cr_expect(strstr(r.err, pid) && strstr(r.err, " writes here"), "\"%s\" has no \"%s\"", r.err,
              pid);
    /* What held it is dead: the next one takes it. */
    expect_code(run("train run.yaml --run.steps=2 --run.out=out"), 0, "the next run");
}
