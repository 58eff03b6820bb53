/* cublaslt.h - what cublaslt_objects.cpp and cublaslt.cpp share: what a handle of the library points to. */
#ifndef CUDASIM_CUBLASLT_H
#define CUDASIM_CUBLASLT_H

#include <cublasLt.h>

namespace simt {

constexpr cublasStatus_t OK = CUBLAS_STATUS_SUCCESS, INVALID = CUBLAS_STATUS_INVALID_VALUE,
                         MISSING = CUBLAS_STATUS_NOT_SUPPORTED;

struct Desc {
    int32_t compute, scale;
    int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    int32_t transposed[2] = { CUBLAS_OP_N, CUBLAS_OP_N };
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr;
    int32_t bias_type = -1;
    void *aux = nullptr;
    int64_t aux_ld = 0;
    int32_t aux_type = -1;
    const void *scale_of[3] = { nullptr, nullptr, nullptr }; /* A, B, D */
    int32_t scale_mode[2] = { CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F,
                              CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F }; /* A, B */
    int8_t fast_accumulation = 0;
};

struct Layout {
    uint32_t type;
    uint64_t rows, columns;
    int64_t ld;
    int32_t order = CUBLASLT_ORDER_COL;
    int32_t batch = 1;
    int64_t batch_stride = 0;

    size_t at(uint64_t r, uint64_t c, int z) const
    {
        const uint64_t in = order == CUBLASLT_ORDER_COL ? c * ld + r : r * ld + c;
        return (size_t)z * batch_stride + in;
    }
    size_t lines() const { return order == CUBLASLT_ORDER_COL ? columns : rows; }
    size_t line() const { return order == CUBLASLT_ORDER_COL ? rows : columns; }
};

struct Preference {
    uint32_t search = CUBLASLT_SEARCH_BEST_FIT;
    uint64_t workspace = 0;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
    uint32_t align[4] = { 256, 256, 256, 256 };
};

constexpr uint32_t MAGIC = 0x6b644c74;

struct Algorithm {
    uint32_t magic;
    int32_t id;
    uint32_t tile;
    int32_t splits;
    uint32_t scheme, swizzle, custom, stages;
    uint16_t inner, cluster;
    uint32_t align; /* bytes that every pointer and leading dimension must be a multiple of */
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t), "");

} // namespace simt

#endif
