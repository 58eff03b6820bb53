#!/usr/bin/env python3
"""Makes a token file that kd trains on out of lines of JSON.

    tokenize_jsonl.py --tokenizer MODEL --out chat.safetensors chat.jsonl more.jsonl

{"text": ...}       the ids that transformers gives for the text, then the tokenizer's eos_token unless
                    the text ends in it: what kd itself makes of `data.train: x.jsonl`
{"messages": ...}   a conversation through the tokenizer's own chat template; of it only the
                    assistant's turns count as targets (`loss_mask`); "tools" beside it are passed on

A line is a document, in the order of the files; an empty text is none.  The file has `tokens` u16 or
u32 [n], `documents` i64 [d + 1] and, where there were messages, `loss_mask` u8 [n]; its metadata has
the tokenizer's fingerprint.  It is there whole or not at all.

Needs PyPI transformers (5.23) and Jinja2 beside requirements.txt.
"""

import argparse
import json
import os
import sys

import chat
import token_file
from fingerprint import fingerprint
from gguf_to_hf import Refused
from publish import file_sha256, sync_dir

BATCH = 1024  # texts that the tokenizer's threads take at a time


def say(*words):
    print(*words, file=sys.stderr, flush=True)


class Encoder:
    def __init__(self, folder):
        self.folder, self.tokenizer, self.chat = folder, chat.load(folder), None

    def texts(self, texts):
        end, documents = self.tokenizer.eos_token_id, []
        for ids in self.tokenizer(texts, verbose=False)["input_ids"] if texts else []:
            ends = end is None or (ids and ids[-1] == end)
            documents.append((ids if ends else [*ids, end], None))
        return documents

    def messages(self, messages, where, tools):
        if self.chat is None:
            self.chat = chat.Chat(self.folder, self.tokenizer)
        return self.chat.encode(messages, where, tools)


def documents(paths, encoder):
    texts = []
    for path in paths:
        for where, key, value, record in token_file.records(path):
            if key == "text":
                texts += [value] if value else []
            if texts and (key == "messages" or len(texts) == BATCH):
                yield from encoder.texts(texts)
                texts = []
            if key == "messages":
                yield encoder.messages(value, where, record.get("tools"))
    yield from encoder.texts(texts)


def write(options):
    number, size = fingerprint(options.tokenizer)
    found = list(documents(options.files, Encoder(options.tokenizer)))
    if not found:
        raise Refused(f"{options.files[0]}: found no document, expected some")
    arrays = token_file.tensors(found, size)
    sources = [{"file": os.path.basename(path), "sha256": file_sha256(path)}
               for path in options.files]
    staging = f"{options.out}.tmp-{os.getpid()}"
    try:
        token_file.save(staging, arrays, {"tokenizer": number, "sources": json.dumps(sources)})
        with open(staging, "rb") as file:
            os.fsync(file.fileno())
        os.replace(staging, options.out)
    finally:
        if os.path.exists(staging):
            os.remove(staging)
    sync_dir(os.path.dirname(os.path.abspath(options.out)))
    scored = arrays["loss_mask"].mean() if "loss_mask" in arrays else 1.0
    say(f"{options.out}: {len(arrays['tokens']):,} tokens, {len(found):,} documents, "
        f"{scored:.1%} of tokens can be targets; tokenizer {number}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="the teacher's directory")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors")
    parser.add_argument("files", nargs="+", metavar="FILE.jsonl")
    try:
        write(parser.parse_args(arguments))
    except (Refused, OSError) as error:
        say(f"tokenize_jsonl: {error}")
        return 3 if isinstance(error, Refused) else 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
