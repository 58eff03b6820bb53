/*
 * mma.cuh - products of small bf16 matrices by one warp on tensor cores, sums in f32 (sm_80 and
 * up), and the loads that put tiles of shared memory into the registers they want.
 *
 * All 32 lanes call.  With g = lane / 4 and t = lane % 4, a register of two bf16 (the first in the
 * low half) or of one f32 holds, of a 16 x 16, b 16 x 8, d 16 x 8:
 *
 *     a[0] = a(g,     2t..2t+1)        b[0] = b(2t..2t+1,     g)      d[0..1] = d(g,     2t..2t+1)
 *     a[1] = a(g + 8, 2t..2t+1)        b[1] = b(2t+8..2t+9,   g)      d[2..3] = d(g + 8, 2t..2t+1)
 *     a[2] = a(g,     2t+8..2t+9)
 *     a[3] = a(g + 8, 2t+8..2t+9)
 *
 * So two d side by side, rounded to bf16 in pairs, are an a: the product of a product stays in
 * registers.  kd_load_matrices reads four 8 x 8 matrices whose rows are 16 bytes (aligned) at the
 * addresses of lanes 8i..8i+7 for matrix i: m[i] is row g, elements 2t..2t+1 of matrix i, and
 * transposed, rows 2t..2t+1 of column g.  Rows of 8 addresses that differ modulo 128 bytes are free
 * of bank conflicts.
 *
 *     a from a row-major tile         lane l: row l % 16, column l / 16 * 8
 *     two b, n apart 8, from b' row-major [n, k] (keys as they lie)
 *                                     lane l: row l % 8 + l / 16 * 8, column l / 8 % 2 * 8;
 *                                     m[0..1] is the first b, m[2..3] the second
 *     two b, n apart 8, from b row-major [k, n] (values as they lie), transposed
 *                                     lane l: row l % 16, column l / 16 * 8; as above
 *     a from a' row-major [k, m], transposed
 *                                     lane l: row l % 8 + l / 16 * 8, column l / 8 % 2 * 8
 */
#ifndef KD_MMA_CUH
#define KD_MMA_CUH

#include "common/launch.cuh"

#ifdef KD_CUDASIM
/* The last lane to arrive works for all, in memory of theirs: hidden from ThreadSanitizer, which
 * knows no order between lanes of a warp. */
#define KD_ONE_FOR_ALL __attribute__((no_sanitize("thread"))) inline void

namespace kd_mma_emulated {

struct Product {
    float *d;
    const uint32_t *a, *b;
};

KD_ONE_FOR_ALL product(void **lanes, unsigned)
{
    float a[16][16], b[16][8], sum[16][8];
    const auto value = [](uint32_t pair, int half) {
        const uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    };
    for (int lane = 0; lane < 32; lane++) {
        const Product *p = (const Product *)lanes[lane];
        const int g = lane / 4, t = lane % 4;
        for (int h = 0; h < 2; h++) {
            for (int r = 0; r < 4; r++) a[g + r % 2 * 8][2 * t + h + r / 2 * 8] = value(p->a[r], h);
            for (int r = 0; r < 2; r++) b[2 * t + h + r * 8][g] = value(p->b[r], h);
        }
    }
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            sum[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2] = ((const Product *)lanes[lane])->d[r];
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) sum[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            ((const Product *)lanes[lane])->d[r] = sum[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
}

struct Matrices {
    uint16_t row[8];
    uint32_t *to;
    bool transposed;
};

KD_ONE_FOR_ALL exchange(void **lanes, unsigned)
{
    for (int lane = 0; lane < 32; lane++) {
        const Matrices *me = (const Matrices *)lanes[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            uint32_t half[2];
            for (int h = 0; h < 2; h++) {
                const int row = me->transposed ? 2 * t + h : g, at = me->transposed ? g : 2 * t + h;
                half[h] = ((const Matrices *)lanes[8 * i + row])->row[at];
            }
            me->to[i] = half[0] | half[1] << 16;
        }
    }
}

} // namespace kd_mma_emulated
#endif

/* d += a b */
__device__ __forceinline__ void kd_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1)
{
#ifndef KD_CUDASIM
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    const uint32_t b[2] = { b0, b1 };
    kd_mma_emulated::Product p = { d, a, b };
    simt::warp_fn(KD_ALL_LANES, &p, kd_mma_emulated::product, { __FILE__, __LINE__ });
#endif
}

#ifdef KD_CUDASIM
/* A lane reads its own row, where a sanitizer sees it. */
inline void kd_load_matrices_emulated(uint32_t (&m)[4], const void *row, bool transposed)
{
    if ((uintptr_t)row % 16) simt::trap("ldmatrix: misaligned address", { __FILE__, __LINE__ });
    kd_mma_emulated::Matrices p = { {}, m, transposed };
    memcpy(p.row, row, sizeof p.row);
    simt::warp_fn(KD_ALL_LANES, &p, kd_mma_emulated::exchange, { __FILE__, __LINE__ });
}
#endif

__device__ __forceinline__ void kd_load_matrices(uint32_t (&m)[4], const void *row)
{
#ifndef KD_CUDASIM
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#else
    kd_load_matrices_emulated(m, row, false);
#endif
}

__device__ __forceinline__ void kd_load_matrices_transposed(uint32_t (&m)[4], const void *row)
{
#ifndef KD_CUDASIM
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#else
    kd_load_matrices_emulated(m, row, true);
#endif
}

/* Two numbers rounded to bf16, `low` in the low half. */
__device__ __forceinline__ uint32_t kd_bf16_pair(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

#endif
