#!/usr/bin/env python3
"""What losses over features teach by themselves: a linear probe over what a small student has learnt.

    probe.py --kd build/kd --data data/digits [--work DIR] [--epochs 40] [--seeds 3] [--json FILE]

A teacher (64-128-64-10) learns the digits of tools/data/prepare_digits.py from their labels.  Then a fresh
student (64-32-16-10) learns nothing but one loss over the last hidden layers of both, the labels unseen (but
by crd, which draws negatives by them), and a logistic regression reads its last hidden layer: fitted to the
training set, scored on the held-out one.  Printed beside the same student untrained (random features), trained
on labels, and the teacher.  The smallest gain comes first.  Needs numpy, safetensors and scikit-learn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file

TEACHER, STUDENT = [128, 64], [32, 16]

LINEAR = {"projector": "linear"}
LOSSES = {
    "hidden_mse": {"hidden_mse": LINEAR},
    "normalised_mse": {"normalised_mse": LINEAR},
    "cosine": {"cosine": LINEAR},
    "hint": {"hint": {"projector": "mlp"}},
    "rkd_distance": {"rkd_distance": {}},
    "rkd_angle": {"rkd_angle": {}},
    "rkd_distance + 2 rkd_angle": {"rkd_distance": {}, "rkd_angle": {"weight": 2}},
    "pkt": {"pkt": {}},
    "sp": {"sp": {}},
    "cc": {"cc": {"projector": {"type": "linear", "normalise": "after"}}},
    "vid": {"vid": LINEAR},
    "crd": {"crd": {"dimension": 64, "negatives": 1024}},  # whose negatives are of other classes
}
LABELS = {"ce": {"weight": 1}}


def config(path, hidden):
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "config.json"), "w") as file:
        json.dump({"architectures": ["MLPForClassification"], "model_type": "mlp", "input_size": 64,
                   "hidden_sizes": hidden, "num_labels": 10, "hidden_act": "relu"}, file)
    return os.path.join(path, "config.json")


def run(kd, *arguments):
    done = subprocess.run([kd, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"kd {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stderr


def train(args, out, student, loss, teacher=None):
    with open(out + ".yaml", "w") as file:  # JSON is YAML
        json.dump({**({"teacher": {"model": teacher}} if teacher else {}), "student": {"model": student},
                   "data": {"train": f"{args.data}/train.safetensors"}, "loss": loss,
                   "optim": {"lr": 3e-3, "schedule": "cosine", "weight_decay": 0},
                   "batch": {"samples": 128, "micro": "128"},
                   "run": {"epochs": args.epochs, "out": out, "device": "cpu", "tensorboard": False,
                           "checkpoint": {"every": "never"}}}, file)
    run(args.kd, "train", out + ".yaml")
    return out


def features(model, inputs):
    """The last hidden layer: layers.<i>.weight and bias, with ReLU after each."""
    weights = load_file(os.path.join(model, "model.safetensors"))
    layer = 0
    while f"layers.{layer}.weight" in weights:
        inputs = np.maximum(inputs @ weights[f"layers.{layer}.weight"].astype(np.float64).T
                            + weights[f"layers.{layer}.bias"], 0)
        layer += 1
    return inputs


def probe(args, model):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    sets = [load_file(os.path.join(args.data, f"{name}.safetensors")) for name in ("train", "valid")]
    x, y = (features(model, s["inputs"].astype(np.float64)) for s in sets)
    scale = StandardScaler().fit(x)
    fit = LogisticRegression(max_iter=2000).fit(scale.transform(x), sets[0]["labels"])
    return 100 * fit.score(scale.transform(y), sets[1]["labels"])


def measure(args, work):
    rows = {name: [] for name in ("untrained", *LOSSES, "labels", "teacher")}
    for seed in range(args.seeds):
        def path(name):
            return os.path.join(work, f"{seed}-{name.replace(' ', '_')}")

        for name, hidden in (("t", TEACHER), ("s", STUDENT)):
            run(args.kd, "init", "--config", config(path(name + "-config"), hidden), "--out", path(name),
                "--seed", str(seed + 1))
        teacher = train(args, path("teacher"), path("t"), LABELS)
        rows["teacher"].append(probe(args, teacher))
        rows["untrained"].append(probe(args, path("s")))
        rows["labels"].append(probe(args, train(args, path("labels"), path("s"), LABELS)))
        for name in LOSSES:
            rows[name].append(probe(args, train(args, path(name), path("s"), LOSSES[name], teacher)))
            print(f"seed {seed}: {name}", file=sys.stderr)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kd", default="build/kd")
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--work", metavar="DIR")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(args, args.work or temporary)
    print(f"{'':26} probe, %   (mean and range of {args.seeds} seeds, {args.epochs} epochs)")
    order = sorted(LOSSES, key=lambda name: statistics.mean(rows[name]))
    for name in ("untrained", *order, "labels", "teacher"):
        values = rows[name]
        print(f"{name:26} {statistics.mean(values):5.1f}   {min(values):.1f} to {max(values):.1f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
