#!/usr/bin/env python3
"""Makes token files that kd trains on: DIR/train.safetensors and DIR/valid.safetensors.

    prepare_text.py --tokenizer MODEL --out data/docs                        English out of Debian
    prepare_text.py --tokenizer MODEL --out data/docs --packages sqlite3-doc git-doc
    prepare_text.py --tokenizer MODEL --out data/mine --text book.txt chat.jsonl

A .txt or .md file is cut between paragraphs into documents; a line of a .jsonl file is one
document, {"text": ...} or {"messages": [{"role", "content"}, ...]}.  Of messages only the assistant's turns
count as targets (`loss_mask`); they go through the tokenizer's own chat template (needs PyPI transformers).

Each file holds `tokens` u16 or u32 [n], `documents` i64 [d + 1], and `loss_mask` u8 [n] where some
tokens do not count; the metadata has the tokenizer's fingerprint and the sources with licences.
Documents are held out by a hash of their tokens, the same share of every source, so the split does
not depend on order or on --max-tokens.  The same input gives the same bytes.
"""

import argparse
import json
import os
import re
import sys

import numpy as np
import xxhash
from tokenizers import Tokenizer

import chat
import debian
import prose
import token_file
from fingerprint import fingerprint
from gguf_to_hf import Refused
from publish import file_sha256, finished, publish, rules

SHORTEST, LONGEST = 200, 4000  # tokens of a document out of a package
# The same in characters, at 3 to 5 characters a token, so that few documents fall outside.
SHORT_TEXT, LONG_TEXT = 1000, 12000


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# ---- documents: (token ids, mask or None) -----------------------------------------------------


class Encoder:
    """Text to ids.  What looks like a special token in text is encoded as text."""

    def __init__(self, folder, start):
        path = os.path.join(folder, "tokenizer.json")
        if not os.path.isfile(path):
            raise Refused(f"{path}: found none, expected the teacher's tokenizer")
        self.folder, self.tokenizer = folder, Tokenizer.from_file(path)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.fingerprint, self.size = fingerprint(folder)
        self.start = self.find_start(start)
        self.chat = None

    def find_start(self, start):
        """The token that begins a document: as asked for, else what separated documents in
        pre-training, else the beginning-of-sequence token."""
        if start == "none":
            return None
        for name in [start] if start else ["<|endoftext|>", self.configured("bos_token")]:
            if name and self.tokenizer.token_to_id(name) is not None:
                return name
        if start:
            raise Refused(f"{self.folder}: --start {start}: found no such token")
        return None

    def configured(self, role):
        path = os.path.join(self.folder, "tokenizer_config.json")
        if not os.path.exists(path):
            return None
        with open(path, encoding="utf-8") as file:
            token = json.load(file).get(role)
        return token["content"] if isinstance(token, dict) else token

    def texts(self, texts):
        self.tokenizer.encode_special_tokens = True
        first = [] if self.start is None else [self.tokenizer.token_to_id(self.start)]
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [(np.array(first + one.ids, dtype=np.int64), None) for one in encoded]

    def messages(self, messages, where):
        if self.chat is None:
            self.chat = chat.Chat(self.folder)
        ids, mask = self.chat.encode(messages, where)
        return np.array(ids, dtype=np.int64), np.array(mask, dtype=np.uint8)


def from_package(package, cache, encoder, seen):
    facts, pages = debian.pages(package, cache)
    texts = []
    for page in pages:
        pieces = [[text for text in piece if seen.fresh(text)]
                  for piece in prose.sections(prose.html_blocks(page))]
        texts += prose.documents(pieces, SHORT_TEXT, LONG_TEXT)
    found = [one for one in encoder.texts(texts) if SHORTEST <= len(one[0]) <= LONGEST]
    return facts, found


def cut_text(text):
    """Pieces of at most about LONG_TEXT characters, cut at blank lines, nothing changed or lost."""
    piece = ""
    for part in re.split(r"(?<=\n)(?=[ \t]*\n)", text):
        if piece.strip() and len(piece) + len(part) > LONG_TEXT:
            yield piece
            piece = ""
        piece += part
    if piece.strip():
        yield piece


def read_utf8(path):
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: byte {error.start}: found {error.object[error.start]:#04x}, "
                      "expected UTF-8") from error


def from_jsonl(path, encoder):
    texts, found = [], []
    for where, key, value, _ in token_file.records(path):
        if key == "messages":
            found.append(encoder.messages(value, where))
        elif value.strip():
            texts.append(value)
    return found + encoder.texts(texts)


def from_file(path, encoder):
    facts = {"file": os.path.basename(path), "sha256": file_sha256(path),
             "licence": "the user's own"}
    if path.endswith(".jsonl"):
        return facts, from_jsonl(path, encoder)
    if path.endswith((".txt", ".md")):
        return facts, encoder.texts(list(cut_text(read_utf8(path))))
    raise Refused(f"{path}: expected .txt, .md or .jsonl")


