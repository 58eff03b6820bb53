#include "loss/loss.h"

#include <stdio.h>
#include <string.h>

/* ---- the run file's `loss` -------------------------------------------------------------------- */

typedef struct term_options {
    const char *type;
    double weight, temperature, option, option2;
    bool t_squared, standardise;
} term_options;

typedef struct ramp_options {
    double from, to;
    int64_t steps;
    const char *shape;
} ramp_options;

static const kd_option ramp_rows[] = {
    { "from", KD_FLOAT, offsetof(ramp_options, from), "0", 0, 0, "", "weight at step 0" },
    { "to", KD_FLOAT, offsetof(ramp_options, to), NULL, 0, 0, "", "weight from `steps` on" },
    { "steps", KD_INT, offsetof(ramp_options, steps), NULL, 1, 1e12, "steps", "length" },
    { "shape", KD_STRING, offsetof(ramp_options, shape), "linear", 0, 0, "", "linear" },
    { 0 },
};

static const kd_option term_rows[] = {
    { "type", KD_STRING, offsetof(term_options, type), "", 0, 0, "", "the term's own name" },
    { "temperature", KD_FLOAT, offsetof(term_options, temperature), "1", 0.05, 100, "",
      "both softmaxes are of logits / temperature" },
    { "t_squared", KD_BOOL, offsetof(term_options, t_squared), "true", 0, 0, "",
      "multiply the loss with temperature^2 (Hinton)" },
    { "standardise", KD_BOOL, offsetof(term_options, standardise), "false", 0, 0, "",
      "both models' logits become z-scores of their row first" },
    { 0 },
};

static const kd_option weight_rows[] = {
    { "weight", KD_FLOAT, offsetof(term_options, weight), "1", 0, 0, "",
      "of this term; or {from, to, steps}" },
    { 0 },
};

/* Short names that run files use. */
static const char *const aliases[][2] = { { "ce", "cross_entropy" }, { "kl", "forward_kl" } };

kd_status kd_term_kind(kd_row_kind *kind, const char *type)
{
    const char *names[KD_ROW_COUNT + KD_COUNT(aliases) + KD_FEATURE_COUNT + 1] = { 0 };
    for (int i = 0; i < KD_FEATURE_COUNT; i++)
        names[KD_ROW_COUNT + KD_COUNT(aliases) + i] = kd_feature_types[i]->name;
    for (int i = 0; i < KD_COUNT(aliases); i++) {
        names[KD_ROW_COUNT + i] = aliases[i][0];
        if (strcmp(type, aliases[i][0]) == 0) type = aliases[i][1];
    }
    for (int i = 0; i < KD_ROW_COUNT; i++) {
        names[i] = kd_row_types[i].name;
        if (strcmp(type, names[i]) != 0) continue;
        *kind = (kd_row_kind)i;
        return KD_OK;
    }
    const char *near = kd_nearest(type, names);
    return kd_fail(KD_EINVAL, "unknown loss \"%s\"%s%s; `kd list` names them all", type,
                   near ? "; nearest: " : "", near ? near : "");
}

static kd_status find_kind(kd_row_kind *kind, const kd_node *node, const char *path,
                           const char *type)
{
    static const char *const keys[] = { "alpha", "logits", "top_k", NULL };
    if (kd_term_kind(kind, type) == KD_OK) return KD_OK;
    const char *near = node->key && strcmp(node->key, type) == 0 ? kd_nearest(type, keys) : NULL;
    if (near) return kd_node_fail(node, path, "unknown loss \"%s\"; nearest: %s", type, near);
    return kd_node_fail(node, path, "%s", kd_last_error());
}

/* Of a term whose other options have been parsed. */
static kd_status parse_weight(kd_term *term, kd_arena *arena, const kd_node *node, const char *path)
{
    const kd_node *weight = kd_node_find(node, "weight");
    if (weight && weight->kind == KD_NODE_MAP) {
        ramp_options o;
        KD_TRY(kd_options_parse(&o, ramp_rows, arena, weight, path, NULL));
        if (strcmp(o.shape, "linear") != 0)
            return kd_node_fail(weight, path, "shape \"%s\"; expected linear", o.shape);
        term->weight = (kd_ramp){ o.from, o.to, o.steps };
        return KD_OK;
    }
    kd_node alone = { .kind = KD_NODE_MAP, .source = node->source, .line = node->line };
    kd_node copy;
    if (weight) {
        copy = *weight;
        copy.next = NULL;
        alone.child = &copy;
    }
    term_options o;
    KD_TRY(kd_options_parse(&o, weight_rows, arena, &alone, path, NULL));
    term->weight = (kd_ramp){ o.weight, o.weight, 0 };
    return KD_OK;
}

