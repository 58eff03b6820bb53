#!/usr/bin/env python3
"""One distillation step, kd beside PyTorch on the same threads: tokens/s and peak memory, losses first.

    tools/bench/step.py --teacher DIR --student DIR --data train.safetensors [--kd build/kd] [--json FILE]

Needs torch and transformers.  Every cell runs in a process of its own, kd and its peers in turn,
--rounds times; the figure is the median over rounds of the median step, warm-up steps left out.  All
do the same work: a frozen teacher's forward pass, the student's forward and backward pass, KL over
the whole vocabulary and cross entropy, clipping and AdamW, on the same tokens in the same batch.
PyTorch attends across documents (plain causal), which is the cheaper case.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SEQUENCE, SAMPLES, WARM, STEPS = 256, 4, 2, 5
KL, CE, LR = 0.9, 0.1, 3e-4


# ---- peers: each prints {"step_s": [...], "rss": bytes, "loss": first} ------------------------


def run_torch(options, dtype, compiled):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    teacher = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=kind).eval()
    # f32 masters in both: autocast makes bf16 copies of f32 weights.
    student = AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32).train()
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0, fused=True)
    tokens = load_file(options.data)["tokens"].to(torch.int64)

    def step(batch):
        with torch.no_grad():
            target = teacher(batch[:, :-1]).logits
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            logits = student(batch[:, :-1]).logits
        q = F.log_softmax(logits.float().flatten(0, 1), -1)
        p = F.log_softmax(target.float().flatten(0, 1), -1)
        loss = KL * F.kl_div(q, p, log_target=True, reduction="batchmean")
        loss = loss + CE * F.nll_loss(q, batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    if compiled:
        teacher.forward = torch.compile(teacher.forward)
        student.forward = torch.compile(student.forward)
    seconds, losses = [], []
    for i in range(WARM + STEPS):
        at = i * SAMPLES * SEQUENCE
        rows = [tokens[at + j * SEQUENCE:at + (j + 1) * SEQUENCE + 1] for j in range(SAMPLES)]
        begin = time.perf_counter()
        losses.append(step(torch.stack(rows)))
        seconds.append(time.perf_counter() - begin)
    return {"step_s": seconds[WARM:], "loss": losses[0],
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def run_kd(options, dtype):
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "teacher": {"model": options.teacher, "dtype": dtype},
            "student": {"model": options.student, "dtype": dtype},
            "data": {"train": options.data, "sequence": SEQUENCE, "shuffle": False},
            "loss": {"ce": {"weight": CE}, "kl": {"weight": KL}},
            "optim": {"lr": LR, "schedule": "constant"},
            "batch": {"samples": SAMPLES},
            "run": {"steps": WARM + STEPS, "out": f"{folder}/out", "checkpoint": {"every": "never"}},
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


CELLS = [(engine, dtype) for dtype in ("f32", "bf16")
         for engine in ("kd", "torch eager", "torch compiled")]


def run_cell(options, engine, dtype):
    if engine == "kd":
        return run_kd(options, dtype)
    return run_torch(options, dtype, engine == "torch compiled")


# ---- the table --------------------------------------------------------------------------------


def measure(options):
    results = {cell: [] for cell in CELLS}
    for turn in range(options.rounds):
        for engine, dtype in CELLS if turn % 2 == 0 else CELLS[::-1]:
            command = [sys.executable, *sys.argv, "--cell", engine, dtype]
            out = subprocess.run(command, stdout=subprocess.PIPE, check=False,
                                 stderr=None if options.verbose else subprocess.DEVNULL)
            if out.returncode == 0:
                results[engine, dtype].append(json.loads(out.stdout.splitlines()[-1]))
            else:
                print(f"{engine} {dtype}: exit {out.returncode}", file=sys.stderr)
    return results


def summary(results):
    rows = []
    for (engine, dtype), runs in results.items():
        if not runs:
            continue
        seconds = statistics.median(statistics.median(run["step_s"]) for run in runs)
        rows.append({"engine": engine, "dtype": dtype, "step_s": seconds,
                     "tokens_per_s": SAMPLES * SEQUENCE / seconds,
                     "rss": max(run["rss"] for run in runs), "first_loss": runs[0]["loss"],
                     "rounds": len(runs)})
    for row in rows:
        kd = next((r for r in rows if r["engine"] == "kd" and r["dtype"] == row["dtype"]), None)
        row["kd_speed"] = row["step_s"] / kd["step_s"] if kd else None
        row["kd_memory"] = kd["rss"] / row["rss"] if kd else None
    return sorted(rows, key=lambda r: (r["engine"] == "kd", r["kd_speed"] or 0))


def show(rows):
    print("| peer | type | tokens/s | kd is | peak memory | kd takes | loss of step 0 |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        peer = row["engine"] != "kd"
        print(f"| {row['engine']} | {row['dtype']} | {row['tokens_per_s']:.0f} | "
              f"{row['kd_speed']:.2f} x as fast" if peer else
              f"| {row['engine']} | {row['dtype']} | {row['tokens_per_s']:.0f} | -", end="")
        print(f" | {row['rss'] / 1e9:.2f} GB | "
              + (f"{100 * row['kd_memory']:.0f} %" if peer else "-")
              + f" | {row['first_loss']:.4f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--data", required=True)
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
    rows = summary(measure(options))
    show(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"samples": SAMPLES, "sequence": SEQUENCE, "threads": options.threads,
                       "rows": rows}, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
