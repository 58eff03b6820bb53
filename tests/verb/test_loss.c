/*
 * The losses for users: every one against its formula in double, with the options wired to the right
 * place; from file to file the same bits as in memory, over a chunk's border; refusals.
 */
#include "format/format.h"
#include "oracle/rows.h"
#include "support/support.h"

#include <float.h>
#include <kd/loss.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- against the formulas --------------------------------------------------------------------- */

enum { ROWS = 5, CLASSES = 19, COLUMNS = 23, TEACHER_COLUMNS = 21, IGNORED = 3 };

typedef struct rows_case {
    int loss;
    kd_loss_info info;
    kd_loss_options options;
    kd_loss_tensors t;
    double student[ROWS][COLUMNS], teacher[ROWS][TEACHER_COLUMNS];
    bool weighted;
} rows_case;

static void make_case(rows_case *c, test_bench *b, int loss, kd_dtype dtype, bool weighted)
{
    c->loss = loss;
    c->weighted = weighted;
    test_ok(kd_loss_describe(&c->info, loss));
    c->options = (kd_loss_options){ .temperature = weighted ? 2.5 : 0.0,
                                    .t_squared = weighted,
                                    .option = c->info.option_default,
                                    .classes = weighted ? CLASSES : 0 };
    c->t = (kd_loss_tensors){ .student = test_filled(b, dtype, KD_SHAPE(ROWS, COLUMNS), 3, -4, 4),
                              .teacher =
                                  test_filled(b, dtype, KD_SHAPE(ROWS, TEACHER_COLUMNS), 1, -4, 4),
                              .loss = test_tensor(b, KD_F32, KD_SHAPE(ROWS), 0),
                              .labels = test_tensor(b, KD_I32, KD_SHAPE(ROWS), 0) };
    if (weighted) c->t.weight = test_filled(b, KD_F32, KD_SHAPE(ROWS), 0, 0.5, 2);
    for (int n = 0; n < ROWS; n++) {
        test_set(&c->t.labels, n, n == IGNORED ? -1 : 3 * n + 1);
        for (int v = 0; v < COLUMNS; v++)
            c->student[n][v] = test_get(&c->t.student, n * COLUMNS + v);
        for (int v = 0; v < TEACHER_COLUMNS; v++)
            c->teacher[n][v] = test_get(&c->t.teacher, n * TEACHER_COLUMNS + v);
    }
}

static double tolerance(double got, double want, double condition, kd_dtype dtype)
{
    const double rounding = dtype == KD_BF16 ? ldexp(1.0, -8) * fabs(want) : 0.0;
    return FLT_EPSILON * condition + rounding + 4 * FLT_EPSILON * (fabs(got) + fabs(want));
}

static void check_row(const rows_case *c, int n, int64_t classes)
{
    const double temperature = c->weighted ? 2.5 : 1.0;
    const oracle_row row = { .kind = (kd_row_kind)c->loss,
                             .classes = classes,
                             .student = c->student[n],
                             .teacher = c->info.teacher ? c->teacher[n] : NULL,
                             .label = 3 * n + 1,
                             .temperature = temperature,
                             .option = c->info.option_default };
    const double factor =
        n == IGNORED ? 0.0
                     : (c->weighted ? temperature * temperature * test_get(&c->t.weight, n) : 1.0);
    double gradient[COLUMNS] = { 0 }, value_condition, condition[COLUMNS] = { 0 };
    oracle_row_gradient(gradient, &row);
    oracle_row_condition(&value_condition, condition, &row);
    const double want = factor * oracle_row_value(&row), got = test_get(&c->t.loss, n);
    cr_expect(fabs(got - want) <= tolerance(got, want, factor * value_condition, KD_F32),
              "%s, row %d, weighted %d: loss %.9g, expected %.9g", c->info.name, n, c->weighted,
              got, want);
    for (int v = 0; v < COLUMNS; v++) {
        const double g = test_get(&c->t.student, n * COLUMNS + v), w = factor * gradient[v];
        cr_expect(fabs(g - w) <= tolerance(g, w, factor * condition[v], c->t.student.dtype),
                  "%s, row %d, column %d, weighted %d: gradient %.9g, expected %.9g", c->info.name,
                  n, v, c->weighted, g, w);
    }
}

Test(loss, agrees_with_the_formulas_whatever_the_options)
{
    test_bench b;
    test_open(&b, 1 << 10);
    for (int loss = 0; loss < kd_loss_count(); loss++) {
        for (int way = 0; way < 4; way++) {
            const int mark = test_mark(&b);
            rows_case c;
            make_case(&c, &b, loss, way & 1 ? KD_BF16 : KD_F32, way & 2);
            int64_t classes = CLASSES;
            if (!c.weighted) classes = c.info.teacher ? TEACHER_COLUMNS : COLUMNS;
            test_ok(kd_loss_apply(loss, &c.t, &c.options));
            for (int n = 0; n < ROWS; n++) check_row(&c, n, classes);
            test_release(&b, mark);
        }
    }
    test_close(&b);
}

