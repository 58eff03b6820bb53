/* yaml.c - libyaml events to kd_node. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum {
    MAX_DEPTH = 32,
    MAX_KEYS = 1024, /* of one map: the test for duplicates is quadratic */
    MAX_FILE = 1 << 20,
};

typedef struct reader {
    yaml_parser_t parser;
    kd_arena *arena;
    const char *source;
    const char *text; /* for the line of an error that libyaml gives as an offset */
    size_t bytes;
} reader;

static int line_of(const yaml_event_t *event) { return (int)event->start_mark.line + 1; }

static kd_status syntax_failed(const reader *r)
{
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) return kd_fail(KD_ENOMEM, "%s: no memory", r->source);
    size_t line = p->problem_mark.line + 1;
    if (p->error == YAML_READER_ERROR) {
        line = 1;
        for (size_t i = 0; i < r->bytes && i < p->problem_offset; i++) line += r->text[i] == '\n';
    }
    if (p->context) {
        return kd_fail(KD_EINVAL, "%s:%zu: %s, %s that begins on line %zu", r->source, line,
                       p->problem, p->context, p->context_mark.line + 1);
    }
    return kd_fail(KD_EINVAL, "%s:%zu: %s", r->source, line, p->problem);
}

static kd_status next_event(yaml_event_t *event, reader *r)
{
    return yaml_parser_parse(&r->parser, event) ? KD_OK : syntax_failed(r);
}

static kd_status refuse(const reader *r, const yaml_event_t *event, const char *what)
{
    return kd_fail(KD_EINVAL, "%s:%d: %s", r->source, line_of(event), what);
}

static kd_status check_plain(const reader *r, const yaml_event_t *event)
{
    const yaml_char_t *anchor = NULL, *tag = NULL;
    switch (event->type) {
    case YAML_ALIAS_EVENT: return refuse(r, event, "aliases (*name) are not accepted");
    case YAML_SCALAR_EVENT:
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
        break;
    default: return refuse(r, event, "expected a value");
    }
    if (anchor) return refuse(r, event, "anchors (&name) are not accepted");
    if (tag) return refuse(r, event, "tags (!name) are not accepted");
    return KD_OK;
}

static kd_status scalar_text(const char **text, const reader *r, const yaml_event_t *event)
{
    const char *value = (const char *)event->data.scalar.value;
    if (strlen(value) != event->data.scalar.length) return refuse(r, event, "a NUL within a text");
    const bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (plain && (strcmp(value, "~") == 0 || strcmp(value, "null") == 0)) value = "";
    return kd_arena_string(text, r->arena, value);
}

static kd_status read_children(kd_node *parent, reader *r, int depth);

/* The node that `event` begins.  A value's line is that of its key, where the reader looks. */
static kd_status read_node(kd_node **out, reader *r, const yaml_event_t *event, const char *key,
                           int line, int depth)
{
    KD_TRY(check_plain(r, event));
    kd_node *node;
    KD_TRY(KD_ARENA_ARRAY(&node, r->arena, 1));
    node->key = key;
    node->source = r->source;
    node->line = line;
    if (event->type == YAML_SCALAR_EVENT) {
        node->kind = KD_NODE_SCALAR;
        KD_TRY(scalar_text(&node->text, r, event));
    } else {
        if (depth == MAX_DEPTH) return refuse(r, event, "nested deeper than 32");
        node->kind = event->type == YAML_MAPPING_START_EVENT ? KD_NODE_MAP : KD_NODE_LIST;
        KD_TRY(read_children(node, r, depth + 1));
    }
    *out = node;
    return KD_OK;
}

static kd_status read_key(const char **key, const reader *r, const yaml_event_t *event,
                          const kd_node *map)
{
    KD_TRY(check_plain(r, event));
    if (event->type != YAML_SCALAR_EVENT) return refuse(r, event, "a key must be a text");
    const char *text = (const char *)event->data.scalar.value;
    if (strlen(text) != event->data.scalar.length) return refuse(r, event, "a NUL within a key");
    const kd_node *first = kd_node_find(map, text);
    if (first) {
        return kd_fail(KD_EINVAL, "%s:%d: %.80s: stands already on line %d", r->source,
                       line_of(event), text, first->line);
    }
    return kd_arena_string(key, r->arena, text);
}

