/*
 * fuzz_manifest.c - a checkpoint's MANIFEST.json with the files it lists, and engine/state.json.
 *
 * The manifest's hash of itself is made anew, or no change would come past it.  What is accepted: each
 * file has the size and the hash that the manifest says.  The state is read as kd_checkpoint_load does.
 */
#include "fuzz/fuzz.h"

#include "train/checkpoint.h"

static const fuzz_slot slots[] = { { "MANIFEST.json", FUZZ_JSON },
                                   { "engine/state.json", FUZZ_JSON },
                                   { "model.safetensors", FUZZ_SAFETENSORS },
                                   { "config.json", FUZZ_BYTES } };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    return fuzz_mutate(data, size, most, seed, slots, KD_COUNT(slots));
}

/* What every checkpoint has besides, empty here. */
static void write_others(void)
{
    static bool done;
    if (done) return;
    done = true;
    fuzz_ok(kd_dir_create(fuzz_path("engine")));
    fuzz_write("trainer_state.json", "", 0);
    fuzz_write("engine/optimizer.safetensors", "", 0);
}

/* The text up to its last brace, then the hash of that. */
static void write_manifest(const fuzz_part *part)
{
    size_t head = part->bytes;
    char *text = malloc(head + 64), tail[64];
    fuzz_require(text, "no memory");
    while (head > 0 && part->data[head - 1] != '}') head--;
    head -= head > 0;
    memcpy(text, part->data, head);
    const int bytes =
        snprintf(tail, sizeof tail, ",\n  \"xxh3\": \"%s\"\n}\n", kd_hash_bytes(text, head).hex);
    memcpy(text + head, tail, (size_t)bytes);
    fuzz_write(slots[0].name, text, head + (size_t)bytes);
    free(text);
}

static void check_listed(const fuzz_part *parts)
{
    json_t *manifest;
    fuzz_ok(kd_json_read(&manifest, fuzz_path(slots[0].name)));
    json_t *files = json_object_get(manifest, "files");
    for (int i = 1; i < KD_COUNT(slots); i++) {
        const json_t *entry = json_object_get(files, slots[i].name);
        const char *hash = json_string_value(json_object_get(entry, "xxh3"));
        fuzz_require(json_integer_value(json_object_get(entry, "bytes")) ==
                         (json_int_t)parts[i].bytes,
                     "%s", slots[i].name);
        fuzz_require(hash && !strcmp(hash, kd_hash_bytes(parts[i].data, parts[i].bytes).hex), "%s",
                     slots[i].name);
    }
    json_decref(manifest);
}

/* A model that is never computed with. */
static kd_checkpoint expected(void)
{
    static kd_param items[] = { { .name = "embedding.weight", .shape = { 2, { 5, 4 } } },
                                { .name = "norm.weight", .shape = { 1, { 4 } }, .offset = 64 } };
    static kd_model model = { .label = "student", .dtype = KD_BF16 };
    static kd_model *const students[] = { &model };
    model.config.architecture = "LlamaForCausalLM";
    model.slab.moments = 2;
    model.slab.params = (kd_params){ .items = items, .count = KD_COUNT(items), .elements = 128 };
    return (kd_checkpoint){ .students = students, .student_count = 1, .contract = "cpu; 2; 1" };
}

static void check_state(void)
{
    const kd_checkpoint wanted = expected();
    const char *path = fuzz_path(slots[1].name);
    kd_progress p;
    json_t *state;
    fuzz_begin();
    if (!fuzz_accepted(kd_json_read(&state, path), KD_EFORMAT, KD_EFORMAT, path)) return;
    fuzz_begin();
    (void)fuzz_accepted(kd_state_check(state, path, &wanted), KD_EFORMAT, KD_EFORMAT, path);
    fuzz_begin();
    if (fuzz_accepted(kd_state_progress(&p, state, path), KD_EFORMAT, KD_EFORMAT, path))
        fuzz_require(p.step >= 0 && p.tokens >= 0 && p.best_step >= -1 && p.cursor.samples >= 0 &&
                         p.guard.updates + p.guard.skips == p.step && p.guard.seen <= p.step &&
                         p.guard.in_row >= 0 && p.guard.stopped == 0,
                     "progress");
    json_decref(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part parts[FUZZ_MAX_SLOTS];
    write_others();
    fuzz_split(parts, slots, KD_COUNT(slots), data, size);
    fuzz_write_parts(slots + 1, parts + 1, KD_COUNT(slots) - 1);
    write_manifest(&parts[0]);
    fuzz_begin();
    if (fuzz_accepted(kd_manifest_check(fuzz_folder(), true), KD_EFORMAT, KD_EFORMAT,
                      fuzz_folder()))
        check_listed(parts);
    check_state();
    return 0;
}
