#!/usr/bin/env python3
"""Reads trainer_state.json as transformers does.

    python3 tests/report/check_state.py build/kd

Exit status 0: it says what the run did; 77: skipped, because transformers is not installed.
"""
import sys
import tempfile

import tiny_run


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        from transformers import TrainerState
    except ImportError as missing:
        print(f"skipped: {missing}")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        tiny_run.prepare(sys.argv[1], folder)
        tiny_run.kd(sys.argv[1], folder, "train", "run.yaml")
        steps = tiny_run.STEPS
        state = TrainerState.load_from_json(f"{folder}/out/checkpoint-{steps:06}/trainer_state.json")
        assert (state.global_step, state.max_steps) == (steps, steps)
        assert state.num_input_tokens_seen == steps * 8 * 32
        assert abs(state.epoch - state.num_input_tokens_seen / 3000) < 1e-9
        train = {r["step"]: r for r in state.log_history if "loss" in r}
        valid = {r["step"]: r for r in state.log_history if "eval_loss" in r}
        assert list(train) == [*range(1, steps, 4), steps], list(train)
        assert list(valid) == list(range(5, steps + 1, 5)), list(valid)
        for record in tiny_run.records(folder):
            if record.get("split"):
                pairs = [("nll", valid[record["step"]]["eval_loss"])]
            elif record["step"] + 1 in train:
                found = train[record["step"] + 1]
                pairs = [("loss", found["loss"]), ("gradient_norm", found["grad_norm"]),
                         ("lr", found["learning_rate"])]
            else:
                continue
            for key, value in pairs:
                assert abs(record[key] - value) <= 1e-8 * abs(value), f"{record}: {key} {value}"
        print(f"{len(state.log_history)} records of {steps} steps")


if __name__ == "__main__":
    main()
