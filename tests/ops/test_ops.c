/* What the table itself promises: a device that lacks an op is refused by the op's name. */
#include "ops/ops.h"

#include <criterion/criterion.h>
#include <string.h>

Test(ops, a_missing_slot_is_named)
{
    kd_ops table = kd_ops_cpu;
    cr_expect_eq(kd_ops_complete(&table, "cpu"), KD_OK);
    table.rope = NULL;
    table.clip = NULL;
    cr_assert_eq(kd_ops_complete(&table, "half"), KD_ENOTSUP);
    cr_expect_str_eq(kd_last_error(), "half lacks ops: rope clip");
}
