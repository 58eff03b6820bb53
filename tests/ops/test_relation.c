#include "oracle/relation.h"
#include "support/support.h"

#include <float.h>
#include <math.h>
#include <omp.h>

typedef struct relation_case {
    const char *name;
    int64_t heads, groups, d, teacher_groups, teacher_d;
    kd_relation relation; /* T 0: 1 */
    kd_dtype dtype, teacher_dtype;
    bool self;     /* b is a, and db is da */
    bool weighted; /* some rows of weight 0 among others */
    double size;   /* of the operands; 0: 1 */
} relation_case;

static const int32_t lengths[] = { 0, 1, 2, 63, 0, 64, 65, 130, 3, 70, 0 };
enum { DOCUMENTS = KD_COUNT(lengths), STRANGERS = 3, LONGEST = 130 }; /* rows before and after */

typedef struct operands {
    kd_tensor cu, a, b, teacher_a, teacher_b, lse, teacher_lse, weight, scale, loss, da, db;
} operands;

static float inverse_root(int64_t d) { return (float)(1 / sqrt((double)d)); }

static kd_relation relation_of(const relation_case *c)
{
    kd_relation r = c->relation;
    if (r.temperature == 0) r.temperature = 1;
    r.student.scale = inverse_root(c->d);
    r.teacher.scale = inverse_root(c->teacher_d);
    return r;
}

/* a and b as parts of one fused buffer, as a layer has them. */
static void make_pair(kd_tensor *a, kd_tensor *b, test_bench *bench, kd_dtype dtype, int64_t rows,
                      const int64_t dims[3], bool self, double size)
{
    const kd_tensor fused =
        test_tensor(bench, dtype, KD_SHAPE(rows, (dims[0] + dims[1]) * dims[2]), 3);
    *a = test_heads(&fused, 0, dims[0], dims[2]);
    *b = self ? *a : test_heads(&fused, dims[0], dims[1], dims[2]);
    test_fill(bench, &fused, -size, size);
}

static operands make_operands(test_bench *bench, const relation_case *c)
{
    operands x = { .cu = test_tensor(bench, KD_I32, KD_SHAPE(DOCUMENTS + 1), 0) };
    int32_t at = STRANGERS;
    for (int i = 0; i <= DOCUMENTS; at += i < DOCUMENTS ? lengths[i] : 0, i++)
        test_set(&x.cu, i, at);
    const int64_t n = at + STRANGERS;
    const double size = c->size > 0 ? c->size : 1;
    make_pair(&x.a, &x.b, bench, c->dtype, n, (int64_t[]){ c->heads, c->groups, c->d }, c->self,
              size);
    make_pair(&x.teacher_a, &x.teacher_b, bench, c->teacher_dtype, n,
              (int64_t[]){ c->heads, c->teacher_groups, c->teacher_d }, c->self, size);
    make_pair(&x.da, &x.db, bench, c->dtype, n, (int64_t[]){ c->heads, c->groups, c->d }, c->self,
              0.01);
    x.lse = test_tensor(bench, KD_F32, KD_SHAPE(c->heads, n), 7);
    x.teacher_lse = test_tensor(bench, KD_F32, KD_SHAPE(c->heads, n), 1);
    x.loss = test_tensor(bench, KD_F32, KD_SHAPE(n), 0);
    x.scale = test_filled(bench, KD_F32, KD_SHAPE(1), 0, 0.5, 0.6);
    if (c->weighted) {
        x.weight = test_filled(bench, KD_F32, KD_SHAPE(n), 0, 0, 2);
        for (int64_t row = 0; row < n; row += 3) test_set(&x.weight, row, 0);
    }
    return x;
}

static kd_status lse(kd_exec *exec, const relation_case *c, const operands *x)
{
    const kd_relation r = relation_of(c);
    KD_TRY(KD_RUN(exec, relation_lse, .lse = &x->lse, .a = &x->a, .b = &x->b, .cu = &x->cu,
                  .scores = r.student, .temperature = r.temperature, .causal = r.causal,
                  .window = r.window));
    return KD_RUN(exec, relation_lse, .lse = &x->teacher_lse, .a = &x->teacher_a,
                  .b = &x->teacher_b, .cu = &x->cu, .scores = r.teacher,
                  .temperature = r.temperature, .causal = r.causal, .window = r.window);
}

