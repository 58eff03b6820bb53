/*
 * sim.h - what the emulator's own files share.
 *
 * settings.cpp errors.cpp                    switches, counters; names of errors
 * fiber.cpp schedule.cpp collectives.cpp     CUDA threads as fibers, who runs next, where they meet
 * shared.cpp async.cpp cluster.cpp           shared memory; cp.async, mbarriers, bulk copies; clusters
 * memory.cpp stream.cpp graph.cpp runtime.cpp   the runtime API
 * nccl.cpp cublaslt.cpp cublaslt_objects.cpp   the libraries
 *
 * Compiled without sanitizers; CUDASIM_ASAN and CUDASIM_TSAN say what the kernels are compiled with.
 */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H

#include "cudasim.h"
#include "cudasim/simt.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace simt {

enum { MAX_DEVICES = 16 };

/* ---- settings.cpp ------------------------------------------------------------------------------ */

enum schedule { FIFO, REVERSE, RANDOM };

struct settings {
    simt::schedule schedule = FIFO;
    uint64_t seed = 0;
    bool lazy = false;
    int devices = 1, capability = 80;
    size_t memory = (size_t)16 << 30; /* of each device, bytes */
    size_t stack = 128 << 10;         /* of each CUDA thread, bytes */
    int timeout = 60;                 /* seconds a rank waits for another */
    std::string fail_call;            /* with fail_in, fail_error: see planned_failure */
    int fail_in = 0, fail_error = -1;
};

const settings &config();

struct counters {
    std::atomic<uint64_t> allocations{ 0 }, frees{ 0 }, host_allocations{ 0 }, host_frees{ 0 };
    std::atomic<uint64_t> launches{ 0 }, copies{ 0 }, fills{ 0 }, synchronisations{ 0 };
    std::atomic<uint64_t> captures{ 0 }, graph_launches{ 0 }, collectives{ 0 };
    std::atomic<uint64_t> bytes{ 0 }, most_bytes{ 0 };
};

extern counters &counted;

/* 0, or the error that KD_SIM_FAIL wants of this call; `usual` where it does not say which. */
int planned_failure(const char *call, int usual);

/* ---- errors.cpp -------------------------------------------------------------------------------- */

int error_number(const char *text);    /* of "cudaErrorInvalidValue" or "1" */
cudaError_t answer(cudaError_t error); /* for cudaGetLastError to find */

/* The first line of every function of the runtime API. */
#define SIM_CALL_OR(usual)                                                                         \
    do {                                                                                           \
        if (const int planned_ = simt::planned_failure(__func__, (usual)))                         \
            return simt::answer((cudaError_t)planned_);                                            \
    } while (0)
#define SIM_CALL() SIM_CALL_OR(cudaErrorUnknown)

/* ---- fiber.cpp --------------------------------------------------------------------------------- */

struct stack;

stack *stack_for(int index);    /* to run the thread of that index on, from its beginning */
void stack_done(stack *s);      /* by the thread that has ended on it */
constexpr bool stacks_move_on = /* a thread that begins may take over the stack of one that ends */
#ifdef CUDASIM_TSAN
    false; /* a stack reused by another thread would look like a race */
#else
    true;
#endif
void fibers_open(int count, void (*entry)()); /* before a grid; by the OS thread that runs it */
void fiber_begin(stack *s);                   /* the first call on a new stack */
void fiber_jump(stack *from, stack *to, int index); /* NULL: the OS thread itself */
bool in_guard_page(const void *address);

/* ThreadSanitizer's view of a barrier; nothing without it. */
#ifdef CUDASIM_TSAN
extern "C" void __tsan_acquire(void *);
extern "C" void __tsan_release(void *);
inline void acquire(void *object) { __tsan_acquire(object); }
inline void release(void *object) { __tsan_release(object); }
#else
inline void acquire(void *) {}
inline void release(void *) {}
#endif

/* One object per generation of a barrier, two in turn: with a single one, who leaves late would
 * acquire what was released for the next generation, and races would go unseen. */
struct generation {
    unsigned count = 0;
    char object[2] = {};
    char *now() { return &object[count & 1]; }
};

/* ---- schedule.cpp: a gang is the blocks that live at the same time, a cluster or a single block -- */

enum state : uint8_t { NEW, READY, AT_WARP, AT_BLOCK, AT_CLUSTER, AT_MBARRIER, DONE };

struct shared_piece {
    char *data;
    size_t bytes;
};

struct block {
    uint3 at;
    unsigned rank; /* in the cluster */
    int threads, exited, waiting;
    bop how; /* of the barrier under way */
    int votes, result;
    generation barrier;
    std::vector<shared_piece> pieces; /* by shared_id; data NULL: not yet used */
    std::vector<int> used;            /* the ids of the others */
    shared_piece dynamic;
    size_t shared_bytes;
    char shared_sync;
};

struct lanes {
    unsigned exists, arrived, exited; /* masks */
    generation barrier;
};