Test(loss, is_found_by_its_names_and_refuses_what_does_not_fit)
{
    test_bench b;
    rows_case c;
    int loss, kl;
    kd_loss_info info;
    test_open(&b, 1 << 10);
    test_ok(kd_loss_find(&kl, "kl"));
    test_ok(kd_loss_find(&loss, "forward_kl"));
    cr_assert_eq(loss, kl);
    test_refused(kd_loss_find(&loss, "jsdd"), KD_EINVAL, "nearest: jsd");
    test_refused(kd_loss_find(&loss, "kll"), KD_EINVAL, "nearest: kl");
    test_refused(kd_loss_describe(&info, kd_loss_count()), KD_EINVAL, "loss number");
    test_refused(kd_loss_describe(&info, -1), KD_EINVAL, "loss number");

    test_ok(kd_loss_find(&loss, "jsd"));
    make_case(&c, &b, loss, KD_F32, false);
    c.options.option = 1.5;
    test_refused(kd_loss_apply(loss, &c.t, &c.options), KD_EINVAL, "beta is 1.5; expected 0 to 1");
    c.options.option = NAN;
    test_refused(kd_loss_apply(loss, &c.t, &c.options), KD_EINVAL, "beta is nan");
    c.options.option = 0.5;
    c.options.temperature = -1.0;
    test_refused(kd_loss_apply(loss, &c.t, &c.options), KD_EINVAL, "temperature is -1");
    c.options.temperature = 1.0;
    c.options.classes = COLUMNS + 1;
    test_refused(kd_loss_apply(loss, &c.t, &c.options), KD_EINVAL, "columns for");
    c.options.classes = 0;
    c.t.teacher = (kd_tensor){ 0 };
    test_refused(kd_loss_apply(loss, &c.t, &c.options), KD_EINVAL, "jsd needs a teacher");
    test_ok(kd_loss_find(&loss, "ce"));
    test_set(&c.t.labels, 0, COLUMNS);
    test_refused(kd_loss_apply(loss, &c.t, &c.options), KD_EINVAL, "row 0: label 23");
    c.t.labels = (kd_tensor){ 0 };
    test_refused(kd_loss_apply(loss, &c.t, &c.options), KD_EINVAL, "needs labels");
    test_close(&b);
}

/* ---- from file to file ------------------------------------------------------------------------ */

/* More than the 8 MiB of logits that one chunk takes. */
enum { FILE_ROWS = 9, FILE_COLUMNS = 300007, TEACHER_FILE_COLUMNS = 300000 };

static char dir[] = "/tmp/kd-verb-XXXXXX";

static const char *path_of(char *path, const char *name)
{
    snprintf(path, 128, "%s/%s", dir, name);
    return path;
}

static void write_tensor(kd_st_writer *w, const char *name, const kd_tensor *t)
{
    test_ok(kd_st_writer_write(w, name, t->data, kd_tensor_bytes(t)));
}

typedef struct file_tensors {
    kd_tensor student, teacher, labels, weight; /* as the file has them */
} file_tensors;

static void write_case(const char *path, const file_tensors *f)
{
    const kd_tensor *const all[] = { &f->student, &f->teacher, &f->labels, &f->weight };
    static const char *const names[] = { "student", "teacher", "labels", "weight" };
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, path));
    for (int i = 0; i < KD_COUNT(all); i++)
        if (kd_present(all[i]))
            test_ok(kd_st_writer_declare(w, names[i], all[i]->dtype, all[i]->rank, all[i]->shape));
    test_ok(kd_st_writer_begin(w));
    for (int i = 0; i < KD_COUNT(all); i++)
        if (kd_present(all[i])) write_tensor(w, names[i], all[i]);
    test_ok(kd_st_writer_close(w));
}

static kd_tensor widened(test_bench *b, const kd_tensor *from)
{
    kd_tensor to = test_tensor(b, KD_F32, kd_shape_of(from), 0);
    test_ok(kd_convert(to.data, KD_F32, from->data, from->dtype, kd_tensor_elements(from)));
    return to;
}

static kd_tensor read_back(test_bench *b, const kd_st_file *file, const char *name)
{
    const kd_st_entry *e = kd_st_find(file, name);
    cr_assert(e && e->dtype == KD_F32, "%s", name);
    kd_tensor t = test_tensor(
        b, KD_F32, (kd_shape){ e->rank, { e->shape[0], e->rank > 1 ? e->shape[1] : 0 } }, 0);
    test_ok(kd_st_read(t.data, KD_F32, file, e, 0, e->elements));
    return t;
}

