/* fuzz_safetensors.c - a file of tensors: what is accepted tiles the file, reads as its bytes, and is
 * the same after kd's own writer. */
#include "fuzz/fuzz.h"

#include "format/format.h"

#include <math.h>

static const fuzz_slot slots[] = { { "a.safetensors", FUZZ_SAFETENSORS } };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    return fuzz_mutate(data, size, most, seed, slots, KD_COUNT(slots));
}

/* Every byte behind the header belongs to one tensor. */
static void check_tiles(const kd_st_file *f, const uint8_t *data, size_t size)
{
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | data[i];
    uint8_t *owners = calloc(1, size + 1);
    fuzz_require(owners && f->size == (int64_t)size && header + 8 <= size, "sizes");
    memset(owners, 1, 8 + header);
    for (int64_t i = 0; i < f->count; i++) {
        const kd_st_entry *e = &f->entries[i];
        int64_t elements = 1;
        fuzz_require(e->rank >= 0 && e->rank <= KD_ST_MAX_RANK, "rank %d", (int)e->rank);
        for (int k = 0; k < e->rank; k++) elements *= e->shape[k];
        fuzz_require(elements == e->elements, "elements");
        fuzz_require(e->offset >= 0 && e->bytes >= 0 && e->offset + e->bytes <= f->size, "range");
        fuzz_require(e->dtype < 0 ||
                         e->bytes == elements * (int64_t)kd_dtype_size((kd_dtype)e->dtype),
                     "bytes");
        fuzz_require(i == 0 || strcmp(f->entries[i - 1].name, e->name) < 0, "order");
        fuzz_require(kd_st_find(f, e->name) == e, "not found by its name");
        for (int64_t k = 0; k < e->bytes; k++) owners[e->offset + k]++;
    }
    for (size_t i = 0; i < size; i++) fuzz_require(owners[i] == 1, "byte %zu", i);
    free(owners);
}

static void check_floats(const kd_st_file *f, const kd_st_entry *e)
{
    float *values = malloc((size_t)e->elements * sizeof *values + 1);
    bool finite = true;
    fuzz_require(values, "no memory");
    fuzz_ok(kd_st_read(values, KD_F32, f, e, 0, e->elements));
    for (int64_t i = 0; i < e->elements; i++) finite &= isfinite(values[i]) != 0;
    fuzz_begin();
    const kd_status status = kd_st_check_finite(f, e, 0, values, e->elements);
    fuzz_require(fuzz_accepted(status, KD_EFORMAT, KD_EFORMAT, slots[0].name) == finite, "finite");
    free(values);
}

/* False where the file has a type that kd does not compute with. */
static bool check_data(const kd_st_file *f, const uint8_t *data)
{
    bool known = true;
    for (int64_t i = 0; i < f->count; i++) {
        const kd_st_entry *e = &f->entries[i];
        void *copy = malloc((size_t)e->bytes + 1);
        known &= e->dtype >= 0;
        fuzz_require(copy, "no memory");
        if (e->dtype >= 0) {
            fuzz_ok(kd_st_read(copy, (kd_dtype)e->dtype, f, e, 0, e->elements));
            fuzz_require(memcmp(copy, data + e->offset, (size_t)e->bytes) == 0, "data");
        }
        if (e->dtype == KD_F32 || e->dtype == KD_BF16 || e->dtype == KD_F16) check_floats(f, e);
        free(copy);
    }
    return known;
}

static void write_again(const kd_st_file *f, const uint8_t *data, const char *path)
{
    kd_st_writer *w;
    const char *key;
    json_t *value;
    fuzz_ok(kd_st_writer_create(&w, path));
    json_object_foreach(f->metadata, key, value)
        fuzz_ok(kd_st_writer_metadata(w, key, json_string_value(value)));
    for (int64_t i = 0; i < f->count; i++) {
        const kd_st_entry *e = &f->entries[i];
        fuzz_ok(kd_st_writer_declare(w, e->name, (kd_dtype)e->dtype, e->rank, e->shape));
    }
    fuzz_ok(kd_st_writer_begin(w));
    for (int64_t i = 0; i < f->count; i++) {
        const kd_st_entry *e = &f->entries[i];
        fuzz_ok(kd_st_writer_write(w, e->name, data + e->offset, (size_t)e->bytes));
    }
    fuzz_ok(kd_st_writer_close(w));
}

static void check_again(const kd_st_file *f, const uint8_t *data)
{
    kd_st_file *g;
    const char *path = fuzz_path("b.safetensors");
    write_again(f, data, path);
    fuzz_ok(kd_st_open(&g, path));
    fuzz_require(g->count == f->count, "%lld tensors", (long long)g->count);
    fuzz_require(json_object_size(f->metadata) == json_object_size(g->metadata) &&
                     (!json_object_size(f->metadata) || json_equal(f->metadata, g->metadata)),
                 "metadata");
    for (int64_t i = 0; i < f->count; i++) {
        const kd_st_entry *a = &f->entries[i], *b = &g->entries[i];
        fuzz_require(strcmp(a->name, b->name) == 0 && a->dtype == b->dtype && a->rank == b->rank &&
                         a->bytes == b->bytes &&
                         memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0,
                     "%s", a->name);
        void *copy = malloc((size_t)a->bytes + 1);
        fuzz_require(copy, "no memory");
        fuzz_ok(kd_st_read(copy, (kd_dtype)b->dtype, g, b, 0, b->elements));
        fuzz_require(memcmp(copy, data + a->offset, (size_t)a->bytes) == 0, "%s", a->name);
        free(copy);
    }
    kd_st_close(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kd_st_file *f;
    fuzz_write(slots[0].name, data, size);
    fuzz_begin();
    if (!fuzz_accepted(kd_st_open(&f, fuzz_path(slots[0].name)), KD_EFORMAT, KD_EFORMAT,
                       slots[0].name))
        return 0;
    check_tiles(f, data, size);
    if (check_data(f, data)) check_again(f, data);
    kd_st_close(f);
    return 0;
}
