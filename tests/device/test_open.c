/* Names of devices: which open, and what is said of those that do not. */
#include "support/support.h"

static void refused(const char *name, kd_status want, const char *said)
{
    kd_device *device;
    const kd_status status = kd_device_open(&device, name);
    cr_assert(status == want && strstr(kd_last_error(), said), "%s: %s: %s", name,
              kd_status_text(status), kd_last_error());
}

Test(device, with_a_wrong_name_is_refused)
{
    static const char *const wrong[] = {
        "", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:9999999999", "cud", "auto:0", ":"
    };
    for (int i = 0; i < KD_COUNT(wrong); i++) refused(wrong[i], KD_EINVAL, wrong[i]);
    refused("cpu:1", KD_EDEVICE, "cpu:1: ");
    refused("cuda:97", KD_EDEVICE, "cuda:97: ");
}

/* Without CUDA, or with it and no driver. */
Test(device, that_is_missing_is_said_to_be_and_auto_takes_the_cpu)
{
    kd_device *device;
    kd_device_info info;
    if (kd_device_cuda.count() > 0) cr_skip_test("skipped: there is a GPU");
    refused("cuda", KD_EDEVICE, "cuda:0: ");
    cr_assert_eq(kd_status_exit_code(KD_EDEVICE), 4);
    test_ok(kd_device_open(&device, "auto"));
    kd_device_describe(&info, device);
    cr_assert_str_eq(info.type, "cpu");
    cr_assert(info.memory > 0 && info.memory == info.total);
    kd_device_close(device);
}
