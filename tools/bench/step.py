#!/usr/bin/env python3
"""One distillation step, kd beside PyTorch on the same threads: tokens/s and peak memory, losses first.

    tools/bench/step.py --teacher DIR --student DIR --data train.safetensors [--kd build/kd] [--json FILE]
    tools/bench/step.py --device cuda --made gpt2-124m,gpt2-355m [--liger DIR]

--made SIZES makes a student and a teacher of those sizes with random weights, and random tokens: speed
does not depend on what they say.  Needs torch and transformers.  Every cell runs in a process of its own, kd and its peers in turn,
--rounds times; the figure is the median over rounds of the median step, warm-up steps left out.  All
do the same work: a frozen teacher's forward pass, the student's forward and backward pass, KL over
the whole vocabulary and cross entropy, clipping and AdamW, on the same tokens in the same batch.
PyTorch attends across documents (plain causal), which is the cheaper case.  On a GPU the memory is
what the card says is used, above what it was before, and KD-MFU counts 6 operations a parameter and
token for the student and 2 for the teacher against --peak.
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

WARM, STEPS = 2, 5
BATCH = {"cpu": (256, 4), "cuda": (1024, 16)}  # tokens of a sample, samples of a step
KL, CE, LR = 0.9, 0.1, 3e-4


# ---- peers: each prints {"step_s": [...], "rss": bytes, "loss": first} ------------------------


def run_torch(options, dtype, engine):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    device, sequence, samples = options.device, *BATCH[options.device]
    torch.set_num_threads(options.threads)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    if engine == "torch liger":
        sys.path[:0] = glob.glob(os.path.join(options.liger, "*.whl")) + [options.liger]
        from liger_kernel.transformers import AutoLigerKernelForCausalLM, LigerFusedLinearJSD
        AutoModelForCausalLM, jsd = AutoLigerKernelForCausalLM, LigerFusedLinearJSD(jsd_beta=0.0)
    load = AutoModelForCausalLM.from_pretrained
    teacher = load(options.teacher, dtype=kind).eval().to(device)
    # f32 masters in both: autocast makes bf16 copies of f32 weights.
    student = load(options.student, dtype=torch.float32).train().to(device)
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0, fused=True)
    tokens = load_file(options.data)["tokens"].to(torch.int64)

    def whole_loss(batch):
        with torch.no_grad():
            target = teacher(batch[:, :-1]).logits
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            logits = student(batch[:, :-1]).logits
        q = F.log_softmax(logits.float().flatten(0, 1), -1)
        p = F.log_softmax(target.float().flatten(0, 1), -1)
        loss = KL * F.kl_div(q, p, log_target=True, reduction="batchmean")
        return loss + CE * F.nll_loss(q, batch[:, 1:].flatten())

    def liger_loss(batch):
        """Divergence over hidden states, so that no logits of the whole batch exist; its own head
        again for cross entropy."""
        with torch.no_grad():
            target = teacher.base_model(batch[:, :-1])[0].flatten(0, 1)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            hidden = student.base_model(batch[:, :-1])[0].flatten(0, 1)
            weight = student.lm_head.weight.to(hidden.dtype)
            loss = KL * jsd(hidden, weight, target, teacher.lm_head.weight)
            return loss + CE * LigerFusedLinearCrossEntropyLoss()(weight, hidden, batch[:, 1:].flatten())

    if engine == "torch liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    def step(batch):
        loss = (liger_loss if engine == "torch liger" else whole_loss)(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    if engine == "torch compiled":
        teacher.forward = torch.compile(teacher.forward)
        student.forward = torch.compile(student.forward)
    seconds, losses = [], []
    for i in range(WARM + STEPS):
        at = i * samples * sequence
        rows = [tokens[at + j * sequence:at + (j + 1) * sequence + 1] for j in range(samples)]
        begin = time.perf_counter()
        losses.append(step(torch.stack(rows).to(device)))  # .item() waits for the card
        seconds.append(time.perf_counter() - begin)
    return {"step_s": seconds[WARM:], "loss": losses[0],
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def run_kd(options, dtype):
    sequence, samples = BATCH[options.device]
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "teacher": {"model": options.teacher, "dtype": dtype},
            "student": {"model": options.student, "dtype": dtype},
            "data": {"train": options.data, "sequence": sequence, "shuffle": False},
            "loss": {"ce": {"weight": CE}, "kl": {"weight": KL}},
            "optim": {"lr": LR, "schedule": "constant"},
            "batch": {"samples": samples},
            "run": {"steps": WARM + STEPS, "out": f"{folder}/out", "device": options.device,
                    "checkpoint": {"every": "never"}},
        }
        path = f"{folder}/run.yaml"
        with open(path, "w") as file:
            json.dump(config, file)
        env = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
        subprocess.run([options.kd, "train", path], check=True, env=env, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL if not options.verbose else None)
        with open(f"{folder}/out/metrics.jsonl") as file:
            records = [json.loads(line) for line in file]
    at = [r["seconds"] for r in records if "split" not in r]
    steps = [b - a for a, b in zip(at, at[1:])]
    return {"step_s": steps[WARM - 1:], "loss": records[0]["loss"],
            "rss": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}


def cells(options):
    engines = ["kd", "torch eager", "torch compiled"] + ["torch liger"] * bool(options.liger)
    kinds = ["bf16"] if options.device == "cuda" else ["f32", "bf16"]
    return [(engine, dtype) for dtype in kinds for engine in engines]


def run_cell(options, engine, dtype):
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


def make(options, folder):
    """Student and teacher of the sizes asked for, and tokens for every step."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    names = options.made.split(",")
    vocabulary = 1 << 30
    for name, role in zip(names, ("student", "teacher")):
        family, changes = SIZES[name]
        torch.manual_seed(len(role))
        config = AutoConfig.for_model(family, **changes)
        vocabulary = min(vocabulary, config.vocab_size)
        path = f"{folder}/{role}"
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)
        setattr(options, role, path)
    sequence, samples = BATCH[options.device]
    n = (WARM + STEPS + 1) * sequence * samples + 1
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
        self.before = self.most = self.used()
        self.over = threading.Event()

    @staticmethod
    def used():
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True)
                   .stdout.split()[0]) << 20

    def run(self):
        while not self.over.wait(0.05):
            self.most = max(self.most, self.used())

    def peak(self):
        self.over.set()
        self.join()
        return self.most - self.before


