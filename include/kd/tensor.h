/* kd/tensor.h - a typed, strided view of memory that somebody else owns. */
#ifndef KD_TENSOR_H
#define KD_TENSOR_H

#include <kd/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { KD_MAX_RANK = 4 };

/* One row per element type: name, bytes, its name in safetensors, its name in run files.
 * Values are part of the ABI: append only. */
#define KD_DTYPE_LIST(X)                                                                           \
    X(F32, 4, "F32", "f32")                                                                        \
    X(BF16, 2, "BF16", "bf16")                                                                     \
    X(F16, 2, "F16", "f16")                                                                        \
    X(F8_E4M3, 1, "F8_E4M3", "f8_e4m3")                                                            \
    X(F8_E5M2, 1, "F8_E5M2", "f8_e5m2")                                                            \
    X(I64, 8, "I64", "i64")                                                                        \
    X(I32, 4, "I32", "i32")                                                                        \
    X(U32, 4, "U32", "u32")                                                                        \
    X(U16, 2, "U16", "u16")                                                                        \
    X(U8, 1, "U8", "u8")                                                                           \
    X(I8, 1, "I8", "i8")

typedef enum kd_dtype {
#define X(name, bytes, file_name, run_name) KD_##name,
    KD_DTYPE_LIST(X)
#undef X
        KD_DTYPE_COUNT
} kd_dtype;

size_t kd_dtype_size(kd_dtype dtype);      /* bytes of one element */
const char *kd_dtype_name(kd_dtype dtype); /* "f32" */

/* `dtype` from "f32" or "F32"; KD_EINVAL for a name that is no element type. */
KD_MUST_CHECK kd_status kd_dtype_parse(kd_dtype *dtype, const char *name);

typedef struct kd_shape {
    int32_t rank;
    int64_t dim[KD_MAX_RANK];
} kd_shape;

#ifndef __cplusplus
/* KD_SHAPE(rows, columns) */
#define KD_SHAPE(...)                                                                              \
    ((kd_shape){ (int32_t)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), { __VA_ARGS__ } })
#endif

/*
 * `stride[i]` counts elements from one index of dimension i to the next, so a column slice, a head
 * of a fused QKV row and a transpose are all views.  A tensor with data == NULL is absent:
 * optional arguments are passed so.
 */
typedef struct kd_tensor {
    void *data;
    kd_dtype dtype;
    int32_t rank;
    int64_t shape[KD_MAX_RANK];
    int64_t stride[KD_MAX_RANK];
} kd_tensor;

/* A row-major view of `data`. */
kd_tensor kd_tensor_of(void *data, kd_dtype dtype, kd_shape shape);

int64_t kd_tensor_elements(const kd_tensor *t);
size_t kd_tensor_bytes(const kd_tensor *t); /* elements * size; strides do not count */
bool kd_tensor_contiguous(const kd_tensor *t);

/* Indices [begin, begin + count) of dimension `dim`. */
kd_tensor kd_tensor_slice(const kd_tensor *t, int32_t dim, int64_t begin, int64_t count);

/* A matrix with its two dimensions exchanged; no element moves. */
kd_tensor kd_tensor_transposed(const kd_tensor *t);

/* [N, A*B] seen as [N, A, B]; the last dimension of `t` must have stride 1. */
kd_tensor kd_tensor_split(const kd_tensor *t, int64_t inner);

#ifdef __cplusplus
}
#endif
#endif
