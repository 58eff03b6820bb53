/*
 * cublaslt_objects.cpp - descriptors, layouts, preferences and algorithms of cuBLASLt, and their
 * attributes.  An attribute that is not known is refused, not ignored.
 */
#include "cublaslt.h"

#include <atomic>
#include <cstring>
#include <new>

/* How many descriptors, layouts and preferences were ever made, and how many there are. */
extern "C" {
std::atomic<long> kd_sim_cublaslt_made{ 0 }, kd_sim_cublaslt_alive{ 0 };
}

using namespace simt;

namespace {

template <class T, class... Args> cublasStatus_t make(void *out, Args... args)
{
    T *object = new (std::nothrow) T{ args... };
    if (!object) return CUBLAS_STATUS_ALLOC_FAILED;
    memcpy(out, &object, sizeof object);
    kd_sim_cublaslt_made++;
    kd_sim_cublaslt_alive++;
    return OK;
}

template <class T> cublasStatus_t destroy(void *object)
{
    if (!object) return OK;
    delete (T *)object;
    kd_sim_cublaslt_alive--;
    return OK;
}

/* Writing an attribute, and reading one. */
struct Set {
    const void *from;
    size_t bytes;
    template <class T> cublasStatus_t operator()(T &to) const
    {
        if (!from || bytes != sizeof(T)) return INVALID;
        memcpy(&to, from, bytes);
        return OK;
    }
};

struct Get {
    void *to;
    size_t bytes, *written;
    template <class T> cublasStatus_t operator()(const T &from) const
    {
        if (written) *written = sizeof(T);
        if (!bytes) return written ? OK : INVALID;
        if (!to || bytes != sizeof(T)) return INVALID;
        memcpy(to, &from, bytes);
        return OK;
    }
};

template <class F> cublasStatus_t attribute(Desc &d, int attr, F f)
{
    switch (attr) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return f(d.compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return f(d.scale);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return f(d.pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA: return f(d.transposed[0]);
    case CUBLASLT_MATMUL_DESC_TRANSB: return f(d.transposed[1]);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return f(d.epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return f(d.bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return f(d.bias_type);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return f(d.aux);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return f(d.aux_ld);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE: return f(d.aux_type);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER: return f(d.scale_of[0]);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER: return f(d.scale_of[1]);
    case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER: return f(d.scale_of[2]);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE: return f(d.scale_mode[0]);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE: return f(d.scale_mode[1]);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM: return f(d.fast_accumulation);
    default: return MISSING;
    }
}

template <class F> cublasStatus_t attribute(Layout &l, int attr, F f)
{
    switch (attr) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: return f(l.type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER: return f(l.order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS: return f(l.rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS: return f(l.columns);
    case CUBLASLT_MATRIX_LAYOUT_LD: return f(l.ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return f(l.batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return f(l.batch_stride);
    default: return MISSING;
    }
}

template <class F> cublasStatus_t attribute(Preference &p, int attr, F f)
{
    switch (attr) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE: return f(p.search);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return f(p.workspace);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return f(p.schemes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return f(p.align[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return f(p.align[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return f(p.align[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return f(p.align[3]);
    default: return MISSING;
    }
}

template <class F> cublasStatus_t attribute(Algorithm &a, int attr, F f)
{
    switch (attr) {
    case CUBLASLT_ALGO_CONFIG_ID: return f(a.id);
    case CUBLASLT_ALGO_CONFIG_TILE_ID: return f(a.tile);
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM: return f(a.splits);
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME: return f(a.scheme);
    case CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING: return f(a.swizzle);
    case CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION: return f(a.custom);
    case CUBLASLT_ALGO_CONFIG_STAGES_ID: return f(a.stages);
    case CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID: return f(a.inner);
    case CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID: return f(a.cluster);
    default: return MISSING;
    }
}

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { return h ? make<int>(h) : INVALID; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return destroy<int>(h); }
size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_UNKNOWN";
    }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    return d ? make<Desc>(d, (int32_t)compute, (int32_t)scale) : INVALID;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return destroy<Desc>(d); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attr, const void *buf,
                                              size_t bytes)
{
    return d ? attribute(*(Desc *)d, attr, Set{ buf, bytes }) : INVALID;
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attr, void *buf,
                                              size_t bytes, size_t *written)
{
    return d ? attribute(*(Desc *)d, attr, Get{ buf, bytes, written }) : INVALID;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t ld)
{
    return l ? make<Layout>(l, (uint32_t)type, rows, columns, ld) : INVALID;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return destroy<Layout>(l); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t attr,
                                                const void *buf, size_t bytes)
{
    return l ? attribute(*(Layout *)l, attr, Set{ buf, bytes }) : INVALID;
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t attr, void *buf,
                                                size_t bytes, size_t *written)
{
    return l ? attribute(*(Layout *)l, attr, Get{ buf, bytes, written }) : INVALID;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    return p ? make<Preference>(p) : INVALID;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    return destroy<Preference>(p);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *buf, size_t bytes)
{
    return p ? attribute(*(Preference *)p, attr, Set{ buf, bytes }) : INVALID;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attr,
                                                    void *buf, size_t bytes, size_t *written)
{
    if (!algo) return INVALID;
    Algorithm a;
    memcpy(&a, algo, sizeof a);
    return a.magic == MAGIC ? attribute(a, attr, Get{ buf, bytes, written }) : INVALID;
}
}
