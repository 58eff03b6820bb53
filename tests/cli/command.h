/* command.h - a folder of its own for each test, the built program run in it, and files for it. */
#ifndef KD_TESTS_COMMAND_H
#define KD_TESTS_COMMAND_H

#include "format/format.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- running it ------------------------------------------------------------------------------- */

static char dir[] = "/tmp/kd-cli-XXXXXX";

static inline void setup(void)
{
    cr_assert(mkdtemp(dir));
    cr_assert(chdir(dir) == 0);
    cr_assert(symlink(KD_GOLDEN, "golden") == 0);
    unsetenv("KD_LOG");
}

static inline void teardown(void)
{
    cr_assert(chdir("/") == 0);
    cr_assert_eq(kd_dir_remove(dir), KD_OK, "%s", kd_last_error());
}

typedef struct result {
    int code;
    char *out, *err; /* valid until the next run */
} result;

static inline char *slurp(char **memory, const char *path)
{
    size_t bytes;
    free(*memory);
    cr_assert_eq(kd_file_read(memory, &bytes, path, 1 << 24), KD_OK, "%s", kd_last_error());
    return *memory;
}

/* A line of the shell. */
static inline result run_line(const char *line)
{
    static char *out, *err;
    char command[1400];
    snprintf(command, sizeof command, "(%s) > stdout.txt 2> stderr.txt", line);
    const int status = system(command);
    cr_assert(WIFEXITED(status), "%s: ended by a signal", line);
    return (result){ WEXITSTATUS(status), slurp(&out, "stdout.txt"), slurp(&err, "stderr.txt") };
}

static inline result run(const char *fmt, ...) KD_PRINTF(1, 2);
static inline result run(const char *fmt, ...)
{
    char line[1024], command[1200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    snprintf(command, sizeof command, "%s %s", KD_COMMAND, line);
    return run_line(command);
}

static inline void expect_code(result r, int wanted, const char *what)
{
    cr_expect_eq(r.code, wanted, "kd %s: exit %d, expected %d; %s", what, r.code, wanted, r.err);
}

/* The whole of stdout as JSON, which also says that nothing else is on it. */
static inline json_t *answer(const result *r, const char *what)
{
    json_t *json = NULL;
    cr_assert_eq(kd_json_parse(&json, what, r->out, strlen(r->out)), KD_OK, "%s", kd_last_error());
    return json;
}

static inline void write_text(const char *path, const char *text)
{
    cr_assert_eq(kd_file_write_atomic(path, text, strlen(text)), KD_OK, "%s", kd_last_error());
}

/* ---- files ------------------------------------------------------------------------------------ */

typedef struct column {
    const char *name;
    kd_dtype dtype;
    int64_t shape[4]; /* 0: that was all */
    const void *data;
} column;

static inline int32_t rank_of(const column *c)
{
    int32_t rank = 0;
    while (rank < 4 && c->shape[rank]) rank++;
    return rank;
}

static inline void write_file(const char *path, const column *columns, int count)
{
    kd_st_writer *w;
    cr_assert_eq(kd_st_writer_create(&w, path), KD_OK, "%s", kd_last_error());
    for (int i = 0; i < count; i++)
        cr_assert_eq(kd_st_writer_declare(w, columns[i].name, columns[i].dtype,
                                          rank_of(&columns[i]), columns[i].shape),
                     KD_OK);
    cr_assert_eq(kd_st_writer_begin(w), KD_OK);
    for (int i = 0; i < count; i++) {
        int64_t n = 1;
        for (int k = 0; k < rank_of(&columns[i]); k++) n *= columns[i].shape[k];
        cr_assert_eq(kd_st_writer_write(w, columns[i].name, columns[i].data,
                                        (size_t)n * kd_dtype_size(columns[i].dtype)),
                     KD_OK);
    }
    cr_assert_eq(kd_st_writer_close(w), KD_OK, "%s", kd_last_error());
}

/* Elements of a tensor in its own type; freed by the caller. */
static inline void *read_tensor(int64_t *elements, const char *path, const char *name,
                                kd_dtype dtype)
{
    kd_st_file *file;
    cr_assert_eq(kd_st_open(&file, path), KD_OK, "%s", kd_last_error());
    const kd_st_entry *e = kd_st_find(file, name);
    cr_assert(e && e->dtype == (int)dtype, "%s: %s", path, name);
    void *data = malloc((size_t)e->bytes + 1);
    cr_assert_eq(kd_st_read(data, dtype, file, e, 0, e->elements), KD_OK, "%s", kd_last_error());
    *elements = e->elements;
    kd_st_close(file);
    return data;
}

#endif
