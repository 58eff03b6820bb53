/*
 * safetensors_write.c - safetensors files, byte for byte as the reference writes them.
 *
 * Tensors are laid out by the reference's order of types, widest first, then by name, which also aligns
 * every tensor; the header's keys follow that order after "__metadata__", and spaces pad it to 8 bytes.
 *
 * The bytes go to a staging name beside the target, which is renamed over it by close: a reader that
 * has the old file open keeps it, and a failure leaves what was there.
 */
#include "format/format.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { HEADER_LIMIT = 100000000 };

typedef struct item {
    const char *name;
    kd_dtype dtype;
    int32_t rank;
    int64_t shape[KD_ST_MAX_RANK];
    int64_t offset; /* from the start of the file, once begun */
    int64_t bytes, written;
} item;

struct kd_st_writer {
    kd_arena *arena;
    const char *path;
    char staging[PATH_MAX];
    int fd; /* -1: nothing is staged */
    bool begun;
    json_t *metadata; /* NULL: none */
    item *items;      /* in the order of the file, once begun */
    int64_t count, capacity;
    item **names; /* sorted by name, once begun */
};

/* The place of each element type in the file; the same as in the reference's enum, from its end. */
static const kd_dtype layout[] = { KD_I64, KD_F32,     KD_U32,     KD_I32, KD_BF16, KD_F16,
                                   KD_U16, KD_F8_E4M3, KD_F8_E5M2, KD_I8,  KD_U8 };
_Static_assert(sizeof layout / sizeof layout[0] == KD_DTYPE_COUNT, "every type has its place");

static const char *file_name_of(kd_dtype dtype)
{
    static const char *const names[] = {
#define X(type, bytes, file_name, run_name) file_name,
        KD_DTYPE_LIST(X)
#undef X
    };
    return names[dtype];
}

static int place_of(kd_dtype dtype)
{
    int i = 0;
    while (layout[i] != dtype) i++;
    return i;
}

static int by_layout(const void *a, const void *b)
{
    const item *x = a, *y = b;
    if (x->dtype != y->dtype) return place_of(x->dtype) - place_of(y->dtype);
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(item *const *)a)->name, (*(item *const *)b)->name);
}

static int find_name(const void *key, const void *element)
{
    return strcmp(key, (*(item *const *)element)->name);
}

kd_status kd_st_writer_create(kd_st_writer **writer, const char *path)
{
    *writer = NULL;
    kd_arena *arena = NULL;
    kd_st_writer *w = NULL;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = KD_ARENA_ARRAY(&w, arena, 1);
    if (status != KD_OK) {
        kd_arena_destroy(arena);
        return status;
    }
    w->arena = arena;
    w->fd = -1;
    KD_TRY_GOTO(kd_arena_string(&w->path, arena, path), status, failed);
    KD_TRY_GOTO(kd_file_stage(w->staging, &w->fd, path), status, failed);
    *writer = w;
    return KD_OK;
failed:
    kd_st_writer_abort(w);
    return status;
}

kd_status kd_st_writer_metadata(kd_st_writer *writer, const char *key, const char *value)
{
    if (writer->begun)
        return kd_fail(KD_EINVAL, "%s: metadata \"%s\" after the header was written", writer->path,
                       key);
    const int64_t before = kd_json_refused();
    if (!writer->metadata) writer->metadata = json_object();
    if (json_object_set_new(writer->metadata, key, json_string(value)) == 0) return KD_OK;
    return kd_json_refused() != before
               ? kd_fail(KD_ENOMEM, "%s: no memory for metadata \"%s\"", writer->path, key)
               : kd_fail(KD_EINVAL, "%s: metadata \"%s\" is not UTF-8", writer->path, key);
}

