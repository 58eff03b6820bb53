/*
 * memory.h - loads and stores with cache hints, fences, atomics.
 *
 * Atomics are relaxed, as CUDA's are, and are real ones, so that ThreadSanitizer takes them for such.
 */
#ifndef CUDASIM_MEMORY_H
#define CUDASIM_MEMORY_H

#include "cudasim/simt.h"

#include <type_traits>

/* ---- loads and stores -------------------------------------------------------------------------- */

namespace simt {

/* A vector access must be aligned to its width, as on the device. */
template <class T> inline T *aligned(T *p, site s)
{
    if (reinterpret_cast<uintptr_t>(p) % (sizeof(T) > 16 ? 16 : alignof(T)))
        trap("misaligned address", s);
    return p;
}

} // namespace simt

#define SIMT_LOAD(name)                                                                            \
    template <class T> inline T name(const T *p, SIMT_HERE) { return *simt::aligned(p, here_); }
#define SIMT_STORE(name)                                                                           \
    template <class T> inline void name(T *p, std::common_type_t<T> value, SIMT_HERE)              \
    {                                                                                              \
        *simt::aligned(p, here_) = value;                                                          \
    }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldcv)
SIMT_LOAD(__ldlu)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwb)
SIMT_STORE(__stwt)
#undef SIMT_LOAD
#undef SIMT_STORE

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* ---- atomics ------------------------------------------------------------------------------------ */

namespace simt {

template <class T, class F> inline T rmw(T *p, F f)
{
    using Word = std::conditional_t<sizeof(T) == 8, uint64_t,
                                    std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    Word *word = reinterpret_cast<Word *>(p);
    Word seen = __atomic_load_n(word, __ATOMIC_RELAXED);
    for (;;) {
        T before;
        memcpy(static_cast<void *>(&before), &seen, sizeof before);
        const T after = f(before);
        Word next;
        memcpy(&next, &after, sizeof next);
        if (__atomic_compare_exchange_n(word, &seen, next, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            return before;
    }
}

} // namespace simt

#define SIMT_ATOMIC(name, after)                                                                   \
    template <class T> inline T name(T *p, std::common_type_t<T> value)                            \
    {                                                                                              \
        return simt::rmw(p, [=](T was) { return (T)(after); });                                    \
    }
SIMT_ATOMIC(atomicAdd, was + value)
SIMT_ATOMIC(atomicSub, was - value)
SIMT_ATOMIC(atomicMax, was < value ? value : was)
SIMT_ATOMIC(atomicMin, value < was ? value : was)
SIMT_ATOMIC(atomicOr, was | value)
SIMT_ATOMIC(atomicAnd, was &value)
SIMT_ATOMIC(atomicXor, was ^ value)
SIMT_ATOMIC(atomicExch, ((void)was, value))
SIMT_ATOMIC(atomicInc, was >= value ? 0 : was + 1)
SIMT_ATOMIC(atomicDec, was == 0 || was > value ? value : was - 1)
#undef SIMT_ATOMIC

template <class T>
inline T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> value)
{
    return simt::rmw(p, [=](T was) { return was == expected ? value : was; });
}

#endif
