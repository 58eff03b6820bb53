/*
 * safetensors.c - reading safetensors files nobody vouches for.
 *
 * Layout (huggingface/safetensors, README): u64 little-endian n, n bytes of JSON, data.  The JSON maps
 * a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets from the start of the
 * data; "__metadata__" maps strings to strings.
 *
 * Refused, before anything is allocated by what the file says:
 *   - anything but a regular file; a file shorter than 8 + n; n above 100,000,000
 *   - JSON that is not strict: duplicate keys at any depth, a byte order mark, bytes after the object,
 *     NUL in a name, nesting deeper than 32, text that is not UTF-8
 *   - a tensor that is no object, lacks a field, or has a dtype outside the format's 22
 *   - more than 8 dimensions; a dimension above 2^48 or not a plain decimal integer (2.0, 2e0, "2", -2
 *     and -0 are none); an element or bit count that overflows; elements that do not fill whole bytes
 *   - a range that is not exactly as long as shape and dtype say
 *   - data that the tensors do not tile from first to last byte: a hole, an overlap, a trailing byte
 *   - metadata that is not an object of strings (null is accepted as none)
 * The reference reader accepts duplicate names (the last wins), array-form entries and any rank; we do
 * not.  As it does, we accept white space before the object, names that are empty or look like paths
 * (a name is never used as one), zero dimensions, unaligned tensors and unknown fields.
 *
 * Data is copied out with pread after fstat, so a file truncated under us is an error, not a SIGBUS.
 */
#include "format/format.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { HEADER_LIMIT = 100000000, PIECE = 32768 };

static const int64_t dim_limit = (int64_t)1 << 48;

/* The element types of the format, in the reference's order. */
static const struct st_type {
    const char *name;
    int bits;
} st_types[] = {
    { "BOOL", 8 }, { "F4", 4 },          { "F6_E2M3", 6 },     { "F6_E3M2", 6 }, { "U8", 8 },
    { "I8", 8 },   { "F8_E5M2", 8 },     { "F8_E4M3", 8 },     { "F8_E8M0", 8 }, { "I16", 16 },
    { "U16", 16 }, { "F8_E4M3FNUZ", 8 }, { "F8_E5M2FNUZ", 8 }, { "F16", 16 },    { "BF16", 16 },
    { "I32", 32 }, { "U32", 32 },        { "F32", 32 },        { "C64", 64 },    { "F64", 64 },
    { "I64", 64 }, { "U64", 64 },
};

static kd_status refuse(const kd_st_file *f, const char *name, const char *fmt, ...)
    KD_PRINTF(3, 4);

static kd_status refuse(const kd_st_file *f, const char *name, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return kd_fail(KD_EFORMAT, "%s: tensor \"%.120s\": %s", f->path, name, what);
}

static int dtype_of(const char *name)
{
#define X(type, bytes, file_name, run_name)                                                        \
    if (!strcmp(name, file_name)) return KD_##type;
    KD_DTYPE_LIST(X)
#undef X
    return -1;
}

/* `what` is not of the kind that is `expected`. */
static kd_status refuse_kind(const kd_st_file *f, const char *name, const char *what,
                             const json_t *value, const char *expected)
{
    char shown[80];
    return refuse(f, name, "%s is %s, expected %s", what, kd_json_show(shown, sizeof shown, value),
                  expected);
}

/* ---- one tensor ------------------------------------------------------------------------------- */

static kd_status parse_dtype(kd_st_entry *entry, int *bits, const kd_st_file *f,
                             const json_t *value)
{
    if (!json_is_string(value)) return refuse_kind(f, entry->name, "dtype", value, "a string");
    const char *name = json_string_value(value);
    for (int i = 0; i < KD_COUNT(st_types); i++) {
        if (strcmp(name, st_types[i].name) != 0) continue;
        entry->dtype_name = st_types[i].name;
        entry->dtype = dtype_of(name);
        *bits = st_types[i].bits;
        return KD_OK;
    }
    return refuse(f, entry->name, "dtype \"%.60s\" is not one of the format's %d", name,
                  KD_COUNT(st_types));
}