/* The kind's own options, up to two, into `rows`; `preset` is their defaults' memory. */
static void own_options(kd_option *rows, char preset[2][32], const kd_row_type *row)
{
    snprintf(preset[0], sizeof preset[0], "%g", row->option_default);
    snprintf(preset[1], sizeof preset[1], "%g", row->option2_default);
    if (row->option)
        rows[0] = (kd_option){ row->option, KD_FLOAT,        offsetof(term_options, option),
                               preset[0],   row->option_min, row->option_max,
                               "",          row->help };
    if (row->option2)
        rows[1] = (kd_option){ row->option2, KD_FLOAT,         offsetof(term_options, option2),
                               preset[1],    row->option2_min, row->option2_max,
                               "",           row->help };
}

static const kd_feature_type *find_feature(const char *name)
{
    int i = 0;
    while (i < KD_FEATURE_COUNT && strcmp(kd_feature_types[i]->name, name) != 0) i++;
    return kd_feature_types[i];
}

static kd_status parse_term(kd_term *term, kd_arena *arena, const kd_node *node)
{
    const char *path;
    KD_TRY(kd_arena_format(&path, arena, "loss.%s", node->key));
    KD_TRY(kd_arena_string(&term->name, arena, node->key));
    const kd_node *type = kd_node_find(node, "type");
    const char *name = !type ? node->key : type->kind == KD_NODE_SCALAR ? type->text : "";
    const kd_feature_type *feature = find_feature(name);
    if (feature) {
        KD_TRY(kd_tapped_parse(&term->tapped, arena, node, path, feature));
        return parse_weight(term, arena, node, path);
    }
    KD_TRY(find_kind(&term->kind, type ? type : node, path, name));

    /* The kind's own options join the common rows. */
    const kd_row_type *row = &kd_row_types[term->kind];
    kd_option rows[KD_COUNT(term_rows) + 2] = { { 0 } };
    char preset[2][32];
    memcpy(rows, term_rows, sizeof term_rows);
    own_options(rows + KD_COUNT(term_rows) - 1, preset, row);
    static const char *const elsewhere[] = { "weight", NULL };
    term_options o = { 0 };
    KD_TRY(kd_options_parse(&o, rows, arena, node, path, elsewhere));
    KD_TRY(parse_weight(term, arena, node, path));
    term->temperature = o.temperature;
    term->t_squared = o.t_squared;
    term->standardise = o.standardise;
    if (o.standardise && !row->teacher)
        return kd_node_fail(node, path, "standardise is for losses that read a teacher");
    term->option = o.option;
    term->option2 = o.option2;
    return KD_OK;
}

/* A term's name is a key of metrics.jsonl and a part of a tag of TensorBoard. */
static kd_status check_name(const kd_node *node)
{
    static const char *const taken[] = { "step",         "model",
                                         "split",        "loss",
                                         "same_top",     "gradient_norm",
                                         "loss_z",       "norm_z",
                                         "skipped",      "lr",
                                         "valid",        "tokens",
                                         "seconds",      "tokens_per_s",
                                         "device_bytes", "device_peak_bytes",
                                         "host_bytes" };
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    const size_t length = strlen(node->key);
    if (length == 0 || length > 32 || strspn(node->key, letters) != length)
        return kd_node_fail(node, "loss",
                            "\"%s\"; a term's name has up to 32 letters, digits, _ - .", node->key);
    for (int i = 0; i < KD_COUNT(taken); i++)
        if (strcmp(node->key, taken[i]) == 0)
            return kd_node_fail(node, "loss",
                                "\"%s\" is no name for a term: metrics.jsonl has that key",
                                node->key);
    return KD_OK;
}

