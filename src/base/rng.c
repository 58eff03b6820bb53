/*
 * rng.c - counter-based random numbers: the same (seed, stream, index) gives the same bits on
 * every machine, thread and rank, and a resumed run has no generator to restore.
 *
 * Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011, and the constants of the authors' Random123 library.
 */
#include "base/base.h"

#include <assert.h>
#include <math.h>

void kd_philox(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c1 = (uint32_t)product1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* 53 bits of two words as a multiple of 2^-53 in [0, 1). */
static double to_uniform(uint32_t high, uint32_t low)
{
    const uint64_t bits = (uint64_t)high << 21 | low >> 11;
    return (double)bits * 0x1p-53;
}

double kd_random_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t word[4];
    kd_philox(word, seed, stream, index);
    return to_uniform(word[0], word[1]);
}

/* Box-Muller: one pair of uniforms gives one number, so that indices stay independent. */
double kd_random_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t word[4];
    kd_philox(word, seed, stream, index);
    const double radius = sqrt(-2.0 * log(1.0 - to_uniform(word[0], word[1]))); /* log of (0, 1] */
    return radius * cos(6.283185307179586 * to_uniform(word[2], word[3]));
}

/*
 * A Feistel network over the smallest even number of bits that holds n is a bijection of at most
 * 4n numbers; walking along its cycle until the image is below n makes it one of [0, n) (Black and
 * Rogaway, "Ciphers with arbitrary finite domains", 2002).  Fewer than four steps on average.
 */
int64_t kd_permute(int64_t index, int64_t n, uint64_t seed, uint64_t stream)
{
    enum { ROUNDS = 8 };
    assert(index >= 0 && index < n);
    int half = 1;
    while (half < 32 && (uint64_t)(n - 1) >> (2 * half) != 0) half++;
    const uint64_t mask = ((uint64_t)1 << half) - 1;
    uint64_t image = (uint64_t)index;
    do {
        uint64_t left = image >> half, right = image & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            /* The high bit keeps these draws apart from those of the stream's own indices. */
            uint32_t word[4];
            kd_philox(word, seed, stream, (uint64_t)1 << 63 | round << 32 | right);
            const uint64_t mixed = left ^ (word[0] & mask);
            left = right;
            right = mixed;
        }
        image = left << half | right;
    } while (image >= (uint64_t)n);
    return (int64_t)image;
}
