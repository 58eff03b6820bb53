"""A run of a tiny student, with evaluations and checkpoints, for the checks of what a run leaves.

Python's standard library only; the teacher is one of tests/golden/models.
"""
import array
import json
import os
import random
import struct
import subprocess

TEACHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../golden/models/qwen2")
STEPS = 60
RUN = """
teacher: {model: TEACHER}
student: {model: student}
data: {train: train.safetensors, valid: valid.safetensors, sequence: 32}
loss: {ce: {weight: 0.1}, kl: {weight: 0.9, temperature: 2}}
optim: {lr: 3e-3, warmup: 4 steps}
batch: {samples: 8}
run: {steps: STEPS, out: out, log_every: 4, checkpoint: {every: 10 steps}}
eval: {every: 5 steps}
"""


def write_tokens(path, seed, count=3000, documents=12, classes=101):
    """A token is mostly the one before it plus 1, so that there is something to learn."""
    draw = random.Random(seed)
    tokens = array.array("H", [1])
    while len(tokens) < count:
        tokens.append((tokens[-1] + 1 + draw.randrange(3)) % classes)
    borders = array.array("q", [d * count // documents for d in range(documents + 1)])
    body = borders.tobytes() + tokens.tobytes()
    split = len(borders) * 8
    header = json.dumps({
        "documents": {"dtype": "I64", "shape": [len(borders)], "data_offsets": [0, split]},
        "tokens": {"dtype": "U16", "shape": [count], "data_offsets": [split, len(body)]},
    }).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + body)


def kd(program, folder, *arguments, **options):
    """Runs the command in `folder`; its failure ends the check with what it said."""
    done = subprocess.run([os.path.abspath(program), *arguments], cwd=folder, text=True, check=False,
                          capture_output=True, **options)
    if done.returncode:
        raise SystemExit(f"kd {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def prepare(program, folder):
    write_tokens(os.path.join(folder, "train.safetensors"), 1)
    write_tokens(os.path.join(folder, "valid.safetensors"), 2)
    with open(os.path.join(folder, "run.yaml"), "w", encoding="utf-8") as file:
        file.write(RUN.replace("TEACHER", json.dumps(TEACHER)).replace("STEPS", str(STEPS)))
    kd(program, folder, "init", "--teacher", TEACHER, "--layers", "1", "--out", "student")


def records(folder):
    """metrics.jsonl; every line must be one whole record."""
    with open(os.path.join(folder, "out/metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]
