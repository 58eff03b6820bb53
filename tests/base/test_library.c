/* Libraries that are looked for when they are needed. */
#include "base/base.h"

#include <criterion/criterion.h>
#include <string.h>

typedef struct functions {
    double (*cosine)(double);
    double (*sine)(double);
} functions;

static kd_library mathematics(functions *table, const char *const *names)
{
    return (kd_library){ .file = "libm.so.6", .functions = names, .count = 2, .table = table };
}

Test(library, fills_a_table_in_the_order_of_its_names)
{
    static const char *const names[] = { "cos", "sin" };
    functions table = { 0 };
    kd_library library = mathematics(&table, names);
    cr_assert_eq(kd_library_load(&library), KD_OK);
    cr_assert(library.loaded && table.cosine(0.0) == 1.0 && table.sine(0.0) == 0.0);
    table.cosine = NULL;
    cr_assert_eq(kd_library_load(&library), KD_OK);
    cr_assert_null(table.cosine, "it was loaded a second time");
}

Test(library, names_the_file_and_what_it_lacks)
{
    static const char *const names[] = { "cos", "kd_there_is_no_such_function" };
    functions table = { 0 };
    kd_library library = mathematics(&table, names);
    cr_assert_eq(kd_library_load(&library), KD_EDEVICE);
    cr_assert_not_null(strstr(kd_last_error(), "libm.so.6"), "%s", kd_last_error());
    cr_assert_not_null(strstr(kd_last_error(), names[1]), "%s", kd_last_error());
    library.file = "libkd-there-is-no-such-file.so.1";
    cr_assert_eq(kd_library_load(&library), KD_EDEVICE);
    cr_assert_not_null(strstr(kd_last_error(), library.file), "%s", kd_last_error());
    cr_assert_not(library.loaded);
}
