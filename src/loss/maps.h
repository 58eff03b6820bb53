/* maps.h - what losses over feature maps share.  Internal to src/loss. */
#ifndef KD_LOSS_MAPS_H
#define KD_LOSS_MAPS_H

#include "loss/loss.h"

/* [B, C, H, W] seen as [B, C, H W].  KD_EINVAL naming `what` where rows of a map do not follow one another. */
KD_MUST_CHECK kd_status kd_maps_flat(kd_tensor *flat, const kd_tensor *maps, const char *what);

/* The same seen as [B, C H W]; KD_EINVAL too where the maps of a sample do not follow one another. */
KD_MUST_CHECK kd_status kd_maps_rows(kd_tensor *rows, const kd_tensor *maps, const char *what);

/* KD_EINVAL unless both have the same number of samples and the same height and width. */
KD_MUST_CHECK kd_status kd_maps_match(const kd_tensor *student, const kd_tensor *teacher);

#endif