static kd_status parse_shape(kd_st_entry *entry, const kd_st_file *f, const json_t *value)
{
    if (!json_is_array(value)) return refuse_kind(f, entry->name, "shape", value, "an array");
    const size_t rank = json_array_size(value);
    if (rank > KD_ST_MAX_RANK)
        return refuse(f, entry->name, "%zu dimensions, expected at most %d", rank, KD_ST_MAX_RANK);
    entry->rank = (int32_t)rank;
    entry->elements = 1;
    for (size_t i = 0; i < rank; i++) {
        const json_t *dim = json_array_get(value, i);
        char what[24];
        (void)snprintf(what, sizeof what, "dimension %zu", i);
        if (json_typeof(dim) != JSON_INTEGER)
            return refuse_kind(f, entry->name, what, dim, "a decimal integer");
        const int64_t n = (int64_t)json_integer_value(dim);
        if (n < 0 || n > dim_limit)
            return refuse(f, entry->name, "dimension %zu is %lld, expected 0 to 2^48", i,
                          (long long)n);
        entry->shape[i] = n;
        if (!kd_mul_i64(&entry->elements, entry->elements, n))
            return refuse(f, entry->name, "the product of %zu dimensions overflows", rank);
    }
    return KD_OK;
}

static kd_status parse_range(kd_st_entry *entry, int bits, const kd_st_file *f, int64_t data,
                             const json_t *value)
{
    const json_t *begin = json_array_get(value, 0), *end = json_array_get(value, 1);
    if (json_array_size(value) != 2 || json_typeof(begin) != JSON_INTEGER ||
        json_typeof(end) != JSON_INTEGER)
        return refuse_kind(f, entry->name, "data_offsets", value, "two decimal integers");
    const int64_t from = (int64_t)json_integer_value(begin);
    const int64_t to = (int64_t)json_integer_value(end);
    if (from < 0 || to < from || to > f->size - data)
        return refuse(f, entry->name,
                      "data_offsets [%lld, %lld], expected a range within the %lld bytes of data "
                      "that start at byte %lld",
                      (long long)from, (long long)to, (long long)(f->size - data), (long long)data);
    int64_t all_bits;
    if (!kd_mul_i64(&all_bits, entry->elements, bits))
        return refuse(f, entry->name, "the size of %lld elements overflows",
                      (long long)entry->elements);
    if (all_bits % 8 != 0)
        return refuse(f, entry->name, "%lld elements of %d bits do not fill whole bytes",
                      (long long)entry->elements, bits);
    if (all_bits / 8 != to - from)
        return refuse(f, entry->name,
                      "data_offsets [%lld, %lld] hold %lld bytes, shape and dtype %s need %lld",
                      (long long)from, (long long)to, (long long)(to - from), entry->dtype_name,
                      (long long)(all_bits / 8));
    entry->offset = data + from;
    entry->bytes = to - from;
    return KD_OK;
}

static kd_status parse_entry(kd_st_entry *entry, kd_st_file *f, int64_t data, const char *name,
                             const json_t *info)
{
    entry->name = name;
    if (json_typeof(info) != JSON_OBJECT)
        return refuse_kind(f, name, "its description", info, "an object");
    int bits = 0;
    KD_TRY(kd_arena_string(&entry->name, f->arena, name));
    KD_TRY(parse_dtype(entry, &bits, f, json_object_get(info, "dtype")));
    KD_TRY(parse_shape(entry, f, json_object_get(info, "shape")));
    return parse_range(entry, bits, f, data, json_object_get(info, "data_offsets"));
}

/* ---- the whole file --------------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b)
{
    const kd_st_entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty tensors first */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const kd_st_entry *)a)->name, ((const kd_st_entry *)b)->name);
}

