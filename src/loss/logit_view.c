/* What the terms over logits see of them in training: `loss.logits` and `loss.top_k` of a run file. */
#include "loss/loss.h"

#include <stdio.h>
#include <string.h>

typedef struct type_options {
    int f32;
} type_options;

static const kd_option type_rows[] = {
    { "logits", KD_CHOICE, offsetof(type_options, f32), "model", 0, 0, "model|f32",
      "type of both models' logits in training; model: as they compute" },
    { 0 },
};

typedef struct top_options {
    int64_t k;
    int others;
} top_options;

static const kd_option top_rows[] = {
    { "k", KD_INT, offsetof(top_options, k), NULL, 1, KD_MAX_TOP, "classes",
      "of the teacher the largest, in training; evaluation compares all" },
    { "others", KD_CHOICE, offsetof(top_options, others), "tail", 0, 0,
      "tail|renormalised|restricted",
      "the other classes: one class together, of teacher's probability 0, or not there" },
    { 0 },
};

/* In the order of kd_others. */
static const char *const others_names[] = { "tail", "renormalised", "restricted" };

bool kd_logit_view_has(const char *key)
{
    return strcmp(key, "logits") == 0 || strcmp(key, "top_k") == 0;
}

kd_status kd_logit_view_parse(kd_logit_view *logits, kd_arena *arena, const kd_node *loss)
{
    const char **others; /* every other key is a term's name */
    int count = 0;
    type_options type;
    KD_TRY(KD_ARENA_ARRAY(&others, arena, (int64_t)kd_node_count(loss) + 1));
    for (const kd_node *node = loss->child; node; node = node->next)
        if (strcmp(node->key, "logits") != 0) others[count++] = node->key;
    others[count] = NULL;
    KD_TRY(kd_options_parse(&type, type_rows, arena, loss, "loss", others));
    *logits = (kd_logit_view){ .f32 = type.f32 == 1 };
    const kd_node *top = kd_node_find(loss, "top_k");
    if (!top) return KD_OK;
    if (top->kind != KD_NODE_MAP)
        return kd_node_fail(top, "loss.top_k", "expected a map such as {k: 64, others: tail}");
    top_options o;
    KD_TRY(kd_options_parse(&o, top_rows, arena, top, "loss.top_k", NULL));
    logits->top_k = o.k;
    logits->others = (kd_others)o.others;
    return KD_OK;
}

/* Reverse divergences from a teacher who gives a class nothing. */
static bool is_infinite(const kd_term *term)
{
    return term->kind == KD_ROW_reverse_kl || (term->kind == KD_ROW_jsd && term->option == 1.0) ||
           (term->kind == KD_ROW_skew_reverse_kl && term->option == 0.0);
}

/* A term that reads the teacher's logits; `first` is the first that does. */
static kd_status check_term(const kd_logit_view *logits, const kd_node *top, const kd_term *term,
                            const kd_term *first)
{
    const kd_row_type *type = &kd_row_types[term->kind];
    const char *path = "loss.top_k", *name = term->name;
    if (term->standardise)
        return kd_node_fail(top, path,
                            "loss.%s compares z-scores, which all classes are needed for", name);
    if (type->extra == KD_EXTRA_LOGITS || type->extra == KD_EXTRA_REST)
        return kd_node_fail(top, path, "loss.%s needs every class of the teacher", name);
    if (logits->others == KD_OTHERS_TAIL && term->temperature != first->temperature)
        return kd_node_fail(top, path,
                            "loss.%s has temperature %g, loss.%s %g: a tail's mass is of one "
                            "(renormalised and restricted take several)",
                            name, term->temperature, first->name, first->temperature);
    if (logits->others == KD_OTHERS_RENORMALISED && is_infinite(term))
        return kd_node_fail(top, path,
                            "loss.%s is infinite where the teacher's probability is 0: take "
                            "others: tail or restricted",
                            name);
    return KD_OK;
}

kd_status kd_logit_view_check(const kd_logit_view *logits, const kd_node *loss,
                              const kd_term *terms, int count)
{
    const kd_node *top = kd_node_find(loss, "top_k");
    const kd_term *first = NULL;
    if (!top) return KD_OK;
    if (kd_logit_view_restricts(logits) && logits->top_k == 1)
        return kd_node_fail(top, "loss.top_k.k",
                            "1, expected 2 or more: a softmax over one class is 1");
    for (int i = 0; i < count; i++) {
        const kd_term *term = &terms[i];
        if (term->tapped || !kd_row_types[term->kind].teacher) continue;
        if (!first) first = term;
        KD_TRY(check_term(logits, top, term, first));
    }
    if (!first) return kd_node_fail(top, "loss.top_k", "no term reads the teacher's logits");
    return KD_OK;
}

bool kd_logit_view_is_sparse(const kd_logit_view *logits, const kd_term *terms, int count,
                             int student)
{
    bool sparse = kd_logit_view_restricts(logits);
    for (int i = 0; i < count; i++) {
        const kd_term *term = &terms[i];
        if (term->tapped) continue;
        sparse &= term->teacher != student;
        sparse &= term->student != student || kd_row_types[term->kind].teacher;
    }
    return sparse;
}

kd_status kd_logit_view_json(json_t *loss, const kd_logit_view *logits)
{
    bool ok = json_object_set_new(loss, "logits", json_string(logits->f32 ? "f32" : "model")) == 0;
    if (ok && logits->top_k)
        ok = json_object_set_new(loss, "top_k",
                                 json_pack("{s:I, s:s}", "k", (json_int_t)logits->top_k, "others",
                                           others_names[logits->others])) == 0;
    return ok ? KD_OK : kd_fail(KD_ENOMEM, "configuration: no memory");
}

kd_status kd_logit_view_print(const char **text, kd_arena *arena, const kd_logit_view *logits)
{
    *text = "";
    if (!logits->top_k) return KD_OK;
    return kd_arena_format(text, arena, "  (the teacher's %lld largest classes, the others %s)",
                           (long long)logits->top_k, others_names[logits->others]);
}

void kd_logit_view_help(void *file)
{
    kd_options_help(file, "loss", type_rows);
    kd_options_help(file, "loss.top_k", top_rows);
}
