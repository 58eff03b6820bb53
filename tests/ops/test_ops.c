/* What the table itself promises: a device that lacks an op is refused by the op's name. */
#include "ops/ops.h"

#include <criterion/criterion.h>
#include <string.h>

Test(ops, a_missing_slot_is_named)
{
    const kd_device_type half = { .name = "half" };
    kd_ops table = kd_ops_cpu;
    kd_device device = { .type = &half, .ops = &table };
    cr_expect_eq(kd_ops_complete(&device), KD_OK);
    table.rope = NULL;
    table.clip = NULL;
    cr_assert_eq(kd_ops_complete(&device), KD_ENOTSUP);
    cr_expect_str_eq(kd_last_error(), "half lacks ops: rope clip");
    /* Asked to run on the CPU, an op needs no slot. */
    cr_assert_eq(kd_ops_named(&device.on_cpu, "clip,rope"), KD_OK);
    cr_expect_eq(kd_ops_complete(&device), KD_OK);
    cr_assert_eq(kd_ops_named(&device.on_cpu, "clip,ropes"), KD_EINVAL);
    cr_expect_not_null(strstr(kd_last_error(), "\"ropes\""));
}
