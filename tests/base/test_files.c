/* Files and JSON: whole or refused, never hanging, never half written. */
#include "base/base.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static kd_arena *arena;
static char dir[64];

static void setup(void)
{
    strcpy(dir, "/tmp/kd-test-XXXXXX");
    cr_assert(mkdtemp(dir));
    cr_assert_eq(kd_arena_create(&arena), KD_OK);
}

static void teardown(void)
{
    chmod(dir, 0700);
    cr_expect_eq(kd_dir_remove(dir), KD_OK, "%s", kd_last_error());
    cr_expect_not(kd_dir_exists(dir));
    kd_arena_destroy(arena);
}

static const char *in_dir(const char *name)
{
    const char *path;
    cr_assert_eq(kd_path_join(&path, arena, dir, name), KD_OK);
    return path;
}

static void write_text(const char *path, const char *text)
{
    cr_assert_eq(kd_file_write_atomic(path, text, strlen(text)), KD_OK, "%s", kd_last_error());
}

static void expect_text(const char *path, const char *want)
{
    char *data = NULL;
    size_t bytes = 0;
    cr_assert_eq(kd_file_read(&data, &bytes, path, 1 << 20), KD_OK, "%s", kd_last_error());
    cr_expect_eq(bytes, strlen(want), "%s", path);
    cr_expect_str_eq(data, want, "%s", path);
    free(data);
}

static int entries(const char *path)
{
    const char *const *names;
    int count;
    cr_assert_eq(kd_dir_list(&names, &count, arena, path), KD_OK, "%s", kd_last_error());
    return count;
}

static void expect_message(const char *part)
{
    cr_expect(strstr(kd_last_error(), part), "'%s' lacks '%s'", kd_last_error(), part);
}

Test(files, read_refuses_what_is_not_a_small_regular_file, .init = setup, .fini = teardown,
     .timeout = 20)
{
    char *data = NULL;
    size_t bytes = 7;
    int64_t size;
    int fd;
    kd_hash hash;
    cr_assert_eq(mkfifo(in_dir("fifo"), 0600), 0);
    cr_assert_eq(symlink("loop", in_dir("loop")), 0);
    cr_assert_eq(symlink("fifo", in_dir("to-fifo")), 0);
    write_text(in_dir("file"), "12345");
    const char *const bad[] = { "fifo", "to-fifo", "loop", "absent", ".", "file/below" };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        const char *path = in_dir(bad[i]);
        cr_expect_eq(kd_file_read(&data, &bytes, path, 100), KD_EFORMAT, "%s", bad[i]);
        expect_message(path);
        cr_expect_eq(kd_file_open(&fd, &size, path), KD_EFORMAT, "%s", bad[i]);
        cr_expect_eq(kd_file_size(&size, path), KD_EFORMAT, "%s", bad[i]);
        cr_expect_eq(kd_hash_file(&hash, path), KD_EFORMAT, "%s", bad[i]);
        cr_expect_eq(kd_file_copy(in_dir("copy"), path), KD_EFORMAT, "%s", bad[i]);
        cr_expect_not(kd_file_exists(path), "%s", bad[i]);
        cr_expect_not(kd_file_exists(in_dir("copy")), "%s", bad[i]);
    }
    cr_expect_eq(data, NULL);
    cr_expect_eq(kd_file_read(&data, &bytes, in_dir("file"), 4), KD_EFORMAT);
    expect_message("5 bytes, at most 4");
    cr_expect_eq(kd_file_read(&data, &bytes, in_dir("file"), 5), KD_OK);
    cr_expect_eq(bytes, 5);
    cr_expect_str_eq(data, "12345");
    free(data);
}

/* Absent is one thing, something else of that name another. */
Test(files, find_tells_absent_from_irregular, .init = setup, .fini = teardown)
{
    bool there = true;
    cr_assert_eq(mkfifo(in_dir("fifo"), 0600), 0);
    cr_assert_eq(symlink("nowhere", in_dir("dangling")), 0);
    cr_assert_eq(symlink("file", in_dir("link")), 0);
    write_text(in_dir("file"), "");
    cr_expect(kd_file_find(&there, in_dir("absent")) == KD_OK && !there);
    cr_expect(kd_file_find(&there, in_dir("none/absent")) == KD_OK && !there);
    cr_expect(kd_file_find(&there, in_dir("file")) == KD_OK && there);
    cr_expect(kd_file_find(&there, in_dir("link")) == KD_OK && there);
    const char *const bad[][2] = { { "fifo", "fifo: not a regular file" },
                                   { ".", "/.: not a regular file" },
                                   { "dangling", "dangling: cannot stat: No such file" },
                                   { "file/below", "file/below: cannot stat: Not a directory" } };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        cr_expect_eq(kd_file_find(&there, in_dir(bad[i][0])), KD_EFORMAT, "%s", bad[i][0]);
        expect_message(bad[i][1]);
    }
}

