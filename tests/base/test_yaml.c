/* Run configurations: what is read, from which line, and what is refused. */
#include "base/base.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static kd_arena *arena;

static void setup(void) { cr_assert_eq(kd_arena_create(&arena), KD_OK); }
static void teardown(void) { kd_arena_destroy(arena); }

static kd_node *parse(const char *source, const char *text)
{
    kd_node *root = NULL;
    cr_assert_eq(kd_yaml_parse(&root, arena, source, text, strlen(text)), KD_OK, "%s: %s", text,
                 kd_last_error());
    return root;
}

/* "a.b.c" below `node`. */
static const kd_node *at(const kd_node *node, const char *path)
{
    char keys[256];
    char *rest = keys, *key;
    snprintf(keys, sizeof keys, "%s", path);
    while ((key = strsep(&rest, "."))) node = kd_node_find(node, key);
    return node;
}

static void expect_text(const kd_node *root, const char *path, const char *want)
{
    const kd_node *node = at(root, path);
    cr_assert(node, "%s is absent", path);
    cr_assert_eq(node->kind, KD_NODE_SCALAR, "%s", path);
    cr_expect_str_eq(node->text, want, "%s: '%s'", path, node->text);
}

static void expect_message(const char *part)
{
    cr_expect(strstr(kd_last_error(), part), "'%s' lacks '%s'", kd_last_error(), part);
}

Test(yaml, keeps_text_kind_and_line, .init = setup, .fini = teardown)
{
    const kd_node *root = parse("run.yaml", "# a comment\n"
                                            "teacher: {model: org/name, dtype: bf16}\n"
                                            "data:\n"
                                            "  train: [{file: a b.st, weight: 0.7},\n"
                                            "          'it''s: b']\n"
                                            "  warmup: 2 %   # share\n"
                                            "  none: ~\n"
                                            "  nothing:\n"
                                            "  quoted: \"~\"\n"
                                            "  folded: >-\n"
                                            "    one\n"
                                            "    two\n"
                                            "\"loss\": {}\n"
                                            "10: []\n");
    const struct {
        const char *path, *text;
        int line;
    } rows[] = {
        { "teacher.model", "org/name", 2 }, { "teacher.dtype", "bf16", 2 },
        { "data.warmup", "2 %", 6 },        { "data.none", "", 7 },
        { "data.nothing", "", 8 },          { "data.quoted", "~", 9 },
        { "data.folded", "one two", 10 },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        expect_text(root, rows[i].path, rows[i].text);
        cr_expect_eq(at(root, rows[i].path)->line, rows[i].line, "%s: line %d", rows[i].path,
                     at(root, rows[i].path)->line);
        cr_expect_str_eq(at(root, rows[i].path)->source, "run.yaml");
    }
    const kd_node *train = at(root, "data.train");
    cr_assert_eq(train->kind, KD_NODE_LIST);
    cr_assert_eq(kd_node_count(train), 2);
    cr_expect_eq(train->child->kind, KD_NODE_MAP);
    cr_expect_eq(train->child->key, NULL);
    expect_text(train->child, "weight", "0.7");
    cr_expect_str_eq(train->child->next->text, "it's: b");
    cr_expect_eq(train->child->next->line, 5);
    cr_expect_eq(at(root, "loss")->kind, KD_NODE_MAP);
    cr_expect_eq(kd_node_count(at(root, "loss")), 0);
    cr_expect_eq(at(root, "10")->kind, KD_NODE_LIST);
    cr_expect_eq(kd_node_find(train, "file"), NULL, "a list has no keys");
    cr_expect_eq(kd_node_find(NULL, "file"), NULL);
    cr_expect_eq(kd_node_count(NULL), 0);

    /* JSON is YAML, tabs, escapes and all. */
    root = parse("j", "{\n\t\"a\":{\"b\":[1,\"\\u00e9\\n\"]},\n\t\"c\":true\n}\n");
    expect_text(root, "c", "true");
    cr_expect_str_eq(at(root, "a.b")->child->next->text, "\xc3\xa9\n");

    const char *const empty[] = { "", "# nothing\n", "---\n", "~\n" };
    for (int i = 0; i < KD_COUNT(empty); i++) {
        root = parse("e", empty[i]);
        cr_expect_eq(root->kind, KD_NODE_SCALAR, "'%s'", empty[i]);
        cr_expect_str_eq(root->text, "", "'%s'", empty[i]);
    }
}

