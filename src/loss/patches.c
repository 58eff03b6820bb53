/*
 * Feature maps by places, and the patches of a convolution, so that both are products of matrices.
 *
 *     patches[b, y, x][c, i, j] = maps[b, c, y + i, x + j],   i < h, j < w,  y < H - h + 1, x < W - w + 1
 *     d maps[b, c, v, u]        = sum over i, j of d patches[b, v - i, u - j][c, i, j]
 *
 * A product sums over c, i and j at once and in f32 whatever the maps' type; it costs a copy h w times the maps, made
 * by h w copies of shifted maps, and the backward pass its gradient of the same size.
 */
#include "loss/patches.h"

/* The memory of rows, seen as [B, H, W, C]. */
static kd_tensor by_places(const kd_tensor *rows, int64_t samples, int64_t height, int64_t width,
                           int64_t channels)
{
    return kd_tensor_of(rows->data, rows->dtype, KD_SHAPE(samples, height, width, channels));
}

/* [B, C, H, W] in the order B, H, W, C. */
static kd_tensor channels_last(const kd_tensor *maps)
{
    static const int order[] = { 0, 2, 3, 1 };
    kd_tensor t = *maps;
    for (int i = 0; i < 4; i++) {
        t.shape[i] = maps->shape[order[i]];
        t.stride[i] = maps->stride[order[i]];
    }
    return t;
}

kd_status kd_places_of(kd_tensor *rows, kd_exec *exec, const kd_tensor *maps)
{
    const kd_tensor x = channels_last(maps);
    const int64_t *s = x.shape;
    KD_TRY(kd_push(rows, exec, "places of maps", maps->dtype, KD_SHAPE(s[0] * s[1] * s[2], s[3])));
    const kd_tensor y = by_places(rows, s[0], s[1], s[2], s[3]);
    return KD_RUN(exec, copy, .y = &y, .x = &x);
}

kd_status kd_maps_of(kd_tensor *maps, kd_exec *exec, const kd_tensor *rows, kd_shape shape,
                     kd_dtype dtype)
{
    KD_TRY(kd_push(maps, exec, "maps of places", dtype, shape));
    const kd_tensor y = channels_last(maps);
    const kd_tensor x = by_places(rows, y.shape[0], y.shape[1], y.shape[2], y.shape[3]);
    return KD_RUN(exec, copy, .y = &y, .x = &x);
}

/* ---- patches ---------------------------------------------------------------------------------- */

static int64_t places(const kd_patch_shape *s, int i)
{
    return (i == 0 ? s->height : s->width) - s->kernel[i] + 1;
}

/* Of [B, H, W, C] what stands at place (i, j) of all patches: [B, H', W', C]. */
static kd_tensor shifted(const kd_tensor *rows, const kd_patch_shape *s, int64_t i, int64_t j)
{
    const kd_tensor all = by_places(rows, s->samples, s->height, s->width, s->channels);
    const kd_tensor lines = kd_tensor_slice(&all, 1, i, places(s, 0));
    return kd_tensor_slice(&lines, 2, j, places(s, 1));
}

/* The same of the patches, whose columns of one channel follow one another. */
static kd_tensor column(const kd_tensor *patches, const kd_patch_shape *s, int64_t i, int64_t j)
{
    const int64_t kernel = s->kernel[0] * s->kernel[1], row = s->channels * kernel;
    kd_tensor t = by_places(patches, s->samples, places(s, 0), places(s, 1), s->channels);
    t.data =
        (char *)patches->data + (i * s->kernel[1] + j) * (int64_t)kd_dtype_size(patches->dtype);
    t.stride[0] = places(s, 0) * places(s, 1) * row;
    t.stride[1] = places(s, 1) * row;
    t.stride[2] = row;
    t.stride[3] = kernel;
    return t;
}

kd_status kd_patches_of(kd_tensor *patches, kd_exec *exec, const kd_tensor *rows,
                        const kd_patch_shape *s)
{
    const int64_t n = s->samples * places(s, 0) * places(s, 1);
    const int64_t columns = s->channels * s->kernel[0] * s->kernel[1];
    KD_TRY(kd_push(patches, exec, "patches", rows->dtype, KD_SHAPE(n, columns)));
    for (int64_t i = 0; i < s->kernel[0]; i++)
        for (int64_t j = 0; j < s->kernel[1]; j++) {
            const kd_tensor y = column(patches, s, i, j), x = shifted(rows, s, i, j);
            KD_TRY(KD_RUN(exec, copy, .y = &y, .x = &x));
        }
    return KD_OK;
}

kd_status kd_patches_backward(kd_tensor *d_rows, kd_exec *exec, const kd_tensor *d_patches,
                              const kd_patch_shape *s)
{
    const int64_t n = s->samples * s->height * s->width;
    KD_TRY(kd_push(d_rows, exec, "d places of maps", KD_F32, KD_SHAPE(n, s->channels)));
    KD_TRY(KD_RUN(exec, fill, .y = d_rows, .value = 0.0f));
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor part;
    KD_TRY(kd_push(&part, exec, "d shifted maps", KD_F32,
                   KD_SHAPE(s->samples, places(s, 0), places(s, 1), s->channels)));
    for (int64_t i = 0; i < s->kernel[0]; i++)
        for (int64_t j = 0; j < s->kernel[1]; j++) {
            const kd_tensor x = column(d_patches, s, i, j), y = shifted(d_rows, s, i, j);
            KD_TRY(KD_RUN(exec, copy, .y = &part, .x = &x));
            KD_TRY(KD_RUN(exec, add, .y = &y, .a = &y, .b = &part));
        }
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
