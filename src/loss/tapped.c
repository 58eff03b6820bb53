/* Terms over taps: what the run file says of them, and which layers of which models they read. */
#include "loss/tapped.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- what a type reads ------------------------------------------------------------------------ */

static const kd_read *read_of(const kd_feature_type *type, const char *name)
{
    const kd_read *read = type->reads;
    while (read->name && strcmp(read->name, name) != 0) read++;
    return read->name ? read : NULL;
}

kd_tapped_form kd_tapped_form_of(const kd_feature_type *type)
{
    if (read_of(type, "student_q")) return KD_TAPPED_MAPS;
    return kd_read_rank(&type->reads[0]) == 3 ? KD_TAPPED_HEADS : KD_TAPPED_FEATURES;
}

const kd_read *kd_tapped_parameter(const kd_feature_type *type)
{
    const kd_read *read = type->reads;
    while (read->name && !(read->flags & KD_READ_PARAMETER)) read++;
    return read->name ? read : NULL;
}

const kd_read *kd_tapped_state(const kd_read *from)
{
    while (from->name && !(from->flags & KD_READ_STATE)) from++;
    return from->name ? from : NULL;
}

/* ---- the run file ----------------------------------------------------------------------------- */

typedef struct tapped_options {
    int of; /* of the three that attention has */
    int64_t dimension, negatives;
} tapped_options;

static const kd_tap_kind attention_kinds[] = { KD_TAP_VALUE, KD_TAP_QUERY, KD_TAP_KEY };

static const kd_option heads_rows[] = {
    { "of", KD_CHOICE, offsetof(tapped_options, of), "value", 0, 0, "value|query|key",
      "what of a block's attention is compared" },
    { 0 },
};

static const kd_option bank_rows[] = {
    { "dimension", KD_INT, offsetof(tapped_options, dimension), "128", 1, 1024, "columns",
      "of what both sides are brought to, and of the banks" },
    { "negatives", KD_INT, offsetof(tapped_options, negatives), "16384", 1, 1 << 24, "samples",
      "that each is told from, drawn anew in every step" },
    { 0 },
};

static const kd_option no_rows[] = { { 0 } };

/* Options of the term that are none of the type's. */
static const kd_option *own_rows(const kd_feature_type *type)
{
    if (kd_tapped_state(type->reads)) return bank_rows;
    return kd_tapped_form_of(type) == KD_TAPPED_HEADS ? heads_rows : no_rows;
}

static const char *const rules[] = {
    [KD_LAYERS_LAST] = "last", [KD_LAYERS_UNIFORM] = "uniform", NULL
};

static kd_status parse_layer(int *layer, const kd_node *node, const char *path)
{
    char *end = NULL;
    const long value = node && node->kind == KD_NODE_SCALAR ? strtol(node->text, &end, 10) : -1;
    if (!end || end == node->text || *end || value < 0 || value > 1000000)
        return kd_node_fail(node, path, "found \"%s\", expected the number of a layer",
                            node && node->kind == KD_NODE_SCALAR ? node->text : "a list");
    *layer = (int)value;
    return KD_OK;
}

/* layers: last, uniform, or pairs such as [[0, 0], [6, 12]] of the student's and the teacher's. */
static kd_status parse_layers(kd_tapped *t, kd_arena *arena, const kd_node *layers,
                              const char *path)
{
    static const char expected[] = "expected last, uniform, or pairs [student's, teacher's]";
    if (!layers) return KD_OK;
    for (int i = 0; layers->kind == KD_NODE_SCALAR && rules[i]; i++) {
        if (strcmp(rules[i], layers->text) != 0) continue;
        t->rule = (kd_layer_rule)i;
        return KD_OK;
    }
    if (layers->kind != KD_NODE_LIST || !layers->child)
        return kd_node_fail(layers, path, "found \"%s\", %s",
                            layers->kind == KD_NODE_SCALAR ? layers->text : "", expected);
    t->rule = KD_LAYERS_LIST;
    KD_TRY(KD_ARENA_ARRAY(&t->pairs, arena, kd_node_count(layers)));
    for (const kd_node *pair = layers->child; pair; pair = pair->next) {
        kd_layer_pair *to = &t->pairs[t->count++];
        if (pair->kind != KD_NODE_LIST || kd_node_count(pair) != 2)
            return kd_node_fail(pair, path, "%s", expected);
        KD_TRY(parse_layer(&to->student, pair->child, path));
        KD_TRY(parse_layer(&to->teacher, pair->child->next, path));
    }
    return KD_OK;
}