/* Leaves the entries sorted by name. */
static kd_status check_tiling(kd_st_file *f, int64_t data)
{
    int64_t at = data;
    if (f->count) qsort(f->entries, (size_t)f->count, sizeof *f->entries, by_offset);
    for (int64_t i = 0; i < f->count; i++) {
        const kd_st_entry *e = &f->entries[i];
        if (e->offset != at)
            return refuse(f, e->name, "starts at byte %lld, expected %lld: %s",
                          (long long)e->offset, (long long)at,
                          e->offset > at ? "bytes that no tensor owns" : "tensors overlap");
        at += e->bytes;
    }
    if (at != f->size)
        return kd_fail(KD_EFORMAT, "%s: %lld bytes after the last tensor, from byte %lld", f->path,
                       (long long)(f->size - at), (long long)at);
    if (f->count) qsort(f->entries, (size_t)f->count, sizeof *f->entries, by_name);
    return KD_OK;
}

static kd_status parse_metadata(kd_st_file *f, json_t *value)
{
    if (json_typeof(value) == JSON_NULL) return KD_OK;
    char shown[80];
    if (json_typeof(value) != JSON_OBJECT)
        return kd_fail(KD_EFORMAT, "%s: __metadata__ is %s, expected an object", f->path,
                       kd_json_show(shown, sizeof shown, value));
    for (void *at = json_object_iter(value); at; at = json_object_iter_next(value, at)) {
        const json_t *item = json_object_iter_value(at);
        if (json_typeof(item) != JSON_STRING)
            return kd_fail(KD_EFORMAT, "%s: __metadata__.%.60s is %s, expected a string", f->path,
                           json_object_iter_key(at), kd_json_show(shown, sizeof shown, item));
    }
    f->metadata = json_incref(value);
    return KD_OK;
}

static kd_status parse_header(kd_st_file *f, int64_t data, json_t *header)
{
    char shown[80];
    if (json_typeof(header) != JSON_OBJECT)
        return kd_fail(KD_EFORMAT, "%s: the header is %s, expected an object", f->path,
                       kd_json_show(shown, sizeof shown, header));
    KD_TRY(KD_ARENA_ARRAY(&f->entries, f->arena, (int64_t)json_object_size(header)));
    int64_t unknown = 0;
    for (void *at = json_object_iter(header); at; at = json_object_iter_next(header, at)) {
        const char *name = json_object_iter_key(at);
        json_t *value = json_object_iter_value(at);
        if (!strcmp(name, "__metadata__")) {
            KD_TRY(parse_metadata(f, value));
            continue;
        }
        KD_TRY(parse_entry(&f->entries[f->count++], f, data, name, value));
        unknown += json_object_size(value) != 3;
    }
    if (unknown)
        kd_log(KD_LOG_WARN, "%s: %lld tensors have fields beyond dtype, shape and data_offsets",
               f->path, (long long)unknown);
    return check_tiling(f, data);
}

static kd_status read_header(kd_st_file *f)
{
    unsigned char prefix[8];
    if (f->size < 8)
        return kd_fail(KD_EFORMAT, "%s: %lld bytes, expected at least 8", f->path,
                       (long long)f->size);
    KD_TRY(kd_read_at(f->fd, f->path, prefix, sizeof prefix, 0));
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | prefix[i];
    if (n > HEADER_LIMIT)
        return kd_fail(KD_EFORMAT, "%s: header of %llu bytes, expected at most %d", f->path,
                       (unsigned long long)n, HEADER_LIMIT);
    if ((int64_t)n > f->size - 8)
        return kd_fail(KD_EFORMAT, "%s: header of %llu bytes in a file of %lld", f->path,
                       (unsigned long long)n, (long long)f->size);

    const int64_t bytes = (int64_t)n;
    char *text = malloc((size_t)kd_max_i64(bytes, 1));
    if (!text)
        return kd_fail(KD_ENOMEM, "%s: no memory for a header of %lld bytes", f->path,
                       (long long)bytes);
    json_t *header = NULL;
    const char *source;
    kd_status status;
    KD_TRY_GOTO(kd_arena_format(&source, f->arena, "%s: header", f->path), status, done);
    KD_TRY_GOTO(kd_read_at(f->fd, f->path, text, (size_t)bytes, 8), status, done);
    KD_TRY_GOTO(kd_json_parse(&header, source, text, (size_t)bytes), status, done);
    KD_TRY_GOTO(parse_header(f, 8 + bytes, header), status, done);
done:
    json_decref(header);
    free(text);
    return status;
}

