#!/usr/bin/env python3
"""make_seeds.py DIR - one well-formed input of each kind per target, from which corpora grew.

    tests/fuzz/make_seeds.py build-fuzz/corpus && tests/fuzz/run.sh safetensors 100000

Several files in one input: each but the last has its length (u32, little-endian) before it.
"""

import glob
import json
import os
import re
import struct
import sys

import xxhash

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")

RUN = """teacher: {model: t, dtype: bf16}
student:
  model: "1.50"
  recompute: blocks
data:
  train:
    - a.safetensors
    - {file: b.jsonl, weight: 0.5}
  valid: v.bin
  sequence: 32
  pack: none
loss: {ce: {weight: 0.1}, kl: {weight: {from: 0, to: 0.9, steps: 10}, temperature: 2}}
optim: {lr: 3e-3, warmup: 10 steps, schedule: wsd, decay: 20 %}
batch: {samples: 8, micro: 4}
run:
  steps: 12
  out: out
  checkpoint: {every: 500 steps, keep_best: valid.kl}
eval: {every: 30 min, metrics: [kl, ppl]}
dist: {timeout: 20}
"""


def tensors(entries, metadata=None):
    """entries: (name, dtype, shape, data)"""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, piece in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def framed(*parts):
    return b"".join(struct.pack("<I", len(p)) + p for p in parts[:-1]) + parts[-1]


def files(pattern):
    for path in sorted(glob.glob(os.path.join(GOLDEN, pattern))):
        with open(path, "rb") as f:
            yield f.read()


def safetensors():
    yield tensors([])
    yield tensors([("a", "F32", [2, 3], bytes(24)), ("b", "BF16", [], b"\x80\x3f"), ("c", "I64", [0], b"")], {"k": "v"})
    yield tensors([("a", "F4", [2], b"\x12"), ("b", "F16", [2, 1], b"\x00\x7c\x00\x3c"), ("c", "U8", [3], b"abc")])
    yield from files("safetensors/*.safetensors")


def index():
    a = tensors([("x", "F32", [2], bytes(8)), ("y", "U8", [1], b"y")])
    b = tensors([("z", "BF16", [2], bytes(4))])
    weights = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    yield framed(json.dumps({"metadata": {"total_size": 13}, "weight_map": weights}).encode(), a, b)
    yield framed(b'{"weight_map": {"z": "b.safetensors"}}', b"", b)


def config():
    generation = b'{"eos_token_id": [1, 2], "bos_token_id": 0}'
    for text in [*files("configs/*.json"), *files("models/*/config.json"), *files("mlp/*/config.json")]:
        yield framed(text, b"")
        yield framed(text, generation)


def yaml():
    yield RUN.encode()
    yield b"student: {model: s}\ndata: {train: a}\noptim: {lr: 1}\nrun: {out: o}\nloss: {alpha: 0.5}\nteacher: {model: t}\n"
    yield (
        b"students: [{model: a}, {model: b}]\nloss: {kl: {}}\ndata: {train: a}\noptim: {type: sgd, lr: 1}\n"
        b"batch: {tokens: 1024}\nrun: {epochs: 2, out: 'o'}\n"
    )
    yield b"student: {model: s}\nteacher: {model: t}\nloss: {kl: {}, top_k: {k: 4, others: restricted}}\ndata: {train: a}\n"


def data():
    ids = struct.pack("<6H", 0, 1, 2, 3, 4, 8)
    borders = struct.pack("<3q", 0, 2, 6)
    both = [("tokens", "U16", [6], ids), ("documents", "I64", [3], borders)]
    yield b"\x00" + tensors([*both, ("loss_mask", "U8", [6], b"\1\0\1\1\1\0")])
    yield b"\x04" + tensors(both, {"tokenizer": "x"})
    yield b"\x00" + tensors([("tokens", "I32", [2], struct.pack("<2i", 1, 2))])
    for flags, magic, version, form in ((1, 20240520, 1, "H"), (5, 20240520, 1, "H"), (13, 20240801, 7, "I")):
        header = struct.pack("<3i", magic, version, 4) + bytes(1024 - 12)
        yield bytes([flags]) + header + struct.pack("<4" + form, 8, 1, 8, 2)
    for code, form in ((8, "H"), (4, "i"), (1, "B"), (5, "q")):
        size = struct.calcsize("<" + form)
        idx = b"MMIDIDX\0\0" + struct.pack("<QBQQ2i2q3q", 1, code, 2, 3, 2, 3, 0, 2 * size, 0, 1, 2)
        yield b"\x02" + framed(idx, struct.pack("<5" + form, 1, 2, 3, 4, 5))
    yield b'\x0b{"text": "abc ab"}\n\n{"text": "cab\\n d", "id": 1}\n'
    yield b'\x0b{"messages": []}\n'
    for code, pixels in (("F32", struct.pack("<6f", 0, 0.5, 1, -1, 2, 3)), ("U8", bytes([0, 1, 2, 3, 4, 255]))):
        labels = struct.pack("<2q", 4, 0) if code == "F32" else b"\1\2"
        yield b"\x10" + tensors([("inputs", code, [2, 3], pixels), ("labels", "I64" if code == "F32" else "U8", [2], labels)])


