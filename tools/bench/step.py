#!/usr/bin/env python3
"""One distillation step, kd beside PyTorch on the same threads: tokens/s and peak memory, losses first.

    tools/bench/step.py --teacher DIR --student DIR --data train.safetensors [--kd build/kd] [--json FILE]
    tools/bench/step.py --device cuda --made gpt2-124m,gpt2-355m llama-1b,llama-1b [--wheels DIR]

--made STUDENT,TEACHER makes both with random weights, and random tokens: speed does not depend on what
they say.  Needs torch and transformers.  Every cell runs in a process of its own, kd and its peers in
turn, --rounds times; the figure is the median over rounds of the median step, warm-up steps left out.
All do the same work: a frozen teacher's forward pass, the student's forward and backward pass, KL over
the whole vocabulary and cross entropy, clipping and AdamW on f32 masters, no dropout, on the same tokens
in the same batch; a peer that does not fit takes the batch in halves, quarters, and so on.  PyTorch
attends across documents (plain causal), which is the cheaper case.  On a GPU the memory is what the card
says is used, above what it was before, and KD-MFU counts 6 operations a parameter and token for the
student and 2 for the teacher against --peak.

Peers: PyTorch eager; its models and loss compiled; the same with the head in chunks that are recomputed;
and with Liger's kernels and fused losses.

`kd bench` asks for PyTorch's cells through peers.py: steps, and with --generate the student's inference.
"""

import argparse
import glob
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import wheels

STEPS = {"cpu": (2, 5), "cuda": (5, 20)}  # to warm up (two at least), to time
BATCH = {"cpu": (256, 4), "cuda": (1024, 16)}  # tokens of a sample, samples of a step
GENERATIONS = 3  # of which the median is taken, after one to warm up
CHUNK_ELEMENTS = 1 << 28  # of the logits that a chunked head holds at a time
KL, CE, LR = 0.9, 0.1, 3e-4


# ---- peers: each prints {"step_s": [...], "rss": bytes, "loss": first} ------------------------


def losses_of(engine, student, teacher, kind):
    """loss(batch), a mean over its tokens."""
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    def both(logits, target, labels):
        q = F.log_softmax(logits.float(), -1)
        p = F.log_softmax(target.float(), -1)
        return KL * F.kl_div(q, p, log_target=True, reduction="sum") + CE * F.nll_loss(
            q, labels, reduction="sum")

    def head(hidden, weight, target, teacher_weight, labels):
        with torch.no_grad():
            target = target @ teacher_weight.T
        return both(hidden @ weight.T, target, labels)

    compiled = engine in ("torch compiled", "torch chunked")
    if compiled:
        both, head = torch.compile(both), torch.compile(head)

    def whole(batch):
        with torch.no_grad():
            target = teacher(batch[:, :-1], use_cache=False).logits
        logits = student(batch[:, :-1], use_cache=False).logits
        labels = batch[:, 1:].flatten()
        return both(logits.flatten(0, 1), target.flatten(0, 1), labels) / labels.numel()

    def hidden_of(batch):
        """States before both heads, so that no logits of the whole batch exist."""
        with torch.no_grad():
            target = teacher.base_model(batch[:, :-1], use_cache=False)[0].flatten(0, 1)
        hidden = student.base_model(batch[:, :-1], use_cache=False)[0].flatten(0, 1)
        return hidden.to(kind), student.lm_head.weight.to(kind), target, teacher.lm_head.weight

    def chunked(batch):
        hidden, weight, target, teacher_weight = hidden_of(batch)
        labels, loss = batch[:, 1:].flatten(), 0.0
        rows = max(1, CHUNK_ELEMENTS // len(weight))
        for at in range(0, len(labels), rows):
            some = slice(at, at + rows)
            loss = loss + checkpoint(head, hidden[some], weight, target[some], teacher_weight,
                                     labels[some], use_reentrant=False)
        return loss / labels.numel()

    def liger(batch):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD
        hidden, weight, target, teacher_weight = hidden_of(batch)
        divergence = LigerFusedLinearJSD(jsd_beta=0.0)(hidden, weight, target, teacher_weight, None)
        return KL * divergence + CE * LigerFusedLinearCrossEntropyLoss()(weight, hidden,
                                                                         batch[:, 1:].flatten())

    if compiled:
        for model in (teacher, student):
            part = model if engine == "torch compiled" else model.base_model
            part.forward = torch.compile(part.forward)
    return {"torch chunked": chunked, "torch liger": liger}.get(engine, whole)


def models_of(options, kind, engine):
    import torch
    from transformers import AutoModelForCausalLM as Loader

    if engine == "torch liger":
        wheels.use(options.wheels)
        from liger_kernel.transformers import AutoLigerKernelForCausalLM as Loader
    teacher = Loader.from_pretrained(options.teacher, dtype=kind).eval().to(options.device)
    # f32 masters in all: autocast makes bf16 copies of f32 weights.
    student = Loader.from_pretrained(options.student, dtype=torch.float32).train().to(options.device)
    teacher.requires_grad_(False)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return student, teacher


def run_torch(options, dtype, engine):
    import torch
    from safetensors.torch import load_file

    device, sequence, samples = options.device, options.sequence, options.samples
    warm, steps = options.steps or STEPS[device]
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest" if dtype == "f32" else "high")
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    student, teacher = models_of(options, kind, engine)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0, fused=True)
    tokens = load_file(options.data)["tokens"].to(torch.int64)
    loss_of = losses_of(engine, student, teacher, kind)

    def step(batch, micro):
        total = 0.0
        for part in batch.split(micro):
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
                loss = loss_of(part) * (len(part) / len(batch))
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()  # waits for the card

    def batch_of(i):
        at = i * samples * sequence
        rows = [tokens[at + j * sequence:at + (j + 1) * sequence + 1] for j in range(samples)]
        return torch.stack(rows).to(device)

    def timed(micro):
        seconds, losses = [], []
        for i in range(warm + steps):
            begin = time.perf_counter()
            losses.append(step(batch_of(i), micro))
            seconds.append(time.perf_counter() - begin)
        return seconds[warm:], losses[0]

    micro, found = samples, None
    while not found:
        try:
            found = timed(micro)
        except torch.OutOfMemoryError:  # before the first update, or it is not the batch
            if micro == 1 or optimizer.state:
                raise
        if not found:
            micro = (micro + 1) // 2
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    allocated = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"step_s": found[0], "loss": found[1], "micro": micro, "allocated": allocated,
            "rss": resident_peak()}


