/* gram_distance on a GPU against the CPU: both ways, more rows than warps of a block, samples not read. */
#include "support/parity.h"

#include <math.h>

static const struct {
    int64_t samples, c, ct, s;
} shapes[] = {
    { 1, 1, 1, 1 }, { 2, 3, 5, 4 }, { 3, 5, 2, 33 }, { 2, 40, 70, 130 }, { 0, 3, 2, 4 }
};

static void check(parity *p, int shape, int form)
{
    test_bench *b = &p->bench;
    const bool by_channel = form & 1;
    const int64_t n = shapes[shape].samples, c = shapes[shape].c, ct = shapes[shape].ct;
    const int64_t s = shapes[shape].s, rows = by_channel ? ct : s;
    const kd_shape own = KD_SHAPE(n, by_channel ? c : s, by_channel ? c + ct : s);
    const kd_tensor student = test_filled(b, KD_F32, own, 0, -1, 1);
    const kd_tensor teacher = test_filled(b, KD_F32, KD_SHAPE(n, rows, rows), 0, 2, 3);
    const kd_tensor loss = test_tensor(b, KD_F32, KD_SHAPE(n), 0);
    const kd_tensor weight = test_filled(b, KD_F32, KD_SHAPE(n), 0, 0, 2);
    const kd_tensor scale = test_filled(b, KD_F32, KD_SHAPE(1), 0, 1, 2);
    if (form & 2 && n > 1) {
        test_set(&weight, 1, 0);
        if (form & 4) test_set(&student, own.dim[1] * own.dim[2], NAN);
    }
    PARITY(p, gram_distance, 10.0 * (double)(own.dim[1] * own.dim[2]), 4,
           parity_name("shape %d, form %d", shape, form), .student = &student, .loss = &loss,
           .teacher = &teacher, .weight = form & 2 ? &weight : NULL,
           .scale = form & 4 ? &scale : NULL, .channels = c, .teacher_channels = ct,
           .by_channel = by_channel);
}

Test(gram_distance, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, 1 << 16);
    for (int s = 0; s < KD_COUNT(shapes); s++)
        for (int form = 0; form < 8; form++) {
            const int mark = test_mark(&p.bench);
            check(&p, s, form);
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}
