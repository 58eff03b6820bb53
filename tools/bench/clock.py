"""clock.py - a peer's operands, the patterns of src/bench/setup.c, and how long its calls take."""

import ctypes
import gc
import statistics
import time

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
NO_CACHE_HOLDS, MOST_SETS = 256 << 20, 8
CALLS_IN_QUEUE = 100  # of a sample on a GPU, whose queue holds about a thousand launches


class Cell:
    def __init__(self, question):
        self.row, self.variant = question["row"], question["variant"]
        self.dtype = DTYPES[question["dtype"]]
        self.device = question["device"]
        self.seconds = question["seconds"]
        self.__dict__.update(question["dims"])

    def filled(self, shape, low, high, salt, dtype=None):
        count = 1
        for n in shape:
            count *= n
        period = min(count, 1 << 20 if len(shape) == 1 else 64 * shape[-1])
        index = torch.arange(1, period + 1, dtype=torch.int64, device=self.device)
        mixed = (index * 2654435761 + salt * 40503) & 0xFFFFFFFF
        unit = ((mixed * 2246822519) >> 8 & 0xFFFFFF).double() * 2.0**-24
        values = (low + (high - low) * unit).to(dtype or self.dtype)
        return values.repeat(-(-count // period))[:count].view(shape)

    def values(self, shape, salt):
        return self.filled(shape, -1, 1, salt)

    def ids(self, n, below):
        return self.filled((n,), 0, below, 9, torch.int64)

    def sync(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


    def clear(self):
        """Gives what is not in use back to the card, for the next peer or for kd."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def operand_sets(make):
    """The first of them and as many more as no cache holds together."""
    first = make()
    size = sum(t.numel() * t.element_size() for t in first.inputs)
    sets = max(1, min(MOST_SETS, -(-NO_CACHE_HOLDS // max(size, 1))))
    return [first] + [make() for _ in range(sets - 1)]


def taken_by(cell, run):
    """Bytes beyond what stands before the call, which are operands and their gradients: allocated on a card,
    resident on a CPU."""
    cell.clear()
    if cell.device != "cuda":
        return resident_peak_of(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    cell.sync()
    return torch.cuda.max_memory_allocated() - before


def resident(key):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(key))


def resident_peak_of(run):
    """None where the kernel does not tell.  What malloc keeps for later would hide the call's own."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")  # VmHWM starts anew (proc(5))
        before = resident("VmRSS:")
        run()
        return resident("VmHWM:") - before
    except (OSError, AttributeError):
        return None


def host_sample(calls):
    begin = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - begin


def card_sample(calls, passing):
    """Seconds on the card, and on the host until all was queued.  `passing`: cycles of the kernel before."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if passing:
        torch.cuda._sleep(passing)
    begin.record()
    queued = host_sample(calls)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3, queued


def measured(cell, make):
    """Times of make()'s calls: each set of operands in turn, at least ten samples of about 10 ms; of a call that
    takes longer than a cell is given, three."""
    cell.clear()
    runs = operand_sets(make)
    value = runs[0]()  # some spoil their operands
    cell.sync()
    begin = time.perf_counter()
    runs[0]()
    cell.sync()
    slow = time.perf_counter() - begin > cell.seconds
    if slow:
        del runs[1:]  # it goes through more than a cache holds by itself
    for run in runs:
        run()
    cell.sync()
    taken = taken_by(cell, runs[0])
    warm = time.perf_counter() + min(0.2, cell.seconds / 4)
    while True:
        begin = time.perf_counter()
        for run in runs:
            run()
        cell.sync()
        once = time.perf_counter() - begin
        if time.perf_counter() >= warm:
            break
    rounds = max(1, int(min(10e-3, cell.seconds / 20) / once))
    if cell.device == "cuda":
        rounds = min(rounds, -(-CALLS_IN_QUEUE // len(runs)))
        queued = card_sample(runs * rounds, 0)[1]
        passing = min(int(1.5 * queued * 2e9), 10**8)
        sample = lambda calls: card_sample(calls, passing)[0]
    else:
        sample = host_sample
    samples, start = [], time.perf_counter()
    while len(samples) < (3 if slow else 10) or (len(samples) < 400 and time.perf_counter() - start < cell.seconds):
        samples.append(sample(runs * rounds) / (rounds * len(runs)))
    samples.sort()
    n = len(samples)
    return {"low": samples[n // 5], "median": statistics.median(samples),
            "high": samples[n - 1 - n // 5], "samples": n, "bytes": taken,
            "value": None if value is None else float(value)}


class Run:
    """A call and the tensors that it works on."""

    def __init__(self, call, *inputs):
        self.call, self.inputs = call, [t for t in inputs if t is not None]

    def __call__(self):
        return self.call()
