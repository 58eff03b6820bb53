/*
 * layer.h - forward and backward of one layer, side by side; host code over ops, for all devices.
 *
 * linear.c norm.c attention.c mlp.c
 *
 * A forward writes what its backward needs into a `saved` struct, whose tensors the caller took
 * from the stack (kd_*_save); scratch lives only inside a call.  Weights come from a slab by index;
 * on a frozen slab gradients are absent and backward must not be called.
 */
#ifndef KD_LAYER_H
#define KD_LAYER_H

#include "ops/ops.h"

/* ---- linear: y = x W^T + b -------------------------------------------------------------------- */

/* What a product with weights needs to know of them.  Scales of quantised weights and low-rank
 * adapters belong here, so that no layer changes for them. */
typedef struct kd_weight {
    kd_tensor tensor, bias;            /* [out, in], [out] or absent */
    kd_tensor scale;                   /* f32 [out] of an e4m3 tensor, whose x is quantised too */
    kd_tensor gradient, bias_gradient; /* f32, accumulated; absent on a frozen slab */
} kd_weight;

typedef struct kd_linear {
    int weight, bias; /* indices into the slab's params; bias -1: none */
} kd_linear;

kd_weight kd_linear_weight(const kd_slab *slab, kd_linear layer);

KD_MUST_CHECK kd_status kd_linear_forward(kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                                          const kd_weight *weight);

/* pre = x W^T + b, y = gelu(pre) in its tanh form. */
KD_MUST_CHECK kd_status kd_linear_gelu_forward(kd_exec *exec, const kd_tensor *y,
                                               const kd_tensor *pre, const kd_tensor *x,
                                               const kd_weight *weight);

/* dx = dy W, unless dx is absent; weight->gradient += dy^T x; weight->bias_gradient += sum dy. */
KD_MUST_CHECK kd_status kd_linear_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                                           const kd_tensor *x, const kd_weight *weight);

/* ---- norm ------------------------------------------------------------------------------------- */

typedef struct kd_norm {
    bool layer_norm;  /* LayerNorm, else RMSNorm */
    int weight, bias; /* weight -1: no norm here */
    float eps;
} kd_norm;

typedef struct kd_norm_saved {
    kd_tensor mean, rstd; /* f32, one per normalised row; mean absent for RMSNorm */
} kd_norm_saved;

KD_MUST_CHECK kd_status kd_norm_save(kd_norm_saved *saved, kd_exec *exec, const kd_norm *norm,
                                     int64_t rows);

/* y = norm(x), or with `residual`: sum = x + residual, y = norm(sum). */
KD_MUST_CHECK kd_status kd_norm_forward(kd_exec *exec, const kd_tensor *y,
                                        const kd_norm_saved *saved, const kd_tensor *sum,
                                        const kd_tensor *x, const kd_tensor *residual,
                                        const kd_slab *slab, const kd_norm *norm);

/* dx = d norm + add (or absent); dx may be add.  x is what was normalised. */
KD_MUST_CHECK kd_status kd_norm_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                                         const kd_tensor *x, const kd_norm_saved *saved,
                                         const kd_tensor *add, const kd_slab *slab,
                                         const kd_norm *norm);

/* ---- attention -------------------------------------------------------------------------------- */

/* Rows of a batch: N tokens of documents that do not see each other. */
typedef struct kd_geometry {
    kd_tensor positions; /* i32 [N] */
    kd_tensor cu;        /* i32 [documents + 1] */
} kd_geometry;

typedef struct kd_attention {
    kd_linear qkv, out;     /* rows of qkv: H d of q, G d of k, G d of v */
    kd_norm q_norm, k_norm; /* RMSNorm over each head's d columns, of the same eps */
    int64_t heads, kv_heads, head_size, window;
    float softcap, rope_scale;
    bool causal;
    kd_tensor frequencies; /* f32 [r / 2]; absent: no rotary position */
} kd_attention;

typedef struct kd_attention_saved {
    kd_tensor qkv;     /* [N, (H + 2G) d] after position; with QK-norm, as projected */
    kd_tensor qk;      /* [N, (H + G) d] q and k after QK-norm and position; absent without it */
    kd_tensor qk_rstd; /* f32 [N, H + G]; absent with qk */
    kd_tensor out;     /* [N, H d] before the output projection */
    kd_tensor lse;     /* [H, N] f32 */
} kd_attention_saved;

KD_MUST_CHECK kd_status kd_attention_save(kd_attention_saved *saved, kd_exec *exec,
                                          const kd_attention *layer, kd_dtype dtype, int64_t rows);
KD_MUST_CHECK kd_status kd_attention_forward(kd_exec *exec, const kd_tensor *y,
                                             const kd_attention_saved *saved, const kd_tensor *x,
                                             const kd_geometry *geometry, const kd_slab *slab,
                                             const kd_attention *layer);

/* q [N, H, d], k and v [N, G, d], as attention has seen them: after QK-norm and position, unscaled. */
typedef struct kd_attention_heads {
    kd_tensor q, k, v;
} kd_attention_heads;

/* Views of what a forward pass saved. */
kd_attention_heads kd_attention_views(const kd_attention_saved *saved, const kd_attention *layer);

/* `more`: what others than attention have left as gradients of q, k and v; each may be absent. */
KD_MUST_CHECK kd_status kd_attention_backward(kd_exec *exec, const kd_tensor *dx,
                                              const kd_tensor *dy, const kd_tensor *x,
                                              const kd_attention_saved *saved,
                                              const kd_attention_heads *more,
                                              const kd_geometry *geometry, const kd_slab *slab,
                                              const kd_attention *layer);

/* Keys and values of one document so far, in rows [0, length) of [capacity, G, d]. */
typedef struct kd_kv_cache {
    kd_tensor k, v;
} kd_kv_cache;

/* One document's next rows: appends their keys and values at row `length` and attends to all of
 * them.  cu_q = {0, n}, cu_k = {0, length + n}. */
KD_MUST_CHECK kd_status kd_attention_extend(kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                                            const kd_kv_cache *cache, int64_t length,
                                            const kd_tensor *positions, const kd_tensor *cu_q,
                                            const kd_tensor *cu_k, const kd_slab *slab,
                                            const kd_attention *layer);

/* ---- mlp -------------------------------------------------------------------------------------- */

typedef struct kd_mlp {
    kd_linear up, down; /* gated: rows of `up` are F of the gate, then F */
    int64_t ffn;
    bool gated; /* SwiGLU, else GELU */
    bool gelu_tanh;
} kd_mlp;

typedef struct kd_mlp_saved {
    kd_tensor up; /* [N, 2F] gated, else [N, F]: before the activation */
} kd_mlp_saved;

KD_MUST_CHECK kd_status kd_mlp_save(kd_mlp_saved *saved, kd_exec *exec, const kd_mlp *layer,
                                    kd_dtype dtype, int64_t rows);
/* Without y only `saved` is filled. */
KD_MUST_CHECK kd_status kd_mlp_forward(kd_exec *exec, const kd_tensor *y, const kd_mlp_saved *saved,
                                       const kd_tensor *x, const kd_slab *slab,
                                       const kd_mlp *layer);
KD_MUST_CHECK kd_status kd_mlp_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                                        const kd_tensor *x, const kd_mlp_saved *saved,
                                        const kd_slab *slab, const kd_mlp *layer);

#endif
