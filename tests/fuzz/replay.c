/* replay.c - in libFuzzer's place: every file of a corpus once.  For builds without libFuzzer. */
#include "fuzz/fuzz.h"

/* Nothing is mutated here. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most)
{
    (void)data;
    return size < most ? size : most;
}

int main(int argc, char **argv)
{
    kd_arena *arena;
    const char *const *names;
    const char *path;
    int count;
    if (argc != 2) return 2;
    (void)LLVMFuzzerInitialize(&argc, &argv);
    fuzz_ok(kd_arena_create(&arena));
    fuzz_ok(kd_dir_list(&names, &count, arena, argv[1]));
    fuzz_require(count > 0, "%s is empty", argv[1]);
    for (int i = 0; i < count; i++) {
        char *data;
        size_t bytes;
        fuzz_ok(kd_path_join(&path, arena, argv[1], names[i]));
        fuzz_ok(kd_file_read(&data, &bytes, path, SIZE_MAX));
        fprintf(stderr, "%s\n", path);
        (void)LLVMFuzzerTestOneInput((const uint8_t *)data, bytes);
        free(data);
    }
    kd_arena_destroy(arena);
    return 0;
}
