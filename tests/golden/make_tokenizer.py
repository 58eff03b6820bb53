#!/usr/bin/env python3
"""Writes two small tokenizers with their fingerprints, for tests/format/test_tokenizer.c:

  tokenizer/bpe/      byte-level BPE with special tokens, as the models of configs/ have
  tokenizer/unigram/  Unigram with scores, and a normalizer full of characters that need escaping

    python tests/golden/make_tokenizer.py        (PyPI tokenizers 0.23, xxhash)
"""
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tools", "data"))
from fingerprint import fingerprint  # noqa: E402

TEXT = [
    "A large teacher teaches a small student.",
    "The student's logits follow the teacher's logits, token by token.",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600 tab\tnewline\n",
] * 3


def save(tokenizer, name):
    folder = os.path.join(HERE, "tokenizer", name)
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    digest, size = fingerprint(folder)
    with open(os.path.join(folder, "fingerprint.txt"), "w") as file:
        file.write("%s %d\n" % (digest, size))


def make_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    save(tokenizer, "bpe")


def make_unigram():
    vocab = [("<unk>", 0.0), ("\u2581", -2.5), ("e", -1e-05), ("\u2581the", -3.1415926535897931),
             ("\u00e9", -12.000000000000002), ("a\tb", -7.0), ("\U0001f600", -1e22)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("\x1f\x01\"\\/", "\n\t\u00e9\u2028\x7f"), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    save(tokenizer, "unigram")


if __name__ == "__main__":
    make_bpe()
    make_unigram()