Test(loss, from_file_to_file_has_the_bits_of_rows_in_memory)
{
    test_bench b;
    char in[128], out[128];
    kd_st_file *file;
    int loss;
    cr_assert(mkdtemp(dir));
    test_open(&b, 1 << 10);
    file_tensors f = {
        .student = test_filled(&b, KD_BF16, KD_SHAPE(FILE_ROWS, FILE_COLUMNS), 0, -9, 9),
        .teacher = test_filled(&b, KD_F32, KD_SHAPE(FILE_ROWS, TEACHER_FILE_COLUMNS), 0, -9, 9),
        .labels = test_tensor(&b, KD_I64, KD_SHAPE(FILE_ROWS), 0),
        .weight = test_filled(&b, KD_F32, KD_SHAPE(FILE_ROWS), 0, 0.1, 3)
    };
    kd_loss_tensors t = { .student = widened(&b, &f.student),
                          .teacher = f.teacher,
                          .loss = test_tensor(&b, KD_F32, KD_SHAPE(FILE_ROWS), 0),
                          .labels = test_tensor(&b, KD_I32, KD_SHAPE(FILE_ROWS), 0),
                          .weight = f.weight };
    for (int n = 0; n < FILE_ROWS; n++) {
        test_set(&f.labels, n, n == 2 ? -100 : n == 7 ? -1 : 1000 * n);
        test_set(&t.labels, n, n == 2 || n == 7 ? -1 : 1000 * n);
    }
    const kd_loss_options options = { .temperature = 2.0, .t_squared = true };
    test_ok(kd_loss_find(&loss, "kl"));
    write_case(path_of(in, "in"), &f);
    test_ok(kd_loss_file(loss, in, path_of(out, "out"), &options));
    test_ok(kd_loss_apply(loss, &t, &options));
    test_ok(kd_st_open(&file, out));
    cr_assert_eq(file->count, 2);
    const kd_tensor got_loss = read_back(&b, file, "loss");
    const kd_tensor got_gradient = read_back(&b, file, "d_student");
    kd_st_close(file);
    test_same_bits(&got_loss, &t.loss, "loss");
    test_same_bits(&got_gradient, &t.student, "d_student");
    test_close(&b);
    test_ok(kd_dir_remove(dir));
}

Test(loss, names_what_is_wrong_with_a_file)
{
    test_bench b;
    char in[128], out[128];
    cr_assert(mkdtemp(dir));
    test_open(&b, 1 << 10);
    const kd_tensor logits = test_filled(&b, KD_F32, KD_SHAPE(4, 7), 0, -1, 1);
    const kd_tensor short_logits = test_filled(&b, KD_F32, KD_SHAPE(3, 7), 0, -1, 1);
    const kd_tensor row = test_filled(&b, KD_F32, KD_SHAPE(4), 0, 1, 2);
    const kd_tensor labels = test_filled(&b, KD_I64, KD_SHAPE(4), 0, 0, 7);
    const kd_tensor short_labels = test_filled(&b, KD_U8, KD_SHAPE(3), 0, 0, 7);
    const kd_tensor wide = test_filled(&b, KD_I64, KD_SHAPE(4), 0, 0, 7);
    test_set(&wide, 2, 5e9);
    const struct {
        const char *loss, *text;
        file_tensors f;
        kd_status status;
    } cases[] = {
        { "kl", "no tensor \"student\"", { .teacher = logits }, KD_EFORMAT },
        { "kl", "no tensor \"teacher\", which forward_kl", { .student = logits }, KD_EFORMAT },
        { "kl", "teacher has 3 rows", { .student = logits, .teacher = short_logits }, KD_EFORMAT },
        { "z_loss", "student is F32 of rank 1", { .student = row }, KD_EFORMAT },
        { "ce", "no tensor \"labels\"", { .student = logits }, KD_EFORMAT },
        { "ce", "labels is F32 of rank 1", { .student = logits, .labels = row }, KD_EFORMAT },
        { "ce", "labels has 3 rows", { .student = logits, .labels = short_labels }, KD_EFORMAT },
        { "ce",
          "): found 5000000000, expected -2147483648 to 2147483647",
          { .student = logits, .labels = wide },
          KD_EFORMAT },
        { "ce",
          "weight is I64",
          { .student = logits, .labels = labels, .weight = labels },
          KD_EFORMAT },
        { "z_loss", "out/none", { .student = logits }, KD_EIO },
    };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const kd_loss_options options = { 0 };
        int loss;
        write_case(path_of(in, "in"), &cases[i].f);
        path_of(out, cases[i].status == KD_EIO ? "out/none" : "out");
        test_ok(kd_loss_find(&loss, cases[i].loss));
        test_refused(kd_loss_file(loss, in, out, &options), cases[i].status, cases[i].text);
        cr_expect(!kd_file_exists(out), "case %d left a file", i);
    }
    test_close(&b);
    test_ok(kd_dir_remove(dir));
}