static kd_status relate(kd_exec *exec, const relation_case *c, const operands *x)
{
    const bool kl = c->relation.kind == KD_RELATION_KL;
    return KD_RUN(exec, relation, .loss = &x->loss, .da = &x->da, .db = &x->db, .a = &x->a,
                  .b = &x->b, .teacher_a = &x->teacher_a, .teacher_b = &x->teacher_b,
                  .lse = kl ? &x->lse : NULL, .teacher_lse = kl ? &x->teacher_lse : NULL,
                  .cu = &x->cu, .weight = &x->weight, .scale = &x->scale,
                  .relation = relation_of(c));
}

/* Runs on exactly the scratch that a plan over untouchable operands counts. */
static void run_planned(test_bench *bench, const relation_case *c, const operands *x,
                        kd_status (*run)(kd_exec *, const relation_case *, const operands *))
{
    kd_stack stack;
    kd_exec exec = test_planning(bench, &stack);
    operands fake = *x;
    kd_tensor *tensors[] = { &fake.cu,        &fake.a,           &fake.b,    &fake.teacher_a,
                             &fake.teacher_b, &fake.lse,         &fake.loss, &fake.da,
                             &fake.db,        &fake.teacher_lse, &fake.scale };
    for (int i = 0; i < KD_COUNT(tensors); i++) *tensors[i] = test_untouchable(tensors[i]);
    test_ok(run(&exec, c, &fake));
    const size_t capacity = bench->stack.capacity;
    cr_assert_leq(stack.peak, capacity, "scratch of %zu bytes", stack.peak);
    memset(bench->stack.base, 0xff, stack.peak);
    bench->stack.capacity = stack.peak;
    test_ok(run(&bench->exec, c, x));
    bench->stack.capacity = capacity;
}

static oracle_relation oracle_of(test_bench *bench, const relation_case *c, const operands *x)
{
    const kd_relation r = relation_of(c);
    const oracle_attention student = { .nq = x->a.shape[0],
                                       .nk = x->a.shape[0],
                                       .heads = c->heads,
                                       .groups = x->b.shape[1],
                                       .d = c->d,
                                       .documents = DOCUMENTS,
                                       .cu_q = x->cu.data,
                                       .cu_k = x->cu.data,
                                       .q = test_doubles(bench, &x->a),
                                       .k = test_doubles(bench, &x->b),
                                       .scale = (double)r.student.scale,
                                       .softcap = (double)r.student.softcap,
                                       .causal = r.causal,
                                       .window = r.window };
    oracle_attention teacher = student;
    teacher.groups = x->teacher_b.shape[1];
    teacher.d = c->teacher_d;
    teacher.q = test_doubles(bench, &x->teacher_a);
    teacher.k = test_doubles(bench, &x->teacher_b);
    teacher.scale = (double)r.teacher.scale;
    teacher.softcap = (double)r.teacher.softcap;
    const double t = (double)r.temperature;
    return (oracle_relation){ .student = student,
                              .teacher = teacher,
                              .mse = r.kind == KD_RELATION_MSE,
                              .temperature = t,
                              .factor = r.t_squared ? t * t : 1,
                              .floor = (double)r.floor,
                              .pairs = r.pairs,
                              .weight = c->weighted ? test_doubles(bench, &x->weight) : NULL };
}

