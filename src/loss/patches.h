/* patches.h - feature maps as rows of a matrix; private to projectors. */
#ifndef KD_LOSS_PATCHES_H
#define KD_LOSS_PATCHES_H

#include "loss/loss.h"

/* rows [B H W, C] of maps [B, C, H, W], on the stack, in the same type. */
KD_MUST_CHECK kd_status kd_places_of(kd_tensor *rows, kd_exec *exec, const kd_tensor *maps);

/* The way back: maps [B, C, H, W] of rows, on the stack, as `dtype`. */
KD_MUST_CHECK kd_status kd_maps_of(kd_tensor *maps, kd_exec *exec, const kd_tensor *rows,
                                   kd_shape shape, kd_dtype dtype);

/* What a valid convolution of stride 1 reads. */
typedef struct kd_patch_shape {
    int64_t samples, channels, height, width; /* of the maps; rows are their places */
    int64_t kernel[2];                        /* height, width */
} kd_patch_shape;

/* patches [B H' W', C h w] of rows, on the stack; columns in the order of a weight [C', C, h, w]. */
KD_MUST_CHECK kd_status kd_patches_of(kd_tensor *patches, kd_exec *exec, const kd_tensor *rows,
                                      const kd_patch_shape *shape);

/* d_rows f32, on the stack: of each place the sum over the patches that have it. */
KD_MUST_CHECK kd_status kd_patches_backward(kd_tensor *d_rows, kd_exec *exec,
                                            const kd_tensor *d_patches,
                                            const kd_patch_shape *shape);

#endif
