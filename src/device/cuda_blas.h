/*
 * cuda_blas.h - what cuda_blas.c, cuda_blas_cache.c and cuda_blas_library.c share: the library and
 * the table of products.  For these files alone.
 */
#ifndef KD_CUDA_BLAS_H
#define KD_CUDA_BLAS_H

#include "device/device.h"

#include <cublasLt.h>

/* The functions of cuBLASLt that kd calls: kd_lt.cublasLtMatmul(...). */
#define KD_CUBLASLT(X)                                                                             \
    X(cublasLtCreate)                                                                              \
    X(cublasLtDestroy)                                                                             \
    X(cublasLtGetStatusName)                                                                       \
    X(cublasLtGetVersion)                                                                          \
    X(cublasLtMatmul)                                                                              \
    X(cublasLtMatmulAlgoConfigGetAttribute)                                                        \
    X(cublasLtMatmulAlgoGetHeuristic)                                                              \
    X(cublasLtMatmulDescCreate)                                                                    \
    X(cublasLtMatmulDescDestroy)                                                                   \
    X(cublasLtMatmulDescSetAttribute)                                                              \
    X(cublasLtMatmulPreferenceCreate)                                                              \
    X(cublasLtMatmulPreferenceDestroy)                                                             \
    X(cublasLtMatmulPreferenceSetAttribute)                                                        \
    X(cublasLtMatrixLayoutCreate)                                                                  \
    X(cublasLtMatrixLayoutDestroy)                                                                 \
    X(cublasLtMatrixLayoutSetAttribute)

typedef struct kd_cublaslt {
#define X(function) __typeof__(&(function)) function;
    KD_CUBLASLT(X)
#undef X
} kd_cublaslt;

extern kd_cublaslt kd_lt;                       /* all NULL until it is loaded */
KD_MUST_CHECK kd_status kd_cublaslt_load(void); /* when the first GPU opens */

enum { KD_BLAS_BUCKETS = 256, KD_BLAS_CANDIDATES = 16 };

/*
 * What descriptors and algorithms are made for.  cuBLASLt counts columns first: D[m,n] = op(A) op(B)
 * with every matrix column by column.  Compared as bytes, so it has no padding.
 */
typedef struct kd_product_key {
    int64_t m, n, k;
    int64_t lda, ldb, ldd, ld_pre;
    int64_t batch, apart_a, apart_b, apart_d; /* elements from one matrix of a batch to the next */
    int32_t type, d_type;                     /* cudaDataType of A and B; of D, pre and bias */
    int32_t transposed_a, transposed_b;
    int32_t align_a, align_b, align_d, align_pre, align_bias; /* bytes, a power of two; 0: absent */
    int32_t accumulate, tf32;
    int32_t scaled; /* e4m3 operands with a scale for each row of A and each column of B */
} kd_product_key;

typedef struct kd_product kd_product;
struct kd_product {
    kd_product_key key;
    kd_product *next;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulHeuristicResult_t candidates[KD_BLAS_CANDIDATES]; /* none: no such kernel */
    int candidate_count, chosen;
    bool tuned;
    size_t workspace; /* bytes; enough for every candidate */
};

struct kd_blas {
    cublasLtHandle_t handle;
    kd_device *device;
    kd_product *buckets[KD_BLAS_BUCKETS];
    int count;
};

typedef struct kd_product_operands {
    const void *a, *b, *bias;
    const void *a_scale, *b_scale; /* of scaled ones: f32 [m] and [n] in device memory */
    void *d, *pre, *workspace;
} kd_product_operands;

/* Runs candidate `index` of a product on a cudaStream_t. */
KD_MUST_CHECK kd_status kd_product_run(const kd_blas *blas, const kd_product *p, int index,
                                       const kd_product_operands *at, void *stream);

#endif