static void check(test_bench *bench, const relation_case *c)
{
    const int mark = test_mark(bench);
    const operands x = make_operands(bench, c);
    const oracle_relation r = oracle_of(bench, c, &x);
    const int64_t n = r.student.nq, of_a = n * c->heads * c->d, of_b = n * x.b.shape[1] * c->d;
    double *loss = test_zeros(bench, n), *da = test_zeros(bench, of_a),
           *db = test_zeros(bench, of_b), *lses = test_zeros(bench, n * c->heads);
    const double *da_before = test_doubles(bench, &x.da), *db_before = test_doubles(bench, &x.db);
    /* Scores have a standard deviation of size^2 / 3; a squared difference, twice their square. */
    const double size = c->size > 0 ? c->size : 1;
    const double scale = size * size * (r.mse ? size * size : 1) * r.factor;
    const double length = (double)(kd_max_i64(c->d, c->teacher_d) + LONGEST * c->heads / c->groups);

    run_planned(bench, c, &x, lse);
    oracle_relation_lse(lses, &r, false);
    test_near(&x.lse, lses, size * size, length, "%s: lse", c->name);
    oracle_relation_lse(lses, &r, true);
    test_near(&x.teacher_lse, lses, size * size, length, "%s: teacher_lse", c->name);

    run_planned(bench, c, &x, relate);
    oracle_relation_loss(loss, da, db, &r);
    test_near(&x.loss, loss, scale, length, "%s: loss", c->name);
    const double factor = test_get(&x.scale, 0);
    for (int64_t i = 0; i < of_a; i++) da[i] = da_before[i] + factor * da[i];
    for (int64_t i = 0; i < of_b; i++) db[i] = (c->self ? da[i] : db_before[i]) + factor * db[i];
    for (int64_t i = 0; i < of_b; i++) {
        /* One tensor for both is rounded in between. */
        const double before = c->self && c->dtype == KD_BF16 ? fabs(da[i]) * 0x1p-8 : 0;
        test_near_value(test_get(&x.db, i), db[i], c->dtype, 1,
                        scale + before / FLT_EPSILON / sqrt(length), length, "%s: db[%lld]",
                        c->name, (long long)i);
    }
    if (!c->self) test_near(&x.da, da, scale, length, "%s: da", c->name);
    test_release(bench, mark);
}

#define KL  .relation.kind = KD_RELATION_KL
#define MSE .relation.kind = KD_RELATION_MSE
#define SIZES(r, rb, width, rtb, teacher_width)                                                    \
    .heads = r, .groups = rb, .d = width, .teacher_groups = rtb, .teacher_d = teacher_width

static const relation_case cases[] = {
    { "causal", SIZES(3, 3, 64, 3, 64), KL, .relation.causal = true },
    { "both ways", SIZES(2, 2, 64, 2, 48), KL },
    { "one key head", SIZES(6, 1, 16, 3, 24), KL, .relation.causal = true, .weighted = true },
    { "teacher grouped", SIZES(6, 3, 16, 2, 5), KL, .relation.causal = true },
    { "self", SIZES(4, 4, 33, 4, 70), KL, .self = true },
    { "self, weighted", SIZES(2, 2, 32, 2, 64), KL, .self = true, .weighted = true },
    { "head size 1", SIZES(2, 2, 1, 1, 256), KL, .relation.causal = true },
    { "head size 256", SIZES(2, 1, 256, 1, 1), KL, .relation.causal = true },
    { "window 5", SIZES(2, 1, 8, 2, 8), KL, .relation.causal = true, .relation.window = 5 },
    { "window 90", SIZES(2, 1, 8, 2, 8), KL, .relation.window = 90 },
    { "softcap, T 2", SIZES(2, 1, 32, 2, 40), KL, .relation.student.softcap = 1.5f,
      .relation.temperature = 2, .relation.t_squared = true, .size = 2 },
    { "softcap of the teacher", SIZES(2, 1, 32, 2, 40), KL, .relation.teacher.softcap = 1.5f },
    { "peaked", SIZES(2, 1, 64, 1, 64), KL, .relation.causal = true, .size = 8 },
    { "scores", SIZES(3, 1, 40, 3, 24), MSE, .relation.causal = true, .weighted = true },
    { "scores both ways", SIZES(2, 2, 40, 1, 64), MSE, .size = 2 },
    { "scores, softcap, T", SIZES(2, 2, 9, 1, 64), MSE, .relation.student.softcap = 1,
      .relation.temperature = 0.5f },
    { "scores of values", SIZES(2, 2, 9, 2, 64), MSE, .self = true },
    { "scores, floor", SIZES(2, 2, 16, 2, 8), MSE, .relation.floor = -0.5f, .size = 2 },
    { "scores, pairs", SIZES(2, 2, 16, 2, 8), MSE, .relation.pairs = 128 },
};

Test(relation, agrees_with_double)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    for (int types = 0; types < 4; types++)
        for (int i = 0; i < KD_COUNT(cases); i++) {
            relation_case c = cases[i];
            c.dtype = types & 1 ? KD_BF16 : KD_F32;
            c.teacher_dtype = types & 2 ? KD_BF16 : KD_F32;
            check(&bench, &c);
        }
    test_close(&bench);
}