kd_status kd_st_open(kd_st_file **file, const char *path)
{
    *file = NULL;
    kd_arena *arena = NULL;
    kd_st_file *f = NULL;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = KD_ARENA_ARRAY(&f, arena, 1);
    if (status != KD_OK) {
        kd_arena_destroy(arena);
        return status;
    }
    f->arena = arena;
    f->fd = -1;
    KD_TRY_GOTO(kd_arena_string(&f->path, arena, path), status, failed);

    KD_TRY_GOTO(kd_file_open(&f->fd, &f->size, path), status, failed);
    KD_TRY_GOTO(read_header(f), status, failed);
    *file = f;
    return KD_OK;
failed:
    kd_st_close(f);
    return status;
}

void kd_st_close(kd_st_file *file)
{
    if (!file) return;
    if (file->fd >= 0) (void)close(file->fd);
    json_decref(file->metadata);
    kd_arena_destroy(file->arena);
}

const kd_st_entry *kd_st_find(const kd_st_file *file, const char *name)
{
    const kd_st_entry key = { .name = name };
    if (file->count == 0) return NULL;
    return bsearch(&key, file->entries, (size_t)file->count, sizeof key, by_name);
}

const char *kd_st_metadata(const kd_st_file *file, const char *key)
{
    return json_string_value(json_object_get(file->metadata, key));
}

/* ---- data ------------------------------------------------------------------------------------- */

static bool is_float(int dtype) { return dtype == KD_F32 || dtype == KD_BF16 || dtype == KD_F16; }

kd_status kd_st_read(void *to, kd_dtype dtype, const kd_st_file *file, const kd_st_entry *entry,
                     int64_t first, int64_t count)
{
    if (first < 0 || count < 0 || first > entry->elements || count > entry->elements - first)
        return kd_fail(KD_EINVAL, "%s: tensor \"%s\": %lld elements from %lld of %lld", file->path,
                       entry->name, (long long)count, (long long)first, (long long)entry->elements);
    if (entry->dtype != (int)dtype && !(is_float(entry->dtype) && is_float((int)dtype)))
        return kd_fail(KD_ENOTSUP, "%s: tensor \"%s\" of dtype %s cannot be read as %s", file->path,
                       entry->name, entry->dtype_name, kd_dtype_name(dtype));

    const int64_t from_size = (int64_t)kd_dtype_size((kd_dtype)entry->dtype);
    const int64_t to_size = (int64_t)kd_dtype_size(dtype);
    const int64_t at = entry->offset + first * from_size;
    if (entry->dtype == (int)dtype)
        return kd_read_at(file->fd, file->path, to, (size_t)(count * from_size), at);

    _Alignas(16) unsigned char piece[PIECE];
    const int64_t most = PIECE / from_size;
    kd_status converted = KD_OK; /* of the two types, the same for every piece */
    for (int64_t done = 0; done < count; done += most) {
        const int64_t n = kd_min_i64(most, count - done);
        KD_TRY(kd_read_at(file->fd, file->path, piece, (size_t)(n * from_size),
                          at + done * from_size));
        converted = kd_convert((unsigned char *)to + done * to_size, dtype, piece,
                               (kd_dtype)entry->dtype, n);
    }
    return converted;
}

kd_status kd_st_check_finite(const kd_st_file *file, const kd_st_entry *entry, int64_t first,
                             const float *values, int64_t count)
{
    const int64_t size = (int64_t)kd_dtype_size((kd_dtype)entry->dtype);
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = first + i;
        if (isfinite(values[i])) continue;
        return refuse(file, entry->name, "element %lld (byte %lld): found %g, expected a number",
                      (long long)at, (long long)(entry->offset + at * size), (double)values[i]);
    }
    return KD_OK;
}
