"""What kd trains on, from Python: lines of JSON in, a safetensors file of tokens out."""

import json

import numpy as np

from gguf_to_hf import Refused


def records(path):
    """(where, key, value, record) of each line of a .jsonl file: key is text or messages."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode(), object_pairs_hook=unique)
            except ValueError as error:
                raise Refused(f"{where}: {error}") from error
            keys = [k for k in ("text", "messages") if isinstance(record, dict) and k in record]
            if len(keys) != 1:
                raise Refused(f"{where}: found {keys or 'neither'}, "
                              "expected one of text and messages")
            value = record[keys[0]]
            if keys == ["text"] and not isinstance(value, str):
                raise Refused(f"{where}: text: found {type(value).__name__}, expected a string")
            yield where, keys[0], value, record


def unique(pairs):
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("found a key twice in one object")
    return keys


def tensors(documents, size):
    """The tensors of [(ids, mask or None)], for a tokenizer of `size` ids."""
    dtype = np.uint16 if size <= 1 << 16 else np.uint32
    made = {
        "tokens": np.concatenate([np.asarray(ids, dtype=dtype) for ids, _ in documents]),
        "documents": np.cumsum([0, *(len(ids) for ids, _ in documents)], dtype=np.int64),
    }
    if any(mask is not None for _, mask in documents):
        made["loss_mask"] = np.concatenate(
            [np.ones(len(ids), np.uint8) if mask is None else np.asarray(mask, dtype=np.uint8)
             for ids, mask in documents])
    return made


def save(path, arrays, metadata):
    """A safetensors file.  The library's own writer orders the metadata differently in every
    process; here the same input must give the same bytes."""
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    kinds = {"uint8": "U8", "uint16": "U16", "uint32": "U32", "int64": "I64"}
    header, at = {"__metadata__": metadata}, 0
    for name in names:
        values = arrays[name]
        header[name] = {"dtype": kinds[values.dtype.name], "shape": list(values.shape),
                        "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = arrays[name]
            file.write(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