Test(yaml, refuses_by_line, .init = setup, .fini = teardown)
{
    const struct {
        const char *text, *message;
    } rows[] = {
        { "a: 1\nb: &x 2\n", "f:2: anchors" },
        { "a: &x {b: 1}\n", "f:1: anchors" },
        { "a: &x [1]\n", "f:1: anchors" },
        { "a: 1\nb:\n  - *x\n", "f:3: aliases" },
        { "&k a: 1\n", "f:1: anchors" },
        { "a: !!int 3\n", "f:1: tags" },
        { "a: !mine {b: 1}\n", "f:1: tags" },
        { "- !x [1]\n", "f:1: tags" },
        { "a: 1\n---\nb: 2\n", "f:3: a second document" },
        { "a: 1\n\nb: 2\na: 3\n", "f:4: a: stands already on line 1" },
        { "a: {b: 1, c: 2, b: 3}\n", "f:1: b: stands already" },
        { "? [a, b]\n: 1\n", "f:1: a key must be a text" },
        { "? {a: b}\n: 1\n", "f:1: a key must be a text" },
        { "a: [1, 2\nb: 3\n", "f:2: " },
        { "a: 1\n b: 2\n", "f:2: " },
        { "a: 1\n\tb: 2\n", "f:2: " },
        { "a: 'x\n", "f:2: " },
        { "a: @x\n", "f:1: " },
        { "a: 1\nb: \xff\n", "f:2: " },
        { "a: \"x\\0y\"\n", "f:1: a NUL" },
        { "\"x\\0y\": 1\n", "f:1: a NUL" },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        kd_node *root = NULL;
        cr_expect_eq(kd_yaml_parse(&root, arena, "f", rows[i].text, strlen(rows[i].text)),
                     KD_EINVAL, "%s", rows[i].text);
        cr_expect_eq(root, NULL, "%s", rows[i].text);
        expect_message(rows[i].message);
    }
}

Test(yaml, depth_and_size_are_bounded, .init = setup, .fini = teardown, .timeout = 20)
{
    for (int depth = 31; depth <= 34; depth++) {
        char flow[80] = "", *block = calloc(1, 4096);
        memset(flow, '[', (size_t)depth);
        memset(flow + depth, ']', (size_t)depth);
        for (int i = 0, used = 0; i < depth; i++)
            used += snprintf(block + used, 4096 - (size_t)used, "%*sk:\n", i, "");
        kd_node *root;
        const kd_status want = depth <= 32 ? KD_OK : KD_EINVAL;
        cr_expect_eq(kd_yaml_parse(&root, arena, "f", flow, strlen(flow)), want, "flow %d", depth);
        cr_expect_eq(kd_yaml_parse(&root, arena, "f", block, strlen(block)), want, "block %d",
                     depth);
        if (want != KD_OK) expect_message("f:33: nested deeper than 32");
        free(block);
    }
    /* Hostile sizes end soon: a million brackets, a hundred thousand keys. */
    enum { BYTES = 1 << 20 };
    char *text = malloc(BYTES + 1);
    kd_node *root;
    memset(text, '[', BYTES);
    cr_expect_eq(kd_yaml_parse(&root, arena, "f", text, BYTES), KD_EINVAL);
    size_t used = 0;
    for (int i = 0; used + 16 < BYTES; i++)
        used += (size_t)snprintf(text + used, 16, "k%d: 1\n", i);
    cr_expect_eq(kd_yaml_parse(&root, arena, "f", text, used), KD_EINVAL);
    expect_message("more than 1024 keys");
    free(text);
}

Test(yaml, reads_files, .init = setup, .fini = teardown)
{
    char path[] = "/tmp/kd-test-XXXXXX";
    const int fd = mkstemp(path);
    cr_assert(fd >= 0);
    cr_assert_eq(kd_write_at(fd, path, "a: {b: 5}\n", 10, 0), KD_OK);
    close(fd);
    kd_node *root = NULL;
    cr_assert_eq(kd_yaml_read(&root, arena, path), KD_OK, "%s", kd_last_error());
    expect_text(root, "a.b", "5");
    cr_expect_str_eq(root->source, path);
    unlink(path);
    cr_expect_eq(kd_yaml_read(&root, arena, path), KD_EFORMAT);
    expect_message(path);
}