/* alpha: a  ->  ce {weight: 1 - a}, kl {weight: a} */
static kd_status expand_alpha(kd_node *loss, kd_arena *arena)
{
    const kd_node *alpha = kd_node_find(loss, "alpha");
    if (!alpha) return KD_OK;
    struct {
        double alpha;
    } o;
    static const kd_option rows[] = { { "alpha", KD_FLOAT, 0, NULL, 0, 1, "", "share of kl" },
                                      { 0 } };
    static const char *const others[] = { "ce", "kl", "logits", "top_k", NULL };
    char text[32];
    KD_TRY(kd_options_parse(&o, rows, arena, loss, "loss", others));
    snprintf(text, sizeof text, "%.17g", 1.0 - o.alpha);
    KD_TRY(kd_node_set(loss, arena, alpha->source, "ce.weight", text));
    snprintf(text, sizeof text, "%.17g", o.alpha);
    return kd_node_set(loss, arena, alpha->source, "kl.weight", text);
}

static kd_status give_teacher(kd_term *term, const kd_node *node, int s, const int *students,
                              int student_count, const int *teachers, int teacher_count)
{
    term->student = students[s];
    term->teacher = -1;
    if (!term->tapped && !kd_row_types[term->kind].teacher) return KD_OK;
    if (teacher_count > 0)
        term->teacher = teachers[0];
    else if (student_count == 2)
        term->teacher = students[1 - s];
    else
        return kd_node_fail(node, node->key, "reads a teacher; this run has none");
    return KD_OK;
}

/* The order of scalars and totals: those that one pass takes lie together. */
static int group_of(const kd_term *term, const kd_logit_view *logits)
{
    const bool known = kd_logit_view_restricts(logits) && kd_row_types[term->kind].teacher;
    return term->tapped ? 2 : term->standardise || known;
}

static kd_status rows_first(kd_term *terms, int count, kd_arena *arena, const kd_logit_view *logits)
{
    kd_term *sorted;
    int n = 0;
    KD_TRY(KD_ARENA_ARRAY(&sorted, arena, count));
    for (int group = 0; group < 3; group++)
        for (int i = 0; i < count; i++)
            if (group_of(&terms[i], logits) == group) sorted[n++] = terms[i];
    memcpy(terms, sorted, (size_t)count * sizeof *terms);
    return KD_OK;
}

kd_status kd_terms_parse(kd_term **terms, int *count, kd_logit_view *logits, kd_arena *arena,
                         const kd_node *loss, const int *students, int student_count,
                         const int *teachers, int teacher_count)
{
    if (!loss || loss->kind != KD_NODE_MAP || !loss->child)
        return kd_fail(KD_EINVAL, "loss: expected a map of terms such as ce: {weight: 0.1}");
    kd_node *expanded = NULL;
    KD_TRY(KD_ARENA_ARRAY(&expanded, arena, 1));
    *expanded = (kd_node){ .kind = KD_NODE_MAP, .source = loss->source, .line = loss->line };
    KD_TRY(kd_node_merge(expanded, loss, arena));
    KD_TRY(kd_logit_view_parse(logits, arena, expanded));
    KD_TRY(expand_alpha(expanded, arena));
    KD_TRY(KD_ARENA_ARRAY(terms, arena, (int64_t)kd_node_count(expanded) * student_count));
    *count = 0;
    for (const kd_node *node = expanded->child; node; node = node->next) {
        if (kd_logit_view_has(node->key) || strcmp(node->key, "alpha") == 0) continue;
        for (int s = 0; s < student_count; s++) {
            kd_term *term = &(*terms)[(*count)++];
            KD_TRY(check_name(node));
            KD_TRY(parse_term(term, arena, node));
            KD_TRY(give_teacher(term, node, s, students, student_count, teachers, teacher_count));
        }
    }
    if (*count == 0) return kd_fail(KD_EINVAL, "loss: no term; `kd list` names them all");
    if (*count > KD_MAX_TERMS * student_count)
        return kd_fail(KD_EINVAL, "loss: %d terms; at most %d", *count / student_count,
                       KD_MAX_TERMS);
    KD_TRY(kd_logit_view_check(logits, expanded, *terms, *count));
    return rows_first(*terms, *count, arena, logits);
}

/* ---- what the log states ---------------------------------------------------------------------- */

