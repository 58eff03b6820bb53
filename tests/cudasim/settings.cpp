/* settings.cpp - the switches, from the environment and from tests, and the counters. */
#include "sim.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace simt {

counters &counted = *new counters;

/* ---- switches --------------------------------------------------------------------------------- */

namespace {

settings &current();

[[noreturn]] void refuse(const char *name, const char *value, const char *expected)
{
    fprintf(stderr, "cudasim: %s=%s: expected %s\n", name, value, expected);
    abort();
}

uint64_t number(const char *name, const char *value, uint64_t least, uint64_t most)
{
    char *end;
    const uint64_t n = strtoull(value, &end, 0);
    if (end == value || *end || n < least || n > most) refuse(name, value, "a number in range");
    return n;
}

void set_schedule(settings &s, const char *name, const char *value)
{
    s.seed = 0;
    if (!strcmp(value, "fifo"))
        s.schedule = FIFO;
    else if (!strcmp(value, "reverse"))
        s.schedule = REVERSE;
    else if (!strncmp(value, "random:", 7)) {
        s.schedule = RANDOM;
        s.seed = number(name, value + 7, 0, UINT64_MAX);
    } else
        refuse(name, value, "fifo, reverse or random:SEED");
}

void set_async(settings &s, const char *name, const char *value)
{
    if (strcmp(value, "lazy") && strcmp(value, "eager")) refuse(name, value, "eager or lazy");
    s.lazy = !strcmp(value, "lazy");
}

void set_capability(settings &s, const char *name, const char *value)
{
    s.capability = (int)number(name, value, 80, 90);
    if (s.capability != 80 && s.capability < 89) refuse(name, value, "80, 89 or 90");
}

/* CALL:N or CALL:N:ERROR */
void set_fail(settings &s, const char *name, const char *value)
{
    const std::string text = value;
    const size_t first = text.find(':'), second = text.find(':', first + 1);
    s.fail_call = text.substr(0, first);
    s.fail_error = -1;
    s.fail_in = 0;
    if (text.empty()) return;
    if (first == std::string::npos) refuse(name, value, "CALL:N or CALL:N:ERROR");
    const std::string count = text.substr(first + 1, second - first - 1);
    if (second != std::string::npos) s.fail_error = error_number(text.substr(second + 1).c_str());
    s.fail_in = (int)number(name, count.c_str(), 1, 1 << 30);
}

const struct {
    const char *name;
    void (*set)(settings &s, const char *name, const char *value);
} switches[] = {
    { "KD_SIM_SCHEDULE", set_schedule },
    { "KD_SIM_ASYNC", set_async },
    { "KD_SIM_CAPABILITY", set_capability },
    { "KD_SIM_FAIL", set_fail },
    { "KD_SIM_DEVICES",
      [](settings &s, const char *name, const char *value) {
          s.devices = (int)number(name, value, 0, MAX_DEVICES);
      } },
    { "KD_SIM_MEMORY", [](settings &s, const char *name,
                          const char *value) { s.memory = number(name, value, 0, 1ull << 40); } },
    { "KD_SIM_TIMEOUT", [](settings &s, const char *name,
                           const char *value) { s.timeout = (int)number(name, value, 1, 86400); } },
    { "KD_SIM_STACK_KB",
      [](settings &s, const char *name, const char *value) {
          s.stack = (size_t)number(name, value, 16, 1 << 20) << 10;
      } },
};

settings &current()
{
    static settings &s = *[] {
        settings *read = new settings;
        for (const auto &entry : switches)
            if (const char *value = getenv(entry.name)) entry.set(*read, entry.name, value);
        return read;
    }();
    return s;
}

} // namespace

const settings &config() { return current(); }

/* ---- failures asked for ------------------------------------------------------------------------ */

int planned_failure(const char *call, int usual)
{
    settings &s = current();
    if (s.fail_in == 0 || s.fail_call != call) return 0;
    static std::mutex lock;
    const std::lock_guard<std::mutex> hold(lock);
    if (s.fail_in == 0 || --s.fail_in > 0) return 0;
    return s.fail_error >= 0 ? s.fail_error : usual;
}

} // namespace simt

extern "C" {

void cudasim_set(const char *name, const char *value)
{
    for (const auto &entry : simt::switches)
        if (!strcmp(entry.name, name)) {
            entry.set(simt::current(), name, value);
            return;
        }
    simt::refuse(name, value, "the name of a switch");
}

void cudasim_read(cudasim_counts *counts)
{
    const simt::counters &c = simt::counted;
    *counts = { c.allocations, c.frees, c.host_allocations, c.host_frees, c.launches,
                c.copies,      c.fills, c.synchronisations, c.captures,   c.graph_launches,
                c.collectives, c.bytes, c.most_bytes };
}

void cudasim_reset(void)
{
    simt::counters &c = simt::counted;
    for (std::atomic<uint64_t> *count :
         { &c.allocations, &c.frees, &c.host_allocations, &c.host_frees, &c.launches, &c.copies,
           &c.fills, &c.synchronisations, &c.captures, &c.graph_launches, &c.collectives })
        *count = 0;
    c.most_bytes = c.bytes.load();
}

} // extern "C"
