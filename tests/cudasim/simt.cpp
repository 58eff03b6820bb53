// SIMT emulation runtime: every CUDA thread is a fiber that runs until its next barrier or warp collective.
#include "cuda_runtime.h"
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <vector>
#include <sys/mman.h>
// this file is compiled without -fsanitize=...; the build passes SIMT_ASAN / SIMT_TSAN to say what the kernels have
#if defined(SIMT_ASAN)
#define HAS_ASAN 1
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_TSAN)
#define HAS_TSAN 1
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define USE_UCONTEXT 1
#include <ucontext.h>
#endif
#define NOSAN __attribute__((no_sanitize("address", "thread", "undefined"), noinline))

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
// ---------------------------------------------------------------- contexts
static size_t stack_bytes() {
    static size_t n = [] { const char* e = getenv("SIMT_STACK_KB"); return (e ? (size_t)atoi(e) : 128) << 10; }();
    return n;
}
struct ctx {
    char* base = nullptr;
#ifdef USE_UCONTEXT
    ucontext_t uc;
#else
    void* sp = nullptr;
#endif
    void* fake = nullptr;  // ASan
    size_t size = 0;
};
#ifndef USE_UCONTEXT
extern "C" void simt_switch(void** save, void* to);
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size simt_switch,.-simt_switch
)");
#endif
enum state : uint8_t { NEW, READY, WAIT_WARP, WAIT_BLOCK, DONE };
struct thread {
    uint3 tid; int lin; state st; ctx* c;
    op o; unsigned mask; uint64_t val, res; int arg; site s;
    struct cp { void* d; const void* s; unsigned n, group; };
    std::vector<cp> cps; unsigned cgroup = 0;
    void (*fn)(void**, unsigned);
};
struct warp_t { unsigned arrived, exists, exited; };
static std::vector<thread> th;
static std::vector<warp_t> wp;
static std::vector<int> ready;  // ring
static size_t rh, rn;
static int nthreads, ndone, nbar, baracc;
static bop barop;
static thread* cur;
static ctx mainc;
static std::vector<ctx*>& pool = *new std::vector<ctx*>;  // never destroyed: LeakSanitizer runs after destructors
static const std::function<void()>* body;
static int barres;
static char* dynp; static size_t dynn;
static std::vector<void*> sh; static int nsh;
static uint64_t rng; static int mode;  // 0 fifo, 1 reverse, 2 random
static std::recursive_mutex dev;       // one launch at a time: emulated ranks on several OS threads take turns
#ifdef HAS_TSAN
static std::vector<void*>& tsf = *new std::vector<void*>; static std::vector<ctx*>& tsc = *new std::vector<ctx*>; static void* tsmain; static char ts_start, ts_end, ts_block[2], ts_shared, ts_warp[64]; static unsigned bgen, wgen[32];
#endif
static uint64_t rnd() { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return rng * 0x2545F4914F6CDD1Dull; }
static void push(int i) { size_t k = rh + rn++; if (k >= ready.size()) k -= ready.size(); ready[k] = i; }
static thread* pop() {
    if (!rn) return nullptr;
    if (mode == 2) {
        size_t k = rh + rnd() % rn; if (k >= ready.size()) k -= ready.size();
        std::swap(ready[k], ready[rh]);
    } else if (mode == 1) {
        int i = ready[(rh + --rn) % ready.size()]; return &th[i];
    }
    int i = ready[rh]; if (++rh == ready.size()) rh = 0; rn--;
    return &th[i];
}
static void entry();
static NOSAN ctx* new_ctx() {
    ctx* c = new ctx;
    size_t n = stack_bytes();
    c->base = (char*)mmap(nullptr, n + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mprotect(c->base, 4096, PROT_NONE); c->base += 4096; c->size = n;
#ifdef USE_UCONTEXT
    getcontext(&c->uc); c->uc.uc_stack.ss_sp = c->base; c->uc.uc_stack.ss_size = n; c->uc.uc_link = nullptr;
    makecontext(&c->uc, entry, 0);
#else
    void** p = (void**)(c->base + n); *--p = nullptr; *--p = (void*)entry; // rsp = 8 mod 16 on entry, as after a call
    for (int i = 0; i < 6; i++) *--p = nullptr;
    c->sp = p;
#endif
    return c;
}
static inline NOSAN void after_switch(ctx* me) {
    (void)me;
#ifdef HAS_ASAN
    __sanitizer_finish_switch_fiber(me->fake, nullptr, nullptr);
#endif
}
static NOSAN void jump(ctx* from, ctx* to) {
#ifdef HAS_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->base, to->size);
#endif
#ifdef USE_UCONTEXT
    swapcontext(&from->uc, &to->uc);
#else
    simt_switch(&from->sp, to->sp);
#endif
    after_switch(from);
}
static ctx* get_ctx(thread* t) {
#ifdef HAS_TSAN
    return tsc[t->lin];  // a thread index keeps its own stack: reuse by another would look like a race
#else
    (void)t;
    if (pool.empty()) return new_ctx();
    ctx* c = pool.back(); pool.pop_back(); return c;
#endif
}
static inline NOSAN void become(thread* t) {
    cur = t; threadIdx = t->tid;
#ifdef HAS_TSAN
    __tsan_switch_to_fiber(tsf[t->lin], 1);
#endif
}
static NOSAN void to_main(ctx* from) {
#ifdef HAS_TSAN
    __tsan_switch_to_fiber(tsmain, 1);
#endif
    jump(from, &mainc);
}
static NOSAN void yield_() {  // the current thread waits; run another
    thread* me = cur; thread* n = pop();
    if (!n) { to_main(me->c); return; }
    if (n == me) return;
    if (!n->c) n->c = get_ctx(n);
    become(n);
    jump(me->c, n->c);
}
static void release_block();
static NOSAN void entry() {
    after_switch(cur->c);
    for (;;) {
#ifdef HAS_TSAN
        __tsan_acquire(&ts_start);
#endif
        (*body)();
#ifdef HAS_TSAN
        __tsan_release(&ts_end);
#endif
        thread* me = cur; ctx* c = me->c;
        me->st = DONE; ndone++; wp[me->lin >> 5].exited |= 1u << (me->lin & 31);
        if (nbar && nbar == nthreads - ndone) release_block();
        thread* n = pop(); me->c = nullptr;
#ifdef HAS_TSAN
        if (!n) { to_main(c); continue; }  // no allocation by a fiber: TSan would see the heap as raced on
#else
        if (!n) { pool.push_back(c); to_main(c); continue; }
        if (!n->c) { n->c = c; become(n); continue; }  // adopt the next unstarted thread on this stack
        pool.push_back(c);
#endif
#ifdef HAS_TSAN
        if (!n->c) n->c = get_ctx(n);
#endif
        become(n);
        jump(c, n->c);
    }
}
// ---------------------------------------------------------------- errors
static void where(thread* t) {
    fprintf(stderr, " thread (%u,%u,%u) of block (%u,%u,%u)", t->tid.x, t->tid.y, t->tid.z, blockIdx.x, blockIdx.y, blockIdx.z);
}
[[noreturn]] void trap(const char* what, site s) {
    fprintf(stderr, "simt: %s at %s:%d by", what, s.file, s.line);
    if (cur) where(cur);
    fputc('\n', stderr);
    abort();
}
// ---------------------------------------------------------------- collectives
unsigned lane() { return (unsigned)cur->lin & 31; }
unsigned activemask() { return 1u << lane(); }  // legal answer that exposes code relying on convergence
static NOSAN void finish(op o, int w, unsigned mask) {
    thread* L = &th[(size_t)w << 5];
    if (o == FN) { void* a[32] = {}; for (int i = 0; i < 32; i++) if (mask >> i & 1) a[i] = (void*)L[i].val; L[__builtin_ctz(mask)].fn(a, mask); return; }
    uint64_t acc = 0; bool first = true;
    if (o != SHFL && o != SYNCWARP && o != MATCH)
        for (int i = 0; i < 32; i++) if (mask >> i & 1) {
            uint64_t v = L[i].val; unsigned a = (unsigned)acc, b = (unsigned)v;
            if (first) { acc = o == BALLOT ? v << i : v; first = false; continue; }
            switch (o) {
                case BALLOT: acc |= v << i; break;
                case ANY: case ROR: acc |= v; break;
                case ALL: case RAND_: acc &= v; break;
                case RADD: acc = a + b; break;
                case RXOR: acc ^= v; break;
                case RMINS: acc = (int)a < (int)b ? a : b; break;
                case RMAXS: acc = (int)a > (int)b ? a : b; break;
                case RMINU: acc = a < b ? a : b; break;
                case RMAXU: acc = a > b ? a : b; break;
                default: break;
            }
        }
    for (int i = 0; i < 32; i++) if (mask >> i & 1) {
        if (o == SHFL) L[i].res = mask >> L[i].arg & 1 ? L[L[i].arg].val : 0x7fc0dead7fc0deadull;  // inactive source: poison
        else if (o == MATCH) { uint64_t m = 0; for (int j = 0; j < 32; j++) if ((mask >> j & 1) && L[j].val == L[i].val) m |= 1ull << j; L[i].res = m; }
        else L[i].res = acc;
    }
}
NOSAN uint64_t warp(op o, unsigned mask, uint64_t val, int arg, site s) {
    thread* me = cur; int w = me->lin >> 5, l = me->lin & 31;
    warp_t& W = wp[w]; thread* L = &th[(size_t)w << 5];
    mask &= W.exists;
    if (!(mask >> l & 1)) trap("warp collective: calling lane not in its own mask", s);
    if (mask & W.exited) trap("warp collective: a lane of the mask has exited", s);
    me->o = o; me->mask = mask; me->val = val; me->arg = arg; me->s = s;
#ifdef HAS_TSAN
    // one sync object per barrier generation (two in turn): a lane that leaves late must not acquire the next one
    char* so = &ts_warp[2 * w + (wgen[w] & 1)];
    if (o == SYNCWARP) __tsan_release(so);
#endif
    W.arrived |= 1u << l;
    if ((W.arrived & mask) == mask) {
        for (int i = 0; i < 32; i++) if ((mask >> i & 1) && (L[i].mask != mask || L[i].o != o || L[i].s.line != s.line))
            trap("warp collective: lanes of one mask are at different collectives", s);
        finish(o, w, mask);
#ifdef HAS_TSAN
        if (o == SYNCWARP) wgen[w]++;
#endif
        W.arrived &= ~mask;
        bool self_waits = mode == 2 && (rnd() & 1);
        for (int i = 0; i < 32; i++) if ((mask >> i & 1) && (i != l || self_waits)) { L[i].st = READY; push((w << 5) + i); }
        if (self_waits) yield_();
    } else { me->st = WAIT_WARP; yield_(); }
#ifdef HAS_TSAN
    if (o == SYNCWARP) __tsan_acquire(so);
#endif
    return me->res;
}
void warp_fn(unsigned mask, void* arg, void (*fn)(void**, unsigned), site s) { cur->fn = fn; warp(FN, mask, (uint64_t)arg, 0, s); }
void cp_async(void* d, const void* s, unsigned n, site here) {
    if ((uintptr_t)d % n || (uintptr_t)s % n) trap("cp.async: misaligned address", here);
    memset(d, 0xFF, n); cur->cps.push_back({d, s, n, cur->cgroup});
}
void cp_commit() { cur->cgroup++; }
void cp_wait(unsigned keep) {
    size_t k = 0;
    for (auto& c : cur->cps) { if (c.group + keep < cur->cgroup) memcpy(c.d, c.s, c.n); else cur->cps[k++] = c; }
    cur->cps.resize(k);
}
static NOSAN void release_block() {
    site* s0 = nullptr;
    for (int i = 0; i < nthreads; i++) if (th[i].st == WAIT_BLOCK) {
        if (!s0) s0 = &th[i].s;
        else if (th[i].s.line != s0->line || strcmp(th[i].s.file, s0->file)) {
            fprintf(stderr, "simt: __syncthreads at line %d meets one at line %d:", s0->line, th[i].s.line); where(&th[i]); fputc('\n', stderr); abort();
        }
        th[i].st = READY; push(i);
    }
    barres = baracc; nbar = 0;
#ifdef HAS_TSAN
    bgen++;
#endif
}
NOSAN int barrier(bop o, int pred, site s) {
    thread* me = cur;
    if (!nbar) { barop = o; baracc = o == BAND; }
    if (o == BCOUNT) baracc += !!pred; else if (o == BOR) baracc |= !!pred; else if (o == BAND) baracc &= !!pred;
    me->s = s; me->st = WAIT_BLOCK;
#ifdef HAS_TSAN
    char* so = &ts_block[bgen & 1];
    __tsan_release(so);
#endif
    if (++nbar == nthreads - ndone) release_block();
    yield_();
#ifdef HAS_TSAN
    __tsan_acquire(so);
#endif
    return barres;  // safe: nobody can finish the next barrier before everybody left this one
}
// ---------------------------------------------------------------- shared memory
void* dyn_smem(size_t al) { if (!dynn || (size_t)dynp % al) trap("dynamic shared memory used but not asked for at launch", {"?", 0}); return dynp; }
int shared_id() { return nsh++; }
static void fill(void* p, size_t n) { memset(p, 0xFF, n); }
NOSAN void* shared_get(int id, size_t n) {
    if ((size_t)id >= sh.size()) sh.resize(id + 1);
    if (!sh[id]) {
        void* p = nullptr; if (posix_memalign(&p, 128, n)) abort();
        fill(p, n); sh[id] = p;
#ifdef SIMT_TSAN
        __tsan_release(&ts_shared);
#endif
    }
#ifdef SIMT_TSAN
    else __tsan_acquire(&ts_shared);
#endif
    return sh[id];
}
// ---------------------------------------------------------------- blocks
static uint64_t nlaunch; static uint64_t seed0;
static void init_mode() {
    static bool done; if (done) return; done = true;
    const char* e = getenv("KD_SIM_SCHEDULE");  // fifo | reverse | random:SEED
    if (e && !strcmp(e, "reverse")) mode = 1;
    if (e && !strncmp(e, "random", 6)) { mode = 2; seed0 = e[6] ? strtoull(e + 7, 0, 0) : 1; }
}
static NOSAN void run_block(const dim3& b) {
    for (int i = 0; i < nthreads; i++) {
        thread& t = th[i];
        t.st = NEW; t.c = nullptr; t.cps.clear(); t.cgroup = 0;
    }
    ndone = nbar = 0; rh = rn = 0;
    for (auto& w : wp) w.arrived = w.exited = 0;
    for (int i = 0; i < nthreads; i++) push(i);
    if (dynn) fill(dynp, dynn);
#ifdef HAS_TSAN
    __tsan_release(&ts_start);
#endif
    thread* n = pop(); n->c = get_ctx(n); become(n);
    jump(&mainc, n->c);
    cur = nullptr;
#ifdef HAS_TSAN
    __tsan_acquire(&ts_end);
#endif
    if (ndone != nthreads) {
        fprintf(stderr, "simt: deadlock in block (%u,%u,%u):\n", blockIdx.x, blockIdx.y, blockIdx.z);
        int k = 0;
        for (int i = 0; i < nthreads && k < 8; i++) if (th[i].st != DONE) { k++; where(&th[i]); fprintf(stderr, " waits in %s at %s:%d mask %08x\n", th[i].st == WAIT_BLOCK ? "__syncthreads" : "a warp collective", th[i].s.file, th[i].s.line, th[i].mask); }
        abort();
    }
    for (auto& p : sh) if (p) { free(p); p = nullptr; }
    (void)b;
}
static std::map<const void*, int> smem_limit;
static thread_local cudaError_t last;
static cudaError_t err(cudaError_t e) { if (e) last = e; return e; }
static NOSAN void run_grid(dim3 g, dim3 b, size_t smem, const std::function<void()>& f) {
    std::lock_guard<std::recursive_mutex> lk(dev);
    init_mode(); rng = (seed0 + 0x9E3779B97F4A7C15ull * ++nlaunch) | 1;
    body = &f; gridDim = g; blockDim = b;
    nthreads = (int)(b.x * b.y * b.z);
    th.resize(((size_t)nthreads + 31) & ~31ul); wp.assign(((size_t)nthreads + 31) / 32, warp_t{});
    ready.resize(nthreads);
    for (int i = 0; i < nthreads; i++) {
        th[i].lin = i; th[i].tid = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
        wp[i >> 5].exists |= 1u << (i & 31);
    }
#ifdef HAS_TSAN
    tsmain = __tsan_get_current_fiber();
    while ((int)tsf.size() < nthreads) { tsf.push_back(__tsan_create_fiber(0)); tsc.push_back(new_ctx()); }
#endif
#ifdef HAS_ASAN
    // stack bounds of this OS thread, asked for once: pthread_getattr_np reads /proc/self/maps on the main thread (1.5 ms)
    static thread_local void* sb; static thread_local size_t sn;
    if (!sb) { pthread_attr_t a; pthread_getattr_np(pthread_self(), &a); pthread_attr_getstack(&a, &sb, &sn); pthread_attr_destroy(&a); }
    mainc.base = (char*)sb; mainc.size = sn;
#endif
    sh.reserve(256);
    dynn = smem; dynp = nullptr;
    if (smem) { void* p; if (posix_memalign(&p, 128, smem)) abort(); dynp = (char*)p; }
    size_t nb = (size_t)g.x * g.y * g.z;
    std::vector<unsigned> order;
    if (mode) { order.resize(nb); for (size_t i = 0; i < nb; i++) order[i] = (unsigned)i;
        if (mode == 1) for (size_t i = 0; i < nb; i++) order[i] = (unsigned)(nb - 1 - i);
        else for (size_t i = nb; i > 1; i--) std::swap(order[i - 1], order[rnd() % i]); }
    for (size_t k = 0; k < nb; k++) {
        size_t i = mode ? order[k] : k;
        blockIdx = {(unsigned)(i % g.x), (unsigned)(i / g.x % g.y), (unsigned)(i / ((size_t)g.x * g.y))};
        run_block(b);
    }
    free(dynp); dynp = nullptr;
}
}  // namespace simt

