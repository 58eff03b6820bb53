#!/usr/bin/env python3
"""Writes what the tests of src/format are held against:

  safetensors/kd_types.safetensors    one tensor of each type kd has, written by PyPI safetensors
  safetensors/all_types.safetensors   types that kd only knows the size of, beside two that it has
  safetensors/rope.safetensors        inverse frequencies of each configs/*.json, from transformers
  configs/*.transformers5.json        two of the configurations as transformers 5 saves them

and prints the number of parameters that transformers counts for each configuration.

    python tests/golden/make_safetensors.py        (PyPI torch 2.13, transformers 5.23, safetensors 0.8)
"""
import glob
import json
import os

import torch
import transformers
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))


def pattern(seed, dtype, shape):
    """Byte j of tensor `seed` is (37 j + 11 seed) mod 251: the C test computes the same."""
    count = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    data = bytearray((37 * j + 11 * seed) % 251 for j in range(count))
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def write_types():
    folder = os.path.join(HERE, "safetensors")
    types = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2,
             torch.int64, torch.int32, torch.uint32, torch.uint16, torch.uint8, torch.int8]
    tensors = {"t%d" % i: pattern(i, t, (3, i + 1)) for i, t in enumerate(types)}
    tensors["blocks.0.\u00fc \"quoted\""] = pattern(11, torch.float32, (1, 2, 3, 1))
    tensors["scalar"] = pattern(12, torch.float32, ())
    tensors["empty"] = pattern(13, torch.float32, (0, 4))
    save_file(tensors, os.path.join(folder, "kd_types.safetensors"), metadata={"format": "pt"})
    others = [torch.bool, torch.int16, torch.float64, torch.complex64, torch.uint64, torch.float32,
              torch.int8]
    tensors = {"t%d" % i: pattern(i, t, (5,)) for i, t in enumerate(others) if t != torch.bool}
    tensors["t0"] = torch.tensor([True, False, True, True, False])
    save_file(tensors, os.path.join(folder, "all_types.safetensors"))


def config_of(path):
    with open(path) as file:
        fields = json.load(file)
    return transformers.AutoConfig.for_model(**fields)


def write_configs():
    rope = {}
    for path in sorted(glob.glob(os.path.join(HERE, "configs", "*.json"))):
        name = os.path.basename(path)[: -len(".json")]
        config = config_of(path)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        print("%-28s %14d" % (name, sum(p.numel() for p in model.parameters())))
        if name.endswith(".transformers5"):
            continue
        if name in ("Llama-3.2-1B", "Qwen2.5-0.5B"):
            config.to_json_file(os.path.join(HERE, "configs", name + ".transformers5.json"), use_diff=True)
        if config.model_type != "gpt2":
            rope[name] = type(model.model.rotary_emb)(config).inv_freq
    save_file(rope, os.path.join(HERE, "safetensors", "rope.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    write_types()
    write_configs()
