/* New students, for users: never over a model that is there. */
#include "model/model.h"

#include <kd/model.h>

static kd_status refuse_model(const char *out)
{
    kd_arena *arena;
    const char *path = NULL;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = kd_path_join(&path, arena, out, "config.json");
    if (status == KD_OK && kd_file_exists(path))
        status = kd_fail(KD_EFORMAT, "%s: holds a model already; give another directory", out);
    kd_arena_destroy(arena);
    return status;
}

kd_status kd_student_from_layers(const char *out, const char *teacher, const int64_t *keep,
                                 int64_t count)
{
    KD_TRY(refuse_model(out));
    return kd_init_from_layers(out, teacher, keep, count);
}

kd_status kd_student_fresh(const char *out, const char *config, const char *tokenizer,
                           kd_dtype dtype, uint64_t seed)
{
    KD_TRY(refuse_model(out));
    return kd_init_fresh(out, config, tokenizer, dtype, seed);
}
