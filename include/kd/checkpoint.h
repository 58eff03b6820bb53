/*
 * kd/checkpoint.h - what a run left on disk: out/checkpoint-000500, each a Hugging Face directory
 * with trainer_state.json, engine/ and MANIFEST.json; and a page about all of it.
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
 * when there is no checkpoint.  Warns of a damaged one that it passes over; KD_EFORMAT when all are.
 * KD_EINVAL when `size` bytes do not hold the path.
 */
KD_MUST_CHECK kd_status kd_checkpoint_newest(char *dir, size_t size, const char *out);

/*
 * One self-contained HTML file about the run in `dir`: curves of its metrics.jsonl, and agreement,
 * KL by position and by the teacher's entropy, calibration and compression from its eval*.json (what
 * kd_evaluate_write makes).  What is missing is said in its place.  Reads only; the same folder gives
 * the same bytes.  KD_EFORMAT for a folder with neither of those files.
 */
KD_MUST_CHECK kd_status kd_report_write(const char *path, const char *dir);

#ifdef __cplusplus
}
#endif
#endif
