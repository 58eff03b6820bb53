/* fuzz_index.c - a folder of shards: what is accepted has each tensor in the shard that the index
 * says, and no other. */
#include "fuzz/fuzz.h"

#include "format/format.h"

static const fuzz_slot slots[] = { { "model.safetensors.index.json", FUZZ_JSON },
                                   { "a.safetensors", FUZZ_SAFETENSORS },
                                   { "b.safetensors", FUZZ_SAFETENSORS } };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    return fuzz_mutate(data, size, most, seed, slots, KD_COUNT(slots));
}

static void check(const kd_model_files *m, json_t *index)
{
    int64_t bytes = 0, count = 0;
    const char *name;
    json_t *shard;
    json_object_foreach(json_object_get(index, "weight_map"), name, shard)
    {
        const kd_st_file *file = NULL;
        const kd_st_entry *e = kd_model_files_find(m, name, &file);
        fuzz_require(e && strcmp(e->name, name) == 0, "%s", name);
        fuzz_require(strcmp(strrchr(file->path, '/') + 1, json_string_value(shard)) == 0, "%s",
                     name);
        bytes += e->bytes;
        count++;
    }
    for (int i = 0; i < m->count; i++) count -= m->files[i]->count;
    fuzz_require(count == 0 && bytes == m->bytes, "%lld bytes", (long long)bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part parts[FUZZ_MAX_SLOTS];
    kd_model_files *m;
    json_t *index;
    fuzz_split(parts, slots, KD_COUNT(slots), data, size);
    fuzz_write_parts(slots, parts, KD_COUNT(slots));
    fuzz_begin();
    if (!fuzz_accepted(kd_model_files_open(&m, fuzz_folder()), KD_EFORMAT, KD_EFORMAT,
                       fuzz_folder()))
        return 0;
    fuzz_ok(kd_json_read(&index, fuzz_path(slots[0].name)));
    check(m, index);
    json_decref(index);
    kd_model_files_close(m);
    return 0;
}
