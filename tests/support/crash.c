#include "support/crash.h"

#include "base/base.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NODES = 512, NAME = 96, DESCRIPTORS = 1024 };

/* ---- a tree of files in memory ---------------------------------------------------------------- */

/* A file or a folder, whatever it is called. */
typedef struct node {
    bool folder;
    unsigned char *data;
    size_t bytes;
} node;

typedef struct entry {
    int folder, node;
    char name[NAME];
} entry;

/* node 0 is the root. */
typedef struct tree {
    node nodes[NODES];
    entry entries[NODES];
    int nodes_used, entries_used;
} tree;

static int add_node(tree *t, bool folder)
{
    cr_assert(t->nodes_used < NODES, "more files than the tests expect");
    t->nodes[t->nodes_used] = (node){ .folder = folder };
    return t->nodes_used++;
}

static int find_entry(const tree *t, int folder, const char *name)
{
    for (int i = 0; i < t->entries_used; i++)
        if (t->entries[i].folder == folder && strcmp(t->entries[i].name, name) == 0) return i;
    return -1;
}

static void unlink_entry(tree *t, int folder, const char *name)
{
    const int at = find_entry(t, folder, name);
    if (at >= 0) t->entries[at] = t->entries[--t->entries_used];
}

static void link_entry(tree *t, int folder, const char *name, int to)
{
    unlink_entry(t, folder, name);
    cr_assert(t->entries_used < NODES && strlen(name) < NAME);
    entry *e = &t->entries[t->entries_used++];
    *e = (entry){ .folder = folder, .node = to };
    snprintf(e->name, sizeof e->name, "%s", name);
}

static void resize(node *n, size_t bytes)
{
    if (bytes > n->bytes) {
        n->data = realloc(n->data, bytes);
        cr_assert(n->data != NULL);
        memset(n->data + n->bytes, 0, bytes - n->bytes);
    }
    n->bytes = bytes;
}

static void free_tree(tree *t)
{
    for (int i = 0; i < t->nodes_used; i++) free(t->nodes[i].data);
    free(t);
}

static tree *copy_tree(const tree *from)
{
    tree *t = malloc(sizeof *t);
    cr_assert(t != NULL);
    *t = *from;
    for (int i = 0; i < t->nodes_used; i++) {
        t->nodes[i].data = malloc(from->nodes[i].bytes + 1);
        cr_assert(t->nodes[i].data != NULL);
        if (from->nodes[i].bytes)
            memcpy(t->nodes[i].data, from->nodes[i].data, from->nodes[i].bytes);
    }
    return t;
}

/* ---- the tree on a disk ----------------------------------------------------------------------- */

static void join(char path[TEST_PATH], const char *folder, const char *name)
{
    cr_assert(snprintf(path, TEST_PATH, "%s/%s", folder, name) < TEST_PATH);
}

static void read_tree(tree *t, int folder, const char *path)
{
    DIR *dir = opendir(path);
    cr_assert(dir != NULL, "%s: cannot be listed", path);
    for (const struct dirent *e; (e = readdir(dir));) {
        char below[TEST_PATH];
        struct stat info;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        join(below, path, e->d_name);
        cr_assert(stat(below, &info) == 0);
        const int to = add_node(t, S_ISDIR(info.st_mode));
        link_entry(t, folder, e->d_name, to);
        if (S_ISDIR(info.st_mode)) {
            read_tree(t, to, below);
        } else {
            char *text;
            cr_assert(kd_file_read(&text, &t->nodes[to].bytes, below, (size_t)1 << 30) == KD_OK);
            t->nodes[to].data = (unsigned char *)text;
        }
    }
    closedir(dir);
}

