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

uint64_t kd_hash_key(const void *data, size_t bytes) { return XXH3_64bits(data, bytes); }

typedef struct hashing {
    XXH3_state_t *whole, *piece;
    char *chunk;
} hashing;

enum { CHUNK = 1 << 20 };

static kd_status hash_open_file(kd_hash *hash, kd_hash *pieces, const int64_t *ends, int64_t count,
                                const hashing *h, int fd, int64_t bytes, const char *path)
{
    int64_t at = 0, next = 0;
    XXH3_128bits_reset(h->whole);
    XXH3_128bits_reset(h->piece);
    for (;;) {
        for (; next < count && ends[next] == at; next++) {
            pieces[next] = to_hex(XXH3_128bits_digest(h->piece));
            XXH3_128bits_reset(h->piece);
        }
        if (at == bytes) break;
        const int64_t stop = next < count ? kd_min_i64(ends[next], bytes) : bytes;
        const size_t n = (size_t)kd_min_i64(CHUNK, stop - at);
        KD_TRY(kd_read_at(fd, path, h->chunk, n, at));
        XXH3_128bits_update(h->whole, h->chunk, n);
        if (next < count) XXH3_128bits_update(h->piece, h->chunk, n);
        at += (int64_t)n;
    }
    if (next < count)
        return kd_fail(KD_EFORMAT, "%s: %lld bytes, expected at least %lld", path, (long long)bytes,
                       (long long)ends[count - 1]);
    *hash = to_hex(XXH3_128bits_digest(h->whole));
    return KD_OK;
}

kd_status kd_hash_pieces(kd_hash *whole, kd_hash *pieces, const int64_t *ends, int64_t count,
                         const char *path)
{
    int fd;
    int64_t bytes;
    KD_TRY(kd_file_open(&fd, &bytes, path));
    const size_t chunk = (size_t)kd_max_i64(1, kd_min_i64(CHUNK, bytes));
    const hashing h = { XXH3_createState(), XXH3_createState(), malloc(chunk) };
    const kd_status status = h.whole && h.piece && h.chunk
                                 ? hash_open_file(whole, pieces, ends, count, &h, fd, bytes, path)
                                 : kd_fail(KD_ENOMEM, "%s: no memory to hash it", path);
    free(h.chunk);
    XXH3_freeState(h.piece);
    XXH3_freeState(h.whole);
    close(fd);
    return status;
}

kd_status kd_hash_file(kd_hash *hash, const char *path)
{
    return kd_hash_pieces(hash, NULL, NULL, 0, path);
}
