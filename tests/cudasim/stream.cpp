/*
 * stream.cpp - streams and events.
 *
 * An operation is a node that knows which nodes it comes after: the one before it in its stream, what
 * the stream was told to wait for, and, between the legacy stream and blocking ones, each other's
 * last.  Eager, a node runs when it is enqueued; lazy, when somebody waits for it or for one after it,
 * which is as late as a GPU may be: a wait that is missing shows.  Captured, it goes into a graph.
 */
#include "sim.h"

#include <chrono>
#include <condition_variable>
#include <set>
#include <thread>

namespace simt {

/* Never destroyed: LeakSanitizer looks after the destructors have run. */
std::recursive_mutex &host_lock = *new std::recursive_mutex;

namespace {

using lock = std::lock_guard<std::recursive_mutex>;

std::condition_variable_any &progress = *new std::condition_variable_any;
CUstream_st (&legacy)[MAX_DEVICES] = *new CUstream_st[1][MAX_DEVICES];
std::set<CUstream_st *> &streams = *new std::set<CUstream_st *>;
std::set<CUevent_st *> &events = *new std::set<CUevent_st *>;
std::vector<capture *> &captures = *new std::vector<capture *>;
cudaError_t broken[MAX_DEVICES];

uint64_t this_thread() { return std::hash<std::thread::id>()(std::this_thread::get_id()); }

double now_ms()
{
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(since).count();
}

bool is_legacy(const CUstream_st *s) { return s >= legacy && s < legacy + MAX_DEVICES; }

bool finished(const node_ptr &n) { return !n || n->progress == node::FINISHED; }

/* A node that `n` waits for, or NULL. */
node_ptr obstacle(const node &n)
{
    const size_t count = n.before.size();
    const size_t start = config().schedule == RANDOM && count > 1 ? random_number() % count : 0;
    for (size_t i = 0; i < count; i++)
        if (!finished(n.before[(start + i) % count])) return n.before[(start + i) % count];
    return nullptr;
}

void run_node(node &n, std::unique_lock<std::recursive_mutex> &hold)
{
    n.progress = node::RUNNING;
    const std::function<void()> run = std::move(n.run);
    hold.unlock(); /* a rank waits in there for others */
    perform(n.kind, run);
    hold.lock();
    n.time = now_ms();
    n.progress = node::FINISHED;
    n.run = nullptr;
    n.before.clear();
    progress.notify_all();
}

} // namespace

void perform(enum node::kind kind, const std::function<void()> &f)
{
    if (!f) return;
    if (kind == node::HOST || kind == node::GRAPH) { /* a graph's nodes are performed one by one */
        f();
        return;
    }
    const access open;
    f();
}

void finish(const node_ptr &last)
{
    std::unique_lock<std::recursive_mutex> hold(host_lock);
    std::vector<node_ptr> path = { last };
    while (!path.empty()) {
        const node_ptr n = path.back();
        if (finished(n)) {
            path.pop_back();
        } else if (n->progress == node::RUNNING) {
            progress.wait(hold); /* by another OS thread */
        } else if (node_ptr first = obstacle(*n)) {
            path.push_back(first);
        } else {
            run_node(*n, hold);
        }
    }
}

void finish_device(int device)
{
    std::vector<node_ptr> last;
    {
        const lock hold(host_lock);
        last.push_back(legacy[device].last);
        for (const CUstream_st *s : streams)
            if (s->device == device) last.push_back(s->last);
    }
    for (const node_ptr &n : last) finish(n);
}

void break_device(int device, cudaError_t error)
{
    const lock hold(host_lock);
    if (!broken[device]) broken[device] = error;
}

cudaError_t device_error(int device)
{
    const lock hold(host_lock);
    return broken[device];
}

CUstream_st *stream_of(cudaStream_t handle)
{
    const lock hold(host_lock);
    if ((uintptr_t)handle <= 2) { /* NULL, cudaStreamLegacy; cudaStreamPerThread is treated alike */
        CUstream_st *s = &legacy[current_device()];
        s->device = current_device();
        return s;
    }
    return streams.count(handle) || is_legacy(handle) ? handle : nullptr;
}

/* ---- capture ------------------------------------------------------------------------------------ */

cudaError_t break_capture(CUstream_st *stream, cudaError_t error)
{
    if (stream->capture) stream->capture->broken = true;
    return error;
}

cudaError_t forbidden_in_capture()
{
    const lock hold(host_lock);
    for (capture *c : captures) {
        const bool mine = c->thread == this_thread();
        if (c->mode == cudaStreamCaptureModeRelaxed && mine) continue;
        if (c->mode != cudaStreamCaptureModeGlobal && !mine) continue;
        c->broken = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
}

void leave_capture(const capture *c)
{
    const auto leave = [c](CUstream_st &s) {
        if (s.capture.get() != c) return;
        s.capture = nullptr;
        s.tail.clear();
    };
    for (CUstream_st *s : streams) leave(*s);
    for (size_t i = 0; i < captures.size(); i++)
        if (captures[i] == c) {
            captures.erase(captures.begin() + (ptrdiff_t)i);
            break;
        }
}

namespace {

bool captures_block_legacy(int device)
{
    for (const CUstream_st *s : streams)
        if (s->device == device && s->blocking && s->capture) return true;
    return false;
}

cudaError_t capture_node(CUstream_st *s, const node_ptr &n, const std::vector<node_ptr> &also_after)
{
    if (s->capture->broken) return cudaErrorStreamCaptureInvalidated;
    n->before = s->tail;
    n->before.insert(n->before.end(), also_after.begin(), also_after.end());
    s->capture->nodes.push_back(n);
    s->tail = { n };
    return cudaSuccess;
}

void order_node(CUstream_st *s, const node_ptr &n, const std::vector<node_ptr> &also_after)
{
    const auto after = [&n](const node_ptr &other) {
        if (!finished(other)) n->before.push_back(other);
    };
    after(s->last);
    for (const node_ptr &other : s->waits) after(other);
    for (const node_ptr &other : also_after) after(other);
    if (is_legacy(s)) {
        for (const CUstream_st *other : streams)
            if (other->device == s->device && other->blocking) after(other->last);
    } else if (s->blocking) {
        after(legacy[s->device].last);
    }
    s->waits.clear();
    s->last = n;
}

} // namespace

cudaError_t enqueue(cudaStream_t stream, enum node::kind kind, std::function<void()> f,
                    const std::vector<node_ptr> &also_after, node_ptr *out)
{
    const auto n = std::make_shared<node>();
    n->kind = kind;
    n->run = std::move(f);
    if (out) *out = n;
    {
        const lock hold(host_lock);
        CUstream_st *s = stream_of(stream);
        if (!s) return cudaErrorInvalidResourceHandle;
        if (broken[s->device]) return broken[s->device];
        if (s->capture) return capture_node(s, n, also_after);
        if (is_legacy(s) && captures_block_legacy(s->device)) return cudaErrorStreamCaptureImplicit;
        order_node(s, n, also_after);
    }
    if (!config().lazy) finish(n);
    return cudaSuccess;
}

void stream_put(cudaStream_t stream, std::function<void()> f)
{
    (void)answer(enqueue(stream, node::LIBRARY, std::move(f)));
}

} // namespace simt

using namespace simt;

extern "C" {

/* ---- streams ------------------------------------------------------------------------------------ */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int)
{
    SIM_CALL();
    CUstream_st *s = new CUstream_st;
    s->device = current_device();
    s->blocking = !(flags & cudaStreamNonBlocking);
    const lock hold(host_lock);
    streams.insert(s);
    *out = s;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    SIM_CALL();
    return cudaStreamCreateWithPriority(out, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    SIM_CALL();
    return cudaStreamCreateWithPriority(out, cudaStreamDefault, 0);
}

/* Lazily what is queued still runs: here, since nobody else will. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    SIM_CALL();
    node_ptr last;
    {
        const lock hold(host_lock);
        if (!streams.count(stream)) return answer(cudaErrorInvalidResourceHandle);
        last = stream->last;
        if (stream->capture) leave_capture(stream->capture.get());
    }
    finish(last);
    const lock hold(host_lock);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    SIM_CALL();
    counted.synchronisations++;
    node_ptr last;
    int device;
    {
        const lock hold(host_lock);
        CUstream_st *s = stream_of(stream);
        if (!s) return answer(cudaErrorInvalidResourceHandle);
        if (s->capture) return answer(break_capture(s, cudaErrorStreamCaptureUnsupported));
        last = s->last;
        device = s->device;
    }
    finish(last);
    return answer(device_error(device));
}

cudaError_t cudaDeviceSynchronize(void)
{
    SIM_CALL();
    counted.synchronisations++;
    if (const cudaError_t error = forbidden_in_capture()) return answer(error);
    finish_device(current_device());
    return answer(device_error(current_device()));
}

/* Each query finishes one operation, so that a loop of them ends. */
static cudaError_t query(const node_ptr &last)
{
    if (finished(last)) return cudaSuccess;
    node_ptr n = last;
    {
        const lock hold(host_lock);
        while (node_ptr first = obstacle(*n)) n = first;
    }
    finish(n);
    return finished(last) ? cudaSuccess : answer(cudaErrorNotReady);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    SIM_CALL();
    node_ptr last;
    {
        const lock hold(host_lock);
        CUstream_st *s = stream_of(stream);
        if (!s) return answer(cudaErrorInvalidResourceHandle);
        if (s->capture) return answer(break_capture(s, cudaErrorStreamCaptureUnsupported));
        if (broken[s->device]) return answer(broken[s->device]);
        last = s->last;
    }
    return query(last);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    SIM_CALL();
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t f, void *argument)
{
    SIM_CALL();
    return answer(enqueue(stream, node::HOST, [f, argument] { f(argument); }));
}

/* ---- events ------------------------------------------------------------------------------------- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    SIM_CALL();
    CUevent_st *e = new CUevent_st;
    e->device = current_device();
    e->timed = !(flags & cudaEventDisableTiming);
    const lock hold(host_lock);
    events.insert(e);
    *out = e;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    SIM_CALL();
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    SIM_CALL();
    const lock hold(host_lock);
    if (!events.erase(event)) return answer(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    SIM_CALL();
    const lock hold(host_lock);
    CUstream_st *s = stream_of(stream);
    if (!s || !events.count(event) || event->device != s->device)
        return answer(cudaErrorInvalidResourceHandle);
    event->capture = s->capture;
    event->tail = s->tail;
    if (s->capture)
        return answer(s->capture->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
    return answer(enqueue(stream, node::MARK, nullptr, {}, &event->at));
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned)
{
    SIM_CALL();
    return cudaEventRecord(event, stream);
}

static cudaError_t node_of(node_ptr *out, cudaEvent_t event)
{
    const lock hold(host_lock);
    if (!events.count(event)) return cudaErrorInvalidResourceHandle;
    if (event->capture) {
        event->capture->broken = true;
        return cudaErrorCapturedEvent;
    }
    *out = event->at;
    return broken[event->device];
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    SIM_CALL();
    counted.synchronisations++;
    node_ptr at;
    if (const cudaError_t error = node_of(&at, event)) return answer(error);
    finish(at);
    return answer(device_error(event->device));
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    SIM_CALL();
    node_ptr at;
    if (const cudaError_t error = node_of(&at, event)) return answer(error);
    return query(at);
}

/* Host time: it says nothing of a GPU. */
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    SIM_CALL();
    node_ptr from, to;
    if (const cudaError_t error = node_of(&from, start)) return answer(error);
    if (const cudaError_t error = node_of(&to, end)) return answer(error);
    if (!from || !to || !start->timed || !end->timed) return answer(cudaErrorInvalidResourceHandle);
    if (!finished(from) || !finished(to)) return answer(cudaErrorNotReady);
    *ms = (float)(to->time - from->time);
    return cudaSuccess;
}

/* An event recorded while capturing draws the stream into that capture. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    SIM_CALL();
    const lock hold(host_lock);
    CUstream_st *s = stream_of(stream);
    if (!s || !events.count(event)) return answer(cudaErrorInvalidResourceHandle);
    if (!event->capture) {
        if (s->capture && event->at)
            return answer(break_capture(s, cudaErrorStreamCaptureIsolation));
        if (event->at) s->waits.push_back(event->at);
        return cudaSuccess;
    }
    if (event->capture->broken) return answer(cudaErrorStreamCaptureInvalidated);
    if (s->capture && s->capture != event->capture)
        return answer(break_capture(s, cudaErrorStreamCaptureMerge));
    s->capture = event->capture;
    for (const node_ptr &n : event->tail) s->tail.push_back(n);
    return cudaSuccess;
}

/* ---- beginning and end of a capture ------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    SIM_CALL();
    const lock hold(host_lock);
    CUstream_st *s = stream_of(stream);
    if (!s) return answer(cudaErrorInvalidResourceHandle);
    if (is_legacy(s)) return answer(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return answer(break_capture(s, cudaErrorIllegalState));
    s->capture = std::make_shared<capture>();
    s->capture->mode = mode;
    s->capture->origin = s;
    s->capture->thread = this_thread();
    s->tail.clear();
    captures.push_back(s->capture.get());
    counted.captures++;
    return cudaSuccess;
}

/* Whether what every other stream captured last comes before the end of the origin. */
static bool joined(const capture &c)
{
    std::set<node *> before;
    std::vector<node *> open;
    for (const node_ptr &n : c.origin->tail) open.push_back(n.get());
    while (!open.empty()) {
        node *n = open.back();
        open.pop_back();
        if (!before.insert(n).second) continue;
        for (const node_ptr &other : n->before) open.push_back(other.get());
    }
    for (const CUstream_st *s : streams)
        if (s->capture.get() == &c)
            for (const node_ptr &n : s->tail)
                if (!before.count(n.get())) return false;
    return true;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    SIM_CALL();
    const lock hold(host_lock);
    *out = nullptr;
    CUstream_st *s = stream_of(stream);
    if (!s) return answer(cudaErrorInvalidResourceHandle);
    const std::shared_ptr<capture> c = s->capture;
    if (!c) return answer(cudaErrorIllegalState);
    if (c->origin != s) return answer(break_capture(s, cudaErrorStreamCaptureUnmatched));
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != this_thread())
        return answer(cudaErrorStreamCaptureWrongThread);
    const bool all_joined = joined(*c);
    leave_capture(c.get());
    if (c->broken) return answer(cudaErrorStreamCaptureInvalidated);
    if (!all_joined) return answer(cudaErrorStreamCaptureUnjoined);
    *out = graph_of(*c);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    SIM_CALL();
    const lock hold(host_lock);
    const CUstream_st *s = stream_of(stream);
    if (!s) return answer(cudaErrorInvalidResourceHandle);
    *status = !s->capture          ? cudaStreamCaptureStatusNone
              : s->capture->broken ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

} // extern "C"