static kd_status grow(kd_st_writer *w)
{
    if (w->count < w->capacity) return KD_OK;
    const int64_t capacity = w->capacity ? 2 * w->capacity : 64;
    item *items = realloc(w->items, (size_t)capacity * sizeof *items);
    if (!items)
        return kd_fail(KD_ENOMEM, "%s: no memory for %lld tensors", w->path, (long long)capacity);
    w->items = items;
    w->capacity = capacity;
    return KD_OK;
}

kd_status kd_st_writer_declare(kd_st_writer *writer, const char *name, kd_dtype dtype, int32_t rank,
                               const int64_t *shape)
{
    if (writer->begun || !strcmp(name, "__metadata__"))
        return kd_fail(KD_EINVAL, "%s: tensor \"%s\" %s", writer->path, name,
                       writer->begun ? "declared after the header was written" : "is reserved");
    if (rank < 0 || rank > KD_ST_MAX_RANK)
        return kd_fail(KD_EINVAL, "%s: tensor \"%s\": %d dimensions, expected at most %d",
                       writer->path, name, rank, KD_ST_MAX_RANK);
    item it = { .dtype = dtype, .rank = rank };
    int64_t elements = 1; /* as it is read: bytes come after a dimension of 0 has had its say */
    for (int32_t i = 0; i < rank; i++) {
        it.shape[i] = shape[i];
        if (shape[i] < 0 || !kd_mul_i64(&elements, elements, shape[i]))
            return kd_fail(KD_EINVAL, "%s: tensor \"%s\": dimension %d is %lld", writer->path, name,
                           i, (long long)shape[i]);
    }
    if (!kd_mul_i64(&it.bytes, elements, (int64_t)kd_dtype_size(dtype)))
        return kd_fail(KD_EINVAL, "%s: tensor \"%s\": %lld elements", writer->path, name,
                       (long long)elements);
    KD_TRY(grow(writer));
    KD_TRY(kd_arena_string(&it.name, writer->arena, name));
    writer->items[writer->count++] = it;
    return KD_OK;
}

static kd_status sort_items(kd_st_writer *w)
{
    if (w->count == 0) return KD_OK;
    qsort(w->items, (size_t)w->count, sizeof *w->items, by_layout);
    KD_TRY(KD_ARENA_ARRAY(&w->names, w->arena, w->count));
    for (int64_t i = 0; i < w->count; i++) w->names[i] = &w->items[i];
    qsort(w->names, (size_t)w->count, sizeof *w->names, by_name);
    for (int64_t i = 1; i < w->count; i++) {
        if (!strcmp(w->names[i - 1]->name, w->names[i]->name))
            return kd_fail(KD_EINVAL, "%s: tensor \"%s\" declared twice", w->path,
                           w->names[i]->name);
    }
    return KD_OK;
}

/* `*header` is the caller's; `*bytes` of data.  Sets each item's offset from the start of the data. */
static kd_status build_header(json_t **header, int64_t *bytes, kd_st_writer *w)
{
    const int64_t before = kd_json_refused();
    *header = json_object();
    if (w->metadata) (void)json_object_set(*header, "__metadata__", w->metadata);
    *bytes = 0;
    for (int64_t i = 0; i < w->count; i++) {
        item *it = &w->items[i];
        it->offset = *bytes;
        if (!kd_add_i64(bytes, *bytes, it->bytes))
            return kd_fail(KD_EINVAL, "%s: the tensors' bytes overflow", w->path);
        json_t *shape = json_array();
        for (int32_t d = 0; d < it->rank; d++)
            (void)json_array_append_new(shape, json_integer(it->shape[d]));
        json_t *info = json_pack("{s:s, s:o, s:[I, I]}", "dtype", file_name_of(it->dtype), "shape",
                                 shape, "data_offsets", (json_int_t)it->offset, (json_int_t)*bytes);
        if (json_object_set_new(*header, it->name, info) != 0 && kd_json_refused() == before)
            return kd_fail(KD_EINVAL, "%s: the name of tensor %lld is not UTF-8", w->path,
                           (long long)i);
    }
    return kd_json_made(header, before, w->path);
}

