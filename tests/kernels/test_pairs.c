/*
 * The ops over the pairs of a batch on a GPU, against the CPU: around the tiles of 32, duplicate rows,
 * batches of one, d and weight absent and present, padded strides, f32 and bf16.
 */
#include "support/parity.h"

#include "oracle/pairs.h"

#include <math.h>

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
enum { STACK = 1 << 20 };

Test(pairs, distances)
{
    static const int64_t shapes[][2] = {
        { 0, 4 },   { 1, 1 },   { 2, 33 },  { 5, 7 },  { 31, 64 },
        { 32, 32 }, { 33, 65 }, { 70, 31 }, { 65, 1 }, { 3, 513 }
    };
    parity p;
    parity_open(&p, STACK);
    for (int c = 0; c < KD_COUNT(shapes) * 2; c++) {
        const int64_t rows = shapes[c / 2][0], columns = shapes[c / 2][1];
        const kd_dtype dtype = dtypes[c % 2];
        const int mark = test_mark(&p.bench);
        const kd_tensor x = test_filled(&p.bench, dtype, KD_SHAPE(rows, columns), 3, -2, 2);
        const kd_tensor y = test_tensor(&p.bench, KD_F32, KD_SHAPE(rows, rows), 1);
        const kd_tensor dy = test_filled(&p.bench, KD_F32, KD_SHAPE(rows, rows), 2, -1, 1);
        const kd_tensor dx = test_filled(&p.bench, dtype, KD_SHAPE(rows, columns), 5, -1, 1);
        for (int64_t i = 0; i < columns && rows > 2; i++)
            test_set(&x, (rows - 1) * columns + i, test_get(&x, i));
        const char *name = parity_name("%s %lld rows of %lld", kd_dtype_name(dtype),
                                       (long long)rows, (long long)columns);
        PARITY(&p, pair_distances, 0, (double)columns, name, .y = &y, .x = &x);
        PARITY(&p, pair_distances_backward, 16, (double)(rows + 1), name, .dx = &dx, .dy = &dy,
               .x = &x);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

typedef struct operands {
    kd_tensor student, teacher, weight, scale, loss, d;
} operands;

/* Squared distances of features, some rows of which are equal; or products of normalised ones, of a
 * size below 1. */
static kd_tensor related(test_bench *b, int64_t rows, bool products, int64_t equal)
{
    enum { WIDTH = 6 };
    double x[100 * WIDTH], *to = test_zeros(b, rows * rows);
    for (int64_t i = 0; i < rows * WIDTH; i++) x[i] = 2 * test_uniform(b) - 1;
    for (int64_t i = 0; i < WIDTH && rows > 5; i++) x[equal * WIDTH + i] = x[i];
    oracle_pair_distances(to, x, rows, WIDTH);
    for (int64_t i = 0; products && i < rows * rows; i++) to[i] = 1 - to[i] / (4 * WIDTH);
    const kd_tensor t = test_tensor(b, KD_F32, KD_SHAPE(rows, rows), 3);
    for (int64_t i = 0; i < rows * rows; i++) test_set(&t, i, to[i]);
    return t;
}

static operands make(test_bench *b, int64_t rows, bool products)
{
    const double scale = 0.75;
    const operands o = { .student = related(b, rows, products, 3),
                         .teacher = related(b, rows, products, 4),
                         .weight = test_filled(b, KD_F32, KD_SHAPE(rows), 0, 0, 2),
                         .scale = test_values(b, KD_F32, KD_SHAPE(1), &scale),
                         .loss = test_tensor(b, KD_F32, KD_SHAPE(rows), 0),
                         .d = test_tensor(b, KD_F32, KD_SHAPE(rows, rows), 1) };
    if (rows > 0) test_set(&o.weight, rows / 2, 0);
    return o;
}

static oracle_pairs doubles(test_bench *b, const operands *o)
{
    return (oracle_pairs){ test_doubles(b, &o->student), test_doubles(b, &o->teacher),
                           test_doubles(b, &o->weight), 0.75, o->student.shape[0] };
}

static const int64_t counts[] = { 0, 1, 2, 3, 17, 32, 33, 70 };

/* Of case c: which operands are absent. */
static const kd_tensor *weight_of(const operands *o, int c) { return c & 1 ? &o->weight : NULL; }
static const kd_tensor *d_of(const operands *o, int c) { return c & 2 ? &o->d : NULL; }

static const char *name_of(int c)
{
    return parity_name("%lld rows, case %d", (long long)counts[c / 4], c % 4);
}

Test(pairs, rkd_distance)
{
    parity p;
    parity_open(&p, STACK);
    for (int c = 0; c < KD_COUNT(counts) * 4; c++) {
        const int mark = test_mark(&p.bench);
        const operands o = make(&p.bench, counts[c / 4], false);
        const oracle_pairs doubled = doubles(&p.bench, &o);
        const oracle_size size = oracle_rkd_distance_size(&doubled);
        for (int whole = 0; whole < 2; whole++)
            PARITY(&p, rkd_distance, fmax(size.loss, size.d), (double)(counts[c / 4] + 1),
                   name_of(c), .d = d_of(&o, c), .loss = &o.loss, .student = &o.student,
                   .teacher = &o.teacher, .weight = weight_of(&o, c), .scale = &o.scale,
                   .whole = whole);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(pairs, rkd_angle)
{
    parity p;
    parity_open(&p, STACK);
    for (int c = 0; c < KD_COUNT(counts) * 4; c++) {
        const int mark = test_mark(&p.bench);
        const operands o = make(&p.bench, counts[c / 4], false);
        const oracle_pairs doubled = doubles(&p.bench, &o);
        const oracle_size size = oracle_rkd_angle_size(&doubled);
        PARITY(&p, rkd_angle, fmax(size.loss, size.d), (double)(counts[c / 4] + 1), name_of(c),
               .d = d_of(&o, c), .loss = &o.loss, .student = &o.student, .teacher = &o.teacher,
               .weight = weight_of(&o, c), .scale = &o.scale);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

Test(pairs, pkt)
{
    const float eps = 1e-7f;
    parity p;
    parity_open(&p, STACK);
    for (int c = 0; c < KD_COUNT(counts) * 4; c++) {
        const int mark = test_mark(&p.bench);
        const operands o = make(&p.bench, counts[c / 4], true);
        const oracle_pairs doubled = doubles(&p.bench, &o);
        const oracle_size size = oracle_pkt_size(&doubled, eps);
        PARITY(&p, pkt, fmax(size.loss, size.d), (double)(counts[c / 4] + 1), name_of(c),
               .d = d_of(&o, c), .loss = &o.loss, .student = &o.student, .teacher = &o.teacher,
               .weight = weight_of(&o, c), .scale = &o.scale, .eps = eps);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}
