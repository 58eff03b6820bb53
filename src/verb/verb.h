/*
 * verb.h - what the command does besides training; declared for users in kd/model.h, kd/generate.h,
 * kd/loss.h, kd/checkpoint.h and kd/kd.h.
 *
 * logits.c generate.c loss.c loss_feature.c loss_projector.c inspect.c init.c list.c checkpoint.c inputs.c
 */
#ifndef KD_VERB_H
#define KD_VERB_H

#include "format/format.h"

/* Puts the file before the message of what an op refused about its tensors; any other status as it is. */
KD_MUST_CHECK kd_status kd_verb_of_file(const char *path, kd_status status);

/* A whole tensor of `rank` dimensions and any integer type; `values` lives in `arena`.  KD_EFORMAT naming the element
 * when the tensor is absent, has another rank or type, or a value does not fit i32. */
KD_MUST_CHECK kd_status kd_verb_integers(int32_t **values, int64_t *count, kd_arena *arena,
                                         const kd_st_file *file, const char *name, int rank);

/* The tensor `tokens` of a file, at least one; KD_EFORMAT names an id that is not of [0, vocabulary). */
KD_MUST_CHECK kd_status kd_verb_tokens(int32_t **ids, int64_t *count, kd_arena *arena,
                                       const char *path, int64_t vocabulary);

#endif
