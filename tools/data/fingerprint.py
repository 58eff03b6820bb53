#!/usr/bin/env python3
"""Fingerprint of a tokenizer: the same number that kd computes (src/format/tokenizer.c, where the
canonical text is defined), so that a data set can say which tokenizer made it.

    python tools/data/fingerprint.py MODEL_DIR_OR_TOKENIZER_JSON

As a module: fingerprint(path) -> (32 hexadecimal digits, largest id + 1).  Needs PyPI xxhash.
"""
import json
import os
import re
import sys

import xxhash

ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def to_json(value):
    """Compact JSON, keys sorted by their UTF-8 bytes, non-ASCII raw, reals as jansson prints them."""
    if isinstance(value, str):
        escape = lambda m: ESCAPES.get(m[0]) or "\\u%04X" % ord(m[0])
        return '"%s"' % re.sub(r'["\\\x00-\x1f]', escape, value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = re.sub(r"e\+?(-?)0*", r"e\1", "%.17g" % value)
        return text if re.search("[.e]", text) else text + ".0"
    if isinstance(value, list):
        return "[%s]" % ",".join(map(to_json, value))
    pairs = sorted(value.items(), key=lambda item: item[0].encode())
    return "{%s}" % ",".join("%s:%s" % (to_json(k), to_json(v)) for k, v in pairs)


def canonical_text(tokenizer):
    """The text of a parsed tokenizer.json, and its largest id + 1."""
    model = tokenizer["model"]
    vocab, added = model["vocab"], tokenizer.get("added_tokens") or []
    if isinstance(vocab, dict):
        tokens = sorted((i, token) for token, i in vocab.items())
        lines = ["%d\t%s" % pair for pair in tokens]
    else:
        tokens = [(i, token) for i, (token, _) in enumerate(vocab)]
        lines = ["%d\t%s\t%s" % (i, t, to_json(float(score))) for i, (t, score) in enumerate(vocab)]
    for merge in model.get("merges") or []:
        lines.append(merge if isinstance(merge, str) else " ".join(merge))
    lines.append(to_json(tokenizer.get("normalizer")))
    lines.append(to_json(tokenizer.get("pre_tokenizer")))
    specials = sorted((t["id"], t["content"], int(t.get("special") is True)) for t in added)
    lines += ["%d\t%s\t%d" % special for special in specials]
    size = 1 + max([i for i, _ in tokens] + [i for i, _, _ in specials], default=-1)
    return "".join(line + "\n" for line in lines), size


def fingerprint(path):
    if os.path.isdir(path):
        path = os.path.join(path, "tokenizer.json")
    with open(path, encoding="utf-8") as file:
        text, size = canonical_text(json.load(file))
    return xxhash.xxh3_128_hexdigest(text.encode()), size


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    print("%s  %d ids" % fingerprint(sys.argv[1]))
