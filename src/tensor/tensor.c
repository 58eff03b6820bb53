#include "tensor/tensor.h"

#include <stdio.h>
#include <strings.h>

static const struct {
    size_t bytes;
    const char *file_name, *run_name;
} dtypes[KD_DTYPE_COUNT] = {
#define X(name, bytes, file_name, run_name) { bytes, file_name, run_name },
    KD_DTYPE_LIST(X)
#undef X
};

size_t kd_dtype_size(kd_dtype dtype) { return dtypes[dtype].bytes; }

const char *kd_dtype_name(kd_dtype dtype)
{
    return (unsigned)dtype < KD_DTYPE_COUNT ? dtypes[dtype].run_name : "unknown type";
}

kd_status kd_dtype_parse(kd_dtype *dtype, const char *name)
{
    for (int i = 0; i < KD_DTYPE_COUNT; i++) {
        if (strcasecmp(name, dtypes[i].run_name) == 0) {
            *dtype = (kd_dtype)i;
            return KD_OK;
        }
    }
    return kd_fail(KD_EINVAL, "\"%s\" is no element type; expected f32, bf16, f16, ...", name);
}

kd_tensor kd_tensor_of(void *data, kd_dtype dtype, kd_shape shape)
{
    kd_tensor t = { .data = data, .dtype = dtype, .rank = shape.rank };
    int64_t stride = 1;
    for (int32_t i = shape.rank - 1; i >= 0; i--) {
        t.shape[i] = shape.dim[i];
        t.stride[i] = stride;
        /* Only beside a dimension of 0, where no element has an address. */
        if (!kd_mul_i64(&stride, stride, shape.dim[i])) stride = 0;
    }
    return t;
}

int64_t kd_tensor_elements(const kd_tensor *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i < t->rank; i++)
        if (t->shape[i] == 0) return 0; /* what the others would make may overflow */
    for (int32_t i = 0; i < t->rank; i++) n *= t->shape[i];
    return n;
}

size_t kd_tensor_bytes(const kd_tensor *t)
{
    return (size_t)kd_tensor_elements(t) * kd_dtype_size(t->dtype);
}

int64_t kd_tensor_rows(const kd_tensor *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i + 1 < t->rank; i++)
        if (!kd_mul_i64(&n, n, t->shape[i])) return 0; /* of no columns */
    return n;
}

int64_t kd_tensor_columns(const kd_tensor *t) { return t->rank ? t->shape[t->rank - 1] : 1; }

bool kd_tensor_contiguous(const kd_tensor *t)
{
    int64_t stride = 1;
    if (kd_tensor_elements(t) == 0) return true;
    for (int32_t i = t->rank - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != stride) return false;
        stride *= t->shape[i];
    }
    return true;
}

kd_tensor kd_tensor_slice(const kd_tensor *t, int32_t dim, int64_t begin, int64_t count)
{
    kd_tensor s = *t;
    s.shape[dim] = count;
    if (s.data) s.data = (char *)s.data + begin * s.stride[dim] * (int64_t)kd_dtype_size(s.dtype);
    return s;
}

kd_tensor kd_tensor_transposed(const kd_tensor *t)
{
    kd_tensor s = *t;
    s.shape[0] = t->shape[1];
    s.shape[1] = t->shape[0];
    s.stride[0] = t->stride[1];
    s.stride[1] = t->stride[0];
    return s;
}

kd_tensor kd_tensor_matrix(const kd_tensor *t, int64_t i)
{
    kd_tensor m = kd_tensor_slice(t, 0, i, 1);
    m.rank = 2;
    m.shape[0] = t->shape[1], m.shape[1] = t->shape[2];
    m.stride[0] = t->stride[1], m.stride[1] = t->stride[2];
    return m;
}

kd_tensor kd_tensor_split(const kd_tensor *t, int64_t inner)
{
    kd_tensor s = *t;
    const int32_t last = t->rank - 1;
    s.rank = t->rank + 1;
    s.shape[last] = t->shape[last] / inner;
    s.stride[last] = inner;
    s.shape[last + 1] = inner;
    s.stride[last + 1] = 1;
    return s;
}

const char *kd_shape_text(char *buffer, size_t size, int32_t rank, const int64_t *shape)
{
    int n = snprintf(buffer, size, "[");
    for (int32_t i = 0; i < rank && (size_t)n < size; i++)
        n += snprintf(buffer + n, size - (size_t)n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if ((size_t)n < size) snprintf(buffer + n, size - (size_t)n, "]");
    return buffer;
}

const char *kd_tensor_print(char *buffer, size_t size, const kd_tensor *t)
{
    const int n = snprintf(buffer, size, "%s ", kd_dtype_name(t->dtype));
    if ((size_t)n < size) (void)kd_shape_text(buffer + n, size - (size_t)n, t->rank, t->shape);
    return buffer;
}

kd_status kd_tensor_expect(const kd_tensor *t, const char *what, int dtype, kd_shape shape)
{
    if (!kd_present(t)) return kd_fail(KD_EINVAL, "%s: absent", what);
    bool same = t->rank == shape.rank && (dtype < 0 || (int)t->dtype == dtype);
    for (int32_t i = 0; same && i < shape.rank; i++)
        same = shape.dim[i] < 0 || shape.dim[i] == t->shape[i];
    if (same) return KD_OK;

    char found[96], wanted[96];
    kd_tensor expected = { .dtype = dtype < 0 ? t->dtype : (kd_dtype)dtype, .rank = shape.rank };
    for (int32_t i = 0; i < shape.rank; i++) expected.shape[i] = shape.dim[i];
    return kd_fail(KD_EINVAL, "%s: found %s, expected %s (-1: any)", what,
                   kd_tensor_print(found, sizeof found, t),
                   kd_tensor_print(wanted, sizeof wanted, &expected));
}

kd_status kd_matrix_strides(int64_t stride[2], const kd_tensor *t, const char *what)
{
    const int64_t rows = t->shape[0], columns = t->shape[1];
    const int64_t down = t->stride[0], right = t->stride[1];
    if (columns <= 1 || right == 1) {
        stride[0] = rows <= 1 ? kd_max_i64(columns, 1) : down;
        stride[1] = 1;
        if (stride[0] >= columns) return KD_OK;
    } else if (rows <= 1 || down == 1) {
        stride[0] = 1;
        stride[1] = right;
        if (stride[1] >= rows) return KD_OK;
    }
    return kd_fail(KD_EINVAL,
                   "%s: [%lld, %lld] with strides %lld, %lld; expected one stride of 1 and no "
                   "overlap",
                   what, (long long)rows, (long long)columns, (long long)down, (long long)right);
}