Test(files, atomic_write_replaces_no_device_or_pipe, .init = setup, .fini = teardown)
{
    struct stat there;
    cr_assert_eq(mkfifo(in_dir("fifo"), 0600), 0);
    cr_expect_eq(kd_file_write_atomic(in_dir("fifo"), "x", 1), KD_EINVAL);
    expect_message("fifo: not a regular file; writing would replace it");
    cr_expect(stat(in_dir("fifo"), &there) == 0 && S_ISFIFO(there.st_mode));
}

Test(files, atomic_write_replaces_or_leaves_alone, .init = setup, .fini = teardown)
{
    const char *path = in_dir("file");
    write_text(path, "old");
    write_text(path, "a longer new text");
    expect_text(path, "a longer new text");
    write_text(path, "");
    expect_text(path, "");
    cr_expect_eq(entries(dir), 1, "no staging file stays");

    cr_assert_eq(kd_file_write_atomic(in_dir("none/file"), "x", 1), KD_EIO);
    expect_message("none/file: cannot write: No such file");
    cr_assert_eq(kd_dir_create(in_dir("taken/below")), KD_OK);
    cr_assert_eq(kd_file_write_atomic(in_dir("taken"), "x", 1), KD_EIO);
    expect_message("taken: cannot rename onto");
    cr_expect_eq(entries(dir), 2, "no staging file stays after a failure");

    /* A disk that fills up half-way: the old text stays, the staging file goes. */
    write_text(path, "old");
    const struct rlimit small = { 1000, RLIM_INFINITY };
    const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };
    static char big[5000];
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    const kd_status status = kd_file_write_atomic(path, big, sizeof big);
    setrlimit(RLIMIT_FSIZE, &none);
    cr_expect_eq(status, KD_EIO);
    expect_message("cannot write 4000 bytes at byte 1000: File too large");
    expect_text(path, "old");
    cr_expect_eq(entries(dir), 2);
}

Test(files, atomic_write_into_a_read_only_folder_fails, .init = setup, .fini = teardown)
{
    const char *path = in_dir("file");
    write_text(path, "old");
    /* Root may write anywhere; /proc refuses even root. */
    if (geteuid() == 0) {
        cr_expect_eq(kd_file_write_atomic("/proc/kd-file", "x", 1), KD_EIO);
        expect_message("/proc/kd-file: cannot write");
        cr_assert_eq(setegid(65534), 0);
        cr_assert_eq(chown(dir, 65534, 65534), 0);
        cr_assert_eq(seteuid(65534), 0);
    }
    cr_assert_eq(chmod(dir, 0500), 0);
    cr_expect_eq(kd_file_write_atomic(path, "x", 1), KD_EIO);
    expect_message("Permission denied");
    cr_expect_eq(kd_dir_create(in_dir("below/deeper")), KD_EIO);
    expect_message("below: cannot create the folder: Permission denied");
    expect_text(path, "old");
    if (getuid() == 0) cr_assert_eq(seteuid(0), 0);
}

