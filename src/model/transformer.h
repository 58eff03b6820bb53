/* transformer.h - what the files of the one transformer share; private to model. */
#ifndef KD_TRANSFORMER_H
#define KD_TRANSFORMER_H

#include "model/model.h"

/* Bracket every use of a block's parameters.  All of them are resident today; sharded teachers and
 * offload gather and drop them here.  Block -1 is the embeddings, `layers` the final norm and head. */
static inline kd_status kd_params_acquire(kd_model *model, int block)
{
    (void)model, (void)block;
    return KD_OK;
}

static inline void kd_params_release(kd_model *model, int block) { (void)model, (void)block; }

KD_MUST_CHECK kd_status kd_model_embed(kd_model *model, kd_exec *exec, const kd_tensor *x,
                                       const kd_tensor *tokens, const kd_tensor *positions);

/* Takes what block's backward needs from the stack. */
KD_MUST_CHECK kd_status kd_block_save(kd_block_saved *saved, kd_model *model, kd_exec *exec,
                                      const kd_block *block, const kd_tensor *x);

/* y = block(x); without y only `saved` is filled (recompute).  y may be x on a frozen model. */
KD_MUST_CHECK kd_status kd_block_forward(kd_model *model, kd_exec *exec, const kd_tensor *y,
                                         const kd_block_saved *saved, const kd_tensor *x,
                                         const kd_geometry *geometry, const kd_block *block);

KD_MUST_CHECK kd_status kd_transformer_backward(kd_model *model, kd_exec *exec,
                                                const kd_batch *batch, kd_taps *taps,
                                                kd_block_done done, void *context);

/* The blocks and parameters of model->config, without memory for any; `options` may be NULL. */
KD_MUST_CHECK kd_status kd_model_declare(kd_model *model, kd_params *params,
                                         const kd_model_options *options);

/* Shape of a parameter and of the run of its rows that `part` is. */
int kd_model_param(const kd_model *model, const kd_name_row *row, int64_t block);
void kd_part_rows(int64_t *begin, int64_t *count, const kd_model *model, const kd_name_row *row,
                  int param);

/* "model.layers.3.mlp.up_proj.weight"; without the family's optional prefix where `bare`. */
void kd_tensor_name(char *name, size_t size, const kd_family *family, const kd_name_row *row,
                    int64_t block, bool bare);
bool kd_name_per_block(const kd_name_row *row);

#endif
