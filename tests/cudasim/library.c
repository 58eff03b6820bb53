/* In place of src/base/library.c: the libraries that kd would load are linked. */
#include "base/base.h"

#include <cublasLt.h>
#include <nccl.h>
#include <pthread.h>
#include <string.h>

#define FUNCTION(name)                                                                             \
    {                                                                                              \
#name, (void (*)(void))(name)                                                              \
    }

static const struct {
    const char *name;
    void (*address)(void);
} functions[] = {
    FUNCTION(cublasLtCreate),
    FUNCTION(cublasLtDestroy),
    FUNCTION(cublasLtGetStatusName),
    FUNCTION(cublasLtGetVersion),
    FUNCTION(cublasLtMatmul),
    FUNCTION(cublasLtMatmulAlgoConfigGetAttribute),
    FUNCTION(cublasLtMatmulAlgoGetHeuristic),
    FUNCTION(cublasLtMatmulDescCreate),
    FUNCTION(cublasLtMatmulDescDestroy),
    FUNCTION(cublasLtMatmulDescSetAttribute),
    FUNCTION(cublasLtMatmulPreferenceCreate),
    FUNCTION(cublasLtMatmulPreferenceDestroy),
    FUNCTION(cublasLtMatmulPreferenceSetAttribute),
    FUNCTION(cublasLtMatrixLayoutCreate),
    FUNCTION(cublasLtMatrixLayoutDestroy),
    FUNCTION(cublasLtMatrixLayoutSetAttribute),
    FUNCTION(ncclAllReduce),
    FUNCTION(ncclBroadcast),
    FUNCTION(ncclCommAbort),
    FUNCTION(ncclCommDestroy),
    FUNCTION(ncclCommFinalize),
    FUNCTION(ncclCommGetAsyncError),
    FUNCTION(ncclCommInitRankConfig),
    FUNCTION(ncclGetErrorString),
    FUNCTION(ncclGetLastError),
    FUNCTION(ncclGetUniqueId),
    FUNCTION(ncclGetVersion),
};

static kd_status fill(const kd_library *library, int at)
{
    for (int i = 0; i < KD_COUNT(functions); i++) {
        if (strcmp(functions[i].name, library->functions[at]) != 0) continue;
        memcpy((char *)library->table + (size_t)at * sizeof functions[i].address,
               &functions[i].address, sizeof functions[i].address);
        return KD_OK;
    }
    return kd_fail(KD_EDEVICE, "%s: %s is not emulated", library->file, library->functions[at]);
}

kd_status kd_library_load(kd_library *library)
{
    static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
    kd_status status = KD_OK;
    pthread_mutex_lock(&loading);
    for (int i = 0; i < library->count && status == KD_OK; i++) status = fill(library, i);
    pthread_mutex_unlock(&loading);
    return status;
}
