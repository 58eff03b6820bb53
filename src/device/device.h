/*
 * device.h - where memory, queues and fast matrix products come from.
 *
 * registry.c cpu.c cpu_dnn.c slab.c meta.c; cuda.c cuda_stage.c cuda_graph.c cuda_blas.c
 * cuda_blas_cache.c (their own header: cuda.h), or without CUDA cuda_stub.c
 */
#ifndef KD_DEVICE_INTERNAL_H
#define KD_DEVICE_INTERNAL_H

#include "tensor/tensor.h"

#include <kd/device.h>

typedef struct kd_queue kd_queue;
typedef struct kd_exec kd_exec;
typedef struct kd_event kd_event; /* a place in the work of a queue */
typedef struct kd_graph kd_graph; /* recorded work, to be run again as one */
typedef struct kd_ops kd_ops;     /* ops/ops.h fills it; device only carries it */

/*
 * What one kind of device can do.  Everything is asynchronous on its queue, where NULL is the
 * device's own; the CPU finishing before it returns is a legal case of it.  A type whose work is done
 * when a call returns leaves out events, graphs and host memory: see the functions below, which are
 * what callers use.
 */
typedef struct kd_device_type {
    const char *name;
    const kd_ops *ops; /* NULL where the build has none */
    int (*count)(void);
    kd_status (*open)(kd_device **device, int index);
    void (*close)(kd_device *device);
    void (*describe)(kd_device_info *info, const kd_device *device);
    size_t (*available)(kd_device *device); /* see kd_device_available; NULL: what describe says */
    kd_status (*alloc)(void **out, kd_device *device, size_t bytes); /* aligned to 256, zeroed */
    void (*release)(kd_device *device, void *memory);
    kd_status (*alloc_host)(void **out, kd_device *device, size_t bytes); /* zeroed */
    void (*release_host)(kd_device *device, void *memory);
    /* `from` may be reused at once.  `to` is written when the queue gets there. */
    kd_status (*upload)(kd_device *device, kd_queue *queue, void *to, const void *from,
                        size_t bytes);
    /* `to` holds the bytes when the queue is through with it, and not before. */
    kd_status (*download)(kd_device *device, kd_queue *queue, void *to, const void *from,
                          size_t bytes);
    /* Within the device's memory. */
    kd_status (*copy)(kd_device *device, kd_queue *queue, void *to, const void *from, size_t bytes);
    kd_status (*fill)(kd_device *device, kd_queue *queue, void *to, int byte, size_t bytes);
    kd_status (*sync)(kd_device *device, kd_queue *queue);
    kd_status (*tune)(kd_exec *exec); /* see kd_device_tune; NULL: nothing to choose */

    kd_queue *(*communication)(kd_device *device); /* a second queue, served first */
    kd_status (*event_create)(kd_event **event, kd_device *device);
    void (*event_destroy)(kd_device *device, kd_event *event);
    kd_status (*event_record)(kd_device *device, kd_queue *queue, kd_event *event);
    kd_status (*event_await)(kd_device *device, kd_queue *queue, kd_event *event);
    kd_status (*event_sync)(kd_device *device, kd_event *event);

    kd_status (*capture_begin)(kd_device *device, kd_queue *queue);
    kd_status (*capture_end)(kd_graph **graph, kd_device *device, kd_queue *queue);
    kd_status (*graph_launch)(kd_device *device, kd_queue *queue, kd_graph *graph);
    void (*graph_destroy)(kd_device *device, kd_graph *graph);
} kd_device_type;

extern const kd_device_type *const kd_device_types[]; /* order of "auto"; NULL-terminated */
extern const kd_device_type kd_device_cpu;
extern const kd_device_type kd_device_cuda; /* count() == 0 in a build without CUDA */

/* A GPU that is not here, "h100-80g", or "80GB" of a GPU like that one: memory can be planned on it
 * and nothing run.  Its ops are CUDA's, which while planning take their scratch and return; in a build
 * without CUDA those of ops/meta.c. */
extern const kd_device_type kd_device_meta;
KD_MUST_CHECK kd_status kd_device_open_meta(kd_device **device, const char *name);

typedef struct kd_allocation kd_allocation; /* registry.c: what is held, to be counted */
typedef struct kd_cuda_limits kd_cuda_limits;

