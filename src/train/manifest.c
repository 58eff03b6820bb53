/*
 * MANIFEST.json: {"files": {path: {"bytes", "xxh3", "tensors": {name: {"begin", "end", "xxh3"}}}},
 * "xxh3": h}.
 *
 * Hashes are XXH3-128.  `h` is that of the text before it, so no byte of this file can change unseen
 * either.  A safetensors file also has a hash per tensor, in the order of the file: a flipped bit is
 * then named by tensor and offset.
 */
#include "train/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define NAME      "MANIFEST.json"
#define TAIL_HEAD ",\n  \"xxh3\": \""
#define TAIL_END  "\"\n}\n"

enum { MAX_DEPTH = 8, HASH_DIGITS = 32 };
enum { TAIL_BYTES = sizeof TAIL_HEAD - 1 + HASH_DIGITS + sizeof TAIL_END - 1 };

static const size_t MAX_MANIFEST = (size_t)256 << 20;

/* What no checkpoint is without. */
static const char *const required[] = { "config.json", "model.safetensors", "trainer_state.json",
                                        "engine/state.json", "engine/optimizer.safetensors" };

/* ---- pieces of a safetensors file ------------------------------------------------------------- */

/* The header, which is piece 0 and has no name, and the tensors. */
typedef struct pieces {
    const char **names;
    int64_t *ends;
    kd_hash *hashes;
    int64_t count; /* 0: not a safetensors file */
} pieces;

static kd_status take_pieces(pieces *p, kd_arena *arena, int64_t tensors)
{
    p->count = tensors + 1;
    KD_TRY(KD_ARENA_ARRAY(&p->names, arena, p->count));
    KD_TRY(KD_ARENA_ARRAY(&p->ends, arena, p->count));
    return KD_ARENA_ARRAY(&p->hashes, arena, p->count);
}

