#!/usr/bin/env python3
"""Writes models/<case>: a tiny random model of each architecture as transformers saves it, and what
transformers computes with it.

    python3 tests/golden/make_models.py tests/golden/models

golden.safetensors of each case:
  tokens i32 [n], documents i64 [3]   two documents, laid out as a data set
  logits f32 [n, V]                   of each document by itself, eager attention, float32
  greedy i32 [2, 12]                  the continuation of each document by the most probable token

Weights are drawn wide (matrices 0.25, embeddings and biases 0.3, norms 1 + 0.2 N) so that a wrong
head, rotation, window or bias moves the logits by whole units.  A continuation is accepted only
when every choice leads the next best token by MARGIN, so that rounding cannot change it, and none
ends the text.
"""
import os
import sys

import torch
import transformers
from safetensors.torch import save_file

VOCABULARY, LENGTHS, NEW, MARGIN = 101, (13, 8), 12, 0.02

COMMON = dict(vocab_size=VOCABULARY, hidden_size=36, intermediate_size=52, num_hidden_layers=2,
              num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=128,
              rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=None)

CASES = {
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=48, n_embd=40, n_layer=2, n_head=5, bos_token_id=0,
        eos_token_id=0),
    "llama_tied": transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    # Frequencies above, between and below the two bounds: wavelengths 6, 29, 135, ...
    "llama_llama3": transformers.LlamaConfig(
        **{**COMMON, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 3},
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}),
    # The window is shorter than both documents.
    "mistral": transformers.MistralConfig(**COMMON, sliding_window=5, tie_word_embeddings=False),
    "qwen2": transformers.Qwen2Config(**COMMON, tie_word_embeddings=True),
    # Heads wider than hidden_size / heads.
    "qwen3": transformers.Qwen3Config(**COMMON, head_dim=10, tie_word_embeddings=True),
}


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        draw = torch.randn(weight.shape, generator=generator)
        if "norm" in name or ".ln_" in name:
            draw = 0.2 * draw + (0.0 if name.endswith("bias") else 1.0)
        else:
            matrix = weight.dim() == 2 and "embed" not in name and ".wte" not in name
            draw *= 0.25 if matrix else 0.3
        weight.data.copy_(draw)


@torch.no_grad()
def continuation(model, document):
    """The next tokens, or None where a choice is close or ends the text.  Without a cache, so that
    only the forward pass counts."""
    ids = document
    for _ in range(NEW):
        logits = model(ids[None], use_cache=False).logits[0, -1]
        best = logits.topk(2).values
        token = logits.argmax()
        if best[0] - best[1] < MARGIN or token == model.config.eos_token_id:
            return None
        ids = torch.cat([ids, token[None]])
    return ids[len(document):]


def write(out, name, config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.eval()
    for seed in range(100):
        randomise(model, seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        documents = [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in LENGTHS]
        greedy = [continuation(model, document) for document in documents]
        if all(tokens is not None for tokens in greedy):
            break
    else:
        sys.exit(f"{name}: no seed gives a clear continuation")
    with torch.no_grad():
        logits = torch.cat([model(d[None], use_cache=False).logits[0] for d in documents])
        wide = torch.cat([model.double()(d[None], use_cache=False).logits[0] for d in documents])
        model.float()
    folder = os.path.join(out, name)
    model.save_pretrained(folder)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)  # says nothing that config.json does not
    save_file({"tokens": torch.cat(documents).to(torch.int32),
               "documents": torch.tensor([0, LENGTHS[0], sum(LENGTHS)]),
               "logits": logits, "greedy": torch.stack(greedy).to(torch.int32)},
              os.path.join(folder, "golden.safetensors"),
              {"made_by": f"make_models.py, torch {torch.__version__}, "
                          f"transformers {transformers.__version__}, seed {seed}"})
    size = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
    print(f"{name:13s} seed {seed:2d}  logits +-{logits.std():.2f}, against mostly-float64 "
          f"{(logits - wide).abs().max():.1e}; {size:,} bytes")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    for name, config in CASES.items():
        write(sys.argv[1], name, config)


if __name__ == "__main__":
    main()