/* The part every device has; a type's own struct begins with it. */
struct kd_device {
    const kd_device_type *type;
    const kd_ops *ops;
    int index;
    const kd_cuda_limits *card; /* of a CUDA device, here or planned for; else NULL */
    kd_allocation *allocations;
    size_t held, most; /* bytes from kd_device_alloc: now, and at any time */
    /* To be set before anything is planned. */
    bool tf32;       /* products of f32 may round their operands to 10 bits of mantissa */
    bool tune;       /* kd_device_tune may choose by the clock: other bits on another day */
    bool poison;     /* debug: outputs are filled with NaN before an op runs */
    bool graphs;     /* work that repeats may be captured */
    uint64_t on_cpu; /* debug: bit per op that runs on the CPU, over copies */
    kd_device *host; /* the CPU where `on_cpu` is not 0 */
};

/*
 * What the environment asks of a device for finding mistakes: KD_POISON sets `poison`; KD_GRAPHS=0
 * clears `graphs`; KD_ON_CPU=softmax,rope sets `on_cpu` of a device that is not the CPU.
 */
KD_MUST_CHECK kd_status kd_device_debug(kd_device *device);

/* Runs the ops named "softmax,rope" on the CPU, with their operands copied there and their outputs
 * back: tells a wrong kernel from the rest.  KD_EINVAL names an op that there is not. */
KD_MUST_CHECK kd_status kd_device_on_cpu(kd_device *device, const char *names);

/* The bits of `names`; in ops/ops.c. */
KD_MUST_CHECK kd_status kd_ops_named(uint64_t *bits, const char *names);

/* KD_ENOTSUP naming every op that the device lacks and does not run on the CPU.  In ops/ops.c;
 * opening asks it, so that an empty slot is never met in the middle of a run. */
KD_MUST_CHECK kd_status kd_ops_complete(const kd_device *device);

/* Where and with what an op runs.  One per thread of host control. */
struct kd_exec {
    kd_device *device;
    kd_queue *queue; /* NULL: the device's own */
    kd_stack *stack;
};

static inline bool kd_planning(const kd_exec *exec) { return exec->stack->planning; }

/* Takes `out` from the stack.  An op takes its scratch so first and, while planning, returns. */
static inline kd_status kd_push(kd_tensor *out, kd_exec *exec, const char *name, kd_dtype dtype,
                                kd_shape shape)
{
    return kd_stack_push(out, exec->stack, name, dtype, shape);
}

/* Rows beyond which a CPU's matrix products gain nothing: 256, more where many threads share them.
 * Memory that grows with rows is planned for no more. */
int64_t kd_cpu_rows(const kd_device_info *info);

/* Bytes that are free now; kd_device_info.memory is what was free when the device was opened. */
size_t kd_device_available(kd_device *device);

KD_MUST_CHECK kd_status kd_device_alloc(void **out, kd_device *device, size_t bytes,
                                        const char *what);
void kd_device_release(kd_device *device, void *memory); /* NULL is fine */

/* Host memory that the device reads and writes while the host goes on: for what is downloaded and
 * read later.  Zeroed. */
KD_MUST_CHECK kd_status kd_device_alloc_host(void **out, kd_device *device, size_t bytes);
void kd_device_release_host(kd_device *device, void *memory); /* NULL is fine */

/* Between host and device memory on the exec's queue; nothing happens while planning.  After
 * kd_upload `from` may be reused at once; after kd_download `to` holds the bytes once the queue has
 * come so far (kd_sync, kd_event_sync). */
KD_MUST_CHECK kd_status kd_upload(kd_exec *exec, const kd_tensor *to, const void *from);
KD_MUST_CHECK kd_status kd_download(kd_exec *exec, void *to, const kd_tensor *from);
KD_MUST_CHECK kd_status kd_sync(kd_exec *exec);

/* Chooses the fastest way of everything planned so far, on a device with `tune`; nothing on others.
 * Takes what is free of the exec's stack, which is open, as scratch.  Not within a step. */
KD_MUST_CHECK kd_status kd_device_tune(kd_exec *exec);
/*
 * An event stands for the work that its queue had when it was recorded.  The queue of `exec` goes on
 * with what comes after kd_event_await, and the host after kd_event_sync, when that is done.  On a
 * device that is done when it returns an event is NULL.
 */