// ---------------------------------------------------------------- runtime API
using simt::err;
struct CUevent_st { bool done = true; cudaStream_t s = nullptr; uint64_t ver = 0, fin = 0; double t = 0; };
struct CUstream_st { std::deque<std::function<void()>> q; std::mutex m; };
namespace simt {
static thread_local CUstream_st legacy; static thread_local std::vector<CUstream_st*> streams;  // an emulated device per OS thread
static std::map<char*, size_t> allocs;
static thread_local int device;
static int capability() { static int c = [] { const char* e = getenv("KD_SIM_CAPABILITY"); return e ? atoi(e) : 80; }(); return c; }
static bool lazy() { static bool l = [] { const char* e = getenv("KD_SIM_ASYNC"); return e && !strcmp(e, "lazy"); }(); return l; }
static CUstream_st* S(cudaStream_t s) { return (uintptr_t)s <= 2 ? &legacy : s; }
static void put(cudaStream_t s, std::function<void()> f) { if (!lazy()) { f(); return; } std::lock_guard<std::mutex> l(S(s)->m); S(s)->q.push_back(std::move(f)); }
void stream_put(cudaStream_t s, std::function<void()> f) { put(s, std::move(f)); }
static bool step(CUstream_st* s) { std::function<void()> f; { std::lock_guard<std::mutex> l(s->m); if (s->q.empty()) return false; f = std::move(s->q.front()); s->q.pop_front(); } f(); return true; }
static void drain(CUstream_st* s) { while (step(s)) {} }
static void drain_all() { drain(&legacy); for (auto s : streams) drain(s); }
static bool on_device(const void* p, size_t n) {
    std::lock_guard<std::recursive_mutex> lk(dev);
    auto it = allocs.upper_bound((char*)p); if (it == allocs.begin()) return false; --it;
    return (char*)p >= it->first && (char*)p + n <= it->first + it->second;
}
static bool kind_ok(void* d, const void* s, size_t n, cudaMemcpyKind k) {
    if (!n || k == cudaMemcpyDefault) return true;
    bool dd = k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice, sd = k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice;
    return on_device(d, n) == dd && on_device(s, n) == sd;
}
cudaError_t launch(const void* fn, const cudaLaunchConfig_t* c, std::function<void()> f) {
    dim3 g = c->gridDim, b = c->blockDim; size_t n = c->dynamicSmemBytes;
    auto it = smem_limit.find(fn); size_t lim = it == smem_limit.end() ? 49152 : (size_t)it->second;
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z || (uint64_t)b.x * b.y * b.z > 1024 || b.z > 64 || g.y > 65535 || g.z > 65535) return err(cudaErrorInvalidConfiguration);
    if (n > lim) return err(cudaErrorInvalidValue);
    put(c->stream, [=, f = std::move(f)] { run_grid(g, b, n, f); });
    return cudaSuccess;
}
}  // namespace simt
extern "C" {
cudaError_t cudaMalloc(void** p, size_t n) {
    if (posix_memalign(p, 256, n ? n : 1)) return err(cudaErrorMemoryAllocation);
    memset(*p, 0xFF, n); std::lock_guard<std::recursive_mutex> lk(simt::dev); simt::allocs[(char*)*p] = n; return cudaSuccess;
}
cudaError_t cudaFree(void* p) { simt::drain_all(); { std::lock_guard<std::recursive_mutex> lk(simt::dev); if (p && !simt::allocs.erase((char*)p)) return err(cudaErrorInvalidValue); } free(p); return cudaSuccess; }
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t s) { simt::put(s, [=] { std::lock_guard<std::recursive_mutex> lk(simt::dev); simt::allocs.erase((char*)p); free(p); }); return cudaSuccess; }
cudaError_t cudaMallocHost(void** p, size_t n) { *p = malloc(n ? n : 1); return cudaSuccess; }
cudaError_t cudaFreeHost(void* p) { free(p); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t st) { if (!simt::kind_ok(d, s, n, k)) return err(cudaErrorInvalidValue); simt::put(st, [=] { memcpy(d, s, n); }); return cudaSuccess; }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) { if (!simt::kind_ok(d, s, n, k)) return err(cudaErrorInvalidValue); simt::drain_all(); memcpy(d, s, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t st) { if (!simt::on_device(d, n)) return err(cudaErrorInvalidValue); simt::put(st, [=] { memset(d, v, n); }); return cudaSuccess; }
cudaError_t cudaMemset(void* d, int v, size_t n) { simt::drain_all(); memset(d, v, n); return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* s) { *s = new CUstream_st; simt::streams.push_back(*s); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { simt::drain(simt::S(s)); return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { simt::drain_all(); return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { simt::drain(s); for (auto& x : simt::streams) if (x == s) { x = simt::streams.back(); simt::streams.pop_back(); break; } delete s; return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = new CUevent_st; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { if (e->s || e->ver) simt::drain_all(); delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { uint64_t v = ++e->ver; e->s = simt::S(s); simt::put(s, [=] { e->fin = v; }); return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { while (e->fin < e->ver && simt::step(e->s)) {} return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return e->fin < e->ver ? cudaErrorNotReady : cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) { uint64_t v = e->ver; CUstream_st* o = e->s; simt::put(s, [=] { while (e->fin < v && simt::step(o)) {} }); return cudaSuccess; }
cudaError_t cudaGetLastError(void) { cudaError_t e = simt::last; simt::last = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError(void) { return simt::last; }
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) { *f = *t = (size_t)16 << 30; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* n) { const char* e = getenv("KD_SIM_DEVICES"); *n = e ? atoi(e) : 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int d) { int n; cudaGetDeviceCount(&n); if (d < 0 || d >= n) return err(cudaErrorInvalidDevice); simt::device = d; return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { *d = simt::device; return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) { if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) { if (v > (simt::capability() >= 90 ? 232448 : 166912)) return err(cudaErrorInvalidValue); simt::smem_limit[f] = v; } return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
    switch (a) {
        case cudaDevAttrComputeCapabilityMajor: *v = simt::capability() / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *v = simt::capability() % 10; break;
        case cudaDevAttrMultiProcessorCount: *v = 4; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = simt::capability() >= 90 ? 232448 : 166912; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
        case cudaDevAttrL2CacheSize: *v = 40 << 20; break;
        case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
        case cudaDevAttrWarpSize: *v = 32; break;
        case cudaDevAttrUnifiedAddressing: case cudaDevAttrMemoryPoolsSupported: *v = 1; break;
        default: return err(cudaErrorNotSupported);
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
    memset(p, 0, sizeof *p); snprintf(p->name, sizeof p->name, "cudasim"); int v;
    cudaDeviceGetAttribute(&p->major, cudaDevAttrComputeCapabilityMajor, d); cudaDeviceGetAttribute(&p->minor, cudaDevAttrComputeCapabilityMinor, d);
    cudaDeviceGetAttribute(&p->multiProcessorCount, cudaDevAttrMultiProcessorCount, d); cudaDeviceGetAttribute(&p->l2CacheSize, cudaDevAttrL2CacheSize, d);
    cudaDeviceGetAttribute(&v, cudaDevAttrMaxSharedMemoryPerBlockOptin, d); p->sharedMemPerBlockOptin = (size_t)v;
    p->sharedMemPerBlock = 49152; p->warpSize = 32; p->maxThreadsPerBlock = 1024; p->totalGlobalMem = (size_t)16 << 30; return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return cudaMallocHost(p, n); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int) { return cudaStreamCreateWithFlags(s, f); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* low, int* high) { *low = 0; *high = -5; return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* a) { simt::put(s, [=] { f(a); }); return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { simt::step(simt::S(s)); std::lock_guard<std::mutex> l(simt::S(s)->m); return simt::S(s)->q.empty() ? cudaSuccess : cudaErrorNotReady; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) { if (a->fin < a->ver || b->fin < b->ver) return err(cudaErrorNotReady); *ms = 0; return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
    memset(a, 0, sizeof *a); a->maxThreadsPerBlock = 1024; auto it = simt::smem_limit.find(f);
    a->maxDynamicSharedSizeBytes = it == simt::smem_limit.end() ? 49152 : it->second; return cudaSuccess;
}
}
