/* vid on a GPU against the CPU: aligned rows and not, either type on either side, each gradient or none. */
#include "support/parity.h"

#include <math.h>

static const struct {
    int64_t samples, channels, places, pad;
} shapes[] = { { 1, 1, 1, 0 },    { 3, 4, 7, 3 }, { 2, 3, 1032, 8 },
               { 40, 33, 16, 0 }, { 0, 2, 3, 0 }, { 2, 2, 0, 0 } };
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

/* form: 1 weights, 2 d_student, 4 d_log_variance. */
static void check(parity *p, int shape, int types, int form)
{
    test_bench *b = &p->bench;
    const int64_t n = shapes[shape].samples, c = shapes[shape].channels, pad = shapes[shape].pad;
    const kd_dtype s = dtypes[types & 1], t = dtypes[types >> 1];
    const kd_shape whole = KD_SHAPE(n, c, shapes[shape].places);
    const kd_tensor student = test_filled(b, s, whole, pad, -2, 2);
    const kd_tensor teacher = test_filled(b, t, whole, 2 * pad, -1, 1);
    const kd_tensor log_variance = test_filled(b, KD_F32, KD_SHAPE(c), 0, -4, 6);
    const kd_tensor weight = test_filled(b, KD_F32, KD_SHAPE(n), 0, 0, 2);
    const kd_tensor scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 1, 2);
    const kd_tensor loss = test_tensor(b, KD_F32, KD_SHAPE(n), 0);
    const kd_tensor d = test_filled(b, s, whole, pad, -1, 1);
    const kd_tensor slope = test_filled(b, KD_F32, KD_SHAPE(c), 0, -1, 1);
    if (form & 1 && n > 1) {
        test_set(&weight, 1, 0);
        if (whole.dim[2]) test_set(&student, c * whole.dim[2], NAN);
    }
    PARITY(p, vid, 100, 4, parity_name("shape %d, types %d, form %d", shape, types, form),
           .d_student = form & 2 ? &d : NULL, .d_log_variance = form & 4 ? &slope : NULL,
           .loss = &loss, .student = &student, .teacher = &teacher, .log_variance = &log_variance,
           .weight = form & 1 ? &weight : NULL, .scale = form & 6 ? &scale : NULL, .eps = 1e-3f);
}

Test(vid, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, 1 << 16);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int types = 0; types < 4; types++)
            for (int form = 0; form < 8; form++) {
                const int mark = test_mark(&p.bench);
                check(&p, s, types, form);
                test_release(&p.bench, mark);
            }
    parity_close(&p);
}