/* projector: linear, or {type: mlp, width: 512, ...} */
static kd_status parse_projector(kd_tapped *t, kd_arena *arena, const kd_node *node,
                                 const char *path)
{
    const kd_node *given = kd_node_find(node, "projector");
    kd_node short_form = { .kind = KD_NODE_MAP }, type;
    if (given && kd_tapped_form_of(t->type) != KD_TAPPED_FEATURES)
        return kd_node_fail(given, path, "%s reads no rows that a projector could widen",
                            t->type->name);
    if (given && given->kind == KD_NODE_SCALAR) {
        type = *given;
        type.key = "type";
        type.next = NULL;
        short_form.source = given->source;
        short_form.line = given->line;
        short_form.child = &type;
        given = &short_form;
    }
    return kd_options_parse(&t->projector, kd_projector_rows, arena, given, path, NULL);
}

/* Every name that the others of `rows` and the term itself have, since each looks for its own. */
static kd_status names_of(const char ***names, kd_arena *arena, const kd_option *a,
                          const kd_option *b)
{
    static const char *const common[] = { "type", "weight", "layers", "projector" };
    int count = KD_COUNT(common);
    for (const kd_option *row = a; row && row->name; row++) count++;
    for (const kd_option *row = b; row && row->name; row++) count++;
    KD_TRY(KD_ARENA_ARRAY(names, arena, count + 1));
    count = 0;
    for (int i = 0; i < KD_COUNT(common); i++) (*names)[count++] = common[i];
    for (const kd_option *row = a; row && row->name; row++) (*names)[count++] = row->name;
    for (const kd_option *row = b; row && row->name; row++) (*names)[count++] = row->name;
    return KD_OK;
}

kd_status kd_tapped_parse(kd_tapped **out, kd_arena *arena, const kd_node *node, const char *path,
                          const kd_feature_type *type)
{
    kd_tapped *t;
    unsigned char *options;
    const char **names, *inner;
    tapped_options own = { 0 };
    const kd_tapped_form form = kd_tapped_form_of(type);
    const kd_option *rows = type->options ? type->options : no_rows;
    KD_TRY(KD_ARENA_ARRAY(&t, arena, 1));
    KD_TRY(KD_ARENA_ARRAY(&options, arena, KD_FEATURE_OPTION_BYTES));
    KD_TRY(names_of(&names, arena, own_rows(type), rows));
    KD_TRY(kd_options_parse(&own, own_rows(type), arena, node, path, names));
    *t = (kd_tapped){
        .type = type, .options = options, .dimension = own.dimension, .negatives = own.negatives
    };
    KD_TRY(kd_options_parse(options, rows, arena, node, path, names));
    KD_TRY(kd_arena_format(&inner, arena, "%s.layers", path));
    KD_TRY(parse_layers(t, arena, kd_node_find(node, "layers"), inner));
    KD_TRY(kd_arena_format(&inner, arena, "%s.projector", path));
    KD_TRY(parse_projector(t, arena, node, inner));
    /* Two models are as wide as each other by chance: what banks hold is projected unless said. */
    const kd_node *given = kd_node_find(node, "projector");
    if (t->dimension && (!given || (given->kind == KD_NODE_MAP && !kd_node_find(given, "type"))))
        t->projector.kind = KD_PROJECTOR_LINEAR;
    KD_TRY(kd_projector_check(&t->projector, inner));
    t->kind = KD_TAP_HIDDEN;
    if (form == KD_TAPPED_MAPS) t->kind = KD_TAP_QUERY;
    if (form == KD_TAPPED_HEADS) t->kind = attention_kinds[own.of];
    *out = t;
    return KD_OK;
}

