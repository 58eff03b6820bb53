/* args.c - command lines against option rows. */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

typedef struct parser {
    kd_arena *arena;
    const kd_option *rows;
    kd_node map; /* options given, as a file would give them */
    const char **operands, **settings;
    kd_args *args;
    char *const *argv;
    int argc, at;
    bool take_settings;
} parser;

/* - and _ are the same; `length` bytes of `name`. */
static bool same_name(const char *row, const char *name, size_t length)
{
    if (strlen(row) != length) return false;
    for (size_t i = 0; i < length; i++) {
        const char a = row[i] == '-' ? '_' : row[i], b = name[i] == '-' ? '_' : name[i];
        if (a != b) return false;
    }
    return true;
}

static const kd_option *find_row(const parser *p, const char *name, size_t length)
{
    for (const kd_option *row = p->rows; row->name; row++)
        if (same_name(row->name, name, length)) return row;
    return NULL;
}

/* The last of an option counts. */
static kd_status put(parser *p, const char *key, const char *text)
{
    kd_node **end = &p->map.child;
    while (*end && strcmp((*end)->key, key) != 0) end = &(*end)->next;
    if (!*end) KD_TRY(KD_ARENA_ARRAY(end, p->arena, 1));
    (*end)->key = key;
    KD_TRY(kd_arena_format(&(*end)->source, p->arena, "--%s", key));
    return kd_arena_string(&(*end)->text, p->arena, text);
}

static kd_status set(parser *p, const char *name, const char *value)
{
    const int n = p->args->setting_count++;
    KD_TRY(kd_arena_string(&p->settings[2 * n], p->arena, name));
    return kd_arena_string(&p->settings[2 * n + 1], p->arena, value);
}

static bool is_file(const char *word)
{
    static const char *const ends[] = { ".yaml", ".yml", ".json" };
    const size_t length = strlen(word);
    for (int i = 0; i < KD_COUNT(ends); i++) {
        const size_t n = strlen(ends[i]);
        if (length > n && strcmp(word + length - n, ends[i]) == 0) return true;
    }
    return false;
}

/* The next word where it can be a value; NULL: there is none. */
static const char *next_value(parser *p)
{
    if (p->at + 1 >= p->argc || strncmp(p->argv[p->at + 1], "--", 2) == 0) return NULL;
    return p->argv[++p->at];
}

static kd_status parse_setting(parser *p, const char *name, const char *value)
{
    if (!value && strncmp(name, "no-", 3) == 0) return set(p, name + 3, "false");
    if (!value && p->at + 1 < p->argc && is_file(p->argv[p->at + 1])) return set(p, name, "true");
    if (!value) value = next_value(p);
    return set(p, name, value ? value : "true");
}

/* `word` stands behind the dashes: "name", "name=value", "no-name". */
static kd_status parse_option(parser *p, const char *word)
{
    const size_t length = strcspn(word, "=");
    const char *value = word[length] ? word + length + 1 : NULL, *name;
    KD_TRY(kd_arena_format(&name, p->arena, "%.*s", (int)length, word));
    if (strcmp(name, "help") == 0) {
        p->args->help = true;
        return KD_OK;
    }
    const kd_option *row = find_row(p, name, length);
    if (row && row->kind == KD_BOOL) return put(p, row->name, value ? value : "true");
    if (row) {
        if (!value) value = next_value(p);
        if (!value)
            return kd_fail(KD_EINVAL, "--%s: a value is missing (%s)", row->name, row->help);
        return put(p, row->name, value);
    }
    const kd_option *off = strncmp(name, "no-", 3) == 0 ? find_row(p, name + 3, length - 3) : NULL;
    if (off && off->kind == KD_BOOL && !value) return put(p, off->name, "false");
    /* A whole section, `--loss={ce: {weight: 1}}`, has no dot; who takes settings knows its sections. */
    const bool section = value && (value[0] == '{' || value[0] == '[');
    if (p->take_settings && (section || strchr(name, '.'))) return parse_setting(p, name, value);
    return put(p, name, ""); /* kd_options_parse says that no row knows it, and which is near */
}

static kd_status parse_words(parser *p)
{
    bool options = true;
    for (p->at = 1; p->at < p->argc; p->at++) {
        const char *word = p->argv[p->at];
        if (options && strcmp(word, "--") == 0) {
            options = false;
        } else if (options && strcmp(word, "-h") == 0) {
            p->args->help = true;
        } else if (options && strncmp(word, "--", 2) == 0) {
            KD_TRY(parse_option(p, word + 2));
        } else if (options && word[0] == '-' && word[1]) {
            return kd_fail(KD_EINVAL, "%s: unknown option; options begin with --", word);
        } else {
            KD_TRY(kd_arena_string(&p->operands[p->args->operand_count++], p->arena, word));
        }
    }
    return KD_OK;
}

static kd_status parse(parser *p, void *target)
{
    static const char *const others[] = { "help", NULL };
    KD_TRY(KD_ARENA_ARRAY(&p->operands, p->arena, p->argc));
    KD_TRY(KD_ARENA_ARRAY(&p->settings, p->arena, 2 * (int64_t)p->argc));
    p->args->operands = p->operands;
    p->args->settings = p->settings;
    p->map.source = p->argv[0];
    KD_TRY(parse_words(p));
    return p->args->help ? KD_OK : kd_options_parse(target, p->rows, p->arena, &p->map, "", others);
}

kd_status kd_args_parse(kd_args *args, void *target, const kd_option *rows, int argc,
                        char *const *argv, bool settings)
{
    parser p = { .rows = rows,
                 .map = { .kind = KD_NODE_MAP },
                 .args = args,
                 .argv = argv,
                 .argc = argc,
                 .take_settings = settings };
    *args = (kd_args){ 0 };
    KD_TRY(kd_arena_create(&p.arena));
    args->memory = p.arena;
    const kd_status status = parse(&p, target);
    if (status != KD_OK) kd_args_close(args);
    return status;
}

void kd_args_close(kd_args *args)
{
    kd_arena_destroy(args->memory);
    *args = (kd_args){ 0 };
}
