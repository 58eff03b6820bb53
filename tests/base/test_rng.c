/* Random numbers, permutations, hashes. */
#include "base/base.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The philox4x32-10 lines of kat_vectors in the authors' Random123 library. */
Test(rng, philox_gives_the_published_answers)
{
    const struct {
        uint64_t seed, stream, index;
        uint32_t want[4];
    } rows[] = {
        { 0, 0, 0, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { UINT64_MAX, UINT64_MAX, UINT64_MAX, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { 0x299f31d0a4093822,
          0x0370734413198a2e,
          0x85a308d3243f6a88,
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (int i = 0; i < KD_COUNT(rows); i++) {
        uint32_t got[4];
        kd_philox(got, rows[i].seed, rows[i].stream, rows[i].index);
        for (int j = 0; j < 4; j++) {
            cr_expect_eq(got[j], rows[i].want[j], "row %d word %d: %08x", i, j, got[j]);
        }
    }
}

/* Sample moments of `n` draws against their own standard errors: five of them, a bound that a
 * right generator misses once in two million, and that is fixed since the draws are. */
Test(rng, uniform_and_normal_have_their_moments)
{
    enum { N = 100000, BINS = 16 };
    double mean = 0, square = 0, fourth = 0, sum = 0, lag = 0, before = 0;
    int bins[BINS] = { 0 };
    for (uint64_t i = 0; i < N; i++) {
        const double u = kd_random_uniform(7, 3, i), z = kd_random_normal(7, 4, i);
        cr_assert(u >= 0 && u < 1, "%.17g", u);
        cr_assert(isfinite(z));
        bins[(int)(u * BINS)]++;
        sum += u;
        mean += z;
        square += z * z;
        fourth += z * z * z * z;
        lag += z * before;
        before = z;
    }
    const double error = 5 / sqrt(N);
    cr_expect(fabs(sum / N - 0.5) < error * sqrt(1.0 / 12), "mean of uniform %g", sum / N);
    for (int i = 0; i < BINS; i++) {
        const double share = 1.0 / BINS;
        cr_expect(fabs((double)bins[i] / N - share) < error * sqrt(share * (1 - share)),
                  "bin %d holds %d", i, bins[i]);
    }
    cr_expect(fabs(mean / N) < error, "mean %g", mean / N);
    cr_expect(fabs(square / N - 1) < error * sqrt(2), "variance %g", square / N);
    cr_expect(fabs(fourth / N - 3) < error * sqrt(96), "fourth moment %g", fourth / N);
    cr_expect(fabs(lag / N) < error, "neighbours correlate: %g", lag / N);
    cr_expect_neq(kd_random_uniform(7, 3, 0), kd_random_uniform(8, 3, 0));
    cr_expect_neq(kd_random_uniform(7, 3, 0), kd_random_uniform(7, 4, 0));
}

Test(rng, permute_is_a_bijection_of_any_n)
{
    const int64_t sizes[] = { 1, 2, 3, 4, 5, 7, 16, 17, 100, 4096, 4097, 100003 };
    for (int i = 0; i < KD_COUNT(sizes); i++) {
        const int64_t n = sizes[i];
        char *seen = malloc((size_t)n);
        for (uint64_t stream = 0; stream < (n < 1000 ? 50 : 2); stream++) {
            int64_t fixed = 0;
            memset(seen, 0, (size_t)n);
            for (int64_t k = 0; k < n; k++) {
                const int64_t image = kd_permute(k, n, 1, stream);
                cr_assert(image >= 0 && image < n, "n %lld: %lld", (long long)n, (long long)image);
                cr_assert(!seen[image], "n %lld: %lld twice", (long long)n, (long long)image);
                seen[image] = 1;
                fixed += image == k;
            }
            /* A random permutation has one fixed point on average, Poisson. */
            if (n >= 100)
                cr_expect(fixed < 15, "n %lld: %lld fixed", (long long)n, (long long)fixed);
        }
        free(seen);
    }
    const int64_t huge = INT64_MAX - 1;
    for (int64_t k = 0; k < 100; k++) {
        const int64_t image = kd_permute(huge - 1 - k, huge, 5, 9);
        cr_expect(image >= 0 && image < huge);
    }
}

/* Where each index goes over many streams: chi-square of an n x n table against uniform. */
Test(rng, permute_favours_no_place)
{
    enum { STREAMS = 7000 };
    const int sizes[] = { 2, 3, 7 };
    for (int i = 0; i < KD_COUNT(sizes); i++) {
        const int n = sizes[i];
        int table[7][7] = { { 0 } };
        for (uint64_t stream = 0; stream < STREAMS; stream++) {
            for (int k = 0; k < n; k++) table[k][kd_permute(k, n, 11, stream)]++;
        }
        double chi = 0;
        const double expected = (double)STREAMS / n;
        for (int a = 0; a < n; a++) {
            for (int b = 0; b < n; b++) chi += pow(table[a][b] - expected, 2) / expected;
        }
        const double freedom = (n - 1.0) * (n - 1.0);
        cr_expect(chi * (n - 1) / n < freedom + 5 * sqrt(2 * freedom) + 5, "n %d: chi-square %g", n,
                  chi);
    }
}

/* As `xxh128sum` prints them. */
Test(hash, is_canonical_xxh3_128)
{
    cr_expect_str_eq(kd_hash_bytes("", 0).hex, "99aa06d3014798d86001c324468d497f");
    cr_expect_str_eq(kd_hash_bytes(NULL, 0).hex, "99aa06d3014798d86001c324468d497f");
    cr_expect_str_eq(kd_hash_bytes("abc", 3).hex, "06b05ab6733a618578af5f94892f3950");
    char data[1000] = { 0 };
    const kd_hash before = kd_hash_bytes(data, sizeof data);
    for (size_t i = 0; i < sizeof data; i += 7) {
        data[i] ^= 1;
        cr_expect_str_neq(kd_hash_bytes(data, sizeof data).hex, before.hex, "byte %zu", i);
        data[i] ^= 1;
    }
}
