/* hash.c - XXH3-128 in its canonical form: the digits that `xxh128sum` prints. */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>

static kd_hash to_hex(XXH128_hash_t value)
{
    static const char digits[] = "0123456789abcdef";
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, value);
    kd_hash hash;
    for (size_t i = 0; i < sizeof canonical.digest; i++) {
        hash.hex[2 * i] = digits[canonical.digest[i] >> 4];
        hash.hex[2 * i + 1] = digits[canonical.digest[i] & 15];
    }
    hash.hex[32] = '\0';
    return hash;
}

kd_hash kd_hash_bytes(const void *data, size_t bytes) { return to_hex(XXH3_128bits(data, bytes)); }

static kd_status hash_open_file(kd_hash *hash, int fd, int64_t bytes, const char *path,
                                XXH3_state_t *state, char *chunk, int64_t chunk_bytes)
{
    XXH3_128bits_reset(state);
    for (int64_t at = 0; at < bytes; at += chunk_bytes) {
        const size_t n = (size_t)kd_min_i64(chunk_bytes, bytes - at);
        KD_TRY(kd_read_at(fd, path, chunk, n, at));
        XXH3_128bits_update(state, chunk, n);
    }
    *hash = to_hex(XXH3_128bits_digest(state));
    return KD_OK;
}

kd_status kd_hash_file(kd_hash *hash, const char *path)
{
    enum { CHUNK = 1 << 20 };
    int fd;
    int64_t bytes;
    KD_TRY(kd_file_open(&fd, &bytes, path));
    XXH3_state_t *state = XXH3_createState();
    char *chunk = malloc(CHUNK);
    const kd_status status = state && chunk
                                 ? hash_open_file(hash, fd, bytes, path, state, chunk, CHUNK)
                                 : kd_fail(KD_ENOMEM, "%s: no memory to hash it", path);
    free(chunk);
    XXH3_freeState(state);
    close(fd);
    return status;
}