Test(files, copy_list_create_remove, .init = setup, .fini = teardown)
{
    enum { BYTES = 3 * (1 << 16) + 17 };
    char *data = malloc(BYTES), *back = NULL;
    size_t bytes = 0;
    for (int i = 0; i < BYTES; i++) data[i] = (char)(i * 31 + i / 253);
    cr_assert_eq(kd_file_write_atomic(in_dir("b"), data, BYTES), KD_OK);
    cr_assert_eq(kd_file_copy(in_dir("a"), in_dir("b")), KD_OK, "%s", kd_last_error());
    cr_assert_eq(kd_file_copy(in_dir("b"), in_dir("b")), KD_OK, "onto itself");
    cr_assert_eq(kd_file_read(&back, &bytes, in_dir("a"), BYTES), KD_OK);
    cr_expect_eq(bytes, BYTES);
    cr_expect_eq(memcmp(back, data, BYTES), 0);
    free(back);

    kd_hash of_bytes = kd_hash_bytes(data, BYTES), of_file;
    cr_assert_eq(kd_hash_file(&of_file, in_dir("b")), KD_OK);
    cr_expect_str_eq(of_file.hex, of_bytes.hex);
    int64_t size = 0;
    cr_assert_eq(kd_file_size(&size, in_dir("b")), KD_OK);
    cr_expect_eq(size, BYTES);
    free(data);

    cr_assert_eq(kd_dir_create(in_dir("x/y//z/")), KD_OK, "%s", kd_last_error());
    cr_assert_eq(kd_dir_create(in_dir("x/y")), KD_OK, "present is fine");
    cr_assert_eq(kd_dir_create(in_dir("a/y")), KD_EIO, "a file in the way");
    write_text(in_dir("x/y/z/file"), "1");
    write_text(in_dir("outside"), "stays");
    cr_assert_eq(symlink("../../outside", in_dir("x/y/link")), 0);

    const char *const *names;
    int count;
    cr_assert_eq(kd_dir_list(&names, &count, arena, dir), KD_OK);
    const char *const want[] = { "a", "b", "outside", "x" };
    cr_assert_eq(count, KD_COUNT(want));
    for (int i = 0; i < count; i++) cr_expect_str_eq(names[i], want[i]);

    cr_expect_eq(kd_dir_remove(in_dir("a")), KD_EINVAL, "a file is no folder");
    cr_assert_eq(kd_dir_remove(in_dir("x")), KD_OK, "%s", kd_last_error());
    cr_expect_not(kd_dir_exists(in_dir("x")));
    expect_text(in_dir("outside"), "stays");
    cr_expect_eq(kd_dir_remove(in_dir("x")), KD_OK, "absent is fine");
    cr_expect_eq(kd_dir_list(&names, &count, arena, in_dir("x")), KD_EFORMAT);

    /* Enough names to grow the list, which readdir gives in no order. */
    cr_assert_eq(kd_dir_create(in_dir("many")), KD_OK);
    for (int i = 0; i < 150; i++) {
        char name[32];
        snprintf(name, sizeof name, "many/%03d", (i * 37) % 150);
        FILE *file = fopen(in_dir(name), "w");
        cr_assert(file);
        fclose(file);
    }
    cr_assert_eq(kd_dir_list(&names, &count, arena, in_dir("many")), KD_OK);
    cr_assert_eq(count, 150);
    for (int i = 0; i < count; i++) cr_expect_eq(atoi(names[i]), i, "%d: %s", i, names[i]);
}

Test(files, reads_end_where_the_file_ends, .init = setup, .fini = teardown)
{
    write_text(in_dir("file"), "0123456789");
    int fd;
    int64_t bytes;
    char four[5] = "";
    cr_assert_eq(kd_file_open(&fd, &bytes, in_dir("file")), KD_OK);
    cr_expect_eq(bytes, 10);
    cr_expect_eq(kd_read_at(fd, "file", four, 4, 6), KD_OK);
    cr_expect_str_eq(four, "6789");
    cr_expect_eq(kd_read_at(fd, "file", four, 4, 7), KD_EFORMAT);
    cr_expect_str_eq(kd_last_error(), "file: ends at byte 10, expected 4 bytes at byte 7");
    cr_expect_eq(kd_write_at(fd, "file", four, 4, 0), KD_EIO, "opened for reading");
    close(fd);
}

Test(json, is_strict_and_names_the_place, .init = setup, .fini = teardown)
{
    char nested[2][67] = { "", "" }; /* 32 and 33 pairs of brackets */
    for (int i = 0; i < 32; i++) {
        strcat(nested[0], "[");
        strcat(nested[1], "[");
    }
    strcat(nested[1], "[]");
    for (int i = 0; i < 32; i++) {
        strcat(nested[0], "]");
        strcat(nested[1], "]");
    }
    const struct {
        const char *text, *message; /* NULL: accepted */
    } rows[] = {
        { "{\"a\": [1, 2.5, null, true], \"b\": \"\\u00e9 [[{{\"}", NULL },
        { "  [9223372036854775807, -9223372036854775808]\n", NULL },
        { "{\"a\": \"\\\\\", \"b\": \"\\\"\"}", NULL },
        { nested[0], NULL },
        { nested[1], "f:1:33: nested deeper than 32" },
        { "{\"a\": 1,\n \"a\": 2}", "f:2:" },
        { "{\"a\": 1} x", "f:1:" },
        { "{\"a\": 1}{}", "f:1:" },
        { "{\"a\": 1,}", "f:1:" },
        { "[1, 9223372036854775808]", "f:1:" },
        { "[1e999]", "f:1:" },
        { "[NaN]", "f:1:" },
        { "[01]", "f:1:" },
        { "[1,\n -0]", "f:2:2: -0 is not a decimal integer" },
        { "[-0.0, -0e1, 1e-0, 1E-05, \"-0\", \"\\\"-0\"]", NULL },
        { "[-0", "f:1:2: -0 is" },
        { "['a']", "f:1:" },
        { "[1] // no", "f:1:" },
        { "\xef\xbb\xbf{}", "f:1:" },
        { "[\"\xff\"]", "f:1:" },
        { "[\"\\u0000\"]", "f:1:" },
        { "{\"a\":\n\n ", "f:3:" },
        { "[\"a", "f:1:" },
        { "1", "f:1:" },
        { "", "f:1:" },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        json_t *value = NULL;
        const kd_status status = kd_json_parse(&value, "f", rows[i].text, strlen(rows[i].text));
        cr_expect_eq(status, rows[i].message ? KD_EFORMAT : KD_OK, "%s: %s", rows[i].text,
                     kd_last_error());
        cr_expect_eq(value == NULL, rows[i].message != NULL, "%s", rows[i].text);
        if (rows[i].message) expect_message(rows[i].message);
        json_decref(value);
    }
    json_t *value = NULL;
    cr_expect_eq(kd_json_parse(&value, "f", "[1]\0[2]", 7), KD_EFORMAT, "a NUL ends nothing");
    const char *const exact = "[9007199254740993]"; /* 2^53 + 1 */
    cr_assert_eq(kd_json_parse(&value, "f", exact, strlen(exact)), KD_OK);
    cr_expect_eq(json_integer_value(json_array_get(value, 0)), 9007199254740993);
    json_decref(value);
}