/* ---- the oracle itself ------------------------------------------------------------------------ */

typedef struct scalar_loss {
    const oracle_relation *r;
    double *loss;
} scalar_loss;

static double total(void *context)
{
    scalar_loss *s = context;
    oracle_relation_loss(s->loss, NULL, NULL, s->r);
    double sum = 0;
    for (int64_t i = 0; i < s->r->student.nq; i++) sum += s->loss[i];
    return sum;
}

Test(relation, oracle_gradient_is_that_of_its_value)
{
    static const int32_t cu[] = { 0, 3, 3, 8 };
    enum { N = 9, R = 4, G = 2, D = 3, DT = 2 };
    double a[N * R * D], b[N * G * D], ta[N * R * DT], tb[N * R * DT], weight[N], loss[N],
        da[N * R * D], db[N * G * D];
    for (int form = 0; form < 16; form++) {
        test_bench random = { .seed = 3 + (uint64_t)form };
        for (int i = 0; i < N * R * D; i++) a[i] = 4 * test_uniform(&random) - 2;
        for (int i = 0; i < N * G * D; i++) b[i] = 4 * test_uniform(&random) - 2;
        for (int i = 0; i < N * R * DT; i++) ta[i] = 4 * test_uniform(&random) - 2;
        for (int i = 0; i < N * R * DT; i++) tb[i] = 4 * test_uniform(&random) - 2;
        for (int i = 0; i < N; i++) weight[i] = i % 4;
        const oracle_attention student = { .nq = N,
                                           .nk = N,
                                           .heads = R,
                                           .groups = G,
                                           .d = D,
                                           .documents = 3,
                                           .cu_q = cu,
                                           .cu_k = cu,
                                           .q = a,
                                           .k = b,
                                           .scale = 0.7,
                                           .softcap = form & 1 ? 1.3 : 0,
                                           .causal = form & 2,
                                           .window = form & 4 ? 2 : 0 };
        oracle_attention teacher = student;
        teacher.q = ta, teacher.k = tb, teacher.d = DT, teacher.groups = R;
        const oracle_relation r = { .student = student,
                                    .teacher = teacher,
                                    .mse = form & 8,
                                    .temperature = form & 4 ? 1.5 : 1,
                                    .factor = 2,
                                    .floor = form & 1 ? -0.3 : 0,
                                    .weight = form & 2 ? weight : NULL };
        scalar_loss s = { &r, loss };
        oracle_relation_loss(loss, da, db, &r);
        test_gradient(total, &s, a, N * R * D, da, "form %d: a", form);
        test_gradient(total, &s, b, N * G * D, db, "form %d: b", form);
    }
}

/* ---- promises --------------------------------------------------------------------------------- */

Test(relation, bits_do_not_depend_on_threads)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    const relation_case c = { "threads", SIZES(6, 2, 32, 3, 16), KL, .relation.causal = true };
    const operands first = make_operands(&bench, &c);
    test_ok(lse(&bench.exec, &c, &first));
    operands x[3] = { first, first, first };
    for (int i = 0; i < 3; i++) {
        omp_set_num_threads(2 * i + 1);
        x[i].loss = test_tensor(&bench, KD_F32, kd_shape_of(&first.loss), 0);
        x[i].da = test_filled(&bench, KD_F32, kd_shape_of(&first.da), 0, 1, 1);
        x[i].db = test_filled(&bench, KD_F32, kd_shape_of(&first.db), 0, 1, 1);
        test_ok(relate(&bench.exec, &c, &x[i]));
        test_same_bits(&x[0].loss, &x[i].loss, "loss, %d threads", 2 * i + 1);
        test_same_bits(&x[0].da, &x[i].da, "da, %d threads", 2 * i + 1);
        test_same_bits(&x[0].db, &x[i].db, "db, %d threads", 2 * i + 1);
    }
    test_close(&bench);
}

