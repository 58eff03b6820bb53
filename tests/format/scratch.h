/* scratch.h - a folder for one test, small files in it, the warnings that were logged, and golden JSON. */
#ifndef KD_TESTS_SCRATCH_H
#define KD_TESTS_SCRATCH_H

#include "format/format.h"
#include "support/refusal.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char scratch_dir[64];
static char scratch_log[4096];

static inline void scratch_listen(void *context, kd_log_level level, const char *line)
{
    (void)context;
    (void)level;
    const size_t used = strlen(scratch_log);
    (void)snprintf(scratch_log + used, sizeof scratch_log - used, "%s\n", line);
}

static inline void scratch_open(void)
{
    (void)snprintf(scratch_dir, sizeof scratch_dir, "/tmp/kd-format-XXXXXX");
    cr_assert(mkdtemp(scratch_dir) != NULL);
    kd_log_redirect(scratch_listen, NULL);
}

static inline void scratch_close(void)
{
    kd_log_redirect(NULL, NULL);
    cr_assert(kd_dir_remove(scratch_dir) == KD_OK);
}

/* One of four paths in turn, so that a call may use several. */
static inline const char *scratch_path(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/%s", scratch_dir, name);
    return path;
}

static inline const char *scratch_write(const char *name, const void *data, size_t bytes)
{
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    cr_assert(file != NULL, "%s", path);
    cr_assert(fwrite(data, 1, bytes, file) == bytes);
    cr_assert(fclose(file) == 0);
    return path;
}

static inline const char *scratch_text(const char *name, const char *text)
{
    return scratch_write(name, text, strlen(text));
}

/* A safetensors file: length, header, `zeros` bytes of data. */
static inline const char *scratch_st(const char *name, const char *header, size_t length,
                                     size_t zeros)
{
    char *bytes = calloc(1, 8 + length + zeros);
    cr_assert(bytes != NULL);
    for (int i = 0; i < 8; i++) bytes[i] = (char)((uint64_t)length >> (8 * i));
    memcpy(bytes + 8, header, length);
    const char *path = scratch_write(name, bytes, 8 + length + zeros);
    free(bytes);
    return path;
}

/* File `name` of tests/golden; the caller's. */
static inline json_t *scratch_golden(const char *name)
{
    char path[512];
    json_t *json = NULL;
    (void)snprintf(path, sizeof path, "%s/%s", KD_GOLDEN, name);
    cr_assert(kd_json_read(&json, path) == KD_OK, "%s", kd_last_error());
    return json;
}

/* The configuration `name` there, with `edit` merged over it: a key whose value is "absent" is removed. */
static inline json_t *scratch_config(const char *name, const char *edit)
{
    char file[128];
    (void)snprintf(file, sizeof file, "configs/%s.json", name);
    json_t *json = scratch_golden(file), *changes = json_loads(edit, 0, NULL), *value;
    const char *key;
    cr_assert(changes != NULL, "%s", edit);
    json_object_foreach(changes, key, value)
    {
        const char *text = json_string_value(value);
        if (text && !strcmp(text, "absent"))
            (void)json_object_del(json, key);
        else
            (void)json_object_set(json, key, value);
    }
    json_decref(changes);
    return json;
}

#endif