/* One child; `event` is its key within a map and the value itself within a list. */
static kd_status read_child(kd_node **out, reader *r, const yaml_event_t *event,
                            const kd_node *parent, int depth)
{
    if (parent->kind == KD_NODE_LIST) {
        return read_node(out, r, event, NULL, line_of(event), depth);
    }
    const char *key;
    KD_TRY(read_key(&key, r, event, parent));
    yaml_event_t value;
    KD_TRY(next_event(&value, r));
    const kd_status status = read_node(out, r, &value, key, line_of(event), depth);
    yaml_event_delete(&value);
    return status;
}

static kd_status read_children(kd_node *parent, reader *r, int depth)
{
    kd_node **end = &parent->child;
    for (int count = 0;; count++) {
        yaml_event_t event;
        KD_TRY(next_event(&event, r));
        const bool last =
            event.type == YAML_MAPPING_END_EVENT || event.type == YAML_SEQUENCE_END_EVENT;
        kd_status status = KD_OK;
        if (!last && parent->kind == KD_NODE_MAP && count == MAX_KEYS) {
            status = refuse(r, &event, "more than 1024 keys in one map");
        } else if (!last) {
            status = read_child(end, r, &event, parent, depth);
        }
        yaml_event_delete(&event);
        if (status != KD_OK || last) return status;
        end = &(*end)->next;
    }
}

/* Skips what says nothing about values. */
static kd_status next_content(yaml_event_t *event, reader *r)
{
    for (;;) {
        KD_TRY(next_event(event, r));
        if (event->type != YAML_STREAM_START_EVENT && event->type != YAML_DOCUMENT_START_EVENT &&
            event->type != YAML_DOCUMENT_END_EVENT) {
            return KD_OK;
        }
        yaml_event_delete(event);
    }
}

static kd_status read_document(kd_node **out, reader *r)
{
    yaml_event_t event;
    KD_TRY(next_content(&event, r));
    const bool empty = event.type == YAML_STREAM_END_EVENT;
    kd_status status = KD_OK;
    if (empty) {
        kd_node *node = NULL;
        status = KD_ARENA_ARRAY(&node, r->arena, 1);
        if (status == KD_OK) *node = (kd_node){ .text = "", .source = r->source, .line = 1 };
        *out = node;
    } else {
        status = read_node(out, r, &event, NULL, line_of(&event), 0);
    }
    yaml_event_delete(&event);
    if (status != KD_OK || empty) return status;

    KD_TRY(next_content(&event, r));
    if (event.type != YAML_STREAM_END_EVENT) status = refuse(r, &event, "a second document");
    yaml_event_delete(&event);
    return status;
}

kd_status kd_yaml_parse(kd_node **out, kd_arena *arena, const char *source, const char *text,
                        size_t bytes)
{
    reader r = { .arena = arena, .text = text, .bytes = bytes };
    KD_TRY(kd_arena_string(&r.source, arena, source));
    if (!yaml_parser_initialize(&r.parser)) return kd_fail(KD_ENOMEM, "%s: no memory", source);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    yaml_parser_set_encoding(&r.parser,
                             YAML_UTF8_ENCODING); /* bytes that look like a mark of another */
    kd_node *root;
    const kd_status status = read_document(&root, &r);
    yaml_parser_delete(&r.parser);
    if (status == KD_OK) *out = root;
    return status;
}

kd_status kd_yaml_read(kd_node **out, kd_arena *arena, const char *path)
{
    char *text;
    size_t bytes;
    KD_TRY(kd_file_read(&text, &bytes, path, MAX_FILE));
    const kd_status status = kd_yaml_parse(out, arena, path, text, bytes);
    free(text);
    return status;
}
