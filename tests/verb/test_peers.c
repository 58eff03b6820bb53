/*
 * The table of src/loss/README.md: what it says to set gives the number and the gradient of another
 * system's definition, as tests/golden/make_peers.py restates it.
 */
#include "format/format.h"
#include "support/support.h"

#include <float.h>
#include <kd/loss.h>
#include <math.h>

enum { ROWS = 6, CLASSES = 13, K = 4, MOST_TERMS = 2 };

typedef struct term {
    const char *loss;
    double weight, temperature;
    bool t_squared;
    double option; /* NaN: its default */
    enum { DENSE, TAIL, RENORMALISED, GATHERED, STANDARDISED } teacher;
} term;

typedef struct line {
    const char *name;
    term terms[MOST_TERMS];
} line;

#define DEFAULT NAN

static const line lines[] = {
    { "trl_gkd", { { "jsd", 1, 1, false, 0.5, DENSE } } },
    { "trl_distillation", { { "jsd", 1, 1, false, 1, DENSE } } },
    { "trl_server", { { "kl", 1, 1, false, DEFAULT, TAIL } } },
    { "distillkit", { { "ce", 0.5, 1, true, 0, DENSE }, { "kl", 0.5, 2, true, DEFAULT, DENSE } } },
    { "distillkit_sparse", { { "kl", 1, 2, true, DEFAULT, RENORMALISED } } },
    { "torchtune_forward",
      { { "ce", 0.5, 1, true, 0, DENSE },
        { "soft_cross_entropy", 0.5, 1, true, DEFAULT, DENSE } } },
    { "torchtune_reverse",
      { { "ce", 0.5, 1, true, 0, DENSE }, { "reverse_kl", 0.5, 1, true, DEFAULT, DENSE } } },
    { "distilbert", { { "kl", 5, 2, true, DEFAULT, DENSE }, { "ce", 2, 1, true, 0, DENSE } } },
    { "distilbert_mse", { { "logit_mse", CLASSES, 1, true, DEFAULT, DENSE } } },
    { "torchdistill_kd",
      { { "ce", 0.5, 1, true, 0, DENSE }, { "kl", 0.5, 4, true, DEFAULT, DENSE } } },
    { "torchdistill_standardised", { { "kl", 1, 2, true, DEFAULT, STANDARDISED } } },
    { "liger_jsd", { { "ce", 0.5, 1, true, 0, DENSE }, { "jsd", 0.5, 2, false, 0.5, DENSE } } },
    { "modelopt_logits", { { "kl", 1.0 / CLASSES, 2, true, DEFAULT, DENSE } } },
    { "modelopt_trainer", { { "kl", 1, 2, true, DEFAULT, DENSE } } },
    { "modelopt_megatron", { { "kl", 1, 2, false, DEFAULT, DENSE } } },
    { "modelopt_megatron_topk", { { "kl", 1, 2, false, DEFAULT, GATHERED } } },
    { "automodel", { { "ce", 0.5, 1, true, 0, DENSE }, { "kl", 0.5, 2, true, DEFAULT, DENSE } } },
    { "axolotl",
      { { "ce", 0.1, 1, true, 0, DENSE }, { "kl", 0.9, 2, false, DEFAULT, RENORMALISED } } },
    { "textbrewer", { { "soft_cross_entropy", 1, 4, false, DEFAULT, DENSE } } },
    { "tinybert", { { "soft_cross_entropy", 1.0 / CLASSES, 1, true, DEFAULT, DENSE } } },
    { "deit_hard",
      { { "ce", 0.5, 1, true, 0, DENSE }, { "hard_distillation", 0.5, 1, true, DEFAULT, DENSE } } },
    { "deit_soft",
      { { "ce", 0.5, 1, true, 0, DENSE }, { "kl", 0.5 / CLASSES, 3, true, DEFAULT, DENSE } } },
    { "mdistiller_dkd", { { "ce", 1, 1, true, 0, DENSE }, { "dkd", 1, 4, true, 1, DENSE } } },
};

typedef struct golden {
    test_bench *bench;
    kd_st_file *file;
    kd_tensor student, teacher, labels, ids, log_p;
    int valid;
} golden;

static kd_tensor read_tensor(const golden *g, const char *name, kd_dtype dtype, kd_shape shape)
{
    const kd_st_entry *entry = kd_st_find(g->file, name);
    const kd_tensor t = test_tensor(g->bench, dtype, shape, 0);
    cr_assert(entry, "no tensor \"%s\" in the golden file", name);
    test_ok(kd_st_read(t.data, dtype, g->file, entry, 0, kd_tensor_elements(&t)));
    return t;
}

static kd_tensor copy_of(const golden *g, const kd_tensor *t)
{
    const kd_tensor copy = test_tensor(g->bench, t->dtype, kd_shape_of(t), 0);
    memcpy(copy.data, t->data, kd_tensor_bytes(t));
    return copy;
}