struct async_copy {
    void *to;
    const void *from;
    unsigned bytes, group;
    site where;
};

struct pending_load {
    void *to;
    const void *from;
    unsigned bytes;
    uint64_t *barrier; /* that its bytes complete */
};

struct thread {
    uint3 at;
    int index; /* in the gang; lane = index % 32 */
    simt::state state;
    simt::stack *stack;
    block *home;
    lanes *warp;
    /* the collective it is at */
    simt::op op;
    unsigned mask;
    uint64_t value, result;
    int arg;
    void (*fn)(void **, unsigned);
    site where;
    /* copies under way */
    std::vector<async_copy> loads, stores;
    unsigned load_group, store_group;
    const void *awaited; /* an mbarrier */
    bool cluster_arrived;
    unsigned cluster_generation;
};

struct gang {
    dim3 size; /* of the cluster, in blocks */
    int block_threads;
    std::vector<thread> threads; /* a whole number of warps per block */
    std::vector<lanes> warps;
    std::vector<block> blocks;
    pending_load loads[256] = {};       /* those under way have a barrier */
    int loading = 0;                    /* how many they are */
    int alive = 0, cluster_waiting = 0; /* threads */
    generation cluster;
};

extern gang &team;
extern thread *self; /* the CUDA thread that runs, or NULL */

uint64_t random_number();
void make_ready(thread &t);
void wait_in(state s); /* gives the processor away until make_ready */
void say_where(const thread &t);
void run_grid(dim3 grid, dim3 threads, dim3 cluster, size_t shared,
              const std::function<void()> &body);

/* ---- what the others do where a thread or a block begins and ends ------------------------------- */

void release_block(block &b); /* collectives.cpp: all its threads are at the barrier */
void release_cluster();       /* cluster.cpp: all threads have arrived */
void cluster_thread_exits(thread &t);
bool bulk_progress(); /* async.cpp: finishes a bulk load; false where there is none */
void bulk_thread_exits(thread &t);
void shared_open(block &b, size_t dynamic_bytes);
void shared_retire(block &b); /* the block has ended, its cluster has not */
void shared_close(block &b);
char *shared_piece_of(block &b, int id, size_t bytes);
int most_shared(); /* runtime.cpp: bytes that a block may have, static and dynamic */

/* ---- memory.cpp -------------------------------------------------------------------------------- */

/* While one lives, kernels and libraries may touch device memory; otherwise touching it faults. */
struct access {
    access();
    ~access();
};

enum class place { DEVICE, PINNED, PAGEABLE };
place place_of(const void *p);
bool inside_allocation(const void *p, size_t bytes); /* of device memory */
void free_now(void *p);                              /* of device memory */
int current_device();
int device_of(const void *p); /* of device memory */

/* ---- stream.cpp -------------------------------------------------------------------------------- */

/* An operation of a stream.  Always after those in `before`; dropped from there when done. */
struct node {
    enum kind { KERNEL, COPY, FILL, LIBRARY, HOST, MARK, GRAPH } kind;
    enum { WAITING, RUNNING, FINISHED } progress = WAITING;
    std::function<void()> run;
    std::vector<std::shared_ptr<node>> before;
    double time = 0; /* when it finished, ms */
};
using node_ptr = std::shared_ptr<node>;

struct capture {
    cudaStreamCaptureMode mode;
    CUstream_st *origin;
    uint64_t thread;
    bool broken = false;
    std::vector<node_ptr> nodes; /* in an order that respects `before` */
};

} // namespace simt

struct CUstream_st {
    int device = 0;
    bool blocking = true; /* ordered with the legacy stream */
    simt::node_ptr last;
    std::vector<simt::node_ptr> waits; /* for the next operation */
    std::shared_ptr<simt::capture> capture;
    std::vector<simt::node_ptr> tail; /* while capturing: what the next operation comes after */
};

struct CUevent_st {
    int device = 0;
    bool timed = true;
    simt::node_ptr at;
    std::shared_ptr<simt::capture> capture; /* recorded while capturing, with: */
    std::vector<simt::node_ptr> tail;
};

namespace simt {

extern std::recursive_mutex &host_lock; /* over streams, events, captures */

CUstream_st *stream_of(cudaStream_t handle); /* NULL: no such stream */
cudaError_t enqueue(cudaStream_t stream, enum node::kind kind, std::function<void()> f,
                    const std::vector<node_ptr> &also_after = {}, node_ptr *out = nullptr);
void perform(enum node::kind kind, const std::function<void()> &f);
void finish(const node_ptr &last); /* the host waits */
void finish_device(int device);
cudaError_t forbidden_in_capture(); /* an error where a capture of this thread forbids the call */
cudaError_t break_capture(CUstream_st *stream, cudaError_t error);
cudaGraph_t graph_of(const capture &c);           /* graph.cpp */
void leave_capture(const capture *c);             /* all its streams do */
void break_device(int device, cudaError_t error); /* as a kernel that crashed does */
cudaError_t device_error(int device);

} // namespace simt

#endif