# ---- the table --------------------------------------------------------------------------------


def measure(options):
    order = cells(options)
    results = {cell: [] for cell in order}
    for turn in range(options.rounds):
        for engine, dtype in order if turn % 2 == 0 else order[::-1]:
            command = [sys.executable, sys.argv[0], "--cell", engine, dtype]
            for name in ("teacher", "student", "data", "kd", "threads", "device", "liger"):
                if getattr(options, name):
                    command += [f"--{name}", str(getattr(options, name))]
            watch = CardMemory() if options.device == "cuda" else None
            if watch:
                watch.start()
            out = subprocess.run(command, stdout=subprocess.PIPE, check=False,
                                 stderr=None if options.verbose else subprocess.DEVNULL)
            if out.returncode == 0:
                found = json.loads(out.stdout.splitlines()[-1])
                results[engine, dtype].append({**found, "rss": watch.peak()} if watch else found)
            else:
                print(f"{engine} {dtype}: exit {out.returncode}", file=sys.stderr)
    return results


def summary(options, results):
    rows = []
    sequence, samples = BATCH[options.device]
    work = 6 * parameters(options.student) + 2 * parameters(options.teacher)
    for (engine, dtype), runs in results.items():
        if not runs:
            continue
        seconds = statistics.median(statistics.median(run["step_s"]) for run in runs)
        rows.append({"engine": engine, "dtype": dtype, "step_s": seconds,
                     "tokens_per_s": samples * sequence / seconds,
                     "kd_mfu": samples * sequence / seconds * work / options.peak if options.peak
                     else None,
                     "rss": max(run["rss"] for run in runs), "first_loss": runs[0]["loss"],
                     "rounds": len(runs)})
    for row in rows:
        kd = next((r for r in rows if r["engine"] == "kd" and r["dtype"] == row["dtype"]), None)
        row["kd_speed"] = row["step_s"] / kd["step_s"] if kd else None
        row["kd_memory"] = kd["rss"] / row["rss"] if kd else None
    return sorted(rows, key=lambda r: (r["engine"] == "kd", r["kd_speed"] or 0))


def show(rows):
    print("| peer | type | tokens/s | kd is | peak memory | kd takes | loss of step 0 | KD-MFU |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        peer = row["engine"] != "kd"
        print(f"| {row['engine']} | {row['dtype']} | {row['tokens_per_s']:.0f} | "
              f"{row['kd_speed']:.2f} x as fast" if peer else
              f"| {row['engine']} | {row['dtype']} | {row['tokens_per_s']:.0f} | -", end="")
        print(f" | {row['rss'] / 1e9:.2f} GB | "
              + (f"{100 * row['kd_memory']:.0f} %" if peer else "-")
              + f" | {row['first_loss']:.4f} | "
              + (f"{100 * row['kd_mfu']:.1f} % |" if row["kd_mfu"] else "- |"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher")
    parser.add_argument("--student")
    parser.add_argument("--data")
    parser.add_argument("--made", metavar="STUDENT,TEACHER", help=", ".join(SIZES))
    parser.add_argument("--device", default="cpu", choices=list(BATCH))
    parser.add_argument("--liger", help="folder with Liger's wheel")
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
    with tempfile.TemporaryDirectory() as folder:
        if options.made:
            make(options, folder)
        rows = summary(options, measure(options))
    show(rows)
    sequence, samples = BATCH[options.device]
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"samples": samples, "sequence": sequence, "threads": options.threads,
                       "rows": rows}, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