static void write_tree(const tree *t, int folder, const char *path)
{
    for (int i = 0; i < t->entries_used; i++) {
        const entry *e = &t->entries[i];
        const node *n = &t->nodes[e->node];
        char below[TEST_PATH];
        if (e->folder != folder) continue;
        join(below, path, e->name);
        if (n->folder) {
            cr_assert(mkdir(below, 0777) == 0, "%s", below);
            write_tree(t, e->node, below);
            continue;
        }
        const int fd = open(below, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        cr_assert(fd >= 0 && write(fd, n->data, n->bytes) == (ssize_t)n->bytes, "%s", below);
        close(fd);
    }
}

static void empty_folder(const char *path)
{
    DIR *dir = opendir(path);
    cr_assert(dir != NULL);
    for (const struct dirent *e; (e = readdir(dir));) {
        char below[TEST_PATH];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        join(below, path, e->d_name);
        if (unlink(below) != 0) cr_assert(kd_dir_remove(below) == KD_OK, "%s", kd_last_error());
    }
    closedir(dir);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const entry *const *)a)->name, (*(const entry *const *)b)->name);
}

/* Of names and contents, in the order of the names. */
static uint64_t hash_tree(const tree *t, int folder)
{
    const entry *own[NODES];
    uint64_t sum = 1;
    int count = 0;
    for (int i = 0; i < t->entries_used; i++)
        if (t->entries[i].folder == folder) own[count++] = &t->entries[i];
    if (count) qsort(own, (size_t)count, sizeof *own, by_name);
    for (int i = 0; i < count; i++) {
        const node *n = &t->nodes[own[i]->node];
        const uint64_t parts[] = { sum, kd_hash_key(own[i]->name, strlen(own[i]->name)), n->folder,
                                   n->folder  ? hash_tree(t, own[i]->node)
                                   : n->bytes ? kd_hash_key(n->data, n->bytes)
                                              : 0 };
        sum = kd_hash_key(parts, sizeof parts);
    }
    return sum;
}

/* ---- what was recorded ------------------------------------------------------------------------ */

typedef enum act { CREATE, REMOVE, RENAME, EXCHANGE, WRITE, RESIZE, SYNC } act;

typedef struct step {
    act act;
    int folder, to; /* folder: of the names, or the file's own node; to: the node of a new name */
    char names[2][NAME];
    int64_t at; /* WRITE */
    size_t bytes;
    unsigned char *data;
    int64_t synced; /* number of the call that made it sure */
} step;

struct test_disk {
    char root[TEST_PATH];
    tree *start, *live; /* as it was on the disk, and as the process sees it */
    step *steps;
    int64_t count, room;
    int descriptors[DESCRIPTORS]; /* node of each that is open below root; -1: none */
    uint64_t *made;               /* hashes of the states that were made */
    int64_t made_count, made_room;
};

test_disk *test_disk_open(const char *root)
{
    test_disk *d = calloc(1, sizeof *d);
    cr_assert(d != NULL && strlen(root) < sizeof d->root);
    strcpy(d->root, root);
    d->start = calloc(1, sizeof *d->start);
    cr_assert(d->start != NULL);
    add_node(d->start, true);
    read_tree(d->start, 0, root);
    d->live = copy_tree(d->start);
    for (int i = 0; i < DESCRIPTORS; i++) d->descriptors[i] = -1;
    return d;
}

void test_disk_close(test_disk *d)
{
    for (int64_t i = 0; i < d->count; i++) free(d->steps[i].data);
    free(d->steps);
    free(d->made);
    free_tree(d->start);
    free_tree(d->live);
    free(d);
}

int64_t test_disk_calls(const test_disk *d) { return d->count; }

/* The folder's node and the last name of a path below root; -1 where the path is root itself. */
static int resolve(const test_disk *d, char name[NAME], const char *path)
{
    const char *at = path + strlen(d->root);
    int folder = 0;
    name[0] = '\0';
    for (;;) {
        at += strspn(at, "/");
        if (!*at) return name[0] ? folder : -1;
        if (name[0]) {
            const int found = find_entry(d->live, folder, name);
            cr_assert(found >= 0, "%s: unknown folder", path);
            folder = d->live->entries[found].node;
        }
        const size_t n = strcspn(at, "/");
        cr_assert(n < NAME);
        memcpy(name, at, n);
        name[n] = '\0';
        at += n;
    }
}

static int node_at(const test_disk *d, const char *path)
{
    char name[NAME];
    const int folder = resolve(d, name, path);
    if (folder < 0) return 0;
    const int found = find_entry(d->live, folder, name);
    return found < 0 ? -1 : d->live->entries[found].node;
}

