/*
 * checkpoint.h - what the files of a checkpoint's code share; of this folder alone.
 *
 * manifest.c              MANIFEST.json: sizes and hashes
 * checkpoint_state.c      engine/state.json: progress, contract and layout
 * checkpoint_write.c      kd_checkpoint_save
 * checkpoint_read.c       kd_checkpoint_load
 * checkpoint_folder.c     the folder of all checkpoints: newest, rotation
 * output.c                the folder as a run takes it: held by one, swept of what dead ones left
 *
 *     checkpoint-000500/
 *         config.json model.safetensors, tokenizer files    the first student, in its compute dtype
 *         students/<label>/...                              the other students, likewise
 *         trainer_state.json                                as transformers has it
 *         engine/state.json                                 what kd needs besides
 *         engine/config.json                                the effective configuration
 *         engine/optimizer.safetensors                      <label>.masters .moment0 .moment1, f32, of
 *                                                           the whole slab; without masters .extra,
 *                                                           the weights that are not the model's
 *         MANIFEST.json
 */
#ifndef KD_TRAIN_CHECKPOINT_H
#define KD_TRAIN_CHECKPOINT_H

#include "train/train.h"

/* Of names that are no checkpoint's: one being written, one to be removed, and one that another is
 * about to replace where that takes two renames. */
#define KD_STAGING_PREFIX  ".tmp-checkpoint-"
#define KD_REMOVED_PREFIX  ".del-"
#define KD_REPLACED_PREFIX ".old-"

/* ---- MANIFEST.json ---------------------------------------------------------------------------- */

/* Of every file below `dir`; fsyncs each folder on its way.  The last file that is written. */
KD_MUST_CHECK kd_status kd_manifest_write(const char *dir);

/* KD_EFORMAT naming the first file that is missing or has another size or, with `hashes`, other
 * bytes.  Files that the manifest does not list are left alone. */
KD_MUST_CHECK kd_status kd_manifest_check(const char *dir, bool hashes);

/* ---- engine/state.json ------------------------------------------------------------------------ */

/* The caller owns `*state`. */
KD_MUST_CHECK kd_status kd_state_make(json_t **state, const kd_checkpoint *checkpoint);

/* KD_EFORMAT naming `path`, key and both values when `state` is of another version, contract or
 * layout than `expected`. */
KD_MUST_CHECK kd_status kd_state_check(const json_t *state, const char *path,
                                       const kd_checkpoint *expected);
KD_MUST_CHECK kd_status kd_state_progress(kd_progress *progress, const json_t *state,
                                          const char *path);

/* ---- arrays and folders ----------------------------------------------------------------------- */

/* An array of engine/optimizer.safetensors. */
typedef struct kd_slab_array {
    const char *name; /* "masters" */
    kd_tensor tensor;
} kd_slab_array;

enum { KD_SLAB_ARRAYS = 5 };

/* Those that `slab` has; returns their number. */
int kd_slab_arrays(kd_slab_array arrays[KD_SLAB_ARRAYS], const kd_slab *slab);

/* Elements that pass through host memory at a time. */
enum { KD_CHECKPOINT_PIECE = 4 << 20 };

/* Where the model's own files lie: `dir` of the first student, dir/students/<label> of the others. */
KD_MUST_CHECK kd_status kd_student_dir(const char **path, kd_arena *arena, const char *dir,
                                       const kd_checkpoint *checkpoint, int student);

/* Renames out/name to `prefix`, name and our number, and fsyncs `out`; `*aside` lives in `arena`. */
KD_MUST_CHECK kd_status kd_checkpoint_set_aside(const char **aside, kd_arena *arena,
                                                const char *out, const char *prefix,
                                                const char *name);

/* Removes a folder, or a link in its place. */
KD_MUST_CHECK kd_status kd_checkpoint_discard(const char *path);

#endif
