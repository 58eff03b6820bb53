/* collectives.h - __syncthreads and its kin, shuffles, votes, reductions over a warp. */
#ifndef CUDASIM_COLLECTIVES_H
#define CUDASIM_COLLECTIVES_H

#include "cudasim/simt.h"

inline void __syncthreads(SIMT_HERE) { simt::barrier(simt::BSYNC, 0, here_); }
inline int __syncthreads_count(int p, SIMT_HERE) { return simt::barrier(simt::BCOUNT, p, here_); }
inline int __syncthreads_or(int p, SIMT_HERE) { return simt::barrier(simt::BOR, p, here_); }
inline int __syncthreads_and(int p, SIMT_HERE) { return simt::barrier(simt::BAND, p, here_); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE)
{
    simt::warp(simt::SYNCWARP, mask, 0, 0, here_);
}
inline unsigned __activemask() { return simt::activemask(); }

/* ---- shuffles; outside its segment of `width` lanes a lane reads itself ------------------------- */

template <class T> inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, SIMT_HERE)
{
    const int at = ((int)simt::lane() & ~(width - 1)) | (from & (width - 1));
    return simt::unpack<T>(simt::warp(simt::SHFL, mask, simt::pack(value), at, here_));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_HERE)
{
    const int lane = (int)simt::lane(), end = (lane & ~(width - 1)) + width;
    const int at = (lane ^ lanes) < end ? lane ^ lanes : lane;
    return simt::unpack<T>(simt::warp(simt::SHFL, mask, simt::pack(value), at, here_));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_HERE)
{
    const int lane = (int)simt::lane(), end = (lane & ~(width - 1)) + width;
    const int at = lane + (int)lanes < end ? lane + (int)lanes : lane;
    return simt::unpack<T>(simt::warp(simt::SHFL, mask, simt::pack(value), at, here_));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_HERE)
{
    const int lane = (int)simt::lane(), begin = lane & ~(width - 1);
    const int at = lane - (int)lanes >= begin ? lane - (int)lanes : lane;
    return simt::unpack<T>(simt::warp(simt::SHFL, mask, simt::pack(value), at, here_));
}

/* ---- votes ------------------------------------------------------------------------------------ */

inline unsigned __ballot_sync(unsigned mask, int p, SIMT_HERE)
{
    return (unsigned)simt::warp(simt::BALLOT, mask, !!p, 0, here_);
}
inline int __any_sync(unsigned mask, int p, SIMT_HERE)
{
    return (int)simt::warp(simt::ANY, mask, !!p, 0, here_);
}
inline int __all_sync(unsigned mask, int p, SIMT_HERE)
{
    return (int)simt::warp(simt::ALL, mask, !!p, 0, here_);
}
template <class T> inline unsigned __match_any_sync(unsigned mask, T value, SIMT_HERE)
{
    return (unsigned)simt::warp(simt::MATCH, mask, simt::pack(value), 0, here_);
}

/* ---- reductions ------------------------------------------------------------------------------- */

#define SIMT_REDUCE(name, T, how)                                                                  \
    inline T name(unsigned mask, T value, SIMT_HERE)                                               \
    {                                                                                              \
        return (T)simt::warp(how, mask, (unsigned)value, 0, here_);                                \
    }
SIMT_REDUCE(__reduce_add_sync, unsigned, simt::RADD)
SIMT_REDUCE(__reduce_add_sync, int, simt::RADD)
SIMT_REDUCE(__reduce_max_sync, unsigned, simt::RMAXU)
SIMT_REDUCE(__reduce_max_sync, int, simt::RMAXS)
SIMT_REDUCE(__reduce_min_sync, unsigned, simt::RMINU)
SIMT_REDUCE(__reduce_min_sync, int, simt::RMINS)
SIMT_REDUCE(__reduce_and_sync, unsigned, simt::RAND_)
SIMT_REDUCE(__reduce_or_sync, unsigned, simt::ROR)
SIMT_REDUCE(__reduce_xor_sync, unsigned, simt::RXOR)
#undef SIMT_REDUCE

#endif
