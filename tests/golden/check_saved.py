#!/usr/bin/env python3
"""Opens what kd wrote as any user of transformers would, and computes with it.

    python3 tests/golden/check_saved.py build/tests/test_model

Runs the test program, which writes a directory of every architecture with kd's logits and greedy
continuations (kd.safetensors).  AutoModelForCausalLM.from_pretrained must load each without a missing
or unexpected tensor, give logits within 1e-3 and generate() the same tokens.
Exit status 0: all do; 77: skipped, because torch or transformers is not installed.
"""
import os
import subprocess
import sys
import tempfile

TOLERANCE = 1e-3


def check(torch, transformers, load_file, folder):
    """A line of what was found; raises AssertionError where kd and transformers differ."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True)
    model.eval()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind}: {sorted(info[kind])}"
    kd = load_file(os.path.join(folder, "kd.safetensors"))
    borders = kd["documents"].tolist()
    documents = [kd["tokens"][a:b].long() for a, b in zip(borders, borders[1:])]
    with torch.no_grad():
        logits = torch.cat([model(d[None]).logits[0] for d in documents])
    off = (logits - kd["logits"]).abs().max().item()
    assert off <= TOLERANCE, f"logits differ by {off:.2e}"
    for d, want in zip(documents, kd["greedy"].tolist()):
        got = model.generate(d[None], attention_mask=torch.ones_like(d[None]), do_sample=False,
                             max_new_tokens=len(want), pad_token_id=0)[0, len(d):].tolist()
        assert got == want, f"generate() gives {got}, kd {want}"
    return f"logits within {off:.1e}, {len(documents)} continuations equal"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        import torch
        import transformers
        from safetensors.torch import load_file
    except ImportError as missing:
        print(f"skipped: {missing}")
        sys.exit(77)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], "--filter", "golden/saved_models_for_transformers"],
                       env={**os.environ, "KD_WRITE_SAVED": folder}, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        names = sorted(os.listdir(folder))
        if not names:
            sys.exit(f"{sys.argv[1]} wrote nothing")
        for name in names:
            try:
                print(f"{name:13s} {check(torch, transformers, load_file, os.path.join(folder, name))}")
            except AssertionError as difference:
                print(f"{name:13s} FAILED: {difference}")
                failures += 1
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
