/*
 * parity.h - one op on the CPU and on a GPU, over the same operands.
 *
 * The GPU works on copies of the whole blocks that hold the operands, guards and aliases included, so
 * whatever the CPU's test can plant, the GPU meets too.
 */
#ifndef KD_TEST_SUPPORT_PARITY_H
#define KD_TEST_SUPPORT_PARITY_H

#include "support/support.h"

typedef struct parity {
    test_bench bench; /* the CPU; its tensors are the operands */
    kd_device *gpu;
} parity;

/* Opens the first CUDA device, and skips the test where there is none.  The CPU's stack is of
 * `stack_bytes`. */
void parity_open(parity *p, size_t stack_bytes);

/* From the next open on an emulated card is of this compute capability, 80, 89 or 90; a real one stays
 * what it is. */
void parity_capability(int capability);
void parity_close(parity *p);

/*
 * Runs the op on both and fails, naming the case, unless
 *     every OUT and INOUT operand is near the CPU's (test_near; two roundings to a narrow type),
 *     nothing else of any block has changed,
 *     a second run on the GPU gives the same bits,
 *     and a plan asks for the scratch that the run takes.
 * Operands must be tensors of p->bench.  The CPU's results stay in them.
 *     PARITY(&p, add, 1, 1, "add of 3 rows", .y = &y, .a = &a, .b = &b);
 */
#define PARITY(p, op, scale, length, name, ...)                                                    \
    parity_run((p), KD_OP_##op, &(const kd_##op##_args){ __VA_ARGS__ }, (scale), (length), (name))
void parity_run(parity *p, kd_op_id op, const void *args, double scale, double length,
                const char *name);

/* "rms_norm bf16 [3, 70] + 5" and the like, for `name`; lives until the next call. */
const char *parity_name(const char *fmt, ...) KD_PRINTF(1, 2);

/* The GPU's part of parity_run alone: no CPU, no comparison; the results replace the operands.  For
 * what the CPU refuses and a GPU answers with NaN. */
#define PARITY_GPU(p, op, ...)                                                                     \
    parity_run_gpu((p), KD_OP_##op, &(const kd_##op##_args){ __VA_ARGS__ })
KD_MUST_CHECK kd_status parity_run_gpu(parity *p, kd_op_id op, const void *args);

#endif