/* `kept` of the data, the rest as it was; `zeros`: zeros in its place. */
static void apply_write(node *n, const step *s, size_t kept, bool zeros)
{
    if ((size_t)s->at + kept > n->bytes) resize(n, (size_t)s->at + kept);
    if (zeros)
        memset(n->data + s->at, 0, kept);
    else if (kept)
        memcpy(n->data + s->at, s->data, kept);
}

static void apply(tree *t, const step *s)
{
    const int first = find_entry(t, s->folder, s->names[0]);
    const int second = find_entry(t, s->folder, s->names[1]);
    switch (s->act) {
    case CREATE: link_entry(t, s->folder, s->names[0], s->to); break;
    case REMOVE: unlink_entry(t, s->folder, s->names[0]); break;
    case RENAME:
        unlink_entry(t, s->folder, s->names[0]);
        link_entry(t, s->folder, s->names[1], s->to);
        break;
    case EXCHANGE:
        if (first < 0 || second < 0) break; /* one of them was never there */
        const int kept = t->entries[first].node;
        t->entries[first].node = t->entries[second].node;
        t->entries[second].node = kept;
        break;
    case WRITE: apply_write(&t->nodes[s->folder], s, s->bytes, false); break;
    case RESIZE: resize(&t->nodes[s->folder], s->bytes); break;
    case SYNC: break;
    }
}

static void record(test_disk *d, step s)
{
    if (d->count == d->room) {
        d->room = d->room ? 2 * d->room : 256;
        d->steps = realloc(d->steps, (size_t)d->room * sizeof *d->steps);
        cr_assert(d->steps != NULL);
    }
    s.synced = INT64_MAX;
    for (int64_t i = 0; i < d->count && s.act == SYNC; i++)
        if (d->steps[i].folder == s.folder && d->steps[i].synced > d->count)
            d->steps[i].synced = d->count;
    d->steps[d->count++] = s;
    apply(d->live, &s);
}

/* A new file or folder is in both trees from the start; its name is what comes and goes. */
static int new_node(test_disk *d, bool folder)
{
    add_node(d->start, folder);
    return add_node(d->live, folder);
}

static void see_create(test_disk *d, const char *path, bool folder)
{
    step s = { .act = CREATE };
    s.folder = resolve(d, s.names[0], path);
    s.to = new_node(d, folder);
    record(d, s);
}

static void see_open(test_disk *d, const test_call *c)
{
    cr_assert(!(c->args[2] & O_TRUNC), "%s: opened with O_TRUNC", c->paths[0]);
    if (node_at(d, c->paths[0]) < 0) see_create(d, c->paths[0], false);
    cr_assert(c->result < DESCRIPTORS);
    d->descriptors[c->result] = node_at(d, c->paths[0]);
}

static void see_rename(test_disk *d, const test_call *c)
{
    const bool exchange = c->number == SYS_renameat2 && c->args[4] != 0;
    step s = { .act = exchange ? EXCHANGE : RENAME };
    s.folder = resolve(d, s.names[0], c->paths[0]);
    s.to = node_at(d, c->paths[0]);
    cr_assert(resolve(d, s.names[1], c->paths[1]) == s.folder, "renamed to another folder");
    record(d, s);
}

static void see_write(test_disk *d, const test_call *c)
{
    const int file = d->descriptors[c->args[0]];
    step s = { .act = WRITE, .folder = file, .bytes = (size_t)c->result };
    cr_assert(file >= 0, "%s: written and never opened", c->paths[0]);
    /* Files that are written without an offset are those that are appended to. */
    s.at = c->number == SYS_pwrite64 ? (int64_t)c->args[3] : (int64_t)d->live->nodes[file].bytes;
    s.data = malloc(s.bytes + 1);
    cr_assert(s.data != NULL);
    test_child_read(c->child, s.data, c->args[1], s.bytes);
    record(d, s);
}

