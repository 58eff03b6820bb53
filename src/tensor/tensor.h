/*
 * tensor.h - shapes, element conversion, planned memory, parameter tables and taps.
 *
 * tensor.c convert.c stack.c params.c taps.c
 */
#ifndef KD_TENSOR_INTERNAL_H
#define KD_TENSOR_INTERNAL_H

#include "base/base.h"

#include <kd/tensor.h>

#include <string.h>

/* ---- shapes ----------------------------------------------------------------------------------- */

/* KD_EINVAL naming `what`, found and expected; a dim of -1 in `shape` matches anything.
 * `dtype` < 0 matches any element type. */
KD_MUST_CHECK kd_status kd_tensor_expect(const kd_tensor *t, const char *what, int dtype,
                                         kd_shape shape);

/* "[2, 3]" */
const char *kd_shape_text(char *buffer, size_t size, int32_t rank, const int64_t *shape);

/* "f32 [512, 576]" into `buffer`, which is returned. */
const char *kd_tensor_print(char *buffer, size_t size, const kd_tensor *t);

/* Elements of all dimensions but the last; the last dimension. */
int64_t kd_tensor_rows(const kd_tensor *t);
int64_t kd_tensor_columns(const kd_tensor *t);

/* Strides of a matrix as BLAS-like libraries take them: one of them 1, the other at least the length
 * it steps over; a dimension of one element gets whatever stride makes that so.  KD_EINVAL naming
 * `what` for other matrices. */
KD_MUST_CHECK kd_status kd_matrix_strides(int64_t stride[2], const kd_tensor *t, const char *what);

/* Matrix i of [B, M, N]. */
kd_tensor kd_tensor_matrix(const kd_tensor *t, int64_t i);

/* `t` without the elements: same shape and strides, absent data. */
static inline bool kd_present(const kd_tensor *t) { return t && t->data; }

static inline kd_shape kd_shape_of(const kd_tensor *t)
{
    kd_shape s = { t->rank, { 0 } };
    for (int32_t i = 0; i < t->rank; i++) s.dim[i] = t->shape[i];
    return s;
}

/* ---- element conversion ----------------------------------------------------------------------- */

