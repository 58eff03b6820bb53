/* rope on a GPU, against the CPU. */
#include "support/parity.h"

#include <math.h>

static const struct {
    int64_t rows, heads, size, half, pad;
    double longest; /* positions are below it */
} cases[] = {
    { 1, 1, 2, 1, 0, 5 },         { 7, 3, 16, 8, 0, 100 },         { 5, 2, 17, 8, 3, 2048 },
    { 13, 5, 64, 32, 8, 131072 }, { 9, 2, 128, 64, 16, 1 << 20 },  { 4, 3, 64, 16, 9, 1 << 20 },
    { 6, 2, 48, 20, 8, 300 },     { 3, 2, 1100, 530, 0, 1 << 20 }, { 3, 2, 6, 0, 1, 10 },
    { 0, 2, 8, 4, 0, 10 },        { 2, 1, 8, 4, 0, 2147483000. },
};
static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };

/* theta^(-i / half) as models make them. */
static kd_tensor frequencies_of(test_bench *b, int64_t half)
{
    const kd_tensor t = test_tensor(b, KD_F32, KD_SHAPE(half), 0);
    for (int64_t i = 0; i < half; i++) test_set(&t, i, pow(10000, -(double)i / (double)half));
    return t;
}

Test(rope, turns_and_turns_back)
{
    parity p;
    parity_open(&p, 0);
    for (int c = 0; c < KD_COUNT(cases); c++)
        for (int d = 0; d < KD_COUNT(dtypes); d++)
            for (int backward = 0; backward < 2; backward++) {
                const int mark = test_mark(&p.bench);
                const kd_shape shape = KD_SHAPE(cases[c].rows, cases[c].heads, cases[c].size);
                const kd_tensor x = test_filled(&p.bench, dtypes[d], shape, cases[c].pad, -1, 1);
                const kd_tensor at =
                    test_filled(&p.bench, KD_I32, KD_SHAPE(cases[c].rows), 0, 0, cases[c].longest);
                const kd_tensor f = frequencies_of(&p.bench, cases[c].half);
                /* The CPU's angles are within 1e-6 beyond 2^20 pi / 2. */
                const double scale = cases[c].longest > 1 << 21 ? 16 : 2;
                char name[64];
                PARITY(&p, rope, scale, 2,
                       parity_name("rope of %s, half %lld, backward %d",
                                   kd_tensor_print(name, sizeof name, &x), (long long)cases[c].half,
                                   backward),
                       .x = &x, .positions = &at, .frequencies = &f, .scale = backward ? 1 : 1.25f,
                       .backward = backward);
                test_release(&p.bench, mark);
            }
    parity_close(&p);
}

/* The queries and keys of fused [N, q | k | v] rows; their neighbours keep their bits. */
Test(rope, turns_one_part_of_a_fused_row)
{
    enum { ROWS = 37, HEADS = 3, SIZE = 32 };
    parity p;
    parity_open(&p, 0);
    for (int d = 0; d < KD_COUNT(dtypes); d++)
        for (int first = 0; first < 2; first++) {
            const int mark = test_mark(&p.bench);
            const kd_tensor fused =
                test_filled(&p.bench, dtypes[d], KD_SHAPE(ROWS, (HEADS + 2) * SIZE), 5 * d, -1, 1);
            const kd_tensor x = test_heads(&fused, first, HEADS, SIZE);
            const kd_tensor at = test_filled(&p.bench, KD_I32, KD_SHAPE(ROWS), 0, 0, 500);
            const kd_tensor f = frequencies_of(&p.bench, SIZE / 2);
            PARITY(&p, rope, 2, 2, parity_name("from head %d", first), .x = &x, .positions = &at,
                   .frequencies = &f, .scale = 1);
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}