#if defined(__x86_64__)
void test_disk_see(void *disk, const test_call *c)
{
    test_disk *d = disk;
    step s = { .act = REMOVE };
    switch (c->number) {
    case SYS_openat: see_open(d, c); break;
    case SYS_mkdir: see_create(d, c->paths[0], true); break;
    case SYS_rename:
    case SYS_renameat2: see_rename(d, c); break;
    case SYS_write:
    case SYS_pwrite64: see_write(d, c); break;
    case SYS_ftruncate:
        record(d, (step){ .act = RESIZE,
                          .folder = d->descriptors[c->args[0]],
                          .bytes = (size_t)c->args[1] });
        break;
    case SYS_fsync: record(d, (step){ .act = SYNC, .folder = d->descriptors[c->args[0]] }); break;
    case SYS_unlink:
    case SYS_rmdir:
    case SYS_unlinkat:
        s.folder = resolve(d, s.names[0], c->paths[0]);
        record(d, s);
        break;
    default: break; /* reads, and closes, which promise nothing */
    }
}
#else
void test_disk_see(void *disk, const test_call *c) { (void)disk, (void)c; }
#endif

/* ---- cuts ------------------------------------------------------------------------------------- */

static bool is_data(act a) { return a == WRITE || a == RESIZE; }

static bool is_pending(const step *s, int64_t calls)
{
    return s->act != SYNC && s->synced >= calls;
}

typedef enum fate { LOST, KEPT, HALF, ZEROS } fate;

/* What becomes of the pending step number `i` of `pending`; false: no such variant. */
static bool choose(fate *f, act a, int variant, int i, int pending, uint64_t draw)
{
    enum { WHOLE_SETS = 4, DRAWS = 4 };
    static const fate sets[WHOLE_SETS] = { KEPT, LOST, HALF, ZEROS };
    if (variant < WHOLE_SETS) {
        *f = sets[variant];
    } else if ((variant -= WHOLE_SETS) < pending) {
        *f = variant == i ? KEPT : LOST;
    } else if ((variant -= pending) < pending) {
        *f = variant == i ? LOST : KEPT;
    } else if ((variant -= pending) < DRAWS) {
        *f = (fate)(4 * kd_random_uniform(11, draw, (uint64_t)(DRAWS * i + variant)));
    } else {
        return false;
    }
    if (!is_data(a) && *f != LOST) *f = KEPT;
    return true;
}

static void apply_fate(tree *t, const step *s, fate f)
{
    if (f == LOST) return;
    if (s->act == WRITE)
        apply_write(&t->nodes[s->folder], s, f == HALF ? s->bytes / 2 : s->bytes, f == ZEROS);
    else
        apply(t, s);
}

static bool is_new(test_disk *d, uint64_t hash)
{
    for (int64_t i = 0; i < d->made_count; i++)
        if (d->made[i] == hash) return false;
    if (d->made_count == d->made_room) {
        d->made_room = d->made_room ? 2 * d->made_room : 256;
        d->made = realloc(d->made, (size_t)d->made_room * sizeof *d->made);
        cr_assert(d->made != NULL);
    }
    d->made[d->made_count++] = hash;
    return true;
}

test_cut test_disk_cut(test_disk *d, int64_t calls, int variant)
{
    test_cut cut = TEST_CUT_AGAIN;
    int pending = 0, next = 0;
    for (int64_t i = 0; i < calls; i++) pending += is_pending(&d->steps[i], calls);
    if (variant > 0 && pending == 0) return TEST_CUT_NONE;
    tree *t = copy_tree(d->start);
    for (int64_t i = 0; i < calls; i++) {
        const step *s = &d->steps[i];
        fate f = KEPT;
        if (is_pending(s, calls) &&
            !choose(&f, s->act, variant, next++, pending, (uint64_t)calls)) {
            free_tree(t);
            return TEST_CUT_NONE;
        }
        apply_fate(t, s, f);
    }
    /* What the last call leaves is judged by another rule than what is on the way to it. */
    if (is_new(d, hash_tree(t, 0) + (calls == d->count))) {
        empty_folder(d->root);
        write_tree(t, 0, d->root);
        cut = TEST_CUT_MADE;
    }
    free_tree(t);
    return cut;
}