/* A hundred bytes of memory for three of text: refused before any is taken. */
Test(json, is_bounded_before_it_is_parsed, .timeout = 20)
{
    enum { BYTES = 3 << 24 };
    char *text = malloc(BYTES);
    json_t *value;
    text[0] = '[';
    for (size_t i = 1; i < BYTES; i++) text[i] = "[],"[(i - 1) % 3];
    cr_expect_eq(kd_json_parse(&value, "f", text, BYTES), KD_EFORMAT);
    expect_message("f:1:25165825: more than 16777216 values");
    free(text);
}

Test(json, shows_values)
{
    static const char *const rows[][2] = { { "[1,2.5,\"a\\u001b\"]", "[1,2.5,\"a\\u001B\"]" },
                                           { "[\"0123456789abcdef\"]", "a long value" },
                                           { "[9007199254740993]", "[9007199254740993]" },
                                           { "[{}, [], null, -1e-5]", "[{},[],null,-1e-5]" } };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        char text[20];
        json_t *value = json_loads(rows[i][0], 0, NULL);
        cr_expect_str_eq(kd_json_show(text, sizeof text, value), rows[i][1]);
        json_decref(value);
    }
    cr_expect_str_eq(kd_json_show(NULL, 0, NULL), "nothing");
}

/* Whatever a message quotes, nothing of it moves a terminal's cursor. */
Test(status, messages_are_fit_for_a_terminal)
{
    static const char *const rows[][2] = {
        { "plain \xc3\xa9\xe4\xbd\xa0", "plain \xc3\xa9\xe4\xbd\xa0" },
        { "\x1b[31m", "\\x1b[31m" },
        { "a\nb\tc\x7f", "a\\x0ab\\x09c\\x7f" },
        { "\xc2\x9b\xc2\x80\xc2\xa0", "\\xc2\\x9b\\xc2\\x80\xc2\xa0" },
        { "\xc2", "\xc2" },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        cr_expect_eq(kd_fail(KD_EINVAL, "%s", rows[i][0]), KD_EINVAL);
        cr_expect_str_eq(kd_last_error(), rows[i][1], "row %d", i);
    }
    char small[8];
    kd_escape(small, sizeof small, "123\x1b\x1b");
    cr_expect_str_eq(small, "123\\x1b");
    kd_escape(small, sizeof small, "12345678");
    cr_expect(strlen(small) < sizeof small);
}

Test(json, writes_what_it_reads, .init = setup, .fini = teardown)
{
    const char *path = in_dir("state.json");
    json_t *value = json_pack("{s:I, s:f, s:s, s:[b, n]}", "z", (json_int_t)INT64_MIN, "a", 0.1,
                              "text", "a\n\"\xc3\xa9", "list", 1);
    json_t *back = NULL;
    cr_assert(value);
    cr_assert_eq(kd_json_write(path, value), KD_OK, "%s", kd_last_error());
    cr_assert_eq(kd_json_read(&back, path), KD_OK, "%s", kd_last_error());
    cr_expect(json_equal(value, back));
    json_decref(back);
    char *text;
    size_t bytes;
    cr_assert_eq(kd_file_read(&text, &bytes, path, 1000), KD_OK);
    cr_expect_eq(strncmp(text, "{\n  \"z\": -9223372036854775808,\n", 31), 0, "%s", text);
    cr_expect_eq(text[bytes - 1], '\n');
    free(text);
    cr_expect_eq(kd_json_write(in_dir("none/x.json"), value), KD_EIO);
    json_decref(value);
    cr_expect_eq(kd_json_read(&back, in_dir("absent.json")), KD_EFORMAT);
    expect_message("absent.json");
}