Test(nodes, merge_and_set_by_precedence, .init = setup, .fini = teardown)
{
    kd_node *root = parse("base.yaml", "loss: {kl: {weight: 1, temperature: 2}, ce: {weight: 0}}\n"
                                       "data: {train: [a, b], valid: v}\n"
                                       "optim: {lr: 1}\n"
                                       "run: out\n");
    kd_arena *short_lived;
    kd_node *over;
    static const char text[] = "loss: {kl: {temperature: 4}}\n"
                               "data: {train: [c]}\n"
                               "optim:\n"
                               "run: {out: x}\n"
                               "eval: {every: 5}\n";
    cr_assert_eq(kd_arena_create(&short_lived), KD_OK);
    cr_assert_eq(kd_yaml_parse(&over, short_lived, "h100.yaml", text, strlen(text)), KD_OK);
    cr_assert_eq(kd_node_merge(root, over, arena), KD_OK);
    kd_arena_destroy(short_lived); /* nothing of it may be needed any more */

    expect_text(root, "loss.kl.weight", "1");
    expect_text(root, "loss.kl.temperature", "4");
    expect_text(root, "loss.ce.weight", "0");
    cr_expect_eq(kd_node_count(at(root, "data.train")), 1);
    cr_expect_str_eq(at(root, "data.train")->child->text, "c");
    expect_text(root, "data.valid", "v");
    expect_text(root, "optim", "");
    expect_text(root, "run.out", "x");
    expect_text(root, "eval.every", "5");
    cr_expect_str_eq(at(root, "loss.kl.temperature")->source, "h100.yaml");
    cr_expect_eq(at(root, "loss.kl.temperature")->line, 1);
    cr_expect_str_eq(at(root, "loss.kl.weight")->source, "base.yaml");
    cr_expect_eq(kd_node_count(root), 5);
    cr_expect_str_eq(root->child->key, "loss", "the order of the first file stays");

    /* An empty file changes nothing, and takes everything. */
    cr_assert_eq(kd_node_merge(root, parse("e", "# nothing\n"), arena), KD_OK);
    expect_text(root, "loss.kl.temperature", "4");
    kd_node *blank = parse("e", "");
    cr_assert_eq(kd_node_merge(blank, root, arena), KD_OK);
    expect_text(blank, "loss.kl.temperature", "4");

    /* A flag wins over files, makes what is missing, and may hold any YAML. */
    const struct {
        const char *path, *text, *find, *want;
    } sets[] = {
        { "loss.kl.temperature", "8", "loss.kl.temperature", "8" },
        { "loss.hint.weight", "0.5", "loss.hint.weight", "0.5" },
        { "optim.lr", "2e-5", "optim.lr", "2e-5" },
        { "fresh.a.b.c", "x y", "fresh.a.b.c", "x y" },
        { "loss.ce", "{weight: 3, smooth: 0.1}", "loss.ce.smooth", "0.1" },
        { "data.valid", "", "data.valid", "" },
        { "data.valid", "\"a: b\"", "data.valid", "a: b" },
        { "data.valid", "a\n b\n", "data.valid", "a\n b\n" }, /* of a plain text, not folded */
        { "data.valid", "'a\n b'", "data.valid", "a b" },
    };
    for (int i = 0; i < KD_COUNT(sets); i++) {
        cr_assert_eq(kd_node_set(root, arena, "--flag", sets[i].path, sets[i].text), KD_OK, "%s",
                     kd_last_error());
        expect_text(root, sets[i].find, sets[i].want);
        cr_expect_str_eq(at(root, sets[i].find)->source, "--flag");
        cr_expect_eq(at(root, sets[i].find)->line, 0);
    }
    expect_text(root, "loss.kl.weight", "1");
    expect_text(root, "eval.every", "5");
    cr_assert_eq(kd_node_set(root, arena, "--data.train", "data.train", "[x, y, z]"), KD_OK);
    cr_expect_eq(kd_node_count(at(root, "data.train")), 3);
    kd_node *from_nothing = parse("e", "");
    cr_assert_eq(kd_node_set(from_nothing, arena, "KD_A", "a.b", "1"), KD_OK);
    expect_text(from_nothing, "a.b", "1");
}

Test(nodes, set_and_fail_name_the_place, .init = setup, .fini = teardown)
{
    kd_node *root = parse("run.yaml", "\nteacher: some/dir\nlist: [1]\n");
    const struct {
        const char *path, *text, *message;
    } rows[] = {
        { "teacher.dtype", "bf16", "--flag: teacher is a text and has no dtype (run.yaml:2)" },
        { "list.0.x", "1", "--flag: list is a list and has no 0 (run.yaml:3)" },
        { "", "1", "--flag: ''" },
        { ".a", "1", "--flag: '.a'" },
        { "a.", "1", "--flag: 'a.'" },
        { "a..b", "1", "--flag: 'a..b'" },
        { "a", "[1", "--flag:2: did not find" },
        { "a", "\xff\xfe", "--flag:1: invalid leading UTF-8 octet" },
        { "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a", "1",
          "--flag: 'a.a" },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        cr_expect_eq(kd_node_set(root, arena, "--flag", rows[i].path, rows[i].text), KD_EINVAL,
                     "%s", rows[i].path);
        expect_message(rows[i].message);
    }
    cr_expect_eq(kd_node_count(root), 2, "a refused flag leaves the tree alone");

    cr_assert_eq(kd_node_set(root, arena, "--a.b", "a.b", "1"), KD_OK);
    cr_assert_eq(kd_node_set(root, arena, "KD_A_C", "a.c", "1"), KD_OK);
    cr_expect_eq(kd_node_fail(at(root, "teacher"), "teacher", "no %s", "x"), KD_EINVAL);
    cr_expect_str_eq(kd_last_error(), "run.yaml:2: teacher: no x");
    cr_expect_eq(kd_node_fail(at(root, "a.b"), "a.b", "no %s", kd_last_error()), KD_EINVAL);
    cr_expect_str_eq(kd_last_error(), "--a.b: no run.yaml:2: teacher: no x");
    cr_expect_eq(kd_node_fail(at(root, "a.c"), "a.c", "no"), KD_EINVAL);
    cr_expect_str_eq(kd_last_error(), "KD_A_C: a.c: no");
    cr_expect_eq(kd_node_fail(NULL, "a.c", "no"), KD_EINVAL);
    cr_expect_str_eq(kd_last_error(), "a.c: no");
}
