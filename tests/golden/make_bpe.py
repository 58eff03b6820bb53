#!/usr/bin/env python3
"""Writes small byte-level BPE tokenizers and what they make of nasty texts, for tests/format/test_bpe.c:

  bpe/gpt2/tokenizer.json      ByteLevel with its own pattern (GPT-2's)
  bpe/digits/tokenizer.json    Digits, then ByteLevel, as SmolLM2
  bpe/llama3/tokenizer.json    Llama 3's pattern, whole words before merges, a text begins with a token
  bpe/qwen2/tokenizer.json     Qwen2's pattern, NFC
  bpe/cases.json               texts and their ids; ids and their texts

    python tests/golden/make_bpe.py        (PyPI tokenizers 0.23)
"""
import json
import os
import random

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, "bpe")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")

TRAINING = [
    "A large teacher teaches a small student. The student's logits follow the teacher's logits.",
    "We don't know what they'll say; I'd guess it's fine, they've said so, and we're here: I'm sure.",
    "In 1984 there were 10 of them, in 2024 there are 100000; 3.14159 is not 22/7.",
    "def f(x):\n    if x > 0:\n        return x ** 2\n\n    return -x\n\n\nclass A:\n\tpass\r\n",
    "na\u00efve caf\u00e9, Stra\u00dfe, \u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440, "
    "\u4f60\u597d\u4e16\u754c, \u0645\u0631\u062d\u0628\u0627, \U0001f600\U0001f680",
    "THE END?! ... (yes) [no] {maybe} <tag> </tag> #1 @you $5 100% a_b __init__ ---- ====",
]

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n", "\n ", "  \n  ", "\t \t", "a", " a", "a ", "  a",
    "a  ", "   a   b    c", "a\nb", "a \n b", "a\n\n\nb", "a \n\n \n  b", "a\r\n\r\nb", "\n\n  a", "x\t\ty",
    "it's", "IT'S", "it'S", "we'll we'LL we'Ll they'Re I'VE I'm I'M he'd he'D don'T", "'s", "''s", "'", "' s",
    " 's", "'sure 'tis 'really 'llama", "it\u2019s", "it'\u017f it'\u017fx", "rock'n'roll", "x'y'z'",
    "1", "12", "123", "1234", "1234567890", " 1234", "a1b22c333d4444", "3.14159", "1,000,000", "0x1F",
    "\u00b2\u00bd\u0663\u0664\u0665\u0666 \u2167 \u3007 1\u0661", "v1.2.3-rc4",
    "Hello, world!", "hello!!!\n\n", "...\n", " ... \n x", "(a) [b] {c}", "a_b", "__init__", "!?!?", "-->", "a--b",
    "#include <stdio.h>\nint main(void)\n{\n\treturn 0;\n}\n", "https://example.org/a?b=c&d=%20#e",
    "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b", "<|im_end|",
    "<|im_start|><|im_start|>", " <|im_end|> ", "<<|im_end|>>", "<think>so</think>", "<thinking>", "<think",
    "<think>>", "  <|im_end|>\n\n ", "<|im<|im_end|>", "[[new]]", "[new]", "[new]]", "x[new]y <|[new]|>",
    "na\u00efve caf\u00e9", "Stra\u00dfe", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f", "\ud55c\uad6d\uc5b4",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "a\u00a0b", "a\u00a0 b",
    "\u3000\u3000x", "\u2028\u2029", "\u2003 \u2003x", "\x0b\x0c \x85x", "\ufeffx", "\u200b", "\u00ad",
    "\U00010330\U0001d54f\U0001d7d9", "\x01\x02\x7f", "\u00aa\u00ba\u00b5", "\ufffd\U0010fffd", "\u1ffe\ue000",
    "The student's logits follow the teacher's logits, token by token. " * 5, "ab" * 300, "a" * 500, " " * 301,
    "\n" * 77, "1" * 100, "\u4f60" * 50, "!" * 99, "aA1 " * 40,
]


def with_whole_words(result):
    """Words that no order of merges gives: only ignore_merges finds them."""
    data = json.loads(result.to_str())
    for word in ["zqx", "\u0120zqx"]:
        data["model"]["vocab"][word] = len(data["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(data))


def tokenizer(name, pre, **options):
    result = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "qwen2":
        result.normalizer = normalizers.NFC()
    # Trained without splits on the texts themselves: merges reach over every boundary, so that one
    # in the wrong place shows in the ids.
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.train_from_iterator([text[:60] for text in TRAINING + TEXTS] * 3, trainers.BpeTrainer(
        vocab_size=1400, min_frequency=3, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, special_tokens=["<|endoftext|>"]))
    if name == "llama3":
        result = with_whole_words(result)
    result.pre_tokenizer = pre
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    result.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False),
                       AddedToken("<|im", normalized=True), AddedToken("[new]", normalized=True),
                       AddedToken("[[new]]", normalized=True), AddedToken("[new]]", normalized=True),
                       AddedToken("  \u00e9", normalized=False)])
    if name == "llama3":
        result.post_processor = processors.Sequence([
            processors.ByteLevel(), processors.TemplateProcessing(
                single="<|endoftext|> $A", pair="<|endoftext|> $A $B",
                special_tokens=[("<|endoftext|>", result.token_to_id("<|endoftext|>"))])])
    os.makedirs(os.path.join(FOLDER, name), exist_ok=True)
    with open(os.path.join(FOLDER, name, "tokenizer.json"), "w", encoding="utf-8") as file:
        file.write(result.to_str(pretty=False) + "\n")
    return result


def split_on(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def random_ids(rng, size):
    return [rng.randrange(size) for _ in range(rng.randrange(1, 24))]


def decodings(result, rng):
    """Random ids, most of which are not UTF-8; without NUL, which JSON readers refuse."""
    rows = []
    while len(rows) < 24:
        ids, skip = random_ids(rng, result.get_vocab_size()), rng.random() < 0.5
        text = result.decode(ids, skip_special_tokens=skip)
        if "\0" not in text:
            rows.append({"ids": ids, "skip": skip, "text": text})
    return rows


def main():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    kinds = {
        "gpt2": tokenizer("gpt2", byte_level),
        "digits": tokenizer("digits", pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level])),
        "llama3": tokenizer("llama3", split_on(LLAMA3)),
        "qwen2": tokenizer("qwen2", split_on(QWEN2)),
    }
    rng = random.Random(7)
    texts = TEXTS + ["zqx zqx", "zqxy"]
    cases = {"texts": texts}
    for name, made in kinds.items():
        cases[name] = {
            "ids": [made.encode(text, add_special_tokens=False).ids for text in texts],
            "wrapped": made.encode("Hi there", add_special_tokens=True).ids,
            "decoded": decodings(made, rng),
        }
    with open(os.path.join(FOLDER, "cases.json"), "w", encoding="utf-8") as file:
        json.dump(cases, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