static tapped_options own_options(const kd_tapped *t)
{
    tapped_options own = { .dimension = t->dimension, .negatives = t->negatives };
    while (own.of + 1 < KD_COUNT(attention_kinds) && attention_kinds[own.of] != t->kind) own.of++;
    return own;
}

static json_t *layers_json(const kd_tapped *t)
{
    if (t->rule != KD_LAYERS_LIST) return json_string(rules[t->rule]);
    json_t *list = json_array();
    for (int i = 0; i < t->count; i++)
        (void)json_array_append_new(list,
                                    json_pack("[i, i]", t->pairs[i].student, t->pairs[i].teacher));
    return list;
}

kd_status kd_tapped_json(json_t *term, const kd_tapped *t)
{
    const tapped_options own = own_options(t);
    (void)json_object_set_new(term, "type", json_string(t->type->name));
    (void)json_object_set_new(term, "layers", layers_json(t));
    KD_TRY(kd_options_json(term, &own, own_rows(t->type)));
    if (t->type->options) KD_TRY(kd_options_json(term, t->options, t->type->options));
    if (kd_tapped_form_of(t->type) != KD_TAPPED_FEATURES) return KD_OK;
    json_t *projector = json_object();
    (void)json_object_set_new(term, "projector", projector); /* which refuses NULL */
    return kd_options_json(projector, &t->projector, kd_projector_rows);
}

static kd_status print_options(const char **text, kd_arena *arena, const void *target,
                               const kd_option *rows)
{
    for (const kd_option *row = rows; row && row->name; row++) {
        char value[64];
        KD_TRY(kd_option_print(value, sizeof value, target, row));
        KD_TRY(kd_arena_format(text, arena, "%s, %s %s", *text, row->name, value));
    }
    return KD_OK;
}

kd_status kd_tapped_print(const char **text, kd_arena *arena, const kd_tapped *t)
{
    static const char *const kinds[] = { [KD_TAP_HIDDEN] = "hidden",
                                         [KD_TAP_QUERY] = "query",
                                         [KD_TAP_KEY] = "key",
                                         [KD_TAP_VALUE] = "value" };
    const bool maps = kd_tapped_form_of(t->type) == KD_TAPPED_MAPS;
    KD_TRY(kd_arena_format(text, arena, "%s over %s ", t->type->name,
                           maps ? "attention" : kinds[t->kind]));
    for (int i = 0; i < t->count; i++)
        KD_TRY(kd_arena_format(text, arena, "%s%s%d-%d", *text, i ? " " : "", t->pairs[i].student,
                               t->pairs[i].teacher));
    if (t->dimension)
        KD_TRY(kd_arena_format(text, arena, "%s, dimension %lld, negatives %lld", *text,
                               (long long)t->dimension, (long long)t->negatives));
    KD_TRY(print_options(text, arena, t->options, t->type->options));
    if (t->projector.kind == KD_PROJECTOR_NONE && !t->projector.normalise) return KD_OK;
    KD_TRY(kd_arena_format(text, arena, "%s, projector", *text));
    return print_options(text, arena, &t->projector, kd_projector_rows);
}

void kd_tapped_help(void *file)
{
    fprintf(file,
            "  --loss.NAME.layers RULE   of a loss over taps: last, uniform, or pairs [student's, "
            "teacher's]\n");
    kd_options_help(file, "loss.NAME.projector", kd_projector_rows);
    for (int i = 0; i < KD_FEATURE_COUNT; i++) {
        const kd_feature_type *type = kd_feature_types[i];
        char path[64];
        snprintf(path, sizeof path, "loss.%s", type->name);
        kd_options_help(file, path, own_rows(type));
        if (type->options) kd_options_help(file, path, type->options);
    }
}
