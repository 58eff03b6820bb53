/*
 * simt.h - what the emulator offers to the headers that stand in for CUDA's, and to kernels/common,
 * which gives every inline PTX instruction its emulated meaning through it.
 */
#ifndef CUDASIM_SIMT_H
#define CUDASIM_SIMT_H

#include <cstdint>
#include <cstring>
#include <functional>

#include <cuda_runtime_api.h>

namespace simt {

/* Where in a kernel a collective is called; lanes at different sites do not meet. */
struct site {
    const char *file;
    int line;
};
#define SIMT_HERE ::simt::site here_ = { __builtin_FILE(), __builtin_LINE() }

constexpr site nowhere = { "", 0 };

/* Ends the process, saying which CUDA thread did what and where. */
[[noreturn]] void trap(const char *what, site s);

/* ---- barriers and warp collectives ------------------------------------------------------------ */

enum op {
    SYNCWARP,
    SHFL,
    BALLOT,
    ANY,
    ALL,
    RADD,
    RMINS,
    RMAXS,
    RMINU,
    RMAXU,
    RAND_,
    ROR,
    RXOR,
    MATCH,
    FN
};
enum bop { BSYNC, BCOUNT, BOR, BAND };

uint64_t warp(op o, unsigned mask, uint64_t value, int arg, site s);
int barrier(bop o, int predicate, site s);
unsigned lane();
unsigned activemask();

/* Any warp-wide instruction: the last lane of `mask` to arrive calls fn once, with every lane's
 * argument (NULL where a lane is not in the mask). */
void warp_fn(unsigned mask, void *arg, void (*fn)(void **args, unsigned mask), site s);

/* ---- cp.async: `to` is NaN until a wait covers the copy, and `from` is read no sooner ----------- */

void cp_async(void *to, const void *from, unsigned bytes, SIMT_HERE);
void cp_commit();
void cp_wait(unsigned keep); /* the newest `keep` groups may stay under way */

/* ---- sm_90: clusters ---------------------------------------------------------------------------- */

unsigned cluster_rank(); /* of this block in its cluster; %cluster_ctarank */
unsigned cluster_size(); /* in blocks; %cluster_nctarank */
void cluster_arrive(SIMT_HERE);
void cluster_wait(SIMT_HERE);
/* The same place in the shared memory of the block of that rank (mapa); every function below that
 * takes shared memory, and a plain load or store, may be given it. */
void *cluster_map(const void *shared, unsigned rank, SIMT_HERE);

/* ---- sm_90: mbarriers, 8 bytes of shared memory each -------------------------------------------- */

void mbarrier_init(uint64_t *barrier, unsigned arrivals, SIMT_HERE);
void mbarrier_inval(uint64_t *barrier, SIMT_HERE);
void mbarrier_arrive(uint64_t *barrier, SIMT_HERE);
void mbarrier_expect_tx(uint64_t *barrier, unsigned bytes, SIMT_HERE); /* without arriving */
void mbarrier_arrive_expect_tx(uint64_t *barrier, unsigned bytes, SIMT_HERE);
/* Whether the phase of this parity has completed; first lets others run.  To be called in a loop. */
bool mbarrier_try_wait(uint64_t *barrier, unsigned parity, SIMT_HERE);

/* ---- sm_90: cp.async.bulk; addresses and bytes are multiples of 16 ------------------------------- */

/* To shared memory, from global or another block's shared memory: NaN until a wait on `barrier`, which
 * its bytes complete, has succeeded; `from` is read no sooner. */
void bulk_load(void *shared, const void *from, unsigned bytes, uint64_t *barrier, SIMT_HERE);
/* From shared to global memory, in groups of the thread: `to` is NaN and `shared` is not yet read
 * until a wait covers it.  A thread may not exit before. */
void bulk_store(void *to, const void *shared, unsigned bytes, SIMT_HERE);
void bulk_commit();
void bulk_wait(unsigned keep);      /* cp.async.bulk.wait_group */
void bulk_wait_read(unsigned keep); /* the same .read; does here what bulk_wait does */

/* ---- shared memory: a heap block of exactly its size per thread block, NaN at its start --------- */

void *dyn_smem(size_t align);
int shared_id();
void *shared_get(int id, size_t bytes);

/* ---- launches, and work of the libraries on a stream -------------------------------------------- */

cudaError_t launch(const void *kernel, const cudaLaunchConfig_t *config,
                   std::function<void()> body);

void check_argument(const void *p); /* traps where a kernel cannot use that address */

/* Runs f at the stream's turn, where it may touch device memory. */
void stream_put(cudaStream_t stream, std::function<void()> f);

template <class T> inline uint64_t pack(T value)
{
    static_assert(sizeof(T) <= 8, "a warp collective moves at most 8 bytes");
    uint64_t packed = 0;
    memcpy(&packed, &value, sizeof value);
    return packed;
}
template <class T> inline T unpack(uint64_t packed)
{
    T value;
    memcpy(static_cast<void *>(&value), &packed, sizeof value);
    return value;
}

} // namespace simt

#define KD_SHARED(T, name, dims)                                                                   \
    static const int simt_id_##name = ::simt::shared_id();                                         \
    T(&name) dims = *reinterpret_cast<T(*) dims>(::simt::shared_get(simt_id_##name, sizeof(T dims)))
#define KD_DYN_SHARED(T, name) T *const name = static_cast<T *>(::simt::dyn_smem(alignof(T)))

#endif
