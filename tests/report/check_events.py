#!/usr/bin/env python3
"""Reads a run's event files with the tensorboard package, as TensorBoard would show them.

    python3 tests/report/check_events.py build/kd

A tiny run is killed twice, its last event and its last line of metrics.jsonl are cut in half, and it
goes on to its end.  Then every number of metrics.jsonl must be a scalar of the same step, none may be
left over, and no step may come twice or out of order.
Exit status 0: all that holds; 77: skipped, because tensorboard is not installed.
"""
import glob
import math
import os
import subprocess
import sys
import tempfile
import time

import tiny_run

KILL_AFTER = (14, 33)  # lines of metrics.jsonl


def wait_for_lines(path, count, process):
    while process.poll() is None:
        if os.path.exists(path):
            with open(path, "rb") as file:
                if file.read().count(b"\n") >= count:
                    return
        time.sleep(0.001)
    raise SystemExit(f"the run ended before {path} had {count} lines")


def cut(path, bytes_off):
    os.truncate(path, os.path.getsize(path) - bytes_off)


def killed_run(program, folder):
    for count in KILL_AFTER:
        with subprocess.Popen([os.path.abspath(program), "train", "run.yaml"], cwd=folder,
                              stderr=subprocess.DEVNULL) as process:
            wait_for_lines(f"{folder}/out/metrics.jsonl", count, process)
            process.kill()
        cut(f"{folder}/out/metrics.jsonl", 9)
        cut(sorted(glob.glob(f"{folder}/out/tensorboard/*"))[-1], 9)
    tiny_run.kd(program, folder, "train", "run.yaml")


def wanted(folder):
    """{tag: [(step, value)]} of metrics.jsonl."""
    scalars = {}
    for record in tiny_run.records(folder):
        split = record.get("split", "train")
        for key, value in record.items():
            if key not in ("step", "split", "model") and value is not None:
                scalars.setdefault(f"{split}/{key}", []).append((record["step"], value))
    return scalars


def compare(want, got):
    assert sorted(want) == sorted(got), f"tags: {sorted(got)}, expected {sorted(want)}"
    for tag, points in want.items():
        steps = [step for step, _ in got[tag]]
        assert steps == [step for step, _ in points], f"{tag}: steps {steps}"
        for (step, a), (_, b) in zip(points, got[tag]):
            assert math.isclose(a, b, rel_tol=1.2e-7), f"{tag}, step {step}: {b}, expected {a}"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as missing:
        print(f"skipped: {missing}")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        tiny_run.prepare(sys.argv[1], folder)
        killed_run(sys.argv[1], folder)
        files = os.listdir(f"{folder}/out/tensorboard")
        assert len(files) == len(KILL_AFTER) + 1, f"files: {files}"
        events = EventAccumulator(f"{folder}/out/tensorboard", size_guidance={"scalars": 0})
        events.Reload()
        got = {tag: [(e.step, e.value) for e in events.Scalars(tag)]
               for tag in events.Tags()["scalars"]}
        want = wanted(folder)
        assert [step for step, _ in want["train/loss"]] == list(range(tiny_run.STEPS))
        assert [step for step, _ in want["valid/kl"]] == list(range(5, tiny_run.STEPS + 1, 5))
        compare(want, got)
        print(f"{len(got)} tags, {sum(map(len, got.values()))} scalars from {len(files)} files are "
              "those of metrics.jsonl")


if __name__ == "__main__":
    main()