/* The known classes' columns of [ROWS, CLASSES]. */
static kd_tensor gathered(const golden *g, const kd_tensor *from)
{
    const kd_tensor t = test_tensor(g->bench, KD_F32, KD_SHAPE(ROWS, K), 0);
    for (int i = 0; i < ROWS * K; i++)
        test_set(&t, i, test_get(from, i / K * CLASSES + (int64_t)test_get(&g->ids, i)));
    return t;
}

/* Adds a term's share to the loss and its gradient. */
static void add_term(const golden *g, const term *t, double *loss, double gradient[ROWS * CLASSES])
{
    kd_loss_info info;
    int number;
    test_ok(kd_loss_find(&number, t->loss));
    test_ok(kd_loss_describe(&info, number));
    const bool known = t->teacher == TAIL || t->teacher == RENORMALISED;
    const kd_loss_options options = {
        .temperature = t->temperature,
        .t_squared = t->t_squared,
        .option = isnan(t->option) ? info.option_default : t->option,
        .option2 = info.option2_default,
        .standardise = t->teacher == STANDARDISED,
        .topk = t->teacher == RENORMALISED ? KD_LOSS_RENORMALISED : KD_LOSS_TAIL,
    };
    kd_loss_tensors tensors = { .student = copy_of(g, &g->student),
                                .loss = test_tensor(g->bench, KD_F32, KD_SHAPE(ROWS), 0),
                                .labels = g->labels };
    if (known) {
        tensors.teacher_ids = g->ids;
        tensors.teacher_log_p = g->log_p;
    } else if (t->teacher == GATHERED) { /* the labels say only which rows count */
        tensors.student = gathered(g, &g->student);
        tensors.teacher = gathered(g, &g->teacher);
        tensors.labels = test_tensor(g->bench, KD_I32, KD_SHAPE(ROWS), 0);
        for (int n = 0; n < ROWS; n++)
            test_set(&tensors.labels, n, test_get(&g->labels, n) < 0 ? -1.0 : 0.0);
    } else {
        tensors.teacher = g->teacher;
    }
    test_ok(kd_loss_apply(number, &tensors, &options));
    const double share = t->weight / g->valid;
    for (int n = 0; n < ROWS; n++) *loss += share * test_get(&tensors.loss, n);
    const int64_t columns = tensors.student.shape[1];
    for (int64_t i = 0; i < ROWS * columns; i++) {
        const int64_t j = t->teacher == GATHERED ? (int64_t)test_get(&g->ids, i) : i % columns;
        gradient[i / columns * CLASSES + j] += share * test_get(&tensors.student, i);
    }
}

Test(peers, are_reproduced_by_what_the_table_sets)
{
    test_bench b;
    golden g = { .bench = &b };
    test_open(&b, 1 << 20);
    test_ok(kd_st_open(&g.file, KD_GOLDEN "/peers.safetensors"));
    g.student = read_tensor(&g, "student", KD_F32, KD_SHAPE(ROWS, CLASSES));
    g.teacher = read_tensor(&g, "teacher", KD_F32, KD_SHAPE(ROWS, CLASSES));
    g.labels = read_tensor(&g, "labels", KD_I32, KD_SHAPE(ROWS));
    g.ids = read_tensor(&g, "ids", KD_I32, KD_SHAPE(ROWS, K));
    g.log_p = read_tensor(&g, "log_p", KD_F32, KD_SHAPE(ROWS, K));
    for (int n = 0; n < ROWS; n++) {
        g.valid += test_get(&g.labels, n) >= 0;
        if (test_get(&g.labels, n) < 0) test_set(&g.labels, n, -1.0);
    }
    for (int i = 0; i < KD_COUNT(lines); i++) {
        const int mark = test_mark(&b);
        double loss = 0.0, gradient[ROWS * CLASSES] = { 0.0 }, size = 1.0;
        char name[64];
        for (int k = 0; k < MOST_TERMS && lines[i].terms[k].loss; k++) {
            const term *t = &lines[i].terms[k];
            size += t->weight * (t->t_squared ? t->temperature * t->temperature : 1.0) * 8.0;
            add_term(&g, t, &loss, gradient);
        }
        snprintf(name, sizeof name, "%s.loss", lines[i].name);
        const kd_tensor want = read_tensor(&g, name, KD_F32, KD_SHAPE(1));
        snprintf(name, sizeof name, "%s.gradient", lines[i].name);
        const kd_tensor d = read_tensor(&g, name, KD_F32, KD_SHAPE(ROWS, CLASSES));
        const double allowed = 16.0 * (double)FLT_EPSILON * size;
        cr_assert(fabs(loss - test_get(&want, 0)) <= allowed, "%s: %.9g, theirs %.9g +- %.2g",
                  lines[i].name, loss, test_get(&want, 0), allowed);
        for (int j = 0; j < ROWS * CLASSES; j++)
            cr_assert(fabs(gradient[j] - test_get(&d, j)) <= allowed,
                      "%s: gradient[%d] %.9g, theirs %.9g +- %.2g", lines[i].name, j, gradient[j],
                      test_get(&d, j), allowed);
        test_release(&b, mark);
    }
    kd_st_close(g.file);
    test_close(&b);
}