KD_MUST_CHECK kd_status kd_event_create(kd_event **event, kd_device *device);
void kd_event_destroy(kd_device *device, kd_event *event); /* NULL is fine */
KD_MUST_CHECK kd_status kd_event_record(kd_exec *exec, kd_event *event);
KD_MUST_CHECK kd_status kd_event_await(kd_exec *exec, kd_event *event);
KD_MUST_CHECK kd_status kd_event_sync(kd_device *device, kd_event *event);

/*
 * Between begin and end nothing runs: what is enqueued is recorded, and kd_graph_launch runs it, as
 * often as is wanted, on the same memory.  No upload and nothing that waits may be recorded.  After a
 * failure in between, kd_capture_end still has to be called.  Only where `device->graphs` is set.
 */
KD_MUST_CHECK kd_status kd_capture_begin(kd_exec *exec);
KD_MUST_CHECK kd_status kd_capture_end(kd_graph **graph, kd_exec *exec);
KD_MUST_CHECK kd_status kd_graph_launch(kd_exec *exec, kd_graph *graph);
void kd_graph_destroy(kd_device *device, kd_graph *graph); /* NULL is fine */

/* Backs a planned stack with memory: `capacity` = its peak, `used` = 0, no longer planning. */
KD_MUST_CHECK kd_status kd_stack_open(kd_stack *stack, kd_device *device);
void kd_stack_close(kd_stack *stack, kd_device *device);

/* ---- fast matrix products of the host (cpu_dnn.c; the only file that knows oneDNN) ------------- */

typedef struct kd_dnn kd_dnn;

KD_MUST_CHECK kd_status kd_dnn_open(kd_dnn **dnn);
void kd_dnn_close(kd_dnn *dnn);
void kd_dnn_version(char *text, size_t size); /* "oneDNN 2.6.3" */
kd_dnn *kd_cpu_dnn(kd_device *device);        /* of a CPU device */

/* y[M, N] = a[M, K] b[K, N] (+ bias[N]) (+ y when `accumulate`).  Every matrix has one stride of 1.
 * a and b share a dtype (F32, BF16); y is that dtype or F32; bias is F32 or that dtype.
 * Primitives are made on first sight of a shape, which is while planning; their scratch comes from
 * the exec's stack.  While planning it returns after that. */
KD_MUST_CHECK kd_status kd_dnn_matmul(kd_dnn *dnn, kd_exec *exec, const kd_tensor *y,
                                      const kd_tensor *a, const kd_tensor *b, const kd_tensor *bias,
                                      bool accumulate);

/* y[B, M, N] = a[B, M, K] b[B, K, N], all f32; every matrix as above, y's by rows. */
KD_MUST_CHECK kd_status kd_dnn_matmul_batched(kd_dnn *dnn, kd_exec *exec, const kd_tensor *y,
                                              const kd_tensor *a, const kd_tensor *b);

/* ---- CUDA, for launchers and cuda_*.c ----------------------------------------------------------- */

struct kd_cuda_limits {
    int capability;      /* 80, 90: of sm_80, sm_90 */
    int multiprocessors; /* that run blocks at the same time */
    size_t shared;       /* bytes of shared memory that a block may ask for */
    size_t cache;        /* bytes of the second-level cache */
    int row_blocks;      /* KD_ROW_BLOCKS: at least so many blocks hold a row of logits in shared
                          * memory (row_loss.cu); 0: none does */
};

/* Of an exec on a CUDA device, here or planned for; read when it was opened. */
static inline const kd_cuda_limits *kd_cuda_limits_of(const kd_exec *exec)
{
    return exec->device->card;
}

/* The most scratch that a matrix product may take.  What NVIDIA advises: 32 MiB for Hopper, less
 * before. */
static inline size_t kd_cuda_workspace(const kd_cuda_limits *limits)
{
    return (size_t)(limits->capability >= 90 ? 32 : 8) << 20;
}

void *kd_cuda_stream(const kd_exec *exec); /* a cudaStream_t; its device becomes the thread's */

/* KD_ENOMEM or KD_EDEVICE, with "cuda:0: cudaMalloc: out of memory (cudaErrorMemoryAllocation)" of a
 * cudaError_t; of `call` what stands before the first '('. */
kd_status kd_cuda_failure(int error, const char *call);

typedef struct kd_blas kd_blas;