/* Exactly zero, and the gradients stay what they were. */
Test(relation, of_a_teacher_to_itself_is_nothing)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    for (int form = 0; form < 4; form++) {
        const int mark = test_mark(&bench);
        const relation_case c = { "twin",
                                  SIZES(2, 1, 32, 1, 32),
                                  .relation.kind = form & 1 ? KD_RELATION_MSE : KD_RELATION_KL,
                                  .relation.causal = form & 2,
                                  .dtype = form & 2 ? KD_BF16 : KD_F32,
                                  .teacher_dtype = form & 2 ? KD_BF16 : KD_F32 };
        operands x = make_operands(&bench, &c);
        x.teacher_a = x.a, x.teacher_b = x.b;
        test_fill_constant(&x.da, 0.25);
        test_fill_constant(&x.db, 0.25);
        test_ok(lse(&bench.exec, &c, &x));
        test_ok(relate(&bench.exec, &c, &x));
        const kd_tensor *all[] = { &x.loss, &x.da, &x.db };
        for (int t = 0; t < 3; t++)
            for (int64_t i = 0; i < kd_tensor_elements(all[t]); i++)
                cr_assert_eq(test_get(all[t], i), t ? 0.25 : 0, "form %d: %d[%lld] is %g", form, t,
                             (long long)i, test_get(all[t], i));
        test_release(&bench, mark);
    }
    test_close(&bench);
}

/* What is not wanted is not asked for; NaN in a row of weight 0 is nobody's but its keys'. */
Test(relation, value_only_and_rows_left_out)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    const relation_case c = { "rows", SIZES(2, 2, 8, 2, 8), KL, .relation.causal = true,
                              .weighted = true };
    operands x = make_operands(&bench, &c);
    test_ok(lse(&bench.exec, &c, &x));
    test_ok(relate(&bench.exec, &c, &x));
    operands value = x;
    value.da = value.db = value.scale = (kd_tensor){ 0 };
    value.loss = test_tensor(&bench, KD_F32, kd_shape_of(&x.loss), 0);
    test_ok(relate(&bench.exec, &c, &value));
    test_same_bits(&x.loss, &value.loss, "loss");

    for (int64_t row = 0; row < x.a.shape[0]; row += 3) {
        for (int64_t i = 0; i < c.heads * c.d; i++) test_set(&x.a, row * c.heads * c.d + i, NAN);
        for (int64_t h = 0; h < c.heads; h++) test_set(&x.lse, h * x.a.shape[0] + row, NAN);
    }
    test_ok(relate(&bench.exec, &c, &x));
    test_same_bits(&value.loss, &x.loss, "loss with NaN");
    for (int64_t i = 0; i < kd_tensor_elements(&x.da); i++)
        cr_assert(isfinite(test_get(&x.da, i)), "da[%lld]", (long long)i);
    test_close(&bench);
}

Test(relation, refuses)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    const relation_case c = { "refused", SIZES(4, 2, 8, 4, 6), KL };
    const operands x = make_operands(&bench, &c);
    operands bad = x;
    bad.b = kd_tensor_slice(&x.a, 1, 0, 3);
    test_refused(relate(&bench.exec, &c, &bad), KD_EINVAL, "a has 4 heads, no multiple of the 3");
    bad = x;
    bad.teacher_a = kd_tensor_slice(&x.teacher_a, 1, 0, 2);
    bad.teacher_b = kd_tensor_slice(&x.teacher_b, 1, 0, 2);
    test_refused(relate(&bench.exec, &c, &bad), KD_EINVAL, "teacher_a: found");
    bad = x;
    bad.db = x.a;
    test_refused(relate(&bench.exec, &c, &bad), KD_EINVAL, "db: found");
    bad = x;
    bad.scale = (kd_tensor){ 0 };
    test_refused(relate(&bench.exec, &c, &bad), KD_EINVAL, "scale: absent");
    bad = x;
    bad.teacher_lse = kd_tensor_slice(&x.lse, 1, 0, 5);
    test_refused(relate(&bench.exec, &c, &bad), KD_EINVAL, "teacher_lse: found");
    relation_case hot = c;
    hot.relation.temperature = -1;
    test_refused(relate(&bench.exec, &hot, &x), KD_EINVAL, "temperature -1");
    test_refused(lse(&bench.exec, &hot, &x), KD_EINVAL, "temperature -1");
    hot = c;
    hot.relation.kind = KD_RELATION_COUNT;
    test_refused(relate(&bench.exec, &hot, &x), KD_EINVAL, "relation 2");
    test_set(&x.cu, 4, 100000);
    test_refused(relate(&bench.exec, &c, &x), KD_EINVAL, "is 100000");
    test_close(&bench);
}