static kd_status write_header(kd_st_writer *w, const json_t *header)
{
    char *text;
    KD_TRY(kd_json_dump(&text, w->path, header, JSON_COMPACT));
    const size_t length = strlen(text), padded = kd_round_up(length, 8);
    kd_status status = KD_OK;
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    if (padded > HEADER_LIMIT) {
        status = kd_fail(KD_EINVAL, "%s: header of %zu bytes, expected at most %d", w->path, padded,
                         HEADER_LIMIT);
        goto done;
    }
    KD_TRY_GOTO(kd_write_at(w->fd, w->path, prefix, 8, 0), status, done);
    KD_TRY_GOTO(kd_write_at(w->fd, w->path, text, length, 8), status, done);
    KD_TRY_GOTO(kd_write_at(w->fd, w->path, "       ", padded - length, 8 + (int64_t)length),
                status, done);
    for (int64_t i = 0; i < w->count; i++) w->items[i].offset += 8 + (int64_t)padded;
done:
    free(text);
    return status;
}

kd_status kd_st_writer_begin(kd_st_writer *writer)
{
    if (writer->begun) return kd_fail(KD_EINVAL, "%s: begun twice", writer->path);
    json_t *header = NULL;
    int64_t bytes = 0;
    kd_status status;
    KD_TRY_GOTO(sort_items(writer), status, done);
    KD_TRY_GOTO(build_header(&header, &bytes, writer), status, done);
    KD_TRY_GOTO(write_header(writer, header), status, done);
    writer->begun = true;
done:
    json_decref(header);
    return status;
}

kd_status kd_st_writer_write(kd_st_writer *writer, const char *name, const void *data, size_t bytes)
{
    item **found =
        writer->begun && writer->count
            ? bsearch(name, writer->names, (size_t)writer->count, sizeof *writer->names, find_name)
            : NULL;
    if (!found)
        return kd_fail(KD_EINVAL, "%s: tensor \"%s\" was not declared, or the header not begun",
                       writer->path, name);
    item *it = *found;
    if (bytes > (size_t)(it->bytes - it->written))
        return kd_fail(KD_EINVAL, "%s: tensor \"%s\": %zu bytes after %lld of %lld", writer->path,
                       name, bytes, (long long)it->written, (long long)it->bytes);
    KD_TRY(kd_write_at(writer->fd, writer->path, data, bytes, it->offset + it->written));
    it->written += (int64_t)bytes;
    return KD_OK;
}

static void destroy(kd_st_writer *w)
{
    json_decref(w->metadata);
    free(w->items);
    kd_arena_destroy(w->arena);
}

static kd_status check_complete(const kd_st_writer *w)
{
    if (!w->begun) return kd_fail(KD_EINVAL, "%s: closed before its header was written", w->path);
    for (int64_t i = 0; i < w->count; i++) {
        const item *it = &w->items[i];
        if (it->written != it->bytes)
            return kd_fail(KD_EINVAL, "%s: tensor \"%s\": %lld bytes written of %lld", w->path,
                           it->name, (long long)it->written, (long long)it->bytes);
    }
    return KD_OK;
}

static kd_status publish(kd_st_writer *w)
{
    const int fd = w->fd;
    KD_TRY(check_complete(w));
    w->fd = -1;
    return kd_file_publish(fd, w->staging, w->path);
}

kd_status kd_st_writer_close(kd_st_writer *writer)
{
    const kd_status status = publish(writer);
    if (status != KD_OK)
        kd_st_writer_abort(writer);
    else
        destroy(writer);
    return status;
}

void kd_st_writer_abort(kd_st_writer *writer)
{
    if (!writer) return;
    if (writer->fd >= 0) {
        (void)close(writer->fd);
        (void)unlink(writer->staging);
    }
    destroy(writer);
}
