#include "support/feature.h"
#include "support/golden.h"
#include "support/support.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double largest(const float *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
    return most;
}

static void compare(const test_golden *got, const test_golden *want, const char *file, double slack)
{
    const char *text = kd_st_metadata(want->file, "tolerance");
    cr_assert(text, "%s: no tolerance", file);
    const double tolerance = slack * strtod(text, NULL);
    for (int64_t t = 0; t < want->file->count; t++) {
        const char *name = want->file->entries[t].name;
        cr_assert(strncmp(name, "d_", 2) != 0 || kd_st_find(got->file, name), "%s: no %s", file,
                  name);
    }
    for (int64_t t = 0; t < got->file->count; t++) {
        const kd_st_entry *a, *b;
        const char *name = got->file->entries[t].name;
        char after[64]; /* of a state, which the file has as it was too */
        snprintf(after, sizeof after, "after.%s", name);
        const float *x = test_golden_f32(got, name, &a);
        const float *y = test_golden_f32(want, kd_st_find(want->file, after) ? after : name, &b);
        cr_assert_eq(a->elements, b->elements, "%s: %s", file, name);
        const double most = largest(y, b->elements);
        for (int64_t i = 0; i < a->elements; i++)
            cr_assert(fabs((double)x[i] - (double)y[i]) <= tolerance * most,
                      "%s: %s[%lld] is %.9g, expected %.9g (largest %g)", file, name, (long long)i,
                      (double)x[i], (double)y[i], most);
    }
}

/* The options that the file's metadata has as `key`, empty where there is none, as rows parse them. */
static void parse_options(void *own, kd_arena *arena, const kd_option *rows, const kd_st_file *file,
                          const char *key)
{
    const char *text = kd_st_metadata(file, key);
    kd_node *node = NULL;
    if (text && *text) test_ok(kd_yaml_parse(&node, arena, file->path, text, strlen(text)));
    if (rows) test_ok(kd_options_parse(own, rows, arena, node, key, NULL));
}

static void check_file(int loss, const char *folder, const char *name, const char *device,
                       double slack)
{
    char in[512], out[] = "/tmp/kd-feature-XXXXXX";
    _Alignas(16) unsigned char own[KD_FEATURE_OPTION_BYTES] = { 0 };
    kd_projector_options projector;
    kd_feature_info info;
    kd_arena *arena;
    test_golden want, got;
    const int fd = mkstemp(out);
    cr_assert(fd >= 0);
    close(fd);
    snprintf(in, sizeof in, "%s/%s", folder, name);
    test_ok(kd_arena_create(&arena));
    test_ok(kd_feature_describe(&info, loss));
    test_golden_open(&want, in);
    cr_assert(kd_st_metadata(want.file, "options"), "%s: no options", name);
    parse_options(own, arena, info.options, want.file, "options");
    parse_options(&projector, arena, kd_projector_rows, want.file, "projector");
    test_ok(kd_feature_file(loss, in, out, own, &projector, device));
    test_golden_open(&got, out);
    compare(&got, &want, name, slack);
    test_golden_close(&got);
    test_golden_close(&want);
    kd_arena_destroy(arena);
    cr_assert_eq(unlink(out), 0);
}

void test_golden_features(const char *folder, const char *device, double slack)
{
    int files[KD_FEATURE_COUNT] = { 0 };
    DIR *dir = opendir(folder);
    cr_assert(dir, "%s", folder);
    for (const struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        char name[256];
        snprintf(name, sizeof name, "%s", entry->d_name);
        if (!strstr(name, ".safetensors")) continue;
        *strchr(name, '.') = '\0';
        const int loss = kd_feature_find(name);
        cr_assert(loss >= 0, "%s: no loss of that name", entry->d_name);
        files[loss]++;
        check_file(loss, folder, entry->d_name, device, slack);
    }
    closedir(dir);
    for (int i = 0; i < KD_FEATURE_COUNT; i++)
        cr_expect(files[i], "%s has no golden file", kd_feature_types[i]->name);
}

double test_total(const kd_tensor *t)
{
    double sum = 0;
    for (int64_t i = 0, n = kd_tensor_elements(t); i < n; i++) sum += test_get(t, i);
    return sum;
}

double test_largest(const kd_tensor *t)
{
    double most = 0;
    for (int64_t i = 0, n = kd_tensor_elements(t); i < n; i++) {
        cr_assert(isfinite(test_get(t, i)), "element %d is %g", (int)i, test_get(t, i));
        most = fmax(most, fabs(test_get(t, i)));
    }
    return most;
}

void test_rotate(const kd_tensor *t)
{
    const int64_t width = t->shape[t->rank - 1];
    for (int64_t at = 0, n = kd_tensor_elements(t); at < n; at += width)
        for (int64_t c = 0; c + 1 < width; c++) {
            const double u = test_get(t, at + c), v = test_get(t, at + c + 1), a = 0.3 + (double)c;
            test_set(t, at + c, u * cos(a) - v * sin(a));
            test_set(t, at + c + 1, u * sin(a) + v * cos(a));
        }
}