static inline float kd_bf16_to_f32(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t kd_f32_to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

float kd_f16_to_f32(uint16_t bits);
uint16_t kd_f32_to_f16(float x); /* round to nearest even, overflow to infinity */

/*
 * E4M3: a sign, 4 bits of exponent biased by 7, 3 of fraction; NaN and no infinity.  A finite number
 * rounds to nearest even and saturates at 448; what is not finite becomes NaN (0x7f).
 * Micikevicius et al., FP8 formats for deep learning, 2022.
 */
enum { KD_E4M3_LARGEST = 448 };

float kd_e4m3_to_f32(uint8_t bits);
uint8_t kd_f32_to_e4m3(float x);

/* What brings numbers up to `largest` into e4m3's range when they are divided by it: largest / 448, or
 * 1 where that is no normal number.  `largest` is finite. */
float kd_e4m3_scale(float largest);

/* `count` contiguous elements between any two of F32, BF16, F16; same type is a copy.
 * KD_ENOTSUP for other types. */
KD_MUST_CHECK kd_status kd_convert(void *to, kd_dtype to_dtype, const void *from,
                                   kd_dtype from_dtype, int64_t count);

/* ---- the stack: activations and scratch, planned before step 1 -------------------------------- */

/*
 * Memory that is released in the reverse order of its taking.  With `base` == NULL the stack only
 * counts: tensors get addresses nobody may touch, and `peak` grows; that is the plan.  With a base,
 * going past `capacity` is KD_EINTERNAL, since the plan ran the same code.
 */
enum { KD_STACK_ALIGN = 256, KD_STACK_ENTRIES = 4096 };

typedef struct kd_stack_entry {
    const char *name; /* static text: "mlp.gate_up" */
    size_t bytes;
} kd_stack_entry;

typedef struct kd_stack {
    unsigned char *base;
    size_t used, capacity, peak;
    bool planning;
    const char *phase;      /* "student backward"; set by the step */
    const char *peak_phase; /* the phase that stood at the peak */
    int count, peak_count;
    kd_stack_entry *entries, *peak_entries; /* [KD_STACK_ENTRIES]; NULL: not recorded */
} kd_stack;

typedef struct kd_mark {
    size_t used;
    int count;
} kd_mark;

KD_MUST_CHECK kd_status kd_stack_push(kd_tensor *out, kd_stack *stack, const char *name,
                                      kd_dtype dtype, kd_shape shape);
kd_mark kd_stack_mark(const kd_stack *stack);
void kd_stack_release(kd_stack *stack, kd_mark mark);

/* Prepares a counting stack that records the named list of what stood at its peak. */
KD_MUST_CHECK kd_status kd_stack_plan(kd_stack *stack, kd_arena *arena);

/* ---- parameter tables ------------------------------------------------------------------------- */

/*
 * Models, projectors and losses declare their parameters; the owner then lays them out in one slab
 * and opens it (device/device.h).  Every parameter starts at a multiple of KD_PARAM_ALIGN elements
 * and the whole is padded to it, which also cuts evenly into ranks; padding is zero and stays zero.
 */
enum { KD_PARAM_ALIGN = 256 };

typedef enum kd_param_flag {
    KD_PARAM_DECAY = 1, /* weight decay applies: matrices, not gains, biases or norms */
    KD_PARAM_STATE =
        2, /* not trained: f32 numbers that a loss keeps, in an array of their own; last */
    KD_PARAM_E4M3 = 4,  /* of a frozen model: e4m3 with a scale per row, in arrays of their own */
    KD_PARAM_EXTRA = 8, /* of a loss, not of the model: behind all of the model's */
} kd_param_flag;

typedef struct kd_param {
    const char *name; /* engine name: "blocks.3.attention.qkv.weight" */
    kd_shape shape;
    unsigned flags;
    int block;      /* -1: before block 0 (embeddings); number of blocks: after the last */
    int64_t offset; /* elements into its array of the slab; set by kd_params_layout */
    int64_t scale;  /* the same into the scales; of E4M3 ones */
} kd_param;

typedef struct kd_params {
    kd_arena *arena;
    kd_param *items;
    int count, capacity;
    int trained;      /* how many are no STATE: those come first; set by kd_params_layout */
    int64_t elements; /* padded total of them but the E4M3 ones */
    int64_t states;   /* padded total of the STATE ones */
    int64_t codes;    /* padded total of the E4M3 ones */
    int64_t scales;   /* of their rows; the same */
    int64_t extra;    /* offset of the first EXTRA one; elements: there is none */
    int64_t scalars;  /* true number of the model's parameters, without padding */
} kd_params;

/* `index` is the handle; the name is copied.  EXTRA ones come last, and of these the STATE ones. */
KD_MUST_CHECK kd_status kd_params_declare(int *index, kd_params *params, const char *name,
                                          kd_shape shape, unsigned flags, int block);
void kd_params_layout(kd_params *params);

/* ---- taps: what a forward pass shows, and where losses leave their gradients ------------------ */

typedef enum kd_tap_kind {
    KD_TAP_HIDDEN,   /* [N, D]; layer 0 = embeddings, L = after the final norm (Hugging Face) */
    KD_TAP_QUERY,    /* [N, H, d] of block `layer`, after QK-norm and position, unscaled */
    KD_TAP_KEY,      /* [N, KV, d] */
    KD_TAP_VALUE,    /* [N, KV, d] */
    KD_TAP_FEATURES, /* [B, C, H, W] */
    KD_TAP_POOLED,   /* [B, D] */
    KD_TAP_CLASSES,  /* [B, C] class logits */
} kd_tap_kind;

typedef struct kd_tap {
    kd_tap_kind kind;
    int layer;
    bool wants_gradient;
    kd_tensor value;
    kd_tensor gradient; /* same shape; losses add, the owner zeroed it; absent on a frozen model */
    kd_tensor lse;  /* of query taps: [H, N] f32, of the scores that attention has made of them */
    int64_t window; /* of that attention; 0: none */
    float softcap;  /* the same */
} kd_tap;

/*
 * In place of vocabulary logits: logits = hidden weight^T + bias, columns from `classes` on are
 * padding.  `d_weight` and `d_bias` are accumulated in f32; `d_hidden` is written.
 */
typedef struct kd_head {
    kd_tensor hidden, d_hidden; /* [N, D] */
    kd_tensor weight, d_weight; /* [V, D] */
    kd_tensor bias, d_bias;     /* [V] or absent */
    float softcap;              /* 0: none */
    int64_t classes;
} kd_head;

enum { KD_MAX_TAPS = 256 };

typedef struct kd_taps {
    kd_tap items[KD_MAX_TAPS];
    int count;
    bool measured; /* no backward pass follows: nothing is kept for one */
    kd_head head;
} kd_taps;

/* Asks for a tap before memory is planned; asking twice is once. */
KD_MUST_CHECK kd_status kd_taps_request(kd_taps *taps, kd_tap_kind kind, int layer,
                                        bool wants_gradient);
kd_tap *kd_taps_find(kd_taps *taps, kd_tap_kind kind, int layer); /* NULL: none */

/* What taps a model has, for those who ask. */
typedef struct kd_offer {
    const char *label, *architecture;
    int layers;                         /* hidden taps 0 .. layers; of attention 0 .. layers - 1 */
    const int64_t *widths;              /* [layers + 1] of hidden taps */
    int64_t heads, kv_heads, head_size; /* 0: no attention */
    bool samples;                       /* each row is a sample, not a token among others */
} kd_offer;

#endif