def manifest():
    weights = tensors([("w", "BF16", [2], bytes(4)), ("x", "F32", [1], bytes(4))])
    begin = len(weights) - 8
    state = {
        "format": 1, "kd": "0.1.0", "step": 3, "tokens": 96,
        "cursor": {"samples": 24, "source_samples": [24] + [0] * 15},
        "best_step": -1, "best": "inf", "seconds": 1.5, "contract": "cpu; 2; 1",
        "students": [{
            "label": "student", "architecture": "LlamaForCausalLM", "dtype": "bf16", "moments": 2, "elements": 128,
            "parameters": [{"name": "embedding.weight", "shape": [5, 4], "offset": 0},
                           {"name": "norm.weight", "shape": [4], "offset": 64}],
        }],
    }  # fmt: skip
    contents = {
        "config.json": b"{}", "engine/optimizer.safetensors": b"", "engine/state.json": json.dumps(state).encode(),
        "model.safetensors": weights, "trainer_state.json": b"",
    }  # fmt: skip

    def entry(content):
        return {"bytes": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}

    listed = {name: entry(content) for name, content in contents.items()}
    listed["model.safetensors"]["tensors"] = {
        name: {"begin": at, "end": at + 4, "xxh3": xxhash.xxh3_128_hexdigest(bytes(4))}
        for name, at in (("w", begin), ("x", begin + 4))
    }
    text = json.dumps({"files": listed}).encode()
    rest = (contents["engine/state.json"], weights, contents["config.json"])
    yield framed(text, *rest)
    yield framed(text.replace(b'"xxh3": "', b'"xxh3": "0', 1), *rest)
    yield framed(text, rest[0], weights[:-1] + b"\1", rest[2])


def tokenizer():
    vocabulary = {c: i for i, c in enumerate("abcdefgh\u0120\u010a")} | {"ab": 10, "abc": 11, "\u0120a": 12}
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["a b", "ab c", ["\u0120", "a"]], "ignore_merges": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    added = [{"id": 13, "content": "<e>", "special": True, "normalized": False},
             {"id": 14, "content": "gh", "special": False, "normalized": True}]  # fmt: skip
    post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<e>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {"<e>": {"id": "<e>", "ids": [13], "tokens": ["<e>"]}}}  # fmt: skip
    pre = {"type": "Sequence", "pretokenizers": [split | {"pattern": {"Regex": pattern}}, level]}
    for pre_tokenizer in (level | {"use_regex": True}, pre):
        for normalizer in (None, {"type": "NFC"}):
            whole = {
                "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
                "pre_tokenizer": pre_tokenizer, "post_processor": post, "decoder": level, "model": model,
            }  # fmt: skip
            yield framed(b"abc abe<e> gh\n\nface", json.dumps(whole).encode())
    yield framed(b"", next(files("tokenizer/unigram/tokenizer.json")))


def names_in(header, macro):
    with open(os.path.join(GOLDEN, "..", "..", "src", header), encoding="utf-8") as file:
        return re.findall(rf"^{macro}\((\w+)", file.read(), re.MULTILINE)


def without_answers(content):
    """A golden file without what the loss gives."""
    length = struct.unpack("<Q", content[:8])[0]
    entries = []
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__" and name != "loss" and not name.startswith("d_"):
            begin, end = entry["data_offsets"]
            entries.append((name, entry["dtype"], entry["shape"], content[8 + length + begin : 8 + length + end]))
    return tensors(entries)


def loss():
    rows, features = names_in("ops/row_list.h", "KD_ROW"), names_in("loss/loss_list.h", "KD_FEATURE")
    z = struct.pack("<10f", *range(10))
    both = [("student", "F32", [2, 5], z), ("teacher", "BF16", [2, 5], bytes(range(20)))]
    more = [("labels", "I64", [2], struct.pack("<2q", 3, -100)), ("weight", "F32", [2], struct.pack("<2f", 1, 0.5))]
    topk = [both[0], ("teacher_ids", "I32", [2, 2], struct.pack("<4i", 0, 1, 2, 4)),
            ("teacher_logprobs", "F32", [2, 2], struct.pack("<4f", -1, -2, -1, -3))]  # fmt: skip
    for number in range(len(rows)):
        yield framed(bytes([number]), tensors(both + more))
        yield framed(bytes([number, 0, 2, 0, 1, 4]), tensors(both + more))
        yield framed(bytes([number, 0, 1, number % 3]), tensors(topk + more))
    kinds = ["none", "linear", "mlp", "conv1x1", "conv"]
    for path in sorted(glob.glob(os.path.join(GOLDEN, "losses/*.safetensors"))):
        name = os.path.basename(path).split(".")[0]
        projector = next((k for k in reversed(kinds) if f"projector_{k}" in path), "none")
        with open(path, "rb") as file:
            content = without_answers(file.read())
        if name in features and len(content) < 4000:
            yield framed(bytes([len(rows) + features.index(name), kinds.index(projector)]), content)


def main():
    for make in (safetensors, index, config, yaml, data, manifest, tokenizer, loss):
        folder = os.path.join(sys.argv[1], make.__name__)
        os.makedirs(folder, exist_ok=True)
        for i, content in enumerate(make()):
            with open(os.path.join(folder, f"seed{i:02}"), "wb") as f:
                f.write(content)


main()
