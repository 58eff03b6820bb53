/*
 * kd/checkpoint.h - what a run left on disk: out/checkpoint-000500, each a Hugging Face directory
 * with trainer_state.json, engine/ and MANIFEST.json.
 */
#ifndef KD_CHECKPOINT_H
#define KD_CHECKPOINT_H

#include <kd/status.h>

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Reads every file that dir/MANIFEST.json names and compares its size and hash.  KD_EFORMAT names
 * the first file that differs and, for a safetensors file, the tensor. */
KD_MUST_CHECK kd_status kd_checkpoint_check(const char *dir);

/*
 * The newest checkpoint of the run directory `out` that verifies, into `dir` [size] with its NUL; ""
 * when there is none.  Like a run that starts, it removes what a dead run left half written and warns
 * of a damaged checkpoint that it passes over.  KD_EINVAL when `size` bytes do not hold the path.
 */
KD_MUST_CHECK kd_status kd_checkpoint_newest(char *dir, size_t size, const char *out);

#ifdef __cplusplus
}
#endif
#endif
