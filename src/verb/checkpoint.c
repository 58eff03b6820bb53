/* Checkpoints, for users. */
#include "train/train.h"

#include <kd/checkpoint.h>
#include <stdio.h>

kd_status kd_checkpoint_check(const char *dir) { return kd_checkpoint_verify(dir); }

kd_status kd_checkpoint_newest(char *dir, size_t size, const char *out)
{
    kd_arena *arena;
    const char *found = NULL;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = kd_checkpoint_latest(&found, arena, out);
    if (status == KD_OK && snprintf(dir, size, "%s", found ? found : "") >= (int)size)
        status = kd_fail(KD_EINVAL, "%s: the path does not fit %zu bytes", out, size);
    kd_arena_destroy(arena);
    return status;
}
