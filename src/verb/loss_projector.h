/* loss_projector.h - the projector of `kd loss`, whose parameters a file has; private to loss_feature.c. */
#ifndef KD_VERB_LOSS_PROJECTOR_H
#define KD_VERB_LOSS_PROJECTOR_H

#include "format/format.h"
#include "loss/loss.h"

typedef struct kd_file_projector {
    kd_projector projector; /* options NULL: there is none */
    kd_params params;
    kd_slab slab;
    kd_tensor *values, *gradients; /* [params.count], of the host */
} kd_file_projector;

/* KD_EINVAL where the loss reads nothing that such a projector could widen.  `options` NULL, or such that nothing
 * happens: there is none. */
KD_MUST_CHECK kd_status kd_file_projector_choose(kd_file_projector *p, const kd_feature_type *type,
                                                 const kd_projector_options *options);

/* Its parameters, to bring `student` to `teacher`'s shape.  KD_EFORMAT naming a tensor that is not there or has
 * another shape, and what was expected. */
KD_MUST_CHECK kd_status kd_file_projector_read(kd_file_projector *p, kd_arena *arena,
                                               const kd_st_file *file, const kd_tensor *student,
                                               const kd_tensor *teacher);

/* A slab on the device with the parameters, and gradients of 0. */
KD_MUST_CHECK kd_status kd_file_projector_open(kd_file_projector *p, kd_device *device);
void kd_file_projector_close(kd_file_projector *p);

/* From the slab to p->gradients. */
KD_MUST_CHECK kd_status kd_file_projector_fetch(const kd_file_projector *p, kd_exec *exec);

#endif
