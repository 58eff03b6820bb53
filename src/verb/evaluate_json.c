/* An evaluation as JSON: what `kd eval` prints and `kd report` reads. */
#include "train/train.h"

#include <math.h>

/* JSON has no NaN. */
static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *measure(kd_measure m)
{
    return json_pack("{s:o, s:o}", "mean", number(m.mean), "error", number(m.error));
}

/* ---- the profile ------------------------------------------------------------------------------ */

/* Bins that have tokens, with the ends of each. */
static json_t *bins(const kd_eval_bin *all, int count, double (*from)(int), bool open)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        const kd_eval_bin *b = &all[i];
        if (b->tokens == 0) continue;
        const double to = open && i == count - 1 ? NAN : from(i + 1);
        (void)json_array_append_new(
            list, json_pack("{s:o, s:o, s:I, s:o, s:o, s:o}", "from", number(from(i)), "to",
                            number(to), "tokens", (json_int_t)b->tokens, "nll", number(b->nll),
                            "kl", number(b->kl), "same_top", number(b->same_top)));
    }
    return list;
}

static double position_from(int i) { return ldexp(1.0, i); }
static double entropy_from(int i) { return 0.5 * i; }

static json_t *calibration(const kd_eval_profile *p)
{
    json_t *list = json_array();
    for (int i = 0; i < KD_EVAL_CONFIDENCES; i++) {
        const kd_eval_trust *t = &p->trust[i];
        (void)json_array_append_new(
            list,
            json_pack("{s:f, s:f, s:I, s:o, s:o}", "from", i / (double)KD_EVAL_CONFIDENCES, "to",
                      (i + 1) / (double)KD_EVAL_CONFIDENCES, "tokens", (json_int_t)t->tokens,
                      "confidence", number(t->confidence), "accuracy", number(t->accuracy)));
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "ece", number(p->ece), "confidence",
                     number(p->confidence), "accuracy", number(p->accuracy), "entropy",
                     number(p->mean_entropy), "bins", list);
}

static void add_profile(json_t *row, const kd_eval_profile *p, bool student)
{
    if (p->tokens == 0) return;
    (void)json_object_set_new(row, "calibration", calibration(p));
    if (!student) return;
    (void)json_object_set_new(row, "by_context",
                              bins(p->position, KD_EVAL_POSITIONS, position_from, true));
    (void)json_object_set_new(row, "by_teacher_entropy",
                              bins(p->entropy, KD_EVAL_ENTROPIES, entropy_from, true));
}

/* ---- the whole -------------------------------------------------------------------------------- */

static json_t *row_json(const kd_eval_report *r, int i)
{
    const kd_eval_row *row = &r->rows[i];
    const bool student = r->has_teacher && i > 0;
    json_t *quantiles = json_array();
    for (int q = 0; q < 4 && student; q++)
        (void)json_array_append_new(quantiles, number(r->kl_quantile[i][q]));
    json_t *one = json_pack(
        "{s:s, s:b, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "name", row->name, "teacher",
        (int)(r->has_teacher && i == 0), "parameters", (json_int_t)row->parameters, "bytes",
        (json_int_t)row->bytes, "ms_per_token", number(row->ms_per_token), "nll", number(row->nll),
        "ppl", measure(row->ppl), "kl", measure(row->kl), "same_top", measure(row->same_top),
        "retained", number(r->has_teacher ? row->retained : NAN), "kl_quantiles", quantiles);
    if (r->samples) (void)json_object_set_new(one, "accuracy", measure(row->accuracy));
    add_profile(one, &r->profile[i], student);
    return one;
}

static json_t *pair_json(const kd_eval_report *r)
{
    return json_pack("{s:s, s:s, s:o, s:I, s:I}", "a", r->rows[r->pair.a].name, "b",
                     r->rows[r->pair.b].name, "kl", measure(r->pair.kl), "better",
                     (json_int_t)r->pair.better, "documents", (json_int_t)r->pair.documents);
}

/* NULL where a name is not UTF-8. */
static json_t *report_json(const kd_eval_report *r, const kd_eval_options *o)
{
    json_t *models = json_array();
    bool complete = true;
    for (int i = 0; i < r->count; i++)
        complete &= json_array_append_new(models, row_json(r, i)) == 0;
    json_t *root = json_pack("{s:s, s:s, s:s, s:I, s:I, s:o, s:o}", "kd", KD_VERSION, "data",
                             o->data, "dtype", o->dtype ? o->dtype : "f32", "tokens",
                             (json_int_t)r->tokens, "documents", (json_int_t)r->documents, "models",
                             models, "unigram_ppl", number(r->unigram_ppl));
    if (root && r->pair.documents > 0)
        complete &= json_object_set_new(root, "pair", pair_json(r)) == 0;
    if (root && complete) return root;
    json_decref(root);
    return NULL;
}

kd_status kd_evaluate_write(FILE *out, const char *path, const kd_eval_report *report,
                            const kd_eval_options *options)
{
    const int64_t before = kd_json_refused();
    json_t *root = report_json(report, options);
    KD_TRY(kd_json_made(&root, before, "evaluation"));
    const kd_status status =
        path ? kd_json_write(path, root) : kd_json_print(out, "evaluation", root);
    json_decref(root);
    return status;
}