static int by_offset(const void *a, const void *b)
{
    const kd_st_entry *x = *(const kd_st_entry *const *)a, *y = *(const kd_st_entry *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static kd_status pieces_of_open_file(pieces *p, kd_arena *arena, const kd_st_file *file)
{
    const kd_st_entry **entries;
    KD_TRY(take_pieces(p, arena, file->count));
    KD_TRY(KD_ARENA_ARRAY(&entries, arena, file->count));
    for (int64_t i = 0; i < file->count; i++) entries[i] = &file->entries[i];
    if (file->count) qsort(entries, (size_t)file->count, sizeof *entries, by_offset);
    p->ends[0] = file->count ? entries[0]->offset : file->size;
    for (int64_t i = 0; i < file->count; i++) {
        KD_TRY(kd_arena_string(&p->names[i + 1], arena, entries[i]->name));
        p->ends[i + 1] = entries[i]->offset + entries[i]->bytes;
    }
    return KD_OK;
}

static bool is_safetensors(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot && strcmp(dot, ".safetensors") == 0;
}

static kd_status pieces_of_file(pieces *p, kd_arena *arena, const char *path)
{
    kd_st_file *file;
    *p = (pieces){ 0 };
    if (!is_safetensors(path)) return KD_OK;
    KD_TRY(kd_st_open(&file, path));
    const kd_status status = pieces_of_open_file(p, arena, file);
    kd_st_close(file);
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------- */

/* Only `key` may be no UTF-8: a value that is NULL was refused its memory. */
static kd_status set(json_t *object, const char *key, json_t *value)
{
    const int64_t before = kd_json_refused();
    const bool made = object && value;
    if (json_object_set_new(object, key, value) == 0) return KD_OK;
    return !made || kd_json_refused() != before
               ? kd_fail(KD_ENOMEM, NAME ": \"%s\": no memory", key)
               : kd_fail(KD_EINVAL, NAME ": \"%s\" is not UTF-8", key);
}

static kd_status describe_pieces(json_t *tensors, const pieces *p)
{
    for (int64_t i = 1; i < p->count; i++)
        KD_TRY(set(tensors, p->names[i],
                   json_pack("{s:I, s:I, s:s}", "begin", (json_int_t)p->ends[i - 1], "end",
                             (json_int_t)p->ends[i], "xxh3", p->hashes[i].hex)));
    return KD_OK;
}

static kd_status describe_file(json_t *files, kd_arena *arena, const char *dir,
                               const char *relative)
{
    const char *path;
    int64_t bytes;
    kd_hash hash;
    pieces p;
    KD_TRY(kd_path_join(&path, arena, dir, relative));
    KD_TRY(kd_file_size(&bytes, path));
    KD_TRY(pieces_of_file(&p, arena, path));
    KD_TRY(kd_hash_pieces(&hash, p.hashes, p.ends, p.count, path));
    json_t *entry = json_pack("{s:I, s:s}", "bytes", (json_int_t)bytes, "xxh3", hash.hex);
    KD_TRY(set(files, relative, entry));
    if (p.count == 0) return KD_OK;
    json_t *tensors = json_object();
    KD_TRY(set(entry, "tensors", tensors));
    return describe_pieces(tensors, &p);
}

/* `relative` is "" at the top. */
static kd_status describe_folder(json_t *files, kd_arena *arena, const char *dir,
                                 const char *relative, int depth)
{
    const char *folder, *path, *inner;
    const char *const *names;
    int count;
    if (depth > MAX_DEPTH)
        return kd_fail(KD_EINVAL, "%s: folders deeper than %d", dir, (int)MAX_DEPTH);
    KD_TRY(kd_path_join(&folder, arena, dir, relative));
    KD_TRY(kd_dir_list(&names, &count, arena, folder));
    for (int i = 0; i < count; i++) {
        KD_TRY(kd_path_join(&path, arena, folder, names[i]));
        if (*relative)
            KD_TRY(kd_path_join(&inner, arena, relative, names[i]));
        else
            inner = names[i];
        if (kd_dir_exists(path))
            KD_TRY(describe_folder(files, arena, dir, inner, depth + 1));
        else
            KD_TRY(describe_file(files, arena, dir, inner));
    }
    return kd_file_fsync(folder);
}

/* The text without its closing brace, then the tail with the hash of that. */
static kd_status write_text(const char *path, const json_t *manifest)
{
    char *text;
    KD_TRY(kd_json_dump(&text, path, manifest, JSON_INDENT(2)));
    const size_t head = strlen(text) - 2; /* "\n}" */
    char *whole = realloc(text, head + TAIL_BYTES + 1);
    if (!whole) {
        free(text);
        return kd_fail(KD_ENOMEM, "%s: no memory", path);
    }
    const kd_hash hash = kd_hash_bytes(whole, head);
    snprintf(whole + head, TAIL_BYTES + 1, TAIL_HEAD "%s" TAIL_END, hash.hex);
    const kd_status status = kd_file_write_atomic(path, whole, head + TAIL_BYTES);
    free(whole);
    return status;
}

kd_status kd_manifest_write(const char *dir)
{
    kd_arena *arena = NULL;
    json_t *manifest = json_object(), *files = json_object();
    const char *path;
    kd_status status;
    KD_TRY_GOTO(set(manifest, "files", files), status, done);
    KD_TRY_GOTO(kd_arena_create(&arena), status, done);
    KD_TRY_GOTO(describe_folder(files, arena, dir, "", 0), status, done);
    KD_TRY_GOTO(kd_path_join(&path, arena, dir, NAME), status, done);
    KD_TRY_GOTO(write_text(path, manifest), status, done);
done:
    json_decref(manifest);
    kd_arena_destroy(arena);
    return status;
}

/* ---- checking --------------------------------------------------------------------------------- */

static kd_status check_text(const char *path, const char *text, size_t bytes)
{
    const char *tail = bytes < TAIL_BYTES ? text : text + bytes - TAIL_BYTES;
    const char *digits = tail + sizeof TAIL_HEAD - 1;
    if (bytes < TAIL_BYTES || memcmp(tail, TAIL_HEAD, sizeof TAIL_HEAD - 1) != 0 ||
        memcmp(digits + HASH_DIGITS, TAIL_END, sizeof TAIL_END - 1) != 0)
        return kd_fail(KD_EFORMAT, "%s: does not end with its own hash, after %zu bytes", path,
                       bytes);
    const kd_hash hash = kd_hash_bytes(text, bytes - TAIL_BYTES);
    if (memcmp(hash.hex, digits, HASH_DIGITS) == 0) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: bytes 0 to %zu: found xxh3 %s, expected %.*s", path,
                   bytes - TAIL_BYTES, hash.hex, (int)HASH_DIGITS, digits);
}

static kd_status read_manifest(json_t **manifest, const char *path)
{
    char *text;
    size_t bytes;
    KD_TRY(kd_file_read(&text, &bytes, path, MAX_MANIFEST));
    kd_status status = check_text(path, text, bytes);
    if (status == KD_OK) status = kd_json_parse(manifest, path, text, bytes);
    free(text);
    return status;
}

static kd_status malformed(const char *manifest, const char *name, const char *what)
{
    return kd_fail(KD_EFORMAT, "%s: \"%.120s\": %s", manifest, name, what);
}

/* Stays below the folder, whoever wrote the manifest. */
static bool inside(const char *relative)
{
    for (const char *part = relative; part; part = strchr(part, '/')) {
        part += part != relative;
        if (*part == '/' || *part == '\0' || strncmp(part, "../", 3) == 0 ||
            strcmp(part, "..") == 0)
            return false;
    }
    return true;
}

static kd_status pieces_of_entry(pieces *p, kd_arena *arena, const char *manifest, const char *name,
                                 const json_t *entry, int64_t bytes)
{
    json_t *tensors = json_object_get(entry, "tensors");
    int64_t i = 1, at = -1;
    *p = (pieces){ 0 };
    if (!tensors) return KD_OK;
    if (json_typeof(tensors) != JSON_OBJECT)
        return malformed(manifest, name, "tensors is no object");
    KD_TRY(take_pieces(p, arena, (int64_t)json_object_size(tensors)));
    p->ends[0] = bytes;
    for (void *it = json_object_iter(tensors); it; it = json_object_iter_next(tensors, it)) {
        const json_t *tensor = json_object_iter_value(it);
        const json_t *first = json_object_get(tensor, "begin");
        const json_t *last = json_object_get(tensor, "end");
        const int64_t begin = json_integer_value(first), end = json_integer_value(last);
        if (!json_is_integer(first) || !json_is_integer(last) ||
            !json_is_string(json_object_get(tensor, "xxh3")))
            return malformed(manifest, name, "a tensor without begin, end or xxh3");
        if (i == 1) p->ends[0] = at = begin;
        if (begin != at || begin < 0 || end < begin || end > bytes)
            return malformed(manifest, name, "tensors that do not lie side by side");
        p->names[i] = json_object_iter_key(it);
        p->ends[i++] = at = end;
    }
    return KD_OK;
}

/* The file's hash differs: which part of it does? */
static kd_status name_damage(const char *path, int64_t bytes, const json_t *entry, const pieces *p,
                             const kd_hash *found, const char *expected)
{
    const json_t *tensors = json_object_get(entry, "tensors");
    for (int64_t i = 1; i < p->count; i++) {
        const char *want =
            json_string_value(json_object_get(json_object_get(tensors, p->names[i]), "xxh3"));
        if (strcmp(want, p->hashes[i].hex) == 0) continue;
        return kd_fail(
            KD_EFORMAT, "%s: tensor \"%s\": bytes %lld to %lld: found xxh3 %s, expected %s", path,
            p->names[i], (long long)p->ends[i - 1], (long long)p->ends[i], p->hashes[i].hex, want);
    }
    if (p->count)
        return kd_fail(KD_EFORMAT,
                       "%s: header: bytes 0 to %lld: found xxh3 of file %s, expected %s", path,
                       (long long)p->ends[0], found->hex, expected);
    return kd_fail(KD_EFORMAT, "%s: bytes 0 to %lld: found xxh3 %s, expected %s", path,
                   (long long)bytes, found->hex, expected);
}

static kd_status check_file(kd_arena *arena, const char *manifest, const char *dir,
                            const char *name, const json_t *entry, bool hashes)
{
    const char *path, *expected = json_string_value(json_object_get(entry, "xxh3"));
    const json_t *size = json_object_get(entry, "bytes");
    int64_t bytes;
    if (!inside(name)) return malformed(manifest, name, "not a path inside the folder");
    if (!expected || !json_is_integer(size))
        return malformed(manifest, name, "bytes or xxh3 missing");
    KD_TRY(kd_path_join(&path, arena, dir, name));
    KD_TRY(kd_file_size(&bytes, path));
    if (bytes != json_integer_value(size))
        return kd_fail(KD_EFORMAT, "%s: found %lld bytes, expected %lld", path, (long long)bytes,
                       (long long)json_integer_value(size));
    if (!hashes) return KD_OK;
    pieces p;
    kd_hash hash;
    KD_TRY(pieces_of_entry(&p, arena, manifest, name, entry, bytes));
    KD_TRY(kd_hash_pieces(&hash, p.hashes, p.ends, p.count, path));
    return strcmp(hash.hex, expected) == 0 ? KD_OK
                                           : name_damage(path, bytes, entry, &p, &hash, expected);
}

static kd_status check_files(kd_arena *arena, const char *manifest, const char *dir, json_t *files,
                             bool hashes)
{
    for (int i = 0; i < KD_COUNT(required); i++)
        if (!json_object_get(files, required[i]))
            return malformed(manifest, required[i], "not listed; every checkpoint has it");
    for (void *at = json_object_iter(files); at; at = json_object_iter_next(files, at))
        KD_TRY(check_file(arena, manifest, dir, json_object_iter_key(at),
                          json_object_iter_value(at), hashes));
    return KD_OK;
}

kd_status kd_manifest_check(const char *dir, bool hashes)
{
    kd_arena *arena = NULL;
    json_t *manifest = NULL;
    const char *path;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(kd_path_join(&path, arena, dir, NAME), status, done);
    KD_TRY_GOTO(read_manifest(&manifest, path), status, done);
    KD_TRY_GOTO(check_files(arena, path, dir, json_object_get(manifest, "files"), hashes), status,
                done);
done:
    json_decref(manifest);
    kd_arena_destroy(arena);
    return status;
}

kd_status kd_checkpoint_verify(const char *dir) { return kd_manifest_check(dir, true); }