static kd_status print_term(const char **text, kd_arena *arena, const kd_term *term)
{
    const kd_row_type *row = &kd_row_types[term->kind];
    const char *tapped;
    char weight[64], option[48] = "", option2[48] = "", temperature[48] = "";
    if (term->weight.steps)
        snprintf(weight, sizeof weight, "%g..%g over %lld steps", term->weight.from,
                 term->weight.to, (long long)term->weight.steps);
    else
        snprintf(weight, sizeof weight, "%g", term->weight.to);
    if (term->tapped) {
        KD_TRY(kd_tapped_print(&tapped, arena, term->tapped));
        return kd_arena_format(text, arena, "%s %s = %s", weight, term->name, tapped);
    }
    if (row->option) snprintf(option, sizeof option, ", %s %g", row->option, term->option);
    if (row->option2) snprintf(option2, sizeof option2, ", %s %g", row->option2, term->option2);
    if (row->teacher)
        snprintf(temperature, sizeof temperature, "%s, T %g, T^2 %s",
                 term->standardise ? " of z-scores" : "", term->temperature,
                 term->t_squared ? "on" : "off");
    return kd_arena_format(text, arena, "%s %s = %s%s%s%s", weight, term->name, row->name,
                           temperature, option, option2);
}

kd_status kd_terms_print(const char **text, kd_arena *arena, const kd_term *terms, int count,
                         int student)
{
    *text = "";
    for (int i = 0; i < count; i++) {
        const char *one;
        if (terms[i].student != student) continue;
        KD_TRY(print_term(&one, arena, &terms[i]));
        KD_TRY(kd_arena_format(text, arena, "%s%s%s", *text, **text ? "  +  " : "", one));
    }
    return KD_OK;
}

static json_t *weight_json(const kd_ramp *weight)
{
    if (weight->steps == 0) return json_real(weight->to);
    return json_pack("{s:f, s:f, s:I}", "from", weight->from, "to", weight->to, "steps",
                     (json_int_t)weight->steps);
}

/* What a term over logits has beside its weight; false: no memory. */
static bool row_json(json_t *one, const kd_term *term)
{
    const kd_row_type *row = &kd_row_types[term->kind];
    bool ok = json_object_set_new(one, "type", json_string(row->name)) == 0;
    ok = ok && json_object_set_new(one, "temperature", json_real(term->temperature)) == 0;
    ok = ok && json_object_set_new(one, "t_squared", json_boolean(term->t_squared)) == 0;
    if (ok && row->teacher)
        ok = json_object_set_new(one, "standardise", json_boolean(term->standardise)) == 0;
    if (ok && row->option) ok = json_object_set_new(one, row->option, json_real(term->option)) == 0;
    if (ok && row->option2)
        ok = json_object_set_new(one, row->option2, json_real(term->option2)) == 0;
    return ok;
}

kd_status kd_terms_json(json_t *root, const kd_term *terms, int count, const kd_logit_view *logits)
{
    json_t *loss = json_object();
    bool ok = json_object_set_new(root, "loss", loss) == 0;
    if (ok) KD_TRY(kd_logit_view_json(loss, logits));
    for (int i = 0; ok && i < count; i++) {
        json_t *one = json_object();
        /* The same term of a second student has the same name and the same text. */
        ok = json_object_set_new(loss, terms[i].name, one) == 0;
        if (ok && terms[i].tapped) KD_TRY(kd_tapped_json(one, terms[i].tapped));
        if (ok && !terms[i].tapped) ok = row_json(one, &terms[i]);
        ok = ok && json_object_set_new(one, "weight", weight_json(&terms[i].weight)) == 0;
    }
    return ok ? KD_OK : kd_fail(KD_ENOMEM, "configuration: no memory");
}

void kd_terms_help(void *file)
{
    kd_logit_view_help(file);
    kd_options_help(file, "loss.NAME", weight_rows);
    kd_options_help(file, "loss.NAME", term_rows);
    for (int i = 0; i < KD_ROW_COUNT; i++) {
        const kd_row_type *row = &kd_row_types[i];
        char path[64], preset[2][32];
        if (!row->option) continue;
        snprintf(path, sizeof path, "loss.%s", row->name);
        kd_option rows[3] = { { 0 } };
        own_options(rows, preset, row);
        kd_options_help(file, path, rows);
    }
    kd_tapped_help(file);
}