def caches_of(model, room, compiled):
    """Calls give a cache for a new text; what is compiled wants one of a fixed size."""
    from transformers import DynamicCache, StaticCache
    if not compiled:
        return lambda: DynamicCache(config=model.config)
    cache = StaticCache(config=model.config, max_cache_len=room)

    def cleared():
        cache.reset()
        return cache

    return cleared


def run_generation(options, dtype, engine):
    """The student reads --generate's first number of tokens, then makes as many as its second, greedily."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    read, made = options.generate
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(
        options.student, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[dtype]).eval()
    prompt = load_file(options.data)["tokens"][:read].to(torch.int64)[None]
    compiled = engine == "torch compiled"
    new_cache = caches_of(model, read + made, compiled)
    forward = torch.compile(model.forward, dynamic=False) if compiled else model.forward

    def next_of(ids, cache, at):
        places = torch.arange(at, at + ids.shape[1])[None]
        logits = forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1,
                         position_ids=places).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    reading, making = [], []
    with torch.inference_mode():
        for _ in range(1 + GENERATIONS):
            cache, begin = new_cache(), time.perf_counter()
            ids = next_of(prompt, cache, 0)
            middle = time.perf_counter()
            for i in range(made):
                ids = next_of(ids, cache, read + i)
            ids.item()
            reading.append(middle - begin)
            making.append((time.perf_counter() - middle) / max(made, 1))
    return {"step_s": (making if made else reading)[1:], "loss": None, "rss": resident_peak()}


def resident_peak(who=resource.RUSAGE_SELF):
    return resource.getrusage(who).ru_maxrss * 1024


def run_kd(options, dtype):
    warm, steps = STEPS[options.device]
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "teacher": {"model": options.teacher, "dtype": dtype},
            "student": {"model": options.student, "dtype": dtype},
            "data": {"train": options.data, "sequence": options.sequence, "shuffle": False},
            "loss": {"ce": {"weight": CE}, "kl": {"weight": KL}},
            "optim": {"lr": LR, "schedule": "constant"},
            "batch": {"samples": options.samples},
            "run": {"steps": warm + steps, "out": f"{folder}/out",
                    "device": options.kd_device or options.device,
                    "checkpoint": {"every": "never"}},
        }
        path = f"{folder}/run.yaml"
        with open(path, "w") as file:
            json.dump(config, file)
        env = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
        subprocess.run([options.kd, "train", path], check=True, env=env, stdout=subprocess.DEVNULL)
        with open(f"{folder}/out/metrics.jsonl") as file:
            records = [json.loads(line) for line in file]
    # Of step i when step i + 1 is enqueued: the last record says nothing new.
    at = [r["seconds"] for r in records if "split" not in r][:-1]
    seconds = [b - a for a, b in zip(at, at[1:])]
    return {"step_s": seconds[warm - 2:], "loss": records[0]["loss"],
            "rss": resident_peak(resource.RUSAGE_CHILDREN)}


def cells(options):
    engines = ["kd", "torch compiled"] + ["torch liger"] * bool(options.wheels)
    engines += ["torch chunked", "torch eager"]
    if options.engines:
        engines = [e for e in engines if e.split()[-1] in options.engines.split(",")]
    kinds = ["bf16"] if options.device == "cuda" or options.kd_device else ["f32", "bf16"]
    return [(engine, dtype) for dtype in kinds for engine in engines]


def run_cell(options, engine, dtype):
    if options.generate:
        return run_generation(options, dtype, engine)
    return run_kd(options, dtype) if engine == "kd" else run_torch(options, dtype, engine)


# ---- models and tokens that nobody has to fetch -----------------------------------------------

SIZES = {
    "gpt2-tiny": ("gpt2", {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 512}),
    "gpt2-124m": ("gpt2", {}),
    "gpt2-355m": ("gpt2", {"n_layer": 24, "n_embd": 1024, "n_head": 16}),
    "llama-1b": ("llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                           "vocab_size": 128256, "tie_word_embeddings": True,
                           "max_position_embeddings": 8192}),
}


SAMPLES = {"llama-1b": 8}  # of a step, where BATCH would ask for more than peers can hold


def make(options, names, folder):
    """Student and teacher of the sizes asked for, on the card where there is one, and tokens for all steps."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = 1 << 30
    for seed, (name, role) in enumerate(zip(names, ("student", "teacher"))):
        family, changes = SIZES[name]
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **changes)
        vocabulary = min(vocabulary, config.vocab_size)
        path = f"{folder}/{role}"
        with torch.device(options.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(path)
        setattr(options, role, path)
    n = (sum(STEPS[options.device]) + 1) * options.sequence * options.samples + 1
    tokens = torch.randint(0, vocabulary, (n,), dtype=torch.int32)
    options.data = f"{folder}/tokens.safetensors"
    save_file({"tokens": tokens.to(torch.uint32), "documents": torch.tensor([0, n])}, options.data)


def parameters(path):
    from safetensors import safe_open
    total = 0
    for file in glob.glob(f"{path}/*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                size = 1
                for n in tensors.get_slice(name).get_shape():
                    size *= n
                total += size
    return total


class CardMemory(threading.Thread):
    """The most that the card says is used while it runs, above what was before."""

    def __init__(self):
        super().__init__(daemon=True)
        self.used, self.pause = self.reader()
        self.before = self.most = self.used()
        self.over = threading.Event()

    @staticmethod
    def reader():
        """A function that reads, and how long to wait between two: a process for each is not free."""
        try:
            import pynvml
            pynvml.nvmlInit()
            card = pynvml.nvmlDeviceGetHandleByIndex(0)
            return lambda: pynvml.nvmlDeviceGetMemoryInfo(card).used, 0.02
        except Exception:  # no such package, or another library than it wants
            command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
            return lambda: int(subprocess.run(command, capture_output=True, text=True, check=True)
                               .stdout.split()[0]) << 20, 0.5

    def run(self):
        while not self.over.wait(self.pause):
            self.most = max(self.most, self.used())

    def peak(self):
        self.over.set()
        self.join()
        return self.most - self.before


# ---- the table --------------------------------------------------------------------------------


def run_apart(options, engine, dtype, seconds):
    """A cell in a process of its own: what it found, or {"error"}."""
    command = [sys.executable, os.path.abspath(__file__), "--cell", engine, dtype]
    for name in ("teacher", "student", "data", "kd", "threads", "device", "kd_device", "wheels",
                 "sequence", "samples"):
        if getattr(options, name):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    for name in ("generate", "steps"):
        if getattr(options, name):
            command += [f"--{name}", *map(str, getattr(options, name))]
    watch = CardMemory() if options.device == "cuda" else None
    if watch:
        watch.start()
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not through after {seconds:.0f} s"}
    if options.verbose or out.returncode:
        sys.stderr.write(out.stderr[-4000:])
    if out.returncode:
        said = [line for line in out.stderr.splitlines() if line.strip()] or [""]
        return {"error": f"exit {out.returncode}: {said[-1][:160]}"}
    found = json.loads(out.stdout.splitlines()[-1])
    return {**found, "rss": watch.peak()} if watch else found


def measure(options, models, end, done):
    """Calls done(rows) after every cell."""
    order = cells(options)
    results = {cell: [] for cell in order}
    for turn in range(options.rounds):
        for cell in order if turn % 2 == 0 else order[::-1]:
            left = end - time.monotonic()
            found = {"error": "not reached"} if left < 5 else run_apart(options, *cell, left)
            results[cell].append(found)
            said = found.get("error") or f"{1e3 * statistics.median(found['step_s']):.1f} ms a step"
            print(f"{models} {' '.join(cell)}: {said}", file=sys.stderr, flush=True)
            done(summary(options, models, results))


def summary(options, models, results):
    rows = []
    work = 6 * parameters(options.student) + 2 * parameters(options.teacher)
    for (engine, dtype), tried in results.items():
        runs = [run for run in tried if "error" not in run]
        if tried and not runs:
            rows.append({"models": models, "engine": engine, "dtype": dtype,
                         "error": tried[-1]["error"]})
        if not runs:
            continue
        seconds = statistics.median(statistics.median(run["step_s"]) for run in runs)
        rate = options.samples * options.sequence / seconds
        rows.append({"models": models, "engine": engine, "dtype": dtype, "step_s": seconds,
                     "tokens_per_s": rate,
                     "kd_mfu": rate * work / options.peak if options.peak else None,
                     "rss": max(run["rss"] for run in runs), "first_loss": runs[0]["loss"],
                     "allocated": runs[0].get("allocated"), "micro": runs[0].get("micro"),
                     "samples": options.samples, "sequence": options.sequence, "rounds": len(runs)})
    timed = [row for row in rows if "error" not in row]
    for row in timed:
        kd = next((r for r in timed if r["engine"] == "kd" and r["dtype"] == row["dtype"]), None)
        row["kd_speed"] = row["step_s"] / kd["step_s"] if kd else None
        row["kd_memory"] = kd["rss"] / row["rss"] if kd else None
    return sorted(rows, key=lambda r: (r["engine"] == "kd", r.get("kd_speed") or 0))


def show(rows):
    print("| peer | models | type | tokens/s | kd is | peak memory | kd takes | loss of step 0 | KD-MFU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        start = f"| {row['engine']} | {row['models']} | {row['dtype']} | "
        if "error" in row:
            print(start + f"{row['error']} | | | | | |")
            continue
        peer = row["engine"] != "kd" and row["kd_speed"]
        print(start + f"{row['tokens_per_s']:.0f} | "
              + (f"{row['kd_speed']:.2f} x as fast" if peer else "-")
              + f" | {row['rss'] / 1e9:.2f} GB | "
              + (f"{100 * row['kd_memory']:.0f} %" if peer else "-")
              + f" | {row['first_loss']:.4f} | "
              + (f"{100 * row['kd_mfu']:.1f} % |" if row["kd_mfu"] else "- |"))


def write(options, rows):
    if not options.json:
        return
    with open(options.json + ".new", "w") as file:
        json.dump({"threads": options.threads, "rows": rows}, file, indent=2)
        file.write("\n")
    os.replace(options.json + ".new", options.json)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher")
    parser.add_argument("--student")
    parser.add_argument("--data")
    parser.add_argument("--made", metavar="STUDENT,TEACHER", nargs="+", help=", ".join(SIZES))
    parser.add_argument("--device", default="cpu", choices=list(BATCH))
    parser.add_argument("--kd-device", help="of kd alone: the emulated card beside PyTorch's CPU")
    parser.add_argument("--wheels", help="folder with Liger's wheel")
    parser.add_argument("--engines", help="of kd, compiled, liger, chunked, eager; default: all")
    parser.add_argument("--sequence", type=int, help="tokens of a sample")
    parser.add_argument("--samples", type=int, help="of a step")
    parser.add_argument("--steps", type=int, nargs=2, help="of PyTorch: to warm up, to time")
    parser.add_argument("--generate", type=int, nargs=2, metavar=("READ", "MADE"), help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=1e6, help="seconds for all")
    parser.add_argument("--peak", type=float, help="operations a second that KD-MFU is a share of; "
                        "989e12 on an H100")
    parser.add_argument("--kd", default="build/kd")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(options, *options.cell)))
        return
    if not options.made and not (options.teacher and options.student and options.data):
        parser.error("give --made, or --teacher, --student and --data")
    end, rows = time.monotonic() + options.limit, []
    sequence, samples = options.sequence, options.samples
    for pair in options.made or [""]:
        names = pair.split(",")
        options.sequence = sequence or BATCH[options.device][0]
        options.samples = samples or min(SAMPLES.get(name, BATCH[options.device][1]) for name in names)
        with tempfile.TemporaryDirectory() as folder:
            if options.made:
                make(options, names, folder)
            before = list(rows)

            def done(found):
                rows[:] = before + found
                write(options, rows)

            measure(options, " <- ".join(names) if options.made else options.student, end, done)
    show(rows)
    sys.exit(any("error" in row and row["engine"] == "kd" for row in rows))


os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in folders

if __name__ == "__main__":
    main()
