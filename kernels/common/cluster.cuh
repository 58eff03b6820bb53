/*
 * cluster.cuh - blocks that run at the same time on neighbouring multiprocessors and read each
 * other's shared memory (sm_90 and up); each instruction with its emulated meaning beside it.
 *
 * A cluster is asked for at launch (kd_grid::cluster) and is made of blocks that follow each other in
 * x.  A block must not end while another may still read its shared memory: kd_cluster_sync last.
 */
#ifndef KD_CLUSTER_CUH
#define KD_CLUSTER_CUH

#include "common/launch.cuh"

#if !defined(KD_CUDASIM) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define KD_NO_CLUSTERS /* such code is not launched with one, and stops where it is */
#endif

/* All threads of all blocks of the cluster call, a warp's not necessarily together; what was written
 * before is seen after. */
__device__ __forceinline__ void kd_cluster_sync()
{
#ifdef KD_CUDASIM
    simt::cluster_arrive();
    simt::cluster_wait();
#elif !defined(KD_NO_CLUSTERS)
    asm volatile("barrier.cluster.arrive.release;\n\t"
                 "barrier.cluster.wait.acquire;" ::
                     : "memory");
#else
    __trap();
#endif
}

/* Where the block of that rank has what this block has at `mine`, in shared memory. */
template <class T> __device__ __forceinline__ const T *kd_cluster_peer(const T *mine, unsigned rank)
{
#ifdef KD_CUDASIM
    return (const T *)simt::cluster_map(mine, rank);
#elif !defined(KD_NO_CLUSTERS)
    const T *peer;
    asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(mine), "r"(rank));
    return peer;
#else
    return mine;
#endif
}

#endif