int kd_blas_version(void); /* 130100 is 13.1.0; once a device is open */
KD_MUST_CHECK kd_status kd_blas_open(kd_blas **blas, kd_device *device);
void kd_blas_close(kd_blas *blas);                   /* NULL is fine */
kd_blas *kd_cuda_blas(const kd_exec *exec);          /* of a CUDA device */
KD_MUST_CHECK kd_status kd_blas_tune(kd_exec *exec); /* kd_device_tune of CUDA */

/* As kd_dnn_matmul, but no dimension is 0, and a bias is of y's type while y's last stride is 1. */
KD_MUST_CHECK kd_status kd_blas_matmul(kd_exec *exec, const kd_tensor *y, const kd_tensor *a,
                                       const kd_tensor *b, const kd_tensor *bias, bool accumulate);

/* As kd_dnn_matmul_batched, but no dimension is 0. */
KD_MUST_CHECK kd_status kd_blas_matmul_batched(kd_exec *exec, const kd_tensor *y,
                                               const kd_tensor *a, const kd_tensor *b);

/* What products of e4m3 ask for: a compute capability, and how many elements inner dimensions of
 * weights are multiples of. */
enum { KD_CUDA_E4M3_SINCE = 89, KD_E4M3_UNIT = 16 };

/* Op matmul_scaled, of no dimension 0.  *scaled false: y = a b, and nothing else, where the library has
 * no product with scales of rows.  KD_ENOTSUP before sm_89, where N and K are no multiples of 16, and
 * where rows do not start at multiples of 16 bytes. */
KD_MUST_CHECK kd_status kd_blas_matmul_scaled(bool *scaled, kd_exec *exec, const kd_tensor *y,
                                              const kd_tensor *a, const kd_tensor *b,
                                              const kd_tensor *a_scale, const kd_tensor *b_scale,
                                              const kd_tensor *bias);

/* pre = a b + bias, y = gelu(pre) in its tanh form and before pre is rounded; y and pre of one type
 * and by rows.  *fused false, and nothing done, where the library cannot. */
KD_MUST_CHECK kd_status kd_blas_matmul_gelu(bool *fused, kd_exec *exec, const kd_tensor *y,
                                            const kd_tensor *pre, const kd_tensor *a,
                                            const kd_tensor *b, const kd_tensor *bias);

/* ---- slabs: all parameters of one owner, and what runs parallel to them ------------------------ */

/*
 * A frozen slab is `weights` and, where parameters are KD_PARAM_E4M3, those in `codes` and a scale for
 * each of their rows in `scales`.  A trainable slab has gradients in f32, two f32 moments, and,
 * when weights are not f32, f32 masters; all of the same length and offsets, so all-reduce,
 * clipping, updates and checkpoints are loops over one array.
 */
typedef struct kd_slab {
    kd_device *device;
    kd_params params;
    kd_dtype dtype; /* of weights */
    bool trainable;
    int moments;                                      /* 0, 1 (momentum) or 2 (Adam) */
    kd_tensor weights, masters, gradients, moment[2]; /* [params.elements]; masters may be absent */
    kd_tensor codes, scales; /* e4m3 [params.codes], f32 [params.scales]; absent without codes */
    kd_tensor states;        /* f32 [params.states]; absent without */
} kd_slab;

/* Bytes that kd_slab_open will take; the plan prints them.  `params` must be laid out. */
size_t kd_slab_bytes(const kd_params *params, kd_dtype dtype, bool trainable, int moments);

/* Takes over `params` by value (its arena stays the caller's).  While `planning`, nothing is
 * allocated and addresses may not be touched.  E4M3 parameters are for frozen slabs. */
KD_MUST_CHECK kd_status kd_slab_open(kd_slab *slab, kd_device *device, const kd_params *params,
                                     kd_dtype dtype, bool trainable, int moments, bool planning);
void kd_slab_close(kd_slab *slab);

/* Views of parameter `index`; absent where the slab has no such array or index is -1. */
kd_tensor kd_slab_weight(const kd_slab *slab, int index);
kd_tensor kd_slab_scale(const kd_slab *slab, int index); /* f32, one a row; absent unless E4M3 */
kd_tensor kd_slab_gradient(const kd_slab *slab, int index);
kd_tensor kd_slab_master(const kd_slab *slab,
                         int index); /* the f32 truth: masters, or f32 weights */

#endif
