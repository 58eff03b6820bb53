#include "support/refusal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

void test_refusal(kd_status found, kd_status expected, const char *parts, const char *what)
{
    char copy[512], *rest = NULL;
    cr_expect(found == expected, "%s: %s, expected %s: %s", what, kd_status_text(found),
              kd_status_text(expected), kd_last_error());
    if (found == KD_OK || expected == KD_OK) return;
    snprintf(copy, sizeof copy, "%s", parts);
    for (char *part = strtok_r(copy, "|", &rest); part; part = strtok_r(NULL, "|", &rest))
        cr_expect(strstr(kd_last_error(), part) != NULL, "%s: no \"%s\" in \"%s\"", what, part,
                  kd_last_error());
}