# ---- splits -----------------------------------------------------------------------------------


def order(document):
    return xxhash.xxh3_128_hexdigest(document[0].tobytes())


def split(found, valid_share):
    """(train, valid) of one source: lowest hashes are held out.  Equal documents go together."""
    documents = {order(document): document for document in found}
    ordered = [documents[key] for key in sorted(documents)]
    target, taken, count = valid_share * sum(len(ids) for ids, _ in ordered), 0, 0
    while count < len(ordered) and taken + len(ordered[count][0]) / 2 <= target:
        taken += len(ordered[count][0])
        count += 1
    if valid_share > 0 and not 0 < count < len(ordered):
        raise Refused(f"found {len(ordered)} documents, "
                      f"too few to hold out {valid_share:g} of them")
    return ordered[count:], ordered[:count]


def limit(sources, most):
    """The same share of each source, so that all together have at most `most` tokens."""
    total = sum(len(ids) for source in sources for ids, _ in source)
    if not most or total <= most:
        return sources
    kept = []
    for source in sources:
        budget = most * sum(len(ids) for ids, _ in source) // total
        ends = np.cumsum([len(ids) for ids, _ in source])
        kept.append(source[:int(np.searchsorted(ends, budget, side="right"))])
    return kept


def write(path, documents, encoder, metadata):
    documents = sorted(documents, key=order)  # sources mixed, whatever their order was
    tensors = token_file.tensors(documents, encoder.size)
    token_file.save(path, tensors, metadata)
    say(f"  {os.path.basename(path)}: {len(tensors['tokens']):,} tokens, "
        f"{len(documents):,} documents")


def prepare(options):
    encoder = Encoder(options.tokenizer, options.start)
    recipe = {
        "tokenizer": encoder.fingerprint, "start": encoder.start,
        "packages": None if options.text else options.packages,
        "text": options.text and [[os.path.basename(p), file_sha256(p)] for p in options.text],
        "valid_share": options.valid_share, "max_tokens": options.max_tokens,
        "rules": rules("prepare_text.py", "prose.py", "chat.py", "token_file.py", "debian.py"),
    }
    done = finished(options.out, recipe)
    if done is True:
        say(f"{options.out}: already there, every file has its hash")
        return
    if done is not None:
        raise Refused(done)

    with publish(options.out, recipe) as staging:
        seen, facts, train, valid = prose.Seen(), [], [], []
        for source in options.text or options.packages:
            fact, found = (from_file(source, encoder) if options.text
                           else from_package(source, options.cache, encoder, seen))
            say(f"{source}: {len(found):,} documents, {sum(len(ids) for ids, _ in found):,} tokens "
                f"({fact['licence']})")
            try:
                rest, held_out = split(found, options.valid_share)
            except Refused as error:
                raise Refused(f"{source}: {error}") from error
            facts, train, valid = [*facts, fact], [*train, rest], [*valid, held_out]
        for name, sources in (("train", limit(train, options.max_tokens)), ("valid", valid)):
            documents = [document for source in sources for document in source]
            if not documents and (name == "train" or options.valid_share > 0):
                raise Refused(f"{name}: found no document, expected some")
            if documents:
                metadata = {"tokenizer": encoder.fingerprint, "start": encoder.start or "",
                            "split": name, "sources": json.dumps(facts)}
                write(os.path.join(staging, f"{name}.safetensors"), documents, encoder, metadata)
    say(f"{options.out}: tokenizer {encoder.fingerprint}, {encoder.size:,} ids")


def share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to below 1")
    return value


def count(text):
    unit = {"K": 1000, "M": 1000000}.get(text[-1:], 1)
    value = int(float(text.rstrip("KM")) * unit)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive number of tokens")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="the teacher's directory")
    parser.add_argument("--out", required=True, metavar="DIR")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--packages", nargs="+", default=list(debian.DEFAULT), metavar="NAME",
                        help="Debian packages (default: %(default)s); known: "
                             + " ".join(sorted(debian.PACKAGES)))
    source.add_argument("--text", nargs="+", metavar="FILE", help=".txt, .md or .jsonl files")
    parser.add_argument("--valid-share", type=share, default=0.02, help="held out (%(default)s)")
    parser.add_argument("--max-tokens", type=count, metavar="N", default=4000000,
                        help="of train, at most: 500K, 2M (%(default)s)")
    parser.add_argument("--start", metavar="TOKEN",
                        help="first token of a document: <|endoftext|> if there is one, else the "
                             "tokenizer's bos_token; none: no such token")
    parser.add_argument("--cache", metavar="DIR", help="downloads (~/.cache/kd)",
                        default=os.path.join(os.environ.get("XDG_CACHE_HOME")
                                             or os.path.expanduser("~/.cache"), "kd"))
    options = parser.parse_args()
    try:
        prepare(options)
    except (Refused, OSError) as error:
        say(f"prepare_text: {error}")
        return 3 if isinstance(error, Refused) else 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
