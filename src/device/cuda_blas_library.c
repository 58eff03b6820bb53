/* cuBLASLt, looked for when the first GPU opens (base/library.c). */
#include "device/cuda_blas.h"

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)

kd_cublaslt kd_lt;

#define X(function) #function,
static const char *const functions[] = { KD_CUBLASLT(X) };
#undef X

_Static_assert(sizeof kd_lt == KD_COUNT(functions) * sizeof(void *), "pointers and nothing else");

static kd_library library = {
    .file = "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR),
    .functions = functions,
    .count = KD_COUNT(functions),
    .table = &kd_lt,
};

kd_status kd_cublaslt_load(void) { return kd_library_load(&library); }
