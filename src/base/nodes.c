/* nodes.c - what can be done to a configuration tree.
 *
 * A scalar without text ("optim:" with nothing beneath, null, an empty file) is an empty map
 * wherever a map is wanted. */
#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PATH_KEYS = 32 };

static bool is_empty(const kd_node *node)
{
    return node->kind == KD_NODE_SCALAR && node->text[0] == '\0';
}

const kd_node *kd_node_find(const kd_node *map, const char *key)
{
    if (!map || map->kind != KD_NODE_MAP) return NULL;
    for (const kd_node *node = map->child; node; node = node->next) {
        if (strcmp(node->key, key) == 0) return node;
    }
    return NULL;
}

int kd_node_count(const kd_node *node)
{
    int count = 0;
    for (const kd_node *child = node ? node->child : NULL; child; child = child->next) count++;
    return count;
}

kd_status kd_node_fail(const kd_node *node, const char *path, const char *fmt, ...)
{
    char message[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    const char *source = node && node->source ? node->source : NULL;
    if (!source) return kd_fail(KD_EINVAL, "%s: %s", path, message);
    if (node->line > 0) {
        return kd_fail(KD_EINVAL, "%s:%d: %s: %s", source, node->line, path, message);
    }
    /* "--loss.kl.temperature" has said the path. */
    if (strstr(source, path)) return kd_fail(KD_EINVAL, "%s: %s", source, message);
    return kd_fail(KD_EINVAL, "%s: %s: %s", source, path, message);
}

static kd_node *find_child(kd_node *map, const char *key, size_t length)
{
    for (kd_node *node = map->child; node; node = node->next) {
        if (strlen(node->key) == length && memcmp(node->key, key, length) == 0) return node;
    }
    return NULL;
}

static void append(kd_node *parent, kd_node *node)
{
    kd_node **end = &parent->child;
    while (*end) end = &(*end)->next;
    *end = node;
}

static kd_status copy_text(const char **to, kd_arena *arena, const char *from)
{
    if (from) return kd_arena_string(to, arena, from);
    *to = NULL;
    return KD_OK;
}

/* Deep, strings too: `from` may die before the copy. */
static kd_status copy_node(kd_node **to, const kd_node *from, kd_arena *arena)
{
    kd_node *node;
    KD_TRY(KD_ARENA_ARRAY(&node, arena, 1));
    node->kind = from->kind;
    node->line = from->line;
    KD_TRY(copy_text(&node->key, arena, from->key));
    KD_TRY(copy_text(&node->text, arena, from->text));
    KD_TRY(copy_text(&node->source, arena, from->source));
    kd_node **end = &node->child;
    for (const kd_node *child = from->child; child; child = child->next) {
        KD_TRY(copy_node(end, child, arena));
        end = &(*end)->next;
    }
    *to = node;
    return KD_OK;
}

/* The value of `with`; key and place in the list stay. */
static void replace(kd_node *node, const kd_node *with)
{
    const char *key = node->key;
    kd_node *next = node->next;
    *node = *with;
    node->key = key;
    node->next = next;
}

kd_status kd_node_merge(kd_node *base, const kd_node *over, kd_arena *arena)
{
    if (!over->key && is_empty(over)) return KD_OK; /* an empty file changes nothing */
    if (base->kind != KD_NODE_MAP || over->kind != KD_NODE_MAP) {
        kd_node *copy;
        KD_TRY(copy_node(&copy, over, arena));
        replace(base, copy);
        return KD_OK;
    }
    for (const kd_node *child = over->child; child; child = child->next) {
        kd_node *known = find_child(base, child->key, strlen(child->key));
        if (known) {
            KD_TRY(kd_node_merge(known, child, arena));
        } else {
            kd_node *copy;
            KD_TRY(copy_node(&copy, child, arena));
            append(base, copy);
        }
    }
    return KD_OK;
}

/* A flag or a variable is one line: its number would say nothing. */
static void clear_lines(kd_node *node)
{
    node->line = 0;
    for (kd_node *child = node->child; child; child = child->next) clear_lines(child);
}

/* The child of `map` for the `length` bytes at `key`, made where there is none. */
static kd_status enter(kd_node **child, kd_node *map, kd_arena *arena, const char *source,
                       const char *key, size_t length)
{
    if (is_empty(map)) {
        map->kind = KD_NODE_MAP;
        map->text = NULL;
    }
    if (map->kind != KD_NODE_MAP) {
        return kd_fail(KD_EINVAL, "%s: %s is a %s and has no %.*s (%s:%d)", source,
                       map->key ? map->key : "the file",
                       map->kind == KD_NODE_LIST ? "list" : "text", (int)length, key, map->source,
                       map->line);
    }
    *child = find_child(map, key, length);
    if (*child) return KD_OK;
    kd_node *node;
    KD_TRY(KD_ARENA_ARRAY(&node, arena, 1));
    *node = (kd_node){ .text = "", .source = source };
    KD_TRY(kd_arena_format(&node->key, arena, "%.*s", (int)length, key));
    append(map, node);
    *child = node;
    return KD_OK;
}

kd_status kd_node_set(kd_node *root, kd_arena *arena, const char *source, const char *path,
                      const char *text)
{
    kd_node *value;
    KD_TRY(kd_yaml_parse(&value, arena, source, text, strlen(text)));
    clear_lines(value);
    /* YAML would fold a line's end, of a folder's name say, into a space. */
    if (value->kind == KD_NODE_SCALAR && strchr(text, '\n') && !strchr("'\"|>", text[0]))
        KD_TRY(kd_arena_string(&value->text, arena, text));
    /* Everything is checked before the tree changes. */
    int keys = 1;
    for (const char *c = path; *c; c++) keys += *c == '.';
    if (path[0] == '\0' || path[0] == '.' || path[strlen(path) - 1] == '.' || strstr(path, "..") ||
        keys > MAX_PATH_KEYS) {
        return kd_fail(KD_EINVAL, "%s: '%s' is not an option's path, such as loss.kl.weight",
                       source, path);
    }
    kd_node *node = root;
    for (const char *key = path; key;) {
        const char *dot = strchr(key, '.');
        const size_t length = dot ? (size_t)(dot - key) : strlen(key);
        KD_TRY(enter(&node, node, arena, value->source, key, length));
        key = dot ? dot + 1 : NULL;
    }
    replace(node, value);
    return KD_OK;
}
