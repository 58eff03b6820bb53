/* A frozen teacher whose matrices are e4m3. */
#include "support/quantised.h"

Test(e4m3, teachers_are_nearly_those_of_bf16) { test_quantised_teachers("cpu"); }

/* A student's weights move by less than e4m3 tells apart. */
Test(e4m3, is_not_trained)
{
    test_refused(test_quantised_open("cpu", true, true), KD_EINVAL,
                 "student: dtype f8_e4m3 is for frozen models");
}
