#!/usr/bin/env python3
"""Holds kd against transformers on a real model directory and real text.

    python3 tests/golden/check_model.py --kd build/kd --model DIR --data valid.safetensors

The first --tokens tokens of the data are one document: f32 logits must agree within 1e-3 at every
position, and generate() must continue the first 32 of them as `kd generate` does.  Exit status 77:
skipped, because torch or transformers is not installed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

TOLERANCE = 1e-3
PROMPT, CONTINUED = 32, 24


def compare_logits(options, model, tokens, torch, save_file, load_file):
    with tempfile.TemporaryDirectory() as folder:
        source, result = os.path.join(folder, "tokens"), os.path.join(folder, "logits")
        save_file({"tokens": tokens.to(torch.int32)}, source)
        subprocess.run([options.kd, "logits", "--model", options.model, "--tokens", source, "--out",
                        result], check=True)
        ours = load_file(result)["logits"]
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0]
    return (ours - theirs).abs().max().item(), theirs.abs().max().item()


def continue_prompt(options, model, prompt, torch):
    ids = ",".join(str(i) for i in prompt.tolist())
    out = subprocess.run([options.kd, "generate", "--model", options.model, "--ids", ids, "--tokens",
                          str(CONTINUED), "--json"], check=True, stdout=subprocess.PIPE).stdout
    ours = json.loads(out)["ids"]
    theirs = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]),
                            do_sample=False, max_new_tokens=CONTINUED, pad_token_id=0)
    return ours, theirs[0, len(prompt):].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kd", default="build/kd")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokens", type=int, default=768)
    options = parser.parse_args()
    try:
        import torch
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForCausalLM
    except ImportError as missing:
        print(f"skipped: {missing}")
        sys.exit(77)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokens = load_file(options.data)["tokens"][:options.tokens].to(torch.int64)
    off, size = compare_logits(options, model, tokens, torch, save_file, load_file)
    ours, theirs = continue_prompt(options, model, tokens[:PROMPT], torch)
    same = ours == theirs[:len(ours)] and len(ours) > 0
    print(f"{options.model}: logits of {len(tokens)} tokens differ by at most {off:.1e} (largest "
          f"logit {size:.1f}); greedy continuation of {len(ours)} tokens "
          f"{'equal' if same else 'DIFFERENT'}")
    sys.exit(0 if off <= TOLERANCE and same else 1)


if __name__ == "__main__":
    main()
